"""Match the rows of a table to the expected rows when some are missing, duplicated or out of order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy

from .._findings import Finding, Tally
from ..mapping import Array

_ABSENT: Final = -1


class Alignment:
    """Match of expected and found rows by key; rows with equal keys are matched in order of occurrence.

    Parameters
    ----------
    expected, found
        Keys of the rows in row order, shape (rows, key columns).
    required
        Number of leading expected rows that must be present.

    Attributes
    ----------
    places
        Index of the matching found row for each expected row, -1 if there is none.
    """

    def __init__(self, expected: Array, found: Array, required: int) -> None:
        self._expected, self._found, self._required = expected, found, required
        keys = numpy.concatenate([expected, found])
        self._keys, codes = numpy.unique(keys, axis=0, return_inverse=True)
        self._wanted, self._have = numpy.split(codes.reshape(-1), [len(expected)])
        self.places = self._match_rows()

    def _match_rows(self) -> Array:
        wanted = _number_occurrences(self._wanted)
        have = _number_occurrences(self._have)
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
        """Return findings for missing, duplicated, unexpected and, if `ordered`, out-of-order rows.

        Parameters
        ----------
        where
            The node's path below the run.
        names
            Names of the key columns.
        ordered
            Report rows that are out of order.
        """
        missing, doubled, strange = Tally(), Tally(), Tally()
        for row in numpy.flatnonzero(self.places[: self._required] == _ABSENT).tolist():
            missing.add(row, _format_key(names, self._expected[row]))
        wanted = numpy.bincount(self._wanted, minlength=len(self._keys))
        have = numpy.bincount(self._have, minlength=len(self._keys))
        for code in numpy.flatnonzero(have > wanted).tolist():
            tally = doubled if wanted[code] else strange
            tally.add(None, found=_format_key(names, self._keys[code]), times=int(have[code] - wanted[code]))
        return [
            *missing.finding(where, "{} rows are missing"),
            *doubled.finding(where, "{} rows are there too often"),
            *strange.finding(where, "{} rows are there that the journal does not have"),
            *(
                self._misordered_rows(names).finding(where, "the rows are out of order, at {} places")
                if ordered
                else ()
            ),
        ]

    def _misordered_rows(self, names: Sequence[str]) -> Tally:
        """Return a tally of the rows that follow a row that they should precede."""
        tally = Tally()
        there = numpy.flatnonzero(self.places != _ABSENT)
        for i in numpy.flatnonzero(numpy.diff(self.places[there]) < 0).tolist():
            after, row = there[i], there[i + 1]
            place = int(self.places[row])
            tally.add(
                place, f"after {_format_key(names, self._expected[after])}", _format_key(names, self._expected[row])
            )
        return tally


def _number_occurrences(codes: Array) -> Array:
    """Return each code with the number of its earlier occurrences, shape (codes, 2)."""
    order = numpy.argsort(codes, kind="stable")
    ranked = codes[order]
    begins = numpy.flatnonzero(numpy.r_[True, ranked[1:] != ranked[:-1]])[: len(ranked)]
    counts = numpy.diff(numpy.r_[begins, len(ranked)])
    ordinals = numpy.empty(len(codes), numpy.int64)
    ordinals[order] = numpy.arange(len(codes)) - numpy.repeat(begins, counts)
    return numpy.stack([codes, ordinals], axis=1)


def _format_key(names: Sequence[str], key: Sequence[Any]) -> str:
    return ", ".join(f"{name} {value:.17g}" for name, value in zip(names, key, strict=True))
