"""Messages become frames and come back; whatever else arrives is a ProtocolError and nothing worse."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledbroker import ProtocolError
from tiledbroker.protocol import messages
from tiledbroker.protocol.messages import (
    Abandoned,
    Documents,
    Durable,
    Finish,
    Hello,
    Message,
    Ping,
    Pong,
    Progress,
    Reached,
    Ready,
    Refused,
    Report,
    RunState,
    SlotGranted,
    SlotRecalled,
    SlotReleased,
    SlotWanted,
    Unreachable,
    Welcome,
    Written,
)

thorough = settings(max_examples=200, deadline=None)

# Name, kind byte and header bytes. These are the protocol: entries are added, and a change of one is
# a change of the version.
GOLDEN: list[tuple[Message, int, bytes]] = [
    (Hello("me", {"a": 3}, ["b"]), 1, b"\x93\xa2me\x81\xa1a\x03\x91\xa1b"),
    (
        Welcome(65536, 4096, {"a": RunState(3, True, "written")}),
        2,
        b"\x93\xce\x00\x01\x00\x00\xcd\x10\x00\x81\xa1a\x96\x03\xc3\xa7written\xa0\xc0\xc0",
    ),
    (Documents("a", 5, ["event"], [2], [7], b"xy"), 3, b"\x95\xa1a\x05\x91\xa5event\x91\x02\x91\x07"),
    (Durable("a", 7, False, 0.5), 4, b"\x94\xa1\x61\x07\xc2\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00"),
    (Written("a", "failed", "why"), 5, b"\x93\xa1a\xa6failed\xa3why"),
    (Refused("a", 3, "later", "full"), 6, b"\x94\xa1a\x03\xa5later\xa4full"),
    (Ping(1, 12, 3400, 1.5), 7, b"\x94\x01\x0c\xcd\x0dH\xcb?\xf8\x00\x00\x00\x00\x00\x00"),
    (Pong(1), 8, b"\x91\x01"),
    (Abandoned("a", 9), 9, b"\x92\xa1a\x09"),
    (Ready("a", 3, True), 32, b"\x93\xa1a\x03\xc3"),
    (Progress("a", 4), 33, b"\x92\xa1a\x04"),
    (Finish(), 34, b"\x90"),
    (Reached("a"), 35, b"\x91\xa1a"),
    (
        Report(
            "a", 7, "scan", waits_for="why", requests={"ok": 3}, latencies=[3], latency_sum=0.5, failed_monotonic=0.5
        ),
        36,
        b"\xdc\0\x12\xa1a\x07\xa4scan\xa0\xa0\xc0\xc0\xc0\xa0\xc2\xa3why\x81\xa2ok\x03\x80\x91\x03\xcb?\xe0"
        + bytes(6)
        + b"\xc0\xcb?\xe0"
        + bytes(6)
        + b"\xc0",
    ),
    (Unreachable("a", 0.5, "b", True), 37, b"\x94\xa1a\xcb\x3f\xe0\0\0\0\0\0\0\xa1b\xc3"),
    (SlotWanted("a"), 38, b"\x91\xa1a"),
    (SlotGranted("a", True), 39, b"\x92\xa1a\xc3"),
    (SlotRecalled("a"), 40, b"\x91\xa1a"),
    (SlotReleased("a", "b"), 41, b"\x92\xa1a\xa1b"),
]
by_name = pytest.mark.parametrize(("message", "kind", "header"), GOLDEN, ids=[type(row[0]).__name__ for row in GOLDEN])

number = st.integers(0, messages.MAX_INDEX)
text = st.text(max_size=10)
record = st.tuples(text, st.integers(0, 2**32 - 1), st.binary(max_size=20))
any_message = st.one_of(
    st.builds(Hello, text, st.dictionaries(text, number), st.lists(text)),
    st.builds(
        Welcome,
        number,
        number,
        st.dictionaries(text, st.builds(RunState, number, st.booleans(), text, text), max_size=3),
    ),
    st.builds(messages.documents, text, number, st.lists(record, min_size=1, max_size=5)),
    st.builds(Abandoned, text, number),
    st.builds(Durable, text, number, st.booleans(), st.floats(0, 1e9)),
    st.builds(Written, text, text, text),
    st.builds(Refused, text, number, text, text),
    st.builds(Ping, number, st.none() | number, st.none() | number, st.none() | st.floats(0, 1e9)),
    st.builds(Pong, number),
    st.builds(Ready, text, number, st.booleans()),
    st.builds(Progress, text, number),
    st.builds(Finish),
    st.builds(Reached, st.text()),
    st.builds(
        Report, text, st.none() | number | text, st.none() | text, problem=text, requests=st.dictionaries(text, number)
    ),
    st.builds(SlotWanted, text),
    st.builds(SlotGranted, text, st.booleans()),
    st.builds(SlotRecalled, text),
    st.builds(SlotReleased, text, text),
    st.builds(Unreachable, st.text(), st.floats(allow_nan=False), st.text(), st.booleans()),
)


def preamble(kind: int) -> bytes:
    return b"TW\x01" + bytes([kind])


def documents_frames(header: list[Any], body: bytes) -> list[bytes]:
    return [preamble(3), msgspec.msgpack.encode(header), body]


def decode_or_protocol_error(frames: list[bytes]) -> None:
    try:
        message = messages.decode(frames)
    except ProtocolError:
        return
    assert isinstance(message, Message)


@by_name
def test_the_bytes_of_each_message_are_fixed(message: Message, kind: int, header: bytes) -> None:
    body = [message.body] if isinstance(message, Documents) else []
    assert messages.encode(message) == [preamble(kind), header, *body]
    assert messages.decode([preamble(kind), header, *body]) == message


def test_every_message_has_golden_bytes() -> None:
    assert {type(message) for message, _, _ in GOLDEN} == set(messages._KINDS)
    assert {type(message): kind for message, kind, _ in GOLDEN} == messages._KINDS


@thorough
@given(any_message)
def test_every_message_comes_back(message: Message) -> None:
    assert messages.decode(messages.encode(message)) == message


@thorough
@given(st.lists(record, min_size=1, max_size=5))
def test_documents_come_back_one_by_one(records: list[tuple[str, int, bytes]]) -> None:
    message = messages.decode(messages.encode(messages.documents("run", 7, records)))
    assert isinstance(message, Documents)
    assert list(message.unpack()) == records
    assert message.next == 7 + len(records)


def test_checksums_travel_untouched() -> None:
    message = messages.documents("run", 0, [("event", zlib.crc32(b"x") ^ 1, b"x")])
    assert messages.decode(messages.encode(message)).crcs == [zlib.crc32(b"x") ^ 1]


def test_a_field_that_a_later_minor_version_adds_is_ignored() -> None:
    assert messages.decode([preamble(8), msgspec.msgpack.encode([1, "new", {"deep": []}])]) == Pong(1)


def test_a_ping_without_lag_is_one_of_an_earlier_version() -> None:
    assert messages.decode([preamble(7), msgspec.msgpack.encode([1])]) == Ping(1, None, None, None)


def test_earlier_versions_read_the_token_of_a_ping() -> None:
    class EarlierPing(msgspec.Struct, array_like=True):
        token: int

    header = messages.encode(Ping(7, 12, 3400, 1.5))[1]
    assert msgspec.msgpack.decode(header, type=EarlierPing).token == 7


class TestFramesThatAreNoMessage:
    @thorough
    @given(st.lists(st.binary(max_size=30), max_size=4))
    def test_any_frames(self, frames: list[bytes]) -> None:
        decode_or_protocol_error(frames)

    @thorough
    @given(st.integers(0, 255), st.binary(max_size=60), st.none() | st.binary(max_size=30))
    def test_any_header_and_body_behind_a_good_preamble(self, kind: int, header: bytes, body: bytes | None) -> None:
        decode_or_protocol_error([preamble(kind), header, *([] if body is None else [body])])

    @thorough
    @given(any_message, st.data())
    def test_any_damage(self, message: Message, data: st.DataObject) -> None:
        frames = [bytearray(frame) for frame in messages.encode(message)]
        frame = data.draw(st.sampled_from([frame for frame in frames if frame]))
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        decode_or_protocol_error([bytes(frame) for frame in frames])

    @thorough
    @given(st.sampled_from(sorted(messages._KINDS.values())), st.data())
    def test_any_well_formed_header(self, kind: int, data: st.DataObject) -> None:
        value = data.draw(
            st.recursive(
                st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | text,
                lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=2),
                max_leaves=8,
            )
        )
        body = [data.draw(st.binary(max_size=10))] if kind == 3 else []
        decode_or_protocol_error([preamble(kind), msgspec.msgpack.encode(value), *body])

    @by_name
    def test_every_truncated_header(self, message: Message, kind: int, header: bytes) -> None:
        body = [message.body] if isinstance(message, Documents) else []
        for length in range(len(header)):
            with pytest.raises(ProtocolError):
                messages.decode([preamble(kind), header[:length], *body])

    @by_name
    def test_a_header_nested_without_end(self, message: Message, kind: int, header: bytes) -> None:
        # In a field that a later version might have added, where no type stops it.
        nested = bytes([header[0] + 1]) + header[1:] + b"\x91" * 100_000 + b"\xc0"
        body = [message.body] if isinstance(message, Documents) else []
        with pytest.raises(ProtocolError):
            messages.decode([preamble(kind), nested, *body])

    def test_a_claimed_length_of_gigabytes(self) -> None:
        for header in (
            b"\x93\xa1x\x80\xdd\xff\xff\xff\xff",
            b"\x93\xa1x\xdf\xff\xff\xff\xff",
            b"\x91\xdb\xff\xff\xff\xff",
        ):
            with pytest.raises(ProtocolError):
                messages.decode([preamble(1), header])

    @pytest.mark.parametrize("frames", [[], [b""], [b"TW\x01"], [b"TW\x01\x07\x00", b"\x91\x01"], [b"", b"\x91\x01"]])
    def test_no_preamble(self, frames: list[bytes]) -> None:
        with pytest.raises(ProtocolError, match="not a tiledwriter message"):
            messages.decode(frames)

    def test_a_wrong_magic(self) -> None:
        with pytest.raises(ProtocolError, match="not a tiledwriter message"):
            messages.decode([b"tw\x01\x07", b"\x91\x01"])

    def test_a_wrong_version_is_named(self) -> None:
        with pytest.raises(ProtocolError, match="version 2; this side speaks 1"):
            messages.decode([b"TW\x02\x07", b"\x91\x01"])

    def test_an_unknown_kind_is_named(self) -> None:
        with pytest.raises(ProtocolError, match="kind 200"):
            messages.decode([preamble(200), b"\x91\x01"])

    @pytest.mark.parametrize(
        "frames",
        [
            [preamble(7)],
            [preamble(7), b"\x91\x01", b""],
            [preamble(3), b"\x95\xa1a\x05\x91\xa5event\x91\x02\x91\x07"],
            [preamble(3), b"\x95\xa1a\x05\x91\xa5event\x91\x02\x91\x07", b"xy", b""],
        ],
    )
    def test_a_wrong_number_of_frames(self, frames: list[bytes]) -> None:
        with pytest.raises(ProtocolError, match="frames"):
            messages.decode(frames)

    def test_text_that_is_not_unicode(self) -> None:
        with pytest.raises(ProtocolError):
            messages.decode([preamble(33), b"\x92\xa1\xff\x01"])


class TestLimits:
    def test_a_header_too_long(self) -> None:
        with pytest.raises(ProtocolError, match="limit"):
            messages.decode([preamble(7), bytes(messages.MAX_HEADER_BYTES + 1)])

    def test_bodies_too_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(messages, "MAX_BODY_BYTES", 10)
        assert messages.decode(documents_frames(["run", 0, ["event"], [10], [0]], bytes(10)))
        with pytest.raises(ProtocolError):
            messages.decode(documents_frames(["run", 0, ["event"], [11], [0]], bytes(11)))

    def test_too_many_documents(self) -> None:
        count = messages.MAX_DOCUMENTS
        assert messages.decode(documents_frames(["run", 0, [""] * count, [0] * count, [0] * count], b""))
        count += 1
        with pytest.raises(ProtocolError, match="too long"):
            messages.decode(documents_frames(["run", 0, [""] * count, [0] * count, [0] * count], b""))

    @pytest.mark.parametrize(
        ("header", "body"),
        [
            (["run", 0, [], [], []], b""),
            (["run", 0, ["a"], [3], [0]], b"xy"),
            (["run", 0, ["a"], [1], [0]], b"xy"),
            (["run", 0, ["a", "b"], [2], [0, 0]], b"xy"),
            (["run", 0, ["a"], [2, 0], [0]], b"xy"),
            (["run", 0, ["a"], [2], [0, 0]], b"xy"),
            (["run", 0, ["a", "b"], [-1, 3], [0, 0]], b"xy"),
            (["run", -1, ["a"], [2], [0]], b"xy"),
        ],
        ids=[
            "empty",
            "too few bytes",
            "too many bytes",
            "few sizes",
            "many sizes",
            "many crcs",
            "negative",
            "before 0",
        ],
    )
    def test_documents_that_do_not_add_up(self, header: list[Any], body: bytes) -> None:
        with pytest.raises(ProtocolError):
            messages.decode(documents_frames(header, body))


def test_acknowledgements_of_earlier_versions_are_read_and_those_of_this_one_by_them() -> None:
    assert messages.decode([preamble(4), b"\x93\xa1a\x07\xc2"]) == Durable("a", 7, ended=False, pause=0.0)

    class Earlier(msgspec.Struct, frozen=True, array_like=True):
        run: str
        next: int
        ended: bool

    _, header = messages.encode(Durable("a", 7, ended=False, pause=0.5))
    assert msgspec.msgpack.decode(header, type=Earlier) == Earlier("a", 7, ended=False)
