"""The configuration is read again: what changes, what is said, and that a broken one changes nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiledbroker.supervisor import DEFAULT_MAX_WORKERS, ServiceChanges, WorkerCommand
from tiledwriter._config import Settings, load_settings
from tiledwriter.cli._reload import CHANGEABLE, ConfigurationReload
from tiledwriter.testing import wait_until

TILED = "tiled: http://localhost:8000\n"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in list(os.environ):
        if name.startswith("TILEDWRITER_"):
            monkeypatch.delenv(name)
    # Reading the configuration again also sets up logging, which these tests read.
    monkeypatch.setattr("tiledwriter._logging.LogOptions.configure", lambda _self, _worker=None: None)
    caplog.set_level(logging.INFO)


class Reloaded:
    """A configuration file, and what comes of reading it again."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "config.yaml"
        self.file.write_text(TILED)
        self.commands: list[Settings] = []
        self.source = self.make_source({})

    def make_source(self, flags: dict[str, Any]) -> ConfigurationReload:
        return ConfigurationReload(self.file, flags, load_settings(self.file, flags), self._make_command)

    def _make_command(self, settings: Settings) -> WorkerCommand:
        self.commands.append(settings)
        return WorkerCommand(print)

    def write(self, text: str) -> ServiceChanges | None:
        """Read another content of the file."""
        self.file.write_text(text)
        self.source.begin()
        wait_until(lambda: not self.source.is_running(), 60, "the configuration is read")
        return self.source.take_changes()


@pytest.fixture
def reloaded(tmp_path: Path) -> Reloaded:
    return Reloaded(tmp_path)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Levels and texts of all lines so far."""
    return lambda: [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def test_changes_are_taken_and_named(reloaded: Reloaded, said: Callable[[], list[str]]) -> None:
    changes = reloaded.write(f"{TILED}min_free: 2MiB\nkeep_written: 14d\nlog_level: debug\nstreams: {{exclude: [x]}}\n")
    assert changes is not None
    assert (changes.min_free, changes.keep_written) == (2 * 2**20, 14 * 86_400)
    options = reloaded.commands[-1].worker_options()
    assert options.writing.streams.exclude == ("x",)
    assert options.logging.level == "DEBUG"
    assert said() == ["INFO The configuration was read again; changed: keep_written, log_level, min_free, streams."]


def test_what_needs_restart_is_named_once_and_stays(reloaded: Reloaded, said: Callable[[], list[str]]) -> None:
    changes = reloaded.write("tiled: http://elsewhere:8000\nmax_workers: 3\nwindow: 1000\npark_after: 5\n")
    assert changes is not None
    settings = reloaded.commands[-1]
    assert settings.worker_options().tiled.uri == "http://localhost:8000"
    assert (settings.park_after, settings.max_workers) == (5.0, DEFAULT_MAX_WORKERS)
    assert said() == [
        "INFO The configuration was read again; changed: park_after.",
        "WARNING Until a restart, these settings stay as they were at the start: max_workers, tiled, window.",
    ]


def test_same_file_changes_nothing(reloaded: Reloaded, said: Callable[[], list[str]]) -> None:
    assert reloaded.write(TILED) is not None
    assert said() == ["INFO The configuration was read again; changed: nothing."]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tiled: [", "line 1: not YAML"),
        (f"{TILED}min_fre: 1\n", "min_fre"),
        (f"{TILED}keep_written: soon\n", "'soon' is not a duration"),
        (f"{TILED}patches: {{start: 'no_such_module:fix'}}\n", "no_such_module"),
        ("", "give either --tiled URI or --profile NAME"),
    ],
)
def test_broken_file_is_one_error(reloaded: Reloaded, said: Callable[[], list[str]], text: str, why: str) -> None:
    assert reloaded.write(text) is None
    (line,) = said()
    assert line.startswith("ERROR The configuration cannot be used, and nothing is changed: ")
    assert why in line
    assert reloaded.commands == []


def test_missing_file_is_one_error(reloaded: Reloaded, said: Callable[[], list[str]]) -> None:
    reloaded.file.unlink()
    reloaded.source.begin()
    wait_until(lambda: not reloaded.source.is_running(), 60, "the configuration is read")
    assert reloaded.source.take_changes() is None
    assert [line.rpartition(": ")[2] for line in said()] == [f"there is no configuration file {reloaded.file}."]


def test_status_gets_the_settings_that_are_effective(reloaded: Reloaded) -> None:
    changes = reloaded.write(f"{TILED}min_free: 5000\nheaders: {{X-Key: secret}}\nmax_workers: 7\n")
    assert changes is not None
    assert (changes.settings["min_free"], changes.settings["headers"]) == (5000, {"X-Key": "***"})
    # Only a restart changes it.
    assert changes.settings["max_workers"] != 7


def test_flags_still_win(reloaded: Reloaded) -> None:
    reloaded.source = reloaded.make_source({"log_level": "WARNING", "curve": None})
    reloaded.write(f"{TILED}log_level: debug\n")
    assert reloaded.commands[-1].log_level == "WARNING"


def test_new_function_of_known_module_is_found(
    reloaded: Reloaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process has imported the module before it was edited."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lab_of_reload.py").write_text("def old(doc):\n    return doc\n")
    assert reloaded.write(f"{TILED}patches: {{start: 'lab_of_reload:old'}}\n") is not None
    __import__("lab_of_reload")
    (tmp_path / "lab_of_reload.py").write_text("def new_one(doc):\n    return doc\n")
    assert reloaded.write(f"{TILED}patches: {{start: 'lab_of_reload:new_one'}}\n") is not None
    assert reloaded.commands[-1].patches == {"start": "lab_of_reload:new_one"}
    assert reloaded.write(f"{TILED}patches: {{start: 'lab_of_reload:old'}}\n") is None


def test_second_request_replaces_first(reloaded: Reloaded) -> None:
    reloaded.source.begin()
    changes = reloaded.write(f"{TILED}keep_written: 90\n")
    assert changes is not None
    assert changes.keep_written == 90


def test_trial_that_hangs_is_given_up(
    reloaded: Reloaded, said: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("tiledwriter.cli._reload._TRIAL_TIMEOUT_SECONDS", 0.0)
    (tmp_path / "lab_that_hangs.py").write_text("import time\ntime.sleep(1000)\n")
    assert reloaded.write(f"{TILED}patches: {{start: 'lab_that_hangs:fix'}}\n") is None
    assert "trying it ended with exit code -9" in said()[0]


def test_changeable_settings_exist() -> None:
    assert set(Settings.model_fields) >= CHANGEABLE
