"""What is wrong with a journal, or with what Tiled holds of its run, in words and in numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

import numpy

MAX_EXAMPLES: Final = 3

_MAX_TEXT: Final = 200


class Example(NamedTuple):
    """One place: a row's or document's number, or None; what is expected there, and what was found."""

    row: int | None
    expected: Any = None
    found: Any = None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes
    ----------
    where
        A node below the run, "documents", "history" or the like, or "file".
    problem
        What is wrong, to be read after `where` and `column`.
    column
        Of a table.
    count
        How many rows, values or documents have this problem.
    examples
        The first few of them.
    advice
        What to do about it, if that is known.
    """

    where: str
    problem: str
    column: str | None = None
    count: int = 1
    examples: tuple[Example, ...] = ()
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """In types that JSON has."""
        examples = [{name: plain(value) for name, value in item._asdict().items()} for item in self.examples]
        return {**asdict(self), "examples": examples}

    def lines(self) -> Iterable[str]:
        """For people."""
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
    """Counts one problem, and keeps the first examples."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, row: int | None, expected: Any = None, found: Any = None, *, times: int = 1) -> None:
        """The problem was met again."""
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(Example(row, expected, found))
        self.count += times

    def finding(self, where: str, problem: str, column: str | None = None, advice: str = "") -> list[Finding]:
        """What it amounts to; nothing if it was never met. `{}` in the problem is how often."""
        if not self.count:
            return []
        text = problem.replace("{}", f"{self.count}")
        return [Finding(where, text, column, self.count, tuple(self.examples), advice)]


def plain(value: Any) -> Any:
    """A value in types that JSON has; a long one as the beginning of its text."""
    if isinstance(value, numpy.generic | numpy.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."
