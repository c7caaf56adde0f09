"""A site with a log in JetStream: publishers append to it, and several ingest hosts read it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

from sharing_hosts import SharingHost
from tiled_users import TiledWithUsers

from tiledbroker import JetStreamPublisher, Journal, JournalError
from tiledbroker.log import SUPERSEDED_SUBDIRECTORY
from tiledbroker.publisher._publisher import SpoolPublisher
from tiledwriter.testing import ServerProcess, SupervisorProcess, TiledServer, wait_until

from .referee import SETTLED, journal_path
from .shared_log import SharedLog
from .site import Setting, Site, family_of

_READY_SECONDS: Final = 300.0


class ReadingHost(SharingHost):
    """An ingest host that reads a site's log."""

    def ready(self) -> bool:
        return self.snapshot() is not None


class SharedSite(Site):
    """Like any site, but for what is between publishers and Tiled.

    Tiled has users, so that the key of a host that has lost its lease is revoked.
    """

    keeps_spools: ClassVar[bool] = True

    def __init__(self, setting: Setting, note: Callable[[str], None]) -> None:
        super().__init__(setting, note)
        self.locks["log"] = threading.Lock()
        self._host_locks = [threading.Lock() for _ in range(setting.hosts)]
        self._reading_hosts: list[ReadingHost] = []

    def _make_server(self, directory: Path) -> TiledServer:
        return TiledWithUsers(directory, readable=[self.files], storage=self.setting.storage)

    def _start_ingest(self) -> None:
        setting = self.setting
        self.log = self._stack.enter_context(SharedLog(setting.directory / "log", setting.nodes))
        self.wire = self.log.clients
        self.journal_dir.mkdir(mode=0o700)
        environment = {
            **self._environment(),
            "TILEDWRITER_LEASE_SECONDS": str(setting.lease_seconds),
            "TILEDWRITER_KEEP_IN_LOG": str(setting.keep_in_log),
        }
        for number in range(setting.hosts):
            page = () if setting.http is None else ("--http", str(setting.http + number))
            host = ReadingHost(
                self.journal_dir / f"host-{number}",
                self._target(),
                options=["--source", str(self.log.address), *page],
                environment=environment,
            )
            self._reading_hosts.append(host)
            self._start_host(host, f"host-{number}.log")
        self.supervisor = self._reading_hosts[0]
        wait_until(lambda: self.log.site.count_ready_hosts() == setting.hosts, _READY_SECONDS, "hosts may claim runs")

    @property
    def address(self) -> str:
        return str(self.log.address)

    def beamline_of(self, number: int) -> str:
        return f"beamline-{number}"

    def make_publisher(self, spool: Path, *, name: str) -> SpoolPublisher:
        return JetStreamPublisher(self.address, beamline=name, spool_dir=spool, name=name)

    # Hosts and their journals

    @property
    def hosts(self) -> Sequence[SupervisorProcess]:
        return self._reading_hosts

    def lock_of(self, host: SupervisorProcess) -> threading.Lock:
        return self._host_locks[self.hosts.index(host)]

    @property
    def journal_dirs(self) -> list[Path]:
        return [host.journal_dir for host in self.hosts]

    def left_journal_dirs(self) -> list[Path]:
        """Also what hosts have set aside because others may have gone on with it."""
        places = [*self.journal_dirs, *self.retired]
        superseded = [path for place in places for path in sorted(place.glob(f"{SUPERSEDED_SUBDIRECTORY}/*"))]
        return [*self.retired, *superseded]

    def lose_journals(self, host: SupervisorProcess) -> None:
        """Have an ingest host, which must not run, begin with an empty directory."""
        self._replace_journals(host.journal_dir, None)

    def journal(self, run_uid: str) -> Journal | None:
        """The journal that says most of a run, of those that can be opened just now."""
        best: tuple[tuple[bool, int], Path] | None = None
        for directory in self.journal_dirs:
            with suppress(JournalError, OSError, sqlite3.Error):
                if (path := journal_path(directory, run_uid)) is not None:
                    with Journal(path) as journal:
                        found = ((str(journal.get("outcome", "")) in SETTLED, journal.length), path)
                    best = found if best is None else max(best, found)
        with suppress(JournalError, OSError, sqlite3.Error):
            return None if best is None else Journal(best[1])
        return None

    def settled(self, run_uid: str) -> bool:
        """Whether no host that has the run is at work on it, and one has brought it to its end."""
        settled = False
        for directory in self.journal_dirs:
            with suppress(JournalError, OSError, sqlite3.Error):
                if (path := journal_path(directory, run_uid)) is not None:
                    with Journal(path) as journal:
                        if not journal.get("outcome") or journal.get("audit_at") is not None:
                            return False
                    settled = True
        return settled

    # Processes

    def signal_family(self, host: SupervisorProcess, *, stop: bool) -> None:
        """Stop a supervisor and all that it has started, or let them go on."""
        for process in family_of(host):
            with suppress(OSError):
                process.suspend() if stop else process.resume()

    def _watched(self) -> Iterator[tuple[threading.Lock, str, ServerProcess]]:
        for node in self.log.nodes:
            yield self.locks["log"], f"node {node.directory.name}", node
        for host in self.hosts:
            # A host that loses its lease ends, and is started again.
            yield self.lock_of(host), "", host
        for server in self.servers:
            yield self.locks["tiled"], "tiled", server

    # The end

    def _end_runs(self, patience: float) -> None:
        with suppress(TimeoutError):
            wait_until(lambda: all(seat.idle for seat in self.seats), patience, "publishers have ended their runs")

    def _end_sessions(self, patience: float) -> None:
        for seat in self.seats:
            seat.tell("leave")
        super()._end_sessions(patience)
