"""The supervisor process: relays documents from publishers to one worker process per run, and keeps workers alive.

It reads only message headers and keeps no state that is not in a journal, so it may be killed at any time.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import select
import signal
import socket
import sqlite3
import time
from pathlib import Path
from types import FrameType
from typing import Final, TypeAlias

import msgspec
import zmq

from .._crash_points import crash_point
from .._errors import DirectoryUnusable, JournalError, JournalLocked, LifecycleError, ProtocolError
from .._filesystem import network_filesystem
from .._rate_limited_log import RateLimitedLog
from ..log import FileLock, journal_filename
from ..protocol import ServerCurve, messages
from ._audit_schedule import PUT_OFF, AuditSchedule
from ._finished import Filing, bring_back, is_finished
from ._fork_server import ForkServer, WorkerProcess
from ._frontend import MESSAGES_PER_TURN, ClientLimits, Frontend, Publisher
from ._handshake_queue import HandshakeQueue
from ._lifecycle import Event, State
from ._resume_queue import ResumeQueue, catching_up
from ._retry import RetryWatch, clear_failure, retry_is_requested, withdraw_retry
from ._runs import Run, WorkerCommand, WorkerTask
from ._survey import Survey
from ._worker_monitor import FINISH_TIMEOUT, ProcessTable, WorkerLimits, WorkerMonitor

log = logging.getLogger(__name__)

DEFAULT_ADDRESS: Final = "tcp://127.0.0.1:5579"
DEFAULT_MAX_WORKERS: Final = 32
DEFAULT_MAX_RESUMED: Final = 4

# Longest wait for events in seconds, so that the periodic checks run.
_IDLE: Final = 0.5
# Seconds that workers have to end after `stop`.
_STOP_TIMEOUT: Final = 10.0
# Seconds before another attempt when a worker could not be forked.
_FORK_PAUSE: Final = 1.0
# Seconds before another check for the end of an orphan.
_ORPHAN_PAUSE: Final = 0.1
# Seconds to wait for the end of killed workers.
_KILL_TIMEOUT: Final = 2.0
# Seconds of survey before the first run is resumed, so that unfinished runs are resumed in their order.
_SURVEY_LEAD: Final = 1.0
# Bytes of a Unix socket path that fit on every system: Linux takes 107, others 103.
_LONGEST_SOCKET_PATH: Final = 100

_Socket: TypeAlias = "zmq.Socket[bytes]"


class Supervisor:
    """Relays documents from publishers to workers, and acknowledgements back.

    Parameters
    ----------
    journal_dir
        Directory with one journal per run; made if missing. Only one supervisor at a time may use it.
    command
        What a worker runs.
    listen
        ZeroMQ URL to bind; None accepts no publishers.
    drain
        Return from `run` once every journal is written.
    clients
        Limits for each client.
    curve
        Keys of the supervisor and of the allowed clients; None allows any client.
    max_workers
        Worker processes at a time. Further runs wait; their documents stay in the spools of the publishers.
    max_resumed
        How many of these workers may write what earlier workers left, after Tiled is back or the supervisor started.
    limits
        Limits of each worker.
    processes
        Access to processes. None: memory is not checked, and hanging orphans are not killed.

    Raises
    ------
    JournalLocked
        Another supervisor uses `journal_dir`.
    DirectoryUnusable
        `journal_dir` cannot be read or written, is on a network file system, or, when draining, does not exist.
    """

    def __init__(
        self,
        journal_dir: Path,
        command: WorkerCommand,
        *,
        listen: str | None = DEFAULT_ADDRESS,
        drain: bool = False,
        clients: ClientLimits = ClientLimits(),  # noqa: B008  it is frozen
        curve: ServerCurve | None = None,
        max_workers: int = DEFAULT_MAX_WORKERS,
        max_resumed: int = DEFAULT_MAX_RESUMED,
        limits: WorkerLimits = WorkerLimits(),  # noqa: B008  it is frozen
        processes: ProcessTable | None = None,
    ) -> None:
        _prepare_directory(journal_dir, make=not drain)
        self._lock = FileLock(journal_dir / ".supervisor.lock")
        self._lock.acquire()
        self.journal_dir = journal_dir
        self._command = command
        self._listen = listen
        self._drain = drain
        self._clients = clients
        self._curve = curve
        self._max_workers = max_workers
        self._runs: dict[str, Run] = {}
        self._handshake_queue = HandshakeQueue()
        # Runs that have documents for a worker, in order of arrival.
        self._waiting: dict[str, None] = {}
        # Runs with something left to write.
        self._resume_queue = ResumeQueue(max_resumed)
        # Written runs to be compared with their journals again.
        self._audit_schedule = AuditSchedule()
        self._survey = Survey(journal_dir, self._handle_surveyed_journal)
        self._retries = RetryWatch(journal_dir)
        self._filing = Filing()
        self._last_order = 0.0
        self._worker_monitor = WorkerMonitor(limits, processes, ask=self._ping_worker, end=self._end_worker)
        self._by_token: dict[bytes, Run] = {}
        self._by_process: dict[WorkerProcess, Run] = {}
        self._stop_deadline: float | None = None
        # Tokens are unique to this supervisor: a worker of a killed one may live on for a moment and find our socket.
        session = secrets.token_hex(8)
        self._tokens = (f"{session}-{number}".encode() for number in itertools.count(1))
        self._limited_log = RateLimitedLog(log)
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_sender.setblocking(False)
        self._fork_server = ForkServer(command)
        # Descriptor of the journal directory, if its path is too long for a socket in it.
        self._directory: int | None = None

    def run(self) -> list[Run]:
        """Serve until `stop` is called, or when draining until there is nothing left to do.

        Returns
        -------
        list of Run
            The runs that are not completely in Tiled.

        Raises
        ------
        zmq.ZMQError
            A socket cannot be bound.
        DirectoryUnusable
            The path of the journal directory is too long for a socket, and the system has no `/proc`.
        """
        context: zmq.Context[_Socket] = zmq.Context()
        self._frontend = Frontend(context, self._clients, self._curve)
        try:
            self._open_sockets(context)
            self._fork_server.check(time.monotonic())
            self._began = time.monotonic()
            self._look_for_retries()
            while not self._is_done():
                self._run_once()
        finally:
            self._end_workers()
            self._frontend.close()
            context.destroy(linger=200)
            self.close()
        return [run for run in self._runs.values() if not self._is_drained(run)]

    def close(self) -> None:
        """Release the journal directory. `run` calls it before it returns."""
        self._fork_server.close()
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None
        self._wake_receiver.close()
        self._wake_sender.close()
        self._lock.release()

    def stop(self) -> None:
        """Make `run` return soon; nothing is lost.

        Workers finish or abandon their requests within `_STOP_TIMEOUT` seconds. A second call ends them at once.
        """
        if self._stop_deadline is None:
            self._stop_deadline = time.monotonic() + _STOP_TIMEOUT
        else:
            self._stop_deadline = time.monotonic()
        with contextlib.suppress(OSError):
            self._wake_sender.send(b"\0")

    def stop_on_signals(self) -> None:
        """Make SIGTERM and SIGINT call `stop`."""

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.stop()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    def _open_sockets(self, context: zmq.Context[_Socket]) -> None:
        if self._listen is not None:
            self._frontend.bind(self._listen)
            log.info("Listening at %s; journals are in %s.", self._frontend.endpoint, self.journal_dir)
        self._back = context.socket(zmq.ROUTER)
        self._back.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # Messages to workers are bounded by the publishers' windows.
        self._back.setsockopt(zmq.SNDHWM, 0)
        self._mailbox = f"ipc://{self._find_mailbox_path()}"
        self._back.bind(self._mailbox)
        self._poller = zmq.Poller()
        self._poller.register(self._frontend.socket, zmq.POLLIN)
        self._poller.register(self._back, zmq.POLLIN)
        self._poller.register(self._wake_receiver.fileno(), zmq.POLLIN)
        self._poller.register(self._fork_server.fileno(), zmq.POLLIN)

    def _find_mailbox_path(self) -> Path:
        """Return the path of the workers' socket, which is in the journal directory.

        If that path is too long for a socket, it goes through an open descriptor of the directory.
        """
        path = self.journal_dir.absolute() / ".workers.ipc"
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            return path
        # Workers run as the same user, so they may use this directory.
        descriptors = Path(f"/proc/{os.getpid()}/fd")
        if not descriptors.is_dir():
            raise DirectoryUnusable(self.journal_dir, "its path is too long for a socket in it.")
        self._directory = os.open(self.journal_dir, os.O_RDONLY | os.O_DIRECTORY)
        return descriptors / str(self._directory) / path.name

    def _run_once(self) -> None:
        if self._worker_monitor.check_workers(list(self._by_token.values()), time.monotonic()):
            self._fork_server.check(time.monotonic())
            self._look_for_retries()
            self._filing.retry(time.monotonic(), lambda path: self._run_with(path) is not None)
        self._survey_journals()
        self._frontend.look()
        self._start_workers()
        patience = 0.0 if self._handshake_queue else self._poll_timeout()
        events = dict(self._poller.poll(int(patience * 1000)))
        if self._wake_receiver.fileno() in events:
            self._wake_receiver.recv(4096)
            if self._frontend.socket in self._poller:
                self._poller.unregister(self._frontend.socket)
        if self._stop_deadline is not None:
            # Repeated in each iteration, since a worker just started does not listen yet.
            self._tell_workers_to_stop()
        if self._back in events:
            self._hear_workers()
        if self._frontend.socket in events and self._stop_deadline is None:
            self._hear_publishers()
        self._answer_hellos()
        self._hear_fork_server()

    def _poll_timeout(self) -> float:
        """Return the longest time in seconds to wait for events: until the next worker is due, at most `_IDLE`."""
        survey = self._survey.next_at()
        due = [] if survey is None else [survey]
        if self._room_for_workers():
            due += [self._runs[uid].start_at for uid in self._waiting]
            parked = self._resume_queue.next_at(catching_up(self._by_token.values()))
            if parked is not None and self._may_resume():
                due.append(parked)
        return max(0.0, min([_IDLE, *(at - time.monotonic() for at in due)]))

    def _is_done(self) -> bool:
        if self._stop_deadline is not None:
            # A worker that is still being forked ends by itself when the fork server ends.
            forked = any(process.pid is not None for process in self._by_process)
            return not forked or time.monotonic() >= self._stop_deadline
        left = self._waiting or self._resume_queue or self._audit_schedule or self._by_token
        return self._drain and self._survey.done and not left

    def _is_drained(self, run: Run) -> bool:
        if run.state is State.PARKED:
            # An open run may be parked although all its documents so far are written.
            return self._drain and not run.left
        return run.state in (State.WRITTEN, State.INTERRUPTED)

    def _hear_publishers(self) -> None:
        for publisher, message in self._frontend.receive():
            if isinstance(message, messages.Hello):
                self._handshake_queue.put(publisher, message)
            elif isinstance(message, messages.Documents | messages.Abandoned):
                try:
                    self._relay_message(publisher, message)
                except Exception as error:
                    self._log_trouble(message.run)
                    refusal = messages.Refused(message.run, message.first, messages.LATER, f"an error: {error}")
                    self._frontend.refuse("later", publisher, refusal)

    def _answer_hellos(self) -> None:
        limits = self._clients
        for publisher, views in self._handshake_queue.turn(self._read_state, self._frontend.has):
            # Add publishers only now: a publisher that hears of a run before its Welcome could take it for its own run.
            for run in [self._runs[uid] for uid in views if uid in self._runs]:
                views[run.uid] = self._read_state(publisher, run.uid)
                if run.belongs_to(publisher.client):
                    run.publishers.add(publisher)
            self._frontend.send(publisher, messages.Welcome(limits.window, limits.max_document, views))
            crash_point("supervisor: publisher welcomed")

    def _read_state(self, publisher: Publisher, uid: str) -> messages.RunState:
        """Return the state of a run for a publisher; an empty state if it cannot be read."""
        try:
            return self._look_at(publisher, uid)
        except Exception:
            self._log_trouble(uid)
            return messages.RunState(0, ended=False, outcome="")

    def _look_at(self, publisher: Publisher, uid: str) -> messages.RunState:
        # Do not keep the run in `_runs` if it is complete or unknown: a publisher may ask for any number of them.
        run = self._runs.get(uid) or Run.load(self.journal_dir, uid)
        if run.unavailable or not run.belongs_to(publisher.client):
            return messages.RunState(0, ended=False, outcome="")
        if run.state is State.FAILED and retry_is_requested(run.journal):
            return msgspec.structs.replace(run.view(), outcome="", reason="")
        return run.view()

    def _relay_message(self, publisher: Publisher, message: messages.Documents | messages.Abandoned) -> None:
        if message.run in publisher.refused:
            reason = publisher.refused[message.run]
            self._frontend.refuse("refused", publisher, messages.Refused(message.run, 0, reason))
            return
        run = self._runs.get(message.run) or Run.load(self.journal_dir, message.run)
        if (refused := self._find_refusal(run, publisher, message)) is not None:
            topic, refusal = refused
            self._frontend.refuse(topic, publisher, refusal)
            return
        run.publishers.add(publisher)
        if run.ended and message.next <= run.next:
            self._frontend.send(publisher, messages.Durable(run.uid, run.next, run.ended))
            return
        if run.uid not in self._runs:
            self._register_run(run)
        run.begin(message)
        run.client = run.client or publisher.client
        run.heard = time.monotonic()
        if run.ready and run.finish_by is None:
            self._to_worker(run, message)
            crash_point("supervisor: documents relayed")
        else:
            run.queue_message(message)
            self._queue_for_worker(run)

    def _find_refusal(
        self, run: Run, publisher: Publisher, message: messages.Documents | messages.Abandoned
    ) -> tuple[str, messages.Refused] | None:
        """Return why a message must not go to the worker: a topic to count it under and the answer; None if it may."""
        if not run.belongs_to(publisher.client):
            return "owner", messages.Refused(run.uid, 0, "a run of this uid belongs to another client")
        if run.unavailable:
            return "later", messages.Refused(run.uid, message.first, messages.LATER, run.reason)
        if run.unusable:
            return "journal", messages.Refused(run.uid, run.next, run.reason)
        try:
            if not run.may_hold(message):
                return "uid", messages.Refused(run.uid, 0, messages.ANOTHER_RUN)
        except (JournalError, sqlite3.Error, OSError) as error:
            log.error("A journal cannot be looked into: %s", error)
            return "later", messages.Refused(run.uid, message.first, messages.LATER, str(error))
        if run.uid not in self._runs and not run.next:
            if message.first > 0 or isinstance(message, messages.Abandoned):
                return "gap", messages.Refused(run.uid, 0, messages.GAP)
            if (count := self._open_runs(publisher.quota_key)) >= self._clients.max_open_runs:
                detail = f"{count} runs of this client are open, which is the limit"
                return "later", messages.Refused(run.uid, message.first, messages.LATER, detail)
        return None

    def _open_runs(self, quota_key: str) -> int:
        """Count the open runs of a client that has publishers connected."""
        there = {other for other in self._frontend.publishers.values() if other.quota_key == quota_key}
        return sum(not (run.ended or run.final) and not there.isdisjoint(run.publishers) for run in self._runs.values())

    def _register_run(self, run: Run) -> Run:
        self._runs[run.uid] = run
        self._last_order = max(time.time(), self._last_order + 1e-6, run.order)
        run.order = run.order or self._last_order
        return run

    def _tell_publishers(self, run: Run, message: messages.Message) -> None:
        run.publishers = {publisher for publisher in run.publishers if self._frontend.send(publisher, message)}

    def _hear_workers(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            try:
                token, *frames = self._back.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._from_worker(token, messages.decode(frames))
            except ProtocolError as error:
                self._limited_log.log(logging.ERROR, "workers", "A worker sent something else: %s", error)
            except LifecycleError:
                log.exception("A message came out of order; it is ignored.")
            except Exception:
                self._log_trouble("of a worker")

    def _from_worker(self, token: bytes, message: messages.Message) -> None:
        run = self._by_token.get(token)
        if run is None:
            # A worker that was replaced sent it before it ended.
            return
        run.answered = time.monotonic()
        if isinstance(message, messages.Ready):
            self._worker_is_ready(run, message)
        elif isinstance(message, messages.Durable):
            run.advance(next_=message.next)
            self._note_end(run, message.ended)
            crash_point("supervisor: documents durable, publisher not told")
            self._tell_publishers(run, message)
        elif isinstance(message, messages.Refused):
            if not run.ready:
                # The worker has not opened the journal, so its index says nothing.
                message = msgspec.structs.replace(message, index=run.next)
            run.relayed = min(run.relayed, message.index)
            run.start_over()
            self._tell_publishers(run, message)
        elif isinstance(message, messages.Progress):
            run.advance(written=message.next)
        elif isinstance(message, messages.Reached):
            self._resume_queue.note_recovery()
        elif isinstance(message, messages.Written):
            run.apply_event(Event(message.outcome))
            run.reason = message.reason
            self._tell_publishers(run, message)

    def _worker_is_ready(self, run: Run, message: messages.Ready) -> None:
        run.ready = True
        run.apply_event(Event.READY)
        run.next = message.next
        self._note_end(run, message.ended)
        run.relayed = run.next
        if self._stop_deadline is not None or run.finish_by is not None:
            self._to_worker(run, messages.Finish())
            return
        queued_messages, run.queued_messages = run.queued_messages, []
        for waiting in queued_messages:
            self._to_worker(run, waiting)

    def _note_end(self, run: Run, ended: bool) -> None:
        run.ended = ended
        if ended and run.state is State.OPEN:
            run.apply_event(Event.ENDED)

    def _to_worker(self, run: Run, message: messages.Message) -> None:
        if isinstance(message, messages.Documents):
            run.relayed = max(run.relayed, message.next)
        try:
            self._back.send_multipart([run.token, *messages.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            log.debug("The worker of run %s is gone before its process is seen to end.", run.uid)

    def _ping_worker(self, run: Run) -> None:
        self._to_worker(run, messages.Ping(0))

    def _end_worker(self, run: Run) -> None:
        run.finish_by = time.monotonic() + FINISH_TIMEOUT
        self._to_worker(run, messages.Finish())

    def _queue_for_worker(self, run: Run) -> None:
        """Queue the run for a worker, for documents that have arrived or may arrive any time."""
        if run.process is None and run.uid not in self._waiting:
            self._resume_queue.discard(run)
            if run.state is not State.STARTING:
                run.apply_event(Event.RESUMED)
            self._waiting[run.uid] = None

    def _room_for_workers(self) -> bool:
        return self._stop_deadline is None and len(self._by_token) < self._max_workers

    def _start_workers(self) -> None:
        now = time.monotonic()
        due = [self._runs[uid] for uid in self._waiting if self._runs[uid].start_at <= now]
        for number, run in enumerate(due):
            if not self._room_for_workers():
                self._make_room(len(due) - number, now)
                return
            del self._waiting[run.uid]
            self._try_worker(run)
        while self._may_resume() and self._resume_queue.may_resume(catching_up(self._by_token.values()), now):
            if not self._room_for_workers():
                self._make_room(min(1, len(self._resume_queue)), now, idle_only=True)
                return
            resumed = self._next_run_to_resume(now)
            if resumed is None:
                return
            resumed.resumed, resumed.probe = True, self._resume_queue.away
            self._try_worker(resumed)

    def _may_resume(self) -> bool:
        """Return whether the survey knows which runs to resume first, or has had enough time."""
        return self._survey.done or time.monotonic() >= self._began + _SURVEY_LEAD

    def _make_room(self, places: int, now: float, *, idle_only: bool = False) -> None:
        """End idle workers to make room for others.

        Audits end first, then workers of ended runs (latest run first), then those of open runs (longest idle first).
        """
        if self._stop_deadline is not None:
            return
        places -= sum(run.finish_by is not None for run in self._by_token.values())
        others = [run for run in self._by_token.values() if run.worker_may_end(now, away=self._resume_queue.away)]
        if idle_only:
            others = [run for run in others if run.state is State.OPEN]
        others.sort(key=lambda run: (run.auditing, run.ended, run.order if run.ended else -run.heard), reverse=True)
        for run in others[: max(places, 0)]:
            log.debug("Run %s is parked to make room.", run.uid)
            self._end_worker(run)

    def _next_run_to_resume(self, now: float) -> Run | None:
        """Return the next run that needs a worker but no further documents, or None. Parked runs come before audits."""
        run = self._resume_queue.pop_next(now)
        if run is not None:
            if run.state is not State.STARTING:
                run.apply_event(Event.RESUMED)
            return run
        if len(self._by_token) >= max(1, self._max_workers // 2):
            return None
        audit = self._audit_schedule.pop_due(time.time())
        if audit is None:
            return None
        run = self._runs.get(audit) or Run.load(self.journal_dir, audit)
        if run.unavailable:
            self._audit_schedule.schedule(audit, time.time() + PUT_OFF)
        if not run.complete or run.process is not None:
            # New documents have arrived for it, so the audit comes after these are written.
            return self._next_run_to_resume(now)
        run.auditing = True
        return self._register_run(run)

    def _try_worker(self, run: Run) -> None:
        """Start a worker for the run, or schedule another attempt."""
        try:
            self._start_worker(run)
        except (JournalError, sqlite3.Error, OSError) as error:
            self._limited_log.log(logging.ERROR, "start", "Run %s has no worker; trying again: %s", run.uid, error)
            self._postpone_start(run, _FORK_PAUSE)
            detail = f"no worker can be started: {error}"
            self._tell_publishers(run, messages.Refused(run.uid, run.next, messages.LATER, detail))

    def _start_worker(self, run: Run) -> None:
        if not self._worker_monitor.orphan_is_gone(run, time.monotonic()):
            self._postpone_start(run, _ORPHAN_PAUSE)
            return
        run.journal = bring_back(run.journal)
        run.token = next(self._tokens)
        run.ready, run.finish_by, run.kill_reason = False, None, ""
        task = WorkerTask(self._mailbox, run.token, run.uid, run.journal, self._drain, run.order, run.client)
        process = self._fork_server.start_worker(task)
        run.process = process
        self._by_token[run.token] = run
        self._by_process[process] = run

    def _hear_fork_server(self) -> None:
        for process in self._fork_server.receive():
            run = self._by_process.get(process)
            if run is None:
                continue
            try:
                self._worker_changed(run, process)
            except Exception:
                self._log_trouble(run.uid)
                if process.ended:
                    self._restart_from_journal(run, process)

    def _restart_from_journal(self, run: Run, process: WorkerProcess) -> None:
        """Restart a run from its journal after an exception while the end of its worker was handled."""
        self._by_process.pop(process, None)
        self._by_token.pop(run.token, None)
        self._waiting.pop(run.uid, None)
        self._resume_queue.discard(run)
        fresh = Run.from_file(run.journal, run.uid)
        fresh.publishers, fresh.start_at = run.publishers, time.monotonic() + FINISH_TIMEOUT
        if fresh.final or self._stop_deadline is not None:
            self._runs.pop(run.uid, None)
        else:
            self._runs[run.uid] = fresh
            self._resume_queue.add(fresh)
        detail = "there was an error about it on the ingest host"
        self._tell_publishers(fresh, messages.Refused(run.uid, fresh.next, messages.LATER, detail))

    def _worker_changed(self, run: Run, process: WorkerProcess) -> None:
        if process.ended:
            self._worker_ended(run)
        else:
            crash_point("supervisor: worker forked")
            self._worker_monitor.started(run)
            log.debug("Worker %s writes run %s.", process.pid, run.uid)

    def _postpone_start(self, run: Run, pause: float) -> None:
        run.start_at = time.monotonic() + pause
        if run.auditing:
            self._audit_schedule.schedule(run.uid, time.time() + pause)
            self._forget_run(run)
        elif run.resumed and not run.queued_messages:
            self._resume_queue.add(run)
        else:
            self._waiting[run.uid] = None
        run.resumed = run.probe = run.auditing = False

    def _worker_ended(self, run: Run) -> None:
        process = run.process
        assert process is not None
        # Read the worker's last messages first.
        self._hear_workers()
        del self._by_process[process]
        del self._by_token[run.token]
        run.process, run.ready, run.orphan = None, False, None
        if process.pid is None:
            # The worker was never forked.
            self._postpone_start(run, _FORK_PAUSE)
            return
        audited = run.auditing and run.complete
        died = process.exit_code != 0 or bool(run.kill_reason)
        if run.kill_reason and self._stop_deadline is None:
            run.record("worker ended", {"reason": run.kill_reason})
        if not run.final and not died:
            self._worker_left(run)
        elif not run.final:
            self._worker_died(run, process.exit_code)
        run.resumed = run.probe = run.auditing = False
        if run.relayed > run.next:
            # The worker died with documents that it had not stored.
            self._tell_publishers(run, messages.Refused(run.uid, run.next, messages.GAP))
            run.relayed = run.next
        if run.queued_messages and self._stop_deadline is None:
            self._queue_for_worker(run)
        elif run.final:
            self._look_again(run, audited=audited, died=died)
            self._forget_run(run)

    def _worker_left(self, run: Run) -> None:
        """Handle a worker that ended in order: the run is complete, parked, or drained."""
        self._read_outcome(run)
        if not run.left or self._stop_deadline is not None:
            return
        if run.finish_by is None:
            # The worker ended by itself, so Tiled is away.
            self._resume_queue.note_outage(run, time.monotonic())
        self._resume_queue.add(run)

    def _look_again(self, run: Run, *, audited: bool, died: bool) -> None:
        """Schedule the audit of a written run if its journal asks for one; file the journal away otherwise."""
        if self._stop_deadline is not None or not run.complete:
            return
        journal = Run.from_file(run.journal, run.uid)
        at = journal.audit_at
        if journal.unavailable:
            at = time.time() + PUT_OFF
        if at is None:
            self._audit_schedule.discard(run.uid)
            if journal.complete:
                self._filing.file(run.journal)
            return
        if audited and not died and at == run.audit_at and run.finish_by is None:
            # The worker ended without an audit although nobody told it to end, so Tiled is away.
            self._resume_queue.note_outage(run, time.monotonic())
        pause = self._audit_schedule.pause_after(run.uid, died=died) if audited else 0.0
        if pause is None:
            run.give_audit_up()
        else:
            self._plan_audit(run, max(at, time.time() + pause))

    def _read_outcome(self, run: Run) -> None:
        """Read the outcome from the journal, in case the worker's last messages were lost."""
        journal = Run.from_file(run.journal, run.uid)
        if journal.unusable:
            # The journal may be usable again later; otherwise the next worker reports it.
            run.apply_event(Event.PARKED)
            run.start_at = time.monotonic() + PUT_OFF
            return
        run.next, run.end = max(run.next, journal.next), journal.end
        self._note_end(run, journal.ended)
        if journal.final and run.state is State.CLOSING:
            run.apply_event(Event(journal.outcome))
            run.reason = journal.reason
            self._tell_publishers(run, messages.Written(run.uid, run.outcome, run.reason))
        else:
            run.apply_event(Event.PARKED)

    def _worker_died(self, run: Run, exit_code: int | None) -> None:
        if self._stop_deadline is not None:
            run.apply_event(Event.DIED)
            return
        if run.worker_died(exit_code):
            times = max(run.deaths, run.deaths_without_writes)
            reason = f"its worker died {times} times in a row without progress"
            run.quarantine(f"{reason}; at last {run.kill_reason}" if run.kill_reason else reason)
            self._tell_publishers(run, messages.Written(run.uid, run.outcome, run.reason))
        elif run.queued_messages or not run.ended:
            self._queue_for_worker(run)
        else:
            self._resume_queue.add(run)

    def _forget_run(self, run: Run) -> None:
        if not self._drain and self._stop_deadline is None:
            del self._runs[run.uid]

    def _survey_journals(self) -> None:
        """Continue the survey of the journals that earlier supervisors left."""
        if self._survey.done or self._stop_deadline is not None:
            return
        if self._survey.proceed():
            log.info("%d journals looked at; resuming %d unfinished runs.", self._survey.seen, len(self._resume_queue))

    def _handle_surveyed_journal(self, path: Path) -> None:
        """Handle a journal found by the survey: file it away, plan its audit, or resume its run."""
        if self._run_with(path) is not None:
            # Documents have arrived for it, or it is being retried.
            return
        if is_finished(path):
            self._filing.file(path)
            return
        run = Run.from_file(path)
        if run.uid in self._runs:
            return
        self._last_order = max(self._last_order, run.order)
        if run.complete:
            if run.audit_at is not None:
                self._plan_audit(run, run.audit_at)
            else:
                self._filing.file(path)
        elif run.state is State.FAILED:
            if self._drain:
                self._runs[run.uid] = run
        elif run.next:
            # A run without documents is not resumed; its publisher still has all of them.
            self._runs[run.uid] = run
            self._resume_queue.add(run)

    def _run_with(self, path: Path) -> Run | None:
        """Return the active run that has this journal, or None."""
        if journal_filename(path.stem) == path.name:
            return self._runs.get(path.stem)
        return next((run for run in self._runs.values() if run.journal == path), None)

    def _look_for_retries(self) -> None:
        """Find and start requested retries."""
        if self._stop_deadline is not None:
            return
        try:
            for path in self._retries.look():
                self._try_again(path)
        except Exception:
            self._log_trouble("that is to be tried again")

    def _try_again(self, path: Path) -> None:
        run = self._run_with(path)
        if run is None or run.process is None:
            self._retry_run(path, run)
        elif Run.from_file(path, run.uid).state is not State.FAILED:
            # The journal records no failure: the new worker has not failed yet, so there is nothing to retry.
            withdraw_retry(path)
        elif run.finish_by is None:
            # This worker only journals; the next one writes.
            self._end_worker(run)

    def _retry_run(self, path: Path, run: Run | None) -> None:
        try:
            clear_failure(path, lock_timeout=0.0)
        except JournalLocked:
            # Another process has the journal open for a moment.
            return
        except (JournalError, sqlite3.Error, OSError) as error:
            log.error("Run %s cannot be tried again: %s", path.stem, error)
            withdraw_retry(path)
            return
        if run is None:
            run = Run.from_file(path)
            self._runs[run.uid] = run
        run.try_again()
        if run.queued_messages:
            self._queue_for_worker(run)
        elif run.left:
            self._waiting.pop(run.uid, None)
            self._resume_queue.add(run)
        else:
            self._forget_run(run)
        withdraw_retry(path)

    def _plan_audit(self, run: Run, at: float) -> None:
        if not self._drain or at <= time.time():
            self._audit_schedule.schedule(run.uid, at)
        else:
            log.warning("Run %s wants to be looked at again later; the next supervisor does so.", run.uid)

    def _log_trouble(self, uid: str) -> None:
        """Log the current exception. A problem with one run must not end a loop that serves all runs."""
        self._limited_log.log(logging.ERROR, f"trouble {uid}", "There is trouble with run %s.", uid, exc_info=True)

    def _tell_workers_to_stop(self) -> None:
        for run in self._by_token.values():
            self._to_worker(run, messages.Finish())

    def _end_workers(self) -> None:
        deadline = time.monotonic() + _KILL_TIMEOUT
        for process, run in self._by_process.items():
            if process.pid is not None and not process.ended:
                log.warning("The worker of run %s does not end, and is ended by force; nothing is lost.", run.uid)
                process.kill()
        while time.monotonic() < deadline and any(p.pid is not None and not p.ended for p in self._by_process):
            select.select([self._fork_server], [], [], _ORPHAN_PAUSE)
            self._fork_server.receive()


def _prepare_directory(directory: Path, *, make: bool) -> None:
    """Make a journal directory if it is missing, and check that it can be used."""
    if not make and not directory.is_dir():
        raise DirectoryUnusable(directory, "there is no such journal directory, so nothing can be drained.")
    if (name := network_filesystem(directory)) is not None:
        raise DirectoryUnusable(
            directory, f"it is on a network file system ({name}), which does not keep journals safe. Take a local disk."
        )
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.scandir(directory):
            pass
    except OSError as error:
        raise DirectoryUnusable(directory, f"it cannot hold journals: {error.strerror}.") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise DirectoryUnusable(directory, "it cannot hold journals: Permission denied to write into it.")
