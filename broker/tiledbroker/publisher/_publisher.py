"""The callback that users subscribe to the RunEngine. It calls `Spool.append` in `_spool.py`.

`SpoolPublisher` is all of it but the transport, which a subclass chooses, such as `ZMQPublisher` in
`_zmq_publisher.py`.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .._crash_points import crash_point
from .._errors import BrokerError, PublisherClosed, RunNotWritten
from .._filesystem import network_filesystem
from .._outcomes import REFUSED, WRITTEN
from .._paths import default_spool_dir, local_spool_dir
from .._rate_limited_log import RateLimitedLog
from ..log import RunLog
from ._flusher import Flusher
from ._link import Link
from ._shipper import Shipper
from ._spool import DEFAULT_SPOOL_LIMIT_BYTES, Adoption, Spool

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublisherStatus:
    """Status of a publisher, as returned by `ZMQPublisher.status`.

    Attributes
    ----------
    address
        URL of the supervisor.
    spool_dir
        Directory of the spool.
    connected
        True while the supervisor answers.
    waiting
        Number of documents in the spool that are not known to be durable on the ingest host.
    oldest
        Unix time of the oldest of them, in seconds; None if there is none.
    degraded
        True if documents are in memory only, because the spool cannot be written.
    unrouted
        Number of documents that belong to no known run; they are kept in the spool directory and not shipped.
    refused
        Reasons why runs in the spool are not shipped, by uid: the supervisor rejects them, their files are damaged or
        unreadable, or they were made for another supervisor or by another host.
    problem
        Reason why documents are not shipped, acknowledged or stored as they should be; "" if there is no problem.
    kept
        Number of runs that are durable on the ingest host, and kept until they are in Tiled.
    shipped
        Labels, as those of `labelled_run_files`, of the runs of dead sessions that this publisher has deleted: they are
        durable on the ingest host, or had no documents.
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
    kept: int = 0
    shipped: frozenset[str] = field(default=frozenset(), repr=False)


class SpoolPublisher:
    """RunEngine callback that appends documents to a spool, which a thread ships.

    Parameters
    ----------
    address
        Address of the supervisor: what is spooled for one address is not shipped to another.
    open_link
        Makes the link to the supervisor; called in the shipper's thread.
    spool_dir, name, on_error, keep_until, spool_limit, adopt
        As in `ZMQPublisher`.

    Raises
    ------
    ValueError
        `on_error`, `keep_until` or `adopt` has none of its values, or `spool_limit` is no number of bytes.
    """

    def __init__(
        self,
        address: str,
        open_link: Callable[[], Link],
        *,
        spool_dir: str | Path | None = None,
        name: str | None = None,
        on_error: Literal["log", "raise"] = "log",
        keep_until: Literal["written", "durable"] = "written",
        spool_limit: int = DEFAULT_SPOOL_LIMIT_BYTES,
        adopt: Adoption = "own",
    ) -> None:
        _check_argument("on_error", on_error, ("log", "raise"))
        _check_argument("keep_until", keep_until, ("written", "durable"))
        _check_argument("adopt", adopt, ("own", "any-destination", "any-host"))
        _check_bytes("spool_limit", spool_limit)
        self.address = address
        self._raise = on_error == "raise"
        self._limited_log = RateLimitedLog(log)
        self._spool = Spool(
            _spool_directory(spool_dir, address),
            destination=address,
            adopt=adopt,
            released_directory=default_spool_dir() if spool_dir is None else None,
            limit_bytes=spool_limit if keep_until == "written" else 0,
        )
        self._shipper = Shipper(self._spool, address, open_link, name=name)
        self._flusher = Flusher(self._spool, self._shipper.notify)
        self._closed = False
        self._complete = False
        self._shipper.start()
        self._flusher.start()
        _open_publishers.add(self)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Append one document to the spool.

        Raises
        ------
        Exception
            Any failure, including `PublisherClosed` after `close`, if `on_error` is "raise"; else failures are logged.
        """
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
            self._limited_log.log(
                logging.ERROR, type(error).__name__, "A %s document was not stored.", name, exc_info=True
            )

    def insert(self, name: str, doc: Mapping[str, Any]) -> None:
        """Append one document to the spool: the callback under the name that `databroker` uses for it."""
        self(name, doc)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all documents published so far are durable on the ingest host.

        Parameters
        ----------
        timeout
            Maximum time to wait in seconds; None for no limit.

        Returns
        -------
        bool
            True if all documents are durable. False after the timeout, or as soon as all remaining documents belong to
            refused runs.
        """
        if self._closed:
            return self._complete
        lengths = {run.run_uid: run.length for run in self._spool.runs()}
        self._shipper.wait(
            lambda: all(self._is_durable(uid, n) or self._shipper.refusal(uid) for uid, n in lengths.items()), timeout
        )
        return not self._spool.has_repeated and all(self._is_durable(uid, n) for uid, n in lengths.items())

    def wait_written(self, run_uid: str, timeout: float | None = None) -> bool:
        """Wait until a run is complete in Tiled, for plans that read it back.

        Parameters
        ----------
        run_uid
            Uid of the run.
        timeout
            Maximum time to wait in seconds; None for no limit.

        Returns
        -------
        bool
            True if the run is complete in Tiled; False after the timeout.

        Raises
        ------
        RunNotWritten
            The run is in quarantine, has ended without a stop document, or is not shipped at all.
        """
        outcome = self._shipper.outcome(run_uid, timeout)
        if outcome is not None and outcome[0] != WRITTEN:
            spool_dir = self._spool.directory if outcome[0] == REFUSED else None
            raise RunNotWritten(run_uid, outcome[1] or "it ended without a stop document", spool_dir=spool_dir)
        return outcome is not None

    def status(self) -> PublisherStatus:
        """Return the current status, without waiting for the supervisor."""
        waiting = kept = 0
        oldest: float | None = None
        runs = self._spool.runs()
        for run in runs:
            durable = self._shipper.durable(run.run_uid) or 0
            behind = run.length - durable
            kept += run.is_durable
            if behind > 0:
                waiting += behind
                oldest = min(filter(None, (oldest, _receipt_time(run, durable))), default=None)
        return PublisherStatus(
            address=self.address,
            spool_dir=self._spool.directory,
            connected=self._shipper.connected,
            waiting=waiting,
            oldest=oldest,
            degraded=self._spool.degraded,
            unrouted=self._spool.unrouted,
            refused={**self._spool.refused, **self._shipper.refused},
            problem="; ".join(filter(None, (self._shipper.problem, self._spool.problem))),
            kept=kept,
            shipped=self._spool.shipped,
        )

    def close(self, timeout: float = 5) -> bool:
        """Ship as many documents as possible within `timeout` seconds, and stop.

        Open runs end without a stop document. Documents that are not shipped stay in the spool for the next publisher.
        Further calls do nothing.

        Parameters
        ----------
        timeout
            Maximum time for shipping in seconds.

        Returns
        -------
        bool
            True if all runs are durable on the ingest host.
        """
        if self._closed:
            return self._complete
        self._closed = True
        _open_publishers.discard(self)
        self._complete = self._shipper.stop(timeout)
        self._flusher.stop()
        self._spool.close()
        return self._complete

    def _is_durable(self, uid: str, length: int) -> bool:
        durable = self._shipper.durable(uid)
        return all(run.run_uid != uid for run in self._spool.runs()) if durable is None else durable >= length


def _check_argument(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} must be {' or '.join(map(repr, allowed))}, not {value!r}.")


def _check_bytes(argument: str, value: object) -> None:
    # Neither NaN nor True is a number of bytes; 50e9 is one.
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{argument} must be a number of bytes, 0 or more, not {value!r}.")


def _spool_directory(given: str | Path | None, url: str) -> Path:
    """Return the absolute path of the spool, since the process may change its working directory later."""
    directory = default_spool_dir(url) if given is None else Path(given)
    try:
        directory = directory.expanduser().absolute()
        network = network_filesystem(directory)
    except (OSError, RuntimeError) as error:
        log.warning("The spool directory %s cannot be accessed: %s.", directory, error)
        return directory
    if network is None:
        return directory
    try:
        local = local_spool_dir(url)
    except OSError as error:
        log.error(
            "%s is on a network file system (%s), and no local directory can be used instead: %s.",
            directory,
            network,
            error,
        )
        return directory
    log.warning("%s is on a network file system (%s); the spool is in %s instead.", directory, network, local)
    return local


def _receipt_time(run: RunLog, index: int) -> float | None:
    try:
        return next((record.received for record in run.read(index, 1, 1)), None)
    except (BrokerError, OSError, ValueError):
        # The flusher has just deleted the record, or it is damaged, which `refused` reports.
        return None


# Strong references, because the RunEngine holds bound methods weakly and may have the only reference to a publisher.
_open_publishers: set[SpoolPublisher] = set()


def _forget_in_child() -> None:
    # A forked child does not have the publisher's threads, and the spool belongs to the parent.
    for publisher in list(_open_publishers):
        publisher._closed = True
    _open_publishers.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@atexit.register
def _close_all() -> None:
    for publisher in list(_open_publishers):
        publisher.close(timeout=5 if publisher._shipper.connected else 1)
