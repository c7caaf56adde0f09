"""Documents get from intake to writing in memory, as far as there is room, in order and without a gap."""

from __future__ import annotations

import pytest

from tiledbroker import Record
from tiledwriter.worker._record_buffer import RecordBuffer


def records(start, stop, size=10):
    return [Record(i, "event", 0.0, 0, bytes(size)) for i in range(start, stop)]


def indices(taken):
    return [record.idx for record in taken]


def test_documents_are_taken_in_order_from_where_the_reader_is():
    record_buffer = RecordBuffer(10_000)
    record_buffer.put_records(records(0, 3))
    record_buffer.put_records(records(3, 5))
    assert indices(record_buffer.take_records(1, 100)) == [1, 2, 3, 4]
    assert indices(record_buffer.take_records(4, 100)) == [4]
    assert record_buffer.take_records(5, 100) == []
    record_buffer.put_records(records(5, 6))
    assert indices(record_buffer.take_records(5, 100)) == [5]


def test_they_can_be_taken_again_until_the_reader_has_gone_on():
    record_buffer = RecordBuffer(10_000)
    record_buffer.put_records(records(0, 5))
    assert indices(record_buffer.take_records(0, 100)) == indices(record_buffer.take_records(0, 100)) == [0, 1, 2, 3, 4]
    record_buffer.take_records(5, 100)
    assert record_buffer.take_records(0, 100) == []


def test_some_are_taken_at_a_time():
    record_buffer = RecordBuffer(10_000)
    for start in range(0, 10, 2):
        record_buffer.put_records(records(start, start + 2))
    assert indices(record_buffer.take_records(0, 3)) == [0, 1, 2, 3]
    assert indices(record_buffer.take_records(4, 1)) == [4, 5]


@pytest.mark.parametrize("start", [0, 7, 100])
def test_a_reader_that_is_elsewhere_finds_nothing(start):
    record_buffer = RecordBuffer(10_000)
    record_buffer.put_records(records(10, 12))
    taken = record_buffer.take_records(start, 100)
    assert taken == []


def test_what_there_is_no_room_for_is_left_out_with_all_that_follows():
    record_buffer = RecordBuffer(100)
    record_buffer.put_records(records(0, 9))
    record_buffer.put_records(records(9, 12))
    record_buffer.put_records(records(12, 13))
    assert indices(record_buffer.take_records(0, 100)) == list(range(9))
    assert record_buffer.take_records(9, 100) == []
    record_buffer.put_records(records(13, 15))
    assert record_buffer.take_records(12, 100) == []
    assert indices(record_buffer.take_records(13, 100)) == [13, 14]


def test_a_batch_larger_than_all_room_is_not_kept():
    record_buffer = RecordBuffer(100)
    record_buffer.put_records(records(0, 11))
    assert record_buffer.take_records(0, 100) == []
    record_buffer.put_records([])
    record_buffer.put_records(records(11, 21))
    assert len(record_buffer.take_records(11, 100)) == 10
