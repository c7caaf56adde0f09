from __future__ import annotations

import datetime
import decimal
import fractions
import json
import math
import pathlib

import msgspec
import numpy
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledbroker import ReplacedByRepr
from tiledwriter._json import MAX_DEPTH, MAX_INTEGER, to_json

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.floats(-9e18, 9e18) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


BEYOND = f"an integer of {{}} bits is beyond the range of JSON; {MAX_INTEGER} is stored."


def converted(value, where="start"):
    notes = []
    return to_json(value, notes.append, where), notes


@settings(deadline=None)
@given(PLAIN)
def test_what_json_carries_is_kept_as_it_is_and_not_noted(value):
    assert converted(value) == (value, [])


@pytest.mark.parametrize(
    ("value", "stored", "said"),
    [
        (math.nan, None, "JSON has no NaN; null is stored"),
        (math.inf, MAX_INTEGER, "beyond the range of Tiled's metadata"),
        (-math.inf, -MAX_INTEGER, "beyond the range of Tiled's metadata"),
        (1e20, MAX_INTEGER, "beyond the range of Tiled's metadata"),
        (-1e300, -MAX_INTEGER, "beyond the range of Tiled's metadata"),
        (2**60, MAX_INTEGER, "beyond the range of JSON"),
        (-(2**60), -MAX_INTEGER, "beyond the range of JSON"),
        (10**400, MAX_INTEGER, "beyond the range of JSON"),
        ("a\0b", "a\\x00b", "zero byte"),
        (b"bytes", "bytes", "5 bytes are stored as text"),
        (b"\xff", "\\xff", "1 bytes are stored as text"),
        (1 + 2j, "(1+2j)", "a complex is stored as text"),
        (numpy.clongdouble(1 + 2j), "(1+2j)", "a complex is stored as text"),
        (fractions.Fraction(10**400, 3), MAX_INTEGER, "beyond the range of Tiled's metadata"),
        (decimal.Decimal("1e400"), MAX_INTEGER, "beyond the range of Tiled's metadata"),
        (ReplacedByRepr("<Odd>"), "<Odd>", "a document cannot hold is stored as its repr, '<Odd>'"),
        (datetime.timedelta(1), "1 day, 0:00:00", "a timedelta is stored as text"),
        (numpy.timedelta64(1, "ns"), "1 nanoseconds", "a timedelta64 is stored as text"),
        (numpy.array([1, 2], "m8[s]"), ["1 seconds", "2 seconds"], "a timedelta64 is stored as text"),
        (numpy.array([(1, 2.5)], [("a", "i4"), ("b", "f4")]), [[1, 2.5]], "its fields are a, b"),
        (
            numpy.array([(1, "2024-01-01")], [("a", "i4"), ("b", "M8[ns]")])[0],
            [1, "2024-01-01T00:00:00.000000000"],
            "its fields are a, b",
        ),
        (decimal.Decimal("0.12345678901234567890"), 0.12345678901234568, "more digits than a float"),
        (decimal.Decimal("sNaN"), None, "JSON has no NaN"),
        (fractions.Fraction(1, 3), 1 / 3, "more digits than a float"),
        (numpy.longdouble(1) / 3, 1 / 3, "more digits than a float"),
        (
            {1: "a", 2.5: None},
            {"1": "a", "2.5": None},
            "keys that are not text or not distinct are changed: 1 (int) as '1', 2.5 (float) as '2.5'",
        ),
        (numpy.float32("nan"), None, "JSON has no NaN"),
        (numpy.int64(2**60), MAX_INTEGER, "beyond the range of JSON"),
    ],
)
def test_what_json_cannot_carry_is_replaced_and_noted_with_its_place(value, stored, said):
    result, notes = converted({"a": {"b": [0, value]}})

    assert result == {"a": {"b": [0, stored]}}
    assert len(notes) == 1
    assert notes[0].startswith("start.a.b[1]: ")
    assert said in notes[0]


def test_an_integer_that_python_refuses_to_write_is_noted_by_its_size():
    assert converted(10**5000) == (MAX_INTEGER, [f"start: {BEYOND.format(16610)}"])


def test_the_largest_integers_that_json_readers_agree_on_are_kept():
    assert converted([2**53 - 1, -(2**53) + 1]) == ([2**53 - 1, -(2**53) + 1], [])
    assert converted(2**53)[0] == 2**53 - 1


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (numpy.float32(0.5), 0.5),
        (numpy.int8(-3), -3),
        (numpy.bool_(True), True),
        (numpy.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (numpy.array(7), 7),
        (numpy.array(["x", "yz"]), ["x", "yz"]),
        ((1, (2, 3)), [1, [2, 3]]),
        (pathlib.PurePosixPath("/a b/c.h5"), "/a b/c.h5"),
        (decimal.Decimal("0.25"), 0.25),
        (fractions.Fraction(1, 8), 0.125),
        (decimal.Decimal("0.1"), 0.1),
        (numpy.datetime64("2024-01-01T00:00:00.000000001"), "2024-01-01T00:00:00.000000001"),
        (numpy.array(["2024-01-01", "NaT"], "M8[D]"), ["2024-01-01", "NaT"]),
        (datetime.time(1, 2), "01:02:00"),
        (numpy.longdouble(0.5), 0.5),
    ],
)
def test_numpy_values_tuples_and_keys_of_other_types_become_plain(value, stored):
    result, notes = converted(value)

    assert result == stored
    assert type(result) is type(stored)
    assert notes == []
    assert json.loads(msgspec.json.encode(result)) == stored


def test_non_finite_values_inside_arrays_are_noted_one_by_one():
    result, notes = converted(numpy.array([1.0, math.nan, math.inf]))
    assert result == [1.0, None, MAX_INTEGER]
    assert [note.partition(":")[0] for note in notes] == ["start[1]", "start[2]"]


def test_everything_it_returns_can_be_sent():
    for value in (numpy.str_("text"), numpy.longdouble(0.5), {numpy.str_("key"): numpy.str_("value")}):
        msgspec.json.encode(converted(value)[0])


@pytest.mark.parametrize("value", ["\ud800", {"\ud800": 1}])
def test_text_that_is_no_unicode_can_be_sent_and_is_noted(value):
    result, notes = converted(value)
    msgspec.json.encode(result)
    assert notes == ["start: text that is not valid Unicode is stored escaped."]


def test_a_mapping_is_not_changed():
    value = {"a": [math.nan, (1, 2)]}
    converted(value)
    assert math.isnan(value["a"][0])
    assert value["a"][1] == (1, 2)


def test_dates_and_times_are_written_as_iso_8601_has_them():
    moment = datetime.datetime(2025, 6, 1, 12, 0, tzinfo=datetime.timezone.utc)
    result, notes = converted([moment, moment.date()])
    assert result == ["2025-06-01T12:00:00+00:00", "2025-06-01"]
    assert not notes


def test_a_pydantic_model_is_a_dict_of_its_fields():
    class Energies(pydantic.BaseModel):
        energy: list[float]

    result, notes = converted(Energies(energy=[1.5, math.nan]))
    assert result == {"energy": [1.5, None]}
    assert len(notes) == 1


def test_keys_that_would_be_one_text_keep_their_values():
    result, notes = converted({1: "buffer", "1": "sample", "1_": "oil", 2: "water"})
    assert result == {"1__": "buffer", "1": "sample", "1_": "oil", "2": "water"}
    assert notes == ["start: keys that are not text or not distinct are changed: 1 (int) as '1__', 2 (int) as '2'."]


def test_keys_that_are_the_same_once_escaped_stay_different():
    notes = []
    value = {"a\0": 1, "a\\x00": 2, b"a\0": 3, "\ud800": 4, "\\ud800": 5}
    stored = to_json(value, notes.append, "start")
    assert stored == {"a\\x00_": 1, "a\\x00": 2, "b'a\\x00'": 3, "\\ud800_": 4, "\\ud800": 5}
    assert notes[-1].startswith("start: keys that are not text or not distinct are changed: a\\x00 (str) as ")


def test_bytes_and_other_objects_become_text_without_zero_bytes():
    class Odd:
        def __str__(self):
            return "a\0"

    assert to_json([b"a\0", Odd()], [].append, "start") == ["a\\x00"] * 2


@pytest.mark.parametrize(
    ("value", "more"),
    [
        ([math.nan] * 10_000, "start: 9990 more values are stored in another form."),
        (numpy.full((100, 100), math.nan), "start: 9990 more values are stored in another form."),
        (dict.fromkeys(range(1000)), " and 990 more."),
    ],
)
def test_of_many_changes_in_one_place_a_few_are_noted(value, more):
    _, notes = converted(value)
    assert notes[-1].endswith(more)
    assert len(notes) <= 11


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"a": inner}])
@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 1, 900])
def test_what_is_nested_too_deep_is_stored_as_text(wrap, levels):
    value, notes = 1, []
    for _ in range(levels):
        value = wrap(value)
    stored, depth = to_json(value, notes.append, "deep"), 0
    while isinstance(stored, list | dict):
        stored, depth = next(iter(stored.values() if isinstance(stored, dict) else stored)), depth + 1
    assert depth == MAX_DEPTH
    assert isinstance(stored, int if levels == MAX_DEPTH else str)
    assert len(notes) == (levels > MAX_DEPTH)
    assert all("is nested more than 100 deep" in note for note in notes)
