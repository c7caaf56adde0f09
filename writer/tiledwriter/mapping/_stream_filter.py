"""Some streams are not wanted in Tiled; this file tells which, and keeps their documents from the writer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class StreamFilter:
    """Shell-style patterns of stream names: a stream is kept if one of `include` matches and none of `exclude`."""

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def keeps(self, stream: str) -> bool:
        """Whether a stream of this name is to be in Tiled."""
        return _matches(stream, self.include) and not _matches(stream, self.exclude)


class StreamSieve:
    """A `StreamFilter` at work on one run, on the documents as `RunNormalizer` emits them.

    Stream resources pass in any case, since they do not say which stream they belong to: without a stream datum they
    come to nothing.
    """

    def __init__(self, streams: StreamFilter) -> None:
        self._streams = streams
        self._left_out: dict[str, str] = {}  # stream names by descriptor uid

    def keeps(self, name: str, document: Mapping[str, Any]) -> bool:
        """Whether the run's next document goes to the writer."""
        if name == "descriptor" and not self._streams.keeps(document["name"]):
            self._left_out[document["uid"]] = document["name"]
            return False
        return name not in {"event", "stream_datum"} or document["descriptor"] not in self._left_out

    @property
    def notes(self) -> list[str]:
        """For the run's metadata: which streams were left out so far."""
        streams = dict.fromkeys(self._left_out.values())
        return [f"Streams left out by configuration: {', '.join(map(repr, streams))}."] if streams else []


def _matches(stream: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(stream, pattern) for pattern in patterns)
