"""Every run of the corpus, written by bluesky-tiled-plugins' writer and by ours: what differs is on the list."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from comparison import WRITTEN, Comparison, Report, unmet
from corpus import CORPUS
from differences import LIMITS, RULES
from event_model import DocumentNames, schema_validators

from tiledwriter.testing import TiledServer

ROOT = Path(__file__).parent.parent
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


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def other_comparison(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    """On the other storages; `./scripts/compare --storage S` takes the whole corpus there."""
    directory = tmp_path_factory.mktemp(f"comparison-{request.param}")
    files = directory / "files"
    files.mkdir()
    with TiledServer(directory / "tiled", readable=[files], storage=request.param) as server:
        yield Comparison(server.client(), files, storage=request.param)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", MUST)
def test_difficult_runs_are_written_on_other_storages(name: str, other_comparison: Comparison) -> None:
    report = other_comparison.run(CORPUS[name])
    assert report.problems == []
    assert report.ours == WRITTEN


def test_every_reason_is_needed(reports: dict[str, Report]) -> None:
    if reports.keys() != CORPUS.keys():
        pytest.skip("Only where the whole corpus was compared.")
    assert unmet(reports.values()) == set()


def test_the_corpus_is_large_and_has_what_it_must() -> None:
    assert len(CORPUS) >= 60
    assert set(MUST) <= CORPUS.keys()


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
