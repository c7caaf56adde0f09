"""Options that apply to all runs that a process writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ._access_tags import AccessTagLimits
from ._path_map import PathMap
from ._plugins import Plugins
from ._run_writer import MAX_ARRAY_SIZE
from ._stream_filter import StreamFilter

QUIET_PERIOD_SECONDS: Final = 5.0
"""Seconds without a change to a node before an append with an unknown outcome counts as lost."""

POISON_AFTER_SECONDS: Final = 60.0
"""Seconds for which one operation gets only HTTP 500, while the databases are healthy, before it counts as poison."""

LATE_AUDIT_SECONDS: Final = 300.0
"""Seconds between the end of a run and its second audit, if answers of the server were lost."""


@dataclass(frozen=True)
class WritingOptions:
    """Options for writing runs.

    Attributes
    ----------
    max_array_size
        The largest array in an event, in numbers, that becomes a list column, if the server's table storage has list
        columns. Larger arrays become array nodes. 0: no list columns; negative: no limit.
    quiet_period
        Seconds without a change to a node before `TiledCatalog` treats an append with an unknown outcome as lost, or
        believes a reading that contradicts answered writes.
    poison_after
        Seconds for which one operation gets only HTTP 500, while the databases are healthy, before `Connection` treats
        it as poison.
    late_audit
        Seconds between the end of a run and its second audit, which happens only if answers of the server were lost.
    spec_to_mimetype
        Mimetypes by spec for old resources, in addition to those that `RunNormalizer` knows.
    plugins
        The user's normalizer, patches and consolidators.
    streams
        The selection of streams to write.
    path_map
        Maps file paths of the acquisition host to those of the Tiled server.
    access_tags
        The access tags that a client's runs may request.
    """

    max_array_size: int = MAX_ARRAY_SIZE
    quiet_period: float = QUIET_PERIOD_SECONDS
    poison_after: float = POISON_AFTER_SECONDS
    late_audit: float = LATE_AUDIT_SECONDS
    spec_to_mimetype: Mapping[str, str] = field(default_factory=dict)
    plugins: Plugins = field(default_factory=Plugins)
    streams: StreamFilter = field(default_factory=StreamFilter)
    path_map: PathMap = field(default_factory=PathMap)
    access_tags: AccessTagLimits = field(default_factory=AccessTagLimits)
