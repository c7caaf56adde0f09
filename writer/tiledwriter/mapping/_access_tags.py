"""Restrict the access tags that a client's runs may request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .._errors import DocumentError

ANY_CLIENT: Final = "*"


def as_tags(tags: Any) -> tuple[str, ...] | None:
    """Return the access tags of a start document as a tuple; a string is one tag.

    Raises
    ------
    DocumentError
        They are neither a text nor a list of texts. Nobody can tell who should see the run.
    """
    if tags is None:
        return None
    listed = [tags] if isinstance(tags, str) else tags
    if not isinstance(listed, list | tuple | set | frozenset):
        raise DocumentError(f"its tiled_access_tags {tags!r:.200} are neither a text nor a list of texts")
    return tuple(listed)


@dataclass(frozen=True)
class AccessTagLimits:
    """The tags that `tiled_access_tags` in a start document may contain.

    Attributes
    ----------
    allowed
        Allowed tags by client name. The entry "*" applies to clients that have no entry of their own, and to all
        clients if the service runs without keys. An empty mapping allows all tags.
    """

    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def check(self, client: str, start: Mapping[str, Any]) -> None:
        """Check that a run requests only tags that its client may assign.

        A forbidden tag is refused, not dropped: without the tag, the run could become visible to users to whom its
        owner did not mean to show it.

        Parameters
        ----------
        client
            The name of the client that sent the run; empty if the service runs without keys.
        start
            The start document.

        Raises
        ------
        DocumentError
            The start document requests a tag that the client may not assign.
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
