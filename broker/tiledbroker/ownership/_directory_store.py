"""A store of leases in a directory that all ingest hosts mount (NFS, GPFS, or local for one host).

Each revision is a file, `lease-` and the revision in twenty digits. A compare-and-set from R to R + 1 writes a
complete, synced temporary file and gives it the name of R + 1 with link(2), which only one of all hosts can do. A
host that comes so late that the name is free again, because R + 1 was removed, finds a higher revision in the
directory afterwards, and counts as refused. A file under such a name is never changed.

`create` makes the file of revision 0, without a lease. So an empty directory never means that nobody holds the
lease: it is one that is not mounted, or that was emptied.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import zlib
from pathlib import Path
from typing import Final

import msgspec

from .._errors import StoreUnavailable
from .._wording import format_command
from ._lease import Lease, Stored

KEPT_REVISIONS: Final = 64
"""Revisions that stay. At a renewal every two seconds, they go back further than a list of names that an NFS client
has kept (one minute), and the wait of a successor, together."""

_FORMAT_VERSION: Final = 1
_LEASE_NAME: Final = re.compile(r"lease-(\d{20})")
_TEMPORARY_NAME: Final = re.compile(r"new-(\d{20})-[0-9a-f]{16}")
_MAX_FILE_BYTES: Final = 65536


class _LeaseFile(msgspec.Struct, frozen=True):
    """Contents of a file, as JSON."""

    version: int
    revision: int
    lease: Lease | None
    crc32: int


# Made here: msgspec must not look at a type in two threads at once.
_decoder: Final = msgspec.json.Decoder(_LeaseFile)


class DirectoryStore:
    """Lease store in a directory; see the module.

    Parameters
    ----------
    path
        A directory that `create` has prepared. It is not looked at before the first call.
    """

    # A directory that was restored shows lower revisions than running supervisors know, which they do not trust.
    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def create(cls, path: Path) -> DirectoryStore:
        """Prepare a directory, once for all hosts. Only its owner has access to what is made.

        Raises
        ------
        OSError
            The directory or the file cannot be made. `FileExistsError`: the directory holds leases already.
        """
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = cls(path)
        if store._list_revisions():
            raise FileExistsError(f"{path} has been prepared already.")
        new = store._write_temporary_file(Stored(0, None))
        try:
            os.link(new, store._path_of(0))
        finally:
            new.unlink()
        return store

    def close(self) -> None:
        """Do nothing: nothing is held between two calls."""

    def read(self) -> Stored:
        """Return the newest lease; see `LeaseStore.read`."""
        newest = self._find_newest()
        path = self._path_of(newest)
        try:
            with path.open("rb") as file:
                contents = file.read(_MAX_FILE_BYTES)
        except OSError as error:
            raise StoreUnavailable(path, f"it cannot be read: {error}") from error
        return self._decode(contents, newest)

    def compare_and_set(self, expected_revision: int, lease: Lease) -> int | None:
        """Store a lease if the newest revision is the expected one; see `LeaseStore.compare_and_set`."""
        revision = expected_revision + 1
        try:
            new = self._write_temporary_file(Stored(revision, lease))
            try:
                # The new file has changed the directory, so that an NFS client asks the server for the names.
                if self._find_newest() != expected_revision or not self._link(new, self._path_of(revision)):
                    return None
            finally:
                new.unlink(missing_ok=True)
            sync_directory(self.path)
            is_newest = self._find_newest() == revision
        except OSError as error:
            raise StoreUnavailable(self.path, f"a lease cannot be stored: {error}") from error
        self._remove_old_files()
        return revision if is_newest else None

    def _path_of(self, revision: int) -> Path:
        return self.path / f"lease-{revision:020d}"

    def _list_revisions(self) -> list[int]:
        return [int(found[1]) for path in self.path.iterdir() if (found := _LEASE_NAME.fullmatch(path.name))]

    def _find_newest(self) -> int:
        try:
            revisions = self._list_revisions()
        except (FileNotFoundError, NotADirectoryError):
            revisions = []
        except OSError as error:
            raise StoreUnavailable(self.path, f"it cannot be read: {error}") from error
        if not revisions:
            command = format_command("tiledwriter-supervisor", "lease-dir", self.path)
            advice = f"Mount the directory that all ingest hosts share. If it is new, prepare it once: `{command}`"
            raise StoreUnavailable(self.path, f"it is no directory of leases. {advice}")
        return max(revisions)

    def _write_temporary_file(self, stored: Stored) -> Path:
        path = self.path / f"new-{stored.revision:020d}-{secrets.token_hex(8)}"
        contents = _LeaseFile(_FORMAT_VERSION, stored.revision, stored.lease, _checksum(stored))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(contents))
            file.flush()
            os.fsync(descriptor)
        return path

    def _link(self, new: Path, target: Path) -> bool:
        """Give a file a second name; return False if another file has it."""
        try:
            os.link(new, target)
        except FileExistsError:
            # An NFS client that has sent the request again, after the answer was lost, is told so of its own success.
            # Opening the file makes it ask for the current link count.
            descriptor = os.open(new, os.O_RDONLY)
            try:
                return os.fstat(descriptor).st_nlink > 1
            finally:
                os.close(descriptor)
        return True

    def _decode(self, contents: bytes, revision: int) -> Stored:
        path = self._path_of(revision)
        try:
            found = _decoder.decode(contents)
            stored = Stored(found.revision, found.lease)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise StoreUnavailable(path, f"it is damaged, or is not a lease: {error}") from error
        if found.version != _FORMAT_VERSION:
            raise StoreUnavailable(path, "another version of tiledwriter wrote it; use one version on all hosts")
        if found.revision != revision or found.crc32 != _checksum(stored):
            raise StoreUnavailable(path, "it is damaged: it does not match its name or its checksum")
        return stored

    def _remove_old_files(self) -> None:
        """Remove old revisions, and temporary files that processes left when they were killed."""
        with contextlib.suppress(OSError, StoreUnavailable):
            oldest_kept = self._find_newest() - KEPT_REVISIONS + 1
            for path in list(self.path.iterdir()):
                found = _LEASE_NAME.fullmatch(path.name) or _TEMPORARY_NAME.fullmatch(path.name)
                if found is not None and int(found[1]) < oldest_kept:
                    path.unlink(missing_ok=True)


def _checksum(stored: Stored) -> int:
    return zlib.crc32(msgspec.json.encode((_FORMAT_VERSION, stored.revision, stored.lease)))


def sync_directory(path: Path) -> None:
    """Make names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
