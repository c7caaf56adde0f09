"""Checks that read a run back from Tiled as users do, and compare it with the documents that were emitted."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlparse

import numpy
from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
from corpus import Documents
from event_model import unpack_event_page
from named_frames import NamedFrames
from ophyd_async.core import Table

_RESERVED: Final = ("time", "seq_num")


@dataclass
class Node:
    """A node as the server describes it, with its content."""

    path: str
    family: str
    specs: list[Any]
    metadata: dict[str, Any]
    structure: dict[str, Any]
    source: dict[str, Any]
    values: Any = None


@dataclass
class EmittedStream:
    """What the documents say of one stream: its data keys, and its events' internal data."""

    data_keys: dict[str, Any]
    renamed: dict[str, str]
    events: list[dict[str, Any]] = field(default_factory=list)
    datums: bool = False


@dataclass
class EmittedRun:
    """What the documents say of one run."""

    uid: str
    start: dict[str, Any]
    stop: dict[str, Any] | None = None
    streams: dict[str, EmittedStream] = field(default_factory=dict)
    frames: NamedFrames = field(default_factory=NamedFrames)


Reading: TypeAlias = Callable[[Any, Mapping[str, Node], EmittedRun], str]


def runs_of(documents: Documents) -> list[EmittedRun]:
    """The runs that the documents tell of."""
    runs: dict[str, EmittedRun] = {}
    frames = NamedFrames()
    streams: dict[str, EmittedStream] = {}
    for name, document in documents:
        frames.add(name, document)
        if name == "start":
            runs[document["uid"]] = EmittedRun(document["uid"], document, frames=frames)
        elif name == "stop":
            runs[document["run_start"]].stop = document
        elif name == "descriptor":
            renamed = dict(_renamed(document["data_keys"]))
            keys = {renamed.get(key, key): value for key, value in document["data_keys"].items()}
            run = runs[document["run_start"]]
            streams[document["uid"]] = run.streams.setdefault(document["name"], EmittedStream(keys, renamed))
        for event in _events(name, document):
            stream = streams[event["descriptor"]]
            stream.events.append({**event, "data": dict(_internal(event, stream))})
    frames.end()
    return list(runs.values())


def _events(name: str, document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if name == "event":
        yield document
    elif name == "event_page":
        yield from unpack_event_page(document)
    elif name == "bulk_events":
        for events in document.values():
            yield from events


def _renamed(data_keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Other names for those that tables have columns of their own for."""
    for key in data_keys:
        if key in _RESERVED:
            other = f"{key}_"
            while other in data_keys:
                other += "_"
            yield key, other


def _internal(event: Mapping[str, Any], stream: EmittedStream) -> Iterator[tuple[str, Any]]:
    for key, value in event["data"].items():
        if "external" not in stream.data_keys.get(key, {}) or (event.get("filled") or {}).get(key):
            yield stream.renamed.get(key, key), value


# The checks


def values_are_as_emitted(_: Any, nodes: Mapping[str, Node], emitted: EmittedRun) -> str:
    """Every value of every event is in the nodes, at its row, in the order of the events."""
    names = _stored_names(nodes[""])
    for name, stream in emitted.streams.items():
        stored = dict(_stored(nodes, names.get(("", name), name)))
        for key in dict.fromkeys(key for event in stream.events for key in event["data"]):
            place = names.get((name, key), key)
            if place not in stored:
                return f"{name}: {key!r} is not there"
            expected = [event["data"].get(key) for event in stream.events]
            found = _without_rows_for_none(stored[place], expected)
            if not same_reading(plain(expected), plain(found)) and not _same_text(expected, found):
                return f"{name}: {key!r} is {shown(found)}, not {shown(expected)}"
    return ""


def frames_are_those_named(_: Any, nodes: Mapping[str, Node], emitted: EmittedRun) -> str:
    """Every external node has the numbers of the frames that the documents name, in the order of the events."""
    names = _stored_names(nodes[""])
    for name in emitted.streams:
        for key, expected in emitted.frames.of(emitted.uid, name):
            node = nodes.get(f"{names.get(('', name), name)}/{names.get((name, key), key)}")
            if node is None:
                return f"{name}: {key!r} is not there"
            if isinstance(expected, list):
                found: Any = [Path(urlparse(asset["data_uri"]).path) for asset in node.source["assets"]]
            else:
                found = node.values.reshape(-1) if isinstance(node.values, numpy.ndarray) else node.values
            if not same_values(found, expected):
                return f"{name}: {key!r} has {shown(found)}, and the frames named are {shown(expected)}"
    return ""


def _without_rows_for_none(found: Any, expected: list[Any]) -> Any:
    """None in place of the rows of NaN that array nodes have for events without a value."""
    rows = plain(found)
    if len(rows) != len(expected):
        return found
    return [None if value is None and _is_nan(row) else row for row, value in zip(rows, expected, strict=True)]


def _is_nan(row: Any) -> bool:
    return isinstance(row, list) and bool(row) and all(isinstance(item, float) and math.isnan(item) for item in row)


def _same_text(expected: list[Any], found: Any) -> bool:
    """Whether values that have no better place are there as JSON text."""
    if any(isinstance(value, str) for value in expected):
        return False
    try:
        return same_reading(plain(expected), [None if text is None else json.loads(text) for text in found])
    except (TypeError, ValueError):
        return False


def _stored(nodes: Mapping[str, Node], stream: str) -> Iterator[tuple[str, Any]]:
    for path, node in nodes.items():
        parent, _, key = path.rpartition("/")
        if parent == stream and node.family == "table" and not isinstance(node.values, str):
            yield from node.values.items()
        elif parent == stream and node.family != "table":
            yield key, node.values


def _stored_names(run: Node) -> dict[tuple[str, str], str]:
    """Names in Tiled of streams ("", stream) and data keys (stream, key) that a note says are called otherwise."""
    quoted = r"('[^']*'|\".*\")"
    of_key = re.compile(rf"Stream {quoted}: {quoted} is stored as {quoted}, because Tiled")
    of_stream = re.compile(rf"Stream {quoted}() is stored as {quoted}, because Tiled")
    names: dict[tuple[str, str], str] = {}
    for note in run.metadata.get("notes", ()):
        if match := of_key.match(note):
            stream, key, name = map(ast.literal_eval, match.groups())
            names[stream, key] = name
        elif match := of_stream.match(note):
            names["", ast.literal_eval(match.group(1))] = ast.literal_eval(match.group(3))
    return names


def documents_are_as_emitted(run: Any, _: Mapping[str, Node], emitted: EmittedRun) -> str:
    """`run.documents()` gives back the start, the events with their data, and the stop."""
    found = list(run.documents())
    names = [name for name, _ in found]
    if names[0] != "start" or names[-1] != "stop" or found[0][1]["uid"] != emitted.uid:
        return f"documents are {names}"
    if emitted.stop is not None and found[-1][1].get("uid") != emitted.stop["uid"]:
        return "another stop document"
    streams = {document["uid"]: document["name"] for name, document in found if name == "descriptor"}
    if set(streams.values()) != set(emitted.streams):
        return f"streams are {sorted(set(streams.values()))}"
    events = defaultdict(list)
    for name, document in found:
        if name == "event":
            events[streams[document["descriptor"]]].append(document)
    for name, stream in emitted.streams.items():
        problem = _events_differ(events[name], stream.events)
        if problem:
            return f"{name}: {problem}"
    return ""


def _events_differ(found: list[Any], emitted: list[dict[str, Any]]) -> str:
    if len(found) != len(emitted):
        return f"{len(found)} events instead of {len(emitted)}"
    for document, event in zip(found, emitted, strict=True):
        if document["seq_num"] != event["seq_num"] or not math.isclose(document["time"], event["time"]):
            return f"event {event['seq_num']} is number {document['seq_num']}"
        for key, value in event["data"].items():
            if not same_reading(plain(document["data"].get(key)), plain(value)):
                return f"event {event['seq_num']} has {key!r} {shown(document['data'].get(key))}, not {shown(value)}"
    return ""


def streams_can_be_read(run: Any, nodes: Mapping[str, Node], emitted: EmittedRun) -> str:
    """`.read()` of every stream gives a data set with all data keys, a row for each event."""
    names = _stored_names(nodes[""])
    for name, stream in emitted.streams.items():
        sizes = run[names.get(("", name), name)].read().sizes
        events = len(stream.events)
        if events and sizes.get("time", events) != events:
            return f"{name}: {sizes['time']} rows instead of {events}"
    return ""


def v2_can_be_read(run: Any, nodes: Mapping[str, Node], _: EmittedRun) -> str:
    """The same with the interface `.v2`, for one stream."""
    try:
        older = run.v2
        for name in sorted(path for path in nodes if path and "/" not in path)[-1:]:
            older[name].read()
    finally:
        # What `.v2` sets, it sets for all clients that were made from this one.
        run.structure_clients.set("BlueskyRun", lambda: BlueskyRun)
    return ""


def is_valid(run: Any, _nodes: Mapping[str, Node], _emitted: EmittedRun) -> str:
    """`run.validate()` is content."""
    return "" if run.validate(raise_on_error=True) is True else "says False"


READINGS: Final[dict[str, Reading]] = {
    "values": values_are_as_emitted,
    "frames": frames_are_those_named,
    "documents": documents_are_as_emitted,
    "read": streams_can_be_read,
    "v2": v2_can_be_read,
    "validate": is_valid,
}


# Equality


def plain(value: Any) -> Any:
    """A value without NumPy's types, lists for whatever has a length."""
    if isinstance(value, numpy.ndarray | numpy.generic):
        return plain(value.tolist())
    if isinstance(value, Table):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def same_values(one: Any, other: Any) -> bool:
    """Equality, with NaN equal to itself; numbers are equal whatever their types, but for booleans."""
    if isinstance(one, numpy.ndarray) != isinstance(other, numpy.ndarray):
        return False
    if isinstance(one, numpy.ndarray) and isinstance(other, numpy.ndarray):
        inexact = one.dtype.kind in "fc" and other.dtype.kind in "fc"
        return one.shape == other.shape and bool(numpy.array_equal(one, other, equal_nan=inexact))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_values, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_values(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def same_reading(one: Any, other: Any) -> bool:
    """Equality, where None is equal to NaN: the server reads tables by way of pandas."""
    return same_values(_without_nan(one), _without_nan(other))


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def shown(value: Any) -> str:
    """A value on one line of a report."""
    text = " ".join(repr(value).split())
    return text if len(text) < 120 else text[:117] + "..."
