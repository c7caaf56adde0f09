"""Names of the files in a spool directory, and the assignment of segments to run logs.

<run>.<log>.<first index>.segment      segment of a run
_unrouted.<log>.<first index>.segment  documents that belong to no known run
.spare-<session>-<number>.segment      spare segment, or a used one that is not renamed yet
.session-<session>.lock                locked while the session is alive
.adopter-<destination>.lock            locked by the publisher that adopts the runs of dead sessions for a destination
"""

from __future__ import annotations

import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from ._journal_files import SUFFIX, journal_filename
from ._segment import SEGMENT_SUFFIX, SegmentHeader, read_header

_SEGMENT: Final = re.compile(r"(?P<run>.+)\.(?P<log>[0-9a-f]{8})\.(?P<first>\d{12,})\.segment")
_LOCK: Final = re.compile(r"\.session-(?P<session>[0-9a-f]+)\.lock")
_EMPTY_HEADER: Final = "its header is empty"
_SPARE: Final = re.compile(r"\.spare-(?P<session>[0-9a-f]+)-\d+\.segment")


class SegmentFile(NamedTuple):
    """A file of a run log, described by its name, or by its header if it has the name of a spare or another one.

    Attributes
    ----------
    path
        Current path of the file.
    stem
        The run's uid, or its digest, as it appears in file names; "_unrouted" for documents without a run.
    log
        Random label of the run log.
    first
        Index of the first record.
    """

    path: Path
    stem: str
    log: str
    first: int

    @property
    def name(self) -> str:
        """Final name of the file, which its session may still have to give it."""
        return f"{self.stem}.{self.log}.{self.first:012d}{SEGMENT_SUFFIX}"

    @property
    def is_misnamed(self) -> bool:
        """True if its session did not give the file this name."""
        return self.path.name != self.name and session_of_spare(self.path) is None


class SortedSegments(NamedTuple):
    """Segments of a directory.

    Attributes
    ----------
    logs
        Files of each run log by the log's label, sorted by first index.
    strays
        Files that belong to no log, each with the reason: they may hold documents that no log has.
    """

    logs: dict[str, list[SegmentFile]]
    strays: dict[Path, str]


def segment_path(directory: Path, header: SegmentHeader) -> Path:
    """Return the final path of a segment."""
    return directory / f"{_file_stem(header)}.{header.log}.{header.first:012d}{SEGMENT_SUFFIX}"


def _file_stem(header: SegmentHeader) -> str:
    # A file name that is derived from a uid never begins with "_".
    return journal_filename(header.run).removesuffix(SUFFIX) if header.shipped else "_unrouted"


def spare_path(directory: Path, session: str, number: int) -> Path:
    """Return the path of a spare segment, which no run uses yet."""
    return directory / f".spare-{session}-{number}{SEGMENT_SUFFIX}"


def lock_path(directory: Path, session: str) -> Path:
    """Return the path of the file that a session locks while it is alive."""
    return directory / f".session-{session}.lock"


def adopter_lock_path(directory: Path, destination: str) -> Path:
    """Return the path of the file locked by the publisher that adopts dead sessions' runs for a destination."""
    return directory / f".adopter-{zlib.crc32(destination.encode()):08x}.lock"


def session_of_spare(path: Path) -> str | None:
    """Return the session named in a spare segment's file name; None for other file names."""
    match = _SPARE.fullmatch(path.name)
    return match["session"] if match else None


def session_of_lock(path: Path) -> str | None:
    """Return the session named in a session lock's file name; None for other file names."""
    match = _LOCK.fullmatch(path.name)
    return match["session"] if match else None


def is_named_after_run(name: str) -> bool:
    """Return True if a run file of this name has the uid of its run, or the digest of the uid, in it."""
    return name.endswith(SUFFIX) or _SEGMENT.fullmatch(name) is not None


def find_segment(path: Path) -> Path:
    """Return the current path of the segment whose final path is `path`; its session may not have renamed it yet.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    match = _SEGMENT.fullmatch(path.name)
    if match is None or path.exists():
        return path
    files = sort_segments(files_in(path.parent)).logs.get(match["log"], [])
    return next((file.path for file in files if file.first == int(match["first"])), path)


def files_in(directory: Path) -> list[Path]:
    """Return the files, directories and symbolic links in a directory.

    Pipes and other special files are left out, because opening them could block for ever.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    with os.scandir(directory) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False) or entry.is_symlink()
        ]


def sort_segments(paths: Iterable[Path]) -> SortedSegments:
    """Assign segments to run logs by their names, or else by their headers. Other files are ignored.

    A header that cannot be read, or is damaged, makes a stray of any file but a spare that no run uses.
    """
    logs: defaultdict[str, list[SegmentFile]] = defaultdict(list)
    strays: dict[Path, str] = {}
    others: list[SegmentFile] = []
    for path in paths:
        if match := _SEGMENT.fullmatch(path.name):
            logs[match["log"]].append(SegmentFile(path, match["run"], match["log"], int(match["first"])))
        elif path.name.endswith(SEGMENT_SUFFIX):
            try:
                header, damage = read_header(path)
            except OSError as error:
                # Its session may just have renamed the file.
                if not isinstance(error, FileNotFoundError) or path.is_symlink():
                    strays[path] = error.strerror or str(error)
                continue
            if header is not None:
                others.append(SegmentFile(path, _file_stem(header), header.log, header.first))
            elif damage or session_of_spare(path) is None:
                strays[path] = damage or _EMPTY_HEADER
    for file in sorted(others, key=lambda file: (file.is_misnamed, file.path)):
        if file.is_misnamed and any(file.first == rival.first for rival in logs.get(file.log, ())):
            strays[file.path] = f"it is a copy of {file.name}, which is there as well"
        else:
            logs[file.log].append(file)
    for files in logs.values():
        files.sort(key=lambda file: (file.first, file.path.name != file.name))
    return SortedSegments(dict(logs), strays)
