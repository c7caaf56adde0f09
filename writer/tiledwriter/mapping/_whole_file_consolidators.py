"""Consolidators for files that Tiled reads or passes on as a whole: CSV files, and files of any kind."""

from __future__ import annotations

from typing import Any, ClassVar

from ._array_consolidator import ArrayConsolidator
from ._consolidator import MAX_FILES, Consolidator, Document, compile_template
from ._frames import Region, Shape


class CSVConsolidator(ArrayConsolidator):
    """Consolidator for tables of numbers in text files without a header, concatenated along the rows.

    Tiled's adapter reads each file as a whole, as one chunk, and fails if the number of rows differs from the size of
    the chunk.
    """

    mimetypes = frozenset({"text/csv;header=absent"})
    join_method = "concat"
    join_chunks = False

    _READER_OPTIONS: ClassVar = (
        *("assume_missing", "comment", "delimiter", "dtype", "encoding", "header"),
        *("names", "nrows", "sep", "skipfooter", "skiprows", "usecols"),
    )
    shared_parameters = (*ArrayConsolidator.shared_parameters, *_READER_OPTIONS)

    @property
    def chunks(self) -> tuple[Shape, ...]:
        """The sizes of the chunks along each dimension; along the first one, each file is one chunk."""
        rows = self.datum_shape[0] if self.join_method == "concat" and self.datum_shape else 1
        return (tuple(count * rows for count in self._datums_of_files().values()) or (0,), *super().chunks[1:])

    @property
    def problem(self) -> str:
        """The file, if any, with datums that are missing from this node: left out, or part of another stream."""
        for file, count in self._datums_of_files().items():
            announced = self.announced.frames_of(file).stop - self._joined[file].base
            if announced > count:
                named = "is" if count == 1 else "are"
                what = f"{file[0]} has {announced} datums, of which {count} {named} named"
                return f"{what}, and Tiled reads such files as a whole."
        return super().problem

    def consume(self, stream_datum: Document) -> Region:
        """Add the rows of a StreamDatum; return the region of the array that changes."""
        self._add_note("Tiled reads its files as a whole; they are taken to have no other rows than were announced.")
        return super().consume(stream_datum)

    def data_source(self) -> dict[str, Any]:
        """Return the current data source, without files that have no rows yet, except the first file."""
        source = super().data_source()
        return {**source, "assets": source["assets"][: max(1, len(self._datums_of_files()))]}

    def _datums_of_files(self) -> dict[Any, int]:
        """Return the number of datums in each file that has any."""
        begun = {file: where.place for file, where in self._joined.items() if where.place < self._rows}
        ends = [*begun.values(), self._rows][1:]
        return {file: end - place for (file, place), end in zip(begun.items(), ends, strict=True)}

    def adapter_parameters(self) -> dict[str, Any]:
        """Return the options of the CSV reader."""
        options = {"header": None, **self.parameters}
        return {name: value for name, value in options.items() if name in self._READER_OPTIONS}


class BytesConsolidator(Consolidator):
    """Consolidator for files of any kind, which clients download unchanged.

    With a template there is one file per datum, otherwise one per resource.
    """

    mimetypes = frozenset({"application/octet-stream"})

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        super().__init__(stream_resource, descriptor)
        self.add_resource(stream_resource)

    def add_resource(self, stream_resource: Document) -> None:
        """Add the file or files of another resource."""
        template, filename = (self._text(stream_resource["parameters"], name) for name in ("template", "filename"))
        self._add_numbered_files(stream_resource, compile_template(template, filename))

    def consume(self, stream_datum: Document) -> Region:
        """Add the files of a StreamDatum; return the region of its rows."""
        indices = self._checked_indices(stream_datum)
        if len(indices) > MAX_FILES:
            raise self._registration_error(f"stream_datum {stream_datum.get('uid')!r} has more than {MAX_FILES} files")
        number, _ = self._locate_frames(stream_datum, indices)
        uris = self._numbered_uris(stream_datum, range(number, number + len(indices)))
        # Without a template, all datums of a resource are in one file.
        add = self._add_repeated_assets if len(set(uris)) == len(uris) and self._is_numbered else self._add_assets
        add(uris)
        return Region((self._append_frames(stream_datum, len(indices)),), (len(indices),))

    @property
    def template(self) -> str | None:
        """The template of the latest resource's files, in the style of `str.format`; None if it has a single file."""
        return next(reversed(self._files.values())).template or None

    @property
    def _is_numbered(self) -> bool:
        return any("{" in files.template for files in self._files.values())

    def data_source(self) -> dict[str, Any]:
        """Return the current data source, of structure family 'bytes'."""
        return self._data_source("bytes", {}, {}, {})
