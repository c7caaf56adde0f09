"""Log lines of the supervisor and its workers, for people or for programs."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass
from typing import Literal


class JSONFormatter(logging.Formatter):
    """One JSON object per line."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if self._run:
            entry["run"] = self._run
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


@dataclass(frozen=True)
class LogOptions:
    """Level and form of log lines, which go to standard error."""

    level: str = "INFO"
    form: Literal["text", "json"] = "text"

    def configure(self, worker: str = "") -> None:
        """Set up logging for this process; `worker` is the uid of the run it writes."""
        handler = logging.StreamHandler(sys.stderr)
        if self.form == "json":
            handler.setFormatter(JSONFormatter(worker))
        else:
            who = f"worker {worker[:8]}" if worker else "supervisor"
            formatter = logging.Formatter(
                f"%(asctime)s.%(msecs)03dZ %(levelname)-7s [{who}] %(message)s", "%Y-%m-%dT%H:%M:%S"
            )
            formatter.converter = time.gmtime
            handler.setFormatter(formatter)
        root = logging.getLogger()
        root.handlers[:] = [handler]
        root.setLevel(logging.WARNING)
        for name in ("tiledwriter", "tiledbroker"):
            logging.getLogger(name).setLevel(self.level.upper())
