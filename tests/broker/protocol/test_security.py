"""CURVE: keys are made, found and refused; who has none, a wrong one or one no longer let in stays outside."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from bluesky.callbacks.zmq import ClientCurve as BlueskyClientCurve
from peers import ask, dial
from runs import documents, length_of, publish, supervisor_without_tiled
from zmq.auth import create_certificates, load_certificate

from tiledbroker import ClientCurve, Encoder, KeyFileError, ZMQPublisher
from tiledbroker.protocol import messages
from tiledbroker.protocol._address import is_local
from tiledbroker.protocol._security import ServerCurve, make_client_keys, make_server_keys
from tiledbroker.publisher._zmq_link import new_identity
from tiledwriter._config import load_settings
from tiledwriter.cli import supervisor as command
from tiledwriter.testing import SupervisorProcess, journal_of, wait_until


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A supervisor's keys, with a client `beamline`."""
    make_server_keys(tmp_path / "keys")
    make_client_keys(tmp_path / "keys", "beamline")
    return tmp_path / "keys"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., SupervisorProcess]]:
    """Starts supervisors, which are stopped at the end."""
    started: list[SupervisorProcess] = []

    def make(*options: str) -> SupervisorProcess:
        started.append(supervisor_without_tiled(tmp_path / f"journals-{len(started)}", *options))
        started[-1].start()
        return started[-1]

    yield make
    for process in started:
        process.stop()


@pytest.fixture
def publish_with(tmp_path: Path) -> Iterator[Callable[..., ZMQPublisher]]:
    """Makes publishers, which are closed at the end."""
    made: list[ZMQPublisher] = []

    def make(supervisor: SupervisorProcess, curve: Any, spool: str | None = None) -> ZMQPublisher:
        spool_dir = tmp_path / (spool or f"spool-{len(made)}")
        made.append(ZMQPublisher(supervisor.address, spool_dir=spool_dir, curve=curve, on_error="raise"))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close(timeout=0)


# Keys


def test_keys_can_be_read_by_their_owner_only(keys: Path) -> None:
    for path in [keys, *keys.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_client_s_directory_has_its_own_keys_and_the_supervisor_s_public_one(keys: Path) -> None:
    assert sorted(path.name for path in (keys / "beamline").iterdir()) == ["beamline.key_secret", "server.key"]
    secret = load_certificate(keys / "server.key_secret")[1]
    assert secret is not None
    assert secret not in (keys / "beamline" / "server.key").read_bytes()
    loaded = ClientCurve.of(keys / "beamline").load()
    assert ServerCurve(keys).name_of(loaded.public.decode()) == "beamline"


def test_keys_are_never_replaced(keys: Path) -> None:
    before = (keys / "server.key_secret").read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        make_server_keys(keys)
    with pytest.raises(KeyFileError, match="of this name exists already"):
        make_client_keys(keys, "beamline")
    assert (keys / "server.key_secret").read_bytes() == before


@pytest.mark.parametrize("name", ["../evil", "", "a/b", "server", ".hidden", "-x", "a\nb", "x" * 200])
def test_a_client_s_name_is_a_plain_file_name(keys: Path, name: str) -> None:
    before = sorted(keys.parent.rglob("*"))
    with pytest.raises(KeyFileError, match="not a valid client name"):
        make_client_keys(keys, name)
    assert sorted(keys.parent.rglob("*")) == before


def test_a_secret_that_others_can_read_is_refused(keys: Path) -> None:
    for secret, load in (
        (keys / "server.key_secret", lambda: ServerCurve(keys)),
        (keys / "beamline" / "beamline.key_secret", ClientCurve.of(keys / "beamline").load),
    ):
        secret.chmod(0o640)
        with pytest.raises(KeyFileError, match=f"chmod 600 {secret}"):
            load()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read"),
        (b"", "not a ZeroMQ certificate"),
        (b'curve\n    public-key = "short"\n    secret-key = "hush-hush"\n', "not a ZeroMQ certificate"),
        (b"\xff\xfe\x00 public-key = \x80", "not a ZeroMQ certificate"),
    ],
)
def test_a_file_without_keys_is_refused_without_being_quoted(keys: Path, content: bytes | None, complaint: str) -> None:
    secret = keys / "beamline" / "beamline.key_secret"
    if content is None:
        secret.rename(secret.with_name("elsewhere"))
    else:
        secret.write_bytes(content)
    with pytest.raises(KeyFileError, match=complaint) as raised:
        ClientCurve(secret, keys / "beamline" / "server.key").load()
    assert "hush-hush" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_public_certificate_is_no_secret_one(keys: Path) -> None:
    with pytest.raises(KeyFileError, match="no secret key"):
        ClientCurve(keys / "server.key", keys / "server.key").load()


def test_a_directory_that_is_not_a_client_s_is_refused(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="no such directory"):
        ZMQPublisher(spool_dir=tmp_path / "spool", curve=keys / "nobody")
    with pytest.raises(KeyFileError, match="holds 0 files"):
        ZMQPublisher(spool_dir=tmp_path / "spool", curve=keys / "clients")


def test_keys_do_not_show(keys: Path) -> None:
    loaded = ClientCurve.of(keys / "beamline").load()
    assert loaded.secret.decode() not in repr(loaded)
    assert loaded.secret.decode() not in str(ClientCurve.of(keys / "beamline"))


def test_the_command_makes_keys_and_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "keys"
    assert command.main(["keygen", str(directory)]) == 0
    assert f"--curve {directory}" in capsys.readouterr().out
    assert command.main(["keygen", str(directory), "--client", "hutch-a", "--client", "hutch-b"]) == 0
    printed = capsys.readouterr().out
    for name in ("hutch-a", "hutch-b"):
        assert str(directory / name) in printed
        secret = load_certificate(directory / name / f"{name}.key_secret")[1]
        assert secret is not None
        assert secret.decode() not in printed
    assert command.main(["keygen", str(directory)]) == 1
    assert "exists already" in capsys.readouterr().err


# Which clients are let in


def test_the_directory_of_clients_is_read_again(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = ServerCurve(keys)
    monkeypatch.setattr("tiledbroker.protocol._security._REREAD_SECONDS", 0.0)
    curve._read_again_at = 0.0
    old = ClientCurve.of(keys / "beamline").load().public.decode()
    new = ClientCurve.of(make_client_keys(keys, "second")).load().public.decode()
    assert (curve.name_of(old), curve.name_of(new)) == ("beamline", "second")
    (keys / "clients" / "beamline.key").unlink()
    assert (curve.name_of(old), curve.name_of(new)) == (None, "second")


def test_a_key_that_cannot_be_read_lets_nobody_in_and_others_stay(
    keys: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tiledbroker.protocol._security._REREAD_SECONDS", 0.0)
    (keys / "clients" / "broken.key").write_bytes(b"\x00" * 100)
    curve = ServerCurve(keys)
    assert curve.name_of(ClientCurve.of(keys / "beamline").load().public.decode()) == "beamline"
    assert "broken.key: it is not a ZeroMQ certificate" in caplog.text


def test_what_is_no_key_file_harms_nobody(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiledbroker.protocol._security._REREAD_SECONDS", 0.0)
    (keys / "clients" / ".#beamline.key").symlink_to("me@host.1234:1")  # as an editor leaves there
    os.mkfifo(keys / "clients" / "pipe.key")
    (keys / "clients" / "directory.key").mkdir()
    curve = ServerCurve(keys)
    assert curve.name_of(ClientCurve.of(keys / "beamline").load().public.decode()) == "beamline"


def test_without_the_directory_of_clients_nobody_is_let_in(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiledbroker.protocol._security._REREAD_SECONDS", 0.0)
    curve = ServerCurve(keys)
    (keys / "clients").rename(keys / "elsewhere")
    assert curve.name_of(ClientCurve.of(keys / "beamline").load().public.decode()) is None
    with pytest.raises(KeyFileError, match="clients: there is no such directory"):
        ServerCurve(keys)


# Where to listen


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("tcp://127.0.0.1:5579", True),
        ("tcp://127.1.2.3:5579", True),
        ("tcp://localhost:5579", True),
        ("tcp://[::1]:5579", True),
        ("ipc:///run/tiledwriter", True),
        ("tcp://*:5579", False),
        ("tcp://0.0.0.0:5579", False),
        ("tcp://[::]:5579", False),
        ("tcp://eth0:5579", False),
        ("tcp://ingest.example:5579", False),
        ("tcp://10.0.0.5:5579", False),
        ("tcp://127.0.0.1.evil.example:5579", False),
    ],
)
def test_an_address_is_local_or_not(url: str, *, local: bool) -> None:
    assert is_local(url) is local


def test_listening_to_other_hosts_needs_keys_or_a_word(
    tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"listen": "tcp://0.0.0.0:5579", "tiled": "http://localhost:1"}
    arguments = [word for name, value in flags.items() for word in (f"--{name}", value)]
    assert command.main([*arguments, "--journal-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    for hint in ("any of them could write", "keygen", "--curve", "--insecure"):
        assert hint in said
    for enough in ({"insecure": True}, {"curve": keys}):
        assert load_settings(None, {**flags, **enough}).listen == flags["listen"]


# Publishers


def test_a_client_with_its_key_is_let_in_and_its_name_is_in_the_journal(
    keys: Path, start: Callable[..., SupervisorProcess], publish_with: Callable[..., ZMQPublisher]
) -> None:
    supervisor = start("--curve", str(keys))
    publisher = publish_with(supervisor, keys / "beamline")
    uid = publish(publisher, documents())
    assert publisher.flush(30)
    assert publisher.status().problem == ""
    with journal_of(supervisor.journal_dir, uid) as journal:
        assert journal.get("client") == "beamline"


def test_bluesky_s_own_form_of_keys_is_understood(
    keys: Path, start: Callable[..., SupervisorProcess], publish_with: Callable[..., ZMQPublisher]
) -> None:
    bundle = keys / "beamline"
    publisher = publish_with(
        start("--curve", str(keys)), BlueskyClientCurve(bundle / "beamline.key_secret", bundle / "server.key")
    )
    publish(publisher, documents())
    assert publisher.flush(30)


def wrong_client(keys: Path) -> Path:
    return make_client_keys(make_other_keys(keys), "beamline")


def make_other_keys(keys: Path) -> Path:
    other = keys.parent / "other"
    make_server_keys(other)
    (other / "server.key").write_bytes((keys / "server.key").read_bytes())
    return other


def wrong_server(keys: Path) -> ClientCurve:
    public, _ = create_certificates(keys.parent, "another")
    return ClientCurve(keys / "beamline" / "beamline.key_secret", Path(public))


@pytest.mark.parametrize(
    ("curve_of", "problem"),
    [
        (wrong_client, "does not accept this publisher's key"),
        (wrong_server, "does this publisher have its current public key?"),
        (lambda _: None, "requires client keys"),
    ],
    ids=["wrong key", "wrong supervisor", "no key"],
)
def test_whoever_has_not_the_right_keys_stays_outside_and_is_told_why(
    keys: Path,
    start: Callable[..., SupervisorProcess],
    publish_with: Callable[..., ZMQPublisher],
    caplog: pytest.LogCaptureFixture,
    *,
    curve_of: Callable[[Path], Any],
    problem: str,
) -> None:
    supervisor = start("--curve", str(keys))
    publisher = publish_with(supervisor, curve_of(keys), "spool")
    uid = publish(publisher, documents())
    wait_until(lambda: problem in publisher.status().problem, 30, "the publisher knows why")
    assert not publisher.status().connected
    assert problem in caplog.text
    assert length_of(supervisor, uid) == 0
    assert publisher.status().waiting == len(documents())
    publisher.close(timeout=0)
    honest = publish_with(supervisor, keys / "beamline", "spool")  # nothing was lost by it
    wait_until(lambda: length_of(supervisor, uid) == len(documents()), 60, "what was spooled is shipped with the key")
    honest.close(timeout=0)


def test_keys_are_no_use_with_a_supervisor_that_has_none(
    keys: Path, start: Callable[..., SupervisorProcess], publish_with: Callable[..., ZMQPublisher]
) -> None:
    publisher = publish_with(start(), keys / "beamline")
    wait_until(lambda: "it does not use CURVE" in publisher.status().problem, 30, "the publisher knows why")


def test_nobody_there_is_told_apart(tmp_path: Path) -> None:
    publisher = ZMQPublisher(f"tcp://127.0.0.1:{_closed_port()}", spool_dir=tmp_path)
    try:
        wait_until(lambda: publisher.status().problem == "nothing is listening there", 30, "the publisher knows why")
    finally:
        publisher.close(timeout=0)


def test_a_name_that_is_none_is_told_apart(tmp_path: Path) -> None:
    publisher = ZMQPublisher("tcp://ingest.invalid:5579", spool_dir=tmp_path)  # a domain that never has any
    try:
        wait_until(lambda: "ingest.invalid cannot be resolved" in publisher.status().problem, 60, "it knows why")
    finally:
        publisher.close(timeout=0)


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_client_loses_its_access_at_once_and_gets_it_back(
    keys: Path,
    start: Callable[..., SupervisorProcess],
    publish_with: Callable[..., ZMQPublisher],
    caplog: pytest.LogCaptureFixture,
) -> None:
    supervisor = start("--curve", str(keys))
    publisher = publish_with(supervisor, keys / "beamline")
    emitted = documents(40)
    uid = publish(publisher, emitted[:10])
    assert publisher.flush(30)
    allowed = keys / "clients" / "beamline.key"
    allowed.rename(keys / "beamline.key")
    wait_until(lambda: "this key is not let in any more" in publisher.status().problem, 30, "the publisher knows")
    assert "rejects this publisher" in caplog.text
    publish(publisher, emitted[10:])
    assert not publisher.flush(2)
    assert length_of(supervisor, uid) == 10
    (keys / "beamline.key").rename(allowed)
    assert publisher.flush(60)
    assert length_of(supervisor, uid) == len(emitted)
    assert publisher.status().problem == ""


def test_a_new_client_needs_no_restart(
    keys: Path, start: Callable[..., SupervisorProcess], publish_with: Callable[..., ZMQPublisher]
) -> None:
    supervisor = start("--curve", str(keys))
    publisher = publish_with(supervisor, make_client_keys(keys, "late"))
    publish(publisher, documents())
    assert publisher.flush(30)


def test_a_run_belongs_to_the_client_that_began_it(
    keys: Path, start: Callable[..., SupervisorProcess], publish_with: Callable[..., ZMQPublisher]
) -> None:
    supervisor = start("--curve", str(keys))
    mine = publish_with(supervisor, keys / "beamline")
    other = publish_with(supervisor, make_client_keys(keys, "other"))
    emitted = documents(10)
    uid = publish(mine, emitted[:5])
    assert mine.flush(30)
    publish(other, emitted)
    wait_until(lambda: uid in other.status().refused, 30, "the other is refused")
    assert "belongs to another client" in other.status().refused[uid]
    assert length_of(supervisor, uid) == 5
    publish(mine, emitted[5:])
    assert mine.flush(30)
    assert length_of(supervisor, uid) == len(emitted)
    supervisor.stop()
    supervisor.start()  # it is the journal that knows
    third = publish_with(supervisor, keys / "other")
    publish(third, emitted)
    wait_until(lambda: uid in third.status().refused, 30, "the other is refused still")


def test_an_identity_brings_nothing_of_another_client_s_connection_with_it(
    keys: Path, start: Callable[..., SupervisorProcess], publish_with: Callable[..., ZMQPublisher]
) -> None:
    supervisor = start("--curve", str(keys))
    emitted = documents(10)
    uid = emitted[0][1]["uid"]
    mine = ClientCurve.of(keys / "beamline").load()
    other = ClientCurve.of(make_client_keys(keys, "other")).load()
    identity = new_identity()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with dial(context, supervisor.address, identity=identity, keys=mine) as dealer:
            ask(dealer, messages.Hello("mine", {}, []))
            body = Encoder().encode(emitted[0][1])
            start_of_run = messages.documents(uid, 0, [("start", zlib.crc32(body), body)])
            assert ask(dealer, start_of_run) == messages.Durable(uid, 1, ended=False)

        heirs = []

        def let_in() -> bool:
            heirs.append(dial(context, supervisor.address, identity=identity, keys=other))
            heirs[-1].send_multipart(messages.encode(messages.Hello("other", {}, [])))
            return bool(heirs[-1].poll(500))  # unless the first connection is there still

        wait_until(let_in, 30, "another client is let in under the same identity")
        heir = heirs[-1]
        assert isinstance(messages.decode(heir.recv_multipart()), messages.Welcome)
        publisher = publish_with(supervisor, keys / "beamline")
        publish(publisher, emitted)
        assert publisher.flush(30)
        assert ask(heir, messages.Ping(7)) == messages.Pong(7)  # and nothing before it
    finally:
        context.destroy(linger=0)


def test_documents_cannot_be_read_on_their_way(
    keys: Path, start: Callable[..., SupervisorProcess], publish_with: Callable[..., ZMQPublisher]
) -> None:
    supervisor = start("--curve", str(keys))
    with Tap(int(supervisor.address.rpartition(":")[2])) as tap:
        supervisor.address = tap.address
        publisher = publish_with(supervisor, keys / "beamline")
        uid = publish(publisher, documents())
        assert publisher.flush(30)
        publisher.close()
    assert len(tap.seen) > 1000
    assert uid.encode() not in tap.seen
    assert b"descriptor" not in tap.seen


def test_secrets_are_in_no_log_and_no_journal(
    keys: Path,
    start: Callable[..., SupervisorProcess],
    publish_with: Callable[..., ZMQPublisher],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    supervisor = start("--curve", str(keys), "--log-level", "DEBUG")
    publisher = publish_with(supervisor, keys / "beamline")
    publish(publisher, documents())
    assert publisher.flush(30)
    supervisor.stop()
    everything = [path.read_bytes() for path in supervisor.journal_dir.rglob("*") if path.is_file()]
    everything += [supervisor.log.read_bytes(), caplog.text.encode(), repr(publisher.status()).encode()]
    for secret in (keys / "server.key_secret", keys / "beamline" / "beamline.key_secret"):
        key = load_certificate(secret)[1]
        assert key is not None
        assert not any(key in text for text in everything)


class Tap(threading.Thread):
    """Between a publisher and a supervisor: it keeps what it carries."""

    def __init__(self, port: int) -> None:
        super().__init__(name="tiledwriter-test-tap", daemon=True)
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.seen = b""
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Tap:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in [self._listener, *self._ends]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in [self, *self._threads]:
            thread.join()

    def run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            self._ends += [near, far]
            for source, sink in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=self._carry, args=(source, sink), daemon=True))
                self._threads[-1].start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.seen += data
                sink.sendall(data)


def test_keys_of_a_process_are_its_own(keys: Path) -> None:
    """What the umask is set to meanwhile is as it was afterwards."""
    before = os.umask(0o022)
    try:
        make_client_keys(keys, "umask")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_curve_is_there() -> None:
    assert zmq.has("curve"), "pyzmq's wheels have it; without it there is no security to be had"


def test_a_directory_that_cannot_be_read_is_not_one_without_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_server_keys(tmp_path / "keys")
    bundle = make_client_keys(tmp_path / "keys", "beamline")
    curve = ServerCurve(tmp_path / "keys")

    def fail(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as failing:
        failing.setattr(Path, "iterdir", fail)
        with pytest.raises(KeyFileError, match="Permission denied"):
            ClientCurve.of(bundle)
        curve._read_again_at = 0.0
        assert curve.name_of("any") is None
    assert "All clients are rejected" in caplog.text
