"""Backups of runs that could not be written, with all documents of such a run, to be replayed later.

A backup is a file of JSON lines, `{"name": ..., "doc": ...}`. Some values have no exact form in JSON: bytes, complex
numbers, and arrays of types that JSON does not preserve. A document with such values is written to `doc` as closely as
JSON allows, and exactly to a third key, `exact`: the document in the journals' encoding, as base64. NaN and infinities
are written as Python's `json` module writes and reads them.
"""

from __future__ import annotations

import binascii
import json
import logging
import re
import struct
import tempfile
import weakref
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol

import numpy

from tiledbroker import CodecError, Encoder, ReplacedByRepr, decode, journal_filename

from .._errors import BackupUnreadable
from .._exact_numbers import nearest_float

log = logging.getLogger(__name__)

MAX_MEMORY_BYTES: Final = 16 * 2**20
"""Bytes of a run's documents that stay in memory; further ones are in a temporary file."""

_FRAME: Final = struct.Struct(">BQ")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_EXACT_IN_JSON: Final = frozenset({"<i8", "<f8", "|b1"})


class Recording:
    """The encoded documents of one run so far. Those of a long run go to a temporary file, so memory is bounded."""

    def __init__(self, in_memory: int = MAX_MEMORY_BYTES) -> None:
        self._limit = in_memory
        self._recent: list[tuple[str, bytes]] = []
        self._size = 0
        self._file: IO[bytes] | None = None
        self._on_disk = 0
        self._close: weakref.finalize[Any, Any] | None = None

    def append(self, name: str, body: bytes) -> None:
        """Add a document."""
        self._recent.append((name, body))
        self._size += len(body)
        if self._size > self._limit:
            self._spill_to_disk()

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        if self._file is not None:
            self._file.seek(0)
            while self._file.tell() < self._on_disk:
                name, size = _FRAME.unpack(self._file.read(_FRAME.size))
                yield self._file.read(name).decode(), self._file.read(size)
        yield from self._recent

    def clear(self) -> None:
        """Discard all documents."""
        self._recent.clear()
        self._size = self._on_disk = 0
        if self._close is not None:
            self._close()
            self._file = self._close = None

    def _spill_to_disk(self) -> None:
        """Move the documents in memory to the file; they stay in memory if the disk has no space."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the recording
                self._close = weakref.finalize(self, self._file.close)
            self._file.seek(self._on_disk)
            for name, body in self._recent:
                encoded = name.encode()
                self._file.write(_FRAME.pack(len(encoded), len(body)) + encoded + body)
            self._file.flush()
            self._on_disk = self._file.tell()
        except OSError as error:
            log.warning("Documents stay in memory because no temporary file can be written: %s", error)
            self._limit = 2 * self._size
            return
        self._recent.clear()
        self._size = 0


class Backup(Protocol):
    """Destination for the documents of one run that could not be written."""

    def save(self, documents: Iterable[tuple[str, bytes]]) -> None:
        """Add documents.

        Parameters
        ----------
        documents
            Names, and bodies as `tiledbroker.Encoder` encodes them.
        """


class JSONLinesBackup:
    """One file of JSON lines, named by the first part of the run's uid.

    An existing file of that name is not touched: the new file is then named by the whole uid, or by that and a number.

    Parameters
    ----------
    directory
        Directory of the file; made if missing.
    run_uid
        Uid of the run.
    """

    def __init__(self, directory: Path, run_uid: str) -> None:
        self._directory = directory
        self._run_uid = run_uid
        self._path: Path | None = None

    def save(self, documents: Iterable[tuple[str, bytes]]) -> None:
        """Append documents to the file.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        if self._path is None:
            self._path = self._new_file()
            log.warning("Run %s is backed up to %s.", self._run_uid, self._path)
        with self._path.open("a", encoding="utf-8") as file:
            for name, body in documents:
                file.write(json.dumps(to_entry(name, body)) + "\n")

    def _new_file(self) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in _candidate_names(self._run_uid):
            safe = name if _PLAIN_NAME.fullmatch(name) else Path(journal_filename(name)).stem
            path = self._directory / f"{safe}.jsonl"
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                continue
            return path
        # `_candidate_names` is endless.
        raise AssertionError


class DictionaryBackup:
    """A list of documents in a mapping, under the first part of the run's uid if that key is free.

    Parameters
    ----------
    store
        The mapping. A key in use is not touched.
    run_uid
        Uid of the run.
    """

    def __init__(self, store: MutableMapping[str, Any], run_uid: str) -> None:
        self._store = store
        self._run_uid = run_uid
        self._key: str | None = None
        self._entries: list[dict[str, Any]] = []

    def save(self, documents: Iterable[tuple[str, bytes]]) -> None:
        """Add documents to the list."""
        if self._key is None:
            self._key = next(name for name in _candidate_names(self._run_uid) if name not in self._store)
            log.warning("Run %s is backed up under %r.", self._run_uid, self._key)
        self._entries += [to_entry(name, body) for name, body in documents]
        # Assigned each time, because a store on disk does not notice changes of the list.
        self._store[self._key] = self._entries


def _candidate_names(run_uid: str) -> Iterator[str]:
    """Yield possible names of a run's backup, best first, without end."""
    yield run_uid.partition("-")[0]
    yield run_uid
    number = 2
    while True:
        yield f"{run_uid}.{number}"
        number += 1


def to_entry(name: str, body: bytes) -> dict[str, Any]:
    """Return a document as an entry of a backup; `body` is the encoded document."""
    plain = PlainText()
    entry = {"name": name, "doc": plain.of(decode(body))}
    return entry if plain.exact else {**entry, "exact": b64encode(body).decode()}


class PlainText:
    """Converts values to JSON types.

    Attributes
    ----------
    exact
        Everything converted so far can be restored exactly from JSON.
    """

    def __init__(self) -> None:
        self.exact = True

    def of(self, value: Any) -> Any:
        """Return a value in JSON types; clear `exact` if it cannot be restored from them."""
        if isinstance(value, Mapping):
            return {self._key(key): self.of(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.of(item) for item in value]
        if isinstance(value, numpy.ndarray):
            return self._convert_array(value)
        if isinstance(value, numpy.bool_ | numpy.integer | numpy.floating) and value.dtype.char != "g":
            return value.item()
        if isinstance(value, ReplacedByRepr):
            self.exact = False
            return str(value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Decimal | Fraction):
            self.exact = False
            return nearest_float(value)
        return self._convert_other(value)

    def _key(self, key: Any) -> str:
        if isinstance(key, str):
            return key
        self.exact = False
        return str(key)

    def _convert_array(self, array: numpy.ndarray[Any, Any]) -> Any:
        self.exact = self.exact and array.dtype.str in _EXACT_IN_JSON and array.size > 0
        items = array.tolist()
        return items if array.dtype.kind in "biuf" and array.dtype.char != "g" else self.of(items)

    def _convert_other(self, value: Any) -> Any:
        self.exact = False
        if isinstance(value, bytes):
            return value.decode("utf-8", "backslashreplace")
        if isinstance(value, tuple):
            # A row of a structured array.
            return [self.of(item) for item in value]
        return str(value)


class Entry(NamedTuple):
    """One document of a backup or journal.

    Attributes
    ----------
    line
        Number of its line in the file, or its index in a journal.
    name
        Kind of document.
    document
        Its content.
    body
        The same content, encoded.
    """

    line: int
    name: str
    document: dict[str, Any]
    body: bytes


def read_backup(path: Path) -> Iterator[Entry]:
    """Yield the documents of a file in order.

    Each line is `{"name": ..., "doc": ...}` or `[name, doc]`. A JSON array with one of these per line is accepted, too.

    Parameters
    ----------
    path
        File of JSON lines.

    Raises
    ------
    BackupUnreadable
        A line is not a document.
    OSError
        The file cannot be read.
    """
    encoder = Encoder()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            for item in _parse_line(path, number, line):
                try:
                    name, document, body = _parse_entry(item)
                except (CodecError, binascii.Error, KeyError, TypeError, ValueError) as error:
                    problem = 'this is not a document; expected {"name": ..., "doc": {...}} or [name, {...}].'
                    raise BackupUnreadable(path, number, problem) from error
                yield Entry(number, name, document, encoder.encode(document) if body is None else body)


def _parse_line(path: Path, number: int, line: bytes) -> list[Any]:
    """Return the entries in one line of a file."""
    text = line.strip().removesuffix(b",")
    if text in (b"", b"[", b"]"):
        return []
    try:
        value = json.loads(text)
    except ValueError as error:
        cut_off = "" if line.endswith(b"\n") else " It is the last line, and probably truncated."
        problem = f"this is not JSON ({error}).{cut_off} Fix or delete the line; nothing of this file has been written."
        raise BackupUnreadable(path, number, problem) from error
    return value if isinstance(value, list) and not (value and isinstance(value[0], str)) else [value]


def _parse_entry(item: Any) -> tuple[str, dict[str, Any], bytes | None]:
    """Return an entry's name and document, and the encoded document if the entry has it."""
    body = None
    if isinstance(item, list):
        name, document = item
    else:
        name, document = item["name"], item["doc"]
        if "exact" in item:
            body = b64decode(item["exact"], validate=True)
            document = decode(body)
    if not isinstance(name, str) or not isinstance(document, dict):
        raise TypeError
    return name, document, body
