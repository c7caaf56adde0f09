"""The newest message of each subject is followed, in a real log."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from log_site import LogSite

from tiledbroker.jetstream import HOSTS_BUCKET, Connection, bucket_stream, bucket_subject
from tiledbroker.jetstream._follower import HEARTBEAT_SECONDS, Follower, follow

pytestmark = pytest.mark.timeout(300)

KEYS = ("a", "b", "c")


async def put(connection: Connection, keys: Sequence[str], body: bytes) -> None:
    for key in keys:
        await connection.request(bucket_subject(HOSTS_BUCKET, key), body)


async def receive_all(follower: Follower) -> dict[str, bytes]:
    """Bodies of what comes until nothing is pending, by subject."""
    bodies: dict[str, bytes] = {}
    while follower.pending:
        bodies |= {message.subject: message.body for message in await follower.receive(HEARTBEAT_SECONDS)}
    return bodies


def test_the_newest_message_of_each_subject_comes_and_then_nothing_is_pending(log_site: LogSite) -> None:
    async def ask(connection: Connection) -> dict[str, bytes]:
        await put(connection, KEYS, b"old")
        await put(connection, KEYS, b"new")
        async with follow(connection, bucket_stream(HOSTS_BUCKET), bucket_subject(HOSTS_BUCKET, ">")) as follower:
            return await receive_all(follower)

    assert log_site.ask(ask) == {bucket_subject(HOSTS_BUCKET, key): b"new" for key in KEYS}


def test_messages_removed_before_they_came_are_not_waited_for(log_site: LogSite) -> None:
    async def ask(connection: Connection) -> dict[str, bytes]:
        await put(connection, KEYS, b"new")
        async with follow(connection, bucket_stream(HOSTS_BUCKET), bucket_subject(HOSTS_BUCKET, ">")) as follower:
            # As if the server had counted a message that was removed before it was its turn.
            follower.pending += 1
            return await receive_all(follower)

    assert log_site.ask(ask) == {bucket_subject(HOSTS_BUCKET, key): b"new" for key in KEYS}


def test_a_message_with_the_header_of_a_heartbeat_is_a_message(log_site: LogSite) -> None:
    async def ask(connection: Connection) -> dict[str, bytes]:
        for key in KEYS:
            await connection.request(bucket_subject(HOSTS_BUCKET, key), b"new", {"Status": "100"})
        async with follow(connection, bucket_stream(HOSTS_BUCKET), bucket_subject(HOSTS_BUCKET, ">")) as follower:
            return await receive_all(follower)

    assert log_site.ask(ask) == {bucket_subject(HOSTS_BUCKET, key): b"new" for key in KEYS}
