"""Choices of parameters in which any two values come together at least once, in place of all that are possible.

Most faults that depend on parameters depend on one or two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def every_pair(*values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return choices of a value for each parameter, so that any two values of two parameters are in one of them.

    Each choice is the one with most pairs that are still missing, the first of several.
    """
    choices = list(product(*map(range, map(len, values))))
    missing = {pair for choice in choices for pair in _pairs_of(choice)}
    chosen = []
    while missing:
        choice = max(choices, key=lambda choice: len(missing.intersection(_pairs_of(choice))))
        missing.difference_update(_pairs_of(choice))
        chosen.append(choice)
    return [tuple(options[i] for options, i in zip(values, choice, strict=True)) for choice in sorted(chosen)]


def _pairs_of(choice: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the pairs of (parameter, value) in a choice."""
    return list(combinations(enumerate(choice), 2))
