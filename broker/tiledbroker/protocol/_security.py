"""CURVE: keys of the supervisor and of its clients, and which clients it lets in.

Keys are the certificate files that pyzmq writes and CZMQ reads: `NAME.key` holds a public key, `NAME.key_secret` both.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from .._errors import KeyFileError
from .._limited import LimitedLog

if TYPE_CHECKING:
    import zmq

log = logging.getLogger(__name__)

PUBLIC_SUFFIX: Final = ".key"
SECRET_SUFFIX: Final = ".key_secret"  # noqa: S105  of files
SERVER: Final = "server"
CLIENTS: Final = "clients"
ZAP_DOMAIN: Final = "tiledwriter"

_READ_AGAIN: Final = 1.0
_CLIENT_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")


class ClientCurve(NamedTuple):
    """A publisher's side of CURVE.

    `bluesky.callbacks.zmq.ClientCurve` has the same fields, and is understood, too.

    Attributes
    ----------
    secret_path
        File with the publisher's own pair of keys, readable by its owner only.
    server_public_key
        File with the supervisor's public key.
    """

    secret_path: Path
    server_public_key: Path

    @classmethod
    def of(cls, curve: CurveArgument) -> ClientCurve:
        """From what `ZMQPublisher` is given: a pair of files, or the directory that `keygen` made for the client.

        Raises
        ------
        KeyFileError
            The directory does not hold just one client's keys and the supervisor's.
        TypeError
            It is neither.
        """
        if not isinstance(curve, str | os.PathLike):
            if not all(hasattr(curve, name) for name in cls._fields):
                raise TypeError(f"curve is the directory of a client's keys, or a ClientCurve, not {curve!r}.")
            return cls(Path(curve.secret_path).expanduser(), Path(curve.server_public_key).expanduser())
        directory = Path(curve).expanduser()
        try:
            secrets = sorted(path for path in directory.iterdir() if path.name.endswith(SECRET_SUFFIX))
        except (FileNotFoundError, NotADirectoryError):
            raise KeyFileError(directory, "there is no such directory. Copy it from where `keygen` made it.") from None
        except OSError as error:
            raise KeyFileError(directory, f"it cannot be read: {error.strerror}.") from error
        if len(secrets) != 1:
            raise KeyFileError(directory, f"it holds {len(secrets)} files *{SECRET_SUFFIX}; it should be one.")
        return cls(secrets[0], directory / (SERVER + PUBLIC_SUFFIX))

    def load(self) -> Keys:
        """The keys.

        Raises
        ------
        KeyFileError
            A file is missing, is no certificate, or others can read the secret.
        """
        public, secret = _secret_pair(self.secret_path)
        return Keys(public, secret, _public_key(self.server_public_key))


CurveArgument: TypeAlias = str | os.PathLike[str] | ClientCurve


class Keys(NamedTuple):
    """Keys in the text form of ZeroMQ (Z85)."""

    public: bytes
    secret: bytes
    server: bytes

    def __repr__(self) -> str:
        return f"Keys(public={self.public!r})"

    def apply(self, connection: zmq.Socket[bytes]) -> None:
        """Have a socket that connects use them."""
        connection.curve_publickey = self.public
        connection.curve_secretkey = self.secret
        connection.curve_serverkey = self.server


class ServerCurve:
    """The supervisor's side of CURVE: its keys, and the clients it lets in.

    Parameters
    ----------
    directory
        As `make_server_keys` fills it: the supervisor's keys, and a directory with the public keys of its clients.
        That one is read again when it changes.

    Raises
    ------
    KeyFileError
        A file is missing, is no certificate, or others can read the secret.
    """

    def __init__(self, directory: Path) -> None:
        self._public, self._secret = _secret_pair(directory / (SERVER + SECRET_SUFFIX))
        self._clients = directory / CLIENTS
        self._names: dict[str, str] = {}
        self._seen: tuple[tuple[Path, int, int], ...] = ()
        self._read_again_at = 0.0
        self._limited = LimitedLog(log)
        if not self._clients.is_dir():
            raise KeyFileError(self._clients, "there is no such directory. `tiledwriter-supervisor keygen` makes it.")
        self._refresh()

    def name_of(self, key: str) -> str | None:
        """The client whose public key this is; None if it is not (or no longer) let in."""
        self._refresh()
        return self._names.get(key)

    def callback(self, domain: str, key: bytes) -> bool:  # noqa: ARG002
        """Whether a client is let in, for pyzmq's authenticator, which calls it so."""
        name = self.name_of(key.decode())
        if name is None:
            self._limited.log(
                logging.WARNING, "unknown", "A client with the unknown key %s is not let in.", key.decode()
            )
        return name is not None

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Have a socket that binds use the keys."""
        socket.curve_server = True
        socket.curve_publickey = self._public
        socket.curve_secretkey = self._secret

    def _refresh(self) -> None:
        """Read the directory of clients again if it has changed; what cannot be read lets nobody in."""
        now = time.monotonic()
        if now < self._read_again_at:
            return
        self._read_again_at = now + _READ_AGAIN
        try:
            seen = _key_files(self._clients)
        except OSError as error:
            self._limited.log(logging.ERROR, "directory", "No client is let in: %s cannot be read.", error)
            seen = ()
        if seen == self._seen:
            return
        names: dict[str, str] = {}
        for file, *_ in seen:
            try:
                names[_public_key(file).decode()] = file.name.removesuffix(PUBLIC_SUFFIX)
            except (KeyFileError, UnicodeDecodeError) as error:
                log.error("A client's key cannot be used: %s", error)
        if self._seen or names:
            log.info("%d clients are let in: %s.", len(names), ", ".join(sorted(names.values())) or "none")
        self._names, self._seen = names, seen


def _key_files(directory: Path) -> tuple[tuple[Path, int, int], ...]:
    """The clients' key files, with what changes when they do; editors leave links there, and files vanish.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    found = []
    for file in sorted(path for path in directory.iterdir() if path.name.endswith(PUBLIC_SUFFIX)):
        if file.name == PUBLIC_SUFFIX:
            continue
        try:
            status = file.stat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            found.append((file, status.st_mtime_ns, status.st_ino))
    return tuple(found)


def make_server_keys(directory: Path) -> Path:
    """Make the supervisor's keys in a directory, and room for those of its clients; returns the public one's file.

    Raises
    ------
    KeyFileError
        There are some already.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    (directory / CLIENTS).mkdir(exist_ok=True, mode=0o700)
    return _make_pair(directory, SERVER)


def make_client_keys(directory: Path, name: str) -> Path:
    """Make keys for a client, and let it in.

    Returns
    -------
    Path
        A directory for the client to be taken to its host: its own keys, and the supervisor's public one.

    Raises
    ------
    KeyFileError
        There is such a client already, its name is no plain file name, or the supervisor has no keys yet.
    """
    if not _CLIENT_NAME.fullmatch(name) or name == SERVER:
        raise KeyFileError(directory, f"{name!r} is no name for a client: letters, digits and . _ - only.")
    server = directory / (SERVER + PUBLIC_SUFFIX)
    _public_key(server)  # is there
    allowed = directory / CLIENTS / (name + PUBLIC_SUFFIX)
    if allowed.exists():
        raise KeyFileError(allowed, "there is a client of this name already.")
    bundle = directory / name
    try:
        bundle.mkdir(mode=0o700)
    except FileExistsError:
        raise KeyFileError(bundle, "it is there already.") from None
    public = _make_pair(bundle, name)
    with _only_for_owner():
        (bundle / server.name).write_bytes(server.read_bytes())
        allowed.write_bytes(public.read_bytes())
    public.unlink()  # the secret file has it, too
    return bundle


def _make_pair(directory: Path, name: str) -> Path:
    from zmq.auth import create_certificates

    secret = directory / (name + SECRET_SUFFIX)
    if secret.exists():
        raise KeyFileError(secret, "it is there already; delete it first if its clients shall lose their access.")
    with _only_for_owner():
        public, _ = create_certificates(directory, name)
    return Path(public)


@contextmanager
def _only_for_owner() -> Iterator[None]:
    """Files that are made inside can be read by their owner only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _secret_pair(file: Path) -> tuple[bytes, bytes]:
    public, secret = _certificate(file)
    if secret is None:
        raise KeyFileError(file, "it holds no secret key.")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileError(file, f"others than its owner can read it. Run `chmod 600 {file}`.")
    return public, secret


def _public_key(file: Path) -> bytes:
    return _certificate(file)[0]


def _certificate(file: Path) -> tuple[bytes, bytes | None]:
    from zmq.auth import load_certificate
    from zmq.utils import z85

    try:
        public, secret = load_certificate(file)
        for key in filter(None, (public, secret)):
            if len(z85.decode(key)) != 32:
                raise ValueError
    except OSError as error:
        raise KeyFileError(file, f"it cannot be read ({error.strerror or 'there is none'}).") from None
    except Exception:  # without the cause: it may quote the key
        raise KeyFileError(file, "it is no certificate of ZeroMQ.") from None
    return public, secret
