"""What a supervisor may do with a site's log: each kind of request is tried, in ways that harm nobody."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .._errors import AppendRefused, LogUnavailable, PermissionMissing
from ._connection import Connection
from ._names import DOCUMENTS, HOSTS_BUCKET, RUNS_BUCKET, STREAM, bucket_stream, bucket_subject

_NEVER_THE_LAST: Final = 2**62
"""Number of a message that no subject has, so that an append which expects it is refused."""
_INACTIVE_NANOSECONDS: Final = 5 * 10**9
ALMOST_FULL: Final = 0.9
"""Part of its limit from which on the log counts as almost full."""


@dataclass(frozen=True)
class LogSpace:
    """Space of a stream on each of its nodes.

    Attributes
    ----------
    used
        Bytes of its messages.
    limit
        Bytes at which it takes no more; None if only the disk limits it.
    """

    used: int
    limit: int | None

    @property
    def is_almost_full(self) -> bool:
        """True from `ALMOST_FULL` of the limit on."""
        return self.limit is not None and self.used >= ALMOST_FULL * self.limit


def parse_space(info: Mapping[str, Any]) -> LogSpace:
    """Return the space of a stream that `STREAM.INFO` describes."""
    limit = int(info["config"].get("max_bytes", -1))
    return LogSpace(int(info["state"]["bytes"]), limit if limit > 0 else None)


async def try_requests(connection: Connection) -> list[str]:
    """Try each kind of request that a supervisor makes, and return what fails, as sentences; nothing if all works.

    A key of its own is written and removed. All other requests find nothing, or must be refused.
    """
    probe = f"check-{secrets.token_hex(8)}"
    documents = f"{DOCUMENTS}.check.{probe}"
    hosts_stream, host = bucket_stream(HOSTS_BUCKET), bucket_subject(HOSTS_BUCKET, f"check.{probe}")
    attempts: dict[str, Callable[[], Awaitable[None]]] = {
        "Streams cannot be looked at": lambda: _look_at_streams(connection),
        "New documents cannot be followed": lambda: _follow(connection, STREAM, documents),
        "Documents cannot be read": lambda: _read(connection, probe),
        "Written runs cannot be removed": lambda: _remove(connection, STREAM, documents),
        "Receipts cannot be written": lambda: _write(connection, f"check.{probe}"),
        "Leases and claims cannot be followed": lambda: _follow(connection, hosts_stream, host),
        "Leases and claims cannot be written": lambda: _be_refused(connection, host),
        "Claims cannot be removed": lambda: _remove(connection, hosts_stream, host),
    }
    problems = []
    for what, attempt in attempts.items():
        try:
            await attempt()
        except PermissionMissing as error:
            problems.append(f"{what}: {error}.")
            if error.verb == "subscribe":
                # No answer to anything can be heard.
                return problems
        except LogUnavailable as error:
            problems.append(f"{what}: {error}.")
    return problems


async def _look_at_streams(connection: Connection) -> None:
    for stream in (STREAM, bucket_stream(RUNS_BUCKET), bucket_stream(HOSTS_BUCKET)):
        await connection.call(f"STREAM.INFO.{stream}")


async def _follow(connection: Connection, stream: str, subject: str) -> None:
    """Make a consumer as the source does, of a subject that does not exist, and remove it."""
    name = f"check-{secrets.token_hex(8)}"
    await connection.call(
        f"CONSUMER.CREATE.{stream}.{name}.{subject}",
        {
            "stream_name": stream,
            "action": "create",
            "config": {
                "name": name,
                "deliver_subject": connection.new_inbox(),
                "deliver_policy": "last_per_subject",
                "filter_subject": subject,
                "ack_policy": "none",
                "headers_only": True,
                "inactive_threshold": _INACTIVE_NANOSECONDS,
                "mem_storage": True,
                "num_replicas": 1,
            },
        },
    )
    await connection.call(f"CONSUMER.DELETE.{stream}.{name}")


async def _read(connection: Connection, probe: str) -> None:
    await connection.read_next(STREAM, f"{DOCUMENTS}.check.{probe}", 1)
    await connection.read_last(bucket_stream(RUNS_BUCKET), bucket_subject(RUNS_BUCKET, f"check.{probe}"))
    await connection.read_key(HOSTS_BUCKET, f"check.{probe}")


async def _remove(connection: Connection, stream: str, subject: str) -> None:
    await connection.call(f"STREAM.PURGE.{stream}", {"filter": subject})


async def _write(connection: Connection, key: str) -> None:
    """Write a key, read it back, and remove it, also if there was no answer."""
    subject = bucket_subject(RUNS_BUCKET, key)
    await _be_refused(connection, subject)
    try:
        await connection.append(subject, b"check", {}, 0)
        found = await connection.read_key(RUNS_BUCKET, key)
        if found is None or found.body != b"check":
            raise LogUnavailable("what was written is not there")
    finally:
        await _remove(connection, bucket_stream(RUNS_BUCKET), subject)


async def _be_refused(connection: Connection, subject: str) -> None:
    """Append what must be refused: that proves that this user may append, and stores nothing."""
    try:
        await connection.append(subject, b"", {}, _NEVER_THE_LAST)
    except AppendRefused:
        return
    raise LogUnavailable("the servers do not compare what is there with what is expected to be there")


async def find_account_space(connection: Connection) -> LogSpace:
    """Return the space of all streams of this user's account together.

    Raises
    ------
    LogUnavailable
        There is no answer.
    """
    found = await connection.call("INFO")
    limit = int((found.get("limits") or {}).get("max_storage", -1))
    return LogSpace(int(found.get("storage", 0)), limit if limit > 0 else None)
