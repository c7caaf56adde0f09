"""What is said of the key for Tiled is what is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiled.profiles

from tiledwriter._config import Settings
from tiledwriter.cli._credentials import describe_key_source, find_account_key

PROFILES = {"plain": "http://tiled:8000", "keyed": "http://tiled:8000?api_key=a1"}


@pytest.mark.parametrize(
    ("profile", "has_file", "source", "key"),
    [
        ("plain", False, "TILED_API_KEY", "b2"),
        ("plain", True, "{file}", "c3"),
        # Tiled's client takes no other key with such a URI, and the supervisor makes none with it.
        ("keyed", False, "the URI of profile keyed", None),
        ("keyed", True, "the URI of profile keyed", None),
    ],
)
def test_the_key_is_said_to_come_from_where_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, profile: str, has_file: bool, source: str, key: str | None
) -> None:
    profiles = {name: (Path("x.yml"), {"uri": uri}) for name, uri in PROFILES.items()}
    monkeypatch.setattr(tiled.profiles, "load_profiles", lambda: profiles)
    monkeypatch.setenv("TILED_API_KEY", "b2")
    file = tmp_path / "key"
    file.write_text("c3\n")
    settings = Settings(profile=profile, api_key_file=file if has_file else None)
    assert describe_key_source(settings) == source.format(file=file)
    assert find_account_key(settings) == key
