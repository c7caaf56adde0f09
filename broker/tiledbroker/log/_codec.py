"""Encoding of documents as bytes, once in the RunEngine's callback, and decoding in the worker."""

from __future__ import annotations

import math
import os
import re
import struct
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from itertools import takewhile
from typing import Any, Final

import msgspec

from .._errors import CodecError

# msgpack extension codes are part of the stored format: never renumber them.
_BIG_INT: Final = 1
_ARRAY: Final = 2
_SCALAR: Final = 3
_OBJECT_ARRAY: Final = 4
_REPR: Final = 5
_COMPLEX: Final = 6
_LONE_SURROGATES: Final = 7

MAX_DEPTH: Final = 200
"""Containers nested deeper than this are replaced by their `repr`."""

MAX_EMPTY_ITEMS: Final = 1000
"""Arrays of zero bytes that have more items than this are replaced by their `repr`."""

MAX_EXACT_CHARACTERS: Final = 2**16
"""Decimals and fractions with a longer text than this are replaced by their `repr`."""

_MAX_DIMENSIONS: Final = 64

_INT_RANGE: Final = range(-(2**63), 2**64)

# Values of `numpy.dtype.str` for types without fields. NumPy itself parses more strings than these, and one such as
# "M8[s/0]" makes it divide by zero, which kills the process with SIGFPE.
_DTYPE: Final = re.compile(
    r"[<>|=]?(?:b1|[iu][1248]|f(?:2|4|8|1[026])|c(?:8|1[06]|2[04]|32)|[SUV][0-9]{1,10}"
    r"|[mM]8(?:\[(?:[1-9][0-9]{0,9})?(?:[YMWDhms]|[munpfa]s)\])?)"
)

# Header of a float64 NumPy scalar. The text of a decimal or a fraction follows the scalar, which is its nearest float.
_FLOAT: Final = b"\x03<f8"

# Types whose values never contain a Decimal. Documents must be searched for decimals, because msgspec encodes them as
# text without calling `enc_hook`.
_PLAIN: Final = frozenset({bool, int, float, complex, str, bytes, bytearray, memoryview, Fraction, type(None)})


class ReplacedByRepr(str):
    """String that replaces a value that could not be encoded: its `repr`."""

    __slots__ = ()


class _DecimalKey:
    """Wrapper of a Decimal that is a mapping's key, so that msgspec calls `enc_hook`; it rejects `Ext` as a key."""

    def __init__(self, key: Decimal) -> None:
        self.key = key


class Encoder:
    """Encoder of documents as msgpack with extensions, which accepts values of any type.

    These types are decoded without loss: None, bool, int of any size, float, complex, Decimal, Fraction, str, bytes,
    list, dict, NumPy scalars, and NumPy arrays (object arrays element by element). Tuples and sets are decoded as
    lists, masked arrays as lists with None for masked items, datetimes, UUIDs, enums and dataclasses as in JSON,
    Pydantic models as dicts of their fields, and paths as strings. Any other value is replaced by its `repr`.

    Attributes
    ----------
    replaced
        Names of the types of values that were replaced by their `repr` since the last `take_replaced`.
    """

    def __init__(self) -> None:
        self._msgpack = msgspec.msgpack.Encoder(enc_hook=self._encode_other)
        self.replaced: list[str] = []
        self._path: set[int] = set()
        self._plain = set(_PLAIN)

    def encode(self, document: Mapping[str, Any]) -> bytes:
        """Return the bytes of one document. `take_replaced` returns the types of values that could not be encoded."""
        kept = len(self.replaced)
        try:
            if not self._may_round(document):
                return self._msgpack.encode(document)
        except Exception:
            # msgspec fails for big integers, lone surrogates, cycles and objects that raise; rebuild the document.
            del self.replaced[kept:]
            self._path.clear()
        return self._msgpack.encode(self._rebuild_value(document, 0))

    def take_replaced(self) -> list[str]:
        """Return the names of the types of values that were replaced by their `repr` since the last call."""
        taken, self.replaced = self.replaced, []
        return taken

    def _may_round(self, document: Mapping[str, Any]) -> bool:
        """Return True if a document contains a Decimal. Events with plain values only, the usual case, are fast."""
        try:
            if self._plain.issuperset(map(type, document["data"].values())):
                # Adding a Decimal to a float raises TypeError.
                return not isinstance(sum(document["timestamps"].values(), document["time"]), float)
        except (KeyError, TypeError, AttributeError):
            pass
        return self._has_decimal(document)

    def _has_decimal(self, value: Any) -> bool:
        kind = type(value)
        if kind in self._plain:
            return False
        if isinstance(value, Decimal):
            return True
        if isinstance(value, Mapping):
            return self._any_has_decimal(value) or self._any_has_decimal(value.values())
        if isinstance(value, list | tuple | AbstractSet | deque):
            return self._any_has_decimal(value)
        if isinstance(value, Enum):
            return self._has_decimal(value.value)
        if (fields := _fields_of(value)) is not None:
            return self._any_has_decimal(fields.values())
        if kind.__module__ == "numpy":
            # Arrays of objects may contain decimals, but `_encode_other` searches them.
            self._plain.add(kind)
        return False

    def _any_has_decimal(self, values: Iterable[Any]) -> bool:
        return not self._plain.issuperset(map(type, values)) and any(map(self._has_decimal, values))

    def _with_decimals(self, value: Any) -> Any:
        """Return a replacement for an object that msgspec can encode, even if it contains decimals."""
        return self._rebuild_value(value, 1) if self._has_decimal(value) else value

    def _encode_other(self, value: Any) -> Any:
        # Do not import NumPy: without it, there are no values of its types.
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            if isinstance(value, numpy.generic):
                return self._numpy_scalar(value)
            if isinstance(value, numpy.ndarray):
                return self._numpy_array(numpy, value)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, bytes):
            return bytes(memoryview(value))
        if isinstance(value, complex):
            return msgspec.msgpack.Ext(_COMPLEX, struct.pack("<dd", value.real, value.imag))
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, Decimal | Fraction):
            return self._exact_number(value)
        if isinstance(value, _DecimalKey):
            return self._exact_number(value.key)
        if isinstance(value, Mapping):
            return self._with_decimals(dict(value))
        if isinstance(value, deque | range | AbstractSet):
            return self._with_decimals(list(value))
        if callable(dump := getattr(value, "model_dump", None)):
            return self._with_decimals(dump())
        return self._encode_repr(value)

    def _exact_number(self, value: Decimal | Fraction) -> msgspec.msgpack.Ext:
        """Return the nearest float as a NumPy scalar, which version 0.1 can read, with the exact number as text."""
        text = Decimal.__str__(value) if isinstance(value, Decimal) else f"{value.numerator:x}/{value.denominator:x}"
        if len(text) > MAX_EXACT_CHARACTERS:
            return self._encode_repr(value)
        return msgspec.msgpack.Ext(_SCALAR, _FLOAT + struct.pack("<d", _nearest_float(value)) + text.encode())

    def _numpy_scalar(self, value: Any) -> msgspec.msgpack.Ext:
        dtype = value.dtype
        if dtype.hasobject:
            return self._encode_repr(value)
        if dtype.names is not None:
            return msgspec.msgpack.Ext(_ARRAY, self._pack_array(value.reshape(()), scalar=True))
        descr = dtype.str.encode()
        return msgspec.msgpack.Ext(_SCALAR, bytes([len(descr)]) + descr + value.tobytes())

    def _numpy_array(self, numpy: Any, value: Any) -> Any:
        if isinstance(value, numpy.ma.MaskedArray):
            return self._with_decimals(_masked_as_none(numpy, value))
        if not value.nbytes and _item_count(value.shape) > MAX_EMPTY_ITEMS:
            return self._encode_repr(value)
        if value.dtype.hasobject:
            if value.dtype.names is not None:
                return self._encode_repr(value)
            items = value.ravel().tolist()
            try:
                payload = self._msgpack.encode([list(value.shape), self._with_decimals(items)])
            except RecursionError:
                return self._encode_repr(value)
            except Exception:
                payload = self._msgpack.encode([list(value.shape), self._rebuild_value(items, 1)])
            return msgspec.msgpack.Ext(_OBJECT_ARRAY, payload)
        try:
            return msgspec.msgpack.Ext(_ARRAY, self._pack_array(value, scalar=False))
        except (ValueError, TypeError):
            # The dtype has no `descr`, for example because of overlapping fields.
            return self._encode_repr(value)

    def _pack_array(self, value: Any, *, scalar: bool) -> bytes:
        dtype = value.dtype
        return msgspec.msgpack.encode(
            [dtype.str if dtype.names is None else dtype.descr, list(value.shape), value.tobytes(), scalar],
        )

    def _encode_repr(self, value: Any) -> msgspec.msgpack.Ext:
        self.replaced.append(type(value).__qualname__)
        try:
            text = repr(value)
        except Exception as error:
            text = f"<{type(value).__qualname__} whose repr raised {type(error).__name__}>"
        return msgspec.msgpack.Ext(_REPR, text.encode("utf-8", "backslashreplace"))

    def _rebuild_value(self, value: Any, depth: int) -> Any:
        if id(value) in self._path:
            return self._encode_repr(value)
        self._path.add(id(value))
        try:
            return self._taken_apart(value, depth)
        except Exception:
            return self._encode_repr(value)
        finally:
            self._path.discard(id(value))

    def _taken_apart(self, value: Any, depth: int) -> Any:
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int):
            value = int.__int__(value)
            return value if value in _INT_RANGE else msgspec.msgpack.Ext(_BIG_INT, _int_to_bytes(value))
        if isinstance(value, str):
            return _encodable_text(str.__str__(value))
        if isinstance(value, Decimal):
            return self._exact_number(value)
        if isinstance(value, Enum):
            return self._rebuild_value(value.value, depth)
        if isinstance(value, Mapping | list | tuple | AbstractSet | deque) and depth >= MAX_DEPTH:
            return self._encode_repr(value)
        if isinstance(value, Mapping):
            return {self._convert_key(key): self._rebuild_value(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | AbstractSet | deque):
            return [self._rebuild_value(item, depth + 1) for item in value]
        if (fields := _fields_of(value)) is not None and self._any_has_decimal(fields.values()):
            return self._rebuild_value(fields, depth)
        return msgspec.Raw(self._msgpack.encode(value))

    def _convert_key(self, key: Any) -> Any:
        if isinstance(key, Decimal):
            return _DecimalKey(key)
        try:
            self._msgpack.encode(key)
            return str.__str__(key) if isinstance(key, str) else key
        except Exception:
            self.replaced.append(type(key).__qualname__)
            return repr(key)


def _fields_of(value: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass, msgspec or attrs object, which msgspec encodes as mappings; None for others."""
    kind = type(value)
    for attribute in ("__dataclass_fields__", "__struct_fields__", "__attrs_attrs__"):
        if (fields := getattr(kind, attribute, None)) is not None:
            names = [str(getattr(field, "name", field)) for field in getattr(fields, "values", lambda: fields)()]
            return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return None


def _nearest_float(value: Decimal | Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except ValueError:
        # Python does not convert signaling NaNs to float.
        return math.nan


def _masked_as_none(numpy: Any, value: Any) -> Any:
    """Return a masked array as nested lists with None for masked items.

    `tolist` converts times in nanoseconds to integers, so times are copied item by item.
    """
    if value.dtype.kind not in "mM":
        return value.tolist()
    items, masked = numpy.empty(value.shape, object), numpy.ma.getmaskarray(value)
    for place in numpy.ndindex(value.shape):
        items[place] = None if masked[place] else value.data[place]
    return items.tolist()


def _int_to_bytes(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _encodable_text(text: str) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError:
        return msgspec.msgpack.Ext(_LONE_SURROGATES, text.encode("utf-8", "surrogatepass"))
    return text


def decode(body: bytes | memoryview) -> dict[str, Any]:
    """Return the document that `Encoder.encode` encoded.

    Parameters
    ----------
    body
        The encoded document.

    Raises
    ------
    CodecError
        The bytes are damaged, or are not a document.
    """
    try:
        document = _decoder.decode(body)
    except CodecError:
        raise
    except Exception as error:
        raise CodecError(f"These {len(body)} bytes cannot be decoded as a document: {error}") from error
    if not isinstance(document, dict):
        raise CodecError(f"A document is a mapping, but these {len(body)} bytes hold a {type(document).__name__}.")
    return document


def _decode_extension(code: int, data: memoryview) -> Any:
    if code == _SCALAR:
        return _decode_scalar(data)
    if code == _ARRAY:
        return _decode_array(data)
    if code == _OBJECT_ARRAY:
        return _decode_object_array(data)
    if code == _BIG_INT:
        return int.from_bytes(data, "big", signed=True)
    if code == _REPR:
        return ReplacedByRepr(bytes(data).decode())
    if code == _COMPLEX:
        return complex(*struct.unpack("<dd", data))
    if code == _LONE_SURROGATES:
        return bytes(data).decode("utf-8", "surrogatepass")
    raise CodecError(f"Extension type {code} is unknown; the document may come from a newer version of tiledwriter.")


def _decode_scalar(data: memoryview) -> Any:
    exact = data[len(_FLOAT) + struct.calcsize("<d") :]
    if exact and bytes(data[: len(_FLOAT)]) == _FLOAT:
        return _decode_exact_number(bytes(exact).decode("ascii"))
    import numpy

    end = 1 + data[0]
    dtype = numpy.dtype(_simple_dtype(bytes(data[1:end]).decode()))
    if dtype.itemsize == 0:
        return dtype.type("" if dtype.kind == "U" else b"")
    return numpy.frombuffer(data[end:], dtype=dtype, count=1)[0]


def _decode_exact_number(text: str) -> Decimal | Fraction:
    if len(text) > MAX_EXACT_CHARACTERS:
        raise CodecError(f"A decimal or a fraction has {len(text)} characters; the limit is {MAX_EXACT_CHARACTERS}.")
    numerator, slash, denominator = text.partition("/")
    return Fraction(int(numerator, 16), int(denominator, 16)) if slash else Decimal(text)


def _decode_array(data: memoryview) -> Any:
    import numpy
    from numpy.lib import format as npy

    descr, shape, content, scalar = msgspec.msgpack.decode(data)
    dtype = npy.descr_to_dtype(_restore_tuples(descr))
    _refuse_many(shape, dtype.itemsize)
    # `frombuffer` does not accept items of zero size.
    array = numpy.ndarray(tuple(shape), dtype=dtype, buffer=content).copy()
    return array[()] if scalar else array


def _decode_object_array(data: memoryview) -> Any:
    import numpy

    shape, items = _decoder.decode(data)
    _refuse_many(shape, 1)
    array = numpy.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


def _refuse_many(shape: list[int], size: int) -> None:
    """Raise `CodecError` for an impossible shape, and for too many items of zero size, which need no bytes at all."""
    if len(shape) > _MAX_DIMENSIONS:
        raise CodecError(f"An array has {len(shape)} dimensions; the limit is {_MAX_DIMENSIONS}.")
    if min(shape, default=0) < 0:
        raise CodecError("An array has a negative length.")
    if not size * math.prod(shape) and _item_count(shape) > MAX_EMPTY_ITEMS:
        raise CodecError(f"An array of zero bytes has {_item_count(shape)} items; the limit is {MAX_EMPTY_ITEMS}.")


def _item_count(shape: Sequence[int]) -> int:
    """Return how many Python objects a conversion to nested lists creates for an array of zero bytes."""
    return math.prod(takewhile(lambda length: length != 0, shape))


def _simple_dtype(text: Any) -> str:
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise CodecError(f"An array of type {text!r:.80} cannot be decoded from raw bytes.")
    return text


def _restore_tuples(descr: Any) -> Any:
    """Return a dtype description with tuples in place of the lists that msgpack made of them."""
    if not isinstance(descr, list):
        return _simple_dtype(descr)
    return [_restore_field(item) for item in descr]


def _restore_field(item: list[Any]) -> tuple[Any, ...]:
    name, kind, *shape = item
    name = tuple(name) if isinstance(name, list) else name
    # A sub-array dtype within a field is described as (base, shape).
    if isinstance(kind, list) and len(kind) == 2 and isinstance(kind[1], list) and _is_shape(kind[1]):
        return (name, (_restore_tuples(kind[0]), tuple(kind[1])), *map(tuple, shape))
    return (name, _restore_tuples(kind), *map(tuple, shape))


def _is_shape(value: list[Any]) -> bool:
    return all(isinstance(item, int) for item in value)


_decoder: Final = msgspec.msgpack.Decoder(ext_hook=_decode_extension)
