"""The look at a site's log, by which the status tells how it is, also while this host stands by."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Final

import msgspec

from tiledbroker import KeyFileError
from tiledbroker._errors import LogUnavailable
from tiledbroker.jetstream import LogAddress, LogReader
from tiledbroker.supervisor import LogStatus

log = logging.getLogger("tiledwriter.supervisor")

_PAUSE_SECONDS: Final = 5.0
_COUNT_SECONDS: Final = 30.0
"""Pause between two counts of the runs that are not complete."""


class LogWatch:
    """Asks the servers of a log every few seconds, in a thread and over a connection of its own; a context manager.

    Parameters
    ----------
    address
        The servers.
    note
        Is told how the log was found.
    """

    def __init__(self, address: LogAddress, note: Callable[[LogStatus], None]) -> None:
        self._address = address.with_inbox("_INBOX.supervisor")
        self._note = note
        self._stopping = threading.Event()
        self._status = LogStatus(str(address))
        self._count_at = 0.0
        # Runs that are complete stay so until they leave the log.
        self._complete: set[tuple[str, str]] = set()

    def __enter__(self) -> LogWatch:
        self._note(self._status)
        threading.Thread(target=self._run, name="tiledwriter-log-watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not joined: the last question may take its time.
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with LogReader(self._address) as reader:
                    while not self._stopping.is_set():
                        self._look(reader)
                        self._stopping.wait(_PAUSE_SECONDS)
            except (LogUnavailable, KeyFileError) as error:
                self._tell(reachable=False, problem=str(error))
            except Exception as error:
                # Answers of another kind than expected: nothing is known then.
                self._tell(reachable=False, problem=f"{type(error).__name__}: {error}")
            self._stopping.wait(_PAUSE_SECONDS)

    def _look(self, reader: LogReader) -> None:
        found = reader.measure()
        self._tell(
            reachable=True,
            problem=None,
            server=found.server,
            version=found.version,
            bytes=found.space.used,
            max_bytes=found.space.limit,
            messages=found.messages,
            replicas=found.replicas,
            replicas_current=found.replicas_current,
        )
        if time.monotonic() >= self._count_at:
            counts = self._count_unfinished(reader)
            self._count_at = time.monotonic() + _COUNT_SECONDS
            self._tell(reachable=True, problem=None, unfinished_runs=counts)

    def _count_unfinished(self, reader: LogReader) -> dict[str, int]:
        runs = reader.list_names().runs.keys()
        receipts = reader.read_receipts(runs - self._complete)
        complete = {name for name, receipt in receipts.items() if receipt is not None and receipt.is_complete}
        self._complete = (self._complete & runs) | complete
        hosts = ("" if receipt is None else receipt.host for name, receipt in receipts.items() if name not in complete)
        return dict(Counter(hosts))

    def _log_change(self, problem: object, *, is_first: bool) -> None:
        """Say that the log is away or back: a host that stands by, or waits for its lease, has no other who does."""
        if self._stopping.is_set():
            return
        if problem is not None:
            log.warning("The log at %s gives no answer: %s. It is asked again by itself.", self._address, problem)
        elif not is_first:
            log.info("The log at %s answers now.", self._address)

    def _tell(self, *, reachable: bool, **found: object) -> None:
        """Note what was found. Of a log that gives no answer nothing is known but that."""
        before, now = self._status, time.time()
        status = before if reachable else LogStatus(before.address)
        since = before.since if before.reachable is reachable else now
        if before.reachable is not reachable:
            self._log_change(found.get("problem"), is_first=before.reachable is None)
        self._status = msgspec.structs.replace(status, reachable=reachable, since=since, asked=now, **found)
        if not self._stopping.is_set():
            self._note(self._status)
