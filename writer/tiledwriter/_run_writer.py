"""The fold: modern documents of one run in, Tiled operations out. No I/O, no clock, no chance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ._consolidators import Consolidator, Patch, consolidator_for
from ._errors import DocumentError
from ._json import to_json
from ._operations import (
    CloseStream,
    CreateContainer,
    ExtendExternal,
    Operation,
    RegisterExternal,
    UpdateMetadata,
)
from ._tables import InternalData

MAX_ARRAY_SIZE: Final = 16
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

    def flush(self) -> list[Operation]:
        if self.patch is None:
            return []
        told, self.told = self.told, self.consolidator.rows
        patch, self.patch = self.patch, None
        source = self.consolidator.data_source()
        return [ExtendExternal(self.path, told, self.told, source, patch.offset, patch.shape)]


class Stream:
    """One stream: its data keys, internal data, and external data by key."""

    def __init__(self, path: str, descriptor: Mapping[str, Any], internal: InternalData) -> None:
        self.path = path
        self.descriptor = descriptor
        self.internal = internal
        self.external: dict[str, ExternalData] = {}
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

    Attributes
    ----------
    notes
        What could not be represented as it was, for the run's metadata.
    """

    def __init__(
        self,
        *,
        max_array_size: int = MAX_ARRAY_SIZE,
        guessed_types: Collection[tuple[str, str]] = frozenset(),
        consolidators: Mapping[str, type[Consolidator]] | None = None,
    ) -> None:
        self.notes: list[str] = []
        self._max_array_size = max_array_size
        self._guessed_types = guessed_types
        self._consolidators = consolidators
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

    def flush(self) -> list[Operation]:
        """Operations for all events and datums since the last flush."""
        operations: list[Operation] = []
        for stream in self._streams.values():
            operations += stream.internal.flush()
            for external in stream.external.values():
                operations += external.flush()
        return operations

    def abandon(self) -> list[Operation]:
        """Operations that end a run which has no stop document."""
        return [*self.flush(), *self._close()]

    def note(self, text: str) -> None:
        """Add to the notes, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _start(self, document: Mapping[str, Any]) -> list[Operation]:
        start = dict(document)
        self._path = start["uid"]
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
        path = f"{self._path}/{name}"
        internal = InternalData(
            path,
            document["data_keys"],
            guessed={key for stream, key in self._guessed_types if stream == name},
            max_array_size=self._max_array_size,
            access_tags=self._access_tags,
            note=self.note,
        )
        stream = Stream(path, document, internal)
        self._streams[name] = self._stream_of[document["uid"]] = stream
        return [CreateContainer(path, metadata, STREAM_SPECS, self._access_tags, ("uid",))]

    def _reconfigure(self, stream: Stream, document: Mapping[str, Any], metadata: dict[str, Any]) -> list[Operation]:
        """A further descriptor of a stream tells that its configuration has changed."""
        self._stream_of[document["uid"]] = stream
        update = {key: metadata[key] for key in ("uid", "time", "configuration") if metadata.get(key)}
        stream.updates.append(update)
        return [UpdateMetadata(stream.path, {"_config_updates": list(stream.updates)})]

    def _event(self, document: Mapping[str, Any]) -> list[Operation]:
        self._stream_of[document["descriptor"]].internal.add(document)
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
        external = ExternalData(f"{stream.path}/{key}", consolidator, {resource["uid"]})
        stream.external[key] = external
        return external, [RegisterExternal(external.path, consolidator.data_source(), {}, self._access_tags)]

    def _stop(self, document: Mapping[str, Any]) -> list[Operation]:
        operations = self.flush()
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

    def _close(self) -> list[Operation]:
        paths: list[str] = []
        for stream in self._streams.values():
            paths += [array.path for array in stream.internal.arrays.values()]
            paths += [stream.internal.path] if stream.internal.started else []
            paths += [external.path for external in stream.external.values()]
            paths.append(stream.path)
        return [CloseStream(path) for path in [*paths, self._path]]


def _spec(spec: Any) -> tuple[str, str | None]:
    return (spec, None) if isinstance(spec, str) else (spec["name"], spec.get("version"))
