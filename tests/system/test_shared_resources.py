"""A detector that is staged once for several runs: each run has its own frames, by the service and in process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import h5py
import numpy
import pytest
from bluesky import RunEngine
from event_model import DocumentNames, compose_run
from ophyd.sim import SynSignalWithRegistry

from tiledbroker import ZMQPublisher
from tiledwriter import TiledWriter
from tiledwriter.testing import SupervisorProcess, TiledServer

Subscribe = Callable[[], Callable[[str], Any]]

pytestmark = pytest.mark.usefixtures("tiled_server")


@pytest.fixture
def by_service(engine: RunEngine, tiled_server: TiledServer, tmp_path: Path) -> Iterator[Subscribe]:
    with SupervisorProcess(
        tmp_path / "journals", tiled_server, environment={"TILEDWRITER_QUIET_PERIOD": "1"}
    ) as process:
        publishers: list[ZMQPublisher] = []

        def subscribe() -> Callable[[str], Any]:
            for publisher in publishers:  # as after a restart
                engine.unsubscribe(token.pop())
                publisher.close(10)
            publisher = ZMQPublisher(process.address, spool_dir=tmp_path / "spool", on_error="raise")
            publishers[:] = [publisher]
            token.append(engine.subscribe(publisher))

            def wait(uid: str) -> Any:
                assert publisher.wait_written(uid, 60)
                assert publisher.status().unrouted == 0
                return tiled_server.client()[uid]

            return wait

        token: list[int] = []
        yield subscribe
        for publisher in publishers:
            publisher.close(0)


@pytest.fixture
def in_process(engine: RunEngine, tiled_server: TiledServer) -> Subscribe:
    tokens: list[int] = []

    def subscribe() -> Callable[[str], Any]:
        for token in tokens:
            engine.unsubscribe(token)
        tokens[:] = [engine.subscribe(TiledWriter(tiled_server.client()))]
        return lambda uid: tiled_server.client()[uid]

    return subscribe


@pytest.fixture(params=["by_service", "in_process"])
def subscribe(request: pytest.FixtureRequest) -> Subscribe:
    return request.getfixturevalue(request.param)


@pytest.fixture
def image(readable: Path, tmp_path: Path) -> Any:
    """A device that writes an NPY file per image, each brighter than the one before."""
    brightness = itertools.count(-1)  # the first one when the device is made
    folder = readable / tmp_path.name
    folder.mkdir(exist_ok=True)
    return SynSignalWithRegistry(
        func=lambda: numpy.full((3, 4), float(next(brightness))), name="img", save_path=str(folder)
    )


def brightnesses(run: Any, key: str = "img") -> list[float]:
    return run["primary"].read()[key].values.reshape(-1, 12)[:, 0].tolist()


def uids_of(result: Any) -> list[str]:
    return list(getattr(result, "run_start_uids", result))


def test_runs_one_after_the_other(engine: RunEngine, subscribe: Subscribe, image: Any) -> None:
    read = subscribe()

    @bpp.stage_decorator([image])
    def plan() -> Iterator[Any]:
        for count in (2, 3, 1):
            yield from bps.open_run()
            for _ in range(count):
                yield from bps.trigger_and_read([image])
            yield from bps.close_run()

    runs = [read(uid) for uid in uids_of(engine(plan()))]
    assert [brightnesses(run) for run in runs] == [[0.0, 1.0], [2.0, 3.0, 4.0], [5.0]]
    assert all(run.validate() for run in runs)


def test_runs_that_are_open_at_the_same_time(engine: RunEngine, subscribe: Subscribe, image: Any) -> None:
    read = subscribe()

    @bpp.stage_decorator([image])
    def plan() -> Iterator[Any]:
        for run in "ab":
            yield from bpp.set_run_key_wrapper(bps.open_run(), run)
        for run in "abba":
            yield from bpp.set_run_key_wrapper(bps.trigger_and_read([image]), run)
        for run in "ab":
            yield from bpp.set_run_key_wrapper(bps.close_run(), run)

    one, two = (read(uid) for uid in uids_of(engine(plan())))
    assert brightnesses(one) == [0.0, 3.0]
    assert brightnesses(two) == [1.0, 2.0]


def test_a_subscription_that_is_made_anew_between_the_runs(engine: RunEngine, subscribe: Subscribe, image: Any) -> None:
    read = subscribe()
    image.stage()
    (first,) = uids_of(engine(counted(image, 2)))
    assert brightnesses(read(first)) == [0.0, 1.0]
    read = subscribe()
    (second,) = uids_of(engine(counted(image, 2)))
    image.unstage()
    assert brightnesses(read(second)) == [2.0, 3.0]


@bpp.run_decorator()
def counted(device: Any, count: int) -> Iterator[Any]:
    for _ in range(count):
        yield from bps.trigger_and_read([device])


def test_a_subscription_that_missed_the_resource(engine: RunEngine, subscribe: Subscribe, image: Any) -> None:
    image.stage()
    engine(counted(image, 1))  # nobody listens
    read = subscribe()
    (uid,) = uids_of(engine(counted(image, 2)))
    image.unstage()
    run = read(uid)
    assert run["primary"].base["internal"].read()["seq_num"].tolist() == [1, 2]
    assert any("'img'" in note and "never came" in note for note in run.metadata["notes"])


def test_stream_datums_of_an_earlier_runs_stream_resource(
    engine: RunEngine, subscribe: Subscribe, readable: Path, tmp_path: Path
) -> None:
    # The RunEngine does not do that yet, other sources of documents do.
    read = subscribe()
    path = readable / f"{tmp_path.name}.h5"
    with h5py.File(path, "w") as file:
        file["/sum"] = numpy.arange(5.0)
    one, two = compose_run(), compose_run()
    key = {"source": "test", "dtype": "number", "dtype_numpy": "<f8", "shape": [], "external": "STREAM:"}
    streams = [run.compose_descriptor(name="primary", data_keys={"sum": key}) for run in (one, two)]
    resource, compose_datum = one.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri=f"file://localhost{path}",
        data_key="sum",
        parameters={"dataset": "/sum", "chunk_shape": [1]},
    )
    ranges = [{"start": 0, "stop": 2}, {"start": 2, "stop": 5}]
    datums = [
        compose_datum(indices=indices, seq_nums=seq_nums, descriptor=stream.descriptor_doc)
        for indices, seq_nums, stream in zip(
            ranges, [{"start": 1, "stop": 3}, {"start": 1, "stop": 4}], streams, strict=True
        )
    ]
    documents: list[tuple[str, Any]] = []
    for run, stream, datum in zip((one, two), streams, datums, strict=True):
        documents += [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
        documents += [("stream_resource", resource)] if run is one else []
        documents += [("stream_datum", datum), ("stop", run.compose_stop())]
    for name, document in documents:
        engine.dispatcher.process(DocumentNames[name], document)
    found = [read(run.start_doc["uid"])["primary"].read()["sum"].values.tolist() for run in (one, two)]
    assert found == [[0.0, 1.0], [2.0, 3.0, 4.0]]
