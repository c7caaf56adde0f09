"""Documents whose bytes differ in values only, decoded together: a column at a time instead of a document at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import numpy
import numpy.typing

Numbers: TypeAlias = "numpy.typing.NDArray[Any]"
Values: TypeAlias = "Sequence[Any] | Numbers"
_Bytes: TypeAlias = "numpy.typing.NDArray[numpy.uint8]"

# What the fields of a document may hold: of what is "same" all that look alike have the same; "values" are a mapping to
# values of any kind that has a place. Documents with other fields are decoded one by one.
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

FEWEST: Final = 16
"""Documents for which it is worth while."""

MOST_BYTES: Final = 4 * 2**20
"""Of documents decoded at a time."""

_CACHED_BYTES: Final = 256 * 2**10  # what a processor's cache holds
_MOST_LAYOUTS: Final = 64
_LARGEST: Final = 2**63 - 1
_NUMBER_BYTES: Final = 8

# What MessagePack's first byte of a number says of the bytes after it, as NumPy's types.
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
_BOOLEAN: Final = 0xFE  # bits that these two have in common
_NONE: Final = 0xC0
_TEXTS: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_MAPPINGS: Final = {0xDE: 2, 0xDF: 4}
_SCALAR_EXTENSION: Final = 3  # NumPy's scalars, see tiledbroker's codec: length of the type's name, its name, the value
_EXTENSION: Final = 0xC7
_EXTENSIONS: Final = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_SCALARS: Final = frozenset(
    [f"{order}{kind}{size}" for order in "<>" for kind in "iu" for size in (2, 4, 8)]
    + [f"{order}f{size}" for order in "<>" for size in (4, 8)]
    + ["|i1", "|u1", "|b1"]
)


_Path: TypeAlias = "tuple[str, ...]"


@dataclass(frozen=True)
class AlikeDocuments:
    """Documents of one kind that have the same keys, and values of the same types, column by column.

    Columns are NumPy arrays of int64, float64 or bool, or lists of text or None.
    """

    count: int
    columns: Mapping[_Path, Values]

    @property
    def nbytes(self) -> int:
        """About what the values take."""
        return _NUMBER_BYTES * self.count * len(self.columns)

    def numbers(self, *path: str) -> Numbers:
        """The column of a field, or of one in a field, that holds numbers in any case."""
        column = self.columns[path]
        assert isinstance(column, numpy.ndarray)
        return column

    def within(self, name: str) -> dict[str, Values]:
        """The columns of a field that is a mapping."""
        return {path[1]: column for path, column in self.columns.items() if path[0] == name and len(path) > 1}


class _Unlike(Exception):
    """Raised when documents are to be decoded one by one."""


class _Place(NamedTuple):
    """Where a value is in a document's bytes, and how it is written: `dtype` is a NumPy type, "text" or "none".

    Bits of `fixed` in each of its bytes are the same for all values of the kind.
    """

    offset: int
    size: int
    dtype: str
    fixed: int

    @property
    def kind(self) -> str:
        """NumPy's letter for the kind of its values, "t" for text, "n" for none."""
        if self.fixed == _BOOLEAN:
            return "b"
        return self.dtype[0] if self.dtype in _OTHERS else numpy.dtype(self.dtype).kind


@dataclass
class _Layout:
    """What is the same in all documents that look like one: all bits of `mask`."""

    mask: _Bytes
    pattern: _Bytes
    places: dict[_Path, _Place] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, body: bytes) -> _Layout:
        """The layout of documents that look like this one.

        Raises
        ------
        _Unlike
            It has values of other kinds.
        """
        layout = cls(numpy.full(len(body), 0xFF, numpy.uint8), numpy.frombuffer(body, numpy.uint8))
        try:
            end = layout._read(_FIELDS[name], body)
        except (IndexError, UnicodeDecodeError) as error:
            raise _Unlike from error
        if end != len(body):
            raise _Unlike
        layout.pattern = layout.pattern & layout.mask
        return layout

    def fits(self, rows: _Bytes) -> int:
        """How many documents, from the first one on, have this layout: one in each row."""
        at_once = max(1, _CACHED_BYTES // len(self.mask))
        for start in range(0, len(rows), at_once):
            unlike = ((rows[start : start + at_once] & self.mask) != self.pattern).any(axis=1)
            if unlike.any():
                return start + int(unlike.argmax())
        return len(rows)

    def column(self, place: _Place, rows: _Bytes) -> Values:
        """The values at a place.

        Raises
        ------
        _Unlike
            There is one that no column of numbers takes.
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
        if values.dtype.kind == "u" and values.dtype.itemsize == 8 and values.max() > _LARGEST:
            raise _Unlike
        return values.astype(numpy.int64)

    # Reading MessagePack

    def _read(self, fields: Mapping[str, str], body: bytes) -> int:
        """Note the places of a document's values; returns where it ends."""
        size, at = _entries(body, 0)
        left = set(fields)
        for _ in range(size):
            name, at = _text(body, at)
            if name not in left:  # unknown, or there twice
                raise _Unlike
            left.discard(name)
            at = self._read_field(fields[name], body, at, name)
        if left - _OPTIONAL:
            raise _Unlike
        return at

    def _read_field(self, what: str, body: bytes, at: int, name: str) -> int:
        if what in _KINDS:
            return self._read_value(_KINDS[what], body, at, (name,))
        if what == "same":
            return _text(body, at)[1]
        if what == "booleans":
            return _past_booleans(body, at)
        if what == "values":
            return self._read_mapping(_ANY, body, at, name)
        return self._read_mapping(_KINDS["integer"], body, at, name)

    def _read_mapping(self, kinds: str, body: bytes, at: int, name: str) -> int:
        size, at = _entries(body, at)
        for _ in range(size):
            key, at = _text(body, at)
            at = self._read_value(kinds, body, at, (name, key))
        return at

    def _read_value(self, kinds: str, body: bytes, at: int, path: _Path) -> int:
        """Note the place of a value; returns where it ends."""
        place = _place(body, at)
        end = place.offset + place.size
        if end > len(body) or place.kind not in kinds:
            raise _Unlike
        self.mask[place.offset : end] = place.fixed
        self.places[path] = place
        return end


def _past_booleans(body: bytes, at: int) -> int:
    """Where a mapping to booleans ends."""
    size, at = _entries(body, at)
    for _ in range(size):
        _, at = _text(body, at)
        if body[at] not in _BOOLEANS:
            raise _Unlike
        at += 1
    return at


def _place(body: bytes, at: int) -> _Place:
    """The place of the value that begins there."""
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
    text, end = _text(body, at)
    if not text.isascii():
        raise _Unlike
    return _Place(end - len(text), len(text), "text", 0x80)


def _scalar_place(body: bytes, at: int) -> _Place:
    """The place of a NumPy scalar's value."""
    head = body[at : at + 3] if body[at] == _EXTENSION else bytes((0, _EXTENSIONS[body[at]], body[at + 1]))
    start = at + (3 if body[at] == _EXTENSION else 2)
    _, size, code = head
    named = start + 1 + body[start]
    dtype = body[start + 1 : named].decode()
    if code != _SCALAR_EXTENSION or dtype not in _SCALARS or numpy.dtype(dtype).itemsize != start + size - named:
        raise _Unlike
    if dtype == "|b1":
        return _Place(named, 1, "u1", _BOOLEAN)
    return _Place(named, start + size - named, dtype, 0)


def _text(body: bytes, at: int) -> tuple[str, int]:
    """The text that begins there, and where it ends."""
    size, at = _size(body, at, _TEXTS, short=0xA0, mask=0x1F)
    if at + size > len(body):
        raise _Unlike
    return body[at : at + size].decode(), at + size


def _entries(body: bytes, at: int) -> tuple[int, int]:
    """How many entries the mapping has that begins there, and where they begin."""
    return _size(body, at, _MAPPINGS, short=0x80, mask=0x0F)


def _size(body: bytes, at: int, longer: Mapping[int, int], *, short: int, mask: int) -> tuple[int, int]:
    """A size, which is in the first byte or in so many bytes after it, and where it ends."""
    kind = body[at]
    if kind in longer:
        end = at + 1 + longer[kind]
        return int.from_bytes(body[at + 1 : end], "big"), end
    if kind & ~mask != short:
        raise _Unlike
    return kind & mask, at + 1


class AlikeReader:
    """Finds and decodes documents that look alike.

    Layouts are kept: events of one descriptor have few.
    """

    names: Final = frozenset(_FIELDS)

    def __init__(self) -> None:
        self._layouts: dict[tuple[str, int], _Layout] = {}  # by length

    def read(self, name: str, model: bytes, bodies: Sequence[bytes]) -> AlikeDocuments | None:
        """The first of these documents, which are all as long as `model`, that look like it.

        None if they are few, or if there are values of other kinds among them.
        """
        try:
            layout = self._layout(name, model)
            rows = numpy.frombuffer(b"".join(bodies), numpy.uint8).reshape(len(bodies), len(model))
            if layout.fits(rows[:FEWEST]) < FEWEST:
                return None
            rows = rows[: layout.fits(rows)]
            columns = {path: layout.column(place, rows) for path, place in layout.places.items() if path != _UID}
        except _Unlike:
            return None
        return AlikeDocuments(len(rows), columns)

    def _layout(self, name: str, model: bytes) -> _Layout:
        layout = self._layouts.get((name, len(model)))
        if layout is None or not layout.fits(numpy.frombuffer(model, numpy.uint8)[None]):
            layout = _Layout.of(name, model)
            if len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts.clear()
            self._layouts[name, len(model)] = layout
        return layout
