"""A disk that can be full: a small file system in memory, and a file that takes the rest of it."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path
from typing import Final

_BLOCK: Final = 2**20


class SmallDisk:
    """A directory on a file system of its own; where that cannot be mounted, `problem` says why.

    As a context manager it mounts on entry, and unmounts on exit.
    """

    def __init__(self, directory: Path, megabytes: int) -> None:
        self.directory = directory
        self.problem = ""
        self._megabytes = megabytes
        self._ballast = directory / "ballast"

    def __enter__(self) -> SmallDisk:
        self.directory.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._megabytes}m,mode=0700", "tmpfs", str(self.directory)]
        try:
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            self.problem = made.stderr.strip() if made.returncode else ""
        except OSError as error:
            self.problem = str(error)
        return self

    def __exit__(self, *_: object) -> None:
        if not self.problem:
            subprocess.run(["umount", "--lazy", str(self.directory)], check=True)

    def fill(self) -> None:
        """Take all the space there is."""
        with self._ballast.open("ab") as file:
            size, block = file.tell(), _BLOCK
            while block:
                try:
                    os.posix_fallocate(file.fileno(), size, block)
                    size += block
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    block //= 4

    def empty(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ballast.unlink()
