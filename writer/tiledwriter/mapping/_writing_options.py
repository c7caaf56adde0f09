"""How runs are written: everything that does not depend on the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ._access_tags import AccessTagLimits
from ._path_map import PathMap
from ._plugins import Plugins
from ._run_writer import MAX_ARRAY_SIZE
from ._stream_filter import StreamFilter

QUIET_PERIOD: Final = 5.0
POISON_AFTER: Final = 60.0
"""Seconds of nothing but 500 for one operation, while the databases are well, until it counts as poison."""

LATE_AUDIT_AFTER: Final = 300.0
WRITE_SLOTS: Final = 2


@dataclass(frozen=True)
class WritingOptions:
    """How runs are written.

    Attributes
    ----------
    max_array_size
        Arrays in events of up to this many numbers become list columns, where the server's tables have those.
    quiet_period
        Seconds; see `TiledCatalog`.
    poison_after
        Seconds; see `Connection`.
    late_audit
        Seconds after its end at which a run is compared with its journal once more, if answers were lost.
    write_slots
        Requests at a time that write to Tiled, over all workers of a journal directory.
    spec_to_mimetype
        For old resources, in addition to the specs that `RunNormalizer` knows.
    plugins
        The user's own normalizer, patches and consolidators.
    streams
        Which streams are written at all.
    path_map
        From the acquisition host's file paths to the Tiled server's.
    access_tags
        Which access tags the runs of a client may ask for.
    """

    max_array_size: int = MAX_ARRAY_SIZE
    quiet_period: float = QUIET_PERIOD
    poison_after: float = POISON_AFTER
    late_audit: float = LATE_AUDIT_AFTER
    write_slots: int = WRITE_SLOTS
    spec_to_mimetype: Mapping[str, str] = field(default_factory=dict)
    plugins: Plugins = field(default_factory=Plugins)
    streams: StreamFilter = field(default_factory=StreamFilter)
    path_map: PathMap = field(default_factory=PathMap)
    access_tags: AccessTagLimits = field(default_factory=AccessTagLimits)
