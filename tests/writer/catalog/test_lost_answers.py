"""Appends whose answers are lost, by the hundred and on every storage; requests that outlive everybody's patience."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faulty_proxy import CUT_AFTER, PASS, RELEASE, STALLED, FaultyProxy
from lost_answers import judge, run_of, seq_nums, uid_of, write_journal, write_ours

from tiledbroker import Journal
from tiledwriter.catalog import _connection
from tiledwriter.testing import TiledServer

pytestmark = pytest.mark.filterwarnings("default")  # the reading client warns about itself


EVENTS = int(os.environ.get("TILEDWRITER_TEST_LOST", "25"))


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connection._Wait, "__call__", lambda self, state: 0.01)


def test_lost_answers_double_no_row(storage_server: TiledServer, tmp_path: Path) -> None:
    documents = run_of(EVENTS)
    with FaultyProxy(storage_server.uri) as proxy, proxy.client(storage_server.api_key) as client:
        proxy.script("PATCH", "table/partition", *[CUT_AFTER] * EVENTS)
        assert write_ours(client, documents, tmp_path) == "written"
        assert proxy.all_played
    assert judge(seq_nums(storage_server.client(), documents), EVENTS) == (0, 0, True)


@pytest.mark.parametrize("late", ["before the stop document", "after it"])
def test_requests_that_outlive_the_quiet_period_are_found_and_their_rows_removed(
    late: str, storage_server: TiledServer, tmp_path: Path
) -> None:
    documents = run_of(30)
    again = RELEASE if late == "before the stop document" else PASS
    with FaultyProxy(storage_server.uri) as proxy, proxy.client(storage_server.api_key) as client:
        # The server carries the request out after it was sent again.
        proxy.script("PATCH", "table/partition", PASS, STALLED, again)
        assert write_ours(client, documents, tmp_path, quiet_period=0.1) == "written"
        proxy.release_stalled()
        with Journal(tmp_path / f"{uid_of(documents)}.sqlite", "write") as journal:
            assert journal.get("audit_at") is not None
            assert write_journal(client, journal, quiet_period=0.1) == "written"  # the late audit
            assert "repairing" in [entry.event for entry in journal.history()]
    assert judge(seq_nums(storage_server.client(), documents), 30) == (0, 0, True)
