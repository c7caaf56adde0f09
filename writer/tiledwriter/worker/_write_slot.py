"""The worker's side of its write slot, which the supervisor grants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Final

from tiledbroker.ownership import DeadlinePage, boottime
from tiledbroker.protocol import messages

from .._errors import Stopped

_POLL_SECONDS: Final = 0.5
_LEASE_POLL_SECONDS: Final = 0.2
# Seconds of writing after which a slot that others wait for is released between two requests.
_LONGEST_TURN_SECONDS: Final = 0.5


class _State(Enum):
    NONE = "not granted"
    WANTED = "asked for"
    USED = "granted, and used"
    KEPT = "granted, and kept for later"


class WriteSlot:
    """Permission of this worker to write to Tiled.

    A slot that nobody else wants is kept while there is nothing to write, so that a run that is alone never waits for
    it. `acquire`, `pause` and `rest` belong to the writing thread, the others to the main thread, which talks to the
    supervisor.

    Parameters
    ----------
    run
        Uid of the run.
    send
        Sends a message to the supervisor, from any thread.
    lease
        Deadline of the supervisor's lease; None if no other host can serve instead.

    Attributes
    ----------
    storage
        Kind of the database that Tiled stores tables in; "" while it is not known.
    """

    def __init__(self, run: str, send: Callable[[messages.Message], None], lease: DeadlinePage | None = None) -> None:
        self.storage = ""
        self._lease = lease
        self._run = run
        self._send = send
        self._changed = threading.Condition()
        self._state = _State.NONE
        self._others_wait = False
        self._acquired_at = 0.0

    def acquire(self, stopping: threading.Event) -> None:
        """Wait for the slot, unless it is held, and then until a request that is sent at once is within the lease.

        Raises
        ------
        Stopped
            `stopping` was set meanwhile.
        """
        self._acquire_slot(stopping)
        while self._lease is not None and not self._lease.may_send(boottime()):
            if stopping.wait(_LEASE_POLL_SECONDS):
                raise Stopped("Stopped while waiting for the lease to be renewed.")

    def _acquire_slot(self, stopping: threading.Event) -> None:
        with self._changed:
            if self._state is _State.USED:
                return
            if self._state is _State.NONE:
                self._state = _State.WANTED
                self._send(messages.SlotWanted(self._run))
            while self._state is _State.WANTED:
                self._changed.wait(_POLL_SECONDS)
                if stopping.is_set():
                    raise Stopped("Stopped while waiting for a write slot.")
            if self._state is _State.KEPT:
                self._state = _State.USED
                self._acquired_at = time.monotonic()

    def pause(self) -> None:
        """Release the slot between two requests if others wait and it was held for long."""
        with self._changed:
            if self._state is _State.USED and time.monotonic() - self._acquired_at >= _LONGEST_TURN_SECONDS:
                self._release_if_wanted()

    def rest(self) -> None:
        """Stop using the slot: release it if others wait, otherwise keep it."""
        with self._changed:
            if self._state is _State.USED:
                self._state = _State.KEPT
                self._release_if_wanted()

    def receive(self, message: messages.SlotGranted | messages.SlotRecalled) -> None:
        """Take a message of the supervisor."""
        with self._changed:
            if isinstance(message, messages.SlotGranted):
                self._others_wait = message.shared
                # It is in use from now on, as a thread waits for it: a recall must not take it before that one wakes.
                self._state = _State.USED
                self._acquired_at = time.monotonic()
                self._changed.notify_all()
            else:
                self._others_wait = True
                if self._state is _State.KEPT:
                    self._release_if_wanted()

    def _release_if_wanted(self) -> None:
        if self._others_wait:
            self._others_wait = False
            self._state = _State.NONE
            self._send(messages.SlotReleased(self._run, self.storage))
