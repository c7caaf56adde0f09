"""Names in JetStream: the stream of the log, the buckets beside it, and the subjects of runs.

A token of a subject has letters, digits, - and _. Each other byte of a name is written as `=` and two hexadecimal
digits, so names are as different as their tokens.
"""

from __future__ import annotations

import re
from typing import Final

STREAM: Final = "TW"
RUNS_BUCKET: Final = "TW_RUNS"
HOSTS_BUCKET: Final = "TW_HOSTS"

DOCUMENTS: Final = "tw.docs"
"""First tokens of the subjects of runs; the beamline and the run's uid follow."""

_PLAIN: Final = re.compile(rb"[A-Za-z0-9_-]")
_ESCAPED: Final = re.compile(rb"=([0-9A-F]{2})")
_TOKEN: Final = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
# The ingest hosts have a user of this name, and inboxes below it, as a beamline has below its own.
_SUPERVISOR_USER: Final = "supervisor"
_BEAMLINE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_TOKEN_CHARACTERS: Final = 1024


def check_beamline(name: str) -> str:
    """Return the name if a beamline can have it.

    Raises
    ------
    ValueError
        It cannot be part of a subject, or is that of the supervisors' user.
    """
    if name == _SUPERVISOR_USER:
        raise ValueError(f"beamline must not be {name!r}, which is the user of the ingest hosts.")
    return check_subject_beamline(name)


def check_subject_beamline(name: str) -> str:
    """Return a beamline's name if it can be part of a subject, as it may be in a log that is there.

    Raises
    ------
    ValueError
        It cannot.
    """
    if not isinstance(name, str) or not _BEAMLINE.fullmatch(name):
        raise ValueError(f"beamline must be up to 64 letters, digits, - and _, not {name!r}.")
    return name


def escape(name: str) -> str:
    """Return the token of a name."""
    data = name.encode("utf-8", "surrogatepass")
    return "".join(chr(byte) if _PLAIN.match(bytes((byte,))) else f"={byte:02X}" for byte in data)


def unescape(token: str) -> str:
    """Return the name of a token.

    Raises
    ------
    ValueError
        `escape` does not make such a token.
    """
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{token!r} is the name of no run.")
    data = _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), token.encode())
    name = data.decode("utf-8", "surrogatepass")
    if escape(name) != token:
        raise ValueError(f"{token!r} is the name of no run.")
    return name


def documents_subject(beamline: str, run_uid: str) -> str:
    """Return the subject of a run's documents."""
    return f"{DOCUMENTS}.{beamline}.{escape(run_uid)}"


def parse_documents_subject(subject: str) -> tuple[str, str]:
    """Return beamline and run uid of a subject.

    Raises
    ------
    ValueError
        It is the subject of no run.
    """
    *prefix, beamline, token = subject.split(".")
    if ".".join(prefix) != DOCUMENTS:
        raise ValueError(f"{subject!r} is the subject of no run.")
    return check_subject_beamline(beamline), unescape(token)


def bucket_stream(bucket: str) -> str:
    """Return the name of the stream that a bucket is."""
    return f"KV_{bucket}"


def bucket_subject(bucket: str, key: str) -> str:
    """Return the subject of a key of a bucket."""
    return f"$KV.{bucket}.{key}"


def receipt_key(beamline: str, run_uid: str) -> str:
    """Return the key of a run's receipt."""
    return f"receipt.{beamline}.{escape(run_uid)}"


def decisions_key(run_uid: str) -> str:
    """Return the key of the decisions about a run."""
    return f"decisions.{escape(run_uid)}"
