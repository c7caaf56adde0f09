"""What people see: answers first, whatever comes from elsewhere as text, nothing old without saying so."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import snapshots

from tiledwriter.status._page import Page

EVIL = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>\u202e\x00{{7*7}}"


class Reader(HTMLParser):
    """Collects the tags, the attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text += data


def words(page):
    return re.findall(r'<p class="word">([^<]*)</p>', page)


def test_the_three_answers_come_first(client):
    page = client.get("/").text
    assert words(page) == ["YES", "YES", "NOTHING"]
    assert page.index("Is data safe?") < page.index("Runs in flight") < page.index("Publishers")


def test_all_of_the_snapshot_is_on_the_page(client):
    text = Reader(client.get("/").text).text
    for shown in (
        "ingest7",
        "grid_scan",
        "#4201",
        "bl7-acq",
        "10.7.0.21",
        "412 GiB",
        "0.2.20",
        "192 MiB",
        "max_workers",
    ):
        assert shown in text


def test_an_outage_says_since_when_and_how_much_waits(client, supervisor):
    supervisor.snapshot = snapshots.outage()
    page = client.get("/").text
    assert words(page) == ["YES", "NO", "1 THING"]
    assert "3 h 4 min" in page
    assert "Tiled is away" in page
    assert "2,208" in page


def test_a_run_in_quarantine_has_its_error_and_its_commands(client, supervisor, tmp_path):
    supervisor.snapshot = snapshots.quarantine()
    page = client.get("/").text
    uid = supervisor.snapshot["runs"]["troubled"][0]["uid"]
    assert "Unknown mimetype" in page
    assert f"tiledwriter-journal retry {uid} {tmp_path}</code>" in page
    assert f"tiledwriter-journal show {uid} {tmp_path}</code>" in page


def test_a_supervisor_that_is_away_is_an_alarm_with_the_age_of_the_numbers(client, supervisor, clock):
    client.get("/")
    supervisor.snapshot = None
    clock.now += 65
    client.get("/")
    clock.now += 60
    page = client.get("/").text
    assert words(page) == ["NOT KNOWN", "NOT KNOWN", "THE SUPERVISOR"]
    assert "The supervisor does not answer" in page
    assert "(1 min 0 s)" in page
    assert "is 2 min 5 s old" in page
    assert '<div id="runs" data-live class="stale">' in page
    assert '"badge good">well' not in page.partition("<main>")[0]


def test_a_supervisor_that_never_answered_leaves_no_numbers(client, supervisor):
    supervisor.snapshot = None
    page = client.get("/").text
    assert "there is nothing to show" in page
    assert "Runs in flight" not in page


@pytest.mark.parametrize(
    "kind", [snapshots.well, snapshots.outage, snapshots.started, snapshots.disk_full, snapshots.with_log]
)
def test_every_kind_of_snapshot_can_be_shown(client, supervisor, kind):
    supervisor.snapshot = kind()
    response = client.get("/")
    assert response.status_code == 200
    assert len(words(response.text)) == 3


def test_the_last_finished_run_is_named_when_none_is_in_flight(client, supervisor):
    supervisor.snapshot = snapshots.started()
    assert "Last finished" not in client.get("/").text
    last = snapshots.run_status(7, state="written", since=snapshots.NOW - 60, durable=24, written=24, worker=None)
    supervisor.snapshot["runs"]["last_finished"] = last
    supervisor.snapshot["runs"]["counts"]["written"] = 1
    page = " ".join(client.get("/").text.split())
    assert (
        f'Last finished: <b>grid_scan #4207</b> <code class="uid">{last["uid"]}</code> written with 24 documents'
        in page
    )
    assert "Now: none. Finished since the service started, " in page
    assert ": 1 written." in page


def test_two_hundred_runs_are_counted_and_some_are_named(client, supervisor):
    supervisor.snapshot = snapshots.many_runs(200)
    page = client.get("/").text
    assert page.count('data-label="Run"') == 50
    assert "And 110 more" in page
    assert len(page) < 150_000


def infect(value):
    """Put hostile text wherever a snapshot has text from elsewhere."""
    if isinstance(value, dict):
        return {key: infect(item) for key, item in value.items()}
    if isinstance(value, list):
        return [infect(item) for item in value]
    return (
        value
        if value in {"well", "degraded", "failed", "low", "full", "warning", "error", "open"}
        else (EVIL if isinstance(value, str) else value)
    )


def test_a_site_s_log_is_on_the_page(client, supervisor):
    supervisor.snapshot = snapshots.with_log(replicas_current=2)
    text = " ".join(Reader(client.get("/").text).text.split())
    assert "log2:4222, version 2.12.1" in text
    assert "read hereyes" in text
    assert "2 of 3 current" in text
    assert "bl7: 12, bl8: 0" in text
    assert "ingest7: 2, no host yet: 1" in text
    supervisor.snapshot = snapshots.with_log(reachable=False, problem="no servers", unfinished_runs=None, lag={})
    text = " ".join(Reader(client.get("/").text).text.split())
    assert "no servers" in text
    assert "version 2.12.1" not in text


@pytest.mark.parametrize("lag", [{}, {"bl7": 12}])
def test_the_lag_of_a_log_that_is_not_read_is_not_known(client, supervisor, lag):
    supervisor.snapshot = snapshots.with_log(read_problem="the connection was lost", lag=lag)
    text = " ".join(Reader(client.get("/").text).text.split())
    assert "read hereno: the connection was lost" in text
    assert "lagnot known" in text


@pytest.mark.parametrize("kind", [snapshots.outage, snapshots.quarantine, snapshots.with_log])
def test_hostile_text_is_text(serve, supervisor, token_file, kind):
    client = serve(token_file)
    clean = kind()
    supervisor.snapshot = clean
    before = Reader(client.get("/").text)
    hostile = infect(clean)
    hostile["settings"] = {EVIL: EVIL}
    hostile["reasons"] = [EVIL, f"`{EVIL}`", f"tiledwriter-journal show {EVIL}"]
    hostile["tiled"]["retries"] = {EVIL: 1}
    supervisor.snapshot = hostile
    page = client.get("/").text
    after = Reader(page)
    assert set(after.tags) - {"li", "ol"} <= {*before.tags, "code"}
    assert set(after.attributes) <= set(before.attributes)
    assert after.tags.count("script") == 1
    assert "alert(1)" in after.text
    assert "49" not in re.findall(r"\{\{7\*7\}\}|\b49\b", page)
    assert "\u202e" not in after.text


def test_text_that_is_no_unicode_is_shown_escaped(client, supervisor):
    supervisor.snapshot = snapshots.outage()
    supervisor.snapshot["publishers"][0]["name"] = "a\x7f\u2028b"
    assert "a\\x7f\\u2028b" in client.get("/").text


def test_long_texts_are_cut(client, supervisor):
    supervisor.snapshot = snapshots.quarantine()
    supervisor.snapshot["runs"]["troubled"][0] |= {"reason": "x" * 10**6, "plan": "p" * 10**5}
    page = client.get("/").text
    assert len(page) < 60_000
    assert "1,000,000 characters" in page


def test_without_javascript_the_page_reloads_itself(client):
    page = client.get("/").text
    assert '<noscript><meta http-equiv="refresh"' in page
    assert "onclick" not in page
    assert not re.search(r"<script(?! src=)", page)


def test_many_who_look_cost_one_question_and_one_page(client, supervisor, monkeypatch):
    monkeypatch.setattr("tiledwriter.status._source.MAX_AGE_SECONDS", 3600.0)
    rendered = []
    render = Page.render
    monkeypatch.setattr(Page, "render", lambda *arguments: rendered.append(1) or render(*arguments))
    responses = client.get_together(["/", "/metrics", "/api/status", "/readyz", "/"] * 20)
    assert {response.status_code for response in responses} == {200}
    assert supervisor.asked == 1
    assert len(rendered) == 1
