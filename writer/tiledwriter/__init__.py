"""Turns Bluesky runs into Tiled nodes, from journals, exactly once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._catalog import TiledCatalog
    from ._consolidators import Consolidator
    from ._errors import DocumentError, OperationRefused, WriterError
    from ._normalizer import RunNormalizer
    from ._run_writer import RunWriter

__all__ = [
    "Consolidator",
    "DocumentError",
    "OperationRefused",
    "RunNormalizer",
    "RunWriter",
    "TiledCatalog",
    "WriterError",
]

_MODULES = {
    "Consolidator": "_consolidators",
    "DocumentError": "_errors",
    "OperationRefused": "_errors",
    "RunNormalizer": "_normalizer",
    "RunWriter": "_run_writer",
    "TiledCatalog": "_catalog",
    "WriterError": "_errors",
}


def __getattr__(name: str) -> Any:
    # On an acquisition host only `tiledwriter-journal ship` is used, and nothing heavy is installed.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
