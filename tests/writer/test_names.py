"""Keys of nodes are made of uids and names of any kind, and are always fit for URLs and file systems."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiledwriter._names import StreamNames, node_key, run_key

names = st.text(max_size=40) | st.text(min_size=100, max_size=400) | st.sampled_from(["", ".", "..", "/", "\ud800"])


@given(names)
def test_a_key_can_be_a_part_of_a_url_and_a_name_of_a_file(name: str) -> None:
    for key in (node_key(name), run_key(name)):
        assert key.strip(".")
        assert not set(key) & set("/?#%")
        assert key.isprintable()
        assert len(quote(key, safe="")) <= 240


@given(names, names)
def test_no_two_runs_have_one_key(one: str, other: str) -> None:
    assert (run_key(one) == run_key(other)) is (one == other)


@given(names)
def test_a_key_is_the_key_of_itself(name: str) -> None:
    if "\ud800" not in name:
        assert node_key(node_key(name)) == node_key(name)


@pytest.mark.parametrize(
    "uid", ["3f2b6c1e-8d47-4b0a-9c55-0ae2d1c7f9ab", "3F2B", "a b", "$(reboot)", "'; --", "é", "-x"]
)
def test_a_uid_that_tiled_takes_is_the_key(uid: str) -> None:
    assert run_key(uid) == node_key(uid) == uid


@pytest.mark.parametrize(
    ("uid", "beginning"), [("a/b", "a_b-"), ("a?b", "a_b-"), ("", "_-"), ("..", "___-"), ("a\u202eb", "a_b-")]
)
def test_any_other_uid_has_a_hash_in_its_key(uid: str, beginning: str) -> None:
    assert run_key(uid).startswith(beginning)
    assert len(run_key(uid)) == len(beginning) + 16


def test_a_long_key_keeps_its_beginning() -> None:
    assert run_key("x" * 10_000).startswith("x" * 200)
    assert len(run_key("x" * 10_000)) == 240
    assert len(quote(node_key("\u0430" * 1000), safe="")) > 220


@pytest.mark.parametrize("key", ["ts_panda", "ts_", "ts_" + "x" * 100])
@pytest.mark.parametrize("as_column", [True, False])
def test_names_of_data_keys_never_look_like_those_of_timestamps(key: str, as_column: bool) -> None:
    notes: list[str] = []
    stream_names = StreamNames("Stream 'primary'", notes.append)
    stream_names.declare({key: {}, "cam": {}, "ts_cam": {"external": "STREAM:"}})
    name, timestamps = stream_names.name_for_values(key, as_column=as_column)
    assert not name.startswith("ts_")
    assert timestamps.startswith("ts_")
    assert not as_column or len(timestamps) <= 63
    assert stream_names.name_for_values("cam", as_column=True) == ("cam", "ts_cam")
    assert stream_names.name_for_files("ts_cam") == "xts_cam"
    assert notes == [
        f"Stream 'primary': {old!r} is stored as {new!r}, because Tiled's client leaves out its own name here."
        for old, new in ((key, name), ("ts_cam", "xts_cam"))
    ]


@pytest.mark.parametrize("key", ["internal", "internal_1", "internal_rewrite", "internal_2_rewrite", "internal_trial"])
def test_no_data_key_has_the_name_of_a_node_that_the_writer_makes_for_itself(key: str) -> None:
    stream_names = StreamNames("Stream 'primary'", lambda _: None)
    stream_names.declare({key: {"external": "STREAM:"}})
    assert stream_names.name_for_files(key) == f"{key}_"
    assert StreamNames("", lambda _: None).name_for_values(key, as_column=False)[0] == f"{key}_"


def test_a_dimension_whose_name_is_no_text_is_not_said_to_be_renamed() -> None:
    notes: list[str] = []
    stream_names = StreamNames("Stream 'primary'", notes.append)
    dims: list[Any] = ["time", 1, None]
    assert stream_names.of_dimensions("cam", dims, [5, 4, 6]) == ["time", "1", "None"]
    assert notes == []
