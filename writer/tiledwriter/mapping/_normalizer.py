"""Translate documents of all Bluesky versions into modern ones, so that the run writer handles only one form."""

from __future__ import annotations

import copy
import posixpath
import re
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple
from urllib.parse import urlparse, urlunparse

import numpy

from .._errors import DocumentError, DocumentInvalid
from ._data_keys import (
    RESERVED,
    Document,
    KeyNames,
    declares_dtype,
    is_list,
    modern_configuration,
    modern_data_key,
    rename_data_keys,
    select_keys,
    without_reserved_names,
)
from ._frames import as_integer, as_range

DocumentPatch = Callable[[dict[str, Any]], Mapping[str, Any]]
Check = Callable[[str, Document], None]

_HDF5: Final = "application/x-hdf5"
_HDF5_SPECS: Final = (
    "HDF5 AD_HDF5 AD_HDF5_SINGLE AD_HDF5_SWMR AD_HDF5_SWMR_STREAM AD_HDF5_SWMR_SLICE AD_HDF5_GERM PIL100K_HDF5 "
    "XSP XSP3 XPS3 XSP3_BULK XSP3_STEP PANDA ROI_HDF5_FLY ROI_HDF51_FLY SIS_HDF51_FLY_STREAM_V1 MERLIN_FLY_STREAM_V2 "
    "MERLIN_HDF5_BULK TPX_HDF5 EIGER2_STREAM ZEBRA_HDF51_FLY_STREAM_V1"
)
MIMETYPES: Final[Mapping[str, str]] = {
    **dict.fromkeys(_HDF5_SPECS.split(), _HDF5),
    "AD_TIFF": "multipart/related;type=image/tiff",
    "NPY_SEQ": "multipart/related;type=application/x-npy",
    "PIZZABOX_ENC_FILE_TXT_PD": "text/csv",
}
_DATASETS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("HDF5", "AD_HDF5", "AD_HDF5_SINGLE", "AD_HDF5_SWMR"), "/entry/data/data"),
    **dict.fromkeys(("XSP", "XSP3", "TPX_HDF5"), "/entry/instrument/detector/data"),
}
_NUMBER_IN_ID: Final = re.compile(r"0|[1-9][0-9]{0,8}")

_LEGACY_RESOURCE: Final = frozenset({"uid", "spec", "root", "resource_path", "resource_kwargs"})
_MODERN_RESOURCE: Final = frozenset({"uid", "mimetype", "uri", "parameters"})
_REQUIRED: Final[Mapping[str, frozenset[str]]] = {
    "start": frozenset({"uid", "time"}),
    "descriptor": frozenset({"uid", "name", "run_start", "time", "data_keys"}),
    "event": frozenset({"uid", "descriptor", "seq_num", "time", "data", "timestamps"}),
    "event_page": frozenset({"uid", "descriptor", "seq_num", "time", "data", "timestamps"}),
    "bulk_events": frozenset(),
    "resource": frozenset({"uid"}),
    "datum": frozenset({"datum_id", "resource"}),
    "datum_page": frozenset({"datum_id", "resource", "datum_kwargs"}),
    "bulk_datum": frozenset({"datum_ids", "resource", "datum_kwarg_list"}),
    "stream_resource": frozenset({"uid", "data_key"}),
    "stream_datum": frozenset({"uid", "stream_resource", "descriptor", "indices", "seq_nums"}),
    "stop": frozenset({"uid", "run_start", "time", "exit_status"}),
}
_SEQ_NUMS_IN_A_NOTE: Final = 10
# The arguments of a datum that say which frames of its resource it is.
_POSITIONS: Final = ("indices", "point_number", "index")

# A template of a legacy resource begins so, with the directory and the beginning of the files' names.
_PATH_AND_NAME: Final = "%s%s"

# The parameters that say where the frames of a resource are, and which of its datums may give.
_PLACE_PARAMETERS: Final = ("dataset", "template", "filename", "slice", "squeeze", "multiplier", "join_method")

# The other arguments of a datum that have a meaning: the parameters of its resource, for which it may give others.
_UNDERSTOOD: Final = frozenset(
    {
        *_PLACE_PARAMETERS,
        *(
            "path",
            "frame_per_point",
            "files_per_datum",
            "chunk_shape",
            "join_chunks",
            "swmr",
            "locking",
            "_resource_spec",
        ),
    }
)

MAX_USED_DATUMS: Final = 10_000
"""The number of used datums to keep, in case later events refer to them again; the most recently used ones are kept."""


class _Stream(NamedTuple):
    name: str
    internal: frozenset[str]
    external: frozenset[str]
    renamed: Mapping[str, str]


class _Datum(NamedTuple):
    """A datum; `number` is that of its frame in the resource, for a datum without arguments that say which it is."""

    resource: str
    kwargs: Document
    number: int


class _Reference(NamedTuple):
    datum_id: str
    stream: str
    data_key: str
    descriptor: str
    seq_num: int


class _ResourceCounts:
    """Counters for one resource: its datums, and the frames used so far for each data key.

    Attributes
    ----------
    counted_keys
        The data keys with datums that do not say which frames they are.
    lowest
        The lowest number in the ids of the datums; None if no id has one.
    unnumbered
        The number of datums whose ids have no number.
    """

    def __init__(self) -> None:
        self._frames: dict[str, int] = {}
        self.counted_keys: set[str] = set()
        self.lowest: int | None = None
        self.unnumbered = 0

    def number(self, resource: str, datum_id: str) -> int:
        """Return the number of a new datum: the one in its id or, without one, its place among such datums.

        Bluesky and event-model make ids of the resource's uid, a slash, and the number of the datum in that resource,
        which is correct even if other datums are lost or late.
        """
        prefix, _, text = datum_id.rpartition("/")
        if prefix == resource and _NUMBER_IN_ID.fullmatch(text):
            number = int(text)
            self.lowest = number if self.lowest is None else min(number, self.lowest)
            return number
        self.unnumbered += 1
        return self.unnumbered - 1

    def frames(self, data_key: str, last: int) -> range:
        """Return the range of a datum's frames, given the last one.

        The range begins after the frames of the previous datum. If `last` was used before, the range is that frame
        alone.
        """
        start = self._frames.get(data_key, 0)
        if last < start:
            return range(last, last + 1)
        self._frames[data_key] = last + 1
        return range(start, last + 1)


class RunNormalizer:
    """Translator of the documents of one run into modern ones; called with each document, in order.

    The normalizer performs no I/O and never changes the documents it receives. The documents it returns may share
    nested values with them, so callers must not change these either.

    Parameters
    ----------
    patches : mapping of document name to function, optional
        Each function receives a deep copy of a document before the translation, and returns the document to use
        instead. A page is patched first as a page, then its documents are patched as 'event' or 'datum'.
    spec_to_mimetype : mapping, optional
        Mimetypes of resources by spec, in upper or lower case, in addition to `MIMETYPES`.

    Attributes
    ----------
    check : function, optional
        Called with the name and the content of each document after its patch; raises if the document is invalid.
    notes : list of str
        Notes on the translation for readers of the run, without duplicates.
    guessed_types : set of (stream, data key)
        The data keys whose `dtype_numpy` was derived from the JSON type because it was not declared.
    """

    def __init__(
        self, patches: Mapping[str, DocumentPatch] | None = None, spec_to_mimetype: Mapping[str, str] | None = None
    ) -> None:
        self.patches: dict[str, DocumentPatch] = dict(patches or {})
        mimetypes = {**MIMETYPES, **(spec_to_mimetype or {})}
        self.spec_to_mimetype: dict[str, str] = {spec.upper(): mimetype for spec, mimetype in mimetypes.items()}
        self.check: Check | None = None
        self.notes: list[str] = []
        self.guessed_types: set[tuple[str, str]] = set()
        self._emitted: list[tuple[str, dict[str, Any]]] = []
        self._streams_by_descriptor: dict[str, _Stream] = {}
        self._latest_streams_by_name: dict[str, _Stream] = {}
        self._key_names: dict[str, KeyNames] = {}
        # Modern resources whose data key may have another name in some streams.
        self._renamed_resources: dict[str, dict[str, Any]] = {}
        self._specs: dict[str, str] = {}
        self._resources: dict[str, dict[str, Any]] = {}
        self._unused_datums: dict[str, _Datum] = {}
        # The least recently used one comes first, so that it can be forgotten first.
        self._used_datums: OrderedDict[str, _Datum] = OrderedDict()
        self._has_forgotten = False
        # What was announced of each stream resource, and its uid, by the uid that it has at first.
        self._announced: dict[str, dict[str, str]] = {}
        self._run_uid = ""
        self._resources_of_other_runs: set[str] = set()
        self._counts: dict[str, _ResourceCounts] = {}
        # The streams and data keys with datums that are counted, because not even their ids say which frames they are.
        self._counted: set[tuple[str, str]] = set()
        # References of one data key are resolved in the order of their events, because rows and frame numbers depend
        # on that order.
        self._queues: dict[tuple[str, str], deque[_Reference]] = {}
        self._blocked: dict[str, list[deque[_Reference]]] = {}

    def __call__(self, name: str, doc: Document) -> list[tuple[str, dict[str, Any]]]:
        """Translate the next document of the run.

        Returns
        -------
        list of (name, document)
            The modern documents, in order; none while the document waits for a later one.

        Raises
        ------
        DocumentError
            The document lacks a field, or refers to a descriptor that did not come before it.
        """
        if name not in _REQUIRED:
            raise DocumentError(f"There is no kind of document called {name!r}; there are {', '.join(_REQUIRED)}.")
        self._emitted = []
        getattr(self, name)(doc)
        return self._emitted

    def emit(self, name: str | Enum, doc: dict[str, Any]) -> None:
        """Add a modern document to the result of the call; `name` may be a member of `event_model.DocumentNames`."""
        self._emitted.append((name if isinstance(name, str) else name.name, doc))

    def start(self, doc: Document) -> None:
        """Emit the start document, and remember the run's uid."""
        modern = dict(self._patch_and_check("start", doc))
        self._run_uid = modern["uid"]
        self.emit("start", modern)

    def descriptor(self, doc: Document) -> None:
        """Translate the data keys, remember which of them are external, and emit the descriptor."""
        modern = dict(self._patch_and_check("descriptor", doc))
        renamed = self._key_names.setdefault(modern["name"], KeyNames()).declare(modern["data_keys"])
        rename_data_keys(modern, renamed)
        for name, other in renamed.items():
            why = "is reserved" if name in RESERVED else "has the new name of another one"
            self._add_note(f"Stream '{modern['name']}': data key '{name}' {why} and was renamed to '{other}'.")
        self.guessed_types |= {
            (modern["name"], name) for name, key in modern["data_keys"].items() if not declares_dtype(key)
        }
        keys = modern["data_keys"] = {name: modern_data_key(key) for name, key in modern["data_keys"].items()}
        for owner, names in (modern.get("object_keys") or {}).items():
            if not is_list(names):
                self._add_note(f"Stream '{modern['name']}': the object keys of '{owner}' are not a list of names.")
                continue
            for name in names:
                if isinstance(name, str) and name in keys:
                    keys[name]["object_name"] = owner
        if isinstance(modern.get("configuration"), Mapping):
            modern["configuration"] = modern_configuration(modern["configuration"])
        external = frozenset(name for name, key in keys.items() if key.get("external"))
        stream = _Stream(modern["name"], frozenset(keys) - external, external, renamed)
        # Most further descriptors of a stream have the same data keys, which then are stored only once.
        if self._latest_streams_by_name.get(stream.name) != stream:
            self._latest_streams_by_name[stream.name] = stream
        self._streams_by_descriptor[modern["uid"]] = self._latest_streams_by_name[stream.name]
        self.emit("descriptor", modern)

    def event(self, doc: Document) -> None:
        """Emit the event with its internal data, then the documents for its references to external data."""
        modern = dict(self._patch_and_check("event", doc))
        stream = self._streams_by_descriptor.get(modern["descriptor"])
        if stream is None:
            raise _document_error(
                "event", doc, f"belongs to descriptor {modern['descriptor']!r}, which did not come before it"
            )
        data: Document = without_reserved_names(modern["data"], stream.renamed)
        timestamps = without_reserved_names(modern["timestamps"], stream.renamed)
        filled = without_reserved_names(modern.pop("filled", None) or {}, stream.renamed)
        internal = self._internal_keys(stream, data, filled)
        modern["data"] = select_keys(internal, data)
        modern["timestamps"] = select_keys(internal, timestamps)
        self.emit("event", modern)
        if len(modern["data"]) < len(data):
            for key in data:
                if key in stream.external and key not in internal and data[key] is not None:
                    self._queue_reference(
                        _Reference(data[key], stream.name, key, modern["descriptor"], modern["seq_num"])
                    )

    def event_page(self, doc: Document) -> None:
        """Handle the events of a page one by one."""
        for event in _unpacked_events(self._patch_and_check("event_page", doc)):
            self.event(event)

    def bulk_events(self, doc: Document) -> None:
        """Handle the events of a bulk document, the predecessor of the page, with lists of events by descriptor."""
        for events in self._patch_and_check("bulk_events", doc).values():
            for event in events:
                self.event(event)

    def resource(self, doc: Document) -> None:
        """Store a resource for the events that refer to its datums, and resolve the references that waited for it."""
        received = dict(self._patch_and_check("resource", doc))
        received["spec"] = str(received.get("spec") or "").upper()
        self._specs[received["uid"]] = received["spec"]
        if self._run_uid and received.get("run_start") not in (None, self._run_uid):
            self._resources_of_other_runs.add(received["uid"])
        self._resources[received["uid"]] = self._modern_resource("resource", received)
        self._unblock_queues(received["uid"])

    def datum(self, doc: Document) -> None:
        """Store a datum, and resolve the references that waited for it."""
        resource, kwargs = doc.get("resource"), doc.get("datum_kwargs")
        spec = self._specs.get(resource) if isinstance(resource, str) else None
        if spec and (kwargs is None or isinstance(kwargs, Mapping)):
            doc = {**doc, "datum_kwargs": {**(kwargs or {}), "_resource_spec": spec}}
        received = self._patch_and_check("datum", doc)
        datum_id, uid = received["datum_id"], sys.intern(str(received["resource"]))
        known = self._find_datum(datum_id)
        counts = self._counts.setdefault(uid, _ResourceCounts())
        kwargs = received.get("datum_kwargs") or {}
        if _names_any(kwargs, *_POSITIONS, "frame"):
            number = 0
        elif known is None or _names_any(known.kwargs, *_POSITIONS, "frame"):
            number = counts.number(uid, str(datum_id))
        else:
            number = known.number
        self._unused_datums[datum_id] = _Datum(uid, kwargs, number)
        self._unblock_queues(received["datum_id"])

    def datum_page(self, doc: Document) -> None:
        """Handle the datums of a page one by one."""
        page = self._patch_and_check("datum_page", doc)
        kwargs = _columns_to_rows("datum_page", page["datum_kwargs"], len(page["datum_id"]))
        for row in _columns_to_rows("datum_page", {"datum_id": page["datum_id"], "datum_kwargs": kwargs}, len(kwargs)):
            self.datum({"resource": page["resource"], **row})

    def bulk_datum(self, doc: Document) -> None:
        """Handle the datums of a bulk document, the predecessor of the page, one by one."""
        page = self._patch_and_check("bulk_datum", doc)
        columns = {"datum_id": page["datum_ids"], "datum_kwargs": page["datum_kwarg_list"]}
        for row in _columns_to_rows("bulk_datum", columns, len(page["datum_ids"])):
            self.datum({"resource": page["resource"], **row})

    def stream_resource(self, doc: Document) -> None:
        """Emit a stream resource in its modern form."""
        modern = self._modern_resource("stream_resource", self._patch_and_check("stream_resource", doc))
        data_key = modern["data_key"]
        if data_key.rstrip("_") in RESERVED:
            self._renamed_resources[modern["uid"]] = dict(modern)
            modern["data_key"] = f"{data_key}_" if data_key in RESERVED else data_key
        self.emit("stream_resource", modern)

    def stream_datum(self, doc: Document) -> None:
        """Emit a stream datum; before it, its stream resource once more if its data key has another name here."""
        modern = dict(self._patch_and_check("stream_datum", doc))
        resource = self._renamed_resources.get(modern["stream_resource"])
        stream = self._streams_by_descriptor.get(modern["descriptor"])
        if resource is not None and stream is not None:
            data_key = resource["data_key"]
            name = self._key_names[stream.name].renamed.get(data_key, data_key)
            if name != (f"{data_key}_" if data_key in RESERVED else data_key):
                modern["stream_resource"] = self._announce_resource(
                    f"{resource['uid']}-{name}", {**resource, "data_key": name}
                )
        self.emit("stream_datum", modern)

    def stop(self, doc: Document) -> None:
        """Resolve the remaining references, note those that cannot be resolved, and emit the stop document."""
        received = dict(self._patch_and_check("stop", doc))
        self._settle_all()
        self.emit("stop", received)

    def abandon(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the documents held back, for a run that ends without a stop document."""
        self._emitted = []
        self._settle_all()
        return self._emitted

    def _patch_and_check(self, name: str, doc: Document) -> Document:
        patch = self.patches.get(name)
        if patch is not None:
            doc = patch(copy.deepcopy(dict(doc)))
            if not isinstance(doc, Mapping):
                raise DocumentError(f"The patch for {name!r} must return a document; it returned {type(doc)}.")
        _require_fields(name, doc, _REQUIRED[name])
        if self.check is not None:
            self.check(name, doc)
        return doc

    def _add_note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _internal_keys(self, stream: _Stream, data: Document, filled: Document) -> frozenset[str]:
        """Return the data keys whose data is in the event itself."""
        internal = stream.internal
        if filled:
            try:
                internal = frozenset(
                    [key for key in stream.internal if filled.get(key, True)]
                    + [key for key in stream.external if filled.get(key, False)]
                )
            except ValueError:
                raise DocumentInvalid(
                    "event", "in $.filled, there is an array, which is neither true nor false"
                ) from None
        if data.keys() <= internal:
            return internal
        for key, value in data.items():
            if key not in stream.internal and key not in stream.external:
                self._add_note(
                    f"Stream '{stream.name}': data key '{key}' is not in the descriptor; its data is left out."
                )
            elif key not in internal and key in stream.external and value is not None and not isinstance(value, str):
                self._add_note(
                    f"Stream '{stream.name}': external data key '{key}' has data in events; it is kept as such."
                )
                internal |= {key}
            elif key not in internal and key in stream.internal and value is not None:
                # Text may be the id of a datum, of a data key that nothing declares to be external.
                kept = not isinstance(value, str)
                self._add_note(
                    f"Stream '{stream.name}': data key '{key}' is said not to be filled, but is not external; "
                    f"{'its data is kept' if kept else 'the text that it has is left out'}."
                )
                internal |= {key} if kept else set()
        return internal

    def _modern_resource(self, name: str, doc: Document) -> dict[str, Any]:
        """Translate a StreamResource, modern or old, or a Resource into a modern StreamResource."""
        if "mimetype" in doc:
            _require_fields(name, doc, _MODERN_RESOURCE)
            mimetype, uri, parameters = doc["mimetype"], doc["uri"], _without_arrays(doc["parameters"])
        else:
            _require_fields(name, doc, _LEGACY_RESOURCE)
            spec = doc["spec"]
            mimetype = self.spec_to_mimetype.get(str(spec).upper(), "application/octet-stream")
            uri = file_uri(doc["root"], doc["resource_path"])
            parameters = {**_without_arrays(doc["resource_kwargs"] or {}), "spec": spec}
            if str(parameters.get("template", "")).startswith(_PATH_AND_NAME) and not uri.endswith("/"):
                # The template begins with the directory and the file name. Devices of ophyd name the directory without
                # the slash at its end, which area detectors and their handlers add.
                uri += "/"
            if spec in _DATASETS:
                parameters["dataset"] = parameters.get("dataset") or _DATASETS[spec]
        if (multiplier := parameters.pop("frame_per_point", None)) is not None:
            parameters["multiplier"] = multiplier
        if mimetype == _HDF5:
            dataset = parameters.pop("dataset", "")
            parameters["dataset"] = parameters.pop("path", dataset)
        where = {"mimetype": mimetype, "uri": uri, "parameters": parameters}
        return {"uid": doc["uid"], "data_key": doc.get("data_key", ""), **where}

    def _queue_reference(self, reference: _Reference) -> None:
        queue = self._queues.setdefault((reference.stream, reference.data_key), deque())
        queue.append(reference)
        if len(queue) == 1:
            self._resolve_references(queue)

    def _resolve_references(self, queue: deque[_Reference]) -> None:
        """Resolve references up to the first one whose datum or resource has not arrived."""
        while queue:
            missing = self._missing_id(queue[0])
            if missing is not None:
                self._blocked.setdefault(missing, []).append(queue)
                return
            self._emit_stream_datum(queue.popleft())

    def _unblock_queues(self, uid: str) -> None:
        for queue in self._blocked.pop(uid, ()):
            self._resolve_references(queue)

    def _missing_id(self, reference: _Reference) -> str | None:
        """Return the id of the datum or resource for which a reference waits; None if both have arrived."""
        datum = self._find_datum(reference.datum_id)
        if datum is None:
            return reference.datum_id
        return None if datum.resource in self._resources else datum.resource

    def _find_datum(self, datum_id: str) -> _Datum | None:
        return self._unused_datums.get(datum_id) or self._used_datums.get(datum_id)

    def _use_datum(self, datum_id: str) -> _Datum:
        """Return a datum for an event, and forget the least recently used datum if there are too many."""
        datum = self._unused_datums.pop(datum_id, None) or self._used_datums[datum_id]
        self._used_datums[datum_id] = datum
        self._used_datums.move_to_end(datum_id)
        if len(self._used_datums) > MAX_USED_DATUMS:
            self._used_datums.popitem(last=False)
            self._has_forgotten = True
        return datum

    def _emit_stream_datum(self, reference: _Reference) -> None:
        """Emit the stream datum of a reference, after its stream resource if that is new."""
        datum = self._use_datum(reference.datum_id)
        if datum.resource in self._resources_of_other_runs and not _names_any(datum.kwargs, *_POSITIONS):
            self._add_note(
                f"Stream '{reference.stream}': external data of '{reference.data_key}' is incomplete; resource "
                f"'{datum.resource}' began in another run, and its datums here do not say which of its frames they are."
            )
            return
        try:
            frames, parameters = self._frames_of(reference, datum)
        except DocumentError as error:
            self._add_note(
                f"Stream '{reference.stream}': external data of '{reference.data_key}' is incomplete; {error}"
            )
            return
        if not parameters.keys() <= _UNDERSTOOD:
            self._note_arguments(reference, datum, parameters.keys() - _UNDERSTOOD)
        resource = self._resources[datum.resource]
        parameters = {**resource["parameters"], **parameters}
        if resource["mimetype"] == _HDF5 and "path" in parameters:
            parameters["dataset"] = parameters.pop("path")
        uid = self._announce_resource(
            f"{datum.resource}-{reference.descriptor}-{reference.data_key}",
            {**resource, "data_key": reference.data_key, "parameters": parameters},
        )
        indices = {"start": frames.start, "stop": frames.stop}
        seq_nums = {"start": reference.seq_num, "stop": reference.seq_num + 1}
        ids = {"uid": reference.datum_id, "stream_resource": uid, "descriptor": reference.descriptor}
        self.emit("stream_datum", {**ids, "indices": indices, "seq_nums": seq_nums})

    def _note_arguments(self, reference: _Reference, datum: _Datum, names: Collection[str]) -> None:
        """Note arguments of a datum that may say which frames it is, in a way that nobody here knows."""
        known = next((name for name in (*_POSITIONS, "frame") if _names_any(datum.kwargs, name)), None)
        if known is not None:
            said = f"by {known!r}"
        elif self._counts[datum.resource].unnumbered:
            said = "by the order in which the datums came"
        else:
            said = "by the numbers in the ids of the datums"
        given = ", ".join(map(repr, sorted(names)))
        self._add_note(
            f"Stream '{reference.stream}': datums of '{reference.data_key}' have {given}, of which nothing is known; "
            f"their frames are told {said} alone."
        )

    def _announce_resource(self, uid: str, resource: dict[str, Any]) -> str:
        """Emit a stream resource unless it was emitted before; return its uid.

        If the uid stands for other files already, because a resource came again or its datums are not in one place of
        it, the resource gets another uid.
        """
        announced = self._announced.setdefault(uid, {})
        given = resource["parameters"]
        place = repr((resource["mimetype"], resource["uri"], [given.get(name) for name in _PLACE_PARAMETERS]))
        known = announced.get(place)
        if known is None:
            known = announced[place] = f"{uid}-{len(announced)}" if announced else uid
            self.emit("stream_resource", {**resource, "uid": known})
        return known

    def _frames_of(self, reference: _Reference, datum: _Datum) -> tuple[range, dict[str, Any]]:
        """Return the numbers of a datum's frames in the resource, and the arguments that do not concern them.

        Raises
        ------
        DocumentError
            The datum does not tell its frames. The message is the same for all datums of a kind.
        """
        kwargs = dict(datum.kwargs)
        given = {name: value for name in (*_POSITIONS, "frame") if (value := kwargs.pop(name, None)) is not None}
        for name, value in given.items():
            if name == "indices":
                frames = as_range(value)
                if frames is None:
                    raise DocumentError("'indices' of its datums are not a start and a stop.")
                return frames, kwargs
            number = as_integer(value)
            if number is None or number < 0:
                raise DocumentError(f"{name!r} of its datums is not the number of a frame.")
            if name == "frame":
                return self._counts[datum.resource].frames(reference.data_key, number), kwargs
            return range(number, number + 1), kwargs
        counts = self._counts[datum.resource]
        if counts.unnumbered and counts.lowest is not None:
            raise DocumentError("its datums do not say which frames they are, and only some ids have numbers.")
        counts.counted_keys.add(reference.data_key)
        if counts.unnumbered:
            self._counted.add((reference.stream, reference.data_key))
        if datum.number and counts.unnumbered:
            self._note_counted(reference.stream, reference.data_key)
        if len(counts.counted_keys) > 1:
            keys = ", ".join(map(repr, sorted(counts.counted_keys)))
            self._add_note(
                f"Stream '{reference.stream}': the datums of {keys} are of one resource and do not say which of its "
                "frames they are; they are taken to be numbered over all of these data keys."
            )
        return range(datum.number, datum.number + 1), kwargs

    def _note_counted(self, stream: str, data_key: str) -> None:
        self._add_note(
            f"Stream '{stream}': datums of '{data_key}' do not say which frames they are; they are taken to be those "
            "of their resource in the order in which they came."
        )

    def _settle_all(self) -> None:
        for (stream, data_key), queue in self._queues.items():
            self._drain_queue(stream, data_key, queue)
        self._note_numbers_in_ids()

    def _note_numbers_in_ids(self) -> None:
        """Note the data keys whose frames are numbered by the ids of their datums, if these do not begin with 0.

        The first datums may be lost, or the ids may be numbered over several resources.
        """
        resources: dict[str, list[str]] = {}
        for uid, counts in self._counts.items():
            if counts.lowest:
                for data_key in counts.counted_keys:
                    resources.setdefault(data_key, []).append(uid)
        for data_key, uids in sorted(resources.items()):
            others = f" and of {len(uids) - 1} other(s)" * (len(uids) > 1)
            self._add_note(
                f"Data key '{data_key}': the numbers in the ids of its datums are taken for those of frames, though "
                f"they begin with {self._counts[uids[0]].lowest} and not with 0 for resource '{uids[0]}'{others}."
            )

    def _drain_queue(self, stream: str, data_key: str, queue: deque[_Reference]) -> None:
        """Resolve the rest of a queue, skipping the references whose datum or resource never arrived."""
        lost: list[int] = []
        while queue:
            reference = queue.popleft()
            if self._missing_id(reference) is None:
                self._emit_stream_datum(reference)
            else:
                lost.append(reference.seq_num)
        if lost:
            if (stream, data_key) in self._counted:
                self._note_counted(stream, data_key)
            seq_nums = ", ".join(map(str, lost[:_SEQ_NUMS_IN_A_NOTE])) + ", ..." * (len(lost) > _SEQ_NUMS_IN_A_NOTE)
            earlier = f", or more than {MAX_USED_DATUMS:,} datums before" if self._has_forgotten else ""
            what = f"the datums or resources of {len(lost)} event(s) never came{earlier} (seq_num {seq_nums})"
            self._add_note(f"Stream '{stream}': external data of '{data_key}' is incomplete; {what}.")


def file_uri(root: str | None, path: str) -> str:
    """Return the URI of a file or, with a trailing slash, of a directory.

    Nothing is percent-encoded, because Tiled does not decode the path of a file URI. A relative path starts at '/',
    because the working directory of the process that wrote the file is unknown.

    Parameters
    ----------
    root
        The directory as a path or URI, or None; ignored if it is an absolute path and `path` lies below it already.
    path
        The path, relative to `root` even if it begins with '/'. Without a root, a path or URI.
    """
    path = str(path)
    if root and not _is_below(path, str(root)):
        separator = "/" if path.startswith("/") else ""
        path = posixpath.join(str(root) + separator, path.lstrip("/"))
    tail = "/" if path.endswith("/") else ""
    if re.match(r"[a-z0-9+]+://", path):
        parts = urlparse(path)
        uri = urlunparse(parts._replace(netloc=parts.netloc or "localhost"))
    else:
        if re.match(r"[A-Za-z]:[\\/]", path):
            path = "/" + path.replace("\\", "/")
        uri = f"file://localhost{PurePosixPath('/', path)}"
    return uri.rstrip("/") + tail


def _is_below(path: str, root: str) -> bool:
    """Return whether a root is absolute and a path lies below it."""
    place, folder = (text.replace("\\", "/").rstrip("/") + "/" for text in (path, root))
    return folder != "/" and place.startswith(folder) and re.match(r"/|[A-Za-z]:/", folder) is not None


def _names_any(kwargs: Document, *names: str) -> bool:
    """Return whether a datum has any of these arguments."""
    return any(kwargs.get(name) is not None for name in names)


def _require_fields(name: str, doc: Document, fields: frozenset[str]) -> None:
    if fields <= doc.keys():
        return
    missing = sorted(fields - doc.keys())
    raise _document_error(name, doc, f"has no {', '.join(map(repr, missing))}")


def _document_error(name: str, doc: Document, what: str) -> DocumentError:
    uid = doc.get("uid", doc.get("datum_id", "without uid"))
    return DocumentError(f"The {name} document {uid!r} {what}. Correct it with a patch for {name!r}.")


def _without_arrays(parameters: Document) -> dict[str, Any]:
    """Return the parameters of a resource with lists in place of arrays, which have no truth value."""
    return {name: value.tolist() if isinstance(value, numpy.ndarray) else value for name, value in parameters.items()}


def _unpacked_events(page: Document) -> Iterator[dict[str, Any]]:
    count = len(page["seq_num"])
    events = _columns_to_rows("event_page", {field: page[field] for field in ("uid", "seq_num", "time")}, count)
    data, timestamps, filled = (
        _columns_to_rows("event_page", page.get(field) or {}, count) for field in ("data", "timestamps", "filled")
    )
    for row, event in enumerate(events):
        nested = {"data": data[row], "timestamps": timestamps[row], "filled": filled[row]}
        yield {"descriptor": page["descriptor"], **event, **nested}


def _columns_to_rows(name: str, columns: Document, count: int) -> list[dict[str, Any]]:
    for key, values in columns.items():
        if len(values) != count:
            raise _document_error(name, {}, f"has {len(values)} values in column {key!r} for {count} rows")
    return [{key: values[row] for key, values in columns.items()} for row in range(count)]
