"""Paths of Unix sockets in the journal directory, also where the directory's path is too long for a socket."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Final

from .._errors import DirectoryUnusable

# Bytes of a Unix socket path that fit on every system: Linux takes 107, others 103.
_MAX_SOCKET_PATH_BYTES: Final = 100


class SocketPath:
    """Path by which a socket in a directory can be bound or connected, until it is closed.

    If the path is too long for a socket, it goes through an open descriptor of the directory, which other processes of
    the same user may use, too.

    Parameters
    ----------
    directory
        The directory.
    name
        Name of the socket in it.

    Attributes
    ----------
    path
        The path to use.

    Raises
    ------
    DirectoryUnusable
        The path is too long, and the system has no `/proc`.
    OSError
        The path is too long, and the directory cannot be opened.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._descriptor: int | None = None
        self.path = directory.absolute() / name
        if len(os.fsencode(self.path)) <= _MAX_SOCKET_PATH_BYTES:
            return
        descriptors = Path(f"/proc/{os.getpid()}/fd")
        if not descriptors.is_dir():
            raise DirectoryUnusable(directory, "its path is too long for a socket in it.")
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.path = descriptors / str(self._descriptor) / name

    def __enter__(self) -> SocketPath:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor if there is one; the path must not be used any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
