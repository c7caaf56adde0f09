"""A site's log as a transport of tests: an ingest host, and a publisher, in the hands of a test."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from ingest_host import IngestHost
from log_site import LogSite

from tiledbroker.jetstream import DOCUMENTS, STREAM, Connection, EntryReader, LogAddress, Receipt, StoredMessage
from tiledbroker.protocol import messages
from tiledbroker.publisher._jetstream_link import JetStreamLink
from tiledwriter.testing import wait_until

BEAMLINE: Final = "csx"


class LogIngestHost(IngestHost):
    """An ingest host that reads a site's log, and stores receipts."""

    def __init__(self, site: LogSite) -> None:
        super().__init__()
        self.address = str(site.address)
        self._site = site
        self._seq = 0
        self._readers: defaultdict[str, EntryReader] = defaultdict(EntryReader)
        self._receipts: dict[str, Receipt] = {}

    def close(self) -> None:
        for node in self._site.nodes:
            node.kill()

    def receive(self, seconds: float) -> messages.Message | None:
        deadline = time.monotonic() + seconds
        while True:
            found = self._site.ask(self._read_next)
            if found is not None:
                self._seq = found.seq
                entry = self._readers[found.subject].read(found.headers, found.body)
                if isinstance(entry, messages.Documents):
                    self.note_documents(entry)
                if entry is not None:
                    return entry
            elif time.monotonic() >= deadline:
                return None
            else:
                time.sleep(0.02)

    async def _read_next(self, connection: Connection) -> StoredMessage | None:
        return await connection.read_next(STREAM, f"{DOCUMENTS}.{BEAMLINE}.*", self._seq + 1)

    def say(self, message: messages.Message) -> None:
        match message:
            case messages.Durable():
                self._tell(message.run, next=message.next, ended=message.ended)
            case messages.Written():
                self._tell(message.run, outcome=message.outcome, reason=message.reason)
            case messages.Refused():
                self._tell(message.run, next=message.index, refused=message.reason)
            case _:
                raise NotImplementedError(message)

    def welcome(self, *uids: str) -> None:
        """Do nothing: a run without a receipt is one of which it has nothing."""

    def await_greeting(self) -> None:
        """Return at once: publishers connect to the log's servers."""

    def await_question(self, uid: str) -> None:
        """Return at once: receipts are stored whether somebody asks or not."""

    @contextmanager
    def ignoring(self) -> Iterator[None]:
        for node in self._site.nodes:
            os.kill(node.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for node in self._site.nodes:
                os.kill(node.pid, signal.SIGCONT)

    def _tell(self, uid: str, **values: Any) -> None:
        before = self._receipts.get(uid, Receipt(host="ingest"))
        self._receipts[uid] = msgspec.structs.replace(before, at=time.time(), **values)
        self._site.store_receipt(BEAMLINE, uid, self._receipts[uid])


class LogPeer:
    """A publisher's end of the log, with the methods of a socket."""

    def __init__(self, address: LogAddress) -> None:
        self._link = JetStreamLink(address, BEAMLINE)
        self._link.connect("")
        self._received: list[messages.Message] = []

    def __enter__(self) -> LogPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(0)

    def close(self, linger: int) -> None:
        self._link.disconnect(linger)
        self._link.close()

    def send_multipart(self, frames: list[bytes]) -> None:
        message = messages.decode(frames)
        wait_until(lambda: self._link.send(message), 60, "the message is taken")

    def poll(self, milliseconds: int) -> bool:
        deadline = time.monotonic() + milliseconds / 1000
        while not self._received and time.monotonic() < deadline:
            self._receive()
            time.sleep(0.01)
        return bool(self._received)

    def recv_multipart(self) -> list[bytes]:
        if not self.poll(60_000):
            raise TimeoutError("nothing came within a minute")
        return messages.encode(self._received.pop(0))

    def _receive(self) -> None:
        self._received += iter(self._link.receive, None)
