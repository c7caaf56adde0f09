"""The wire protocol: named messages in, frames out, and back. No sockets here.

A message is two frames, or three: a four-byte preamble (magic, version, kind), a header, and for `Documents` the
bodies of all its documents one after the other. Headers are msgpack arrays of the message's fields in order.
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
"""Length of a publisher's routing identity, which it draws by lot for each connection."""

MAX_HEADER_BYTES: Final = 16 * 2**20
MAX_BODY_BYTES: Final = 2**30
MAX_DOCUMENTS: Final = 100_000
MAX_RUNS: Final = 1_000
MAX_INDEX: Final = 2**62
"""More documents than a run can have, and less than what SQLite and 64 bits take."""

NO_HELLO: Final = "hello"
GAP: Final = "gap"
LATER: Final = "later"
"""Reasons of `Refused` that a publisher acts upon; any other is an explanation."""

ANOTHER_RUN: Final = "another run of this uid is on the ingest host; each run needs a uid of its own"


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Publisher to supervisor, first of all: who I am, my runs with their lengths, runs whose outcome I wait for."""

    publisher: str
    runs: dict[str, int]
    awaited: list[str]


class RunState(msgspec.Struct, frozen=True, array_like=True):
    """What the ingest host has of a run: next index, whether it has its end, its outcome ("" while there is none).

    `start_crc` is the checksum of its start document, by which a publisher sees that it is the run it means; `end_crc`
    that of its last one, once it has its end.
    """

    next: int
    ended: bool
    outcome: str
    reason: str = ""
    start_crc: int | None = None
    end_crc: int | None = None


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """Answer to Hello: bytes that may be under way unacknowledged, the largest document, what I have of your runs."""

    window: int
    max_document: int
    runs: dict[str, RunState]


class Documents(msgspec.Struct, frozen=True, array_like=True):
    """Documents of one run from index `first` on: names, sizes and checksums; the bodies follow in their own frame."""

    run: str
    first: int
    names: list[str]
    sizes: list[int]
    crcs: list[int]
    body: bytes = b""

    @property
    def next(self) -> int:
        """The index after the last document."""
        return self.first + len(self.names)

    def unpack(self) -> Iterator[tuple[str, int, bytes]]:
        """`(name, crc, body)` of each document."""
        ends = list(accumulate(self.sizes))
        bodies = [self.body[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return zip(self.names, self.crcs, bodies, strict=True)


class Abandoned(msgspec.Struct, frozen=True, array_like=True):
    """Publisher to supervisor: the session that made this run is gone; it ends at this length, without a stop."""

    run: str
    length: int

    @property
    def first(self) -> int:
        """The index from which it counts."""
        return self.length

    @property
    def next(self) -> int:
        """The index after the last document."""
        return self.length


class Durable(msgspec.Struct, frozen=True, array_like=True):
    """The run is on the ingest host's disk up to `next`; `ended` once its stop or its abandonment is, too."""

    run: str
    next: int
    ended: bool


class Written(msgspec.Struct, frozen=True, array_like=True):
    """What became of a run: "written", "interrupted" (all there is is in Tiled, without a stop) or "failed"."""

    run: str
    outcome: str
    reason: str


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """Not accepted. "gap": go on from `index`; "later": after a pause; "hello": I do not know you, say Hello.

    Any other reason is an explanation why this run is not taken; without a run, why nothing of this publisher is.
    `detail` explains the first three to people, where there is something to explain, such as a disk that is full.
    """

    run: str
    index: int
    reason: str
    detail: str = ""


class Ping(msgspec.Struct, frozen=True, array_like=True):
    """Are you there?"""

    token: int


class Pong(msgspec.Struct, frozen=True, array_like=True):
    """I am."""

    token: int


class Ready(msgspec.Struct, frozen=True, array_like=True):
    """Worker to supervisor: I have the journal, and this is what it holds."""

    run: str
    next: int
    ended: bool


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """Worker to supervisor: documents up to `next` are in Tiled."""

    run: str
    next: int


class Reached(msgspec.Struct, frozen=True, array_like=True):
    """Worker to supervisor: Tiled has answered me, for the first time or after it was away."""

    run: str


class Finish(msgspec.Struct, frozen=True, array_like=True):
    """Supervisor to worker: end now; what is not written is resumed later."""


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
)

# Kind bytes. Part of the protocol: never renumber.
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
}
_DECODERS: Final = {kind: (cls, msgspec.msgpack.Decoder(cls)) for cls, kind in _KINDS.items()}
_encoder: Final = msgspec.msgpack.Encoder()


def documents(run: str, first: int, records: Sequence[tuple[str, int, bytes]]) -> Documents:
    """The message that carries `(name, crc, body)` documents of one run."""
    names, crcs, bodies = zip(*records, strict=True)
    return Documents(run, first, list(names), list(map(len, bodies)), list(crcs), b"".join(bodies))


def encode(message: Message) -> list[bytes]:
    """The frames of a message."""
    preamble = MAGIC + bytes((VERSION, _KINDS[type(message)]))
    if isinstance(message, Documents):
        header = _encoder.encode([message.run, message.first, message.names, message.sizes, message.crcs])
        return [preamble, header, message.body]
    return [preamble, _encoder.encode(message)]


def decode(frames: Sequence[bytes]) -> Message:
    """The message in `frames`.

    Raises
    ------
    ProtocolError
        The frames are not a message of this version, or break its limits.
    """
    if not frames or len(frames[0]) != 4 or frames[0][:2] != MAGIC:
        raise ProtocolError("This is not a message of tiledwriter.")
    version, kind = frames[0][2], frames[0][3]
    if version != VERSION:
        raise ProtocolVersionError(version, VERSION)
    if kind not in _DECODERS:
        raise ProtocolError(f"Message kind {kind} is unknown.")
    cls, decoder = _DECODERS[kind]
    if len(frames) != (3 if cls is Documents else 2):
        raise ProtocolError(f"{cls.__name__} came in {len(frames)} frames.")
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
        raise ProtocolError("Documents: the header's lists differ in length, or are too long.")
    if not header.names or not 0 <= header.first <= MAX_INDEX or min(header.sizes) < 0:
        raise ProtocolError("Documents: empty, or with numbers that no document has.")
    if len(body) > MAX_BODY_BYTES or sum(header.sizes) != len(body):
        raise ProtocolError(f"Documents: {len(body)} bytes of bodies where the header says {sum(header.sizes)}.")
    return Documents(header.run, header.first, header.names, header.sizes, header.crcs, body)
