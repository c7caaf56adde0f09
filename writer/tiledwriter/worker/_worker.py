"""A worker process: takes one run's documents into its journal, acknowledges them, and has them written to Tiled.

It is an actor: its mailbox is a socket to the supervisor, its state is the journal. Taking in never waits for Tiled.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq

from tiledbroker import Journal, JournalInvalid, ProtocolError, Record
from tiledbroker._crash_points import crash_point
from tiledbroker._filesystem import explain_write_error
from tiledbroker._limited import LimitedLog
from tiledbroker.protocol import messages
from tiledbroker.supervisor import WorkerTask

from .._logging import LogOptions
from ..catalog import Client
from ..mapping import WritingOptions
from ._processes import Processes
from ._writing import FAILED, RunWriting

log = logging.getLogger(__name__)

LOCK_TIMEOUT: Final = 10.0  # seconds for the worker of a supervisor that was killed to let go of the journal
MAX_TAKEN: Final = 32 * 2**20
DISK_PAUSE: Final = 1.0
STOP_TIMEOUT: Final = 5.0
ORPHAN_TIMEOUT: Final = 1.0
_SWITCH_INTERVAL: Final = 5e-4  # seconds for which a thread that computes lets the one that journals wait
PARK_AFTER: Final = 10.0
ORPHANED: Final = 3  # exit code


@dataclass(frozen=True)
class TiledAddress:
    """Which Tiled to write to: a URI, or a profile of Tiled's client. Credentials as Tiled's client takes them.

    `headers` go with every request, besides those of the profile; they may be secrets, and are not shown.
    `api_key_file` holds the API key, and is read at each connection.
    """

    uri: str | None = None
    profile: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    api_key_file: Path | None = None

    def connect(self) -> Client:
        """A container client; fails at once where Tiled's own client would try again for long."""
        import tiled.client
        import tiled.client.utils

        tiled.client.utils.TILED_RETRY_ATTEMPTS = 1
        # The client changes the dict that it is given.
        given: dict[str, Any] = {"headers": {**self._profile_headers(), **self.headers}} if self.headers else {}
        if self.api_key_file is not None:
            given["api_key"] = self.api_key_file.read_text().strip()
        client: Client = (
            tiled.client.from_uri(self.uri, **given)
            if self.uri is not None
            else tiled.client.from_profile(self.profile, **given)
        )
        return client

    def _profile_headers(self) -> dict[str, str]:
        """Headers of the profile that are not given here: what is given to the client takes the place of all."""
        from tiled.profiles import load_profiles

        if self.profile is None:
            return {}
        _, content = load_profiles().get(self.profile, (None, {}))
        given = {name.lower() for name in self.headers}
        return {name: value for name, value in (content.get("headers") or {}).items() if name.lower() not in given}


@dataclass(frozen=True)
class WorkerOptions:
    """Everything about a worker that does not depend on its run.

    `park_after` is for how many seconds it waits for Tiled when there is nothing else to do.
    """

    tiled: TiledAddress
    writing: WritingOptions = field(default_factory=WritingOptions)
    logging: LogOptions = field(default_factory=LogOptions)
    park_after: float = PARK_AFTER


def run_worker(task: WorkerTask, *, options: WorkerOptions) -> None:
    """What a worker process runs."""
    # Ctrl-C and systemd signal every process of a group; the supervisor tells a worker when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    options.logging.configure(worker=task.run_uid)
    Worker(task, options).run()


class Worker:
    """See the module."""

    def __init__(self, task: WorkerTask, options: WorkerOptions) -> None:
        self._task = task
        self._connect: Callable[[], Client] = options.tiled.connect
        self._options = options.writing
        self._park_after = options.park_after
        self._outbox: queue.SimpleQueue[messages.Message] = queue.SimpleQueue()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_sender.setblocking(False)
        self._writing_ended = False
        self._failed = False
        self._finishing = False
        self._disk_problem = ""
        self._disk_problem_until = 0.0  # documents that are refused meanwhile are refused for that
        self._limited = LimitedLog(log)

    def run(self) -> None:
        """Work until the run is complete or parked, or the supervisor says stop, or is gone."""
        context = zmq.Context()
        self._mailbox = context.socket(zmq.DEALER)
        self._mailbox.setsockopt(zmq.ROUTING_ID, self._task.token)
        self._mailbox.setsockopt(zmq.RCVHWM, 0)  # bounded by the publisher's window
        self._mailbox.setsockopt(zmq.SNDHWM, 0)  # a few bytes each, and never to be waited for
        self._mailbox.connect(self._task.mailbox)
        try:
            journal = self._open_journal()
            if journal is None:
                return
            with journal:
                self._journal = journal
                self._writing = RunWriting(
                    journal,
                    self._connect,
                    self._options,
                    drain=self._task.drain,
                    on_progress=self._on_progress,
                    on_reached=self._on_reached,
                    on_end=self._on_end,
                )
                self._serve()
        finally:
            context.destroy(linger=500)
            self._wake_receiver.close()
            self._wake_sender.close()

    def _open_journal(self) -> Journal | None:
        """The run's journal; on a disk that is full, as soon as there is space. None if told to end before that."""
        while True:
            try:
                journal = Journal(self._task.journal, "create", run_uid=self._task.run_uid, lock_timeout=LOCK_TIMEOUT)
                crash_point("worker: journal made")
                try:
                    self._sign(journal)
                except BaseException:
                    journal.close()
                    raise
            except (sqlite3.OperationalError, OSError) as error:
                self._note_disk_problem(self._task.journal, error)
                self._refuse_documents(0)
                if self._told_to_end(DISK_PAUSE):
                    return None
            else:
                return journal

    def _sign(self, journal: Journal) -> None:
        """Note who writes the journal: should this process hang when its supervisor is gone, the next one ends it."""
        with journal.atomic():
            if self._task.order and journal.get("arrived") is None:
                journal.set("arrived", self._task.order)
            if self._task.client:
                journal.set("client", self._task.client)
            journal.set("worker", Processes().identity(os.getpid()))
            journal.note("worker started", pid=os.getpid(), documents=journal.length)

    def _told_to_end(self, timeout: float) -> bool:
        """Wait, without a journal to store documents in; none are sent before this worker says that it is ready."""
        poller = self._make_poller()
        deadline = time.monotonic() + timeout
        while (patience := deadline - time.monotonic()) > 0:
            events = dict(poller.poll(int(1000 * patience) + 1))
            if self._task.lifeline in events:
                os._exit(ORPHANED)
            if self._mailbox in events:
                message = messages.decode(self._mailbox.recv_multipart(zmq.NOBLOCK))
                if isinstance(message, messages.Finish):
                    return True
                self._answer(message)
        return False

    def _make_poller(self) -> zmq.Poller:
        """For messages of the supervisor, and for its end."""
        poller = zmq.Poller()
        poller.register(self._mailbox, zmq.POLLIN)
        if self._task.lifeline >= 0:
            poller.register(self._task.lifeline, zmq.POLLIN)
        return poller

    def _serve(self) -> None:
        self._send(messages.Ready(self._task.run_uid, self._journal.length, self._journal.ended))
        if (outcome := self._journal.get("outcome")) == FAILED:
            self._on_end(outcome, self._journal.get("reason", ""))
        else:
            self._writing.start()
        poller = self._make_poller()
        poller.register(self._wake_receiver.fileno(), zmq.POLLIN)
        while not self._done():
            events = dict(poller.poll(int(1000 * DISK_PAUSE)))
            if self._task.lifeline in events:
                self._end_as_orphan()
            if self._mailbox in events:
                self._take_in()
            if self._wake_receiver.fileno() in events:
                self._wake_receiver.recv(4096)
            self._post()
            self._finishing = self._finishing or self._is_to_be_parked()
        self._writing.stop(STOP_TIMEOUT)
        self._post()

    def _done(self) -> bool:
        if self._finishing:
            return True
        if not self._writing_ended:
            return False
        return not self._failed or self._journal.ended or self._task.drain

    def _is_to_be_parked(self) -> bool:
        """Whether all that is left to do is to wait for Tiled, which needs no process."""
        since = self._writing.away_since
        if since is None or time.monotonic() - since < self._park_after:
            return False
        if not (self._journal.ended or self._task.drain):
            return False
        log.info("Tiled is away, and all of the run is journaled: it is parked.")
        with contextlib.suppress(sqlite3.OperationalError):  # a full disk
            self._journal.note("parked", documents=self._journal.length)
        return True

    def _end_as_orphan(self) -> None:
        """The supervisor is gone. Its successor wants the journal; everything acknowledged is in it."""
        log.warning("The supervisor is gone; this worker ends.")
        self._writing.stop(ORPHAN_TIMEOUT)
        os._exit(ORPHANED)  # a request may still be under way in the other thread; its intent is in the journal

    # The mailbox

    def _take_in(self) -> None:
        """Store everything that has arrived as one transaction, then acknowledge it."""
        arrived: list[messages.Documents] = []
        end: messages.Abandoned | None = None
        size = 0
        while size < MAX_TAKEN:
            try:
                message = messages.decode(self._mailbox.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
            except ProtocolError as error:
                self._limited.log(logging.ERROR, "protocol", "The supervisor sent something else: %s", error)
                continue
            if isinstance(message, messages.Documents):
                arrived.append(message)
                size += len(message.body)
            elif isinstance(message, messages.Abandoned):
                end = message
            elif isinstance(message, messages.Finish):
                self._finishing = True
            else:
                self._answer(message)
        if not (arrived or end):
            return
        try:
            stored, gap = self._store(arrived, end)
        except JournalInvalid as error:
            self._send(messages.Refused(self._task.run_uid, self._journal.length, str(error)))
        except sqlite3.OperationalError as error:
            # Nothing is acknowledged, so the spools keep it, and their publishers send it again later.
            self._note_disk_problem(self._journal.path, error)
            self._refuse_documents(self._journal.length)
        else:
            crash_point("worker: documents committed")
            self._send(messages.Durable(self._task.run_uid, self._journal.length, self._journal.ended))
            crash_point("worker: documents acknowledged")
            self._writing.notify(stored)
            if gap:
                self._refuse_documents(self._journal.length)

    def _store(self, arrived: list[messages.Documents], end: messages.Abandoned | None) -> tuple[list[Record], bool]:
        """Store what continues the journal: which documents that was, and whether others were left out for a gap."""
        stored: list[Record] = []
        with self._journal.atomic():
            for message in arrived:
                if message.first > self._journal.length:
                    return stored, True
                stored += self._journal.admit(message.first, list(message.unpack()))
            # Whoever says that the run has ended has to know all of it.
            if end is not None and end.length == self._journal.length and not self._journal.ended:
                self._journal.set("abandoned", True)
                self._journal.note("abandoned", documents=self._journal.length)
        return stored, end is not None and end.length > self._journal.length

    def _note_disk_problem(self, path: Path, error: sqlite3.Error | OSError) -> None:
        self._limited.log(logging.ERROR, "disk", "%s cannot be written: %s", path, error)
        self._disk_problem = explain_write_error(path, error)
        self._disk_problem_until = time.monotonic() + DISK_PAUSE

    def _refuse_documents(self, index: int) -> None:
        """Have documents from an index on sent again: at once, or after a pause if the disk does not take them."""
        if time.monotonic() < self._disk_problem_until:
            refusal = messages.Refused(self._task.run_uid, index, messages.LATER, self._disk_problem)
        else:
            refusal = messages.Refused(self._task.run_uid, index, messages.GAP)
        self._send(refusal)

    def _answer(self, message: messages.Message) -> None:
        """Show that this process does not hang."""
        if isinstance(message, messages.Ping):
            self._send(messages.Pong(message.token))

    def _send(self, message: messages.Message) -> None:
        self._mailbox.send_multipart(messages.encode(message))

    # From the writing thread

    def _on_progress(self, index: int) -> None:
        self._tell(messages.Progress(self._task.run_uid, index))

    def _on_reached(self) -> None:
        self._tell(messages.Reached(self._task.run_uid))

    def _on_end(self, outcome: str, reason: str) -> None:
        self._failed = outcome == FAILED
        if outcome:
            self._tell(messages.Written(self._task.run_uid, outcome, reason))
        self._writing_ended = True

    def _tell(self, message: messages.Message) -> None:
        self._outbox.put(message)
        with contextlib.suppress(OSError):  # it is awake, or the process ends
            self._wake_sender.send(b"\0")

    def _post(self) -> None:
        while True:
            try:
                message: Any = self._outbox.get_nowait()
            except queue.Empty:
                return
            self._send(message)
