"""Shows the whole path at work, and that nothing is lost and nothing comes twice when processes are killed.

Starts a Tiled server and `tiledwriter-supervisor`, runs a RunEngine with simulated devices in a third process, kills a
worker and the supervisor with SIGKILL on the way, and reads everything back with the bluesky-tiled-plugins client.
Exits with 1 if a document is lost or doubled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiledwriter.testing import SupervisorProcess, TiledServer, free_port, journal_of, wait_until

ROOT = Path(__file__).resolve().parent.parent


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {text}", flush=True)


BEGAN = time.monotonic()


@dataclass
class Emitted:
    """What the acquisition process says of one run."""

    label: str
    counts: dict[str, int] = field(default_factory=dict)
    stopped: bool = False


class Acquisition:
    """The process with the RunEngine, and what it reports."""

    def __init__(self, address: str, spool: Path, files: Path, events: int) -> None:
        command = [sys.executable, str(ROOT / "scripts" / "demo_acquisition.py"), "--address", address]
        command += ["--spool", str(spool), "--files", str(files), "--events", str(events)]
        self.runs: dict[str, Emitted] = {}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            report = json.loads(line)
            run = self.runs.setdefault(report["run"], Emitted(report["label"]))
            if report["last"] == "start":
                say(f"RunEngine: {run.label} begins, run {report['run'][:8]}")
            run.counts = report["counts"]
            run.stopped = report["last"] == "stop"

    def events_of(self, label: str) -> int:
        return sum(run.counts.get("event", 0) for run in list(self.runs.values()) if run.label.startswith(label))

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def finish(self) -> None:
        code = self._process.wait(300)
        self._reader.join()
        if code != 0:
            raise RuntimeError(f"The acquisition process ended with {code}.")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()


def kill_things(acquisition: Acquisition, supervisor: SupervisorProcess, events: int) -> None:
    """While the long scan runs: SIGKILL for a worker, then for the supervisor."""

    def reached(fraction: float) -> bool:
        return acquisition.events_of("long") >= fraction * events or not acquisition.running

    wait_until(lambda: reached(0.2), 300, "the long scan is under way")
    wait_until(supervisor.workers, 60, "there is a worker")
    for worker in supervisor.workers():
        say(f"kill -9 of worker {worker.pid}")
        worker.kill()
    wait_until(lambda: reached(0.5), 300, "the long scan goes on")
    say(f"kill -9 of the supervisor {supervisor.pid}; the RunEngine goes on")
    supervisor.kill()
    wait_until(lambda: reached(0.75), 300, "the long scan goes on")
    supervisor.start()
    say("the supervisor runs again")


def wait_for_tiled(runs: Iterable[str], journals: Path) -> None:
    """Until every run is in Tiled, with a line of progress now and then."""
    left = list(runs)
    begun = said = time.monotonic()
    while left:
        left = [uid for uid in left if not is_final(journals, uid)]
        if left and time.monotonic() - said > 3:
            said = time.monotonic()
            say(f"{len(left)} runs are still being written to Tiled")
        if time.monotonic() - begun > 180:
            raise TimeoutError(f"Not written after 180 s: {left}")
        time.sleep(0.1)


def is_final(journals: Path, uid: str) -> bool:
    try:
        with journal_of(journals, uid) as journal:
            return journal.get("outcome") is not None
    except LookupError:
        return False


@dataclass
class Row:
    """A run's line in the final table."""

    label: str
    uid: str
    emitted: int
    journaled: int
    events: int
    rows: int
    lost: int
    doubled: int
    problem: str = ""


def check(client: Any, journals: Path, uid: str, emitted: Emitted) -> Row:
    """Compare what was emitted with the journal and with what Tiled gives back."""
    with journal_of(journals, uid) as journal:
        journaled = journal.length
        worker_starts = sum(entry.event == "worker started" for entry in journal.history())
    run = client[uid]
    seq_nums = [int(n) for stream in run for n in run[stream]["seq_num"].read()]
    events = emitted.counts.get("event", 0)
    total = sum(emitted.counts.values())
    expected = list(range(1, events + 1))
    problems = []
    if sorted(seq_nums) == expected and seq_nums != expected:
        problems.append("out of order")
    if "stop" not in run.metadata:
        problems.append("no stop document")
    for stream in run:
        for key, size in run[stream].read().sizes.items():
            if key == "time" and size != events:
                problems.append(f"{size} points when read as a data set")
    label = emitted.label + (f" ({worker_starts} workers)" if worker_starts > 1 else "")
    lost = len(set(expected) - set(seq_nums)) + max(0, total - journaled)
    doubled = len(seq_nums) - len(set(seq_nums)) + max(0, journaled - total)
    return Row(label, uid, total, journaled, events, len(seq_nums), lost, doubled, ", ".join(problems))


def show_tree(client: Any, runs: dict[str, Emitted]) -> None:
    print("\nWhat is in Tiled:")
    for uid, emitted in runs.items():
        run = client[uid]
        print(f"  {run!r}  {emitted.label}")
        for stream in run:
            print(f"    {stream}")
            for key, node in run[stream].base.items():
                print(f"      {key:<10} {node!r}")


def show_scan(client: Any, runs: dict[str, Emitted]) -> None:
    uid = next(uid for uid, emitted in runs.items() if emitted.label == "scan")
    print(f"\nrun[{uid[:8]!r}].primary.read() of the scan, first rows:")
    frame = client[uid]["primary"].read()[["motor", "det"]].to_dataframe()
    print(frame.head().to_string())


def show_table(rows: list[Row]) -> None:
    print("\n                                              documents            events  rows in")
    print(
        f"{'run':<34}{'uid':<10}{'emitted':>9}{'journaled':>11}{'emitted':>9}{'Tiled':>8}{'lost':>6}{'duplicated':>12}"
    )
    for row in rows:
        print(
            f"{row.label:<34}{row.uid[:8]:<10}{row.emitted:>9}{row.journaled:>11}{row.events:>9}{row.rows:>8}"
            f"{row.lost:>6}{row.doubled:>12}  {row.problem}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1500, help="events of the long scan (default 1500)")
    parser.add_argument("--directory", type=Path, default=ROOT / ".demo" / "data", help="where everything is kept")
    arguments = parser.parse_args()
    directory: Path = arguments.directory.resolve()
    shutil.rmtree(directory, ignore_errors=True)
    files = directory / "files"
    files.mkdir(parents=True)
    os.environ["TILED_CACHE_DIR"] = str(directory / "cache")
    warnings.filterwarnings("ignore")  # of the packages around us, meant for their developers

    def interrupted(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    acquisition: Acquisition | None = None
    say("starting a Tiled server and tiledwriter-supervisor")
    page = free_port()
    with (
        TiledServer(directory / "tiled", readable=[files]) as server,
        SupervisorProcess(directory / "journals", server, options=["--http", str(page)]) as supervisor,
    ):
        say(f"the status page is at http://127.0.0.1:{page}/ while this runs")
        try:
            say("starting a RunEngine in a third process")
            acquisition = Acquisition(supervisor.address, directory / "spool", files, arguments.events)
            kill_things(acquisition, supervisor, arguments.events)
            acquisition.finish()
            say("the RunEngine is done; waiting until all is in Tiled")
            wait_for_tiled(acquisition.runs, directory / "journals")
            say("reading back")
            client = server.client()
            show_tree(client, acquisition.runs)
            show_scan(client, acquisition.runs)
            rows = [check(client, directory / "journals", *item) for item in acquisition.runs.items()]
        finally:
            if acquisition is not None and acquisition.running:
                acquisition.kill()
    show_table(rows)
    bad = [row for row in rows if row.lost or row.doubled or row.problem or row.emitted != row.journaled]
    print(f"\n{sum(row.lost for row in rows)} lost, {sum(row.doubled for row in rows)} duplicated in {len(rows)} runs.")
    print(f"Journals: tiledwriter-journal ls {directory / 'journals'}")
    return 1 if bad or len(rows) != 6 else 0


if __name__ == "__main__":
    sys.exit(main())
