"""Commands that ask a site's log: their options, and questions to its servers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from tiledbroker.jetstream import Connection, LogAddress, LoopThread

T = TypeVar("T")

_TIMEOUT_SECONDS: Final = 60.0


def add_log(command: argparse.ArgumentParser, purpose: str) -> None:
    """Add the options that name a site's log and how to log in there."""
    command.add_argument("--source", metavar="SERVERS", help=purpose)
    command.add_argument(
        "--credentials",
        type=Path,
        metavar="FILE",
        help="file with NAME:PASSWORD, or with the seed or the credentials of a NATS user",
    )
    command.add_argument("--tls", type=Path, metavar="FILE", help="certificates of the servers' authority")
    command.add_argument(
        "--tls-client", type=Path, metavar="FILE", help="certificate and key of this host, for servers that ask for one"
    )


def log_of(arguments: argparse.Namespace) -> LogAddress:
    """Return the log that the options name.

    Raises
    ------
    AddressError
        The servers cannot be parsed.
    """
    return LogAddress.parse(
        arguments.source,
        credentials=arguments.credentials,
        tls_ca=arguments.tls,
        tls_client=arguments.tls_client,
        inbox="_INBOX.supervisor",
    )


def ask(
    address: LogAddress,
    question: Callable[[Connection], Coroutine[Any, Any, T]],
    *,
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> T:
    """Return the answer to a question to the servers of a log.

    Raises
    ------
    LogUnavailable
        There is none.
    KeyFileError
        The credentials cannot be used.
    """

    async def answer() -> T:
        connection = await Connection.open(address, name="tiledwriter command")
        try:
            return await question(connection)
        finally:
            await connection.close()

    loop = LoopThread("tiledwriter-command")
    try:
        return loop.run(answer(), timeout_seconds)
    finally:
        loop.close()
