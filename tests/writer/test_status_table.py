"""The picture of a snapshot fits the terminal, says first what needs attention, and prints nothing of documents raw."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console

from tiledbroker.supervisor import Snapshot
from tiledwriter.cli._status_table import draw_snapshot

NOW = 1_700_000_000.0


def run(uid: str = "d68cc6e1-1111", **values: Any) -> dict[str, Any]:
    known = {
        "uid": uid,
        "state": "open",
        "scan_id": 7,
        "plan": "count",
        "since": NOW - 3700,
        "publisher": "alice",
        "client": "",
        "durable": 12,
        "written": 11,
        "ended": False,
        "waits_for": None,
        "reason": None,
        "worker": None,
        "deaths": 0,
        "journal": "/journals/run.sqlite",
    }
    return {**known, **values}


def snapshot(**values: Any) -> Snapshot:
    runs = {
        "counts": dict.fromkeys(("starting", "open", "closing", "parked", "written", "interrupted", "failed"), 0),
        "open": [],
        "troubled": [],
        "unlisted_open": 0,
        "unlisted_troubled": 0,
    }
    tiled = {
        "address": "http://tiled:8000",
        "version": "0.2.20",
        "reachable": True,
        "since": NOW - 60,
        "asked": NOW,
        "last_write": None,
        "problem": None,
        "requests": {},
        "retries": {},
        "latency": {"buckets": [[0.1, 2], [1.0, 4]], "sum": 2.0, "count": 4},
    }
    known: dict[str, Any] = {
        "schema": 1,
        "state": "well",
        "reasons": [],
        "version": "1.2.3",
        "host": "ingest",
        "pid": 42,
        "started": NOW - 90_000,
        "now": NOW,
        "settings": {},
        "listen": "tcp://127.0.0.1:5579",
        "journal_dir": "/journals",
        "tiled": tiled,
        "disks": [],
        "publishers": [],
        "runs": runs,
        "workers": {"running": 0, "max": 4, "restarts": 0, "memory": None, "waiting_for_worker": 0},
        "totals": {"documents": 0, "bytes": 0, "written_documents": 0, "restarts": 0, "refused": {}},
        "trouble": [],
    }
    known["runs"] = {**runs, **values.pop("runs", {})}
    return msgspec.convert({**known, **values}, Snapshot)


def draw(drawn: Snapshot, width: int = 100, **terminal: Any) -> str:
    output = io.StringIO()
    Console(file=output, width=width, highlight=False, **terminal).print(draw_snapshot(drawn))
    return output.getvalue()


def test_the_state_comes_first_and_then_what_needs_attention() -> None:
    lines = draw(snapshot(state="degraded", reasons=["Tiled is away."])).splitlines()
    assert lines[0].startswith("DEGRADED  tiledwriter 1.2.3 on ingest, pid 42, since ")
    assert "(1 d 1 h)" in lines[0]
    assert lines[1].rstrip() == "! Tiled is away."


def test_the_last_finished_run_is_named() -> None:
    assert "Last run" not in draw(snapshot())
    last = run(state="written", scan_id=17, durable=24, since=NOW - 90)
    text = draw(snapshot(runs={"last_finished": last}))
    assert "Last run    count 17, d68cc6e1-1111: written 1 min 30 s ago, 24 documents" in text


@pytest.mark.parametrize(
    ("waiting", "text"),
    [
        (None, "unknown memory; 0 died"),
        (0, "unknown memory; 0 died"),
        (2, "unknown memory; 2 wait for their turn to write; 0 died"),
    ],
)
def test_workers_that_wait_for_their_turn_to_write_are_shown(waiting: int | None, text: str) -> None:
    workers = msgspec.to_builtins(snapshot().workers) | {"running": 3, "waiting_to_write": waiting}
    assert f"Workers     3 of at most 4, {text} since the start" in draw(snapshot(workers=workers))


def test_an_old_answer_of_tiled_is_not_said_to_be_a_present_one() -> None:
    tiled = msgspec.to_builtins(snapshot().tiled) | {
        "since": NOW - 8000,
        "last_write": NOW - 7200,
        "retries": {"busy": 1},
    }
    present, old = (draw(snapshot(tiled=tiled | {"asked": asked}), width=200) for asked in (NOW - 100, NOW - 7200))
    assert "0.2.20: accepts requests for 2 h 13 min, asked 1 min 40 s ago, last write 2 h ago; 4 answers," in present
    assert "0.2.20: accepted requests when asked last, 2 h ago, last write 2 h ago; 4 answers," in old
    assert ", 1 retry\n" in old.replace(" \n", "\n")


def test_what_the_supervisor_found_at_the_start_is_said_until_a_worker_asks() -> None:
    asked = msgspec.to_builtins(snapshot().tiled) | {"reachable": None, "since": None, "asked": None}
    looks = {
        "not asked yet": None,
        "answered 5 s ago, nothing written yet": {"at": NOW - 5, "answers": True, "problem": None},
        "has NOT answered yet (ConnectError), asked 5 s ago": {
            "at": NOW - 5,
            "answers": False,
            "problem": "ConnectError",
        },
    }
    for text, look in looks.items():
        assert text in draw(snapshot(tiled=asked | {"look": look}), width=200)


def test_a_troubled_run_is_listed_once_with_its_reason() -> None:
    waiting = run(state="parked", waits_for="Tiled does not accept requests.")
    text = draw(snapshot(runs={"open": [waiting, run("other")], "troubled": [waiting]}))
    assert text.count("d68cc6e1") == 1
    assert text.index("Tiled does not accept requests.") < text.index("Open runs (1)") < text.index("other")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_picture_fits_the_terminal(width: int) -> None:
    troubled = [run(f"uid {number}", plan="p" * 100, reason="why " * 50) for number in range(5)]
    text = draw(snapshot(reasons=["word " * 100], runs={"troubled": troubled}), width)
    assert max(map(len, text.splitlines())) <= width


def test_values_that_are_not_known_are_no_zeros() -> None:
    text = draw(snapshot(runs={"open": [run(written=None, since=None)]}))
    assert [line.split()[4:7] for line in text.splitlines() if "d68cc6e1" in line] == [["12", "?", "?"]]
    assert "unknown memory" in text


def test_bytes_that_publishers_do_not_tell_are_not_added_up() -> None:
    told = {
        "name": "bl7",
        "client": "bl7",
        "address": "",
        "connected_since": NOW - 60,
        "runs": 1,
        "lag_documents": 12,
        "lag_bytes": 5000,
        "oldest_unacknowledged": None,
    }
    assert "12 documents (5 KiB) not acknowledged" in draw(snapshot(publishers=[told]), width=200)
    text = draw(snapshot(publishers=[told, {**told, "lag_bytes": None}]), width=200)
    assert "; 24 documents not acknowledged" in text


def test_what_is_not_known_of_a_log_is_said_to_be_unknown() -> None:
    text = draw(snapshot(log={"address": "nats://log1:4222", "reachable": True, "asked": NOW}), width=200)
    assert "; ?, ? messages; ? of ? replicas current" in text


def test_runs_beyond_those_shown_are_counted() -> None:
    text = draw(snapshot(runs={"open": [run(f"uid {number}") for number in range(60)], "unlisted_open": 7}))
    assert "Open runs (67)" in text
    assert "and 17 more" in text


def test_half_of_the_answers_are_within_the_median() -> None:
    assert "4 answers, half of them within 100 ms" in draw(snapshot())


def test_control_characters_and_markup_are_shown_as_text() -> None:
    evil = run(plan="\x1b[2J[red]x", reason="[bold]\x07\nnext")
    text = draw(snapshot(state="failed", reasons=["\x1b]0;title\x07"], runs={"troubled": [evil]}))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]x" in text
    assert "[bold]" in text


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = snapshot(state="failed", reasons=["The disk is full."])
    assert "\x1b[" not in draw(shown)
    assert "\x1b[1;31m" in draw(shown, force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "31m" not in draw(shown, force_terminal=True)
