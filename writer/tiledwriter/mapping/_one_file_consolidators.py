"""Consolidators for an array in one file: a Zarr store, an image or array, and mimetypes without a class."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from ._array_consolidator import ArrayConsolidator
from ._consolidator import Document
from ._frames import Shape, file_of

_TABLES: Final = frozenset({"text/csv", "text/csv;header=present", "multipart/related;type=text/csv"})
"""Mimetypes of which Tiled's own adapters make tables."""


class OneFileConsolidator(ArrayConsolidator):
    """Consolidator for one file: Tiled's adapters for Zarr and for single images or arrays open the first asset."""

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        super().__init__(stream_resource, descriptor)
        if self.mimetype in _TABLES:
            self._add_note(
                f"Tiled's own adapter makes tables of {self.mimetype} files; as an array they can be read only if the "
                "server has another one. Arrays of numbers are 'text/csv;header=absent'."
            )

    def add_resource(self, stream_resource: Document) -> None:
        """Add another resource of the same file; refuse one of a further file."""
        if (file := file_of(stream_resource)) not in self._file_of_resource.values():
            what = f"{' '.join(filter(None, file))!r} is a further file"
            raise self._registration_error(f"{what}, and of {self.mimetype} files Tiled reads the first one only")
        super().add_resource(stream_resource)


class ZarrConsolidator(OneFileConsolidator):
    """Consolidator for a Zarr store. Tiled's adapter gives its rows as they are, without a dimension for datums."""

    mimetypes = frozenset({"application/x-zarr"})
    keeps_rows: ClassVar[bool] = True

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        super().__init__(stream_resource, descriptor)
        if self.join_method == "stack" and not self._rows_per_datum()[1]:
            self._add_note(
                "its documents do not say how many rows of a file make a frame; one is taken to. If it cannot be read, "
                "a chunk_shape with as many dimensions as the file has would tell."
            )


class WholeFileConsolidator(OneFileConsolidator):
    """Consolidator for an image or array, or a stack of them, in one file. Tiled's adapters read it as one chunk.

    If the file has more rows than the documents name, the adapters give the first ones, but only in the file's shape.
    """

    mimetypes = frozenset({"image/tiff", "image/jpeg", "application/x-npy"})
    keeps_rows: ClassVar[bool] = True
    asset_parameter = "data_uri"

    @property
    def chunks(self) -> tuple[Shape, ...]:
        """The sizes of the chunks along each dimension: one chunk."""
        return tuple((size,) for size in self.shape)

    def data_source(self) -> dict[str, Any]:
        """Return the current data source; the adapter takes one file, not a list of files."""
        source = super().data_source()
        return {**source, "assets": [{**asset, "num": None} for asset in source["assets"]]}
