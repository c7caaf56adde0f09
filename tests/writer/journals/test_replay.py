"""Runs from backups, exported documents and journals, replayed into a real Tiled server: all of each, once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import numpy
import pytest
from bluesky import RunEngine
from bluesky.callbacks.json_writer import JSONWriter
from bluesky_tiled_plugins.writing import tiled_writer as peer
from event_model import compose_run
from ophyd.sim import det, motor
from warm import run_process, start_process

from tiledbroker import Encoder, Journal, JournalLocked
from tiledbroker.log import FileLock
from tiledwriter import TiledWriter
from tiledwriter.cli._exit import ExitCode
from tiledwriter.journals._replay import Replayed, replay
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import TiledServer, wait_until

# The reading client warns about itself, as does the writer of bluesky-tiled-plugins.
pytestmark = [pytest.mark.filterwarnings("default")]

Documents = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def tiled(tiled_server: TiledServer) -> Any:
    return tiled_server.client()


def a_run(events: int = 6) -> Documents:
    """A run with a number, a small array and text in each event."""
    run = compose_run()
    data_keys: dict[str, Any] = {
        "x": {"source": "test", "dtype": "number", "shape": []},
        "roi": {"source": "test", "dtype": "array", "shape": [2], "dtype_numpy": "<i8"},
        "comment": {"source": "test", "dtype": "string", "shape": []},
    }
    stream = run.compose_descriptor(name="primary", data_keys=data_keys)
    documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for i in range(events):
        data = {"x": i / 2, "roi": [i, -i], "comment": f"event {i}"}
        documents.append(("event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, float(i)))))
    return [*documents, ("stop", run.compose_stop())]


def uid_of(documents: Documents) -> str:
    return str(documents[0][1]["uid"])


def send(writer: Callable[[str, Any], None], documents: Documents) -> None:
    for name, document in documents:
        writer(name, document)


def is_complete(tiled: Any, documents: Documents) -> bool:
    """Whether all of a run of `a_run` is there, once."""
    events = [document for name, document in documents if name == "event"]
    run = tiled[uid_of(documents)]
    stream = run["primary"]
    assert [int(n) for n in stream["seq_num"].read()] == [event["seq_num"] for event in events]
    assert [list(roi) for roi in stream["roi"].read()] == [event["data"]["roi"] for event in events]
    for key in ("x", "comment"):
        assert list(stream[key].read()) == [event["data"][key] for event in events]
    assert run.metadata["stop"] == documents[-1][1]
    return bool(run.validate())


def contents(tiled: Any, run_uid: str) -> Any:
    """Everything that a replay might change."""
    run = tiled[run_uid]
    stream = run["primary"].base
    return dict(run.metadata), {key: (dict(stream[key].metadata), stream[key].read().tolist()) for key in ("roi",)}


@pytest.fixture
def replayed(tiled_server: TiledServer, tmp_path: Path) -> Callable[..., list[Replayed]]:
    def replayed(*files: Path, server: TiledServer = tiled_server) -> list[Replayed]:
        directory = tmp_path / f"replay-{uuid.uuid4()}"
        directory.mkdir()
        return list(replay(files, server.client, WritingOptions(quiet_period=0.3), directory, threading.Event()))

    return replayed


# Forms of files


def as_lines(documents: Documents, path: Path) -> Path:
    path.write_text("".join(json.dumps({"name": name, "doc": document}) + "\n" for name, document in documents))
    return path


def as_suitcase_does(documents: Documents, path: Path) -> Path:
    path.write_text("".join(json.dumps((name, document)) + "\n" for name, document in documents))
    return path


def as_an_array(documents: Documents, path: Path) -> Path:
    send(JSONWriter(str(path.parent), path.name), documents)
    return path


def as_a_journal(documents: Documents, path: Path) -> Path:
    with Journal(path, "create", run_uid=uid_of(documents)) as journal:
        for name, document in documents:
            journal.append_one(name, Encoder().encode(document))
        # As written to another server.
        journal.set("outcome", "written")
        for node in ("", "/primary", "/primary/internal"):
            journal.set_progress(uid_of(documents) + node, 6)
    return path


def as_our_backup(documents: Documents, path: Path) -> Path:
    def fails(doc: Any) -> Any:
        raise RuntimeError("as the test wants it")

    writer = TiledWriter(None, patches={"start": fails}, backup_directory=path.parent)
    send(writer, documents)
    return path.parent / f"{uid_of(documents).partition('-')[0]}.jsonl"


@pytest.mark.parametrize("form", [as_lines, as_suitcase_does, as_an_array, as_a_journal, as_our_backup])
def test_a_run_in_any_form_is_written_and_a_second_replay_changes_nothing(
    form: Callable[[Documents, Path], Path], tiled: Any, replayed: Callable[..., list[Replayed]], tmp_path: Path
) -> None:
    documents = a_run()
    file = form(documents, tmp_path / "run")
    expected = [Replayed(str(file), uid_of(documents), len(documents), "written")]
    before = file.read_bytes()
    assert replayed(file) == expected
    assert is_complete(tiled, documents)
    first = contents(tiled, uid_of(documents))
    assert replayed(file) == expected
    assert is_complete(tiled, documents)
    assert contents(tiled, uid_of(documents)) == first
    assert file.read_bytes() == before


def test_a_run_of_the_run_engine_is_replayed_with_its_data(
    tiled: Any, replayed: Callable[..., list[Replayed]], tmp_path: Path
) -> None:
    engine = RunEngine({})
    written: list[tuple[str, Any]] = []
    engine.subscribe(lambda name, document: written.append((name, document)))
    engine(bp.scan([det], motor, -1, 1, 5))
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join()
    engine.loop.close()
    replayed(as_our_backup(written, tmp_path / "run"))
    data = tiled[uid_of(written)].primary.read()
    numpy.testing.assert_allclose(data["motor"], numpy.linspace(-1, 1, 5))


def test_interleaved_runs_of_one_file_are_told_apart(
    tiled: Any, replayed: Callable[..., list[Replayed]], tmp_path: Path
) -> None:
    one, two = a_run(4), a_run(4)
    file = as_lines([item for pair in zip(one, two, strict=True) for item in pair], tmp_path / "two.jsonl")
    assert [(result.uid, result.documents, result.outcome) for result in replayed(file)] == [
        (uid_of(one), 7, "written"),
        (uid_of(two), 7, "written"),
    ]
    assert is_complete(tiled, one)
    assert is_complete(tiled, two)


def test_a_run_that_is_in_a_file_twice_is_written_once(
    tiled: Any, replayed: Callable[..., list[Replayed]], tmp_path: Path
) -> None:
    documents = a_run()
    file = as_lines([*documents[:5], *documents, *documents], tmp_path / "joined.jsonl")
    assert [result.outcome for result in replayed(file)] == ["interrupted", "written", "written"]
    assert is_complete(tiled, documents)


def test_a_run_without_a_stop_is_written_without_one_and_completed_later(
    tiled: Any, replayed: Callable[..., list[Replayed]], tmp_path: Path
) -> None:
    documents = a_run()
    (result,) = replayed(as_lines(documents[:5], tmp_path / "begun.jsonl"))
    assert (result.outcome, result.documents) == ("interrupted", 5)
    run = tiled[uid_of(documents)]
    assert "stop" not in run.metadata
    assert len(run["primary"]["seq_num"].read()) == 3
    replayed(as_lines(documents, tmp_path / "whole.jsonl"))
    assert is_complete(tiled, documents)


# Runs that were written in part


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("sent", [1, 5, 8])
def test_what_is_in_tiled_already_is_completed(
    sent: int, batch_size: int, tiled: Any, replayed: Callable[..., list[Replayed]], tmp_path: Path
) -> None:
    documents = a_run()
    send(TiledWriter(tiled, batch_size=batch_size), documents[:sent])
    (result,) = replayed(as_lines(documents, tmp_path / "run.jsonl"))
    assert result.outcome == "written"
    assert is_complete(tiled, documents)


@pytest.mark.parametrize("make", [TiledWriter, peer.TiledWriter], ids=["ours", "of bluesky-tiled-plugins"])
def test_a_backup_made_when_the_server_died_completes_the_run(
    make: Any,
    own_tiled_server: TiledServer,
    replayed: Callable[..., list[Replayed]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tiled.client.utils.TILED_RETRY_TIMEOUT", 0.5)
    monkeypatch.setattr("tiled.client.utils.TILED_RETRY_ATTEMPTS", 2)
    run = compose_run()
    data_keys = {
        "b": {"source": "t", "dtype": "number", "shape": []},
        "a": {"source": "t", "dtype": "integer", "shape": []},
    }
    stream = run.compose_descriptor(name="primary", data_keys=data_keys)
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for i in range(8):
        event = stream.compose_event(data={"b": i / 2, "a": i}, timestamps={"a": float(i), "b": float(i)})
        documents.append(("event", event))
    documents.append(("stop", run.compose_stop()))
    options = {"patience": 5.0} if make is TiledWriter else {}
    writer = make(own_tiled_server.client(), batch_size=1, backup_directory=str(tmp_path / "backups"), **options)
    send(writer, documents[:6])
    client, own_tiled_server._client = own_tiled_server._client, None  # not to be closed with the server
    own_tiled_server.kill()
    send(writer, documents[6:])
    client.context.http_client.close()
    (file,) = (tmp_path / "backups").iterdir()
    own_tiled_server.start()
    tiled = own_tiled_server.client()
    assert 0 < len(tiled[uid_of(documents)]["primary"]["seq_num"].read()) < 8
    (result,) = replayed(file, server=own_tiled_server)
    assert (result.outcome, result.documents) == ("written", len(documents))
    written = tiled[uid_of(documents)]
    assert [int(n) for n in written["primary"]["seq_num"].read()] == list(range(1, 9))
    assert written["primary"]["a"].read().tolist() == list(range(8))
    assert written["primary"]["b"].read().tolist() == [i / 2 for i in range(8)]
    assert written.metadata["stop"]["uid"] == documents[-1][1]["uid"]


def test_a_run_that_cannot_be_written_is_told_and_others_are_written(
    tiled: Any, replayed: Callable[..., list[Replayed]], tmp_path: Path
) -> None:
    bad, good = a_run(), a_run()
    tiled.create_container(uid_of(bad), metadata={"start": {"uid": "another"}})
    failed, written = replayed(as_lines(bad, tmp_path / "bad.jsonl"), as_lines(good, tmp_path / "good.jsonl"))
    assert (failed.outcome, failed.done) == ("failed", False)
    assert "NotOurs" in failed.reason
    assert written.done
    assert is_complete(tiled, good)


# Files that cannot be read


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: [*lines[:4], lines[4][:20], *lines[5:]], "line 5: this is not JSON"),
        (lambda lines: [*lines[:3], '{"name": "event"}', *lines[3:]], "line 4: this is not a document"),
        (lambda lines: lines[1:], "line 1: .*belongs to no known run"),
        (lambda lines: [*lines, lines[3]], "line 10: .*belongs to no known run"),
        (lambda lines: [], "it contains no documents"),
    ],
    ids=["cut off", "no document", "no start", "after the stop", "empty"],
)
def test_nothing_is_written_of_a_file_that_cannot_be_read(
    spoil: Callable[[list[str]], list[str]],
    message: str,
    tiled: Any,
    replayed: Callable[..., list[Replayed]],
    tmp_path: Path,
) -> None:
    bad, good = a_run(), a_run()
    file = as_lines(bad, tmp_path / "bad.jsonl")
    file.write_text("\n".join(spoil(file.read_text().splitlines())))
    unreadable, written = replayed(file, as_lines(good, tmp_path / "good.jsonl"))
    assert unreadable.outcome == "unreadable"
    with pytest.raises(ValueError, match=message):
        raise ValueError(unreadable.reason)
    assert str(file) in unreadable.reason
    assert uid_of(bad) not in tiled
    assert written.outcome == "written"


def test_a_damaged_journal_is_told(replayed: Callable[..., list[Replayed]], tmp_path: Path) -> None:
    file = tmp_path / "run.sqlite"
    file.write_bytes(b"SQLite format 3\0" + b"rubbish" * 100)
    (result,) = replayed(file)
    assert result.outcome == "unreadable"
    assert str(file) in result.reason


def copied(directory: Path, *files: Path) -> list[str]:
    """The outcomes of a replay that ends when it has read the files."""
    directory.mkdir(exist_ok=True)
    ending = threading.Event()
    ending.set()
    return [result.outcome for result in replay(files, pytest.fail, WritingOptions(), directory, ending)]


def test_a_journal_that_a_process_writes_is_not_replayed(tmp_path: Path) -> None:
    file = as_a_journal(a_run(), tmp_path / "run.sqlite")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.sqlite").symlink_to(file)
    with Journal(file, "write"):
        for named in (file, tmp_path / "elsewhere" / "link.sqlite"):
            with pytest.raises(JournalLocked, match="another process has it open"):
                copied(tmp_path / "locked", named)
    assert copied(tmp_path / "free", file) == ["unfinished"]


def test_a_journal_that_a_supervisor_will_resume_is_not_replayed(tmp_path: Path) -> None:
    file = as_a_journal(a_run(), tmp_path / "run.sqlite")
    with Journal(file, "write") as journal:
        journal.set("outcome", None)
    lock = FileLock(tmp_path / ".supervisor.lock")
    lock.acquire()
    with pytest.raises(JournalLocked, match=f"the supervisor of {tmp_path} will write it"):
        copied(tmp_path / "supervised", file)
    lock.release()
    assert copied(tmp_path / "free", file) == ["unfinished"]


# The command


COMMAND = [sys.executable, "-m", "tiledwriter.cli.journal", "replay"]


def environment(server: TiledServer) -> dict[str, str]:
    return {**os.environ, "TILED_API_KEY": server.api_key, "TILEDWRITER_QUIET_PERIOD": "0.3"}


def run_command(server: TiledServer, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_process([*COMMAND, *arguments], env=environment(server))


class Running:
    """The command, while it runs; what it prints goes to files."""

    def __init__(self, directory: Path, server: TiledServer, *arguments: str | Path) -> None:
        directory.mkdir()
        self._output, self._errors = directory / "output", directory / "errors"
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            words = [*COMMAND, *map(str, arguments)]
            self.process = start_process(words, stdout=output, stderr=errors, env=environment(server))

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def errors(self) -> str:
        return self._errors.read_text()


def test_the_command_says_what_became_of_each_run(tiled_server: TiledServer, tiled: Any, tmp_path: Path) -> None:
    one, two = a_run(), a_run()
    files = [as_lines(one, tmp_path / "one.jsonl"), as_suitcase_does(two[:-1], tmp_path / "two.jsonl")]
    done = run_command(tiled_server, *files, "--tiled", tiled_server.uri)
    assert done.returncode == ExitCode.OK
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines() == [
        f"{uid_of(one)}  9 documents  written",
        f"{uid_of(two)}  8 documents  interrupted",
    ]
    assert is_complete(tiled, one)


def test_the_command_tells_programs_and_fails_for_a_run_that_failed_or_a_file_that_is_unreadable(
    tiled_server: TiledServer, tiled: Any, tmp_path: Path
) -> None:
    documents = a_run()
    tiled.create_container(uid_of(documents), metadata={"start": {"uid": "another"}})
    file = as_lines(documents, tmp_path / "run.jsonl")
    done = run_command(tiled_server, file, "--tiled", tiled_server.uri, "--json")
    assert done.returncode == ExitCode.INCOMPLETE
    assert "Traceback" not in done.stderr
    (result,) = json.loads(done.stdout)
    assert (result["uid"], result["documents"], result["outcome"]) == (uid_of(documents), 9, "failed")
    assert result["file"] == str(file)
    (tmp_path / "bad.jsonl").write_text("bad")
    done = run_command(tiled_server, tmp_path / "bad.jsonl", file, "--tiled", tiled_server.uri)
    assert done.returncode == ExitCode.FAILED
    assert "bad.jsonl, line 1" in done.stdout


def test_the_command_does_not_replay_a_journal_in_use(tiled_server: TiledServer, tmp_path: Path) -> None:
    file = as_a_journal(a_run(), tmp_path / "run.sqlite")
    with Journal(file, "write"):
        done = run_command(tiled_server, file, "--tiled", tiled_server.uri)
    assert (done.returncode, done.stdout) == (ExitCode.LOCKED, "")
    assert "another process has it open" in done.stderr


@pytest.fixture
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.jsonl").touch()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run.jsonl"], ExitCode.USAGE, "--tiled URI or --profile NAME"),
        (["run.jsonl", "--tiled", "http://x", "--config", "no.yaml"], ExitCode.USAGE, "no.yaml"),
        (["nothing.jsonl", "--tiled", "http://x"], ExitCode.NOT_FOUND, "there is no file nothing.jsonl"),
    ],
)
def test_the_command_names_what_it_lacks(
    arguments: list[str],
    code: int,
    message: str,
    tiled_server: TiledServer,
    in_a_directory: None,
) -> None:
    done = run_command(tiled_server, *arguments)
    assert done.returncode == code
    assert message in done.stderr


def test_the_command_waits_for_tiled_and_ends_when_told_to(own_tiled_server: TiledServer, tmp_path: Path) -> None:
    documents = a_run()
    file = as_lines(documents, tmp_path / "run.jsonl")
    own_tiled_server.stop()
    arguments = [own_tiled_server, file, "--tiled", own_tiled_server.uri]
    ended, waits = Running(tmp_path / "ended", *arguments), Running(tmp_path / "waits", *arguments)
    for running in (ended, waits):
        wait_until(lambda running=running: "Tiled refuses requests" in running.errors, 60, "it waits")
    ended.process.send_signal(signal.SIGINT)
    assert ended.process.wait(60) == ExitCode.INTERRUPTED
    assert ended.output == f"{uid_of(documents)}  9 documents  unfinished\n"
    assert waits.process.poll() is None
    own_tiled_server.start()
    assert waits.process.wait(120) == ExitCode.OK
    assert is_complete(own_tiled_server.client(), documents)
