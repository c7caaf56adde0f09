"""`tiledwriter-journal retry`: retry runs in quarantine after their cause has been fixed."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tiledbroker import JournalError, JournalInvalid, JournalLocked, RunReader
from tiledbroker.supervisor import State, clear_failure, request_retry, retry_is_requested, withdraw_retry

from ..journals import (
    gone,
    has_supervisor,
    is_superseded,
    journal_dir_of,
    misplacement_of,
    open_run_file,
    reason_of,
    require_own_name,
    summarize,
    translate_errors,
)
from ._arguments import add_config, add_directory, add_json, add_run, run_and_place
from ._exit import CommandFailed, ExitCode
from ._numbers import parse_number
from ._parser import Subcommands, add_command
from ._progress import shown_progress
from ._run_lookup import find, no_runs_in, place_of, runs_in
from ._terminal import count_of, fail, plain, print_json

REQUESTED: Final = "requested"
RELEASED: Final = "released"
IN_USE: Final = "in use"
NO_SUPERVISOR: Final = "no supervisor"
TIMED_OUT: Final = "timed out"
GONE: Final = "gone"
ERROR: Final = "error"

_POLL_SECONDS: Final = 0.3
_RETRIED: Final = "retry requested"
_WAIT_HELP: Final = """\
wait until the runs are written or have failed again, until no supervisor is running, or for SECONDS at most"""
_NOTES: Final = """
exit codes with --wait: 0 written; 1 failed again; 4 its journal is gone; 5 not written: SECONDS have passed, no
  supervisor is running, or the run is interrupted"""
_CODES: Final = {
    State.WRITTEN.value: ExitCode.OK,
    State.FAILED.value: ExitCode.FAILED,
    State.INTERRUPTED.value: ExitCode.INCOMPLETE,
    NO_SUPERVISOR: ExitCode.INCOMPLETE,
    TIMED_OUT: ExitCode.INCOMPLETE,
    GONE: ExitCode.NOT_FOUND,
}


@dataclass(frozen=True)
class Retried:
    """What became of a retry.

    Attributes
    ----------
    uid
        Uid of the run.
    file
        Path of its journal.
    result
        "requested" of the running supervisor; "released" from quarantine without one; "in use" by a process without a
        supervisor. After waiting "written", "interrupted" or "failed", or "no supervisor", "timed out" or "gone".
        "error" if the journal cannot be read.
    message
        The same for people.
    """

    uid: str
    file: str
    result: str
    message: str


def add_commands(commands: Subcommands) -> None:
    """Add the command to the command line."""
    retry = add_command(
        commands,
        "retry",
        "retry runs in quarantine",
        examples=(
            "tiledwriter-journal retry 3f2b",
            "tiledwriter-journal retry 3f2b /var/lib/tiledwriter --wait 600",
            "tiledwriter-journal retry --all /var/lib/tiledwriter",
        ),
        notes=_NOTES,
    )
    add_run(retry, optional=True)
    add_directory(retry, "journal directory")
    retry.add_argument("--all", action="store_true", help="retry all runs in quarantine in the directory")
    retry.add_argument("--wait", nargs="?", type=_parse_seconds, const=float("inf"), metavar="SECONDS", help=_WAIT_HELP)
    add_config(retry)
    add_json(retry, lambda _, message: [asdict(Retried("", "", ERROR, message))])
    retry.set_defaults(command=_retry_runs)


def _parse_seconds(text: str) -> float:
    try:
        return parse_number(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; name the run and the directory before --wait") from None


def _retry_runs(arguments: argparse.Namespace) -> ExitCode:
    if arguments.all:
        if arguments.directory is not None:
            raise CommandFailed(ExitCode.USAGE, "give either a run or --all")
        return _retry_all(arguments)
    if arguments.run is None:
        raise CommandFailed(ExitCode.USAGE, "give a run, or --all")
    path = find(*run_and_place(arguments))
    if not _is_failed(path):
        raise CommandFailed(ExitCode.FAILED, f"run {_read_uid(path)} is not in quarantine")
    return _finish_retries([_Retry(path)], arguments)


def _retry_all(arguments: argparse.Namespace) -> ExitCode:
    place = place_of(None if arguments.run is None else Path(arguments.run), arguments.config)
    paths = runs_in(place)
    retries: list[_Retry] = []
    errors: list[Retried] = []
    for path in paths:
        try:
            if _is_failed(path):
                retries.append(_Retry(path))
        except (JournalError, OSError) as error:
            if not gone(path):
                errors.append(_report_error(path, error))
    if not arguments.json:
        if not paths:
            print(plain(no_runs_in(place)))
        elif not retries and not errors:
            print(plain(f"none of the {count_of(len(paths), 'run')} in {place} is in quarantine"))
    return _finish_retries(retries, arguments, errors)


class _Retry:
    """A run that is to be retried, and what has become of it.

    Parameters
    ----------
    path
        Journal of a run in quarantine.

    Raises
    ------
    JournalError
        It was set aside, is in the folder of finished runs or has the name of another run, so that no supervisor will
        resume it.
    """

    def __init__(self, path: Path) -> None:
        # Where a link points to, because a supervisor looks for requests there.
        self.path = Path(os.path.realpath(path))
        self.note = ""
        if is_superseded(self.path):
            raise JournalError(
                self.path,
                "it was set aside, because another host has served since it was written; no supervisor will resume it.",
            )
        with open_run_file(path) as journal:
            require_own_name(journal)
            if problem := misplacement_of(journal):
                raise JournalInvalid(journal.path, f"{problem}.")
            self.uid = journal.run_uid
            self._retries_before = _retry_count(journal)

    def request(self) -> Retried:
        """Ask the running supervisor to retry the run, or without one take it out of quarantine."""
        # The order matters: a supervisor that starts meanwhile finds either the request or a run out of quarantine.
        directory = journal_dir_of(self.path)
        request_retry(self.path)
        if not has_supervisor(self.path):
            try:
                clear_failure(self.path)
            except JournalLocked:
                next_one = f"The next supervisor with {directory} as its journal directory will retry it"
                return self._result(IN_USE, f"a process still has the journal open. {next_one}")
            if not has_supervisor(self.path):
                withdraw_retry(self.path)
                next_one = f"No supervisor is running; the next one with {directory} as its journal directory"
                message = f"Run {self.uid} is out of quarantine. {next_one} will resume it."
                return Retried(self.uid, str(self.path), RELEASED, message)
        return self._result(REQUESTED, "the supervisor was asked to retry it, and will do so within seconds")

    def check_result(self) -> Retried | None:
        """Return the result of the retry if there is one; None if it is still to come."""
        # The order matters: what a supervisor did before it ended, or before it withdrew the request, is in the
        # journal when that is read; and an outcome that is read after the run was retried is not that from before.
        supervised = has_supervisor(self.path)
        is_requested = retry_is_requested(self.path)
        try:
            with open_run_file(self.path) as journal:
                is_retried = _retry_count(journal) > self._retries_before
                outcome = journal.outcome
                if outcome is not None and is_retried:
                    return self._result(outcome, _describe_outcome(journal, outcome))
                if supervised and (is_requested or is_retried):
                    self.note = summarize(journal).why
                    return None
        except (JournalError, OSError) as error:
            if not gone(self.path):
                return self._result(ERROR, f"it is unknown what became of it: {reason_of(error)}")
            return self._result(GONE, f"its journal {self.path} no longer exists: it was pruned or moved")
        if supervised:
            return self._result(State.FAILED.value, "the supervisor could not retry it; its log says why")
        return self._result(NO_SUPERVISOR, "it is not written, and no supervisor is running")

    def give_up(self, seconds: float) -> Retried:
        """Return the result after the time to wait has passed."""
        return self._result(
            TIMED_OUT, f"it was not written within {seconds:g} s: {self.note or 'it waits for the supervisor'}"
        )

    def _result(self, result: str, message: str) -> Retried:
        return Retried(self.uid, str(self.path), result, f"Run {self.uid}: {message}.")


def _finish_retries(
    retries: Sequence[_Retry], arguments: argparse.Namespace, errors: Sequence[Retried] = ()
) -> ExitCode:
    """Retry runs, wait for them if that is asked for, and report the results."""
    errors = [*errors]
    results: dict[str, Retried] = {}
    for retry in retries:
        try:
            with translate_errors(retry.path, "changed"):
                results[retry.uid] = retry.request()
        except (JournalError, OSError) as error:
            if not gone(retry.path):
                errors.append(_report_error(retry.path, error))
            continue
        if not arguments.json:
            print(plain(results[retry.uid].message), flush=True)
    code = ExitCode.FAILED if errors else ExitCode.OK
    if arguments.wait is not None:
        results = _wait_for_results([retry for retry in retries if retry.uid in results], arguments.wait)
        code = code or _code_of(results.values())
        for result in results.values() if not arguments.json else ():
            print(plain(result.message))
    if arguments.json:
        print_json([asdict(result) for result in [*errors, *results.values()]])
    return code


def _report_error(path: Path, error: Exception) -> Retried:
    """Report a run that cannot be retried on standard error, and return the result."""
    fail(ExitCode.FAILED, reason_of(error))
    return Retried(path.stem, str(path), ERROR, reason_of(error))


def _wait_for_results(retries: Sequence[_Retry], seconds: float) -> dict[str, Retried]:
    """Wait until all retries have a result, or until the time has passed; return the results by uid."""
    deadline = time.monotonic() + seconds
    results: dict[str, Retried] = {}
    with shown_progress("waiting for", "run", total=len(retries)) as progress:
        while True:
            for retry in retries:
                if retry.uid not in results and (result := retry.check_result()) is not None:
                    results[retry.uid] = result
            left = [retry for retry in retries if retry.uid not in results]
            if not left or time.monotonic() >= deadline:
                break
            progress.show(len(results), len(retries), f"{left[0].uid[:8]}: {left[0].note}")
            time.sleep(max(0.0, min(_POLL_SECONDS, deadline - time.monotonic())))
    return {retry.uid: results.get(retry.uid) or retry.give_up(seconds) for retry in retries}


def _code_of(results: Iterable[Retried]) -> ExitCode:
    codes = {_CODES.get(result.result, ExitCode.FAILED) for result in results}
    order = (ExitCode.FAILED, ExitCode.NOT_FOUND, ExitCode.INCOMPLETE)
    return next((code for code in order if code in codes), ExitCode.OK)


def _describe_outcome(journal: RunReader, outcome: str) -> str:
    if outcome == State.WRITTEN.value:
        return "it is written"
    if outcome == State.INTERRUPTED.value:
        return "it is interrupted: all its documents are in Tiled, and there is no stop document"
    return f"it has failed again: {journal.get('reason', 'no reason was recorded')}"


def _retry_count(journal: RunReader) -> int:
    return sum(entry.event == _RETRIED for entry in journal.history())


def _is_failed(path: Path) -> bool:
    with open_run_file(path) as journal:
        return journal.outcome == State.FAILED.value


def _read_uid(path: Path) -> str:
    with open_run_file(path) as journal:
        return journal.run_uid
