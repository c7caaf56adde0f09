"""What the supervisor says of its settings: `--print-config`, `--print-schema`, and the log lines at start and stop."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from paths import ROOT

from tiledwriter._config import Settings, load_settings
from tiledwriter.cli import supervisor
from tiledwriter.cli._service import _describe_rest
from tiledwriter.cli._settings import config_schema
from tiledwriter.testing import ServerProcess, free_port

REFERENCE = ROOT / "docs" / "reference"
TILED = "http://localhost:8000"
SECRET = "geheimes-wort"


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TILEDWRITER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return what the command prints with these arguments."""

    def run(*arguments: object) -> str:
        assert supervisor.main(list(map(str, arguments))) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration file with mappings, a secret and an odd text."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"tiled: {TILED}\nwindow: 1000\nheaders: {{X-Token: {SECRET}}}\npath_map: {{/a: /1}}\n"
        "streams:\n  exclude: ['a: #b']\nspec_to_mimetype: {SPEC: 'x/y'}\n"
    )
    return path


# --print-config


def test_printed_settings_are_yaml_and_load_to_the_same(
    printed: Callable[..., str], config: Path, tmp_path: Path
) -> None:
    text = printed("--config", config, "--print-config")
    again = tmp_path / "again.yaml"
    again.write_text(text.replace("'***'", SECRET))
    assert load_settings(again, {}).model_dump() == load_settings(config, {}).model_dump()
    assert set(yaml.safe_load(text)) == set(Settings.model_fields)


def test_printed_settings_hide_secrets(printed: Callable[..., str], config: Path) -> None:
    text = printed("--config", config, "--print-config")
    assert SECRET not in text
    assert yaml.safe_load(text)["headers"] == {"X-Token": "***"}


def test_each_printed_setting_has_its_origin(
    printed: Callable[..., str], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEDWRITER_MAX_WORKERS", "3")
    monkeypatch.setenv("TILEDWRITER_WINDOW", "2000")
    monkeypatch.setenv("TILEDWRITER_PATH_MAP", '{"/b": "/2"}')
    text = printed("--config", config, "--log-level", "debug", "--print-config")
    origins = dict(re.findall(r"^(\w+):.*  # (.*)$", text, flags=re.MULTILINE))
    assert origins["tiled"] == f"{config}, line 1"
    assert origins["window"] == "TILEDWRITER_WINDOW"
    assert origins["log_level"] == "--log-level"
    assert origins["max_workers"] == "TILEDWRITER_MAX_WORKERS"
    assert origins["path_map"] == f"TILEDWRITER_PATH_MAP and {config}, line 4"
    assert origins["late_audit"] == "default"
    assert set(origins) == set(Settings.model_fields)


# --print-schema


def test_the_schema_in_the_documentation_is_current(printed: Callable[..., str]) -> None:
    assert json.loads(printed("--print-schema")) == json.loads((REFERENCE / "configuration.schema.json").read_text())


def examples() -> Iterator[Any]:
    for page in (REFERENCE / "configuration.md", ROOT / "docs" / "how-to" / "run-under-systemd.md"):
        for example in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            yield yaml.safe_load(example)


@pytest.mark.parametrize("example", list(examples()))
def test_the_schema_takes_the_examples_of_the_documentation(example: Any) -> None:
    jsonschema_rs.validate(config_schema(), example)


@pytest.mark.parametrize(
    "wrong", [{"max_wrokers": 3}, {"max_workers": 0}, {"log_level": "loud"}, {"streams": {"only": []}}, {"headers": []}]
)
def test_the_schema_refuses_what_the_command_refuses(wrong: Any) -> None:
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(config_schema(), wrong)


def test_the_schema_takes_levels_in_lower_case() -> None:
    jsonschema_rs.validate(config_schema(), {"log_level": "info"})


# At start and at stop


class Service(ServerProcess):
    """A supervisor that has no Tiled to write to."""

    def ready(self) -> bool:
        return "cannot be reached" in self.log.read_text()


def test_a_start_without_tiled_is_one_warning(tmp_path: Path) -> None:
    tiled, listen = f"http://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "--tiled", tiled, "--listen", listen]
    environment = {"TILEDWRITER_HEADERS": json.dumps({"X-Token": SECRET}), "TILEDWRITER_MAX_WORKERS": "7"}
    service = Service([*command, "--journal-dir", str(tmp_path / "journals")], tmp_path / "log", environment)
    with service:
        service.send(signal.SIGTERM)
        assert service.wait(60) == 0
    lines = service.log.read_text().splitlines()
    assert len([line for line in lines if " WARNING " in line]) == 1
    (start,) = [line for line in lines if "Starting tiledwriter" in line]
    (stop,) = [line for line in lines if "Stopped tiledwriter" in line]
    for part in (tiled, str(tmp_path / "journals"), "max_workers=7", listen):
        assert part in start
        assert part in stop
    assert "left: nothing" in stop
    assert SECRET not in service.log.read_text()


def test_the_stop_names_what_is_left() -> None:
    assert _describe_rest({}, surveyed=True) == "nothing"
    rest = _describe_rest({"open": 2, "failed": 1}, surveyed=False)
    assert rest.startswith("3 runs not completely in Tiled (1 failed, 2 open), and journals that could not be ")


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "--print-schema"]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writer)
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 141
