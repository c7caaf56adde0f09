"""Any value of a document may be odd: the document is written, or refused by an error that says what is wrong."""

from __future__ import annotations

import copy
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy
import pytest

from tiledbroker import Encoder, Record
from tiledwriter import WriterError
from tiledwriter.mapping import WritingOptions
from tiledwriter.mapping._document_checks import DocumentChecks
from tiledwriter.mapping._fold import Fold

ODD_VALUES = {
    "numbers": numpy.array([1.5, 2.5]),
    "texts": numpy.array(["a", "b"]),
    "no numbers": numpy.array([]),
    "a matrix": numpy.zeros((2, 2)),
    "bytes": b"ab",
    "a complex number": 1j,
    "a decimal": Decimal("1.5"),
    "not a number": float("nan"),
    "more than 64 bits": 2**70,
    "a list": [1, "a"],
    "a mapping": {"a": 1},
    "null": None,
}


def descriptor(uid: str) -> dict[str, Any]:
    readback = {"source": "s", "dtype": "number", "shape": [], "dtype_numpy": "<f8", "units": "mm"}
    image = {"source": "s", "dtype": "array", "dtype_numpy": "<u2"}
    return {
        "uid": uid,
        "run_start": "run",
        "name": "primary",
        "time": 0.0,
        "configuration": {"det": {"data": {"gain": 1}, "timestamps": {"gain": 1.0}, "data_keys": {"gain": readback}}},
        "object_keys": {"det": ["x", "time"]},
        "hints": {"det": {"fields": ["x", "time"]}},
        "data_keys": {
            "x": readback,
            "time": {"source": "s", "dtype": "array", "shape": [2], "dtype_numpy": "<f8"},
            "camera": {**image, "shape": [1, 4, 4], "external": "STREAM:"},
            "old_camera": {**image, "shape": [4, 4], "external": "FILESTORE:"},
        },
    }


def event(number: int, descriptor: str, datum_id: str) -> dict[str, Any]:
    return {
        "uid": f"event-{number}",
        "descriptor": descriptor,
        "seq_num": number,
        "time": 1.0,
        "data": {"x": 1.0, "time": [1.0, 2.0], "old_camera": datum_id},
        "timestamps": {"x": 1.0, "time": 1.0, "old_camera": 1.0},
        "filled": {"old_camera": False},
    }


def documents_of_all_kinds() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "start", {"uid": "run", "time": 0.0, "hints": {"dimensions": [[["x"], "primary"]]}, "scan_id": 1}
    yield "descriptor", descriptor("d")
    how = {"dataset": "/data", "chunk_shape": [1, 4, 4], "join_method": "stack", "slice": "", "squeeze": False}
    resource = {"uid": "images", "run_start": "run", "data_key": "camera", "mimetype": "application/x-hdf5"}
    parameters = {**how, "template": "", "multiplier": 1}
    yield "stream_resource", {**resource, "uri": "file://localhost/tmp/a.h5", "parameters": parameters}
    place = {"root": "/", "resource_path": "data.h5", "resource_kwargs": {"frame_per_point": 1}}
    yield "resource", {"uid": "r", "spec": "AD_HDF5", "run_start": "run", "path_semantics": "posix", **place}
    for n in range(2):
        yield "datum", {"datum_id": f"r/{n}", "resource": "r", "datum_kwargs": {"point_number": n}}
        limits = {"indices": {"start": n, "stop": n + 1}, "seq_nums": {"start": n + 1, "stop": n + 2}}
        yield "stream_datum", {"uid": f"images/{n}", "stream_resource": "images", "descriptor": "d", **limits}
        yield "event", event(n + 1, "d", f"r/{n}")
    yield "descriptor", descriptor("d2")
    yield "event", event(3, "d2", "r/1")
    yield "stop", {"uid": "s", "run_start": "run", "time": 0.0, "exit_status": "success", "num_events": {"primary": 3}}


def error_of(documents: list[tuple[str, dict[str, Any]]]) -> Exception | None:
    """Fold a run; return why it ends early, if it does."""
    fold, encoder = Fold("run", WritingOptions(), 16), Encoder()
    bodies = [(name, encoder.encode(document)) for name, document in documents]
    fold.feed([Record(i, name, 0.0, zlib.crc32(body), body) for i, (name, body) in enumerate(bodies)])
    return None if fold.error is None else fold.error.__cause__


def paths_in(value: Any) -> Iterator[tuple[Any, ...]]:
    """Paths of all values within mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (key,)
        yield from ((key, *path) for path in paths_in(item))


def replaced(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    result = copy.deepcopy(document)
    part: Any = result
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return result


def test_run_without_odd_values_is_written() -> None:
    assert error_of(list(documents_of_all_kinds())) is None


@pytest.mark.parametrize("odd", ODD_VALUES.values(), ids=ODD_VALUES)
def test_odd_values_are_written_or_refused_with_an_error_of_ours(odd: Any) -> None:
    documents = list(documents_of_all_kinds())
    strange = {}
    for index, (name, document) in enumerate(documents):
        for path in paths_in(document):
            changed = [*documents[:index], (name, replaced(document, path, odd)), *documents[index + 1 :]]
            error = error_of(changed)
            if error is not None and not isinstance(error, WriterError):
                strange[index, name, path] = error
    assert not strange


def test_a_size_that_is_nan_is_called_so() -> None:
    documents = list(documents_of_all_kinds())
    documents[1] = ("descriptor", replaced(descriptor("d"), ("data_keys", "camera", "shape", 0), float("nan")))
    assert re.search(r"at \$\.data_keys\.camera\.shape\[0\], NaN or infinity is not", str(error_of(documents)))


def test_a_path_that_a_patch_returns_is_taken_for_a_text() -> None:
    DocumentChecks()("resource", {**dict(documents_of_all_kinds())["resource"], "resource_path": Path("data.h5")})


@pytest.mark.parametrize("hints", [numpy.array(["x"]), numpy.array([]), [], "x", 7], ids=repr)
def test_hints_of_any_type_do_not_keep_a_run_from_tiled(hints: Any) -> None:
    documents = [
        (name, {**document, "hints": hints} if name == "descriptor" else document)
        for name, document in documents_of_all_kinds()
    ]
    assert error_of(documents) is None
