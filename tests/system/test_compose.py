"""The files for Docker Compose are what their readers take, as far as can be told without Docker."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import HOW_TO
from tiled.config import parse_configs

from tiledwriter._config import load_settings
from tiledwriter.cli import supervisor

COMPOSE = HOW_TO / "compose"
SECRETS = {"POSTGRES_PASSWORD": "secret", "TILED_API_KEY": "key", "DETECTOR_FILES": "/data"}


@pytest.fixture
def services() -> dict[str, Any]:
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]


def test_compose_takes_its_file() -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "compose", "version"], check=False).returncode:
        pytest.skip("Docker Compose is not installed")
    command = ["docker", "compose", "--file", str(COMPOSE / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, env={**os.environ, **SECRETS}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tiled_takes_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert "postgresql://tiled:secret@postgresql:5432/tiled" in str(parse_configs(COMPOSE / "tiled.yaml"))


def test_the_parts_are_told_the_same(services: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TILEDWRITER_")]:
        monkeypatch.delenv(name)
    settings = load_settings(COMPOSE / "config.yaml", {})
    volumes = [volume.split(":") for volume in services["supervisor"]["volumes"]]
    inside = {target for _, target, *_ in volumes}
    assert {str(settings.journal_dir), str(settings.curve)} <= inside
    assert services["supervisor"]["ports"] == [f"{settings.listen.rpartition(':')[2]}:5579"]
    assert settings.tiled == "http://tiled:8000"
    assert services["tiled"]["command"][-1] == "8000"
    readable = yaml.safe_load((COMPOSE / "tiled.yaml").read_text())["catalog"]["readable_storage"]
    assert readable == [SECRETS["DETECTOR_FILES"]]
    arguments = supervisor.parser().parse_args(services["supervisor"]["command"][1:])
    assert str(arguments.config) in inside


def test_files_that_are_mounted_exist(services: dict[str, Any]) -> None:
    mounted = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    assert all((COMPOSE / name).is_file() for name in mounted if name.startswith("./"))
    build = services["supervisor"]["build"]
    context = Path(COMPOSE / build["context"]).resolve()
    assert (context / "pyproject.toml").is_file()
    assert (context / build["dockerfile"]).is_file()
