"""The file that names keys which may be alive: durable, private, and no trouble if it is damaged."""

from __future__ import annotations

import logging
import stat
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tiledwriter.catalog import ApiKey
from tiledwriter.cli._key_ledger import KEY_LEDGER, KeyLedger
from tiledwriter.cli._writing_key import describe_holder

END = datetime(2030, 1, 1, tzinfo=timezone.utc)


def test_keys_are_kept_until_they_are_removed(tmp_path: Path) -> None:
    ledger = KeyLedger(tmp_path)
    assert (ledger.account, ledger.keys) == ("", {})
    ledger.add("me", ApiKey("s3cr3t-1", "aaaaaaaa", END))
    ledger.add("me", ApiKey("s3cr3t-2", "bbbbbbbb", END))
    file = tmp_path / KEY_LEDGER
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"s3cr3t" not in file.read_bytes()
    ledger.remove(["aaaaaaaa", "cccccccc"])
    again = KeyLedger(tmp_path)
    assert (again.account, again.keys) == ("me", {"bbbbbbbb": END})
    again.remove(["bbbbbbbb"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"account": 1}', b'{"keys": {"a": "soon"}}', b"\xff"])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    (tmp_path / KEY_LEDGER).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        ledger = KeyLedger(tmp_path)
    assert ledger.keys == {}
    assert "is damaged" in caplog.text


def test_notes_are_short_enough_for_tiled_and_tell_directories_apart() -> None:
    assert describe_holder("host", Path("/a")) == "tiledwriter-supervisor on host, journals in /a"
    notes = {describe_holder("host", Path("/" + "a" * 300 + end)) for end in ("b", "c")}
    assert len(notes) == 2
    assert {len(f"{note} [12345678]") for note in notes} == {241}
