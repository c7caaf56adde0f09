"""What messages of the log look like, and what is made of those that are cut, in parts, or not ours."""

from __future__ import annotations

import contextlib
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiledbroker._errors import ProtocolError
from tiledbroker.jetstream import EntryReader, Tail, compose_messages, parse_tail, slice_documents
from tiledbroker.protocol import messages

MAX_PAYLOAD = 2**20


def entry(first: int, *names: str, size: int = 10) -> messages.Documents:
    bodies = [f"{name} {index}".encode().ljust(size) for index, name in enumerate(names, first)]
    return messages.documents("run", first, [(n, zlib.crc32(b), b) for n, b in zip(names, bodies, strict=True)])


def test_an_entry_is_read_as_it_was_written() -> None:
    whole = entry(0, "start", "descriptor", "stop")
    (message,), after = compose_messages(whole, Tail(), MAX_PAYLOAD)
    assert EntryReader().read(message.headers, message.body) == whole
    assert parse_tail(0, message.headers) == after == Tail(0, 3, True, whole.crcs[0], whole.crcs[-1])


def test_the_tail_of_an_abandoned_run_keeps_its_checksums() -> None:
    before = Tail(7, 3, False, 11, 12)
    (message,), after = compose_messages(messages.Abandoned("run", 3), before, MAX_PAYLOAD)
    assert parse_tail(8, message.headers) == Tail(8, 3, True, 11, 12)
    assert after == Tail(7, 3, True, 11, 12)
    assert EntryReader().read(message.headers, message.body) == messages.Abandoned("run", 3)


def test_a_large_document_is_several_messages_of_which_the_last_one_counts() -> None:
    before = Tail(5, 1, False, 11, 11)
    large = entry(1, "event", size=300_000)
    parts, after = compose_messages(large, before, 100_000)
    assert len(parts) == 4
    assert all(len(part.body) < 100_000 for part in parts)
    assert [parse_tail(9, part.headers).next for part in parts] == [1, 1, 1, 2]
    reader = EntryReader()
    assert [reader.read(part.headers, part.body) for part in parts] == [None, None, None, large]
    assert after.next == 2


def test_parts_that_begin_anew_are_put_together_from_their_beginning() -> None:
    large = entry(0, "start", size=300_000)
    parts, _ = compose_messages(large, Tail(), 100_000)
    reader = EntryReader()
    sequence = [*parts[:2], *parts[:3], *parts]
    assert [reader.read(part.headers, part.body) for part in sequence if part is not parts[-1]] == [None] * 8
    assert reader.read(parts[-1].headers, parts[-1].body) == large
    # In the middle of an entry, a reader waits for the next beginning.
    reader = EntryReader()
    assert reader.read(parts[-1].headers, parts[-1].body) is None


@pytest.mark.parametrize(
    "headers", [None, {}, {"Tw-Log": "x"}, {"Tw-Log": "[9,3,false,1,1]"}, {"Tw-Log": "[1,-3,0,1,1]"}]
)
def test_a_message_that_is_not_ours_tells_no_progress(headers: dict[str, str] | None) -> None:
    assert parse_tail(4, headers) == Tail(4)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200), st.sampled_from([None, "1/2", "2/2", "0/1", "x", "3/2", "1/1"]))
def test_whatever_is_in_the_log_is_an_entry_or_an_error(body: bytes, part: str | None) -> None:
    with contextlib.suppress(ProtocolError):
        EntryReader().read({} if part is None else {"Tw-Part": part}, body)


def test_a_cut_message_is_an_error() -> None:
    (message,), _ = compose_messages(entry(0, "start", "stop"), Tail(), MAX_PAYLOAD)
    for size in (1, 5, 12, len(message.body) - 1):
        with pytest.raises(ProtocolError):
            EntryReader().read(message.headers, message.body[:size])


def test_documents_are_sliced_by_their_index() -> None:
    whole = entry(3, "event", "event", "stop")
    rest = slice_documents(whole, 4)
    assert (rest.first, rest.next, rest.names) == (4, 6, ["event", "stop"])
    assert list(rest.unpack()) == list(whole.unpack())[1:]
