"""One warning at start if Tiled cannot be reached. The supervisor serves publishers meanwhile."""

from __future__ import annotations

import logging
import threading
from typing import Final

import httpx

from .._config import Settings
from ._credentials import find_profile

log = logging.getLogger("tiledwriter.supervisor")

_TIMEOUT_SECONDS: Final = 5.0


def warn_if_unreachable(settings: Settings) -> threading.Thread | None:
    """Ask Tiled for an answer in a thread, and log a warning if none comes.

    Any answer counts, except one of a server that says that it is out of service (5xx): the key, the version and the
    container are for `check` and for the workers to judge.

    Returns
    -------
    threading.Thread or None
        The thread; None if the profile runs Tiled in this process.
    """
    uri, verify = settings.tiled, True
    if settings.profile is not None:
        profile = find_profile(settings.profile)
        uri, verify = profile.get("uri"), bool(profile.get("verify", True))
    if uri is None:
        return None
    headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
    thread = threading.Thread(target=_ask, args=(uri, headers, verify), name="tiledwriter-first-contact", daemon=True)
    thread.start()
    return thread


def _ask(uri: str, headers: dict[str, str], verify: bool) -> None:
    try:
        status = httpx.get(uri, headers=headers, timeout=_TIMEOUT_SECONDS, verify=verify).status_code
        problem = f"it answers {status}" if status >= 500 else ""
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        log.warning(
            "Tiled at %s cannot be reached (%s). Documents are journaled meanwhile, and written once it can; "
            "`tiledwriter-supervisor check` says more.",
            # A profile's URI may hold a key.
            uri.partition("?")[0],
            problem,
        )
