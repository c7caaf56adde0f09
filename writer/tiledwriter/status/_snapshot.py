"""Asks the supervisor for its snapshot, and keeps the JSON that it came as."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from tiledbroker._errors import NoSupervisor, SupervisorSilent
from tiledbroker.supervisor import Snapshot, read_snapshot_and_text

READ_TIMEOUT_SECONDS: Final = 3.0


class SupervisorAway(Exception):
    """Raised when the supervisor gives no snapshot; the message says why."""


class Answer(NamedTuple):
    """A snapshot, and the JSON that it was read from."""

    snapshot: Snapshot
    text: bytes


def read_answer(journal_dir: Path, timeout: float = READ_TIMEOUT_SECONDS) -> Answer:
    """Ask the supervisor of a journal directory for its snapshot.

    Parameters
    ----------
    journal_dir
        The journal directory.
    timeout
        Seconds that the supervisor has to answer.

    Raises
    ------
    SupervisorAway
        There is no supervisor, or it gives no snapshot that can be read.
    """
    try:
        return Answer(*read_snapshot_and_text(journal_dir, timeout))
    except NoSupervisor as error:
        raise SupervisorAway(str(error).rstrip(".")) from error
    except SupervisorSilent as error:
        raise SupervisorAway(error.reason.rstrip(".")) from error
