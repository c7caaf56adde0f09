"""The states of nodes: what is known of them, and what may happen to them."""

from __future__ import annotations

from typing import Any

import pytest

from tiledbroker.ownership import TableRewrite
from tiledwriter._errors import NodeStateError
from tiledwriter.catalog import Decisions, MemoryLedger
from tiledwriter.catalog._known_nodes import KnownNode, KnownNodes
from tiledwriter.catalog._node_states import TRANSITIONS, NodeEvent, NodeState, check_event
from tiledwriter.mapping import Column

PATH = "run/primary/internal"
COLUMNS = [["seq_num", "int64"]]


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger("run")


@pytest.fixture
def known(ledger: MemoryLedger) -> KnownNodes:
    return KnownNodes(ledger, Decisions(ledger))


@pytest.fixture
def node(known: KnownNodes) -> KnownNode:
    """A table that was created."""
    node = known[PATH]
    known.record_columns(node, COLUMNS)
    known.record_creation(node)
    return node


def test_a_node_is_absent_until_it_is_created(known: KnownNodes) -> None:
    node = known[PATH]
    assert node.state is NodeState.ABSENT
    with pytest.raises(NodeStateError, match=f"{PATH} is absent and cannot be used"):
        assert node.rows
    known.record_creation(node)
    assert (node.state, node.rows, node.intent) == (NodeState.GROWING, 0, None)


def test_a_node_is_unsure_from_the_intent_to_its_outcome(known: KnownNodes, node: KnownNode) -> None:
    known.record_intent(node, 3)
    assert (node.state, node.rows, node.intent) == (NodeState.UNSURE, 0, 3)
    with pytest.raises(NodeStateError, match="is unsure and cannot be intended to grow"):
        known.record_intent(node, 5)
    known.confirm_rows(node, 3)
    assert (node.state, node.rows, node.intent) == (NodeState.GROWING, 3, None)


def test_a_doubted_table_does_not_grow(known: KnownNodes, node: KnownNode) -> None:
    known.mark_doubted(node, "", 3)
    assert node.state is NodeState.DOUBTED
    with pytest.raises(NodeStateError, match="is doubted"):
        known.record_intent(node, 3)
    known.clear_doubt(node)
    assert node.state is NodeState.GROWING


def test_rows_go_to_the_copy_while_a_table_is_rewritten(known: KnownNodes, node: KnownNode) -> None:
    rewrite = known.begin_rewrite(node, COLUMNS, until=3)
    assert node.state is NodeState.REWRITTEN
    assert known.target(PATH).path == rewrite.copy == f"{PATH}_rewrite"
    known.show_rewrite(node, TableRewrite(rewrite.copy, COLUMNS, 3, swapped=True))
    assert node.state is NodeState.GROWING
    assert known.target(PATH) is node
    assert known.rewrites_in("run") == [node]
    known.end_rewrite(node)
    assert known.rewrites_in("run") == []


def test_an_array_of_another_writer_occupies_the_path(known: KnownNodes) -> None:
    node = known["run/primary/image"]
    known.record_occupation(node, 5)
    assert node.state is NodeState.OCCUPIED
    with pytest.raises(NodeStateError, match="is occupied and cannot be intended"):
        check_event(node.path, node.state, NodeEvent.INTENDED)
    known.record_deletion(node)
    assert node.state is NodeState.ABSENT


def set_state(known: KnownNodes, node: KnownNode, state: NodeState) -> None:
    if state is not NodeState.ABSENT:
        known.record_creation(node)
    if state is NodeState.UNSURE:
        known.record_intent(node, 2)
    elif state is NodeState.DOUBTED:
        known.mark_doubted(node, "reason", 3)
    elif state is NodeState.REWRITTEN:
        known.begin_rewrite(node, COLUMNS, 2)


@pytest.mark.parametrize("state", [state for state in NodeState if state is not NodeState.OCCUPIED])
def test_the_next_process_finds_the_state_in_the_ledger(
    state: NodeState, ledger: MemoryLedger, known: KnownNodes
) -> None:
    set_state(known, known[PATH], state)
    after = KnownNodes(ledger, Decisions(ledger))[PATH]
    assert after.state is state
    assert after.unseen == after.of_others == (state is not NodeState.ABSENT)


def test_the_next_process_finds_all_facts_in_the_ledger(ledger: MemoryLedger, known: KnownNodes) -> None:
    node, image = known[PATH], known["run/primary/image"]
    for each in (node, image):
        known.record_creation(each)
    known.record_columns(node, COLUMNS)
    known.record_array(image, "<f8", [2])
    known.count_repair(node)
    known.record_lost_response(image)
    known.mark_doubted(node, "", 3)
    node.keys = (Column("seq_num", "int64"),)
    again = KnownNodes(ledger, Decisions(ledger))
    kept: list[dict[str, Any]] = [
        {
            name: getattr(each, name)
            for name in ("progress", "columns", "array", "rewrite", "doubt", "disturbed", "repairs")
        }
        for each in (node, image, again[PATH], again[image.path])
    ]
    assert kept[:2] == kept[2:]
    assert again[PATH].keys == ()


def test_the_ledger_has_what_earlier_versions_have_recorded_in_the_same_form(
    ledger: MemoryLedger, known: KnownNodes, node: KnownNode
) -> None:
    known.record_lost_response(known["run/primary/b"])
    known.record_lost_response(known["run/primary/a"])
    known.begin_rewrite(node, COLUMNS, 3)
    known.mark_doubted(known[f"{PATH}_rewrite"], "reason", 3)
    known.count_repair(node)
    keys = ("disturbed", "late_audit", "columns", "rewrites", "doubted", "repairs")
    assert {key: ledger.get(key) for key in keys} == {
        "disturbed": ["run/primary/a", "run/primary/b"],
        "late_audit": True,
        "columns": {PATH: COLUMNS},
        "rewrites": {PATH: {"copy": f"{PATH}_rewrite", "columns": COLUMNS, "until": 3, "swapped": False}},
        "doubted": {f"{PATH}_rewrite": "reason"},
        "repairs": {PATH: 1},
    }


def test_every_state_can_be_reached_and_left() -> None:
    reached = set().union(*TRANSITIONS.values())
    assert reached == set(NodeState)
    for state in NodeState:
        assert any(before is state and after - {state} for (before, _), after in TRANSITIONS.items())
