"""Fixtures for all tests: real servers, and a watch over what tests leave behind."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import psutil
import pytest
from bluesky import RunEngine
from hypothesis import HealthCheck, settings
from log_site import LogSite
from transports import TRANSPORTS, WIRES, Transport
from warm import end_warm_process, forking, start_fork_server, start_process, warm_pids

from tiledbroker import ZMQPublisher
from tiledbroker.supervisor import WorkerCommand, _fork_server
from tiledwriter._journald import JournaldHandler
from tiledwriter.mapping import WritingOptions
from tiledwriter.testing import ServerProcess, Storage, SupervisorProcess, TiledServer
from tiledwriter.worker import TiledAddress, WorkerOptions, run_worker

# Files that take longest, the longest first. The processes of pytest-xdist begin with them, so that none is left alone
# with one of them at the end.
LONGEST = (
    "test_compare.py",
    "test_chaos.py",
    "test_site_log_hosts.py",
    "test_changes_by_others.py",
    "test_catalog.py",
    "test_exit_codes.py",
    "test_standby.py",
    "test_kills.py",
    "test_replay.py",
    "test_chaos_log.py",
    "test_crash_points.py",
    "test_supervision.py",
    "test_targets.py",
    "test_outages.py",
    "test_claim_keeper.py",
    "test_fence.py",
    "test_storages.py",
    "test_verify.py",
    "test_callback.py",
    "test_site_log_faults.py",
    "test_places.py",
    "test_lost_answers.py",
    "test_http_service.py",
    "test_hostile_uids.py",
    "test_journal_troubles.py",
    "test_check.py",
    "test_delivery.py",
    "test_jetstream_source.py",
    "test_docs.py",
    "test_bench.py",
    "test_bad_files.py",
    "test_service.py",
    "test_lagging_reads.py",
    "test_transports.py",
    "test_http_process.py",
    "test_open_runs.py",
    "test_security.py",
    "test_status.py",
    "test_journal_copies.py",
    "test_reload.py",
    "test_settings_printed.py",
    "test_input_paths.py",
    "test_end_to_end.py",
    "test_writing.py",
    "test_finished.py",
    "test_shipper.py",
    "test_help_examples.py",
    "test_retry.py",
    "test_bit_flips.py",
    "test_encryption.py",
    "test_values.py",
    "test_jetstream_link.py",
    "test_shared_resources.py",
)


# Tests talk to servers of their own; what a proxy of this host would answer is none of their business.
for _variable in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[_variable]


# A busy machine is slow, and that is no fault of what is tested.
settings.register_profile("busy machine", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


# While thousands of tests are collected, the garbage collector finds hardly anything, and takes seconds for it.
gc.disable()


def pytest_collection_finish() -> None:
    """Freeze what collection has made: the garbage collector would take half a second whenever it looked at it."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files first, each file's in their order."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="session", autouse=True)
def warm_process() -> Iterator[None]:
    """Start servers and commands as forks of a process that has imported their modules, as soon as one is started."""

    def launch(server: ServerProcess, command: Sequence[str], output: IO[bytes]) -> Any:
        return start_process(command, stdout=output, stderr=subprocess.STDOUT, env=server._environment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServerProcess, "_launch", launch)
        popen = SimpleNamespace(**{**vars(subprocess), "Popen": start_fork_server})
        patch.setattr(_fork_server, "subprocess", popen)
        with forking():
            yield
    end_warm_process()


@pytest.fixture
def real_processes() -> Iterator[None]:
    """Start servers and commands as users do, in this test."""
    with forking(enabled=False):
        yield


@pytest.fixture(scope="session")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that detectors may write to and that the Tiled server may read."""
    return tmp_path_factory.mktemp("detectors")


@pytest.fixture(scope="session")
def tiled_server(tmp_path_factory: pytest.TempPathFactory, readable: Path) -> Iterator[TiledServer]:
    """A Tiled server for all tests that do not harm it."""
    with TiledServer(tmp_path_factory.mktemp("tiled"), readable=[readable, Path("/tmp")]) as server:
        yield server


@pytest.fixture(scope="session")
def server_on(
    tiled_server: TiledServer, tmp_path_factory: pytest.TempPathFactory, readable: Path
) -> Iterator[Callable[[Storage], TiledServer]]:
    """Gives the Tiled server on a kind of storage, which is started once, for all tests that do not harm it."""
    with contextlib.ExitStack() as started:
        servers: dict[Storage, TiledServer] = {"sqlite": tiled_server}

        def server(storage: Storage) -> TiledServer:
            if storage not in servers:
                before = _processes()
                directory = tmp_path_factory.mktemp(storage)
                made = TiledServer(directory, readable=[readable, Path("/tmp")], storage=storage)
                servers[storage] = started.enter_context(made)
                _kept.update(_processes() - before)
            return servers[storage]

        yield server


@pytest.fixture(params=["sqlite", "duckdb", "postgresql"])
def storage_server(request: pytest.FixtureRequest, server_on: Callable[[Storage], TiledServer]) -> TiledServer:
    """A Tiled server on each kind of storage, one after the other, for all tests that do not harm it.

    Only one run at a time may be written to DuckDB, and nothing be read meanwhile.
    """
    return server_on(request.param)


@pytest.fixture
def own_tiled_server(tmp_path: Path, readable: Path) -> Iterator[TiledServer]:
    """A Tiled server for one test, to be stopped and killed at will."""
    with TiledServer(tmp_path / "tiled", readable=[readable, Path("/tmp")]) as server:
        yield server


@pytest.fixture
def supervisor(tmp_path: Path, tiled_server: TiledServer) -> Iterator[SupervisorProcess]:
    """A supervisor that is running, with a short quiet period so that restarts do not take long."""
    environment = {"TILEDWRITER_QUIET_PERIOD": "1"}
    with SupervisorProcess(tmp_path / "journals", tiled_server, environment=environment) as process:
        yield process


@pytest.fixture
def publisher_to(tmp_path: Path) -> Iterator[Callable[[SupervisorProcess], ZMQPublisher]]:
    """Makes publishers with spools of their own, which are closed at the end."""
    made: list[ZMQPublisher] = []

    def make(supervisor: SupervisorProcess) -> ZMQPublisher:
        spool = tmp_path / f"spool-{len(made)}"
        made.append(ZMQPublisher(supervisor.address, spool_dir=spool, on_error="raise"))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close(timeout=0)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Transport]:
    """Each transport, one after the other, for what must not depend on it."""
    with contextlib.closing(TRANSPORTS[request.param](tmp_path)) as made:
        yield made


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Transport]:
    """Each transport on which publishers and ingest hosts are connected to each other."""
    with contextlib.closing(WIRES[request.param](tmp_path)) as made:
        yield made


@pytest.fixture
def worker_command(tiled_server: TiledServer, monkeypatch: pytest.MonkeyPatch) -> WorkerCommand:
    """What workers run that write to the server."""
    monkeypatch.setenv("TILED_API_KEY", tiled_server.api_key)
    options = WorkerOptions(TiledAddress(tiled_server.uri), WritingOptions(quiet_period=1.0))
    return WorkerCommand(partial(run_worker, options=options), ("tiledwriter.worker._preload",))


@pytest.fixture
def log_site(tmp_path: Path) -> Iterator[LogSite]:
    """A site's log on one node."""
    with LogSite(tmp_path / "log") as site:
        yield site


@pytest.fixture
def engine() -> Iterator[RunEngine]:
    """A RunEngine whose thread ends with the test."""
    engine = RunEngine({})
    yield engine
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join()
    engine.loop.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"Only root can mount a small file system: {made.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


@pytest.fixture(autouse=True)
def logging_is_put_back() -> Iterator[None]:
    """Undo what a command has set up that was called in this process: its stream is closed after the test."""
    root = logging.getLogger()
    levels = {logger: logger.level for logger in (root, *map(logging.getLogger, ("tiledwriter", "tiledbroker")))}
    yield
    for handler in root.handlers[:]:
        # Not those of pytest, which are of types of its own.
        if type(handler) in {logging.StreamHandler, JournaldHandler}:
            root.removeHandler(handler)
    for logger, level in levels.items():
        logger.setLevel(level)


# Pids of processes that a test has started for all tests.
_kept: set[int] = set()


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves processes or threads of ours."""
    before = _processes()
    threads = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in threads and _is_ours(thread)]
    for thread in left:
        thread.join(60)
    assert not [thread for thread in left if thread.is_alive()]
    leaked = [] if os.environ.get("TILEDWRITER_TEST_KEEP") else _running(_processes() - before - _kept)
    for process in leaked:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in (*process.children(recursive=True), process):
                each.kill()
    assert not leaked


def _is_ours(thread: threading.Thread) -> bool:
    return thread.name.startswith(("tiledbroker", "tiledwriter"))


def _processes() -> set[int]:
    """Pids of those that this process has started, and that were forked for it; not of those that they have started."""
    warm = warm_pids()
    return {child for pid in (os.getpid(), *warm) for child in _children(pid)} - warm


def _children(pid: int) -> list[int]:
    """Pids of the processes that a process has started; psutil takes twenty times as long."""
    children: list[int] = []
    # The process, or a thread of it, may end meanwhile.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  twice for each of thousands of tests
            with (
                contextlib.suppress(FileNotFoundError, ProcessLookupError),
                open(f"/proc/{pid}/task/{thread}/children", "rb") as file,  # noqa: PTH123
            ):
                children += map(int, file.read().split())
    return children


def _running(pids: set[int]) -> list[psutil.Process]:
    """Those of the processes that have not ended."""
    running = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
    return running
