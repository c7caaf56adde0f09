"""What is done to a site, by kind: each fault is injected, lasts a while, and is healed."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import psutil
from faulty_proxy import CUT_AFTER, CUT_BEFORE, Fault, answer, half_closed, late_answer, zombie

from tiledbroker import Journal
from tiledbroker._tail import TAIL_SUFFIX
from tiledwriter.testing import ServerProcess, wait_until

from .referee import Cut
from .site import Seat, Site, held

_NO_REQUEST: Final = 15.0  # seconds to wait for one that a fault could hit
_HEALED: Final = 120.0


@dataclass(frozen=True)
class Planned:
    """A fault of a campaign: when it comes (seconds), and three numbers from 0 to 1 that say how and to whom."""

    number: int
    kind: str
    at: float
    victim: float
    lasting: float
    amount: float

    def seconds(self, least: float, most: float) -> float:
        """How long it lasts."""
        return least + self.lasting * (most - least)


Injection: TypeAlias = Callable[[Site, Planned], str]
"""Injects a fault and heals it; returns what was done, "" if there was nothing that it could be done to."""

KINDS: Final[dict[str, Injection]] = {}


def plan(seed: int, kinds: list[str], seconds: float, interval: float) -> Iterator[Planned]:
    """The faults of a campaign: all kinds in turn, shuffled anew each time."""
    chance = random.Random(seed)
    at, number = 0.0, 0
    while True:
        turn = sorted(kinds)
        chance.shuffle(turn)
        for kind in turn:
            at += chance.uniform(0.5, 1.5) * interval
            if at >= seconds:
                return
            yield Planned(number, kind, at, chance.random(), chance.random(), chance.random())
            number += 1


def why_not(kind: str, site: Site) -> str:
    """Why faults of this kind are not possible here; "" if they are."""
    if kind.startswith("PostgreSQL") and site.postgresql is None:
        return f"storage is {site.setting.storage}"
    if kind == "journal disk full":
        return site.journal_disk.problem
    if kind == "spool disk full":
        return site.spool_disk.problem
    return ""


def _kind(name: str) -> Callable[[Injection], Injection]:
    def register(injection: Injection) -> Injection:
        KINDS[name] = injection
        return injection

    return register


# Processes


@_kind("publisher killed")
def _(site: Site, planned: Planned) -> str:
    seat = _seat(site, planned)
    with seat.mutex:
        if seat.degraded:  # what a failing disk does not take is in memory only, and goes with it
            return ""
        seat.kill()
        site.pause(planned.seconds(0, 3))
        seat.start()
    return f"seat {seat.number}"


@_kind("publisher stopped")
def _(site: Site, planned: Planned) -> str:
    seat = _seat(site, planned)
    with seat.mutex:
        seat.send(signal.SIGSTOP)
        try:
            site.pause(planned.seconds(0.5, 9))
        finally:
            seat.send(signal.SIGCONT)
    return f"seat {seat.number}"


@_kind("supervisor killed")
def _(site: Site, planned: Planned) -> str:
    with site.locks["supervisor"]:
        site.supervisor.kill()
        site.pause(planned.seconds(0, 3))
        site.bring_up(site.supervisor)
    return "killed"


@_kind("supervisor stopped")
def _(site: Site, planned: Planned) -> str:
    return _stop(site, "supervisor", site.supervisor, planned.seconds(0.5, 9))


@_kind("worker killed")
def _(site: Site, planned: Planned) -> str:
    with site.locks["worker"], suppress(psutil.NoSuchProcess):
        if (worker := _worker(site, planned)) is not None:
            worker.kill()
            return f"process {worker.pid}"
    return ""


@_kind("worker stopped")
def _(site: Site, planned: Planned) -> str:
    with site.locks["worker"], suppress(psutil.NoSuchProcess):
        if (worker := _worker(site, planned)) is not None:
            worker.suspend()
            try:
                site.pause(planned.seconds(0.5, 6))
            finally:
                worker.resume()
            return f"process {worker.pid}"
    return ""


@_kind("Tiled killed")
def _(site: Site, planned: Planned) -> str:
    with held(site.locks["tiled"], site.locks["postgresql"]):
        site.server.kill()
        site.pause(planned.seconds(0, 2))
        site.bring_up(site.server)
    return "killed"


@_kind("Tiled stopped")
def _(site: Site, planned: Planned) -> str:
    return _stop(site, "tiled", site.server, planned.seconds(0.5, 4))


@_kind("PostgreSQL killed")
def _(site: Site, planned: Planned) -> str:
    assert site.postgresql is not None
    with site.locks["postgresql"]:
        site.postgresql.kill()
        site.pause(planned.seconds(0, 2))
        site.bring_up(site.postgresql)
    return "killed"


@_kind("PostgreSQL stopped")
def _(site: Site, planned: Planned) -> str:
    assert site.postgresql is not None
    return _stop(site, "postgresql", site.postgresql, planned.seconds(0.5, 4))


def _stop(site: Site, lock: str, process: ServerProcess, seconds: float) -> str:
    with site.locks[lock]:
        process.send(signal.SIGSTOP)
        try:
            site.pause(seconds)
        finally:
            process.send(signal.SIGCONT)
    return f"{seconds:.1f} s"


def _seat(site: Site, planned: Planned) -> Seat:
    return site.seats[int(planned.victim * len(site.seats))]


def _worker(site: Site, planned: Planned) -> psutil.Process | None:
    with suppress(TimeoutError):
        wait_until(lambda: site.ending.is_set() or site.supervisor.workers(), _NO_REQUEST, "there is a worker")
    return site.worker(planned.victim)


# The cable between publishers and supervisor


@_kind("cable cut")
def _(site: Site, planned: Planned) -> str:
    with site.locks["wire"]:
        _wait_for_connections(site)
        site.wire.cut()
    return "cut"


@_kind("cable slow")
def _(site: Site, planned: Planned) -> str:
    with site.locks["wire"]:
        site.wire.hold()
        try:
            site.pause(planned.seconds(0.2, 9))
        finally:
            site.wire.resume()
    return f"{planned.seconds(0.2, 9):.1f} s"


@_kind("cable half closed")
def _(site: Site, planned: Planned) -> str:
    of_clients = planned.victim < 0.5
    with site.locks["wire"]:
        _wait_for_connections(site)
        site.wire.half_close(of_clients=of_clients)
        site.pause(planned.seconds(0, 2))
    return "towards publishers" if of_clients else "towards the supervisor"


@_kind("cable dead")
def _(site: Site, planned: Planned) -> str:
    with site.locks["wire"]:
        site.wire.swallow()
        try:
            site.pause(planned.seconds(1, 9))
        finally:
            site.wire.resume()
    return f"{planned.seconds(1, 9):.1f} s"


def _wait_for_connections(site: Site) -> None:
    with suppress(TimeoutError):
        wait_until(lambda: site.wire.busy or site.ending.is_set(), _NO_REQUEST, "publishers are connected")


# What happens to requests to Tiled


def _meeting(name: str, faults: Callable[[Site, Planned], list[Fault]]) -> None:
    """A kind of fault that requests meet on their way."""

    @_kind(name)
    def _(site: Site, planned: Planned) -> str:
        meant = faults(site, planned)
        with site.locks["http"]:
            met = site.gateway.meet(meant, _NO_REQUEST)
        if not met:
            return ""
        late = max(fault.delay or fault.hold for fault in meant)
        site.pause(late)
        return f"{met} requests" + (f", {late:.1f} s late" if late else "")


def _answers(status: int, headers: dict[str, str] | None = None) -> Callable[[Site, Planned], list[Fault]]:
    return lambda _, planned: [answer(status, headers=headers)] * (1 + int(planned.amount * 3))


_meeting("request cut", lambda _, __: [CUT_BEFORE])
_meeting("answer dropped", lambda _, __: [CUT_AFTER])
_meeting("answer late", lambda _, planned: [late_answer(planned.seconds(0.2, 4))])
_meeting("answer half closed", lambda _, planned: [half_closed(planned.seconds(0, 3))])
_meeting("zombie", lambda site, planned: [zombie(planned.seconds(0.1, 0.8) * site.setting.quiet_period)])
_meeting("long zombie", lambda site, planned: [zombie(planned.seconds(1.2, 4) * site.setting.quiet_period)])
_meeting("status 500", _answers(500))
_meeting("status 502", _answers(502))
_meeting("status 503", _answers(503))
_meeting("status 429", _answers(429, {"Retry-After": "1"}))
_meeting("status 401", _answers(401))


# Disks


@_kind("journal disk full")
def _(site: Site, planned: Planned) -> str:
    with site.locks["journals"]:
        site.journal_disk.fill()
        try:
            site.pause(planned.seconds(1, 5))
        finally:
            site.journal_disk.empty()
    return f"{planned.seconds(1, 5):.1f} s"


@_kind("spool disk full")
def _(site: Site, planned: Planned) -> str:
    # Until the disk has all that is in memory, no publisher is killed: that would lose documents, as is documented.
    with held(*(seat.mutex for seat in site.seats)):
        site.spool_disk.fill()
        try:
            site.pause(planned.seconds(1, 5))
            degraded = sum(seat.degraded for seat in site.seats)
        finally:
            site.spool_disk.empty()
        wait_until(lambda: not any(seat.degraded for seat in site.seats), _HEALED, "spools take documents again")
        site.pause(0.5)
    return f"{planned.seconds(1, 5):.1f} s, {degraded} publishers degraded"


@_kind("spool truncated")
def _(site: Site, planned: Planned) -> str:
    seat = _seat(site, planned)
    with seat.mutex:
        if seat.degraded:
            return ""
        seat.kill()
        try:
            done = _truncate(site, seat, planned)
        finally:
            seat.start()
    return done


def _truncate(site: Site, seat: Seat, planned: Planned) -> str:
    """Cut the end off a file of a publisher that is dead, and note what has to survive that."""
    logs = sorted(path for path in _beside_spooled(seat.spool) if _used(path))
    if not logs:
        return ""
    log = logs[int(planned.victim * 997) % len(logs)]
    spooled = log.with_name(log.name.removesuffix("-wal").removesuffix(TAIL_SUFFIX))
    # Rarely the file itself, which is damaged then; mostly the log of what was written last, of which the rest holds.
    target = spooled if planned.lasting < 0.2 else log
    size = _used(target)
    with target.open("r+b") as file:
        file.truncate(max(0, size - 1 - int(planned.amount**2 * min(size, 100_000))))
    survivors, run_uid = _survivors(spooled)
    if not run_uid:
        run_uid = next((uid for uid in seat.emitted() if spooled.name == f"{uid}.sqlite"), "")
    before = seat.cuts.get(run_uid)
    arrived = _journaled(site, run_uid)
    safe = max(arrived, survivors)
    readable = survivors > 0 and (before is None or before.readable)
    seat.cuts[run_uid] = Cut(safe, readable)
    return (
        f"{target.suffix} of run {run_uid} by {size - target.stat().st_size} bytes: {survivors} left, {arrived} durable"
    )


def _beside_spooled(spool: Path) -> list[Path]:
    return [*spool.glob("*.sqlite-wal"), *spool.glob("*.sqlite" + TAIL_SUFFIX)]


def _used(path: Path) -> int:
    """Bytes of a file; of a tail, those before the space that waits for more."""
    return len(path.read_bytes().rstrip(b"\0")) if path.suffix == TAIL_SUFFIX else path.stat().st_size


def _survivors(spooled: Path) -> tuple[int, str]:
    """How many documents can still be read, from a copy of the file, and of which run."""
    with tempfile.TemporaryDirectory() as place:
        for suffix in ("", "-wal", TAIL_SUFFIX):
            if (part := spooled.with_name(spooled.name + suffix)).exists():
                shutil.copy(part, place)
        try:
            with Journal(Path(place) / spooled.name) as journal:
                return sum(1 for _ in journal.records()), journal.run_uid
        except Exception:
            return 0, ""


def _journaled(site: Site, run_uid: str) -> int:
    journal = site.journal(run_uid)
    if journal is None:
        return 0
    with journal:
        return journal.length
