"""Users of NATS with credentials files, as an operator gives them out: signed texts (JWT) and seeds of keys."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys

_UNLIMITED = -1


class Operator:
    """An operator with one account, which has JetStream, and one for the system.

    Parameters
    ----------
    directory
        Where credentials files are made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = _make_key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = _make_key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._system = _make_key(nkeys.PREFIX_BYTE_ACCOUNT)

    @property
    def configuration(self) -> dict[str, Any]:
        """What the servers' configuration needs."""
        operator = _sign(self._key, self._key, "operator", {"type": "operator", "version": 2})
        limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _UNLIMITED)
        streams = {"mem_storage": _UNLIMITED, "disk_storage": _UNLIMITED, "streams": _UNLIMITED, "consumer": _UNLIMITED}
        accounts = {
            _public(self._account): {**limits, **streams, "wildcards": True},
            _public(self._system): {**limits, "wildcards": True},
        }
        keys = {_public(key): key for key in (self._account, self._system)}
        return {
            "operator": operator,
            "system_account": _public(self._system),
            "resolver": "MEMORY",
            "resolver_preload": {
                name: _sign(self._key, keys[name], name, {"type": "account", "version": 2, "limits": allowed})
                for name, allowed in accounts.items()
            },
        }

    def make_credentials(
        self, name: str, permissions: dict[str, Any] | None = None, *, seconds: float | None = None
    ) -> Path:
        """Make the credentials file of a user, which expires after some seconds, if at all.

        Parameters
        ----------
        name
            Name of the user, and of the file.
        permissions
            As in a server's configuration; None for all.
        seconds
            Time after which the credentials expire, or have expired if it is negative.
        """
        key = _make_key(nkeys.PREFIX_BYTE_USER)
        allowed = {{"publish": "pub", "subscribe": "sub"}[verb]: rule for verb, rule in (permissions or {}).items()}
        claims = {
            "type": "user", "version": 2, "subs": _UNLIMITED, "data": _UNLIMITED, "payload": _UNLIMITED, **allowed
        }  # fmt: skip
        jwt = _sign(self._account, key, name, claims, expires=None if seconds is None else int(time.time() + seconds))
        path = self._directory / f"{name}.creds"
        path.touch(mode=0o600)
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{key.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        return path


def make_seed(path: Path) -> str:
    """Make a file with the seed of a user, and return the user's public key."""
    key = _make_key(nkeys.PREFIX_BYTE_USER)
    path.touch(mode=0o600)
    path.write_text(f"{key.seed.decode()}\n")
    return _public(key)


def _make_key(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), prefix)))


def _public(key: nkeys.KeyPair) -> str:
    return str(key.public_key.decode())


def _sign(
    issuer: nkeys.KeyPair, subject: nkeys.KeyPair, name: str, claims: dict[str, Any], *, expires: int | None = None
) -> str:
    body = {"iat": int(time.time()) - 60, "iss": _public(issuer), "sub": _public(subject), "name": name, "nats": claims}
    if expires is not None:
        body["exp"] = expires
    digest = hashlib.new("sha256", json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    text = ".".join(_encode(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body))
    return f"{text}.{_encode(issuer.sign(text.encode()))}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
