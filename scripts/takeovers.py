"""Has two ingest hosts take over from each other again and again, and says what became of every row.

Runs are published all the time to two real supervisors that share one address, one lease and one real Tiled server with
users; each has a clock of its own, and reaches Tiled through a proxy of its own. The host that serves is killed, killed
with its disk, stopped and continued, cut from the lease, stopped in order, or killed while its last append is held on
the way. Prints a line per kind of fault. With --handover, one host is stopped in order while so many runs are open, and
the pause of each run is measured. Exits with 1 if a row is lost, doubled or out of order, or if a host writes after its
lease.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/support")]

import psutil  # noqa: E402
from cables import Cable  # noqa: E402
from clocks import clock_ahead  # noqa: E402
from faulty_proxy import STALLED, FaultyProxy  # noqa: E402
from runs import documents  # noqa: E402
from tiled_users import TiledWithUsers  # noqa: E402

from tiledbroker import ZMQPublisher, run_files  # noqa: E402
from tiledbroker.ownership import DirectoryStore  # noqa: E402
from tiledbroker.supervisor import read_snapshot  # noqa: E402
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port, wait_until  # noqa: E402

LEASE_SECONDS: Final = 3.0
EVENTS: Final = 60
PAUSE_SECONDS: Final = 0.1
# A request of a host that is paused may have been sent just before.
FLIGHT_SECONDS: Final = 0.5
# Of each of the open runs that are handed over.
OPEN_RUN_EVENTS: Final = 120
OPEN_RUN_PAUSE_SECONDS: Final = 1.0
# A host is harmed once it has no more runs to write than these, so that it gets to all stages of writing a run.
MOST_UNWRITTEN_RUNS: Final = 20
# Longer than a lease and the wait for another host's clock together.
HOLD_SECONDS: Final = 40.0
# Most of the time of a read is spent waiting.
READERS: Final = 8

APPEND: Final = "table/partition/"


class Proxy(FaultyProxy):
    """A host's way to Tiled, which notes when requests that change something begin, and can hold the next append.

    Attributes
    ----------
    written_at
        When each request that changes something but API keys began.
    appended_at
        When the first and the last append of rows began, by run.
    preparations
        Number of requests that neither append rows nor set metadata nor are for API keys: those before the first append
        of a run.
    held_until
        When the append that is held may be carried out.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.held_until = 0.0
        self.written_at: list[float] = []
        self.appended_at: dict[str, tuple[float, float]] = {}
        self.preparations = 0

    def record(self, request: Any) -> None:
        now = time.monotonic()
        if not request.path.startswith("auth/"):
            self.preparations += request.method != "PATCH"
            if request.method != "GET":
                self.written_at.append(now)
        if request.is_for("PATCH", APPEND):
            uid = request.path.removeprefix(APPEND).split("/")[0]
            self.appended_at[uid] = (self.appended_at.get(uid, (now, now))[0], now)
        super().record(request)
        self.requests.clear()


class Host(SupervisorProcess):
    """An ingest host that stands by, or serves, with a clock of its own."""

    def __init__(self, directory: Path, name: str, server: TiledServer, shared: Path, ahead_seconds: int) -> None:
        self.proxy = Proxy(server.uri)
        self.way_to_lease = directory / f"{name}-mount"
        self.way_to_lease.symlink_to(shared)
        environment = {
            "TILEDWRITER_LEASE_DIR": str(self.way_to_lease),
            "TILEDWRITER_LEASE_SECONDS": str(LEASE_SECONDS),
            "TILEDWRITER_STANDBY": "1",
            "TILEDWRITER_QUIET_PERIOD": "1",
            "TILEDWRITER_LATE_AUDIT": "20",
        }
        reached = SimpleNamespace(uri=self.proxy.uri, api_key=server.api_key)
        super().__init__(directory / name, reached, environment=environment)  # type: ignore[arg-type]
        self._command = [*clock_ahead(ahead_seconds), *self._command]

    def ready(self) -> bool:
        return self._ask() is not None

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def serves(self) -> bool:
        lease = self._ask()
        return lease is not None and lease.held

    def signal_all(self, number: signal.Signals) -> None:
        supervisor = psutil.Process(self.pid)
        for process in [supervisor, *supervisor.children(recursive=True)]:
            # A worker may just have ended.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _ask(self) -> Any:
        try:
            return read_snapshot(self.journal_dir, timeout=5).lease
        except Exception:
            return None


class Acquisition(threading.Thread):
    """Publishes one run after the other until it is told to end."""

    def __init__(self, address: str, spool: Path, runs: dict[str, int], events: int, pause_seconds: float) -> None:
        super().__init__(name=f"acquisition-{spool.name}")
        self.publisher = ZMQPublisher(address, spool_dir=spool, on_error="raise")
        self._spool = spool
        self._runs = runs
        self._events = events
        self._pause_seconds = pause_seconds
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.is_set():
            if len(run_files(self._spool)) > MOST_UNWRITTEN_RUNS // 2:
                # More would come than this machine can write.
                self.ending.wait(0.5)
                continue
            emitted = documents(self._events)
            self._runs[emitted[0][1]["uid"]] = self._events
            for name, doc in emitted:
                self.publisher(name, doc)
                time.sleep(self._pause_seconds)


def kill(host: Host) -> None:
    """Kill all processes of the host."""
    host.signal_all(signal.SIGKILL)


def kill_supervisor(host: Host) -> None:
    """Kill the supervisor; its workers have to end by themselves."""
    host.kill()


def lose_disk(host: Host) -> None:
    """Kill the host, and lose its journals."""
    host.signal_all(signal.SIGKILL)
    host.wait(30)
    while host.journal_dir.exists():
        # A worker that was being forked meanwhile writes until it notices that its supervisor is gone.
        shutil.rmtree(host.journal_dir, ignore_errors=True)


def stop_in_order(host: Host) -> None:
    """Stop the service as for maintenance."""
    host.stop()


def pause(host: Host) -> None:
    """Stop all processes past the lease; they continue when the other host serves."""
    host.signal_all(signal.SIGSTOP)


def cut_from_lease(host: Host) -> None:
    """Take the directory of the lease away."""
    host.way_to_lease.unlink()


def hold_append(host: Host) -> None:
    """Kill the host while its last append is held on the way, until the other host has served for a while."""
    host.proxy.script("PATCH", APPEND, STALLED)
    wait_until(lambda: host.proxy.all_played, 180, "an append is held")
    host.proxy.held_until = time.monotonic() + HOLD_SECONDS
    host.signal_all(signal.SIGKILL)


FAULTS: Final = (kill, kill_supervisor, lose_disk, stop_in_order, pause, cut_from_lease, hold_append)


class Campaign:
    """Takeovers between two hosts."""

    def __init__(self, directory: Path, seed: int, storage: Any, *, users: bool) -> None:
        self._chance = random.Random(seed)
        self._directory = directory
        self._server = (TiledWithUsers if users else TiledServer)(directory / "tiled", storage=storage)
        self._runs: dict[str, int] = {}
        self.pauses: dict[str, list[float]] = defaultdict(list)
        self.late_writes = 0
        self.ended_early = ""
        # Requests of the successor until all runs that were handed over go on.
        self.preparations = 0

    def take_over(self, takeovers: int, tell: Callable[[str], None]) -> dict[str, int]:
        """Have the hosts take over from each other so many times, and return what became of the rows."""

        def steps(hosts: list[Host], address: Cable) -> None:
            for number in range(takeovers):
                fault = FAULTS[number % len(FAULTS)]
                self._take_over(hosts, address, fault)
                tell(f"{number + 1} takeovers, {len(self._runs)} runs; {fault.__name__}")

        return self._run(steps, sources=2, events=EVENTS, pause_seconds=PAUSE_SECONDS)

    def hand_over(self, runs: int) -> dict[str, int]:
        """Stop the host that serves in order while so many runs are open, and return what became of the rows."""

        def steps(hosts: list[Host], address: Cable) -> None:
            wait_until(lambda: any(host.serves() for host in hosts), 90, "a host serves")
            holder, other = sorted(hosts, key=lambda host: not host.serves())
            address.lead_to(holder.port)
            wait_until(other.ready, 60, "the other host stands by")
            wait_until(lambda: len(holder.proxy.appended_at) == runs, 300, "each run has rows in Tiled")
            holder.stop()
            wait_until(other.serves, 120, "the other host serves")
            address.lead_to(other.port)
            before = holder.proxy.appended_at
            wait_until(lambda: before.keys() <= other.proxy.appended_at.keys(), 300, "each run goes on")
            self.preparations = other.proxy.preparations
            self.pauses["handover"] = [other.proxy.appended_at[uid][0] - last for uid, (_, last) in before.items()]

        return self._run(steps, sources=runs, events=OPEN_RUN_EVENTS, pause_seconds=OPEN_RUN_PAUSE_SECONDS)

    def _run(
        self, steps: Callable[[list[Host], Cable], None], *, sources: int, events: int, pause_seconds: float
    ) -> dict[str, int]:
        shared = self._directory / "shared"
        DirectoryStore.create(shared)
        with self._server, Cable(free_port()) as address:
            hosts = [
                Host(self._directory, name, self._server, shared, ahead_seconds)
                for name, ahead_seconds in (("a", 1_000), ("b", 86_400))
            ]
            for host in hosts:
                host.proxy.__enter__()
            acquisitions = [
                Acquisition(address.address, self._directory / f"spool-{number}", self._runs, events, pause_seconds)
                for number in range(sources)
            ]
            try:
                for host in hosts:
                    host.start()
                for acquisition in acquisitions:
                    acquisition.start()
                try:
                    steps(hosts, address)
                except TimeoutError as error:
                    # What was done until then is judged all the same.
                    self.ended_early = str(error)
                return self._end(acquisitions)
            finally:
                self._end_acquisitions(acquisitions)
                for acquisition in acquisitions:
                    acquisition.publisher.close(timeout=0)
                for host in hosts:
                    host.stop()
                    host.proxy.release_stalled()
                    host.proxy.__exit__()

    def _take_over(self, hosts: list[Host], address: Cable, fault: Callable[[Host], None]) -> None:
        wait_until(lambda: any(host.serves() for host in hosts), 90, "a host serves")
        holder, other = sorted(hosts, key=lambda host: not host.serves())
        address.lead_to(holder.port)
        wait_until(other.ready, 60, "the other host stands by")
        wait_until(lambda: self._count_unwritten() <= MOST_UNWRITTEN_RUNS, 600, "the host has written most runs")
        before = len(holder.proxy.written_at)
        wait_until(lambda: len(holder.proxy.written_at) > before + 2, 90, "the host writes")
        time.sleep(self._chance.random())
        fault(holder)
        began = time.monotonic()
        first = len(other.proxy.written_at)
        wait_until(other.serves, 120, "the other host serves")
        address.lead_to(other.port)
        wait_until(lambda: len(other.proxy.written_at) > first, 120, "the other host writes")
        self.pauses[fault.__name__].append(other.proxy.written_at[first] - began)
        over = other.proxy.written_at[first] - FLIGHT_SECONDS
        self._bring_back(holder)
        if fault is not stop_in_order:
            self.late_writes += sum(over < written < self._back_at for written in holder.proxy.written_at)

    def _count_unwritten(self) -> int:
        """Return how many runs are kept in the spools, as no host has said that they are written."""
        return sum(len(run_files(spool)) for spool in self._directory.glob("spool-*"))

    def _bring_back(self, host: Host) -> None:
        """Make a host that was harmed stand by."""
        if host.running and psutil.Process(host.pid).status() == psutil.STATUS_STOPPED:
            host.signal_all(signal.SIGCONT)
        if not host.way_to_lease.exists():
            host.way_to_lease.symlink_to(self._directory / "shared")
        host.wait(60)
        time.sleep(max(0.0, host.proxy.held_until - time.monotonic()))
        self._back_at = time.monotonic()
        host.proxy.release_stalled()
        host.start()

    def _end_acquisitions(self, acquisitions: list[Acquisition]) -> None:
        for acquisition in acquisitions:
            acquisition.ending.set()
        for acquisition in acquisitions:
            acquisition.join()

    def _end(self, acquisitions: list[Acquisition]) -> dict[str, int]:
        self._end_acquisitions(acquisitions)
        for acquisition in acquisitions:
            assert acquisition.publisher.flush(120), acquisition.publisher.problem
        client = self._server.client()
        unfinished = set(self._runs)

        def all_finished() -> bool:
            # Runs that are finished are not asked for again: Tiled is to write the others.
            unfinished.difference_update(
                [uid for uid in unfinished if uid in client and client[uid].metadata.get("stop")]
            )
            return not unfinished

        with contextlib.suppress(TimeoutError):
            wait_until(all_finished, 1200, "all runs are written")
        found = {"runs": len(self._runs), "unfinished": len(unfinished), "lost": 0, "doubled": 0, "out of order": 0}

        def read_rows(uid: str) -> list[int]:
            return [int(number) for number in client[uid]["primary"]["seq_num"].read()] if uid in client else []

        with ThreadPoolExecutor(READERS) as threads:
            rows_by_run = dict(zip(self._runs, threads.map(read_rows, self._runs), strict=True))
        for uid, events in self._runs.items():
            rows = rows_by_run[uid]
            found["lost"] += len(set(range(1, events + 1)) - set(rows))
            found["doubled"] += len(rows) - len(set(rows))
            found["out of order"] += sum(one > two for one, two in itertools.pairwise(rows))
        return found


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        "takeovers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--takeovers", type=int, default=200, help="default 200")
    result.add_argument("--handover", type=int, metavar="RUNS", help="hand over so many open runs, once, instead")
    result.add_argument("--seed", type=int, default=1, help="of the moments (default 1)")
    result.add_argument("--storage", choices=("sqlite", "postgresql"), default="postgresql", help="of Tiled's tables")
    result.add_argument("--single-user", action="store_true", help="Tiled has no users, so that keys are no fence")
    result.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    return result


def main() -> int:
    given = parser().parse_args()
    logging.getLogger("tiledbroker").setLevel(logging.CRITICAL)
    began = time.monotonic()
    campaign = Campaign(
        Path(tempfile.mkdtemp(prefix="takeovers-")), given.seed, given.storage, users=not given.single_user
    )
    if given.handover:
        result = campaign.hand_over(given.handover)
        print(f"{campaign.preparations / given.handover:.1f} requests per run before its first append")
        print("| | runs | seconds from a run's last append to its next: median | longest |")
    else:
        result = campaign.take_over(
            given.takeovers, lambda line: print(f"[{time.monotonic() - began:6.0f} s] {line}", flush=True)
        )
        print("| fault | takeovers | seconds to the successor's first write: median | longest |")
    print("| --- | --- | --- | --- |")
    for name, pauses in campaign.pauses.items():
        print(f"| {name} | {len(pauses)} | {statistics.median(pauses):.1f} | {max(pauses):.1f} |")
    result["written after the lease"] = campaign.late_writes
    if campaign.ended_early:
        print(f"It ended early: {campaign.ended_early}.")
    print(", ".join(f"{count} {what}" for what, count in result.items()))
    if given.json:
        given.json.write_text(json.dumps({"result": result, "pauses": campaign.pauses}, indent=1))
    return int(bool(campaign.ended_early) or any(count for what, count in result.items() if what != "runs"))


if __name__ == "__main__":
    sys.exit(main())
