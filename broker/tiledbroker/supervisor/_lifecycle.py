"""The states of a run on the ingest host and its transitions, as one table.

A run is *starting* until its worker is ready, *open* while documents arrive, and *closing* once the journal has the end
of the run: the stop document, or the publisher's message that there will be none. After closing it is *written*, or
*interrupted* if it had no stop document. A run that cannot be written is *failed*; its documents are still journaled. A
run is *parked* if its worker has ended although documents in the journal are not written, because Tiled is away or
because other runs needed the worker; it is resumed later. A worker may audit a written or interrupted run later; the
run keeps its state meanwhile.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from .. import _outcomes
from .._errors import LifecycleError


class State(str, Enum):
    """State of a run."""

    STARTING = "starting"
    OPEN = "open"
    CLOSING = "closing"
    PARKED = "parked"
    WRITTEN = _outcomes.WRITTEN
    INTERRUPTED = _outcomes.INTERRUPTED
    FAILED = _outcomes.FAILED

    def __str__(self) -> str:
        return self.value


class Event(str, Enum):
    """Event that may change the state of a run."""

    READY = "ready"
    ENDED = "ended"
    DIED = "left by its worker"
    PARKED = "parked"
    RESUMED = "resumed"
    WRITTEN = _outcomes.WRITTEN
    INTERRUPTED = _outcomes.INTERRUPTED
    FAILED = _outcomes.FAILED

    def __str__(self) -> str:
        return self.value


FINAL: Final = frozenset({State.WRITTEN, State.INTERRUPTED, State.FAILED})
"""Final states. They are recorded in the journal; a run in any other state is resumed when the supervisor starts."""

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
    # A worker audits the finished run.
    (State.WRITTEN, Event.READY): State.WRITTEN,
    (State.WRITTEN, Event.WRITTEN): State.WRITTEN,
    (State.WRITTEN, Event.DIED): State.WRITTEN,
    (State.WRITTEN, Event.PARKED): State.WRITTEN,
    (State.WRITTEN, Event.FAILED): State.FAILED,
    (State.INTERRUPTED, Event.READY): State.INTERRUPTED,
    (State.INTERRUPTED, Event.INTERRUPTED): State.INTERRUPTED,
    # The late stop document came to the worker that audits the run.
    (State.INTERRUPTED, Event.WRITTEN): State.WRITTEN,
    (State.INTERRUPTED, Event.DIED): State.INTERRUPTED,
    (State.INTERRUPTED, Event.PARKED): State.INTERRUPTED,
    (State.INTERRUPTED, Event.FAILED): State.FAILED,
    # Documents arrive after the end, or somebody requests a retry.
    (State.WRITTEN, Event.RESUMED): State.STARTING,
    (State.INTERRUPTED, Event.RESUMED): State.STARTING,
    (State.FAILED, Event.RESUMED): State.STARTING,
    # A failed run's worker continues to journal; none of its events changes the state.
    (State.FAILED, Event.ENDED): State.FAILED,
    (State.FAILED, Event.FAILED): State.FAILED,
    (State.FAILED, Event.DIED): State.FAILED,
}


def next_state(state: State, event: Event) -> State:
    """Return the state after `event`.

    Raises
    ------
    LifecycleError
        The table has no such transition.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise LifecycleError(state, event) from None
