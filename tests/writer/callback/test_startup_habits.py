"""What startup files of beamlines do with a `TiledWriter`, done with theirs and with ours.

Written after reading public profile collections; each test is one habit, with the same result for either class.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import numpy
import pytest
from bluesky import RunEngine
from bluesky.callbacks import tiled_writer as older
from bluesky.callbacks.buffer import BufferingWrapper
from bluesky_tiled_plugins.writing import tiled_writer as peer
from ophyd.sim import SynSignalWithRegistry, det, motor

from tiledwriter import TiledWriter
from tiledwriter.testing import TiledServer

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.parametrize("writer_class", [peer.TiledWriter, TiledWriter]),
]


@pytest.fixture
def raw(tiled_server: TiledServer) -> Any:
    """A beamline's container, below the root."""
    beamline = tiled_server.client().create_container(f"beamline-{uuid.uuid4()}")
    return beamline.create_container("raw")


def frames(readable: Path, name: str = "camera") -> SynSignalWithRegistry:
    images = iter(numpy.arange(600, dtype=float).reshape(50, 3, 4))
    return SynSignalWithRegistry(func=lambda: next(images), name=name, save_path=str(readable))


class RepairedIds(older.RunNormalizer):
    """Events of a faulty detector all name one datum; those that are missing are made up at the stop."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.resource_uid = ""
        self.datums = self.events = 0

    def resource(self, doc: Any) -> Any:
        self.resource_uid = doc["uid"]
        return super().resource(doc)

    def datum(self, doc: Any) -> Any:
        doc = copy.deepcopy(doc)
        doc["datum_id"] = f"{self.resource_uid}/{self.datums}"
        doc["datum_kwargs"].pop("index", None)
        self.datums += 1
        return super().datum(doc)

    def event(self, doc: Any) -> Any:
        doc["data"]["camera"] = f"{self.resource_uid}/{doc['seq_num'] - 1}"
        self.events += 1
        return super().event(doc)

    def stop(self, doc: Any) -> Any:
        doc = copy.deepcopy(doc)
        for number in range(self.datums, self.events):
            made_up = {"resource": self.resource_uid, "datum_id": f"{self.resource_uid}/{number}", "datum_kwargs": {}}
            super().datum(made_up)
        doc["note"] = "datum ids were repaired"
        return super().stop(doc)


def test_a_normalizer_in_a_buffer_that_makes_up_datums_at_the_stop(
    writer_class: Any, raw: Any, engine: RunEngine, readable: Path, tmp_path: Path
) -> None:
    """Of a detector's datums only the first one comes, and all events name the same."""
    writer = BufferingWrapper(
        writer_class(client=raw, normalizer=RepairedIds, backup_directory=str(tmp_path / "backup"), patches={})
    )
    is_first = True

    def without_further_datums(name: str, doc: Any) -> None:
        nonlocal is_first
        if name != "datum" or is_first:
            writer(name, {**doc, "filled": {}} if name == "event" else doc)
        is_first = is_first and name != "datum"

    engine.subscribe(without_further_datums)
    (uid,) = engine(bp.scan([frames(readable)], motor, -1, 1, 3))
    writer.shutdown()
    run = raw[uid]
    assert run.metadata["stop"]["note"] == "datum ids were repaired"
    assert run["primary"]["camera"].read().shape[0] == 3
    assert not list(tmp_path.glob("backup/*"))


def test_corrections_with_a_client_that_has_a_header_of_its_own(
    writer_class: Any, raw: Any, engine: RunEngine, readable: Path
) -> None:
    """Types that devices declare wrongly, a spec that is not known, and an object with `name` and `insert`."""

    def correct_types(doc: dict[str, Any]) -> dict[str, Any]:
        for key, described in doc["data_keys"].items():
            if key == "camera":
                described["dtype_str"] = "<f8"
            elif key.startswith("motor"):
                described.update(dtype="number", shape=[])
        return doc

    def correct_resource(doc: dict[str, Any]) -> dict[str, Any]:
        doc["spec"] = "LAB_FRAMES"
        doc["resource_kwargs"].update(chunk_shape=(1,), join_method="stack")
        return doc

    raw.context.http_client.headers["tiled-qos"] = "acquisition"
    try:
        writer = writer_class(
            raw,
            patches={"descriptor": correct_types, "resource": correct_resource},
            spec_to_mimetype={"LAB_FRAMES": "multipart/related;type=application/x-npy"},
        )

        class Inserter:
            name = "beamline"

            def insert(self, name: str, doc: Any) -> None:
                writer(name, doc)

        inserter = Inserter()
        engine.subscribe(inserter.insert)
        (uid,) = engine(bp.scan([frames(readable)], motor, -1, 1, 3))
    finally:
        del raw.context.http_client.headers["tiled-qos"]
    data = raw[uid]["primary"].read()
    assert data["camera"].values[:, 0, 0].tolist() == [12, 24, 36]
    assert data["motor"].values.tolist() == [-1, 0, 1]


def test_a_wrapper_that_lets_no_error_pass(writer_class: Any, raw: Any, engine: RunEngine) -> None:
    """A run that cannot be written costs neither the scan nor the next run."""
    errors: list[str] = []

    def refuse_once(doc: dict[str, Any]) -> dict[str, Any]:
        if doc["name"] == "primary" and not errors:
            raise RuntimeError("as the test wants it")
        return doc

    writer = writer_class(raw, patches={"descriptor": refuse_once})

    def safely(name: str, doc: Any) -> None:
        try:
            writer(name, doc)
        except Exception as error:
            errors.append(str(error))

    engine.subscribe(safely)
    engine(bp.count([det], 2))
    (uid,) = engine(bp.count([det], 2))
    assert errors[0] == "as the test wants it"
    assert raw[uid].metadata["stop"]["exit_status"] == "success"
    assert len(raw[uid]["primary"].read()["det"]) == 2


def test_a_subclass_that_completes_the_start_document(writer_class: Any, raw: Any, engine: RunEngine) -> None:
    class Completing(writer_class):  # type: ignore[misc]
        def __init__(self, client: Any, parent: str, **options: Any) -> None:
            super().__init__(client, **options)
            self.parent = parent

        def __call__(self, name: str, doc: Any) -> None:
            if name == "start":
                doc = {**doc, "parent_run_uid": self.parent, "tiled_specs": ["Reduced"]}
            super().__call__(name, doc)

    engine.subscribe(Completing(raw, "another", batch_size=1))
    (uid,) = engine(bp.count([det], 2))
    assert raw[uid].metadata["start"]["parent_run_uid"] == "another"
    assert "Reduced" in {spec.name for spec in raw[uid].specs}


def test_two_writers_with_the_paths_of_two_sites(
    writer_class: Any, raw: Any, engine: RunEngine, readable: Path
) -> None:
    """The beamline's own server, and a central one that sees the files elsewhere."""
    elsewhere = "/central"

    def move(doc: dict[str, Any]) -> dict[str, Any]:
        doc["root"] = doc["root"].replace(str(readable), elsewhere)
        return doc

    central = raw.create_container("central")
    engine.subscribe(writer_class(raw, batch_size=1))
    engine.subscribe(writer_class(central, batch_size=1, patches={"resource": move}))
    (uid,) = engine(bp.scan([frames(readable)], motor, -1, 1, 3))
    uris: list[list[str]] = []
    for container in (raw, central):
        node = container.new_variation(include_data_sources=True)[uid]["primary"]["camera"]
        uris.append([asset.data_uri for asset in node.data_sources()[0].assets])
    assert [uri.replace(str(readable), elsewhere) for uri in uris[0]] == uris[1]
    assert len(uris[0]) == 3


def test_a_client_is_made_by_the_class(
    writer_class: Any, tiled_server: TiledServer, engine: RunEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the key in the environment, as queue servers have it."""
    monkeypatch.setenv("TILED_API_KEY", tiled_server.api_key)
    make: Callable[..., Any] = writer_class.from_uri
    writer = make(tiled_server.uri, batch_size=1, max_array_size=-1)
    token = engine.subscribe(writer)
    (uid,) = engine(bp.count([det], 2))
    engine.unsubscribe(token)
    writer.client.context.http_client.close()
    assert len(tiled_server.client()[uid]["primary"].read()["det"]) == 2
