"""What is done to processes, cables, requests, databases and disks: each fault is injected, lasts, and is healed."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Final

import psutil
from faulty_proxy import CUT_AFTER, CUT_BEFORE, Fault, answer, half_closed, late_answer, zombie

from tiledbroker.publisher._publisher import SpoolPublisher
from tiledwriter.testing import ServerProcess, TiledServer, wait_until

from .databases import tables_locked
from .gateway import LOGIN, html
from .kinds import Planned, kind
from .permissions import permissions_away, subject_to_permissions
from .referee import SETTLED
from .site import Site, held

_NO_REQUEST: Final = 15.0  # seconds to wait for one that a fault could hit
_HEALED: Final = 120.0
_AWAY: Final = 20.0  # seconds for a session to end in order


def why_not(name: str, site: Site) -> str:
    """Why faults of this kind are not possible here; "" if they are."""
    if name.startswith("PostgreSQL") and site.postgresql is None:
        return f"storage is {site.setting.storage}"
    if name == "reads lag" and site.group is None:
        return "there is one Tiled process, and no replica"
    if name == "journal disk full":
        return site.journal_disk.problem
    if name == "spool disk full":
        return site.spool_disk.problem
    if name.startswith("permissions"):
        return subject_to_permissions()[1]
    if name == "tables locked" and site.setting.storage == "duckdb":
        return "nobody else can lock DuckDB"
    return ""


# Processes


@kind("publisher killed")
def _(site: Site, planned: Planned) -> str:
    seat = planned.seat(site)
    with seat.mutex:
        if seat.degraded:  # what a failing disk does not take is in memory only, and goes with it
            return ""
        seat.kill()
        site.pause(planned.seconds(0, 3))
        seat.start()
    return f"seat {seat.number}"


@kind("publisher stopped")
def _(site: Site, planned: Planned) -> str:
    seat = planned.seat(site)
    with seat.mutex:
        seat.send(signal.SIGSTOP)
        try:
            site.pause(planned.seconds(0.5, 9))
        finally:
            seat.send(signal.SIGCONT)
    return f"seat {seat.number}"


@kind("supervisor killed")
def _(site: Site, planned: Planned) -> str:
    host = planned.host(site)
    with site.lock_of(host):
        host.kill()
        site.pause(planned.seconds(0, 3))
        site.bring_up(host)
    return f"host {site.hosts.index(host)}"


@kind("supervisor stopped")
def _(site: Site, planned: Planned) -> str:
    host = planned.host(site)
    with site.lock_of(host):
        return f"host {site.hosts.index(host)}, {_stop(site, host, planned.seconds(0.5, 9))}"


@kind("worker killed")
def _(site: Site, planned: Planned) -> str:
    with site.locks["worker"], suppress(psutil.NoSuchProcess):
        if (worker := _worker(site, planned)) is not None:
            worker.kill()
            return f"process {worker.pid}"
    return ""


@kind("worker stopped")
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


@kind("Tiled killed")
def _(site: Site, planned: Planned) -> str:
    server = _server(site, planned)
    with held(site.locks["tiled"], site.locks["postgresql"]):
        server.kill()
        site.pause(planned.seconds(0, 2))
        site.bring_up(server)
    return f"server {site.servers.index(server)}"


@kind("Tiled stopped")
def _(site: Site, planned: Planned) -> str:
    server = _server(site, planned)
    with site.locks["tiled"]:
        return f"server {site.servers.index(server)}, {_stop(site, server, planned.seconds(0.5, 4))}"


def _server(site: Site, planned: Planned) -> TiledServer:
    """One of the Tiled processes."""
    return site.servers[int(planned.victim * len(site.servers))]


@kind("reads lag")
def _(site: Site, planned: Planned) -> str:
    """What is read is old, again and again, by up to three quarters of the quiet period."""
    assert site.group is not None
    lag = (0.2 + 0.55 * planned.amount) * site.setting.quiet_period
    times = 0
    with site.locks["postgresql"]:
        deadline = time.monotonic() + planned.seconds(4, 12)
        while time.monotonic() < deadline and not site.ending.is_set():
            with site.gateway.lagging(site.group, seconds=lag):
                site.pause(lag)
            times += 1
    return f"{times} times, {lag:.1f} s" if times else ""


@kind("PostgreSQL killed")
def _(site: Site, planned: Planned) -> str:
    assert site.postgresql is not None
    with site.locks["postgresql"]:
        site.postgresql.kill()
        site.pause(planned.seconds(0, 2))
        site.bring_up(site.postgresql)
    return "killed"


@kind("PostgreSQL stopped")
def _(site: Site, planned: Planned) -> str:
    assert site.postgresql is not None
    with site.locks["postgresql"]:
        return _stop(site, site.postgresql, planned.seconds(0.5, 4))


def _stop(site: Site, process: ServerProcess, seconds: float) -> str:
    process.send(signal.SIGSTOP)
    try:
        site.pause(seconds)
    finally:
        process.send(signal.SIGCONT)
    return f"{seconds:.1f} s"


def _worker(site: Site, planned: Planned) -> psutil.Process | None:
    with suppress(TimeoutError):
        wait_until(lambda: site.ending.is_set() or site.workers(), _NO_REQUEST, "there is a worker")
    return site.worker(planned.victim)


# The cable between publishers and supervisor


@kind("cable cut")
def _(site: Site, planned: Planned) -> str:
    with site.locks["wire"]:
        _wait_for_connections(site)
        site.wire.cut()
    return "cut"


@kind("cable slow")
def _(site: Site, planned: Planned) -> str:
    with site.locks["wire"]:
        site.wire.hold()
        try:
            site.pause(planned.seconds(0.2, 9))
        finally:
            site.wire.resume()
    return f"{planned.seconds(0.2, 9):.1f} s"


@kind("cable half closed")
def _(site: Site, planned: Planned) -> str:
    of_clients = planned.victim < 0.5
    with site.locks["wire"]:
        _wait_for_connections(site)
        site.wire.half_close(of_clients=of_clients)
        site.pause(planned.seconds(0, 2))
    return "towards publishers" if of_clients else "towards the supervisor"


@kind("cable dead")
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

    @kind(name)
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


@kind("gateway answers")
def _(site: Site, planned: Planned) -> str:
    """A gateway answers for Tiled: all writing requests for some seconds, now and then the others, too."""
    fault = _GATEWAY[int(planned.victim * len(_GATEWAY))]
    reads = planned.amount < 0.3
    with site.locks["http"]:
        met = site.gateway.answer_all(fault, planned.seconds(2, 10), site.pause, reads=reads)
    what = "all requests" if reads else "writing requests"
    return f"{fault.name} to {what} for {planned.seconds(2, 10):.1f} s, {met} came" if met else ""


_GATEWAY: Final = (
    html(302, "", location=LOGIN),
    html(404, "default backend - 404"),
    html(405, "405 Not Allowed"),
    html(200, "We are down for maintenance."),
    html(503, "503 Service Temporarily Unavailable"),
    answer(404, "Not Found"),  # of a gateway made with FastAPI, which looks like Tiled's own
)


@kind("tables locked")
def _(site: Site, planned: Planned) -> str:
    """Tiled is well; the database of its tables is not, and for longer than a poisoned request is given."""
    seconds = site.setting.poison_after + planned.seconds(1, 6)
    servers = held(site.locks["tiled"], site.locks["postgresql"])
    with site.locks["tables"], servers, tables_locked(site.server) as locked:
        site.pause(seconds)
    return f"{locked}, {seconds:.1f} s"


# Disks


@kind("journal disk full")
def _(site: Site, planned: Planned) -> str:
    with site.locks["journals"]:
        site.journal_disk.fill()
        try:
            site.pause(planned.seconds(1, 5))
        finally:
            site.journal_disk.empty()
    return f"{planned.seconds(1, 5):.1f} s"


@kind("spool disk full")
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


# Permissions


@kind("permissions of spools away")
def _(site: Site, planned: Planned) -> str:
    # Of one spool, or of the directory above all. As with a full disk, no publisher is killed meanwhile.
    seat = planned.seat(site)
    above = planned.amount < 0.5
    hit = site.seats if above else [seat]
    with held(*(each.mutex for each in hit)):
        if not all(each.spool.is_dir() for each in hit):
            return ""
        directory = seat.spool.parent if above else seat.spool
        with permissions_away(directory):
            site.pause(planned.seconds(2, 12))
            degraded = sum(each.degraded for each in hit)
        wait_until(lambda: not any(each.degraded for each in hit), _HEALED, "documents are in the spool or durable")
        site.pause(0.5)
    return f"{directory.name}, {planned.seconds(2, 12):.1f} s, {degraded} publishers degraded"


@kind("permissions of journals away")
def _(site: Site, planned: Planned) -> str:
    above = planned.amount < 0.5
    with site.locks["journals"], permissions_away(site.journal_dir.parent if above else site.journal_dir):
        site.pause(planned.seconds(1, 8))
    return f"of {'the directory above them' if above else 'their directory'}, {planned.seconds(1, 8):.1f} s"


# Another destination


@kind("destination changed", "zeromq")
def _(site: Site, planned: Planned) -> str:
    """A session on the same spool for another supervisor, which is there or not, and then the right one again."""
    assert site.elsewhere is not None
    seat = planned.seat(site)
    listens = planned.amount < 0.6
    with seat.mutex, site.elsewhere.mutex:
        if seat.degraded or not (left := seat.spooled()):
            return ""
        seat.kill()
        try:
            if listens:
                site.elsewhere.start()
            seat.start(away=site.elsewhere.address)
            site.pause(planned.seconds(4, 18))
            seat.leave(_AWAY if listens else 0.0)
        finally:
            site.elsewhere.stop()
            seat.kill()
            seat.start()
    published = len(seat.away.emitted())
    return (
        f"seat {seat.number}, {'a supervisor' if listens else 'nobody'} there; {len(left)} runs left, {published} new"
    )


# A run that is at fault itself


@kind("run that cannot be written")
def _(site: Site, planned: Planned) -> str:
    """A publisher of its own sends a run that belongs in quarantine, while all others have to go on."""
    spool = site.setting.directory / f"unwritable-{planned.number}"
    with closing(site.make_publisher(spool, name="unwritable")) as publisher:
        run_uid = publish_unwritable(publisher, planned.number)
        if not publisher.close(_NO_REQUEST):
            return ""
    with suppress(TimeoutError):
        wait_until(lambda: site.ending.is_set() or site.outcome(run_uid), _NO_REQUEST, "the run has an outcome")
    outcome = site.outcome(run_uid)
    if outcome in SETTLED:
        site.complaints.append(f"run {run_uid} cannot be written, and is {outcome}")
    return f"run {run_uid}: {outcome or 'no outcome yet'}"


def publish_unwritable(publisher: SpoolPublisher, number: int) -> str:
    """Publish a run whose descriptor lacks what event-model requires; returns its uid."""
    run_uid = str(uuid.uuid4())
    part = {"run_start": run_uid, "time": time.time()}
    publisher("start", {"uid": run_uid, "time": time.time(), "plan_name": "fly_ptycho", "scan_id": number})
    publisher("descriptor", {"uid": str(uuid.uuid4()), "name": "primary", **part})
    publisher("stop", {"uid": str(uuid.uuid4()), "exit_status": "fail", **part})
    return run_uid
