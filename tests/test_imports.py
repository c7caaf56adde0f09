"""The acquisition host imports little, and the public names are what they are said to be."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import tiledbroker
import tiledwriter

HEAVY = {"tiled", "pyarrow", "pandas", "jsonschema", "numpy", "event_model", "bluesky", "httpx", "pydantic", "psutil"}


def imported_by(statement: str) -> set[str]:
    """Top-level packages that a new interpreter imports for `statement`."""
    command = [sys.executable, "-X", "importtime", "-c", statement]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    modules = [line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")]
    return {module.partition(".")[0] for module in modules}


def test_importing_the_broker_imports_nothing_heavy() -> None:
    imported = imported_by("import tiledbroker")
    assert {"tiledbroker", "zmq", "msgspec"} <= imported
    assert imported & HEAVY == set()
    assert "tiledwriter" not in imported


def test_importing_the_writer_imports_nothing_heavy() -> None:
    imported = imported_by("import tiledwriter")
    assert "tiledwriter" in imported
    assert imported & (HEAVY | {"sqlite_utils", "tenacity"}) == set()


def test_encoding_documents_without_arrays_does_not_import_numpy() -> None:
    statement = "import tiledbroker; tiledbroker.decode(tiledbroker.Encoder().encode({'a': [1.5, 2**70, (len,)]}))"
    assert "numpy" not in imported_by(statement)


@pytest.mark.parametrize("package", [tiledbroker, tiledwriter], ids=lambda package: package.__name__)
def test_public_names_are_sorted_unique_and_there(package: object) -> None:
    names = package.__all__
    assert names == sorted(set(names))
    for name in names:
        assert getattr(package, name) is not None
        assert not name.startswith("_")
    assert set(names) <= set(dir(package))


@pytest.mark.parametrize("package", ["tiledbroker", "tiledwriter"])
def test_a_star_import_gives_the_public_names(package: str) -> None:
    namespace: dict[str, object] = {}
    exec(f"from {package} import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(importlib.import_module(package).__all__)


@pytest.mark.parametrize("name", ["nothing_of_this_name", "RunWriter", "TiledCatalog"])
def test_a_name_that_is_not_public_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(tiledwriter, name)


def test_all_errors_have_one_base() -> None:
    errors = [getattr(tiledbroker, name) for name in tiledbroker.__all__]
    errors = [error for error in errors if isinstance(error, type) and issubclass(error, Exception)]
    assert len(errors) > 8
    assert all(issubclass(error, tiledbroker.BrokerError) for error in errors)


@pytest.mark.parametrize("module", ["_normalizer", "_run_writer"])
def test_the_pure_core_imports_no_client(module: str) -> None:
    statement = (
        f"import sys, tiledwriter.{module}; "
        "print(*{'tiled.client', 'httpx', 'zmq', 'sqlite3', 'tiledwriter._catalog'} & sys.modules.keys())"
    )
    ended = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=True, timeout=30)
    assert ended.stdout.split() == []
