"""Users bring their own normalizer, patches and consolidators; this file imports what the configuration names.

Classes and functions are named as `module:attribute`, by the configuration or by an installed package's entry points.
Nothing is ever imported because a document says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from operator import attrgetter
from typing import Any, Final, TypeVar

from .._errors import WriterError
from ._consolidators import Consolidator
from ._normalizer import _REQUIRED, DocumentPatch, RunNormalizer

ENTRY_POINTS: Final = "tiledwriter.consolidators"
"""Entry point group. The value is a subclass of `Consolidator`, the name its mimetype.

An entry point's name cannot have the `=` of some mimetypes: one without a slash stands for all of the class's
`mimetypes`.
"""

_REFERENCE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_Class = TypeVar("_Class")
_Loaded = TypeVar("_Loaded")


class PluginError(WriterError, ValueError):
    """Raised when something that the configuration names cannot be used; says which entry, and why."""


@dataclass(frozen=True)
class Plugins:
    """What to import, as `module:attribute`, so that it can be handed to other processes; each imports for itself.

    Attributes
    ----------
    normalizer
        A subclass of `RunNormalizer`.
    patches
        Functions by the name of the documents that they correct; see `RunNormalizer`.
    consolidators
        Subclasses of `Consolidator` by mimetype. They go before those of this package.
    """

    normalizer: str | None = None
    patches: Mapping[str, str] = field(default_factory=dict)
    consolidators: Mapping[str, str] = field(default_factory=dict)

    def make_normalizer(self, spec_to_mimetype: Mapping[str, str]) -> RunNormalizer:
        """A normalizer for one run.

        Raises
        ------
        PluginError
            It cannot be made.
        """
        patches = load_patches(self.patches)
        normalizer = _load_class(self.normalizer, RunNormalizer) if self.normalizer else RunNormalizer
        try:
            return normalizer(patches=patches, spec_to_mimetype=spec_to_mimetype)
        except Exception as error:
            raise PluginError(f"{self.normalizer} cannot be made ({type(error).__name__}: {error})") from error

    def load_consolidators(self) -> dict[str, type[Consolidator]]:
        """Classes by mimetype.

        Raises
        ------
        PluginError
            One of them cannot be used.
        """
        return load_consolidators(self.consolidators)


def load_patches(references: Mapping[str, str]) -> dict[str, DocumentPatch]:
    """Patches by document name; raises `PluginError`."""
    patches: dict[str, DocumentPatch] = {}
    for name, reference in references.items():
        if name not in _REQUIRED:
            raise PluginError(f"there is no kind of document called {name!r}; there are {', '.join(_REQUIRED)}")
        patches[name] = _named(name, _load_function, reference)
    return patches


def load_consolidators(references: Mapping[str, str]) -> dict[str, type[Consolidator]]:
    """Consolidators by mimetype; raises `PluginError`."""
    consolidators: dict[str, type[Consolidator]] = {}
    for mimetype, reference in references.items():
        consolidator = _named(mimetype, lambda reference: _load_class(reference, Consolidator), reference)
        if consolidator.mimetypes and mimetype not in consolidator.mimetypes:
            raise PluginError(f"{mimetype!r}: {reference} has it not among its mimetypes")
        consolidators[mimetype] = consolidator
    return consolidators


def installed_consolidators(except_for: Mapping[str, str]) -> dict[str, str]:
    """References by mimetype, from the entry points of installed packages.

    Those for a mimetype in `except_for` are decided otherwise, and not looked at.

    Raises
    ------
    PluginError
        One cannot be used, or two packages have one for the same mimetype.
    """
    found: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if point.name in except_for:
            continue
        for mimetype in _mimetypes(point):
            other = found.setdefault(mimetype, point)
            if other.value != point.value:
                raise PluginError(f"both {_origin(other)} and {_origin(point)} are for {mimetype!r}")
    return {mimetype: _reference(point) for mimetype, point in found.items() if mimetype not in except_for}


def _mimetypes(point: metadata.EntryPoint) -> list[str]:
    """What an entry point is for; its class, too, has to fit."""
    named = "/" in point.name
    try:
        consolidator = _load_class(_reference(point), Consolidator)
        if not named and not consolidator.mimetypes:
            raise PluginError(f"neither {point.name!r} nor the class names a mimetype")
        mimetypes = [point.name] if named else sorted(consolidator.mimetypes)
        load_consolidators(dict.fromkeys(mimetypes, _reference(point)))
    except PluginError as error:
        raise PluginError(f"{_origin(point)}: {error}") from error
    return mimetypes


def _reference(point: metadata.EntryPoint) -> str:
    """The entry point's value as `module:attribute`, without the extras that may follow it."""
    return point.value.partition("[")[0].strip()


def _origin(point: metadata.EntryPoint) -> str:
    package = "" if point.dist is None else f" of {point.dist.name}"
    return f"entry point {point.name!r}{package}"


def _load_class(reference: str, base: type[_Class]) -> type[_Class]:
    loaded = _load(reference)
    if not isinstance(loaded, type) or not issubclass(loaded, base):
        raise PluginError(f"{reference} is no subclass of {base.__name__}")
    return loaded


def _load_function(reference: str) -> DocumentPatch:
    loaded = _load(reference)
    if not callable(loaded):
        raise PluginError(f"{reference} is no function")
    return loaded  # type: ignore[no-any-return]


def _load(reference: str) -> Any:
    if not _REFERENCE.fullmatch(reference):
        raise PluginError(f"{reference!r} is not of the form module:attribute")
    module, _, attribute = reference.partition(":")
    try:
        return attrgetter(attribute)(import_module(module))
    except Exception as error:  # a module runs what it likes when it is imported
        raise PluginError(f"{reference} cannot be imported ({type(error).__name__}: {error})") from error


def _named(entry: str, load: Callable[[str], _Loaded], reference: str) -> _Loaded:
    try:
        return load(reference)
    except PluginError as error:
        raise PluginError(f"{entry!r}: {error}") from error
