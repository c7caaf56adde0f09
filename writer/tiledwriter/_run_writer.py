"""The fold: modern documents of one run in, Tiled operations out. No I/O, no clock, no chance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ._alike import AlikeDocuments
from ._consolidators import ArrayConsolidator, Consolidator, Patch, consolidator_for
from ._errors import DocumentError
from ._json import to_json
from ._names import node_key, run_key
from ._operations import (
    Audit,
    CloseStream,
    CreateContainer,
    ExtendExternal,
    Operation,
    RegisterExternal,
    UpdateMetadata,
)
from ._tables import InternalData

MAX_ARRAY_SIZE: Final = 16
MAX_PENDING: Final = 64 * 2**20  # bytes of arrays of one stream, beyond which they are to be flushed
RUN_SPEC: Final = ("BlueskyRun", "3.0")
STREAM_SPECS: Final = (("BlueskyEventStream", "3.0"), ("composite", None))

_NOT_METADATA: Final = frozenset({"name", "object_keys", "run_start"})


@dataclass
class ExternalData:
    """One data key's external files, and what of them Tiled was told."""

    path: str
    consolidator: Consolidator
    resources: set[str]
    told: int = 0
    patch: Patch | None = None

    def consume(self, stream_datum: Mapping[str, Any]) -> None:
        patch = self.consolidator.consume(stream_datum)
        self.patch = patch if self.patch is None else self.patch.union(patch)

    @property
    def only_counts(self) -> bool:
        """Whether of its datums only the number of rows matters, and that they follow each other."""
        return type(self.consolidator).consume is ArrayConsolidator.consume

    def flush(self) -> list[Operation]:
        if self.patch is None:
            return []
        told, self.told = self.told, self.consolidator.rows
        patch, self.patch = self.patch, None
        source = self.consolidator.data_source()
        return [ExtendExternal(self.path, told, self.told, source, patch.offset, patch.shape)]

    def audit(self) -> Operation | None:
        """How many frames Tiled was told of; nothing for files without a shape."""
        shape = self.consolidator.data_source()["structure"].get("shape")
        return Audit(self.path, shape[0]) if self.told and shape else None


class Stream:
    """One stream: its data keys, internal data, and external data by key."""

    def __init__(
        self,
        path: str,
        descriptor: Mapping[str, Any],
        internal: InternalData,
        external: dict[str, ExternalData],
    ) -> None:
        self.path = path
        self.descriptor = descriptor
        self.internal = internal
        self.external = external
        self.updates: list[dict[str, Any]] = []


class RunWriter:
    """Turns the documents of one run, as `RunNormalizer` emits them, into operations.

    Structure (nodes, metadata) comes from each call, rows from `flush`: so a flood of events becomes few requests.
    The operations' effect does not depend on when `flush` is called, but for the chunks of array nodes, which are as
    long as the first batch.

    Parameters
    ----------
    max_array_size
        Arrays in events of up to this many numbers become list columns, larger ones array nodes.
    guessed_types
        `(stream, data key)` pairs whose NumPy type was derived from their JSON type; the normalizer keeps them.
    consolidators
        Consolidator classes by mimetype, in addition to those that come with this package.
    column_types
        Column types by `(stream, data key)` that an earlier attempt has shown to be needed, see `too_narrow`.

    Attributes
    ----------
    notes
        What could not be represented as it was, for the run's metadata.
    crowded
        Whether it is time to `flush`: arrays that wait, or the room for those that are missing, take much memory.
    """

    def __init__(
        self,
        *,
        max_array_size: int = MAX_ARRAY_SIZE,
        guessed_types: Collection[tuple[str, str]] = frozenset(),
        consolidators: Mapping[str, type[Consolidator]] | None = None,
        column_types: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        self.notes: list[str] = []
        self.crowded = False
        self._max_array_size = max_array_size
        self._guessed_types = guessed_types
        self._consolidators = consolidators
        self._column_types = column_types or {}
        self._path = ""
        self._access_tags: tuple[str, ...] | None = None
        self._streams: dict[str, Stream] = {}
        self._stream_of: dict[str, Stream] = {}  # by descriptor uid
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._handlers: dict[str, Callable[[Mapping[str, Any]], list[Operation]]] = {
            "start": self._start,
            "descriptor": self._descriptor,
            "event": self._event,
            "stream_resource": self._stream_resource,
            "stream_datum": self._stream_datum,
            "stop": self._stop,
        }

    def __call__(self, name: str, document: Mapping[str, Any]) -> list[Operation]:
        """Take in one document.

        Raises
        ------
        DocumentError
            The document cannot be understood.
        """
        handler = self._handlers.get(name)
        if handler is None:
            raise DocumentError(f"RunWriter takes no {name!r} documents; run them through RunNormalizer first.")
        try:
            return handler(document)
        except KeyError as error:
            raise DocumentError(
                f"{name} document {document.get('uid', '')!r} lacks or refers to unknown {error}."
            ) from error

    def takes_alike(self, name: str, document: Mapping[str, Any]) -> bool:
        """Whether documents that differ from this one, which came last, in values only can be given to `add_alike`."""
        stream = self._stream_of[document["descriptor"]]
        return stream.internal.takes_alike if name == "event" else self._external_of(stream, document).only_counts

    def add_alike(self, name: str, model: Mapping[str, Any], documents: AlikeDocuments) -> int:
        """Take in the first of documents that differ from a model in values only; how many that were."""
        stream = self._stream_of[model["descriptor"]]
        if name == "event":
            stream.internal.add_alike(documents)
            return documents.count
        starts, stops = documents.numbers("indices", "start"), documents.numbers("indices", "stop")
        if stops[0] < starts[0]:
            return 0
        # As one datum, as long as each begins where the one before ends.
        follows = (starts[1:] == stops[:-1]) & (stops[1:] >= starts[1:])
        count = documents.count if follows.all() else int(follows.argmin()) + 1
        indices = {"start": starts[0].item(), "stop": stops[count - 1].item()}
        self._external_of(stream, model).consume({**model, "indices": indices})
        return count

    def _external_of(self, stream: Stream, stream_datum: Mapping[str, Any]) -> ExternalData:
        """What a datum belongs to of which there were others before."""
        return stream.external[self._resources[stream_datum["stream_resource"]]["data_key"]]

    def flush(self) -> list[Operation]:
        """Operations for all events and datums since the last flush."""
        self.crowded = False
        operations: list[Operation] = []
        for stream in self._streams.values():
            operations += stream.internal.flush()
            for external in stream.external.values():
                operations += external.flush()
        return operations

    def abandon(self) -> list[Operation]:
        """Operations that end a run which has no stop document."""
        return [*self.flush(), *self._audits(), *self._close()]

    @property
    def too_narrow(self) -> dict[tuple[str, str], str]:
        """Types that table columns would need to hold all values flushed so far, by `(stream, data key)`.

        Values that did not fit were left empty. Whoever has all documents can fold them anew with these as
        `column_types`.
        """
        return {
            (name, key): needed
            for name, stream in self._streams.items()
            for key, needed in stream.internal.too_narrow.items()
        }

    def note(self, text: str) -> None:
        """Add to the notes, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _start(self, document: Mapping[str, Any]) -> list[Operation]:
        start = dict(document)
        self._path = run_key(start["uid"])
        if self._path != start["uid"]:
            self.note(f"The run is stored as {self._path!r}, as Tiled does not take its uid.")
        tags = start.pop("tiled_access_tags", None)
        self._access_tags = None if tags is None else tuple(tags)
        specs = tuple(_spec(spec) for spec in start.pop("tiled_specs", None) or ())
        metadata = {"start": to_json(start, self.note, "start")}
        return [CreateContainer(self._path, metadata, (*specs, RUN_SPEC), self._access_tags, ("start", "uid"))]

    def _descriptor(self, document: Mapping[str, Any]) -> list[Operation]:
        name = document["name"]
        metadata = {key: value for key, value in document.items() if key not in _NOT_METADATA}
        metadata = to_json(metadata, self.note, f"descriptor {name!r}")
        if name in self._streams:
            return self._reconfigure(self._streams[name], document, metadata)
        path = f"{self._path}/{self._free_key(name)}"
        external: dict[str, ExternalData] = {}
        internal = InternalData(
            path,
            document["data_keys"],
            guessed={key for stream, key in self._guessed_types if stream == name},
            max_array_size=self._max_array_size,
            column_types={key: kind for (stream, key), kind in self._column_types.items() if stream == name},
            external=external.keys(),
            access_tags=self._access_tags,
            note=self.note,
        )
        stream = Stream(path, document, internal, external)
        self._streams[name] = self._stream_of[document["uid"]] = stream
        return [CreateContainer(path, metadata, STREAM_SPECS, self._access_tags, ("uid",))]

    def _free_key(self, stream: str) -> str:
        """The key of a stream's node: its name, if Tiled takes that and no other stream has it."""
        key = node_key(stream)
        while any(other.path == f"{self._path}/{key}" for other in self._streams.values()):
            key += "_"
        if key != stream:
            self.note(f"Stream {stream!r} is stored as {key!r}, as Tiled does not take that name here.")
        return key

    def _reconfigure(self, stream: Stream, document: Mapping[str, Any], metadata: dict[str, Any]) -> list[Operation]:
        """A further descriptor of a stream tells that its configuration has changed."""
        self._stream_of[document["uid"]] = stream
        update = {key: metadata[key] for key in ("uid", "time", "configuration") if metadata.get(key)}
        stream.updates.append(update)
        return [UpdateMetadata(stream.path, {"_config_updates": list(stream.updates)})]

    def _event(self, document: Mapping[str, Any]) -> list[Operation]:
        internal = self._stream_of[document["descriptor"]].internal
        internal.add(document)
        self.crowded = self.crowded or internal.pending_bytes > MAX_PENDING
        return []

    def _stream_resource(self, document: Mapping[str, Any]) -> list[Operation]:
        self._resources[document["uid"]] = document
        return []

    def _stream_datum(self, document: Mapping[str, Any]) -> list[Operation]:
        stream = self._stream_of[document["descriptor"]]
        resource = self._resources[document["stream_resource"]]
        operations: list[Operation] = []
        external = stream.external.get(resource["data_key"])
        if external is None:
            external, operations = self._register(stream, resource)
        elif resource["uid"] not in external.resources:
            external.consolidator.add_resource(resource)
            external.resources.add(resource["uid"])
        external.consume(document)
        return operations

    def _register(self, stream: Stream, resource: Mapping[str, Any]) -> tuple[ExternalData, list[Operation]]:
        key = resource["data_key"]
        consolidator = consolidator_for(resource, stream.descriptor, self._consolidators)
        name = stream.internal.free_node_key(key)
        external = ExternalData(f"{stream.path}/{name}", consolidator, {resource["uid"]})
        stream.external[key] = external
        return external, [RegisterExternal(external.path, consolidator.data_source(), {}, self._access_tags)]

    def _stop(self, document: Mapping[str, Any]) -> list[Operation]:
        operations = [*self.flush(), *self._audits()]
        for stream in self._streams.values():
            stream.internal.report()
            for external in stream.external.values():
                for text in external.consolidator.notes:
                    self.note(text)
                if external.consolidator.metadata:
                    metadata = to_json(external.consolidator.metadata, self.note, external.path)
                    operations.append(UpdateMetadata(external.path, metadata))
        metadata = {"stop": to_json(document, self.note, "stop")}
        if self.notes:
            metadata["notes"] = list(self.notes)
        return [*operations, UpdateMetadata(self._path, metadata), *self._close()]

    def _audits(self) -> list[Operation]:
        return [
            audit
            for stream in self._streams.values()
            for audit in [*stream.internal.audits(), *(external.audit() for external in stream.external.values())]
            if audit is not None
        ]

    def _close(self) -> list[Operation]:
        paths: list[str] = []
        for stream in self._streams.values():
            paths += stream.internal.paths
            paths += [external.path for external in stream.external.values()]
            paths.append(stream.path)
        return [CloseStream(path) for path in [*paths, self._path]]


def _spec(spec: Any) -> tuple[str, str | None]:
    return (spec, None) if isinstance(spec, str) else (spec["name"], spec.get("version"))
