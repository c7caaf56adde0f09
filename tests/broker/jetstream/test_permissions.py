"""A beamline's credentials can append to its own runs and read how far they are, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from log_site import LogSite

from tiledbroker import JetStreamPublisher, KeyFileError
from tiledbroker._errors import LogUnavailable, PermissionMissing
from tiledbroker.jetstream import (
    RUNS_BUCKET,
    STREAM,
    Connection,
    LogAddress,
    LoopThread,
    beamline_permissions,
    bucket_stream,
    bucket_subject,
    documents_subject,
    receipt_key,
    supervisor_permissions,
)
from tiledbroker.jetstream import _connection as connection_module
from tiledwriter.testing import wait_until


def credentials(directory: Path, name: str) -> Path:
    path = directory / f"{name}.credentials"
    path.write_text(f"{name}:secret of {name}".replace(" ", "-") + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LogSite]:
    """A log with users for the supervisors and two beamlines."""
    permissions = {
        "supervisor": supervisor_permissions(),
        "csx": beamline_permissions("csx"),
        "hxn": beamline_permissions("hxn"),
    }
    users = [
        {"user": name, "password": f"secret-of-{name}", "permissions": allowed} for name, allowed in permissions.items()
    ]
    configuration = {"authorization": {"users": users}}
    with LogSite(
        tmp_path / "log", configuration=configuration, credentials=credentials(tmp_path, "supervisor")
    ) as made:
        yield made


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopThread]:
    # A refusal by permissions is said beside the request, and ends it.
    monkeypatch.setattr(connection_module, "REQUEST_SECONDS", 600.0)
    made = LoopThread("test")
    yield made
    made.close()


def test_a_beamline_publishes_its_runs(site: LogSite, tmp_path: Path) -> None:
    publisher = JetStreamPublisher(
        site.address.servers,
        beamline="csx",
        credentials=credentials(tmp_path, "csx"),
        spool_dir=tmp_path / "spool",
    )
    with closing(publisher):
        publisher("start", {"uid": "run", "time": 0.0})
        publisher("stop", {"uid": "end", "time": 0.0, "run_start": "run", "exit_status": "success"})
        wait_until(lambda: site.indexes("csx", "run") == [0, 1], 60, "the run is in the log")


def test_a_beamline_reaches_nothing_of_another(site: LogSite, loop: LoopThread, tmp_path: Path) -> None:
    address = LogAddress.parse(site.address.servers, credentials=credentials(tmp_path, "csx"), inbox="_INBOX.csx")
    other = documents_subject("hxn", "run")
    receipt = bucket_subject(RUNS_BUCKET, receipt_key("hxn", "run"))

    async def try_all() -> list[str]:
        connection = await Connection.open(address, name="test")
        attempts = {
            "append": lambda: connection.append(other, b"", {}, 0),
            "read the tail": lambda: connection.read_last(STREAM, other),
            "read the receipt": lambda: connection.read_last(bucket_stream(RUNS_BUCKET), receipt),
            "forge a receipt of its own": lambda: connection.append(
                bucket_subject(RUNS_BUCKET, receipt_key("csx", "run")), b"", {}, 0
            ),
            "read from the leader": lambda: connection.read_key(RUNS_BUCKET, receipt_key("csx", "run")),
            "read any message": lambda: connection.read_next(STREAM, documents_subject("csx", "run"), 1),
            "purge": lambda: connection.call(f"STREAM.PURGE.{STREAM}"),
            "make a consumer": lambda: connection.call(f"CONSUMER.CREATE.{STREAM}"),
        }
        reached, refused = [], []
        for name, attempt in attempts.items():
            try:
                await attempt()
                reached.append(name)
            except PermissionMissing as error:
                refused.append(error.subject)
        # This is what it may do.
        await connection.append(documents_subject("csx", "run"), b"", {}, 0)
        await connection.read_last(STREAM, documents_subject("csx", "run"))
        await connection.close()
        assert refused[:2] == [other, f"$JS.API.DIRECT.GET.{STREAM}.{other}"]
        assert len(refused) == len(attempts)
        return reached

    assert loop.run(try_all(), 60) == []


def test_an_inbox_of_somebody_else_is_refused_at_once(site: LogSite, loop: LoopThread, tmp_path: Path) -> None:
    address = LogAddress.parse(site.address.servers, credentials=credentials(tmp_path, "csx"), inbox="_INBOX.hxn")

    async def ask_twice() -> None:
        connection = await Connection.open(address, name="test")
        for _ in range(2):
            with pytest.raises(PermissionMissing, match=r"lacks the permission to subscribe to _INBOX\.hxn"):
                await connection.read_last(STREAM, documents_subject("csx", "run"))
        await connection.close()

    loop.run(ask_twice(), 60)


def test_a_wrong_password_is_said_without_it(site: LogSite, loop: LoopThread, tmp_path: Path) -> None:
    path = credentials(tmp_path, "csx")
    path.write_text("csx:other-secret\n")
    address = LogAddress.parse(site.address.servers, credentials=path)
    with pytest.raises(LogUnavailable, match=r"[Aa]uthorization") as error:
        loop.run(Connection.open(address, name="test"), 60)
    assert "other-secret" not in str(error.value)


def test_credentials_that_others_can_read_are_refused(site: LogSite, loop: LoopThread, tmp_path: Path) -> None:
    path = credentials(tmp_path, "csx")
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="other users"):
        loop.run(Connection.open(LogAddress.parse(site.address.servers, credentials=path), name="test"), 60)
