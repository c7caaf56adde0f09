"""Consolidators for numbered files: images and NPY files."""

from __future__ import annotations

import warnings
from typing import Any

from .._errors import DocumentError
from ._array_consolidator import ArrayConsolidator
from ._consolidator import MAX_FILES, Document, compile_template
from ._frames import Region, Shape


class SequenceConsolidator(ArrayConsolidator):
    """Consolidator for numbered files, one or more per datum.

    In addition to the parameters of `ArrayConsolidator`, the class uses the StreamResource parameters template
    (required), filename and files_per_datum.

    Attributes
    ----------
    files_per_datum
        The number of files for each datum.
    """

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        self._split = False
        super().__init__(stream_resource, descriptor)
        self.files_per_datum = self._files_per_datum()

    def add_resource(self, stream_resource: Document) -> None:
        """Add the files of another resource, which has its own template."""
        self._check_shared_parameters(stream_resource)
        before, self.parameters = self.parameters, dict(stream_resource["parameters"])
        try:
            files_per_datum = self._files_per_datum()
            self._add_resource_files(stream_resource)
        except DocumentError:
            self.parameters = before
            raise
        self.files_per_datum = files_per_datum

    def consume(self, stream_datum: Document) -> Region:
        """Add the rows of a StreamDatum and their files; return the region of the array that changes."""
        indices, per_datum = self._checked_indices(stream_datum), self.files_per_datum
        if len(indices) * per_datum > MAX_FILES:
            raise self._registration_error(f"stream_datum {stream_datum.get('uid')!r} has more than {MAX_FILES} files")
        self._check_size(len(indices))
        number, _ = self._locate_frames(stream_datum, indices)
        numbers = range(number * per_datum, (number + len(indices)) * per_datum)
        self._add_repeated_assets(self._numbered_uris(stream_datum, numbers))
        several = self.join_method == "stack" and len(self.datum_shape) > 1 and per_datum > 1
        self._split = self._split or (several and self.datum_shape[0] % per_datum == 0)
        return self._region_from(self._append_frames(stream_datum, len(indices)))

    @property
    def template(self) -> str:
        """The template of the latest resource's files, in the style of `str.format`."""
        return self._file_template()

    @property
    def problem(self) -> str:
        """Always "", because the node has exactly the files that the documents name."""
        return ""

    def selected_rows(self) -> None:
        """Return None for all rows, because the list of files already selects the frames."""

    def _source_properties(self) -> dict[str, Any]:
        """Return the layout of the files in the array, one entry per file, if a datum spans several files."""
        if not self._split:
            return {}
        frames = self._derive_frames_per_file()
        inner = [[size] for size in self.datum_shape[1:]]
        return {"chunks": [[1] * len(self._assets), *([[frames]] if frames > 1 else []), *inner]}

    def _file_template(self) -> str:
        template = self._text(self.parameters, "template")
        if not template:
            raise self._registration_error("its StreamResource has no 'template' among its parameters")
        return compile_template(template, self._text(self.parameters, "filename"))

    def _add_resource_files(self, stream_resource: Document) -> None:
        self._add_numbered_files(stream_resource, self._file_template())

    def _chunk_shape(self) -> Shape:
        chunk = super()._chunk_shape() or (1,)
        if self.join_method == "stack":
            return chunk
        if not self.datum_shape:
            raise self._registration_error(
                "files can be joined by 'concat' only when each holds an array; its shape is ()"
            )
        frames = self.datum_shape[0]
        if chunk[0] > 0 and frames % chunk[0]:
            note = (
                f"{chunk[0]} frames per file does not divide a datum of {frames}; each datum is taken to be one file."
            )
            self._add_note(note)
            warnings.warn(f"Data key {self.data_key!r}: {note}", stacklevel=2)
            return (frames,)
        return chunk

    def _files_per_datum(self) -> int:
        frames = self.datum_shape[0] if self.datum_shape else 1
        return self._size("files_per_datum") or max(frames // self._derive_frames_per_file(), 1)

    def _derive_frames_per_file(self) -> int:
        """Return the number of steps along a datum's first axis in one file."""
        datum, chunk = self.datum_shape, self.chunk_shape
        if not datum:
            return 1
        if explicit := self._size("files_per_datum"):
            return max(datum[0] // explicit, 1)
        if self.join_method == "concat":
            return chunk[0]
        if self.metadata.get("frame_per_point"):
            return 1
        divides = len(chunk) == len(datum) and chunk[1:] == datum[1:] and datum[0] % chunk[0] == 0
        return chunk[0] if divides else datum[0]


class TIFFConsolidator(SequenceConsolidator):
    """Consolidator for numbered TIFF images."""

    mimetypes = frozenset({"multipart/related;type=image/tiff"})


class JPEGConsolidator(SequenceConsolidator):
    """Consolidator for numbered JPEG images."""

    mimetypes = frozenset({"multipart/related;type=image/jpeg"})


class NPYConsolidator(SequenceConsolidator):
    """Consolidator for numbered NPY files with one frame each, named according to the `NPY_SEQ` spec."""

    mimetypes = frozenset({"multipart/related;type=application/x-npy"})

    def _file_template(self) -> str:
        return compile_template("%s_%d.npy", self._text(self.parameters, "filename"))

    def _chunk_shape(self) -> Shape:
        frame = tuple(self._described.get("shape") or ())
        return (1, *frame)[: len(self.shape)]
