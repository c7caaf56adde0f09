"""Resources and datums that came last, for runs that refer to them although they came with another run.

A detector that is staged once for several runs announces its file in the first of them only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

MAX_RESOURCES: Final = 4096
MAX_DATUMS: Final = 4096


class Asset(NamedTuple):
    """A document about files: its kind, its bytes, the uid of a datum's resource, and its place among all of them."""

    name: str
    body: bytes
    resource: str
    number: int


class RecentAssets:
    """Keeps some thousand resources and datums, the latest ones."""

    def __init__(self) -> None:
        self.count = 0
        self.resources: OrderedDict[str, Asset] = OrderedDict()
        self.datums: OrderedDict[str, Asset] = OrderedDict()

    def add_resource(self, uid: str, name: str, body: bytes) -> None:
        """Keep a resource or stream resource."""
        self.count += 1
        _put(self.resources, uid, Asset(name, body, "", self.count), MAX_RESOURCES)

    def add_datums(self, datum_ids: list[str], name: str, body: bytes, resource: str) -> None:
        """Keep the datums of a document."""
        self.count += 1
        asset = Asset(name, body, resource, self.count)
        for datum_id in datum_ids[-MAX_DATUMS:]:
            _put(self.datums, datum_id, asset, MAX_DATUMS)


def _put(assets: OrderedDict[str, Asset], uid: str, asset: Asset, limit: int) -> None:
    assets[uid] = asset
    assets.move_to_end(uid)
    if len(assets) > limit:
        assets.popitem(last=False)  # a dict would search for its first item


RECENT_ASSETS: Final = RecentAssets()
"""Of this process: a publisher that is made anew goes on where the one before it ended."""
