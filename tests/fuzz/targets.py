"""What is fuzzed: one function for each kind of input. Each takes bytes, and lets nothing out but what is documented.

An input ends as a result, as one of our own errors, or as an exception from here, which is a bug: an error of another
kind, a result that does not come back from its own encoding, time or memory out of proportion.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Final

from tiledbroker import CodecError, Encoder, Journal, JournalError, ProtocolError, Record, decode
from tiledbroker.protocol import messages
from tiledbroker.supervisor._journal_facts import read_facts
from tiledwriter.cli.journal import main
from tiledwriter.mapping._fold import BATCH_BYTES, BATCH_DOCUMENTS, Fold
from tiledwriter.mapping._operations import Operation
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.verify._verification import verify

from . import framing

MAX_SECONDS: Final = 2.0
"""Processor time that one input of a few kilobytes may take."""

MAX_GROWTH: Final = 512 * 2**20
"""Memory that one input of a few kilobytes may take."""

_OPTIONS: Final = WritingOptions()

outcomes: Counter[str] = Counter()
"""How many inputs ended how."""


class Bug(AssertionError):
    """Raised when an input shows one."""


def check(target: Callable[[bytes], str], data: bytes) -> None:
    """Give an input to a target, and see that neither time nor memory is out of proportion."""
    began = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes[target(data)] += 1
    seconds = time.process_time() - began
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if seconds > MAX_SECONDS:
        raise Bug(f"{len(data)} bytes took {seconds:.1f} s.")
    if grown > MAX_GROWTH:
        raise Bug(f"{len(data)} bytes took {grown / 2**20:.0f} MiB.")


def fuzz_frames(data: bytes) -> str:
    """Frames as they come from a socket."""
    try:
        message = messages.decode(framing.split(data))
    except ProtocolError as error:
        return _expected(error)
    again = messages.decode(messages.encode(message))
    if again != message:
        raise Bug(f"{message} comes back as {again}.")
    if isinstance(message, messages.Documents):
        records = list(message.unpack())
        if b"".join(body for _, _, body in records) != message.body or len(records) != message.next - message.first:
            raise Bug("The bodies of all documents are not the body of the message.")
    return type(message).__name__


def fuzz_codec(data: bytes) -> str:
    """One document's bytes."""
    try:
        document = decode(data)
    except CodecError as error:
        return _expected(error)
    encoder = Encoder()
    body = encoder.encode(document)
    # Anything can be a key in these bytes. Our encoder takes the repr of such as it cannot have, and reports it.
    if replaced := set(encoder.take_replaced()) - {"tuple", "str", "int"}:
        raise Bug(f"What was decoded cannot be encoded: {replaced}.")
    if Encoder().encode(decode(body)) != body:
        raise Bug(f"{document!r:.200} does not come back.")
    return "decoded"


def fuzz_fold(data: bytes) -> str:
    """A run's documents, which a worker turns into operations."""
    records = [framing.record(i, name, body) for i, (name, body) in enumerate(framing.documents(data))]
    fold = Fold(_uid(records), _OPTIONS, _OPTIONS.max_array_size)
    for record in records:  # each by itself, so that operations come as often as they can
        _look_at(fold.feed([record]))
        if fold.error is not None:
            return _expected(fold.error)
    if not fold.finished:
        _look_at(fold.abandon())
    return "folded"


def fuzz_journal(data: bytes) -> str:
    """A file in the place of a journal, in the hands of everybody who opens one."""
    with _file(data) as path:
        facts = read_facts(path)
        verification = verify(path, _OPTIONS, None)
        try:
            with Journal(path, "inspect") as journal:
                _read(journal)
        except JournalError as error:
            outcome = _expected(error)
        else:
            outcome = f"{facts.state}, {'well' if verification.ok else 'damaged'}"
        try:
            with Journal(path, "write") as journal:
                _write(journal)
        except JournalError as error:
            _expected(error)
    return outcome


TARGETS: Final[dict[str, Callable[[bytes], str]]] = {
    "frames": fuzz_frames,
    "codec": fuzz_codec,
    "journal": fuzz_journal,
    "fold": fuzz_fold,
}


def _expected(error: BaseException) -> str:
    """An error that may come out, unless it hides one that may not."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) and not isinstance(error, JournalError):  # SQLite says so and asks for none
            raise Bug("Memory out of proportion was asked for.") from error
        if cause.__cause__ is None:
            break
        cause = cause.__cause__
    return type(error).__name__ if cause is error else f"{type(error).__name__} from {type(cause).__name__}"


def _uid(records: list[Record]) -> str:
    """What the first document says it is of."""
    try:
        uid = records[0].document().get("uid")
    except (IndexError, CodecError):
        return "run"
    return uid if isinstance(uid, str) else "run"


def _look_at(operations: list[Operation]) -> None:
    for operation in operations:
        if not isinstance(operation.path, str):
            raise Bug(f"{operation} has no path.")


@contextmanager
def _file(data: bytes) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="tiledwriter-fuzz-", dir=_memory()))
    try:
        path = directory / "run.sqlite"
        path.write_bytes(data)
        yield path
    finally:
        shutil.rmtree(directory)


def _memory() -> Path | None:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


def _read(journal: Journal) -> None:
    for record in journal.records():
        if tuple(map(type, record)) != (int, str, float, int, bytes):
            raise Bug(f"{record} is no record.")
    journal.names()
    for key in ("run_uid", "outcome", "reason", "worker", "arrived", "audit_at", "column_types", "max_array_size"):
        journal.get(key)
    journal.damage()
    for command in (
        ["ls", "--json", str(journal.path.parent)],
        ["show", str(journal.path)],
        ["tail", str(journal.path)],
    ):
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            main(command)


def _write(journal: Journal) -> None:
    """As a worker does, except for Tiled."""
    fold = Fold(journal.run_uid, _OPTIONS, _OPTIONS.max_array_size)
    while (
        not fold.finished
        and fold.error is None
        and (records := journal.read(fold.cursor, BATCH_DOCUMENTS, BATCH_BYTES))
    ):
        _look_at(fold.feed(records))
    if fold.error is not None:
        _expected(fold.error)
    journal.append_one("event", b"\x80")
    with journal.atomic():
        journal.note("worker started", pid=1)
        journal.set("outcome", "failed")
        journal.set_progress("node", 1, 2)
