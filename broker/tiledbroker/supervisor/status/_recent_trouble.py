"""The last warnings and errors of the supervisor's log, for the snapshot."""

from __future__ import annotations

import logging
import re
from collections import deque
from typing import Final, Literal

from ._snapshot import MAX_TROUBLE, Trouble

PACKAGE: Final = "tiledbroker"
"""Name of the logger to which the handler is added."""

# Messages name a run in this way.
_RUN: Final = re.compile(r"\b[Rr]uns? %s")
_PLACEHOLDER: Final = re.compile(r"%(?:\d*\.?\d*)[sdgfr]")
_MAX_CHARACTERS: Final = 1_000


class RecentTrouble(logging.Handler):
    """Keeps the last warnings and errors that are logged.

    Attributes
    ----------
    entries
        The entries, oldest first.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.entries: deque[Trouble] = deque(maxlen=MAX_TROUBLE)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record. Never raises: the caller is busy with something else."""
        try:
            self._keep_record(record)
            self._print_if_alone(record)
        except Exception:
            self.handleError(record)

    def _print_if_alone(self, record: logging.LogRecord) -> None:
        """Print a record as Python does in a program without handlers, which this one must not make silent."""
        handlers = [*logging.getLogger().handlers, *logging.getLogger(PACKAGE).handlers]
        if handlers == [self] and logging.lastResort is not None:
            logging.lastResort.handle(record)

    def _keep_record(self, record: logging.LogRecord) -> None:
        """Keep a record. A record whose arguments do not fit its message is kept as it is."""
        try:
            text = record.getMessage()
        except Exception:
            text = str(record.msg)
        # It is False if that was given.
        if record.exc_info and (error := record.exc_info[1]) is not None:
            text = f"{text} {type(error).__name__}: {error}"
        level: Literal["warning", "error"] = "error" if record.levelno >= logging.ERROR else "warning"
        self.entries.append(Trouble(record.created, level, find_run_uid(record), text[:_MAX_CHARACTERS]))


def find_run_uid(record: logging.LogRecord) -> str | None:
    """Return the uid of the run that a record is about: the argument after the word "run"; None if there is none."""
    arguments = record.args
    if not isinstance(record.msg, str) or not isinstance(arguments, tuple):
        return None
    found = _RUN.search(record.msg)
    if found is None:
        return None
    index = len(_PLACEHOLDER.findall(record.msg[: found.end() - 2]))
    uid = arguments[index] if index < len(arguments) else None
    return uid if isinstance(uid, str) else None
