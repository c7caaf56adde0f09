"""Which access tags the runs of a client may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .._errors import DocumentError

ANY_CLIENT: Final = "*"


def as_tags(tags: Any) -> tuple[str, ...] | None:
    """The access tags of a start document; a text is one tag."""
    if tags is None:
        return None
    return (tags,) if isinstance(tags, str) else tuple(tags)


@dataclass(frozen=True)
class AccessTagLimits:
    """What `tiled_access_tags` in a start document may name.

    Attributes
    ----------
    allowed
        Tags by client; "*" for clients that are not named, and for all where there are no keys. Empty: any tags.
    """

    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def check(self, client: str, start: Mapping[str, Any]) -> None:
        """Refuse a run that asks for tags which are not its client's to give.

        To leave them out instead would show the run to others than its owner meant.

        Raises
        ------
        DocumentError
            It does.
        """
        asked = as_tags(start.get("tiled_access_tags"))
        if not self.allowed or asked is None:
            return
        allowed = self.allowed.get(client, self.allowed.get(ANY_CLIENT, ()))
        refused = [str(tag) for tag in asked if tag not in allowed]
        if refused:
            raise DocumentError(
                f"its access tags {', '.join(map(repr, refused))} are not for client {client!r} to give. "
                "If they should be, add them to access_tags in the configuration, and retry the run"
            )
