from __future__ import annotations

import math

import numpy
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledwriter.mapping._columns import arrow_column, arrow_type, dtype_kind, fit, list_type, scalar_type, wider

FLOATS = st.floats(allow_nan=False)
INTEGERS = st.one_of(st.integers(-10, 10), st.integers(-(2**70), 2**70))
SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, FLOATS, st.floats(-100, 100).map(lambda x: round(x, 1)))


def stored(values, type_name):
    """What Arrow makes of the fitted values, and the positions left out."""
    fitted, misfits = fit(values, type_name)
    return pyarrow.array(fitted, arrow_type(type_name)).to_pylist(), misfits


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("<f8", "float64"),
        ("<f4", "float64"),
        ("<i2", "int64"),
        (">u4", "int64"),
        ("|b1", "bool"),
        ("<U12", "string"),
        ("|S5", "string"),
        ("<c16", "string"),
        ("<M8[ns]", "string"),
        ("|O", "string"),
        ([["x", "<i4"], ["y", "<f8"]], "string"),
    ],
)
def test_a_declared_numpy_type_decides_the_column(declared, expected):
    assert scalar_type({"dtype": "number", "dtype_numpy": declared}) == expected


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("number", "float64"), ("integer", "int64"), ("boolean", "bool"), ("string", "string"), ("odd", "string")],
)
def test_without_a_numpy_type_the_json_type_decides(dtype, expected):
    assert scalar_type({"dtype": dtype}) == expected


@pytest.mark.parametrize(
    ("declared", "first", "expected"),
    [
        ("integer", 0, "int64"),
        ("integer", 0.5, "float64"),
        ("boolean", 2, "int64"),
        ("number", "off", "string"),
        ("integer", 2**64 - 1, "string"),
        ("number", numpy.datetime64("2024-01-01"), "string"),
    ],
)
def test_the_first_value_corrects_what_is_declared(declared, first, expected):
    assert scalar_type({"dtype": declared}, first) == expected


@pytest.mark.parametrize(
    ("type_name", "value", "expected"),
    [
        ("bool", 2, "int64"),
        ("bool", 0.5, "float64"),
        ("int64", 0.5, "float64"),
        ("int64", 2**64, "float64"),
        ("float64", 2**60 + 1, None),
        ("int64", "broken", None),
        ("string", "x", None),
        ("list<int64>", [0.5], "list<float64>"),
        ("list<float64>", ["a"], None),
    ],
)
def test_a_type_is_widened_to_the_narrowest_that_takes_a_value(type_name, value, expected):
    assert wider(type_name, value) == expected


def test_a_type_that_numpy_does_not_know_counts_as_not_declared():
    assert dtype_kind({"dtype_numpy": "what?"}) is None
    assert scalar_type({"dtype": "number", "dtype_numpy": "what?"}) == "float64"
    assert scalar_type({}) == "string"


@pytest.mark.parametrize(
    ("declared", "expected"),
    [("<i2", "list<int64>"), ("<f4", "list<float64>"), ("|b1", "list<bool>"), (None, "list<float64>")],
)
def test_small_arrays_become_lists_of_the_widest_type(declared, expected):
    assert list_type({"dtype": "array", "dtype_numpy": declared}) == expected
    assert pyarrow.types.is_list(arrow_type(expected))


@pytest.mark.parametrize("type_name", ["bool", "int64", "float64"])
@settings(deadline=None)
@given(values=st.lists(SCALARS, max_size=5))
def test_numbers_are_stored_exactly_or_left_out_and_named(type_name, values):
    result, misfits = stored(values, type_name)

    assert len(result) == len(values)
    for i, (given_value, kept) in enumerate(zip(values, result, strict=True)):
        if i in misfits:
            assert kept is None
            assert given_value is not None
        else:
            assert kept == given_value


@settings(deadline=None)
@given(values=st.lists(st.one_of(st.none(), st.lists(SCALARS.filter(lambda x: x is not None), max_size=4)), max_size=4))
@pytest.mark.parametrize("type_name", ["list<int64>", "list<float64>"])
def test_lists_of_numbers_are_stored_exactly_or_left_out_and_named(type_name, values):
    result, misfits = stored(values, type_name)

    for i, (given_value, kept) in enumerate(zip(values, result, strict=True)):
        assert kept is None if i in misfits else kept == given_value


@settings(deadline=None)
@given(values=st.lists(INTEGERS, min_size=1, max_size=5))
def test_integers_that_a_column_can_hold_are_never_left_out(values):
    _, misfits = fit(values, "int64")
    assert misfits == [i for i, value in enumerate(values) if not -(2**63) <= value < 2**63]

    _, misfits = fit(values, "float64")
    assert misfits == [i for i, value in enumerate(values) if int(float(value)) != value]


def test_a_fraction_does_not_lose_its_digits_in_an_integer_column():
    assert stored([1, 1.5, 2.0], "int64") == ([1, None, 2], [1])
    assert stored([numpy.float64(1.5)], "int64") == ([None], [0])


def test_an_array_of_fractions_does_not_lose_its_digits_in_a_column_of_integer_lists():
    assert stored([numpy.array([1.5, 2.0])], "list<int64>") == ([None], [0])
    assert stored([[1.5, 2.0]], "list<int64>") == ([None], [0])


def test_a_mixed_list_does_not_lose_the_digits_of_a_large_integer():
    assert stored([[2**53 + 1, 0.5]], "list<float64>") == ([None], [0])


def test_an_integer_of_any_size_is_left_out_and_not_an_error():
    for type_name in ("int64", "float64", "bool"):
        assert stored([10**400], type_name) == ([None], [0])
    assert stored([[10**400]], "list<int64>") == ([None], [0])


@pytest.mark.parametrize("type_name", ["list<int64>", "list<float64>"])
def test_a_ragged_nested_list_is_left_out_and_not_an_error(type_name):
    assert stored([[1, 2], [[1, 2], [3]]], type_name) == ([[1, 2], None], [1])


def test_an_array_of_more_dimensions_is_left_out_of_a_list_column():
    values = [[1, 2], [[1], [2]], numpy.ones((2, 2)), [[1, 2], [3, 4]], [numpy.ones(2)]]
    assert stored(values, "list<int64>") == ([[1, 2], None, None, None, None], [1, 2, 3, 4])


def test_what_is_no_list_is_left_out_of_a_list_column_but_for_single_numbers():
    assert stored(["ab", 5, b"cd", {"a": 1}, None, [1, "x"], (1, 2)], "list<int64>") == (
        [None, [5], None, None, None, None, [1, 2]],
        [0, 2, 3, 5],
    )


def test_nan_and_infinities_stay_in_float_columns_and_fit_no_other():
    result, misfits = stored([math.nan, math.inf], "float64")
    assert math.isnan(result[0])
    assert result[1] == math.inf
    assert misfits == []
    assert stored([math.nan, math.inf], "int64") == ([None, None], [0, 1])
    assert stored([math.nan, 1], "bool") == ([None, True], [0])


def test_numpy_scalars_and_arrays_of_one_value_are_values():
    values = [numpy.float32(0.5), numpy.array(1.5), numpy.array([2.5]), [3.5], (4.5,), numpy.int8(5)]
    assert stored([*values, "x"], "float64") == ([0.5, 1.5, 2.5, 3.5, 4.5, 5.0, None], [6])


def test_an_array_of_one_is_its_value_however_deep_it_is_nested():
    assert stored([[[2.5]], ((3.5,),), numpy.array([[[4.5]]]), [[1, 2]]], "float64") == ([2.5, 3.5, 4.5, None], [3])


@pytest.mark.parametrize("type_name", ["float64", "string"])
def test_a_ragged_list_in_a_column_of_single_values_is_not_an_error(type_name):
    assert stored([[[1, 2], [3]]], type_name) == (([None], [0]) if type_name == "float64" else (["[[1, 2], [3]]"], []))


@pytest.mark.parametrize(("dtype", "expected"), [("integer", "bool"), ("number", "bool"), ("string", "string")])
def test_a_truth_value_makes_a_column_of_guessed_numbers_boolean_but_none_of_text(dtype, expected):
    assert scalar_type({"dtype": dtype}, True, guessed=True) == expected


def test_a_boolean_column_takes_zero_and_one_as_well():
    assert stored([True, 0, 1.0, numpy.bool_(True), 2, "yes"], "bool") == (
        [True, False, True, True, None, None],
        [4, 5],
    )


def test_a_text_column_takes_everything():
    values = ["a", None, 5, 1.5, b"bytes", b"\xff", {"a": 1}, ["one"], numpy.str_("numpy"), True]
    result, misfits = stored(values, "string")
    assert result == ["a", None, "5", "1.5", "bytes", "\\xff", "{'a': 1}", "one", "numpy", "True"]
    assert misfits == []


def test_text_that_is_no_unicode_is_stored_escaped_and_not_an_error():
    result, misfits = stored(["a", "\ud800"], "string")
    assert result[0] == "a"
    assert result[1] is not None or misfits == [1]


def test_values_that_fit_are_not_copied():
    values = [1.0, 2.0]
    assert fit(values, "float64") == (values, [])
    assert fit(values, "float64")[0] is values


def test_text_with_a_zero_byte_is_escaped_as_postgresql_does_not_take_it():
    assert fit(["a\0b", None, "c"], "string") == (["a\\x00b", None, "c"], [])


@pytest.mark.parametrize(
    ("type_name", "values"),
    [
        ("float64", [1.5]),
        ("float64", [1.5, math.nan, -math.inf, -0.0, 5e-324]),
        ("float64", [1.5, None]),
        ("float64", [numpy.float32(0.5)]),
        ("int64", [2**63 - 1, -(2**63)]),
        ("int64", [None, 3]),
        ("bool", [True, None]),
        ("string", ["a", None]),
        ("list<int64>", [[1, 2], []]),
    ],
)
def test_arrow_gets_the_values_of_a_column_as_they_are(type_name, values):
    column = arrow_column([values], type_name)
    column.validate(full=True)
    assert column.type == arrow_type(type_name)
    assert repr(column.to_pylist()) == repr(pyarrow.array(values, arrow_type(type_name)).to_pylist())
