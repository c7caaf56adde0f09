"""The supervisor process: moves messages between publishers and workers, and performs what the scheduler decides.

It reads only message headers and keeps no state that is not in a journal, so it may be killed at any time. It decides
nothing about runs itself: events go to the scheduler, and the effects that come back are performed here.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import zmq

from .._crash_points import crash_point
from .._errors import DirectoryUnusable, JournalError, JournalLocked, LifecycleError, WorkersUnusable
from .._rate_limited_log import RateLimitedLog
from .._wake_up import WakeUp
from ..log import FINISHED_SUBDIRECTORY, FileLock, Journal, journal_filename
from ..protocol import messages
from ._clock import Instant
from ._finished import FinishedJournals, bring_back, is_finished
from ._fork_server import WorkerProcess
from ._handshake_queue import HandshakeQueue
from ._journal_directory import JournalDirectory
from ._journal_facts import JournalFacts, find_facts, read_facts, record_event
from ._lifecycle import State
from ._publishers import ClientLimits, Publisher
from ._reload import ReloadSource
from ._requests import Requests
from ._retention import Retention
from ._retry import RetryWatch, clear_failure, retry_is_requested, withdraw_retry
from ._run_owner import SoleOwner
from ._service_lease import HeldLease
from ._service_notifier import ServiceNotifier
from ._service_report import ServiceReport
from ._service_view import describe_service
from ._source import Source
from ._status_socket import StatusSocket
from ._survey import Survey
from ._tasks import WorkerCommand
from ._unclaimed_journals import UnclaimedJournals
from ._worker_pool import ProcessTable, WorkerPool
from .scheduler import (
    DEFAULT_MAX_RESUMED,
    DEFAULT_MAX_WORKERS,
    ClearFailure,
    CompareDocuments,
    DiskSpace,
    Effect,
    FileJournal,
    KillOrphan,
    KillWorker,
    ReadForAudit,
    RecordEvent,
    RefuseDocuments,
    Run,
    RunMessage,
    Scheduler,
    SendToWorker,
    StartWorker,
    TellPublisher,
    WithdrawRetry,
    WorkerLimits,
)

log = logging.getLogger(__name__)

# Longest wait for events, so that the periodic checks run.
_IDLE_SECONDS: Final = 0.5
# Pause between two checks of workers, retry requests and journals to be filed.
_CHECK_SECONDS: Final = 1.0
# Pause between two checks of the publishers' connections, of which each registers a limited number of new ones.
_CONNECTIONS_CHECK_SECONDS: Final = 0.25
_FAILED_JOURNALS_PER_CHECK: Final = 20

_Socket: TypeAlias = "zmq.Socket[bytes]"


class Supervisor:
    """Relays documents from publishers to workers, and acknowledgements back.

    Parameters
    ----------
    journal_dir
        Directory with one journal per run; made if missing. Only one supervisor at a time may use it.
    command
        What a worker runs.
    make_source
        Makes the source of documents when `run` begins.
    drain
        Return from `run` once every journal is written.
    clients
        Limits for each client.
    max_workers
        Worker processes at a time. Further runs wait; their documents stay in the spools of the publishers.
    max_resumed
        How many of these workers may write what earlier workers left, after Tiled is back or the supervisor started.
    limits
        Limits of each worker.
    processes
        Access to processes. None: memory is not checked, and hanging orphans are not killed.
    settings
        Effective settings by name, without secrets, for the status.
    tiled_address
        Address of Tiled for the status; "" if only the workers know it.
    min_free
        Bytes on the journals' disk below which no documents are accepted; None: the lesser of 100 MiB and 1 % of it.
    keep_written
        Seconds after which the journal of a written run is deleted; None keeps all.
    write_slots
        Workers that may write to Tiled at a time; None for as many as its storage takes.
    check_command
        Command that checks the service, for messages; "" if there is none.
    make_lease
        Makes the lease for a journal directory and its lock, which this process holds, and with a function to be
        called, from any thread, whenever the lease or the runs that this host may write have changed. None if there is
        no other host that can serve.

    Attributes
    ----------
    lease
        The lease of a service that several hosts can serve; None if there is no other such host.
    report
        What is told of the service to those that ask for its status.

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
        make_source: Callable[[], Source],
        *,
        drain: bool = False,
        clients: ClientLimits = ClientLimits(),  # noqa: B008  it is frozen
        max_workers: int = DEFAULT_MAX_WORKERS,
        max_resumed: int = DEFAULT_MAX_RESUMED,
        limits: WorkerLimits = WorkerLimits(),  # noqa: B008  it is frozen
        processes: ProcessTable | None = None,
        settings: Mapping[str, Any] | None = None,
        tiled_address: str = "",
        min_free: int | None = None,
        keep_written: float | None = None,
        write_slots: int | None = None,
        check_command: str = "",
        make_lease: Callable[[Path, FileLock, Callable[[], None]], HeldLease] | None = None,
    ) -> None:
        self._directory = JournalDirectory(journal_dir, make=not drain)
        self.journal_dir = journal_dir
        self._make_source = make_source
        self._clients = clients
        self._make_scheduler = partial(
            Scheduler,
            max_workers=max_workers,
            max_resumed=max_resumed,
            max_open_runs=clients.max_open_runs,
            drain=drain,
            limits=limits,
            disk=DiskSpace(journal_dir, min_free),
            write_slots=write_slots,
        )
        self._wake_up = WakeUp()
        self.lease = None if make_lease is None else make_lease(journal_dir, self._directory.lock, self._wake_up.wake)
        self._owner = SoleOwner() if self.lease is None else self.lease.owner
        self._unclaimed = UnclaimedJournals(self._owner)
        lease_page = None if self.lease is None else self.lease.page
        self._pool = WorkerPool(journal_dir, command, processes, drain=drain, lease_page=lease_page)
        self._handshake_queue = HandshakeQueue()
        finished = journal_dir / FINISHED_SUBDIRECTORY
        # Who drains is told that all is in Tiled. A service leaves this folder out: it would take ever longer to start.
        directories = [journal_dir, finished] if drain and os.path.lexists(finished) else [journal_dir]
        self._survey = Survey(directories, self._handle_surveyed_journal)
        self._retries = RetryWatch(journal_dir)
        self._finished_journals = FinishedJournals()
        self.report = ServiceReport(
            journal_dir, settings or {}, tiled_address=tiled_address, check_command=check_command
        )
        self._memory: dict[int, int] = {}
        self._status_socket: StatusSocket | None = None
        self._retention = Retention(journal_dir, keep_written, lambda path: self._find_run(path) is not None)
        self._check_at = self._check_connections_at = 0.0
        self._requests = Requests(self._wake_up.wake)
        self._notifier = ServiceNotifier()
        self._reload_source: ReloadSource | None = None
        self._is_reloading = False
        self._limited_log = RateLimitedLog(log)

    def run(self, on_workers_ended: Callable[[], None] = lambda: None) -> list[Run]:
        """Serve until `stop` is called, or when draining until there is nothing left to do.

        Parameters
        ----------
        on_workers_ended
            Called when there are no more workers, and before another supervisor can use the journal directory.

        Returns
        -------
        list of Run
            The runs that are not completely in Tiled.

        Raises
        ------
        Exception
            The source cannot be opened, for a reason of its own type.
        zmq.ZMQError
            The workers' socket cannot be bound.
        DirectoryUnusable
            The path of the journal directory is too long for a socket, and the system has no `/proc`; or the directory,
            or its lock file, was removed or replaced meanwhile.
        WorkersUnusable
            The process that workers are forked from could not be prepared when it was started for the first time.
        LeaseHeld
            Another host holds the lease, and this supervisor was not told to stand by.
        LeaseLost
            The lease could not be renewed in time. Another host may serve by now, so the workers have ended.
        """
        context: zmq.Context[_Socket] = zmq.Context()
        self._source = self._make_source()
        self.report.listen_to_log()
        try:
            # Of a host that stands by, for the status.
            self._scheduler = self._make_scheduler(_now())
            self._open_sockets(context)
            if not self._wait_for_lease():
                return []
            self._listen_to_publishers()
            self._pool.fork_server.check(time.monotonic())
            self._scheduler = self._make_scheduler(_now())
            self._notifier.announce_ready()
            while not self._is_done():
                self._run_once()
        finally:
            self._kill_workers()
            self._source.close()
            context.destroy(linger=200)
            on_workers_ended()
            self.close()
            self.report.close()
        return self._scheduler.unwritten_runs()

    def close(self) -> None:
        """Release the journal directory. `run` calls it before it returns."""
        if self._status_socket is not None:
            self._status_socket.close()
        self._pool.close()
        if self.lease is not None:
            self.lease.close()
        self._wake_up.close()
        self._notifier.close()
        self._directory.lock.release()

    @property
    def surveyed(self) -> bool:
        """True if the journals that earlier supervisors left have all been looked at, and are this host's to write."""
        return self._survey.done and not self._survey.failures and not self._unclaimed

    def count_unwritten(self) -> Counter[str]:
        """Return how many runs are not completely in Tiled, by state, as far as journals were read; see `surveyed`."""
        return self._scheduler.count_unwritten()

    def stop(self) -> None:
        """Make `run` return soon; nothing is lost.

        Workers finish or abandon their requests within `STOP_TIMEOUT_SECONDS` of the scheduler. A second call ends them
        at once.
        """
        self._requests.request_stop()

    def stop_on_signals(self) -> None:
        """Make SIGTERM and SIGINT call `stop`."""
        self._requests.stop_on_signals()

    def reload_on_signal(self, source: ReloadSource) -> None:
        """Make SIGHUP read the configuration again, unless the terminal is gone: then it calls `stop`."""
        self._reload_source = source
        self._requests.reload_on_signal()

    # The loop.

    def _is_done(self) -> bool:
        return self._scheduler.is_done(_now()) and (self._scheduler.is_stopping or not self._unclaimed)

    def _open_sockets(self, context: zmq.Context[_Socket]) -> None:
        """Open all sockets but that for publishers, which must not find a host that does not serve."""
        self._pool.open(context)
        self._poller = zmq.Poller()
        self._poller.register(self._pool.socket, zmq.POLLIN)
        self._poller.register(self._wake_up.fileno(), zmq.POLLIN)
        self._poller.register(self._pool.fork_server.fileno(), zmq.POLLIN)
        self._open_status_socket()

    def _listen_to_publishers(self) -> None:
        self._source.open()
        self._poller.register(self._source.pollable, zmq.POLLIN)
        if self._source.endpoint is not None:
            log.info("Listening at %s; journals are in %s.", self._source.endpoint, self.journal_dir)

    def _open_status_socket(self) -> None:
        """Open the status socket. Runs are stored and written without it, too."""
        try:
            self._status_socket = StatusSocket(self.journal_dir, self._encode_snapshot, self._poller)
        except (OSError, DirectoryUnusable) as error:
            log.error("The status cannot be asked for: %s", error)

    def _wait_for_lease(self) -> bool:
        """Wait until this host holds the lease, and answer who asks for the status; return False if told to stop."""
        lease = self.lease
        if lease is None:
            return True
        lease.start()
        # A supervisor that stands by does already all that it has to do for now.
        self._notifier.announce_ready()
        while not lease.is_held():
            if self._requests.stop_was_requested:
                return False
            self._notifier.feed_watchdog(time.monotonic())
            self._notifier.describe_status(lease.describe())
            self._scheduler.take_disk_space(self._directory.measure_space(), _now())
            events = dict(self._poller.poll(int(1000 * min(_IDLE_SECONDS, self._notifier.feed_pause))))
            if self._status_socket is not None:
                self._status_socket.serve_readers(events, time.monotonic())
            if self._wake_up.fileno() in events:
                self._wake_up.clear()
        lease.take_over()
        return True

    def _encode_snapshot(self) -> bytes:
        lease = None if self.lease is None else self.lease.status()
        pids = self._pool.list_pids()
        return self.report.encode_snapshot(
            self._scheduler, self._source, _now(), pids=pids, memory=self._memory, lease=lease
        )

    def _run_once(self) -> None:
        self._notifier.feed_watchdog(time.monotonic())
        if self.lease is not None:
            self.lease.is_held()
        self._handle_stops()
        self._handle_reloads()
        self._check_periodically()
        self._survey_journals()
        self._resume_claimed_journals()
        self._delete_old_journals()
        self._check_connections()
        self._perform(self._scheduler.schedule(_now()))
        events = dict(self._poller.poll(int(self._poll_timeout() * 1000)))
        if self._status_socket is not None:
            self._status_socket.serve_readers(events, time.monotonic())
        if self._wake_up.fileno() in events:
            self._wake_up.clear()
        if self._pool.socket in events:
            self._hear_workers()
        if self._source.pollable in events and not self._scheduler.is_stopping:
            self._hear_publishers()
        self._answer_hellos()
        if self._pool.fork_server.fileno() in events or self._pool.fork_server.has_changes:
            self._hear_fork_server()
        for publisher in self._source.take_gone():
            self._scheduler.remove_publisher(publisher)

    def _poll_timeout(self) -> float:
        """Return the longest time in seconds to wait for events."""
        if self._handshake_queue or self._requests.are_pending:
            return 0.0
        survey_at = self._survey.next_at()
        due = self._scheduler.find_next_time(_now())
        due = due if survey_at is None or self._scheduler.is_stopping else min(due, survey_at)
        return max(0.0, min(_IDLE_SECONDS, self._notifier.feed_pause, due - time.monotonic()))

    def _handle_stops(self) -> None:
        while self._requests.take_stop():
            self._scheduler.stop(_now())
            self._notifier.announce_stopping()
            if self._source.pollable in self._poller:
                self._poller.unregister(self._source.pollable)

    def _handle_reloads(self) -> None:
        """Begin to read the configuration again if that is asked for, and take what was read when that is done."""
        source = self._reload_source
        if source is None:
            return
        if self._requests.take_reloads():
            self._notifier.announce_reloading()
            self._is_reloading = True
            source.begin()
        if not self._is_reloading or source.is_running():
            return
        self._is_reloading = False
        if (changes := source.take_changes()) is not None:
            self._pool.fork_server.change_command(changes.command)
            self._scheduler.disk.change_min_free(changes.min_free)
            self._retention.change_age(changes.keep_written)
            self._scheduler.write_slots.change_limit(changes.write_slots)
            self.report.change_settings(changes.settings)
        self._notifier.announce_ready()

    def _check_periodically(self) -> None:
        now = _now()
        if now.monotonic < self._check_at:
            return
        self._check_at = now.monotonic + _CHECK_SECONDS
        self._directory.check_in_place()
        self._memory = self._pool.measure_memory()
        self._perform(self._scheduler.check_workers(self._memory, now))
        self._scheduler.take_disk_space(self._directory.measure_space(), now)
        self._notifier.describe_status(describe_service(self._scheduler))
        self._pool.fork_server.check(now.monotonic)
        self._find_retries()
        self._forget_deleted_journals()
        self._finished_journals.retry(now.monotonic, lambda path: self._find_run(path) is not None)

    def _check_connections(self) -> None:
        now = time.monotonic()
        if now >= self._check_connections_at:
            self._check_connections_at = now + _CONNECTIONS_CHECK_SECONDS
            self._source.check_connections()

    def _perform(self, effects: Iterable[Effect]) -> None:
        """Perform effects in their order; those that follow from them come after all of these."""
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            try:
                waiting.extend(self._perform_effect(effect))
            except Exception:
                self._limited_log.log(logging.ERROR, f"effect {type(effect)}", "%s failed.", effect, exc_info=True)

    def _log_trouble(self, uid: str) -> None:
        """Log the current exception. A problem with one run must not end a loop that serves all runs."""
        self._limited_log.log(logging.ERROR, f"trouble {uid}", "There is trouble with run %s.", uid, exc_info=True)

    # Publishers.

    def _hear_publishers(self) -> None:
        for publisher, message in self._source.receive():
            if isinstance(message, messages.Hello):
                self._handshake_queue.add(publisher, message)
            elif isinstance(message, messages.Documents | messages.Abandoned):
                try:
                    self._relay_message(publisher, message)
                except Exception as error:
                    self._log_trouble(message.run)
                    refusal = messages.Refused(message.run, message.first, messages.LATER, f"an error: {error}")
                    self._source.refuse("later", publisher, refusal)

    def _relay_message(self, publisher: Publisher, message: RunMessage) -> None:
        if message.run in publisher.refused:
            reason = publisher.refused[message.run]
            self._source.refuse("refused", publisher, messages.Refused(message.run, 0, reason))
            return
        facts = self._find_facts(message.run)
        self._perform(self._scheduler.receive_documents(publisher, message, facts, _now()))

    def _find_facts(self, uid: str) -> JournalFacts | None:
        """Return what a run's journal says, or None if the scheduler knows the run."""
        return None if uid in self._scheduler.runs else find_facts(self.journal_dir, uid)

    def _answer_hellos(self) -> None:
        limits = self._clients
        for publisher, states in self._handshake_queue.look_up(self._read_state, self._source.has):
            for uid in states:
                self._retention.note_asked(uid, time.time())
            # Read the states of known runs again: they may have changed since. Add publishers only now: a publisher
            # that hears of a run before its Welcome could take it for its own run.
            known = [uid for uid in states if uid in self._scheduler.runs]
            states |= {uid: self._read_state(publisher, uid) for uid in known}
            self._scheduler.add_publisher(publisher, known)
            self._source.send(publisher, messages.Welcome(limits.window, limits.max_document, states))
            crash_point("supervisor: publisher welcomed")

    def _read_state(self, publisher: Publisher, uid: str) -> messages.RunState:
        """Return the state of a run for a publisher; an empty state if it cannot be read."""
        try:
            return self._describe_run(publisher, uid)
        except Exception:
            self._log_trouble(uid)
            return messages.RunState(0, ended=False, outcome="")

    def _describe_run(self, publisher: Publisher, uid: str) -> messages.RunState:
        # A complete or unknown run is not kept: a publisher may ask for any number of them.
        facts = self._find_facts(uid)
        state = self._scheduler.describe_run(uid, publisher.client, facts)
        journal = self._scheduler.runs[uid].journal if facts is None else facts.journal
        if state.outcome == State.FAILED.value and retry_is_requested(journal):
            return msgspec.structs.replace(state, outcome="", reason="")
        return state

    # Workers.

    def _hear_workers(self) -> None:
        for number, message in self._pool.receive_messages():
            try:
                if isinstance(message, messages.Report):
                    self.report.tiled.add(message)
                effects = self._scheduler.receive_message(number, message, _now())
                if isinstance(message, messages.Durable):
                    crash_point("supervisor: documents durable, publisher not told")
                self._perform(effects)
            except LifecycleError:
                log.exception("A message came out of order; it is ignored.")
            except Exception:
                self._limited_log.log(
                    logging.ERROR, "message", "A message of worker %d cannot be handled.", number, exc_info=True
                )

    def _hear_fork_server(self) -> None:
        changes = self._pool.receive_changes()
        if self._pool.fork_server.unusable:
            raise WorkersUnusable(self._pool.fork_server.unusable)
        for number, process in changes:
            if process.pid is not None:
                # It may have ended since.
                self._scheduler.confirm_fork(number, _now())
            if not process.ended:
                crash_point("supervisor: worker forked")
                continue
            # Read the worker's last messages first.
            self._hear_workers()
            self._pool.remove(number)
            run = self._scheduler.run_of(number)
            try:
                self._handle_worker_end(run, number, process)
            except Exception:
                self._log_trouble(run.uid)
                facts = find_facts(self.journal_dir, run.uid)
                self._perform(self._scheduler.reload_run(run, facts, _now()))

    def _handle_worker_end(self, run: Run, number: int, process: WorkerProcess) -> None:
        facts = find_facts(self.journal_dir, run.uid)
        self._perform(self._scheduler.handle_worker_end(number, process.exit_code, facts, _now()))

    def _start_worker_or_postpone(self, effect: StartWorker) -> list[Effect]:
        try:
            return self._start_worker(effect)
        except Exception as error:
            self._limited_log.log(
                logging.ERROR, "start", "Run %s has no worker; trying again: %s", effect.uid, error, exc_info=True
            )
            return self._scheduler.retry_start(effect.worker, f"no worker can be started: {error}", _now())

    def _start_worker(self, effect: StartWorker) -> list[Effect]:
        if effect.orphan is not None and self._pool.is_alive(effect.orphan):
            return self._scheduler.postpone_for_orphan(effect.worker, _now())
        journal = bring_back(effect.journal)
        self._scheduler.move_journal(effect.worker, journal)
        self._pool.start(effect.worker, effect.uid, journal, effect.order, effect.client)
        return []

    def _kill_workers(self) -> None:
        for number in self._pool.kill_all():
            uid = self._scheduler.run_of(number).uid
            log.warning("The worker of run %s did not end in time and was killed; nothing is lost.", uid)

    # Journals.

    def _survey_journals(self) -> None:
        """Continue the survey of the journals that earlier supervisors left."""
        if self._survey.done or self._scheduler.is_stopping:
            return
        if self._survey.proceed():
            self._scheduler.finish_survey()
            count = self._scheduler.runs_to_resume
            log.info("%d journals read; resuming %d unfinished runs.", self._survey.seen, count)

    def _delete_old_journals(self) -> None:
        if self._survey.done and not self._scheduler.is_stopping:
            self._retention.proceed(time.time())

    def _handle_surveyed_journal(self, path: Path) -> None:
        if self._find_run(path) is not None:
            # Documents have arrived for it, or it is being retried.
            return
        if is_finished(path):
            self._finished_journals.file(path)
        elif self._unclaimed.may_write(facts := read_facts(path)):
            self._perform(self._scheduler.add_journal(facts, _now()))
        else:
            self._unclaimed.add(facts)

    def _read_for_audit(self, uid: str) -> list[Effect]:
        facts = find_facts(self.journal_dir, uid)
        if self._unclaimed.may_write(facts):
            return self._scheduler.audit_run(facts, _now())
        self._unclaimed.add(facts)
        return []

    def _resume_claimed_journals(self) -> None:
        """Take the journals of runs that this host has claimed since they were found."""
        if self._scheduler.is_stopping:
            return
        for path in self._unclaimed.take_claimed():
            self._handle_surveyed_journal(path)

    def _find_run(self, journal: Path) -> Run | None:
        """Return the run that has this journal, or None if the scheduler does not know it."""
        if journal_filename(journal.stem) == journal.name:
            return self._scheduler.runs.get(journal.stem)
        return self._scheduler.find_run(journal)

    def _find_retries(self) -> None:
        """Find and start requested retries."""
        if self._scheduler.is_stopping:
            return
        try:
            for path in self._retries.find_requests():
                self._request_retry(path)
        except Exception:
            log.exception("Retry requests cannot be answered.")

    def _forget_deleted_journals(self) -> None:
        """Look whether journals of failed runs are still there, a few at a time."""
        failed = self._scheduler.tally.failed
        for run in failed.list_next(_FAILED_JOURNALS_PER_CHECK):
            try:
                Path(run.journal).stat()
            except FileNotFoundError:
                failed.discard(run.uid)
            except OSError:
                # It may still be there.
                continue

    def _request_retry(self, path: Path) -> None:
        facts = read_facts(path)
        if self._unclaimed.may_write(facts):
            self._perform(self._scheduler.request_retry(facts, _now()))
        else:
            self._owner.want(facts.uid)

    def _clear_failure(self, journal: Path) -> list[Effect]:
        try:
            was_failed = clear_failure(journal, lock_timeout=0.0)
        except JournalLocked:
            # Another process has the journal open for a moment.
            return []
        except (JournalError, sqlite3.Error, OSError) as error:
            log.error("Run %s cannot be retried: %s", journal.stem, error)
            return self._scheduler.refuse_retry(journal)
        return self._scheduler.resume_cleared(read_facts(journal), was_failed=was_failed)

    def _compare_documents(self, effect: CompareDocuments) -> None:
        """Acknowledge documents that an ended run's journal has; refuse those of another run with the same uid."""
        message, publisher = effect.message, effect.publisher
        try:
            with Journal(effect.journal, run_uid=message.run) as journal:
                is_same = journal.has(message.first, message.crcs)
        except (JournalError, sqlite3.Error, OSError) as error:
            log.error("A journal cannot be compared with documents that were sent: %s", error)
            refusal = messages.Refused(message.run, message.first, messages.LATER, str(error))
            self._source.refuse("later", publisher, refusal)
            return
        if is_same:
            self._scheduler.add_publisher(publisher, [message.run])
            self._source.send(publisher, messages.Durable(message.run, effect.length, True))
        else:
            self._source.refuse("uid", publisher, messages.Refused(message.run, 0, messages.ANOTHER_RUN))

    # Effects.

    def _perform_effect(self, effect: Effect) -> list[Effect]:
        """Perform an effect, and return the effects that follow from what came of it."""
        match effect:
            case StartWorker():
                return self._start_worker_or_postpone(effect)
            case SendToWorker(number, message):
                self._pool.send(number, message)
                if isinstance(message, messages.Documents):
                    crash_point("supervisor: documents relayed")
            case KillWorker(number):
                self._pool.kill(number)
            case KillOrphan(process):
                self._pool.kill_process(process)
            case TellPublisher(publisher, message):
                self._source.send(publisher, message)
            case RefuseDocuments(topic, publisher, refusal):
                self._source.refuse(topic, publisher, refusal)
            case CompareDocuments():
                self._compare_documents(effect)
            case ReadForAudit(uid):
                return self._read_for_audit(uid)
            case RecordEvent(journal, event, detail, state):
                record_event(journal, event, detail, state)
            case FileJournal(journal):
                self._finished_journals.file(journal)
            case ClearFailure(journal):
                return self._clear_failure(journal)
            case WithdrawRetry(journal):
                withdraw_retry(journal)
        return []


def _now() -> Instant:
    return Instant(time.monotonic(), time.time())
