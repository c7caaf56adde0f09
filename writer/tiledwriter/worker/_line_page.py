"""Pages of memory that a supervisor and its workers share; lines are appended to them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, TypeVar

_MAX_LINE_BYTES: Final = 4096

_Page = TypeVar("_Page", bound="LinePage")


@dataclass(frozen=True)
class LinePage:
    """A file without a name, in memory only, that processes share by its descriptor.

    Lines are appended to it, of which the last complete one counts: a reader never sees a part of a line.
    """

    descriptor: int

    @classmethod
    def make(cls: type[_Page]) -> _Page:  # noqa: PYI019  typing.Self needs Python 3.11
        """Return a new page. It exists until the last process that has it open has ended."""
        return cls(os.memfd_create("tiledwriter"))

    def close(self) -> None:
        """Close the page in this process."""
        os.close(self.descriptor)

    def append_line(self, line: bytes) -> None:
        """Append a line, given without its end; one that is too long to be read is left out."""
        if len(line) < _MAX_LINE_BYTES - 1:
            os.write(self.descriptor, line + b"\n")

    def read_last_line(self) -> bytes:
        """Return the last complete line; b"" if there is none."""
        size = os.fstat(self.descriptor).st_size
        tail = os.pread(self.descriptor, 2 * _MAX_LINE_BYTES, max(0, size - 2 * _MAX_LINE_BYTES))
        return tail[: tail.rfind(b"\n") + 1].rstrip(b"\n").rpartition(b"\n")[2]
