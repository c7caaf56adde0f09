"""Rounds in which ours and its peers take turns, and what comes of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "tiledwriter"


@dataclass
class Figure:
    """One thing that was measured.

    Attributes
    ----------
    what
        What it is, with its conditions.
    unit
        Of all values.
    values
        By side: ours under `OURS`, and the peers; one value per round.
    budget
        Bound for the ratio of ours to `peer`, or for ours itself where there is no peer.
    peer
        Whom the ratio is taken with.
    more_is_better
        Whether the budget is a lower bound.
    """

    what: str
    unit: str
    values: Mapping[str, Sequence[float]]
    budget: float | None = None
    peer: str | None = None
    more_is_better: bool = False

    def median(self, side: str = OURS) -> float:
        return statistics.median(self.values[side])

    def spread(self, side: str) -> float:
        """Half of what lies between the slowest and the fastest round, as a part of the median."""
        values = self.values[side]
        return (max(values) - min(values)) / 2 / abs(self.median(side)) if self.median(side) else 0.0

    @property
    def measured(self) -> float:
        """What the budget is about."""
        return self.median() / self.median(self.peer) if self.peer else self.median()

    @property
    def kept(self) -> bool | None:
        """Whether the budget is kept; None if there is none."""
        if self.budget is None:
            return None
        return self.measured >= self.budget if self.more_is_better else self.measured <= self.budget

    def lines(self) -> Iterator[str]:
        verdict = {None: "", True: "kept", False: "NOT KEPT"}[self.kept]
        if self.budget is not None:
            bound = f"{'at least' if self.more_is_better else 'at most'} {self.budget:g}"
            of = f" x {self.peer}" if self.peer else f" {self.unit}"
            verdict = f"{self.measured:.3g}{of}; budget {bound}: {verdict}"
        yield f"{self.what:<58} {verdict}".rstrip()
        for side in self.values:
            yield f"    {side:<42} {self.median(side):>12,.4g} {self.unit:<14} +-{100 * self.spread(side):.0f} %"

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "unit": self.unit,
            "values": {side: list(values) for side, values in self.values.items()},
            "medians": {side: self.median(side) for side in self.values},
            "peer": self.peer,
            "measured": self.measured,
            "budget": self.budget,
            "more is better": self.more_is_better,
            "kept": self.kept,
        }


@dataclass
class Rounds:
    """Runs each side once per round, in an order that changes from round to round.

    A side returns one value per figure. The first round warms up, and does not count.
    """

    sides: Mapping[str, Callable[[], Mapping[str, float]]]
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def run(self, rounds: int) -> dict[str, dict[str, list[float]]]:
        """Values by figure and side."""
        names = list(self.sides)
        for number in range(rounds + 1):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                for what, value in self.sides[name]().items():
                    if number:
                        self.values.setdefault(what, {}).setdefault(name, []).append(value)
        return {what: {name: by[name] for name in names if name in by} for what, by in self.values.items()}
