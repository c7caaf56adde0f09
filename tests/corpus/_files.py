"""Detector files, really written: what external data keys refer to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy
import tifffile
from PIL import Image

FRAME = (4, 6)


def frames(count: int, shape: tuple[int, ...] = FRAME, dtype: str = "<u2", first: int = 0) -> numpy.ndarray[Any, Any]:
    """Frames that tell which they are: every number is one more than the one before."""
    size = count * int(numpy.prod(shape))
    return numpy.arange(first, first + size).astype(dtype).reshape(count, *shape)


def uri(path: Path, *, directory: bool = False) -> str:
    """As ophyd-async gives it."""
    return f"file://localhost{path.absolute()}" + ("/" if directory else "")


def write_hdf5(path: Path, data: numpy.ndarray[Any, Any], dataset: str = "/entry/data/data", **options: Any) -> Path:
    """A dataset in a new or existing HDF5 file."""
    with h5py.File(path, "a", libver="latest") as file:
        file.create_dataset(dataset, data=data, **options)
    return path


def write_tiffs(directory: Path, stem: str, data: Sequence[numpy.ndarray[Any, Any]], first: int = 0) -> None:
    """One TIFF file per element."""
    for number, frame in enumerate(data, first):
        tifffile.imwrite(directory / f"{stem}_{number:06d}.tiff", frame)


def write_jpegs(directory: Path, stem: str, count: int, shape: tuple[int, int] = (8, 8)) -> None:
    """One grey JPEG file per number, of even grey, which JPEG keeps exactly."""
    for number in range(count):
        Image.fromarray(numpy.full(shape, 16 * number, "u1")).save(directory / f"{stem}_{number:04d}.jpeg")


def write_npys(directory: Path, stem: str, data: Sequence[numpy.ndarray[Any, Any]]) -> None:
    """One NPY file per element."""
    for number, frame in enumerate(data):
        numpy.save(directory / f"{stem}_{number}.npy", frame)


def write_csv(path: Path, rows: Sequence[Sequence[float]]) -> Path:
    """A table of numbers without a header."""
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return path
