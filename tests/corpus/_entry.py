"""One entry of the corpus: how to make the documents of a run, and how they are to be written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Documents = list[tuple[str, dict[str, Any]]]
Maker = Callable[[Path], Documents]


@dataclass(frozen=True)
class Entry:
    """A kind of run.

    Attributes
    ----------
    name
        Unique, made of words with hyphens.
    description
        What is special about it.
    make
        Called with a directory for files; gives the documents, which are the same each time but for uids and times.
        Runs that are acquired together come together.
    batch_size
        For both writers.
    modern
        The documents are meant to follow the schemas of event-model.
    """

    name: str
    description: str
    make: Maker
    batch_size: int = 10_000
    modern: bool = True

    @property
    def kind(self) -> str:
        """The module that it comes from."""
        return self.make.__module__.rpartition(".")[2]


class Collection:
    """The entries of one module, in the order in which they are defined."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def __call__(self, description: str, *, batch_size: int = 10_000, modern: bool = True) -> Callable[[Maker], Maker]:
        """Take in the function below as an entry that is called like it."""

        def take_in(make: Maker) -> Maker:
            name = make.__name__.replace("_", "-")
            self.entries.append(Entry(name, description, make, batch_size, modern))
            return make

        return take_in
