"""`tiledwriter-supervisor`: run the service of the ingest host."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tiledbroker._wording import format_install

from . import _check, _keygen, _lease_dir, _status, _stream
from ._completion import answer_completion
from ._exit import ExitCode, report_failure
from ._lifeline import end_with_parent
from ._parser import make_parser
from ._terminal import discard_output, flush_output, replace_closed_outputs

_DESCRIPTION = """\
Receive documents from publishers, keep them in journals, and write them to Tiled.

Settings come from --config (YAML), then TILEDWRITER_* in the environment, then flags; later ones win.
Tiled's credentials come from TILED_API_KEY, the file that api_key_file names, or the profile.
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
  4 no journal directory to drain; 5 after --drain, if runs remain that are not in Tiled, or journals that were not
  looked at
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
    replace_closed_outputs()
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
    except OSError as error:
        # The output cannot be written, as on a full disk.
        discard_output()
        return report_failure(ExitCode.FAILED, str(error))
    return code


def serve(arguments: argparse.Namespace) -> ExitCode:
    """Run the supervisor until it is stopped or, with `--drain`, until it has drained the journals."""
    try:
        from .._config import PluginCheck
        from ..status import TokenFileError, find_missing_packages
        from ._credentials import require_credentials
        from ._service import serve_settings, serve_targets
        from ._settings import (
            WrongConfiguration,
            config_schema,
            print_settings,
            read_settings,
            read_targets,
            setting_flags,
        )
    except ImportError as error:
        return report_failure(ExitCode.FAILED, f"{error}. The ingest host needs: {format_install('ingest')}")
    if arguments.print_schema:
        print(json.dumps(config_schema(), indent=2))
        return ExitCode.OK
    try:
        if targets := read_targets(arguments.config, setting_flags(arguments)):
            return serve_targets(arguments, targets)
        # The process that workers are forked from imports the plugins, which may take seconds.
        loaded = read_settings(arguments.config, setting_flags(arguments), plugins=PluginCheck.NAMES)
        if arguments.print_config:
            loaded.warn()
            print_settings(loaded)
            return ExitCode.OK
        require_credentials(loaded.values)
        http = loaded.values.http_options()
    except (WrongConfiguration, TokenFileError) as error:
        return report_failure(ExitCode.USAGE, str(error))
    if http is not None and (missing := find_missing_packages()):
        packages = ", ".join(missing)
        return report_failure(ExitCode.USAGE, f"--http needs {packages}: {format_install('ingest', 'web')}")
    return serve_settings(arguments, loaded, http)


if __name__ == "__main__":
    sys.exit(main())
