"""The files in a spool directory: how they are called, and which make up a run.

<run>.<log>.<first index>.segment    a segment of a run
_unrouted.<log>.<first index>.segment  documents that belong to no known run
.spare-<session>-<number>.segment    a segment that no run had begun to use when it was named
.session-<session>.lock              locked for as long as the session lives
.adopter-<destination>.lock          locked by the publisher that ships what dead sessions left for a destination
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
    """A file of a run, by its name; `stem` is what the name has of the run's uid."""

    path: Path
    stem: str
    log: str
    first: int

    @property
    def name(self) -> str:
        """What the file is called, or will be once its session has named it."""
        return f"{self.stem}.{self.log}.{self.first:012d}{SEGMENT_SUFFIX}"


def segment_path(directory: Path, header: SegmentHeader) -> Path:
    """Return where a segment lies once it is named."""
    return directory / f"{_stem(header)}.{header.log}.{header.first:012d}{SEGMENT_SUFFIX}"


def _stem(header: SegmentHeader) -> str:
    # No file of a run begins with "_", whatever its uid is.
    return journal_filename(header.run).removesuffix(SUFFIX) if header.shipped else "_unrouted"


def spare_path(directory: Path, session: str, number: int) -> Path:
    """Return where a segment lies that no run uses yet."""
    return directory / f".spare-{session}-{number}{SEGMENT_SUFFIX}"


def lock_path(directory: Path, session: str) -> Path:
    """Return the file that a living session has locked."""
    return directory / f".session-{session}.lock"


def adopter_lock_path(directory: Path, destination: str) -> Path:
    """Return the file that the publisher has locked that ships what dead sessions left for a destination."""
    return directory / f".adopter-{zlib.crc32(destination.encode()):08x}.lock"


def session_of_spare(path: Path) -> str | None:
    """Return the session that made a spare segment; None for any other file."""
    match = _SPARE.fullmatch(path.name)
    return match["session"] if match else None


def session_of_lock(path: Path) -> str | None:
    """Return the session that has, or had, locked a file; None for any other file."""
    match = _LOCK.fullmatch(path.name)
    return match["session"] if match else None


def find_segment(path: Path) -> Path:
    """Return where a segment lies that is, or will be, called `path`: its session may not have named it yet.

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
    """Return what is in a directory, without pipes and the like, at which whoever opens them would wait for ever.

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
    """Sort files into run logs: by log, its files by their first index. Others are left out.

    A spare that a run had begun to use when its session was killed is told by its header.
    """
    logs: defaultdict[str, list[SegmentFile]] = defaultdict(list)
    for path in paths:
        if match := _SEGMENT.fullmatch(path.name):
            logs[match["log"]].append(SegmentFile(path, match["run"], match["log"], int(match["first"])))
        elif session_of_spare(path) is not None and (header := _header_of(path)) is not None:
            logs[header.log].append(SegmentFile(path, _stem(header), header.log, header.first))
    return {
        log: sorted(files, key=lambda file: (file.first, file.path.name != file.name)) for log, files in logs.items()
    }


def _header_of(spare: Path) -> SegmentHeader | None:
    try:
        return read_header(spare)[0]
    except OSError:  # its session has named it after its run this instant, or it is somebody else's
        return None
