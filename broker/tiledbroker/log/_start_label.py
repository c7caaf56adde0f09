"""What people call a run by: the scan id and the plan's name of its start document."""

from __future__ import annotations

from typing import Final

from .._errors import CodecError
from ._codec import decode

_MAX_CHARACTERS: Final = 100
# Readers of JSON do not agree on larger integers.
_MAX_SCAN_ID: Final = 2**53


def read_start_label(body: bytes) -> tuple[int | str | None, str | None]:
    """Return `scan_id` and `plan_name` of an encoded start document, shortened; None for one that is of another type.

    Parameters
    ----------
    body
        The encoded document, which may be damaged.
    """
    try:
        start = decode(body)
    except CodecError:
        return None, None
    scan_id, plan = start.get("scan_id"), start.get("plan_name")
    if isinstance(scan_id, bool) or not isinstance(scan_id, int | str):
        scan_id = None
    elif isinstance(scan_id, str) or abs(scan_id) >= _MAX_SCAN_ID:
        scan_id = _shorten_text(str(scan_id))
    return scan_id, _shorten_text(plan) if isinstance(plan, str) else None


def _shorten_text(text: str) -> str:
    # A lone surrogate has no place in JSON.
    return text[:_MAX_CHARACTERS].encode(errors="backslashreplace").decode()
