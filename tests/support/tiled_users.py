"""A Tiled server with users, of whom one is the account that the service writes with."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from tiledwriter.testing import TiledServer

ACCOUNT = "service"

WRITING_SCOPES = (
    *("read:metadata", "read:data", "write:metadata", "write:data"),
    *("create:node", "register", "delete:node", "delete:revision"),
)
KEY_SCOPES = ("create:apikeys", "revoke:apikeys")

_TIMEOUT_SECONDS = 60.0


class TiledWithUsers(TiledServer):
    """A Tiled server with users. `api_key` is a key of the account, with all of its scopes, once the server runs."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **options)
        self._password = secrets.token_hex(16)
        self._has_account = False
        self._tokens: dict[str, str] = {}

    def _configure(self) -> None:
        super()._configure()
        configuration = json.loads(self._configuration.read_text())
        provider = {
            "provider": "test",
            "authenticator": "tiled.authenticators:DictionaryAuthenticator",
            "args": {"users_to_passwords": dict.fromkeys((ACCOUNT, "other"), self._password)},
        }
        configuration["authentication"] = {
            "providers": [provider],
            "secret_keys": [self._password],
            # The roles "user" and "admin" together have all scopes that the service needs.
            "tiled_admins": [{"provider": "test", "id": name} for name in (ACCOUNT, "other")],
        }
        configuration["database"] = {"uri": f"sqlite:///{self._directory}/users.db", "init_if_not_exists": True}
        self._configuration.write_text(json.dumps(configuration))

    def start(self) -> None:
        super().start()
        if not self._has_account:
            self._has_account = True
            self.api_key = self.make_key((*WRITING_SCOPES, *KEY_SCOPES))

    def make_key(self, scopes: Sequence[str], *, user: str = ACCOUNT, lifetime: int | None = None) -> str:
        """Log in as a user, and return a new API key with these scopes and a lifetime in seconds."""
        headers = {"Authorization": f"Bearer {self._tokens.get(user) or self._log_in(user)}"}
        asked = {"expires_in": lifetime, "scopes": list(scopes), "note": f"made for {user}"}
        address = f"{self.uri}/api/v1/auth/apikey"
        response = httpx.post(address, json=asked, headers=headers, timeout=_TIMEOUT_SECONDS).raise_for_status()
        return str(response.json()["secret"])

    def _log_in(self, user: str) -> str:
        """Return a token of a user, which is good for a quarter of an hour."""
        login = {"username": user, "password": self._password}
        address = f"{self.uri}/api/v1/auth/provider/test/token"
        tokens = httpx.post(address, data=login, timeout=_TIMEOUT_SECONDS).raise_for_status().json()
        self._tokens[user] = str(tokens["access_token"])
        return self._tokens[user]

    def list_keys(self) -> dict[str, str]:
        """Return the notes of all API keys there are, by their first eight characters."""
        with closing(sqlite3.connect(self._directory / "users.db", timeout=30)) as database:
            return dict(database.execute("SELECT first_eight, note FROM api_keys"))

    def list_service_keys(self) -> list[str]:
        """Return the first eight characters of the keys that supervisors have made."""
        return [first_eight for first_eight, note in self.list_keys().items() if not note.startswith("made for")]

    def revoke(self, first_eight: str) -> None:
        """Revoke a key of the account, as a person does."""
        headers = {"Authorization": f"Apikey {self.api_key}"}
        address = f"{self.uri}/api/v1/auth/apikey"
        parameters = {"first_eight": first_eight}
        httpx.delete(address, params=parameters, headers=headers, timeout=_TIMEOUT_SECONDS).raise_for_status()
