"""The transports that tests run over: those of the product, and one that is different."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import zmq
from ingest_host import IngestHost, UnixIngestHost, ZMQIngestHost
from log_site import LogSite
from log_transport import BEAMLINE, LogIngestHost, LogPeer
from peers import Peer, dial
from unix_transport import UnixLink, UnixPeer, UnixSource

from tiledbroker import JetStreamPublisher, ZMQPublisher
from tiledbroker.jetstream import LogAddress
from tiledbroker.publisher._jetstream_link import JetStreamLink
from tiledbroker.publisher._link import Link
from tiledbroker.publisher._publisher import SpoolPublisher
from tiledbroker.publisher._zmq_link import ZMQLink
from tiledbroker.supervisor import ClientLimits, Frontend, Source
from tiledbroker.supervisor.jetstream_source import JetStreamSource
from tiledwriter.testing import free_port


class Transport:
    """Links and sources over one transport, each at an address of its own.

    Parameters
    ----------
    directory
        Where sockets and files may be made.

    Attributes
    ----------
    is_wire
        True if publishers and ingest hosts are connected to each other, and know when the other end is gone.
    absence
        Problem of a link to an address at which nobody listens.
    """

    link: Callable[[str], Link]
    source: Callable[[str, ClientLimits], Source]
    is_wire = True
    absence = "nothing is listening there"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0

    def new_address(self) -> str:
        """An address at which nobody listens."""
        self._count += 1
        return str(self._directory / f"socket-{self._count}")

    def new_site(self) -> str:
        """An address at which an ingest host may be started."""
        return self.new_address()

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

    def close(self) -> None:
        """End all processes."""


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


class OverJetStream(Transport):
    """A site's log on one node, for each site."""

    is_wire = False
    absence = "no server of"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._sites = ExitStack()

    def link(self, address: str) -> Link:
        return JetStreamLink(LogAddress.parse(address), BEAMLINE)

    def source(self, address: str, limits: ClientLimits) -> Source:
        return JetStreamSource(LogAddress.parse(address), limits, keep_in_log=0.0)

    def new_address(self) -> str:
        return f"nats://127.0.0.1:{free_port()}"

    def new_site(self) -> str:
        return str(self._make_site().address)

    def publisher(self, address: str, **options: Any) -> SpoolPublisher:
        return JetStreamPublisher(address, beamline=BEAMLINE, **options)

    def ingest_host(self) -> IngestHost:
        return LogIngestHost(self._make_site())

    @contextmanager
    def peer(self, address: str) -> Iterator[Peer]:
        with LogPeer(LogAddress.parse(address)) as peer:
            yield peer

    def close(self) -> None:
        self._sites.close()

    def _make_site(self) -> LogSite:
        self._count += 1
        return self._sites.enter_context(LogSite(self._directory / f"log-{self._count}"))


WIRES = {"zeromq": OverZeroMQ, "unix": OverUnixSockets}
TRANSPORTS = {**WIRES, "jetstream": OverJetStream}
