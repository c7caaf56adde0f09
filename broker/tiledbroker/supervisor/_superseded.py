"""Sets journals aside that another host's turn has made stale: they are kept to be looked at, and not written from.

A journal directory remembers in which epoch of the lease it was written, and which starts have asked for the lease
since. If somebody else has held it meanwhile, the publishers have sent their runs to that host, so what this directory
has of unfinished runs is an old copy.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from .._errors import DirectoryUnusable
from .._wording import format_command
from ..log import SUPERSEDED_SUBDIRECTORY, is_run_file, sync_directory
from ..ownership import Lease
from ._journal_facts import read_facts
from ._lifecycle import State

log = logging.getLogger(__name__)

_TURN_FILE: Final = ".lease-turn"
_LOG_SUFFIXES: Final = ("-wal", "-shm", ".lock")


class _Turn(msgspec.Struct, frozen=True):
    """The last turn in which journals were written here: its epoch, 0 for none, and the starts from that one on."""

    epoch: int
    starts: list[str]


def record_start(directory: Path, start: str) -> None:
    """Record that a supervisor start is about to ask for the lease.

    Raises
    ------
    DirectoryUnusable
        The record cannot be read or written.
    """
    turn = _read_turn(directory)
    _write_turn(directory, _Turn(turn.epoch, [*turn.starts, start]))


def set_aside_superseded(directory: Path, own: Lease, predecessor: Lease | None) -> int:
    """Move the unfinished journals of a directory aside if another one has held the lease since they were written.

    Parameters
    ----------
    directory
        The journal directory.
    own
        The lease that is held now, by the last start in the record.
    predecessor
        The lease before this one; None if there was none.

    Returns
    -------
    int
        Number of journals that were moved.

    Raises
    ------
    DirectoryUnusable
        A journal cannot be moved, or the record cannot be written.
    """
    turn = _read_turn(directory)
    moved = 0
    if predecessor is not None and not _is_next(predecessor, turn):
        # If this is interrupted, the next attempt moves the rest to the same folder.
        folder = directory / SUPERSEDED_SUBDIRECTORY / turn.starts[0]
        try:
            moved = _move_journals(directory, folder)
        except OSError as error:
            raise DirectoryUnusable(directory, f"journals cannot be set aside: {error.strerror}.") from error
        if moved:
            log.warning(
                "%d unfinished journals were set aside in %s, as another host has served since they were written. "
                "Publishers that keep runs until they are written send them again. What these journals have, shows: %s",
                moved,
                folder,
                format_command("tiledwriter-journal", "ls", folder),
            )
    _write_turn(directory, _Turn(own.epoch, [own.holder]))
    return moved


def _is_next(predecessor: Lease, turn: _Turn) -> bool:
    """Return whether nobody else can have held the lease between the turn and now.

    A start may have obtained the lease, and died before it could record that. Of two such starts, only the second one
    is known, and another host may have been between them.
    """
    return predecessor.holder in turn.starts and predecessor.epoch <= turn.epoch + 1


def _move_journals(directory: Path, folder: Path) -> int:
    present = sorted(entry.name for entry in directory.iterdir())
    # Opening a journal brings what is in its WAL file into it. A written run waits for its late audit, and stays.
    written = {name for name in present if is_run_file(name) and read_facts(directory / name).state is State.WRITTEN}
    moved = [name for name in present if is_run_file(journal := _journal_of(name)) and journal not in written]
    if not moved:
        return 0
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    for name in moved:
        if (directory / name).exists():
            (directory / name).rename(folder / name)
    sync_directory(folder)
    sync_directory(directory)
    return sum(map(is_run_file, moved))


def _journal_of(name: str) -> str:
    """Return the name of the journal that a file beside it belongs to; a journal's own name as it is."""
    suffix = next((suffix for suffix in _LOG_SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix)


def _read_turn(directory: Path) -> _Turn:
    path = directory / _TURN_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Turn)
    except FileNotFoundError:
        return _Turn(0, [])
    except (OSError, msgspec.MsgspecError) as error:
        raise DirectoryUnusable(
            directory,
            f"{path.name}, which tells whose journals these are, cannot be read ({error}). If no other host has served "
            "since they were written, remove it.",
        ) from error


def _write_turn(directory: Path, turn: _Turn) -> None:
    path = directory / _TURN_FILE
    new = path.with_suffix(".new")
    try:
        with new.open("wb") as file:
            file.write(msgspec.json.encode(turn))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_directory(directory)
    except OSError as error:
        raise DirectoryUnusable(directory, f"{path.name} cannot be written: {error.strerror}.") from error
