from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import numpy
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiled.adapters.sql import COLUMN_NAME_PATTERN, is_safe_identifier

from tiledbroker import ReplacedByRepr
from tiledwriter.mapping._columns import arrow_type
from tiledwriter.mapping._late_columns import BEGINS_LATE_SUFFIX
from tiledwriter.mapping._operations import AppendRows, CreateArray, CreateTable, OrderTable, RemoveNode, WriteArray
from tiledwriter.mapping._tables import InternalData, RowOrder

NUMBER = {"dtype": "number", "dtype_numpy": "<f8", "shape": [], "source": "test"}
TEXT = {"dtype": "string", "shape": [], "source": "test"}
COUNT = {"dtype": "integer", "dtype_numpy": "<i8", "shape": [], "source": "test"}
BY_SEQ_NUM, BY_TIME = ("seq_num", "time"), ("time", "seq_num")


def array_key(size, dtype="<f8"):
    return {"dtype": "array", "dtype_numpy": dtype, "shape": [size], "source": "test"}


def internal(data_keys, notes, *, guessed=(), max_array_size=4, column_types=None):
    return InternalData(
        "run/primary",
        "primary",
        data_keys,
        guessed=set(guessed),
        max_array_size=max_array_size,
        column_types=column_types,
        access_tags=None,
        note=notes.append,
    )


def event(seq_num, data, time=None):
    time = float(seq_num) if time is None else time
    return {"seq_num": seq_num, "time": time, "data": data, "timestamps": dict.fromkeys(data, time)}


def fold(data_keys, events, *, batches=(), notes=None, **options):
    """Operations for events, flushed after each of so many of them and at the end."""
    notes = [] if notes is None else notes
    writer = internal(data_keys, notes, **options)
    operations = []
    position = 0
    for size in batches:
        for item in events[position : position + size]:
            writer.add(item)
        position += size
        operations += writer.flush()
    for item in events[position:]:
        writer.add(item)
    operations += writer.flush()
    writer.note_changes()
    return operations


def table(operations, path="run/primary/internal"):
    """All rows of a table, by column, as Arrow stores them; checks that the appends follow on each other."""
    columns = {}
    rows = 0
    for operation in operations:
        if isinstance(operation, AppendRows) and operation.path == path:
            assert operation.first == rows
            rows = operation.stop
            for column, values in zip(operation.columns, operation.values, strict=True):
                columns.setdefault(column.name, []).extend(pyarrow.array(values, arrow_type(column.type)).to_pylist())
    return columns


def array(operations, path):
    """All rows of an array; checks that the writes follow on each other."""
    parts = []
    rows = 0
    for operation in operations:
        if isinstance(operation, WriteArray) and operation.path == path:
            assert operation.first == rows
            rows = operation.stop
            parts.append(operation.values)
    return numpy.concatenate(parts)


def of_type(operations, kind):
    return [operation for operation in operations if isinstance(operation, kind)]


# Row order


def order_of(*rows):
    order = RowOrder()
    for seq_num, time in rows:
        order.add(seq_num, time)
    return order.columns


def test_rows_are_ordered_by_sequence_number_where_that_runs_forward():
    assert order_of((1, 1.0), (2, 2.0), (3, 3.0)) == BY_SEQ_NUM
    assert order_of() == BY_SEQ_NUM


def test_after_a_rewind_rows_are_ordered_by_time():
    assert order_of((1, 1.0), (2, 2.0), (3, 3.0), (2, 4.0), (3, 5.0)) == BY_TIME


def test_a_clock_that_was_set_back_does_not_matter_while_sequence_numbers_run_forward():
    assert order_of((1, 5.0), (2, 1.0), (3, 2.0)) == BY_SEQ_NUM


def test_a_rewind_and_a_clock_set_back_leave_no_order():
    assert order_of((1, 5.0), (2, 1.0), (1, 2.0)) == ()
    assert order_of((1, 1.0), (2, 2.0), (1, 3.0), (2, 0.5), (3, 6.0)) == ()


def test_times_that_are_nan_leave_no_order_after_a_rewind():
    assert order_of((1, math.nan), (2, 2.0), (3, math.nan)) == BY_SEQ_NUM
    assert order_of((1, 1.0), (2, math.nan), (1, 3.0)) == ()
    assert order_of((1, 1.0), (2, math.nan), (2, 3.0)) == ()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0.0, 1.0, 2.0, math.nan])), min_size=1, max_size=8),
    st.integers(0, 8),
)
def test_rows_that_come_together_have_the_order_that_they_have_one_by_one(rows, split):
    order = RowOrder()
    for part in (rows[:split], rows[split:]):
        if part:
            seq_nums, times = (numpy.array(column) for column in zip(*part, strict=True))
            order.add_batch(SimpleNamespace(numbers={"seq_num": seq_nums, "time": times}.__getitem__))
    assert order.columns == order_of(*rows)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=6))
def test_whatever_columns_are_chosen_sorting_by_them_gives_the_rows_as_they_came(rows):
    order = order_of(*rows)
    keys = {BY_SEQ_NUM: lambda row: row, BY_TIME: lambda row: row[::-1]}
    possible = [columns for columns, key in keys.items() if sorted(rows, key=key) == rows]
    assert order in possible if possible else order == ()


def test_the_table_is_told_when_its_order_changes_before_the_rows_that_need_it():
    events = [event(n, {"x": n}, time) for n, time in [(1, 1.0), (2, 2.0), (1, 3.0), (2, 4.0), (3, 5.0)]]

    operations = fold({"x": NUMBER}, events, batches=(2, 1, 1))

    assert [type(operation).__name__ for operation in operations] == [
        "CreateTable",
        "AppendRows",
        "OrderTable",
        "AppendRows",
        "AppendRows",
        "AppendRows",
    ]
    assert of_type(operations, CreateTable)[0].order == BY_SEQ_NUM
    assert of_type(operations, OrderTable) == [OrderTable("run/primary/internal", BY_TIME)]


def test_rows_that_nothing_orders_are_noted():
    notes = []
    events = [event(1, {"x": 1}, 5.0), event(2, {"x": 2}, 1.0), event(1, {"x": 3}, 2.0)]
    operations = fold({"x": NUMBER}, events, notes=notes)
    assert of_type(operations, OrderTable)[-1].order == ()
    assert any("rows may be out of order" in note for note in notes)


# Columns


def test_a_table_has_sequence_numbers_times_data_and_their_timestamps():
    operations = fold({"x": NUMBER, "name": TEXT}, [event(1, {"x": 0.5, "name": "a"}), event(2, {"x": 1, "name": "b"})])

    create, append = operations
    assert [(column.name, column.type) for column in create.columns] == [
        ("seq_num", "int64"),
        ("time", "float64"),
        ("x", "float64"),
        ("name", "string"),
        ("ts_x", "float64"),
        ("ts_name", "float64"),
    ]
    assert create.metadata == {"x": NUMBER, "name": TEXT}
    assert append.columns == create.columns
    assert table(operations) == {
        "seq_num": [1, 2],
        "time": [1.0, 2.0],
        "x": [0.5, 1.0],
        "name": ["a", "b"],
        "ts_x": [1.0, 2.0],
        "ts_name": [1.0, 2.0],
    }


def test_events_without_data_are_rows_all_the_same():
    operations = fold({}, [event(1, {}), event(2, {})])
    assert table(operations) == {"seq_num": [1, 2], "time": [1.0, 2.0]}


def test_without_events_there_is_no_table():
    assert fold({"x": NUMBER}, []) == []


def test_small_arrays_are_list_columns_and_may_differ_in_length():
    events = [event(1, {"v": [1, 2, 3]}), event(2, {"v": numpy.array([4.0])}), event(3, {"v": []})]
    operations = fold({"v": array_key(3)}, events)
    assert of_type(operations, CreateArray) == []
    assert table(operations)["v"] == [[1.0, 2.0, 3.0], [4.0], []]


@pytest.mark.parametrize(("values", "noted"), [([2**53 + 1, None], True), ([2**53 + 1], False), ([5, None], False)])
def test_large_integers_beside_missing_ones_are_noted_since_readers_make_floats_of_them(values, noted):
    notes = []
    fold({"n": {"dtype": "integer", "shape": []}}, [event(i, {"n": n}) for i, n in enumerate(values)], notes=notes)
    assert any("'n' has integers beyond 2**53 and missing values" in note for note in notes) == noted


@pytest.mark.parametrize(
    ("values", "noted"),
    [(["a", None], True), ([None, "None"], True), (["a", "None", ""], False), ([{"a": 1}, None], True), ([{}], False)],
)
def test_texts_beside_missing_ones_are_noted_since_readers_make_text_of_these(values, noted):
    notes = []
    fold({"t": {"dtype": "string"}}, [event(i, {"t": t}) for i, t in enumerate(values)], notes=notes)
    assert any("'t' has texts and missing values" in note for note in notes) == noted


def test_a_text_that_an_event_does_not_have_is_noted_as_missing():
    notes = []
    fold({"t": {"dtype": "string"}}, [event(1, {"t": "a"}), event(2, {})], notes=notes)
    assert any("'t' has texts and missing values" in note for note in notes)


@pytest.mark.parametrize(("values", "noted"), [([True, None], True), ([True, False], False)])
def test_booleans_beside_missing_ones_are_noted_since_readers_make_text_of_them(values, noted):
    notes = []
    operations = fold({"b": {"dtype": "boolean"}}, [event(i, {"b": b}) for i, b in enumerate(values)], notes=notes)
    assert table(operations)["b"] == values
    assert any("'b' has booleans and missing values" in note for note in notes) == noted


def test_a_time_stamp_that_is_none_is_noted_as_such_and_not_as_a_value():
    notes = []
    fold({"x": NUMBER}, [{**event(1, {"x": 0.5}), "timestamps": {"x": "noon"}}], notes=notes)
    assert notes == ["Stream 'primary': 1 values of 'ts_x' do not fit its type and are not here as they were."]


def test_a_ragged_value_in_a_list_column_does_not_fail_the_run():
    notes = []
    operations = fold({"v": array_key(2)}, [event(1, {"v": [1, 2]}), event(2, {"v": [[1, 2], [3]]})], notes=notes)
    assert table(operations)["v"] == [[1.0, 2.0], None]
    assert any("'v'" in note for note in notes)


def test_large_arrays_are_nodes_of_their_own():
    notes = []
    values = [numpy.arange(6.0) + n for n in range(4)]
    events = [event(n + 1, {"x": n, "wave": value}) for n, value in enumerate(values)]

    operations = fold({"x": NUMBER, "wave": array_key(6)}, events, batches=(2,), notes=notes)

    (create,) = of_type(operations, CreateArray)
    assert (create.path, create.dtype, create.shape) == ("run/primary/wave", "<f8", (6,))
    assert len(create.dims) == 2
    numpy.testing.assert_array_equal(array(operations, "run/primary/wave"), values)
    assert "wave" not in table(operations)
    assert table(operations)["ts_wave"] == [1.0, 2.0, 3.0, 4.0]
    assert "Stream 'primary': 'wave' is stored as an array of its own." in notes


@pytest.mark.parametrize("batches", [(), (1,), (40,)])
@pytest.mark.parametrize(
    ("shape", "dtype", "rows"),
    [((64,), "<f8", 2048), ((1024, 1024), "<u2", 1), ((512, 256), "<u2", 4), ((20,), "|i1", 10_000)],
)
def test_chunks_have_about_a_mebibyte_whatever_comes_first(shape, dtype, rows, batches):
    key = {"dtype": "array", "dtype_numpy": dtype, "shape": list(shape), "source": "test"}
    events = [event(n + 1, {"wave": numpy.full(shape, n, dtype)}) for n in range(3)]
    (create,) = of_type(fold({"wave": key}, events, batches=batches), CreateArray)
    assert create.chunk_rows == rows


def test_a_single_number_that_comes_nested_has_a_column():
    operations = fold({"x": NUMBER}, [event(1, {"x": [[2.5]]}), event(2, {"x": [[[3.5]]]}), event(3, {"x": 3.0})])
    assert table(operations)["x"] == [2.5, 3.5, 3.0]


def test_images_are_nodes_whatever_their_size():
    key = {"dtype": "array", "dtype_numpy": "|u1", "shape": [2, 2], "source": "test"}
    operations = fold({"image": key}, [event(1, {"image": numpy.ones((2, 2), "u1")})], max_array_size=100)
    (create,) = of_type(operations, CreateArray)
    assert (create.dtype, create.shape) == ("|u1", (2, 2))


def test_arrays_of_another_shape_than_the_first_keep_what_overlaps_and_are_noted():
    notes = []
    events = [event(1, {"w": [1.0, 2.0, 3.0]}), event(2, {"w": [4.0, 5.0]}), event(3, {"w": [6.0, 7.0, 8.0, 9.0]})]
    operations = fold({"w": array_key(3)}, events, max_array_size=0, notes=notes)
    rows = array(operations, "run/primary/w")
    assert rows[0].tolist() == [1, 2, 3]
    assert rows[1].tolist()[:2] == [4, 5]
    assert math.isnan(rows[1][2])
    assert rows[2].tolist() == [6, 7, 8]
    assert any(note.startswith("Stream 'primary': 2 values of 'w'") for note in notes)


@pytest.mark.parametrize(("dtype", "filler"), [("<u2", "0"), ("|b1", "False"), ("<U3", "empty text"), ("<f8", None)])
def test_rows_of_an_array_node_that_events_lack_are_named_if_nothing_tells_them_from_others(dtype, filler):
    given = numpy.ones(3).astype(dtype)
    events = [event(n, {"w": given} if n == 1 else {}) for n in range(1, 15)]
    notes = []
    fold({"w": array_key(3, dtype)}, events, max_array_size=0, notes=notes, batches=(1, 2))
    named = "seq_num 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ..."
    expected = (
        f"Stream 'primary': 13 values of 'w' do not fit its type or are missing ({named}; the rows have {filler} where "
        "nothing fits), and are not here as they were."
    )
    assert notes[1:] == ([expected] if filler else [])


@pytest.mark.parametrize("later", [[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0]], numpy.ones((2, 3))])
def test_a_list_column_in_which_arrays_of_more_dimensions_come_is_made_anew_of_json_text(later):
    events = [event(1, {"w": [1.0, 2.0]}), event(2, {"w": later})]
    writer = internal({"w": array_key(2)}, [])
    for document in events:
        writer.add(document)
    writer.flush()
    assert writer.too_narrow == {"w": "text"}
    stored = table(fold({"w": array_key(2)}, events, column_types={"w": "text"}))["w"]
    assert [json.loads(text) for text in stored] == [[1.0, 2.0], numpy.asarray(later, object).tolist()]


def test_text_in_arrays_is_escaped_and_counted_as_in_columns():
    values = [["ab\0", "c\0\0"], ["e\0x", "\ud800"], [b"ab", b"\xff"], numpy.array([b"ab", b"\xff"])]
    notes = []
    events = [event(n + 1, {"w": value}) for n, value in enumerate(values)]
    for first in ("|S5", "|O"):
        rows = array(fold({"w": array_key(2, first)}, events, notes=notes), "run/primary/w")
        assert rows.tolist() == [["ab\\x00", "c\\x00\\x00"], ["e\\x00x", "\\ud800"], *[["ab", "\\xff"]] * 2]
        assert notes[-1] == "Stream 'primary': 6 texts of 'w' have what Tiled does not take; it is escaped."
        assert not any("do not fit" in note for note in notes)


@pytest.mark.parametrize("value", [[b"ab", b"\xff"], numpy.array([b"ab", b"\xff"])])
def test_bytes_that_are_no_text_may_come_first(value):
    rows = array(fold({"w": array_key(2, "|S5")}, [event(1, {"w": value})]), "run/primary/w")
    assert rows.tolist() == [["ab", "\\xff"]]


def test_a_number_beside_text_in_an_array_is_noted():
    notes = []
    fold({"w": array_key(2, "<U5")}, [event(1, {"w": ["a", "b"]}), event(2, {"w": ["a", 1]})], notes=notes)
    assert any("1 values of 'w' do not fit its type" in note for note in notes)


def test_array_values_beyond_the_declared_type_are_noted():
    notes = []
    events = [event(1, {"w": [1, 2, 3]}), event(2, {"w": [1, 300, 3]})]
    fold({"w": array_key(3, "|i1")}, events, max_array_size=0, notes=notes)
    assert any("1 values of 'w'" in note for note in notes)


def test_a_plain_list_of_integers_fits_an_array_declared_unsigned():
    notes = []
    operations = fold({"w": array_key(3, "<u2")}, [event(1, {"w": [1, 2, 3]})], max_array_size=0, notes=notes)
    assert array(operations, "run/primary/w").tolist() == [[1, 2, 3]]
    assert not any("do not fit" in note for note in notes)


@pytest.mark.parametrize(
    "values", [[[[1], [2, 3]], [float("nan")]], [["a", 1]], [["a", None], ["b"]], [{"x": 1}], [[None, 1.0]]]
)
def test_what_is_no_array_of_one_shape_and_type_is_stored_as_json_text(values):
    key = {**array_key(2), "shape": [None, None]}
    notes = []
    operations = fold({"w": key}, [event(n + 1, {"w": v}) for n, v in enumerate(values)], notes=notes)
    stored = [json.loads(text) for text in table(operations)["w"]]
    assert str(stored) == str(values).replace("nan", "None")
    first, *further = notes
    assert re.search("'w' has (no arrays of one shape and type|records).* stored as JSON", first)
    assert ["JSON has no NaN" in note for note in further] == [True] * ("nan" in str(values))


def test_arrays_whose_length_varies_are_lists_of_any_length():
    values = [[1.0], [], [0.5] * 100, numpy.arange(3.0)]
    operations = fold({"w": {**array_key(None)}}, [event(n + 1, {"w": v}) for n, v in enumerate(values)])
    assert table(operations)["w"] == [[1.0], [], [0.5] * 100, [0.0, 1.0, 2.0]]


def test_arrays_whose_length_varies_are_json_text_where_there_are_no_lists():
    values = [[1.0], [], [0.5, 2.0]]
    events = [event(n + 1, {"w": v}) for n, v in enumerate(values)]
    operations = fold({"w": {**array_key(None)}}, events, max_array_size=0)
    assert [json.loads(text) for text in table(operations)["w"]] == values


@pytest.mark.parametrize("max_array_size", [4, 0])
def test_arrays_that_are_empty_at_first_are_taken_to_vary_in_length(max_array_size):
    values = [[], [1.0] * 6, [2.0]]
    events = [event(n + 1, {"w": v}) for n, v in enumerate(values)]
    stored = table(fold({"w": array_key(6)}, events, max_array_size=max_array_size))["w"]
    assert (stored if max_array_size else [json.loads(text) for text in stored]) == values


def test_arrays_of_times_have_a_node():
    values = [numpy.array(["2024-01-01", "NaT"], "<M8[s]"), numpy.array(["2025-01-01", "2026-01-01"], "<M8[s]")]
    notes = []
    events = [event(n + 1, {"w": v}) for n, v in enumerate(values)]
    rows = array(fold({"w": array_key(2, "<M8[s]")}, events, notes=notes), "run/primary/w")
    numpy.testing.assert_array_equal(rows, numpy.array(values))
    assert not any("do not fit" in note for note in notes)


def test_large_unsigned_integers_are_exact_in_a_node():
    operations = fold({"w": array_key(2, "<u8")}, [event(1, {"w": [1, 2**64 - 1]})])
    assert array(operations, "run/primary/w").tolist() == [[1, 2**64 - 1]]


def test_a_truth_value_that_is_called_an_integer_is_one():
    declared = {"dtype": "integer", "dtype_numpy": "<i8", "shape": [], "source": "test"}
    operations = fold({"open": declared}, [event(1, {"open": True})], guessed={"open"})
    assert table(operations)["open"] == [True]


def test_arrays_of_text_have_a_node_with_room_for_longer_text():
    values = [["a", "b" * 20], ["c" * 40, "ü"], ["d" * 41, ""]]
    notes = []
    events = [event(n + 1, {"w": v}) for n, v in enumerate(values)]
    operations = fold({"w": array_key(2, "|O")}, events, notes=notes)
    rows = array(operations, "run/primary/w")
    assert rows.dtype == "<U64"
    assert rows.tolist() == values
    assert not any("do not fit" in note for note in notes)


def test_text_longer_than_its_array_node_takes_is_cut_and_noted():
    notes = []
    events = [event(1, {"w": ["a", "b"]}), event(2, {"w": ["c" * 49, "d"]})]
    operations = fold({"w": array_key(2, "<U48")}, events, notes=notes)
    assert array(operations, "run/primary/w").tolist() == [["a", "b"], ["c" * 48, "d"]]
    assert any("1 values of 'w' do not fit" in note for note in notes)


def test_with_no_limit_all_flat_arrays_are_lists():
    operations = fold({"w": array_key(100)}, [event(1, {"w": [1.0] * 100})], max_array_size=-1)
    assert table(operations)["w"] == [[1.0] * 100]


def test_values_that_do_not_fit_are_left_out_counted_and_noted():
    notes = []
    values = [1.0, "broken", 2.0, None, 2**60 + 1]
    operations = fold({"x": NUMBER}, [event(n + 1, {"x": v}) for n, v in enumerate(values)], notes=notes, batches=(2,))
    assert table(operations)["x"] == [1.0, None, 2.0, None, None]
    assert notes == ["Stream 'primary': 2 values of 'x' do not fit its type and are not here as they were."]


@pytest.mark.parametrize("batches", [[], [2], [3]])
def test_the_first_value_that_does_not_fit_decides_which_type_a_column_needs_next(batches):
    writer = internal({"b": {"dtype": "boolean"}}, [])
    for i, value in enumerate([True, 2**60, 1.5, 2.5]):
        writer.add(event(i, {"b": value}))
        if i + 1 in batches:
            writer.flush()
    writer.flush()
    assert writer.too_narrow == {"b": "int64"}


def test_a_column_too_narrow_for_its_values_says_which_type_it_needs():
    count = {"dtype": "integer", "shape": [], "source": "test"}
    writer = internal({"n": count, "w": array_key(2, "<i8"), "s": TEXT}, [])
    writer.add(event(1, {"n": 1, "w": [1, 2], "s": "a"}))
    writer.flush()
    assert not writer.too_narrow
    writer.add(event(2, {"n": 0.5, "w": [0.5, 2], "s": 3}))
    writer.flush()
    assert writer.too_narrow == {"n": "float64", "w": "list<float64>"}


@pytest.mark.parametrize(
    ("declared", "first", "second", "max_array_size", "needed"),
    [
        (array_key(6), [1.0] * 6, [1.0] * 9, 4, "list<float64>"),
        (array_key(6), [1.0] * 6, [], 4, "list<float64>"),
        (array_key(6, "|u1"), [1] * 6, [300] * 5, 4, "list<int64>"),
        (array_key(6, "<i4"), [1] * 6, [0.5] * 5, 4, "list<float64>"),
        (array_key(6), [1.0] * 6, [1.0] * 9, 0, "text"),
        (array_key(2, "<U1"), ["a", "b"], ["c", "d" * 33], 4, "text"),
        (array_key(2, "<u8"), [1, 2], [3], 4, "text"),
        (array_key(6), [1.0] * 6, None, 4, None),
        ({**array_key(2), "shape": [2, 2]}, [[1.0, 2.0]] * 2, [[1.0, 2.0]] * 3, 4, None),
    ],
)
def test_an_array_node_whose_shape_or_type_turns_out_wrong_becomes_a_column(
    declared, first, second, max_array_size, needed
):
    writer = internal({"w": declared}, [], max_array_size=max_array_size)
    writer.add(event(1, {"w": first}))
    writer.flush()
    writer.add(event(2, {"w": second}))
    writer.flush()
    assert writer.too_narrow == ({"w": needed} if needed else {})
    if needed:
        again = fold(
            {"w": declared},
            [event(1, {"w": first}), event(2, {"w": second})],
            max_array_size=max_array_size,
            column_types={"w": needed},
        )
        stored = table(again)["w"]
        assert [json.loads(text) for text in stored] if needed == "text" else stored == [first, second]
        assert again[-1] == RemoveNode("run/primary/w")


@pytest.mark.parametrize(
    ("declared", "first", "second", "needed"),
    [
        (array_key(6, "|u1"), [1] * 6, [300] * 6, "array<i8"),
        (array_key(6, "<i4"), [1] * 6, [0.5] * 6, "array<f8"),
        (array_key(6, "<i4"), [1] * 6, [None, *[1] * 5], "array<f8"),
        (array_key(6, "<f4"), [1] * 6, [0.1] * 6, "array<f8"),
        (array_key(6, "<f8"), [1.0] * 6, [1j] * 6, "array<c16"),
        ({**array_key(2, "<i2"), "shape": [1, 2]}, [[1, 2]], [[0.5, 1]], "array<f8"),
        ({**array_key(2, "<i8"), "shape": [1, 2]}, [[2**53 + 1, 2]], [[0.5, 1]], None),
    ],
)
def test_an_array_node_whose_type_turns_out_too_narrow_is_made_of_a_wider_one(declared, first, second, needed):
    events = [event(1, {"w": first}), event(2, {"w": second})]
    writer = internal({"w": declared}, [])
    for document in events:
        writer.add(document)
    writer.flush()
    assert writer.too_narrow == ({"w": needed} if needed else {})
    if needed:
        notes = []
        rows = array(fold({"w": declared}, events, column_types={"w": needed}, notes=notes), "run/primary/w")
        assert rows.dtype.str == needed.removeprefix("array")
        expected = numpy.array([first, second], rows.dtype)
        numpy.testing.assert_array_equal(rows, expected)
        assert not any("do not fit" in note for note in notes)


def test_keys_of_a_further_descriptor_get_columns_and_nodes_of_all_events():
    later = {"mean": NUMBER, "wave": array_key(20), "n": {"dtype": "integer", "shape": [], "source": "test"}}
    events = [event(1, {"x": 0.5}), event(2, {"x": 1.5, "mean": 2.5, "wave": [1.0] * 20, "n": 2**60})]

    def folded(types, notes):
        writer = internal({"x": NUMBER}, notes, column_types=types)
        writer.add(events[0])
        operations = writer.flush()
        writer.declare({"x": NUMBER, **later})
        writer.add(events[1])
        operations += writer.flush()
        writer.note_changes()
        return operations, writer.too_narrow

    _, types = folded({}, [])
    notes = []
    operations, more = folded(types, notes)
    assert more == {}
    assert table(operations)["mean"] == [None, 2.5]
    assert table(operations)["n"] == [None, 2**60]
    assert numpy.isnan(array(operations, "run/primary/wave")[0]).all()
    assert array(operations, "run/primary/wave")[1].tolist() == [1.0] * 20
    own_array, large = notes
    assert own_array == "Stream 'primary': 'wave' is stored as an array of its own."
    assert "'n' has integers beyond 2**53 and missing values" in large


@pytest.mark.parametrize("further", [{}, {"cam": NUMBER}])
def test_values_of_an_external_key_that_come_in_later_events_get_a_column(further):
    events = [event(1, {"x": 0.5}), event(2, {"x": 1.5, "cam": 5.0}), event(3, {"x": 2.5, "cam": 6.0})]

    def folded(types):
        notes = []
        writer = internal({"x": NUMBER, "cam": {**NUMBER, "external": "STREAM:"}}, notes, column_types=types)
        writer.add(events[0])
        writer.declare({"x": NUMBER, **further})
        for document in events[1:]:
            writer.add(document)
        operations = writer.flush()
        writer.note_changes()
        assert notes == []
        return operations, writer.too_narrow

    _, types = folded({})
    operations, more = folded(types)
    assert more == {}
    assert table(operations)["cam"] == [None, 5.0, 6.0]


def test_keys_that_are_declared_before_the_first_event_need_nothing_else():
    writer = internal({"x": NUMBER}, [])
    writer.declare({"y": NUMBER})
    writer.add(event(1, {"x": 1.0, "y": 2.0}))
    assert table(writer.flush())["y"] == [2.0]
    assert not writer.too_narrow


def test_a_column_of_integers_that_no_float_holds_is_not_widened():
    count = {"dtype": "integer", "shape": [], "source": "test"}
    writer = internal({"n": count}, [])
    writer.add(event(1, {"n": 2**53 + 1}))
    writer.flush()
    writer.add(event(2, {"n": 0.5}))
    writer.flush()
    assert not writer.too_narrow


def test_a_column_can_be_told_the_type_that_it_turned_out_to_need():
    count = {"dtype": "integer", "shape": [], "source": "test"}
    operations = fold({"n": count}, [event(1, {"n": 1}), event(2, {"n": 0.5})], column_types={"n": "float64"})
    assert table(operations)["n"] == [1.0, 0.5]


def test_a_missing_key_is_a_missing_value():
    events = [event(1, {"x": 1.0, "y": 2.0}), event(2, {"x": 3.0})]
    operations = fold({"x": NUMBER, "y": NUMBER}, events)
    assert table(operations)["y"] == [2.0, None]
    assert table(operations)["ts_y"] == [1.0, None]


def test_a_declared_key_that_the_first_event_did_not_have_has_a_column():
    events = [event(1, {"x": 1.0}), event(2, {"x": 2.0, "y": 3.0, "w": [1.0] * 6})]
    operations = fold({"x": NUMBER, "y": NUMBER, "w": array_key(6)}, events)
    assert table(operations)["y"] == [None, 3.0]
    assert array(operations, "run/primary/w")[1].tolist() == [1.0] * 6


def test_a_key_that_neither_descriptor_nor_first_event_have_is_left_out_and_noted():
    notes = []
    events = [event(1, {"x": 1.0}), event(2, {"x": 2.0, "y": 3.0})]
    assert "y" not in table(fold({"x": NUMBER}, events, notes=notes))
    assert notes == ["Stream 'primary': 'y' is neither declared nor in the first event; its data is not here."]


# Names


def columns_by_table(operations):
    return {create.path: [column.name for column in create.columns] for create in of_type(operations, CreateTable)}


def test_names_that_differ_in_case_only_go_to_a_further_table_that_has_row_numbers():
    events = [event(n, {"A": n * 1.0, "b": 2.0, "a": n * 3.0}) for n in (1, 2)]
    operations = fold(dict.fromkeys(("A", "b", "a"), NUMBER), events)
    assert columns_by_table(operations) == {
        "run/primary/internal": ["seq_num", "time", "A", "b", "ts_A", "ts_b"],
        "run/primary/internal_1": ["internal_1_row", "a", "ts_a"],
    }
    further = table(operations, "run/primary/internal_1")
    assert further["internal_1_row"] == [0, 1]
    assert further["a"] == [3.0, 6.0]
    assert [create.order for create in of_type(operations, CreateTable)] == [BY_SEQ_NUM, ("internal_1_row",)]


@pytest.mark.parametrize(("count", "declared"), [(600, NUMBER), (1200, NUMBER), (900, TEXT)])
def test_wide_tables_are_split_so_that_every_database_takes_them(count, declared):
    keys = [f"key{n}" for n in range(count)]
    value = 1.0 if declared is NUMBER else "a"
    operations = fold(dict.fromkeys(keys, declared), [event(1, dict.fromkeys(keys, value))])
    tables = columns_by_table(operations)
    assert len(tables) > 1
    for create in of_type(operations, CreateTable):
        assert len(create.columns) <= 1024
        header = 24 + 8 + len(create.columns) / 8  # PostgreSQL's, and Tiled's two columns
        assert header + sum(24 if column.type == "string" else 8 for column in create.columns) <= 8_160
    names = [name for columns in tables.values() for name in columns]
    assert len(set(names)) == len(names)
    assert set(keys) | {f"ts_{key}" for key in keys} <= set(names)


REFUSED = [
    "_x",
    "2theta",
    "a'b",
    'a"b',
    "a;b",
    "a(b)",
    "a%",
    "a=b",
    "a+b",
    "a\\b",
    "a--b",
    "a/*b",
    "θ",
    "x" * 61,
    "",
    "\n",
]


@pytest.mark.parametrize("key", REFUSED)
def test_names_that_tiled_refuses_are_changed_with_a_note(key):
    notes = []
    operations = fold({key: NUMBER}, [event(1, {key: 1.0})], notes=notes)
    ((_, _, name, timestamp),) = columns_by_table(operations).values()
    for column in (name, timestamp):
        assert is_safe_identifier(column, COLUMN_NAME_PATTERN)
        assert not column.startswith("_")
    assert timestamp == f"ts_{name}"
    assert notes == [
        f"Stream 'primary': {key!r} is stored as {name!r}, because Tiled does not accept its own name here."
    ]


def test_long_names_stay_different():
    keys = ["x" * 70 + str(n) for n in range(3)]
    operations = fold(dict.fromkeys(keys, NUMBER), [event(1, dict.fromkeys(keys, 1.0))])
    (names,) = columns_by_table(operations).values()
    assert len(set(names)) == 2 + 2 * 3


NAMES = st.lists(
    st.sampled_from(
        ["A", "a", "ts_a", "internal", "internal_1", "internal_1_row", "seq_num_", "time_", "_a", "a_", "w"]
    )
    | st.text(max_size=3),
    unique=True,
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(names=NAMES, arrays=st.sets(st.integers(0, 7)))
def test_whatever_keys_are_called_no_two_things_in_a_stream_have_one_name(names, arrays):
    keys = {name: array_key(6) if n in arrays else NUMBER for n, name in enumerate(names)}
    data = {name: [1.0] * 6 if n in arrays else 1.0 for n, name in enumerate(names)}
    operations = fold(keys, [event(1, data)])
    tables = columns_by_table(operations)
    nodes = [operation.path for operation in of_type(operations, CreateArray)] + list(tables)
    flat = [path.rpartition("/")[2] for path in nodes] + [name for columns in tables.values() for name in columns]
    assert len(set(flat)) == len(flat)
    for columns in tables.values():
        assert len({name.lower() for name in columns}) == len(columns)
        assert all(is_safe_identifier(name, COLUMN_NAME_PATTERN) for name in columns)
    assert len(flat) == 2 + len(tables) + 2 * len(names) + sum(path.endswith(f"_{n}") for n, path in enumerate(tables))


# Any batches

VALUES = {
    "number": st.none() | st.floats(allow_nan=False) | st.integers() | st.just("broken"),
    "integer": st.integers(-(2**70), 2**70) | st.booleans(),
    "text": st.text(st.characters(codec="utf-8"), max_size=3) | st.integers() | st.binary(max_size=3),
    "short": st.lists(st.integers(-5, 5), max_size=4),
    "long": st.lists(st.integers(-5, 5), min_size=5, max_size=7),
}
KEYS = {
    "number": NUMBER,
    "integer": {"dtype": "integer", "dtype_numpy": "<i8", "shape": [], "source": "test"},
    "text": TEXT,
    "short": array_key(3),
    "long": array_key(6),
}
FIRST = {"number": 0.5, "integer": 1, "text": "a", "short": [1.0], "long": [0.0] * 6}
EVENTS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 9).map(float), st.fixed_dictionaries({}, optional=VALUES)), max_size=8
)


@settings(deadline=None)
@given(rows=EVENTS, batches=st.lists(st.integers(0, 4), max_size=5))
def test_batches_of_any_size_give_the_same_rows(rows, batches):
    events = [event(1, FIRST, 0.0), *(event(seq_num, data, time) for seq_num, time, data in rows)]
    notes, other_notes = [], []

    at_once = fold(KEYS, events, notes=notes)
    in_batches = fold(KEYS, events, batches=batches, notes=other_notes)

    assert table(in_batches) == table(at_once)
    numpy.testing.assert_array_equal(array(in_batches, "run/primary/long"), array(at_once, "run/primary/long"))
    assert sorted(other_notes) == sorted(notes)
    orders = [of_type(operations, OrderTable)[-1:] for operations in (at_once, in_batches)]
    assert orders[0] == orders[1]


def test_no_room_is_made_for_missing_arrays_of_a_size_that_nobody_has_seen():
    operations = fold({"wave": array_key(2**32)}, [event(1, {}), event(2, {"wave": [1.0, 2.0]})])
    assert not of_type(operations, WriteArray)
    assert table(operations)["wave"] == [[], [1.0, 2.0]]


# Values that are not what the descriptor says


@pytest.mark.parametrize("limit", [16, 0])
def test_missing_numbers_in_arrays_are_nan(limit):
    nan = math.nan
    masked = numpy.ma.masked_array([1, 2, 3], mask=[False, True, False]).tolist()
    values = [[1.0, None, 3.0], [4.0, 5.0, 6.0], masked, numpy.array([7, None, 8.5], object), [None] * 3, None]
    notes = []
    events = [event(n + 1, {"w": value}) for n, value in enumerate(values)]
    operations = fold({"w": array_key(3)}, events, notes=notes, max_array_size=limit)
    stored = array(operations, "run/primary/w").tolist() if limit == 0 else table(operations)["w"]
    wanted = [[1, nan, 3], [4, 5, 6], [1, nan, 3], [7, nan, 8.5], [nan] * 3, [nan] * 3 if limit == 0 else None]
    assert str(stored) == str([value and list(map(float, value)) for value in wanted])
    assert not any("JSON" in note for note in notes)


def test_missing_numbers_among_integers_make_floats_of_them():
    events = [event(1, {"w": [1, 2]}), event(2, {"w": [1, None]})]
    internal_data = internal({"w": array_key(2, "<i8")}, [])
    for document in events:
        internal_data.add(document)
    internal_data.flush()
    assert internal_data.too_narrow == {"w": "list<float64>"}
    operations = fold({"w": array_key(2, "<i8")}, events, column_types={"w": "list<float64>"})
    assert str(table(operations)["w"]) == "[[1.0, 2.0], [1.0, nan]]"


def test_a_number_among_waveforms_comes_first_in_its_row():
    wave = numpy.arange(20.0)
    notes = []
    events = [event(n + 1, {"w": value}) for n, value in enumerate([wave, 5.5, wave])]
    rows = array(fold({"w": array_key(20)}, events, notes=notes), "run/primary/w")
    assert rows[1, 0] == 5.5
    assert numpy.isnan(rows[1, 1:]).all()
    assert any("1 values of 'w'" in note for note in notes)


def test_arrays_of_one_among_numbers_are_numbers():
    number = {"dtype": "number", "shape": [], "source": "test"}
    integer = {"dtype": "integer", "shape": [], "source": "test"}
    rows = [
        {"n": numpy.array([1.5]), "i": [3], "a": 0.5},
        {"n": 2.5, "i": 4, "a": [1.5]},
        {"n": [3.5], "i": [5], "a": 2.5},
    ]
    keys = {"n": number, "i": integer, "a": array_key(1)}
    stored = table(fold(keys, [event(n + 1, row) for n, row in enumerate(rows)]))
    assert (stored["n"], stored["i"], stored["a"]) == ([1.5, 2.5, 3.5], [3, 4, 5], [0.5, 1.5, 2.5])


def test_a_number_among_short_arrays_is_an_array_of_one():
    stored = table(fold({"a": array_key(2)}, [event(1, {"a": [1.0, 2.0]}), event(2, {"a": 3.0})]))
    assert stored["a"] == [[1.0, 2.0], [3.0]]


@pytest.mark.parametrize("size", [2, 20])
def test_numbers_of_extended_precision_are_rounded_and_noted(size):
    notes = []
    values = numpy.arange(size, dtype="longdouble") / 3
    operations = fold({"w": array_key(size, "<f16")}, [event(1, {"w": values})], notes=notes)
    stored = table(operations)["w"][0] if size == 2 else array(operations, "run/primary/w")[0]
    assert list(stored) == list(values.astype("<f8"))
    assert "Stream 'primary': 'w' is declared as '<f16'; its values are rounded to '<f8'." in notes
    assert not any("do not fit" in note for note in notes)


def test_a_number_of_extended_precision_is_rounded():
    key = {"dtype": "number", "dtype_numpy": "<f16", "shape": [], "source": "test"}
    assert table(fold({"x": key}, [event(1, {"x": numpy.longdouble(1) / 4})]))["x"] == [0.25]


@pytest.mark.parametrize(
    ("value", "stored", "what"),
    [
        (1 + 2j, "(1+2j)", "values of type complex"),
        (ReplacedByRepr("<Odd>"), "<Odd>", "objects that no document can carry"),
        (b"ab", "ab", "values of type bytes"),
        (1.5, "1.5", "values of type float"),
        (numpy.timedelta64(3, "s"), "3 seconds", "values of type timedelta64"),
    ],
)
def test_what_is_stored_as_text_and_is_none_is_noted(value, stored, what):
    notes = []
    key = {"dtype": "string", "shape": [], "source": "test"}
    assert table(fold({"z": key}, [event(1, {"z": value})], notes=notes))["z"] == [stored]
    assert notes == [f"Stream 'primary': 'z' has {what}; they are stored as text."]


def test_records_are_stored_as_json_and_noted():
    notes = []
    record = numpy.array([("Rex", 9)], [("name", "U10"), ("age", "i4")])[0]
    key = {"dtype": "array", "dtype_numpy": [["name", "<U10"], ["age", "<i4"]], "shape": [], "source": "test"}
    assert table(fold({"dog": key}, [event(1, {"dog": record})], notes=notes))["dog"] == ['["Rex", 9]']
    changed = "a record is stored as a list of its values; its fields are name, age."
    assert notes == [
        "Stream 'primary': 'dog' has records, which have no column type; they are stored as JSON.",
        f"Stream 'primary': the JSON of 'dog' is not always what was given: {changed}",
    ]


# Columns that begin late


@pytest.fixture
def early(monkeypatch):
    """SQLite's driver judges columns by three rows."""
    monkeypatch.setattr("tiledwriter.mapping._late_columns.FIRST_ROWS", 3)


def begin_late(operations):
    """What appends say of columns that begin late, with the row that each begins in."""
    return [
        (key.removesuffix(BEGINS_LATE_SUFFIX), kind, operation.first)
        for operation in of_type(operations, AppendRows)
        for _, key, kind in operation.begin_late
    ]


def data_rows(**columns):
    return [
        event(i + 1, dict(zip(columns, row, strict=True))) for i, row in enumerate(zip(*columns.values(), strict=True))
    ]


LATE = {"x": [math.nan, None, math.nan, 1.5], "word": [None, None, None, "a"], "n": [None, None, None, 4]}


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("batches", [(), (1, 1, 1, 1), (3,), (2, 2)])
def test_the_append_that_has_the_first_value_says_what_begins_late(batches):
    operations = fold({"x": NUMBER, "word": TEXT, "n": COUNT}, data_rows(**LATE), batches=batches)
    assert [(key, kind) for key, kind, _ in begin_late(operations)] == [("x", "array"), ("word", "filled")]


@pytest.mark.usefixtures("early")
def test_columns_without_any_value_are_among_those_that_begin_late():
    rows = data_rows(x=[None, None, None, 1.5], never=[None] * 4)
    operations = fold({"x": NUMBER, "never": NUMBER}, rows, batches=(1, 1, 1, 1))
    assert begin_late(operations) == [("x", "array", 3), ("never", "array", 3)]


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("values", [[None, None, 1.5, 2.5], [None] * 4, [1.5, None, None, None]])
def test_columns_that_begin_in_time_or_never_do_not_begin_late(values):
    assert begin_late(fold({"x": NUMBER}, data_rows(x=values), batches=(1, 1, 1, 1))) == []


@pytest.mark.usefixtures("early")
def test_timestamps_that_begin_late_are_found():
    rows = [event(i + 1, {"x": 1.0} if i < 3 else {"x": 1.0, "n": 7}) for i in range(4)]
    operations = fold({"x": NUMBER, "n": COUNT}, rows)
    assert begin_late(operations) == [("n", "filled", 0)]
    planned = fold({"x": NUMBER, "n": COUNT}, rows, column_types={f"n{BEGINS_LATE_SUFFIX}": "filled"})
    assert table(planned)["ts_n"] == [1.0, None, None, 4.0]
    assert table(planned)["n"] == [None, None, None, 7]
    assert begin_late(planned) == []


@pytest.mark.usefixtures("early")
def test_numbers_stay_a_column_if_only_their_timestamps_begin_late():
    rows = [event(i + 1, {"x": 1.5}) for i in range(4)]
    rows[:3] = [{**row, "timestamps": {}} for row in rows[:3]]
    assert begin_late(fold({"x": NUMBER}, rows)) == [("x", "filled", 0)]
    planned = fold({"x": NUMBER}, rows, column_types={f"x{BEGINS_LATE_SUFFIX}": "filled"})
    assert (table(planned)["x"], table(planned)["ts_x"]) == ([1.5] * 4, [1.0, None, None, 4.0])


@pytest.mark.usefixtures("early")
def test_integers_that_begin_late_and_are_widened_get_an_array():
    rows = [event(i + 1, {"x": 1.0} if i < 3 else {"x": 1.0, "n": 1.5}) for i in range(4)]
    plan = {f"n{BEGINS_LATE_SUFFIX}": "filled", "n": "float64"}
    assert begin_late(fold({"x": NUMBER, "n": COUNT}, rows, column_types=plan)) == [("n", "array", 0)]


@pytest.mark.usefixtures("early")
def test_what_no_plan_can_mend_is_not_asked_for_again():
    rows = [
        event(i + 1, {"x": 1.0} if i < 3 else {"x": 1.0, "n": 7}, time=math.nan if i < 3 else 5.0) for i in range(4)
    ]
    plan = {f"{key}{BEGINS_LATE_SUFFIX}": "filled" for key in ("x", "n")}
    assert begin_late(fold({"x": NUMBER, "n": COUNT}, rows, column_types=plan)) == []


@pytest.mark.usefixtures("early")
def test_numbers_that_begin_late_get_an_array_and_texts_something_in_the_first_row():
    notes = []
    plan = {f"x{BEGINS_LATE_SUFFIX}": "array", f"word{BEGINS_LATE_SUFFIX}": "filled"}
    keys = {"x": NUMBER, "word": TEXT, "n": COUNT}
    operations = fold(keys, data_rows(**LATE), batches=(1, 2), notes=notes, column_types=plan)
    numpy.testing.assert_array_equal(array(operations, "run/primary/x"), [math.nan] * 3 + [1.5])
    (created,) = of_type(operations, CreateArray)
    assert (created.shape, created.dims, created.dtype) == ((), ("time",), "<f8")
    columns = table(operations)
    assert "x" not in columns
    assert columns["ts_x"] == [1.0, 2.0, 3.0, 4.0]
    assert columns["word"] == ["", None, None, "a"]
    assert columns["n"] == LATE["n"]
    assert begin_late(operations) == []
    said = [note for note in notes if "SQLite" in note]
    assert len(said) == 2


@pytest.mark.parametrize(
    ("value", "stored"),
    [(True, 1.0), (2, 2.0), ([2.5], 2.5), (numpy.float32(1.5), 1.5), (numpy.array([[4]]), 4.0), (None, None)]
    + [(value, None) for value in ("text", [1, 2], {"a": 1}, 2**70 + 1)],
)
def test_an_array_of_numbers_takes_what_a_column_takes(value, stored):
    notes, column_notes = [], []
    operations = fold(
        {"x": NUMBER},
        [event(1, {"x": None}), event(2, {"x": value})],
        notes=notes,
        column_types={f"x{BEGINS_LATE_SUFFIX}": "array"},
    )
    expected = math.nan if stored is None else stored
    numpy.testing.assert_array_equal(array(operations, "run/primary/x"), [math.nan, expected])
    as_column = fold({"x": NUMBER}, [event(1, {"x": None}), event(2, {"x": value})], notes=column_notes)
    assert table(as_column)["x"] == [None, stored]
    assert ("do not fit" in str(notes)) == ("do not fit" in str(column_notes)) == (stored is None is not value)


# Lists of which some are missing


def test_a_missing_list_among_lists_of_one_length_needs_an_array():
    rows = [event(1, {"pair": [1, 2]}), event(2, {"pair": None})]
    writer = internal({"pair": array_key(2, "<i4")}, [])
    for row in rows:
        writer.add(row)
    writer.flush()
    assert writer.too_narrow == {"pair": "array<i4"}
    operations = fold({"pair": array_key(2, "<i4")}, rows, column_types=writer.too_narrow)
    numpy.testing.assert_array_equal(array(operations, "run/primary/pair"), [[1, 2], [0, 0]])


@pytest.mark.parametrize(("size", "planned"), [(None, {}), (2, {"list": "list<float64>"})])
def test_a_missing_list_among_lists_of_any_length_is_empty_and_noted(size, planned):
    notes = []
    rows = [event(1, {"list": [1.0, 2.0]}), event(2, {"list": None}), event(3, {})]
    operations = fold({"list": array_key(size)}, rows, notes=notes, column_types=planned)
    assert table(operations)["list"] == [[1.0, 2.0], [], []]
    assert any("2 arrays of 'list' are missing, or do not fit" in note for note in notes)


# Integers that floats cannot tell apart

LARGE = 2**60 + 1


def test_large_integers_in_an_array_of_floats_are_rounded_with_a_note():
    notes = []
    operations = fold({"w": array_key(6)}, [event(1, {"w": [LARGE] * 6}), event(2, {"w": [1] * 6})], notes=notes)
    assert array(operations, "run/primary/w").tolist() == [[float(LARGE)] * 6, [1.0] * 6]
    assert any("1 values of 'w' have more digits than floats" in note for note in notes)


def test_a_large_integer_among_numbers_that_begin_late_is_left_out_as_in_a_column():
    notes = []
    rows = [event(1, {"x": None}), event(2, {"x": LARGE})]
    operations = fold({"x": NUMBER}, rows, notes=notes, column_types={f"x{BEGINS_LATE_SUFFIX}": "array"})
    numpy.testing.assert_array_equal(array(operations, "run/primary/x"), [math.nan, math.nan])
    assert any("1 values of 'x' do not fit" in note for note in notes)


@pytest.mark.parametrize("max_array_size", [0, 4])
def test_floats_do_not_cost_an_array_of_large_integers_its_digits(max_array_size):
    rows = [event(1, {"w": [LARGE] * 6}), event(2, {"w": [0.5] * 6}), event(3, {"w": [LARGE] * 6})]
    writer = internal({"w": array_key(6, "<i8")}, [], max_array_size=max_array_size)
    for row in rows:
        writer.add(row)
    operations = writer.flush()
    assert writer.too_narrow == {}
    assert array(operations, "run/primary/w").tolist() == [[LARGE] * 6, [0] * 6, [LARGE] * 6]
