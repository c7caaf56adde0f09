"""The life of a run on the ingest host, as one table.

A run is *starting* while its worker comes up, *open* while documents come, *closing* once the journal holds its end
(the stop document, or the publisher's word that none will come). From there it ends *written*, or *interrupted* when
it had no stop document. A run that cannot be written is *failed*: its documents are still journaled. A run whose worker
went away with everything journaled, because Tiled is away or others need the room, is *parked* until it is resumed. A
run that is written or interrupted may be looked at again by a worker later, and stays what it is meanwhile.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from .._errors import LifecycleError


class State(str, Enum):
    """What a run is."""

    STARTING = "starting"
    OPEN = "open"
    CLOSING = "closing"
    PARKED = "parked"
    WRITTEN = "written"
    INTERRUPTED = "interrupted"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


class Event(str, Enum):
    """What happens to it."""

    READY = "ready"
    ENDED = "ended"
    DIED = "left by its worker"
    PARKED = "parked"
    RESUMED = "resumed"
    WRITTEN = "written"
    INTERRUPTED = "interrupted"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


FINAL: Final = frozenset({State.WRITTEN, State.INTERRUPTED, State.FAILED})
"""States that are recorded in the journal; a run in none of them is resumed when the supervisor starts."""

TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.STARTING, Event.READY): State.OPEN,
    (State.STARTING, Event.DIED): State.STARTING,
    (State.STARTING, Event.PARKED): State.PARKED,
    (State.STARTING, Event.FAILED): State.FAILED,
    (State.OPEN, Event.ENDED): State.CLOSING,
    (State.OPEN, Event.DIED): State.STARTING,
    (State.OPEN, Event.PARKED): State.PARKED,
    (State.OPEN, Event.FAILED): State.FAILED,
    (State.CLOSING, Event.WRITTEN): State.WRITTEN,
    (State.CLOSING, Event.INTERRUPTED): State.INTERRUPTED,
    (State.CLOSING, Event.DIED): State.STARTING,
    (State.CLOSING, Event.PARKED): State.PARKED,
    (State.CLOSING, Event.FAILED): State.FAILED,
    (State.PARKED, Event.RESUMED): State.STARTING,
    # Its worker looks once more at what was written.
    (State.WRITTEN, Event.READY): State.WRITTEN,
    (State.WRITTEN, Event.WRITTEN): State.WRITTEN,
    (State.WRITTEN, Event.DIED): State.WRITTEN,
    (State.WRITTEN, Event.PARKED): State.WRITTEN,
    (State.WRITTEN, Event.FAILED): State.FAILED,
    (State.INTERRUPTED, Event.READY): State.INTERRUPTED,
    (State.INTERRUPTED, Event.INTERRUPTED): State.INTERRUPTED,
    (State.INTERRUPTED, Event.DIED): State.INTERRUPTED,
    (State.INTERRUPTED, Event.PARKED): State.INTERRUPTED,
    (State.INTERRUPTED, Event.FAILED): State.FAILED,
    # Documents that come after the end, or a retry.
    (State.WRITTEN, Event.RESUMED): State.STARTING,
    (State.INTERRUPTED, Event.RESUMED): State.STARTING,
    (State.FAILED, Event.RESUMED): State.STARTING,
    # A failed run's worker goes on journaling; nothing of that changes what the run is.
    (State.FAILED, Event.ENDED): State.FAILED,
    (State.FAILED, Event.FAILED): State.FAILED,
    (State.FAILED, Event.DIED): State.FAILED,
}


def next_state(state: State, event: Event) -> State:
    """The state after `event`.

    Raises
    ------
    LifecycleError
        The table has no such transition.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise LifecycleError(state, event) from None
