"""Addresses as people write them become URLs that ZeroMQ takes, or a clear error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledbroker import AddressError
from tiledbroker.protocol._address import normalize_address


@pytest.fixture
def socket() -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        yield socket


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("localhost:5579", "tcp://localhost:5579"),
        ("tcp://localhost:5579", "tcp://localhost:5579"),
        ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1"),
        ("ingest.example:65535", "tcp://ingest.example:65535"),
        ("[::1]:5579", "tcp://[::1]:5579"),
        ("ipc:///tmp/socket", "ipc:///tmp/socket"),
        ("ipc://@abstract", "ipc://@abstract"),
        (("localhost", 5579), "tcp://localhost:5579"),
        (("localhost", "5579"), "tcp://localhost:5579"),
        (("tcp", "localhost", 5579), "tcp://localhost:5579"),
        (("ipc", "/tmp/socket"), "ipc:///tmp/socket"),
    ],
)
def test_the_forms_bluesky_users_write(socket: zmq.Socket[bytes], address: Any, url: str) -> None:
    assert normalize_address(address) == url
    socket.connect(url)


@pytest.mark.parametrize("url", ["tcp://*:5579", "tcp://0.0.0.0:5579", "tcp://127.0.0.1:*"])
def test_the_forms_a_supervisor_listens_at(url: str) -> None:
    assert normalize_address(url) == url


@pytest.mark.parametrize("address", [":5579", "tcp://:5579", ("", 5579)])
def test_an_address_without_a_host_is_refused(address: Any) -> None:
    with pytest.raises(AddressError, match="has no host"):
        normalize_address(address)


@pytest.mark.parametrize(
    "address",
    [
        *("5579", "tcp://5579", "localhost", "tcp://localhost", "localhost:"),
        *("localhost:http", "localhost:-1", "localhost:65536", "h:٣", "h:5/"),
    ],
)
def test_an_address_without_a_usable_port_is_refused(address: str) -> None:
    with pytest.raises(AddressError, match="port"):
        normalize_address(address)


@pytest.mark.parametrize("port", ["65536", "70000", "9" * 5000])
def test_a_port_that_tcp_lacks_is_refused_for_that(port: str) -> None:
    with pytest.raises(AddressError, match="has a port beyond 65535"):
        normalize_address(f"localhost:{port}")


@pytest.mark.parametrize("address", ["", "tcp://", "ipc://", "udp://host:1", "http://host:80", "inproc://a", "://"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(AddressError):
        normalize_address(address)


@pytest.mark.parametrize("address", ["two words:5579", "tcp://a b:1"])
def test_a_host_that_is_no_name_is_refused(address: str) -> None:
    with pytest.raises(AddressError, match="has a space in its host"):
        normalize_address(address)


@pytest.mark.parametrize("address", [None, 5579, b"host:1", ["host", 1], (), ("host",), ("tcp", "a", 1, 2), {}])
def test_other_types_are_refused(address: Any) -> None:
    with pytest.raises(AddressError):
        normalize_address(address)


def test_the_error_shows_the_address_and_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"'nowhere'.*5579"):
        normalize_address("nowhere")


@settings(max_examples=200, deadline=None)
@given(st.text() | st.tuples(st.text(), st.integers() | st.text()))
def test_anything_is_an_address_or_an_address_error(address: Any) -> None:
    try:
        url = normalize_address(address)
    except AddressError:
        return
    assert url.startswith(("tcp://", "ipc://"))
