"""Switching from an in-process writer: both in parallel, waiting for Tiled in a plan, and two catalogs at a time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import pytest
from bluesky import RunEngine
from bluesky.callbacks.tiled_writer import TiledWriter
from ophyd.sim import det, motor
from pages import HOW_TO, block_with
from tiled.client import from_uri

from tiledbroker import ZMQPublisher
from tiledwriter.testing import SupervisorProcess, TiledServer

SWITCH = HOW_TO / "switch-from-tiledwriter.md"

pytestmark = [
    # The reading client and the simulated devices warn about themselves.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(autouse=True)
def clients_are_collected() -> Iterator[None]:
    """Leave no client of Tiled, which nobody can close, to another module's test."""
    yield
    gc.collect()


@contextmanager
def publisher_to(supervisor: SupervisorProcess, spool: Path) -> Iterator[ZMQPublisher]:
    publisher = ZMQPublisher(supervisor.address, spool_dir=spool, on_error="raise")
    try:
        yield publisher
    finally:
        publisher.close(timeout=0)


@pytest.fixture
def server_for_two(tmp_path: Path) -> Iterator[TiledServer]:
    """A Tiled server that takes the writes of two writers at a time: with SQLite, one of them may find it locked."""
    with TiledServer(tmp_path / "tiled", storage="postgresql") as server:
        yield server


def test_the_old_writer_runs_beside_the_publisher(
    engine: RunEngine, server_for_two: TiledServer, tmp_path: Path
) -> None:
    tiled_server = server_for_two
    client = tiled_server.client()
    exec(
        block_with(SWITCH, "python", "create_container").replace(
            'from_uri("http://tiled.example:8000")', f"from_uri({tiled_server.uri!r}, api_key={tiled_server.api_key!r})"
        )
    )
    configured = block_with(SWITCH, "yaml", "tiledwriter_trial").partition(": ")[2].strip()
    container = configured.replace("http://tiled.example:8000", tiled_server.uri)
    supervisor = SupervisorProcess(tmp_path / "journals", tiled_server, options=["--tiled", container])
    with supervisor, publisher_to(supervisor, tmp_path / "spool") as publisher:
        subscribe = block_with(SWITCH, "python", "RE.subscribe(TiledWriter(client, batch_size=1))\nRE.subscribe(pub")
        # Tiled closes connections that were idle for 5 s, and a request of that writer that meets one fails: without
        # an idle one a slow host does not end its scan.
        fresh = from_uri(tiled_server.uri, api_key=tiled_server.api_key, headers={"Connection": "close"})
        exec(subscribe, {"RE": engine, "TiledWriter": TiledWriter, "client": fresh, "publisher": publisher})
        (uid,) = engine(bp.scan([det], motor, -1, 1, 5))
        fresh.context.http_client.close()
        assert publisher.wait_written(uid, 60)
    old, new = client[uid], client["tiledwriter_trial"][uid]
    assert old.metadata["start"] == new.metadata["start"]
    assert set(old) == set(new)
    assert (old["primary"].read()["det"] == new["primary"].read()["det"]).all()


def test_a_plan_reads_back_what_it_measured(
    engine: RunEngine, tiled_server: TiledServer, supervisor: SupervisorProcess, tmp_path: Path
) -> None:
    with publisher_to(supervisor, tmp_path / "spool") as publisher:
        engine.subscribe(publisher)
        names: dict[str, Any] = {"publisher": publisher, "client": tiled_server.client()}
        names.update(scan=bp.scan, det=det, motor=motor, results=[])
        for text in ("def wait_written", "def measure_and_read"):
            exec(block_with(SWITCH, "python", text), names)
        exec("def keep_result():\n    results.append((yield from measure_and_read()))", names)
        engine(names["keep_result"]())
        (data,) = names["results"]
        assert len(data["det"]) == 11


def test_each_of_two_catalogs_gets_every_run(
    engine: RunEngine, tiled_server: TiledServer, own_tiled_server: TiledServer, tmp_path: Path
) -> None:
    servers = {"old": tiled_server, "new": own_tiled_server}
    supervisors = {name: SupervisorProcess(tmp_path / name, server) for name, server in servers.items()}
    with supervisors["old"], supervisors["new"]:
        publishers = {
            name: ZMQPublisher(supervisor.address, spool_dir=tmp_path / f"{name}-spool", on_error="raise")
            for name, supervisor in supervisors.items()
        }
        try:
            for publisher in publishers.values():
                engine.subscribe(publisher)
            own_tiled_server.stop()
            (uid,) = engine(bp.scan([det], motor, -1, 1, 5))
            # The one does not wait for the other.
            assert publishers["old"].wait_written(uid, 60)
            assert not publishers["new"].wait_written(uid, 0)
            own_tiled_server.start()
            assert publishers["new"].wait_written(uid, 90)
        finally:
            for publisher in publishers.values():
                publisher.close(timeout=0)
    for server in servers.values():
        assert len(server.client()[uid]["primary"].read()["det"]) == 5
