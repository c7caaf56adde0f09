"""Log formats of the supervisor and its workers: text, JSON, or entries with fields for systemd's journal.

Messages contain text from documents. It must neither pass for a log line of its own nor fill the log.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypeAlias

from ._journald import JournaldHandler, is_journal_stream
from ._plain_text import plain

LogForm: TypeAlias = Literal["auto", "text", "json", "journald"]
_ExceptionInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class TextFormatter(logging.Formatter):
    """Formats a message as one line, and a traceback as indented lines."""

    def __init__(self, who: str) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime
        self._who = plain(who)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  it is called that
        record.message = f"[{self._who}] {plain(record.message)}"
        return super().formatMessage(record)

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802
        return "\n".join(f"    {plain(line)}" for line in super().formatException(ei).splitlines())


class JSONFormatter(logging.Formatter):
    """Formats a message as one JSON object per line."""

    def __init__(self, run: str | None, target: str = "") -> None:
        super().__init__()
        self._run = run
        self._target = target

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": plain(record.getMessage()),
        }
        if self._run is not None:
            entry["run"] = plain(self._run)
        if self._target:
            entry["target"] = self._target
        if record.exc_info:
            entry["traceback"] = "\n".join(map(plain, self.formatException(record.exc_info).splitlines()))
        return json.dumps(entry)


@dataclass(frozen=True)
class LogOptions:
    """Level and format of log lines, which go to standard error, or to systemd's journal.

    Attributes
    ----------
    level
        Name of the lowest level that is logged for `tiledwriter` and `tiledbroker`.
    form
        Format of the lines; "auto" is "journald" if standard error goes to systemd's journal, else "text".
    target
        Name of the target that this process writes to; "" if there is only one.
    """

    level: str = "INFO"
    form: LogForm = "auto"
    target: str = ""

    def configure(self, worker: str | None = None, *, process: str = "supervisor") -> None:
        """Set up logging for this process.

        Parameters
        ----------
        worker
            The uid of a worker's run; None in other processes.
        process
            The name of a process that is no worker, for log lines in text.
        """
        root = logging.getLogger()
        before, root.handlers[:] = root.handlers[:], [self._make_handler(worker, process)]
        for handler in before:
            if isinstance(handler, JournaldHandler):
                handler.close()
        root.setLevel(logging.WARNING)
        for name in ("tiledwriter", "tiledbroker"):
            logging.getLogger(name).setLevel(self.level.upper())

    def _make_handler(self, worker: str | None, process: str) -> logging.Handler:
        if self.form == "journald" or (self.form == "auto" and is_journal_stream(sys.stderr)):
            return JournaldHandler(worker, target=self.target)
        handler = logging.StreamHandler(sys.stderr)
        if self.form == "json":
            handler.setFormatter(JSONFormatter(worker, self.target))
        else:
            who = process if worker is None else f"worker {worker[:8]}"
            handler.setFormatter(TextFormatter(f"{who} {self.target}".rstrip()))
        return handler
