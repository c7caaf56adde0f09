"""A worker reports at changes, and otherwise at most once a second and only if there is something to tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tiledbroker import Encoder, Journal
from tiledwriter.catalog import RequestCounts
from tiledwriter.worker._reporter import REPORT_SECONDS, Reporter


class Writing:
    """What is reported of a writing."""

    def __init__(self) -> None:
        self.counts = RequestCounts((0.1,))
        self.waits_for = ""


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as made:
        yield made


@pytest.fixture
def writing() -> Writing:
    return Writing()


@pytest.fixture
def reporter(journal: Journal, writing: Writing) -> Reporter:
    return Reporter(journal, writing)


def test_the_first_report_is_made_at_once(reporter: Reporter) -> None:
    report = reporter.next_report(0.0)
    assert report is not None
    assert (report.run, report.scan_id, report.plan, report.requests) == ("run", None, None, {})


def test_nothing_new_is_no_report(reporter: Reporter) -> None:
    reporter.next_report(0.0)
    assert reporter.next_report(100.0) is None
    assert reporter.next_report(101.0, last=True) is None


def test_requests_are_reported_once_a_second(reporter: Reporter, writing: Writing) -> None:
    reporter.next_report(0.0)
    writing.counts.count_attempt(None, is_write=True)
    assert reporter.next_report(0.9 * REPORT_SECONDS) is None
    writing.counts.count_attempt(None, is_write=True)
    report = reporter.next_report(1.1 * REPORT_SECONDS)
    assert report is not None
    assert report.requests == {"ok": 2}
    assert report.written_at is not None
    assert report.written_monotonic == writing.counts.written_monotonic


def test_a_problem_is_reported_at_once(reporter: Reporter, writing: Writing) -> None:
    reporter.next_report(0.0)
    writing.counts.note_presence("401: no", needs_person=True)
    writing.waits_for = "Tiled does not accept requests: 401: no"
    report = reporter.next_report(0.1)
    assert report is not None
    assert (report.problem, report.needs_person) == ("401: no", True)
    assert report.waits_for == "Tiled does not accept requests: 401: no"
    assert report.failed_at is not None
    assert (report.answered_monotonic, report.failed_monotonic) == (None, writing.counts.failed_monotonic)
    assert reporter.next_report(0.2) is None


def test_the_last_report_leaves_nothing(reporter: Reporter, writing: Writing) -> None:
    reporter.next_report(0.0)
    writing.counts.count_attempt(None, is_write=False)
    report = reporter.next_report(0.1, last=True)
    assert report is not None
    assert report.requests == {"ok": 1}


@pytest.mark.parametrize(
    ("start", "label"),
    [
        ({"uid": "run", "scan_id": 7, "plan_name": "count"}, (7, "count")),
        ({"uid": "run"}, (None, None)),
        ({"uid": "run", "scan_id": "a/7", "plan_name": ["count"]}, ("a/7", None)),
        ({"uid": "run", "scan_id": True, "plan_name": ""}, (None, "")),
        ({"uid": "run", "scan_id": 2**70}, (str(2**70), None)),
        ({"uid": "run", "plan_name": "p" * 1000}, (None, "p" * 100)),
        ({"uid": "run", "scan_id": 7.5}, (None, None)),
    ],
)
def test_the_start_document_names_the_run(
    reporter: Reporter, journal: Journal, start: dict[str, object], label: tuple[object, object]
) -> None:
    reporter.next_report(0.0)
    journal.append_one("start", Encoder().encode(start))
    report = reporter.next_report(0.1)
    assert label == (None, None) or (report is not None and (report.scan_id, report.plan) == label)


def test_a_start_that_cannot_be_decoded_names_nothing(reporter: Reporter, journal: Journal) -> None:
    journal.append_one("start", b"\xc1")
    report = reporter.next_report(0.0)
    assert report is not None
    assert (report.scan_id, report.plan) == (None, None)
