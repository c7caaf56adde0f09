"""`tiledwriter-journal replay`: writes runs from backups, exported documents and journals to Tiled."""

from __future__ import annotations

import json
import logging
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from .._replay import UNREADABLE, Replayed, replay
from ._exit import ExitCode
from ._settings import settings_of


def run(
    files: Sequence[Path],
    *,
    config: Path | None,
    tiled: str | None,
    profile: str | None,
    as_json: bool,
    tell: Callable[[str], None],
) -> ExitCode:
    """Replay files and tell what became of each run."""
    options = settings_of(config, {"tiled": tiled, "profile": profile}).worker_options()
    logging.getLogger("tiledwriter._writing").addFilter(_without_traceback)
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    results: list[Replayed] = []
    with tempfile.TemporaryDirectory(prefix="tiledwriter-replay-") as directory:
        for result in replay(files, options.tiled.connect, options.writing, Path(directory), ending):
            results.append(result)
            if not as_json:
                tell(_line(result))
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    if any(result.outcome == UNREADABLE for result in results):
        return ExitCode.FAILED
    return ExitCode.OK if all(result.done for result in results) else ExitCode.INCOMPLETE


def _line(result: Replayed) -> str:
    if result.outcome == UNREADABLE:
        return f"{result.outcome}  {result.reason}"
    reason = f"  {result.reason}" if result.reason else ""
    return f"{result.uid}  {result.documents} documents  {result.outcome}{reason}"


def _without_traceback(record: logging.LogRecord) -> bool:
    """The service's words for a run that fails, which is told in other words here."""
    return record.exc_info is None
