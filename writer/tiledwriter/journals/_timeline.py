"""Timeline of a run from its journal: received documents and history entries in order of time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tiledbroker import CodecError, HistoryEntry, Record, RunReader

from .._plain_text import text_of

_BATCH_DOCUMENTS: Final = 10_000
_SHOWN: Final = ("name", "descriptor", "seq_num", "data_key", "stream_resource", "resource", "exit_status", "plan_name")
_SHOWN_UID_CHARACTERS: Final = 8


class TimelineEntry(NamedTuple):
    """Entry of the timeline.

    Attributes
    ----------
    time
        Unix time in seconds.
    what
        Name of the document, or "*" for an entry of the history.
    details
        Details in one line.
    """

    time: float
    what: str
    details: str


class Timeline:
    """Timeline of a journal that can be followed while the run goes on.

    Parameters
    ----------
    journal
        The run.
    documents
        Number of the latest documents to start with.

    Attributes
    ----------
    damaged
        Number of damaged documents among the entries so far.
    """

    def __init__(self, journal: RunReader, documents: int) -> None:
        self._journal = journal
        self._next = max(0, journal.length - max(documents, 0))
        self._entries = 0
        self.damaged = 0

    @property
    def ended(self) -> bool:
        """True if the run has an outcome, so that no further entries are expected."""
        return self._journal.outcome is not None

    def take_new_entries(self) -> list[TimelineEntry]:
        """Return the entries since the last call; the first call returns all of the history."""
        entries = []
        while records := self._journal.read(self._next, _BATCH_DOCUMENTS):
            entries += [self._entry_of(record) for record in records]
            self._next = records[-1].idx + 1
        history = self._journal.history()
        entries += [_of_entry(entry) for entry in history[self._entries :]]
        self._entries = len(history)
        return sorted(entries, key=lambda entry: entry.time)

    def _entry_of(self, record: Record) -> TimelineEntry:
        try:
            document = record.document()
        except CodecError as error:
            self.damaged += 1
            return TimelineEntry(record.received, record.name, f"{record.idx}  damaged: {error}")
        shown = [f"{key} {_shorten_value(document[key])}" for key in _SHOWN if key in document]
        return TimelineEntry(
            record.received, record.name, "  ".join([f"{record.idx}", *shown, *_describe_extent(document)])
        )


def _shorten_value(value: Any) -> str:
    text = text_of(value)
    return text if len(text) <= 4 * _SHOWN_UID_CHARACTERS else text[:_SHOWN_UID_CHARACTERS]


def _describe_extent(document: Mapping[str, Any]) -> list[str]:
    """Return the range of indices or the number of data keys in a document that has them."""
    if isinstance(document.get("indices"), Mapping):
        return [" to ".join(text_of(document["indices"].get(end)) for end in ("start", "stop"))]
    keys = document.get("data_keys")
    return [f"{len(keys)} data keys"] if isinstance(keys, Mapping) else []


def _of_entry(entry: HistoryEntry) -> TimelineEntry:
    details = {key: value for key, value in entry.detail.items() if key != "traceback"}
    return TimelineEntry(
        entry.time, "*", "  ".join([entry.event, *(f"{key}={value}" for key, value in details.items())])
    )
