"""The client's side of the status socket."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec

from .._errors import NoSupervisor, SupervisorSilent
from ..log import FileLock
from ._status_socket import STATUS_SOCKET, read_status
from .status import SCHEMA, Snapshot, decode_snapshot

SUPERVISOR_LOCK: Final = ".supervisor.lock"
"""Name of the lock file in a journal directory that a supervisor holds."""

ANSWER_TIMEOUT_SECONDS: Final = 5.0
"""Time that a supervisor has to answer, by default."""

MAX_DEVIATION_SECONDS: Final = 30.0
"""How long before it was asked for a snapshot may have been made; a busy supervisor looks at its clock rarely."""

# Pause before another look for the socket of a supervisor that starts or ends.
_LOOK_AGAIN_SECONDS: Final = 0.05


class _Schema(msgspec.Struct):
    schema: int


def read_snapshot(journal_dir: Path, timeout: float = ANSWER_TIMEOUT_SECONDS) -> Snapshot:
    """Ask the supervisor of a journal directory for its snapshot.

    Parameters
    ----------
    journal_dir
        The journal directory.
    timeout
        Seconds that the supervisor has to answer.

    Raises
    ------
    NoSupervisor
        No supervisor uses the directory.
    SupervisorSilent
        A supervisor uses the directory, and gives no snapshot that can be read, or one of another directory or time; or
        it is not known whether one does.
    """
    return read_snapshot_and_text(journal_dir, timeout)[0]


def read_snapshot_and_text(journal_dir: Path, timeout: float = ANSWER_TIMEOUT_SECONDS) -> tuple[Snapshot, bytes]:
    """Ask the supervisor of a journal directory for its snapshot, and return it also as the JSON that it sent.

    The JSON has the fields that a newer supervisor has added, too. Parameters and exceptions are those of
    `read_snapshot`.
    """
    asked = time.time()
    try:
        text = _read_when_there(journal_dir, time.monotonic() + timeout)
    except TimeoutError:
        raise SupervisorSilent(
            journal_dir, f"it has not answered for {timeout:g} s; its process is stopped, hangs, or is overloaded."
        ) from None
    except OSError as error:
        raise SupervisorSilent(journal_dir, f"it cannot be asked: {error}") from error
    snapshot = _decode(journal_dir, text)
    _require_present_answer(journal_dir, snapshot, asked)
    return snapshot, text


def _read_when_there(journal_dir: Path, deadline: float) -> bytes:
    """Return what the status socket gives; wait for the socket while a supervisor starts or ends."""
    while True:
        try:
            return read_status(journal_dir, deadline - time.monotonic())
        except (FileNotFoundError, NotADirectoryError):
            absence = _explain_absence(journal_dir, f"there is no socket {STATUS_SOCKET}")
        except ConnectionRefusedError:
            absence = _explain_absence(journal_dir, f"nobody listens at its socket {STATUS_SOCKET}")
        if isinstance(absence, NoSupervisor) or time.monotonic() >= deadline:
            raise absence
        time.sleep(_LOOK_AGAIN_SECONDS)


def _explain_absence(journal_dir: Path, found: str) -> NoSupervisor | SupervisorSilent:
    """Return the error for a directory without a listening socket. Only the lock proves that there is no supervisor."""
    if not journal_dir.is_dir():
        return NoSupervisor(journal_dir, "there is no such directory")
    try:
        held = FileLock(journal_dir / SUPERVISOR_LOCK).held
    except OSError as error:
        return SupervisorSilent(journal_dir, f"it cannot be seen whether there is one: {error}")
    if held:
        return SupervisorSilent(
            journal_dir, f"one is there, but {found}: it is starting, ending, or of a version without status."
        )
    return NoSupervisor(journal_dir, found)


def _require_present_answer(journal_dir: Path, snapshot: Snapshot, asked: float) -> None:
    """Raise `SupervisorSilent` if a snapshot is of another directory or another time than it was asked for.

    Both processes are on one host, and so have one clock.
    """
    if not asked - MAX_DEVIATION_SECONDS <= snapshot.now <= time.time() + MAX_DEVIATION_SECONDS:
        raise SupervisorSilent(
            journal_dir,
            f"what answers sent a status that is {abs(snapshot.now - asked):.0f} s away from the time of asking, so it "
            "says nothing about now.",
        )
    if _is_elsewhere(journal_dir, snapshot.journal_dir):
        raise SupervisorSilent(journal_dir, f"what answers is the supervisor of {snapshot.journal_dir}.")


def _is_elsewhere(journal_dir: Path, named: str) -> bool:
    """Return whether a directory is surely another one than the supervisor names."""
    try:
        return not journal_dir.samefile(named)
    except OSError:
        # In a container, the supervisor may see the directory under a path that is not there outside.
        return False


def _decode(journal_dir: Path, text: bytes) -> Snapshot:
    try:
        schema = msgspec.json.decode(text, type=_Schema).schema
        if schema != SCHEMA:
            raise SupervisorSilent(
                journal_dir,
                f"its status has schema {schema}, and this command reads schema {SCHEMA}; use commands of its version.",
            )
        return decode_snapshot(text)
    except msgspec.DecodeError as error:
        size = len(text)
        raise SupervisorSilent(
            journal_dir, f"it sent {size} bytes that are no whole status: {error}. Its log may say why."
        ) from error
