"""`tiledwriter-supervisor`: run the service of the ingest host."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiledbroker._wording import format_command, format_install

from . import _check, _keygen, _lease_dir, _status, _stream
from ._completion import answer_completion
from ._exit import ExitCode
from ._lifeline import end_with_parent
from ._parser import make_parser
from ._terminal import count_of, discard_output, flush_output

if TYPE_CHECKING:
    from tiledbroker.log import FileLock
    from tiledbroker.supervisor import HeldLease, RunOwner, Source, Supervisor, WorkerCommand

    from .._config import Settings
    from ..worker import ServerPage
    from ._settings import LoadedSettings
    from ._writing_key import WritingKey

log = logging.getLogger("tiledwriter.supervisor")

_DESCRIPTION = """\
Receive documents from publishers, keep them in journals, and write them to Tiled.

Settings come from --config (YAML), then TILEDWRITER_* in the environment, then flags; later ones win.
Tiled's credentials come from TILED_API_KEY or from the profile.
"""

_EXAMPLES = """\
examples:
  tiledwriter-supervisor --tiled http://localhost:8000 --journal-dir /var/lib/tiledwriter
  tiledwriter-supervisor --profile beamline --listen tcp://127.0.0.1:5579
  tiledwriter-supervisor --profile beamline --http 8080
  tiledwriter-supervisor --profile beamline --listen 'tcp://*:5579' --curve /etc/tiledwriter/keys
  tiledwriter-supervisor --config /etc/tiledwriter/config.yaml --lease-dir /shared/tiledwriter --standby
  tiledwriter-supervisor --config /etc/tiledwriter/config.yaml --source nats://log1,log2,log3
  tiledwriter-supervisor --config /etc/tiledwriter/config.yaml --drain
  tiledwriter-supervisor --config /etc/tiledwriter/config.yaml --print-config

exit codes: 0 ended as asked; 1 failed, or the lease was lost; 2 wrong usage; 3 another supervisor uses the journals,
  or another host holds the lease;
  4 no journal directory to drain; 5 after --drain, if runs remain that are not in Tiled
"""


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    result = make_parser(
        "tiledwriter-supervisor",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    result.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file with any of these settings; FILE:TARGET for one target"
    )
    result.add_argument(
        "--relayed", action="store_true", help="used by the service itself, to start the supervisor of each target"
    )
    result.add_argument("--listen", metavar="ADDRESS", help="address for publishers (default tcp://127.0.0.1:5579)")
    result.add_argument(
        "--source", metavar="SERVERS", help="read a site's log in NATS JetStream, nats://a,b,c, instead of listening"
    )
    result.add_argument("--curve", type=Path, metavar="DIR", help="keys made by keygen; reject clients without one")
    result.add_argument(
        "--insecure",
        action="store_true",
        default=None,
        help="listen to other hosts without keys; any of them can write",
    )
    server = result.add_mutually_exclusive_group()
    server.add_argument("--tiled", metavar="URI", help="the Tiled server, or a container in it")
    server.add_argument("--profile", metavar="NAME", help="a profile of Tiled's client, instead of --tiled")
    result.add_argument(
        "--journal-dir",
        type=Path,
        metavar="DIR",
        help="directory of the journals, on a local disk (default: the user's state directory)",
    )
    result.add_argument(
        "--lease-dir",
        type=Path,
        metavar="DIR",
        help="directory that all ingest hosts of this service mount; who holds the lease in it, serves",
    )
    result.add_argument(
        "--standby",
        action="store_true",
        default=None,
        help="wait while another host holds the lease, and then take over; with --source: get runs only if all other "
        "hosts stand by",
    )
    result.add_argument(
        "--http",
        metavar="HOST:PORT",
        help="serve a status page and metrics; a port alone: to this host only",
    )
    result.add_argument("--drain", action="store_true", help="write what the journals hold, then exit")
    result.add_argument("--log-level", metavar="L", help="DEBUG, INFO, WARNING or ERROR (default INFO)")
    result.add_argument(
        "--log-format",
        choices=("auto", "text", "json", "journald"),
        help="format of log lines (default auto: journald under systemd, else text)",
    )
    result.add_argument(
        "--print-config", action="store_true", help="print the effective settings and where each comes from, then exit"
    )
    result.add_argument(
        "--print-schema", action="store_true", help="print the JSON schema of the configuration file, then exit"
    )
    result.set_defaults(command=serve)
    commands = result.add_subparsers(title="other commands", metavar="COMMAND")
    _status.add_command(commands)
    _keygen.add_command(commands)
    _lease_dir.add_command(commands)
    _stream.add_command(commands)
    _check.add_command(commands)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments_parser = parser()
    answer_completion(arguments_parser)
    arguments = arguments_parser.parse_args(argv)
    if arguments.command is serve and arguments.relayed:
        end_with_parent()
    try:
        code = int(arguments.command(arguments))
        flush_output()
    except BrokenPipeError:
        # The reader of the output has ended, as in `tiledwriter-supervisor check | head`.
        discard_output()
        return ExitCode.BROKEN_PIPE
    return code


def serve(arguments: argparse.Namespace) -> ExitCode:
    """Run the supervisor until it is stopped or, with `--drain`, until it has drained the journals."""
    try:
        import zmq

        from tiledbroker import JournalLocked, KeyFileError
        from tiledbroker._errors import DirectoryUnusable, LeaseHeld, LeaseLost, WorkersUnusable

        from .._config import PluginCheck
        from ..status import HttpProcess, TokenFileError, find_missing_packages
        from ..worker import ServerPage, allow_open_files
        from ._credentials import require_credentials
        from ._settings import (
            WrongConfiguration,
            config_schema,
            print_settings,
            read_settings,
            read_targets,
            setting_flags,
        )
        from ._writing_key import WritingKey
    except ImportError as error:
        return _report_failure(ExitCode.FAILED, f"{error}. The ingest host needs: {format_install('ingest')}")
    if arguments.print_schema:
        print(json.dumps(config_schema(), indent=2))
        return ExitCode.OK
    try:
        if targets := read_targets(arguments.config, setting_flags(arguments)):
            return _serve_targets(arguments, targets)
        # The process that workers are forked from imports the plugins, which may take seconds.
        loaded = read_settings(arguments.config, setting_flags(arguments), plugins=PluginCheck.NAMES)
        if arguments.print_config:
            loaded.warn()
            print_settings(loaded)
            return ExitCode.OK
        require_credentials(loaded.values)
        http = loaded.values.http_options()
    except (WrongConfiguration, TokenFileError) as error:
        return _report_failure(ExitCode.USAGE, str(error))
    if http is not None and (missing := find_missing_packages()):
        packages = ", ".join(missing)
        return _report_failure(ExitCode.USAGE, f"--http needs {packages}: {format_install('ingest', 'web')}")

    settings = loaded.values
    settings.worker_options().logging.configure()
    loaded.warn()
    log.debug("Up to %d files may be open.", allow_open_files())
    try:
        check = _format_check_command(arguments.config, setting_flags(arguments), loaded)
        key = WritingKey(settings, settings.journal_dir)
        supervisor = _make_supervisor(arguments, settings, key, ServerPage.make(), check_command=check)
        key.follow_lease(supervisor.lease)
        log.info("Starting %s.", loaded.describe())
        page = contextlib.nullcontext() if http is None else HttpProcess(http)
        with _watch_surroundings(settings, supervisor, check, drain=arguments.drain), page, key:
            left = supervisor.run(key.revoke)
        rest = _describe_rest(supervisor.count_unwritten(), surveyed=supervisor.surveyed)
        log.info("Stopped %s; left: %s.", loaded.describe(), rest)
    except (KeyFileError, WorkersUnusable) as error:
        return _report_failure(ExitCode.USAGE, str(error))
    except (LeaseHeld, LeaseLost) as error:
        return _report_failure(ExitCode.LOCKED if isinstance(error, LeaseHeld) else ExitCode.FAILED, str(error))
    except JournalLocked:
        return _report_failure(ExitCode.LOCKED, f"another tiledwriter-supervisor uses {settings.journal_dir}")
    except DirectoryUnusable as error:
        return _report_failure(ExitCode.FAILED if settings.journal_dir.exists() else ExitCode.NOT_FOUND, str(error))
    except zmq.ZMQError as error:
        return _report_failure(ExitCode.FAILED, f"cannot listen at {settings.listen}: {error}")
    except OSError as error:
        return _report_failure(ExitCode.FAILED, f"cannot use {settings.journal_dir}: {error}")
    if arguments.drain and left:
        for run in left:
            log.error("Run %s is not completely in Tiled: %s.", run.uid, run.reason or run.state)
        return ExitCode.INCOMPLETE
    return ExitCode.OK


def _serve_targets(arguments: argparse.Namespace, targets: Mapping[str, LoadedSettings]) -> ExitCode:
    """Run a supervisor for each target, behind one address."""
    import zmq

    from tiledbroker import KeyFileError

    from ._credentials import require_credentials
    from ._settings import print_settings, setting_flags
    from ._targets import TargetService, command_of, refuse_other_journals

    if arguments.print_config:
        for name, loaded in targets.items():
            print(f"# target {name}")
            print_settings(loaded)
        return ExitCode.OK
    first = next(iter(targets.values())).values
    for name, loaded in targets.items():
        require_credentials(loaded.values)
        common = loaded.values.journal_dir.parent if loaded.values.journal_dir.name == name else None
        if common is not None:
            refuse_other_journals(common, targets)
    replace(first.log_options(), target="").configure(process="relay")
    flags, drain = setting_flags(arguments), arguments.drain
    commands = {name: command_of(name, arguments.config, flags, drain=drain) for name in targets}
    try:
        return TargetService(targets, commands, drain=drain).run()
    except KeyFileError as error:
        return _report_failure(ExitCode.USAGE, str(error))
    except zmq.ZMQError as error:
        return _report_failure(ExitCode.FAILED, f"cannot listen at {first.listen}: {error}")
    except OSError as error:
        return _report_failure(ExitCode.FAILED, f"cannot serve: {error}")


@contextlib.contextmanager
def _watch_surroundings(settings: Settings, supervisor: Supervisor, check: str, *, drain: bool) -> Iterator[None]:
    """Have threads look at Tiled and at the site's log until the end of the context."""
    from ._log_watch import LogWatch
    from ._tiled_presence import TiledPresence

    with contextlib.ExitStack() as threads:
        threads.enter_context(
            TiledPresence(settings, supervisor.note_tiled_look, lambda: supervisor.tiled_asked_at, check)
        )
        if (address := settings.log_address()) is not None and not drain:
            threads.enter_context(LogWatch(address, supervisor.note_log))
        yield


def _make_command(settings: Settings, key: WritingKey, server_page: ServerPage) -> WorkerCommand:
    """Return what workers run under some settings, which `key` uses from now on, too."""
    from tiledbroker.supervisor import WorkerCommand

    from ..worker import prepare_workers, run_worker

    key.change_settings(settings)
    options = settings.worker_options()
    tiled = replace(options.tiled, uri=key.uri, key_page=key.page, server_page=server_page)
    options = replace(options, tiled=tiled)
    return WorkerCommand(
        partial(run_worker, options=options),
        ("tiledwriter.worker._preload", *(() if settings.source is None else ("nats",))),
        partial(prepare_workers, options),
        (key.page.descriptor, server_page.descriptor),
    )


def _format_check_command(config: Path | None, flags: Mapping[str, Any], loaded: LoadedSettings) -> str:
    """Return the `check` of this service, with what it was given by options and by the environment."""
    words: list[object] = ["tiledwriter-supervisor", "check"]
    if config is not None:
        words += ["--config", config.absolute()]
    # As they were given: a target adds its name to the journal directory.
    given = {name: os.environ[variable] for name, variable in loaded.sources.variables.items()}
    given |= {name: value for name, value in flags.items() if value is not None}
    for name in ("tiled", "profile", "listen", "source"):
        words += [f"--{name}", given[name]] if name in given else []
    for name in ("journal_dir", "lease_dir", "curve"):
        words += ["--" + name.replace("_", "-"), Path(given[name]).expanduser().absolute()] if name in given else []
    if "insecure" in given and loaded.values.insecure:
        words.append("--insecure")
    return format_command(*words)


def _choose_source(
    settings: Settings, find_owner: Callable[[], RunOwner], *, drain: bool, relayed: bool
) -> Callable[[], Source]:
    """Return what makes the source of documents: a site's log, the socket of publishers, or that of the relay."""
    from tiledbroker.supervisor import Frontend, RelayedFrontend

    if (address := settings.log_address()) is not None and not drain:
        from tiledbroker.supervisor.jetstream_source import JetStreamSource

        limits, keep_in_log = settings.client_limits(), settings.keep_in_log
        return lambda: JetStreamSource(address, limits, keep_in_log=keep_in_log, owner=find_owner())
    listen = None if drain or address is not None else settings.listen
    if relayed:
        return partial(RelayedFrontend, listen, settings.client_limits(), settings.journal_dir)
    return partial(Frontend, listen, settings.client_limits(), settings.server_curve())


def _choose_lease(
    settings: Settings, *, drain: bool
) -> Callable[[Path, FileLock, Callable[[], None]], HeldLease] | None:
    """Return what makes the lease of this host; None if there is only this one."""
    from tiledbroker.ownership import DirectoryStore, LeaseTiming
    from tiledbroker.supervisor import ServiceLease

    timing, standby = LeaseTiming.of(settings.lease_seconds), settings.standby
    if (address := settings.log_address()) is not None:
        from tiledbroker.supervisor.jetstream_source import SharedRuns

        return lambda directory, lock, on_change: SharedRuns(
            directory, lock, address, timing=timing, standby=standby, drain=drain, on_change=on_change
        )
    if (lease_dir := settings.lease_dir) is None:
        return None
    return lambda directory, lock, on_change: ServiceLease(
        directory, lock, DirectoryStore(lease_dir), timing=timing, standby=standby, on_change=on_change
    )


def _make_supervisor(
    arguments: argparse.Namespace, settings: Settings, key: WritingKey, server_page: ServerPage, *, check_command: str
) -> Supervisor:
    """Return the supervisor, which holds the journal directory and answers signals from now on."""
    from tiledbroker.supervisor import Supervisor

    from ..worker import Processes
    from ._reload import ConfigurationReload
    from ._settings import setting_flags

    def find_owner() -> RunOwner:
        assert supervisor.lease is not None
        return supervisor.lease.owner

    make_command = partial(_make_command, key=key, server_page=server_page)
    supervisor = Supervisor(
        settings.journal_dir,
        make_command(settings),
        _choose_source(settings, find_owner, drain=arguments.drain, relayed=arguments.relayed),
        drain=arguments.drain,
        clients=settings.client_limits(),
        max_workers=settings.max_workers,
        max_resumed=settings.max_resumed,
        limits=settings.worker_limits(),
        processes=Processes(),
        settings=settings.shown(),
        tiled_address=settings.tiled or f"profile {settings.profile}",
        min_free=settings.min_free,
        keep_written=settings.keep_written,
        write_slots=settings.write_slots,
        check_command=check_command,
        make_lease=_choose_lease(settings, drain=arguments.drain),
    )
    supervisor.stop_on_signals()
    supervisor.reload_on_signal(ConfigurationReload(arguments.config, setting_flags(arguments), settings, make_command))
    return supervisor


def _describe_rest(counts: Mapping[str, int], *, surveyed: bool) -> str:
    """Return how many runs are not completely in Tiled, by state; `surveyed` tells that all journals were looked at."""
    listed = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    rest = f"{count_of(sum(counts.values()), 'run')} not completely in Tiled ({listed})" if counts else "nothing"
    return rest if surveyed else f"{rest}, and journals that were not looked at before the stop"


def _report_failure(code: ExitCode, message: str) -> ExitCode:
    print(f"tiledwriter-supervisor: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
