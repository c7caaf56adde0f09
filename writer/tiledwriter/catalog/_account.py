"""The account that a service has in Tiled: what its credentials may do, and how API keys are made and revoked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import httpx

from .._errors import NotProcessed, NotTiled, Paused, Refused
from ._connection import sort_transport_error
from ._responses import raise_for_response

NEEDED_SCOPES: Final = (
    *("read:metadata", "read:data", "write:metadata", "write:data"),
    *("create:node", "register"),
)
DELETING_SCOPES: Final = ("delete:node", "delete:revision")
"""Tiled asks for both before it deletes a node."""

KEY_SCOPES: Final = ("create:apikeys", "revoke:apikeys")
"""Scopes for making and revoking keys of the same account."""


@dataclass(frozen=True)
class Account:
    """What Tiled says of an account, and of the API key with which it was asked.

    Attributes
    ----------
    uuid
        Tiled's name for the account.
    scopes
        Scopes of the key.
    access_tags
        Access tags that the key is limited to; None for no limit.
    expires
        Time at which the key ends; None for never.
    notes
        Notes of all keys of the account, by the first eight characters of the key.
    asked_at
        Time of the answer, by Tiled's clock.
    """

    uuid: str
    scopes: frozenset[str]
    access_tags: Sequence[str] | None
    expires: datetime | None
    notes: Mapping[str, str]
    asked_at: datetime

    @property
    def may_manage_keys(self) -> bool:
        """Whether the key may make and revoke keys."""
        return self.scopes.issuperset(KEY_SCOPES)


@dataclass(frozen=True)
class ApiKey:
    """A new API key. Only its first eight characters may be shown."""

    secret: str = field(repr=False)
    first_eight: str
    expires: datetime


class AccountRequests:
    """Requests about an account and its API keys.

    Parameters
    ----------
    http_client
        Sends the requests, with all headers but that of the credentials.
    uri
        Address of the Tiled server, or of a container in it.
    """

    def __init__(self, http_client: httpx.Client, uri: str) -> None:
        self._http_client = http_client
        self._api_uri = find_api_root(uri)

    def ask_for_users(self) -> bool:
        """Return whether the server has users, rather than one key for everybody who writes.

        Raises
        ------
        Paused
            What answers is not Tiled.
        ServerError
            There was no usable answer.
        """
        response = self._send("GET", self._api_uri, None, follow_redirects=True)
        # As Tiled's client: a redirection here is one to https.
        self._api_uri = str(response.url)
        try:
            return bool(response.json()["authentication"]["providers"])
        except (ValueError, KeyError, TypeError) as error:
            raise Paused("what answers there is not Tiled") from error

    def look_at_account(self, key: str) -> Account | None:
        """Return what a Tiled that has users says of an account and of this key of it; None if that is not enough.

        Raises
        ------
        Paused
            Tiled does not accept the key.
        ServerError
            There was no usable answer.
        """
        try:
            about_key = self._send("GET", self._apikey_uri, key).json()
            answer = self._send("GET", f"{self._api_uri}auth/whoami", key)
            owner = answer.json()
            scopes = effective_scopes(about_key, owner)
            return Account(
                owner["uuid"],
                scopes or frozenset(),
                about_key["access_tags"],
                parse_time(about_key["expiration_time"]),
                {each["first_eight"]: each["note"] or "" for each in owner["api_keys"]},
                _date_of(answer),
            )
        except Refused:
            return None
        except (ValueError, KeyError, TypeError):
            return None

    def make_key(self, account: Account, key: str, *, note: str, lifetime: int) -> ApiKey:
        """Make a key with which the account can write as with the given one, but neither make nor revoke keys.

        Parameters
        ----------
        account, key
            The account, and a key of it that may make keys.
        note
            What Tiled shows of the key, at most 255 characters: a longer one makes Tiled fail from then on whenever it
            is asked about the account.
        lifetime
            Seconds after which the key ends.

        Raises
        ------
        Refused
            Tiled makes no key.
        ServerError
            There was no usable answer; there may be a key.
        """
        asked = {
            "expires_in": lifetime,
            "scopes": [scope for scope in (*NEEDED_SCOPES, *DELETING_SCOPES) if scope in account.scopes],
            "access_tags": account.access_tags,
            "note": note,
        }
        made = self._send("POST", self._apikey_uri, key, json=asked).json()
        expires = parse_time(made["expiration_time"])
        assert expires is not None
        return ApiKey(made["secret"], made["first_eight"], expires)

    def revoke_key(self, first_eight: str, key: str) -> bool:
        """Revoke a key of the account; return False if the account has no such key.

        Raises
        ------
        Paused
            The account's key may not revoke others.
        ServerError
            There was no usable answer.
        """
        try:
            self._send("DELETE", self._apikey_uri, key, params={"first_eight": first_eight})
        except Refused as error:
            if error.status != 404:
                raise
            return False
        return True

    def check_key(self, key: str) -> None:
        """Raise `Paused` if a Tiled that has users does not accept a key, another `ServerError` if it is away."""
        self._send("GET", self._apikey_uri, key)

    @property
    def _apikey_uri(self) -> str:
        return f"{self._api_uri}auth/apikey"

    def _send(self, method: str, uri: str, key: str | None, **arguments: Any) -> httpx.Response:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if key is not None:
            headers["Authorization"] = f"Apikey {key}"
        try:
            response = self._http_client.request(method, uri, headers=headers, **arguments)
        except httpx.RequestError as error:
            found = sort_transport_error(error)
            raise type(found)(f"{_name_redirection(uri, error.request.url)}{found}") from error
        except (httpx.InvalidURL, OSError, ValueError) as error:
            raise NotProcessed(f"{type(error).__name__}: {error}") from error
        if not 200 <= response.status_code < 300:
            raise_for_response(response)
        elif response.status_code != 204 and "json" not in response.headers.get("Content-Type", ""):
            redirection = _name_redirection(uri, response.url)
            raise NotTiled(response.status_code, f"{redirection}this is not an answer of Tiled")
        return response


def _name_redirection(asked: str, reached: httpx.URL) -> str:
    """Return where a request was redirected to, such as a login page, as the beginning of a text; "" if it was not."""
    # A query may be long, and hold a secret.
    reached = reached.copy_with(query=None)
    return "" if reached == asked else f"redirected to {reached.netloc.decode()}{reached.path}: "


def find_api_root(uri: str) -> str:
    """Return the address below which the server of a URI answers requests, as Tiled's client finds it."""
    parts = urlsplit(uri)
    path, has_node, _ = parts.path.partition("/metadata")
    path = path.rstrip("/")
    if not has_node:
        path += "/api/v1" if "/api" not in path else "/v1" if "/v1" not in path else ""
    return urlunsplit((parts.scheme, parts.netloc, f"{path}/", "", ""))


def effective_scopes(key: Mapping[str, Any] | None, owner: Mapping[str, Any] | None) -> frozenset[str] | None:
    """Return the scopes of a key, or without one those of its owner; None if Tiled does not say.

    A key has the scopes that it was made with as far as its owner has them, or, with "inherit", all of the owner.
    """
    roles = (owner or {}).get("roles")
    if not isinstance(roles, list):
        return None
    of_owner = frozenset(str(scope) for role in roles for scope in role.get("scopes") or ())
    of_key = {str(scope) for scope in (key or {"scopes": ["inherit"]}).get("scopes") or ()}
    return of_owner if "inherit" in of_key else of_owner & of_key


def parse_time(text: object) -> datetime | None:
    """Return a time as Tiled writes it, which is UTC if it has no offset; None if it is not one."""
    try:
        parsed = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return parsed.replace(tzinfo=timezone.utc) if parsed.tzinfo is None else parsed


def _date_of(response: httpx.Response) -> datetime:
    """Return the time at which a response was made, by the server's clock, or by this host's if it does not say."""
    try:
        return parsedate_to_datetime(response.headers["Date"])
    except (KeyError, ValueError):
        return datetime.now(timezone.utc)
