"""The whole path with real parts: RunEngine, publisher, supervisor, workers, Tiled, and the client people read with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy
import pytest
from bluesky import RunEngine
from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRunV3
from event_model import compose_run
from ophyd.sim import SynSignal, SynSignalWithRegistry, det, det1, motor
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from ophyd_async.sim import PatternGenerator, SimBlobDetector

from tiledbroker import RunNotWritten, ZMQPublisher, run_files
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until

pytestmark = [
    # The reading client and the simulated devices warn about themselves.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture
def publisher(supervisor: SupervisorProcess, tmp_path: Path) -> Iterator[ZMQPublisher]:
    publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool", on_error="raise")
    yield publisher
    publisher.close()


@pytest.fixture
def measure(engine: RunEngine, publisher: ZMQPublisher, tiled_server: TiledServer) -> Callable[[Any], list[Any]]:
    """Runs a plan and gives back its runs as they are read from Tiled."""
    engine.subscribe(publisher)

    def measure(plan: Any) -> list[Any]:
        uids = engine(plan)
        for uid in uids:
            assert publisher.wait_written(uid, timeout=60)
        client = tiled_server.client()
        return [client[uid] for uid in uids]

    return measure


@pytest.mark.usefixtures("real_processes")
def test_a_scan_is_read_back_as_a_bluesky_run(measure: Callable[[Any], list[Any]]) -> None:
    (run,) = measure(bp.scan([det], motor, -2, 2, 9, md={"sample": "Cu"}))
    assert isinstance(run, BlueskyRunV3)
    assert run.metadata["start"]["sample"] == "Cu"
    assert run.metadata["stop"]["exit_status"] == "success"
    data = run.primary.read()
    assert data.sizes == {"time": 9}
    numpy.testing.assert_allclose(data["motor"], numpy.linspace(-2, 2, 9))
    assert data["det"].values.max() == 1.0
    assert run.validate()


def test_images_in_hdf5_are_aligned_with_scalars(
    engine: RunEngine, measure: Callable[[Any], list[Any]], readable: Path
) -> None:
    with init_devices():
        blob = SimBlobDetector(StaticPathProvider(UUIDFilenameProvider(), readable), PatternGenerator())
    (run,) = measure(bp.scan([blob, det], motor, -1, 1, 5))
    data = run.primary.read()
    assert data["blob"].shape == (5, 1, 240, 320)
    assert data["blob"].dtype == numpy.uint8
    assert data["blob"].dims[0] == "time"
    assert data["motor"].shape == (5,)
    numpy.testing.assert_array_equal(data["blob"].sum(axis=(1, 2, 3)), data["blob-sum"])
    assert run.validate()


def test_images_of_legacy_resources_are_aligned_with_scalars(
    measure: Callable[[Any], list[Any]], readable: Path
) -> None:
    frames = iter(numpy.arange(4 * 12, dtype=float).reshape(4, 3, 4))
    camera = SynSignalWithRegistry(
        func=lambda: next(frames, numpy.zeros((3, 4))), name="camera", save_path=str(readable)
    )
    (run,) = measure(bp.scan([camera], motor, -1, 1, 3))
    data = run.primary.read()
    assert data["camera"].shape == (3, 3, 4)
    # The first frame is the one that the signal computed when it was made.
    numpy.testing.assert_array_equal(data["camera"], numpy.arange(12, 48, dtype=float).reshape(3, 3, 4))
    assert run.validate()


def test_interleaved_runs_do_not_mix(measure: Callable[[Any], list[Any]]) -> None:
    @bpp.set_run_key_decorator("outer")
    @bpp.run_decorator(md={"which": "outer"})
    def outer() -> Any:
        yield from bpp.set_run_key_wrapper(bpp.run_wrapper(inner(), md={"which": "inner"}), "inner")

    def inner() -> Any:
        for _ in range(6):
            yield from bpp.set_run_key_wrapper(bps.trigger_and_read([det]), "outer")
            yield from bpp.set_run_key_wrapper(bps.trigger_and_read([det1]), "inner")

    runs = {run.metadata["start"]["which"]: run for run in measure(outer())}
    assert set(runs["outer"].primary.read().data_vars) == {"det"}
    assert set(runs["inner"].primary.read().data_vars) == {"det1"}
    assert list(runs["outer"].primary["seq_num"].read()) == list(range(1, 7))
    assert list(runs["inner"].primary["seq_num"].read()) == list(range(1, 7))


def test_rows_come_in_journal_order_after_a_rewind(publisher: ZMQPublisher, tiled_server: TiledServer) -> None:
    bundle = compose_run()
    data_keys = {"x": {"source": "s", "dtype": "number", "shape": []}}
    stream = bundle.compose_descriptor(name="primary", data_keys=data_keys)
    publisher("start", bundle.start_doc)
    publisher("descriptor", stream.descriptor_doc)
    # A pause in mid-scan repeats the points since the last checkpoint under their old numbers.
    for i, seq_num in enumerate([1, 2, 3, 2, 3, 4]):
        times = {"time": 1000.0 + i, "timestamps": {"x": 1000.0 + i}}
        publisher("event", stream.compose_event(data={"x": float(i)}, seq_num=seq_num, **times))
    publisher("stop", bundle.compose_stop())
    assert publisher.wait_written(bundle.start_doc["uid"], timeout=60)
    run = tiled_server.client()[bundle.start_doc["uid"]]
    assert list(run.primary["seq_num"].read()) == [1, 2, 3, 2, 3, 4]
    assert list(run.primary["x"].read()) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_plan_can_read_its_run_back(engine: RunEngine, publisher: ZMQPublisher, tiled_server: TiledServer) -> None:
    engine.subscribe(publisher)
    (uid,) = engine(bp.count([det], 3))
    assert publisher.wait_written(uid, timeout=60)
    assert tiled_server.client()[uid].primary["det"].read().shape == (3,)
    # Asked again, and by a publisher that did not make it.
    assert publisher.wait_written(uid, timeout=60)


def test_internal_arrays_are_stored_on_sqlite_as_array_nodes(measure: Callable[[Any], list[Any]]) -> None:
    waveform = SynSignal(func=lambda: numpy.arange(5.0), name="waveform")
    (run,) = measure(bp.count([waveform], 4))
    numpy.testing.assert_array_equal(run.primary.read()["waveform"], numpy.tile(numpy.arange(5.0), (4, 1)))


def test_a_run_that_cannot_be_written_is_in_quarantine_and_others_are_not(
    publisher: ZMQPublisher, supervisor: SupervisorProcess, tiled_server: TiledServer, engine: RunEngine
) -> None:
    engine.subscribe(publisher)
    publisher("start", {"uid": "bad", "time": 1.0})
    publisher("descriptor", {"uid": "bad-d", "run_start": "bad", "name": "primary", "time": 1.0})  # no data_keys
    publisher("stop", {"uid": "bad-s", "run_start": "bad", "time": 2.0, "exit_status": "success"})
    with pytest.raises(RunNotWritten, match="data_keys"):
        publisher.wait_written("bad", timeout=60)
    with journal_of(supervisor.journal_dir, "bad") as journal:
        assert journal.names() == {"start": 1, "descriptor": 1, "stop": 1}
        assert any("Traceback" in str(entry.detail.get("traceback")) for entry in journal.history())
    (uid,) = engine(bp.count([det], 2))
    assert publisher.wait_written(uid, timeout=60)
    assert "stop" not in tiled_server.client()["bad"].metadata


def test_everything_published_before_a_supervisor_runs_arrives_when_one_does(
    engine: RunEngine, tmp_path: Path, tiled_server: TiledServer
) -> None:
    process = SupervisorProcess(tmp_path / "journals", tiled_server)
    publisher = ZMQPublisher(process.address, spool_dir=tmp_path / "spool", on_error="raise")
    try:
        engine.subscribe(publisher)
        (uid,) = engine(bp.count([det], 200))
        status = publisher.status()
        assert (status.connected, status.waiting) == (False, 203)
        assert not publisher.flush(timeout=0.1)
        with process:
            assert publisher.flush(timeout=60)
            assert publisher.wait_written(uid, timeout=60)
            assert publisher.status().waiting == 0
            wait_until(lambda: not run_files(tmp_path / "spool"), 60, "the spool is empty")
        assert list(tiled_server.client()[uid].primary["seq_num"].read()) == list(range(1, 201))
    finally:
        publisher.close()


def test_the_same_documents_published_again_change_nothing(
    publisher: ZMQPublisher, engine: RunEngine, tiled_server: TiledServer
) -> None:
    documents: list[tuple[str, Any]] = []
    engine.subscribe(lambda name, doc: documents.append((name, doc)))
    (uid,) = engine(bp.count([det], 5))
    for _ in range(2):
        for name, doc in documents:
            publisher(name, doc)
        assert publisher.flush(timeout=60)
        assert publisher.wait_written(uid, timeout=60)
    assert list(tiled_server.client()[uid].primary["seq_num"].read()) == [1, 2, 3, 4, 5]


def test_the_caller_s_documents_are_neither_kept_nor_changed(
    publisher: ZMQPublisher, tiled_server: TiledServer
) -> None:
    counts = [1, 2]
    start = {"uid": "kept", "time": 1.0, "sample": {"counts": counts}}
    publisher("start", start)
    assert start == {"uid": "kept", "time": 1.0, "sample": {"counts": [1, 2]}}
    counts.append(3)
    publisher("stop", {"uid": "s", "run_start": "kept", "time": 2.0, "exit_status": "success"})
    assert publisher.wait_written("kept", timeout=60)
    assert list(tiled_server.client()["kept"].metadata["start"]["sample"]["counts"]) == [1, 2]
