"""Connections to a site's log are encrypted where that was asked for, and what is wrong with them is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from log_site import LogSite

from tiledbroker import JetStreamPublisher, KeyFileError
from tiledbroker._errors import LogUnavailable
from tiledbroker.jetstream import Connection, LogAddress, LoopThread
from tiledbroker.jetstream import _connection as connection_module
from tiledwriter.testing import wait_until


def encrypted(certificate: Path, authority: Path | None = None) -> dict[str, Any]:
    """The configuration of a server; with an authority, clients need a certificate of it."""
    asks = {} if authority is None else {"ca_file": str(authority), "verify": True}
    return {"tls": {"cert_file": str(certificate), "key_file": str(certificate), **asks}}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Connects to a log, and returns the version of its server."""
    # A server with a certificate that is not trusted is tried for as long as the client likes.
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 1.0)
    loop = LoopThread("test")

    async def open_and_close(address: LogAddress) -> str:
        connection = await Connection.open(address, name="test")
        await connection.close()
        return connection.server_version

    yield lambda servers, **options: loop.run(open_and_close(LogAddress.parse(servers, **options)), 60)
    loop.close()


def test_who_has_signed_the_servers_certificate_must_be_known(
    authority: Authority, connect: Callable[..., str], tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    with LogSite(tmp_path / "log", configuration=encrypted(authority.sign("server")), tls_ca=authority.file) as site:
        servers = site.address.servers
        assert connect(servers, tls_ca=authority.file)[0].isdigit()
        assert connect(servers[0].replace("nats:", "tls:"), tls_ca=authority.file)
        for options in ({"tls_ca": other.file}, {}):
            with pytest.raises(LogUnavailable, match="certificate is not accepted: unable to get local issuer"):
                connect(servers, **options)


def test_a_certificate_that_has_expired_is_said(
    authority: Authority, connect: Callable[..., str], tmp_path: Path
) -> None:
    site = LogSite(tmp_path / "log", configuration=encrypted(authority.sign("server", days=-1)))
    site.start()
    try:
        servers = site.address.servers
        wait_until(site.nodes[0].ready, 60, "the server is ready")
        with pytest.raises(LogUnavailable, match="certificate is not accepted: certificate has expired"):
            connect(servers, tls_ca=authority.file)
        publisher = JetStreamPublisher(servers, beamline="csx", tls=authority.file, spool_dir=tmp_path / "spool")
        with closing(publisher):
            publisher("start", {"uid": "run", "time": 0.0})
            wait_until(lambda: "has expired" in (publisher.status().problem or ""), 60, "the publisher says why")
            assert publisher.status().waiting == 1
    finally:
        site.nodes[0].kill()


def test_nothing_is_sent_to_a_server_that_does_not_encrypt(
    authority: Authority, connect: Callable[..., str], log_site: LogSite, tmp_path: Path
) -> None:
    # The password would be readable on the way, also if somebody else answers in the server's place.
    secret = tmp_path / "credentials"
    secret.touch(mode=0o600)
    secret.write_text("csx:secret-of-csx")
    (servers,) = log_site.address.servers
    assert connect(servers)
    for address, options in ((servers, {"tls_ca": authority.file}), (servers.replace("nats:", "tls:"), {})):
        with pytest.raises(LogUnavailable, match="does not encrypt") as error:
            connect(address, credentials=secret, **options)
        assert "secret-of" not in str(error.value)


def test_a_server_may_ask_for_certificates_of_clients(
    authority: Authority, connect: Callable[..., str], tmp_path: Path
) -> None:
    own = authority.sign("client")
    configuration = encrypted(authority.sign("server"), authority.file)
    site = LogSite(tmp_path / "log", configuration=configuration, tls_ca=authority.file, tls_client=own)
    with site:
        servers = site.address.servers
        assert connect(servers, tls_ca=authority.file, tls_client=own)
        with pytest.raises(LogUnavailable, match=r"asks for a client's certificate .* none is given"):
            connect(servers, tls_ca=authority.file)
        for wrong in (Authority(tmp_path, "other").sign("stranger"), authority.sign("old", days=-1)):
            with pytest.raises(LogUnavailable, match=rf"asks for a client's certificate .* {wrong} may not be one"):
                connect(servers, tls_ca=authority.file, tls_client=wrong)
        publisher = JetStreamPublisher(
            servers, beamline="csx", tls=authority.file, tls_client=own, spool_dir=tmp_path / "spool"
        )
        with closing(publisher):
            publisher("start", {"uid": "run", "time": 0.0})
            wait_until(lambda: site.indexes("csx", "run") == [0], 60, "the document is in the log")


def test_files_that_cannot_be_used_are_named(authority: Authority, connect: Callable[..., str], tmp_path: Path) -> None:
    public = authority.sign("public")
    public.chmod(0o644)
    for options, message in (
        ({"tls_ca": tmp_path / "none"}, "cannot be used as certificates"),
        ({"tls_client": tmp_path / "none"}, "cannot be read"),
        ({"tls_client": public}, "other users can read it"),
    ):
        with pytest.raises(KeyFileError, match=message) as error:
            connect("127.0.0.1:1", **options)
        assert error.value.path in map(str, options.values())
    half = tmp_path / "half"
    half.touch(mode=0o600)
    half.write_bytes(authority.file.read_bytes())
    with pytest.raises(KeyFileError, match="must have a certificate and its key"):
        connect("127.0.0.1:1", tls_client=half)
