"""The most recent resources and datums, for runs that refer to those of another run.

A detector that is staged once for several runs emits its resource documents in the first of these runs only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

MAX_RESOURCES: Final = 4096
MAX_DATUMS: Final = 4096


class Asset(NamedTuple):
    """A resource or datum document.

    Attributes
    ----------
    name
        Name of the document.
    body
        The encoded document.
    resource
        Uid of the resource of a datum; "" for a resource.
    number
        Sequence number of the asset, in the order of arrival.
    """

    name: str
    body: bytes
    resource: str
    number: int


class RecentAssets:
    """Bounded collection of the most recent resources and datums, by uid.

    Attributes
    ----------
    count
        Number of documents added so far.
    resources, datums
        Assets by resource uid and by datum id, oldest first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.resources: OrderedDict[str, Asset] = OrderedDict()
        self.datums: OrderedDict[str, Asset] = OrderedDict()

    def add_resource(self, uid: str, name: str, body: bytes) -> None:
        """Add a resource or stream resource."""
        self.count += 1
        _cache_asset(self.resources, uid, Asset(name, body, "", self.count), MAX_RESOURCES)

    def add_datums(self, datum_ids: list[str], name: str, body: bytes, resource: str) -> None:
        """Add the datums of one document, all of which have the same resource."""
        self.count += 1
        asset = Asset(name, body, resource, self.count)
        for datum_id in datum_ids[-MAX_DATUMS:]:
            _cache_asset(self.datums, datum_id, asset, MAX_DATUMS)


def _cache_asset(assets: OrderedDict[str, Asset], uid: str, asset: Asset, limit: int) -> None:
    assets[uid] = asset
    assets.move_to_end(uid)
    if len(assets) > limit:
        # A plain dict would have to search for its first item.
        assets.popitem(last=False)


RECENT_ASSETS: Final = RecentAssets()
"""Assets of this process, so that a new publisher knows the resources that a previous one has seen."""
