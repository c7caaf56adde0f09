"""The scheduler: decides when runs get workers, what these and publishers are told, and when workers are replaced.

Events go in with the time, effects come out as frozen values; the supervisor performs them and reports what came of
them. The scheduler reads no clock, opens no file and knows no process, so all its decisions can be tested and simulated
without any. The state of a run changes in this room only. `settle_run` decides whether a worker is restarted or its run
is put in quarantine.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...protocol import messages
from .._clock import Instant
from .._lifecycle import State
from .._publishers import DEFAULT_MAX_OPEN_RUNS, Publisher
from ..status import Backlog, Tally, TiledOutage
from ._admission import answer_known, find_refusal
from ._audit_schedule import PUT_OFF_SECONDS, AuditSchedule
from ._disk_space import DiskSpace, Space
from ._effects import (
    ClearFailure,
    Effect,
    FileJournal,
    KillOrphan,
    ReadForAudit,
    RefuseDocuments,
    StartWorker,
    WithdrawRetry,
)
from ._pacing import Pacing
from ._resume_queue import ResumeQueue
from ._runs import FINISH_TIMEOUT_SECONDS, Purpose, Run, RunMessage, Worker
from ._start_queue import StartQueue
from ._worker_end import settle_run
from ._worker_monitor import WorkerLimits, WorkerMonitor
from ._worker_roster import WorkerRoster
from ._write_slots import WriteSlots

if TYPE_CHECKING:
    from .._journal_facts import JournalFacts

log = logging.getLogger(__name__)

DEFAULT_MAX_WORKERS: Final = 128
DEFAULT_MAX_RESUMED: Final = 4

FORK_PAUSE_SECONDS: Final = 1.0
"""Delay before another attempt when a worker could not be started."""
ORPHAN_PAUSE_SECONDS: Final = 0.1
"""Delay before another check for the end of an orphan."""
ORPHAN_GRACE_SECONDS: Final = 2.0
"""Time that workers of an earlier supervisor have to end by themselves before they are killed."""
SURVEY_LEAD_SECONDS: Final = 1.0
"""Time of the survey before the first run is resumed, so that unfinished runs are resumed in their order."""
NO_DOCUMENTS: Final = (
    "its journal has no documents. Either none was acknowledged, so that its publisher still has all of them, or it is "
    "a copy without its -wal file. If the run is elsewhere, remove the file"
)
STOP_TIMEOUT_SECONDS: Final = 10.0
"""Time that workers have to end when the supervisor stops."""

# Two runs that arrive at the same reading of the clock are this far apart, so that their order is defined.
_ORDER_STEP_SECONDS: Final = 1e-6


class Scheduler:
    """Schedules workers for runs. Most methods that take an event return the effects to perform, in order.

    Methods that decide something add its effects to a list, which the method that takes the event hands out. Those that
    take an event of which nothing follows at once, such as a measurement, return nothing.

    Parameters
    ----------
    now
        Time of the start.
    max_workers
        Worker processes at a time.
    max_resumed
        How many of these workers may write what earlier workers left.
    max_open_runs
        Runs of one client that may be open at a time.
    drain
        Keep the runs that are done, so that `unwritten_runs` can name those that are not.
    limits
        Limits of each worker.
    disk
        The disk of the journals.
    write_slots
        Workers that may write to Tiled at a time; None for as many as its storage takes.

    Attributes
    ----------
    runs
        The runs that have or may need a worker, by uid; with `drain`, also those that are done.
    tally
        What has been counted since the start.
    outage
        The outage of Tiled, if there is one.
    disk
        The disk of the journals.
    write_slots
        Write slots of the workers.
    """

    def __init__(
        self,
        now: Instant,
        *,
        max_workers: int = DEFAULT_MAX_WORKERS,
        max_resumed: int = DEFAULT_MAX_RESUMED,
        max_open_runs: int = DEFAULT_MAX_OPEN_RUNS,
        drain: bool = False,
        limits: WorkerLimits = WorkerLimits(),  # noqa: B008  it is frozen
        disk: DiskSpace | None = None,
        write_slots: int | None = None,
    ) -> None:
        self.disk = disk or DiskSpace(Path())
        self.runs: dict[str, Run] = {}
        self.tally = Tally()
        self._began = now.monotonic
        self._max_open_runs = max_open_runs
        self._drain = drain
        self._roster = WorkerRoster(max_workers)
        self._resume_queue = ResumeQueue(max_resumed)
        self._start_queue = StartQueue(self._roster, self._resume_queue)
        # Written runs to be compared with their journals again.
        self._audit_schedule = AuditSchedule(drain=drain)
        self._monitor = WorkerMonitor(limits, now.monotonic)
        self.write_slots = WriteSlots(write_slots)
        self._pacing = Pacing(self._roster.count_active)
        self.outage = TiledOutage()
        self._survey_done = False
        self._stop_deadline: float | None = None
        self._last_order = 0.0
        self._effects: list[Effect] = []

    # Questions.

    @property
    def is_stopping(self) -> bool:
        """Whether the supervisor was told to stop."""
        return self._stop_deadline is not None

    @property
    def runs_to_resume(self) -> int:
        """Number of runs that wait to be resumed."""
        return len(self._resume_queue)

    @property
    def survey_done(self) -> bool:
        """Whether all journals that earlier supervisors left have been seen."""
        return self._survey_done

    @property
    def max_workers(self) -> int:
        """Worker processes at a time."""
        return self._roster.max_workers

    @property
    def running_workers(self) -> int:
        """Number of workers, also of those that are being started."""
        return len(self._roster)

    def is_done(self, now: Instant) -> bool:
        """Return whether there is nothing left to do: after a stop, or when draining."""
        if self._stop_deadline is not None:
            # A worker that is still being forked ends by itself when the fork server ends.
            forked = any(worker.forked for worker in self._roster.workers)
            return not forked or now.monotonic >= self._stop_deadline
        left = self._start_queue or self._audit_schedule or self._roster
        return self._drain and self._survey_done and not left

    def unwritten_runs(self) -> list[Run]:
        """Return the runs that are not completely in Tiled."""
        return [run for run in self.runs.values() if not self._is_drained(run)]

    def count_unwritten(self) -> Counter[str]:
        """Return how many runs are not completely in Tiled, by state; failed ones count also if they need no worker."""
        counts = Counter(run.state.value for run in self.unwritten_runs())
        counts[State.FAILED.value] = max(counts[State.FAILED.value], len(self.tally.failed))
        return +counts

    def find_run(self, journal: Path) -> Run | None:
        """Return the run that has this journal, or None if the scheduler does not know it."""
        return next((run for run in self.runs.values() if run.journal == journal), None)

    def run_of(self, number: int) -> Run:
        """Return the run of a worker."""
        return self._roster[number]

    def describe_run(self, uid: str, client: str, facts: JournalFacts | None) -> messages.RunState:
        """Return the state of a run as a client is told it; an empty state if the client must not know it.

        Parameters
        ----------
        uid
            Uid of the run.
        client
            Name of the client's CURVE key; "" without CURVE.
        facts
            What the run's journal says; None if the run is in `runs`.
        """
        run = self.runs[uid] if facts is None else Run.from_facts(facts)
        if run.unavailable or not run.belongs_to(client):
            return messages.RunState(0, ended=False, outcome="")
        return run.describe_state()

    def is_waiting_for_room(self, run: Run) -> bool:
        """Return whether a run has documents to store, and no worker because too many are running."""
        return self._start_queue.is_waiting_for_room(run)

    def describe_wait(self, run: Run, now: Instant) -> str:
        """Return why a run does not go on, as a sentence; "" if it does, or has nothing to wait for."""
        return self._start_queue.describe_wait(run, now)

    def measure_backlog(self) -> Backlog:
        """Return how much is journaled and not known to be in Tiled."""
        left = [run for run in self.runs.values() if run.has_work_left]
        return Backlog(len(left), sum(run.next - run.written for run in left))

    def find_next_time(self, now: Instant) -> float:
        """Return the time (`time.monotonic`) at which `schedule` has something to do if nothing happens before."""
        if self.is_stopping:
            return float("inf")
        return self._start_queue.find_next_time(may_resume=self._may_resume(now))

    # Events: time passes.

    def schedule(self, now: Instant) -> list[Effect]:
        """Start the workers that are due, as far as there is room, and end idle ones to make room."""
        if self.is_stopping:
            # Repeated each time, since a worker that was just started does not listen yet.
            self._effects += [worker.send_message(messages.Finish()) for worker in self._roster.workers]
            return self._take_effects()
        due = self._start_queue.list_due(now.monotonic)
        for position, run in enumerate(due):
            if not self._has_room:
                self._make_room(len(due) - position, now)
                return self._take_effects()
            self._start_queue.discard(run)
            self._start_worker(run, Purpose.STORE, now)
        self._resume_runs(now)
        return self._take_effects()

    def check_workers(self, memory: Mapping[int, int], now: Instant) -> list[Effect]:
        """End workers that do not answer, use too much memory, or do not end when told to. Called once a second.

        Parameters
        ----------
        memory
            Resident bytes of workers by number, as far as they are known.
        now
            The time.
        """
        self._effects += self._monitor.check_workers(self._roster.runs, memory, now.monotonic)
        self.outage.report(now, self.measure_backlog)
        self._effects += self.write_slots.grant(now.monotonic)
        return self._take_effects()

    def take_disk_space(self, space: Space | None, now: Instant) -> None:
        """Take the space on the journals' disk; None if it cannot be measured. Called once a second."""
        self.disk.update(space, now.monotonic)

    def stop(self, now: Instant) -> None:
        """Tell all workers to end, from the next `schedule` on; a second call gives them no more time."""
        timeout = STOP_TIMEOUT_SECONDS if self._stop_deadline is None else 0.0
        self._stop_deadline = now.monotonic + timeout

    # Events: publishers.

    def receive_documents(
        self, publisher: Publisher, message: RunMessage, facts: JournalFacts | None, now: Instant
    ) -> list[Effect]:
        """Take documents, or the end of a run that its publisher has abandoned.

        Parameters
        ----------
        publisher
            The sender.
        message
            The message.
        facts
            What the run's journal says; None if the run is in `runs`.
        now
            The time.
        """
        run = self.runs[message.run] if facts is None else Run.from_facts(facts)
        if (refusal := find_refusal(run, publisher, message, self.runs, self._max_open_runs)) is not None:
            self._effects.append(refusal)
        elif run.ended and message.next <= run.next:
            self._effects.append(answer_known(run, publisher, message))
        elif self.disk.is_full:
            # Nothing is acknowledged, so the publisher keeps the documents.
            later = messages.Refused(run.uid, run.next, messages.LATER, self.disk.explain())
            self._effects.append(RefuseDocuments("disk", publisher, later))
        else:
            if run.uid not in self.runs:
                self._register_run(run, now)
            run.note_message(publisher, message, now.monotonic)
            if (worker := run.listening_worker) is not None:
                self._effects.append(worker.send_message(message))
                self._pacing.note_delivery(worker.number, now.monotonic)
            else:
                run.queue_message(message)
                self._start_queue.add(run, Purpose.STORE)
            if isinstance(message, messages.Documents):
                self.tally.bytes += len(message.body)
            self.tally.note_state(run, now)
        return self._take_effects()

    def add_publisher(self, publisher: Publisher, uids: Collection[str]) -> None:
        """Inform a publisher about those of the given runs that belong to its client, from now on."""
        for uid in uids:
            run = self.runs.get(uid)
            if run is not None and run.belongs_to(publisher.client):
                run.publishers.add(publisher)

    def remove_publisher(self, publisher: Publisher) -> None:
        """Forget a publisher whose connection is gone."""
        for run in self.runs.values():
            run.publishers.discard(publisher)

    # Events: workers.

    def retry_start(self, number: int, error: str, now: Instant) -> list[Effect]:
        """Try again later to start a worker that could not be started."""
        run = self._roster[number]
        self.tally.start_problem.note(error, now.unix)
        self._postpone_start(run, FORK_PAUSE_SECONDS, now)
        self._effects += run.tell_publishers(messages.Refused(run.uid, run.next, messages.LATER, error))
        return self._take_effects()

    def postpone_for_orphan(self, number: int, now: Instant) -> list[Effect]:
        """Wait for the end of the run's earlier worker, which still runs; kill it if it should have ended by now.

        Workers of a killed supervisor end by themselves unless they hang.
        """
        run = self._roster[number]
        if run.orphan is not None and now.monotonic >= self._began + ORPHAN_GRACE_SECONDS:
            log.warning(
                "Process %d, a worker of run %s without a supervisor, hangs; killing it.", run.orphan[0], run.uid
            )
            self._effects.append(KillOrphan(run.orphan))
            run.orphan = None
        self._postpone_start(run, ORPHAN_PAUSE_SECONDS, now)
        return self._take_effects()

    def move_journal(self, number: int, journal: Path) -> None:
        """Note the new path of the journal of a worker's run."""
        self._roster[number].journal = journal

    def confirm_fork(self, number: int, now: Instant) -> None:
        """Note that a worker process exists."""
        run = self._roster.get(number)
        if run is not None and run.worker is not None:
            run.worker.forked = True
            self.tally.start_problem.clear()
            run.worker.answered_at = run.worker.pinged_at = now.monotonic

    def receive_message(self, number: int, message: messages.Message, now: Instant) -> list[Effect]:
        """Take a message of a worker. One from a worker that was replaced is ignored.

        Raises
        ------
        LifecycleError
            The message is not possible in the state of its run.
        """
        run = self._roster.get(number)
        if run is None or run.worker is None:
            return []
        worker = run.worker
        worker.answered_at = now.monotonic
        match message:
            case messages.Ready():
                self._effects += run.note_ready(worker, message, is_stopping=self.is_stopping)
            case messages.Durable():
                self._note_durable(run, worker, message, now)
            case messages.Refused():
                if message.reason == messages.LATER and message.detail:
                    self.tally.journal_problem.note(message.detail, now.unix)
                self._effects += run.note_refusal(worker, message)
            case messages.Progress():
                self.tally.written_documents += max(0, message.next - run.written)
                run.advance(written=message.next)
            case messages.Report():
                run.scan_id, run.plan = message.scan_id, message.plan
                worker.waits_for = message.waits_for
            case messages.Reached():
                self.outage.note_answer(run.uid, now, self.measure_backlog)
                self._resume_queue.note_recovery()
            case messages.Unreachable(since=since, reason=reason, needs_person=needs_person):
                self.outage.note_refusal(run.uid, since, reason, now, needs_person=needs_person)
            case messages.Written():
                self.outage.forget_run(run.uid)
                self._effects += run.apply_outcome(State(message.outcome), message.reason)
            case messages.SlotWanted():
                order = run.order if run.ended else None
                self._effects += self.write_slots.request(number, run.uid, now.monotonic, order=order)
            case messages.SlotReleased():
                self._effects += self.write_slots.release(number, message.storage, now.monotonic)
        self.tally.note_state(run, now)
        return self._take_effects()

    def _note_durable(self, run: Run, worker: Worker, message: messages.Durable, now: Instant) -> None:
        self.tally.documents += max(0, message.next - run.next)
        self.tally.journal_problem.clear()
        run.reopen_for(message.next)
        run.advance(next_=message.next)
        run.note_end(ended=message.ended)
        self._pacing.note_acknowledgement(worker.number, now.monotonic)
        pause = self._pacing.find_pause(now.monotonic)
        self._effects += run.tell_publishers(messages.Durable(run.uid, message.next, message.ended, pause))

    def handle_worker_end(self, number: int, exit_code: int | None, facts: JournalFacts, now: Instant) -> list[Effect]:
        """Decide what follows the end of a worker.

        Parameters
        ----------
        number
            Number of the worker.
        exit_code
            Its exit code; None if it is unknown.
        facts
            What the run's journal says now.
        now
            The time.
        """
        run = self._roster[number]
        worker = run.worker
        assert worker is not None
        if not worker.forked:
            self.tally.start_problem.note("the fork server made no process", now.unix)
            self._postpone_start(run, FORK_PAUSE_SECONDS, now)
            return self._take_effects()
        self._forget_worker(run, now)
        self.outage.note_worker_end(run.uid)
        run.orphan = None
        died = worker.has_died(exit_code)
        if died and not self.is_stopping:
            self.tally.note_death(now)
        after = settle_run(run, worker, exit_code, facts, now, is_stopping=self.is_stopping)
        self._effects += after.effects
        if after.tiled_is_away:
            self._resume_queue.note_outage(run, now.monotonic, was_probe=worker.is_probe)
            self.outage.note_parking(run.uid, now)
        if after.next_purpose is not None:
            self._start_queue.add(run, after.next_purpose)
        if worker.relayed > run.next:
            # The worker ended with documents that it had not stored.
            self._effects += run.tell_publishers(messages.Refused(run.uid, run.next, messages.GAP))
        self._choose_what_follows(run, worker, facts, died=died, now=now)
        self.tally.note_state(run, now)
        return self._take_effects()

    def _choose_what_follows(self, run: Run, worker: Worker, facts: JournalFacts, *, died: bool, now: Instant) -> None:
        """Try a failed run again, give a run another worker for what has arrived meanwhile, or let a final one go."""
        if run.retry_requested and run.state is State.FAILED and not self.is_stopping:
            run.retry_requested = False
            self._effects.append(ClearFailure(run.journal))
        elif run.queued_messages and not self.is_stopping:
            self._start_queue.add(run, Purpose.STORE)
        elif run.is_final:
            if run.is_complete:
                self._effects += self._audit_schedule.plan_next(
                    run, worker, facts, now, died=died, is_stopping=self.is_stopping
                )
            self._forget_run(run)

    def reload_run(self, run: Run, facts: JournalFacts, now: Instant) -> list[Effect]:
        """Begin a run anew from its journal, after an error while the end of its worker was handled."""
        if run.worker is not None:
            self._forget_worker(run, now)
        self._start_queue.discard(run)
        fresh = Run.from_facts(facts)
        fresh.publishers, fresh.start_at = run.publishers, now.monotonic + FINISH_TIMEOUT_SECONDS
        fresh.noted_state = run.noted_state
        self.tally.note_state(fresh, now)
        if fresh.is_final or not fresh.next or self.is_stopping:
            self.runs.pop(run.uid, None)
        else:
            self.runs[run.uid] = fresh
            self._start_queue.add(fresh, Purpose.RESUME)
        detail = "there was an error about it on the ingest host"
        self._effects += fresh.tell_publishers(messages.Refused(run.uid, fresh.next, messages.LATER, detail))
        return self._take_effects()

    # Events: journals.

    def add_journal(self, facts: JournalFacts, now: Instant) -> list[Effect]:
        """Take a journal that an earlier supervisor left: file it, plan its audit, or resume its run."""
        if facts.uid in self.runs:
            return []
        self._last_order = max(self._last_order, facts.order)
        self.tally.failed.note_found(Run.from_facts(facts))
        if facts.unavailable and not self._drain:
            # It is read again then, less and less often, because what stays so is no journal.
            pause = max(PUT_OFF_SECONDS, now.monotonic - self._began)
            self._audit_schedule.schedule(facts.uid, now.unix + pause)
        elif facts.complete and facts.audit_at is None:
            self._effects.append(FileJournal(facts.journal))
        elif facts.complete and facts.audit_at is not None:
            self._audit_schedule.schedule_unless_draining(facts.uid, facts.audit_at, now)
        elif facts.state is State.FAILED:
            if self._drain:
                self.runs[facts.uid] = Run.from_facts(facts)
        elif facts.length:
            run = self.runs[facts.uid] = Run.from_facts(facts)
            self._start_queue.add(run, Purpose.RESUME)
        elif self._drain:
            # A run without documents is not resumed. Its publisher has all of them, unless this is half of a copy.
            run = self.runs[facts.uid] = Run.from_facts(facts)
            run.reason = NO_DOCUMENTS
        return self._take_effects()

    def finish_survey(self) -> None:
        """Note that all journals that earlier supervisors left have been seen."""
        self._survey_done = True

    def audit_run(self, facts: JournalFacts, now: Instant) -> list[Effect]:
        """Start the audit of a written run, whose journal was just read.

        The journal may say something else by now, or could not be read when it was found.
        """
        if facts.uid not in self.runs and (facts.unavailable or not facts.complete or facts.audit_at is None):
            return self.add_journal(facts, now)
        run = self.runs.get(facts.uid) or Run.from_facts(facts)
        # Otherwise new documents have arrived for it, and the audit comes after these are written.
        if run.is_complete and run.worker is None and self._has_room:
            self._register_run(run, now)
            self._start_worker(run, Purpose.AUDIT, now)
        elif run.is_complete and run.worker is None:
            self._audit_schedule.schedule(run.uid, now.unix)
        return self._take_effects()

    def request_retry(self, facts: JournalFacts, now: Instant) -> list[Effect]:
        """Retry a quarantined run, whose journal was just read: end its worker, or clear the failure in its journal."""
        run = self.find_run(facts.journal)
        worker = None if run is None else run.worker
        if run is None or worker is None:
            self._effects.append(ClearFailure(facts.journal))
        elif facts.state is not State.FAILED:
            # The new worker has not failed yet, so there is nothing to retry.
            self._effects.append(WithdrawRetry(facts.journal))
        elif worker.finish_by is None:
            # This worker only journals; the next one writes.
            run.retry_requested = True
            self._effects.append(worker.tell_to_finish(now.monotonic))
        return self._take_effects()

    def resume_cleared(self, facts: JournalFacts, *, was_failed: bool = True) -> list[Effect]:
        """Resume a run whose failure, if there was one, was removed from its journal, which was read again."""
        run = self.find_run(facts.journal)
        if was_failed and (run is None or run.noted_state is State.FAILED):
            self.tally.failed.discard(facts.uid)
        if run is None:
            run = self.runs[facts.uid] = Run.from_facts(facts)
        run.forget_failure()
        if run.queued_messages:
            self._start_queue.add(run, Purpose.STORE)
        elif self._start_queue.has_documents_of(run):
            pass
        elif run.has_work_left:
            self._start_queue.add(run, Purpose.RESUME)
        else:
            self._forget_run(run)
        run.noted_state = run.state
        self._effects.append(WithdrawRetry(facts.journal))
        return self._take_effects()

    def refuse_retry(self, journal: Path) -> list[Effect]:
        """Go on without a retry that is not possible; documents that came meanwhile are journaled."""
        run = self.find_run(journal)
        if run is not None and run.worker is None and run.queued_messages:
            self._start_queue.add(run, Purpose.STORE)
        self._effects.append(WithdrawRetry(journal))
        return self._take_effects()

    # Decisions about documents.

    def _register_run(self, run: Run, now: Instant) -> None:
        self.runs[run.uid] = run
        self._last_order = max(now.unix, self._last_order + _ORDER_STEP_SECONDS, run.order)
        run.order = run.order or self._last_order

    # Decisions about workers.

    @property
    def _has_room(self) -> bool:
        return not self.is_stopping and self._roster.has_room

    def _may_resume(self, now: Instant) -> bool:
        """Return whether the survey knows which runs to resume first, or has had enough time."""
        return self._survey_done or now.monotonic >= self._began + SURVEY_LEAD_SECONDS

    def _resume_runs(self, now: Instant) -> None:
        """Start workers for what earlier workers left, a few at a time. Parked runs come before audits."""
        if not self._resume_queue and not self._audit_schedule.may_have_due(now.unix):
            return
        while self._may_resume(now) and self._start_queue.may_resume(now.monotonic):
            if not self._has_room:
                self._make_room(min(1, len(self._resume_queue)), now, open_only=True)
                return
            run = self._resume_queue.pop_next(now.monotonic)
            if run is None:
                self._start_audits(now)
                return
            run.resume()
            self._start_worker(run, Purpose.RESUME, now)

    def _start_audits(self, now: Instant) -> None:
        """Have the journals read of runs whose audit is due, as long as at most half of all workers would be busy."""
        busy, workers = self._roster.count_catching_up(), len(self._roster)
        while self._resume_queue.may_resume(busy, now.monotonic) and workers < max(1, self._roster.max_workers // 2):
            uid = self._audit_schedule.pop_due(now.unix)
            if uid is None:
                return
            self._effects.append(ReadForAudit(uid))
            busy, workers = busy + 1, workers + 1

    def _make_room(self, places: int, now: Instant, *, open_only: bool = False) -> None:
        away = self._resume_queue.away
        self._effects += self._roster.end_idle(places, now.monotonic, away=away, open_only=open_only)

    def _start_worker(self, run: Run, purpose: Purpose, now: Instant) -> None:
        is_probe = purpose is not Purpose.STORE and self._resume_queue.away
        worker = self._roster.add_worker(run, purpose, now, is_probe=is_probe)
        self.tally.note_state(run, now)
        self._effects.append(StartWorker(worker.number, run.uid, run.journal, run.order, run.client, run.orphan))

    def _forget_worker(self, run: Run, now: Instant) -> None:
        number = self._roster.remove_worker(run).number
        self._pacing.forget(number)
        self._effects += self.write_slots.forget(number, now.monotonic)

    def _postpone_start(self, run: Run, pause_seconds: float, now: Instant) -> None:
        """Start the worker of a run later, since no process came about."""
        assert run.worker is not None
        purpose = run.worker.purpose
        self._forget_worker(run, now)
        run.start_at = now.monotonic + pause_seconds
        if purpose is Purpose.AUDIT and not run.queued_messages:
            self._audit_schedule.schedule(run.uid, now.unix + pause_seconds)
            self._forget_run(run)
        else:
            self._start_queue.add(run, Purpose.STORE if run.queued_messages else purpose)

    # Decisions about runs that are done.

    def _forget_run(self, run: Run) -> None:
        if not self._drain and not self.is_stopping:
            del self.runs[run.uid]

    def _is_drained(self, run: Run) -> bool:
        if run.state is State.PARKED:
            # An open run may be parked although all its documents so far are written.
            return self._drain and not run.has_work_left
        return run.is_complete

    def _take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
