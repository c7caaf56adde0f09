"""The last scalars of a run, for its live plot, from its journal, which is only read.

The work is bounded, however long the run is: descriptors are looked for among the first documents, events among the
last ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tiledbroker import CodecError, JournalError
from tiledbroker.log import Journal, Record, find_run_file

MAX_POINTS: Final = 1000
MAX_SERIES: Final = 8

_HEAD_DOCUMENTS: Final = 200
_TAIL_DOCUMENTS: Final = 3000
_READ_BYTES: Final = 2**23
_MAX_READS: Final = 6
_MAX_STREAMS: Final = 8
_MAX_NAME_CHARACTERS: Final = 200


class NoSuchRun(Exception):
    """Raised when there is no journal of a run."""


class JournalUnreadable(Exception):
    """Raised when a run's journal cannot be read; the message says why."""


def read_scalars(journal_dir: Path, uid: str) -> dict[str, Any]:
    """Return the last scalars of a run by stream.

    Returns
    -------
    dict
        `uid`, `length` (documents in the journal), `streams`: a list of `name`, `x` (`name` and `values`) and `series`
        (a list of `name`, `units` and `values`), with at most `MAX_POINTS` points each; values that are no finite
        number are None. `complete` is False if there are more points or streams than these.

    Raises
    ------
    NoSuchRun
        The directory has no journal of this run.
    JournalUnreadable
        The journal cannot be read, or it is another run's.
    """
    try:
        path = find_run_file(journal_dir, uid)
        if not path.is_file():
            raise NoSuchRun(uid)
        with Journal(path, "inspect", run_uid=uid) as journal:
            head = journal.read(0, _HEAD_DOCUMENTS, _READ_BYTES)
            length = journal.length
            tail = _read_tail(journal, len(head), length)
    except (JournalError, OSError, ValueError) as error:
        raise JournalUnreadable(str(error)) from error
    reader = _ScalarReader()
    for document in _documents_of([*head, *tail]):
        reader.add_document(*document)
    read = len(head) + len(tail)
    return {"uid": uid, "length": length, **reader.result(complete=read == length)}


def _read_tail(journal: Journal, first: int, length: int) -> list[Record]:
    """Return the last documents from `first` on: as many as a few reads of `_READ_BYTES` find to fit."""
    count = min(length - first, _TAIL_DOCUMENTS)
    records: list[Record] = []
    for _ in range(_MAX_READS):
        if count <= 0:
            break
        records = journal.read(length - count, count, _READ_BYTES)
        if len(records) == count:
            break
        # Documents are larger than expected; begin later, so that the newest ones are among those read.
        count = max(1, len(records) * 3 // 4)
    return records


def _documents_of(records: Sequence[Record]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for record in records:
        if record.name in {"start", "descriptor", "event", "event_page"}:
            try:
                yield record.name, record.document()
            except CodecError:
                # The commands name a damaged document; a plot does without it.
                continue


class _Stream:
    """The scalars of one stream."""

    def __init__(self, descriptor: Mapping[str, Any]) -> None:
        self.name = str(descriptor.get("name", ""))[:_MAX_NAME_CHARACTERS]
        keys = _mapping(descriptor.get("data_keys"))
        self.units = {
            key: str(_mapping(data_key).get("units") or "")[:_MAX_NAME_CHARACTERS]
            for key, data_key in keys.items()
            if _is_scalar(_mapping(data_key))
        }
        hints = _mapping(descriptor.get("hints")).values()
        hinted = [field for hint in hints for field in _list(_mapping(hint).get("fields"))]
        self.hinted = [key for key in hinted if isinstance(key, str) and key in self.units]
        self.points: list[tuple[Any, Any, Mapping[str, Any]]] = []

    def columns(self, dimensions: Sequence[str]) -> dict[str, Any]:
        points = self.points[-MAX_POINTS:]
        x = next((key for key in dimensions if key in self.units), None)
        keys = [key for key in dict.fromkeys((*self.hinted, *self.units)) if key != x]
        if len(self.hinted) > (x in self.hinted):
            keys = [key for key in dict.fromkeys(self.hinted) if key != x]
        series = [
            {
                "name": key[:_MAX_NAME_CHARACTERS],
                "units": self.units[key],
                "values": [_number(p[2].get(key)) for p in points],
            }
            for key in keys[:MAX_SERIES]
        ]
        x_values = [_number(p[2].get(x)) for p in points] if x is not None else [_number(p[1]) for p in points]
        x_name = "time" if x is None else x[:_MAX_NAME_CHARACTERS]
        return {"name": self.name, "x": {"name": x_name, "values": x_values}, "series": series}


class _ScalarReader:
    """Collects the scalars of a run, document by document. Documents come from other hosts and can be anything."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}
        self._by_descriptor: dict[str, _Stream] = {}
        self._dimensions: list[str] = []
        self._unknown = False

    def add_document(self, name: str, document: Mapping[str, Any]) -> None:
        if name == "start":
            self._add_start(document)
        elif name == "descriptor":
            self._add_descriptor(document)
        elif name == "event":
            self._add_point(document, document.get("time"), _mapping(document.get("data")))
        else:
            self._add_page(document)

    def result(self, *, complete: bool) -> dict[str, Any]:
        streams = [stream for stream in self._streams.values() if stream.points and stream.units]
        # The stream of the plan first, baseline and monitors after it.
        streams.sort(key=lambda stream: (stream.name != "primary", stream.name == "baseline"))
        few = all(len(stream.points) <= MAX_POINTS for stream in streams) and len(streams) <= _MAX_STREAMS
        columns = [stream.columns(self._dimensions) for stream in streams[:_MAX_STREAMS]]
        return {"streams": columns, "complete": complete and few and not self._unknown}

    def _add_start(self, document: Mapping[str, Any]) -> None:
        for dimension in _list(_mapping(document.get("hints")).get("dimensions")):
            fields = _list(dimension)[:1]
            self._dimensions += [field for field in _list(fields and fields[0]) if isinstance(field, str)]

    def _add_descriptor(self, document: Mapping[str, Any]) -> None:
        stream = _Stream(document)
        # A further descriptor of a stream continues its points.
        known = self._streams.setdefault(stream.name, stream)
        known.units = {**known.units, **stream.units}
        self._by_descriptor[str(document.get("uid"))] = known

    def _add_point(self, document: Mapping[str, Any], time: Any, data: Mapping[str, Any]) -> None:
        stream = self._by_descriptor.get(str(document.get("descriptor")))
        if stream is None:
            self._unknown = True
            return
        stream.points.append((document.get("seq_num"), time, data))

    def _add_page(self, document: Mapping[str, Any]) -> None:
        columns = {key: _list(values) for key, values in _mapping(document.get("data")).items()}
        times = _list(document.get("time"))
        for i in range(max(len(times) - MAX_POINTS, 0), len(times)):
            data = {key: values[i] for key, values in columns.items() if i < len(values)}
            self._add_point(document, times[i], data)


def _is_scalar(data_key: Mapping[str, Any]) -> bool:
    return data_key.get("dtype") in {"number", "integer"} and not data_key.get("shape") and not data_key.get("external")


def _number(value: Any) -> float | None:
    """Return a number that JSON and a plot can show, else None."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    """Return a list or the items of a NumPy array; an empty list for anything else."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return value if isinstance(value, list) else []
