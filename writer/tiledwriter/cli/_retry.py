"""`tiledwriter-journal retry`: retry runs in quarantine after their cause has been fixed."""

from __future__ import annotations

import argparse
from pathlib import Path

from tiledbroker import JournalError, JournalLocked
from tiledbroker.log import FileLock
from tiledbroker.supervisor import State, clear_failure, request_retry, withdraw_retry

from ..journals import gone, open_run_file, reason_of
from ._exit import ExitCode
from ._run_lookup import directory_of, find, no_runs_in, runs_in
from ._terminal import count_of, fail, plain


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    retry = commands.add_parser("retry", help="retry runs in quarantine")
    retry.add_argument("run", nargs="?", metavar="UID", help="the run's uid, a prefix of it, or a journal file")
    retry.add_argument(
        "directory",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="journal directory (default: TILEDWRITER_JOURNAL_DIR, or the user's state directory)",
    )
    retry.add_argument("--all", action="store_true", help="retry all runs in quarantine in the directory")
    retry.set_defaults(command=_retry_runs)


def _retry_runs(arguments: argparse.Namespace) -> ExitCode:
    if arguments.all:
        if arguments.directory is not None:
            return fail(ExitCode.USAGE, "give either a run or --all")
        return _retry_all(directory_of(None if arguments.run is None else Path(arguments.run)))
    if arguments.run is None:
        return fail(ExitCode.USAGE, "give a run, or --all")
    path = find(arguments.run, directory_of(arguments.directory))
    if not _is_failed(path):
        return fail(ExitCode.FAILED, f"run {_read_uid(path)} is not in quarantine")
    print(plain(_try_again(path)))
    return ExitCode.OK


def _retry_all(directory: Path) -> ExitCode:
    paths = runs_in(directory)
    code, count = ExitCode.OK, 0
    for path in paths:
        try:
            if _is_failed(path):
                print(plain(_try_again(path)))
                count += 1
        except (JournalError, OSError) as error:
            if not gone(path):
                code = fail(ExitCode.FAILED, reason_of(error))
    if not paths:
        print(plain(no_runs_in(directory)))
    elif not count and code is ExitCode.OK:
        print(plain(f"none of the {count_of(len(paths), 'run')} in {directory} is in quarantine"))
    return code


def _try_again(path: Path) -> str:
    """Ask the running supervisor to retry a run, or without one take it out of quarantine; return a message."""
    uid = _read_uid(path)
    # The order matters: a supervisor that starts meanwhile finds either the request or a run out of quarantine.
    request_retry(path)
    if not _has_supervisor(path.parent):
        try:
            clear_failure(path)
        except JournalLocked:
            return f"Run {uid}: a process still has the journal open. The next supervisor will retry the run."
        if not _has_supervisor(path.parent):
            withdraw_retry(path)
            return f"Run {uid} is out of quarantine. No supervisor is running; the next one will resume it."
    return f"Run {uid}: the supervisor was asked to retry it, and will do so within seconds."


def _has_supervisor(directory: Path) -> bool:
    return FileLock(directory / ".supervisor.lock").held


def _is_failed(path: Path) -> bool:
    with open_run_file(path) as journal:
        return bool(journal.get("outcome") == State.FAILED.value)


def _read_uid(path: Path) -> str:
    with open_run_file(path) as journal:
        return journal.run_uid
