"""`tiledwriter-supervisor check`: look at every prerequisite of the service before it is started, or while it runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tiledbroker import __version__
from tiledbroker._wording import format_install

from ._exit import ExitCode, Terminated, report_failure
from ._terminal import count_of, plain, print_json, take_any_text

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from .._check_results import CheckResult
    from .._config import Settings

CONFIGURATION: Final = "configuration"
# Version of what `--json` prints.
_SCHEMA: Final = 1
_TIMEOUT_SECONDS: Final = 10.0
_LINE_CHARACTERS: Final = 100
_COLOURS: Final = {"ok": "32", "warn": "33", "fail": "31", "skipped": "36"}
_SKIPPABLE: Final = ("probe", "files")
# The checks that need the probe node.
_NEED_PROBE: Final = ("probe", "storage", "files")


class CheckCode(IntEnum):
    """Exit code of `check`, with its meaning. Of several failures, the first one that is printed gives the code.

    A check that could not look is no success: 0 is returned only if all was looked at that `--skip` does not exclude.
    """

    meaning: str

    def __new__(cls, value: int, meaning: str) -> CheckCode:
        """Create a member with its number as value and its meaning as attribute."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code

    OK = 0, "all that was asked for was looked at, and nothing failed; there may be warnings"
    UNEXPECTED = 1, "check itself failed (see the message)"
    CONFIGURATION = 2, "the command line or the configuration is wrong"
    INCOMPLETE = 5, "nothing failed, but something could not be looked at"
    CREDENTIALS = 10, "profile, key file or TILED_API_KEY cannot be used"
    JOURNALS = 11, "journal directory"
    DISK = 12, "space for journals"
    CURVE = 13, "keys of supervisor and clients"
    PLUGINS = 14, "normalizer, patches or consolidators"
    PORT = 15, "address to listen on"
    LEASE = 16, "directory of the lease, or the log of the site"
    TILED = 20, "Tiled cannot be reached"
    VERSION = 21, "Tiled is too old"
    KEY = 22, "Tiled does not accept the key"
    SCOPES = 23, "the key lacks scopes"
    CONTAINER = 24, "the container to write to"
    PROBE = 25, "a node cannot be created, appended to, read back or deleted"
    STORAGE = 26, "storage of tables"
    FILES = 27, "Tiled cannot read external files"


def exit_codes_help() -> str:
    """Return the list of the exit codes for `--help`."""
    text = "exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in CheckCode)
    return "\n".join(textwrap.wrap(text, _LINE_CHARACTERS, subsequent_indent="  ", break_on_hyphens=False)) + "\n"


_DESCRIPTION = """\
Look at everything that the service needs: configuration, credentials, journal directory, disk, lease, keys, plugins,
port, and Tiled, where a probe node is created, appended to, read back and deleted again. It may run beside the service.

Each line is "ok", "warn", "fail" with what to do, or "skipped" with the reason why nothing was looked at.
"""

_EXAMPLES = """\
examples:
  tiledwriter-supervisor check --tiled http://localhost:8000
  tiledwriter-supervisor check --config /etc/tiledwriter/config.yaml
  tiledwriter-supervisor check --config /etc/tiledwriter/config.yaml --file /data/2026/scan_0001.h5
  tiledwriter-supervisor check --tiled http://localhost:8000 --skip files --json

"""


def add_command(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "check",
        help="look at all that the service needs",
        description=_DESCRIPTION,
        epilog=_EXAMPLES + exit_codes_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # What is not given here may be given before the command: a default would replace it.
        argument_default=argparse.SUPPRESS,
    )
    command.add_argument("--config", type=Path, metavar="FILE", help="YAML file with the settings of the service")
    command.add_argument("--listen", metavar="ADDRESS", help="address for publishers")
    command.add_argument("--source", metavar="SERVERS", help="servers of a site's log in NATS JetStream")
    command.add_argument("--curve", type=Path, metavar="DIR", help="keys made by keygen")
    command.add_argument("--insecure", action="store_true", help="listen to other hosts without keys")
    server = command.add_mutually_exclusive_group()
    server.add_argument("--tiled", metavar="URI", help="the Tiled server, or a container in it")
    server.add_argument("--profile", metavar="NAME", help="a profile of Tiled's client, instead of --tiled")
    command.add_argument("--journal-dir", type=Path, metavar="DIR", help="directory of the journals")
    command.add_argument("--lease-dir", type=Path, metavar="DIR", help="directory of the lease of several hosts")
    command.add_argument(
        "--file",
        action="append",
        metavar="FILE",
        default=[],
        help="a file of a detector, as documents name it, that Tiled must be able to open; can be repeated",
    )
    command.add_argument(
        "--skip",
        action="append",
        choices=_SKIPPABLE,
        default=[],
        help="do not check this: the probe node, or external files; can be repeated",
    )
    command.add_argument("--json", action="store_true", default=False, help="print JSON instead of text")
    command.set_defaults(command=check)


def check(arguments: argparse.Namespace) -> int:
    """Run all checks, print their results, and return the exit code."""
    take_any_text()
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    results: list[CheckResult] = []
    try:
        for result in _run_checks(arguments):
            results.append(result)
            if not arguments.json:
                _print_result(result)
        code = _choose_code(results, skipped=_find_excluded(arguments.skip))
        _print_summary(results, code, as_json=arguments.json)
    except ImportError as error:
        message = f"{error}. The ingest host needs: {format_install('ingest')}"
        if arguments.json:
            print_json({"error": message})
        return report_failure(CheckCode.UNEXPECTED, message)
    except KeyboardInterrupt as interrupt:
        # The probe node is deleted by now.
        return ExitCode.TERMINATED if isinstance(interrupt, Terminated) else ExitCode.INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    return code


def _raise_terminated(_number: int, _frame: Any) -> None:
    raise Terminated


def _run_checks(arguments: argparse.Namespace) -> Iterator[CheckResult]:
    from .._check_results import CheckResult, CheckState
    from ..catalog import SERVER_CHECKS
    from ._host_checks import CREDENTIALS, HOST_CHECKS, check_host
    from ._settings import WrongConfiguration, read_settings, setting_flags

    try:
        loaded = read_settings(arguments.config, setting_flags(arguments))
    except WrongConfiguration as error:
        yield CheckResult.fail(CONFIGURATION, str(error), "Correct what is named here.")
        for name in (*HOST_CHECKS, *SERVER_CHECKS):
            yield CheckResult.skip(name, f"the {CONFIGURATION} is wrong")
        return
    warnings = list(loaded.sources.warnings())
    place = arguments.config or "no file; environment and command line"
    if warnings:
        yield CheckResult.warn(CONFIGURATION, f"{place}: {' '.join(warnings)}", "Correct or unset what is named here.")
    else:
        yield CheckResult.ok(CONFIGURATION, str(place))
    has_credentials = True
    for result in check_host(loaded.values):
        has_credentials = has_credentials and not (result.name == CREDENTIALS and result.state is CheckState.FAIL)
        yield result
    if has_credentials:
        yield from _check_server(loaded.values, arguments.file, frozenset(arguments.skip))
    else:
        for name in SERVER_CHECKS:
            yield CheckResult.skip(name, f"the check of {CREDENTIALS!r} failed")


def _check_server(settings: Settings, files: Sequence[str], skip: frozenset[str]) -> Iterator[CheckResult]:
    from ..catalog import PreflightOptions, ServerChecks
    from ._credentials import describe_key_source, find_profile

    options = settings.worker_options()
    path_map = options.writing.path_map
    address = settings.tiled
    if settings.profile is not None:
        uri = str(find_profile(settings.profile).get("uri", "in this process")).partition("?")[0]
        address = f"{uri} (profile {settings.profile})"
    checks = ServerChecks(
        lambda: options.tiled.open(_TIMEOUT_SECONDS),
        PreflightOptions(
            str(address),
            describe_key_source(settings),
            settings.write_slots,
            {source: path_map(source).uri for source in settings.path_map},
            [path_map(_as_uri(file)) for file in files],
            skip,
        ),
    )
    yield from checks.run()


def _as_uri(file: str) -> str:
    """Return a file as documents name it; a path that begins with a slash becomes a URI."""
    return f"file://localhost{file}" if file.startswith("/") else file


def _find_excluded(skip: Sequence[str]) -> frozenset[str]:
    """Return the names of the checks that the user has excluded; without the probe node others are impossible."""
    return frozenset((*skip, *(_NEED_PROBE if "probe" in skip else ())))


def _choose_code(results: Sequence[CheckResult], *, skipped: frozenset[str]) -> CheckCode:
    for result in results:
        if result.state.value == "fail":
            return CheckCode[result.name.upper()]
    missing = [result for result in results if result.state.value == "skipped" and result.name not in skipped]
    return CheckCode.INCOMPLETE if missing else CheckCode.OK


# Output.


def _print_result(result: CheckResult) -> None:
    state = result.state.value
    word = state.ljust(len("skipped"))
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        word = f"\x1b[{_COLOURS[state]}m{word}\x1b[0m"
    print(f"{word}  {result.name.ljust(len(CONFIGURATION))}  {plain(result.found)}")
    if result.advice:
        print(f"{' ' * (len('skipped') + len(CONFIGURATION) + 4)}{plain(result.advice)}")
    sys.stdout.flush()


def _print_summary(results: Sequence[CheckResult], code: CheckCode, *, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps(
                {
                    "schema": _SCHEMA,
                    "version": __version__,
                    "host": socket.gethostname(),
                    "time": time.time(),
                    "exit_code": code.value,
                    "meaning": code.meaning,
                    "checks": [result.as_dict() for result in results],
                },
                indent=2,
            )
        )
        return
    counts = {state: sum(result.state.value == state for result in results) for state in _COLOURS}
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    print(f"\n{count_of(len(results), 'check')}: {shown}. {code.meaning.capitalize()} (exit code {code.value}).")
