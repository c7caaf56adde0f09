"""The benchmarks count what they say, and run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))

from benchmarks.rounds import OURS, Figure, Rounds  # noqa: E402


def test_sides_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def side(name: str) -> dict[str, float]:
        order.append(name)
        return {"x": float(len(order))}

    values = Rounds({name: lambda name=name: side(name) for name in (OURS, "peer")}).run(2)
    assert order == [OURS, "peer", "peer", OURS, OURS, "peer"]
    assert values == {"x": {OURS: [4.0, 5.0], "peer": [3.0, 6.0]}}


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


def test_without_a_peer_it_bounds_ours() -> None:
    assert Figure("x", "us", {OURS: [21.0]}, 20.0).kept is False
    assert Figure("x", "us", {OURS: [21.0]}).kept is None


def test_a_benchmark_runs_and_writes_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "core", "--quick", "--rounds", "1"]
    done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode in (0, 1), done.stderr  # how fast this machine is, is not for a test to say
    figures = json.loads(file.read_text())
    assert [figure["what"] for figure in figures if figure["peer"]] == [
        f"core: events of {keys} keys, normalizer and run writer" for keys in (5, 50, 500)
    ]
    assert all(value > 0 for figure in figures for value in figure["medians"].values())
    assert f"{len(figures)} figures" in done.stdout
