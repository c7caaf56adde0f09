"""Credentials for Tiled as far as this host alone can check them: the profile, the key file and the environment."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from .._config import Settings
from ._sources import WrongConfiguration, suggest

KEY_VARIABLE: Final = "TILED_API_KEY"

_MAX_LISTED: Final = 10


def require_credentials(settings: Settings) -> None:
    """Check that the profile exists, and that the API key can be sent. No request is made.

    Raises
    ------
    WrongConfiguration
        The profile is unknown, the key file cannot be read, or what it or `TILED_API_KEY` holds is not one key.
    """
    if settings.profile is not None:
        find_profile(settings.profile)
    if settings.api_key_file is not None:
        read_key_file(settings.api_key_file)
    elif (key := os.environ.get(KEY_VARIABLE)) is not None:
        _require_one_key(key, f"{KEY_VARIABLE} in the environment")


def describe_key_source(settings: Settings) -> str | None:
    """Return where the API key comes from, for people; None if there is none."""
    if _has_key_in_uri(settings):
        return f"the URI of profile {settings.profile}"
    if settings.api_key_file is not None:
        return str(settings.api_key_file)
    return None if os.environ.get(KEY_VARIABLE) is None else KEY_VARIABLE


def find_account_key(settings: Settings) -> str | None:
    """Return the API key that is configured; None if there is none, or one in the URI of a profile.

    Raises
    ------
    WrongConfiguration
        The key file does not hold a key, or there is no such profile.
    """
    if _has_key_in_uri(settings):
        # Tiled's client takes no other key with such a URI.
        return None
    if settings.api_key_file is not None:
        return read_key_file(settings.api_key_file)
    return os.environ.get(KEY_VARIABLE)


def _has_key_in_uri(settings: Settings) -> bool:
    uri = None if settings.profile is None else find_profile(settings.profile).get("uri")
    return "api_key" in parse_qs(urlsplit(uri or "").query)


def find_server(settings: Settings) -> tuple[str | None, bool]:
    """Return the URI of Tiled, None if it runs in the process of its client, and whether to check its certificate.

    Raises
    ------
    WrongConfiguration
        There is no such profile.
    """
    if settings.profile is None:
        return settings.tiled, True
    profile = find_profile(settings.profile)
    return profile.get("uri"), bool(profile.get("verify", True))


def find_profile(name: str) -> Mapping[str, Any]:
    """Return the content of a profile of Tiled's client.

    Raises
    ------
    WrongConfiguration
        There is no such profile.
    """
    from tiled.profiles import load_profiles, paths

    profiles = load_profiles()
    if name not in profiles:
        known = ", ".join(sorted(profiles)[:_MAX_LISTED]) or "none"
        raise WrongConfiguration(
            f"Tiled's client has no profile {name}{suggest(name, profiles)} (profiles: {known}; "
            f"they are in files *.yml in {', '.join(map(str, paths))})"
        )
    content: Mapping[str, Any] = profiles[name][1]
    return content


def read_key_file(path: Path) -> str:
    """Return the API key in a file.

    Raises
    ------
    WrongConfiguration
        The file cannot be read, or does not hold one key.
    """
    try:
        text = path.read_bytes().decode("ascii")
    except IsADirectoryError as error:
        raise WrongConfiguration(
            f"api_key_file: {path} is a directory; it must be a file that holds the key"
        ) from error
    except OSError as error:
        raise WrongConfiguration(f"api_key_file: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WrongConfiguration(
            f"api_key_file: {path} does not hold a key, but other characters than ASCII"
        ) from error
    key = text.strip()
    _require_one_key(key, f"api_key_file: {path}")
    return key


def is_readable_by_others(path: Path) -> bool:
    """Return True if users other than the owner of a file may read it."""
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def _require_one_key(key: str, place: str) -> None:
    """Raise `WrongConfiguration` if the text is not one line that an HTTP header can carry."""
    if not key:
        raise WrongConfiguration(f"{place} holds no key")
    if len(key.strip().splitlines()) > 1:
        lines = len(key.strip().splitlines())
        raise WrongConfiguration(f"{place} holds {lines} lines; it must hold the key and nothing else")
    if key != key.strip():
        raise WrongConfiguration(f"{place} begins or ends with a blank or a line break, which no key has")
    if not key.isascii() or not key.isprintable():
        raise WrongConfiguration(f"{place} holds characters that no key has")
