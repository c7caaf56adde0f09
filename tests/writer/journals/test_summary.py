from __future__ import annotations

import pytest

from tiledbroker import Encoder, Journal
from tiledwriter.journals._summary import summarize

START = {"uid": "run-1", "time": 1000.0, "plan_name": "scan", "scan_id": 7}


@pytest.fixture
def journal(tmp_path):
    """A journal of an open run, held by a worker."""
    with Journal(tmp_path / "run-1.sqlite", "create", run_uid="run-1") as journal:
        journal.append_one("start", Encoder().encode(START))
        journal.note("worker started", pid=1, documents=1)
        yield journal


def read_only(journal):
    """The summary as another process sees it."""
    with Journal(journal.path) as other:
        return summarize(other)


def test_a_summary_says_what_the_run_is_and_how_far_it_got(journal):
    journal.append_one("descriptor", Encoder().encode({"uid": "d"}))
    journal.set_progress("run-1", 0)
    journal.set_progress("run-1/primary/internal", 12)

    summary = read_only(journal)

    assert (summary.uid, summary.plan, summary.scan_id, summary.started) == ("run-1", "scan", 7, 1000.0)
    assert summary.file == str(journal.path)
    assert summary.documents == {"start": 1, "descriptor": 1}
    assert summary.rows == {"primary/internal": 12}
    assert summary.worker
    assert summary.worker_starts == 1
    assert summary.as_dict()["rows"] == {"primary/internal": 12}


def test_an_open_run_waits_for_documents(journal):
    summary = read_only(journal)
    assert (summary.state, summary.why) == ("open", "waiting for documents")


def test_a_run_with_its_stop_document_is_closing(journal):
    journal.append_one("stop", Encoder().encode({"uid": "s"}))
    summary = read_only(journal)
    assert (summary.state, summary.why) == ("closing", "")


def test_a_run_that_its_publisher_gave_up_is_closing_too(journal):
    journal.set("abandoned", True)
    assert read_only(journal).state == "closing"


def test_a_run_may_wait_for_tiled(journal):
    journal.note("waiting", reason="ConnectError: refused")
    summary = read_only(journal)
    assert summary.state == "open"
    assert summary.why == "Tiled has refused requests for 0 s: ConnectError: refused"


def test_when_tiled_is_back_it_is_no_longer_waited_for(journal):
    journal.note("waiting", reason="ConnectError: refused")
    journal.note("resumed")
    assert read_only(journal).why == "waiting for documents"


def test_what_an_earlier_worker_waited_for_is_not_what_the_present_one_waits_for(journal):
    journal.note("waiting", reason="ConnectError: refused")
    journal.note("worker started", pid=2, documents=1)
    summary = read_only(journal)
    assert summary.why == "waiting for documents"
    assert summary.worker_starts == 2


def test_a_parked_run_waits_for_tiled(journal):
    journal.append_one("stop", Encoder().encode({"uid": "s"}))
    journal.note("parked", documents=2)
    assert read_only(journal).state == "closing"
    journal.close()
    summary = read_only(journal)
    assert summary.state == "parked"
    assert summary.why.startswith("Tiled was unavailable")


def test_a_request_of_unknown_fate_is_named(journal):
    journal.set_progress("run-1/primary/internal", 12, 20)
    assert read_only(journal).why.endswith("its outcome is being determined: run-1/primary/internal")


def test_a_failed_run_says_why(journal):
    journal.set("outcome", "failed")
    journal.set("reason", "DocumentError: broken")
    summary = read_only(journal)
    assert (summary.state, summary.why) == ("failed", "in quarantine: DocumentError: broken")
    journal.set("reason", None)
    assert read_only(journal).why == "in quarantine: no reason was recorded"


def test_an_interrupted_run_says_so(journal):
    journal.set("outcome", "interrupted")
    summary = read_only(journal)
    assert (summary.state, summary.why) == (
        "interrupted",
        "the acquisition process ended without a stop document",
    )


def test_a_written_run_waits_for_nothing(journal):
    journal.set("outcome", "written")
    assert "its last document is no stop document" in read_only(journal).why
    journal.append_one("stop", Encoder().encode({"run_start": "run-1"}))
    summary = read_only(journal)
    assert (summary.state, summary.why) == ("written", "")


def test_a_run_without_a_worker_says_who_resumes_it(journal):
    journal.close()
    summary = read_only(journal)
    assert not summary.worker
    assert summary.why.startswith("no process has it open")


def test_a_journal_without_documents_and_worker_is_not_said_to_go_on(tmp_path):
    with Journal(tmp_path / "empty.sqlite", "create", run_uid="empty"):
        pass
    with Journal(tmp_path / "empty.sqlite") as journal:
        assert "lacks its -wal file" in read_only(journal).why


@pytest.mark.parametrize("body", [b"\xc1 broken", Encoder().encode({"uid": "x", "time": "noon", "scan_id": "seven"})])
def test_an_odd_start_document_does_not_hide_the_run(tmp_path, body):
    with Journal(tmp_path / "odd.sqlite", "create", run_uid="odd") as journal:
        journal.append_one("start", body)
        summary = summarize(journal)
    assert (summary.uid, summary.scan_id, summary.started) == ("odd", None, None)


def test_an_empty_journal_has_a_summary(tmp_path):
    with Journal(tmp_path / "new.sqlite", "create", run_uid="new") as journal:
        summary = summarize(journal)
    assert (summary.plan, summary.documents, summary.state) == ("", {}, "open")
