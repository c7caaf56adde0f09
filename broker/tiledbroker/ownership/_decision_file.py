"""Decisions about one run in a file that all ingest hosts mount, beside their lease.

A file is replaced as a whole, by rename(2). Each has the number of its revision, and is replaced only by the process
that knows it: so a process that was stopped, and continues after another host has taken the run over, notices that its
decisions are no longer the newest. Between this comparison and the renaming, only the lease protects the file.
"""

from __future__ import annotations

import os
import secrets
import zlib
from pathlib import Path
from typing import Final

import msgspec

from .._errors import StoreUnavailable
from .._outcomes import COMPLETE
from ._directory_store import DirectoryStore, sync_directory
from ._run_decisions import RunDecisions

RUNS_SUBDIRECTORY: Final = "runs"
"""Subdirectory of a directory of leases for the files; the first one makes it."""

_FORMAT_VERSION: Final = 1


class _Version(msgspec.Struct, frozen=True):
    """The part of a file's contents that all versions have."""

    version: int


class _Record(msgspec.Struct, frozen=True):
    """Contents of a file, as JSON."""

    version: int
    revision: int
    decisions: RunDecisions
    crc32: int


# Made here: msgspec must not look at a type in two threads at once.
_decoder: Final = msgspec.json.Decoder(_Record)


class DecisionFile:
    """Decision store in a file; see the module and `DecisionStore`.

    The file exists as long as the run is not complete: then no publisher sends it to another host.

    Parameters
    ----------
    path
        The file, which need not exist, in the `runs` subdirectory of a directory of leases.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Of the file as this object knows it; 0 if there is none.
        self._revision = 0

    def load(self) -> RunDecisions | None:
        """Return the decisions in the file; see `DecisionStore.load`."""
        record = self._read()
        self._revision = 0 if record is None else record.revision
        return None if record is None else record.decisions

    def store(self, decisions: RunDecisions) -> None:
        """Replace the file, or remove that of a complete run; see `DecisionStore.store`."""
        record = self._read()
        if self._revision != (0 if record is None else record.revision):
            raise StoreUnavailable(self.path, "another process has changed it meanwhile")
        try:
            if decisions.outcome in COMPLETE:
                revision = 0
                self.path.unlink(missing_ok=True)
            else:
                revision = self._revision + 1
                self._replace(revision, decisions)
                sync_directory(self.path.parent)
        except OSError as error:
            raise StoreUnavailable(self.path, f"it cannot be stored: {error}") from error
        self._revision = revision

    def _replace(self, revision: int, decisions: RunDecisions) -> None:
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        contents = _Record(_FORMAT_VERSION, revision, decisions, _checksum(revision, decisions))
        new = self.path.with_name(f".new-{self.path.name}-{secrets.token_hex(8)}")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(contents))
                file.flush()
                os.fsync(descriptor)
            new.replace(self.path)
        finally:
            new.unlink(missing_ok=True)

    def _read(self) -> _Record | None:
        try:
            contents = self.path.read_bytes()
        except FileNotFoundError:
            if not self.path.parent.is_dir():
                # Nothing was ever stored, unless the directory of leases is not mounted.
                DirectoryStore(self.path.parent.parent).read()
            return None
        except OSError as error:
            raise StoreUnavailable(self.path, f"it cannot be read: {error}") from error
        try:
            if msgspec.json.decode(contents, type=_Version).version > _FORMAT_VERSION:
                raise StoreUnavailable(
                    self.path, "a newer version of tiledwriter wrote it. Use that version on all ingest hosts"
                )
            record = _decoder.decode(contents)
            is_sound = record.crc32 == _checksum(record.revision, record.decisions)
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if not is_sound:
            raise self._damaged("it does not match its checksum")
        return record

    def _damaged(self, why: str) -> StoreUnavailable:
        return StoreUnavailable(
            self.path,
            f"it is damaged: {why}. Nothing of the run is written until it is removed. The host that has the run's "
            "journal then stores it anew; another host goes on without it, and may write tables again",
        )


def _checksum(revision: int, decisions: RunDecisions) -> int:
    return zlib.crc32(msgspec.json.encode((_FORMAT_VERSION, revision, decisions)))
