"""What changes in a running supervisor when its configuration is read again, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ._tasks import WorkerCommand


@dataclass(frozen=True)
class ServiceChanges:
    """Settings that a running supervisor takes.

    Attributes
    ----------
    command
        What workers run that are started from now on.
    min_free
        Bytes on the journals' disk below which no documents are accepted; None for the default.
    keep_written
        Seconds after which the journal of a written run is deleted; None keeps all.
    write_slots
        Workers that may write to Tiled at a time; None for as many as its storage takes.
    settings
        Effective settings by name, without secrets, for the status.
    """

    command: WorkerCommand
    min_free: int | None
    keep_written: float | None
    write_slots: int | None
    settings: Mapping[str, Any]


class ReloadSource(Protocol):
    """Reads the configuration again without blocking: its plugins may take a while to import."""

    def begin(self) -> None:
        """Begin to read the configuration; anew if that is under way."""

    def is_running(self) -> bool:
        """Return whether the configuration is still being read."""

    def take_changes(self) -> ServiceChanges | None:
        """Return what was read, once; None if it cannot be used, which is logged."""
