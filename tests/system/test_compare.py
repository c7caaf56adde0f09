"""Every run of the corpus, written by bluesky-tiled-plugins' writer and by ours: what differs is on the list."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
from comparison import OURS, WRITTEN, Comparison, Report, unmet
from corpus import CORPUS
from differences import LIMITS, RULES
from event_model import DocumentNames, schema_validators
from paths import ROOT
from readings import EmittedRun, Node, frames_are_those_named, runs_of
from warm import run_process

from tiledwriter.testing import Storage, TiledServer

PAGE = ROOT / "docs" / "reference" / "differences.md"

# Runs that bluesky-tiled-plugins' writer fails on and that ours has to write, with every value of theirs.
MUST = (
    "names-that-differ-in-case",
    "integer-then-float",
    "none-then-number",
    "unequal-arrays",
    "nan-in-metadata",
    "large-integer-in-metadata",
    "missing-datum",
    "empty-array",
    "stream-datums-before-their-resource",
    "missing-stream-resource",
    "chunk-shapes-that-do-not-fit",
    "further-data-keys",
    "reserved-name-and-its-substitute",
    "external-names-in-use",
)


# Runs with files of each kind, and those of which only some or others than the first frames are meant. Tables are kept
# in the other storages, files are not: one more storage is enough to see that frames are right beside such tables.
EXTERNAL = (
    "one-file-for-two-streams",
    "one-file-for-two-runs",
    "hdf5-detector-with-dark-image",
    "dropped-and-repeated-frames",
    "points-out-of-order",
    "several-files-for-a-key",
    "root-in-resource-path",
    "directory-without-slash",
    "dimensions-called-time",
    "ad-tiff-files-per-point",
    "npy-seq",
    "npy-seq-for-two-streams",
    "csv-file",
    "csv-file-of-several-datums",
)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    """On a server with storage in DuckDB, which takes all that bluesky-tiled-plugins' writer sends."""
    directory = tmp_path_factory.mktemp("comparison")
    files = directory / "files"
    files.mkdir()
    with TiledServer(directory / "tiled", readable=[files], storage="duckdb") as server:
        yield Comparison(server.client(), files)


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    """Of the runs compared so far."""
    return {}


@pytest.mark.filterwarnings("default")  # other packages warn, each of something else
@pytest.mark.parametrize("name", CORPUS)
def test_every_difference_is_explained(name: str, comparison: Comparison, reports: dict[str, Report]) -> None:
    report = reports[name] = comparison.run(CORPUS[name])
    assert report.problems == []
    assert report.ours == WRITTEN


@pytest.fixture(scope="module")
def comparison_on(server_on: Callable[[Storage], TiledServer], readable: Path) -> Callable[[Storage], Comparison]:
    """Gives that of what our writer alone writes to a storage; `./scripts/compare --storage S` compares both there."""

    @functools.cache
    def comparison(storage: Storage) -> Comparison:
        files = readable / f"comparison-{storage}"
        files.mkdir()
        return Comparison(server_on(storage).client(), files, storage=storage, writers=[OURS])

    return comparison


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("storage", "name"),
    [*(("sqlite", name) for name in [*MUST, *EXTERNAL]), *(("postgresql", name) for name in MUST)],
)
def test_difficult_runs_are_written_on_other_storages(
    storage: Storage, name: str, comparison_on: Callable[[Storage], Comparison]
) -> None:
    report = comparison_on(storage).run(CORPUS[name])
    assert report.problems == []
    assert report.ours == WRITTEN


def test_every_reason_is_needed(reports: dict[str, Report]) -> None:
    if reports.keys() != CORPUS.keys():
        pytest.skip("Only where the whole corpus was compared.")
    assert unmet(reports.values()) == set()


def documented_values() -> set[str]:
    """Names of the reasons why values differ, on the page."""
    section = PAGE.read_text().partition("\n## Differences in values\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([\w-]+)` \|", section, flags=re.MULTILINE))


def test_the_page_has_the_reasons_why_values_differ(reports: dict[str, Report]) -> None:
    assert documented_values() <= {rule.id for rule in RULES}
    met = {rule.id for report in reports.values() for rule, _ in report.values if rule is not None}
    assert met <= documented_values()


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> EmittedRun:
    """Stream primary of this run has frames 1 to 3 of a file, stream dark the first."""
    [run] = runs_of(CORPUS["one-file-for-two-streams"].make(tmp_path_factory.mktemp("files")))
    return run


@pytest.mark.parametrize(("first", "problem"), [(1, ""), (0, "primary: 'cam' has")])
def test_frames_that_the_documents_do_not_name_are_found(emitted: EmittedRun, first: int, problem: str) -> None:
    counted = numpy.arange(4 * 24, dtype="<u2").reshape(4, 4, 6)
    nodes = {"": Node("", "container", [], {}, {}, {})}
    for stream, frames in (("dark", counted[:1]), ("primary", counted[first : first + 3])):
        nodes[f"{stream}/cam"] = Node(f"{stream}/cam", "array", [], {}, {}, {}, frames)
    found = frames_are_those_named(None, nodes, emitted)
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_a_node_that_is_not_there_has_not_the_frames_that_are_named(emitted: EmittedRun) -> None:
    nodes = {"": Node("", "container", [], {}, {}, {})}
    assert "is not there" in frames_are_those_named(None, nodes, emitted)


def test_the_script_says_where_values_differ() -> None:
    command = [sys.executable, ROOT / "scripts" / "compare.py", "--run", "one-file-for-two-streams"]
    done = run_process([*command, "--storage", "sqlite"], timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "values of dark/cam [located-frames]" in done.stdout
    assert "frames of bluesky-tiled-plugins' are not those named: dark: 'cam' has" in done.stdout


def test_the_corpus_is_large_and_has_what_it_must() -> None:
    assert len(CORPUS) >= 60
    assert {*MUST, *EXTERNAL} <= CORPUS.keys()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [name for name, entry in CORPUS.items() if entry.modern])
def test_documents_follow_the_schemas(name: str, tmp_path: Path) -> None:
    for kind, document in CORPUS[name].make(tmp_path):
        if kind != "stream_resource" or "mimetype" in document:
            schema_validators[DocumentNames[kind]].validate(document)


@pytest.mark.parametrize(("heading", "reasons"), [("Differences", RULES), ("Readings", LIMITS)])
def test_the_page_has_the_reasons_of_the_code(heading: str, reasons: tuple[object, ...]) -> None:
    sections = {part.partition("\n")[0]: part for part in PAGE.read_text().split("\n## ")}
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \|$", sections[heading], flags=re.MULTILINE)
    assert rows == [(reason.id, reason.reason) for reason in reasons]  # type: ignore[attr-defined]


def test_identifiers_of_reasons_are_unique() -> None:
    ids = [reason.id for reason in (*RULES, *LIMITS)]
    assert len(ids) == len(set(ids))


def test_the_script_can_be_run() -> None:
    assert os.access(ROOT / "scripts" / "compare", os.X_OK)
