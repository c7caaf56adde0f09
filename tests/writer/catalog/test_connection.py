from __future__ import annotations

import random
import threading
import time
from types import SimpleNamespace

import httpx
import pytest
from faulty_proxy import CUT_BEFORE, PASS, ScriptedServer, answer, page, small_client

from tiledwriter._errors import (
    Ambiguous,
    NotProcessed,
    NotTiled,
    Paused,
    PoisonedOperation,
    Refused,
    ServerFailed,
    Stopped,
)
from tiledwriter.catalog import _connection
from tiledwriter.catalog._connection import Connection, check_version
from tiledwriter.catalog._responses import raise_for_response
from tiledwriter.testing import free_port, wait_until


@pytest.fixture
def server():
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def waits(monkeypatch):
    """Backoff of a millisecond; returns the list of what the server asked for instead."""
    asked = []

    def wait(self, retry_state):
        error = retry_state.outcome.exception()
        asked.append(getattr(error, "retry_after", None))
        return 0.001

    monkeypatch.setattr(_connection._Wait, "__call__", wait)
    return asked


class Reports(list):
    def __call__(self, event, **detail):
        self.append((event, detail))

    @property
    def events(self):
        return [event for event, _ in self]


@pytest.fixture
def reports():
    return Reports()


@pytest.fixture
def stopping():
    return threading.Event()


@pytest.fixture
def connection(server, stopping, reports, waits):
    with server.client(path_parts=("runs",)) as client:
        yield Connection(lambda: client, stopping, reports)


@pytest.fixture
def one_second_per_request(monkeypatch, server):
    """For the connection, a second passes with each POST and PATCH that the server gets."""
    clock = SimpleNamespace(monotonic=lambda: float(server.count("POST") + server.count("PATCH")))
    monkeypatch.setattr(_connection, "time", clock)


@pytest.fixture
def impatient(server, stopping, reports, waits, one_second_per_request):
    """A connection that takes for poison what has been answered with 500 for more than 4.5 seconds."""
    with server.client() as client:
        yield Connection(lambda: client, stopping, reports, poison_after=4.5)


# Answers


def response(status, **options):
    return httpx.Response(status, **options)


@pytest.mark.parametrize("content", [b"null", b'{"id":"x"}', b'{"data":{}}', b'{"data_type":{}}'], ids=repr)
@pytest.mark.parametrize("status", [200, 201])
def test_a_good_answer_means_done(status, content):
    assert raise_for_response(response(status, content=content, headers={"Content-Type": "application/json"})) is None


def test_content_that_was_asked_for_means_done():
    octets = {"Content-Type": "application/octet-stream"}
    assert raise_for_response(response(200, content=b"12345678", headers=octets), "application/octet-stream") is None
    with pytest.raises(NotTiled):
        raise_for_response(response(200, json=None), "application/octet-stream")


@pytest.mark.parametrize(
    ("status", "options"),
    [
        (200, {"html": "<h1>Log in</h1>"}),
        (200, {"json": {"status": "down for maintenance"}}),
        (200, {"json": "ok"}),
        (200, {"content": b"{broken", "headers": {"Content-Type": "application/json"}}),
        (204, {}),
        (301, {"headers": {"Location": "https://tiled.example"}}),
        (302, {"headers": {"Location": "/login"}}),
        (304, {}),
        (404, {"html": "<h1>default backend</h1>"}),
        (404, {"json": {"message": "no route"}}),
        (404, {"json": {"detail": "Not Found"}}),
        (405, {"html": "<h1>Not allowed</h1>"}),
        (405, {"json": {"detail": "Method Not Allowed"}}),
        (409, {"text": "Conflict"}),
        (500, {"html": "<h1>Oops</h1>"}),
    ],
)
def test_what_is_not_in_tiled_s_words_says_nothing_about_the_request(status, options):
    with pytest.raises(NotTiled, match=f"^{status}: ") as raised:
        raise_for_response(response(status, **options))
    assert raised.value.status == status


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, Refused),
        (401, Paused),
        (403, Paused),
        (404, Refused),
        (408, Ambiguous),
        (409, Refused),
        (413, Refused),
        (422, Refused),
        (429, NotProcessed),
        (500, ServerFailed),
        (502, Ambiguous),
        (503, Ambiguous),
        (504, Ambiguous),
    ],
)
def test_each_other_answer_has_its_meaning(status, error):
    with pytest.raises(error) as raised:
        raise_for_response(response(status, json={"detail": "because"}))
    assert type(raised.value) is error
    assert str(raised.value) == f"{status}: because"


def test_an_answer_without_json_gives_its_reason():
    with pytest.raises(Ambiguous, match="502: Bad Gateway"):
        raise_for_response(response(502, html="<h1>Bad</h1>"))
    with pytest.raises(NotTiled, match="302: redirected to /login"):
        raise_for_response(response(302, headers={"Location": "/login"}))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("99999", 600.0), ("Wed, 21 Oct 2015 07:28:00 GMT", None), (None, None)],
)
def test_retry_after_is_understood_in_seconds(header, seconds):
    with pytest.raises(NotProcessed) as raised:
        raise_for_response(response(429, headers={"Retry-After": header} if header else {}))
    assert raised.value.retry_after == seconds


@pytest.mark.parametrize("header", ["nan", "-5"])
def test_a_retry_after_that_is_no_time_to_wait_is_not_taken(header):
    with pytest.raises(NotProcessed) as raised:
        raise_for_response(response(429, headers={"Retry-After": header}))
    assert raised.value.retry_after is None


# Requests


def test_a_request_goes_below_the_container_and_is_quoted(connection, server):
    connection.send("POST", "metadata", "run 1/a#b?c%2F", json={"x": None}, params={"drop_revision": True})

    (request,) = server.requests
    assert request.path == "metadata/runs/run%201/a%23b%3Fc%252F"
    assert request.query == "drop_revision=true"
    assert request.body == b'{"x":null}'
    assert request.headers["Content-Type"] == "application/json"


def test_a_request_without_a_body_has_no_content_type(connection, server):
    connection.send("GET", "metadata", "run")
    assert "Content-Type" not in server.requests[0].headers


@pytest.mark.parametrize(
    "fault", [CUT_BEFORE, answer(500), answer(503), answer(429), answer(408)], ids=lambda f: f.name
)
def test_what_may_be_repeated_is_sent_until_it_is_done(connection, server, fault, reports):
    server.script("PUT", "metadata", fault, fault)
    assert connection.send("PUT", "metadata", "run", json={}).status_code == 200
    assert [request.fate for request in server.requests if request.method == "PUT"] == [fault.name] * 2 + ["pass"]
    assert reports.events == ["waiting", "resumed"]


@pytest.mark.parametrize("fault", [CUT_BEFORE, answer(500), answer(504)], ids=lambda f: f.name)
def test_what_may_not_be_repeated_is_sent_once(connection, server, fault):
    server.script("PATCH", "table", fault)
    with pytest.raises(Ambiguous):
        connection.send("PATCH", "table/partition", "run", content=b"rows", repeat=False)
    assert server.count("PATCH") == 1


def test_what_was_certainly_not_done_is_repeated_even_so(connection, server):
    server.script("PATCH", "table", answer(429), answer(401))
    connection.send("PATCH", "table/partition", "run", content=b"rows", repeat=False)
    assert [request.body for request in server.requests] == [b"rows"] * 3


def test_a_refusal_is_final(connection, server, reports):
    server.script("POST", "metadata", answer(422, "no such column"))
    with pytest.raises(Refused, match="422: no such column") as raised:
        connection.send("POST", "metadata", "run", json={})
    assert raised.value.status == 422
    assert len(server.requests) == 1
    assert reports == []


def test_retry_after_is_honoured(connection, server, waits):
    server.script("GET", "metadata", answer(429, headers={"Retry-After": "7"}), answer(429))
    connection.send("GET", "metadata", "run")
    assert waits == [7.0, None]


def test_the_server_gets_the_time_it_asks_for_and_others_wait_longer_and_longer(server, stopping, reports):
    wait = _connection._Wait()
    random.seed(0)

    def state(error, attempt):
        future = type("Outcome", (), {"exception": lambda self: error})()
        return type("State", (), {"outcome": future, "attempt_number": attempt})()

    assert wait(state(NotProcessed("busy", 12.0), 1)) == 12.0
    waits = [wait(state(Ambiguous("gone"), attempt)) for attempt in range(1, 30)]
    assert waits[0] < 1
    assert waits[:5] == sorted(waits[:5])
    assert max(waits) <= _connection._MAX_WAIT_SECONDS


def test_credentials_that_are_not_accepted_pause_until_they_are(connection, server, reports):
    server.script("POST", "metadata", answer(401, "Invalid API key"), answer(403), answer(401))
    connection.send("POST", "metadata", "run", json={})
    assert server.count("POST") == 4
    assert reports.events == ["waiting", "resumed"]
    assert reports[0][1]["reason"] == "401: Invalid API key"


def test_more_failures_than_are_tolerated_leave_it_open(connection, server):
    server.script("POST", "metadata/runs/run", *[answer(500)] * 5)
    with pytest.raises(ServerFailed):
        connection.send("POST", "metadata", "run", json={}, tolerated_failures=2)
    assert server.count("POST", "metadata/runs/run") == 3


def test_failures_that_are_tolerated_are_no_outage(connection, server):
    server.script("POST", "metadata/runs/run", *[answer(500)] * 3)
    with pytest.raises(ServerFailed):
        connection.send("POST", "metadata", "run", json={}, tolerated_failures=2)
    assert connection.absences == 0
    assert connection.unavailable_since is None


def test_failures_while_nothing_can_be_written_are_an_outage(connection, server):
    server.script("POST", "metadata/runs/run", *[answer(500)] * 3)
    server.script("PATCH", "table/partition/runs/tiledwriter_probe", *[answer(500)] * 20)
    connection.send("POST", "metadata", "run", json={}, tolerated_failures=2)
    assert connection.absences == 1
    assert connection.unavailable_since is None


def test_failures_that_are_tolerated_are_no_poison_however_slow_the_server_is(connection, server):
    connection._poison_after = 0.0
    server.script("POST", "metadata/runs/run", *[answer(500)] * 20)
    with pytest.raises(ServerFailed) as caught:
        connection.send("POST", "metadata", "run", json={}, tolerated_failures=10)
    assert not isinstance(caught.value, PoisonedOperation)
    assert server.count("POST", "metadata/runs/run") == 11


def test_failures_while_nothing_can_be_written_are_no_failures_that_have_to_be_tolerated(connection, server):
    server.script("POST", "metadata/runs/run", *[answer(500)] * 8)
    server.script("PATCH", "table/partition/runs/tiledwriter_probe", *[answer(500)] * 20)
    connection.send("POST", "metadata", "run", json={}, tolerated_failures=2)
    assert server.count("POST", "metadata/runs/run") == 9


@pytest.mark.parametrize("fault", [answer(401), answer(429), answer(503), CUT_BEFORE], ids=lambda f: f.name)
def test_an_outage_is_no_failure_that_has_to_be_tolerated(connection, server, fault):
    server.script("POST", "metadata", *[fault] * 5)
    connection.send("POST", "metadata", "run", json={}, tolerated_failures=2)
    assert server.count("POST") == 6


def test_a_server_that_refuses_connections_is_waited_for(stopping, reports, waits):
    port = free_port()
    with small_client(f"http://127.0.0.1:{port}") as client:
        connection = Connection(lambda: client, stopping, reports)
        ends = []

        def send():
            try:
                connection.send("GET", "metadata", "run")
            except Stopped as error:
                ends.append(error)

        sending = threading.Thread(target=send)
        sending.start()
        wait_until(lambda: reports.events == ["waiting"], 60, "the connection waits")
        stopping.set()
        sending.join(60)
    assert len(ends) == 1
    assert "ConnectError" in reports[0][1]["reason"]


def test_connecting_is_tried_until_it_succeeds(server, stopping, reports, waits):
    refusal = httpx.Response(401, json={"detail": "Invalid API key"}, request=httpx.Request("GET", server.uri))
    failures = [
        httpx.ConnectError("refused"),
        httpx.HTTPStatusError("401", request=refusal.request, response=refusal),
        httpx.HTTPStatusError("502", request=refusal.request, response=httpx.Response(502)),
        httpx.HTTPStatusError("404", request=refusal.request, response=httpx.Response(404)),
        httpx.ReadTimeout("slow"),
    ]
    with server.client() as client:

        def connect():
            if failures:
                raise failures.pop(0)
            return client

        Connection(connect, stopping, reports).send("GET", "metadata", "run")
    assert failures == []
    assert server.count("GET", "metadata/run") == 1


# Whether the server is there


@pytest.fixture
def away(connection, monkeypatch):
    """Since when the server was away, at each wait for another try."""
    seen = []
    monkeypatch.setattr(connection, "_sleep_interruptibly", lambda _: seen.append(connection.unavailable_since))
    return seen


@pytest.mark.parametrize(
    "fault",
    [CUT_BEFORE, answer(401), answer(403), answer(408), answer(429), answer(502), answer(503), answer(504)],
    ids=lambda f: f.name,
)
def test_a_server_that_takes_no_requests_is_away_from_the_first_one_on(connection, server, away, fault):
    server.script("PUT", "metadata", *[fault] * 3)
    before = time.monotonic()
    connection.send("PUT", "metadata", "run", json={})
    assert len(away) == 3
    assert len(set(away)) == 1
    assert before <= away[0] <= time.monotonic()
    assert connection.unavailable_since is None


def test_it_is_away_after_the_only_try_of_what_may_not_be_repeated(connection, server):
    server.script("PATCH", "table", answer(504))
    with pytest.raises(Ambiguous):
        connection.send("PATCH", "table/partition", "run", content=b"rows", repeat=False)
    assert connection.unavailable_since is not None


def test_it_is_away_while_there_is_nobody_to_connect_to(server, stopping, reports, monkeypatch):
    failures = [httpx.ConnectError("refused"), ValueError("no such profile")]
    seen = []
    with server.client() as client:

        def connect():
            if failures:
                raise failures.pop(0)
            return client

        connection = Connection(connect, stopping, reports)
        monkeypatch.setattr(connection, "_sleep_interruptibly", lambda _: seen.append(connection.unavailable_since))
        connection.send("GET", "metadata", "run")
    assert len(seen) == 2
    assert None not in seen
    assert connection.unavailable_since is None


def test_a_500_means_that_it_is_away_if_its_probe_fails_too(connection, server, away):
    server.script("GET", "metadata/", answer(503), answer(503), PASS)
    server.script("POST", "metadata", *[answer(500)] * 3)
    connection.send("POST", "metadata", "run", json={})
    assert away[0] == away[1] is not None
    assert away[2] is None


@pytest.mark.parametrize("status", [404, 409, 422])
def test_a_server_that_refuses_something_is_there(connection, server, status):
    server.script("POST", "metadata", answer(503), answer(status))
    with pytest.raises(Refused):
        connection.send("POST", "metadata", "run", json={})
    assert connection.unavailable_since is None


def test_who_wants_to_know_is_told_once_that_the_server_answers_and_again_after_it_was_away(
    server, stopping, reports, monkeypatch
):
    reached = []
    with server.client() as client:
        connection = Connection(lambda: client, stopping, reports, on_reached=lambda: reached.append(len(waits)))
        waits = []
        monkeypatch.setattr(connection, "_sleep_interruptibly", waits.append)
        server.script("PUT", "metadata", answer(503), PASS, PASS, CUT_BEFORE, answer(502), PASS)
        for _ in range(3):
            connection.send("PUT", "metadata", "run", json={})
    assert reached == [1, 3]


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_are_not_accepted_are_looked_for_anew(server, stopping, reports, waits, status):
    made = []
    with server.client() as client:
        connection = Connection(lambda: made.append(len(waits)) or client, stopping, reports)
        server.script("PUT", "metadata", PASS, answer(status), answer(503), PASS)
        connection.send("PUT", "metadata", "run", json={})
        connection.send("PUT", "metadata", "run", json={})
    assert made == [0, 1]


def test_each_kind_of_trouble_is_reported_once_per_outage(connection, server, reports, away):
    server.script("PUT", "metadata", *[answer(503), answer(429)] * 5, PASS, answer(503), PASS)
    connection.send("PUT", "metadata", "run", json={})
    connection.send("PUT", "metadata", "run", json={})
    assert len(away) == 11
    assert [event for event, _ in reports] == ["waiting", "waiting", "resumed", "waiting", "resumed"]


# Stopping


@pytest.mark.parametrize("repeat", [True, False])
def test_stopping_ends_a_long_wait_without_another_request(server, stopping, reports, repeat):
    server.script("GET", "metadata", answer(429, headers={"Retry-After": "600"}))
    ends = []

    def send(connection):
        try:
            ends.append(connection.send("GET", "metadata", "run", repeat=repeat))
        except Stopped as error:
            ends.append(error)

    with server.client() as client:
        sending = threading.Thread(target=send, args=(Connection(lambda: client, stopping, reports),))
        sending.start()
        wait_until(lambda: reports.events == ["waiting"], 60, "the connection waits")
        stopping.set()
        sending.join(60)
    assert [type(end) for end in ends] == [Stopped]
    assert len(server.requests) == 1


def test_a_refusal_is_told_even_when_stopping(connection, server, stopping):
    stopping.set()
    server.script("GET", "metadata", answer(404))
    with pytest.raises(Refused):
        connection.send("GET", "metadata", "run")


# Answers that are not Tiled's


@pytest.mark.parametrize(
    "fault",
    [
        *(page(302, "/login"), page(301, "/login"), page(200), page(404), page(405), page(500)),
        *(answer(404, "Not Found"), answer(405, "Method Not Allowed")),
    ],
    ids=lambda f: f.name,
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_a_gateway_s_own_answers_are_waited_out_and_its_redirects_are_not_followed(
    connection, server, away, fault, method
):
    server.script(method, "metadata/runs/run", *[fault] * 3)
    connection.send(method, "metadata", "run")
    assert [request.path for request in server.requests] == ["metadata/runs/run"] * 4
    assert None not in away


def test_a_gateway_s_answer_to_what_may_not_be_repeated_leaves_it_open(connection, server):
    server.script("PATCH", "table", page(302, "/login"))
    with pytest.raises(NotTiled, match="redirected to /login"):
        connection.send("PATCH", "table/partition", "run", content=b"rows", repeat=False)
    assert len(server.requests) == 1


def test_a_refusal_tells_if_an_earlier_attempt_may_have_been_carried_out(connection, server):
    server.script("POST", "metadata", answer(409), CUT_BEFORE, answer(409), answer(429), answer(409))
    found = []
    for _ in range(3):
        with pytest.raises(Refused) as raised:
            connection.send("POST", "metadata", "run", json={})
        found.append(raised.value.may_be_ours)
    assert found == [False, True, False]


# Versions


@pytest.mark.parametrize("version", ["0.2.12", "0.2.20", "0.3.0", "1.0", "0.2.13.dev4+g12", "unknown"])
def test_a_server_that_knows_what_is_needed_is_taken(server, version):
    with server.client() as client:
        client.context.server_info.library_version = version
        check_version(client)


@pytest.mark.parametrize("version", ["0.2.11", "0.1.0b40", "0.2"])
def test_a_server_that_is_too_old_is_named_and_waited_for(server, stopping, reports, monkeypatch, version):
    with server.client() as client:
        client.context.server_info.library_version = version
        connection = Connection(lambda: client, stopping, reports)
        away = []

        def sleep(_):
            away.append(connection.unavailable_since)
            client.context.server_info.library_version = "0.2.12"

        monkeypatch.setattr(connection, "_sleep_interruptibly", sleep)
        connection.send("POST", "metadata", "run", json={})
    assert len(away) == 1
    assert away[0] is not None
    assert reports.events == ["waiting", "resumed"]
    assert f"has version {version}, and 0.2.12 or newer is needed" in reports[0][1]["reason"]
    assert len(server.requests) == 1


# Poison


def test_nothing_but_500_while_other_writes_work_is_poison_after_a_time(impatient, server):
    server.script("POST", "metadata/run", *[answer(500, "no such type")] * 20)
    with pytest.raises(PoisonedOperation, match=r"no such type, [67] times in \d+ s, while others are done"):
        impatient.send("POST", "metadata", "run", json={})
    assert server.count("POST", "metadata/run") in (6, 7)
    assert server.count("PATCH", "table/partition/tiledwriter_probe") == 2
    assert server.count("DELETE", "metadata/tiledwriter_probe") == 2


def test_a_few_500_are_no_poison_however_long_they_last(server, stopping, reports, waits):
    server.script("POST", "metadata/run", *[answer(500)] * (_connection.POISON_FAILURES - 1))
    with server.client() as client:
        Connection(lambda: client, stopping, reports, poison_after=0.0).send("POST", "metadata", "run", json={})
    assert server.count("PATCH") == 0


def test_poison_is_recognized_over_several_calls_too(impatient, server):
    server.script("PATCH", "table/partition/run", *[answer(500)] * 20)

    def append():
        impatient.send("PATCH", "table/partition", "run", content=b"", repeat=False)

    for _ in range(5):
        with pytest.raises(Ambiguous):
            append()
        impatient.send("GET", "metadata", "run")
    with pytest.raises(Ambiguous):
        append()
    with pytest.raises(PoisonedOperation):
        append()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "metadata/probed"),
        ("GET", "metadata/table/x"),
        ("POST", "metadata/probed"),
        ("PATCH", "table/partition/probed"),
        ("DELETE", "metadata/probed"),
    ],
)
def test_500_is_no_poison_while_a_probe_fails(impatient, server, method, path):
    impatient.probe.run, impatient.probe.column = "probed", "table/x"
    server.script(method, path, *[answer(500)] * 200)
    server.script("POST", "metadata/run", *[answer(500)] * 20)
    impatient.send("POST", "metadata", "run", json={})
    assert server.count("POST", "metadata/run") == 21


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize(("method", "endpoint"), [("GET", "metadata"), ("DELETE", "stream/close")])
def test_reading_and_closing_is_never_poison(server, stopping, reports, method, endpoint):
    server.script(method, f"{endpoint}/run", *[answer(500)] * 50)
    with server.client() as client:
        Connection(lambda: client, stopping, reports, poison_after=0.0).send(method, endpoint, "run")
    assert server.count(method, f"{endpoint}/run") == 51


def test_another_answer_in_between_starts_the_time_again(impatient, server):
    server.script("POST", "metadata/run", *([answer(500)] * 5 + [answer(503)]) * 3)
    impatient.send("POST", "metadata", "run", json={})
    assert server.count("POST", "metadata/run") == 19


def test_poison_is_recognized_by_wall_clock_time(server, stopping, reports, waits):
    server.script("POST", "metadata/run", *[answer(500)] * 10_000)
    started = time.monotonic()
    with server.client() as client, pytest.raises(PoisonedOperation):
        Connection(lambda: client, stopping, reports, poison_after=0.05).send("POST", "metadata", "run", json={})
    assert time.monotonic() - started >= 0.05


def test_databases_are_well_if_they_can_be_read_and_written(server, stopping, reports, waits):
    with server.client() as client:
        connection = Connection(lambda: client, stopping, reports)
        assert connection.databases_can_read()
        assert connection.databases_can_write()
        server.script("GET", "metadata/", CUT_BEFORE, PASS, answer(500))
        assert [connection.databases_can_read() for _ in range(2)] == [True, False]
        # The first time, there is a table that was left by a probe before.
        server.script("POST", "metadata/", answer(409), PASS, answer(500))
        assert [connection.databases_can_write() for _ in range(2)] == [True, False]
