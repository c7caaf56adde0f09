"""What the run writer knows of a run's streams, and of the files of their external data keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy

from .._names import StreamNames
from ._array_consolidator import ArrayConsolidator
from ._consolidator import Consolidator
from ._frames import Region
from ._operations import Audit, ColumnDigest, DescribeExternal, ExtendExternal, Operation, UpdateMetadata
from ._tables import InternalData

# A partial flush holds back additions of less than this fraction to data keys with at least `LONG_LIST_ROWS` frames.
LONG_LIST_ROWS: Final = 1_000
SMALL_ADDITION_FRACTION: Final = 1 / 8


@dataclass
class ExternalData:
    """The external files of one data key, and the part of them that Tiled has been sent.

    Attributes
    ----------
    path
        The path of the node.
    mimetype
        The mimetype of the files.
    consolidator
        The consolidator, with all documents so far.
    described
        The descriptor's entry for the data key.
    resources
        The StreamResources, by uid.
    dims
        The names of the dimensions in the stream, or None.
    registered
        The data source with which the node is created.
    reported_rows, reported_assets
        The numbers of rows and of files that Tiled has been sent.
    last_document
        The number, in the stream, of the last document that added frames.
    late
        Whether stream datums came before the documents to which they refer.
    region
        The region that changed since the last flush, or None.
    """

    path: str
    mimetype: str
    consolidator: Consolidator
    described: Mapping[str, Any]
    resources: dict[str, Mapping[str, Any]]
    dims: list[str] | None = None
    registered: dict[str, Any] = field(default_factory=dict)
    reported_rows: int = 0
    reported_assets: int = 0
    last_document: int = 0
    late: bool = False
    region: Region | None = None

    def consume(self, stream_datum: Mapping[str, Any]) -> None:
        """Add the frames of a stream datum; raise DocumentError if Tiled cannot serve them."""
        region = self.consolidator.consume(stream_datum)
        self.region = region if self.region is None else self.region.union(region)

    @property
    def in_order_of_events(self) -> bool:
        """Whether the frames are in the order of the event rows.

        If sequence numbers repeat, the frames are in the order in which their documents arrived. A late document then
        breaks the order of the events.
        """
        return self.consolidator.in_order_of_events and not (self.late and self.consolidator.frames.repeats)

    @property
    def can_be_counted(self) -> bool:
        """Whether equal numbers of frames and events mean one for each: no document names the events of some only."""
        frames = self.consolidator.frames
        return not self.consolidator.contradicts_events and (frames.has_seq_nums or not frames.seq_nums)

    @property
    def seq_nums_digest(self) -> str | None:
        """The digest of the sequence numbers of the frames, by row; None unless they are known for all frames."""
        frames = self.consolidator.frames
        if frames.count != self.consolidator.rows or not frames.has_seq_nums:
            return None
        digest = ColumnDigest()
        for part in frames.seq_nums:
            digest.add_bytes(numpy.arange(part.start, part.stop, dtype=numpy.int64).tobytes())
        return digest.value

    @property
    def takes_ranges(self) -> bool:
        """Whether consecutive datums can be consumed as one."""
        return type(self.consolidator).consume is ArrayConsolidator.consume

    def data_source(self) -> dict[str, Any]:
        """Return the current data source, with the names of dimensions in the stream."""
        source = self.consolidator.data_source()
        if self.dims is None:
            return source
        return {**source, "structure": {**source["structure"], "dims": list(self.dims)}}

    @property
    def shape(self) -> list[int]:
        """The shape of the array; empty for files without a shape."""
        return list(self.consolidator.data_source()["structure"].get("shape") or ())

    @property
    def length(self) -> int:
        """The length of the array; for files without a shape, the number of rows."""
        return next(iter(self.shape), self.consolidator.rows)

    @property
    def pending_rows(self) -> int:
        """The number of frames since the last flush."""
        return self.consolidator.rows - self.reported_rows

    @property
    def is_small_addition(self) -> bool:
        """Whether the new frames are so few, compared with those that Tiled knows, that an update can wait."""
        return self.reported_rows >= LONG_LIST_ROWS and self.pending_rows < self.reported_rows * SMALL_ADDITION_FRACTION

    def flush(self, *, everything: bool) -> list[Operation]:
        """Return the operation for the frames since the last flush; small additions only if `everything` is set."""
        if self.region is None or (self.is_small_addition and not everything):
            return []
        reported, self.reported_rows = self.reported_rows, self.consolidator.rows
        region, self.region = self.region, None
        if reported == self.reported_rows:
            return []
        source = self.data_source()
        known, self.reported_assets = self.reported_assets, len(source["assets"])
        return [ExtendExternal(self.path, reported, self.reported_rows, source, region.offset, region.shape, known)]

    def describe(self) -> Operation:
        """Return the operation that sets the final structure and parameters."""
        return DescribeExternal(self.path, {**self.data_source(), "assets": []})

    def audit(self) -> Operation | None:
        """Return the operation that verifies the number of rows; None for files without rows or shape."""
        shape = self.shape
        return Audit(self.path, shape[0]) if self.reported_rows and shape else None


class Stream:
    """The state of one stream.

    Attributes
    ----------
    name
        The name of the stream.
    path
        The path of its node.
    descriptor
        Its first descriptor.
    data_keys
        The data keys of all its descriptors.
    latest_keys, latest_hints
        The data keys and the hints of its latest descriptor.
    configuration
        The configuration of its first descriptor, with a place for that of all others.
    configured
        The devices and keys of which a descriptor has a configuration.
    internal
        The data in its events.
    names
        The names of nodes, columns and dimensions in the stream.
    external
        The data in external files, by data key.
    left_out
        The data keys whose files are no longer accepted.
    documents
        The number of events and stream datums so far.
    updates
        Metadata of the further descriptors.
    changes
        Changes of the node's metadata that are not reported to Tiled yet.
    """

    def __init__(
        self,
        name: str,
        path: str,
        descriptor: Mapping[str, Any],
        internal: InternalData,
        names: StreamNames,
        *,
        configuration: dict[str, dict[str, Any]],
    ) -> None:
        self.name = name
        self.path = path
        self.descriptor = descriptor
        self.data_keys: dict[str, Any] = dict(descriptor["data_keys"])
        self.latest_keys: Mapping[str, Any] = descriptor["data_keys"]
        self.latest_hints = hints_of(descriptor)
        self.configuration = configuration
        self.configured = configured_keys(configuration)
        self.internal = internal
        self.names = names
        self.external: dict[str, ExternalData] = {}
        self.left_out: set[str] = set()
        self.documents = 0
        self.updates: list[dict[str, Any]] = []
        self.changes: dict[str, Any] = {}

    def flush_changes(self) -> list[Operation]:
        """Return the operations that update the metadata with all changes so far."""
        changes, self.changes = self.changes, {}
        if "_config_updates" in changes:
            changes["_config_updates"] = list(self.updates)
        return [UpdateMetadata(self.path, changes)] if changes else []


def configuration_of(descriptor: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the configuration of a descriptor by device, with a timestamp, if only None, for each value.

    Clients expect one. What is no mapping is left out: it is none for clients either.
    """
    return {device: _complete_part(part) for device, part in _as_mapping(descriptor.get("configuration")).items()}


def _complete_part(part: Any) -> dict[str, Any]:
    complete = dict(_as_mapping(part))
    mappings = {field: _as_mapping(complete.get(field)) for field in ("data", "timestamps", "data_keys")}
    return {**complete, **mappings, "timestamps": {**dict.fromkeys(mappings["data"]), **mappings["timestamps"]}}


def _as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def add_places(
    configuration: Mapping[str, dict[str, Any]], further: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return a configuration with the devices and data keys, but not the values, of a further descriptor's one.

    Clients make a descriptor of the one before it and of the values in its update, for which they need a place.
    """
    places = dict(configuration)
    for device, part in further.items():
        place = places.get(device) or _complete_part({})
        places[device] = {**place, "data_keys": {**part["data_keys"], **place["data_keys"]}}
    return places


def configured_keys(configuration: Mapping[str, Mapping[str, Any]]) -> set[tuple[str, str]]:
    """Return the devices and keys that have a value in a configuration."""
    return {(device, key) for device, part in configuration.items() for key in part["data"]}


def hints_of(descriptor: Mapping[str, Any]) -> Any:
    """Return the hints of a descriptor: whatever it has, as nothing but metadata depends on them; {} for none."""
    hints = descriptor.get("hints")
    return {} if hints is None else hints
