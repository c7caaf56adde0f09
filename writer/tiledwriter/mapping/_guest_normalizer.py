"""Drive a normalizer that was written for bluesky-tiled-plugins' writer, by the interface that it has there."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Final, TypeAlias, cast

from .._errors import PluginError
from ._data_keys import declares_dtype
from ._normalizer import MIMETYPES, Check

Documents: TypeAlias = list[tuple[str, dict[str, Any]]]

# What that writer puts the notes of its normalizer under, in the stop document.
_NOTES: Final = "_run_normalizer_notes"
# The table of the older one comes first, as that of the newer one takes precedence.
_TABLE_MODULES: Final = ("bluesky.callbacks.tiled_writer", "bluesky_tiled_plugins.writing.tiled_writer")
_PASSED_OVER: Final = frozenset({"resource", "datum", "datum_page", "bulk_datum"})


class GuestNormalizer:
    """A normalizer with `subscribe`, such as a subclass of the `RunNormalizer` of bluesky-tiled-plugins.

    It is called with each document and emits modern ones to the function given to its `subscribe`, any number of them.
    Events and datums come to it in pages, as that writer's router passes them on.

    Parameters
    ----------
    guest
        The normalizer of one run.

    Attributes
    ----------
    check : function, optional
        Called with the name and the content of each document that comes out; raises if the document is invalid.
    notes : list of str
        Notes that the normalizer has left for readers of the run.
    guessed_types : set of (stream, data key)
        The data keys whose `dtype_numpy` no descriptor declares.

    Raises
    ------
    PluginError
        The object cannot be called, or has no `subscribe`.
    """

    def __init__(self, guest: Any) -> None:
        if not callable(guest) or not callable(getattr(guest, "subscribe", None)):
            raise PluginError(
                f"a {type(guest).__qualname__} is no normalizer: it needs `subscribe`, and to be callable"
            )
        self.check: Check | None = None
        self.notes: list[str] = []
        self.guessed_types: set[tuple[str, str]] = set()
        self._guest = guest
        self._emitted: Documents = []
        self._declared: set[tuple[str, str]] = set()
        guest.subscribe(self._collect_emitted)

    def __call__(self, name: str, doc: dict[str, Any]) -> Documents:
        """Return the modern documents for the next document of the run, which the normalizer may change.

        Raises
        ------
        DocumentInvalid
            A document that came out does not follow its schema.
        Exception
            Whatever the normalizer raises.
        """
        if name == "descriptor":
            self._note_declared(doc)
        for paged_name, paged in _as_pages(name, doc):
            self._guest(paged_name, paged)
        emitted, self._emitted = self._emitted, []
        documents = [document for item in emitted for document in unpack_pages(*item)]
        for modern_name, modern in documents:
            self._finish_document(modern_name, modern)
        return documents

    def abandon(self) -> Documents:
        """Return no documents: these normalizers are not told that a run ends without a stop document."""
        self._take_notes(())
        return []

    def _collect_emitted(self, name: str | Enum, doc: Mapping[str, Any], validate: bool = False) -> None:
        # That writer is a router of event-model, and called like one. A copy, because the normalizer may go on to
        # change the document.
        del validate
        self._emitted.append((name if isinstance(name, str) else name.name, copy.deepcopy(dict(doc))))

    def _note_declared(self, doc: Mapping[str, Any]) -> None:
        for key, declaration in (doc.get("data_keys") or {}).items():
            if isinstance(declaration, Mapping) and not declares_dtype(declaration):
                self.guessed_types.add((str(doc.get("name")), key))

    def _finish_document(self, name: str, modern: dict[str, Any]) -> None:
        if name == "stop":
            self._take_notes(modern.pop(_NOTES, None) or ())
        if self.check is not None:
            self.check(name, modern)

    def _take_notes(self, of_stop: Iterable[Any]) -> None:
        for note in [*of_stop, *(getattr(self._guest, "notes", None) or ())]:
            if str(note) not in self.notes:
                self.notes.append(str(note))


def registered_mimetypes() -> dict[str, str]:
    """Return the mimetypes by spec that a facility's modules have put into `MIMETYPE_LOOKUP` of the packages.

    If nothing has imported bluesky-tiled-plugins or its predecessor in bluesky, there are none; they are not imported
    here.
    """
    found: dict[str, str] = {}
    for module in _TABLE_MODULES:
        found |= getattr(sys.modules.get(module), "MIMETYPE_LOOKUP", {})
    return {spec: mimetype for spec, mimetype in found.items() if MIMETYPES.get(spec.upper()) != mimetype}


def _as_pages(name: str, doc: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what that writer's router makes of a document: events and datums in pages, of one or of many."""
    import event_model

    if name == "event":
        yield "event_page", event_model.pack_event_page(cast("Any", doc))
    elif name == "datum":
        yield "datum_page", event_model.pack_datum_page(cast("Any", doc))
    elif name == "bulk_events":
        for page in event_model.bulk_events_to_event_pages(doc):
            yield "event_page", page
    elif name == "bulk_datum":
        yield "datum_page", event_model.bulk_datum_to_datum_page(doc)
    else:
        yield name, doc


def unpack_pages(name: str, doc: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of a page, since the run writer takes no pages; else the document itself.

    Resources and datums of the old kinds are passed over, as by bluesky-tiled-plugins' writer.
    """
    import event_model

    if name == "event_page":
        for event in event_model.unpack_event_page(cast("Any", doc)):
            yield "event", dict(event)
    elif name == "bulk_events":
        for page in event_model.bulk_events_to_event_pages(doc):
            yield from unpack_pages("event_page", cast("Any", page))
    elif name not in _PASSED_OVER:
        yield name, doc
