"""The supervisor's snapshot as this room reads it: null means "not known" and is kept as None.

Times are Unix seconds, sizes bytes, durations seconds.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any, Final

import msgspec

SCHEMA: Final = 1
SOCKET_NAME: Final = ".status.sock"
READ_TIMEOUT_SECONDS: Final = 3.0

_MAX_SNAPSHOT_BYTES: Final = 2**26
# Longest path that a Unix socket can have, on all systems.
_MAX_PATH_BYTES: Final = 100


class SupervisorAway(Exception):
    """Raised when the supervisor gives no snapshot; the message says why."""


class Latency(msgspec.Struct, frozen=True):
    """Histogram of request durations: pairs of upper bound and cumulative count, and sum and count of all."""

    buckets: tuple[tuple[float, int], ...] = ()
    sum: float | None = None
    count: int | None = None


class Tiled(msgspec.Struct, frozen=True):
    """What is known of the Tiled server."""

    address: str | None = None
    version: str | None = None
    reachable: bool | None = None
    since: float | None = None
    asked: float | None = None
    last_write: float | None = None
    problem: str | None = None
    requests: dict[str, int] | None = None
    retries: dict[str, int] | None = None
    latency: Latency | None = None


class Disk(msgspec.Struct, frozen=True):
    """A file system that the service writes to."""

    path: str
    purpose: str = ""
    free: int | None = None
    total: int | None = None
    min_free: int | None = None
    state: str | None = None


class Publisher(msgspec.Struct, frozen=True):
    """A connected publisher, and what it says of its spool."""

    name: str | None = None
    client: str | None = None
    address: str | None = None
    connected_since: float | None = None
    runs: int | None = None
    lag_documents: int | None = None
    lag_bytes: int | None = None
    oldest_unacknowledged: float | None = None


class Worker(msgspec.Struct, frozen=True):
    """The worker process of a run."""

    pid: int | None = None
    memory: int | None = None
    since: float | None = None


class Run(msgspec.Struct, frozen=True):
    """A run that is open or in trouble."""

    uid: str
    state: str
    scan_id: int | str | None = None
    plan: str | None = None
    since: float | None = None
    publisher: str | None = None
    client: str | None = None
    durable: int | None = None
    written: int | None = None
    ended: bool | None = None
    waits_for: str | None = None
    reason: str | None = None
    worker: Worker | None = None
    deaths: int | None = None
    journal: str | None = None


class Runs(msgspec.Struct, frozen=True):
    """Runs by state, and those that are open or in trouble."""

    counts: dict[str, int | None] = {}
    open: tuple[Run, ...] = ()
    troubled: tuple[Run, ...] = ()


class Workers(msgspec.Struct, frozen=True):
    """The worker processes together."""

    running: int | None = None
    max: int | None = None
    restarts: int | None = None
    memory: int | None = None
    waiting_for_worker: int | None = None


class Totals(msgspec.Struct, frozen=True):
    """Counts since the supervisor started."""

    documents: int | None = None
    bytes: int | None = None
    written_documents: int | None = None
    restarts: int | None = None
    refused: dict[str, int] | None = None


class Trouble(msgspec.Struct, frozen=True):
    """A recent warning or error."""

    time: float
    text: str
    level: str = "warning"
    run: str | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """What the supervisor knows of the service."""

    schema: int
    state: str
    now: float
    started: float
    reasons: tuple[str, ...] = ()
    version: str = ""
    host: str = ""
    pid: int | None = None
    settings: dict[str, Any] | None = None
    listen: str | None = None
    journal_dir: str = ""
    tiled: Tiled | None = None
    disks: tuple[Disk, ...] = ()
    publishers: tuple[Publisher, ...] = ()
    runs: Runs = Runs()
    workers: Workers = Workers()
    totals: Totals = Totals()
    trouble: tuple[Trouble, ...] = ()


class Answer(msgspec.Struct, frozen=True):
    """A snapshot with the JSON that it was read from."""

    snapshot: Snapshot
    body: bytes


def decode_snapshot(body: bytes) -> Answer:
    """Return the snapshot in a supervisor's answer.

    Raises
    ------
    SupervisorAway
        The answer is cut, is no snapshot, or has another schema.
    """
    if not body:
        raise SupervisorAway("the supervisor closed the connection without an answer")
    try:
        snapshot = msgspec.json.decode(body, type=Snapshot)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SupervisorAway(f"the supervisor's answer cannot be understood: {error}") from error
    if snapshot.schema != SCHEMA:
        raise SupervisorAway(f"the supervisor answers with schema {snapshot.schema}; this process reads {SCHEMA}")
    return Answer(snapshot, body)


def read_snapshot(journal_dir: Path, timeout: float = READ_TIMEOUT_SECONDS) -> Answer:
    """Ask the supervisor of a journal directory for its snapshot, at most `timeout` seconds.

    Raises
    ------
    SupervisorAway
        There is no answer, or none in time.
    """
    try:
        return decode_snapshot(_read_socket(journal_dir.absolute() / SOCKET_NAME, time.monotonic() + timeout))
    except (FileNotFoundError, ConnectionRefusedError):
        raise SupervisorAway(f"no supervisor answers for {journal_dir}") from None
    except TimeoutError:
        raise SupervisorAway(f"the supervisor of {journal_dir} did not answer within {timeout:g} s") from None
    except OSError as error:
        raise SupervisorAway(f"the supervisor of {journal_dir} cannot be asked: {error}") from error


def _read_socket(path: Path, deadline: float) -> bytes:
    chunks = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        _set_timeout(connection, deadline)
        _connect_socket(connection, path)
        while len(chunks) <= _MAX_SNAPSHOT_BYTES:
            _set_timeout(connection, deadline)
            chunk = connection.recv(2**16)
            if not chunk:
                return bytes(chunks)
            chunks += chunk
    raise SupervisorAway(f"the answer at {path} has more than {_MAX_SNAPSHOT_BYTES} bytes")


def _connect_socket(connection: socket.socket, path: Path) -> None:
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        connection.connect(str(path))
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


def _set_timeout(connection: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
