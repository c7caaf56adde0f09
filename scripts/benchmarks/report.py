"""All figures of a run of `scripts/bench`: as a file, as tables, as plots."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .rounds import Figure

PACKAGES = ("bluesky", "bluesky-tiled-plugins", "tiled", "msgspec", "pyzmq")


def conditions() -> dict[str, Any]:
    """What figures depend on, besides the code."""
    return {
        "cores": os.cpu_count(),
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


@dataclass
class Report:
    """Figures by benchmark, and under which conditions they were measured."""

    figures: dict[str, list[Figure]] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=conditions)

    @classmethod
    def load(cls, file: Path) -> Report:
        """What `save` has written."""
        given = json.loads(file.read_text())
        figures = {name: [Figure.from_json(figure) for figure in some] for name, some in given["figures"].items()}
        return cls(figures, given["conditions"])

    def save(self, file: Path) -> None:
        """Write everything as JSON."""
        figures = {name: [figure.as_json() for figure in some] for name, some in self.figures.items()}
        file.write_text(json.dumps({"conditions": self.conditions, "figures": figures}, indent=1) + "\n")

    def add(self, benchmark: str, figure: Figure) -> None:
        """One more."""
        self.figures.setdefault(benchmark, []).append(figure)

    def replace(self, benchmark: str, other: Report) -> None:
        """Take over what another report has of a benchmark."""
        self.figures[benchmark] = other.figures[benchmark]
        self.conditions = other.conditions

    @property
    def missed(self) -> list[str]:
        """Whose budgets are not kept."""
        return [
            f"{name}: {figure.title}" for name, some in self.figures.items() for figure in some if figure.kept is False
        ]

    def verdict(self) -> str:
        """One line for all."""
        return f"{sum(map(len, self.figures.values()))} figures; budgets not kept: {len(self.missed)}"

    def write_pages(self, directory: Path) -> None:
        """A table and a plot of each benchmark, and a table of all budgets, to be included in a page.

        In the directory's table of budgets, the lines of benchmarks that were not measured stay.
        """
        from .plots import plot

        directory.mkdir(parents=True, exist_ok=True)
        for name, figures in self.figures.items():
            (directory / f"{name}.md").write_text("\n".join(table(figures)) + "\n")
            plot(figures, directory / f"{name}.svg")
        page = directory / "budgets.md"
        lines = page.read_text().splitlines() if page.exists() else []
        page.write_text("\n".join(self._budgets(lines)) + "\n")

    def _budgets(self, earlier: Sequence[str]) -> Iterator[str]:
        listed = ", ".join(f"{name} {value}" for name, value in self.conditions.items() if name != "cores")
        # Each line begins with "| benchmark |"; the title and the rule above the lines name none.
        kept = [(line.split(" | ")[0].removeprefix("| "), line) for line in earlier if line.startswith("| ")][2:]
        before = dict.fromkeys(name for name, _ in kept if name not in self.figures)
        note = f" Measured before, perhaps with other versions: {', '.join(before)}." if before else ""
        yield f"Measured on {self.conditions['cores']} cores with {listed}.{note}"
        yield ""
        yield "| benchmark | what | measured | budget | kept |"
        yield "| --- | --- | ---: | ---: | --- |"
        for name in dict.fromkeys([*(name for name, _ in kept), *self.figures]):
            if name not in self.figures:
                yield from (line for of, line in kept if of == name)
            for figure in self.figures.get(name, ()):
                if figure.budget is not None:
                    yield f"| {name} | {figure.title} | {' | '.join(_budget(figure))} |"


def _budget(figure: Figure) -> tuple[str, str, str]:
    """What is measured, its bound, whether it is kept."""
    of = f"x {figure.peer}" if figure.peer else figure.unit
    bound = "≥" if figure.more_is_better else "≤"
    return (
        f"{number(figure.measured)} {of}",
        f"{bound} {number(figure.budget or 0)} {of}",
        "yes" if figure.kept else "no",
    )


def table(figures: Sequence[Figure]) -> Iterator[str]:
    """In Markdown: a line per figure, a column per side."""
    sides = list(dict.fromkeys(side for figure in figures for side in figure.values))
    yield f"| what | unit | {' | '.join(sides)} |"
    yield f"| --- | --- |{' ---: |' * len(sides)}"
    for figure in figures:
        cells = [_cell(figure, side) if side in figure.values else "" for side in sides]
        yield f"| {figure.title} | {figure.unit} | {' | '.join(cells)} |"


def _cell(figure: Figure, side: str) -> str:
    return f"{number(figure.median(side))} ± {100 * figure.spread(side):.0f} %"


def number(value: float) -> str:
    """With three digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
