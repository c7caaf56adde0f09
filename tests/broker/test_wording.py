"""Messages are whole sentences, and the commands in them work as they are given."""

from __future__ import annotations

import shlex

import pytest

from tiledbroker._errors import RunNotWritten
from tiledbroker._wording import as_sentence, format_run_command
from tiledbroker.supervisor import RunStatus, commands_for_failed

DIRECTORY = "/srv/my journals"


def failed_run(uid: str, journal: str, *, unusable: bool = False) -> RunStatus:
    facts = {"scan_id": None, "plan": None, "since": None, "publisher": None, "client": "", "durable": 0}
    more = {"written": None, "ended": False, "waits_for": None, "reason": "bad", "worker": None, "deaths": 0}
    return RunStatus(uid=uid, state="failed", journal=journal, unusable=unusable, **facts, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "sentence"), [("no", "no."), ("no. ", "no."), ("why?", "why?"), ("`x`.", "`x`.")])
def test_a_sentence_has_one_full_stop(text: str, sentence: str) -> None:
    assert as_sentence(text) == sentence


def test_commands_name_run_and_directory() -> None:
    commands = dict(commands_for_failed(failed_run("abc", f"{DIRECTORY}/abc.sqlite"), DIRECTORY))
    assert list(commands.values()) == [
        "tiledwriter-journal show abc '/srv/my journals'",
        "tiledwriter-journal retry abc '/srv/my journals'",
    ]


def test_a_journal_that_cannot_be_read_is_verified() -> None:
    run = failed_run("abc", f"{DIRECTORY}/abc.sqlite", unusable=True)
    assert [command for _, command in commands_for_failed(run, DIRECTORY)] == [
        "tiledwriter-journal verify abc '/srv/my journals'"
    ]


@pytest.mark.parametrize("uid", ["--all", "a; rm -rf /", "x\ny", "../../etc", "$(id)", "'"])
def test_commands_for_a_hostile_uid_name_its_file(uid: str) -> None:
    run = failed_run(uid, f"{DIRECTORY}/sha256-00.sqlite")
    for _, command in commands_for_failed(run, DIRECTORY):
        assert shlex.split(command)[2:] == [f"{DIRECTORY}/sha256-00.sqlite"]


def test_a_directory_is_named_so_that_it_is_found_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert format_run_command("show", "abc", "journals/abc.sqlite", "journals").endswith(" /journals")


def test_a_uid_that_looks_like_an_option_is_none() -> None:
    assert "`tiledwriter-journal show -- --all DIR`" in str(RunNotWritten("--all", "bad"))


def test_a_run_that_is_not_shipped_is_looked_for_in_its_spool() -> None:
    text = str(RunNotWritten("abc", "it is damaged.", spool_dir="/var/my spool"))
    assert "it is damaged. More on this host" in text
    assert "`tiledwriter-journal ls --spool '/var/my spool'`" in text
