"""A request that is like an earlier one has what httpx would give it, and what has changed in its client since."""

from __future__ import annotations

import time
from http.cookiejar import Cookie
from typing import Any

import httpx
import pytest

from tiledwriter.catalog._request_builder import RequestBuilder

URL = "http://tiled.example/api/v1/table/partition/run%20one/primary/internal"
ARROW = "application/vnd.apache.arrow.file"
TIMEOUT = httpx.Timeout(connect=1.0, read=2.0, write=3.0, pool=4.0)


@pytest.fixture
def client():
    client = httpx.Client(headers={"Authorization": "Apikey abc", "X-Site": "7"})
    client.cookies.set("tiled_csrf", "token", domain="tiled.example")
    with client:
        yield client


def build(builder: RequestBuilder, body: bytes | None, **changes: Any) -> httpx.Request:
    kind = {
        "content": body,
        "content_type": None if body is None else ARROW,
        "params": {"partition": 0},
        "timeout": TIMEOUT,
    }
    return builder.build("PATCH", URL, **(kind | changes))


def in_full(client: httpx.Client, body: bytes | None) -> httpx.Request:
    headers = {"Accept-Encoding": "identity", **({} if body is None else {"Content-Type": ARROW})}
    extensions = {"timeout": TIMEOUT.as_dict()}
    return client.build_request(
        "PATCH", URL, headers=headers, content=body, params={"partition": 0}, extensions=extensions
    )


def parts(request: httpx.Request) -> tuple[Any, ...]:
    return request.method, request.url, sorted(request.headers.raw), request.read(), request.extensions


@pytest.mark.parametrize("bodies", [(b"one", b"another one"), (None, None)], ids=["with a body", "without"])
def test_each_request_is_the_one_that_httpx_builds(client, bodies):
    builder = RequestBuilder(client)
    for body in bodies:
        assert parts(build(builder, body)) == parts(in_full(client, body))


def test_requests_that_differ_do_not_get_the_same(client):
    builder = RequestBuilder(client)
    first = build(builder, b"x")
    others = [
        build(builder, b"x", params={"partition": 1}),
        build(builder, b"x", params=None),
        build(builder, b"x", content_type="application/json"),
    ]
    assert first.url.query == b"partition=0"
    assert [(each.url.query, each.headers["Content-Type"]) for each in others] == [
        (b"partition=1", ARROW),
        (b"", ARROW),
        (b"partition=0", "application/json"),
    ]


def test_a_timeout_is_that_of_its_request(client):
    builder = RequestBuilder(client)
    build(builder, b"x")
    assert build(builder, b"x", timeout=httpx.Timeout(9.0)).extensions["timeout"]["read"] == 9.0


def test_a_key_or_cookie_that_the_client_has_got_since_is_sent(client):
    builder = RequestBuilder(client)
    build(builder, b"x")
    client.headers["Authorization"] = "Apikey new"
    client.cookies.set("tiled_csrf", "new token", domain="tiled.example")
    request = build(builder, b"x")
    assert (request.headers["Authorization"], request.headers["Cookie"]) == ("Apikey new", "tiled_csrf=new token")
    client.cookies.clear()
    assert "Cookie" not in build(builder, b"x").headers


def test_a_cookie_that_has_expired_is_not_sent(client):
    cookie = Cookie(
        *(0, "affinity", "server-3", None, False, "tiled.example", True, False, "/", True, False),
        *(int(time.time()) + 1, False, None, None, {}),
    )
    client.cookies.jar.set_cookie(cookie)
    builder = RequestBuilder(client)
    assert "affinity" in build(builder, b"x").headers["Cookie"]
    cookie.expires = 1
    assert "affinity" not in build(builder, b"x").headers["Cookie"]
