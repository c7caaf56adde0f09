"""The acquisition host imports little, and the public names are what they are said to be."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tiledbroker
import tiledwriter

HEAVY = {"tiled", "pyarrow", "pandas", "jsonschema", "numpy", "event_model", "bluesky", "httpx", "pydantic", "psutil"}

ROOTS = {package.__name__: Path(package.__file__).parent for package in (tiledbroker, tiledwriter)}
# The command lines are a room without a door: nobody enters it.
DOORS = [
    ".".join([name, *door.parent.relative_to(root).parts])
    for name, root in ROOTS.items()
    for door in sorted(root.glob("*/**/__init__.py"))
    if door.parent.name != "cli"
]
MODULES = sorted(path for root in ROOTS.values() for path in root.rglob("*.py"))


def modules_loaded_by(statement: str) -> set[str]:
    """Modules that a new interpreter has loaded after `statement`."""
    command = [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules)"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return set(ended.stdout.split())


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


def test_the_mapping_loads_neither_a_client_nor_the_catalog() -> None:
    loaded = modules_loaded_by("import tiledwriter.mapping")
    assert "tiledwriter.mapping._run_writer" in loaded
    assert loaded & {"tiledwriter.catalog", "tiled.client", "httpx", "tenacity", "zmq", "sqlite3"} == set()


def test_what_is_shipped_is_decided_without_sockets_and_files() -> None:
    loaded = modules_loaded_by(
        without_doors("tiledbroker", "tiledbroker.protocol", "tiledbroker.publisher")
        + "import tiledbroker.publisher._session"
    )
    own = {name for name in loaded if name.startswith("tiledbroker.")}
    assert own == {
        "tiledbroker._errors",
        "tiledbroker._outcomes",
        "tiledbroker._wording",
        "tiledbroker.protocol",
        "tiledbroker.protocol.messages",
        "tiledbroker.publisher",
        "tiledbroker.publisher._session",
        "tiledbroker.publisher._shipment",
    }
    assert loaded & {"zmq", "socket", "select", "multiprocessing", "sqlite3", "random", "secrets"} == set()


def without_doors(*packages: str) -> str:
    """Statement after which modules of these packages are loaded without what the packages' doors import."""
    paths = {name: str(ROOTS["tiledbroker"].parent.joinpath(*name.split("."))) for name in packages}
    return (
        "from types import ModuleType; "
        f"sys.modules.update({{name: ModuleType(name) for name in {list(paths)}}}); "
        f"[setattr(sys.modules[name], '__path__', [path]) for name, path in {paths}.items()]; "
    )


def test_listing_runs_loads_nothing_that_an_acquisition_host_does_not_have() -> None:
    loaded = modules_loaded_by("import tiledwriter.cli.journal, tiledwriter.cli._ship, tiledwriter.journals")
    assert "tiledwriter.journals._summary" in loaded
    assert {name.partition(".")[0] for name in loaded} & HEAVY == set()


@pytest.mark.parametrize("door", DOORS)
def test_all_names_of_a_door_are_there(door: str) -> None:
    room = importlib.import_module(door)
    assert len(set(room.__all__)) == len(room.__all__)
    for name in room.__all__:
        assert getattr(room, name) is not None
        assert not name.startswith("_")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_room_is_entered_by_its_door(path: Path) -> None:
    """Other rooms and the files beside the rooms import from a room's package, and from no file in it."""
    entered = [
        f"line {node.lineno}: {target}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (target := absolute(path, node)).partition(".")[0] in ROOTS
        if not may_import(path, target.split("."))
    ]
    assert entered == []


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """The dotted name of the module that a statement imports from."""
    if node.level == 0:
        return node.module or ""
    package = package_of(path)
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def package_of(path: Path) -> list[str]:
    root = next(root for root in ROOTS.values() if path.is_relative_to(root))
    return [root.name, *path.relative_to(root).parts[:-1]]


def may_import(path: Path, parts: list[str]) -> bool:
    """Whether a file may import from a module: one that is not private, or is in its room or in one around it."""
    private = next((number for number, part in enumerate(parts[2:], 2) if part.startswith("_")), None)
    return private is None or package_of(path)[:private] == parts[:private]
