"""The API key that each supervisor makes for its workers, and that its successor revokes.

A request of a worker that has died may still be on its way, and be carried out long after the next supervisor has
begun. Tiled refuses it if its key has been revoked by then.
"""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
import socket
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Final

import httpx

from tiledbroker.supervisor import HeldLease

from .._config import Settings
from .._errors import Paused, Refused, ServerError, TiledUnavailable
from ..catalog import Account, AccountRequests, ApiKey
from ..worker import KeyPage, KeyState, load_certificates
from ._credentials import find_account_key, find_server
from ._key_ledger import KeyLedger
from ._sources import WrongConfiguration

log = logging.getLogger("tiledwriter.supervisor")

LIFETIME_SECONDS: Final = 4 * 3_600
"""Lifetime of a key. Half of it is left when the next one is made."""

CHECK_SECONDS: Final = 15.0
"""Pause between two looks whether Tiled still accepts the key."""

# After this time no worker has a request on its way for which it used the key before.
_OVERLAP_SECONDS: Final = 150.0
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 5.0
# Tiled may be busy. Whoever stops the service waits for a request that is under way.
_TIMEOUT_SECONDS: Final = 15.0
_LEASE_WAIT_SECONDS: Final = 1.0
_STANDBY_PAUSE_SECONDS: Final = 0.2
_TIMEOUT_AT_END_SECONDS: Final = 3.0
# A note of more than 255 characters makes Tiled fail whenever it is asked about the account.
_MAX_HOLDER_CHARACTERS: Final = 230
# Random part of the note, which tells keys of this process from those of others.
_MARK_BYTES: Final = 4


class WritingKey:
    """Makes, renews and revokes the API key of the workers, in a thread; also a context manager, which starts it.

    The key is in memory only. What the workers are to do is on `page`: wait, use the key, or, where Tiled makes no keys
    for the account, use the credentials that are configured. They wait until no key of an earlier supervisor of the
    journal directory is alive. The first eight characters of living keys are in a file in that directory.

    Parameters
    ----------
    settings
        Address of Tiled, and the account's credentials.
    journal_dir
        Directory of the journals. Its supervisor's lock must be held while the thread runs.

    Attributes
    ----------
    page
        What workers read.
    uri
        The URI of Tiled, None if it runs in the process of its client. It stays when the profile that named it changes,
        because runs under way must not be continued on another server.
    """

    def __init__(self, settings: Settings, journal_dir: Path) -> None:
        self.page = KeyPage.make()
        self.uri, self._verify = find_server(settings)
        self._settings = settings
        self._journal_dir = journal_dir
        self._holder = describe_holder(socket.gethostname(), journal_dir.absolute())
        self._note = f"{self._holder} [{secrets.token_hex(_MARK_BYTES)}]"
        self._lease: HeldLease | None = None
        self._ledger: KeyLedger | None = None
        self._key: ApiKey | None = None
        self._is_configured = False
        # Times (`time.monotonic`) of the next key, and of the end of the one before.
        self._renew_at = self._revoke_at = math.inf
        self._has_made_one = False
        # What was logged last of a problem that only a person can end.
        self._told = ("", "")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tiledwriter-writing-key", daemon=True)

    def __enter__(self) -> WritingKey:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.revoke()
        self.page.close()

    def follow_lease(self, lease: HeldLease | None) -> None:
        """Make a key only while the lease is held, have it named there, and revoke those of earlier holders."""
        self._lease = lease

    def change_settings(self, settings: Settings) -> None:
        """Use other credentials of the account from the next request on."""
        self._settings = settings

    def revoke(self) -> None:
        """Revoke the key, which nobody may use any more, and end the thread. It takes a few seconds if Tiled hangs."""
        self._stopping.set()
        self._thread.join()

    def open_client(self, timeout: float) -> httpx.Client:
        """Return a client that sends what workers send to Tiled, except the key. Any thread may call it."""
        headers = self._settings.worker_options().tiled.all_headers()
        return httpx.Client(headers=headers, timeout=timeout, verify=self._verify and load_certificates())

    # All code below runs in the thread.

    def _run(self) -> None:
        pause = 0.0
        while not self._is_configured and not self._wait(pause):
            try:
                with self.open_client(_TIMEOUT_SECONDS) as http_client:
                    self._proceed(http_client)
            except Exception as error:
                self._note_problem(error)
            pause = self._next_pause(pause)
        if self._key is not None:
            self._revoke_at_end()

    def _wait(self, pause: float) -> bool:
        """Wait until something is due; return whether the thread is to end."""
        until = time.monotonic() + pause
        while (left := until - time.monotonic()) > 0 and not self._has_keys_to_revoke():
            if self._stopping.wait(min(left, _LEASE_WAIT_SECONDS)):
                return True
        # About a key that cannot be revoked, Tiled is not asked all the time.
        return self._stopping.wait(0.0 if left <= 0 else _LEASE_WAIT_SECONDS)

    def _has_keys_to_revoke(self) -> bool:
        return self._key is not None and self._lease is not None and self._lease.has_keys_to_revoke

    def _next_pause(self, pause: float) -> float:
        if self._lease is not None and not self._lease.wait_until_held(0.0):
            return _STANDBY_PAUSE_SECONDS
        if self._key is None:
            return min(max(_FIRST_PAUSE_SECONDS, 1.5 * pause), _LONGEST_PAUSE_SECONDS)
        due = min(self._renew_at, self._revoke_at) - time.monotonic()
        # What is overdue was tried a moment ago.
        return min(due, CHECK_SECONDS) if due > 0 else CHECK_SECONDS

    def _note_problem(self, error: Exception) -> None:
        """Tell the workers why they have to wait, unless they have a key; log what only a person can end, once."""
        is_expected = isinstance(error, ServerError | OSError | WrongConfiguration)
        needs_person = not isinstance(error, ServerError) or isinstance(error, Paused | Refused)
        text = str(error) if is_expected else f"{type(error).__name__}: {error}"
        state = KeyState.PAUSED if needs_person else KeyState.AWAY
        if self._key is None and self.page.read() != (state, text):
            self.page.publish(state, text)
        wanted = "Nothing is written to Tiled until" if self._key is None else "The workers keep their key until"
        if needs_person and self._told != (wanted, text):
            self._told = wanted, text
            log.error("%s the supervisor has made an API key: %s", wanted, text, exc_info=not is_expected)

    def _proceed(self, http_client: httpx.Client) -> None:
        """Do what is due: make the first key, or look whether it is accepted, renew it, revoke the one before."""
        if self._lease is not None and not self._lease.wait_until_held(_LEASE_WAIT_SECONDS):
            return
        if self.uri is None:
            self._use_configured(logging.DEBUG, "Tiled runs within the workers", "")
            return
        requests = AccountRequests(http_client, self.uri)
        has_users = requests.ask_for_users()
        if self._key is not None and (refusal := _find_refusal(requests, self._key, has_users=has_users)):
            log.warning(
                "Tiled no longer accepts the API key %s... of this supervisor (%s); another is made.",
                self._key.first_eight,
                refusal,
            )
            self._key = None
        if self._key is None:
            self._obtain(requests, has_users=has_users)
        elif time.monotonic() >= self._renew_at:
            self._renew(requests)
        elif time.monotonic() >= self._revoke_at:
            self._revoke_others(requests)
        if self._has_keys_to_revoke():
            self._revoke_of_ended(requests, self._require_configured_key())

    def _obtain(self, requests: AccountRequests, *, has_users: bool) -> None:
        """Revoke what earlier supervisors have left, and make a key if Tiled makes one."""
        if not has_users:
            self._use_configured(
                logging.INFO,
                "Tiled has a single user, whose key cannot be revoked",
                "This needs a Tiled server with users.",
            )
            return
        ledger = self._open_ledger()
        configured = find_account_key(self._settings)
        account = None if configured is None else requests.look_at_account(configured)
        if account is None or configured is None:
            _wait_for_end(ledger, datetime.now(timezone.utc))
            self._use_configured(
                logging.WARNING,
                "there is no API key among them that Tiled tells of",
                "Put one into TILED_API_KEY, or into a file that api_key_file names.",
            )
        elif not account.may_manage_keys:
            if ledger.account == account.uuid:
                ledger.remove(ledger.keys.keys() - account.notes.keys())
            _wait_for_end(ledger, account.asked_at)
            self._use_configured(
                logging.WARNING,
                "the configured key may not make and revoke keys",
                "Give it the scopes create:apikeys and revoke:apikeys, and start the service again.",
            )
        else:
            self._revoke_predecessors(requests, ledger, account, configured)
            try:
                self._make(requests, ledger, account, configured)
            except Refused as error:
                self._use_configured(
                    logging.WARNING,
                    f"Tiled makes no key for it ({error})",
                    "Revoke keys of the account that nobody uses, and start the service again.",
                )

    def _use_configured(self, level: int, reason: str, advice: str) -> None:
        self._is_configured = True
        if self._lease is not None:
            self._lease.give_up_revoking()
        self.page.publish(KeyState.CONFIGURED)
        log.log(
            level,
            "Workers write with the configured credentials, because %s. If this supervisor is killed, requests of its "
            "workers that are still on their way cannot be refused; audits find what they do. %s",
            reason,
            advice,
        )

    def _revoke_predecessors(
        self, requests: AccountRequests, ledger: KeyLedger, account: Account, configured: str
    ) -> None:
        if ledger.account != account.uuid:
            _wait_for_end(ledger, account.asked_at)
        left = ledger.keys
        for first_eight in sorted(left.keys() | self._find_unrecorded(account, ledger)):
            if requests.revoke_key(first_eight, configured):
                log.info("The API key %s... of an earlier supervisor is revoked.", first_eight)
        ledger.remove(left)
        self._revoke_of_ended(requests, configured)

    def _revoke_of_ended(self, requests: AccountRequests, configured: str) -> None:
        """Revoke the keys of other holders whose leases have ended."""
        if self._lease is None:
            return
        of_others = [key for key in self._lease.unrevoked if key not in self._open_ledger().keys]
        for first_eight in of_others:
            if requests.revoke_key(first_eight, configured):
                log.info("The API key %s... of an earlier holder of the lease is revoked.", first_eight)
        self._lease.note_revoked(of_others)

    def _find_unrecorded(self, account: Account, ledger: KeyLedger) -> set[str]:
        """Return keys that were made for this directory and not recorded, as the answer was lost or the maker died.

        Once there is a key, these are only our own: others are of another host of this name, which writes, too.
        """
        ours = {
            name
            for name, note in account.notes.items()
            if note == self._note or (not self._has_made_one and note.rpartition(" [")[0] == self._holder)
        }
        return ours - ledger.keys.keys()

    def _make(self, requests: AccountRequests, ledger: KeyLedger, account: Account, configured: str) -> None:
        lifetime = float(LIFETIME_SECONDS)
        if account.expires is not None:
            lifetime = min(lifetime, (account.expires - account.asked_at).total_seconds())
        began = time.monotonic()
        key = requests.make_key(account, configured, note=self._note, lifetime=max(1, int(lifetime)))
        try:
            ledger.add(account.uuid, key)
        except OSError:
            requests.revoke_key(key.first_eight, configured)
            raise
        if self._lease is not None and not self._lease.announce_key(key.first_eight, _TIMEOUT_SECONDS):
            requests.revoke_key(key.first_eight, configured)
            ledger.remove([key.first_eight])
            raise TiledUnavailable("The lease does not name the new key yet.")
        self.page.publish(KeyState.OWN, key.secret)
        self._key, self._has_made_one, self._told = key, True, ("", "")
        self._renew_at = began + lifetime / 2
        self._revoke_at = began + min(_OVERLAP_SECONDS, lifetime / 8)
        log.info(
            "Workers write with the API key %s... that this supervisor has made; it ends at %s.",
            key.first_eight,
            key.expires.isoformat(" ", "seconds"),
        )

    def _renew(self, requests: AccountRequests) -> None:
        configured, ledger = self._require_configured_key(), self._open_ledger()
        account = requests.look_at_account(configured)
        if account is None or ledger.account != account.uuid:
            raise Paused("the configured credentials are not those of the account that its key is of")
        for first_eight in self._find_unrecorded(account, ledger):
            requests.revoke_key(first_eight, configured)
        self._make(requests, ledger, account, configured)

    def _revoke_others(self, requests: AccountRequests) -> None:
        """Revoke the keys before the current one."""
        configured, ledger = self._require_configured_key(), self._open_ledger()
        assert self._key is not None
        others = ledger.keys.keys() - {self._key.first_eight}
        for first_eight in others:
            requests.revoke_key(first_eight, configured)
        ledger.remove(others)
        if self._lease is not None:
            self._lease.note_revoked(others)
        self._revoke_at = math.inf

    def _revoke_at_end(self) -> None:
        ledger = self._open_ledger()
        try:
            with self.open_client(_TIMEOUT_AT_END_SECONDS) as http_client:
                requests = AccountRequests(http_client, str(self.uri))
                requests.ask_for_users()
                for first_eight in ledger.keys:
                    requests.revoke_key(first_eight, self._require_configured_key())
            ledger.remove(ledger.keys)
        except Exception as error:
            log.warning("The API key was not revoked (%s). The next start of the service does so, or it ends.", error)

    def _require_configured_key(self) -> str:
        if (key := find_account_key(self._settings)) is None:
            raise Paused("no API key is configured")
        return key

    def _open_ledger(self) -> KeyLedger:
        if self._ledger is None:
            self._ledger = KeyLedger(self._journal_dir)
        return self._ledger


def describe_holder(host: str, journal_dir: Path) -> str:
    """Return how the note of a key begins, by which people and the next supervisor of a directory recognize it."""
    note = f"tiledwriter-supervisor on {host}, journals in {journal_dir}"
    if len(note) <= _MAX_HOLDER_CHARACTERS:
        return note
    digest = hashlib.sha256(note.encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{note[: _MAX_HOLDER_CHARACTERS - len(digest) - 1]} {digest}"


def _find_refusal(requests: AccountRequests, key: ApiKey, *, has_users: bool) -> str:
    """Return why Tiled does not accept a key that was made there; "" if it does."""
    if not has_users:
        return "it has no users any more"
    try:
        requests.check_key(key.secret)
    except (Paused, Refused) as error:
        return str(error)
    return ""


def _wait_for_end(ledger: KeyLedger, now: datetime) -> None:
    """Forget keys that have ended.

    Raises
    ------
    Paused
        Keys are left that may be used, and that this account cannot revoke.
    """
    ledger.remove([name for name, expires in ledger.keys.items() if expires < now])
    if ledger.keys:
        listed = ", ".join(f"{name}... until {expires:%Y-%m-%d %H:%M:%S}" for name, expires in ledger.keys.items())
        raise Paused(
            f"An earlier supervisor wrote with a key that the configured one cannot revoke, and that ends by itself "
            f"({listed} UTC). To write earlier, revoke it as its owner and delete {ledger.path}."
        )
