"""Writes runs with both writers to one server, compares the nodes one by one, and reads them back as users do."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import numpy
import pyarrow
import tiled.client.utils
from bluesky_tiled_plugins.writing.tiled_writer import TiledWriter as BlueskyTiledWriter
from corpus import Documents, Entry
from differences import ABSENT, LIMITS, MISSING, RULES, Difference, Limit, Rule
from readings import READINGS, EmittedRun, Node, Reading, runs_of, same_values, shown
from tiled.structures.array import ArrayStructure
from tiled.structures.table import TableStructure

from tiledwriter import TiledWriter

BLUESKY, OURS = "bluesky", "ours"
WRITTEN: Final = "written"
NOT_TRIED: Final = "not tried"

# What the server makes up for each node, and what follows from the container it is in.
_OF_THE_SERVER: Final = frozenset({"id", "dataset_id", "table_name", "size", "hash_type", "hash_content"})


@dataclass
class Check:
    """What became of reading a run in one way: `problem` is "" if all is well; `bluesky`, the other writer's."""

    name: str
    problem: str = ""
    bluesky: str | None = None
    limit: Limit | None = None


@dataclass
class Report:
    """All that is to be said of one entry of the corpus."""

    entry: Entry
    bluesky: str
    ours: str
    explained: list[tuple[Rule, Difference]] = field(default_factory=list)
    unexplained: list[Difference] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def rules(self) -> Counter[str]:
        """How often each rule was met."""
        return Counter(rule.id for rule, _ in self.explained)

    @property
    def values(self) -> list[tuple[Rule | None, Difference]]:
        """Differences in values, with their rules."""
        known: list[tuple[Rule | None, Difference]] = [*self.explained]
        both = [*known, *((None, difference) for difference in self.unexplained)]
        return [(rule, difference) for rule, difference in both if difference.aspect == "values"]

    @property
    def frames_of_bluesky(self) -> str:
        """Where what the other writer has of files is not what the documents name; "" if it is, or there is no run."""
        return next((check.bluesky for check in self.checks if check.name == "frames" and check.bluesky), "")

    @property
    def problems(self) -> list[str]:
        """What may not be."""
        found = [f"our writer: {self.ours}"] if self.ours != WRITTEN else []
        found += [f"unexplained: {difference}" for difference in self.unexplained]
        if self.frames_of_bluesky and not self.values:
            found.append(f"frames: bluesky-tiled-plugins' {self.frames_of_bluesky}, and no difference says so")
        return found + [
            f"{check.name}: {check.problem} (bluesky-tiled-plugins': {check.bluesky})"
            for check in self.checks
            if check.problem and not check.limit
        ]


class Comparison:
    """Compares runs on one server.

    Parameters
    ----------
    client
        The root container of the server.
    directory
        For the detectors' files; the server must be allowed to read it.
    storage
        Where the server keeps tables.
    writers
        Which writers write; only ours has to be among them.
    """

    def __init__(
        self, client: Any, directory: Path, storage: str = "duckdb", writers: Sequence[str] = (BLUESKY, OURS)
    ) -> None:
        self._storage = storage
        self._http = client.context.http_client
        self._api = str(client.context.api_uri).rstrip("/")
        self._directory = directory
        self._containers = {name: client.create_container(name) for name in writers}

    def run(self, entry: Entry) -> Report:
        """Make the documents of an entry, write them with the writers, compare, and read ours back."""
        directory = self._directory / entry.name
        directory.mkdir()
        documents = entry.make(directory)
        emitted_runs = runs_of(documents)
        outcomes, taken = {}, {}
        for name in self._containers:
            outcomes[name] = self._write(name, entry, documents)
            if outcomes[name] == WRITTEN:
                outcomes[name], taken[name] = self._look(name, emitted_runs)
        report = Report(entry, outcomes.get(BLUESKY, NOT_TRIED), outcomes[OURS])
        differences: list[Difference] = []
        if report.bluesky not in (NOT_TRIED, report.ours):
            differences.append(Difference(entry.name, "", "outcome", report.bluesky, report.ours))
        for emitted in emitted_runs:
            snapshots = {name: nodes[emitted.uid] for name, nodes in taken.items() if outcomes[name] == WRITTEN}
            if len(snapshots) == 2:
                differences += differences_of(entry.name, snapshots[BLUESKY], snapshots[OURS])
            if OURS in snapshots:
                with answers_kept(self._http):
                    report.checks += self._read(entry, emitted, snapshots)
        for difference in (replace(difference, storage=self._storage) for difference in differences):
            rule = next((rule for rule in RULES if rule.explains(difference)), None)
            if rule is None:
                report.unexplained.append(difference)
            else:
                report.explained.append((rule, difference))
        return report

    def _write(self, name: str, entry: Entry, documents: Documents) -> str:
        make: Any = BlueskyTiledWriter if name == BLUESKY else TiledWriter
        with few_attempts(), quiet():
            try:
                writer = make(self._containers[name], batch_size=entry.batch_size)
                for kind, document in copy.deepcopy(documents):
                    writer(kind, document)
            except Exception as error:
                return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return WRITTEN

    def _look(self, name: str, runs: Iterable[EmittedRun]) -> tuple[str, dict[str, dict[str, Node]]]:
        """The outcome, and all nodes by run."""
        try:
            return WRITTEN, {run.uid: self.snapshot(f"{name}/{run.uid}") for run in runs}
        except httpx.HTTPError as error:
            return f"cannot be read: {' '.join(str(error).split())[:300]}", {}

    def snapshot(self, path: str) -> dict[str, Node]:
        """All nodes of a run by their path in it."""
        parts = path.split("/")
        root = self._get("metadata", path).json()["data"]
        below = self._get("search-deep", path, **{"page[limit]": 300, "include_data_sources": True}).json()
        nodes = {"": self._node("", path, root["attributes"])}
        for item in below["data"]:
            key = "/".join([*item["attributes"]["ancestors"][len(parts) :], item["id"]])
            nodes[key] = self._node(key, f"{path}/{key}", item["attributes"])
        if below["links"].get("next"):
            raise ValueError(f"{path} has more than {len(nodes)} nodes.")
        return dict(sorted(nodes.items()))

    def _get(self, endpoint: str, path: str, **params: Any) -> Any:
        with few_attempts():
            for attempt in tiled.client.utils.retry_context():
                with attempt:
                    response = self._http.get(f"{self._api}/{endpoint}/{quote(path)}", params=params)
                    return tiled.client.utils.handle_error(response)
        raise AssertionError

    def _node(self, key: str, path: str, attributes: Mapping[str, Any]) -> Node:
        family, structure = attributes["structure_family"], attributes["structure"] or {}
        sources = attributes.get("data_sources") or [{}]
        specs = [(spec["name"], spec["version"]) for spec in attributes["specs"] or ()]
        node = Node(key, family, specs, attributes["metadata"], structure, sources[0])
        if family in {"array", "table"}:
            try:
                node.values = self._content(node, path)
            except Exception as error:
                node.values = f"cannot be read: {type(error).__name__}"
        return node

    def _content(self, node: Node, path: str) -> Any:
        if node.family == "table":
            body = self._get("table/full", path, format="application/vnd.apache.arrow.file").content
            return pyarrow.ipc.open_file(body).read_all().to_pydict()
        structure = ArrayStructure.from_json(node.structure)
        body = self._get("array/full", path, format="application/octet-stream").content
        return numpy.frombuffer(body, structure.data_type.to_numpy_dtype()).reshape(structure.shape)

    def _read(self, entry: Entry, emitted: EmittedRun, snapshots: Mapping[str, Mapping[str, Node]]) -> Iterator[Check]:
        """Read our run in every way; what fails is tried with the other writer's, too."""
        read_run = cache(lambda name: self._containers[name][emitted.uid])
        for name, check in READINGS.items():
            problem = attempt(check, read_run(OURS), snapshots[OURS], emitted)
            theirs = None
            if name == "frames" and BLUESKY in snapshots:
                # What is to be known of frames is in the snapshot.
                theirs = attempt(check, None, snapshots[BLUESKY], emitted)
            elif problem and BLUESKY in snapshots:
                theirs = attempt(check, read_run(BLUESKY), snapshots[BLUESKY], emitted)
            limit = next(
                (
                    limit
                    for limit in LIMITS
                    if problem and limit.explains(entry.name, self._storage, name, problem, theirs)
                ),
                None,
            )
            yield Check(name, problem, theirs, limit)


def attempt(check: Reading, run: Any, nodes: Mapping[str, Node], emitted: EmittedRun) -> str:
    """The problem that a check finds, or fails with."""
    with few_attempts(), quiet():
        try:
            return check(run, nodes, emitted)
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def answers_kept(http: httpx.Client) -> Iterator[None]:
    """Readers that ask for the same are given the same answer, until something else than a GET is sent."""
    kept: dict[tuple[str, str | None], httpx.Response] = {}
    send = http.send

    def send_once(request: httpx.Request, **options: Any) -> httpx.Response:
        if request.method != "GET":
            kept.clear()
        if request.method != "GET" or options.get("stream"):
            return send(request, **options)
        key = (str(request.url), request.headers.get("Accept"))
        response = kept.get(key) or send(request, **options)
        if response.is_success:
            kept[key] = response
        return response

    vars(http)["send"] = send_once
    try:
        yield
    finally:
        del vars(http)["send"]


@contextmanager
def few_attempts() -> Iterator[None]:
    """A server that answers 500 to what it cannot do is not asked ten times."""
    attempts = tiled.client.utils.TILED_RETRY_ATTEMPTS
    tiled.client.utils.TILED_RETRY_ATTEMPTS = 2
    try:
        yield
    finally:
        tiled.client.utils.TILED_RETRY_ATTEMPTS = attempts


@contextmanager
def quiet() -> Iterator[None]:
    """Both the other writer and the reading client warn of what is compared here anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# What is compared


def differences_of(run: str, bluesky: Mapping[str, Node], ours: Mapping[str, Node]) -> Iterator[Difference]:
    """Every difference of two snapshots of a run."""
    streams = [path for path in ours if path and "/" not in path and path in bluesky]
    parts = {stream: (parts_of(bluesky, stream), parts_of(ours, stream)) for stream in streams}
    moved = {f"{stream}/{key}" for stream, both in parts.items() for key in moved_keys(*both)}
    tables = {path for nodes in (bluesky, ours) for path, node in nodes.items() if node.family == "table"}
    for path in sorted((bluesky.keys() | ours.keys()) - moved):
        if path in bluesky and path in ours:
            for aspect, *values in node_differences(bluesky[path], ours[path]):
                yield Difference(run, path, aspect, *values)
        elif path not in tables:
            families = (nodes[path].family if path in nodes else MISSING for nodes in (bluesky, ours))
            yield Difference(run, path, "node", *families)
    for stream, (one, other) in parts.items():
        if one.tables != other.tables:
            yield Difference(run, stream, "tables", one.tables, other.tables)
        for key in moved_keys(one, other):
            yield Difference(run, f"{stream}:{key}", "place", one.place(key), other.place(key))
        for name, aspect, *values in column_differences(one, other):
            yield Difference(run, f"{stream}:{name}", aspect, *values)


def node_differences(bluesky: Node, ours: Node) -> Iterator[tuple[Any, ...]]:
    """Every difference of two nodes but for tables' columns, and what belongs to them."""
    yield from unequal("family", bluesky.family, ours.family)
    yield from unequal("specs", bluesky.specs, ours.specs)
    yield from unequal("source", source_of(bluesky), source_of(ours))
    if bluesky.family == ours.family == "table":
        same = set(bluesky.structure["columns"]) & set(ours.structure["columns"])
        orders = [[name for name in node.structure["columns"] if name in same] for node in (bluesky, ours)]
        if orders[0] != orders[1]:
            yield "column order", *orders
        yield from unequal("structure.npartitions", bluesky.structure["npartitions"], ours.structure["npartitions"])
        return
    yield from unequal("metadata", bluesky.metadata, ours.metadata)
    if ours.family != "container":
        yield from unequal("structure", bluesky.structure, ours.structure)
    if not same_values(bluesky.values, ours.values):
        yield "values", shown(bluesky.values), shown(ours.values)


def unequal(place: str, bluesky: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    """The places in nested values where they differ."""
    if isinstance(bluesky, Mapping) and isinstance(ours, Mapping) and bluesky.keys() | ours.keys():
        for key in sorted(bluesky.keys() | ours.keys()):
            yield from unequal(f"{place}.{key}", bluesky.get(key, ABSENT), ours.get(key, ABSENT))
    elif not same_values(bluesky, ours):
        yield place, bluesky, ours


def source_of(node: Node) -> dict[str, Any]:
    """A node's data source without what the server makes up."""
    source = {name: value for name, value in node.source.items() if name not in {*_OF_THE_SERVER, "structure"}}
    if "parameters" in source:
        source["parameters"] = {k: v for k, v in source["parameters"].items() if k not in _OF_THE_SERVER}
    external = source.get("management") == "external"
    source["assets"] = [
        {
            name: value
            for name, value in asset.items()
            if name not in _OF_THE_SERVER and (external or name != "data_uri")
        }
        for asset in sorted(source.get("assets") or (), key=lambda asset: asset.get("num") or 0)
    ]
    return source


@dataclass
class StreamColumn:
    """A column of a stream, wherever it is."""

    table: str
    type: str
    values: list[Any] | str


@dataclass
class StreamParts:
    """What a stream's node holds: its tables' columns, what the tables say of data keys, and its other nodes."""

    tables: list[str] = field(default_factory=list)
    columns: dict[str, StreamColumn] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)

    def place(self, key: str) -> str:
        """Where a data key is, and as what."""
        if key in self.columns:
            return f"column {self.columns[key].type}"
        return f"{self.nodes[key].family} node"


def parts_of(nodes: Mapping[str, Node], stream: str) -> StreamParts:
    """The parts of a stream; of a column that is there more often, the later ones are numbered."""
    parts = StreamParts()
    seen: Counter[str] = Counter()
    for path, node in nodes.items():
        parent, _, key = path.rpartition("/")
        if parent == stream and node.family == "table":
            parts.tables.append(key)
            parts.metadata |= node.metadata
            for column in TableStructure.from_json(node.structure).arrow_schema_decoded:
                seen[column.name] += 1
                name = column.name + (f"#{seen[column.name]}" if seen[column.name] > 1 else "")
                values = node.values if isinstance(node.values, str) else node.values[column.name]
                parts.columns[name] = StreamColumn(key, str(column.type), values)
        elif parent == stream:
            parts.nodes[key] = node
    return parts


def moved_keys(one: StreamParts, other: StreamParts) -> list[str]:
    """Data keys that are a column here and a node of their own there."""
    return sorted((one.columns.keys() & other.nodes.keys()) | (one.nodes.keys() & other.columns.keys()))


def column_differences(bluesky: StreamParts, ours: StreamParts) -> Iterator[tuple[Any, ...]]:
    """Every difference of a stream's columns, but for those that are something else on the other side."""
    moved = set(moved_keys(bluesky, ours))
    for name in sorted((bluesky.columns.keys() | ours.columns.keys()) - moved):
        one, other = bluesky.columns.get(name), ours.columns.get(name)
        if one is None or other is None:
            yield name, "column", one.type if one else MISSING, other.type if other else MISSING
            continue
        if one.table != other.table:
            yield name, "table of column", one.table, other.table
        if one.type != other.type:
            yield name, "column type", one.type, other.type
        if not same_values(one.values, other.values):
            yield name, "values", shown(one.values), shown(other.values)
        metadata = [parts.metadata.get(name, {}) for parts in (bluesky, ours)]
        for aspect, *values in unequal("metadata", *metadata):
            yield name, aspect, *values


def unmet(reports: Iterable[Report], storage: str = "duckdb") -> set[str]:
    """Rules and limits that nothing in these reports, of the whole corpus on that storage, needs.

    Those for every storage have to be needed on DuckDB, on which bluesky-tiled-plugins' writer writes most.
    """
    reports = list(reports)
    met = {rule.id for report in reports for rule, _ in report.explained}
    met |= {check.limit.id for report in reports for check in report.checks if check.limit}
    wanted = {storage, None} if storage == "duckdb" else {storage}
    return {reason.id for reason in (*RULES, *LIMITS) if reason.storage in wanted} - met
