"""Frames of a data key that are in one file, read with Tiled's client as they were written."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy
import pytest
import tifffile
import zarr
from event_model import compose_run
from stored_runs import FRAME, Documents, journaled, uid_of
from stored_runs import write as write_journal

from tiledwriter.testing import TiledServer

Read: TypeAlias = "Callable[[Documents], tuple[Any, str]]"

STACK = numpy.arange(4 * 2 * 3, dtype="<u2").reshape(4, 2, 3)
MIMETYPES = {".tif": "image/tiff", ".npy": "application/x-npy", ".zarr": "application/x-zarr", ".csv": "text/csv"}


def save(path: Path, frames: numpy.ndarray[Any, Any]) -> None:
    if path.suffix == ".tif":
        tifffile.imwrite(path, frames)
    elif path.suffix == ".npy":
        numpy.save(path, frames)
    elif path.suffix == ".zarr":
        zarr.create_array(str(path), shape=frames.shape, chunks=(1, *frames.shape[1:]), dtype=frames.dtype)[:] = frames
    else:
        numpy.savetxt(path, frames.reshape(len(frames), -1), delimiter=",")


def run_with(path: Path, shape: list[int], datums: int, **parameters: Any) -> Documents:
    run = compose_run()
    stream = run.compose_descriptor(name="primary", data_keys={"camera": {**FRAME, "shape": shape}})
    resource, compose_datum = run.compose_stream_resource(
        mimetype=MIMETYPES[path.suffix], uri=f"file://localhost{path}", data_key="camera", parameters=parameters
    )
    halves = [compose_datum(indices={"start": 0, "stop": 1}, descriptor=stream.descriptor_doc)]
    if datums > 1:
        halves.append(compose_datum(indices={"start": 1, "stop": datums}, descriptor=stream.descriptor_doc))
    return [
        *(("start", run.start_doc), ("descriptor", stream.descriptor_doc), ("stream_resource", resource)),
        *(("stream_datum", datum) for datum in halves),
        ("stop", run.compose_stop()),
    ]


@pytest.fixture
def files(readable: Path) -> Path:
    directory = readable / str(uuid.uuid4())
    directory.mkdir()
    return directory


@pytest.fixture
def read(tmp_path: Path, tiled_server: TiledServer) -> Read:
    def write_and_find(documents: Documents) -> tuple[Any, str]:
        assert write_journal(journaled(documents, tmp_path), tiled_server) == "written"
        run = tiled_server.client()[uid_of(documents)]
        return run.primary["camera"], str(run.metadata.get("notes"))

    return write_and_find


@pytest.mark.parametrize(("shape", "datums"), [([1, 2, 3], 4), ([2, 3], 4), ([4, 2, 3], 1), ([2, 2, 3], 2)])
@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_a_stack_in_one_file_has_a_row_for_each_event(
    suffix: str, shape: list[int], datums: int, files: Path, read: Read
) -> None:
    path = files / f"stack{suffix}"
    save(path, STACK)
    camera, _ = read(run_with(path, shape, datums, chunk_shape=[1, 2, 3]))
    numpy.testing.assert_array_equal(camera.read(), STACK)
    numpy.testing.assert_array_equal(camera[0], STACK[0])


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_one_image_is_one_row(suffix: str, files: Path, read: Read) -> None:
    save(files / f"image{suffix}", STACK[0])
    camera, _ = read(run_with(files / f"image{suffix}", [1, 2, 3], 1))
    numpy.testing.assert_array_equal(camera.read(), STACK[:1])


@pytest.mark.parametrize("shape", [[1, 2, 3], [2, 3]])
@pytest.mark.parametrize("suffix", [".tif", ".npy", ".zarr"])
def test_a_file_may_have_more_frames_than_the_documents_name(
    suffix: str, shape: list[int], files: Path, read: Read
) -> None:
    save(files / f"longer{suffix}", STACK)
    camera, _ = read(run_with(files / f"longer{suffix}", shape, 3))
    numpy.testing.assert_array_equal(camera.read(), STACK[:3])


@pytest.mark.parametrize(("shape", "datums"), [([1, 2, 3], 4), ([2, 3], 4), ([4, 2, 3], 1), ([2, 2, 3], 2)])
def test_a_zarr_store_has_its_rows_as_they_are(shape: list[int], datums: int, files: Path, read: Read) -> None:
    save(files / "stack.zarr", STACK)
    camera, notes = read(run_with(files / "stack.zarr", shape, datums, chunk_shape=[1, 2, 3]))
    numpy.testing.assert_array_equal(camera.read(), STACK)
    assert ("rows of each frame follow each other" in notes) == (len(shape) == 3 and shape[0] > 1)


def test_where_nothing_tells_how_many_rows_of_a_zarr_store_make_a_frame_a_note_says_so(files: Path, read: Read) -> None:
    save(files / "four.zarr", STACK[None])
    camera, notes = read(run_with(files / "four.zarr", [4, 2, 3], 1))
    numpy.testing.assert_array_equal(camera.read(), STACK[None])
    assert "'camera': its documents do not say how many rows" in notes


def test_a_table_that_is_to_be_an_array_is_noted(files: Path, read: Read) -> None:
    save(files / "numbers.csv", STACK)
    _, notes = read(run_with(files / "numbers.csv", [4, 6], 1))
    assert "'camera': Tiled's own adapter makes tables of text/csv files" in notes
