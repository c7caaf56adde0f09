"""The snapshot of the service as text for a terminal: first what needs attention, then totals, then runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ._terminal import count_of, plain

if TYPE_CHECKING:
    from tiledbroker.supervisor import (
        DiskStatus,
        LeaseStatus,
        LogStatus,
        RunStatus,
        Snapshot,
        TiledLook,
        TiledStatus,
        Trouble,
    )

_STYLES: Final = {"well": "bold green", "degraded": "bold yellow", "failed": "bold red"}
_TROUBLED_STYLES: Final = {"failed": "red", "parked": "yellow"}
# Nobody asks Tiled while there is nothing to write, so its last answer may be old.
_OLD_SIGN_SECONDS: Final = 120.0
_SHOWN_RUNS: Final = 50
_SHOWN_TROUBLE: Final = 5
_UID_CHARACTERS: Final = 8
_UNKNOWN: Final = "?"


def draw_absence(message: str) -> RenderableType:
    """Return the picture of a service that gives no snapshot."""
    return Text(plain(message), "bold red")


def draw_snapshot(snapshot: Snapshot) -> RenderableType:
    """Return the picture of a snapshot."""
    parts: list[RenderableType] = [_draw_head(snapshot)]
    parts += [_draw_reason(reason, snapshot.state) for reason in snapshot.reasons]
    parts += ["", _draw_totals(snapshot)]
    runs = snapshot.runs
    troubled = {run.uid for run in runs.troubled}
    quiet = [run for run in runs.open if run.uid not in troubled]
    parts += _draw_runs("Runs that need attention or wait", runs.troubled, runs.unlisted_troubled, snapshot.now)
    parts += _draw_runs("Open runs", quiet, runs.unlisted_open, snapshot.now)
    parts += _draw_trouble(snapshot.trouble)
    return Group(*parts)


def _draw_head(snapshot: Snapshot) -> RenderableType:
    head = Text(snapshot.state.upper(), _STYLES[snapshot.state])
    version = snapshot.version or "of unknown version"
    since = f"{_local_time(snapshot.started)} ({_duration(snapshot.now - snapshot.started)})"
    head.append(plain(f"  tiledwriter {version} on {snapshot.host}, pid {snapshot.pid}, since {since}"), "default")
    return head


def _draw_reason(reason: str, state: str) -> RenderableType:
    style = "default" if state == "well" else _STYLES[state].removeprefix("bold ")
    line = Table.grid(padding=(0, 1))
    line.add_column()
    line.add_column(overflow="fold")
    line.add_row(Text("!" if state != "well" else "i", style), Text(plain(reason), style))
    return line


def _draw_totals(snapshot: Snapshot) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in _describe_totals(snapshot):
        grid.add_row(name, Text(plain(value)))
    return grid


def _describe_totals(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    yield "Tiled", _describe_tiled(snapshot.tiled, snapshot.now)
    for disk in snapshot.disks:
        yield disk.purpose.capitalize(), _describe_disk(disk)
    if snapshot.lease is not None:
        yield "Lease", _describe_lease(snapshot.lease, snapshot.now)
    if snapshot.log is not None:
        yield "Log", _describe_log(snapshot.log, snapshot.now)
        yield from _describe_log_runs(snapshot.log)
    yield "Publishers", _describe_publishers(snapshot)
    counts = snapshot.runs.counts
    now = ", ".join(f"{counts[state]} {state}" for state in ("starting", "open", "closing", "parked") if counts[state])
    done = f"{counts['written']} written, {counts['interrupted']} interrupted since the start"
    yield "Runs", f"{now or 'none in flight'}; {counts['failed']} in quarantine; {done}"
    if snapshot.runs.last_finished is not None:
        yield "Last run", _describe_finished(snapshot.runs.last_finished, snapshot.now)
    workers = snapshot.workers
    memory = "unknown memory" if workers.memory is None else _size(workers.memory)
    turns = f"; {workers.waiting_to_write} wait for their turn to write" if workers.waiting_to_write else ""
    yield (
        "Workers",
        f"{workers.running} of at most {workers.max}, {memory}{turns}; {workers.restarts} died since the start",
    )
    totals = snapshot.totals
    refused = ", ".join(f"{topic} {count}" for topic, count in sorted(totals.refused.items()))
    yield (
        "Documents",
        (
            f"{totals.documents} stored ({_size(totals.bytes)}), {totals.written_documents} in Tiled since the start"
            f"{f'; refused: {refused}' if refused else ''}"
        ),
    )


def _describe_lease(lease: LeaseStatus, now: float) -> str:
    holder = "held by this host" if lease.held else f"held by {lease.host or 'nobody that is known yet'}"
    epoch = "" if lease.epoch is None else f", epoch {lease.epoch}"
    renewed = "" if lease.renewed is None else f", renewed {_ago(lease.renewed, now)}"
    return f"{holder}{epoch}{renewed}; in {lease.place}"


def _describe_log(log: LogStatus, now: float) -> str:
    if log.reachable is None:
        return f"{log.address}: not asked yet"
    if not log.reachable:
        return f"{log.address}: gives NO answer for {_ago(log.since, now).removesuffix(' ago')}"
    size = _size(log.bytes) if log.bytes is not None else _UNKNOWN
    messages = f"{_UNKNOWN} messages" if log.messages is None else count_of(log.messages, "message")
    replicas = f"{_UNKNOWN} replicas" if log.replicas is None else count_of(log.replicas, "replica")
    current = _UNKNOWN if log.replicas_current is None else log.replicas_current
    limit = "" if log.max_bytes is None else f" of {_size(log.max_bytes)}"
    read = "" if log.read_problem is None else f"; not read: {log.read_problem}"
    return (
        f"{log.address}: answered {_ago(log.asked, now)} ({log.server}, version {log.version}); {size}{limit}, "
        f"{messages}; {current} of {replicas} current{read}"
    )


def _describe_log_runs(log: LogStatus) -> Iterator[tuple[str, str]]:
    """Yield what is behind, and which hosts have the runs that are not complete."""
    behind = [f"{beamline} {count_of(count, 'document')}" for beamline, count in sorted(log.lag.items()) if count]
    if log.reachable and log.read_problem is None:
        yield "Log's lag", ", ".join(behind) or "none"
    if log.unfinished_runs is not None:
        hosts = [f"{host or 'no host yet'} {count}" for host, count in sorted(log.unfinished_runs.items())]
        yield "Log's runs", f"not complete in Tiled: {', '.join(hosts) or 'none'}"


def _describe_finished(run: RunStatus, now: float) -> str:
    scan = "" if run.scan_id is None else f" {run.scan_id}"
    return (
        f"{run.plan or 'run'}{scan}, {run.uid}: {run.state} {_ago(run.since, now)}, {count_of(run.durable, 'document')}"
    )


def _describe_tiled(tiled: TiledStatus, now: float) -> str:
    address = tiled.address or "unknown address"
    version = f", version {tiled.version}" if tiled.version else ""
    if tiled.reachable is None:
        return f"{address}{version}: {_describe_look(tiled.look, now)}"
    written = "nothing written yet" if tiled.last_write is None else f"last write {_ago(tiled.last_write, now)}"
    count, median = sum(tiled.retries.values()), _median_latency(tiled)
    retries = f"{count} {'retry' if count == 1 else 'retries'}"
    requests = (
        f"{count_of(tiled.latency.count, 'answer')}{f', half of them within {median}' if median else ''}, {retries}"
    )
    return f"{address}{version}: {_describe_last_sign(tiled, now)}, {written}; {requests}"


def _describe_last_sign(tiled: TiledStatus, now: float) -> str:
    asked = _ago(tiled.asked, now)
    if tiled.reachable and tiled.asked is not None and now - tiled.asked > _OLD_SIGN_SECONDS:
        return f"accepted requests when asked last, {asked}"
    state = "accepts requests" if tiled.reachable else "does NOT accept requests"
    since = "" if tiled.since is None else f" for {_duration(now - tiled.since)}"
    return f"{state}{since}, asked {asked}"


def _describe_look(look: TiledLook | None, now: float) -> str:
    if look is None:
        return "not asked yet"
    if look.answers:
        return f"answered {_ago(look.at, now)}, nothing written yet"
    return f"has NOT answered yet ({look.problem}), asked {_ago(look.at, now)}"


def _median_latency(tiled: TiledStatus) -> str:
    """Return the bound of the bucket with the median; "" if there is none."""
    half = tiled.latency.count / 2
    bound = next((bound for bound, count in tiled.latency.buckets if count >= half > 0), None)
    return "" if bound is None else f"{bound * 1000:.0f} ms" if bound < 1 else f"{bound:g} s"


def _describe_disk(disk: DiskStatus) -> str:
    if disk.free is None or disk.total is None:
        return f"{disk.path}: cannot be measured"
    state = {"well": "", "low": ", LOW", "full": ", FULL"}[disk.state or "well"]
    return f"{disk.path}: {_size(disk.free)} of {_size(disk.total)} free{state}"


def _describe_publishers(snapshot: Snapshot) -> str:
    publishers = snapshot.publishers
    if not publishers:
        return "none connected" if snapshot.listen else "none, since this supervisor does not listen"
    told = [publisher for publisher in publishers if publisher.lag_documents is not None]
    documents = sum(publisher.lag_documents or 0 for publisher in told)
    sizes = [publisher.lag_bytes for publisher in told if publisher.lag_bytes is not None]
    # Publishers to a site's log have no known bytes.
    size = f" ({_size(sum(sizes))})" if len(sizes) == len(told) else ""
    oldest = min((p.oldest_unacknowledged for p in told if p.oldest_unacknowledged is not None), default=None)
    age = "" if oldest is None else f", the oldest {_ago(oldest, snapshot.now)}"
    silent = len(publishers) - len(told)
    unknown = f"; {silent} of them do not tell" if silent else ""
    lag = f"{count_of(documents, 'document')}{size} not acknowledged{age}{unknown}"
    return f"{len(publishers)} connected at {snapshot.listen}; {lag}"


def _draw_runs(title: str, runs: Sequence[RunStatus], unlisted: int, now: float) -> Iterator[RenderableType]:
    if not runs and not unlisted:
        return
    yield ""
    yield Text(f"{title} ({len(runs) + unlisted})", "bold")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("RUN", "STATE", "SCAN"):
        table.add_column(name, no_wrap=True)
    table.add_column("PLAN", no_wrap=True, max_width=20, overflow="ellipsis")
    for name in ("STORED", "IN TILED", "SINCE"):
        table.add_column(name, no_wrap=True, justify="right")
    with_reasons = any(run.reason or run.waits_for for run in runs)
    if with_reasons:
        table.add_column("WHY", overflow="fold", ratio=1)
    for run in runs[:_SHOWN_RUNS]:
        cells = [*_describe_run(run, now)]
        if with_reasons:
            cells.append(plain(run.reason or run.waits_for or ""))
        style = _TROUBLED_STYLES.get(run.state, "yellow" if run.waits_for else "")
        table.add_row(*map(Text, cells), style=style)
    yield table
    if (more := len(runs[_SHOWN_RUNS:]) + unlisted) > 0:
        yield Text(f"and {more} more; --json lists up to 1000", "dim")


def _describe_run(run: RunStatus, now: float) -> Iterable[str]:
    yield plain(run.uid[:_UID_CHARACTERS])
    yield run.state
    yield "" if run.scan_id is None else plain(str(run.scan_id))
    yield plain(run.plan or "")
    yield str(run.durable)
    yield _UNKNOWN if run.written is None else str(run.written)
    yield _UNKNOWN if run.since is None else _duration(now - run.since)


def _draw_trouble(trouble: Sequence[Trouble]) -> Iterator[RenderableType]:
    if not trouble:
        return
    yield ""
    yield Text(f"Recent warnings and errors of the supervisor (the last {min(len(trouble), _SHOWN_TROUBLE)})", "bold")
    for entry in trouble[-_SHOWN_TROUBLE:]:
        style = "red" if entry.level == "error" else "default"
        yield Padding(Text(f"{_local_time(entry.time)} {plain(entry.text)}", style), (0, 0, 0, 2))


def _local_time(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(" ", "seconds")


def _ago(at: float | None, now: float) -> str:
    return "never" if at is None else f"{_duration(now - at)} ago"


def _duration(seconds: float) -> str:
    """Return a duration in its largest two units, such as "3 h 12 min"."""
    rest = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
