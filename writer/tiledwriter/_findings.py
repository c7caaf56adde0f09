"""Findings: problems of a journal, or of the data that Tiled holds of its run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

import numpy

MAX_EXAMPLES: Final = 3

_MAX_TEXT_CHARACTERS: Final = 200


class Example(NamedTuple):
    """One occurrence of a problem: number of the row or document (or None), the expected and the found value."""

    row: int | None
    expected: Any = None
    found: Any = None


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes
    ----------
    where
        A node below the run, a part of the journal such as "documents" or "history", or "file".
    problem
        The problem, as a predicate to follow `where` and `column`.
    column
        Column of a table, or None.
    count
        Number of rows, values or documents that have this problem.
    examples
        The first few of them.
    advice
        A remedy; "" if none is known.
    """

    where: str
    problem: str
    column: str | None = None
    count: int = 1
    examples: tuple[Example, ...] = ()
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the finding in JSON types."""
        examples = [{name: plain(value) for name, value in item._asdict().items()} for item in self.examples]
        return {**asdict(self), "examples": examples}

    def lines(self) -> Iterable[str]:
        """Yield the finding as lines of text."""
        place = self.where if self.column is None else f"{self.where}, column {self.column!r}"
        yield f"{place}: {self.problem}"
        for row, expected, found in self.examples:
            where = "" if row is None else f"at {row}: "
            compared = "" if expected is None is found else f"{plain(expected)!r} expected, {plain(found)!r} found"
            if where or compared:
                yield f"    {where}{compared}".rstrip(": ")
        if self.advice:
            yield f"    {self.advice}"


@dataclass
class Tally:
    """Counts one problem and keeps the first examples."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, row: int | None, expected: Any = None, found: Any = None, *, times: int = 1) -> None:
        """Count the problem `times` times, with one example."""
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(Example(row, expected, found))
        self.count += times

    def finding(self, where: str, problem: str, column: str | None = None, advice: str = "") -> list[Finding]:
        """Return the finding, or an empty list if the problem did not occur. `{}` in `problem` becomes the count."""
        if not self.count:
            return []
        text = problem.replace("{}", f"{self.count}")
        return [Finding(where, text, column, self.count, tuple(self.examples), advice)]


def plain(value: Any) -> Any:
    """Return a value in JSON types; text longer than `_MAX_TEXT_CHARACTERS` characters is cut."""
    if isinstance(value, numpy.generic | numpy.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_TEXT_CHARACTERS else text[:_MAX_TEXT_CHARACTERS] + "..."
