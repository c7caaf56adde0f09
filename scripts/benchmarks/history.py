"""What journals that are kept cost a supervisor: until it answers, and per second when there is nothing to do."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tiledbroker import Journal
from tiledbroker.log._journal_files import FINISHED_SUBDIRECTORY, unfinished_run_files
from tiledwriter.testing import SupervisorProcess, free_port, wait_until

from .rounds import OURS, Along, Figure, Rounds
from .service import connected_publisher

COUNTS = (5_000, 50_000)
EMPTY = "empty directory"
IDLE_SECONDS = 10.0
QUIET_SECONDS = 2.0  # after which what a start takes is over

_UID = "00000000-0000-4000-8000-000000000000"


@dataclass
class _Nowhere:
    """In place of a Tiled server: nothing is written."""

    uri: str
    api_key: str = "secret"
    storage: str = "sqlite"


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """With so many journals beside an empty directory; and the first start on a directory of version 0.1."""
    counts = (50, 500) if quick else COUNTS
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        model = _make_model(directory)
        (directory / "empty" / "journals").mkdir(parents=True)
        for count in counts:
            kept = directory / str(count)
            _keep(kept / "journals" / FINISHED_SUBDIRECTORY, count, partial(_link, model))
            values = Rounds({EMPTY: partial(_supervise, directory / "empty"), OURS: partial(_supervise, kept)}).run(
                rounds
            )
            along = Along("kept journals", count)
            yield Figure("start", "ms", values["start"], 1.5, EMPTY, along=along)
            yield Figure("processor time per second", "ms", values["idle"], 1.5, EMPTY, along=along)
        flat = directory / "flat"
        _keep(flat / "journals", counts[0], partial(_copy, model.read_bytes()))
        first = {name: [value] for name, value in _supervise_first(flat).items()}
        for what, unit in (("start", "ms"), ("slowest answer", "ms"), ("sorting", "s")):
            title = f"{what}, the first time with a directory of version 0.1"
            yield Figure(title, unit, {OURS: first[what]}, along=Along("kept journals", counts[0]))


def _make_model(directory: Path) -> Path:
    """A journal of a run that is written, in small pages: what counts is how many there are."""
    made, model = directory / "made.sqlite", directory / "model.sqlite"
    with Journal(made, "create", run_uid=_UID) as journal:
        journal.append_one("start", b"")
        journal.append_one("stop", b"")
        journal.set("outcome", "written")
        journal.note("written")
    with closing(sqlite3.connect(made)) as connection:
        connection.executescript(f"PRAGMA journal_mode = DELETE; PRAGMA page_size = 512; VACUUM INTO '{model}';")
    with closing(sqlite3.connect(model)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    return model


def _keep(directory: Path, count: int, make: Callable[[Path, str], None]) -> None:
    directory.mkdir(parents=True, mode=0o700)
    for number in range(count):
        uid = f"{number:08d}{_UID[8:]}"
        make(directory / f"{uid}.sqlite", uid)


def _link(model: Path, path: Path, _uid: str) -> None:
    path.hardlink_to(model)


def _copy(contents: bytes, path: Path, uid: str) -> None:
    path.write_bytes(contents.replace(_UID.encode(), uid.encode()))


def _supervise(place: Path) -> Mapping[str, float]:
    with tempfile.TemporaryDirectory() as spool:
        supervisor = SupervisorProcess(place / "journals", _Nowhere(f"http://127.0.0.1:{free_port()}"))  # type: ignore[arg-type]
        began = time.perf_counter()
        with supervisor:
            publisher = connected_publisher(supervisor, Path(spool))
            start = time.perf_counter() - began
            try:
                _wait(QUIET_SECONDS)
                before = _processor_seconds(supervisor)
                _wait(IDLE_SECONDS)
                idle = (_processor_seconds(supervisor) - before) / IDLE_SECONDS
            finally:
                publisher.close(timeout=0)
    return {"start": 1e3 * start, "idle": 1e3 * idle}


def _supervise_first(place: Path) -> Mapping[str, float]:
    with tempfile.TemporaryDirectory() as spool:
        supervisor = SupervisorProcess(place / "journals", _Nowhere(f"http://127.0.0.1:{free_port()}"))  # type: ignore[arg-type]
        began = time.perf_counter()
        with supervisor:
            publisher = connected_publisher(supervisor, Path(spool))
            start = time.perf_counter() - began
            slowest = 0.0
            try:
                while unfinished_run_files(supervisor.journal_dir):
                    asked = time.perf_counter()
                    again = connected_publisher(supervisor, Path(spool) / "again")
                    slowest = max(slowest, time.perf_counter() - asked)
                    again.close(timeout=0)
                sorting = time.perf_counter() - began
            finally:
                publisher.close(timeout=0)
    shutil.rmtree(place)
    return {"start": 1e3 * start, "slowest answer": 1e3 * slowest, "sorting": sorting}


def _processor_seconds(supervisor: SupervisorProcess) -> float:
    """Of all its threads, in ns as the scheduler counts them: `times` has hundredths of a second only."""
    tasks = Path(f"/proc/{supervisor.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _wait(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, seconds + 60.0, "time goes by")
