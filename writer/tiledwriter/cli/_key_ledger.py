"""The file in a journal directory that names the API keys which its supervisors have made and not yet revoked."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from tiledbroker.log import sync_directory

from ..catalog import ApiKey

log = logging.getLogger("tiledwriter.supervisor")

KEY_LEDGER: Final = ".tiled-keys.json"


class _Content(msgspec.Struct, frozen=True):
    account: str = ""
    # Time at which each key ends, by its first eight characters.
    keys: dict[str, datetime] = {}


class KeyLedger:
    """Keys of one account that may be alive, by their first eight characters, with the times at which they end.

    Parameters
    ----------
    journal_dir
        Directory of the journals. Its supervisor's lock must be held.
    """

    def __init__(self, journal_dir: Path) -> None:
        self._path = journal_dir / KEY_LEDGER
        try:
            self._content = msgspec.json.decode(self._path.read_bytes(), type=_Content)
        except FileNotFoundError:
            self._content = _Content()
        except msgspec.MsgspecError as error:
            log.warning("%s is damaged, and begun anew: %s", self._path, error)
            self._content = _Content()

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def account(self) -> str:
        """Tiled's name for the account that the keys are of; "" if there are none."""
        return self._content.account

    @property
    def keys(self) -> dict[str, datetime]:
        """The keys, and when they end."""
        return dict(self._content.keys)

    def add(self, account: str, key: ApiKey) -> None:
        """Record a key durably, before it is used. All keys must be of the same account.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        self._store(_Content(account, {**self._content.keys, key.first_eight: key.expires}))

    def remove(self, keys: Iterable[str]) -> None:
        """Forget keys that are not alive any more."""
        gone = set(keys)
        left = {name: expires for name, expires in self._content.keys.items() if name not in gone}
        if left != self._content.keys:
            self._store(_Content(self._content.account if left else "", left))

    def _store(self, content: _Content) -> None:
        if content.keys:
            draft = self._path.with_name(f"{self._path.name}.draft")
            with os.fdopen(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
                file.write(msgspec.json.encode(content))
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self._path)
        else:
            self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)
        self._content = content
