from __future__ import annotations

import json
import math

import numpy
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledwriter._columns import arrow_type
from tiledwriter._operations import AppendRows, CreateArray, CreateTable, OrderTable, WriteArray
from tiledwriter._tables import InternalData, RowOrder

NUMBER = {"dtype": "number", "dtype_numpy": "<f8", "shape": [], "source": "test"}
TEXT = {"dtype": "string", "shape": [], "source": "test"}
BY_SEQ_NUM, BY_TIME = ("seq_num", "time"), ("time", "seq_num")


def array_key(size, dtype="<f8"):
    return {"dtype": "array", "dtype_numpy": dtype, "shape": [size], "source": "test"}


def internal(data_keys, notes, *, guessed=(), max_array_size=4):
    return InternalData(
        "run/primary",
        data_keys,
        guessed=set(guessed),
        max_array_size=max_array_size,
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
    writer.report()
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


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=6))
def test_whatever_columns_are_chosen_sorting_by_them_gives_the_rows_as_they_came(rows):
    order = order_of(*rows)
    keys = {BY_SEQ_NUM: lambda row: row, BY_TIME: lambda row: row[::-1]}
    possible = [columns for columns, key in keys.items() if sorted(rows, key=key) == rows]
    assert order in possible if possible else order == ()


def test_the_table_is_told_when_its_order_changes_and_only_then():
    events = [event(n, {"x": n}, time) for n, time in [(1, 1.0), (2, 2.0), (1, 3.0), (2, 4.0), (3, 5.0)]]

    operations = fold({"x": NUMBER}, events, batches=(2, 1, 1))

    assert [type(operation).__name__ for operation in operations] == [
        "CreateTable",
        "AppendRows",
        "AppendRows",
        "OrderTable",
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
    assert any("run backwards" in note for note in notes)


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
    assert (create.path, create.dtype, create.shape, create.chunk_rows) == ("run/primary/wave", "<f8", (6,), 2)
    assert len(create.dims) == 2
    numpy.testing.assert_array_equal(array(operations, "run/primary/wave"), values)
    assert "wave" not in table(operations)
    assert table(operations)["ts_wave"] == [1.0, 2.0, 3.0, 4.0]
    assert "Stream 'primary': 'wave' is stored as an array of its own." in notes


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


def test_what_is_no_array_of_numbers_is_stored_as_json_text():
    notes = []
    values = [["a", "b"], [[1], [2, 3]], [float("nan")]]
    operations = fold({"w": array_key(2)}, [event(n + 1, {"w": v}) for n, v in enumerate(values)], notes=notes)
    assert [json.loads(text) for text in table(operations)["w"]] == [["a", "b"], [[1], [2, 3]], [None]]
    assert any("stored as JSON text" in note for note in notes)


def test_values_that_do_not_fit_are_left_out_counted_and_noted():
    notes = []
    values = [1.0, "broken", 2.0, None, 2**60 + 1]
    operations = fold({"x": NUMBER}, [event(n + 1, {"x": v}) for n, v in enumerate(values)], notes=notes, batches=(2,))
    assert table(operations)["x"] == [1.0, None, 2.0, None, None]
    assert notes == ["Stream 'primary': 2 values of 'x' do not fit its declared type; see the journal."]


def test_a_missing_key_is_a_missing_value():
    events = [event(1, {"x": 1.0, "y": 2.0}), event(2, {"x": 3.0})]
    operations = fold({"x": NUMBER, "y": NUMBER}, events)
    assert table(operations)["y"] == [2.0, None]
    assert table(operations)["ts_y"] == [1.0, None]


def test_a_key_that_the_first_event_did_not_have_is_left_out_and_noted():
    notes = []
    events = [event(1, {"x": 1.0}), event(2, {"x": 2.0, "y": 3.0})]
    assert "y" not in table(fold({"x": NUMBER, "y": NUMBER}, events, notes=notes))
    assert notes == ["Stream 'primary': 'y' is not in the first event and was left out; see the journal."]


def test_a_key_that_comes_in_the_place_of_another_is_noted_too():
    notes = []
    fold({"x": NUMBER, "y": NUMBER}, [event(1, {"x": 1.0}), event(2, {"y": 3.0})], notes=notes)
    assert any("'y' is not in the first event" in note for note in notes)


@pytest.mark.parametrize("keys", [("A", "a"), ("x", "ts_x")])
def test_no_table_has_columns_that_tiled_takes_for_one(keys):
    operations = fold(dict.fromkeys(keys, NUMBER), [event(1, dict.fromkeys(keys, 1.0))])
    for create in of_type(operations, CreateTable):
        names = [column.name.lower() for column in create.columns]
        assert len(set(names)) == len(names)


def test_no_array_takes_the_name_of_the_table():
    operations = fold({"internal": array_key(6)}, [event(1, {"internal": [1.0] * 6})])
    paths = [operation.path for operation in operations if isinstance(operation, CreateArray | CreateTable)]
    assert len(set(paths)) == len(paths)


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
