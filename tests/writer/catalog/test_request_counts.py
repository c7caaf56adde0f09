"""Requests are counted by outcome, cause and duration, and taken once."""

from __future__ import annotations

import httpx
import pytest

from tiledwriter._errors import Ambiguous, NotProcessed, NotTiled, Paused, Refused, ServerFailed
from tiledwriter.catalog._request_counts import RequestCounts, name_outcome


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (None, "ok"),
        (Refused(422, "no"), "refused"),
        (Paused("401: who are you?"), "unauthorized"),
        (Paused("403: not you"), "unauthorized"),
        (Paused("KeyError: no such container"), "misconfigured"),
        (NotProcessed("429: slowly"), "busy"),
        (caused(NotProcessed("ConnectError: no"), httpx.ConnectError("no")), "unreachable"),
        (NotProcessed("404: no container yet"), "unavailable"),
        (caused(Ambiguous("ReadTimeout: no"), httpx.ReadTimeout("no")), "no_answer"),
        (Ambiguous("503: away"), "unavailable"),
        (ServerFailed("500: oh"), "server_error"),
        (NotTiled(302, "to a login"), "not_tiled"),
        (ValueError("a defect"), "other"),
    ],
)
def test_each_outcome_has_a_name(error: Exception | None, name: str) -> None:
    assert name_outcome(error) == name


def test_counts_are_taken_once() -> None:
    counts = RequestCounts((0.1, 1.0))
    for seconds in (0.1, 0.5, 2.0, 3.0):
        counts.count_attempt(None, is_write=False)
        counts.count_answer(seconds)
    counts.count_retry(NotProcessed("429: slowly"))
    taken = counts.take()
    assert (taken.requests, taken.retries) == ({"ok": 4}, {"busy": 1})
    assert (taken.latencies, taken.latency_sum) == ([1, 1, 2], pytest.approx(5.6))
    assert counts.take().is_empty


def test_only_writes_that_were_carried_out_are_writes() -> None:
    now = [(100.0, 1.0)]
    counts = RequestCounts((), lambda: now[0])
    counts.count_attempt(None, is_write=False)
    counts.count_attempt(Refused(422, "no"), is_write=True)
    assert counts.written_at is None
    now[0] = (101.0, 2.0)
    counts.count_attempt(None, is_write=True)
    assert (counts.written_at, counts.written_monotonic) == (101.0, 2.0)


def test_the_last_signs_of_tiled_are_kept() -> None:
    now = [(100.0, 1.0)]
    counts = RequestCounts((), lambda: now[0])
    assert (counts.answered_at, counts.failed_at, counts.problem) == (None, None, "")
    counts.note_presence("401: no", needs_person=True)
    now[0] = (101.0, 2.0)
    assert (counts.failed_at, counts.problem, counts.needs_person) == (100.0, "401: no", True)
    counts.note_presence()
    assert (counts.answered_at, counts.failed_at, counts.problem, counts.needs_person) == (101.0, 100.0, "", False)
    assert (counts.answered_monotonic, counts.failed_monotonic) == (2.0, 1.0)
