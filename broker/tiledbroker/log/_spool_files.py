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
from pathlib import Path
from typing import Final, NamedTuple

from ._journal import SUFFIX, journal_filename
from ._segment import SEGMENT_SUFFIX, SegmentHeader, read_header

_SEGMENT: Final = re.compile(r"(?P<run>.+)\.(?P<log>[0-9a-f]{8})\.(?P<first>\d{12,})\.segment")
_LOCK: Final = re.compile(r"\.session-(?P<session>[0-9a-f]+)\.lock")
_SPARE: Final = re.compile(r"\.spare-(?P<session>[0-9a-f]+)-\d+\.segment")


class SegmentFile(NamedTuple):
    """A file of a run log, described by its name, or by its header if it still has the name of a spare.

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
    files = segment_files(files_in(path.parent)).get(match["log"], [])
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


def segment_files(paths: list[Path]) -> dict[str, list[SegmentFile]]:
    """Group segments by the label of their run log, sorted by first index. Other files are ignored.

    A segment that a run uses but that still has the name of a spare is identified by its header.
    """
    logs: defaultdict[str, list[SegmentFile]] = defaultdict(list)
    for path in paths:
        if match := _SEGMENT.fullmatch(path.name):
            logs[match["log"]].append(SegmentFile(path, match["run"], match["log"], int(match["first"])))
        elif session_of_spare(path) is not None and (header := _header_of(path)) is not None:
            logs[header.log].append(SegmentFile(path, _file_stem(header), header.log, header.first))
    return {
        log: sorted(files, key=lambda file: (file.first, file.path.name != file.name)) for log, files in logs.items()
    }


def _header_of(spare: Path) -> SegmentHeader | None:
    try:
        return read_header(spare)[0]
    except OSError:
        # Its session has just renamed the file, or the file belongs to another user.
        return None
