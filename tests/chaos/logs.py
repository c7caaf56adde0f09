"""The files that hold runs, in spool and journal directories: whose they are, what is used of them, their copies."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from warm import run_process

from tiledbroker import Journal, JournalError, journal_filename, run_files

JOURNAL_COMMAND: Final = (sys.executable, "-m", "tiledwriter.cli.journal")
_BESIDE: Final = (".lock", "-shm", ".ipc", ".log")  # what has no documents
SEGMENT: Final = ".segment"
_TIMEOUT: Final = 120.0


def files_of(directory: Path, run_uid: str) -> list[Path]:
    """A run's files with documents, the newest documents last."""
    stem = journal_filename(run_uid).removesuffix(".sqlite")
    found = [path for path in directory.glob(f"{stem}.*") if path.is_file() and not path.name.endswith(_BESIDE)]
    return sorted(found, key=lambda path: path.name)


def runs_in(directory: Path, run_uids: Iterable[str]) -> list[str]:
    """Those of the runs that have files in the directory, in the order given."""
    stems = {path.name.partition(".")[0] for path in directory.iterdir()} if directory.is_dir() else set()
    return [uid for uid in run_uids if uid in stems and files_of(directory, uid)]


def used(path: Path) -> int:
    """Bytes of a file before the space, of zeros, that waits for more."""
    return len(path.read_bytes().rstrip(b"\0"))


def flip_bit(path: Path, chance: random.Random) -> str:
    """Flip one bit of the used part of a file, in place; says which one."""
    position, bit = chance.randrange(used(path)), chance.randrange(8)
    with path.open("r+b", buffering=0) as file:
        file.seek(position)
        before = file.read(1)[0]
        file.seek(position)
        file.write(bytes([before ^ 1 << bit]))
    return f"bit {bit} of byte {position} of {path.name}"


def documents_in(directory: Path) -> dict[str, int]:
    """Up to which index each run's documents can be read in a directory; a copy of it is looked at."""
    with tempfile.TemporaryDirectory() as place:
        copy = copy_files(directory, Path(place) / "copy")
        ends = {path.stem: _readable(path) for path in run_files(copy)}
        if any(copy.glob(f"*{SEGMENT}")):
            ends |= _listed(copy)
    return ends


def _readable(path: Path) -> int:
    """How many documents a journal, or a spool file that is one, gives."""
    try:
        with Journal(path) as journal:
            return sum(1 for _ in journal.records())
    except (JournalError, OSError, sqlite3.Error, ValueError):
        return 0


def _listed(spool: Path) -> dict[str, int]:
    """The same for a spool of segments, as the command line sees it."""
    command = [*JOURNAL_COMMAND, "ls", "--json", str(spool)]
    done = run_process(command, timeout=_TIMEOUT)
    counts = {str(run["uid"]): sum((run.get("documents") or {}).values()) for run in json.loads(done.stdout or "[]")}
    return {uid: _first_index(spool, uid) + count if count else 0 for uid, count in counts.items()}


def _first_index(directory: Path, run_uid: str) -> int:
    """Of the documents that a run's segments hold: those that went before are durable elsewhere."""
    segments = [path for path in files_of(directory, run_uid) if path.suffix == SEGMENT]
    return int(segments[0].name.split(".")[-2]) if segments else 0


def copy_files(source: Path, target: Path) -> Path:
    """Copy a directory's regular files, below it, too; what disappears meanwhile is left out."""
    target.mkdir(parents=True, mode=0o700, exist_ok=True)
    for path in sorted(source.iterdir()) if source.is_dir() else ():
        try:
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                copy_files(path, target / path.name)
            elif stat.S_ISREG(mode) and not path.name.endswith("-shm"):
                shutil.copy2(path, target / path.name)
        except FileNotFoundError:
            continue
    return target


def replace_files(directory: Path, copy: Path | None) -> None:
    """Have a directory hold what a copy holds, or nothing."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    if copy is not None:
        copy_files(copy, directory)
