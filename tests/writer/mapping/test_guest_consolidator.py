"""Consolidators written for bluesky-tiled-plugins: pure tests of how they are driven."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from bluesky import consolidators as older
from bluesky_tiled_plugins.writing import consolidators as peer

from tiledwriter.mapping import GuestConsolidator, Region, RunWriter, registered_consolidators
from tiledwriter.mapping._consolidators import REGISTRY
from tiledwriter.mapping._guest_consolidator import adopt_consolidator
from tiledwriter.mapping._operations import ExtendExternal, RegisterExternal, UpdateMetadata

LAB = "application/x-lab"


class LabConsolidator(peer.ConsolidatorBase):
    supported_mimetypes: ClassVar = {LAB}

    def __init__(self, stream_resource: Any, descriptor: Any) -> None:
        super().__init__(stream_resource, descriptor)
        stream_resource["parameters"].clear()
        self.assets[0].parameter = "master"
        self.device = descriptor["configuration"]["camera"]

    def adapter_parameters(self) -> dict[str, Any]:
        return {"device": self.device, "gains": (1, 2)}

    def update_from_stream_resource(self, stream_resource: Any) -> None:
        self.assets.append(peer.Asset(stream_resource["uri"], False, "master", len(self.assets)))


class CountingConsolidator(LabConsolidator):
    """Files of a mimetype of the facility's own are HDF5 for Tiled; the number of frames is in the metadata."""

    supported_mimetypes: ClassVar = "application/x-hdf5"

    @classmethod
    def get_supported_mimetype(cls, sres: Any) -> str:
        return "application/x-hdf5"

    def consume_stream_datum(self, doc: Any) -> Any:
        patch = super().consume_stream_datum(doc)
        self.metadata["frames"] = self.shape[0]
        return patch


class BrokenConsolidator(LabConsolidator):
    def consume_stream_datum(self, doc: Any) -> Any:
        raise ZeroDivisionError(doc["uid"])


@pytest.fixture(params=[peer, older])
def registry(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    registry = request.param.CONSOLIDATOR_REGISTRY
    before = dict(registry)
    yield registry
    registry.clear()
    registry.update(before)


def documents_of_a_run(resources: int = 1) -> list[tuple[str, dict[str, Any]]]:
    key = {"source": "sim", "dtype": "array", "shape": [2, 3], "dtype_numpy": "<u2", "external": "STREAM:"}
    descriptor = {
        "uid": "d",
        "run_start": "r",
        "name": "primary",
        "time": 1.0,
        "data_keys": {"image": key},
        "configuration": {"camera": {"data": {"gain": 3}, "timestamps": {}, "data_keys": {}}},
    }
    documents = [("start", {"uid": "r", "time": 1.0}), ("descriptor", descriptor)]
    for number in range(resources):
        resource = {
            "uid": f"s{number}",
            "data_key": "image",
            "mimetype": LAB,
            "uri": f"file://localhost/{number}.lab",
            "parameters": {"chunk_shape": [1, 2, 3]},
        }
        numbers = {"start": 2 * number, "stop": 2 * number + 2}
        datum = {
            "uid": f"s{number}/0",
            "stream_resource": f"s{number}",
            "descriptor": "d",
            "indices": numbers,
            "seq_nums": {name: value + 1 for name, value in numbers.items()},
        }
        documents += [("stream_resource", resource), ("stream_datum", datum)]
    return documents


def write_run(consolidators: dict[str, Any], resources: int = 1) -> tuple[list[Any], RunWriter]:
    writer = RunWriter(max_array_size=16, guessed_types=set(), consolidators=consolidators)
    operations = [operation for name, doc in documents_of_a_run(resources) for operation in writer(name, doc)]
    return [*operations, *writer.flush()], writer


def test_parameters_and_assets_are_those_of_the_facilitys_class() -> None:
    operations, _ = write_run({LAB: adopt_consolidator(LabConsolidator)}, resources=2)
    (register,) = [operation for operation in operations if isinstance(operation, RegisterExternal)]
    (extend,) = [operation for operation in operations if isinstance(operation, ExtendExternal)]
    assert register.data_source["structure"]["shape"] == [0, 2, 3]
    source = extend.data_source
    device = {"data": {"gain": 3}, "timestamps": {}, "data_keys": {}}
    assert source["parameters"] == {"device": device, "gains": [1, 2]}
    assert [(asset["data_uri"], asset["parameter"], asset["num"]) for asset in source["assets"]] == [
        ("file://localhost/0.lab", "master", 0),
        ("file://localhost/1.lab", "master", 1),
    ]
    assert source["structure"]["data_type"]["kind"] == "u"
    assert (source["management"], source["structure_family"], source["mimetype"]) == ("external", "array", LAB)
    assert (source["structure"]["shape"], extend.first, extend.stop) == ([4, 2, 3], 0, 4)
    assert Region(tuple(extend.offset), tuple(extend.shape)) == Region((0, 0, 0), (4, 2, 3))


def test_an_error_costs_its_data_key_with_class_and_method_named() -> None:
    operations, writer = write_run({LAB: adopt_consolidator(BrokenConsolidator)})
    assert not [operation for operation in operations if isinstance(operation, RegisterExternal | ExtendExternal)]
    (note,) = writer.notes
    assert "'image' are left out" in note
    assert "BrokenConsolidator.consume_stream_datum failed (ZeroDivisionError: s0/0)" in note


def test_the_class_itself_says_which_mimetypes_it_takes() -> None:
    adopted = adopt_consolidator(CountingConsolidator)
    assert adopted.handles(LAB)
    assert not adopt_consolidator(LabConsolidator).handles("text/csv")
    operations, writer = write_run({LAB: adopted})
    operations += writer("stop", {"uid": "e", "run_start": "r", "time": 1.0, "exit_status": "success"})
    (register,) = [operation for operation in operations if isinstance(operation, RegisterExternal)]
    assert register.data_source["mimetype"] == "application/x-hdf5"
    metadata = [operation.metadata for operation in operations if isinstance(operation, UpdateMetadata)]
    assert {"frames": 2} in metadata


def test_a_function_that_makes_consolidators_is_taken(registry: dict[str, Any]) -> None:
    def make(device: str, stream_resource: Any, descriptor: Any) -> Any:
        return LabConsolidator(stream_resource, descriptor)

    registry[LAB] = functools.partial(make, "camera")
    operations, _ = write_run(registered_consolidators())
    (register,) = [operation for operation in operations if isinstance(operation, RegisterExternal)]
    assert register.data_source["assets"][0]["parameter"] == "master"


def test_a_class_of_the_package_is_found_in_another_place(registry: dict[str, Any]) -> None:
    registry["application/octet-stream"] = peer.ConsolidatorBase
    registry[LAB] = peer.HDF5Consolidator
    assert registered_consolidators().keys() == {"application/octet-stream", LAB}


def test_what_a_module_has_registered_is_found(registry: dict[str, Any]) -> None:
    assert registered_consolidators() == {}
    registry[LAB] = LabConsolidator
    registry["application/x-hdf5;type=lab"] = peer.HDF5Consolidator
    found = registered_consolidators()
    assert found.keys() == {LAB, "application/x-hdf5;type=lab"}
    assert issubclass(found[LAB], GuestConsolidator)
    registry["application/x-hdf5"] = LabConsolidator
    assert "application/x-hdf5" in registered_consolidators()
    assert REGISTRY["application/x-hdf5"].__module__.startswith("tiledwriter")
