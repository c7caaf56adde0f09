"""Says what became of each run: what was emitted, what is in its journal, and what Tiled has of that, row by row."""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import numpy
import pyarrow

from tiledbroker import Journal, Record, decode
from tiledbroker._journal import find_run_file

_ATTEMPTS: Final = 20
_PAUSE: Final = 0.25


@dataclass(frozen=True)
class Emitted:
    """A document for which the publisher's callback has returned."""

    name: str
    checksum: int
    time: float


@dataclass(frozen=True)
class Cut:
    """What holds for a run whose spool was cut: so many documents are safe, those of the ingest host among them."""

    safe: int
    readable: bool = True


@dataclass
class Tally:
    """How two sequences compare."""

    expected: int = 0
    found: int = 0
    lost: int = 0
    doubled: int = 0
    disordered: int = 0

    def __iadd__(self, other: Tally) -> Tally:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.disordered)


def compare(expected: Sequence[Hashable], found: Sequence[Hashable]) -> Tally:
    """What of `expected` is missing in `found`, what is there that should not be, and what of the rest is elsewhere."""
    wanted, there = Counter(expected), Counter(found)
    common = wanted & there
    ranks = zip(_only(expected, common), _only(found, common), strict=True)
    return Tally(
        len(expected),
        len(found),
        lost=(wanted - there).total(),
        doubled=(there - wanted).total(),
        disordered=sum(one != other for one, other in ranks),
    )


def _only(items: Iterable[Hashable], allowed: Counter[Hashable]) -> list[Hashable]:
    """The first of each that are allowed."""
    left = Counter(allowed)
    kept = []
    for item in items:
        if left[item]:
            left[item] -= 1
            kept.append(item)
    return kept


@dataclass
class Verdict:
    """What became of one run.

    Attributes
    ----------
    emitted, durable
        Documents that the callback returned from; documents in the journal.
    cut
        Documents of `emitted` that were cut off a spool before they were durable anywhere else.
    documents, rows
        Of documents between callback and journal, of rows (and frames, and start and stop) between journal and Tiled.
    began, ended
        Unix times between which faults could hit the run.
    history
        How often what is in the journal's history.
    """

    run_uid: str
    outcome: str = ""
    emitted: int = 0
    durable: int = 0
    cut: int = 0
    documents: Tally = field(default_factory=Tally)
    rows: Tally = field(default_factory=Tally)
    began: float = 0.0
    ended: float = float("inf")
    problems: list[str] = field(default_factory=list)
    history: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return self.documents.clean and self.rows.clean and not self.problems

    def __str__(self) -> str:
        return (
            f"run {self.run_uid} ({self.outcome or 'no outcome'}): documents {self.documents}, rows {self.rows}; "
            + "; ".join(self.problems)
        )


class Referee:
    """Judges runs by their witness, journals, and what the Tiled server at `uri` has of them."""

    def __init__(self, journal_dir: Path, uri: str, api_key: str) -> None:
        self._journal_dir = journal_dir
        self._api = f"{uri}/api/v1"
        self._http = httpx.Client(headers={"Authorization": f"Apikey {api_key}"}, timeout=60.0)

    def close(self) -> None:
        self._http.close()

    def judge(self, run_uid: str, emitted: Sequence[Emitted], cut: Cut | None = None) -> Verdict:
        """What became of a run, whose spool may have been cut."""
        verdict = Verdict(run_uid, emitted=len(emitted), began=emitted[0].time if emitted else 0.0)
        path = find_run_file(self._journal_dir, run_uid)
        records: list[Record] = []
        if path.exists():
            with closing(Journal(path)) as journal:
                records = list(journal.records())
                verdict.outcome = journal.get("outcome", "")
                reason = journal.get("reason", "")
                history = journal.history()
            verdict.history = dict(Counter(entry.event for entry in history))
            ends = [entry.time for entry in history if entry.event == verdict.outcome]
            verdict.ended = max(ends, default=float("inf"))
            if verdict.outcome == "failed":
                verdict.problems.append(f"it is in quarantine: {reason}")
        verdict.durable = len(records)
        self._judge_documents(verdict, emitted, records, cut)
        self._judge_end(verdict, records, cut)
        for what, wanted, found in self._rows(run_uid, records):
            tally = compare(wanted, found)
            verdict.rows += tally
            if not tally.clean:
                verdict.problems.append(f"{what}: {tally}")
        return verdict

    @staticmethod
    def _judge_documents(
        verdict: Verdict, emitted: Sequence[Emitted], records: Sequence[Record], cut: Cut | None
    ) -> None:
        safe = len(emitted) if cut is None else min(cut.safe, len(emitted))
        verdict.cut = len(emitted) - max(safe, min(len(records), len(emitted)))
        wanted = [(document.name, document.checksum) for document in emitted[: max(safe, len(records))]]
        stored = [(record.name, zlib.crc32(record.body)) for record in records]
        if len(stored) == len(wanted) + 1:
            # Whoever is killed between the callback and the witness has emitted one more than it could write down.
            stored.pop()
        verdict.documents = compare(wanted, stored)
        if not verdict.documents.clean:
            verdict.problems.append(f"documents: {verdict.documents}")

    @staticmethod
    def _judge_end(verdict: Verdict, records: Sequence[Record], cut: Cut | None) -> None:
        stopped = bool(records) and records[-1].name == "stop"
        if not records or verdict.outcome == ("written" if stopped else "interrupted"):
            return
        if not verdict.outcome and not stopped and cut is not None and not cut.readable:
            return  # nobody who could say that the run has ended knows all of it
        if verdict.outcome != "failed":
            verdict.problems.append(f"it has the outcome {verdict.outcome!r}")

    # Rows

    def _rows(self, run_uid: str, records: Sequence[Record]) -> list[tuple[str, list[Hashable], list[Hashable]]]:
        """Each kind of data with what is wanted of it and what Tiled has."""
        if not records:
            return []
        wanted = Wanted(records)
        nodes = self._nodes(run_uid)
        root = nodes.get("", {})
        results = [
            (
                "start and stop",
                [(key, _uid(document)) for key, document in wanted.metadata.items()],
                [(key, _uid(root[key])) for key in ("start", "stop") if root.get(key)],
            )
        ]
        for stream, events in wanted.events.items():
            results += self._events_of(run_uid, stream, events, nodes)
        for (stream, key), frames in wanted.frames.items():
            shape = nodes.get(f"{stream}/{key}", {}).get("shape", [0])
            results.append((f"{stream}/{key}", list(range(frames)), list(range(shape[0]))))
        return results

    def _events_of(
        self, run_uid: str, stream: str, events: Sequence[Mapping[str, Any]], nodes: Mapping[str, Mapping[str, Any]]
    ) -> list[tuple[str, list[Hashable], list[Hashable]]]:
        table = self._table(f"{run_uid}/{stream}/internal") if f"{stream}/internal" in nodes else {}
        keys = list(dict.fromkeys(key for event in events for key in event["data"]))
        columns = ["seq_num", "time", *(key for key in keys if key in table or f"{stream}/{key}" not in nodes)]
        wanted = [
            (event["seq_num"], event["time"], *(_value(event["data"].get(key)) for key in columns[2:]))
            for event in events
        ]
        missing = [None] * len(table.get("seq_num", ()))
        found = list(zip(*(map(_value, table.get(column, missing)) for column in columns), strict=True))
        results: list[tuple[str, list[Hashable], list[Hashable]]] = [(f"{stream}/internal", [*wanted], [*found])]
        for key in keys:
            if key not in columns:
                array = self._array(f"{run_uid}/{stream}/{key}", nodes[f"{stream}/{key}"])
                wanted_rows: list[Hashable] = [_value(event["data"][key]) for event in events]
                results.append((f"{stream}/{key}", wanted_rows, [_value(row) for row in array]))
        return results

    def _nodes(self, run_uid: str) -> dict[str, dict[str, Any]]:
        """By path in the run: the run's metadata, and the structures of all nodes."""
        response = self._get("metadata", run_uid)
        if response.status_code == 404:
            return {}
        nodes = {"": response.json()["data"]["attributes"]["metadata"]}
        below = self._get("search-deep", run_uid, **{"page[limit]": 300}).json()
        for item in below["data"]:
            path = "/".join([*item["attributes"]["ancestors"][1:], item["id"]])
            nodes[path] = item["attributes"]["structure"] or {}
        return nodes

    def _table(self, path: str) -> dict[str, list[Any]]:
        body = self._get("table/full", path, format="application/vnd.apache.arrow.file").content
        return dict(pyarrow.ipc.open_file(body).read_all().to_pydict())

    def _array(self, path: str, structure: Mapping[str, Any]) -> numpy.ndarray[Any, Any]:
        from tiled.structures.array import ArrayStructure

        known = ArrayStructure.from_json(structure)
        body = self._get("array/full", path, format="application/octet-stream").content
        return numpy.frombuffer(body, known.data_type.to_numpy_dtype()).reshape(known.shape)

    def _get(self, endpoint: str, path: str, **params: Any) -> httpx.Response:
        for attempt in range(_ATTEMPTS):
            try:
                response = self._http.get(f"{self._api}/{endpoint}/{quote(path)}", params=params)
                if response.status_code < 400 or response.status_code == 404:
                    return response
                problem = f"{response.status_code}: {response.text[:300]}"
            except httpx.HTTPError as error:
                problem = repr(error)
            time.sleep(_PAUSE * (attempt + 1))
        raise RuntimeError(f"Tiled does not show {endpoint}/{path}: {problem}")


class Wanted:
    """What a journal's documents amount to: start and stop, events by stream, numbers of frames by stream and key."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.metadata: dict[str, Mapping[str, Any]] = {}
        self.events: dict[str, list[Mapping[str, Any]]] = {}
        self.frames: dict[tuple[str, str], int] = {}
        streams: dict[str, str] = {}
        keys: dict[str, str] = {}
        for record in records:
            name, document = record.name, decode(record.body)
            if name in {"start", "stop"}:
                self.metadata[name] = document
            elif name == "descriptor":
                streams[document["uid"]] = document["name"]
            elif name == "stream_resource":
                keys[document["uid"]] = document["data_key"]
            elif name == "event":
                self.events.setdefault(streams[document["descriptor"]], []).append(document)
            elif name == "stream_datum":
                place = (streams[document["descriptor"]], keys[document["stream_resource"]])
                indices = document["indices"]
                self.frames[place] = self.frames.get(place, 0) + indices["stop"] - indices["start"]
            else:
                raise ValueError(f"The referee knows no {name} documents.")


def _uid(document: Mapping[str, Any]) -> str:
    return str(document.get("uid"))


def _value(value: Any) -> Hashable:
    """A value of a row as something that equals its like: numbers as floats, arrays as tuples."""
    if isinstance(value, str) or value is None:
        return value
    if hasattr(value, "__len__"):
        return tuple(numpy.asarray(value, dtype=float).ravel().tolist())
    return float(value)
