"""Sets journals aside that another host's turn has made stale: they are kept to be looked at, and not written from.

A journal directory remembers which holders of the lease have written into it. If somebody else has held the lease
since, the publishers have sent their runs to that host, so what this directory has of unfinished runs is an old copy.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Final

from .._errors import DirectoryUnusable
from .._wording import format_command
from ..log import SUPERSEDED_SUBDIRECTORY, is_run_file, sync_directory
from ..ownership import Lease
from ._journal_facts import read_facts
from ._lifecycle import State

log = logging.getLogger(__name__)

_HOLDERS_FILE: Final = ".lease-holders"
_LOG_SUFFIXES: Final = ("-wal", "-shm", ".lock")


def record_holder(directory: Path, holder: str) -> None:
    """Record that a holder of the lease may write journals into a directory, before it does.

    Raises
    ------
    DirectoryUnusable
        The record cannot be read or written.
    """
    _write_holders(directory, [*_read_holders(directory), holder])


def set_aside_superseded(directory: Path, holder: str, predecessor: Lease | None) -> int:
    """Move the unfinished journals of a directory aside if another one has held the lease since they were written.

    Parameters
    ----------
    directory
        The journal directory.
    holder
        The holder of the lease, which is the last one in the record.
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
    holders = _read_holders(directory)
    moved = 0
    if predecessor is not None and predecessor.holder not in holders:
        # If this is interrupted, the next attempt moves the rest to the same folder.
        folder = directory / SUPERSEDED_SUBDIRECTORY / holders[0]
        try:
            moved = _move_journals(directory, folder)
        except OSError as error:
            raise DirectoryUnusable(directory, f"journals cannot be set aside: {error.strerror}.") from error
        if moved:
            log.warning(
                "%d unfinished journals were set aside in %s, as %s has served since they were written. Publishers "
                "that keep runs until they are written send them again. What these journals have, shows: %s",
                moved,
                folder,
                predecessor.host,
                format_command("tiledwriter-journal", "ls", folder),
            )
    _write_holders(directory, [holder])
    return moved


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


def _read_holders(directory: Path) -> list[str]:
    path = directory / _HOLDERS_FILE
    try:
        holders = json.loads(path.read_text())
        if not (isinstance(holders, list) and all(isinstance(holder, str) and holder for holder in holders)):
            raise ValueError("it is no list of holders")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise DirectoryUnusable(
            directory,
            f"{path.name}, which tells whose journals these are, cannot be read ({error}). If no other host has served "
            "since they were written, remove it.",
        ) from error
    return holders


def _write_holders(directory: Path, holders: list[str]) -> None:
    path = directory / _HOLDERS_FILE
    new = path.with_suffix(".new")
    try:
        with new.open("w") as file:
            json.dump(holders, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_directory(directory)
    except OSError as error:
        raise DirectoryUnusable(directory, f"{path.name} cannot be written: {error.strerror}.") from error
