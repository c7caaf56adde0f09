"""What the supervisor tells of its service: gathers what the scheduler does not know, and encodes the snapshot."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from ._clock import Instant
from ._service_view import ServiceIdentity, Surroundings, make_snapshot
from ._source import Source
from .scheduler import DiskSpace, Scheduler
from .status import PACKAGE, DiskStatus, LeaseStatus, LogStatus, RecentTrouble, TiledReports, encode_snapshot


class ServiceReport:
    """The report of a service. Methods that note something may be called from any thread.

    Parameters
    ----------
    journal_dir
        Directory of the journals.
    settings
        Effective settings by name, without secrets.
    tiled_address
        Address of Tiled; "" if only the workers know it.
    check_command
        Command that checks the service, for messages; "" if there is none.

    Attributes
    ----------
    tiled
        What workers and others have said about Tiled.
    """

    def __init__(
        self, journal_dir: Path, settings: Mapping[str, Any], *, tiled_address: str = "", check_command: str = ""
    ) -> None:
        # Programs that only ask for a status do without this import, which takes 30 ms.
        from .._version import find_version

        self.tiled = TiledReports(tiled_address)
        self._trouble = RecentTrouble()
        self._identity = ServiceIdentity(
            version=find_version(),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=time.time(),
            journal_dir=str(journal_dir.absolute()),
            settings=dict(settings),
            check_command=check_command,
        )
        self._log_status: LogStatus | None = None
        self._page_problem = ""

    def listen_to_log(self) -> None:
        """Keep the warnings and errors that are logged from now on."""
        logging.getLogger(PACKAGE).addHandler(self._trouble)

    def close(self) -> None:
        """Keep no more of what is logged."""
        logging.getLogger(PACKAGE).removeHandler(self._trouble)

    def note_tiled_look(self, problem: str) -> None:
        """Note that Tiled was asked for an answer: "", or the reason why there was none."""
        self.tiled.note_look(problem, time.monotonic())

    def note_log(self, log_status: LogStatus) -> None:
        """Note how the site's log was found."""
        self._log_status = log_status

    def note_page(self, problem: str) -> None:
        """Note why the status page is not served, or "" if it is."""
        self._page_problem = problem

    def change_settings(self, settings: Mapping[str, Any]) -> None:
        """Replace the effective settings, which were read again."""
        self._identity = replace(self._identity, settings=settings)

    @property
    def tiled_asked_at(self) -> float | None:
        """Time (`time.monotonic`) of the last sign of Tiled that a worker has had; None if there was none."""
        return self.tiled.asked_at

    def encode_snapshot(
        self,
        scheduler: Scheduler,
        source: Source,
        now: Instant,
        *,
        pids: Mapping[int, int | None],
        memory: Mapping[int, int],
        lease: LeaseStatus | None,
    ) -> bytes:
        """Return the snapshot of the service as it is sent to those that ask for it.

        Parameters
        ----------
        scheduler, source
            The scheduler, and the source of documents.
        now
            The time.
        pids, memory
            Pids and resident bytes of workers, by number.
        lease
            The lease; None if no other host can serve instead.
        """
        around = Surroundings(
            listen=source.endpoint or None,
            publishers=source.publishers.values(),
            refused=source.refused,
            refused_at=source.refused_at,
            pids=pids,
            memory=memory,
            disks=[self._describe_disk(scheduler.disk)],
            trouble=list(self._trouble.entries),
            lease=lease,
            log=self._describe_log(source),
            page_problem=self._page_problem,
        )
        return encode_snapshot(make_snapshot(self._identity, scheduler, self.tiled, around, now))

    def _describe_log(self, source: Source) -> LogStatus | None:
        found = self._log_status
        if found is None:
            return None
        if source.problem:
            # What was behind when the log was read last says nothing about now.
            return msgspec.structs.replace(found, read_problem=source.problem, lag={})
        lags = [(publisher.client, publisher.lag_documents) for publisher in source.publishers.values()]
        lag = {beamline: documents for beamline, documents in lags if documents is not None}
        return msgspec.structs.replace(found, read_problem=None, lag=lag)

    def _describe_disk(self, disk: DiskSpace) -> DiskStatus:
        path, space = self._identity.journal_dir, disk.space
        if space is None:
            return DiskStatus(path, "journals", None, None, disk.min_free, None)
        return DiskStatus(path, "journals", space.free, space.total, disk.min_free, disk.state.value)
