"""Under which names the status page is answered."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
import snapshots

from tiledwriter.status._app import StatusApp
from tiledwriter.status._source import SnapshotSource


def status_of(host: str, path: str, names: list[str] | None, directory: Path) -> int:
    app = StatusApp(SnapshotSource(lambda: snapshots.answer_of(snapshots.well())), directory, names=names).starlette()

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return (await client.get(path, headers={"Host": host})).status_code

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "10.0.0.5", "[::1]:8080", "[::1]", "a.localhost:1"]
)
def test_addresses_and_this_host_are_answered(host: str, tmp_path: Path) -> None:
    assert status_of(host, "/", [], tmp_path) == 200


@pytest.mark.parametrize("path", ["/", "/api/status", "/metrics", "/nowhere"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil", ""])
def test_a_site_that_gives_its_name_to_this_host_is_refused(host: str, path: str, tmp_path: Path) -> None:
    assert status_of(host, path, [], tmp_path) == 421


def test_name_of_a_proxy_is_answered(tmp_path: Path) -> None:
    assert status_of("Tiledwriter.example:443", "/", ["tiledwriter.example"], tmp_path) == 200
    assert status_of("other.example", "/", None, tmp_path) == 200
