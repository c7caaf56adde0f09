"""The snapshot of the service: what the supervisor knows at one moment, as values that become JSON.

`docs/reference/status.md` documents every field. Times are Unix times in seconds, sizes are bytes, durations seconds.
None means that a value is not known, never that there is none.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec

SCHEMA: Final = 1
"""Version of the snapshot's form. It changes when a field is removed or gets another meaning, not when one is added."""

Health: TypeAlias = Literal["well", "degraded", "failed"]
DiskState: TypeAlias = Literal["well", "low", "full"]


class Latency(msgspec.Struct, frozen=True):
    """Histogram of the durations of requests to Tiled, each from sending to the answer.

    `buckets` has pairs of an upper bound in seconds and the number of requests that took at most so long. `count` is
    the number of all requests, `sum` the sum of their durations.
    """

    buckets: list[tuple[float, int]]
    sum: float
    count: int


class TiledLook(msgspec.Struct, frozen=True):
    """What the supervisor itself found at Tiled's address. It asks while no worker does.

    `at` is the time when it asked last, and `since` that of the first of the looks in a row that found the same. It
    does not tell whether Tiled accepts what workers write.
    """

    at: float
    answers: bool
    problem: str | None
    since: float | None = None


class TiledStatus(msgspec.Struct, frozen=True):
    """Tiled, as the workers have found it, or else the supervisor, if it had no answer for a while; see `TiledLook`.

    `since` is the time since which `reachable` is what it is, `asked` that of the last sign of Tiled, good or bad,
    `last_write` that of the last write that was carried out. `problem` is the reason why it is not reachable.
    """

    address: str | None
    version: str | None
    reachable: bool | None
    since: float | None
    asked: float | None
    last_write: float | None
    problem: str | None
    requests: dict[str, int]
    retries: dict[str, int]
    latency: Latency
    look: TiledLook | None = None


class DiskStatus(msgspec.Struct, frozen=True):
    """A disk that the service writes to. Below `min_free` free bytes it counts as full."""

    path: str
    purpose: str
    free: int | None
    total: int | None
    min_free: int
    state: DiskState | None


class PublisherConnection(msgspec.Struct, frozen=True):
    """A connected publisher. The lag is that of its spool: documents that it has and that are not acknowledged."""

    name: str
    client: str
    address: str
    connected_since: float
    runs: int
    lag_documents: int | None
    lag_bytes: int | None
    oldest_unacknowledged: float | None


class RunWorker(msgspec.Struct, frozen=True):
    """The worker process of a run."""

    pid: int | None
    memory: int | None
    since: float


class RunStatus(msgspec.Struct, frozen=True):
    """A run. `durable` documents are in its journal, `written` ones in Tiled; `since` is the time of its last change of
    state. `waits_for` says why it does not go on, `reason` why it failed. `deaths` counts the deaths of its workers
    since they last wrote something. `unusable` tells that its journal can be neither read nor written.
    """

    uid: str
    state: str
    scan_id: int | str | None
    plan: str | None
    since: float | None
    publisher: str | None
    client: str
    durable: int
    written: int | None
    ended: bool
    waits_for: str | None
    reason: str | None
    worker: RunWorker | None
    deaths: int
    journal: str
    unusable: bool = False


class RunsStatus(msgspec.Struct, frozen=True):
    """The runs. At most `MAX_LISTED_RUNS` are listed in `open` and in `troubled`; `unlisted_open` and
    `unlisted_troubled` count the others. Runs that are written or interrupted are counted since the start;
    `last_finished` is the last of them.
    """

    counts: dict[str, int]
    open: list[RunStatus]
    troubled: list[RunStatus]
    unlisted_open: int
    unlisted_troubled: int
    last_finished: RunStatus | None = None


class WorkersStatus(msgspec.Struct, frozen=True):
    """The worker processes: `restarts` since the start, `memory` of all, and runs that wait because `max` run.

    `waiting_to_write` of them wait for their turn to write to Tiled; None if the supervisor does not tell.
    """

    running: int
    max: int
    restarts: int
    memory: int | None
    waiting_for_worker: int
    waiting_to_write: int | None = None


class Totals(msgspec.Struct, frozen=True):
    """Counts since the start of the supervisor.

    `documents` were made durable; `bytes` of them were received. `written_documents` were confirmed in Tiled, including
    those of a resumed run that an earlier supervisor had written. `refused` counts refusals by topic.
    """

    documents: int
    bytes: int
    written_documents: int
    restarts: int
    refused: dict[str, int]


class Trouble(msgspec.Struct, frozen=True):
    """A warning or an error of the supervisor."""

    time: float
    level: Literal["warning", "error"]
    run: str | None
    text: str


class LeaseStatus(msgspec.Struct, frozen=True):
    """The lease of a service that several hosts can serve: the one that holds it does, the others stand by.

    `held` tells whether this host holds it. `place` is where the lease is kept; `host`, `epoch` and `renewed` are those
    of the lease as it was seen there last. `seconds_left` is the time until a lease that is held is lost if it is not
    renewed. `problem` is the reason why it cannot be read or renewed.
    """

    held: bool
    place: str
    host: str | None
    epoch: int | None
    renewed: float | None
    seconds_left: float | None
    problem: str | None


class LogStatus(msgspec.Struct, frozen=True):
    """A site's log that documents are read from, as a thread of this host finds it every few seconds.

    `reachable` tells whether it gave an answer when it was `asked` last, `since` when that changed, and `problem` why
    there was none. `read_problem` is the reason why the supervisor does not read it at the moment, also while this host
    stands by. `bytes` and `messages` are those of all documents in it, on each node, and `max_bytes` is the limit.
    `replicas` are the nodes that should have each message; `replicas_current` do. `lag` has the documents by beamline
    that are in the log and not in journals here, without those of other hosts' runs. `unfinished_runs` counts the runs
    in the log that are not complete in Tiled by the host that has told of them, "" if none has; it is None until they
    were counted.
    """

    address: str
    reachable: bool | None = None
    since: float | None = None
    asked: float | None = None
    problem: str | None = None
    read_problem: str | None = None
    server: str | None = None
    version: str | None = None
    bytes: int | None = None
    max_bytes: int | None = None
    messages: int | None = None
    replicas: int | None = None
    replicas_current: int | None = None
    lag: dict[str, int] = {}
    unfinished_runs: dict[str, int] | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """The service at one moment. `lease` is None if no other host can serve instead of this one, and `log` if documents
    do not come from a site's log.
    """

    schema: int
    state: Health
    reasons: list[str]
    version: str | None
    host: str
    pid: int
    started: float
    now: float
    settings: dict[str, Any]
    listen: str | None
    journal_dir: str
    tiled: TiledStatus
    disks: list[DiskStatus]
    publishers: list[PublisherConnection]
    runs: RunsStatus
    workers: WorkersStatus
    totals: Totals
    trouble: list[Trouble]
    lease: LeaseStatus | None = None
    log: LogStatus | None = None


MAX_LISTED_RUNS: Final = 1_000
"""Runs that a list of the snapshot names at most."""

MAX_TROUBLE: Final = 50
"""Entries of `Snapshot.trouble`."""

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Snapshot)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return the snapshot as JSON."""
    return _encoder.encode(snapshot)


def decode_snapshot(text: bytes) -> Snapshot:
    """Return the snapshot in `text`. Fields that a newer version has added are left out.

    Raises
    ------
    msgspec.DecodeError
        The text is not a snapshot of this schema.
    """
    return _decoder.decode(text)
