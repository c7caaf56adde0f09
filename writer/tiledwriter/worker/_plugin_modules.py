"""Import plugins once, in the process that workers are forked from, and again in a worker if they were changed since.

An import may take seconds, for example of bluesky-tiled-plugins. But who mends a patch and retries a run does not
expect that the service has to be restarted.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Collection
from typing import Final

from .._errors import PluginError
from ..mapping import Plugins, import_plugin_module

# Modification time in nanoseconds and size of each file that a plugin was imported from, by the name of the module.
_imported: Final[dict[str, tuple[int, int]]] = {}


def preload_plugins(plugins: Plugins) -> None:
    """Import all plugins that can be imported."""
    for name in plugins.module_names:
        with contextlib.suppress(PluginError):
            import_plugin_module(name)
    _imported.update(_find_files(plugins.module_names))
    # Workers never collect these objects, so the memory stays shared with the process that they are forked from.
    gc.freeze()


def forget_changed_plugins(plugins: Plugins) -> None:
    """Have plugins imported again, with all modules of their packages, if one of the files was changed."""
    if any(_imported.get(name) != found for name, found in _find_files(plugins.module_names).items()):
        packages = _packages_of(plugins.module_names)
        for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
            del sys.modules[name]
        importlib.invalidate_caches()


def _packages_of(names: Collection[str]) -> set[str]:
    # Our own classes may be named as plugins.
    return {name.partition(".")[0] for name in names} - {"tiledwriter", "tiledbroker"}


def _find_files(names: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return the state of the files of all imported modules that belong to the packages of plugins."""
    packages = _packages_of(names)
    found: dict[str, tuple[int, int]] = {}
    if not packages:
        return found
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in packages and isinstance(file, str):
            with contextlib.suppress(OSError):
                status = os.stat(file)  # noqa: PTH116  a path object for each module takes as long as all else
                found[name] = status.st_mtime_ns, status.st_size
    return found
