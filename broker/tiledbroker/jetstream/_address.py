"""Where a site's log is, and how to log in there."""

from __future__ import annotations

import re
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from .._errors import AddressError, KeyFileError

DEFAULT_PORT: Final = 4222
_HOST: Final = re.compile(r"[\w.:%-]+")
_NAME_AND_PASSWORD: Final = re.compile(r"([^\s:]+):(\S+)")
_SEED: Final = re.compile(r"SU[A-Z2-7]{56}")
_CREDENTIALS: Final = re.compile(
    r"-+BEGIN NATS USER JWT-+\s+[\w.=-]+\s+-+END NATS USER JWT-+.*-+BEGIN USER NKEY SEED-+\s+S[A-Z2-7]+\s+-+END",
    re.DOTALL,
)


@dataclass(frozen=True)
class LogAddress:
    """Servers of a site's log, which are nodes of one cluster, and what a client shows them.

    Attributes
    ----------
    servers
        URLs of the servers, sorted.
    credentials
        File with `name:password`, with a user's NKey seed, or a credentials file of NATS (JWT and seed); None to log in
        without.
    tls_ca
        File with the certificates that the servers' certificates are signed with; None for those that the system
        trusts.
    tls_client
        File with this client's certificate and its key, for servers that ask for one.
    encrypted
        The address was given as `tls://`.
    inbox
        Prefix of the subjects that answers go to.
    """

    servers: tuple[str, ...]
    credentials: Path | None = None
    tls_ca: Path | None = None
    tls_client: Path | None = None
    encrypted: bool = False
    inbox: str = "_INBOX"

    @classmethod
    def parse(
        cls,
        servers: str | Sequence[str],
        *,
        credentials: str | Path | None = None,
        tls_ca: str | Path | None = None,
        tls_client: str | Path | None = None,
        inbox: str = "_INBOX",
    ) -> LogAddress:
        """Return the address of `"nats://a,b,c"`, or of a list of such texts. One `tls://` among them is for all.

        Raises
        ------
        AddressError
            It is no such address, contains a password, or one of the files is an empty text.
        """
        texts = _as_texts(servers)
        for what, file in (("credentials", credentials), ("tls", tls_ca), ("tls_client", tls_client)):
            if file == "":
                raise AddressError(f"{what} is an empty text; leave it out if there is none.")
        urls = sorted({_normalize_server(part) for text in texts for part in _split(text)})
        if not urls:
            raise AddressError("No server is given; give nats://HOST, or nats://HOST,HOST,HOST.")
        encrypted = any(part.startswith("tls://") for text in texts for part in _split(text))
        return cls(tuple(urls), _absolute(credentials), _absolute(tls_ca), _absolute(tls_client), encrypted, inbox)

    def with_inbox(self, inbox: str) -> LogAddress:
        """Return the address with another prefix of the subjects that answers go to."""
        return replace(self, inbox=inbox)

    @property
    def destination(self) -> str:
        """The servers as one text, however they are connected to."""
        return "nats://" + ",".join(url.removeprefix("nats://") for url in self.servers)

    @property
    def must_be_encrypted(self) -> bool:
        """True if nothing may be sent over a connection that is not encrypted."""
        return self.encrypted or self.tls_ca is not None or self.tls_client is not None

    def __str__(self) -> str:
        return self.destination.replace("nats://", "tls://", 1) if self.encrypted else self.destination

    def connect_options(self) -> dict[str, Any]:
        """Return the options of a connection that log in.

        Raises
        ------
        KeyFileError
            A file cannot be used.
        """
        options: dict[str, Any] = {"inbox_prefix": self.inbox}
        if self.must_be_encrypted:
            options["tls"] = self._make_tls_context()
        if self.credentials is not None:
            options |= _read_credentials(self.credentials)
        return options

    def _make_tls_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=None if self.tls_ca is None else str(self.tls_ca))
        except OSError as error:
            raise KeyFileError(self.tls_ca, f"it cannot be used as certificates: {error}") from error
        if self.tls_client is not None:
            _refuse_readable_by_others(self.tls_client)
            try:
                # Without a password of ours, OpenSSL would ask for one at the terminal.
                context.load_cert_chain(str(self.tls_client), password="")
            except OSError as error:
                raise KeyFileError(
                    self.tls_client, f"it must have a certificate and its key, which is not encrypted: {error}"
                ) from error
        return context


def _as_texts(servers: str | Sequence[str]) -> list[str]:
    try:
        texts = [servers] if isinstance(servers, str) else list(servers)
    except TypeError:
        texts = []
    if not all(isinstance(text, str) for text in texts) or not texts:
        raise AddressError(f"{servers!r} is no address; give nats://HOST, nats://HOST,HOST,HOST, or a list of texts.")
    return texts


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _normalize_server(text: str) -> str:
    try:
        parts = urlsplit(text if "://" in text else f"nats://{text}")
        host, port = parts.hostname or "", DEFAULT_PORT if parts.port is None else parts.port
    except ValueError as error:
        raise AddressError(f"{text!r} is not the address of a NATS server: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise AddressError("An address is shown in logs, so it must not have a password: give a file with credentials.")
    has_more = parts.path not in ("", "/") or parts.query or parts.fragment
    if parts.scheme not in ("nats", "tls") or has_more or not port or not _HOST.fullmatch(host):
        raise AddressError(f"{text!r} is not the address of a NATS server; give nats://HOST:PORT.")
    return f"nats://[{host}]:{port}" if ":" in host else f"nats://{host}:{port}"


def _absolute(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser().absolute()


def _read_credentials(path: Path) -> dict[str, Any]:
    _refuse_readable_by_others(path)
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(path, f"it cannot be read: {error}") from error
    if "BEGIN NATS USER JWT" in text:
        # Of a file that is cut, the client would read for ever.
        if not _CREDENTIALS.search(text):
            raise KeyFileError(path, "it is cut: credentials of a NATS user have a JWT and a seed.")
        return {"user_credentials": str(path)}
    if _SEED.fullmatch(text):
        return {"nkeys_seed": str(path)}
    found = _NAME_AND_PASSWORD.fullmatch(text)
    if found is None:
        raise KeyFileError(
            path, "it has neither one line NAME:PASSWORD, nor the seed or the credentials of a NATS user."
        )
    return {"user": found[1], "password": found[2]}


def _refuse_readable_by_others(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise KeyFileError(path, f"it cannot be read: {error}") from error
    if stat.S_ISDIR(mode):
        raise KeyFileError(path, "it is a directory.")
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(path, "other users can read it. Run `chmod 600` on it.")
