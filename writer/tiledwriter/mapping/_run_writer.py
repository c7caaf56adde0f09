"""Turn the modern documents of one run into Tiled operations, without I/O, clock or random numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from .._errors import DocumentError
from .._json import to_json
from .._names import TIMESTAMP, StreamNames, node_key, run_key
from ._access_tags import as_tags
from ._columnar import EventBatch
from ._consolidator import Consolidator
from ._consolidators import consolidator_for
from ._dtypes import declared_dtype
from ._frames import AnnouncedFrames, as_integer, as_range, file_of, plain_uri
from ._operations import (
    CloseStream,
    CreateContainer,
    Operation,
    RegisterExternal,
    RemoveNode,
    UpdateMetadata,
)
from ._streams import ExternalData, Stream, add_places, configuration_of, configured_keys, hints_of
from ._tables import InternalData

MAX_ARRAY_SIZE: Final = 16
"""The default for the largest array in an event, in numbers, that becomes a list column."""

MAX_PENDING_ARRAY_BYTES_PER_STREAM: Final = 64 * 2**20

RUN_SPEC: Final = ("BlueskyRun", "3.0")
"""The name and version of the spec of a run's container."""

MAX_SPECS: Final = 19
"""The largest number of specs beside `RUN_SPEC`; Tiled takes 20."""

MAX_SPEC_LENGTH: Final = 255

STREAM_SPECS: Final = (("BlueskyEventStream", "3.0"), ("composite", None))

_OWN_SPECS: Final = frozenset({RUN_SPEC[0], *(name for name, _ in STREAM_SPECS)})
_LAYOUT: Final = ("shape", "dtype_numpy")
_NOT_METADATA: Final = frozenset({"name", "object_keys", "run_start"})


class RunWriter:
    """Writer of one run: turns its documents, as `RunNormalizer` emits them, into operations.

    A call with a document returns the operations that create nodes; `flush` returns those for rows and for changes of
    metadata. Thus many documents become few requests. The effect of the operations does not depend on the times of the
    flushes.

    Parameters
    ----------
    max_array_size
        The largest array in an event, in numbers, that becomes a list column; larger arrays become array nodes. 0: no
        list columns; negative: no limit.
    guessed_types
        The `(stream, data key)` pairs whose NumPy type was derived from the JSON type. The normalizer adds to this
        collection as descriptors arrive.
    consolidators
        Consolidator classes by mimetype, which take precedence over those of this package.
    column_types
        Column types by `(stream, data key)` that an earlier fold of the run found necessary; see `too_narrow`.
    refused_mimetypes
        Mimetypes of files that Tiled does not know how to read. Their data keys are left out, with a note.
    keeps_stream
        Called with the name of a stream; whether the writer gets its documents.

    Attributes
    ----------
    notes
        Notes for the run's metadata on data that could not be stored unchanged.
    flush_due
        Whether a `flush` is due because pending arrays, missing ones included, take much memory.
    """

    def __init__(
        self,
        *,
        max_array_size: int = MAX_ARRAY_SIZE,
        guessed_types: Collection[tuple[str, str]] = frozenset(),
        consolidators: Mapping[str, type[Consolidator]] | None = None,
        column_types: Mapping[tuple[str, str], str] | None = None,
        refused_mimetypes: Collection[str] = (),
        keeps_stream: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.notes: list[str] = []
        self.flush_due = False
        self._max_array_size = max_array_size
        self._guessed_types = guessed_types
        self._consolidators = consolidators
        self._column_types = column_types or {}
        self._refused_mimetypes = refused_mimetypes
        self._keeps_stream = keeps_stream
        self._path = ""
        self._access_tags: tuple[str, ...] | None = None
        self._streams: dict[str, Stream] = {}
        self._streams_by_descriptor: dict[str, Stream] = {}
        self._descriptors: dict[str, Mapping[str, Any]] = {}
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._stream_datums_by_missing_uid: dict[str, list[Mapping[str, Any]]] = {}
        self._announced = AnnouncedFrames()
        self._handlers: dict[str, Callable[[Mapping[str, Any]], list[Operation]]] = {
            "start": self._handle_start,
            "descriptor": self._handle_descriptor,
            "event": self._handle_event,
            "stream_resource": self._stream_resource,
            "stream_datum": self._stream_datum,
            "stop": self._handle_stop,
        }

    def __call__(self, name: str, document: Mapping[str, Any]) -> list[Operation]:
        """Add one document; return the operations that create its nodes.

        Raises
        ------
        DocumentError
            `RunNormalizer` does not emit such documents, or the document lacks a field or refers to an unknown
            document.
        """
        handler = self._handlers.get(name)
        if handler is None:
            raise DocumentError(f"RunWriter takes no {name!r} documents; run them through RunNormalizer first.")
        if not self._path and name != "start":
            raise DocumentError(f"The {name} document has no start before it; the normalizer has kept that back.")
        try:
            return handler(document)
        except KeyError as error:
            raise DocumentError(
                f"{name} document {document.get('uid', '')!r} lacks or refers to unknown {error}."
            ) from error

    def accepts_batch(self, name: str, document: Mapping[str, Any]) -> bool:
        """Return whether `add_batch` accepts documents that differ in values only from this one, the last one added."""
        stream = self._streams_by_descriptor.get(document["descriptor"])
        if stream is None:
            return False
        if name == "event":
            return stream.internal.accepts_batch
        external = self._external_of(stream, document)
        return external is not None and external.takes_ranges

    def add_batch(self, name: str, model: Mapping[str, Any], documents: EventBatch) -> int:
        """Add a batch of documents that differ from a model in values only.

        Parameters
        ----------
        name
            The name of the documents.
        model
            The document that came before the batch.
        documents
            The batch.

        Returns
        -------
        int
            The number of leading documents that were added; the caller must add the others one by one.
        """
        stream = self._streams_by_descriptor[model["descriptor"]]
        if name == "event":
            stream.internal.add_batch(documents)
            stream.documents += documents.count
            return documents.count
        starts, stops = documents.numbers("indices", "start"), documents.numbers("indices", "stop")
        seq_starts, seq_stops = documents.numbers("seq_nums", "start"), documents.numbers("seq_nums", "stop")
        sizes = stops - starts
        # Consecutive datums are added as one: each begins where the previous one ends, in the file and in the events.
        sound = (sizes >= 0) & (sizes == seq_stops - seq_starts)
        follows = (starts[1:] == stops[:-1]) & (seq_starts[1:] == seq_stops[:-1]) & sound[1:] & sound[:-1]
        count = documents.count if follows.all() else int(follows.argmin()) + 1
        indices = {"start": starts[0].item(), "stop": stops[count - 1].item()}
        seq_nums = {"start": seq_starts[0].item(), "stop": seq_stops[count - 1].item()}
        self._stream_datum({**model, "indices": indices, "seq_nums": seq_nums})
        return count

    def _external_of(self, stream: Stream, stream_datum: Mapping[str, Any]) -> ExternalData | None:
        """Return the external data to which a stream datum adds.

        None if its resource is unknown, if it is the first datum of its data key, or if the key's files are left out.
        """
        resource = self._resources.get(stream_datum["stream_resource"])
        if resource is None or resource["data_key"] in stream.left_out:
            return None
        return stream.external.get(resource["data_key"])

    def flush(self, *, everything: bool = True) -> list[Operation]:
        """Return the operations for events, datums and changes of metadata since the last flush.

        Parameters
        ----------
        everything
            Whether to include small additions to data keys with many frames; see `has_held_frames`.
        """
        self.flush_due = False
        operations: list[Operation] = []
        for stream in self._streams.values():
            operations += stream.flush_changes()
            operations += stream.internal.flush()
            for external in stream.external.values():
                operations += external.flush(everything=everything)
        return operations

    def flush_batch(self, document: Mapping[str, Any], size: int) -> list[Operation]:
        """Return the operations for what an event or stream datum has completed a batch of.

        Parameters
        ----------
        document
            The document added last. Events are counted by stream, the frames of stream datums by data key.
        size
            The number of events or frames in a batch.
        """
        stream = self._streams_by_descriptor.get(document["descriptor"])
        if stream is None:
            return []
        operations = stream.flush_changes()
        if stream.internal.pending_rows >= size:
            operations += stream.internal.flush()
        for external in stream.external.values():
            if external.pending_rows >= size:
                operations += external.flush(everything=True)
        return operations

    @property
    def has_held_frames(self) -> bool:
        """Whether frames wait for a flush of `everything`.

        After a partial flush, these are small additions to data keys with many frames. They are held back because each
        update must list all chunks for Tiled.
        """
        return any(
            external.region is not None for stream in self._streams.values() for external in stream.external.values()
        )

    def abandon(self) -> list[Operation]:
        """Return the operations that end a run without a stop document; none for one without a start."""
        if not self._path:
            return []
        operations = [*self.flush(), *self._finish_streams()]
        if self.notes:
            operations.append(UpdateMetadata(self._path, {"notes": list(self.notes)}))
        return [*operations, *self._close_operations()]

    @property
    def too_narrow(self) -> dict[tuple[str, str], str]:
        """Column types needed to hold all values flushed so far, by `(stream, data key)`.

        Values that do not fit their column are left empty. To store them, fold all documents of the run again with
        these types as `column_types`.
        """
        return {
            (name, key): needed
            for name, stream in self._streams.items()
            for key, needed in stream.internal.too_narrow.items()
        }

    def note(self, text: str) -> None:
        """Add a note, unless it exists already."""
        if text not in self.notes:
            self.notes.append(text)

    def _handle_start(self, document: Mapping[str, Any]) -> list[Operation]:
        start = dict(document)
        self._path = run_key(start["uid"])
        if self._path != start["uid"]:
            self.note(f"The run is stored as {self._path!r}, because Tiled does not accept its uid as a name.")
        tags = start.pop("tiled_access_tags", None)
        self._access_tags = as_tags(tags)
        specs = self._parse_specs(start.pop("tiled_specs", None))
        metadata = {"start": to_json(start, self.note, "start")}
        return [CreateContainer(self._path, metadata, (*specs, RUN_SPEC), self._access_tags, ("start", "uid"))]

    def _parse_specs(self, given: Any) -> tuple[tuple[str, str | None], ...]:
        """Return the specs that a start document asks for; those that Tiled would refuse are left out, with a note.

        A text or a mapping is one spec, as a text is one access tag. Specs that tell clients how to read a run are not
        for others to give: clients take the first that they know.
        """
        if given is None:
            return ()
        wanted = list(given) if isinstance(given, list | tuple | set | frozenset) else [given]
        specs: list[tuple[str, str | None]] = []
        for spec in wanted:
            parsed = _parse_spec(spec)
            if parsed == RUN_SPEC or parsed in specs:
                continue
            if parsed is None or parsed[0] in _OWN_SPECS or len(specs) == MAX_SPECS:
                self.note(f"start.tiled_specs: {spec!r:.200} is left out, because Tiled does not take it for a run.")
                continue
            specs.append(parsed)
        return tuple(specs)

    def _handle_descriptor(self, document: Mapping[str, Any]) -> list[Operation]:
        name = document["name"]
        document = {**document, "data_keys": self._drop_empty_dimensions(name, document["data_keys"])}
        metadata = {key: value for key, value in document.items() if key not in _NOT_METADATA}
        metadata = to_json(metadata, self.note, f"descriptor {name!r}")
        if name in self._streams:
            return self._reconfigure_stream(self._streams[name], document, metadata)
        path = f"{self._path}/{self._free_key(name)}"
        names = StreamNames(f"Stream {path.rpartition('/')[2]!r}", self.note)
        internal = InternalData(
            path,
            name,
            document["data_keys"],
            guessed={key for stream, key in self._guessed_types if stream == name},
            max_array_size=self._max_array_size,
            column_types={key: kind for (stream, key), kind in self._column_types.items() if stream == name},
            names=names,
            access_tags=self._access_tags,
            note=self.note,
        )
        configuration = configuration_of(metadata)
        self._streams[name] = Stream(name, path, document, internal, names, configuration=configuration)
        self._add_descriptor(self._streams[name], document)
        container = CreateContainer(path, metadata, STREAM_SPECS, self._access_tags, ("uid",))
        return [container, *self._end_waiting(document["uid"])]

    def _drop_empty_dimensions(self, stream: str, data_keys: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return data keys without zeros in the shapes of external ones, with a note.

        Area detectors of older ophyd declare (rows, columns, 0) for cameras without colors. No frame has such a size.
        Where all sizes are 0, or one varies, nothing is known of the frames.
        """
        changed = {}
        for key, data_key in data_keys.items():
            shape = list(data_key.get("shape") or ())
            if data_key.get("external") and 0 in shape and any(shape) and None not in shape:
                changed[key] = {**data_key, "shape": [size for size in shape if size]}
                self.note(
                    f"Stream {stream!r}: the shape {shape} of external data key {key!r} is taken for "
                    f"{changed[key]['shape']}, because no frame has a dimension of 0."
                )
        return {**data_keys, **changed} if changed else data_keys

    def _add_descriptor(self, stream: Stream, document: Mapping[str, Any]) -> None:
        self._streams_by_descriptor[document["uid"]] = stream
        # Most further descriptors of a stream have the same data keys, which then are stored only once.
        if not _values_equal(stream.latest_keys, document["data_keys"]):
            stream.latest_keys = document["data_keys"]
        self._descriptors[document["uid"]] = stream.latest_keys

    def _free_key(self, stream: str) -> str:
        """Return the key of a stream's node: the stream's name, unless Tiled refuses it or another stream has it."""
        key = node_key(stream)
        while any(other.path == f"{self._path}/{key}" for other in self._streams.values()):
            key += "_"
        if key != stream:
            self.note(f"Stream {stream!r} is stored as {key!r}, because Tiled does not accept its own name here.")
        return key

    def _reconfigure_stream(
        self, stream: Stream, document: Mapping[str, Any], metadata: dict[str, Any]
    ) -> list[Operation]:
        """Add a further descriptor of a stream, with a changed configuration or changed data keys."""
        further = {key: data_key for key, data_key in document["data_keys"].items() if key not in stream.data_keys}
        stream.data_keys |= further
        stream.internal.declare(document["data_keys"])
        update = {key: metadata[key] for key in ("uid", "time") if metadata.get(key)}
        update |= self._changed_configuration(stream, metadata)
        update |= self._changed_declarations(stream, document, metadata)
        self._add_descriptor(stream, document)
        stream.updates.append(update)
        stream.changes["_config_updates"] = stream.updates
        if further:
            stream.changes["data_keys"] = to_json(stream.data_keys, self.note, f"descriptor {stream.name!r}.data_keys")
        return self._end_waiting(document["uid"])

    def _changed_configuration(self, stream: Stream, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of a further descriptor, if any; note what only one before has."""
        configuration = configuration_of(metadata)
        configured = configured_keys(configuration)
        if missing := sorted({device for device, _ in stream.configured - configured}):
            self.note(
                f"Stream {stream.name!r}: a further descriptor lacks configuration of {', '.join(map(repr, missing))}; "
                "clients give what the one before had."
            )
        stream.configured |= configured
        before, stream.configuration = stream.configuration, add_places(stream.configuration, configuration)
        if stream.configuration != before:
            stream.changes["configuration"] = stream.configuration
        return {"configuration": configuration} if configuration else {}

    def _changed_declarations(
        self, stream: Stream, document: Mapping[str, Any], metadata: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return, and note, what a further descriptor declares otherwise than the one before: units, limits, hints."""
        changed: dict[str, Any] = {}
        for key, now in document["data_keys"].items():
            before = stream.latest_keys.get(key) or stream.data_keys[key]
            if _values_equal(before, now):
                continue
            changed.setdefault("data_keys", {})[key] = metadata["data_keys"][key]
            fields = {field for field in {*before, *now} if not _values_equal(before.get(field), now.get(field))}
            # Data of another shape or type is noted where it does not fit.
            if others := sorted(fields.difference(_LAYOUT, ("dtype",))):
                self.note(
                    f"Stream {stream.name!r}: a further descriptor has another {' and another '.join(others)} of "
                    f"{key!r}, which is in '_config_updates'."
                )
        if not _values_equal(stream.latest_hints, hints := hints_of(document)):
            stream.latest_hints = hints
            changed["hints"] = metadata.get("hints") or {}
            self.note(f"Stream {stream.name!r}: a further descriptor has other hints, which are in '_config_updates'.")
        return changed

    def _handle_event(self, document: Mapping[str, Any]) -> list[Operation]:
        stream = self._streams_by_descriptor[document["descriptor"]]
        stream.documents += 1
        stream.internal.add(document)
        self.flush_due = self.flush_due or stream.internal.pending_bytes > MAX_PENDING_ARRAY_BYTES_PER_STREAM
        return []

    def _stream_resource(self, document: Mapping[str, Any]) -> list[Operation]:
        document = {**document, "uri": plain_uri(document["uri"])}
        self._resources[document["uid"]] = document
        return self._end_waiting(document["uid"])

    def _end_waiting(self, uid: str) -> list[Operation]:
        """Add the stream datums that came before the document to which they refer."""
        operations = []
        for document in self._stream_datums_by_missing_uid.pop(uid, ()):
            operations += self._stream_datum(document)
            stream = self._streams_by_descriptor.get(document["descriptor"])
            external = self._external_of(stream, document) if stream is not None else None
            if external is not None:
                external.late = True
        return operations

    def _stream_datum(self, document: Mapping[str, Any]) -> list[Operation]:
        self._announce_frames(document)
        for uid, known in (
            (document["descriptor"], self._streams_by_descriptor),
            (document["stream_resource"], self._resources),
        ):
            if uid not in known:
                self._stream_datums_by_missing_uid.setdefault(uid, []).append(document)
                return []
        stream = self._streams_by_descriptor[document["descriptor"]]
        resource = self._resources[document["stream_resource"]]
        key = resource["data_key"]
        if key in stream.left_out:
            return []
        try:
            return self._add_stream_datum(stream, key, resource, document)
        except DocumentError as error:
            self._leave_out(stream, key, document, str(error))
            return []

    def _announce_frames(self, stream_datum: Mapping[str, Any]) -> None:
        """Record that a file has these frames, whether or not a node will: other nodes may have the same file."""
        resource, indices = self._resources.get(stream_datum["stream_resource"]), as_range(stream_datum["indices"])
        if resource is not None and indices is not None:
            self._announced.add_frames(file_of(resource), indices)

    def _add_stream_datum(
        self, stream: Stream, key: str, resource: Mapping[str, Any], document: Mapping[str, Any]
    ) -> list[Operation]:
        """Add a stream datum whose resource and descriptor are known.

        Raises
        ------
        DocumentError
            Tiled cannot serve its frames.
        """
        described = self._descriptors[document["descriptor"]].get(key) or stream.data_keys.get(key, {})
        stream.documents += 1
        external = stream.external.get(key)
        if external is None:
            external = self._make_external(stream, key, resource, described)
            external.consume(document)
            external.last_document = stream.documents
            stream.external[key] = external
            # The node is created without rows; the rows of this first datum follow with the next flush.
            return [RegisterExternal(external.path, external.registered, {}, self._access_tags)]
        if resource["mimetype"] != external.mimetype:
            raise DocumentError(f"Files of {resource['mimetype']} follow files of {external.mimetype}.")
        if described is not external.described and not _layouts_equal(described, external.described):
            raise DocumentError("A further descriptor gives its frames another shape or type.")
        known = external.resources.get(resource["uid"])
        if known is not resource:
            # A uid may come again for another file.
            if not _values_equal(known, resource):
                external.consolidator.add_resource(resource)
            external.resources[resource["uid"]] = resource
        external.consume(document)
        external.last_document = stream.documents
        return []

    def _make_external(
        self, stream: Stream, key: str, resource: Mapping[str, Any], described: Mapping[str, Any]
    ) -> ExternalData:
        """Make the external data of a data key.

        Raises
        ------
        DocumentError
            Tiled cannot serve such files.
        """
        descriptor = {**stream.descriptor, "data_keys": {**stream.latest_keys, key: described}}
        consolidator = consolidator_for(resource, descriptor, self._consolidators)
        consolidator.announced = self._announced
        source = consolidator.data_source()
        if source["mimetype"] in self._refused_mimetypes:
            raise DocumentError(f"Tiled does not know how to read files of the mimetype {source['mimetype']!r}.")
        if source["structure_family"] == "array" and (stream.name, key) in self._guessed_types:
            self.note(
                f"Stream {stream.name!r}: no NumPy type is declared for the frames of {key!r}; they are taken to have "
                f"{described.get('dtype_numpy', '<f8')!r}, and cannot be read if their files have another type."
            )
        name = stream.names.name_for_files(key)
        path, mimetype = f"{stream.path}/{name}", resource["mimetype"]
        external = ExternalData(path, mimetype, consolidator, described, {resource["uid"]: resource})
        if dims := source["structure"].get("dims"):
            external.dims = stream.names.of_dimensions(name, dims, source["structure"]["shape"])
        external.registered = external.data_source()
        return external

    def _leave_out(self, stream: Stream, key: str, document: Mapping[str, Any], why: str) -> None:
        """Stop accepting files of a data key; the data that Tiled has so far is correct and stays."""
        stream.left_out.add(key)
        since = f" from sequence number {_first_event(document)} on" if key in stream.external else ""
        self.note(f"Stream {stream.name!r}: the frames of {key!r} are left out{since}. {why}")

    def _handle_stop(self, document: Mapping[str, Any]) -> list[Operation]:
        operations = [*self.flush(), *self._finish_streams()]
        self._note_missing_events(document.get("num_events"))
        metadata = {"stop": to_json(document, self.note, "stop")}
        # Before the stop document came, the run may have been given up, with notes that do not apply any more.
        removed = () if self.notes else ("notes",)
        if self.notes:
            metadata["notes"] = list(self.notes)
        return [*operations, UpdateMetadata(self._path, metadata, removed), *self._close_operations()]

    def _note_missing_events(self, counts: Any) -> None:
        """Note the streams of which the stop document counts more events than came. After a rewind, it counts fewer."""
        for name, count in counts.items() if isinstance(counts, Mapping) else ():
            stream, counted = self._streams.get(name), as_integer(count)
            if counted is None or not self._keeps_stream(name):
                continue
            came = 0
            if stream is not None:
                if stream.left_out and not stream.internal.rows:
                    continue
                external = (data.consolidator.rows for data in stream.external.values())
                came = stream.internal.rows or max(external, default=0)
            if came < counted:
                self.note(
                    f"Stream {name!r}: {_format_count(counted, 'event')} in the count of the stop document, of which "
                    f"{came} came."
                )

    def _finish_streams(self) -> list[Operation]:
        """Return the operations that require all documents of the run, and add the notes on them."""
        for uid, documents in self._stream_datums_by_missing_uid.items():
            named = _format_count(len(documents), "stream datum")
            self.note(f"{uid!r} never came; what {named} named of it is left out.")
        operations: list[Operation] = []
        for stream in self._streams.values():
            operations += self._remove_unreadable_nodes(stream)
            operations += _remove_hidden_nodes(stream)
            operations += self._set_apart(stream)
            self._note_missing_nodes(stream)
        operations += self._audit_operations()
        for stream in self._streams.values():
            stream.internal.note_changes()
            for external in stream.external.values():
                for text in external.consolidator.notes:
                    self.note(text)
                if external.consolidator.metadata:
                    metadata = to_json(external.consolidator.metadata, self.note, external.path)
                    operations.append(UpdateMetadata(external.path, metadata))
        return operations

    def _remove_unreadable_nodes(self, stream: Stream) -> list[Operation]:
        """Remove nodes whose files, as later documents have shown, Tiled cannot read."""
        problems = {key: external.consolidator.problem for key, external in stream.external.items()}
        operations: list[Operation] = []
        for key in [key for key, problem in problems.items() if problem]:
            operations.append(RemoveNode(stream.external.pop(key).path))
            stream.left_out.add(key)
            self.note(f"Stream {stream.name!r}: the frames of {key!r} are left out. {problems[key]}")
        return operations

    def _note_missing_nodes(self, stream: Stream) -> None:
        """Note the external data keys of which nothing came: neither files nor, in the events, values."""
        in_events = {source.key for table in stream.internal.tables for source in table.sources}
        present = in_events | stream.external.keys() | stream.left_out
        for key, described in stream.data_keys.items():
            if stream.documents and described.get("external") and key not in present:
                self.note(
                    f"Stream {stream.name!r}: external data key {key!r} has no node, because no frames of it came."
                )

    def _set_apart(self, stream: Stream) -> list[Operation]:
        """Note external data that does not have exactly one frame per event, in order, and set its dimensions apart.

        Such data does not share the stream's time dimension.
        """
        lengths = [external.length for external in stream.external.values()]
        events = stream.internal.rows or max(lengths, key=lambda length: (lengths.count(length), length), default=0)
        digests = {key: external.seq_nums_digest for key, external in stream.external.items()}
        of_events = stream.internal.seq_nums_digest or _most_common(
            [digest for key, digest in digests.items() if digest and stream.external[key].length == events]
        )
        operations = []
        for key, external in stream.external.items():
            rows, in_order = external.length, external.in_order_of_events
            # Frames as many as the events may still be those of other events.
            of_others = bool(of_events and digests[key] and digests[key] != of_events)
            apart = rows != events or not in_order or of_others or not external.can_be_counted
            if apart:
                counts = f"{_format_count(rows, 'frame')} for {_format_count(events, 'event')}"
                if not in_order:
                    counts += ", in another order"
                elif rows == events:
                    counts += ", but not one for each in their order"
                counts += self._separate_dimension(stream, external)
                belong = _seq_nums_sentence(external.consolidator)
                self.note(f"Stream {stream.name!r}: {key!r} has {counts}.{belong}")
            # An earlier fold may have ended before the events that follow the last frame, and thus may have written
            # other dimensions.
            if external.shape and (apart or external.last_document != stream.documents):
                operations.append(external.describe())
        return operations

    def _separate_dimension(self, stream: Stream, external: ExternalData) -> str:
        """Give an array a first dimension of its own; return the part of a note that names it. Files have none."""
        if not external.shape:
            return ""
        own = stream.names.own_dimensions(external.path.rpartition("/")[2], len(external.shape))
        external.dims = [own[0], *(external.dims or own)[1:]]
        return f", and a dimension {own[0]!r} of its own"

    def _audit_operations(self) -> list[Operation]:
        return [
            audit
            for stream in self._streams.values()
            for audit in [
                *stream.internal.audit_operations(),
                *(external.audit() for external in stream.external.values()),
            ]
            if audit is not None
        ]

    def _close_operations(self) -> list[Operation]:
        paths: list[str] = []
        for stream in self._streams.values():
            paths += stream.internal.paths
            paths += [external.path for external in stream.external.values()]
            paths.append(stream.path)
        return [CloseStream(path) for path in [*paths, self._path]]


def _remove_hidden_nodes(stream: Stream) -> list[Operation]:
    """Return the operations that remove nodes under names that clients leave out.

    An earlier version may have made them for a run that this one completes.
    """
    keys = [*stream.internal.arrays, *stream.external]
    return [RemoveNode(f"{stream.path}/{node_key(key)}") for key in keys if key.startswith(TIMESTAMP)]


def _values_equal(one: Any, other: Any) -> bool:
    """Return whether parts of documents are equal, or become so as metadata: NaN, for one, does not equal itself."""
    try:
        if one == other:
            return True
    except (TypeError, ValueError):
        # The values contain NumPy arrays, whose comparison has no single truth value, or fails.
        pass
    return bool(to_json(one, _ignore_note) == to_json(other, _ignore_note))


def _ignore_note(_: str) -> None:
    """Discard a note: the conversion of metadata is noted when it is written."""


def _layouts_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two declarations of a data key give its frames the same shape and type, however spelled."""
    shapes = [list(described.get("shape") or ()) for described in (one, other)]
    types = [described.get("dtype_numpy") for described in (one, other)]
    if shapes[0] != shapes[1] or _values_equal(*types):
        return shapes[0] == shapes[1]
    try:
        return None not in types and declared_dtype(types[0]) == declared_dtype(types[1])
    except (TypeError, ValueError):
        return False


def _most_common(values: list[str]) -> str | None:
    return Counter(values).most_common(1)[0][0] if values else None


def _format_count(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _seq_nums_sentence(consolidator: Consolidator) -> str:
    """Return a sentence with the sequence numbers of a data key's frames, as far as they are known."""
    frames = consolidator.frames
    ranges, unknown = frames.seq_nums, frames.without_seq_num
    named = ", ".join(str(part.start) if len(part) == 1 else f"{part.start} to {part.stop - 1}" for part in ranges[:10])
    named += ", ..." * (len(ranges) > 10)
    of_others = f"The events of {_format_count(unknown, 'frame')} are not known."
    if not ranges:
        return f" {of_others}" * (unknown > 0)
    if not unknown:
        return f" They belong to sequence numbers {named}."
    return f" {_format_count(frames.count - unknown, 'frame')} belong to sequence numbers {named}. {of_others}"


def _first_event(stream_datum: Mapping[str, Any]) -> Any:
    return (stream_datum.get("seq_nums") or {}).get("start", "unknown")


def _parse_spec(spec: Any) -> tuple[str, str | None] | None:
    """Return the name and the version of a spec; None if it has no name that Tiled takes."""
    name, version = (spec.get("name"), spec.get("version")) if isinstance(spec, Mapping) else (spec, None)
    if version is not None and (isinstance(version, bool) or not isinstance(version, str | int | float)):
        return None
    version = None if version is None else str(version)
    sizes = [len(text) for text in (name, version) if isinstance(text, str)]
    if not isinstance(name, str) or not all(0 < size <= MAX_SPEC_LENGTH for size in sizes):
        return None
    return name, version
