"""The HTTP application without a process, on a supervisor that says what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import snapshots
from starlette.applications import Starlette

from tiledwriter.status import _source
from tiledwriter.status._app import StatusApp
from tiledwriter.status._snapshot import Answer, SupervisorAway
from tiledwriter.status._source import SnapshotSource

TOKEN = "0123456789abcdef"


class Supervisor:
    """What the application asks.

    Attributes
    ----------
    snapshot
        What is answered; None if there is no answer.
    """

    def __init__(self, snapshot: dict[str, Any] | None) -> None:
        self.snapshot = snapshot
        self.asked = 0

    def __call__(self) -> Answer:
        self.asked += 1
        if self.snapshot is None:
            raise SupervisorAway("No supervisor uses /var/lib/tiledwriter")
        return snapshots.answer_of(self.snapshot)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = snapshots.NOW

    def __call__(self) -> float:
        return self.now


class Client:
    """Sends requests to an application, without a socket."""

    def __init__(self, app: Starlette, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._loop.run_until_complete(self._client.get(path, **options))

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self._loop.run_until_complete(self._client.post(path, **options))

    def get_together(self, paths: list[str]) -> list[httpx.Response]:
        """Send several requests at once."""

        async def get_all() -> list[httpx.Response]:
            return await asyncio.gather(*map(self._client.get, paths))

        return self._loop.run_until_complete(get_all())


@pytest.fixture
def supervisor() -> Supervisor:
    """A supervisor that is well."""
    return Supervisor(snapshots.well())


@pytest.fixture
def clock() -> Clock:
    """The time at which the supervisor is asked."""
    return Clock()


@pytest.fixture
def serve(
    tmp_path: Path, supervisor: Supervisor, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Client]]:
    """Makes clients of an application; each request asks the supervisor, and no samples are taken."""
    monkeypatch.setattr(_source, "MAX_AGE_SECONDS", 0.0)
    loop = asyncio.new_event_loop()

    def make(token_file: Path | None = None) -> Client:
        return Client(StatusApp(SnapshotSource(supervisor, clock), tmp_path, token_file).starlette(), loop)

    yield make
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture
def client(serve: Callable[..., Client]) -> Client:
    """A client of the application without a token."""
    return serve()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """A file with a token."""
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(f"{TOKEN}\n")
    return path
