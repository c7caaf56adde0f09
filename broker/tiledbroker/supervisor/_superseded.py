"""Sets journals aside that another host's turn has made stale: they are kept to be looked at, and not written from.

A journal directory remembers in which epoch of the lease it was written, and which starts have asked for the lease
since. If somebody else has held it meanwhile, the publishers have sent their runs to that host, so what this directory
has of unfinished runs is an old copy.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
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


@dataclass(frozen=True)
class EarlierStarts:
    """What a journal directory tells of the starts before this one.

    Attributes
    ----------
    last
        The last one that has asked for a lease; "" if there was none.
    next_epoch
        An epoch above those of all of them.
    have_served
        One of them has written journals under a lease.
    """

    last: str
    next_epoch: int
    have_served: bool


def record_start(directory: Path, start: str) -> EarlierStarts:
    """Record that a supervisor start is about to ask for the lease, and return what is known of those before it.

    Raises
    ------
    DirectoryUnusable
        The record cannot be read or written.
    """
    turn = _read_turn(directory)
    _write_turn(directory, _Turn(turn.epoch, [*turn.starts, start]))
    have_served = turn.epoch > 0
    return EarlierStarts(
        turn.starts[-1] if turn.starts else "", turn.epoch + len(turn.starts) + (not have_served), have_served
    )


def record_turn(directory: Path, own: Lease) -> None:
    """Record that journals are written in the epoch of a lease from now on.

    Raises
    ------
    DirectoryUnusable
        The record cannot be written.
    """
    _write_turn(directory, _Turn(own.epoch, [own.holder]))


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
        moved = set_aside_unfinished(
            directory,
            "another host has served since they were written. Publishers that keep runs until they are written send "
            "them again",
        )
    record_turn(directory, own)
    return moved


def set_aside_unfinished(directory: Path, reason: str) -> int:
    """Move the unfinished journals of a directory aside, and log the reason.

    Returns
    -------
    int
        Number of journals that were moved.

    Raises
    ------
    DirectoryUnusable
        A journal cannot be moved.
    """
    # If this is interrupted, the next attempt moves the rest to the same folder.
    folder = directory / SUPERSEDED_SUBDIRECTORY / _read_turn(directory).starts[0]
    try:
        moved = _move_journals(directory, folder)
    except OSError as error:
        raise DirectoryUnusable(directory, f"journals cannot be set aside: {error.strerror}.") from error
    if moved:
        log.warning(
            "%d unfinished journals were set aside in %s, as %s. What these journals have, shows: %s",
            moved,
            folder,
            reason,
            format_command("tiledwriter-journal", "ls", folder),
        )
    return moved


def count_unfinished(directory: Path) -> int:
    """Return how many journals `set_aside_unfinished` would move."""
    return sum(map(is_run_file, _find_unfinished(directory)))


def _is_next(predecessor: Lease, turn: _Turn) -> bool:
    """Return whether nobody else can have held the lease between the turn and now.

    A start may have obtained the lease, and died before it could record that. Of two such starts, only the second one
    is known, and another host may have been between them.
    """
    return predecessor.holder in turn.starts and predecessor.epoch <= turn.epoch + 1


def _move_journals(directory: Path, folder: Path) -> int:
    moved = _find_unfinished(directory)
    if not moved:
        return 0
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    for name in moved:
        if (directory / name).exists():
            (directory / name).rename(folder / name)
    sync_directory(folder)
    sync_directory(directory)
    return sum(map(is_run_file, moved))


def _find_unfinished(directory: Path) -> list[str]:
    """Return the names of unfinished journals, and of what lies beside them."""
    present = sorted(entry.name for entry in directory.iterdir())
    # Opening a journal brings what is in its WAL file into it. A written run waits for its late audit, and stays.
    written = {name for name in present if is_run_file(name) and read_facts(directory / name).state is State.WRITTEN}
    return [name for name in present if is_run_file(journal := _journal_of(name)) and journal not in written]


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
