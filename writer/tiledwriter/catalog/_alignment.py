"""Which row of a table is which expected one, when some are missing, there twice, or out of order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy

from .._findings import Finding, Tally
from ..mapping import Array

_ABSENT: Final = -1


class Alignment:
    """Matches rows by their keys, rows of one key in the order in which they come.

    Parameters
    ----------
    expected, found
        Keys: one row each, in order, of as many numbers as there are key columns.
    required
        How many of the expected rows have to be there.

    Attributes
    ----------
    places
        For each expected row the number of the found one, -1 if there is none.
    """

    def __init__(self, expected: Array, found: Array, required: int) -> None:
        self._expected, self._found, self._required = expected, found, required
        keys = numpy.concatenate([expected, found])
        self._keys, codes = numpy.unique(keys, axis=0, return_inverse=True)
        self._wanted, self._have = numpy.split(codes.reshape(-1), [len(expected)])
        self.places = self._match()

    def _match(self) -> Array:
        wanted = _numbered(self._wanted)
        have = _numbered(self._have)
        places = numpy.full(len(wanted), _ABSENT, numpy.int64)
        if not len(have):
            return places
        combined = numpy.concatenate([wanted, have])
        _, codes = numpy.unique(combined, axis=0, return_inverse=True)
        codes = codes.reshape(-1)
        by_code = numpy.full(int(codes.max()) + 1, _ABSENT, numpy.int64)
        by_code[codes[len(wanted) :]] = numpy.arange(len(have))
        places[:] = by_code[codes[: len(wanted)]]
        return places

    def findings(self, where: str, names: Sequence[str], *, ordered: bool) -> list[Finding]:
        """Rows that are missing, that are there too often, that nobody wrote, and that are out of order."""
        missing, doubled, strange = Tally(), Tally(), Tally()
        for row in numpy.flatnonzero(self.places[: self._required] == _ABSENT).tolist():
            missing.add(row, _named(names, self._expected[row]))
        wanted = numpy.bincount(self._wanted, minlength=len(self._keys))
        have = numpy.bincount(self._have, minlength=len(self._keys))
        for code in numpy.flatnonzero(have > wanted).tolist():
            tally = doubled if wanted[code] else strange
            tally.add(None, found=_named(names, self._keys[code]), times=int(have[code] - wanted[code]))
        return [
            *missing.finding(where, "{} rows are missing"),
            *doubled.finding(where, "{} rows are there too often"),
            *strange.finding(where, "{} rows are there that the journal does not have"),
            *(self._disorder(names).finding(where, "the rows are out of order, at {} places") if ordered else ()),
        ]

    def _disorder(self, names: Sequence[str]) -> Tally:
        """Rows that come after one that they should come before."""
        tally = Tally()
        there = numpy.flatnonzero(self.places != _ABSENT)
        for i in numpy.flatnonzero(numpy.diff(self.places[there]) < 0).tolist():
            after, row = there[i], there[i + 1]
            place = int(self.places[row])
            tally.add(place, f"after {_named(names, self._expected[after])}", _named(names, self._expected[row]))
        return tally


def _numbered(codes: Array) -> Array:
    """Codes, each with how often it came before."""
    order = numpy.argsort(codes, kind="stable")
    ranked = codes[order]
    begins = numpy.flatnonzero(numpy.r_[True, ranked[1:] != ranked[:-1]])[: len(ranked)]
    counts = numpy.diff(numpy.r_[begins, len(ranked)])
    ordinals = numpy.empty(len(codes), numpy.int64)
    ordinals[order] = numpy.arange(len(codes)) - numpy.repeat(begins, counts)
    return numpy.stack([codes, ordinals], axis=1)


def _named(names: Sequence[str], key: Sequence[Any]) -> str:
    return ", ".join(f"{name} {value:.17g}" for name, value in zip(names, key, strict=True))
