"""The live plot of a run: its last scalars, from its journal, whatever its documents are like."""

from __future__ import annotations

import math

import numpy
import pytest

from tiledbroker import Encoder
from tiledbroker.log import Journal, find_run_file
from tiledwriter.status import _scalars
from tiledwriter.status._scalars import JournalUnreadable, NoSuchRun, read_scalars

UID = "5eed0000-0000-4000-8000-000000000001"


def descriptor(name="primary", uid="d1", hints=("det",), **keys):
    keys = keys or {"motor": "mm", "det": "counts", "other": None}
    data_keys = {key: {"dtype": "number", "shape": [], "units": units, "source": "x"} for key, units in keys.items()}
    return {"uid": uid, "name": name, "data_keys": data_keys, "hints": {"det": {"fields": list(hints)}}}


def event(i, uid="d1", **data):
    return {"descriptor": uid, "seq_num": i + 1, "time": 100.0 + i, "data": data}


START = {"uid": UID, "hints": {"dimensions": [[["motor"], "primary"]]}}


@pytest.fixture
def journal(tmp_path):
    """Writes documents to the journal of a run, which stays open as it does with a worker."""
    encoder = Encoder()
    with Journal(tmp_path / f"{UID}.sqlite", "create", run_uid=UID) as journal:

        def write(*documents):
            for name, document in documents:
                journal.append_one(name, encoder.encode(document))

        write.journal = journal
        yield write


def test_hinted_scalars_are_plotted_over_the_first_dimension(journal, tmp_path):
    journal(("start", START), ("descriptor", descriptor()))
    journal(*(("event", event(i, motor=i / 2, det=10 * i, other=7)) for i in range(3)))
    result = read_scalars(tmp_path, UID)
    assert result == {
        "uid": UID,
        "length": 5,
        "complete": True,
        "streams": [
            {
                "name": "primary",
                "x": {"name": "motor", "values": [0.0, 0.5, 1.0]},
                "series": [{"name": "det", "units": "counts", "values": [0.0, 10.0, 20.0]}],
            }
        ],
    }


def test_without_dimension_and_hints_all_scalars_are_plotted_over_time(journal, tmp_path):
    journal(("start", {"uid": UID}), ("descriptor", descriptor(hints=())), ("event", event(0, motor=1, det=2)))
    (stream,) = read_scalars(tmp_path, UID)["streams"]
    assert stream["x"] == {"name": "time", "values": [100.0]}
    assert [series["name"] for series in stream["series"]] == ["motor", "det", "other"]
    assert stream["series"][2]["values"] == [None]


def test_only_the_last_points_are_read(journal, tmp_path):
    journal(("start", START), ("descriptor", descriptor()))
    journal(*(("event", event(i, motor=i, det=i)) for i in range(5000)))
    result = read_scalars(tmp_path, UID)
    (stream,) = result["streams"]
    assert stream["x"]["values"] == [float(i) for i in range(4000, 5000)]
    assert not result["complete"]


def test_large_documents_do_not_hide_the_newest_points(journal, tmp_path, monkeypatch):
    monkeypatch.setattr(_scalars, "_HEAD_DOCUMENTS", 5)
    monkeypatch.setattr(_scalars, "_READ_BYTES", 50_000)
    journal(("start", START), ("descriptor", descriptor()))
    journal(*(("event", event(i, motor=i, det=i, frame="x" * 2000)) for i in range(300)))
    assert read_scalars(tmp_path, UID)["streams"][0]["x"]["values"][-1] == 299.0


def test_pages_are_points_too(journal, tmp_path):
    page = {
        "descriptor": "d1",
        "seq_num": [1, 2, 3],
        "time": [1.0, 2.0, 3.0],
        "data": {"motor": numpy.arange(3.0), "det": [5, 6, None]},
    }
    journal(("start", START), ("descriptor", descriptor()), ("event_page", page))
    (stream,) = read_scalars(tmp_path, UID)["streams"]
    assert stream["x"]["values"] == [0.0, 1.0, 2.0]
    assert stream["series"][0]["values"] == [5.0, 6.0, None]


def test_the_plan_comes_before_the_baseline(journal, tmp_path):
    journal(("start", START), ("descriptor", descriptor("baseline", "b")), ("event", event(0, "b", det=1)))
    journal(("descriptor", descriptor()), ("event", event(0, motor=1, det=1)))
    assert [stream["name"] for stream in read_scalars(tmp_path, UID)["streams"]] == ["primary", "baseline"]


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, 10**400, "text", None, [1], {"a": 1}, numpy.array([1, 2]), b"\0", True]
)
def test_values_that_are_no_numbers_are_gaps(journal, tmp_path, value):
    journal(("start", START), ("descriptor", descriptor()), ("event", event(0, motor=0, det=value)))
    values = read_scalars(tmp_path, UID)["streams"][0]["series"][0]["values"]
    assert values in ([None], [1.0])


@pytest.mark.parametrize(
    "document",
    [{}, {"data": 5}, {"data": {"det": 1}, "descriptor": [1]}, {"descriptor": "d1"}, {"descriptor": "d1", "time": "x"}],
)
def test_strange_documents_are_passed_over(journal, tmp_path, document):
    strange = {"uid": 5, "name": {}, "data_keys": [1], "hints": 7}
    journal(("start", {"uid": UID, "hints": {"dimensions": 5}}), ("descriptor", strange), ("descriptor", descriptor()))
    journal(("event", document), ("event_page", document), ("event", event(0, motor=1, det=2)))
    streams = read_scalars(tmp_path, UID)["streams"]
    assert streams[0]["series"][0]["values"][-1] == 2.0


def test_the_worker_goes_on_writing_meanwhile(journal, tmp_path):
    journal(("start", START), ("descriptor", descriptor()), ("event", event(0, motor=0, det=0)))
    read_scalars(tmp_path, UID)
    journal(("event", event(1, motor=1, det=1)))
    assert read_scalars(tmp_path, UID)["length"] == 4


def test_a_finished_run_is_found_where_it_was_moved_to(journal, tmp_path):
    journal(("start", START), ("descriptor", descriptor()), ("event", event(0, motor=0, det=0)))
    journal.journal.close()
    (tmp_path / "finished").mkdir()
    (tmp_path / f"{UID}.sqlite").rename(tmp_path / "finished" / f"{UID}.sqlite")
    assert read_scalars(tmp_path, UID)["length"] == 3


HOSTILE = [
    "",
    ".",
    "..",
    "../secret",
    "/etc/passwd",
    "finished",
    ".supervisor",
    "a/b",
    "%2e%2e",
    "x" * 900,
    "a\0b",
    "\n",
]


@pytest.mark.parametrize("uid", HOSTILE)
def test_a_hostile_uid_is_no_path(tmp_path, uid):
    directory = tmp_path / "journals"
    directory.mkdir()
    secret = tmp_path / "secret.sqlite"
    Journal(secret, "create", run_uid="secret").close()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NoSuchRun):
        read_scalars(directory, uid)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("uid", [uid for uid in HOSTILE if uid not in {"", ".", ".."}])
def test_a_hostile_uid_is_not_found_over_http(client, uid):
    from urllib.parse import quote

    response = client.get(f"/api/runs/{quote(uid, safe='')}/scalars")
    assert response.status_code == 404


def test_a_run_with_a_hostile_uid_can_be_plotted(tmp_path, client):
    uid = "../<b>ü"
    with Journal(find_run_file(tmp_path, uid), "create", run_uid=uid) as journal:
        journal.append_one("start", Encoder().encode({"uid": uid}))
    response = client.get("/api/runs/..%2F%3Cb%3E%C3%BC/scalars")
    assert response.json() == {"uid": uid, "length": 1, "streams": [], "complete": True}


def test_a_file_that_is_no_journal_is_said_to_be_unreadable(tmp_path, client):
    (tmp_path / f"{UID}.sqlite").write_bytes(b"no journal at all" * 1000)
    with pytest.raises(JournalUnreadable, match="not a"):
        read_scalars(tmp_path, UID)
    response = client.get(f"/api/runs/{UID}/scalars")
    assert response.status_code == 500
    assert UID in response.json()["error"]


def test_the_journal_of_another_run_is_not_shown_as_this_one(tmp_path):
    Journal(tmp_path / f"{UID}.sqlite", "create", run_uid="another").close()
    with pytest.raises(JournalUnreadable, match="belongs to run"):
        read_scalars(tmp_path, UID)
