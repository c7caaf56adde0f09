"""Drive a consolidator that was written for bluesky-tiled-plugins' writer, by the interface that it has there."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar

from .._errors import DocumentError
from ._consolidator import Consolidator, Document, plain_data_source
from ._consolidators import REGISTRY
from ._frames import Region

# The registry of the older one comes first, as that of the newer one takes precedence.
_REGISTRY_MODULES: Final = ("bluesky.consolidators", "bluesky_tiled_plugins.writing.consolidators")
_REQUIRED: Final = ("consume_stream_datum", "get_data_source")
_Result = TypeVar("_Result")


class GuestConsolidator(Consolidator):
    """A consolidator such as a subclass of the `ConsolidatorBase` of bluesky-tiled-plugins.

    It is asked to `consume_stream_datum`, to `update_from_stream_resource` for a further resource, and for its
    `get_data_source`. It gets copies of the documents, which it may change. An error that it raises costs its data key.

    Attributes
    ----------
    guest_class
        The class of the consolidator.
    """

    guest_class: ClassVar[Callable[..., Any]]

    @classmethod
    def handles(cls, mimetype: str) -> bool:
        """Return whether the consolidator's own check accepts a mimetype, or may do so for some documents."""
        check = getattr(cls.guest_class, "get_supported_mimetype", None)
        try:
            return super().handles(mimetype) if check is None else bool(check({"mimetype": mimetype}))
        except ValueError:
            return False
        except Exception:
            # It looks at more than the mimetype.
            return True

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        super().__init__(stream_resource, descriptor)
        documents = copy.deepcopy(dict(stream_resource)), copy.deepcopy(dict(descriptor))
        self._guest: Any = self._call_guest("__init__", lambda: type(self).guest_class(*documents))
        self._take_metadata()

    def add_resource(self, stream_resource: Document) -> None:
        """Have the consolidator take another StreamResource of the same data key."""
        document = copy.deepcopy(dict(stream_resource))
        self._call_guest("update_from_stream_resource", lambda: self._guest.update_from_stream_resource(document))
        self._take_metadata()

    def consume(self, stream_datum: Document) -> Region:
        """Have the consolidator add the rows of a StreamDatum; return the region of the array that changes."""
        indices = self._checked_indices(stream_datum)
        document = copy.deepcopy(dict(stream_datum))
        patch = self._call_guest("consume_stream_datum", lambda: self._guest.consume_stream_datum(document))
        self._take_metadata()
        before, self._rows = self._rows, self._rows + len(indices)
        if patch is None:
            shape = self.data_source()["structure"].get("shape") or [self._rows]
            return Region((before, *[0] * (len(shape) - 1)), (len(indices), *shape[1:]))
        return Region(tuple(map(int, patch.offset)), tuple(map(int, patch.shape)))

    def data_source(self) -> dict[str, Any]:
        """Return the consolidator's data source, in JSON types."""
        return self._call_guest("get_data_source", lambda: plain_data_source(self._guest.get_data_source()))

    def _take_metadata(self) -> None:
        self.metadata = dict(getattr(self._guest, "metadata", None) or {})

    def _call_guest(self, method: str, call: Callable[[], _Result]) -> _Result:
        """Return the result of a call.

        Raises
        ------
        DocumentError
            The consolidator raised an error.
        """
        try:
            return call()
        except Exception as error:
            name = getattr(self.guest_class, "__qualname__", repr(self.guest_class))
            raise DocumentError(f"{name}.{method} failed ({type(error).__name__}: {error}).") from error


def adopt_consolidator(guest_class: Callable[..., Any]) -> type[GuestConsolidator]:
    """Return a class of ours that drives consolidators of the given class, or those that a function returns."""
    supported = getattr(guest_class, "supported_mimetypes", None) or ()
    mimetypes = frozenset([supported] if isinstance(supported, str) else supported)
    name = getattr(guest_class, "__name__", "GuestConsolidator")
    return type(name, (GuestConsolidator,), {"guest_class": guest_class, "mimetypes": mimetypes})


def is_guest_consolidator(loaded: object) -> bool:
    """Return whether an object is a class of the kind that `GuestConsolidator` drives, or a function or partial."""
    if isinstance(loaded, type):
        return all(callable(getattr(loaded, name, None)) for name in _REQUIRED)
    return callable(loaded)


def registered_consolidators() -> dict[str, type[Consolidator]]:
    """Return the consolidators in the registries of bluesky-tiled-plugins and bluesky that are not theirs, by mimetype.

    A facility's modules put them there when they are imported. If nothing has imported these packages, there are none;
    they are not imported here.
    """
    return {
        mimetype: _as_consolidator(found)
        for module in _REGISTRY_MODULES
        for mimetype, found in dict(getattr(sys.modules.get(module), "CONSOLIDATOR_REGISTRY", {})).items()
        if callable(found) and not _is_preregistered(mimetype, found)
    }


def _as_consolidator(found: Callable[..., Any]) -> type[Consolidator]:
    if isinstance(found, type) and issubclass(found, Consolidator):
        return found
    return adopt_consolidator(found)


def _is_preregistered(mimetype: str, found: Any) -> bool:
    """Return whether the packages themselves have put a class there; ours, of the same name, writes these files."""
    ours, module = REGISTRY.get(mimetype), getattr(found, "__module__", "")
    return ours is not None and module in _REGISTRY_MODULES and getattr(found, "__name__", "") == ours.__name__
