"""Doors of rooms of which a part needs packages that an acquisition host does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__` (PEP 562), which imports the module of a name when that is first asked for.

    Parameters
    ----------
    modules
        The module of each name, relative to the package.

    Raises
    ------
    AttributeError
        By what is returned, for any other name.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{modules[name]}", package), name)

    return get
