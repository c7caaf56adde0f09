"""Lazy imports for packages whose contents partly need libraries that an acquisition host lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module `__getattr__` (PEP 562) for a package that imports a name's module on first access.

    The returned function raises AttributeError for a name that is not in `modules`.

    Parameters
    ----------
    package
        Name of the package.
    modules
        The module of each name, relative to the package.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{modules[name]}", package), name)

    return get
