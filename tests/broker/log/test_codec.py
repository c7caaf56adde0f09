"""Documents become bytes and come back the same; what cannot is marked, and nothing ever breaks the callback."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import gc
import pickle
import struct
import subprocess
import sys
import textwrap
import uuid
from collections import ChainMap, OrderedDict, UserDict, deque, namedtuple
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import msgspec
import numpy
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tiledbroker import CodecError, Encoder, ReplacedByRepr, decode
from tiledbroker.log._codec import MAX_EMPTY_ITEMS, MAX_EXACT_CHARACTERS

thorough = settings(max_examples=80, deadline=None)


def encode(value: Any) -> tuple[bytes, list[str]]:
    encoder = Encoder()
    body = encoder.encode({"value": value})
    return body, encoder.take_replaced()


def round_trip(value: Any) -> Any:
    """What arrives when `value` is sent without loss."""
    body, replaced = encode(value)
    assert replaced == []
    return decode(body)["value"]


def test_paths_arrive_as_text() -> None:
    path = PurePosixPath("/data/a b.h5")
    assert round_trip([path, {"in": path}]) == ["/data/a b.h5", {"in": "/data/a b.h5"}]
    assert round_trip([path, 2**70]) == ["/data/a b.h5", 2**70]


def replaced_by(value: Any) -> Any:
    """What arrives in place of `value`, which cannot be encoded and must be reported."""
    body, replaced = encode(value)
    assert replaced != []
    return decode(body)["value"]


def is_same(left: Any, right: Any) -> bool:
    """Equal in type and in every bit: NaN is NaN, and minus zero is not zero."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(is_same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(is_same, left, right))
    if isinstance(left, numpy.ndarray | numpy.generic):
        if left.dtype != right.dtype or left.shape != right.shape:
            return False
        if left.dtype.hasobject:
            return is_same(left.ravel().tolist(), right.ravel().tolist())
        return left.tobytes() == right.tobytes()
    if isinstance(left, complex):
        return is_same([left.real, left.imag], [right.real, right.imag])
    if isinstance(left, float):
        return struct.pack("<d", left) == struct.pack("<d", right)
    return bool(left == right)


any_text = st.text(st.characters(exclude_categories=()))
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
simple_dtypes = hnp.scalar_dtypes().filter(lambda dtype: dtype.itemsize > 0)
structured_dtypes = hnp.nested_dtypes(simple_dtypes, max_leaves=4, max_itemsize=200)


class TestWhatArrivesAsItWas:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            False,
            0,
            -1,
            2**63 - 1,
            2**63,
            2**64 - 1,
            2**64,
            -(2**63),
            -(2**63) - 1,
            2**1000,
            -(2**1000),
            10**5000,
            0.0,
            -0.0,
            5e-324,
            1.7976931348623157e308,
            float("nan"),
            float("inf"),
            float("-inf"),
            1 + 2j,
            complex("nan-infj"),
            "",
            "µm Å 😀 \x00",
            "\ud800",
            "a\udfffb",
            "\ud83d\ude00",
            b"",
            b"\x00\xff",
            b"x" * 70_000,
            [],
            {},
            [[], [{}], {"a": []}],
            {"": {"a.b": [1, {"c": None}]}},
        ],
        ids=lambda value: repr(value)[:30] if not isinstance(value, int) else f"int of {value.bit_length()} bits",
    )
    def test_a_plain_value(self, value: Any) -> None:
        assert is_same(round_trip(value), value)

    @thorough
    @given(plain_values)
    def test_any_nesting_of_plain_values(self, value: Any) -> None:
        assert is_same(round_trip(value), value)

    @thorough
    @given(st.data(), shapes)
    def test_any_array_of_a_simple_dtype(self, data: st.DataObject, shape: tuple[int, ...]) -> None:
        array = data.draw(hnp.arrays(simple_dtypes, shape))
        assert is_same(round_trip(array), array)

    @thorough
    @given(st.data(), hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=2))
    def test_any_array_of_a_structured_dtype(self, data: st.DataObject, shape: tuple[int, ...]) -> None:
        array = data.draw(hnp.arrays(structured_dtypes, shape))
        assert is_same(round_trip(array), array)

    @thorough
    @given(st.data())
    def test_any_numpy_scalar(self, data: st.DataObject) -> None:
        scalar = data.draw(hnp.arrays(simple_dtypes, (1,)))[0]
        assert is_same(round_trip(scalar), scalar)

    @thorough
    @given(st.data())
    def test_any_array_of_objects(self, data: st.DataObject) -> None:
        items = data.draw(st.lists(plain_values, max_size=4))
        array = numpy.empty(len(items), dtype=object)
        for i, item in enumerate(items):
            array[i] = item
        assert is_same(round_trip(array), array)

    @pytest.mark.parametrize(
        "scalar",
        [
            numpy.float64("nan"),
            numpy.float32(1.5),
            numpy.float16(-0.0),
            numpy.longdouble(1) / 3,
            numpy.int8(-1),
            numpy.uint64(2**64 - 1),
            numpy.bool_(True),
            numpy.complex64(1 - 1j),
            numpy.str_("µ"),
            numpy.str_(""),
            numpy.bytes_(b"ab"),
            numpy.bytes_(b""),
            numpy.void(b"abc"),
            numpy.datetime64("2024-02-29T12:00:00.123456789"),
            numpy.datetime64("NaT"),
            numpy.timedelta64(-3, "ms"),
        ],
        ids=lambda scalar: f"{scalar.dtype} {scalar!s}",
    )
    def test_a_numpy_scalar(self, scalar: numpy.generic) -> None:
        assert is_same(round_trip(scalar), scalar)

    @pytest.mark.parametrize(
        "dtype",
        [
            [("a", "<i2"), ("b", ">f8"), ("c", "?"), ("d", "<U3"), ("e", "S2"), ("f", "<M8[us]")],
            [("nested", [("x", "<f4"), ("deeper", [("y", ">u2")])])],
            [("sub", "<i4", (2, 3)), ("sub of struct", [("x", "<f8"), ("y", "<f8")], (2,))],
            [("sub of sub", (numpy.dtype(("<i4", (2,))), (3,)))],
            [(("A title", "a"), "<i4")],
        ],
        ids=["flat", "nested", "sub-arrays", "sub-array of a sub-array", "titled"],
    )
    def test_structured_arrays_and_their_elements(self, dtype: Any) -> None:
        array = numpy.zeros((2, 2), dtype=dtype)
        assert is_same(round_trip(array), array)
        assert is_same(round_trip(array[0, 0]), array[0, 0])

    def test_a_structured_dtype_with_padding(self) -> None:
        array = numpy.zeros(3, numpy.dtype([("a", "i1"), ("b", "<f8")], align=True))
        array["b"] = [1, 2, 3]
        arrived = round_trip(array)
        assert arrived.dtype.itemsize == array.dtype.itemsize
        assert arrived["b"].tolist() == [1.0, 2.0, 3.0]

    @pytest.mark.parametrize(
        "array",
        [
            numpy.arange(24.0).reshape(2, 3, 4)[:, ::2, ::-1],
            numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
            numpy.broadcast_to(numpy.int16(7), (3, 2)),
            numpy.arange(5, dtype=">i8"),
            numpy.array(["a", "µm", ""]),
            numpy.array([b"a", b"bc"]),
            numpy.array(["2024-01-01", "NaT"], dtype="M8[D]"),
            numpy.array([True, False]),
            numpy.array(3.5),
            numpy.array([]),
            numpy.zeros((0, 3), dtype="i4"),
            numpy.zeros((3, 0, 2)),
        ],
        ids=lambda array: f"{array.dtype} {array.shape} {array.strides}",
    )
    def test_an_array_of_any_stride_order_and_shape(self, array: numpy.ndarray) -> None:
        assert is_same(round_trip(array), array)

    def test_arrays_of_objects_element_by_element(self) -> None:
        array = numpy.array([[None, 1.5, "x"], [b"y", True, 2]], dtype=object)
        assert is_same(round_trip(array), array)

    @pytest.mark.parametrize("items", [[[1, 2], [3, 4]], [[5]], [numpy.arange(2), numpy.arange(2)], [{"a": 1}, {}]])
    def test_arrays_of_containers_keep_their_own_shape(self, items: list[Any]) -> None:
        array = numpy.empty(len(items), dtype=object)
        for i, item in enumerate(items):
            array[i] = item
        arrived = round_trip(array)
        assert arrived.shape == array.shape
        assert all(map(is_same, arrived, items))

    @pytest.mark.parametrize("item", [2**70, "\ud800", [2**70]], ids=["big integer", "lone surrogate", "nested"])
    def test_arrays_of_objects_with_values_that_need_an_extension(self, item: Any) -> None:
        array = numpy.empty(2, dtype=object)
        array[0] = item
        assert is_same(round_trip(array), array)

    @pytest.mark.parametrize("value", [None, numpy.array(None), numpy.empty((0, 3), dtype=object)])
    def test_object_arrays_without_dimensions_or_items(self, value: Any) -> None:
        assert is_same(round_trip(value), value)

    def test_keys_that_are_no_strings(self) -> None:
        value = {1: "int", None: "None", 1.5: "float", b"a": "bytes", False: "not 0", 2**63: "large"}
        assert is_same(round_trip(value), value)

    def test_keys_do_not_depend_on_the_values_beside_them(self) -> None:
        value = {None: 1, 1.5: 2, b"a": 3, "big": 2**70}
        assert is_same(round_trip(value), value)

    def test_decoded_arrays_are_their_readers_own(self) -> None:
        array = round_trip(numpy.arange(3))
        array += 1
        assert array.tolist() == [1, 2, 3]


EXACT_NUMBERS = [
    decimal.Decimal(text)
    for text in (
        "0.1",
        "0.250",
        "-0",
        "1E+400",
        "-1e-400",
        "123456789012345678901234567890",
        "NaN",
        "sNaN",
        "-Infinity",
    )
] + [fractions.Fraction(1, 3), fractions.Fraction(-7, 2), fractions.Fraction(10**4000 + 1, 3), fractions.Fraction(0)]


def is_same_number(left: Any, right: Any) -> bool:
    """Equal in type and in every digit."""
    return type(left) is type(right) and (
        str(left) == str(right) if isinstance(left, decimal.Decimal) else bool(left == right)
    )


@pytest.mark.parametrize("number", EXACT_NUMBERS, ids=lambda number: f"{number!s:.30}")
class TestExactNumbers:
    def test_they_keep_every_digit(self, number: Any) -> None:
        assert is_same_number(round_trip(number), number)

    def test_wherever_they_are(self, number: Any) -> None:
        @dataclasses.dataclass
        class Dose:
            amount: Any
            _history: list[Any]

        class Level(enum.Enum):
            HIGH = number

        class Record(msgspec.Struct):
            amount: Any

        objects = numpy.empty((1, 2), object)
        objects[0, 0] = number
        dose = Dose([number], [number])
        sent = [[number], (number,), {"a": {"b": number}}, deque([number]), MappingProxyType({"a": number})]
        sent += [{"nested": dose}, Record(number), Level.HIGH, objects]
        arrived = round_trip(sent)
        in_mapping = [arrived[2]["a"]["b"], arrived[4]["a"], arrived[5]["nested"]["amount"][0]]
        in_mapping += [arrived[5]["nested"]["_history"][0], arrived[6]["amount"]]
        found = [arrived[0][0], arrived[1][0], arrived[3][0], arrived[7], arrived[8][0, 0], *in_mapping]
        assert all(is_same_number(item, number) for item in found)
        assert arrived[8][0, 1] is None

    @pytest.mark.parametrize("field", ["data", "timestamps", "time"])
    def test_in_any_part_of_an_event(self, number: Any, field: str) -> None:
        event: dict[str, Any] = {"uid": "e", "time": 1.5, "data": {"x": 1.5, "y": 2}, "timestamps": {"x": 1.5, "y": 2}}
        event[field] = number if field == "time" else {"x": 1.5, "y": number}
        arrived = decode(Encoder().encode(event))
        assert is_same_number(arrived[field] if field == "time" else arrived[field]["y"], number)
        assert arrived["data"]["x"] == 1.5

    def test_beside_what_has_to_be_taken_apart(self, number: Any) -> None:
        assert is_same_number(round_trip([2**70, number])[1], number)
        assert is_same_number(round_trip({"a": "\ud800", "b": {"c": [number]}})["b"]["c"][0], number)

    def test_version_0_1_reads_the_nearest_float(self, number: Any) -> None:
        # Its decoder, which takes no notice of what follows a NumPy scalar's value.
        def released(code: int, data: memoryview) -> Any:
            assert code == 3
            end = 1 + data[0]
            return numpy.frombuffer(data[end:], dtype=numpy.dtype(bytes(data[1:end]).decode()), count=1)[0]

        read = msgspec.msgpack.Decoder(ext_hook=released).decode(Encoder().encode({"value": number}))["value"]
        quiet = decimal.Decimal("NaN") if isinstance(number, decimal.Decimal) and number.is_snan() else number
        try:
            nearest = float(quiet)
        except OverflowError:
            nearest = float("inf")
        assert is_same(float(read), nearest)


def test_decimals_that_are_keys_keep_every_digit() -> None:
    (key,) = round_trip({decimal.Decimal("0.10"): 1})
    assert is_same_number(key, decimal.Decimal("0.10"))


def test_a_decimal_in_a_pydantic_model_keeps_every_digit() -> None:
    class Model(pydantic.BaseModel):
        dose: decimal.Decimal

    assert is_same_number(round_trip(Model(dose=decimal.Decimal("0.10")))["dose"], decimal.Decimal("0.10"))


def test_an_exact_number_of_very_many_digits_is_replaced_by_its_repr() -> None:
    replaced_by(decimal.Decimal(10**MAX_EXACT_CHARACTERS))
    replaced_by(fractions.Fraction(1, 16**MAX_EXACT_CHARACTERS))


@pytest.mark.parametrize("text", ["1/0", "0.1.2", "1/x", "/", "x", "\u0661/3".encode().decode(), "9" * 70_000])
def test_an_exact_number_that_is_none_is_a_codec_error(text: str) -> None:
    payload = b"\x03<f8" + struct.pack("<d", 0.5) + text.encode()
    with pytest.raises(CodecError):
        decode(_document_with_extension(3, payload))


class TestWhatArrivesAsSomethingSimilar:
    @pytest.mark.parametrize(
        ("sent", "arrived"),
        [
            ((1, (2, 3)), [1, [2, 3]]),
            (namedtuple("Point", "x y")(1, 2), [1, 2]),  # noqa: PYI024  only what users have
            ({1}, [1]),
            (frozenset({"a"}), ["a"]),
            (deque([1, 2]), [1, 2]),
            (range(3), [0, 1, 2]),
            (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
            (MappingProxyType({"a": 1}), {"a": 1}),
            (ChainMap({"a": 1}, {"b": 2}), {"b": 2, "a": 1}),
            (UserDict({"a": 1}), {"a": 1}),
            (bytearray(b"ab"), b"ab"),
            (datetime.datetime(2024, 2, 29, 12, 0), "2024-02-29T12:00:00"),  # noqa: DTZ001  naive on purpose
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (numpy.ma.array([1, 2], mask=[False, True]), [1, None]),
            (numpy.ma.masked, None),
            (numpy.ma.array([0.1, 2], "f4", mask=[False, True]), [float(numpy.float32(0.1)), None]),
            (
                numpy.ma.array(numpy.array(["2024-01-01", "2024-01-02"], "M8[ns]"), mask=[False, True]),
                [numpy.datetime64("2024-01-01", "ns"), None],
            ),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_a_container_or_a_standard_type(self, sent: Any, arrived: Any) -> None:
        assert is_same(round_trip(sent), arrived)
        assert is_same(round_trip([sent, 2**70]), [arrived, 2**70])

    def test_subclasses_arrive_as_what_they_derive_from(self) -> None:
        class Text(str):
            __slots__ = ()

        class Number(int):
            pass

        class Real(float):
            pass

        class Table(dict):
            pass

        class Row(list):
            pass

        class Raw(bytes):
            pass

        class Level(enum.IntEnum):
            HIGH = 3

        class Mode(str, enum.Enum):
            STEP = "step"

        sent = [Text("a"), Number(1), Real(0.5), Table(a=Number(2)), Row([1]), Raw(b"r"), Level.HIGH, Mode.STEP]
        arrived = ["a", 1, 0.5, {"a": 2}, [1], b"r", 3, "step"]
        assert is_same(round_trip(sent), arrived)
        assert is_same(round_trip([*sent, Number(2**70), Text("\ud800")]), [*arrived, 2**70, "\ud800"])

    def test_a_subclass_that_lies_about_itself_is_taken_by_its_value(self) -> None:
        class Sly(str):
            __slots__ = ()

            def __str__(self) -> str:
                raise RuntimeError

            def encode(self, *_: object) -> bytes:
                raise RuntimeError

        assert is_same(round_trip([Sly("value"), 2**70]), ["value", 2**70])

    def test_a_dataclass_arrives_as_a_mapping(self) -> None:
        @dataclasses.dataclass
        class Motor:
            name: str
            limits: tuple[int, int]

        assert is_same(round_trip(Motor("x", (0, 1))), {"name": "x", "limits": [0, 1]})

    def test_a_document_may_be_any_mapping(self) -> None:
        assert decode(Encoder().encode(MappingProxyType({"uid": "a"}))) == {"uid": "a"}
        assert decode(Encoder().encode(ChainMap({"uid": "a"}, {"big": 2**70}))) == {"uid": "a", "big": 2**70}

    def test_metadata_of_a_dtype_costs_the_metadata_and_nothing_else(self) -> None:
        array = numpy.zeros(2, numpy.dtype("<f8", metadata={"h5py": "text"}))
        assert is_same(round_trip(array), numpy.zeros(2))


class Unencodable:
    def __repr__(self) -> str:
        return "Unencodable()"


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr today")


class BrokenMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("the device is gone")

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


class Faceless:
    @property
    def __class__(self) -> type:
        raise RuntimeError("a proxy whose target is gone")


class TestWhatIsReplacedByItsRepr:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (Unencodable(), "Unencodable()"),
            (len, "<built-in function len>"),
            (Unencodable, repr(Unencodable)),
            (memoryview(b"abcd")[::2], "<memory at"),
            (numpy.zeros(1, [("a", object)]), "array([(0,)], dtype=[('a', 'O')])"),
            (numpy.zeros(1, [("a", object)])[0], "np.void((0,), dtype=[('a', 'O')])"),
        ],
        ids=["object", "function", "class", "strided memoryview", "structured array with objects", "its element"],
    )
    def test_a_foreign_object_is_marked_and_reported(self, value: Any, text: str) -> None:
        body, replaced = encode([value, 1])
        arrived, one = decode(body)["value"]
        assert type(arrived) is ReplacedByRepr
        assert arrived.startswith(text)
        assert replaced == [type(value).__qualname__]
        assert one == 1

    def test_only_the_value_itself_is_replaced_when_the_document_is_unusual_otherwise(self) -> None:
        arrived = replaced_by({"big": 2**70, "object": Unencodable(), "array": numpy.arange(2)})
        assert arrived["big"] == 2**70
        assert arrived["object"] == "Unencodable()"
        assert arrived["array"].tolist() == [0, 1]

    def test_an_array_of_very_many_items_without_bytes(self) -> None:
        assert round_trip(numpy.empty((MAX_EMPTY_ITEMS, 0))).shape == (MAX_EMPTY_ITEMS, 0)
        assert round_trip(numpy.empty((0, 2048, 2048))).shape == (0, 2048, 2048)
        for dtype in (float, object):
            replaced_by(numpy.empty((MAX_EMPTY_ITEMS + 1, 0), dtype))

    def test_an_object_inside_an_object_array_alone_is_replaced(self) -> None:
        arrived = replaced_by(numpy.array([Unencodable(), 1], dtype=object))
        assert isinstance(arrived, numpy.ndarray)
        assert type(arrived[0]) is ReplacedByRepr
        assert arrived[1] == 1

    def test_an_object_whose_repr_raises(self) -> None:
        arrived = replaced_by(Unprintable())
        assert type(arrived) is ReplacedByRepr
        assert arrived == "<Unprintable whose repr raised RuntimeError>"

    def test_an_object_whose_repr_has_lone_surrogates(self) -> None:
        class Odd:
            def __repr__(self) -> str:
                return "\ud800"

        assert replaced_by(Odd()) == "\\ud800"

    @pytest.mark.parametrize("make", [BrokenMapping, Faceless])
    def test_an_object_that_raises_when_it_is_looked_at(self, make: type) -> None:
        arrived = replaced_by({"good": 1, "bad": make()})
        assert arrived["good"] == 1
        assert isinstance(arrived["bad"], ReplacedByRepr)

    def test_a_key_that_had_to_be_changed_is_reported(self) -> None:
        arrived = replaced_by({"\ud800": 1})
        assert list(arrived.values()) == [1]

    def test_no_entry_is_lost_for_keys_with_equal_text(self) -> None:
        body, _ = encode({"\ud800": 1, "\\ud800": 2})
        assert sorted(decode(body)["value"].values()) == [1, 2]

    def test_a_cycle_ends(self) -> None:
        row: list[Any] = [1]
        row.append(row)
        arrived = replaced_by({"row": row, "other": "kept"})
        assert arrived["other"] == "kept"
        assert arrived["row"][0] == 1
        while isinstance(arrived["row"], list):
            arrived = {"row": arrived["row"][1]}
        assert isinstance(arrived["row"], ReplacedByRepr)

    def test_a_cycle_with_two_ways_round_ends_soon(self) -> None:
        # In a process of its own: it may take all time and memory there are.
        code = """
            from tiledbroker import Encoder
            table = {}
            table["left"] = table["right"] = table
            encoder = Encoder()
            print(len(encoder.encode({"table": table})), encoder.take_replaced() != [])
        """
        command = [sys.executable, "-c", textwrap.dedent(code)]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
        except subprocess.TimeoutExpired:
            pytest.fail("The encoder follows a cycle for ever.")
        assert int(answer[0]) < 1_000_000
        assert answer[1] == "True"

    def test_an_object_array_that_holds_itself(self) -> None:
        array = numpy.empty(1, dtype=object)
        array[0] = array
        replaced_by(array)
        array[0] = None
        gc.collect()

    def test_what_is_nested_too_deeply_keeps_its_outer_levels(self) -> None:
        level = replaced_by(_nested(100_000))
        levels = 0
        while isinstance(level, list):
            (level,) = level
            levels += 1
        assert isinstance(level, ReplacedByRepr)
        assert levels > 100

    @pytest.mark.parametrize("depth", [50, 150])
    def test_what_was_encoded_can_be_decoded_from_a_deeper_stack(self, depth: int) -> None:
        body, _ = encode(_nested(depth))
        assert "value" in _decode_below(body, 300)

    def test_reports_are_taken_once(self) -> None:
        encoder = Encoder()
        encoder.encode({"a": Unencodable(), "b": [len]})
        assert encoder.take_replaced() == ["Unencodable", "builtin_function_or_method"]
        assert encoder.take_replaced() == []

    def test_reports_wait_for_being_taken(self) -> None:
        encoder = Encoder()
        encoder.encode({"a": Unencodable()})
        encoder.encode({"a": 2**70})
        assert encoder.take_replaced() == ["Unencodable"]

    @thorough
    @given(plain_values)
    def test_encoding_never_changes_the_callers_document(self, value: Any) -> None:
        document = {
            "value": value,
            "array": numpy.arange(4)[::2],
            "objects": numpy.array([None, [1]], dtype=object),
            "tuple": (1, [2]),
            "set": {1},
            "big": 2**70,
            "object": Unencodable,
        }
        before = copy.deepcopy(document)
        Encoder().encode(document)
        assert is_same(document, before)


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _decode_below(body: bytes, frames: int) -> dict[str, Any]:
    return decode(body) if frames == 0 else _decode_below(body, frames - 1)


def _document_with_extension(code: int, payload: bytes) -> bytes:
    return msgspec.msgpack.encode({"value": msgspec.msgpack.Ext(code, payload)})


class _Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


class TestWhatIsNoDocument:
    @thorough
    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_document_or_a_codec_error(self, garbage: bytes) -> None:
        _decode_or_codec_error(garbage)

    @thorough
    @given(st.integers(-128, 127), st.binary(max_size=60))
    def test_any_extension_is_a_value_or_a_codec_error(self, code: int, payload: bytes) -> None:
        _decode_or_codec_error(_document_with_extension(code, payload))

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_any_damage_is_a_document_or_a_codec_error(self, data: st.DataObject) -> None:
        body = bytearray(_EVERYTHING)
        for _ in range(data.draw(st.integers(1, 3))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        _decode_or_codec_error(bytes(body))

    def test_every_truncation_is_a_codec_error(self) -> None:
        for length in range(len(_EVERYTHING)):
            with pytest.raises(CodecError):
                decode(_EVERYTHING[:length])

    def test_bytes_after_the_end_are_a_codec_error(self) -> None:
        with pytest.raises(CodecError):
            decode(_EVERYTHING + b"\xc0")

    @pytest.mark.parametrize("value", [None, 1, "text", [], [{}]])
    def test_what_is_not_a_mapping_is_a_codec_error(self, value: Any) -> None:
        with pytest.raises(CodecError, match="mapping"):
            decode(msgspec.msgpack.encode(value))

    def test_an_unknown_extension_is_named(self) -> None:
        with pytest.raises(CodecError, match="99"):
            decode(_document_with_extension(99, b""))

    def test_hostile_nesting_is_a_codec_error(self) -> None:
        with pytest.raises(CodecError):
            decode(b"\x81\xa1v" + b"\x91" * 200_000 + b"\xc0")

    def test_a_claimed_length_of_gigabytes_is_a_codec_error(self) -> None:
        for header in (b"\xdd", b"\xdf", b"\xdb", b"\xc6"):
            with pytest.raises(CodecError):
                decode(b"\x81\xa1v" + header + b"\xff\xff\xff\xff")

    def test_an_array_larger_than_its_bytes_is_a_codec_error(self) -> None:
        payload = msgspec.msgpack.encode(["<f8", [10**12], b"12345678", False])
        with pytest.raises(CodecError):
            decode(_document_with_extension(2, payload))

    def test_objects_in_raw_arrays_and_scalars_are_refused(self) -> None:
        for descr in ("|O", "O", [["a", "|O"]], [["a", [["b", "|O"]]]], [["a", "|O", [2]]]):
            payload = msgspec.msgpack.encode([descr, [1], b"\x00" * 16, False])
            with pytest.raises(CodecError):
                decode(_document_with_extension(2, payload))
        with pytest.raises(CodecError):
            decode(_document_with_extension(3, b"\x02|O" + b"\x00" * 8))

    @pytest.mark.parametrize(
        ("descr", "shape"),
        [
            ("|S0", [10**9]),
            ("<U0", [10**9]),
            ("|V0", [10**9]),
            ("<f8", [10**9, 0]),
            ([], [10**9]),
            ("|S0", [10**5] * 3),
        ],
    )
    def test_items_without_bytes_are_limited_in_number(self, descr: Any, shape: list[int]) -> None:
        payload = msgspec.msgpack.encode([descr, shape, b"", False])
        with pytest.raises(CodecError, match="of zero bytes has"):
            decode(_document_with_extension(2, payload))

    def test_object_arrays_without_items_are_limited_too(self) -> None:
        with pytest.raises(CodecError, match="of zero bytes has"):
            decode(_document_with_extension(4, msgspec.msgpack.encode([[10**9, 0], []])))

    @pytest.mark.parametrize("code", [2, 4])
    def test_a_negative_length_is_a_codec_error(self, code: int) -> None:
        # NumPy takes -1 for what is left: any number of rows of no items.
        fields = [[10**9, -1], []] if code == 4 else ["<f8", [10**9, -1], b"", False]
        with pytest.raises(CodecError, match="negative"):
            decode(_document_with_extension(code, msgspec.msgpack.encode(fields)))

    def test_a_shape_without_end_is_a_codec_error(self) -> None:
        payload = msgspec.msgpack.encode(["<f8", [2**63] * 100_000, b"", False])
        with pytest.raises(CodecError, match="dimensions"):
            decode(_document_with_extension(2, payload))

    @pytest.mark.parametrize(
        "text",
        [
            "<m8[s/0]",  # NumPy divides by zero, and the process ends
            "<M8[0s]",
            "(1000000000,)f8",
            "f8,f8",
            "{'names': ['a'], 'formats': ['<f8']}",
            "T",
            "object_",
            "float64",
            "",
        ],
    )
    def test_only_types_as_numpy_writes_them_are_read(self, text: str) -> None:
        payload = msgspec.msgpack.encode([text, [1], bytes(8), False])
        with pytest.raises(CodecError, match="of type"):
            decode(_document_with_extension(2, payload))
        with pytest.raises(CodecError, match="of type"):
            decode(_document_with_extension(3, bytes([len(text)]) + text.encode() + bytes(8)))

    @pytest.mark.parametrize(
        "code", [*numpy.typecodes["All"].replace("O", ""), "M8[2147483647s]", "m8[as]", "V7", "U3"]
    )
    @pytest.mark.parametrize("order", "<>")
    def test_every_type_of_numpy_is_read(self, code: str, order: str) -> None:
        array = numpy.zeros(2, numpy.dtype(code).newbyteorder(order))
        assert round_trip(array).dtype == array.dtype

    def test_nothing_is_ever_unpickled(self, tmp_path: Path) -> None:
        crater = tmp_path / "unpickled"
        bomb = pickle.dumps(_Bomb(crater))
        pickle.loads(bomb)
        assert crater.exists()
        crater.unlink()
        for code in range(-128, 128):
            _decode_or_codec_error(_document_with_extension(code, bomb))
        for descr in ("|O", [["a", "|O"]]):
            payload = msgspec.msgpack.encode([descr, [1], bomb, False])
            with pytest.raises(CodecError):
                decode(_document_with_extension(2, payload))
        # The form of msgpack_numpy, which calls pickle.loads on it.
        foreign = {b"nd": True, b"type": b"|O", b"kind": b"O", b"shape": [1], b"data": bomb}
        assert decode(msgspec.msgpack.encode({"value": foreign}))["value"] == foreign
        assert not crater.exists()

    def test_a_memoryview_decodes_as_bytes_do(self) -> None:
        assert decode(memoryview(Encoder().encode({"a": [1]}))) == {"a": [1]}


def _decode_or_codec_error(body: bytes) -> None:
    try:
        document = decode(body)
    except CodecError:
        return
    assert isinstance(document, dict)


_EVERYTHING = Encoder().encode(
    {
        "plain": [None, True, -5, 2**64 - 1, 1.5, "text", b"bytes", {"a": {}}],
        "extensions": [2**70, "\ud800", 1j, len],
        "scalars": [numpy.float32(1), numpy.datetime64("2024-01-01"), numpy.str_("a")],
        "arrays": [numpy.arange(3), numpy.zeros((2, 1), [("a", ">i2"), ("b", "<f4", (2,))]), numpy.array([None, "x"])],
    }
)


def test_a_pydantic_model_is_carried_as_a_dict_of_its_fields():
    class Energies(pydantic.BaseModel):
        energy: list[float]

    encoder = Encoder()
    assert decode(encoder.encode({"table": Energies(energy=[1.5])})) == {"table": {"energy": [1.5]}}
    assert not encoder.take_replaced()
