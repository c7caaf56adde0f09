"""Programs get the fields that the documentation promises, also when a command fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from tiledbroker import Encoder, Journal, journal_filename
from tiledwriter.cli import journal, supervisor
from tiledwriter.cli._exit import ExitCode

pytestmark = pytest.mark.filterwarnings("default")

PAGE = (ROOT / "docs" / "reference" / "json-output.md").read_text()


def documented(heading: str) -> set[str]:
    """The fields in the table below a heading."""
    section = re.split(r"^## ", PAGE.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    fields = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    assert fields
    return set(fields)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: ExitCode = ExitCode.OK) -> list[dict[str, Any]]:
    """The objects that a command prints."""
    capsys.readouterr()
    main = supervisor.main if arguments[0] == "keygen" else journal.main
    assert main([*arguments, "--json"]) == code
    out = capsys.readouterr().out
    if arguments[0] == "tail":
        return [json.loads(line) for line in out.splitlines()]
    parsed = json.loads(out)
    return parsed if isinstance(parsed, list) else [parsed]


ARGUMENTS = {
    "ls": ["ls"],
    "tail": ["tail", "3f2b"],
    "verify": ["verify"],
    "retry": ["retry", "3f2b"],
    "export": ["export", "3f2b", "-o", "exported.jsonl"],
    "ship": ["ship", "~/spool", "tcp://ingest.example:5579"],
    "replay": ["replay", "run.jsonl", "--tiled", "http://tiled.example:8000"],
    "prune": ["prune", "--older-than", "0", "--dry-run"],
    "keygen": ["keygen", "/etc/tiledwriter/keys"],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_documented_fields_are_those_that_are_printed(
    name: str, prepared: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    host = prepared(name)
    entries = printed(capsys, *host.words_of(" ".join(["command", *ARGUMENTS[name]])))
    assert entries
    assert all(set(entry) == documented(name) for entry in entries)


def test_show_has_the_fields_of_ls_and_its_own(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    host.add_run("failed")
    (entry,) = printed(capsys, "show", "3f2b")
    assert set(entry) == documented("ls") | documented("show")


@pytest.mark.parametrize(("label", "said"), [({}, ""), ({"scan_id": 7}, "  scan 7")])
def test_show_says_nothing_of_a_scan_number_that_a_run_has_not(
    label: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uid = "3f2b0000"
    with Journal(tmp_path / journal_filename(uid), "create", run_uid=uid) as written:
        written.append_one("start", Encoder().encode({"uid": uid, "time": 1.0, "plan_name": "count", **label}))
    assert journal.main(["show", uid, str(tmp_path)]) == ExitCode.OK
    assert f"plan       count{said}  started " in capsys.readouterr().out


def test_pruned_journals_and_keys_have_their_documented_fields(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = host.add_run("written")
    (pruning,) = printed(capsys, "prune", "--older-than", "0")
    (deleted,) = pruning["deleted"]
    assert set(deleted) == {"uid", "file", "written", "size"}
    assert (deleted["file"], pruning["kept"], path.exists()) == (str(path), 0, False)
    (made,) = printed(capsys, "keygen", str(host.keys))[0]["made"]
    assert set(made) == {"name", "keys", "revoke"}
    (again,) = printed(capsys, "keygen", str(host.keys), code=ExitCode.FAILED)
    assert again["error"]
    assert again["made"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "nowhere"],
        ["show", "3f2b", "nowhere"],
        ["tail", "3f2b", "nowhere"],
        ["verify", "./nowhere"],
        ["retry", "3f2b", "nowhere"],
        ["retry", "--all", "nowhere"],
        ["export", "3f2b", "nowhere", "-o", "out"],
        ["ship", "nowhere", "tcp://127.0.0.1:1"],
        ["replay", "nowhere"],
        ["prune", "nowhere"],
    ],
    ids=" ".join,
)
def test_failures_are_entries_with_the_reason(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nowhere" in json.dumps(printed(capsys, *arguments, code=ExitCode.NOT_FOUND))


def test_a_run_that_is_not_in_quarantine_is_an_error(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    host.add_run("interrupted")
    (entry,) = printed(capsys, "retry", "3f2b", code=ExitCode.FAILED)
    assert entry["result"] == "error"
    assert "is not in quarantine" in entry["message"]


def test_prune_names_what_it_had_to_keep(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = host.add_run("written")
    with Journal(path, "write"):
        (pruning,) = printed(capsys, "prune", "--older-than", "0", code=ExitCode.LOCKED)
    assert (pruning["deleted"], pruning["kept"]) == ([], 1)
    assert str(path) in pruning["problems"][0]


def test_documents_and_a_result_do_not_share_the_output(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    host.add_run("interrupted")
    (entry,) = printed(capsys, "export", "3f2b", "-o", "-", code=ExitCode.USAGE)
    assert "error" in entry
