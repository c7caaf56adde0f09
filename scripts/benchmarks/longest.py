"""The longest call of the callback where it is hardest: each side in a process of its own.

A thread that is ready to go on may have to wait for a processor, which the system has given to another process, or to
another thread of its own. How long it did is in what Linux says of each thread, so there is a second figure without it.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bluesky.callbacks.zmq import Publisher
from runs import supervisor_without_tiled

from tiledbroker import ZMQPublisher

from .callback import PUBLISHER, proxy_process
from .documents import run_of
from .rounds import OURS, Figure, Rounds

BUDGET = 2.0
EVENTS = 1000
QUICK_EVENTS = 100
WITHOUT_WAITING = ", without waiting for a processor"
PAUSE_SECONDS = 0.001  # between documents
LEFT_RUNS = 50
EVENTS_OF_LEFT_RUNS = 100
SYNC_SECONDS = 0.3

# Preloaded before the C library.
SLOW_DISK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

static void wait_for_disk(void) { usleep(%d); }

int fsync(int file) {
    wait_for_disk();
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(file);
}

int fdatasync(int file) {
    wait_for_disk();
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(file);
}

int msync(void *start, size_t length, int flags) {
    if (flags & MS_SYNC) wait_for_disk();
    return ((int (*)(void *, size_t, int)) dlsym(RTLD_NEXT, "msync"))(start, length, flags);
}
"""


@dataclass(frozen=True)
class Publishing:
    """What the process that publishes is to do."""

    side: str
    address: str
    spool: Path
    events: int

    def connect(self) -> Callable[..., Any]:
        return ZMQPublisher(self.address, spool_dir=self.spool) if self.side == OURS else Publisher(self.address)


@dataclass(frozen=True)
class Call:
    """How long a call took, and for how much of that its thread waited for a processor."""

    seconds: float
    waited_seconds: float


@dataclass(frozen=True)
class Condition:
    """Under which a process publishes, and which of its calls count.

    Attributes
    ----------
    publish
        What the process does: it says that it is ready, waits until it may go on, and sends its calls that count.
    end_goes
        The other end goes away when the process is ready.
    left_runs
        Number of runs that another process has left in the spool, which ours adopts.
    slow_disk
        Every sync takes `SYNC_SECONDS`.
    """

    publish: Callable[[Connection, Publishing], None]
    end_goes: bool = False
    left_runs: int = 0
    slow_disk: bool = False


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """The longest call in microseconds, of one run at 1 kHz, under each condition."""
    events = QUICK_EVENTS if quick else EVENTS
    for what, condition in CONDITIONS.items():
        sides = {
            side: lambda side=side, what=what, condition=condition: _longest_calls(what, side, condition, events)
            for side in (OURS, PUBLISHER)
        }
        for title, values in Rounds(sides).run(rounds).items():
            budget = None if title.endswith(WITHOUT_WAITING) else BUDGET
            yield Figure(title, "us", values, budget, PUBLISHER)


def _longest_calls(what: str, side: str, condition: Condition, events: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place, _other_end(side, Path(place), condition.left_runs) as (address, end):
        here, there = multiprocessing.Pipe()
        task = Publishing(side, address, Path(place) / "spool", events)
        environment = {"LD_PRELOAD": str(_make_slow_disk(Path(place)))} if condition.slow_disk else {}
        with _environment(environment):
            process = multiprocessing.get_context("spawn").Process(target=condition.publish, args=(there, task))
            process.start()
        try:
            assert here.recv() == "ready"
            if condition.end_goes:
                end()
            here.send("go")
            calls: list[Call] = here.recv()
        finally:
            process.kill()
            process.join()
    return {
        what: 1e6 * max(call.seconds for call in calls),
        what + WITHOUT_WAITING: 1e6 * max(call.seconds - call.waited_seconds for call in calls),
    }


@contextmanager
def _other_end(side: str, place: Path, left_runs: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a side publishes to: its address, and a function that ends it."""
    if side == PUBLISHER:
        with proxy_process() as (process, port):
            yield f"127.0.0.1:{port}", process.kill
        return
    supervisor = supervisor_without_tiled(place / "journals")
    if left_runs:
        absent = ZMQPublisher(supervisor.address, spool_dir=place / "spool")
        for document in (document for _ in range(left_runs) for document in run_of(EVENTS_OF_LEFT_RUNS)):
            absent(*document)
        absent.close(timeout=0)
    with supervisor:
        yield supervisor.address, supervisor.kill


def _make_slow_disk(place: Path) -> Path:
    """Compile a library whose syncs are slow."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("A slow disk is a C library, and there is no compiler: install one, such as Debian's gcc.")
    source, library = place / "slow_disk.c", place / "slow_disk.so"
    source.write_text(SLOW_DISK % round(1e6 * SYNC_SECONDS))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# In the process that publishes


def _publish_first_document(other: Connection, task: Publishing) -> None:
    callback, [first, *_] = task.connect(), run_of(1)
    other.send("ready")
    other.recv()
    other.send([_time_call(callback, first)])


def _publish_last_half(other: Connection, task: Publishing) -> None:
    callback, emitted = task.connect(), run_of(task.events)
    half = len(emitted) // 2
    for document in emitted[:half]:
        _time_call(callback, document)
    other.send("ready")
    other.recv()
    other.send([_time_call(callback, document) for document in emitted[half:]])


def _connect_and_publish(other: Connection, task: Publishing) -> None:
    emitted = run_of(task.events)
    other.send("ready")
    other.recv()
    callback = task.connect()
    other.send([_time_call(callback, document) for document in emitted])


def _time_call(callback: Callable[..., Any], document: tuple[str, Any]) -> Call:
    waited = _time_waited()
    began = time.perf_counter()
    callback(*document)
    seconds = time.perf_counter() - began
    call = Call(seconds, min(_time_waited() - waited, seconds))
    time.sleep(PAUSE_SECONDS)
    return call


def _time_waited() -> float:
    """Seconds for which this thread was ready to run and had no processor, since its start."""
    return 1e-9 * int(Path("/proc/thread-self/schedstat").read_text().split()[1])


CONDITIONS = {
    "the first document of a process": Condition(_publish_first_document),
    "the second half of a run, its stop included, when the other end has gone": Condition(
        _publish_last_half, end_goes=True
    ),
    f"a run from its start on, while {LEFT_RUNS} left runs are adopted": Condition(
        _connect_and_publish, left_runs=LEFT_RUNS
    ),
    f"a run from its start on, on a disk whose every sync takes {1000 * SYNC_SECONDS:.0f} ms": Condition(
        _connect_and_publish, slow_disk=True
    ),
}
