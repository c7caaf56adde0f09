"""A run's uid can be anything: nothing comes of it but its run, in Tiled or kept with a reason."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from corpus._documents import RunDocuments, key
from stored_runs import Documents, journaled
from tiled.queries import Key
from warm import run_process

from tiledbroker import Journal, ZMQPublisher, open_run, run_files
from tiledbroker._errors import RunNotWritten
from tiledwriter._names import run_key
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.journal import main
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port, journal_of

pytestmark = [pytest.mark.filterwarnings("default:::tiled"), pytest.mark.timeout(300)]

PLAIN = "3f2b6c1e-8d47-4b0a-9c55-0ae2d1c7f9ab"
HOSTILE = {
    "plain": PLAIN,
    "upper case": PLAIN.upper(),
    "mixed case": PLAIN.replace("b", "B"),
    "look-alike": PLAIN.replace("a", "\u0430").replace("e", "\u0435").replace("c", "\u0441"),
    "path": "../../etc/passwd",
    "absolute path": "/etc/passwd",
    "path beside": "../escaped",
    "dots": "..",
    "encoded path": "%2e%2e%2f",
    "backslashes": "..\\..\\escaped",
    "long": "x" * 10_000,
    "long path": "../" * 3_000,
    "zero byte": "zero\0byte",
    "lines": "line\n2026-11-21T12:00:00.000Z ERROR   [supervisor] forged\r\nline",
    "escapes": "\x1b]0;owned\x07\x1b[2J\x9b31m",
    "right to left": "run-\u202egpj.exe\u2066",
    "line separator": "run\u2028forged",
    "space": " ",
    "format": "%(message)s%s{0}",
    "statement": "'; DROP TABLE documents; --",
    "command": "$(reboot)`reboot`",
    "option": "--config=/etc/passwd",
    "digest": "sha256-5d5b09f6dcb2d53a5fffc60c4ac0d55fabdf556069d6631545f42aa6e3500f2e.sqlite",
    "hidden": "_unrouted-1",
    "lock": ".supervisor.lock",
    "emoji": "\U0001f4a5\u200d\U0001f525",
}
NAMES = "run-with-hostile-names"
STREAM = "../../etc/\x1b[31m\u202e" + "s" * 1000
DATA_KEY = "'; DROP TABLE documents; --\n2026 forged\x9b" + "k" * 1000
REFUSED = {"empty": "", "surrogate": "run-\ud800"}
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z [A-Z]+ +\[(supervisor|worker( .{,40}?)?)\] .*|    .*")


def a_run(uid: str, stream: str = "primary", data_key: str = "x") -> Documents:
    """A run with a table and an array, whose keys Tiled makes files of."""
    run = RunDocuments(plan_name=uid[:50], uid=uid)
    run.uid = uid
    image = key("array", [8, 8], dtype_numpy="<f8")
    descriptor = run.descriptor({data_key: key(), f"{data_key} image": image}, name=stream)
    for seq_num in (1, 2):
        run.event(descriptor, seq_num, {data_key: 0.5, f"{data_key} image": numpy.full((8, 8), seq_num)})
    return run.stop()


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


class Site:
    """Everything in one directory, so that whatever is made elsewhere is seen."""

    def __init__(self, directory: Path, server: TiledServer) -> None:
        self.directory = directory
        self.server = server
        self.spool, self.left, self.journals = (directory / name for name in ("spool", "left", "journals"))
        self.supervisor = SupervisorProcess(
            self.journals, server, environment={"TILEDWRITER_QUIET_PERIOD": "1", "TILEDWRITER_LOG_LEVEL": "DEBUG"}
        )

    def node(self, uid: str) -> Any:
        return self.server.client()[run_key(uid)]

    @property
    def strangers(self) -> set[str]:
        """What is in the directory and should not be."""
        expected = {"spool", "left", "journals", "tiled", "journals-supervisor.log", "exported"}
        return {path.name for path in self.directory.iterdir()} - expected


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("outer") / "inner" / "site"
    directory.mkdir(parents=True)
    with TiledServer(directory / "tiled") as server:
        site = Site(directory, server)
        with site.supervisor:
            shipped = dict(list(HOSTILE.items())[::2])
            with_session_gone = ZMQPublisher(f"tcp://127.0.0.1:{free_port()}", spool_dir=site.left)
            for uid in shipped.values():
                for name, document in a_run(uid):
                    with_session_gone(name, document)
            with_session_gone.close(timeout=0)
            publisher = ZMQPublisher(site.supervisor.address, spool_dir=site.spool)
            for uid in [uid for name, uid in {**REFUSED, **HOSTILE}.items() if name not in shipped]:
                for name, document in a_run(uid):
                    publisher(name, document)
            for name, document in a_run(NAMES, STREAM, DATA_KEY):
                publisher(name, document)
            assert command("ship", site.left, site.supervisor.address) == ExitCode.OK
            for uid in [*HOSTILE.values(), NAMES]:
                assert publisher.wait_written(uid, 120)
            site.unrouted = publisher.status().unrouted
            publisher.close()
        yield site


@pytest.mark.parametrize("name", HOSTILE)
def test_the_run_is_in_tiled_whole_and_can_be_read(name: str, site: Site) -> None:
    uid = HOSTILE[name]
    node = site.node(uid)
    stored = uid.replace("\0", "\\x00")  # PostgreSQL takes none
    assert node.metadata["start"]["uid"] == stored
    assert node.metadata["stop"]["num_events"] == {"primary": 2}
    assert node["primary"]["seq_num"].read().tolist() == [1, 2]
    assert node["primary"]["x image"].read()[:, 0, 0].tolist() == [1.0, 2.0]
    (found,) = site.server.client().search(Key("start.uid") == stored)
    assert found == run_key(uid)
    noted = [note for note in node.metadata.get("notes", []) if "Tiled does not accept its uid" in note]
    assert len(noted) == (run_key(uid) != uid)


def test_all_runs_have_nodes_of_their_own(site: Site) -> None:
    assert set(site.server.client()) == {*(run_key(uid) for uid in HOSTILE.values()), NAMES}
    assert len({run_key(uid) for uid in HOSTILE.values()}) == len(HOSTILE)


def test_nothing_is_made_elsewhere(site: Site) -> None:
    assert site.strangers == set()
    assert [path.name for path in site.directory.parent.iterdir()] == ["site"]
    assert [path.name for path in site.directory.parent.parent.iterdir()] == ["inner"]
    folders = [site.journals, site.journals / "finished"]
    files = [path for folder in folders for path in folder.glob("[!.]*") if path.is_file()]
    names = [path.name for path in files]
    assert all(re.fullmatch(r"[0-9a-z._-]+\.sqlite(\.lock)?", name) for name in names)
    assert len(run_files(site.journals)) == len(HOSTILE) + 1


def test_streams_and_data_keys_may_have_any_name_too(site: Site) -> None:
    node = site.node(NAMES)
    (key_,) = node
    assert re.fullmatch(r"[.]{2}_[.]{2}_etc__\[31m_s+-[0-9a-f]{16}", key_)
    nodes = node[key_].base
    assert nodes["internal"].read()["seq_num"].tolist() == [1, 2]
    (image,) = set(nodes) - {"internal"}
    assert nodes[image].read()[:, 0, 0].tolist() == [1.0, 2.0]
    assert all(name.isprintable() and len(name) <= 240 for name in (key_, image))


def test_verify_and_replay_take_every_run(site: Site, tmp_path: Path) -> None:
    environment = {**os.environ, "TILED_API_KEY": site.server.api_key}
    script = [sys.executable, "-m", "tiledwriter.cli.journal"]

    def run(*arguments: object) -> list[str]:
        words = [*script, *map(str, arguments), "--tiled", site.server.uri]
        result = run_process(words, env=environment, timeout=120)
        assert result.returncode == ExitCode.OK, result.stderr
        return result.stdout.splitlines()

    lines = run("verify", site.journals)
    assert len(lines) == len(HOSTILE) + 2
    assert all("  OK  " in line and line.isprintable() for line in lines[:-1])
    exported = [tmp_path / f"{number}.jsonl" for number in range(len(HOSTILE))]
    for uid, out in zip(HOSTILE.values(), exported, strict=True):
        assert command("export", "--", uid, out, site.journals) == ExitCode.OK
    lines = run("replay", *exported)
    assert all(line.isprintable() and len(line) < 1000 for line in lines)


def test_what_has_no_usable_uid_is_kept_where_it_was_made(site: Site) -> None:
    (kept,) = site.spool.glob("_unrouted.*.segment")
    with open_run(kept) as run:
        assert run.names() == {"start": 2, "descriptor": 2, "event": 4, "stop": 2}
    assert site.unrouted == 10


def test_log_lines_are_one_line_each_and_printable(site: Site) -> None:
    text = site.supervisor.log.read_text()
    lines = text.split("\n")
    assert lines.pop() == ""
    assert [line for line in lines if not LOG_LINE.fullmatch(line) or not line.isprintable()] == []
    assert max(map(len, lines)) < 2000
    assert not [line for line in lines if line.endswith("forged")]
    assert "Logging error" not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_commands_find_the_run_and_print_nothing_but_text(
    name: str, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    uid = HOSTILE[name]
    exported = site.directory / "exported"
    exported.mkdir(exist_ok=True)
    out = exported / f"{list(HOSTILE).index(name)}.jsonl"
    assert command("show", "--", uid, site.journals) == ExitCode.OK
    assert command("show", "--operations", "--paths", "--", uid, site.journals) == ExitCode.OK
    assert command("tail", "--", uid, site.journals) == ExitCode.OK
    assert command("export", "--", uid, out, site.journals) == ExitCode.OK
    assert command("retry", "--", uid, site.journals) == ExitCode.FAILED
    printed = capsys.readouterr()
    assert "is not in quarantine" in printed.err
    for line in [*printed.out.split("\n"), *printed.err.split("\n")]:
        assert line.isprintable()
        assert len(line) < 4000
    assert json.loads(out.read_text().splitlines()[0])["doc"]["uid"] == uid
    assert site.strangers == set()


def test_the_list_of_runs_names_each_so_that_it_can_be_shown(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("ls", site.journals) == ExitCode.OK
    _, *lines, total = capsys.readouterr().out.splitlines()
    assert len(lines) == len(HOSTILE) + 1
    assert total.isprintable()
    assert all(line.isprintable() and len(line) < 300 for line in lines)
    found = set()
    for line in lines:
        code = command("show", "--json", line.split()[0], site.journals)
        printed = capsys.readouterr()
        if code == ExitCode.OK:
            found.add(json.loads(printed.out)["uid"])
        else:  # some uids differ in their ends only
            assert "give more of the uid" in printed.err
    assert len(found) >= len(HOSTILE) - 3
    assert command("ls", "--json", site.journals) == ExitCode.OK
    assert {run["uid"] for run in json.loads(capsys.readouterr().out)} == {*HOSTILE.values(), NAMES}


def test_no_uid_is_no_run(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    # Most often it is a shell variable that is not set.
    with pytest.raises(SystemExit) as ended:
        command("show", "", site.journals)
    assert ended.value.code == ExitCode.USAGE
    assert "an empty text is no value" in capsys.readouterr().err


def test_a_run_is_found_by_its_uid_whatever_its_file_is_called(tmp_path: Path) -> None:
    for uid in ("ABCDEF-1", "ABCDXY-1"):
        journaled(a_run(uid), tmp_path)
    assert command("show", "ABCDE", tmp_path) == ExitCode.OK
    assert command("show", "ABCD", tmp_path) == ExitCode.USAGE


def test_replay_retry_and_prune_keep_to_the_run(tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    journals = tmp_path / "journals"
    for uid in HOSTILE.values():
        with Journal(journaled(a_run(uid), journals), "write") as journal:
            journal.set("outcome", "failed")
    assert command("retry", "--all", journals) == ExitCode.OK
    assert capsys.readouterr().out.count("is out of quarantine") == len(HOSTILE)
    for uid in HOSTILE.values():
        with journal_of(journals, uid) as journal:
            path = journal.path
        with Journal(path, "write") as journal:
            journal.set("outcome", "written")
            journal.note("written")
    assert command("prune", "--older-than", "0", journals) == ExitCode.OK
    printed = capsys.readouterr().out
    assert f" of {len(HOSTILE)} journals in " in printed
    assert printed.replace("\n", "").isprintable()
    assert not run_files(journals)
    assert [path.name for path in tmp_path.iterdir()] == ["journals"]


def test_a_command_that_is_proposed_can_be_copied_into_a_shell() -> None:
    text = str(RunNotWritten("$(reboot)'; ls", "as the test wants it"))
    assert """`tiledwriter-journal show '$(reboot)'"'"'; ls' DIR`""" in text
