"""Plugins are imported once, and again when they were changed."""

from __future__ import annotations

import importlib
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiledwriter.mapping import Plugins
from tiledwriter.worker import _plugin_modules
from tiledwriter.worker._plugin_modules import forget_changed_plugins, preload_plugins


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a module of patches that takes a number from another module."""
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr(_plugin_modules, "_imported", {})
    monkeypatch.syspath_prepend(str(tmp_path))
    directory = tmp_path / f"lab_{uuid.uuid4().hex}"
    directory.mkdir()
    (directory / "__init__.py").touch()
    (directory / "numbers.py").write_text("NUMBER = 1\n")
    (directory / "patches.py").write_text("from .numbers import NUMBER\ndef start(doc): return {**doc, 'n': NUMBER}\n")
    yield directory
    for name in [name for name in sys.modules if name.startswith(directory.name)]:
        del sys.modules[name]


def patched(package: Path) -> int:
    module = importlib.import_module(f"{package.name}.patches")
    return int(module.start({})["n"])


def test_plugins_are_imported_beforehand_and_once(package: Path) -> None:
    plugins = Plugins(patches={"start": f"{package.name}.patches:start"})
    preload_plugins(plugins)
    before = sys.modules[f"{package.name}.patches"]
    forget_changed_plugins(plugins)
    assert sys.modules[f"{package.name}.patches"] is before


@pytest.mark.parametrize("file", ["patches.py", "numbers.py"])
def test_a_change_in_any_file_of_the_package_is_seen(package: Path, file: str) -> None:
    plugins = Plugins(patches={"start": f"{package.name}.patches:start"})
    preload_plugins(plugins)
    (package / file).write_text("NUMBER = 20\ndef start(doc): return {**doc, 'n': NUMBER}\n")
    forget_changed_plugins(plugins)
    assert patched(package) == 20


def test_what_cannot_be_imported_is_left_to_workers(package: Path) -> None:
    plugins = Plugins(patches={"start": f"{package.name}.patches:start"}, modules=("no_such_module",))
    preload_plugins(plugins)
    assert f"{package.name}.patches" in sys.modules


def test_our_own_classes_are_never_forgotten() -> None:
    plugins = Plugins("tiledwriter:RunNormalizer")
    forget_changed_plugins(plugins)
    assert "tiledwriter" in sys.modules
