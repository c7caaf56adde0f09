"""A run in quarantine is retried from the page by those who have the token, and by nobody else."""

from __future__ import annotations

import pytest
import snapshots

from tiledbroker.log import Journal, find_run_file
from tiledbroker.supervisor._retry import retry_is_requested

TOKEN = "0123456789abcdef"


@pytest.fixture
def failed_run(tmp_path, supervisor):
    supervisor.snapshot = snapshots.quarantine()
    uid = supervisor.snapshot["runs"]["troubled"][0]["uid"]
    Journal(find_run_file(tmp_path, uid), "create", run_uid=uid).close()
    return uid


def is_requested(directory, uid):
    return retry_is_requested(find_run_file(directory, uid))


def test_without_a_token_file_there_is_no_form(client, failed_run):
    assert "<form" not in client.get("/").text


def test_with_the_token_the_supervisor_is_asked(serve, token_file, failed_run, tmp_path):
    client = serve(token_file)
    page = client.get("/").text
    assert page.count('<form method="post" action="/retry">') == 1
    assert TOKEN not in page
    response = client.post("/retry", data={"uid": failed_run, "token": TOKEN})
    assert (response.status_code, response.headers["location"]) == (303, "/")
    assert is_requested(tmp_path, failed_run)
    assert f"Run {failed_run}: the supervisor was asked to retry it." in client.get("/").text


def test_a_program_sends_the_token_as_bearer(serve, token_file, failed_run, tmp_path):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert serve(token_file).post("/retry", data={"uid": failed_run}, headers=headers).status_code == 303
    assert is_requested(tmp_path, failed_run)


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "\ud7ff" * 16])
def test_a_wrong_token_does_nothing(serve, token_file, failed_run, tmp_path, token):
    response = serve(token_file).post("/retry", data={"uid": failed_run, "token": token})
    assert response.status_code == 403
    assert not is_requested(tmp_path, failed_run)


def test_tokens_cannot_be_guessed_fast(serve, token_file, failed_run, tmp_path):
    client = serve(token_file)
    codes = [client.post("/retry", data={"uid": failed_run, "token": str(i)}).status_code for i in range(12)]
    assert codes == [403] * 10 + [429] * 2
    assert client.post("/retry", data={"uid": failed_run, "token": TOKEN}).status_code == 429
    assert not is_requested(tmp_path, failed_run)


def test_a_token_that_is_changed_counts_at_once(serve, token_file, failed_run):
    client = serve(token_file)
    token_file.write_text("fedcba9876543210")
    assert client.post("/retry", data={"uid": failed_run, "token": TOKEN}).status_code == 403
    token_file.unlink()
    assert client.post("/retry", data={"uid": failed_run, "token": TOKEN}).status_code == 503


@pytest.mark.parametrize("uid", ["", "../../etc/passwd", "5eed0000-0000-4000-8000-000000000001", "x" * 500])
def test_only_runs_in_quarantine_are_retried(serve, token_file, failed_run, tmp_path, uid):
    before = set(tmp_path.rglob("*"))
    assert serve(token_file).post("/retry", data={"uid": uid, "token": TOKEN}).status_code == 409
    assert set(tmp_path.rglob("*")) == before


def test_a_run_without_a_journal_is_not_retried(serve, token_file, failed_run, tmp_path):
    find_run_file(tmp_path, failed_run).unlink()
    assert serve(token_file).post("/retry", data={"uid": failed_run, "token": TOKEN}).status_code == 409
    assert not is_requested(tmp_path, failed_run)


def test_without_a_supervisor_nothing_is_requested(serve, token_file, failed_run, supervisor, tmp_path):
    supervisor.snapshot = None
    assert serve(token_file).post("/retry", data={"uid": failed_run, "token": TOKEN}).status_code == 503
    assert not is_requested(tmp_path, failed_run)


def test_a_form_without_end_is_refused(serve, token_file, failed_run):
    assert serve(token_file).post("/retry", content=b"a=" + b"x" * 100_000).status_code == 413


def test_looking_never_retries(serve, token_file, failed_run, tmp_path):
    assert serve(token_file).get(f"/retry?uid={failed_run}&token={TOKEN}").status_code == 405
    assert not is_requested(tmp_path, failed_run)
