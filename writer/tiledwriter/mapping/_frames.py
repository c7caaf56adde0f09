"""The frames of external data: regions of the array, order in a node, and the frames that documents have named."""

from __future__ import annotations

import re
import sys
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from numbers import Real
from typing import Any, Final, TypeAlias

Shape: TypeAlias = tuple[int, ...]

FILE_URI: Final = re.compile(r"file:(?://([^/]*))?(?=/|$)", re.IGNORECASE)
"""The beginning of the URI of a file, up to its path; the group is the host."""


@dataclass(frozen=True)
class Region:
    """A region of an array: its offset and its shape, one number for each dimension."""

    offset: Shape
    shape: Shape

    def union(self, other: Region) -> Region:
        """Return the smallest region that covers both regions."""
        offset = tuple(map(min, self.offset, other.offset))
        end = map(max, self._end_offset(), other._end_offset())
        return Region(offset, tuple(stop - start for start, stop in zip(offset, end, strict=True)))

    @classmethod
    def combine_patches(cls, patches: Iterable[Region]) -> Region:
        """Return the smallest region that covers all of the given ones, of which there must be one at least."""
        return reduce(cls.union, patches)

    def _end_offset(self) -> Shape:
        return tuple(start + size for start, size in zip(self.offset, self.shape, strict=True))


Patch: TypeAlias = Region
"""The name of `Region` in earlier versions, for consolidators of users."""


@dataclass
class _Run:
    """Consecutive frames: positions `start` onwards in the files, of the events from `seq_num` on.

    `seq_num` is None if the documents name no events.
    """

    seq_num: int | None
    start: int
    count: int

    @property
    def seq_stop(self) -> int:
        """The sequence number after that of the last frame's event."""
        return (self.seq_num or 0) + self.count

    def continues_at(self, start: int, seq_num: int | None) -> bool:
        """Return whether a frame at this position, of this event, is the next one."""
        known = None if self.seq_num is None else self.seq_stop
        return start == self.start + self.count and seq_num == known


class FrameOrder:
    """The frames of a node, in the order of their events.

    Frames are sorted by sequence number. A repeated sequence number means that a plan was rewound; its frames come
    after all earlier ones, as the rows of the events do.
    """

    def __init__(self) -> None:
        self.count = 0
        self.follows = True
        self._runs: list[_Run] = []
        # The index in `_runs` from which on sequence numbers increase and do not repeat.
        self._rewound_at = 0

    def add_frames(self, start: int, count: int, seq_num: int | None, *, insert: bool = True) -> int:
        """Add consecutive frames; return the row of the first one.

        Parameters
        ----------
        start
            The position of the first frame in the files.
        count
            The number of frames.
        seq_num
            The sequence number of the first frame's event, or None if unknown.
        insert
            Whether the frames may be inserted before others. Without it, they are added at the end.
        """
        at, rewound = self._insertion_index(count, seq_num)
        if rewound or (at < len(self._runs) and not insert):
            self._rewound_at = at = len(self._runs)
        row = self._first_row(at)
        self.follows = self.follows and (not self._runs or (row == self.count and self._stop_index == start))
        before = self._runs[at - 1] if at > self._rewound_at else None
        if before is not None and before.continues_at(start, seq_num):
            before.count += count
        elif count:
            self._runs.insert(at, _Run(seq_num, start, count))
        self.count += count
        return row

    def row_of(self, count: int, seq_num: int | None) -> int:
        """Return the row that the first of these frames would have in the order of the events."""
        return self._first_row(self._insertion_index(count, seq_num)[0])

    def is_next(self, start: int, seq_num: int | None) -> bool:
        """Return whether a frame at this position, of this event, comes next both in the files and in the events."""
        return not self._runs or (self.follows and start == self._stop_index and self.row_of(1, seq_num) == self.count)

    @property
    def repeats(self) -> bool:
        """Whether any sequence number is repeated."""
        return self._rewound_at > 0

    @property
    def first(self) -> int:
        """The position of the first frame in the files."""
        return self._runs[0].start if self._runs else 0

    @property
    def _stop_index(self) -> int:
        return self._runs[-1].start + self._runs[-1].count

    def _first_row(self, at: int) -> int:
        return self.count if at == len(self._runs) else sum(run.count for run in self._runs[:at])

    def _insertion_index(self, count: int, seq_num: int | None) -> tuple[int, bool]:
        """Return the index in `_runs` for frames of the events from `seq_num` on, and whether any has a frame already.

        In the second case, the index is the end of `_runs`.
        """
        end = len(self._runs)
        if end == self._rewound_at or seq_num is None or self._runs[-1].seq_num is None:
            return end, False
        if seq_num >= self._runs[-1].seq_stop:
            return end, False
        at = bisect_left(self._runs, seq_num, self._rewound_at, key=_first_event)
        before = self._runs[at - 1] if at > self._rewound_at else None
        repeated = at == end or _first_event(self._runs[at]) < seq_num + count
        repeated = repeated or (before is not None and before.seq_stop > seq_num)
        return (end, True) if repeated else (at, False)

    @property
    def ranges(self) -> list[range]:
        """The positions of the frames in the files, in the order of the rows."""
        ranges: list[range] = []
        for run in self._runs:
            if ranges and ranges[-1].stop == run.start:
                ranges[-1] = range(ranges[-1].start, run.start + run.count)
            else:
                ranges.append(range(run.start, run.start + run.count))
        return ranges

    @property
    def has_seq_nums(self) -> bool:
        """Whether the sequence numbers of all frames are known."""
        return not self.without_seq_num

    @property
    def without_seq_num(self) -> int:
        """The number of frames whose sequence numbers are not known."""
        return sum(run.count for run in self._runs if run.seq_num is None)

    @property
    def seq_nums(self) -> list[range]:
        """The known sequence numbers of the frames' events, in the order of the rows."""
        ranges: list[range] = []
        for run in self._runs:
            if run.seq_num is None:
                continue
            if ranges and ranges[-1].stop == run.seq_num:
                ranges[-1] = range(ranges[-1].start, run.seq_stop)
            else:
                ranges.append(range(run.seq_num, run.seq_stop))
        return ranges


def _first_event(run: _Run) -> int:
    return -1 if run.seq_num is None else run.seq_num


File: TypeAlias = tuple[str, ...]
"""What tells the file of a StreamResource, or its numbered files, from others; the URI comes first. See `file_of`."""


def file_of(stream_resource: Mapping[str, Any]) -> File:
    """Return what tells the file of a StreamResource from others. Several resources may name one file."""
    parameters = stream_resource["parameters"]
    others = (str(parameters.get(name, "")) for name in ("template", "filename"))
    return stream_resource["uri"], dataset_path(parameters.get("dataset", "")), *others


def dataset_path(text: Any) -> str:
    """Return the path of a dataset in its file, in the only spelling without needless slashes."""
    return "/".join(part for part in str(text).split("/") if part)


def plain_uri(uri: str) -> str:
    """Return the URI of a file in one spelling: its scheme and host may be spelled in several ways. Keep other URIs.

    An absolute path is that of a file, too, though it is no URI: Tiled takes it and cannot read it.
    """
    if uri.startswith("/") and not uri.startswith("//"):
        return f"file://localhost{uri}"
    found = FILE_URI.match(uri)
    return uri if found is None else f"file://{(found[1] or 'localhost').lower()}{uri[found.end() :]}"


def as_integer(value: Any) -> int | None:
    """Return the integer that a number equals, such as one of NumPy or a float without a fraction; None if none."""
    if type(value) is int:
        # Almost all are, and the test for other numbers is slow.
        return value
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        return int(value) if is_number and int(value) == value else None
    except (OverflowError, ValueError):
        # Infinity and NaN have no integer.
        return None


def as_range(limits: Any) -> range | None:
    """Return the range that a document's `indices` or `seq_nums` give.

    None unless they are a start that is not negative, and a stop that does not come before it and that Tiled can count.
    """
    if not isinstance(limits, Mapping):
        return None
    start, stop = as_integer(limits.get("start")), as_integer(limits.get("stop"))
    return None if start is None or stop is None or not 0 <= start <= stop <= sys.maxsize else range(start, stop)


class AnnouncedFrames:
    """The frames that the documents of a run have named, by file, over all streams.

    Tiled joins the files of an array with all frames that they contain. The position of a frame therefore depends on
    the number of frames in the files before, which only the documents tell: also those that no node has.
    """

    def __init__(self) -> None:
        self._files: dict[File, range] = {}

    def add_frames(self, file: File, numbers: range) -> None:
        """Record that a file contains these frames."""
        known = self._files.get(file, numbers)
        self._files[file] = range(known.start, max(known.stop, numbers.stop))

    def frames_of(self, file: File) -> range:
        """Return the range from the first to the last frame named for a file; an empty range if there is none."""
        return self._files.get(file, range(0))
