"""The kinds of faults there are, and the plan that a seed makes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias, get_args

from tiledwriter.testing import SupervisorProcess

from .site import Seat, Site, Source


@dataclass(frozen=True)
class Planned:
    """A fault of a campaign: when it comes (seconds), and three numbers from 0 to 1 that say how and to whom."""

    number: int
    kind: str
    at: float
    victim: float
    lasting: float
    amount: float

    def seconds(self, least: float, most: float) -> float:
        """How long it lasts."""
        return least + self.lasting * (most - least)

    def seat(self, site: Site) -> Seat:
        """The publisher that it hits."""
        return site.seats[int(self.victim * len(site.seats))]

    def host(self, site: Site) -> SupervisorProcess:
        """The ingest host that it hits."""
        return site.hosts[int(self.victim * len(site.hosts))]


Injection: TypeAlias = Callable[[Site, Planned], str]
"""Injects a fault and heals it; returns what was done, "" if there was nothing that it could be done to."""

KINDS: Final[dict[str, Injection]] = {}
_SOURCES: Final[dict[str, frozenset[Source]]] = {}


def kind(name: str, *sources: Source) -> Callable[[Injection], Injection]:
    """Register a kind of fault of sites with these sources of documents; without any, of all sites."""

    def register(injection: Injection) -> Injection:
        KINDS[name] = injection
        _SOURCES[name] = frozenset(sources or get_args(Source))
        return injection

    return register


def kinds_of(source: Source) -> tuple[str, ...]:
    """The kinds of faults of sites with this source of documents."""
    return tuple(name for name, sources in _SOURCES.items() if source in sources)


def plan(seed: int, kinds: list[str], seconds: float, interval: float) -> Iterator[Planned]:
    """The faults of a campaign: all kinds in turn, shuffled anew each time."""
    chance = random.Random(seed)
    at, number = 0.0, 0
    while True:
        turn = sorted(kinds)
        chance.shuffle(turn)
        for name in turn:
            at += chance.uniform(0.5, 1.5) * interval
            if at >= seconds:
                return
            yield Planned(number, name, at, chance.random(), chance.random(), chance.random())
            number += 1
