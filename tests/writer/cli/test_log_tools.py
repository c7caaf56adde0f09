"""Runs in a site's log are listed, exported and replayed, and none that lacks documents passes for a whole one."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from log_site import LogSite
from logged_runs import append, log_run, records_of, remove, tell
from runs import seq_nums
from stored_runs import a_run, journaled

from tiledbroker import run_files
from tiledbroker.jetstream import Connection, LogReader, Tail
from tiledbroker.protocol import messages
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.journal import main
from tiledwriter.journals import summarize_logged
from tiledwriter.testing import TiledServer, free_port


def uid_of(documents: list[tuple[str, dict[str, Any]]]) -> str:
    return str(documents[0][1]["uid"])


def listed(site: LogSite, capsys: pytest.CaptureFixture[str], *options: str, code: ExitCode = ExitCode.OK) -> Any:
    """What `ls` says of the runs in a log, by their uids."""
    assert main(["ls", "--source", str(site.address), "--json", *options]) == code
    return {entry["uid"]: entry for entry in json.loads(capsys.readouterr().out)}


def state_of(site: LogSite, uid: str) -> tuple[str, str]:
    """State of a run in a log, and the reason."""
    with LogReader(site.address) as reader:
        names = reader.list_names()
        (run,) = reader.describe_runs({name: names.runs.get(name, 0) for name in [("csx", uid)]})
    found = summarize_logged(run)
    return found.state, found.why


# ls


def test_an_empty_log_has_no_runs(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--source", str(log_site.address)]) == ExitCode.OK
    assert capsys.readouterr().out == f"no runs in {log_site.address}\n"
    assert listed(log_site, capsys) == {}


def test_a_log_that_gives_no_answer_is_no_empty_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    address = f"nats://127.0.0.1:{free_port()}"
    for command in (["ls"], ["export", "3f2b", "-o", str(tmp_path / "out")], ["replay", "3f2b", "--tiled", "http://x"]):
        assert main([*command, "--source", address]) == ExitCode.FAILED
        said = capsys.readouterr()
        assert (said.out, "can be used" in said.err) == ("", True)
    assert main(["ls", "--source", address, "--json"]) == ExitCode.FAILED
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["state"] == "unreadable"
    assert address in entry["why"]


def test_a_log_without_its_streams_is_no_empty_one(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    async def delete(connection: Connection) -> None:
        await connection.call("STREAM.DELETE.KV_TW_RUNS")

    log_site.ask(delete)
    assert main(["ls", "--source", str(log_site.address)]) == ExitCode.FAILED
    assert "no run" not in capsys.readouterr().out


def test_runs_are_listed_with_what_the_ingest_hosts_have(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    written, opened = a_run(scan_id=7), a_run()[:-1]
    tell(log_site, uid_of(written), log_run(log_site, written), outcome="written")
    log_run(log_site, opened, "hxn")
    found = listed(log_site, capsys)
    one, other = found[uid_of(written)], found[uid_of(opened)]
    assert (one["beamline"], one["plan"], one["scan_id"], one["started"]) == ("csx", "count", 7, written[0][1]["time"])
    assert (one["first"], one["next"], one["ended"], one["state"], one["why"]) == (0, 9, True, "written", "")
    assert one["receipt"]["host"] == "ingest"
    assert (other["beamline"], other["next"], other["ended"], other["receipt"]) == ("hxn", 8, False, None)
    assert (other["state"], other["why"]) == ("open", "no ingest host has told of it yet")
    assert listed(log_site, capsys, "--beamline", "csx").keys() == {uid_of(written)}
    assert listed(log_site, capsys, "--state", "open").keys() == {uid_of(opened)}
    assert main(["ls", "--source", str(log_site.address)]) == ExitCode.OK
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:4] == ["RUN", "BEAMLINE", "STARTED", "PLAN"]
    assert out.splitlines()[-1] == f"2 runs in {log_site.address}: 1 written, 1 open"


@pytest.mark.parametrize(
    ("receipt", "state", "why"),
    [
        ({"outcome": "interrupted"}, "interrupted", ""),
        ({"outcome": "failed", "reason": "a defect"}, "failed", "in quarantine on ingest: a defect"),
        ({"next": 4, "ended": False}, "closing", "ingest does not have its documents from 4 on yet"),
        ({"refused": "the uid is reused"}, "refused", "ingest: the uid is reused"),
        ({"delayed": "the disk is full"}, "closing", "ingest takes no documents at the moment: the disk is full"),
        ({}, "closing", "ingest has all of it, and has not told yet that it is in Tiled"),
        ({"next": 20, "outcome": "written"}, "damaged", "the log lacks its documents from 9 on; the journal of ingest"),
        ({"end_crc": 1, "outcome": "written"}, "damaged", "ingest has concluded it as written with other documents"),
        (
            {"start_crc": 1, "outcome": "written"},
            "closing",
            "no ingest host has told of it yet; the receipt is that of",
        ),
    ],
)
def test_what_is_told_of_a_run_is_only_what_is_proved(
    receipt: dict[str, Any], state: str, why: str, log_site: LogSite
) -> None:
    documents = a_run()
    tell(log_site, uid_of(documents), log_run(log_site, documents), **receipt)
    found = state_of(log_site, uid_of(documents))
    assert found[0] == state
    assert found[1].startswith(why)


def test_runs_that_lack_their_beginning_are_said(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    lost, kept = a_run(), a_run()
    for documents in (lost, kept):
        tail = log_run(log_site, documents)
        remove(log_site, uid_of(documents), before=tail.seq)
    tell(log_site, uid_of(kept), tail, next=8, ended=False)
    assert main(["ls", "--source", str(log_site.address)]) == ExitCode.DIFFERS
    assert f"1 of 2 runs in {log_site.address}: documents are missing" in capsys.readouterr().err
    found = listed(log_site, capsys, code=ExitCode.DIFFERS)
    assert (found[uid_of(lost)]["state"], found[uid_of(lost)]["first"]) == ("damaged", 6)
    assert found[uid_of(kept)]["state"] == "closing"
    assert found[uid_of(kept)]["why"] == "the log lacks its documents before 6, which ingest has"


def test_runs_of_which_only_a_receipt_is_left_are_counted_and_listed(
    log_site: LogSite, capsys: pytest.CaptureFixture[str]
) -> None:
    written, lost = a_run(), a_run()
    tell(log_site, uid_of(written), log_run(log_site, written), outcome="written")
    tell(log_site, uid_of(lost), log_run(log_site, lost), next=4, ended=False)
    for documents in (written, lost):
        remove(log_site, uid_of(documents))
    assert main(["ls", "--source", str(log_site.address)]) == ExitCode.OK
    assert "2 other runs left only a receipt there; --all lists these, too" in capsys.readouterr().out
    found = listed(log_site, capsys, "--all", code=ExitCode.DIFFERS)
    assert found[uid_of(written)]["state"] == "written"
    assert found[uid_of(lost)]["state"] == "damaged"
    assert "the journal of ingest has those before 4" in found[uid_of(lost)]["why"]


def test_messages_of_others_tell_nothing(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    documents = a_run()
    tail = log_run(log_site, documents)

    async def disturb(connection: Connection) -> None:
        await connection.append(f"tw.docs.csx.{uid_of(documents)}", b"noise", {}, tail.seq)
        await connection.append("tw.docs.csx.=61", b"noise", {}, 0)

    log_site.ask(disturb)
    found = listed(log_site, capsys, code=ExitCode.DIFFERS)[uid_of(documents)]
    assert (found["state"], found["next"], found["ended"]) == ("damaged", None, None)
    assert main(["ls", "--source", str(log_site.address)]) == ExitCode.DIFFERS
    assert "messages of no run, which are ignored: tw.docs.csx.=61" in capsys.readouterr().out


# export


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "journals"
    made.mkdir()
    yield made
    assert not list(tmp_path.glob(".*draft"))


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
def test_a_run_is_exported_as_from_a_journal(
    kind: str, log_site: LogSite, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = a_run()
    uid = uid_of(documents)
    log_run(log_site, documents)
    # A publisher that had no answer has appended some of them twice.
    append(log_site, messages.documents(uid, 4, records_of(documents)[4:]))
    journaled(documents, directory)
    options = ["--format", kind]
    assert main(["export", uid, str(directory), "-o", str(tmp_path / "a"), *options]) == ExitCode.OK
    out = ["-o", str(tmp_path / "b"), *options, "--source", str(log_site.address), "--json"]
    capsys.readouterr()
    assert main(["export", uid[:8], *out]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["uid"], told["documents"], told["ended"]) == (uid, 9, True)
    assert told["file"] == f"{log_site.address} tw.docs.csx.{uid}"
    if kind == "jsonl":
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_document_in_parts_and_an_abandonment_are_read(
    log_site: LogSite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = a_run(note="x" * 3_000_000)[:-1]
    uid = uid_of(documents)
    log_run(log_site, documents)
    assert main(["export", uid, "-o", str(tmp_path / "open"), "--source", str(log_site.address)]) == ExitCode.OK
    assert "the run is not known to have ended" in capsys.readouterr().err
    append(log_site, messages.Abandoned(uid, 8))
    assert main(["export", uid, "-o", str(tmp_path / "ended"), "--source", str(log_site.address)]) == ExitCode.OK
    assert "the run is not known to have ended" not in capsys.readouterr().err
    assert (tmp_path / "open").read_bytes() == (tmp_path / "ended").read_bytes()


@pytest.mark.parametrize("damage", ["beginning", "middle", "end", "all", "checksum"])
def test_a_run_that_is_not_whole_is_not_exported(
    damage: str, log_site: LogSite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = a_run()
    uid, records = uid_of(documents), records_of(documents)
    tail = Tail()
    if damage == "checksum":
        name, crc, body = records[3]
        records[3] = (name, crc ^ 1, body)
    for start in (0, 6) if damage == "middle" else (0, 3, 6):
        tail = append(log_site, messages.documents(uid, start, records[start : start + 3]))
    if damage == "beginning":
        remove(log_site, uid, before=tail.seq)
    if damage in ("end", "all"):
        tell(log_site, uid, tail, next=12)
    if damage == "all":
        remove(log_site, uid)
    code = main(["export", uid, "-o", str(tmp_path / "out"), "--source", str(log_site.address)])
    assert code == (ExitCode.NOT_FOUND if damage == "all" else ExitCode.FAILED)
    assert not (tmp_path / "out").exists()
    said = {
        "beginning": "the log lacks its documents 0 to 5",
        "middle": "the log lacks its documents 3 to 5",
        "end": "the log lacks its documents 9 to 11, which ingest has had",
        "all": "are not in",
        "checksum": "document 3 in the log is damaged",
    }
    assert said[damage] in capsys.readouterr().err


def test_a_uid_that_is_not_there_or_not_one_is_said(
    log_site: LogSite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["-o", str(tmp_path / "out"), "--source", str(log_site.address)]
    assert main(["export", "none", *out]) == ExitCode.NOT_FOUND
    assert f"there is no run 'none' in {log_site.address}" in capsys.readouterr().err
    documents = a_run()
    for beamline in ("csx", "hxn"):
        log_run(log_site, documents, beamline)
    assert main(["export", uid_of(documents), *out]) == ExitCode.USAGE
    assert "give --beamline" in capsys.readouterr().err
    assert main(["export", uid_of(documents), "--beamline", "hxn", *out]) == ExitCode.OK


@pytest.mark.parametrize("option", ["--credentials", "--tls", "--tls-client", "--beamline"])
def test_options_of_a_log_are_refused_without_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["ls"], ["export", "3f2b", "-o", "-"], ["replay", "file"]):
        assert main([*command, option, "x"]) == ExitCode.USAGE
        assert f"{option} can be given with --source only" in capsys.readouterr().err


def test_credentials_come_from_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "credentials"
    secret.touch(mode=0o600)
    secret.write_text("supervisor:secret-of-supervisor")
    config = tmp_path / "config.yaml"
    config.write_text(f"source: nats://log\nsource_credentials: {secret}\n")
    users = [{"user": "supervisor", "password": "secret-of-supervisor"}]
    with LogSite(tmp_path / "log", configuration={"authorization": {"users": users}}, credentials=secret) as site:
        assert main(["ls", "--source", str(site.address), "--config", str(config)]) == ExitCode.OK
        capsys.readouterr()
        assert main(["ls", "--source", str(site.address)]) == ExitCode.FAILED
        assert "does not accept these credentials" in capsys.readouterr().err


# replay


@pytest.mark.filterwarnings("default")
def test_a_run_is_replayed_once_an_ingest_host_is_through_with_it(
    log_site: LogSite,
    tiled_server: TiledServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TILED_API_KEY", tiled_server.api_key)
    documents = a_run()
    uid = uid_of(documents)
    options = ["--source", str(log_site.address), "--tiled", tiled_server.uri, "--json"]
    tail = log_run(log_site, documents[:5])
    for receipt in ({}, {"next": 5}):
        assert main(["replay", uid[:8], *options]) == ExitCode.LOCKED
        assert "is not concluded" in capsys.readouterr().err
        tell(log_site, uid, tail, **receipt)
    assert not run_files(tmp_path)
    tail = log_run(log_site, documents, first=5)
    tell(log_site, uid, tail, outcome="written")
    capsys.readouterr()
    assert main(["replay", uid[:8], *options]) == ExitCode.OK
    (replayed,) = json.loads(capsys.readouterr().out)
    assert (replayed["uid"], replayed["documents"], replayed["outcome"]) == (uid, 9, "written")
    assert replayed["file"] == f"{log_site.address} tw.docs.csx.{uid}"

    assert seq_nums(tiled_server, uid) == [1, 2, 3, 4, 5, 6]
    # Clients of Tiled leave their connections to the garbage collector, which warns of them in whatever test runs then.
    gc.collect()
