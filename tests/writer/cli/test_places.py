"""Without a directory commands look at the configured one, and say which it was when they find nothing there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from segments import record, segment_with
from stored_runs import Documents, a_run, journaled

from tiledbroker import Journal
from tiledwriter.cli import supervisor
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli._status import find_journal_dirs
from tiledwriter.cli.journal import main

VARIABLE = "TILEDWRITER_JOURNAL_DIR"


@pytest.fixture
def nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default journal directory, which exists."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    directory = tmp_path / "state" / "tiledwriter" / "journals"
    directory.mkdir(parents=True)
    return directory


def config_of(tmp_path: Path, text: str) -> str:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return str(file)


OF_A_RUN = [
    ["show", "UID"],
    ["show", "UID", "--operations"],
    ["tail", "UID"],
    ["retry", "UID"],
    ["verify", "UID"],
    ["export", "UID", "-o", "-"],
]


@pytest.mark.parametrize("arguments", OF_A_RUN, ids=" ".join)
def test_a_run_is_found_without_a_directory(arguments, nothing_configured, tmp_path, monkeypatch, capsys) -> None:
    directories = {place: tmp_path / place for place in ("variable", "config")}
    runs = {place: journaled(a_run(), directory) for place, directory in directories.items()}
    runs["default"] = journaled(a_run(), nothing_configured)
    config = config_of(tmp_path, f"tiled: http://localhost:1\njournal_dir: {directories['config']}\n")
    options = {"default": [], "config": ["--config", config], "variable": ["--config", config]}
    for place in ("default", "config", "variable"):
        if place == "variable":
            monkeypatch.setenv(VARIABLE, str(directories["variable"]))
        uid = runs[place].stem
        code = main([*(uid if word == "UID" else word for word in arguments), *options[place]])
        ended = capsys.readouterr()
        assert code != ExitCode.NOT_FOUND, ended
        assert uid in ended.out + ended.err or arguments[0] == "tail"
        others = [runs[other].stem for other in runs if other != place]
        for other in others:
            words = [other if word == "UID" else word for word in arguments]
            assert main([*words, *options[place]]) == ExitCode.NOT_FOUND
        capsys.readouterr()


@pytest.mark.parametrize("arguments", [["show", "abc"], ["tail", "abc"], ["retry", "abc"], ["verify", "abc"]])
def test_the_place_that_was_looked_at_is_named(arguments, nothing_configured, tmp_path, monkeypatch, capsys) -> None:
    assert main(arguments) == ExitCode.NOT_FOUND
    assert f"no run 'abc' in {nothing_configured} (the default journal directory)" in capsys.readouterr().err
    configured = tmp_path / "configured"
    configured.mkdir()
    config = config_of(tmp_path, f"tiled: http://localhost:1\njournal_dir: {configured}\n")
    assert main([*arguments, "--config", config]) == ExitCode.NOT_FOUND
    assert f"no run 'abc' in {configured} (journal_dir in {config})" in capsys.readouterr().err
    config = config_of(tmp_path, "tiled: http://localhost:1\n")
    assert main([*arguments, "--config", config]) == ExitCode.NOT_FOUND
    assert f"no run 'abc' in {nothing_configured} (the default; {config} has no" in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, str(configured))
    assert main(arguments) == ExitCode.NOT_FOUND
    assert f"no run 'abc' in {configured} (from {VARIABLE})" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["ls"], ["prune"], ["retry", "--all"]], ids=" ".join)
def test_an_empty_configured_directory_is_named(arguments, nothing_configured, capsys) -> None:
    assert main(arguments) == ExitCode.OK
    assert f"no runs in {nothing_configured} (the default journal directory)" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["ls"], ["prune"], ["show", "abc"], ["verify"]], ids=" ".join)
def test_a_configured_directory_that_is_not_there_is_named(arguments, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    assert main(arguments) == ExitCode.NOT_FOUND
    assert f"there is no directory {tmp_path / 'nowhere'} (from {VARIABLE})" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "~nobody-of-this-name/journals"])
@pytest.mark.parametrize("variable", [VARIABLE, VARIABLE.lower()])
def test_a_variable_that_is_no_path_is_wrong_usage(text, variable, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv(variable, text)
    config = config_of(tmp_path, "tiled: http://localhost:1\n")
    for options in ([], ["--config", config]):
        for command in (["ls", "--json"], ["prune"]):
            assert main([*command, *options]) == ExitCode.USAGE
            assert variable in capsys.readouterr().err
        assert supervisor.main(["status", *options]) == ExitCode.USAGE
        assert variable in capsys.readouterr().err
    assert supervisor.main(["--config", config, "--print-config"]) == ExitCode.USAGE


def test_a_variable_in_lower_case_is_found(nothing_configured, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(VARIABLE.lower(), str(tmp_path / "nowhere"))
    assert main(["ls"]) == ExitCode.NOT_FOUND
    assert f"{tmp_path / 'nowhere'} (from {VARIABLE.lower()})" in capsys.readouterr().err
    assert find_journal_dirs(None, None) == {"": tmp_path / "nowhere"}


@pytest.mark.parametrize(
    "text",
    [
        "journl_dir: /x\n",
        "journal_dir: /x\njournal_dir: /y\n",
        "journal_dir:\n",
        "journal_dir: ''\n",
        "lease_dir: ''\n",
        "targets: {one: {tiled: http://localhost:1, journal_dir: ''}}\n",
        "targets: {one: {tiled: http://localhost:1, journl_dir: /x}}\n",
    ],
)
def test_the_service_and_all_that_look_for_it_refuse_the_same_configurations(
    text, nothing_configured, tmp_path, capsys
) -> None:
    config = config_of(tmp_path, text if "targets" in text else f"tiled: http://localhost:1\n{text}")
    for run, arguments in ((supervisor.main, ["--print-config"]), (supervisor.main, ["status"]), (main, ["ls"])):
        assert run([*arguments, "--config", config]) == ExitCode.USAGE
        assert config in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "arguments"),
    [
        (supervisor.main, ["--journal-dir", ""]),
        (supervisor.main, ["status", "--journal-dir", ""]),
        (supervisor.main, ["lease-dir", ""]),
        (main, ["ls", ""]),
        (main, ["prune", ""]),
        (main, ["retry", "--all", ""]),
        (main, ["show", ""]),
    ],
)
def test_an_empty_argument_is_wrong_usage(run, arguments, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run(arguments)
    assert "an empty text is no value" in capsys.readouterr().err


def test_a_home_that_is_not_there_is_wrong_usage(capsys) -> None:
    for arguments in (["status", "--journal-dir", "~nobody-of-this-name/x"], ["lease-dir", "~nobody-of-this-name/x"]):
        assert supervisor.main(arguments) == ExitCode.USAGE
        assert "has no home directory" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "tilde: http://localhost:1\n"])
def test_a_configuration_that_cannot_be_used_is_wrong_usage(text, nothing_configured, tmp_path, capsys) -> None:
    config = str(tmp_path / "nowhere.yaml") if text is None else config_of(tmp_path, text)
    for arguments in (["ls"], ["show", "abc"], ["prune"], ["retry", "--all"]):
        assert main([*arguments, "--config", config]) == ExitCode.USAGE
        assert capsys.readouterr().out == ""


def test_the_home_directory_is_found(nothing_configured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "~/mine")
    path = journaled(a_run(), tmp_path / "mine")
    assert main(["show", path.stem]) == ExitCode.OK


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "UID", "DIR", "-o", "OUT"],
        ["export", "-o", "OUT", "UID", "DIR"],
        ["export", "DIR", "UID", "-o", "OUT"],
        ["export", "UID", "OUT", "DIR"],
        ["export", "FILE", "OUT"],
        ["export", "FILE", "-o", "OUT"],
    ],
    ids=" ".join,
)
def test_the_order_of_arguments_is_the_same_everywhere(arguments, nothing_configured, tmp_path) -> None:
    path = journaled(a_run(), tmp_path / "journals")
    out = tmp_path / "out.jsonl"
    words = {"UID": path.stem[:8], "DIR": str(path.parent), "OUT": str(out), "FILE": str(path)}
    assert main([words.get(word, word) for word in arguments]) == ExitCode.OK
    assert len(out.read_text().splitlines()) == len(a_run())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "abc"], "give the file to create"),
        (["export", "abc", "a", "b", "-o", "out"], "give one directory, not a and b"),
    ],
)
def test_what_export_cannot_make_out_is_wrong_usage(arguments, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == ExitCode.USAGE
    assert said in capsys.readouterr().err


def test_a_spool_is_found_by_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(["ship", "tcp://127.0.0.1:1"]) == ExitCode.NOT_FOUND
    said = capsys.readouterr().err
    assert "this host has no default spool for tcp://127.0.0.1:1" in said
    assert str(tmp_path / "tiledwriter" / "spool") in said


@pytest.mark.parametrize("arguments", [["DIR", "tcp://127.0.0.1:1"], ["tcp://127.0.0.1:1", "DIR"]], ids=" ".join)
def test_a_spool_and_its_address_may_be_given_in_either_order(arguments, tmp_path, capsys) -> None:
    words = [str(tmp_path) if word == "DIR" else word for word in arguments]
    assert main(["ship", *words]) == ExitCode.OK
    assert f"no runs in {tmp_path}: nothing to ship" in capsys.readouterr().out


def renamed(documents: Documents, uid: str) -> Documents:
    (_, start), *others = documents
    return [("start", {**start, "uid": uid}), *others]


@pytest.mark.parametrize(
    "arguments",
    [["show", "3f2b"], ["tail", "3f2b"], ["verify", "3f2b"], ["retry", "3f2b"], ["export", "3f2b", "-o", "-"]],
)
def test_a_run_is_not_found_under_the_name_of_another(arguments, tmp_path, capsys) -> None:
    path = journaled(a_run(), tmp_path)
    copy = path.rename(tmp_path / "3f2b0000.sqlite")
    for uid in ("3f2b", copy.stem):
        words = [uid if word == "3f2b" else word for word in arguments]
        assert main([*words, str(tmp_path)]) == ExitCode.FAILED
        ended = capsys.readouterr()
        assert (ended.out, f"it is that of run '{path.stem}', and has another name" in ended.err) == ("", True)
    assert main(["show", str(copy)]) == ExitCode.OK


@pytest.mark.parametrize("length", [4, None], ids=["prefix", "uid"])
def test_of_two_files_of_a_run_that_at_the_top_is_the_journal(length: int | None, tmp_path: Path, capsys) -> None:
    path = journaled(a_run(), tmp_path)
    other = tmp_path / "finished" / path.name
    other.parent.mkdir()
    shutil.copyfile(path, other)
    with Journal(other, "write") as journal:
        journal.set("outcome", "written")
    for command, code in (("show", ExitCode.OK), ("retry", ExitCode.FAILED), ("verify", ExitCode.INCOMPLETE)):
        assert main([command, path.stem[:length], str(tmp_path)]) == code
        assert f"another file of this run: {other}" in capsys.readouterr().err
    assert main(["show", "--json", path.stem[:length], str(tmp_path)]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["file"] == str(path)
    assert main(["show", "--json", str(other)]) == ExitCode.OK
    ended = capsys.readouterr()
    assert (json.loads(ended.out)["file"], ended.err) == (str(other), "")


def test_of_several_files_of_a_run_in_a_spool_none_is_chosen(tmp_path: Path, capsys) -> None:
    for session in ("0123abcd", "4567abcd"):
        segment_with(tmp_path / f"run.{session}.000000000000.segment", record(0))
    assert main(["show", "run", str(tmp_path)]) == ExitCode.USAGE
    assert "give the path of one: " in capsys.readouterr().err


def test_a_run_that_cannot_be_read_and_might_be_meant_is_named(tmp_path: Path, capsys) -> None:
    journaled(renamed(a_run(), "3f2c"), tmp_path)
    other = journaled(renamed(a_run(), "3f2B"), tmp_path)
    os.truncate(other, 5000)
    assert main(["show", "3f2", str(tmp_path)]) == ExitCode.FAILED
    assert "3f2c.sqlite in" in (said := capsys.readouterr().err)
    assert str(other) in said
    assert main(["show", "3f2c", str(tmp_path)]) == ExitCode.OK


def test_a_uid_that_another_one_goes_on_after_is_found(tmp_path: Path, capsys) -> None:
    for uid in ("abc", "abc.def"):
        journaled(renamed(a_run(), uid), tmp_path)
    for uid in ("abc", "abc.def"):
        assert main(["show", uid, str(tmp_path)]) == ExitCode.OK
        assert f"run        {uid}\n" in capsys.readouterr().out
