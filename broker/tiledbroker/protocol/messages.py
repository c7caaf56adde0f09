"""The wire protocol: conversion of messages to ZeroMQ frames and back. This module opens no sockets.

A message has two or three frames: a four-byte preamble (magic, version, kind), a header, and for `Documents` the
concatenated bodies of all its documents. A header is a msgpack array of the message's fields in order.
`docs/reference/wire-protocol.md` shows each message with its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, TypeAlias

import msgspec

from .._errors import ProtocolError, ProtocolVersionError

MAGIC: Final = b"TW"
VERSION: Final = 1

IDENTITY_BYTES: Final = 16
"""Length of a publisher's ZeroMQ routing identity, which it draws at random for each connection."""

MAX_HEADER_BYTES: Final = 16 * 2**20
MAX_BODY_BYTES: Final = 2**30
MAX_DOCUMENTS: Final = 100_000
MAX_RUNS: Final = 1_000
MAX_INDEX: Final = 2**62
"""Largest valid document index: more documents than any run has, but within SQLite's signed 64-bit integers."""

NO_HELLO: Final = "hello"
GAP: Final = "gap"
LATER: Final = "later"
"""`NO_HELLO`, `GAP` and `LATER` are the reasons of `Refused` that a publisher acts on. Others are texts for users."""

LATENCY_BOUNDS_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the buckets in which workers count the durations of requests."""

ANOTHER_RUN: Final = "the ingest host has another run with this uid; each run needs its own uid"


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """First message from publisher to supervisor; repeated until answered, and to ask for outcomes again.

    Attributes
    ----------
    publisher
        Name of the publisher, a slash and twelve random hexadecimal digits.
    runs
        Uids of runs in its spool whose state on the ingest host it does not know, with their numbers of documents.
    awaited
        Uids of runs whose outcome it waits for.
    """

    publisher: str
    runs: dict[str, int]
    awaited: list[str]


class RunState(msgspec.Struct, frozen=True, array_like=True):
    """State of one run on the ingest host, as part of `Welcome`.

    Attributes
    ----------
    next
        Index of the next document that the ingest host expects.
    ended
        True if the ingest host has the end of the run: its stop document or its abandonment.
    outcome
        Outcome as in `Written`; "" while there is none.
    reason
        Reason as in `Written`; "" if there is none.
    start_crc
        CRC-32 of the start document, so that a publisher can detect a reused uid; None if unknown.
    end_crc
        CRC-32 of the last document, once the run has ended; None if unknown.
    """

    next: int
    ended: bool
    outcome: str
    reason: str = ""
    start_crc: int | None = None
    end_crc: int | None = None


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """Answer of the supervisor to `Hello`.

    Attributes
    ----------
    window
        Bytes of bodies that the publisher may have in flight, over all its runs.
    max_document
        Maximum size of a document's body, in bytes.
    runs
        State on the ingest host of each run named in the `Hello`, by uid.
    """

    window: int
    max_document: int
    runs: dict[str, RunState]


class Documents(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive documents of one run, from publisher to supervisor and from supervisor to worker.

    Attributes
    ----------
    run
        Uid of the run.
    first
        Index of the first document.
    names, sizes, crcs
        Name, size of the body in bytes and CRC-32 of the body, for each document.
    body
        Concatenated bodies. They are not part of the header but a frame of their own.
    """

    run: str
    first: int
    names: list[str]
    sizes: list[int]
    crcs: list[int]
    body: bytes = b""

    @property
    def next(self) -> int:
        """Index after the last document."""
        return self.first + len(self.names)

    def unpack(self) -> Iterator[tuple[str, int, bytes]]:
        """Return an iterator over `(name, crc, body)` of each document."""
        ends = list(accumulate(self.sizes))
        bodies = [self.body[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return zip(self.names, self.crcs, bodies, strict=True)


class Abandoned(msgspec.Struct, frozen=True, array_like=True):
    """Publisher to supervisor and then to worker: a run has ended with `length` documents, without a stop document.

    The session that made the run has closed its publisher, or has died.
    """

    run: str
    length: int

    @property
    def first(self) -> int:
        """Index at which the run ends, under the same name as in `Documents`."""
        return self.length

    @property
    def next(self) -> int:
        """Index after the last document."""
        return self.length


class Durable(msgspec.Struct, frozen=True, array_like=True):
    """Acknowledgement: documents of a run below index `next` are on the ingest host's disk.

    Attributes
    ----------
    run
        Uid of the run.
    next
        Index of the next document.
    ended
        True once the run's stop document or its abandonment is on disk as well.
    pause
        Seconds that a publisher is asked to leave between two batches of this run with few documents, because the
        ingest host has many runs to serve. Earlier versions do not send it, and ignore it.
    """

    run: str
    next: int
    ended: bool
    pause: float = 0.0


class Written(msgspec.Struct, frozen=True, array_like=True):
    """Outcome of a run.

    "written": all documents are in Tiled. "interrupted": all existing documents are in Tiled, but there is no stop
    document. "failed": the run is not complete in Tiled, for `reason`.
    """

    run: str
    outcome: str
    reason: str


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """Rejection of documents, of a run or of a publisher.

    Attributes
    ----------
    run
        Uid of the run; "" if the message is about the publisher itself.
    index
        Next index that is accepted.
    reason
        "gap": continue at `index`. "later": continue at `index` after a pause. "hello": the supervisor does not know
        this publisher, which must send `Hello` again. Any other text explains to users why the supervisor rejects this
        run, or this publisher if `run` is "".
    detail
        Explanation of the first three reasons for users, such as a full disk; "" if there is none.
    """

    run: str
    index: int
    reason: str
    detail: str = ""


class Ping(msgspec.Struct, frozen=True, array_like=True):
    """Request for a `Pong` with the same token, to test the connection.

    A publisher also tells how far its spool is ahead of the ingest host. Earlier versions do not send these fields, and
    ignore them.

    Attributes
    ----------
    token
        Number to return in the `Pong`.
    documents
        Documents that are not acknowledged; None if unknown.
    size
        Their bytes, roughly; None if unknown.
    oldest_age
        Seconds since the oldest of them was published; None if there is none, or it is unknown.
    """

    token: int
    documents: int | None = None
    size: int | None = None
    oldest_age: float | None = None


class Pong(msgspec.Struct, frozen=True, array_like=True):
    """Supervisor to publisher: answer to a `Ping`, with its token."""

    token: int


class Ready(msgspec.Struct, frozen=True, array_like=True):
    """First message from worker to supervisor: the journal is open and contains `next` documents.

    `ended` is True if the end of the run is among them. The supervisor may relay documents from now on.
    """

    run: str
    next: int
    ended: bool


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """Worker to supervisor: documents of a run below index `next` are in Tiled."""

    run: str
    next: int


class Reached(msgspec.Struct, frozen=True, array_like=True):
    """Worker to supervisor: Tiled has answered, for the first time or again after an outage."""

    run: str


class Report(msgspec.Struct, frozen=True, array_like=True):
    """Worker to supervisor: what only the worker knows of its run and of Tiled. Times are in seconds.

    Sent at changes, and otherwise at most once a second while there are requests. Counts are those since the last
    report. Unix times are for earlier supervisors: whoever compares them is wrong once the host's clock has been set.

    Attributes
    ----------
    run
        Uid of the run.
    scan_id, plan
        `scan_id` and `plan_name` of the start document; None if it has none of that type, or is not journaled yet.
    address, version
        Address and version of Tiled; "" while the worker has not connected.
    answered_at
        Unix time of the last sign that Tiled accepts requests; None if there was none.
    failed_at
        Unix time of the last sign that it does not; None if there was none.
    written_at
        Unix time at which Tiled carried out a write last; None if it has carried out none.
    problem
        Reason why Tiled does not accept requests at the moment; "" if it does, or has not been asked.
    needs_person
        That reason will not pass by itself, such as an API key that is not valid.
    waits_for
        What the writing of the run waits for, as a sentence; "" if it does not wait.
    requests
        Attempts at requests by outcome.
    retries
        Attempts that were repeated, by cause.
    latencies
        Answered requests by duration: one count for each of `LATENCY_BOUNDS_SECONDS`, and one for those beyond.
    latency_sum
        Sum of these durations in seconds.
    answered_monotonic, failed_monotonic, written_monotonic
        The same three times by `time.monotonic`, which all processes of a host share. Earlier versions do not send
        them, and ignore them.
    """

    run: str
    scan_id: int | str | None = None
    plan: str | None = None
    address: str = ""
    version: str = ""
    answered_at: float | None = None
    failed_at: float | None = None
    written_at: float | None = None
    problem: str = ""
    needs_person: bool = False
    waits_for: str = ""
    requests: dict[str, int] = {}
    retries: dict[str, int] = {}
    latencies: list[int] = []
    latency_sum: float = 0.0
    answered_monotonic: float | None = None
    failed_monotonic: float | None = None
    written_monotonic: float | None = None


class Unreachable(msgspec.Struct, frozen=True, array_like=True):
    """Worker to supervisor: Tiled has begun to refuse the requests of a run, or does so for another reason now.

    Attributes
    ----------
    run
        Uid of the run.
    since
        Unix time at which the refusals began, also if an earlier worker of the run met them.
    reason
        Answer of the server, or the error of the connection.
    needs_person
        True if waiting does not help, such as for a key that is not accepted.
    """

    run: str
    since: float
    reason: str
    needs_person: bool = False


class SlotWanted(msgspec.Struct, frozen=True, array_like=True):
    """Worker to supervisor: the worker has something to write to Tiled, and waits for a write slot."""

    run: str


class SlotGranted(msgspec.Struct, frozen=True, array_like=True):
    """Supervisor to worker: the worker may write to Tiled until it releases the slot.

    If `shared` is True, others wait, and it releases the slot as soon as what it has is written. Otherwise it keeps the
    slot until a `SlotRecalled`.
    """

    run: str
    shared: bool


class SlotRecalled(msgspec.Struct, frozen=True, array_like=True):
    """Supervisor to worker: another worker waits for the write slot; release it after what is being written."""

    run: str


class SlotReleased(msgspec.Struct, frozen=True, array_like=True):
    """Worker to supervisor: the write slot is free.

    `storage` is the kind of database that Tiled stores the run's tables in, such as "postgresql"; "" if unknown.
    """

    run: str
    storage: str = ""


class Finish(msgspec.Struct, frozen=True, array_like=True):
    """Supervisor to worker: exit now. A later worker resumes the unfinished writing."""


Message: TypeAlias = (
    Hello
    | Welcome
    | Documents
    | Abandoned
    | Durable
    | Written
    | Refused
    | Ping
    | Pong
    | Ready
    | Progress
    | Finish
    | Reached
    | Report
    | Unreachable
    | SlotWanted
    | SlotGranted
    | SlotRecalled
    | SlotReleased
)

# Kind bytes are part of the wire protocol: never renumber them.
_KINDS: Final[dict[type[Message], int]] = {
    Hello: 1,
    Welcome: 2,
    Documents: 3,
    Durable: 4,
    Written: 5,
    Refused: 6,
    Ping: 7,
    Pong: 8,
    Abandoned: 9,
    Ready: 32,
    Progress: 33,
    Finish: 34,
    Reached: 35,
    Report: 36,
    Unreachable: 37,
    SlotWanted: 38,
    SlotGranted: 39,
    SlotRecalled: 40,
    SlotReleased: 41,
}
_DECODERS: Final = {kind: (cls, msgspec.msgpack.Decoder(cls)) for cls, kind in _KINDS.items()}
_encoder: Final = msgspec.msgpack.Encoder()


def documents(run: str, first: int, records: Sequence[tuple[str, int, bytes]]) -> Documents:
    """Return a `Documents` message.

    Parameters
    ----------
    run
        Uid of the run.
    first
        Index of the first document.
    records
        `(name, crc, body)` of each document; at least one.
    """
    names, crcs, bodies = zip(*records, strict=True)
    return Documents(run, first, list(names), list(map(len, bodies)), list(crcs), b"".join(bodies))


def encode(message: Message) -> list[bytes]:
    """Return the frames of a message."""
    preamble = MAGIC + bytes((VERSION, _KINDS[type(message)]))
    if isinstance(message, Documents):
        header = _encoder.encode([message.run, message.first, message.names, message.sizes, message.crcs])
        return [preamble, header, message.body]
    return [preamble, _encoder.encode(message)]


def decode(frames: Sequence[bytes]) -> Message:
    """Return the message in `frames`.

    Raises
    ------
    ProtocolVersionError
        The message has another protocol version.
    ProtocolError
        The frames are not a valid message, or exceed a limit of the protocol.
    """
    if not frames or len(frames[0]) != 4 or frames[0][:2] != MAGIC:
        raise ProtocolError("This is not a tiledwriter message.")
    version, kind = frames[0][2], frames[0][3]
    if version != VERSION:
        raise ProtocolVersionError(version, VERSION)
    if kind not in _DECODERS:
        raise ProtocolError(f"Message kind {kind} is unknown.")
    cls, decoder = _DECODERS[kind]
    if len(frames) != (3 if cls is Documents else 2):
        raise ProtocolError(f"{cls.__name__}: {len(frames)} frames are too few or too many.")
    if len(frames[1]) > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"The header of {cls.__name__} has {len(frames[1])} bytes; the limit is {MAX_HEADER_BYTES}."
        )
    try:
        message = decoder.decode(frames[1])
    except Exception as error:
        raise ProtocolError(f"The header of {cls.__name__} cannot be read: {error}") from error
    if isinstance(message, Documents):
        return _with_body(message, frames[2])
    if isinstance(message, Abandoned) and not 0 <= message.length <= MAX_INDEX:
        raise ProtocolError(f"Abandoned: no run has {message.length} documents.")
    if isinstance(message, Hello) and max(len(message.runs), len(message.awaited)) > MAX_RUNS:
        raise ProtocolError(f"Hello: more than {MAX_RUNS} runs.")
    return message


def _with_body(header: Documents, body: bytes) -> Documents:
    if not (len(header.names) == len(header.sizes) == len(header.crcs) <= MAX_DOCUMENTS):
        raise ProtocolError("Documents: the header's lists differ in length or are too long.")
    if not header.names or not 0 <= header.first <= MAX_INDEX or min(header.sizes) < 0:
        raise ProtocolError("Documents: there are none, or an index or a size is out of range.")
    if len(body) > MAX_BODY_BYTES or sum(header.sizes) != len(body):
        raise ProtocolError(f"Documents: the bodies have {len(body)} bytes, but the header says {sum(header.sizes)}.")
    return Documents(header.run, header.first, header.names, header.sizes, header.crcs, body)
