"""Decode documents whose encodings differ in values only, one column at a time instead of one document at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import numpy
import numpy.typing

Numbers: TypeAlias = "numpy.typing.NDArray[Any]"
Values: TypeAlias = "Sequence[Any] | Numbers"
_Bytes: TypeAlias = "numpy.typing.NDArray[numpy.uint8]"

# The kind of value that each field must hold. A "same" field has equal values in all documents of a batch; "values" is
# a mapping to numbers, booleans, text or None. Documents with other fields are decoded one by one.
_FIELDS: Final[Mapping[str, Mapping[str, str]]] = {
    "event": {
        "uid": "text",
        "descriptor": "same",
        "seq_num": "integer",
        "time": "number",
        "data": "values",
        "timestamps": "values",
        "filled": "booleans",
    },
    "stream_datum": {
        "uid": "text",
        "descriptor": "same",
        "stream_resource": "same",
        "indices": "integers",
        "seq_nums": "integers",
    },
}

_UID: Final = ("uid",)
_OPTIONAL: Final = frozenset({"filled"})
_KINDS: Final = {"integer": "iu", "number": "iuf", "text": "t"}
_ANY: Final = "iufbtn"
_OTHERS: Final = frozenset({"text", "none"})

MIN_BATCH_DOCUMENTS: Final = 16
"""The smallest number of documents for which columnar decoding pays off."""

MAX_BATCH_BYTES: Final = 4 * 2**20
"""The largest total size, in bytes, of the documents decoded at once."""

# Rows are compared in pieces of this size, in bytes, so that a piece stays in the processor's cache.
_CACHED_BYTES: Final = 256 * 2**10
_MAX_LAYOUTS: Final = 64
_MAX_INT64: Final = 2**63 - 1
_NUMBER_BYTES: Final = 8

# MessagePack numbers: the NumPy type of the bytes that follow, by first byte.
_NUMBERS: Final = {
    0xCB: ">f8",
    0xCC: "u1",
    0xCD: ">u2",
    0xCE: ">u4",
    0xCF: ">u8",
    0xD0: "i1",
    0xD1: ">i2",
    0xD2: ">i4",
    0xD3: ">i8",
}
_BOOLEANS: Final = (0xC2, 0xC3)
# Mask of the bits that both encodings of a boolean share.
_BOOLEAN: Final = 0xFE
_NONE: Final = 0xC0
_TEXTS: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_MAPPINGS: Final = {0xDE: 2, 0xDF: 4}
# NumPy scalars in tiledbroker's codec: one byte with the length of the type's name, the name, and the value.
_SCALAR_EXTENSION: Final = 3
_EXTENSION: Final = 0xC7
_EXTENSIONS: Final = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_SCALARS: Final = frozenset(
    [f"{order}{kind}{size}" for order in "<>" for kind in "iu" for size in (2, 4, 8)]
    + [f"{order}f{size}" for order in "<>" for size in (4, 8)]
    + ["|i1", "|u1", "|b1"]
)


_Path: TypeAlias = "tuple[str, ...]"


@dataclass(frozen=True)
class EventBatch:
    """A batch of documents with one name, the same keys and the same types of values, decoded into columns.

    Attributes
    ----------
    count
        Number of documents.
    columns
        The values by path, the names of the field and of the key within it. Each column has `count` items: a NumPy
        array of int64, float64 or bool, or a list of strings or None.
    """

    count: int
    columns: Mapping[_Path, Values]

    @property
    def nbytes(self) -> int:
        """The approximate size of the values, in bytes."""
        return _NUMBER_BYTES * self.count * len(self.columns)

    def numbers(self, *path: str) -> Numbers:
        """Return the column at a path whose values are always numbers."""
        column = self.columns[path]
        assert isinstance(column, numpy.ndarray)
        return column

    def columns_of(self, name: str) -> dict[str, Values]:
        """Return the columns of a field that is a mapping, by key."""
        return {path[1]: column for path, column in self.columns.items() if path[0] == name and len(path) > 1}


class _NotColumnar(Exception):
    """Raised when documents must be decoded one by one."""


class _Place(NamedTuple):
    """The byte range and the encoding of one value in a document.

    Attributes
    ----------
    offset, size
        The byte range.
    dtype
        A NumPy type, "text" or "none".
    fixed
        Mask of the bits that, in each byte of the range, are the same for all values of this encoding.
    """

    offset: int
    size: int
    dtype: str
    fixed: int

    @property
    def kind(self) -> str:
        """NumPy's kind letter for the values, "t" for text, "n" for None."""
        if self.fixed == _BOOLEAN:
            return "b"
        return self.dtype[0] if self.dtype in _OTHERS else numpy.dtype(self.dtype).kind


@dataclass
class _Layout:
    """The common encoding of a batch of documents.

    Attributes
    ----------
    mask
        The bits that are equal in all documents of the batch.
    pattern
        The values of these bits.
    places
        The byte range of each value, by path.
    """

    mask: _Bytes
    pattern: _Bytes
    places: dict[_Path, _Place] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, body: bytes) -> _Layout:
        """Return the layout of an encoded document and of all documents that differ from it in values only.

        Raises
        ------
        _NotColumnar
            The document has fields or values that cannot be decoded by column.
        """
        layout = cls(numpy.full(len(body), 0xFF, numpy.uint8), numpy.frombuffer(body, numpy.uint8))
        try:
            end = layout._read_document(_FIELDS[name], body)
        except (IndexError, UnicodeDecodeError) as error:
            raise _NotColumnar from error
        if end != len(body):
            raise _NotColumnar
        layout.pattern = layout.pattern & layout.mask
        return layout

    def count_fitting(self, rows: _Bytes) -> int:
        """Return the number of leading rows, one document each, that have this layout."""
        at_once = max(1, _CACHED_BYTES // len(self.mask))
        for start in range(0, len(rows), at_once):
            unlike = ((rows[start : start + at_once] & self.mask) != self.pattern).any(axis=1)
            if unlike.any():
                return start + int(unlike.argmax())
        return len(rows)

    def column(self, place: _Place, rows: _Bytes) -> Values:
        """Return the values of all rows at a byte range.

        Raises
        ------
        _NotColumnar
            An unsigned integer does not fit int64.
        """
        count, size = rows.shape
        if place.dtype == "none":
            return [None] * count
        if place.dtype == "text":
            text = rows[:, place.offset : place.offset + place.size].tobytes().decode("ascii")
            return [text[row * place.size : (row + 1) * place.size] for row in range(count)]
        values = numpy.ndarray((count,), place.dtype, rows, place.offset, (size,))
        if values.dtype.kind == "f":
            return values.astype(numpy.float64)
        if place.kind == "b":
            return (values & 1).astype(bool)
        if values.dtype.kind == "u" and values.dtype.itemsize == 8 and values.max() > _MAX_INT64:
            raise _NotColumnar
        return values.astype(numpy.int64)

    def _read_document(self, fields: Mapping[str, str], body: bytes) -> int:
        """Record the byte ranges of a document's values; return the offset of the document's end."""
        size, at = _decode_mapping_size(body, 0)
        left = set(fields)
        for _ in range(size):
            name, at = _decode_text(body, at)
            # Unknown or repeated fields.
            if name not in left:
                raise _NotColumnar
            left.discard(name)
            at = self._read_field(fields[name], body, at, name)
        if left - _OPTIONAL:
            raise _NotColumnar
        return at

    def _read_field(self, what: str, body: bytes, at: int, name: str) -> int:
        if what in _KINDS:
            return self._read_value(_KINDS[what], body, at, (name,))
        if what == "same":
            return _decode_text(body, at)[1]
        if what == "booleans":
            return _past_booleans(body, at)
        if what == "values":
            return self._read_mapping(_ANY, body, at, name)
        return self._read_mapping(_KINDS["integer"], body, at, name)

    def _read_mapping(self, kinds: str, body: bytes, at: int, name: str) -> int:
        size, at = _decode_mapping_size(body, at)
        for _ in range(size):
            key, at = _decode_text(body, at)
            at = self._read_value(kinds, body, at, (name, key))
        return at

    def _read_value(self, kinds: str, body: bytes, at: int, path: _Path) -> int:
        """Record the byte range of a value; return the offset of the value's end."""
        place = _locate_value(body, at)
        end = place.offset + place.size
        if end > len(body) or place.kind not in kinds:
            raise _NotColumnar
        self.mask[place.offset : end] = place.fixed
        self.places[path] = place
        return end


def _past_booleans(body: bytes, at: int) -> int:
    """Return the offset of the end of a mapping to booleans."""
    size, at = _decode_mapping_size(body, at)
    for _ in range(size):
        _, at = _decode_text(body, at)
        if body[at] not in _BOOLEANS:
            raise _NotColumnar
        at += 1
    return at


def _locate_value(body: bytes, at: int) -> _Place:
    """Return the byte range of the value that begins at an offset."""
    kind = body[at]
    if kind in _NUMBERS:
        return _Place(at + 1, numpy.dtype(_NUMBERS[kind]).itemsize, _NUMBERS[kind], 0)
    if kind < 0x80:
        return _Place(at, 1, "u1", 0x80)
    if kind >= 0xE0:
        return _Place(at, 1, "i1", 0xE0)
    if kind in _BOOLEANS:
        return _Place(at, 1, "u1", _BOOLEAN)
    if kind == _NONE:
        return _Place(at, 1, "none", 0xFF)
    if kind == _EXTENSION or kind in _EXTENSIONS:
        return _scalar_place(body, at)
    text, end = _decode_text(body, at)
    if not text.isascii():
        raise _NotColumnar
    return _Place(end - len(text), len(text), "text", 0x80)


def _scalar_place(body: bytes, at: int) -> _Place:
    """Return the byte range of a NumPy scalar's value."""
    head = body[at : at + 3] if body[at] == _EXTENSION else bytes((0, _EXTENSIONS[body[at]], body[at + 1]))
    start = at + (3 if body[at] == _EXTENSION else 2)
    _, size, code = head
    named = start + 1 + body[start]
    dtype = body[start + 1 : named].decode()
    if code != _SCALAR_EXTENSION or dtype not in _SCALARS or numpy.dtype(dtype).itemsize != start + size - named:
        raise _NotColumnar
    if dtype == "|b1":
        return _Place(named, 1, "u1", _BOOLEAN)
    return _Place(named, start + size - named, dtype, 0)


def _decode_text(body: bytes, at: int) -> tuple[str, int]:
    """Return the text that begins at an offset, and the offset of its end."""
    size, at = _decode_size(body, at, _TEXTS, short=0xA0, mask=0x1F)
    if at + size > len(body):
        raise _NotColumnar
    return body[at : at + size].decode(), at + size


def _decode_mapping_size(body: bytes, at: int) -> tuple[int, int]:
    """Return the number of entries of the mapping that begins at an offset, and the offset of the first entry."""
    return _decode_size(body, at, _MAPPINGS, short=0x80, mask=0x0F)


def _decode_size(body: bytes, at: int, longer: Mapping[int, int], *, short: int, mask: int) -> tuple[int, int]:
    """Return the size encoded at an offset, and the offset of the content.

    Parameters
    ----------
    longer
        Sizes in the bytes that follow: the number of these bytes, by first byte.
    short, mask
        Sizes in the first byte: its fixed bits, and the bits with the size.
    """
    kind = body[at]
    if kind in longer:
        end = at + 1 + longer[kind]
        return int.from_bytes(body[at + 1 : end], "big"), end
    if kind & ~mask != short:
        raise _NotColumnar
    return kind & mask, at + 1


class ColumnarDecoder:
    """Columnar decoder for documents that differ in values only.

    The decoder keeps the layouts it has seen, because the events of one descriptor have few.

    Attributes
    ----------
    names
        The names of the documents that can be decoded by column.
    """

    names: Final = frozenset(_FIELDS)

    def __init__(self) -> None:
        self._layouts_by_name_and_length: dict[tuple[str, int], _Layout] = {}

    def decode_batch(self, name: str, model: bytes, bodies: Sequence[bytes]) -> EventBatch | None:
        """Decode the leading documents that differ from `model` in values only.

        Parameters
        ----------
        name
            The name of the documents.
        model
            An encoded document.
        bodies
            The encoded documents that follow it, each as long as `model`.

        Returns
        -------
        EventBatch or None
            None if fewer than `MIN_BATCH_DOCUMENTS` documents match, or if a value cannot be decoded by column.
        """
        try:
            layout = self._cached_layout(name, model)
            rows = numpy.frombuffer(b"".join(bodies), numpy.uint8).reshape(len(bodies), len(model))
            if layout.count_fitting(rows[:MIN_BATCH_DOCUMENTS]) < MIN_BATCH_DOCUMENTS:
                return None
            rows = rows[: layout.count_fitting(rows)]
            columns = {path: layout.column(place, rows) for path, place in layout.places.items() if path != _UID}
        except _NotColumnar:
            return None
        return EventBatch(len(rows), columns)

    def _cached_layout(self, name: str, model: bytes) -> _Layout:
        layout = self._layouts_by_name_and_length.get((name, len(model)))
        if layout is None or not layout.count_fitting(numpy.frombuffer(model, numpy.uint8)[None]):
            layout = _Layout.of(name, model)
            if len(self._layouts_by_name_and_length) >= _MAX_LAYOUTS:
                self._layouts_by_name_and_length.clear()
            self._layouts_by_name_and_length[name, len(model)] = layout
        return layout
