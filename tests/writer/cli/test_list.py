"""`ls` lists what it was asked for, sums it up, and tells an empty directory from a selection that leaves nothing."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from segments import record, segment_with
from stored_runs import a_run, journaled

from tiledbroker import Journal, ZMQPublisher, run_files
from tiledwriter.cli import _run_filter, _terminal
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.journal import main
from tiledwriter.journals import STATES
from tiledwriter.testing import free_port, wait_until

HOUR = 3600.0


def made(directory: Path, outcome: str | None = None, *, hours_ago: float = 0.0) -> Path:
    (_, start), *others = a_run()
    path = journaled([("start", {**start, "time": time.time() - hours_ago * HOUR}), *others], directory)
    if outcome is not None:
        with Journal(path, "write") as journal:
            journal.set("outcome", outcome)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Runs of some states and ages."""
    directory = tmp_path / "journals"
    made(directory, "written", hours_ago=100)
    made(directory, "written", hours_ago=5)
    made(directory, "failed", hours_ago=50)
    made(directory, hours_ago=1)
    return directory


def listed(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """The states of the listed runs."""
    assert main(["ls", "--json", *map(str, arguments)]) == ExitCode.OK
    return [row["state"] for row in json.loads(capsys.readouterr().out)]


@pytest.mark.parametrize(
    ("arguments", "states"),
    [
        ([], ["written", "failed", "written", "closing"]),
        (["--state", "written"], ["written", "written"]),
        (["--state", "failed,closing"], ["failed", "closing"]),
        (["--since", "2h"], ["closing"]),
        (["--since", "3d"], ["failed", "written", "closing"]),
        (["--since", "1w", "--state", "written"], ["written", "written"]),
        (["-n", "2"], ["written", "closing"]),
        (["--state", "written", "-n", "1"], ["written"]),
        (["-n", "0"], []),
        (["-n", "99"], ["written", "failed", "written", "closing"]),
    ],
    ids=lambda words: " ".join(words) or "all",
)
def test_runs_are_selected(arguments, states, directory, capsys) -> None:
    assert listed(capsys, directory, *arguments) == states


def test_totals_count_runs_documents_and_bytes(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(directory)]) == ExitCode.OK
    last = capsys.readouterr().out.splitlines()[-1]
    size = sum(path.stat().st_size for path in run_files(directory)) / 1024
    totals = f"2 written, 1 failed, 1 closing; 36 documents, {size:.1f} KiB"
    assert last == f"4 runs in {directory}: {totals}"


def test_totals_of_a_selection_say_of_how_many(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(directory), "--state", "failed"]) == ExitCode.OK
    assert f"1 of 4 runs in {directory}: 1 failed; 9 documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--state", "parked,open"], "is parked or open"),
        (["--since", "1s"], "has started since 2"),
        (["-n", "0"], "is among the latest 0"),
    ],
)
def test_a_selection_that_leaves_nothing_is_no_empty_directory(arguments, said, directory, capsys) -> None:
    assert main(["ls", str(directory), *arguments]) == ExitCode.OK
    assert f"none of the 4 runs in {directory} {said}" in capsys.readouterr().out


def test_an_empty_directory_has_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(tmp_path), "--state", "failed"]) == ExitCode.OK
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"


def test_unreadable_runs_are_never_left_out(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "damaged.sqlite").write_bytes(b"nothing of ours" * 500)
    for arguments in (["--state", "failed"], ["--since", "2h"], ["-n", "0"]):
        assert main(["ls", "--json", str(directory), *arguments]) == ExitCode.FAILED
        rows = json.loads(capsys.readouterr().out)
        assert [row["uid"] for row in rows if row["state"] == "unreadable"] == ["damaged"]
    assert main(["ls", str(directory)]) == ExitCode.FAILED
    ended = capsys.readouterr()
    assert "at least 36 documents" in ended.out
    assert f"1 of 5 runs in {directory} cannot be read" in ended.err


def test_a_spool_file_with_a_damaged_tail_is_damaged_for_all_commands(tmp_path: Path, capsys: Any) -> None:
    documents = a_run()
    path = journaled(documents[:5], tmp_path)
    path.with_name(path.name + ".tail").write_bytes(b"TWT1" + b"x" * 100)
    assert main(["ls", str(tmp_path), "--json"]) == ExitCode.DIFFERS
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], f"{path}.tail" in row["why"]) == ("damaged", True)
    assert main(["verify", path.stem, str(tmp_path)]) == ExitCode.DIFFERS
    assert "it is damaged" in capsys.readouterr().out
    out = tmp_path / "out.jsonl"
    assert main(["export", path.stem, str(tmp_path), "-o", str(out)]) == ExitCode.FAILED
    assert not out.exists()


def test_runs_without_a_time_are_not_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (_, start), *others = a_run()
    journaled([("start", {**start, "time": "yesterday"}), *others], tmp_path)
    assert listed(capsys, tmp_path, "--since", "1h") == ["closing"]


def test_runs_without_a_time_are_among_the_latest(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (_, start), *others = a_run()
    journaled([("start", {**start, "time": "noon", "plan_name": "odd"}), *others], directory)
    assert main(["ls", "--json", "-n", "1", "--state", "closing", str(directory)]) == ExitCode.OK
    assert [row["started"] is None for row in json.loads(capsys.readouterr().out)] == [True, False]
    assert listed(capsys, directory, "-n", "1", "--state", "written") == ["written"]


def test_a_file_with_the_name_of_another_run_is_damaged(directory, tmp_path, capsys) -> None:
    path = made(tmp_path / "others", "written")
    copy = path.rename(directory / "3f2b.sqlite")
    assert main(["ls", "--json", str(directory)]) == ExitCode.DIFFERS
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["state"] == "damaged"]
    assert row["uid"] == path.stem
    assert f"3f2b.sqlite: it is that of run '{path.stem}', and has another name" in row["why"]
    assert main(["ls", str(directory)]) == ExitCode.DIFFERS
    assert f"1 of 5 runs in {directory} damaged" in capsys.readouterr().err
    assert main(["ls", "--state", "failed", str(directory)]) == ExitCode.DIFFERS
    assert "1 failed, 1 damaged" in capsys.readouterr().out
    assert listed(capsys, copy) == ["written"]


def test_an_outcome_that_does_not_exist_is_unreadable(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(directory, "closing-typo")
    assert main(["ls", "--json", "--state", "failed", str(directory)]) == ExitCode.FAILED
    rows = json.loads(capsys.readouterr().out)
    assert [(row["uid"], row["state"]) for row in rows if row["state"] != "failed"] == [(path.stem, "unreadable")]
    assert "there is no outcome 'closing-typo'" in rows[0]["why"]
    assert main(["retry", "--all", str(directory)]) == ExitCode.FAILED


def test_journals_that_were_set_aside_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".lease-turn").touch()
    folder = tmp_path / "superseded" / "7"
    folder.parent.mkdir()
    made(folder)
    assert main(["ls", str(tmp_path)]) == ExitCode.OK
    assert capsys.readouterr().out.splitlines() == [
        f"no runs in {tmp_path}",
        f"1 unfinished journal set aside, from which nothing is written: {folder}",
    ]


def test_a_disk_of_set_aside_journals_that_is_not_mounted_is_no_empty_one(directory: Path, capsys) -> None:
    (directory / "superseded").symlink_to(directory / "not mounted")
    assert main(["ls", str(directory)]) == ExitCode.FAILED
    ended = capsys.readouterr()
    assert f"no such file or directory: {directory / 'superseded'}" in ended.err
    assert f"4 runs in {directory}" in ended.out


def test_a_target_that_cannot_be_listed_hides_no_other(directory, tmp_path, capsys) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"journal_dir: {tmp_path / 'all'}\ntargets:\n"
        f"  a: {{tiled: 'http://localhost:1', journal_dir: {tmp_path / 'nowhere'}}}\n"
        f"  b: {{tiled: 'http://localhost:2', journal_dir: {directory}}}\n"
    )
    assert main(["ls", "--config", str(config)]) == ExitCode.NOT_FOUND
    ended = capsys.readouterr()
    assert "4 runs in" in ended.out
    assert "there is no directory" in ended.err


def test_nothing_is_said_of_the_size_of_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--json", str(tmp_path / "nowhere"), str(tmp_path / "neither")]) == ExitCode.NOT_FOUND
    assert [row["size"] for row in json.loads(capsys.readouterr().out)] == [None, None]


def test_files_are_taken_as_well_as_directories(directory, tmp_path, capsys) -> None:
    file = made(tmp_path / "others", "interrupted", hours_ago=7)
    assert listed(capsys, file) == ["interrupted"]
    assert listed(capsys, file, directory) == ["written", "failed", "interrupted", "written", "closing"]


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "abc.sqlite"
    assert main(["ls", str(file)]) == ExitCode.NOT_FOUND
    assert f"there is no file or directory {file}" in capsys.readouterr().err


def test_of_several_places_those_that_can_be_read_are_listed(directory, tmp_path, capsys) -> None:
    assert main(["ls", str(tmp_path / "nowhere"), str(directory)]) == ExitCode.NOT_FOUND
    ended = capsys.readouterr()
    assert f"4 runs in {directory}" in ended.out
    assert f"there is no directory {tmp_path / 'nowhere'}" in ended.err
    assert main(["ls", "--json", str(tmp_path / "nowhere"), str(directory)]) == ExitCode.NOT_FOUND
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows].count("unreadable") == 1
    assert len(rows) == 5


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-03-02T09:15:00+01:00", 1772439300.0),
        ("2026-03-02T08:15Z", 1772439300.0),
        ("2026-03-02 08:15:00+00:00", 1772439300.0),
    ],
)
def test_times_with_a_zone_are_understood(text: str, time: float) -> None:
    assert _run_filter.parse_since(text) == time


def test_times_without_a_zone_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert _run_filter.parse_since("2026-03-02T09:15") == 1772439300.0
        assert _run_filter.parse_since("2026-03-02") == 1772439300.0 - 9.25 * HOUR
        assert _terminal.local(1772439300.0) == "2026-03-02T09:15:00+01:00"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_ls_shows_can_be_given_to_since(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(directory), "--state", "failed"]) == ExitCode.OK
    (shown,) = re.findall(r"\S+T\S+[+-]\d\d:\d\d", capsys.readouterr().out)
    assert listed(capsys, directory, "--since", shown) == ["failed", "written", "closing"]


@pytest.mark.parametrize("text", ["yesterday", "2h3", "2026-13-01", "-2h"])
def test_what_is_no_time_is_wrong_usage(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ls", str(tmp_path), f"--since={text}"])
    assert ended.value.code == ExitCode.USAGE
    assert "is neither a time" in capsys.readouterr().err


# Terminals


class Terminal:
    """Standard output that is a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("has_rich", [True, False])
@pytest.mark.parametrize("columns", [60, 100, 160])
def test_a_table_fits_the_terminal(columns: int, has_rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    if not has_rich:
        monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    why = " ".join(["[bold]because[/bold]"] * 20)
    _terminal.print_table(("RUN", "STATE", "WAITS"), [("abc", "failed", why)])
    lines = re.sub("\x1b\\[[0-9;]*m", "", terminal.text).splitlines()
    assert max(map(len, lines)) <= columns
    assert " ".join(" ".join(lines).split()).endswith(why)
    assert ("\x1b[" in terminal.text) == has_rich


# Spools


@pytest.fixture
def spooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two addresses that runs wait for in this user's default spools."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    addresses = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    for address, count in zip(addresses, (1, 2), strict=True):
        publisher = ZMQPublisher(address)
        for _ in range(count):
            for name, document in a_run():
                publisher(name, document)
        publisher.close(timeout=0)
    return addresses


def rows_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return list(json.loads(capsys.readouterr().out))


def test_a_spool_does_not_say_that_a_run_will_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run in quarantine, the spool has no other sign than that it is still there."""
    publisher = ZMQPublisher(f"tcp://127.0.0.1:{free_port()}", spool_dir=tmp_path / "spool")
    try:
        for name, document in a_run():
            publisher(name, document)
        wait_until(lambda: run_files(tmp_path / "spool"), 30, "the spool has a file")
        assert main(["ls", "--spool", str(tmp_path / "spool"), "--json"]) == ExitCode.OK
    finally:
        publisher.close(timeout=0)
    (row,) = rows_of(capsys)
    assert "until it is in Tiled, also while it is in quarantine; the ingest host knows its state" in row["why"]


def test_spools_are_listed_by_address(spooled, tmp_path, capsys) -> None:
    assert main(["ls", "--spool", "--json"]) == ExitCode.OK
    rows = rows_of(capsys)
    assert sorted(row["destination"] for row in rows) == sorted([spooled[0], *[spooled[1]] * 2])
    assert {row["state"] for row in rows} == {"spooled"}
    assert all(row["size"] > 0 for row in rows)
    assert main(["ls", "--spool"]) == ExitCode.OK
    printed = capsys.readouterr().out
    assert f"3 runs in {tmp_path / 'tiledwriter' / 'spool'} (a default spool): 3 spooled; 27 documents" in printed
    assert f"1 run for {spooled[0]}: 1 spooled; 9 documents" in printed
    assert f"2 runs for {spooled[1]}: 2 spooled; 18 documents" in printed


def test_a_given_spool_is_listed(spooled, tmp_path, capsys) -> None:
    host = next((tmp_path / "tiledwriter" / "spool").iterdir())
    for place, count in ((host, 3), (next(host.iterdir()), None)):
        assert main(["ls", "--spool", str(place), "--json"]) == ExitCode.OK
        rows = rows_of(capsys)
        assert len(rows) == count or len({row["destination"] for row in rows}) == 1


def a_spool(directory: Path, **header: Any) -> Path:
    directory.mkdir(parents=True)
    segment_with(directory / "run.0123abcd.000000000000.segment", record(0), **header).detach()
    return directory


def test_all_spools_below_a_directory_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    below = tmp_path / "below"
    expected = {
        a_spool(below),
        a_spool(below / "a"),
        a_spool(below / "b" / "c" / "d" / "e"),
        a_spool(below / "b" / "finished"),
    }
    (below / "link").symlink_to(a_spool(tmp_path / "elsewhere"))
    (below / "loop").symlink_to(below)
    assert main(["ls", "--spool", str(below), "--json"]) == ExitCode.OK
    found = [Path(row["file"]).parent for row in rows_of(capsys)]
    assert len(found) == 5
    assert set(found) == {*expected, below / "link"}


def test_what_may_be_a_spool_and_cannot_be_searched_is_named(tmp_path: Path, capsys: Any) -> None:
    a_spool(tmp_path / "here")
    (tmp_path / "link").symlink_to(tmp_path / "not mounted")
    assert main(["ls", "--spool", str(tmp_path)]) == ExitCode.FAILED
    assert f"no such file or directory: {tmp_path / 'link'}" in capsys.readouterr().err


def test_the_end_of_a_session_of_another_host_is_not_known(tmp_path: Path, capsys: Any) -> None:
    directory = a_spool(tmp_path / "spool", host="elsewhere")
    assert main(["ls", str(directory), "--json"]) == ExitCode.OK
    (row,) = rows_of(capsys)
    assert (row["state"], row["worker"]) == ("spooled", None)
    assert "unknown if its session" in row["why"]


def test_a_spooled_run_that_is_damaged_is_shown_as_such(spooled, tmp_path, capsys) -> None:
    path = next((tmp_path / "tiledwriter" / "spool").rglob("*.0*.segment"))
    content = path.read_bytes()
    at = content.rindex(b"exit_status")
    path.write_bytes(content[:at] + b"E" + content[at + 1 :])
    for arguments in ([], ["--json"]):
        assert main(["show", str(path), *arguments]) == ExitCode.DIFFERS
        ended = capsys.readouterr()
        assert "damaged" in ended.out
        assert "it is damaged: " in ended.err


def test_a_host_without_spools_says_where_it_looked(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("tiledwriter.cli._spool_lookup.fallback_spool_dir", lambda: tmp_path / "fallback")
    assert main(["ls", "--spool"]) == ExitCode.NOT_FOUND
    said = capsys.readouterr().err
    assert str(tmp_path / "tiledwriter" / "spool") in said
    assert str(tmp_path / "fallback") in said


@pytest.mark.parametrize("there", [True, False])
def test_a_directory_that_is_no_spool_is_not_found(there: bool, tmp_path: Path) -> None:
    if there:
        (tmp_path / "notes.txt").touch()
    assert main(["ls", "--spool", str(tmp_path if there else tmp_path / "nowhere")]) == ExitCode.NOT_FOUND


def test_states_are_completed_and_checked_alike() -> None:
    assert _run_filter.parse_states(",".join(STATES)) == STATES
