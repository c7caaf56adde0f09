"""Stream, buckets and permissions of a site's log: what they must be, how to make them, and what differs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .._errors import CallFailed, LogUnavailable
from ._connection import Connection
from ._names import DOCUMENTS, HOSTS_BUCKET, RUNS_BUCKET, STREAM, bucket_stream, check_beamline

OLDEST_SERVER: Final = (2, 10)
"""Version of nats-server from which everything that is used is there."""
MAX_REPLICAS: Final = 5
"""Of a stream, in any version of nats-server."""
MIN_MAX_PAYLOAD: Final = 64 * 2**10
_STREAM_NOT_FOUND: Final = 10059


@dataclass(frozen=True)
class LogLayout:
    """What can be chosen of a site's log.

    Attributes
    ----------
    replicas
        Nodes that have each message.
    max_bytes
        Size of the log on each of them. Beyond it no documents are taken, and they stay in the spools.

    Raises
    ------
    ValueError
        No server can make such a log, or it would make one without a limit.
    """

    replicas: int = 3
    max_bytes: int = 100 * 2**30

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= MAX_REPLICAS:
            raise ValueError(f"each message is on 1 to {MAX_REPLICAS} nodes of a log, not on {self.replicas}")
        if self.max_bytes < 1:
            raise ValueError("a log without a size is without a limit, and could fill the disks of its nodes")

    def streams(self) -> dict[str, dict[str, Any]]:
        """Return the configuration of each stream, by its name."""
        common = {
            "storage": "file",
            "retention": "limits",
            # Never drop what is there to make room: publishers wait instead.
            "discard": "new",
            "num_replicas": self.replicas,
            "allow_direct": True,
            # A publisher must not be able to remove what is there.
            "allow_rollup_hdrs": False,
            "deny_delete": True,
            "max_age": 0,
            "max_msgs": -1,
            "max_msg_size": -1,
            "max_consumers": -1,
            "no_ack": False,
            "sealed": False,
        }
        buckets = {
            bucket_stream(bucket): {
                **common,
                "subjects": [f"$KV.{bucket}.>"],
                "max_msgs_per_subject": 1,
                # With one message per subject, the old one makes room for the new one.
                "discard": "old",
                "max_bytes": -1,
                "deny_purge": False,
            }
            for bucket in (RUNS_BUCKET, HOSTS_BUCKET)
        }
        documents = {
            **common,
            "subjects": [f"{DOCUMENTS}.*.*"],
            "max_msgs_per_subject": -1,
            "max_bytes": self.max_bytes,
            "deny_purge": False,
        }
        return {STREAM: documents, **buckets}


async def read_stream_info(connection: Connection, stream: str, arguments: Any = None) -> Mapping[str, Any]:
    """Return what the servers say of one of the log's streams, which has the subjects of ours.

    Raises
    ------
    LogUnavailable
        There is no answer, or no such stream, or it is another one's of the same name. Nothing of ours can be in that,
        which is not the same as an empty log.
    """
    try:
        info = await connection.call(f"STREAM.INFO.{stream}", arguments)
    except CallFailed as error:
        if error.code == _STREAM_NOT_FOUND:
            raise LogUnavailable(f"the log has no stream {stream}") from error
        raise
    subjects = info["config"].get("subjects") or []
    if not set(LogLayout().streams()[stream]["subjects"]) <= set(subjects):
        raise LogUnavailable(f"the stream {stream} is not that of a log: its subjects are {subjects}")
    return info


async def create_streams(connection: Connection, layout: LogLayout) -> list[str]:
    """Make the streams that are missing, and return their names. Those that exist are left as they are.

    Raises
    ------
    LogUnavailable
        There is no answer, or the server refuses one.
    """
    made = []
    for name, configuration in layout.streams().items():
        if await find_configuration(connection, name) is None:
            await connection.call(f"STREAM.CREATE.{name}", {"name": name, **configuration})
            made.append(name)
    return made


async def find_configuration(connection: Connection, stream: str) -> Mapping[str, Any] | None:
    """Return what the servers say of a stream; None if there is no such stream.

    Raises
    ------
    LogUnavailable
        There is no answer.
    """
    try:
        return await connection.call(f"STREAM.INFO.{stream}")
    except CallFailed as error:
        if error.code == _STREAM_NOT_FOUND:
            return None
        raise


async def find_problems(connection: Connection, layout: LogLayout, *, but: Collection[str] = ()) -> list[str]:
    """Return what is wrong with the log, but for some of its streams, as sentences; an empty list if nothing is.

    Raises
    ------
    LogUnavailable
        There is no answer.
    """
    problems = []
    if (version := connection.server_version) and _parse_version(version) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        problems.append(f"The server {connection.server} has version {version}; {oldest} is the oldest that will do.")
    if connection.max_payload < MIN_MAX_PAYLOAD:
        problems.append(f"max_payload is {connection.max_payload} bytes; {MIN_MAX_PAYLOAD} are needed.")
    for name, expected in layout.streams().items():
        if name in but:
            continue
        found = await find_configuration(connection, name)
        if found is None:
            problems.append(f"There is no stream {name}.")
            continue
        configuration = found["config"]
        for key, value in expected.items():
            # The size of the log can be chosen. A bucket with one would drop the oldest leases, claims or receipts.
            if key == "num_replicas" or (key == "max_bytes" and name == STREAM):
                continue
            if configuration.get(key, _default_of(value)) != value:
                problems.append(f"{name}: {key} is {configuration.get(key)!r}, and must be {value!r}.")
        replicas = int(configuration.get("num_replicas", 1))
        if replicas < layout.replicas:
            problems.append(f"{name} has {replicas} replicas, and should have {layout.replicas}.")
        problems += _describe_replicas(name, found.get("cluster") or {}, replicas)
    return problems


def _describe_replicas(name: str, cluster: Mapping[str, Any], replicas: int) -> list[str]:
    others = cluster.get("replicas") or []
    problems = []
    if replicas > 1 and not cluster.get("leader"):
        problems.append(f"{name} has no leader.")
    for other in others:
        if other.get("offline"):
            problems.append(f"{name}: the node {other.get('name')} is not there.")
        elif not other.get("current"):
            problems.append(f"{name}: the node {other.get('name')} is behind by {other.get('lag', 0)} messages.")
    return problems


def _default_of(value: object) -> object:
    """Return the value that a server leaves out of its answer."""
    return {bool: False, int: 0}.get(type(value))


def _parse_version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def beamline_permissions(beamline: str) -> dict[str, Any]:
    """Return the permissions of a beamline's user: to append to its own runs, and to read its tails and receipts."""
    check_beamline(beamline)
    runs = bucket_stream(RUNS_BUCKET)
    return {
        "publish": {
            "allow": [
                f"{DOCUMENTS}.{beamline}.*",
                f"$JS.API.DIRECT.GET.{STREAM}.{DOCUMENTS}.{beamline}.*",
                f"$JS.API.DIRECT.GET.{runs}.$KV.{RUNS_BUCKET}.receipt.{beamline}.*",
            ]
        },
        "subscribe": {"allow": [f"_INBOX.{beamline}.>", f"$KV.{RUNS_BUCKET}.receipt.{beamline}.>"]},
    }


def supervisor_permissions() -> dict[str, Any]:
    """Return the permissions of the supervisors' user."""
    return {
        "publish": {"allow": ["$JS.API.>", f"$KV.{RUNS_BUCKET}.>", f"$KV.{HOSTS_BUCKET}.>"]},
        "subscribe": {"allow": ["_INBOX.supervisor.>"]},
    }
