"""The states of one of a run's nodes, as far as this process knows them, and their transitions, as one table.

A node is *absent* until this run has created it or taken it over. Its path is *occupied* by another writer's array of
another type or shape until the journal has as many rows; then that array is deleted. A node that is there is *growing*:
rows may be sent. It is *unsure* from the record of the intent to send rows until it is known whether they arrived, and
*doubted* while it may have rows that the journal lacks: nothing changes it until the journal is proved to have them
all. While a table is *rewritten*, its rows go to a copy beside it, which is a node with a state of its own.

A state is not stored: `KnownNode.state` derives it from the facts that the run's ledger keeps, also after a restart.
The table says which event may happen in which state, and what may follow. An event has several results where the facts
of one state hide those of another. For example, a table may be unsure or doubted beneath its rewrite.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from .._errors import NodeStateError


class NodeState(str, Enum):
    """State of a node."""

    ABSENT = "absent"
    OCCUPIED = "occupied"
    GROWING = "growing"
    UNSURE = "unsure"
    DOUBTED = "doubted"
    REWRITTEN = "rewritten"

    def __str__(self) -> str:
        return self.value


class NodeEvent(str, Enum):
    """Event that may change the state of a node."""

    OCCUPIED = "occupied"
    CREATED = "created or taken over"
    INTENDED = "intended to grow"
    CONFIRMED = "confirmed"
    DOUBTED = "doubted"
    PROVED = "proved"
    REWRITE_BEGUN = "rewritten"
    REWRITE_SHOWN = "shown its copy's rows"
    REWRITE_DROPPED = "spared the rewrite"
    DELETED = "deleted"

    def __str__(self) -> str:
        return self.value


_ABSENT: Final = frozenset({NodeState.ABSENT})
_OCCUPIED: Final = frozenset({NodeState.OCCUPIED})
_GROWING: Final = frozenset({NodeState.GROWING})
_UNSURE: Final = frozenset({NodeState.UNSURE})
_DOUBTED: Final = frozenset({NodeState.DOUBTED})
_REWRITTEN: Final = frozenset({NodeState.REWRITTEN})

TRANSITIONS: Final[dict[tuple[NodeState, NodeEvent], frozenset[NodeState]]] = {
    (NodeState.ABSENT, NodeEvent.OCCUPIED): _OCCUPIED,
    (NodeState.ABSENT, NodeEvent.CREATED): _GROWING | _DOUBTED | _REWRITTEN,
    # The doubt about another writer's table is recorded before the table is taken over, in case of a crash in between.
    (NodeState.ABSENT, NodeEvent.DOUBTED): _ABSENT,
    (NodeState.OCCUPIED, NodeEvent.OCCUPIED): _OCCUPIED,
    (NodeState.OCCUPIED, NodeEvent.CREATED): _GROWING,
    (NodeState.OCCUPIED, NodeEvent.DELETED): _ABSENT,
    # An array of ours must change its type, and has rows that this process did not write.
    (NodeState.GROWING, NodeEvent.OCCUPIED): _OCCUPIED,
    (NodeState.GROWING, NodeEvent.INTENDED): _UNSURE,
    (NodeState.GROWING, NodeEvent.CONFIRMED): _GROWING,
    (NodeState.GROWING, NodeEvent.DOUBTED): _DOUBTED,
    (NodeState.GROWING, NodeEvent.REWRITE_BEGUN): _REWRITTEN,
    (NodeState.GROWING, NodeEvent.DELETED): _ABSENT,
    (NodeState.UNSURE, NodeEvent.OCCUPIED): _OCCUPIED,
    (NodeState.UNSURE, NodeEvent.CONFIRMED): _GROWING,
    (NodeState.UNSURE, NodeEvent.DOUBTED): _DOUBTED,
    (NodeState.UNSURE, NodeEvent.REWRITE_BEGUN): _REWRITTEN,
    (NodeState.UNSURE, NodeEvent.DELETED): _ABSENT,
    (NodeState.DOUBTED, NodeEvent.DOUBTED): _DOUBTED,
    (NodeState.DOUBTED, NodeEvent.PROVED): _GROWING | _UNSURE,
    (NodeState.DOUBTED, NodeEvent.DELETED): _ABSENT,
    # Before the columns of a rewrite change again, the outcome of the table's own last append is determined.
    (NodeState.REWRITTEN, NodeEvent.CONFIRMED): _REWRITTEN,
    (NodeState.REWRITTEN, NodeEvent.DOUBTED): _REWRITTEN,
    (NodeState.REWRITTEN, NodeEvent.REWRITE_BEGUN): _REWRITTEN,
    (NodeState.REWRITTEN, NodeEvent.REWRITE_SHOWN): _GROWING | _DOUBTED,
    (NodeState.REWRITTEN, NodeEvent.REWRITE_DROPPED): _GROWING | _UNSURE | _DOUBTED,
    # A copy that a crash left with other columns is rewritten itself, while rows are sent to it.
    (NodeState.REWRITTEN, NodeEvent.INTENDED): _REWRITTEN,
    (NodeState.REWRITTEN, NodeEvent.DELETED): _ABSENT,
}


def check_event(path: str, state: NodeState, event: NodeEvent) -> frozenset[NodeState]:
    """Return the states that `event` may lead to.

    Raises
    ------
    NodeStateError
        The table has no such transition.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise NodeStateError(path, state, event) from None
