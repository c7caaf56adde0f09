"""What is done to the logs themselves: cut short, a bit flipped, old copies put back, an ingest host without any."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from tiledwriter.testing import wait_until

from .kinds import Planned, kind
from .logs import SEGMENT, copy_files, documents_in, files_of, flip_bit, replace_files, runs_in, used
from .referee import Harm, journal_path
from .site import Seat, Site, Snapshot, held

_MAIN_FILE: Final = ".sqlite"
_PUT_BACK: Final = 30.0  # seconds within which a worker looks at its journal


# Files that are damaged


@kind("spool truncated", "zeromq")
def _(site: Site, planned: Planned) -> str:
    seat = planned.seat(site)
    with seat.mutex:
        if seat.degraded:
            return ""
        seat.kill()
        try:
            return _truncate(site, seat, planned)
        finally:
            seat.start()


def _truncate(site: Site, seat: Seat, planned: Planned) -> str:
    """Cut the end off a file of a publisher that is dead, and note what has to survive that."""
    if not (run_uid := _chosen(seat.spooled(), planned)):
        return ""
    files = [path for path in files_of(seat.spool, run_uid) if used(path)]
    # Rarely the file itself, which is damaged then; mostly the log of what was written last, of which the rest holds.
    logs = [path for path in files if path.suffix != _MAIN_FILE] or files
    target = files[0] if planned.lasting < 0.2 and files[0].suffix != SEGMENT else logs[-1]
    size = used(target)
    with target.open("r+b") as file:
        file.truncate(max(0, size - 1 - int(planned.amount**2 * min(size, 100_000))))
    survivors = documents_in(seat.spool).get(run_uid, 0)
    arrived = site.journaled(run_uid)
    site.harm(run_uid, Harm(max(arrived, survivors), readable=survivors > 0))
    cut = size - target.stat().st_size
    return f"{target.name} by {cut} bytes: {survivors} left, {arrived} durable"


@kind("bit flipped in spool", "zeromq")
def _(site: Site, planned: Planned) -> str:
    seat = planned.seat(site)
    with seat.mutex:
        if seat.degraded:
            return ""
        seat.kill()
        try:
            return _flip(site, seat.spool, _chosen(_sound(site, seat.spooled()), planned), planned)
        finally:
            seat.start()


@kind("bit flipped in journal", "zeromq")
def _(site: Site, planned: Planned) -> str:
    """While the supervisor is away, or under its hands; of runs that are not at their end, if there are any."""
    with held(site.locks["journals"], site.locks["supervisor"], site.locks["worker"]):
        runs = _sound(site, runs_in(site.journal_dir, site.emitted()))
        if planned.lasting < 0.7:
            runs = [run_uid for run_uid in runs if not site.outcome(run_uid)] or runs
        if planned.amount < 0.5 or not runs:
            return _flip(site, site.journal_dir, _chosen(runs, planned), planned)
        site.kill_ingest_host()
        try:
            return _flip(site, site.journal_dir, _chosen(runs, planned), planned)
        finally:
            site.bring_up(site.supervisor)


def _flip(site: Site, directory: Path, run_uid: str, planned: Planned) -> str:
    """Flip a bit of any file of a run."""
    files = [path for path in files_of(directory, run_uid) if used(path)] if run_uid else []
    if not files:
        return ""
    chance = random.Random(f"{site.setting.seed} {planned.number} {planned.amount}")
    site.harm(run_uid, Harm(damaged=True))
    return flip_bit(chance.choice(files), chance)


def _sound(site: Site, runs: list[str]) -> list[str]:
    """Those of the runs that are not damaged yet."""
    return [run_uid for run_uid in runs if not site.harms.get(run_uid, Harm()).damaged]


def _chosen(runs: list[str], planned: Planned) -> str:
    """One of the runs, "" if there are none."""
    return runs[int(planned.victim * 997) % len(runs)] if runs else ""


# Copies of earlier times


@kind("old spool put back", "zeromq")
def _(site: Site, planned: Planned) -> str:
    if (old := _old(site, planned)) is None:
        return ""
    snapshot, age = old
    seat = planned.seat(site)
    with seat.mutex:
        if seat.degraded:
            return ""
        seat.kill()
        try:
            concerned = _put_back_spool(site, seat, snapshot)
        finally:
            seat.start()
    return f"seat {seat.number}, {age}: {concerned} runs concerned"


@kind("old journals put back", "zeromq")
def _(site: Site, planned: Planned) -> str:
    if (old := _old(site, planned)) is None:
        return ""
    snapshot, age = old
    with held(site.locks["journals"], site.locks["supervisor"], site.locks["worker"]):
        site.kill_ingest_host()
        try:
            concerned = _put_back_journals(site, snapshot.journals)
        finally:
            site.bring_up(site.supervisor)
    return f"{age}: {concerned} runs concerned"


@kind("old spools and journals put back", "zeromq")
def _(site: Site, planned: Planned) -> str:
    if (old := _old(site, planned)) is None:
        return ""
    snapshot, age = old
    hosts = (site.locks["journals"], site.locks["supervisor"], site.locks["worker"])
    with held(*hosts, *(seat.mutex for seat in site.seats)):
        if any(seat.degraded for seat in site.seats):
            return ""
        for seat in site.seats:
            seat.kill()
        site.kill_ingest_host()
        try:
            concerned = _put_back_journals(site, snapshot.journals)
            concerned += sum(_put_back_spool(site, seat, snapshot, stale=True) for seat in site.seats)
        finally:
            for seat in site.seats:
                seat.start()
            site.bring_up(site.supervisor)
    return f"{age}: {concerned} runs concerned"


def _old(site: Site, planned: Planned) -> tuple[Snapshot, str] | None:
    """A copy of some seconds ago, or one that an earlier fault made; none while there is no run to be copied."""
    if site.snapshots and planned.victim < 0.5:
        return site.snapshots[int(planned.amount * len(site.snapshots))], "as of an earlier fault"
    hosts = (site.locks["journals"], site.locks["supervisor"], site.locks["worker"])
    with held(*hosts, *(seat.mutex for seat in site.seats)):
        if not runs_in(site.journal_dir, site.emitted()):
            return None
        snapshot = site.take_snapshot()
    seconds = planned.seconds(3, 15)
    site.pause(seconds)
    return snapshot, f"as of {seconds:.0f} s ago"


def _put_back_spool(site: Site, seat: Seat, snapshot: Snapshot, *, stale: bool = False) -> int:
    """Put a spool back and note what goes with that; `stale`: the journals have been put back, too."""
    copy = snapshot.spools[seat.number]
    known = [*seat.emitted(), *seat.away.emitted()]
    concerned = {*runs_in(seat.spool, known), *runs_in(copy, known)}
    if stale:
        concerned |= {run_uid for run_uid in seat.emitted() if not site.was_settled(run_uid)}
    survivors = documents_in(copy)
    replace_files(seat.spool, copy)
    for run_uid in concerned:
        left = survivors.get(run_uid, 0)
        # Where ingest hosts have come and gone, Tiled may have more of it than this one will be sent.
        behind = stale or (left > 0 and bool(site.retired) and not site.outcome(run_uid))
        site.harm(run_uid, Harm(max(left, site.journaled(run_uid)), readable=left > 0, stale=behind))
    return len(concerned)


def _put_back_journals(site: Site, copy: Path) -> int:
    """Put the journal directory back; runs that it has, and that were not at their end, may be behind Tiled then."""
    _replace_journals(site, copy)
    return _note_stale(site, runs_in(site.journal_dir, site.emitted()))


def _replace_journals(site: Site, copy: Path | None) -> None:
    """Replace the journal directory, and note what that costs runs whose spools have lost documents before."""
    site.replace_journals(copy)
    cut = [run_uid for run_uid, harm in site.harms.items() if harm.safe is not None]
    spools = [documents_in(seat.spool) for seat in site.seats] if cut else []
    for run_uid in cut:
        left = max([site.journaled(run_uid), *(spool.get(run_uid, 0) for spool in spools)])
        site.harm(run_uid, Harm(left))


def _note_stale(site: Site, run_uids: Iterable[str]) -> int:
    stale = [run_uid for run_uid in run_uids if not site.settled(run_uid)]
    for run_uid in stale:
        site.harm(run_uid, Harm(stale=True))
    return len(stale)


# Files that are taken from under a worker


@kind("open journal removed", "zeromq")
def _(site: Site, planned: Planned) -> str:
    """As a job does that cleans directories; its worker puts it back."""
    return _take_open_journal(site, planned, Path.unlink)


@kind("open journal replaced", "zeromq")
def _(site: Site, planned: Planned) -> str:
    """By a copy of some seconds ago, as somebody does who restores a backup."""
    # On the same disk, so that one file takes the place of the other at once.
    with tempfile.TemporaryDirectory(dir=site.journal_dir.parent) as place:
        copies = copy_files(site.journal_dir, Path(place) / "copies")
        site.pause(planned.seconds(1, 8))

        def replace(path: Path) -> None:
            if (copy := copies / path.name).exists():
                copy.replace(path)
            else:
                path.unlink()

        return _take_open_journal(site, planned, replace)


def _take_open_journal(site: Site, planned: Planned, take: Callable[[Path], None]) -> str:
    """Take the file of a run that is not at its end, and wait until it is back; nobody is killed meanwhile."""
    with held(site.locks["journals"], site.locks["supervisor"], site.locks["worker"]):
        opened = _journals_open_in(site.workers())
        runs = [run_uid for run_uid in runs_in(site.journal_dir, site.emitted()) if not site.outcome(run_uid)]
        taken = {run_uid: path for run_uid in runs if (path := journal_path(site.journal_dir, run_uid)) in opened}
        if not (run_uid := _chosen(_sound(site, list(taken)), planned)):
            return ""
        path = taken[run_uid]
        before = site.journaled(run_uid)
        take(path)
        if not _is_put_back(site, run_uid, before):
            # Its worker had closed it by then. That publishers still have the documents is not promised.
            site.harm(run_uid, Harm(0, readable=False, stale=True))
            return f"{path.name}, which nobody has put back"
    return f"{path.name} with {before} documents"


def _journals_open_in(workers: Iterable[psutil.Process]) -> set[Path]:
    opened: set[Path] = set()
    for worker in workers:
        with suppress(psutil.Error):
            opened.update(Path(file.path) for file in worker.open_files())
    return opened


def _is_put_back(site: Site, run_uid: str, documents: int) -> bool:
    """Whether a run's journal has so many documents again, before long."""
    try:
        wait_until(lambda: site.journaled(run_uid) >= documents, _PUT_BACK, "the journal is put back")
    except TimeoutError:
        return False
    return True


# Another ingest host


@kind("second ingest host", "zeromq")
def _(site: Site, planned: Planned) -> str:
    """The ingest host dies, and one without journals takes over its address; now and then the old one comes back."""
    returns = planned.victim < 0.5
    with held(site.locks["journals"], site.locks["supervisor"], site.locks["worker"]):
        site.kill_ingest_host()
        try:
            _replace_journals(site, None)
            first = site.retired[-1]
            site.pause(planned.seconds(0, 3))
        finally:
            site.bring_up(site.supervisor)
    if not returns:
        return "one without journals took over"
    site.pause(planned.seconds(4, 15))
    with held(site.locks["journals"], site.locks["supervisor"], site.locks["worker"]):
        site.kill_ingest_host()
        try:
            concerned = _put_back_journals(site, first)
        finally:
            site.bring_up(site.supervisor)
    return f"one without journals took over for {planned.seconds(4, 15):.0f} s; the old one, back, has {concerned} runs"
