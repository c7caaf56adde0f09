"""The transports that tests run over: that of the product, and one that is different."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import zmq
from ingest_host import IngestHost, UnixIngestHost, ZMQIngestHost
from peers import Peer, dial
from unix_transport import UnixLink, UnixPeer, UnixSource

from tiledbroker import ZMQPublisher
from tiledbroker.publisher._link import Link
from tiledbroker.publisher._publisher import SpoolPublisher
from tiledbroker.publisher._zmq_link import ZMQLink
from tiledbroker.supervisor import ClientLimits, Frontend, Source
from tiledwriter.testing import free_port


class Transport:
    """Links and sources over one transport, each at an address of its own.

    Parameters
    ----------
    directory
        Where sockets may be made.
    """

    link: Callable[[str], Link]
    source: Callable[[str, ClientLimits], Source]

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sockets = 0

    def new_address(self) -> str:
        """An address at which nobody listens."""
        self._sockets += 1
        return str(self._directory / f"socket-{self._sockets}")

    def publisher(self, address: str, **options: Any) -> SpoolPublisher:
        """A publisher to an address."""
        return SpoolPublisher(address, partial(self.link, address), **options)

    def ingest_host(self) -> IngestHost:
        """An ingest host in the hands of a test."""
        return UnixIngestHost(Path(self.new_address()))

    @contextmanager
    def peer(self, address: str) -> Iterator[Peer]:
        """A connection to a source in the hands of a test."""
        with UnixPeer(address) as peer:
            yield peer


class OverUnixSockets(Transport):
    link = UnixLink
    source = UnixSource


class OverZeroMQ(Transport):
    link = staticmethod(partial(ZMQLink, keys=None))
    source = Frontend

    def new_address(self) -> str:
        return f"tcp://127.0.0.1:{free_port()}"

    def publisher(self, address: str, **options: Any) -> SpoolPublisher:
        return ZMQPublisher(address, **options)

    def ingest_host(self) -> IngestHost:
        return ZMQIngestHost()

    @contextmanager
    def peer(self, address: str) -> Iterator[Peer]:
        with zmq.Context() as context, dial(context, address) as dealer:
            yield dealer


TRANSPORTS = {"zeromq": OverZeroMQ, "unix": OverUnixSockets}
