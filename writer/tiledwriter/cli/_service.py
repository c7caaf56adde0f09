"""Runs the service of the ingest host by its settings: one supervisor, or one for each target behind a relay."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from tiledbroker import JournalLocked, KeyFileError
from tiledbroker._errors import DirectoryUnusable, LeaseHeld, LeaseLost, WorkersUnusable
from tiledbroker._wording import format_command
from tiledbroker.ownership import DirectoryStore, LeaseTiming
from tiledbroker.supervisor import Frontend, RelayedFrontend, ServiceLease, Supervisor, WorkerCommand

from .._config import Settings
from .._given_path import path_of
from ..status import HttpOptions, HttpProcess
from ..worker import Processes, ServerPage, allow_open_files, prepare_workers, run_worker
from ._credentials import require_credentials
from ._exit import ExitCode, report_failure
from ._log_watch import LogWatch
from ._reload import ConfigurationReload
from ._settings import LoadedSettings, print_settings, setting_flags
from ._targets import TargetService, command_of, refuse_other_journals
from ._terminal import count_of
from ._tiled_presence import TiledPresence
from ._writing_key import WritingKey

if TYPE_CHECKING:
    from tiledbroker.log import FileLock
    from tiledbroker.supervisor import HeldLease, RunOwner, Source

log = logging.getLogger("tiledwriter.supervisor")


def serve_settings(arguments: argparse.Namespace, loaded: LoadedSettings, http: HttpOptions | None) -> ExitCode:
    """Run one supervisor, and say what it has left."""
    settings = loaded.values
    settings.worker_options().logging.configure()
    loaded.warn()
    log.debug("Up to %d files may be open.", allow_open_files())
    try:
        return _run_supervisor(arguments, loaded, http)
    except (KeyFileError, WorkersUnusable) as error:
        return report_failure(ExitCode.USAGE, str(error))
    except (LeaseHeld, LeaseLost) as error:
        return report_failure(ExitCode.LOCKED if isinstance(error, LeaseHeld) else ExitCode.FAILED, str(error))
    except JournalLocked:
        return report_failure(ExitCode.LOCKED, f"another tiledwriter-supervisor uses {settings.journal_dir}")
    except DirectoryUnusable as error:
        return report_failure(ExitCode.FAILED if settings.journal_dir.exists() else ExitCode.NOT_FOUND, str(error))
    except zmq.ZMQError as error:
        return report_failure(ExitCode.FAILED, f"cannot listen at {settings.listen}: {error}")
    except OSError as error:
        return report_failure(ExitCode.FAILED, f"cannot use {settings.journal_dir}: {error}")


def serve_targets(arguments: argparse.Namespace, targets: Mapping[str, LoadedSettings]) -> ExitCode:
    """Run a supervisor for each target, behind one address."""
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
        return report_failure(ExitCode.USAGE, str(error))
    except zmq.ZMQError as error:
        return report_failure(ExitCode.FAILED, f"cannot listen at {first.listen}: {error}")
    except OSError as error:
        return report_failure(ExitCode.FAILED, f"cannot serve: {error}")


def _run_supervisor(arguments: argparse.Namespace, loaded: LoadedSettings, http: HttpOptions | None) -> ExitCode:
    """Run the supervisor until it ends, and say which runs are not completely in Tiled after draining."""
    settings = loaded.values
    check = _format_check_command(arguments.config, setting_flags(arguments), loaded)
    key = WritingKey(settings, settings.journal_dir)
    supervisor = _make_supervisor(arguments, settings, key, ServerPage.make(), check_command=check)
    key.follow_lease(supervisor.lease)
    log.info("Starting %s.", loaded.describe())
    page = contextlib.nullcontext() if http is None else HttpProcess(http, supervisor.report.note_page)
    with _watch_surroundings(settings, supervisor, key, check, drain=arguments.drain), page, key:
        left = supervisor.run(key.revoke)
    rest = _describe_rest(supervisor.count_unwritten(), surveyed=supervisor.surveyed)
    log.info("Stopped %s; left: %s.", loaded.describe(), rest)
    if not arguments.drain:
        return ExitCode.OK
    for run in left:
        log.error("Run %s is not completely in Tiled: %s.", run.uid, run.reason or run.state)
    return ExitCode.OK if supervisor.surveyed and not left else ExitCode.INCOMPLETE


@contextlib.contextmanager
def _watch_surroundings(
    settings: Settings, supervisor: Supervisor, key: WritingKey, check: str, *, drain: bool
) -> Iterator[None]:
    """Have threads look at Tiled and at the site's log until the end of the context."""
    report = supervisor.report
    with contextlib.ExitStack() as threads:
        threads.enter_context(
            TiledPresence(key.uri, key.open_client, report.note_tiled_look, lambda: report.tiled_asked_at, check)
        )
        if (address := settings.log_address()) is not None and not drain:
            threads.enter_context(LogWatch(address, report.note_log))
        yield


def _make_command(settings: Settings, key: WritingKey, server_page: ServerPage) -> WorkerCommand:
    """Return what workers run under some settings, which `key` uses from now on, too."""
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
        words += ["--" + name.replace("_", "-"), path_of(given[name]).absolute()] if name in given else []
    if "insecure" in given and loaded.values.insecure:
        words.append("--insecure")
    return format_command(*words)


def _choose_source(
    settings: Settings, find_owner: Callable[[], RunOwner], *, drain: bool, relayed: bool
) -> Callable[[], Source]:
    """Return what makes the source of documents: a site's log, the socket of publishers, or that of the relay."""
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
    return rest if surveyed else f"{rest}, and journals that could not be looked at, or not before the stop"
