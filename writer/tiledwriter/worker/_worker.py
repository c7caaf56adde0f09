"""The worker process: journals one run's documents, acknowledges them, and has them written to Tiled.

Its input is a socket to the supervisor, its state is the journal. Intake never waits for Tiled.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import sqlite3
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import zmq

from tiledbroker import Journal, JournalInvalid, ProtocolError, Record
from tiledbroker._crash_points import crash_point
from tiledbroker._filesystem import explain_write_error
from tiledbroker._outcomes import COMPLETE, FAILED
from tiledbroker._rate_limited_log import RateLimitedLog
from tiledbroker._wake_up import WakeUp
from tiledbroker.jetstream import JetStreamDecisionStore, LogAddress
from tiledbroker.ownership import DeadlinePage, DecisionFile, DecisionStore, boottime
from tiledbroker.protocol import messages
from tiledbroker.supervisor import WorkerTask

from .._logging import LogOptions
from ..catalog import Client, KnownServer
from ..mapping import WritingOptions
from ._key_page import KeyPage, PageAuth
from ._plugin_modules import forget_changed_plugins, preload_plugins
from ._processes import Processes
from ._reporter import Reporter
from ._run_outage import RunOutage
from ._server_page import LearntServer, ServerPage
from ._write_slot import WriteSlot
from ._writing import RunWriting

log = logging.getLogger(__name__)

# Seconds to wait until the worker of a killed supervisor releases the journal.
LOCK_TIMEOUT_SECONDS: Final = 10.0
MAX_TRANSACTION_BYTES: Final = 32 * 2**20
REFUSAL_AFTER_DISK_FULL_SECONDS: Final = 1.0
REQUEST_TIMEOUT_AT_STOP_SECONDS: Final = 5.0
# A worker without a supervisor must end within 2 s: the next supervisor waits for its journal.
REQUEST_TIMEOUT_OF_ORPHAN_SECONDS: Final = 1.0
# With the default of 5 ms, the main thread would wait for the GIL too long while the writing thread computes.
_SWITCH_INTERVAL_SECONDS: Final = 5e-4
PARK_AFTER_SECONDS: Final = 10.0
PROGRESS_SECONDS: Final = 1.0
"""Time for which progress waits for another message to the supervisor, so that it wakes neither process by itself."""

ORPHANED_EXIT_CODE: Final = 3


@cache
def load_certificates() -> ssl.SSLContext:
    """Return the certificate authorities that httpx trusts.

    Reading them takes 30 ms, and each client would do so twice. A process that workers are forked from does it for all.
    """
    import httpx

    return httpx.create_ssl_context()


@dataclass(frozen=True)
class OpenedServer:
    """A connection to Tiled: the HTTP context of its client, and the path of a container that may not exist."""

    context: Any
    path_parts: tuple[str, ...]


@dataclass(frozen=True)
class _LearntVersion:
    """What `Connection` reads of a server's information."""

    library_version: str


@dataclass(frozen=True)
class _LearntContext:
    """What `Connection` reads of the HTTP context of Tiled's client."""

    http_client: Any
    api_uri: str
    server_info: _LearntVersion


@dataclass(frozen=True)
class TiledAddress:
    """Address of the Tiled server: a URI, or a profile of Tiled's client. Credentials are those of Tiled's client.

    Attributes
    ----------
    uri
        URI of the container to write into; None for that of `profile`.
    profile
        Name of a profile of Tiled's client, which says all else. The URI wins over that of the profile.
    headers
        HTTP headers of every request, in addition to those of the profile. They may be secrets, so `repr` omits them.
    api_key_file
        File with the API key, which is read at each connection.
    key_page
        Where the supervisor says which API key its workers use; None to use the credentials above.
    server_page
        Where workers say what they have learnt of the server; None if there are no others.
    """

    uri: str | None = None
    profile: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    api_key_file: Path | None = None
    key_page: KeyPage | None = None
    server_page: ServerPage | None = None

    def connect(self) -> Client:
        """Return a client for the server that another worker has connected to lately, or else connect.

        For what it raises see `connect_anew`.
        """
        uri = self._find_shared_uri()
        own_key = None if self.key_page is None else self.key_page.find_key()
        key = own_key or self._find_configured_key()
        if self.server_page is None or uri is None or key is None:
            return self.connect_anew()
        with self.server_page.learning(uri) as learnt:
            return self.connect_anew() if learnt is None else self._make_client(learnt, key, renews=own_key is not None)

    def connect_anew(self) -> Client:
        """Connect, tell other workers what Tiled says, and return a container client.

        It fails at once where Tiled's own client would retry for long.

        Raises
        ------
        OSError
            The API key file cannot be read.
        NotProcessed
            The supervisor has not said yet which key to use.
        Exception
            Whatever Tiled's client raises.
        """
        import tiled.client
        import tiled.client.utils

        own_key = None if self.key_page is None else self.key_page.find_key()
        key = own_key or self._read_key_file()

        tiled.client.utils.TILED_RETRY_ATTEMPTS = 1
        began = time.monotonic()
        given = self._certificates()
        if self.headers:
            # A new dict, because the client changes it.
            given["headers"] = self.all_headers()
        if key is not None:
            given["api_key"] = key
        client: Client = (
            tiled.client.from_uri(self.uri, **given)
            if self.profile is None
            else tiled.client.from_profile(self.profile, **given, **({} if self.uri is None else {"uri": self.uri}))
        )
        if self.key_page is not None and own_key is not None:
            client.context.http_client.auth = PageAuth(self.key_page)
        uri = self._find_shared_uri()
        if self.server_page is not None and uri is not None:
            context = client.context
            version = str(context.server_info.library_version)
            self.server_page.publish(
                LearntServer(uri, str(context.api_uri), list(client.path_parts), version, learnt_at=began)
            )
        return client

    def _find_shared_uri(self) -> str | None:
        """Return the configured address; None if it has an API key, or none can be used."""
        profile = self._read_profile()
        uri: str | None = profile.get("uri") if self.uri is None else self.uri
        # A profile that is gone is for Tiled's client to report.
        if (self.profile is not None and not profile) or uri is None:
            return None
        return None if "api_key" in parse_qs(urlsplit(uri).query) else uri

    def _find_configured_key(self) -> str | None:
        """Return the configured API key that Tiled's client would use; None if there is none."""
        return self._read_key_file() or os.environ.get("TILED_API_KEY")

    def _read_key_file(self) -> str | None:
        """Return the API key in the file; None if no file is given."""
        return None if self.api_key_file is None else self.api_key_file.read_text().strip()

    def _make_client(self, learnt: LearntServer, key: str, *, renews: bool) -> KnownServer:
        """Return a client that sends what Tiled's client would send; with `renews`, the key is that of the page."""
        import httpx
        from tiled.client.context import USER_AGENT
        from tiled.client.transport import Transport

        http_client = httpx.Client(
            transport=Transport(**self._certificates()),
            headers={"User-Agent": USER_AGENT, **self.all_headers(), "Authorization": f"Apikey {key}"},
        )
        if self.key_page is not None and renews:
            http_client.auth = PageAuth(self.key_page)
        context = _LearntContext(http_client, learnt.api_uri, _LearntVersion(learnt.version))
        return KnownServer(context, tuple(learnt.path_parts), self.connect_anew)

    def open(self, timeout: float) -> Client:
        """Connect without reading a node, and without asking anybody for credentials.

        Parameters
        ----------
        timeout
            Seconds that Tiled may take for an answer.

        Returns
        -------
        Client
            The HTTP context, and the path of the container to write into, which may not exist.

        Raises
        ------
        OSError
            The API key file cannot be read.
        Exception
            Whatever Tiled's client raises.
        """
        import httpx
        import tiled.client.utils
        from tiled.client.context import Context
        from tiled.profiles import load_profiles

        tiled.client.utils.TILED_RETRY_ATTEMPTS = 1
        profile = {} if self.profile is None else load_profiles()[self.profile][1]
        if "direct" in profile:
            return self.connect()
        given = self._certificates()
        given["headers"] = self.all_headers()
        if (key := self._read_key_file()) is not None:
            given["api_key"] = key
        uri = profile["uri"] if self.uri is None else self.uri
        context, path_parts = Context.from_any_uri(uri, timeout=httpx.Timeout(timeout), **given)
        if not context.authenticated and context.server_info.authentication.providers:
            context.use_cached_tokens()
        return OpenedServer(context, tuple(path_parts))

    def _read_profile(self) -> Mapping[str, Any]:
        """Return the content of the profile, if there is one."""
        if self.profile is None:
            return {}
        from tiled.profiles import load_profiles

        content: Mapping[str, Any] = load_profiles().get(self.profile, (None, {}))[1]
        return content

    def _certificates(self) -> dict[str, Any]:
        """Return what the profile says of certificates, or the authorities to trust, as an option of Tiled's client."""
        content = self._read_profile()
        return {"verify": content["verify"] if "verify" in content else load_certificates()}

    def all_headers(self) -> dict[str, str]:
        """Return the headers, with those of the profile that they do not override: a client takes either."""
        given = {name.lower() for name in self.headers}
        of_profile = self._read_profile().get("headers") or {}
        return {**{name: value for name, value in of_profile.items() if name.lower() not in given}, **self.headers}


@dataclass(frozen=True)
class WorkerOptions:
    """Options of a worker that do not depend on its run.

    Attributes
    ----------
    tiled
        The Tiled server to write to.
    writing
        Options for writing runs.
    logging
        Level and format of the log.
    park_after
        Seconds without Tiled after which a worker with nothing else to do ends.
    decisions
        Directory, or site's log, where other hosts find the decisions about runs; None if there are no such hosts.
    """

    tiled: TiledAddress
    writing: WritingOptions = field(default_factory=WritingOptions)
    logging: LogOptions = field(default_factory=LogOptions)
    park_after: float = PARK_AFTER_SECONDS
    decisions: Path | LogAddress | None = None


def prepare_workers(options: WorkerOptions) -> None:
    """Prepare the process that workers are forked from, after it has imported this package.

    Raises
    ------
    PluginError
        A plugin cannot be used.
    """
    preload_plugins(options.writing.plugins)
    options.writing.plugins.check(options.writing.spec_to_mimetype)


def run_worker(task: WorkerTask, *, options: WorkerOptions) -> None:
    """Run a worker in this process until it ends.

    Parameters
    ----------
    task
        The run, its journal, and the supervisor's socket.
    options
        Options that do not depend on the run.
    """
    # Ctrl-C and systemd signal every process of a group, but only the supervisor tells a worker to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    options.logging.configure(worker=task.run_uid)
    forget_changed_plugins(options.writing.plugins)
    Worker(task, options).run()


def _open_decisions(place: Path | LogAddress | None, task: WorkerTask) -> DecisionStore | None:
    if isinstance(place, LogAddress):
        return JetStreamDecisionStore(place, task.run_uid)
    return None if place is None else DecisionFile(place / f"{task.journal.stem}.json")


class Worker:
    """Intake of one run in the main thread: receives, journals and acknowledges documents."""

    def __init__(self, task: WorkerTask, options: WorkerOptions) -> None:
        self._task = task
        self._connect: Callable[[], Client] = options.tiled.connect
        self._options = options.writing
        self._park_after = options.park_after
        self._decision_store = _open_decisions(options.decisions, task)
        self._outbox: queue.SimpleQueue[messages.Message] = queue.SimpleQueue()
        self._wake_up = WakeUp()
        self._lease = None if task.lease_page is None else DeadlinePage.open(task.lease_page)
        self._write_slot = WriteSlot(task.run_uid, self._queue_message, self._lease)
        # Number of documents in Tiled; that which the supervisor was told last, and when (`time.monotonic`).
        self._written = self._told_written = 0
        self._told_written_at = float("-inf")
        self._writing_ended = False
        self._failed = False
        self._finishing = False
        self._disk_problem = ""
        # Time until which documents are refused because of the disk problem.
        self._disk_problem_until = 0.0
        self._limited_log = RateLimitedLog(log)

    def run(self) -> None:
        """Work until the run is complete or parked, the supervisor says Finish, or the supervisor is gone."""
        context = zmq.Context()
        self._mailbox = context.socket(zmq.DEALER)
        self._mailbox.setsockopt(zmq.ROUTING_ID, self._task.token)
        # The publisher's window bounds the queue.
        self._mailbox.setsockopt(zmq.RCVHWM, 0)
        # These messages are a few bytes each, and sending must never block.
        self._mailbox.setsockopt(zmq.SNDHWM, 0)
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
                    on_unreachable=self._on_unreachable,
                    on_end=self._on_end,
                    write_slot=self._write_slot,
                    decision_store=self._decision_store,
                )
                self._reporter = Reporter(journal, self._writing)
                self._serve_run()
        finally:
            context.destroy(linger=500)
            self._wake_up.close()

    def _open_journal(self) -> Journal | None:
        """Open the run's journal, waiting for disk space if needed; return None if told to end before."""
        while True:
            try:
                journal = Journal(
                    self._task.journal, "create", run_uid=self._task.run_uid, lock_timeout=LOCK_TIMEOUT_SECONDS
                )
                crash_point("worker: journal made")
                try:
                    self._record_process(journal)
                except BaseException:
                    journal.close()
                    raise
            except (sqlite3.OperationalError, OSError) as error:
                self._note_disk_problem(self._task.journal, error)
                self._refuse_documents(0)
                if self._wait_for_finish(REFUSAL_AFTER_DISK_FULL_SECONDS):
                    return None
            else:
                return journal

    def _record_process(self, journal: Journal) -> None:
        """Record this process in the journal, so that the next supervisor can kill it if it hangs as an orphan."""
        with journal.atomic():
            if self._task.order and journal.get("arrived") is None:
                journal.set("arrived", self._task.order)
            if self._task.client:
                journal.set("client", self._task.client)
            journal.set("worker", Processes().identity(os.getpid()))
            if not RunOutage(journal).note_worker():
                journal.note("worker started", pid=os.getpid(), documents=journal.length)

    def _wait_for_finish(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds; return whether the supervisor said Finish.

        There is no journal yet to store documents in, but the supervisor sends none before this worker is ready.
        """
        poller = self._make_poller()
        deadline = time.monotonic() + timeout
        while (patience := deadline - time.monotonic()) > 0:
            events = dict(poller.poll(int(1000 * patience) + 1))
            if self._task.lifeline in events or self._has_lost_lease():
                os._exit(ORPHANED_EXIT_CODE)
            if self._mailbox in events:
                message = messages.decode(self._mailbox.recv_multipart(zmq.NOBLOCK))
                if isinstance(message, messages.Finish):
                    return True
                self._answer_ping(message)
        return False

    def _make_poller(self) -> zmq.Poller:
        """Return a poller for the supervisor's messages and for its end."""
        poller = zmq.Poller()
        poller.register(self._mailbox, zmq.POLLIN)
        if self._task.lifeline >= 0:
            poller.register(self._task.lifeline, zmq.POLLIN)
        return poller

    def _serve_run(self) -> None:
        self._send_message(messages.Ready(self._task.run_uid, self._journal.length, self._journal.ended))
        if (outcome := self._journal.get("outcome")) == FAILED:
            self._on_end(outcome, self._journal.get("reason", ""))
        else:
            self._writing.start()
        poller = self._make_poller()
        poller.register(self._wake_up.fileno(), zmq.POLLIN)
        while not self._is_done():
            events = dict(poller.poll(int(1000 * REFUSAL_AFTER_DISK_FULL_SECONDS)))
            self._look_after_journal()
            if self._task.lifeline in events:
                self._end_as_orphan("The supervisor is gone")
            if self._has_lost_lease():
                self._end_as_orphan("The lease of this host is over, so another one may serve")
            if self._mailbox in events:
                self._take_in()
            if self._wake_up.fileno() in events:
                self._wake_up.clear()
            self._send_queued()
            self._send_report()
            self._finishing = self._finishing or self._is_to_be_parked()
        self._writing.stop(REQUEST_TIMEOUT_AT_STOP_SECONDS)
        self._look_after_journal()
        self._send_queued()
        self._send_report(last=True)

    def _is_done(self) -> bool:
        if self._finishing:
            return True
        if not self._writing_ended:
            return False
        return not self._failed or self._journal.ended or self._task.drain

    def _is_to_be_parked(self) -> bool:
        """Return whether only Tiled's absence keeps the run from being written, which needs no process."""
        since = self._writing.unavailable_since
        if since is None or time.monotonic() - since < self._park_after:
            return False
        if not (self._journal.ended or self._task.drain):
            return False
        log.debug("Tiled is unavailable and the whole run is journaled; the run is parked.")
        # A full disk must not prevent this.
        with contextlib.suppress(sqlite3.OperationalError):
            RunOutage(self._journal).note_parking()
        return True

    def _has_lost_lease(self) -> bool:
        return self._lease is not None and self._lease.seconds_left(boottime()) <= 0.0

    def _end_as_orphan(self, why: str) -> None:
        """End at once: a successor of the supervisor writes the run, from this journal or one that it gets anew."""
        log.warning("%s; this worker ends.", why)
        self._writing.stop(REQUEST_TIMEOUT_OF_ORPHAN_SECONDS)
        # The writing thread may still have a request in flight; its intent is recorded in the journal.
        os._exit(ORPHANED_EXIT_CODE)

    def _take_in(self) -> None:
        """Store everything that has arrived in one transaction, then acknowledge it."""
        arrived: list[messages.Documents] = []
        end: messages.Abandoned | None = None
        size = 0
        while size < MAX_TRANSACTION_BYTES:
            try:
                message = messages.decode(self._mailbox.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
            except ProtocolError as error:
                self._limited_log.log(logging.ERROR, "protocol", "The supervisor sent an invalid message: %s", error)
                continue
            if isinstance(message, messages.Documents):
                arrived.append(message)
                size += len(message.body)
            elif isinstance(message, messages.Abandoned):
                end = message
            elif isinstance(message, messages.Finish):
                self._finishing = True
            elif isinstance(message, messages.SlotGranted | messages.SlotRecalled):
                self._write_slot.receive(message)
            else:
                self._answer_ping(message)
        if not (arrived or end):
            return
        acknowledged = self._journal.length
        try:
            stored, refusal = self._store_documents(arrived, end)
            self._keep_journal_in_place()
        except JournalInvalid as error:
            self._send_message(messages.Refused(self._task.run_uid, acknowledged, str(error)))
        except (sqlite3.OperationalError, OSError) as error:
            # Nothing is acknowledged, so the spools keep the documents, and their publishers send them again later.
            self._note_disk_problem(self._journal.path, error)
            self._refuse_documents(acknowledged)
        else:
            crash_point("worker: documents committed")
            self._send_progress()
            self._send_message(messages.Durable(self._task.run_uid, self._journal.length, self._journal.ended))
            crash_point("worker: documents acknowledged")
            self._writing.notify(stored)
            if refusal == messages.GAP:
                self._refuse_documents(self._journal.length)
            elif refusal:
                self._send_message(messages.Refused(self._task.run_uid, self._journal.length, refusal))

    def _store_documents(
        self, arrived: list[messages.Documents], end: messages.Abandoned | None
    ) -> tuple[list[Record], str]:
        """Store the documents that continue the journal; return them, and why others are refused, or ""."""
        stored: list[Record] = []
        refusal = ""
        with self._journal.atomic():
            if self._writing.has_concluded:
                # This worker ends. The next one, which documents bring about, writes them.
                return stored, messages.GAP if any(each.next > self._journal.length for each in arrived) else ""
            for message in arrived:
                refusal = self._find_refusal(message)
                if refusal:
                    break
                stored += self._journal.append_verified(message.first, list(message.unpack()))
            if stored and self._journal.get("outcome") in COMPLETE:
                # Otherwise whoever reads the journal before these documents are written takes the run for complete.
                self._journal.set("outcome", None)
                if self._journal.get("audit_at") is not None:
                    self._journal.set("late_audit", True)
                self._journal.set("audit_at", None)
            # A publisher may end the run only if it knows the run's full length.
            if end is not None and end.length == self._journal.length and not self._journal.ended:
                self._journal.set("abandoned", True)
                self._journal.note("abandoned", documents=self._journal.length)
        if end is not None and end.length > self._journal.length:
            refusal = refusal or messages.GAP
        return stored, refusal

    def _look_after_journal(self) -> None:
        try:
            self._keep_journal_in_place()
        except (JournalInvalid, sqlite3.OperationalError, OSError) as error:
            self._note_disk_problem(self._journal.path, error)

    def _keep_journal_in_place(self) -> None:
        """Put the journal back if its file was removed or replaced: what it holds would end with this process.

        Raises
        ------
        JournalInvalid, OSError, sqlite3.OperationalError
            It cannot be put back.
        """
        if self._journal.is_in_place:
            return
        moved = self._journal.put_back()
        self._journal.note("put back", found=moved and str(moved))
        log.error(
            "Somebody has removed the journal %s of this run while it was open, or put another file in its place. "
            "It was written again, with all documents%s.",
            self._journal.path,
            f"; what was there is now {moved}" if moved else "",
        )

    def _find_refusal(self, message: messages.Documents) -> str:
        """Return why a message cannot continue the journal; "" if it can, as far as can be seen without its bodies."""
        length = self._journal.length
        if message.first > length:
            return messages.GAP
        names = message.names[length - message.first :]
        if names and (self._journal.stopped or "stop" in names[:-1]):
            return "documents came behind its stop document, with which a run ends"
        return ""

    def _note_disk_problem(self, path: Path, error: sqlite3.Error | OSError | JournalInvalid) -> None:
        self._limited_log.log(logging.ERROR, "disk", "The journal %s cannot be written: %s", path, error)
        self._disk_problem = explain_write_error(path, error)
        self._disk_problem_until = time.monotonic() + REFUSAL_AFTER_DISK_FULL_SECONDS

    def _refuse_documents(self, index: int) -> None:
        """Make the publisher send documents from an index on again: at once, or later if the disk has a problem."""
        if time.monotonic() < self._disk_problem_until:
            refusal = messages.Refused(self._task.run_uid, index, messages.LATER, self._disk_problem)
        else:
            refusal = messages.Refused(self._task.run_uid, index, messages.GAP)
        self._send_message(refusal)

    def _answer_ping(self, message: messages.Message) -> None:
        """Answer a Ping, to show that this process does not hang."""
        if isinstance(message, messages.Ping):
            self._send_message(messages.Pong(message.token))

    def _send_report(self, *, last: bool = False) -> None:
        if (report := self._reporter.next_report(time.monotonic(), last=last)) is not None:
            self._send_message(report)

    def _send_message(self, message: messages.Message) -> None:
        self._mailbox.send_multipart(messages.encode(message))

    # The writing thread calls the next five methods. A ZeroMQ socket belongs to one thread, so messages go through
    # `_outbox` to the main thread, which calls `_send_queued`.

    def _on_progress(self, index: int) -> None:
        self._written = index
        if time.monotonic() - self._told_written_at >= PROGRESS_SECONDS:
            self._wake_up.wake()

    def _on_reached(self) -> None:
        self._queue_message(messages.Reached(self._task.run_uid))

    def _on_unreachable(self, since: float, reason: str, needs_person: bool) -> None:
        self._queue_message(messages.Unreachable(self._task.run_uid, since, reason, needs_person))

    def _on_end(self, outcome: str, reason: str) -> None:
        self._failed = outcome == FAILED
        if outcome:
            self._queue_message(messages.Written(self._task.run_uid, outcome, reason))
        self._writing_ended = True

    def _queue_message(self, message: messages.Message) -> None:
        self._outbox.put(message)
        self._wake_up.wake()

    def _send_progress(self) -> None:
        """Tell how many documents are in Tiled, if that has changed."""
        written = self._written
        if written != self._told_written:
            self._told_written, self._told_written_at = written, time.monotonic()
            self._send_message(messages.Progress(self._task.run_uid, written))

    def _send_queued(self) -> None:
        self._send_progress()
        while True:
            try:
                message: Any = self._outbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(message, messages.Written):
                # First, as the supervisor would otherwise count the run as written before it knows of any request to
                # Tiled, and say that there was none.
                self._send_report(last=True)
            self._send_message(message)
