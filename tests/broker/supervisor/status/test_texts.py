"""Durations and sizes as text."""

from __future__ import annotations

import pytest

from tiledbroker.supervisor.status._texts import format_bytes, format_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (90_061, "1 d 1 h"), (-3, "0 s")],
)
def test_duration_has_two_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**40, "1.0 TiB"), (2**52, "4096.0 TiB")],
)
def test_sizes_have_units(size: int, text: str) -> None:
    assert format_bytes(size) == text
