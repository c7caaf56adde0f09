"""Keep the documents of unwanted streams from the run writer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class StreamFilter:
    """Selection of streams by name.

    A stream is kept if its name matches a pattern of `include` and no pattern of `exclude`.

    Attributes
    ----------
    include, exclude
        Case-sensitive shell-style patterns (`fnmatch`).
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def keeps(self, stream: str) -> bool:
        """Return whether a stream of this name is written to Tiled."""
        return _matches_any(stream, self.include) and not _matches_any(stream, self.exclude)


class RunStreamFilter:
    """A `StreamFilter` applied to the documents of one run, as `RunNormalizer` emits them.

    Stream resources always pass because they do not name their stream. A stream resource without stream datums has no
    effect.
    """

    def __init__(self, streams: StreamFilter) -> None:
        self._streams = streams
        self._left_out_by_descriptor: dict[str, str] = {}

    def keeps(self, name: str, document: Mapping[str, Any]) -> bool:
        """Return whether the run's next document goes to the run writer."""
        if name == "descriptor" and not self._streams.keeps(document["name"]):
            self._left_out_by_descriptor[document["uid"]] = document["name"]
            return False
        return name not in {"event", "stream_datum"} or document["descriptor"] not in self._left_out_by_descriptor

    @property
    def notes(self) -> list[str]:
        """The streams left out so far, as notes for the run's metadata."""
        streams = dict.fromkeys(self._left_out_by_descriptor.values())
        return [f"Streams left out by configuration: {', '.join(map(repr, streams))}."] if streams else []


def _matches_any(stream: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(stream, pattern) for pattern in patterns)
