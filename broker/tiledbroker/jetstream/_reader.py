"""Reads a site's log for people: which runs are in it, and the documents of one. It changes nothing.

Every question goes to the leader of the replicas, because others may be behind. What the log's last message says of a
run is compared with what is there, so that a run whose documents are missing is never taken for a whole one.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, TypeVar

from .._errors import LogUnavailable, ProtocolError, RunNotWhole
from ..protocol import messages
from ._address import LogAddress
from ._connection import CONNECT_SECONDS, Connection, LoopThread, StoredMessage
from ._log_message import EntryReader, LogEntry, Tail, parse_tail, slice_documents
from ._names import (
    DOCUMENTS,
    HOSTS_BUCKET,
    RUNS_BUCKET,
    STREAM,
    bucket_stream,
    bucket_subject,
    documents_subject,
    parse_documents_subject,
    receipt_key,
)
from ._probe import LogSpace, parse_space
from ._receipt import Receipt, decode_receipt
from ._setup import read_stream_info

_QUESTIONS_AT_ONCE: Final = 16
_ANSWER_SECONDS: Final = 60.0
_LIST_SECONDS: Final = 3600.0
_MAX_FIRST_MESSAGES: Final = 200
"""Messages to look at for a run's first documents, which may be in parts."""
_RECEIPTS: Final = bucket_subject(RUNS_BUCKET, "receipt")

_NO_TAIL: Final = Tail()

T = TypeVar("T")


@dataclass(frozen=True)
class LoggedRun:
    """A run in a site's log.

    Attributes
    ----------
    beamline, uid
        The run.
    messages
        Number of its messages; 0 if only a receipt is left.
    tail
        How far its last message says that the log is.
    first
        Index of the first document that is there; None if there is none, or none can be read.
    start
        The start document, as it was encoded, and its CRC-32; None if it is not there.
    receipt
        What an ingest host has told of it; None if none has.
    problem
        Why the receipt cannot be read; "" if it can, or if there is none.
    """

    beamline: str
    uid: str
    messages: int = 0
    tail: Tail = _NO_TAIL
    first: int | None = None
    start: tuple[int, bytes] | None = None
    receipt: Receipt | None = None
    problem: str = ""

    @property
    def subject(self) -> str:
        """Subject of the run's documents."""
        return documents_subject(self.beamline, self.uid)

    @property
    def own_receipt(self) -> Receipt | None:
        """The receipt, unless it is that of another run with this uid."""
        if self.receipt is None or None in (self.receipt.start_crc, self.tail.start_crc):
            return self.receipt
        return self.receipt if self.receipt.start_crc == self.tail.start_crc else None


@dataclass(frozen=True)
class LoggedNames:
    """Which runs a log has, by their names.

    Attributes
    ----------
    runs
        Number of messages by beamline and uid.
    receipts
        Runs of which there is a receipt.
    strange
        Subjects that are those of no run.
    """

    runs: dict[tuple[str, str], int] = field(default_factory=dict)
    receipts: set[tuple[str, str]] = field(default_factory=set)
    strange: list[str] = field(default_factory=list)

    @property
    def removed(self) -> set[tuple[str, str]]:
        """Runs of which nothing but a receipt is left."""
        return self.receipts - self.runs.keys()


@dataclass(frozen=True)
class LogMeasure:
    """How a log is.

    Attributes
    ----------
    server, version
        The server that has answered.
    space
        Bytes of all documents on each node, and their limit.
    messages
        Number of their messages.
    replicas
        Nodes that should have each message; the fewest of all streams.
    replicas_current
        Nodes that have all messages; the fewest of all streams.
    """

    server: str
    version: str
    space: LogSpace
    messages: int
    replicas: int
    replicas_current: int


class LogReader:
    """Reads a log, over one connection, from its making until `close`.

    Parameters
    ----------
    address
        The servers.

    Raises
    ------
    LogUnavailable
        There is no answer; all methods raise it, too.
    KeyFileError
        The credentials cannot be used.
    """

    def __init__(self, address: LogAddress) -> None:
        self._loop = LoopThread("tiledbroker-jetstream-reader")
        try:
            seconds = CONNECT_SECONDS * (len(address.servers) + 2)
            self._connection = self._loop.run(Connection.open(address, name="tiledwriter reader"), seconds)
        except BaseException:
            self._loop.close()
            raise

    def __enter__(self) -> LogReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(LogUnavailable):
            self._loop.run(self._connection.close(), _ANSWER_SECONDS)
        self._loop.close()

    def list_names(self, beamline: str = "*") -> LoggedNames:
        """Return which runs the log has, of one beamline or of all."""
        documents = self._list_subjects(STREAM, f"{DOCUMENTS}.{beamline}.*")
        receipts = self._list_subjects(bucket_stream(RUNS_BUCKET), f"{_RECEIPTS}.{beamline}.*")
        names = LoggedNames()
        for subject, count in documents.items():
            try:
                names.runs[parse_documents_subject(subject)] = count
            except ValueError:
                names.strange.append(subject)
        for subject in receipts:
            with contextlib.suppress(ValueError):
                names.receipts.add(parse_documents_subject(subject.replace(_RECEIPTS, DOCUMENTS, 1)))
        return names

    def measure(self) -> LogMeasure:
        """Return how the log is."""
        streams = {
            name: self._ask(read_stream_info(self._connection, name), _ANSWER_SECONDS)
            for name in (STREAM, bucket_stream(RUNS_BUCKET), bucket_stream(HOSTS_BUCKET))
        }
        return LogMeasure(
            self._connection.server,
            self._connection.server_version,
            parse_space(streams[STREAM]),
            int(streams[STREAM]["state"]["messages"]),
            min(int(info["config"].get("num_replicas", 1)) for info in streams.values()),
            min(map(_count_current, streams.values())),
        )

    def read_receipts(self, names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Receipt | None]:
        """Return the receipts of runs, given by beamline and uid; None for those that have none, or a damaged one."""

        async def read_all() -> dict[tuple[str, str], Receipt | None]:
            limit = asyncio.Semaphore(_QUESTIONS_AT_ONCE)

            async def read(name: tuple[str, str]) -> tuple[tuple[str, str], Receipt | None]:
                async with limit:
                    return name, (await _read_receipt(self._connection, LoggedRun(*name)))[0]

            return dict(await asyncio.gather(*map(read, names)))

        return self._ask(read_all(), _LIST_SECONDS)

    def describe_runs(self, runs: dict[tuple[str, str], int]) -> list[LoggedRun]:
        """Return what is known of runs, given by beamline and uid with their numbers of messages.

        A run that is removed meanwhile has no messages.
        """

        async def describe_all() -> list[LoggedRun]:
            limit = asyncio.Semaphore(_QUESTIONS_AT_ONCE)

            async def describe(run: LoggedRun) -> LoggedRun:
                async with limit:
                    return await _describe_run(self._connection, run)

            return await asyncio.gather(*(describe(LoggedRun(*name, messages=count)) for name, count in runs.items()))

        return self._ask(describe_all(), _LIST_SECONDS)

    def read_documents(self, run: LoggedRun) -> Iterator[messages.Documents]:
        """Yield all documents of a run, in order and each once, up to where its tail says that the log is.

        Raises
        ------
        RunNotWhole
            A document is missing or damaged. What was yielded before is in order.
        """
        expected, position = 0, 0
        reader = EntryReader()
        while position < run.tail.seq:
            found = self._ask(self._connection.read_from_leader(STREAM, run.subject, position + 1), _ANSWER_SECONDS)
            if found is None:
                break
            position = found.seq
            entry = _read_entry(reader, found)
            if entry is None or entry.run != run.uid:
                continue
            if entry.first > expected:
                raise RunNotWhole(run.uid, f"the log lacks its documents {expected} to {entry.first - 1}")
            if isinstance(entry, messages.Documents) and entry.next > expected:
                documents = slice_documents(entry, expected) if entry.first < expected else entry
                _check_documents(documents)
                yield documents
                expected = entry.next
        if expected < run.tail.next:
            raise RunNotWhole(run.uid, f"the log lacks its documents {expected} to {run.tail.next - 1}")

    def _list_subjects(self, stream: str, pattern: str) -> dict[str, int]:
        """Return the number of messages by subject."""
        found: dict[str, int] = {}
        while True:
            arguments = {"subjects_filter": pattern, "offset": len(found)}
            answer = self._ask(read_stream_info(self._connection, stream, arguments), _ANSWER_SECONDS)
            page = answer["state"].get("subjects") or {}
            found |= {str(subject): int(count) for subject, count in page.items()}
            if not page or len(found) >= int(answer.get("total", 0)):
                return found

    def _ask(self, question: Coroutine[Any, Any, T], seconds: float) -> T:
        return self._loop.run(question, seconds)


def _count_current(info: Mapping[str, Any]) -> int:
    """Return how many nodes have all messages of a stream."""
    cluster = info.get("cluster") or {}
    if int(info["config"].get("num_replicas", 1)) == 1:
        return 1
    others = cluster.get("replicas") or []
    current = sum(bool(other.get("current")) and not other.get("offline") for other in others)
    return current + bool(cluster.get("leader"))


async def _describe_run(connection: Connection, run: LoggedRun) -> LoggedRun:
    receipt, problem = await _read_receipt(connection, run)
    last = await connection.read_last_from_leader(STREAM, run.subject) if run.messages else None
    if last is None:
        return LoggedRun(run.beamline, run.uid, receipt=receipt, problem=problem)
    tail = parse_tail(last.seq, last.headers)
    first = await _read_first(connection, run, tail.seq)
    start = None
    if first is not None and first.first == 0 and first.sizes:
        _, crc, body = next(first.unpack())
        start = (crc, body)
    return LoggedRun(
        run.beamline, run.uid, run.messages, tail, None if first is None else first.first, start, receipt, problem
    )


async def _read_receipt(connection: Connection, run: LoggedRun) -> tuple[Receipt | None, str]:
    found = await connection.read_key(RUNS_BUCKET, receipt_key(run.beamline, run.uid))
    if found is None or not found.body:
        return None, ""
    try:
        return decode_receipt(found.body), ""
    except ProtocolError as error:
        return None, str(error)


async def _read_first(connection: Connection, run: LoggedRun, last_seq: int) -> messages.Documents | None:
    """Return the first documents of a run that are there."""
    reader, seq = EntryReader(), 0
    for _ in range(_MAX_FIRST_MESSAGES):
        if seq >= last_seq or (found := await connection.read_from_leader(STREAM, run.subject, seq + 1)) is None:
            return None
        seq = found.seq
        entry = _read_entry(reader, found)
        if isinstance(entry, messages.Documents) and entry.run == run.uid:
            return entry
    return None


def _read_entry(reader: EntryReader, found: StoredMessage) -> LogEntry | None:
    """Return the entry that ends with a message. What is none is ignored, as ingest hosts do."""
    try:
        return reader.read(found.headers, found.body)
    except ProtocolError:
        return None


def _check_documents(documents: messages.Documents) -> None:
    for index, (_, crc, body) in enumerate(documents.unpack(), documents.first):
        if zlib.crc32(body) != crc:
            raise RunNotWhole(documents.run, f"document {index} in the log is damaged: its checksum does not match")
