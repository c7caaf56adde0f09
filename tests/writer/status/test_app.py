"""What programs get: health, metrics and JSON."""

from __future__ import annotations

import snapshots
from prometheus_client.parser import text_string_to_metric_families

from tiledwriter.status._app import _ASSETS


def test_a_process_that_works_is_healthy_whatever_the_supervisor_does(client, supervisor):
    assert client.get("/healthz").status_code == 200
    supervisor.snapshot = None
    assert client.get("/healthz").status_code == 200
    assert supervisor.asked <= 1


def test_a_supervisor_that_works_is_ready(client, supervisor):
    for snapshot in (snapshots.well(), snapshots.outage(), snapshots.quarantine(), snapshots.started()):
        supervisor.snapshot = snapshot
        response = client.get("/readyz")
        assert (response.status_code, response.text) == (200, f"{snapshot['state']}\n")


def test_a_service_that_cannot_work_is_not_ready_and_says_why(client, supervisor):
    supervisor.snapshot = snapshots.disk_full()
    response = client.get("/readyz")
    assert response.status_code == 503
    assert "The journal disk is full" in response.text


def test_without_a_supervisor_nothing_is_ready(client, supervisor):
    supervisor.snapshot = None
    response = client.get("/readyz")
    assert response.status_code == 503
    assert "No supervisor uses" in response.text


def test_a_host_that_stands_by_is_not_ready(client, supervisor):
    supervisor.snapshot = snapshots.standby()
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.text.startswith("standby: This host stands by: ingest8 holds the lease")


def test_the_status_is_the_json_of_the_supervisor(client):
    assert client.get("/api/status").json() == snapshots.well()


def test_a_status_that_cannot_be_had_is_not_the_old_one(client, supervisor, clock):
    client.get("/api/status")
    supervisor.snapshot = None
    clock.now += 30
    response = client.get("/api/status")
    assert response.status_code == 503
    assert response.json() == {
        "error": "No supervisor uses /var/lib/tiledwriter",
        "since": snapshots.NOW + 30,
        "last_answer": snapshots.NOW,
    }


def test_metrics_are_served_and_survive_an_absent_supervisor(client, supervisor):
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    up = {family.name: family.samples[0].value for family in text_string_to_metric_families(response.text)}
    assert up["tiledwriter_supervisor_up"] == 1
    supervisor.snapshot = None
    response = client.get("/metrics")
    assert response.status_code == 200
    assert "tiledwriter_supervisor_up 0.0" in response.text
    assert "tiledwriter_documents_total" not in response.text


def test_history_has_columns_of_one_length(client):
    columns = client.get("/api/history").json()["columns"]
    assert len(set(map(len, columns.values()))) == 1


def test_every_answer_forbids_what_comes_from_elsewhere(client):
    for path in ("/", "/metrics", "/missing", "/api/runs/x/scalars"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy
        assert client.get(path).headers["x-content-type-options"] == "nosniff"


def test_the_page_loads_its_own_files_only(client):
    page = client.get("/").text
    assert "http://tiled.bl7.example:8000" in page
    assert not [part for part in page.split() if part.startswith(('src="http', 'href="http', 'src="//'))]


def test_static_files_are_kept_by_browsers_and_nothing_else_is(client):
    for name in _ASSETS:
        response = client.get(f"/assets/x/{name}")
        assert response.status_code == 200
        assert "immutable" in response.headers["cache-control"]
    assert client.get("/").headers["cache-control"] == "no-store"


def test_only_the_listed_files_are_served(client):
    for name in ("page.html", "..%2f_app.py", "%2e%2e/_app.py", "bokeh.js", "..%2f..%2f..%2f..%2fetc%2fpasswd"):
        assert client.get(f"/assets/x/{name}").status_code == 404


def test_nothing_can_be_posted_without_a_token_file(client):
    assert client.post("/retry", data={"uid": "x", "token": "y"}).status_code == 404
    assert client.post("/", data={}).status_code == 405
