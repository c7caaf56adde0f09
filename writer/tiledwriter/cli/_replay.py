"""`tiledwriter-journal replay`: write runs from backups, exported documents and journals to Tiled."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..journals import UNREADABLE, Replayed, ReplayProgress, replay
from ._exit import ExitCode, Terminated
from ._progress import shown_progress
from ._settings import settings_of
from ._terminal import count_of, print_json


def run(
    files: Sequence[Path],
    *,
    config: Path | None,
    tiled: str | None,
    profile: str | None,
    as_json: bool,
    names: Mapping[Path, str],
) -> ExitCode:
    """Replay files and report the result of each run.

    Parameters
    ----------
    files
        Backups, exported documents or journals.
    config
        Path of the supervisor's configuration file, if any.
    tiled, profile
        URI of the Tiled server, or name of a profile; None to use the configuration.
    as_json
        Print all results as JSON at the end.
    names
        What the files are called in the results.

    Raises
    ------
    WrongConfiguration
        The settings cannot be used.
    """
    options = settings_of(config, {"tiled": tiled, "profile": profile}).worker_options()
    logging.getLogger("tiledwriter.worker._writing").addFilter(_without_traceback)
    results: list[Replayed] = []
    with (
        _ended_by_signals() as ending,
        tempfile.TemporaryDirectory(prefix="tiledwriter-replay-") as directory,
        shown_progress("replaying", "document") as progress,
    ):

        def show(state: ReplayProgress) -> None:
            progress.show(state.documents, state.total, f"run {state.run} of {state.runs}")

        for replayed in replay(
            files, options.tiled.connect, options.writing, Path(directory), ending, on_progress=show
        ):
            result = replace(replayed, file=names.get(Path(replayed.file), replayed.file))
            results.append(result)
            if not as_json:
                progress.print_line(_result_line(result))
    if as_json:
        print_json([asdict(result) for result in results])
    if ending.signal is not None:
        return ExitCode.INTERRUPTED if ending.signal == signal.SIGINT else ExitCode.TERMINATED
    if any(result.outcome == UNREADABLE for result in results):
        return ExitCode.FAILED
    return ExitCode.OK if all(result.done for result in results) else ExitCode.INCOMPLETE


class _Ending(threading.Event):
    """Event that the first signal sets and records in `signal`; the second signal raises its exception."""

    signal: int | None = None

    def on_signal(self, number: int, _frame: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        self.signal = number
        self.set()


@contextmanager
def _ended_by_signals() -> Iterator[_Ending]:
    ending = _Ending()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, ending.on_signal) for number in numbers]
    try:
        yield ending
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def _result_line(result: Replayed) -> str:
    if result.outcome == UNREADABLE:
        return f"{result.outcome}  {result.reason}"
    reason = f"  {result.reason}" if result.reason else ""
    return f"{result.uid}  {count_of(result.documents, 'document')}  {result.outcome}{reason}"


def _without_traceback(record: logging.LogRecord) -> bool:
    """Filter out the service's log record of a failed run, because the command reports the failure itself."""
    return record.exc_info is None
