"""CURVE keys of the supervisor and its clients, and authorization of clients by their public keys.

Key files are the certificate files that pyzmq writes and CZMQ reads: `NAME.key` contains a public key,
`NAME.key_secret` a public and a secret key.
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
from .._rate_limited_log import RateLimitedLog
from .._wording import format_command

if TYPE_CHECKING:
    import zmq

log = logging.getLogger(__name__)

PUBLIC_SUFFIX: Final = ".key"
SECRET_SUFFIX: Final = ".key_secret"  # noqa: S105  of files
SERVER: Final = "server"
CLIENTS: Final = "clients"
ZAP_DOMAIN: Final = "tiledwriter"

_REREAD_SECONDS: Final = 1.0
_CLIENT_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")


class ClientCurve(NamedTuple):
    """Key files that a publisher needs for CURVE.

    `bluesky.callbacks.zmq.ClientCurve` has the same fields and is accepted as well.

    Attributes
    ----------
    secret_path
        File with the publisher's key pair, readable by its owner only.
    server_public_key
        File with the supervisor's public key.
    """

    secret_path: Path
    server_public_key: Path

    @classmethod
    def of(cls, curve: CurveArgument) -> ClientCurve:
        """Convert the `curve` argument of `ZMQPublisher`.

        Parameters
        ----------
        curve
            A `ClientCurve`, or the directory that `keygen` created for the client. "~" is expanded.

        Raises
        ------
        KeyFileError
            The directory cannot be read, or does not contain exactly one secret key file.
        TypeError
            `curve` is neither a path nor an object with the fields of `ClientCurve`.
        """
        if not isinstance(curve, str | os.PathLike):
            if not all(hasattr(curve, name) for name in cls._fields):
                raise TypeError(f"curve must be the directory of a client's keys or a ClientCurve, not {curve!r}.")
            return cls(Path(curve.secret_path).expanduser(), Path(curve.server_public_key).expanduser())
        directory = Path(curve).expanduser()
        try:
            secrets = sorted(path for path in directory.iterdir() if path.name.endswith(SECRET_SUFFIX))
        except (FileNotFoundError, NotADirectoryError):
            raise KeyFileError(
                directory, "there is no such directory. Copy it from the host where `keygen` made it."
            ) from None
        except OSError as error:
            raise KeyFileError(directory, f"it cannot be read: {error.strerror}.") from error
        if len(secrets) != 1:
            raise KeyFileError(directory, f"it holds {len(secrets)} files *{SECRET_SUFFIX}; it must hold exactly one.")
        return cls(secrets[0], directory / (SERVER + PUBLIC_SUFFIX))

    def load(self) -> Keys:
        """Read the keys from their files.

        Raises
        ------
        KeyFileError
            A file is missing or is not a certificate, or other users can read the secret key.
        """
        public, secret = _secret_pair(self.secret_path)
        return Keys(public, secret, _public_key(self.server_public_key))


CurveArgument: TypeAlias = str | os.PathLike[str] | ClientCurve


class Keys(NamedTuple):
    """A publisher's key pair and the supervisor's public key, in ZeroMQ's Z85 text encoding."""

    public: bytes
    secret: bytes
    server: bytes

    def __repr__(self) -> str:
        return f"Keys(public={self.public!r})"

    def apply(self, connection: zmq.Socket[bytes]) -> None:
        """Set the keys on a socket before it connects."""
        connection.curve_publickey = self.public
        connection.curve_secretkey = self.secret
        connection.curve_serverkey = self.server


class ServerCurve:
    """The supervisor's key pair and the public keys of the clients that it accepts.

    Parameters
    ----------
    directory
        Directory created by `make_server_keys`: the supervisor's keys, and a subdirectory with the public keys of
        its clients. The subdirectory is checked for changes at most once per second.

    Raises
    ------
    KeyFileError
        A file or the subdirectory is missing, the file is not a certificate, or other users can read the secret key.
    """

    def __init__(self, directory: Path) -> None:
        self._public, self._secret = _secret_pair(directory / (SERVER + SECRET_SUFFIX))
        self._clients = directory / CLIENTS
        self._names: dict[str, str] = {}
        self._seen: tuple[tuple[Path, int, int], ...] = ()
        self._read_again_at = 0.0
        self._limited_log = RateLimitedLog(log)
        if not self._clients.is_dir():
            command = format_command("tiledwriter-supervisor", "keygen", directory.absolute(), "--client", "NAME")
            raise KeyFileError(self._clients, f"there is no such directory. `{command}` makes it, with a client.")
        self._refresh_keys()

    @property
    def client_names(self) -> list[str]:
        """Names of the clients that are accepted, sorted."""
        self._refresh_keys()
        return sorted(self._names.values())

    def name_of(self, key: str) -> str | None:
        """Return the name of the client with a public key; None if the client is not accepted (any more)."""
        self._refresh_keys()
        return self._names.get(key)

    def callback(self, domain: str, key: bytes) -> bool:  # noqa: ARG002
        """Return True if the client with this public key is accepted.

        pyzmq's authenticator requires the name and the arguments of this method.
        """
        name = self.name_of(key.decode())
        if name is None:
            self._limited_log.log(
                logging.WARNING, "unknown", "Rejected a client with the unknown key %s.", key.decode()
            )
        return name is not None

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Set the keys on a socket before it binds."""
        socket.curve_server = True
        socket.curve_publickey = self._public
        socket.curve_secretkey = self._secret

    def _refresh_keys(self) -> None:
        """Reload the clients' keys if their directory has changed. If it cannot be read, accept no client."""
        now = time.monotonic()
        if now < self._read_again_at:
            return
        self._read_again_at = now + _REREAD_SECONDS
        try:
            seen = _key_files(self._clients)
        except OSError as error:
            self._limited_log.log(
                logging.ERROR,
                "directory",
                "All clients are rejected, because the directory of their keys cannot be read: %s",
                error,
            )
            seen = ()
        if seen == self._seen:
            return
        names: dict[str, str] = {}
        for file, *_ in seen:
            try:
                names[_public_key(file).decode()] = file.name.removesuffix(PUBLIC_SUFFIX)
            except (KeyFileError, UnicodeDecodeError) as error:
                log.error("Ignored a client's key that cannot be used: %s", error)
        if self._seen or names:
            log.info("Accepted clients: %d (%s).", len(names), ", ".join(sorted(names.values())) or "none")
        self._names, self._seen = names, seen


def _key_files(directory: Path) -> tuple[tuple[Path, int, int], ...]:
    """Return path, modification time in ns and inode of each client's key file, to detect changes.

    Files that vanish meanwhile and dangling links, which some editors create, are skipped.

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
    """Create the supervisor's key pair, and a subdirectory for the public keys of its clients.

    Parameters
    ----------
    directory
        Created if missing, accessible by its owner only.

    Returns
    -------
    Path
        The file with the public key.

    Raises
    ------
    KeyFileError
        The directory already contains the supervisor's keys.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    (directory / CLIENTS).mkdir(exist_ok=True, mode=0o700)
    return _make_pair(directory, SERVER)


def make_client_keys(directory: Path, name: str) -> Path:
    """Create a key pair for a client, and add its public key to the accepted clients.

    Parameters
    ----------
    directory
        Directory of the supervisor's keys.
    name
        Name of the client: letters, digits, ".", "_" and "-".

    Returns
    -------
    Path
        Directory to be moved to the client's host: the client's key pair and the supervisor's public key.

    Raises
    ------
    KeyFileError
        A client of this name exists, the name has other characters, or the supervisor has no keys yet.
    """
    if not _CLIENT_NAME.fullmatch(name) or name == SERVER:
        raise KeyFileError(directory, f"{name!r} is not a valid client name. Use letters, digits, '.', '_' and '-'.")
    server = directory / (SERVER + PUBLIC_SUFFIX)
    # Fail before anything is created if the supervisor has no keys yet.
    _public_key(server)
    allowed = directory / CLIENTS / (name + PUBLIC_SUFFIX)
    if allowed.exists():
        raise KeyFileError(allowed, "a client of this name exists already.")
    allowed.parent.mkdir(exist_ok=True, mode=0o700)
    bundle = directory / name
    try:
        bundle.mkdir(mode=0o700)
    except FileExistsError:
        raise KeyFileError(bundle, "it exists already.") from None
    public = _make_pair(bundle, name)
    with _only_for_owner():
        (bundle / server.name).write_bytes(server.read_bytes())
        allowed.write_bytes(public.read_bytes())
    # The file with the secret key contains the public key as well.
    public.unlink()
    return bundle


def _make_pair(directory: Path, name: str) -> Path:
    from zmq.auth import create_certificates

    secret = directory / (name + SECRET_SUFFIX)
    if secret.exists():
        raise KeyFileError(secret, "it exists already. Delete it first if its clients are to lose their access.")
    with _only_for_owner():
        public, _ = create_certificates(directory, name)
    return Path(public)


@contextmanager
def _only_for_owner() -> Iterator[None]:
    """Make files that are created inside this context readable by their owner only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _secret_pair(file: Path) -> tuple[bytes, bytes]:
    public, secret = _read_certificate(file)
    if secret is None:
        raise KeyFileError(file, "it holds no secret key.")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileError(file, f"users other than its owner can read it. Run `chmod 600 {file}`.")
    return public, secret


def _public_key(file: Path) -> bytes:
    return _read_certificate(file)[0]


def _read_certificate(file: Path) -> tuple[bytes, bytes | None]:
    from zmq.auth import load_certificate
    from zmq.utils import z85

    try:
        public, secret = load_certificate(file)
        for key in filter(None, (public, secret)):
            if len(z85.decode(key)) != 32:
                raise ValueError
    except OSError as error:
        raise KeyFileError(file, f"it cannot be read ({error.strerror or 'there is no such file'}).") from None
    except Exception:
        # Suppress the cause, because its message may contain the key.
        raise KeyFileError(file, "it is not a ZeroMQ certificate.") from None
    return public, secret
