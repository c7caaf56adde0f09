"""Says what became of each run: what was published, what is in journals, and what Tiled has of that, row by row."""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import httpx
import numpy
import pyarrow

from tiledbroker import HistoryEntry, Journal, JournalError, Record, decode, journal_filename

SETTLED: Final = frozenset({"written", "interrupted"})

_ATTEMPTS: Final = 20
_PAUSE: Final = 0.25
_MORE: Final = "more"  # what a reason says if Tiled has more of a run than its journal
CONTAINER: Final = "elsewhere"  # of the other destination, in the same Tiled

Holdings: TypeAlias = dict[str, Counter[int]]


@dataclass(frozen=True)
class Emitted:
    """A document for which the publisher's callback has returned."""

    name: str
    checksum: int
    time: float


@dataclass(frozen=True)
class Harm:
    """What holds for a run whose logs were harmed, or put back as they had been.

    Attributes
    ----------
    safe
        So many documents have to be durable in the end; None for all.
    readable
        Whether somebody is left who knows that the run has ended.
    damaged
        Whether a bit was flipped in one of its files: what arrives may be a beginning of it, if somebody says so.
    stale
        Whether less is known of it than may be in Tiled: it may fail because Tiled has more.
    """

    safe: int | None = None
    readable: bool = True
    damaged: bool = False
    stale: bool = False

    def __add__(self, other: Harm) -> Harm:
        known = [safe for safe in (self.safe, other.safe) if safe is not None]
        return Harm(
            min(known, default=None),
            self.readable and other.readable,
            self.damaged or other.damaged,
            self.stale or other.stale,
        )


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
        Documents of `emitted` that went with a spool before they were durable anywhere else.
    documents, rows
        Of documents between callback and journal, of rows (and frames, and start and stop) between journal and Tiled.
    removed
        Rows that Tiled had when the run was said to be at its end, and has no longer.
    foreign
        Documents, rows or nodes of the run at a destination that it was not published for.
    damaged
        Whether a bit was flipped in a file of it; what is wrong with it then, `silently_wrong`, is not in the tallies.
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
    removed: int = 0
    foreign: int = 0
    damaged: bool = False
    began: float = 0.0
    ended: float = float("inf")
    problems: list[str] = field(default_factory=list)
    history: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return self.documents.clean and self.rows.clean and not (self.problems or self.removed or self.foreign)

    @property
    def silently_wrong(self) -> bool:
        return self.damaged and not self.clean

    def __str__(self) -> str:
        counted = "".join(f", {count} {name}" for name in ("removed", "foreign") if (count := getattr(self, name)))
        return (
            f"run {self.run_uid} ({self.outcome or 'no outcome'}{', damaged' if self.damaged else ''}): "
            f"documents {self.documents}, rows {self.rows}{counted}; " + "; ".join(self.problems)
        )


@dataclass
class Copy:
    """A run as one journal directory has it; `error` says why it cannot be read as far as it should be."""

    current: bool
    records: list[Record] = field(default_factory=list)
    outcome: str = ""
    reason: str = ""
    history: list[HistoryEntry] = field(default_factory=list)
    error: str = ""

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Of several copies, the highest one says most of the run: one of a host at work, unless one is at its end."""
        if self.outcome in SETTLED:
            return True, len(self.records), self.current
        return False, self.current, len(self.records)

    @property
    def has_less(self) -> bool:
        """Whether it knows, and says, that Tiled has more of the run."""
        return self.outcome == "failed" and _MORE in self.reason.lower()


def journal_path(directory: Path, run_uid: str) -> Path | None:
    """A run's file in a journal directory, or in one below it."""
    name = journal_filename(run_uid)
    if (path := directory / name).exists():
        return path
    return next(iter(directory.glob(f"*/{name}")), None)


class Referee:
    """Judges runs by what was published, their journals, and what the Tiled server at `uri` has of them.

    Parameters
    ----------
    beside
        Journal directories of further ingest hosts at work.
    retired
        Journal directories of ingest hosts that are gone, or that nobody writes from any more.
    refused
        Runs of which somebody said that they cannot go on, and why.
    elsewhere
        The journal directory of the other destination.
    attempts
        To read from Tiled.
    """

    def __init__(
        self,
        journal_dir: Path,
        uri: str,
        api_key: str,
        *,
        beside: Sequence[Path] = (),
        retired: Sequence[Path] = (),
        refused: Mapping[str, str] | None = None,
        elsewhere: Path | None = None,
        attempts: int = _ATTEMPTS,
    ) -> None:
        self._current = [journal_dir, *beside]
        self._journal_dirs = [*self._current, *retired]
        self._refused = refused or {}
        self._elsewhere = elsewhere
        self._attempts = attempts
        self._api = f"{uri}/api/v1"
        # The server closes idle connections, perhaps just when the next request is sent.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(headers={"Authorization": f"Apikey {api_key}"}, timeout=60.0, limits=limits)

    def close(self) -> None:
        self._http.close()

    def judge(
        self,
        run_uid: str,
        emitted: Sequence[Emitted],
        harm: Harm | None = None,
        published: Sequence[tuple[str, bytes]] = (),
    ) -> Verdict:
        """What became of a run, whose logs may have been harmed; then it is compared with what was published."""
        harm = harm or Harm()
        verdict = Verdict(run_uid, emitted=len(emitted), began=emitted[0].time if emitted else 0.0)
        copies = self._copies(run_uid)
        best = max(copies, key=lambda copy: copy.rank, default=Copy(current=False))
        verdict.outcome = best.outcome
        verdict.durable = len(best.records)
        verdict.history = dict(Counter(entry.event for entry in best.history))
        ends = [entry.time for entry in best.history if entry.event == best.outcome]
        verdict.ended = max(ends, default=float("inf"))
        if harm.damaged:
            self._judge_damaged(verdict, emitted, best, harm, published)
        else:
            self._judge_sound(verdict, emitted, best, harm, published)
        for copy in copies:
            if copy is not best and copy.current:
                self._judge_other(verdict, copy, best, harm)
        return verdict

    def _copies(self, run_uid: str) -> list[Copy]:
        """What journal directories have of a run, those in use first."""
        copies = []
        for directory in self._journal_dirs:
            if (path := journal_path(directory, run_uid)) is not None:
                copy = Copy(current=directory in self._current)
                copies.append(copy)
                try:
                    with closing(Journal(path)) as journal:
                        copy.outcome = str(journal.get("outcome", ""))
                        copy.reason = str(journal.get("reason", ""))
                        copy.history = journal.history()
                        copy.records.extend(journal.records())
                except (JournalError, OSError, sqlite3.Error, ValueError) as error:
                    copy.error = f"{type(error).__name__}: {error}"
        return copies

    # Runs that are as they were written

    def _judge_sound(
        self,
        verdict: Verdict,
        emitted: Sequence[Emitted],
        best: Copy,
        harm: Harm,
        published: Sequence[tuple[str, bytes]],
    ) -> None:
        refusal = self._refused.get(verdict.run_uid, "")
        excused = harm.stale and (best.has_less or _MORE in refusal.lower())
        if best.error:
            verdict.problems.append(f"its journal cannot be read: {best.error}")
        if best.outcome == "failed" and not excused:
            verdict.problems.append(f"it is in quarantine: {best.reason}")
        self._judge_documents(verdict, emitted, best.records, 0 if excused else harm.safe)
        if not excused:
            self._judge_end(verdict, best, harm)
        # Both logs of it may have been taken away, so that nobody can go on with it.
        is_gone = not best.current and not harm.readable
        if (harm.stale or is_gone) and best.outcome not in SETTLED:
            self._judge_beginning(verdict, published)
            return
        for what, wanted, found in self._rows(verdict.run_uid, best.records):
            tally = compare(wanted, found)
            verdict.rows += tally
            if not tally.clean:
                verdict.problems.append(f"{what}: {tally}")

    @staticmethod
    def _judge_documents(
        verdict: Verdict, emitted: Sequence[Emitted], records: Sequence[Record], required: int | None
    ) -> None:
        safe = len(emitted) if required is None else min(required, len(emitted))
        verdict.cut = len(emitted) - max(safe, min(len(records), len(emitted)))
        wanted = [(document.name, document.checksum) for document in emitted[: max(safe, len(records))]]
        stored = [(record.name, zlib.crc32(record.body)) for record in records]
        if len(stored) == len(wanted) + 1:
            # Whoever is killed between the callback and the witness has emitted one more than it could write down.
            stored.pop()
        verdict.documents = compare(wanted, stored)
        if not verdict.documents.clean:
            verdict.problems.append(f"documents: {verdict.documents}")

    def _judge_end(self, verdict: Verdict, best: Copy, harm: Harm) -> None:
        records = best.records
        if not verdict.outcome and self._refused.get(verdict.run_uid):
            return  # its publisher says that it has not all of the run any more
        if not verdict.outcome and not best.current and harm.stale:
            return  # older copies of all logs were put back: nobody at work knows of the run
        stopped = bool(records) and records[-1].name == "stop"
        if not records or verdict.outcome == ("written" if stopped else "interrupted"):
            return
        if not verdict.outcome and not stopped and not harm.readable:
            return  # nobody who could say that the run has ended knows all of it
        if verdict.outcome != "failed":
            verdict.problems.append(f"it has the outcome {verdict.outcome!r}")

    @staticmethod
    def _judge_other(verdict: Verdict, copy: Copy, best: Copy, harm: Harm) -> None:
        """The journal in use, where one of a host that is gone says more of the run."""
        if copy.outcome in SETTLED and len(copy.records) < len(best.records):
            verdict.problems.append(
                f"it is {copy.outcome} with {len(copy.records)} documents where another host had more"
            )
        elif copy.outcome == "failed" and not copy.has_less and not (harm.damaged and copy.reason):
            verdict.problems.append(f"it is in quarantine at the host that is back: {copy.reason}")

    # Runs that may be a beginning of themselves

    def _judge_beginning(self, verdict: Verdict, published: Sequence[tuple[str, bytes]]) -> None:
        """What Tiled has of each kind of data has to be a beginning of what was published."""
        for what, wanted, found in self._rows(verdict.run_uid, _records(published), partial=True):
            tally = compare(wanted[: len(found)], found)
            verdict.rows += tally
            if not tally.clean:
                verdict.problems.append(f"{what}: {tally}, which is no beginning of what was published")

    def _judge_damaged(
        self,
        verdict: Verdict,
        emitted: Sequence[Emitted],
        best: Copy,
        harm: Harm,
        published: Sequence[tuple[str, bytes]],
    ) -> None:
        """Whole, or a beginning of which somebody says that it is no more."""
        verdict.damaged = True
        # A record of the journal itself that does not prove itself is what the fault has done, and ends what counts.
        sound = takewhile(lambda record: zlib.crc32(record.body) == record.crc, best.records)
        stored = [(record.name, record.crc) for record in sound]
        if stored != [(name, zlib.crc32(body)) for name, body in published[: len(stored)]]:
            verdict.problems.append(
                f"the {len(stored)} documents of its journal are no beginning of what was published"
            )
        safe = len(emitted) if harm.safe is None else min(harm.safe, len(emitted))
        if best.outcome == "interrupted" and len(stored) == safe - 1:
            safe -= 1  # the last record of a log may as well be one that a dying process could not finish
        whole = self._has_whole(verdict, published, safe)
        told = best.error or self._refused.get(verdict.run_uid) or (best.outcome == "failed" and best.reason)
        # Nor does anybody know more than what older copies of the logs have, once these were put back.
        nobody_knows = (not best.outcome and not harm.readable) or (harm.stale and best.outcome == "interrupted")
        if not whole and best.outcome == "written":
            verdict.problems.append("it is said to be written, and is not whole")
        elif not (whole or told or nobody_knows):
            verdict.problems.append(f"it is not whole, and nobody says so: the outcome is {best.outcome!r}")

    def _has_whole(self, verdict: Verdict, published: Sequence[tuple[str, bytes]], safe: int) -> bool:
        """Whether Tiled has what so many documents amount to; what is no beginning of all of them is a problem."""
        certain = _records(published[:safe])
        at_least = {what: len(wanted) for what, wanted, _ in self._rows(verdict.run_uid, certain, partial=True)}
        whole = True
        for what, wanted, found in self._rows(verdict.run_uid, _records(published), partial=True):
            verdict.rows += Tally(len(wanted), len(found))
            whole = whole and len(found) >= at_least.get(what, 0)
            if found != wanted[: len(found)]:
                tally = compare(wanted[: len(found)], found)
                verdict.problems.append(f"{what}: {tally}, which is no beginning of what was published")
        return whole

    # What Tiled had before

    def holdings(self, run_uid: str, published: Sequence[tuple[str, bytes]]) -> Holdings:
        """What Tiled has of what was published of a run, by kind of data; each row as a number."""
        return {
            what: Counter(map(hash, found)) & Counter(map(hash, wanted))
            for what, wanted, found in self._rows(run_uid, _records(published), partial=True)
        }

    # Destinations

    def foreign(self, run_uid: str) -> int:
        """Documents, and a node, of a run at the other destination."""
        return len(self._at_elsewhere(run_uid)) + self._is_node(f"{CONTAINER}/{run_uid}")

    def judge_away(self, run_uid: str, emitted: Sequence[Emitted], kept: int | None) -> Verdict:
        """What became of a run that was published for the other destination; `kept` documents are in the spool yet.

        None: nobody has to know.
        """
        verdict = Verdict(run_uid, "elsewhere", len(emitted), began=emitted[0].time if emitted else 0.0)
        copies = self._copies(run_uid)
        verdict.foreign = sum(len(copy.records) for copy in copies) + self._is_node(run_uid)
        records = self._at_elsewhere(run_uid)
        verdict.durable = len(records)
        wanted = [(document.name, document.checksum) for document in emitted[: len(records)]]
        found = [(record.name, zlib.crc32(record.body)) for record in records[: len(emitted)]]
        verdict.documents = compare(wanted, found)
        if kept is not None:
            verdict.documents.lost += max(0, len(emitted) - max(len(records), kept))
        return verdict

    def _at_elsewhere(self, run_uid: str) -> list[Record]:
        path = None if self._elsewhere is None else journal_path(self._elsewhere, run_uid)
        if path is None:
            return []
        with closing(Journal(path)) as journal:
            return list(journal.records())

    def _is_node(self, path: str) -> bool:
        return self._get("metadata", path).status_code == 200

    # Rows

    def _rows(
        self, run_uid: str, records: Sequence[Record], *, partial: bool = False
    ) -> list[tuple[str, list[Hashable], list[Hashable]]]:
        """Each kind of data with what is wanted of it and what Tiled has.

        `partial`: of a run that was not written to its end, for which not all nodes may be there.
        """
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
            results += self._events_of(run_uid, stream, events, nodes, partial=partial)
        for (stream, key), frames in wanted.frames.items():
            shape = nodes.get(f"{stream}/{key}", {}).get("shape", [0])
            results.append((f"{stream}/{key}", list(range(frames)), list(range(shape[0]))))
        return results

    def _events_of(
        self,
        run_uid: str,
        stream: str,
        events: Sequence[Mapping[str, Any]],
        nodes: Mapping[str, Mapping[str, Any]],
        *,
        partial: bool,
    ) -> list[tuple[str, list[Hashable], list[Hashable]]]:
        table = self._table(f"{run_uid}/{stream}/internal") if f"{stream}/internal" in nodes else {}
        keys = list(dict.fromkeys(key for event in events for key in event["data"]))
        apart = [key for key in keys if key not in table and (partial or f"{stream}/{key}" in nodes)]
        columns = ["seq_num", "time", *(key for key in keys if key not in apart)]
        wanted = [
            (event["seq_num"], event["time"], *(_value(event["data"].get(key)) for key in columns[2:]))
            for event in events
        ]
        missing = [None] * len(table.get("seq_num", ()))
        found = list(zip(*(map(_value, table.get(column, missing)) for column in columns), strict=True))
        results: list[tuple[str, list[Hashable], list[Hashable]]] = [(f"{stream}/internal", [*wanted], [*found])]
        for key in apart:
            path = f"{stream}/{key}"
            array = self._array(f"{run_uid}/{path}", nodes[path]) if path in nodes else ()
            wanted_rows: list[Hashable] = [_value(event["data"][key]) for event in events]
            found_rows = [_value(row) for row in array]
            results.append((path, wanted_rows, _written(found_rows) if partial else found_rows))
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
        if 0 in known.shape:
            # Tiled answers 500: it cannot serialize an array without values.
            return numpy.empty(known.shape, known.data_type.to_numpy_dtype())
        body = self._get("array/full", path, format="application/octet-stream").content
        return numpy.frombuffer(body, known.data_type.to_numpy_dtype()).reshape(known.shape)

    def _get(self, endpoint: str, path: str, **params: Any) -> httpx.Response:
        for attempt in range(self._attempts):
            try:
                response = self._http.get(f"{self._api}/{endpoint}/{quote(path)}", params=params)
                if response.status_code < 400 or response.status_code == 404:
                    return response
                problem = f"{response.status_code}: {response.text[:300]}"
            except httpx.HTTPError as error:
                problem = repr(error)
            time.sleep(_PAUSE * (attempt + 1) if attempt + 1 < self._attempts else 0)
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


def removed(before: Holdings, now: Holdings) -> int:
    """How many rows are not there any more."""
    return sum((rows - now.get(what, Counter())).total() for what, rows in before.items())


def _records(published: Sequence[tuple[str, bytes]]) -> list[Record]:
    return [Record(idx, name, 0.0, zlib.crc32(body), body) for idx, (name, body) in enumerate(published)]


def _written(rows: list[Hashable]) -> list[Hashable]:
    """Without the zeros at the end of an array that has been made, and not been filled; nothing published is zero."""
    end = len(rows)
    while end and isinstance(rows[end - 1], tuple) and not any(rows[end - 1]):  # type: ignore[arg-type]
        end -= 1
    return rows[:end]


def _uid(document: Mapping[str, Any]) -> str:
    return str(document.get("uid"))


def _value(value: Any) -> Hashable:
    """A value of a row as something that equals its like: numbers as floats, arrays as tuples."""
    if isinstance(value, str) or value is None:
        return value
    if hasattr(value, "__len__"):
        return tuple(numpy.asarray(value, dtype=float).ravel().tolist())
    return float(value)
