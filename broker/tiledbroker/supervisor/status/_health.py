"""The judgement of a snapshot: is the service well, and if not, why not and what is to be done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Final

import msgspec

from ..._wording import as_sentence, format_command, format_run_command
from .._lifecycle import State
from ._snapshot import Health, LeaseStatus, LogStatus, RunStatus, Snapshot, TiledLook

RECENT_SECONDS: Final = 300.0
"""Time for which the death of a worker or the refusal of a publisher counts as recent."""
START_GRACE_SECONDS: Final = 10.0
"""Time for which the service is only degraded while no worker can be started: a new fork server takes as long."""
TILED_GRACE_SECONDS: Final = 20.0
"""Time for which an idle service does not warn of an unreachable Tiled: that may be starting, too."""
LOG_ALMOST_FULL: Final = 0.9
"""Part of its limit from which on a site's log is almost full."""
JOURNAL_GRACE_SECONDS: Final = 30.0
"""Time after which a refused write to a journal is taken for over if no other was tried."""
LATE_SECONDS: Final = 60.0
"""Age from which a document that a connected publisher has and that is not acknowledged is late."""

# Refusals that keep a publisher out as a whole.
_PUBLISHER_TOPICS: Final = {
    "key": "their key is not let in",
    "version": "they speak another version of the protocol",
    "connections": "the client has too many connections",
    "identity": "they have no identity of their own",
}


@dataclass(frozen=True)
class Symptoms:
    """What the judgement needs beyond the snapshot. Times are Unix times.

    Attributes
    ----------
    tiled_needs_person
        Tiled refuses all requests for a reason that will not pass by itself.
    journal_problem, journal_problem_at
        Reason why a journal could not be written, and when that was seen last; "" if the last write succeeded.
    start_problem, start_problem_since
        Reason why no worker can be started, and since when; "" if the last one was started.
    died_at
        Time of the last death of a worker; None if there was none.
    refused_at
        Time of the last refusal by topic.
    refused_runs
        Reasons why runs of connected publishers are refused, by the publisher's name.
    survey_done
        All journals that earlier supervisors left have been read.
    has_unwritten
        There are documents that are to be written to Tiled.
    lost_documents
        How many documents that were acknowledged the journals of runs no longer have, by uid.
    page_problem
        Reason why the status page is not served; "" if it is, or is not asked for.
    """

    tiled_needs_person: bool = False
    journal_problem: str = ""
    journal_problem_at: float = 0.0
    start_problem: str = ""
    start_problem_since: float = 0.0
    died_at: float | None = None
    refused_at: dict[str, float] = field(default_factory=dict)
    refused_runs: dict[str, dict[str, str]] = field(default_factory=dict)
    survey_done: bool = True
    has_unwritten: bool = False
    lost_documents: dict[str, int] = field(default_factory=dict)
    page_problem: str = ""


def judge_service(snapshot: Snapshot, symptoms: Symptoms, check_command: str = "") -> Snapshot:
    """Return the snapshot with state and reasons; `check_command` checks the service."""
    advice = f" More by: `{check_command}`" if check_command else ""
    failures = [*_find_failures(snapshot, symptoms, advice)]
    defects = [*_find_defects(snapshot, symptoms, advice)]
    state: Health = "failed" if failures else "degraded" if defects else "well"
    reasons = [*failures, *defects]
    if snapshot.lease is not None and not snapshot.lease.held:
        reasons.append(_describe_standby(snapshot.lease))
    elif snapshot.tiled.reachable is None and not symptoms.has_unwritten:
        reasons.append(f"{_describe_look(snapshot.tiled.look)}{advice}")
    return msgspec.structs.replace(snapshot, state=state, reasons=reasons)


def _describe_look(look: TiledLook | None) -> str:
    if look is None:
        return "Tiled has not been asked yet, since there was nothing to write."
    if look.answers:
        return (
            f"Tiled answered at {_time(look.at)}. It has not been asked to take anything yet, since there was nothing "
            "to write."
        )
    return f"Tiled has not answered yet ({look.problem}). It is asked again every few seconds."


def _describe_lease_problem(lease: LeaseStatus) -> str:
    if lease.held:
        return (
            f"The lease in {lease.place} cannot be renewed: {as_sentence(str(lease.problem))} In "
            f"{max(lease.seconds_left or 0.0, 0.0):.0f} s this host stops, so that another one may take over; nothing "
            "is lost."
        )
    return (
        f"The lease in {lease.place} cannot be read: {as_sentence(str(lease.problem))} Until it can be, this host does "
        "not take over."
    )


def _describe_standby(lease: LeaseStatus) -> str:
    if lease.host is None:
        return f"This host stands by. Who holds the lease in {lease.place} is not known yet."
    return (
        f"This host stands by: {lease.host} holds the lease in {lease.place} (epoch {lease.epoch}). This host takes "
        "over by itself when that one stops or falls silent."
    )


def _find_failures(snapshot: Snapshot, symptoms: Symptoms, advice: str) -> Iterator[str]:
    """Yield the reasons why the service cannot do its work at all."""
    full = [disk for disk in snapshot.disks if disk.state == "full"]
    for disk in full:
        yield (
            f"The disk of the {disk.purpose} in {disk.path} is full: {_bytes(disk.free)} are free. Nothing more is "
            "acknowledged, so publishers keep their documents. Make space; it goes on by itself."
        )
    if symptoms.journal_problem and snapshot.now - symptoms.journal_problem_at < JOURNAL_GRACE_SECONDS and not full:
        yield (
            f"A journal cannot be written: {as_sentence(symptoms.journal_problem)} What is not acknowledged "
            f"stays with the publishers. Look at {snapshot.journal_dir}."
        )
    if symptoms.start_problem and snapshot.now - symptoms.start_problem_since >= START_GRACE_SECONDS:
        yield (
            f"No worker can be started since {_time(symptoms.start_problem_since)}: {symptoms.start_problem}. "
            "The supervisor's log shows more."
        )
    if symptoms.tiled_needs_person:
        tiled = snapshot.tiled
        yield (
            f"Tiled refuses all requests since {_time(tiled.since)}: {tiled.problem}. Nothing is written until "
            f"somebody fixes that; nothing is lost.{advice}"
        )


def _find_defects(snapshot: Snapshot, symptoms: Symptoms, advice: str) -> Iterator[str]:
    """Yield the reasons why the service is degraded."""
    if snapshot.lease is not None and snapshot.lease.problem is not None:
        yield _describe_lease_problem(snapshot.lease)
    if snapshot.log is not None:
        yield from _find_log_defects(snapshot.log, advice, serves=snapshot.lease is None or snapshot.lease.held)
    tiled = snapshot.tiled
    if tiled.reachable is False and not symptoms.tiled_needs_person:
        if symptoms.has_unwritten:
            rest = f"{_backlog(snapshot)} They will be written when Tiled is back."
        else:
            rest = f"Nothing waits; what comes is journaled, and written when Tiled is back.{advice}"
        yield f"Tiled does not accept requests since {_time(tiled.since)}: {tiled.problem}. {rest}"
    elif tiled.reachable is None and symptoms.has_unwritten:
        yield f"No worker has had an answer of Tiled yet. {_backlog(snapshot)}"
    elif tiled.reachable:
        yield from _find_waiting_runs(snapshot)
    yield from _find_failed_runs(snapshot)
    yield from _find_lost_documents(snapshot, symptoms.lost_documents)
    for disk in snapshot.disks:
        if disk.state == "low":
            yield f"The disk of the {disk.purpose} in {disk.path} is almost full: {_bytes(disk.free)} are free."
        elif disk.state is None:
            yield f"The disk of the {disk.purpose} in {disk.path} cannot be measured."
    if symptoms.start_problem and snapshot.now - symptoms.start_problem_since < START_GRACE_SECONDS:
        yield f"A worker could not be started: {symptoms.start_problem}. It is tried again."
    if symptoms.died_at is not None and snapshot.now - symptoms.died_at < RECENT_SECONDS:
        yield (
            f"A worker died at {_time(symptoms.died_at)}; {snapshot.workers.restarts} died since the start. Its run "
            "goes on with another one, unless it was written before, is in quarantine, or its audit was given up. "
            "The supervisor's log shows more."
        )
    yield from _find_publisher_troubles(snapshot, symptoms)
    if (waiting := snapshot.workers.waiting_for_worker) > 0:
        yield (
            f"{_count(waiting, 'run')} cannot be stored yet, because all {snapshot.workers.max} workers are busy. "
            "Raise max_workers if this lasts."
        )
    if symptoms.page_problem:
        yield (
            f"The status page and metrics are not served: {as_sentence(symptoms.page_problem)} It is tried again by "
            "itself; runs are not affected."
        )
    if not symptoms.survey_done:
        yield "The journals of earlier supervisors are still being read; this snapshot may lack runs."


def _find_log_defects(log: LogStatus, advice: str, *, serves: bool) -> Iterator[str]:
    if log.reachable is False:
        yield (
            f"The log at {log.address} gives no answer since {_time(log.since)}: {as_sentence(log.problem or '')} "
            f"Documents stay in it, and in the publishers' spools. It is asked again by itself.{advice}"
        )
        return
    if serves and log.read_problem is not None:
        yield (
            f"The log at {log.address} is not read: {as_sentence(log.read_problem)} Documents stay in it. It is tried "
            f"again by itself.{advice}"
        )
    if log.max_bytes and (log.bytes or 0) >= LOG_ALMOST_FULL * log.max_bytes:
        yield (
            f"The log at {log.address} is almost full: {_bytes(log.bytes)} of {_bytes(log.max_bytes)}. When it is "
            "full, documents stay in the publishers' spools. Runs leave it after they were written; raise its "
            "max_bytes if that takes too long."
        )
    if log.replicas is not None and log.replicas_current is not None and log.replicas_current < log.replicas:
        yield (
            f"Only {log.replicas_current} of {log.replicas} nodes of the log at {log.address} have all of it. "
            "Start the one that is missing, or put another one in its place."
        )


def _find_waiting_runs(snapshot: Snapshot) -> Iterator[str]:
    """Yield a reason if workers wait although Tiled accepts requests of others."""
    waiting = [run for run in snapshot.runs.troubled if run.worker is not None and run.waits_for]
    if waiting:
        first = waiting[0]
        count = "A run waits" if len(waiting) == 1 else f"{len(waiting)} runs wait, such as"
        yield f"{count}{':' if len(waiting) == 1 else ''} {first.uid}: {first.waits_for}"


def commands_for_failed(run: RunStatus, journal_dir: str) -> tuple[tuple[str, str], ...]:
    """Return the commands for a run in quarantine, each with what it is for."""
    commands = (
        (("what is wrong with the journal", "verify"),)
        if run.unusable
        else (("the error with its traceback", "show"), ("after the cause is fixed, try again", "retry"))
    )
    return tuple((purpose, format_run_command(name, run.uid, run.journal, journal_dir)) for purpose, name in commands)


def _find_lost_documents(snapshot: Snapshot, lost: Mapping[str, int]) -> Iterator[str]:
    if lost:
        uid, count = next(iter(lost.items()))
        others = f", and so do those of {_count(len(lost) - 1, 'other run')}" if len(lost) > 1 else ""
        were = "was" if count == 1 else "were"
        yield (
            f"The journal of run {uid} in {snapshot.journal_dir} lacks {_count(count, 'document')} that {were} "
            f"acknowledged{others}: somebody has removed it, or put an older copy in its place. Publishers that still "
            "have them send them again; otherwise look for the file."
        )


def _find_failed_runs(snapshot: Snapshot) -> Iterator[str]:
    failed = snapshot.runs.counts[State.FAILED.value]
    if failed:
        last: RunStatus | None = max(
            (run for run in snapshot.runs.troubled if run.state == State.FAILED.value),
            key=lambda run: run.since or 0.0,
            default=None,
        )
        which = "A run is in quarantine" if failed == 1 else f"{failed} runs are in quarantine"
        if last is None:
            yield f"{which}: `{format_command('tiledwriter-journal', 'ls', snapshot.journal_dir, '--state', 'failed')}`"
            return
        advice = "; ".join(
            f"{purpose}: `{command}`" for purpose, command in commands_for_failed(last, snapshot.journal_dir)
        )
        named = "" if failed == 1 else ", the last one"
        yield f"{which}{named}: {last.uid}: {as_sentence(last.reason or '')} {advice[0].upper()}{advice[1:]}"


def _find_publisher_troubles(snapshot: Snapshot, symptoms: Symptoms) -> Iterator[str]:
    for name, refused in symptoms.refused_runs.items():
        uid, reason = next(iter(refused.items()))
        yield (
            f"{_count(len(refused), 'run')} of publisher {name} {'is' if len(refused) == 1 else 'are'} refused, such "
            f"as {uid}: {reason}. What is refused stays in the publisher's spool."
        )
    for topic, reason in _PUBLISHER_TOPICS.items():
        at = symptoms.refused_at.get(topic)
        if at is not None and snapshot.now - at < RECENT_SECONDS:
            yield f"Publishers were refused, at {_time(at)} last: {reason}. The supervisor's log names them."
    for publisher in snapshot.publishers:
        oldest = publisher.oldest_unacknowledged
        if oldest is not None and snapshot.now - oldest > LATE_SECONDS:
            documents = "?" if publisher.lag_documents is None else str(publisher.lag_documents)
            yield (
                f"Publisher {publisher.name} waits with {documents} documents for their acknowledgement, the oldest of "
                f"{_time(oldest)}."
            )


def _backlog(snapshot: Snapshot) -> str:
    """Return a sentence that says how much is to be written."""
    runs = [run for run in snapshot.runs.open if run.written is None or run.ended or run.written < run.durable]
    documents = sum(run.durable - (run.written or 0) for run in runs)
    count = len(runs) + snapshot.runs.unlisted_open
    at_most = "at most " if any(run.written is None for run in runs) else ""
    more = " and more" if snapshot.runs.unlisted_open else ""
    return f"{_count(count, 'run')} with {at_most}{_count(documents, 'document')}{more} wait in the journals."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _time(at: float | None) -> str:
    """Return a Unix time as text with zone, in the local time of this host."""
    if at is None:
        return "an unknown time"
    return datetime.fromtimestamp(at, timezone.utc).astimezone().isoformat(" ", "seconds")


def _bytes(size: int | None) -> str:
    if size is None:
        return "unknown bytes"
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
