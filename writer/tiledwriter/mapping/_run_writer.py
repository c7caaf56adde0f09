"""The fold: modern documents of one run in, Tiled operations out. No I/O, no clock, no chance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .._errors import DocumentError
from .._json import to_json
from .._names import StreamNames, node_key, run_key
from ._access_tags import as_tags
from ._alike import AlikeDocuments
from ._consolidators import AnnouncedFrames, ArrayConsolidator, Consolidator, Patch, consolidator_for
from ._operations import (
    Audit,
    CloseStream,
    CreateContainer,
    DescribeExternal,
    ExtendExternal,
    Operation,
    RegisterExternal,
    RemoveNode,
    UpdateMetadata,
)
from ._tables import InternalData

MAX_ARRAY_SIZE: Final = 16
MAX_PENDING: Final = 64 * 2**20  # bytes of arrays of one stream, beyond which they are to be flushed
LONG_LIST: Final = 1_000  # frames
SMALL_ADDITION: Final = 1 / 8  # of a long list
RUN_SPEC: Final = ("BlueskyRun", "3.0")
STREAM_SPECS: Final = (("BlueskyEventStream", "3.0"), ("composite", None))

_LAYOUT: Final = ("shape", "dtype_numpy")
_NOT_METADATA: Final = frozenset({"name", "object_keys", "run_start"})


@dataclass
class ExternalData:
    """One data key's external files, and what of them Tiled was told.

    `described` is what its descriptor says of it, `last` the number of the stream's document that added to it last.
    `late` says if documents of it had to wait for others.
    """

    path: str
    mimetype: str
    consolidator: Consolidator
    described: Mapping[str, Any]
    resources: set[str]
    dims: list[str] | None = None
    registered: dict[str, Any] = field(default_factory=dict)
    told: int = 0
    told_assets: int = 0
    last: int = 0
    late: bool = False
    patch: Patch | None = None

    def consume(self, stream_datum: Mapping[str, Any]) -> None:
        patch = self.consolidator.consume(stream_datum)
        self.patch = patch if self.patch is None else self.patch.union(patch)

    @property
    def in_order_of_events(self) -> bool:
        """Whether frames are in the order of the events; where these repeat it is the order in which documents came."""
        consolidator = self.consolidator
        if not isinstance(consolidator, ArrayConsolidator):
            return True
        return consolidator.in_order_of_events and not (self.late and consolidator.frames.repeats)

    @property
    def takes_ranges(self) -> bool:
        """Whether datums that follow each other are as good as one."""
        return type(self.consolidator).consume is ArrayConsolidator.consume

    def data_source(self) -> dict[str, Any]:
        """The data source as it is now, with names of dimensions that are the stream's."""
        source = self.consolidator.data_source()
        if self.dims is None:
            return source
        return {**source, "structure": {**source["structure"], "dims": list(self.dims)}}

    @property
    def shape(self) -> list[int]:
        """Of the array; empty for files without a shape."""
        return list(self.consolidator.data_source()["structure"].get("shape") or ())

    @property
    def is_small_addition(self) -> bool:
        """Whether there is so little to tell of so long a list that more may come first."""
        return self.told >= LONG_LIST and self.consolidator.rows - self.told < self.told * SMALL_ADDITION

    def flush(self, *, everything: bool) -> list[Operation]:
        if self.patch is None or (self.is_small_addition and not everything):
            return []
        told, self.told = self.told, self.consolidator.rows
        patch, self.patch = self.patch, None
        if told == self.told:
            return []
        source = self.data_source()
        known, self.told_assets = self.told_assets, len(source["assets"])
        return [ExtendExternal(self.path, told, self.told, source, patch.offset, patch.shape, known)]

    def describe(self) -> Operation:
        """Tell Tiled once more what there is, of which there will not be more."""
        return DescribeExternal(self.path, {**self.data_source(), "assets": []})

    def audit(self) -> Operation | None:
        """How many frames Tiled was told of; nothing for files without a shape."""
        shape = self.shape
        return Audit(self.path, shape[0]) if self.told and shape else None


class Stream:
    """One stream: its data keys, internal data, and external data by key."""

    def __init__(
        self,
        name: str,
        path: str,
        descriptor: Mapping[str, Any],
        internal: InternalData,
        names: StreamNames,
    ) -> None:
        self.name = name
        self.path = path
        self.data_keys: dict[str, Any] = dict(descriptor["data_keys"])
        self.latest_keys: Mapping[str, Any] = descriptor["data_keys"]
        self.internal = internal
        self.names = names
        self.external: dict[str, ExternalData] = {}
        self.left_out: set[str] = set()  # keys of which no more files are taken
        self.documents = 0  # events and stream datums
        self.updates: list[dict[str, Any]] = []
        self.changes: dict[str, Any] = {}  # of its metadata, that Tiled was not told of

    def change(self) -> list[Operation]:
        """Tell Tiled of what has changed of the metadata."""
        changes, self.changes = self.changes, {}
        if "_config_updates" in changes:
            changes["_config_updates"] = list(self.updates)
        return [UpdateMetadata(self.path, changes)] if changes else []


class RunWriter:
    """Turns the documents of one run, as `RunNormalizer` emits them, into operations.

    Nodes come from each call, rows and changes of metadata from `flush`: so a flood of documents becomes few requests.
    The operations' effect does not depend on when `flush` is called.

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
        self._descriptors: dict[str, Mapping[str, Any]] = {}
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._waiting: dict[str, list[Mapping[str, Any]]] = {}  # stream datums, by uid of what they refer to
        self._announced = AnnouncedFrames()
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
        stream = self._stream_of.get(document["descriptor"])
        if stream is None:
            return False
        if name == "event":
            return stream.internal.takes_alike
        external = self._external_of(stream, document)
        return external is not None and external.takes_ranges

    def add_alike(self, name: str, model: Mapping[str, Any], documents: AlikeDocuments) -> int:
        """Take in the first of documents that differ from a model in values only; how many that were."""
        stream = self._stream_of[model["descriptor"]]
        if name == "event":
            stream.internal.add_alike(documents)
            stream.documents += documents.count
            return documents.count
        starts, stops = documents.numbers("indices", "start"), documents.numbers("indices", "stop")
        seq_starts, seq_stops = documents.numbers("seq_nums", "start"), documents.numbers("seq_nums", "stop")
        sizes = stops - starts
        # As one datum, as long as each begins where the one before ends, in its file as in the events.
        sound = (sizes >= 0) & (sizes == seq_stops - seq_starts)
        follows = (starts[1:] == stops[:-1]) & (seq_starts[1:] == seq_stops[:-1]) & sound[1:] & sound[:-1]
        count = documents.count if follows.all() else int(follows.argmin()) + 1
        indices = {"start": starts[0].item(), "stop": stops[count - 1].item()}
        seq_nums = {"start": seq_starts[0].item(), "stop": seq_stops[count - 1].item()}
        self._stream_datum({**model, "indices": indices, "seq_nums": seq_nums})
        return count

    def _external_of(self, stream: Stream, stream_datum: Mapping[str, Any]) -> ExternalData | None:
        """What a datum belongs to of which there were others before; None where no more are taken."""
        resource = self._resources.get(stream_datum["stream_resource"])
        if resource is None or resource["data_key"] in stream.left_out:
            return None
        return stream.external.get(resource["data_key"])

    def flush(self, *, everything: bool = True) -> list[Operation]:
        """Operations for all events and datums since the last flush; if not for `everything`, see `holds`."""
        self.crowded = False
        operations: list[Operation] = []
        for stream in self._streams.values():
            operations += stream.change()
            operations += stream.internal.flush()
            for external in stream.external.values():
                operations += external.flush(everything=everything)
        return operations

    @property
    def holds(self) -> bool:
        """Whether a few frames are held back of a key that has many: each update has to tell Tiled of all chunks."""
        return any(
            external.patch is not None for stream in self._streams.values() for external in stream.external.values()
        )

    def abandon(self) -> list[Operation]:
        """Operations that end a run which has no stop document."""
        operations = [*self.flush(), *self._finish()]
        if self.notes:
            operations.append(UpdateMetadata(self._path, {"notes": list(self.notes)}))
        return [*operations, *self._close()]

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
        self._access_tags = as_tags(tags)
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
        names = StreamNames(f"Stream {path.rpartition('/')[2]!r}", self.note)
        internal = InternalData(
            path,
            document["data_keys"],
            guessed={key for stream, key in self._guessed_types if stream == name},
            max_array_size=self._max_array_size,
            column_types={key: kind for (stream, key), kind in self._column_types.items() if stream == name},
            names=names,
            access_tags=self._access_tags,
            note=self.note,
        )
        self._streams[name] = Stream(name, path, document, internal, names)
        self._add_descriptor(self._streams[name], document)
        container = CreateContainer(path, metadata, STREAM_SPECS, self._access_tags, ("uid",))
        return [container, *self._end_waiting(document["uid"])]

    def _add_descriptor(self, stream: Stream, document: Mapping[str, Any]) -> None:
        self._stream_of[document["uid"]] = stream
        # Most further descriptors have the same data keys: what is said of them is kept once.
        if not _equal(stream.latest_keys, document["data_keys"]):
            stream.latest_keys = document["data_keys"]
        self._descriptors[document["uid"]] = stream.latest_keys

    def _free_key(self, stream: str) -> str:
        """The key of a stream's node: its name, if Tiled takes that and no other stream has it."""
        key = node_key(stream)
        while any(other.path == f"{self._path}/{key}" for other in self._streams.values()):
            key += "_"
        if key != stream:
            self.note(f"Stream {stream!r} is stored as {key!r}, as Tiled does not take that name here.")
        return key

    def _reconfigure(self, stream: Stream, document: Mapping[str, Any], metadata: dict[str, Any]) -> list[Operation]:
        """A further descriptor of a stream tells that its configuration or its data keys have changed."""
        self._add_descriptor(stream, document)
        further = {key: data_key for key, data_key in document["data_keys"].items() if key not in stream.data_keys}
        stream.data_keys |= further
        stream.internal.declare(document["data_keys"])
        update = {key: metadata[key] for key in ("uid", "time", "configuration") if metadata.get(key)}
        stream.updates.append(update)
        stream.changes["_config_updates"] = stream.updates
        if further:
            stream.changes["data_keys"] = to_json(stream.data_keys, self.note, f"descriptor {stream.name!r}.data_keys")
        return self._end_waiting(document["uid"])

    def _event(self, document: Mapping[str, Any]) -> list[Operation]:
        stream = self._stream_of[document["descriptor"]]
        stream.documents += 1
        stream.internal.add(document)
        self.crowded = self.crowded or stream.internal.pending_bytes > MAX_PENDING
        return []

    def _stream_resource(self, document: Mapping[str, Any]) -> list[Operation]:
        self._resources[document["uid"]] = document
        return self._end_waiting(document["uid"])

    def _end_waiting(self, uid: str) -> list[Operation]:
        """Take in the stream datums that came before what they refer to."""
        operations = []
        for document in self._waiting.pop(uid, ()):
            operations += self._stream_datum(document)
            stream = self._stream_of.get(document["descriptor"])
            external = self._external_of(stream, document) if stream is not None else None
            if external is not None:
                external.late = True
        return operations

    def _stream_datum(self, document: Mapping[str, Any]) -> list[Operation]:
        for uid, known in (
            (document["descriptor"], self._stream_of),
            (document["stream_resource"], self._resources),
        ):
            if uid not in known:
                self._waiting.setdefault(uid, []).append(document)
                return []
        stream = self._stream_of[document["descriptor"]]
        resource = self._resources[document["stream_resource"]]
        key = resource["data_key"]
        if key in stream.left_out:
            if key in stream.external:
                stream.external[key].consolidator.announce(document)
            return []
        try:
            return self._consume(stream, key, resource, document)
        except DocumentError as error:
            self._leave_out(stream, key, document, str(error))
            return []

    def _consume(
        self, stream: Stream, key: str, resource: Mapping[str, Any], document: Mapping[str, Any]
    ) -> list[Operation]:
        """Take in a stream datum of a known resource; a DocumentError says why not."""
        described = self._descriptors[document["descriptor"]].get(key) or stream.data_keys.get(key, {})
        stream.documents += 1
        external = stream.external.get(key)
        if external is None:
            external = self._make_external(stream, key, resource, described)
            external.consume(document)
            external.last = stream.documents
            stream.external[key] = external
            # The node begins without rows, whatever its first documents amount to.
            return [RegisterExternal(external.path, external.registered, {}, self._access_tags)]
        if resource["mimetype"] != external.mimetype:
            raise DocumentError(f"Files of {resource['mimetype']} follow such of {external.mimetype}.")
        if any(described.get(field) != external.described.get(field) for field in _LAYOUT):
            raise DocumentError("A further descriptor gives its frames another shape or type.")
        if resource["uid"] not in external.resources:
            external.consolidator.add_resource(resource)
            external.resources.add(resource["uid"])
        external.consume(document)
        external.last = stream.documents
        return []

    def _make_external(
        self, stream: Stream, key: str, resource: Mapping[str, Any], described: Mapping[str, Any]
    ) -> ExternalData:
        consolidator = consolidator_for(resource, {"data_keys": {key: described}}, self._consolidators)
        consolidator.announced = self._announced
        source = consolidator.data_source()
        name = stream.names.of_files(key)
        path, mimetype = f"{stream.path}/{name}", resource["mimetype"]
        external = ExternalData(path, mimetype, consolidator, described, {resource["uid"]})
        if dims := source["structure"].get("dims"):
            external.dims = stream.names.of_dimensions(name, dims, source["structure"]["shape"])
        external.registered = external.data_source()
        return external

    def _leave_out(self, stream: Stream, key: str, document: Mapping[str, Any], why: str) -> None:
        """Take no more files of a data key: what Tiled has of it so far is right, and stays."""
        stream.left_out.add(key)
        since = f" from sequence number {_first_event(document)} on" if key in stream.external else ""
        self.note(f"Stream {stream.name!r}: the frames of {key!r} are left out{since}. {why}")

    def _stop(self, document: Mapping[str, Any]) -> list[Operation]:
        operations = [*self.flush(), *self._finish()]
        metadata = {"stop": to_json(document, self.note, "stop")}
        if self.notes:
            metadata["notes"] = list(self.notes)
        return [*operations, UpdateMetadata(self._path, metadata), *self._close()]

    def _finish(self) -> list[Operation]:
        """Operations for what is only known when all documents are there, and the notes on it."""
        for uid, documents in self._waiting.items():
            named = _many(len(documents), "stream datum")
            self.note(f"{uid!r} never came; what {named} named of it is left out.")
        operations: list[Operation] = []
        for stream in self._streams.values():
            operations += self._withdraw(stream)
            operations += self._set_apart(stream)
        operations += self._audits()
        for stream in self._streams.values():
            stream.internal.report()
            for external in stream.external.values():
                for text in external.consolidator.notes:
                    self.note(text)
                if external.consolidator.metadata:
                    metadata = to_json(external.consolidator.metadata, self.note, external.path)
                    operations.append(UpdateMetadata(external.path, metadata))
        return operations

    def _withdraw(self, stream: Stream) -> list[Operation]:
        """Delete nodes of files that Tiled cannot read, as has come out since the nodes were made."""
        problems = {key: external.consolidator.problem for key, external in stream.external.items()}
        operations: list[Operation] = []
        for key in [key for key, problem in problems.items() if problem]:
            operations.append(RemoveNode(stream.external.pop(key).path))
            self.note(f"Stream {stream.name!r}: the frames of {key!r} are left out. {problems[key]}")
        return operations

    def _set_apart(self, stream: Stream) -> list[Operation]:
        """Give dimensions of its own to files' data that has not one frame for each event, in order: no common time."""
        arrays = {key: external for key, external in stream.external.items() if external.shape}
        lengths = [external.shape[0] for external in arrays.values()]
        events = stream.internal.rows or max(lengths, key=lambda length: (lengths.count(length), length), default=0)
        operations = []
        for key, external in arrays.items():
            rows, *rest = external.shape
            in_order = external.in_order_of_events
            apart = rows != events or not in_order
            if apart:
                name = external.path.rpartition("/")[2]
                own = stream.names.own_dimensions(name, 1 + len(rest))
                external.dims = [own[0], *(external.dims or own)[1:]]
                counts = f"{_many(rows, 'frame')} for {_many(events, 'event')}"
                counts += "" if in_order else ", in another order"
                belong = _belonging(external.consolidator)
                self.note(
                    f"Stream {stream.name!r}: {key!r} has {counts}, and a dimension {own[0]!r} of its own.{belong}"
                )
            # An earlier attempt may have ended before the events that came after the last frame, and said otherwise.
            if apart or external.last != stream.documents:
                operations.append(external.describe())
        return operations

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


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except ValueError:  # arrays of NumPy
        return False


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _belonging(consolidator: Consolidator) -> str:
    """To which events frames belong, in a sentence."""
    ranges = consolidator.frames.seq_nums if isinstance(consolidator, ArrayConsolidator) else []
    if not ranges:
        return ""
    named = ", ".join(str(part.start) if len(part) == 1 else f"{part.start} to {part.stop - 1}" for part in ranges[:10])
    return f" They belong to sequence numbers {named}{', ...' if len(ranges) > 10 else ''}."


def _first_event(stream_datum: Mapping[str, Any]) -> Any:
    return (stream_datum.get("seq_nums") or {}).get("start", "unknown")


def _spec(spec: Any) -> tuple[str, str | None]:
    return (spec, None) if isinstance(spec, str) else (spec["name"], spec.get("version"))
