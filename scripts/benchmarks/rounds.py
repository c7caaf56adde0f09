"""Rounds in which ours and its peers take turns, and what comes of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "tiledwriter"

Values = Mapping[str, Sequence[float]]
Side = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Along:
    """Where a figure lies on a line of figures: what is varied, and how much of it this one has."""

    quantity: str
    value: float


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
    along
        Set if there are others of the same `what`.
    """

    what: str
    unit: str
    values: Values
    budget: float | None = None
    peer: str | None = None
    more_is_better: bool = False
    along: Along | None = None

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Figure:
        """The figure that `as_json` made this of."""
        along = given["along"]
        return cls(
            what=given["what"],
            unit=given["unit"],
            values=given["values"],
            budget=given["budget"],
            peer=given["peer"],
            more_is_better=given["more_is_better"],
            along=Along(**along) if along else None,
        )

    @property
    def title(self) -> str:
        """What it is, and where on its line."""
        if self.along is None:
            return self.what
        return f"{self.what}, {self.along.value:,.15g} {self.along.quantity}"

    def median(self, side: str = OURS) -> float:
        return statistics.median(self.values[side])

    def spread(self, side: str) -> float:
        """Half of what lies between the slowest and the fastest round, as a part of the median."""
        values = self.values[side]
        return (max(values) - min(values)) / 2 / abs(self.median(side)) if self.median(side) else 0.0

    @property
    def measured(self) -> float:
        """What the budget is about: the median of ours, or of its ratio to the peer.

        A machine's speed changes by more than what is to be seen, and more slowly than the sides take turns. So ours is
        compared with the peer in each round, if both have a value of each.
        """
        if self.peer is None:
            return self.median()
        ours, theirs = self.values[OURS], self.values[self.peer]
        if len(ours) != len(theirs) or not all(theirs):
            return self.median() / self.median(self.peer)
        return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))

    @property
    def kept(self) -> bool | None:
        """Whether the budget is kept; None if there is none."""
        if self.budget is None:
            return None
        return self.measured >= self.budget if self.more_is_better else self.measured <= self.budget

    @property
    def verdict(self) -> str:
        """The budget, and whether it is kept; "" if there is none."""
        if self.budget is None:
            return ""
        bound = f"{'at least' if self.more_is_better else 'at most'} {self.budget:,.4g}"
        of = f" x {self.peer}" if self.peer else f" {self.unit}"
        return f"{self.measured:,.4g}{of}; budget {bound}: {'kept' if self.kept else 'NOT KEPT'}"

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield f"{self.title:<58} {self.verdict}".rstrip()
        for side in self.values:
            yield f"    {side:<42} {self.median(side):>12,.4g} {self.unit:<14} +-{100 * self.spread(side):.0f} %"

    def as_json(self) -> dict[str, Any]:
        """All of it, with what follows from it."""
        return {
            **asdict(self),
            "medians": {side: self.median(side) for side in self.values},
            "measured": self.measured,
            "kept": self.kept,
        }


@dataclass
class Rounds:
    """Runs each side once per round, in an order that changes from round to round.

    A side returns one value per figure. The first round warms up, and does not count.
    """

    sides: Mapping[str, Side]
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def run(self, rounds: int, *, warm_up: bool = True) -> dict[str, dict[str, list[float]]]:
        """Values by figure and side."""
        names = list(self.sides)
        for number in range(0 if warm_up else 1, rounds + 1):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                for what, value in self.sides[name]().items():
                    if number:
                        self.values.setdefault(what, {}).setdefault(name, []).append(value)
        return {what: {name: by[name] for name in names if name in by} for what, by in self.values.items()}
