"""What users subscribe to the RunEngine."""

from __future__ import annotations

import atexit
import logging
import os
import sqlite3
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ._address import Address, normalize_address
from ._crash_points import crash_point
from ._errors import JournalError, PublisherClosed, RunNotWritten
from ._limited import LimitedLog
from ._places import default_spool_dir
from ._security import ClientCurve, CurveArgument
from ._shipper import Shipper
from ._spool import RunLog, Spool
from ._storing import Storing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublisherStatus:
    """How a publisher is: `ZMQPublisher.status`.

    Attributes
    ----------
    connected
        Whether the supervisor answers.
    waiting
        Documents in the spool that are not yet durable on the ingest host.
    oldest
        Unix time of the oldest of them, in seconds; None if there is none.
    degraded
        Whether documents are held in memory because the spool's disk fails.
    unrouted
        Documents that belong to no known run; they are kept in the spool directory and not shipped.
    refused
        Runs the supervisor does not take, with its reasons.
    problem
        Why it is not connected, as far as that is known; "" if it is.
    """

    address: str
    spool_dir: Path
    connected: bool
    waiting: int
    oldest: float | None
    degraded: bool
    unrouted: int
    refused: dict[str, str]
    problem: str


class ZMQPublisher:
    """A RunEngine callback that hands documents to the ingest host and never makes the RunEngine wait.

    Each document is appended to a local spool before the callback returns; a thread ships the spool to
    `tiledwriter-supervisor` over ZeroMQ whenever that is reachable. What an earlier session left in the same spool
    directory is shipped, too.

    Parameters
    ----------
    address
        Where the supervisor listens: `"tcp://host:port"`, `"host:port"`, `("host", port)` or `"ipc:///path"`.
    spool_dir
        Directory of the spool, on a local disk. Default: `tiledwriter/spool` in the user's state directory.
    curve
        Keys for a supervisor that lets in its clients only: the directory that `tiledwriter-supervisor keygen` made for
        this one, or a `ClientCurve`. Without it, nothing is encrypted.
    name
        How this publisher calls itself in the supervisor's log. Default: the host name.
    on_error
        What the callback does about its own failures: "log" them, or "raise" into the RunEngine.

    Raises
    ------
    AddressError
        The address cannot be understood.
    KeyFileError
        A key cannot be used: the file is missing, is none, or others can read the secret.

    Examples
    --------
    >>> RE.subscribe(ZMQPublisher("tcp://ingest.example:5579", curve="~/tiledwriter-keys/beamline"))
    """

    def __init__(
        self,
        address: Address = "tcp://127.0.0.1:5579",
        *,
        spool_dir: str | Path | None = None,
        curve: CurveArgument | None = None,
        name: str | None = None,
        on_error: Literal["log", "raise"] = "log",
    ) -> None:
        if on_error not in ("log", "raise"):
            raise ValueError(f'on_error is "log" or "raise", not {on_error!r}.')
        self.address = normalize_address(address)
        keys = None if curve is None else ClientCurve.of(curve).load()
        self._raise = on_error == "raise"
        self._limited = LimitedLog(log)
        self._spool = Spool(default_spool_dir() if spool_dir is None else Path(spool_dir))
        self._shipper = Shipper(self._spool, self.address, name=name, keys=keys)
        self._storing = Storing(self._spool)
        self._closed = False
        self._complete = False
        self._shipper.start()
        self._storing.start()
        _close_at_exit.add(self)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Append one document to the spool."""
        try:
            if self._closed:
                raise PublisherClosed(
                    "This publisher is closed, or belongs to the process that this one was forked from."
                )
            self._spool.append(name, doc)
            crash_point("publisher: document spooled")
            self._shipper.notify()
        except Exception as error:
            if self._raise:
                raise
            self._limited.log(logging.ERROR, type(error).__name__, "A %s document was not stored.", name, exc_info=True)

    def insert(self, name: str, doc: Mapping[str, Any]) -> None:
        """The same, under the name that `databroker` gave it."""
        self(name, doc)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all documents so far are durable on the ingest host.

        Parameters
        ----------
        timeout
            Seconds; None waits for ever.

        Returns
        -------
        bool
            Whether they are.
        """
        if self._closed:
            return self._complete
        lengths = {run.run_uid: run.length for run in self._spool.runs()}
        return self._shipper.wait(lambda: self._are_durable(lengths), timeout)

    def wait_written(self, run_uid: str, timeout: float | None = None) -> bool:
        """Wait until a run is in Tiled, complete: for plans that read it back.

        Returns
        -------
        bool
            Whether it is; False when `timeout` seconds went by.

        Raises
        ------
        RunNotWritten
            The run was put in quarantine, or ended without a stop document.
        """
        outcome = self._shipper.outcome(run_uid, timeout)
        if outcome is not None and outcome[0] != "written":
            raise RunNotWritten(run_uid, outcome[1] or "it ended without a stop document")
        return outcome is not None

    def status(self) -> PublisherStatus:
        """How things are; see `PublisherStatus`."""
        waiting = 0
        oldest: float | None = None
        runs = self._spool.runs()
        for run in runs:
            durable = self._shipper.durable(run.run_uid) or 0
            behind = run.length - durable
            if behind > 0:
                waiting += behind
                oldest = min(filter(None, (oldest, _received(run, durable))), default=None)
        return PublisherStatus(
            address=self.address,
            spool_dir=self._spool.directory,
            connected=self._shipper.connected,
            waiting=waiting,
            oldest=oldest,
            degraded=any(run.degraded for run in runs),
            unrouted=self._spool.unrouted,
            refused=self._shipper.refused,
            problem=self._shipper.problem,
        )

    def close(self, timeout: float = 5) -> bool:
        """Ship what can be shipped within `timeout` seconds, and stop.

        Runs that are open stay without a stop document. What is not shipped stays in the spool for the next publisher.

        Returns
        -------
        bool
            Whether everything was shipped.
        """
        if self._closed:
            return self._complete
        self._closed = True
        _close_at_exit.discard(self)
        self._complete = self._shipper.stop(timeout)
        self._storing.stop()
        self._spool.close()
        return self._complete

    def _are_durable(self, lengths: dict[str, int]) -> bool:
        known = {run.run_uid for run in self._spool.runs()}
        return all(uid not in known or (self._shipper.durable(uid) or 0) >= n for uid, n in lengths.items())


def _received(run: RunLog, index: int) -> float | None:
    try:
        return next((record.received for record in run.read(index, 1, 1)), None)
    except (JournalError, sqlite3.Error):
        return None  # it has been shipped and removed this instant


_close_at_exit: weakref.WeakSet[ZMQPublisher] = weakref.WeakSet()


def _forget_in_child() -> None:
    # Its threads are not in a forked child, and the spool belongs to the parent.
    for publisher in list(_close_at_exit):
        publisher._closed = True
    _close_at_exit.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@atexit.register
def _close_all() -> None:
    for publisher in list(_close_at_exit):
        publisher.close(timeout=5 if publisher._shipper.connected else 1)
