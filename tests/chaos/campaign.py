"""A campaign: publishers that go on and on, one fault after the other, and at its end the referee."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from . import faults, harm, log_faults
from .keeper import Keeper
from .kinds import KINDS, Planned, kinds_of, plan
from .logs import documents_in
from .pace import Pace
from .referee import Referee, Verdict, journal_path
from .report import Injected, Report
from .shared_site import SharedSite
from .site import Setting, Site, Source

_REGISTERED: Final = (faults, harm, log_faults)  # their kinds are in KINDS by now
_OVERLAP: Final = 4
_PATIENCE: Final = 3  # runs that wait to be written, for each that is open, until publishers begin no further ones
# How often a fault is tried that finds nothing to be done to.
_MAX_TRIES: Final = 20


@dataclass(frozen=True)
class Options:
    """Of a campaign.

    Attributes
    ----------
    seconds
        For which faults are injected.
    interval
        Seconds between two faults, on average.
    kinds
        Of faults; empty for all of sites like this one.
    patience
        Seconds after the last fault for which nothing may happen until the campaign gives the rest up.
    """

    setting: Setting
    seconds: float
    interval: float = 2.5
    kinds: Sequence[str] = ()
    patience: float = 180.0


SITES: Final[dict[Source, type[Site]]] = {"zeromq": Site, "jetstream": SharedSite}


class Timeline:
    """A file that says what happened when, as lines of JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began = time.time()
        self._file: IO[str] = path.open("w")
        self._mutex = threading.Lock()

    def add(self, what: str, **detail: Any) -> None:
        now = time.time()
        line = json.dumps({"at": round(now - self._began, 3), "time": round(now, 3), "what": what, **detail})
        with self._mutex:
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class Clock:
    """Seconds since the campaign began, without those in which no fault could begin.

    None can while a server is slow to start, or while as many faults last as may overlap: both are long on a busy
    machine, which is to see as many faults as any other.
    """

    def __init__(self, site: Site) -> None:
        self.now = 0.0
        self._site = site
        self._looked = time.monotonic()

    def tick(self, *, held: bool) -> None:
        """Let half a second go by; `held` says that as many faults last as may overlap."""
        time.sleep(0.5)
        looked, self._looked = self._looked, time.monotonic()
        if not (held or self._site.waits_for_start):
            self.now += self._looked - looked


class Campaign:
    """Runs a campaign in a directory that does not exist yet; what happens is in `timeline.jsonl` there.

    `tell` is told how it goes, in a line now and then.
    """

    def __init__(self, options: Options, tell: Callable[[str], None] = lambda _: None) -> None:
        self._options = options
        self._kinds = options.kinds or kinds_of(options.setting.source)
        self._tell = tell
        self._injected: list[Injected] = []
        self._missed: Counter[str] = Counter()
        self._notes: list[str] = []
        self._done: set[str] = set()  # runs with an outcome
        self._again: list[Planned] = []  # faults that found nothing to be done to
        # How often each of them did, by its number.
        self._tries: Counter[int] = Counter()
        self._pace = Pace(0.5)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Have `run` begin no further faults; it goes on with what follows the last one."""
        self._stopping.set()

    def run(self) -> Report:
        """Inject faults, let everything come to rest, and judge."""
        setting = self._options.setting
        setting.directory.mkdir(parents=True)
        with closing(Timeline(setting.directory / "timeline.jsonl")) as timeline:
            self._timeline = timeline
            with SITES[setting.source](setting, self._note) as site:
                impossible = {kind: why for kind in self._kinds if (why := faults.why_not(kind, site))}
                self._tell("Everything runs; faults begin.")
                with closing(self._referee(site, attempts=1)) as onlooker:
                    keeper = Keeper(site, onlooker, self._note)
                    keeper.start()
                    try:
                        self._inject_all(site, [kind for kind in self._kinds if kind not in impossible])
                        self._tell(f"{len(self._injected)} faults were injected; waiting until all runs are written.")
                        site.finish(self._options.patience)
                    finally:
                        keeper.stop()
                self._tell(f"Judging {len(site.emitted())} runs.")
                with closing(self._referee(site)) as referee:
                    keeper.referee = referee
                    verdicts = self._judge(site, referee, keeper)
        return Report(
            setting.seed,
            setting.describe(),
            self._options.seconds,
            sorted(self._injected, key=lambda fault: fault.number),
            verdicts,
            dict(self._missed),
            impossible,
            self._notes,
            site.complaints,
        )

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._timeline.add("note", text=text)

    def _inject_all(self, site: Site, kinds: list[str]) -> None:
        threads: list[threading.Thread] = []
        try:
            for planned in self._due(site, kinds, threads):
                thread = threading.Thread(target=self._inject, args=(site, planned), name=f"fault {planned.number}")
                thread.start()
                threads.append(thread)
        finally:
            site.ending.set()
            for thread in threads:
                thread.join()

    def _due(self, site: Site, kinds: list[str], threads: list[threading.Thread]) -> Iterator[Planned]:
        """The faults when their time has come, and not too many at once; later again those that had nothing to hit."""
        clock, told = Clock(site), 0
        for planned in plan(site.setting.seed, kinds, self._options.seconds, self._options.interval):
            while not self._stopping.is_set() and (
                (held := sum(thread.is_alive() for thread in threads) >= _OVERLAP) or clock.now < planned.at
            ):
                if self._pace.is_due:
                    with self._pace.look():
                        self._hold_back(site)
                clock.tick(held=held)
            if clock.now >= self._options.seconds or self._stopping.is_set():
                return
            yield planned
            again, self._again = self._again, []
            yield from again
            if clock.now // 60 > told:
                told = int(clock.now // 60)
                self._tell(f"{told} min: {len(self._injected)} faults, {len(site.emitted())} runs.")

    def _inject(self, site: Site, planned: Planned) -> None:
        self._timeline.add("begins", number=planned.number, kind=planned.kind)
        began = time.time()
        try:
            done = KINDS[planned.kind](site, planned)
        except Exception as error:
            done = ""
            self._note(f"Fault {planned.number} ({planned.kind}) failed: {type(error).__name__}: {error}")
        if done:
            self._injected.append(Injected(planned.number, planned.kind, began, time.time(), done))
        else:
            self._missed[planned.kind] += 1
            self._tries[planned.number] += 1
            if self._tries[planned.number] < _MAX_TRIES:
                self._again.append(planned)
        self._timeline.add("ends", number=planned.number, kind=planned.kind, done=done)

    def _hold_back(self, site: Site) -> None:
        """No further runs while many wait for a Tiled that is away."""
        runs = site.emitted()
        refused = site.refused()
        self._done |= {uid for uid, done in site.harms.items() if uid in runs and not done.readable}
        self._done |= {uid for uid, done in site.harms.items() if uid in runs and done.damaged and uid in refused}
        self._done |= {uid for uid in runs.keys() - self._done if site.outcome(uid)}
        hold = len(runs) - len(self._done) > _PATIENCE * site.open_runs
        for seat in site.seats:
            seat.tell("hold", on=hold)

    @staticmethod
    def _referee(site: Site, attempts: int = 20) -> Referee:
        return Referee(
            site.journal_dirs[0],
            site.server.uri,
            site.server.api_key,
            beside=site.journal_dirs[1:],
            retired=site.left_journal_dirs(),
            refused=site.refused(),
            elsewhere=None if site.elsewhere is None else site.elsewhere.journal_dir,
            attempts=attempts,
        )

    def _judge(self, site: Site, referee: Referee, keeper: Keeper) -> list[Verdict]:
        verdicts = []
        for run_uid, emitted in site.emitted().items():
            try:
                verdict = referee.judge(run_uid, emitted, site.harms.get(run_uid), site.published(run_uid))
            except RuntimeError as error:
                site.complaints.append(f"run {run_uid} cannot be judged: {error}")
                continue
            verdict.removed = keeper.removed(run_uid)
            verdict.foreign = referee.foreign(run_uid)
            verdicts.append(verdict)
        for seat in site.seats:
            kept = documents_in(site.spool_elsewhere(seat))
            for run_uid, emitted in seat.away.emitted().items():
                left = None if run_uid in site.harms else kept.get(run_uid, 0)
                verdicts.append(referee.judge_away(run_uid, emitted, left))
        place = site.setting.directory / "wrong"
        place.mkdir()
        for verdict in verdicts:
            if not verdict.clean:
                for number, directory in enumerate((*site.journal_dirs, *site.left_journal_dirs())):
                    _keep_journal(directory, verdict.run_uid, place / str(number))
        return verdicts


def _keep_journal(directory: Path, run_uid: str, target: Path) -> None:
    """Copy the files of a run's journal, if there is one."""
    path = journal_path(directory, run_uid)
    if path is not None:
        target.mkdir(exist_ok=True)
        for file in path.parent.glob(f"{run_uid}.sqlite*"):
            shutil.copy(file, target)
