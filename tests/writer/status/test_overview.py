"""The three answers: good only if a present snapshot proves it."""

from __future__ import annotations

import pytest
import snapshots

from tiledwriter.status._overview import Level, overview_of
from tiledwriter.status._source import Observation

DIRECTORY = "/var/lib/tiledwriter"


def overview(snapshot):
    answer = snapshots.answer_of(snapshot)
    return overview_of(Observation(snapshots.NOW, answer, answered=snapshots.NOW), DIRECTORY)


def levels(snapshot):
    return [answer.level.value for answer in overview(snapshot).answers]


def words(snapshot):
    return [answer.word for answer in overview(snapshot).answers]


def test_all_is_well():
    assert words(snapshots.well()) == ["YES", "YES", "NOTHING"]
    assert levels(snapshots.well()) == ["good", "good", "good"]


def test_in_an_outage_data_is_safe_but_not_in_tiled():
    found = overview(snapshots.outage())
    assert words(snapshots.outage()) == ["YES", "NO", "1 THING"]
    assert levels(snapshots.outage()) == ["good", "bad", "warning"]
    assert "3 h 4 min" in found.tiled.text
    assert "214,220 documents of 9 runs wait" in found.tiled.text
    assert "connection refused" in found.tiled.text


def test_a_run_in_quarantine_is_not_hidden_by_those_that_are_written():
    assert words(snapshots.quarantine()) == ["YES", "NOT ALL", "1 THING"]
    assert "tiledwriter-journal show" in overview(snapshots.quarantine()).tasks[0]


def test_a_full_disk_is_no_safety():
    found = overview(snapshots.disk_full())
    assert (found.safe.level, found.needs.level) == (Level.BAD, Level.BAD)
    assert "nothing is acknowledged" in found.safe.text


def test_a_service_that_has_failed_is_safe_only_if_tiled_is_the_reason():
    snapshot = {**snapshots.well(), "state": "failed", "reasons": ["A journal cannot be written: I/O error."]}
    assert overview(snapshot).safe.word == "NOT CERTAIN"
    refused = {**snapshots.outage(), "state": "failed", "reasons": ["Tiled refuses all requests: 401."]}
    assert overview(refused).safe.word == "YES"
    refused["reasons"].append("A journal cannot be written: I/O error.")
    assert overview(refused).safe.word == "NOT CERTAIN"


def test_documents_that_wait_long_for_their_acknowledgement_are_not_here():
    snapshot = snapshots.well()
    snapshot["publishers"][0]["oldest_unacknowledged"] = snapshots.NOW - 3 * 3600.0
    found = overview(snapshot).safe
    assert (found.level, found.word) == (Level.WARNING, "NOT ALL HERE")
    assert "bl7-acq for 3 h 0 min" in found.text


def test_an_old_snapshot_proves_nothing():
    answer = snapshots.answer_of(snapshots.well())
    now = snapshots.NOW + 200
    found = overview_of(Observation(now, answer, "no supervisor answers", snapshots.NOW, now - 185), DIRECTORY)
    assert [one.level for one in found.answers] == [Level.BAD] * 3
    assert all(one.word != "YES" for one in found.answers)
    assert "3 min 5 s" in found.safe.text
    assert any("tiledwriter-supervisor status" in task for task in found.tasks)


def test_a_supervisor_that_never_answered_is_no_good_news():
    found = overview_of(Observation(5.0, None, "no supervisor answers", None, 5.0), DIRECTORY)
    assert {one.level for one in found.answers} == {Level.BAD}


def test_a_tiled_that_was_never_asked_is_not_known():
    found = overview(snapshots.started())
    assert (found.tiled.level, found.tiled.word) == (Level.UNKNOWN, "NOT KNOWN")


@pytest.mark.parametrize(
    ("change", "index"),
    [
        (lambda s: s.update(disks=[]), 0),
        (lambda s: s["disks"][0].update(free=None), 0),
        (lambda s: s["disks"][0].update(state=None), 0),
        (lambda s: s["tiled"].update(reachable=None), 1),
        (lambda s: s["runs"].update(unlisted_open=1), 1),
        (lambda s: s["tiled"].update(problem="401: invalid API key"), 1),
        (lambda s: s["tiled"].update(last_write=snapshots.NOW - 3600), 1),
        (lambda s: s["runs"]["open"][0].update(waits_for="a worker"), 1),
        (lambda s: s["disks"][0].update(state="low"), 0),
        (lambda s: s.update(state="degraded"), 2),
    ],
)
def test_nothing_unknown_or_wrong_looks_good(change, index):
    snapshot = snapshots.well()
    change(snapshot)
    assert levels(snapshot)[index] != "good"


def test_a_run_that_waits_for_an_unknown_time_is_not_written_in_time():
    snapshot = snapshots.well()
    snapshot["tiled"]["last_write"] = snapshots.NOW - 3600
    for run in snapshot["runs"]["open"]:
        run["since"] = None
    assert overview(snapshot).tiled.word == "WAITING"


def test_publishers_that_say_nothing_are_named_as_such():
    snapshot = snapshots.well()
    snapshot["publishers"][0]["lag_documents"] = None
    assert "did not say" in overview(snapshot).safe.text


def test_a_state_without_a_reason_still_says_where_to_look():
    found = overview({**snapshots.well(), "state": "degraded"})
    assert found.tasks == (
        f"The supervisor says degraded, but not why. Look: `tiledwriter-supervisor status --journal-dir {DIRECTORY}`",
    )


@pytest.mark.parametrize(
    ("look", "word", "text"),
    [
        (None, "NOT KNOWN", "Tiled has not been asked"),
        ((True, None), "NOT TRIED", "Tiled answered 3 s ago; nothing has been written"),
        ((False, "ConnectError"), "NOT YET", "has not answered yet: ConnectError."),
    ],
)
def test_before_the_first_run_the_look_of_the_supervisor_is_told(look, word, text):
    snapshot = snapshots.started()
    if look is not None:
        snapshot["tiled"]["look"] = {"at": snapshots.NOW - 3, "answers": look[0], "problem": look[1]}
    found = overview(snapshot).tiled
    assert found.word == word
    assert text in found.text
    assert found.level is not Level.GOOD


def test_a_host_that_stands_by_knows_nothing_of_the_data():
    assert words(snapshots.standby()) == ["STANDBY", "STANDBY", "NOTHING"]
    assert levels(snapshots.standby())[:2] == ["unknown", "unknown"]
    assert "ingest8 holds the lease" in overview(snapshots.standby()).safe.text


def test_the_host_that_holds_the_lease_answers_as_one_without():
    snapshot = snapshots.standby()
    snapshot["lease"]["held"] = True
    assert words({**snapshot, "reasons": []}) == words(snapshots.well())
