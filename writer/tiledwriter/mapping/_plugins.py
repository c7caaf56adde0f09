"""Import the user's normalizer, patches and consolidators.

The configuration or the entry points of installed packages name them as `module:attribute`. Documents cannot cause an
import.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module, machinery, metadata
from pathlib import Path
from typing import Any, Final, TypeVar

from .._errors import PluginError
from ._consolidator import Consolidator
from ._guest_consolidator import adopt_consolidator, is_guest_consolidator, registered_consolidators
from ._guest_normalizer import GuestNormalizer, registered_mimetypes
from ._normalizer import _REQUIRED, DocumentPatch, RunNormalizer

ENTRY_POINTS: Final = "tiledwriter.consolidators"
"""The entry point group for consolidators.

The value of an entry point refers to a subclass of `Consolidator`; its name is the mimetype. Names of entry points
cannot contain `=`, which some mimetypes do. Therefore, a name without a slash stands for all `mimetypes` of the class.
"""

_REFERENCE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class Plugins:
    """References to the plugins, as `module:attribute`.

    References, not the plugins, are passed to other processes; each process imports the plugins itself.

    Attributes
    ----------
    normalizer
        A subclass of `RunNormalizer`, or anything that makes a normalizer with `subscribe` when called with `patches`
        and `spec_to_mimetype`, see `GuestNormalizer`. None for `RunNormalizer` itself.
    patches
        Functions by the name of the documents that they correct; see `RunNormalizer`.
    consolidators
        Subclasses of `Consolidator`, or of the `ConsolidatorBase` of bluesky-tiled-plugins, by mimetype. They take
        precedence over those of this package.
    modules
        Modules to import, which register consolidators with bluesky-tiled-plugins.
    """

    normalizer: str | None = None
    patches: Mapping[str, str] = field(default_factory=dict)
    consolidators: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()

    def make_normalizer(self, spec_to_mimetype: Mapping[str, str]) -> RunNormalizer | GuestNormalizer:
        """Return a normalizer for one run.

        Parameters
        ----------
        spec_to_mimetype
            Mimetypes by spec; see `RunNormalizer`.

        Raises
        ------
        PluginError
            The normalizer, a patch or a module cannot be imported, the normalizer cannot be constructed, or is none.
        """
        for module in self.modules:
            import_plugin_module(module)
        make = _load_function(self.normalizer) if self.normalizer else RunNormalizer
        patches = load_patches(self.patches)
        try:
            return make_normalizer(make, patches, spec_to_mimetype)
        except Exception as error:
            raise PluginError(f"{self.normalizer} cannot be made ({type(error).__name__}: {error})") from error

    def load_consolidators(self) -> dict[str, type[Consolidator]]:
        """Import all plugins; return the consolidators by mimetype, with those that their modules have registered.

        Raises
        ------
        PluginError
            A plugin cannot be imported, or a consolidator does not handle its mimetype.
        """
        for module in self.module_names:
            import_plugin_module(module)
        return {**registered_consolidators(), **load_consolidators(self.consolidators)}

    def check(self, spec_to_mimetype: Mapping[str, str]) -> None:
        """Import all plugins, and make a normalizer.

        Raises
        ------
        PluginError
            A plugin cannot be used.
        """
        self.make_normalizer(spec_to_mimetype)
        self.load_consolidators()

    @property
    def module_names(self) -> list[str]:
        """The modules of all plugins, without duplicates."""
        references = filter(None, [self.normalizer, *self.patches.values(), *self.consolidators.values()])
        return list(dict.fromkeys([*self.modules, *(reference.partition(":")[0] for reference in references)]))


def make_normalizer(
    make: Callable[..., Any], patches: Mapping[str, DocumentPatch], spec_to_mimetype: Mapping[str, str]
) -> RunNormalizer | GuestNormalizer:
    """Return a normalizer for one run.

    Parameters
    ----------
    make
        What makes it: `RunNormalizer`, a subclass, or anything that makes a normalizer with `subscribe`.
    patches, spec_to_mimetype
        See `RunNormalizer`.

    Raises
    ------
    PluginError
        What was made is no normalizer.
    Exception
        Whatever `make` raises.
    """
    normalizer = make(patches=dict(patches), spec_to_mimetype={**registered_mimetypes(), **spec_to_mimetype})
    return normalizer if isinstance(normalizer, RunNormalizer) else GuestNormalizer(normalizer)


def load_patches(references: Mapping[str, str]) -> dict[str, DocumentPatch]:
    """Import patches.

    Parameters
    ----------
    references
        References to functions (`module:attribute`) by document name.

    Raises
    ------
    PluginError
        There are no documents of that name, or a patch cannot be imported.
    """
    check_patch_names(references)
    return {name: _load_entry(name, _load_function, reference) for name, reference in references.items()}


def check_patch_names(names: Iterable[str]) -> None:
    """Raise `PluginError` if one of these is not the name of a kind of document."""
    for name in names:
        if name not in _REQUIRED:
            raise PluginError(f"there is no kind of document called {name!r}; there are {', '.join(_REQUIRED)}")


def load_consolidators(references: Mapping[str, str]) -> dict[str, type[Consolidator]]:
    """Import consolidators.

    Parameters
    ----------
    references
        References to subclasses of `Consolidator` (`module:attribute`) by mimetype.

    Raises
    ------
    PluginError
        A consolidator cannot be imported, or does not handle its mimetype.
    """
    consolidators: dict[str, type[Consolidator]] = {}
    for mimetype, reference in references.items():
        consolidator = _load_entry(mimetype, _load_consolidator, reference)
        if not consolidator.handles(mimetype):
            raise PluginError(f"{mimetype!r} is not among the mimetypes of {reference}")
        consolidators[mimetype] = consolidator
    return consolidators


def installed_consolidators(except_for: Mapping[str, str], *, load: bool = True) -> dict[str, str]:
    """Return references to the consolidators of installed packages, by mimetype, from their entry points.

    Parameters
    ----------
    except_for
        Mimetypes for which the configuration names a consolidator. Entry points with such a name are not imported.
    load
        Whether to import those, too, whose name is their mimetype and that seem to exist.

    Raises
    ------
    PluginError
        A consolidator cannot be used, or two packages have different ones for the same mimetype.
    """
    found: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if point.name in except_for:
            continue
        is_known = not load and "/" in point.name and may_exist(_class_reference(point))
        for mimetype in [point.name] if is_known else _entry_point_mimetypes(point):
            other = found.setdefault(mimetype, point)
            if other.value != point.value:
                raise PluginError(f"both {_describe_origin(other)} and {_describe_origin(point)} are for {mimetype!r}")
    return {mimetype: _class_reference(point) for mimetype, point in found.items() if mimetype not in except_for}


def _entry_point_mimetypes(point: metadata.EntryPoint) -> list[str]:
    """Return the mimetypes of an entry point, after checking that its class handles them."""
    named = "/" in point.name
    try:
        consolidator = _load_consolidator(_class_reference(point))
        if not named and not consolidator.mimetypes:
            raise PluginError(f"neither {point.name!r} nor the class names a mimetype")
        mimetypes = [point.name] if named else sorted(consolidator.mimetypes)
        load_consolidators(dict.fromkeys(mimetypes, _class_reference(point)))
    except PluginError as error:
        raise PluginError(f"{_describe_origin(point)}: {error}") from error
    return mimetypes


def _class_reference(point: metadata.EntryPoint) -> str:
    """Return the entry point's value as `module:attribute`, without the extras that may follow it."""
    return point.value.partition("[")[0].strip()


def _describe_origin(point: metadata.EntryPoint) -> str:
    package = "" if point.dist is None else f" of {point.dist.name}"
    return f"entry point {point.name!r}{package}"


def _load_consolidator(reference: str) -> type[Consolidator]:
    loaded = _import_attribute(reference)
    if isinstance(loaded, type) and issubclass(loaded, Consolidator):
        return loaded
    if is_guest_consolidator(loaded):
        return adopt_consolidator(loaded)
    raise PluginError(f"{reference} is not a subclass of Consolidator, nor does it have its methods")


def _load_function(reference: str) -> DocumentPatch:
    loaded = _import_attribute(reference)
    if not callable(loaded):
        raise PluginError(f"{reference} is not a function")
    return loaded  # type: ignore[no-any-return]


def may_exist(reference: str) -> bool:
    """Return whether a module, or an attribute of one, seems to exist, without importing what is not imported yet.

    If it does not, its import will tell why, most probably. Names may be made in ways that no text shows, so a module
    that seems to lack an attribute may have it nevertheless.

    Parameters
    ----------
    reference
        `module` or `module:attribute`.
    """
    name, colon, attribute = reference.partition(":")
    if name in sys.modules or (colon and not _REFERENCE.fullmatch(reference)):
        return False
    spec = _find_module(name)
    if spec is None or not (spec.origin or "").endswith(".py"):
        return False
    first = attribute.partition(".")[0]
    try:
        return first in re.findall(r"\w+", Path(str(spec.origin)).read_text(encoding="utf-8")) if colon else True
    except (OSError, ValueError):
        return False


def _find_module(name: str) -> machinery.ModuleSpec | None:
    """Return the spec of a module without importing its packages, as `importlib.util.find_spec` does."""
    spec: machinery.ModuleSpec | None = None
    places: list[str] | None = None
    whole = ""
    for part in name.split("."):
        whole = f"{whole}.{part}" if whole else part
        try:
            found = (finder.find_spec(whole, places) for finder in sys.meta_path)
            spec = next((candidate for candidate in found if candidate is not None), None)
        except KeyError:
            # A folder without `__init__.py`, in a package that is not imported yet.
            return None
        if spec is None:
            return None
        # None for a module that is no package, in which there are no others.
        places = list(spec.submodule_search_locations or ())
    return spec


def import_plugin_module(name: str) -> None:
    """Import a module.

    Raises
    ------
    PluginError
        It cannot be imported.
    """
    try:
        import_module(name)
    except Exception as error:
        raise PluginError(f"{name} cannot be imported ({type(error).__name__}: {error})") from error


def _import_attribute(reference: str) -> Any:
    if not _REFERENCE.fullmatch(reference):
        raise PluginError(f"{reference!r} is not of the form module:attribute")
    module, _, attribute = reference.partition(":")
    try:
        return reduce(_get_entry, attribute.split("."), import_module(module))
    except Exception as error:
        # The module's code runs on import and may raise anything.
        raise PluginError(f"{reference} cannot be imported ({type(error).__name__}: {error})") from error


def _get_entry(owner: Any, name: str) -> Any:
    """Return an attribute, or an entry of a dictionary: a table of patches has some without a name of their own."""
    return owner[name] if isinstance(owner, Mapping) and name in owner else getattr(owner, name)


def _load_entry(entry: str, load: Callable[[str], _Loaded], reference: str) -> _Loaded:
    try:
        return load(reference)
    except PluginError as error:
        raise PluginError(f"{entry!r}: {error}") from error
