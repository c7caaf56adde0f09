"""What an open status page costs: documents made durable a second while five browsers show it, and without it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import httpx
import psutil
from runs import supervisor_without_tiled

from tiledwriter.testing import SupervisorProcess, free_port, wait_until

from .documents import run_of
from .rounds import OURS, Figure, Rounds
from .service import connected_publisher

BROWSERS = 5
BUDGET = 0.95
NO_PAGE = "without --http"
THROUGHPUT = f"1 run, published and acknowledged, the page open in {BROWSERS} browsers"
ANSWERS = "answers to these browsers"
PROCESSOR_TIME = "processor time of the page's process, per second"
ROUNDS_PER_ROUND = 4

# As in the page's script: pause between two refreshes, and plots that are drawn without a click.
_REFRESH_SECONDS = 5.0
_PLOTS = 2
_SCRIPTS = ("bokeh.min.js", "bokeh-api.min.js")
_ANSWERS_OF_A_LOAD = 5  # page, style, script, and two of the plots


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """Runs in turns; Tiled is away. The browsers are a process that asks for what the page's script asks for.

    It is stopped while the peer is measured. All browsers ask at once when it goes on, so they ask no less often than
    browsers do. There are more rounds than elsewhere, and they are short: what is to be seen is small.
    """
    events = 10_000 if quick else 40_000
    with tempfile.TemporaryDirectory() as place:
        directory, port = Path(place), free_port()
        with (
            supervisor_without_tiled(directory / "alone") as alone,
            supervisor_without_tiled(directory / "shown", "--http", str(port)) as shown,
        ):
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: _answers(url), 60, "the page is there")
            with _open_browsers(url) as browsers:
                sides: dict[str, Callable[[], Mapping[str, float]]] = {
                    OURS: partial(_publish_while_shown, shown, directory / "spool-of-shown", events, browsers),
                    NO_PAGE: lambda: {THROUGHPUT: _publish(alone, directory / "spool-of-alone", events)},
                }
                values = Rounds(sides).run(ROUNDS_PER_ROUND * rounds)
        yield Figure(THROUGHPUT, "documents/s", values[THROUGHPUT], BUDGET, NO_PAGE, more_is_better=True)
        yield Figure(ANSWERS, "answers/s", values[ANSWERS])
        yield Figure(PROCESSOR_TIME, "ms", values[PROCESSOR_TIME])


def _answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    return False


def _publish(supervisor: SupervisorProcess, spool: Path, events: int) -> float:
    emitted = run_of(events)
    publisher = connected_publisher(supervisor, spool)
    began = time.perf_counter()
    for name, doc in emitted:
        publisher(name, doc)
    assert publisher.flush(300)
    seconds = time.perf_counter() - began
    publisher.close()
    return len(emitted) / seconds


def _publish_while_shown(
    supervisor: SupervisorProcess, spool: Path, events: int, browsers: _Browsers
) -> Mapping[str, float]:
    browsers.go_on()
    answers, used, began = browsers.count_answers(), _processor_seconds(supervisor), time.perf_counter()
    throughput = _publish(supervisor, spool, events)
    seconds = time.perf_counter() - began
    measured = {
        THROUGHPUT: throughput,
        ANSWERS: (browsers.count_answers() - answers) / seconds,
        PROCESSOR_TIME: 1000 * (_processor_seconds(supervisor) - used) / seconds,
    }
    browsers.stop()
    return measured


def _processor_seconds(supervisor: SupervisorProcess) -> float:
    """Return the processor time that the process of the page has used."""
    children = psutil.Process(supervisor.pid).children()
    times = next(each for each in children if "tiledwriter.status" in each.cmdline()).cpu_times()
    return times.user + times.system


@dataclass
class _Browsers:
    """The process that is all browsers, which writes a byte for each answer."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def count_answers(self) -> int:
        return os.fstat(self.log.fileno()).st_size

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)


@contextmanager
def _open_browsers(url: str) -> Iterator[_Browsers]:
    """Start the browsers; they are stopped once each has loaded the page."""
    command = [sys.executable, "-c", f"from benchmarks.page import browse_all; browse_all({url!r})"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, env=environment) as process:
        browsers = _Browsers(process, log)
        try:
            wait_until(lambda: browsers.count_answers() >= _ANSWERS_OF_A_LOAD * BROWSERS, 60, "the page is loaded")
            browsers.stop()
            yield browsers
        finally:
            process.kill()


def browse_all(url: str) -> None:
    """Be all browsers, for ever; writes a byte for each answer."""
    with ThreadPoolExecutor(BROWSERS) as pool:
        list(pool.map(lambda number: _browse(url, number * _REFRESH_SECONDS / BROWSERS), range(BROWSERS)))


def _browse(url: str, first_pause: float) -> None:
    """Be one browser: load the page and its scripts, then ask for what the page's script asks for, for ever."""
    with httpx.Client(base_url=url, timeout=30) as browser:

        def ask(path: str) -> str:
            answer = browser.get(path)
            answer.raise_for_status()
            sys.stdout.write(".")
            sys.stdout.flush()
            return answer.text

        page = ask("/")
        assets = re.findall(r'(?:src|href)="(/assets/[^"]+)"', page)
        assets += [f"{path}/{name}" for path in re.findall('data-assets="([^"]+)"', page) for name in _SCRIPTS]
        for asset in assets:
            ask(asset)
        time.sleep(first_pause)
        while True:
            page = ask("/")
            ask("/api/history")
            for uid in re.findall('data-plot="([^"]+)" data-auto', page)[:_PLOTS]:
                ask(f"/api/runs/{uid}/scalars")
            time.sleep(_REFRESH_SECONDS)
