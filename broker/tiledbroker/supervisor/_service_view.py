"""Makes the snapshot of the service from what scheduler, frontend and workers know. Reads no file and no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ._clock import Instant
from ._lifecycle import State
from ._publishers import Publisher
from .scheduler import Run, Scheduler
from .status import (
    MAX_LISTED_RUNS,
    SCHEMA,
    DiskStatus,
    LeaseStatus,
    LogStatus,
    PublisherConnection,
    RunsStatus,
    RunStatus,
    Snapshot,
    Symptoms,
    TiledReports,
    Totals,
    Trouble,
    WorkersStatus,
    format_time,
    judge_service,
)


@dataclass(frozen=True)
class ServiceIdentity:
    """What does not change while the supervisor runs; see `Snapshot`, and `Supervisor` for `check_command`."""

    version: str | None
    host: str
    pid: int
    started: float
    journal_dir: str
    settings: Mapping[str, Any]
    check_command: str = ""


@dataclass(frozen=True)
class Surroundings:
    """What the supervisor knows and the scheduler does not.

    Attributes
    ----------
    listen
        The address that publishers connect to; None if there is none.
    publishers
        The connected publishers.
    refused, refused_at
        Number of refusals, and Unix time of the last one, by topic.
    pids, memory
        Pids and resident bytes of workers by number, as far as they are known.
    disks
        The disks that the service writes to.
    trouble
        Recent warnings and errors.
    lease
        The lease; None if no other host can serve instead.
    log
        The site's log; None if documents do not come from one.
    page_problem
        Reason why the status page is not served; "" if it is, or is not asked for.
    """

    listen: str | None
    publishers: Collection[Publisher]
    refused: Mapping[str, int]
    refused_at: Mapping[str, float]
    pids: Mapping[int, int | None]
    memory: Mapping[int, int]
    disks: Sequence[DiskStatus]
    trouble: Sequence[Trouble] = field(default=())
    lease: LeaseStatus | None = None
    log: LogStatus | None = None
    page_problem: str = ""


def make_snapshot(
    identity: ServiceIdentity, scheduler: Scheduler, reports: TiledReports, around: Surroundings, now: Instant
) -> Snapshot:
    """Return the snapshot of the service at the time `now`."""
    tally = scheduler.tally
    snapshot = Snapshot(
        schema=SCHEMA,
        state="well",
        reasons=[],
        version=identity.version,
        host=identity.host,
        pid=identity.pid,
        started=identity.started,
        now=now.unix,
        settings=dict(identity.settings),
        listen=around.listen,
        journal_dir=identity.journal_dir,
        tiled=reports.describe(now),
        disks=list(around.disks),
        publishers=_describe_publishers(around.publishers, scheduler.runs.values()),
        runs=_describe_runs(scheduler, around, now),
        workers=WorkersStatus(
            running=scheduler.running_workers,
            max=scheduler.max_workers,
            restarts=tally.deaths,
            memory=sum(around.memory.values()) if around.memory or not scheduler.running_workers else None,
            waiting_for_worker=sum(map(scheduler.is_waiting_for_room, scheduler.runs.values())),
            waiting_to_write=scheduler.write_slots.waiting,
        ),
        totals=Totals(tally.documents, tally.bytes, tally.written_documents, tally.deaths, dict(around.refused)),
        trouble=list(around.trouble),
        lease=around.lease,
        log=around.log,
    )
    return judge_service(snapshot, _find_symptoms(scheduler, reports, around), identity.check_command)


def describe_service(scheduler: Scheduler) -> str:
    """Return the state of the service in one line, trouble first."""
    counts = scheduler.count_unwritten()
    listed = ", ".join(f"{counts[state.value]} {state}" for state in State if counts[state.value])
    trouble = []
    if scheduler.disk.is_full:
        trouble.append(f"No documents are accepted: {scheduler.disk.explain()}")
    outage = scheduler.outage
    if outage.since is not None:
        trouble.append(f"Tiled has refused requests since {format_time(outage.since)}: {outage.reason}")
    return "; ".join([*trouble, f"runs: {listed or 'none is open'}"])


def _find_symptoms(scheduler: Scheduler, reports: TiledReports, around: Surroundings) -> Symptoms:
    tally = scheduler.tally
    return Symptoms(
        tiled_needs_person=reports.reachable is False and reports.needs_person,
        journal_problem=tally.journal_problem.reason,
        journal_problem_at=tally.journal_problem.seen,
        start_problem=tally.start_problem.reason,
        start_problem_since=tally.start_problem.since,
        died_at=tally.died_at,
        refused_at=dict(around.refused_at),
        refused_runs={publisher.name: dict(publisher.refused) for publisher in around.publishers if publisher.refused},
        # A host that stands by has not begun to read them.
        survey_done=scheduler.survey_done or (around.lease is not None and not around.lease.held),
        page_problem=around.page_problem,
        has_unwritten=any(run.has_work_left for run in scheduler.runs.values()),
        lost_documents={run.uid: run.lost for run in scheduler.runs.values() if run.lost},
    )


def _describe_publishers(publishers: Collection[Publisher], runs: Iterable[Run]) -> list[PublisherConnection]:
    counts = Counter(chain.from_iterable(run.publishers for run in runs))
    described = [
        PublisherConnection(
            name=publisher.name,
            client=publisher.client,
            address=publisher.address,
            connected_since=publisher.connected_at,
            runs=counts[publisher],
            lag_documents=publisher.lag_documents,
            lag_bytes=publisher.lag_bytes,
            oldest_unacknowledged=publisher.oldest_unacknowledged,
        )
        for publisher in publishers
    ]
    return sorted(described, key=lambda publisher: publisher.name)


def _describe_runs(scheduler: Scheduler, around: Surroundings, now: Instant) -> RunsStatus:
    tally = scheduler.tally
    counts = {state.value: 0 for state in State}
    opened: list[RunStatus] = []
    troubled: list[RunStatus] = []
    failed: dict[str, RunStatus] = {}
    for run in scheduler.runs.values():
        if run.is_complete:
            continue
        described = _describe_run(run, scheduler, around, now)
        if run.state is State.FAILED:
            failed[run.uid] = described
            continue
        counts[run.state.value] += 1
        opened.append(described)
        # A run that failed and gets further documents has a worker, and is still failed, as its reason says.
        if run.state is State.PARKED or described.waits_for or described.reason:
            troubled.append(described)
    failed = {run.uid: run for run in tally.failed} | failed
    counts |= {state.value: tally.outcomes[state] for state in (State.WRITTEN, State.INTERRUPTED)}
    counts[State.FAILED.value] = len(failed) + tally.failed.unnamed
    listed = [*sorted(failed.values(), key=_order_of_change), *sorted(troubled, key=_order_of_change)]
    opened.sort(key=_order_of_change)
    return RunsStatus(
        counts=counts,
        open=opened[:MAX_LISTED_RUNS],
        troubled=listed[:MAX_LISTED_RUNS],
        last_finished=tally.last_finished,
        unlisted_open=len(opened[MAX_LISTED_RUNS:]),
        unlisted_troubled=len(listed[MAX_LISTED_RUNS:]) + tally.failed.unnamed,
    )


def _describe_run(run: Run, scheduler: Scheduler, around: Surroundings, now: Instant) -> RunStatus:
    number = -1 if run.worker is None else run.worker.number
    return run.describe(
        waits_for=scheduler.describe_wait(run, now), pid=around.pids.get(number), memory=around.memory.get(number)
    )


def _order_of_change(run: RunStatus) -> float:
    """Return the key that sorts runs, those that changed last first."""
    return -(run.since or 0.0)
