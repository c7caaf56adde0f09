"""Users of NATS log in to a site's log with keys, and learn why if they may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from log_site import LogSite

from tiledbroker import JetStreamPublisher, KeyFileError
from tiledbroker._errors import LogUnavailable
from tiledbroker.jetstream import (
    Connection,
    LogAddress,
    LoopThread,
    beamline_permissions,
    documents_subject,
    supervisor_permissions,
)
from tiledwriter.testing import wait_until

pytest.importorskip("nkeys", reason="nkeys, which the extra nats asks for, is not installed")

from nats_users import Operator, make_seed


@pytest.fixture
def connect() -> Iterator[Callable[..., Connection]]:
    """Connects to a log, and ends the connection."""
    loop = LoopThread("test")

    async def open_and_close(address: LogAddress) -> None:
        await (await Connection.open(address, name="test")).close()

    yield lambda servers, **options: loop.run(open_and_close(LogAddress.parse(servers, **options)), 60)
    loop.close()


def test_credentials_files_of_an_operator_are_taken(connect: Callable[..., Connection], tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    supervisor = operator.make_credentials("supervisor", supervisor_permissions())
    beamline = operator.make_credentials("csx", beamline_permissions("csx"))
    expired = operator.make_credentials("expired", seconds=-60)
    with LogSite(tmp_path / "log", configuration=operator.configuration, credentials=supervisor) as site:
        servers = site.address.servers
        connect(servers, credentials=beamline, inbox="_INBOX.csx")
        for wrong in (expired, None):
            with pytest.raises(LogUnavailable, match="does not accept these credentials"):
                connect(servers, credentials=wrong)
        publisher = JetStreamPublisher(servers, beamline="csx", credentials=expired, spool_dir=tmp_path / "spool")
        with closing(publisher):
            publisher("start", {"uid": "run", "time": 0.0})
            wait_until(lambda: "does not accept" in (publisher.status().problem or ""), 60, "the reason is said")
            # New credentials are taken as they come.
            expired.write_bytes(beamline.read_bytes())
            wait_until(lambda: site.indexes("csx", "run") == [0], 60, "the document is in the log")

        async def append_to_another(connection: Connection) -> None:
            await connection.append(documents_subject("hxn", "run"), b"", {}, 0)

        with pytest.raises(LogUnavailable, match=r"lacks the permission to publish to tw\.docs\.hxn\.run"):
            site.ask(append_to_another)


def test_a_seed_is_taken(connect: Callable[..., Connection], tmp_path: Path) -> None:
    configuration = {"authorization": {"users": [{"nkey": make_seed(tmp_path / "seed")}]}}
    make_seed(tmp_path / "other")
    with LogSite(tmp_path / "log", configuration=configuration, credentials=tmp_path / "seed") as site:
        connect(site.address.servers, credentials=tmp_path / "seed")
        with pytest.raises(LogUnavailable, match="does not accept these credentials") as error:
            connect(site.address.servers, credentials=tmp_path / "other")
        assert (tmp_path / "other").read_text().strip() not in str(error.value)


@pytest.mark.parametrize("lost", ["SEED", "END USER", "JWT---"])
def test_credentials_that_are_cut_are_refused(connect: Callable[..., Connection], lost: str, tmp_path: Path) -> None:
    path = Operator(tmp_path).make_credentials("csx")
    text = path.read_text()
    path.write_text(text[: text.index(lost)])
    with pytest.raises(KeyFileError) as error:
        connect("127.0.0.1:1", credentials=path)
    assert not any(line in str(error.value) for line in text.split() if len(line) > 50)
