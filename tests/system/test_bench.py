"""The benchmarks count what they say, and run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "scripts"))

from benchmarks.documents import run_of
from benchmarks.report import Report
from benchmarks.rounds import OURS, Along, Figure, Rounds


def test_sides_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def side(name: str) -> dict[str, float]:
        order.append(name)
        return {"x": float(len(order))}

    values = Rounds({name: lambda name=name: side(name) for name in (OURS, "peer")}).run(2)
    assert order == [OURS, "peer", "peer", OURS, OURS, "peer"]
    assert values == {"x": {OURS: [4.0, 5.0], "peer": [3.0, 6.0]}}


def test_every_round_counts_without_a_warm_up() -> None:
    assert Rounds({OURS: lambda: {"x": 1.0}}).run(2, warm_up=False) == {"x": {OURS: [1.0, 1.0]}}


@pytest.mark.parametrize(
    ("ours", "budget", "more", "kept"),
    [(0.7, 0.8, False, True), (0.9, 0.8, False, False), (12.0, 10.0, True, True), (9.0, 10.0, True, False)],
)
def test_a_budget_bounds_the_ratio_to_the_peer(ours: float, budget: float, *, more: bool, kept: bool) -> None:
    values = {OURS: [2 * ours, 0.0, 99 * ours], "peer": [2.0, 2.0, 2.0]}
    figure = Figure("x", "s", values, budget, "peer", more_is_better=more)
    assert figure.measured == ours
    assert figure.kept is kept
    assert f"{ours:.3g} x peer" in next(figure.lines())
    assert ("NOT KEPT" in next(figure.lines())) is not kept


def test_a_ratio_is_one_of_neighbours() -> None:
    # A machine that is five times slower in the last two rounds, and a peer that is twice as slow in each.
    figure = Figure("x", "s", {OURS: [1.0, 5.0, 5.5], "peer": [2.0, 2.1, 11.0]}, 0.6, "peer")
    assert figure.measured == 0.5
    assert Figure("x", "s", {OURS: [1.0, 5.0, 5.5], "peer": [2.0]}, 0.6, "peer").measured == 2.5
    assert Figure("x", "s", {OURS: [1.0, 4.0, 4.0], "peer": [0.0, 2.0, 2.0]}, 0.6, "peer").measured == 2.0


def test_without_a_peer_it_bounds_ours() -> None:
    assert Figure("x", "us", {OURS: [21.0]}, 20.0).kept is False
    assert Figure("x", "us", {OURS: [21.0]}).kept is None


def a_report() -> Report:
    report = Report()
    report.add("start", Figure("first", "ms", {OURS: [90.0, 110.0, 100.0], "peer": [50.0]}, 1.5, "peer"))
    for runs in (1, 10):
        report.add("memory", Figure("worker", "MiB", {OURS: [20.0]}, 25.0, along=Along("open runs", runs)))
    return report


def test_a_report_is_the_same_when_loaded(tmp_path: Path) -> None:
    report = a_report()
    report.save(tmp_path / "figures.json")
    assert Report.load(tmp_path / "figures.json") == report
    assert report.missed == ["start: first"]
    assert report.verdict() == "3 figures; budgets not kept: 1"


def test_a_benchmark_measured_anew_replaces_its_figures_only() -> None:
    report, newer = a_report(), Report()
    newer.add("start", Figure("first", "ms", {OURS: [1.0]}))
    report.replace("start", newer)
    assert [figure.values for figure in report.figures["start"]] == [{OURS: [1.0]}]
    assert len(report.figures["memory"]) == 2


def test_budgets_of_benchmarks_that_were_not_measured_stay_on_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "budgets.md").write_text(
        "Measured.\n\n| benchmark | what |\n| --- | --- |\n"
        "| slow | a | 1 s | ≤ 2 s | yes |\n| core | old | 1 s | ≤ 2 s | yes |\n"
    )
    report = Report()
    for name in ("core", "new"):
        report.add(name, Figure("b", "s", {OURS: [3.0]}, 2.0))
    report.write_pages(tmp_path)
    lines = (tmp_path / "budgets.md").read_text().splitlines()
    assert lines[0].endswith(". Measured before, perhaps with other versions: slow.")
    assert lines[2:] == [
        "| benchmark | what | measured | budget | kept |",
        "| --- | --- | ---: | ---: | --- |",
        "| slow | a | 1 s | ≤ 2 s | yes |",
        "| core | b | 3 s | ≤ 2 s | no |",
        "| new | b | 3 s | ≤ 2 s | no |",
    ]


def test_pages_are_made_of_a_file_of_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    a_report().save(tmp_path / "figures.json")
    command = [sys.executable, str(ROOT / "scripts/bench.py"), "--report", str(tmp_path / "figures.json")]
    for pages in ("once", "again"):
        done = subprocess.run(
            [*command, "--plots", str(tmp_path / pages)], capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 1, done.stderr  # a budget is not kept
    assert "| first | ms | 100 ± 10 % | 50 ± 0 % |" in (tmp_path / "once/start.md").read_text()
    assert "| worker, 10 open runs | MiB | 20 ± 0 % |" in (tmp_path / "once/memory.md").read_text()
    assert "| start | first | 2 x peer | ≤ 1.5 x peer | no |" in (tmp_path / "once/budgets.md").read_text()
    for plot in ("start.svg", "memory.svg"):
        assert "worker" in (tmp_path / "once/memory.svg").read_text()
        assert (tmp_path / "once" / plot).read_bytes() == (tmp_path / "again" / plot).read_bytes()


def test_the_pages_of_the_documentation_are_there_for_all_benchmarks() -> None:
    from bench import BENCHMARKS, PAGES

    page = PAGES.with_suffix(".md").read_text()
    for name in BENCHMARKS:
        assert f"```{{include}} performance/{name}.md\n```" in page
        assert f"](performance/{name}.svg)" in page
    made = {file.name for file in PAGES.iterdir()}
    assert made == {"budgets.md", *(f"{name}.{kind}" for name in BENCHMARKS for kind in ("md", "svg"))}


def test_jetstream_has_all_that_was_published(tmp_path: Path) -> None:
    pytest.importorskip("nats")
    from benchmarks.jetstream import JetStream

    with JetStream(tmp_path / "nats", always=True) as server:
        assert server.published([run_of(20), run_of(20)]) > 0  # which compares numbers


def test_benchmarks_run_and_write_their_figures(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "core", "growth", "--quick", "--rounds", "1"]
    done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode in (0, 1), done.stderr  # how fast this machine is, is not for a test to say
    report = Report.load(file)
    assert [figure.title for figure in report.figures["core"] if figure.peer] == [
        f"events of {keys} keys, normalizer and run writer" for keys in (5, 50, 500)
    ]
    assert [figure.title for figure in report.figures["growth"]] == [
        f"{leg}, {documents} documents per run"
        for leg in ("callback", "callback, waiting included", "durable", "writing", "core")
        for documents in ("1,000", "10,000")
    ]
    assert all(value > 0 for some in report.figures.values() for figure in some for value in figure.values[OURS])
    assert f"{sum(map(len, report.figures.values()))} figures" in done.stdout
    assert json.loads(file.read_text())["conditions"]["cores"] > 0
