"""An ingest host that has its journals in memory: what a source is told by a supervisor, without workers."""

from __future__ import annotations

import select
import threading
from dataclasses import dataclass, field

from tiledbroker.protocol import messages
from tiledbroker.supervisor import Source
from tiledbroker.supervisor._publishers import Publisher


@dataclass
class MemoryJournal:
    """The documents of a run: name and checksum of each."""

    documents: list[tuple[str, int]] = field(default_factory=list)
    ended: bool = False
    outcome: str = ""

    def state(self) -> messages.RunState:
        if not self.documents:
            return messages.RunState(0, ended=False, outcome="")
        end_crc = self.documents[-1][1] if self.ended else None
        return messages.RunState(len(self.documents), self.ended, self.outcome, "", self.documents[0][1], end_crc)


class MemoryHost:
    """Takes documents of a source in a thread, and answers as a supervisor does.

    Parameters
    ----------
    source
        The source, which is not open yet.
    journals
        What the host has already; those of an earlier one.

    Attributes
    ----------
    journals
        The journals, by uid.
    received
        Indexes of all documents that have come, by uid.
    is_refusing
        Refuse documents, as for a full disk.
    is_silent
        Take documents without an answer.
    """

    def __init__(self, source: Source, journals: dict[str, MemoryJournal] | None = None) -> None:
        self.journals = {} if journals is None else journals
        self.received: dict[str, list[int]] = {}
        self.is_refusing = False
        self.is_silent = False
        self.hellos: list[messages.Hello] = []
        self._source = source
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="tiledbroker-memory-host")

    def __enter__(self) -> MemoryHost:
        self._source.open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping = True
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._source.close()

    def _run(self) -> None:
        pollable = self._source.pollable
        assert isinstance(pollable, int)
        while not self._is_stopping:
            select.select([pollable], [], [], 0.05)
            for publisher, message in self._source.receive():
                self._take(publisher, message)

    def _take(self, publisher: Publisher, message: messages.Message) -> None:
        match message:
            case messages.Hello():
                self.hellos.append(message)
                states = {uid: self.journals.get(uid, MemoryJournal()).state() for uid in message.runs}
                self._source.send(publisher, messages.Welcome(2**23, 2**28, states))
            case messages.Documents():
                self.received.setdefault(message.run, []).extend(range(message.first, message.next))
                self._take_documents(publisher, message)
            case messages.Abandoned():
                journal = self.journals.setdefault(message.run, MemoryJournal())
                if len(journal.documents) < message.length:
                    self._refuse(publisher, message.run, len(journal.documents), messages.GAP)
                    return
                journal.ended, journal.outcome = True, "interrupted"
                self._tell(publisher, message.run, journal)

    def _take_documents(self, publisher: Publisher, message: messages.Documents) -> None:
        if self.is_silent:
            return
        journal = self.journals.setdefault(message.run, MemoryJournal())
        length = len(journal.documents)
        if self.is_refusing:
            self._refuse(publisher, message.run, length, messages.LATER, "the disk is full")
        elif message.first > length:
            self._refuse(publisher, message.run, length, messages.GAP)
        elif message.first == 0 and length and journal.documents[0][1] != message.crcs[0]:
            self._refuse(publisher, message.run, 0, messages.ANOTHER_RUN)
        else:
            records = list(zip(message.names, message.crcs, strict=True))
            journal.documents += records[length - message.first :]
            if journal.documents[-1][0] == "stop":
                journal.ended, journal.outcome = True, "written"
            self._tell(publisher, message.run, journal)

    def _tell(self, publisher: Publisher, uid: str, journal: MemoryJournal) -> None:
        self._source.send(publisher, messages.Durable(uid, len(journal.documents), journal.ended))
        if journal.outcome:
            self._source.send(publisher, messages.Written(uid, journal.outcome, ""))

    def _refuse(self, publisher: Publisher, uid: str, index: int, reason: str, detail: str = "") -> None:
        self._source.refuse("test", publisher, messages.Refused(uid, index, reason, detail))
