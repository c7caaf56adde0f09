"""Map file paths of the acquisition host to those of the Tiled server, which may mount the same files elsewhere.

A rule maps a directory on the acquisition host to the same directory on the Tiled server. If several rules match, the
one with the most path components applies; the order of the rules does not matter. Only whole components match: a rule
for `/data` does not apply to `/database`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import unquote

_FILE_URI: Final = re.compile(r"file:(?://(?P<host>[^/\\]*))?(?P<path>[/\\].*)?", re.IGNORECASE | re.DOTALL)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_DRIVE: Final = re.compile(r"[A-Za-z]:(?=[/\\]|$)")
_UNC: Final = "\\\\"
_HERE: Final = "file://localhost"
_LOCAL: Final = frozenset({"", "localhost"})


class MappedUri(NamedTuple):
    """A URI on the Tiled server, and the rule that produced it.

    Attributes
    ----------
    uri
        The URI to register in Tiled.
    rule
        The source directory of the rule as configured, or None if no rule applied.
    """

    uri: str
    rule: str | None = None


class _Component(NamedTuple):
    """One component of a path: its text, and all equivalent spellings of it."""

    text: str
    spellings: frozenset[str]

    def means(self, other: _Component) -> bool:
        """Return whether the two components have a spelling in common."""
        return not self.spellings.isdisjoint(other.spellings)


class _Place(NamedTuple):
    """An absolute path on a host, without `.` and `..`; the host is "" for the local one."""

    host: str
    components: tuple[_Component, ...]

    def contains(self, other: _Place) -> bool:
        """Return whether the other path is equal to this one or below it."""
        if self.host != other.host or len(self.components) > len(other.components):
            return False
        return all(mine.means(theirs) for mine, theirs in zip(self.components, other.components, strict=False))


class _Rule(NamedTuple):
    words: str
    place: _Place
    target: str


@dataclass(frozen=True)
class PathMap:
    """Map of file URIs from the acquisition host to the Tiled server; called with a URI.

    Attributes
    ----------
    rules
        Pairs of a directory on the acquisition host and the same directory on the server.

    Raises
    ------
    ValueError
        A directory is neither an absolute path nor a URI, a directory on the server contains `..`, or two rules have
        the same source directory.
    """

    rules: tuple[tuple[str, str], ...] = ()
    _rules: tuple[_Rule, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rules = [_parse_rule(source, target) for source, target in self.rules]
        for i, rule in enumerate(rules):
            for other in rules[:i]:
                if rule.place.contains(other.place) and other.place.contains(rule.place):
                    raise ValueError(f"{other.words!r} and {rule.words!r} are the same directory")
        rules.sort(key=lambda rule: -len(rule.place.components))
        object.__setattr__(self, "_rules", tuple(rules))

    @classmethod
    def of(cls, rules: Mapping[str, str]) -> PathMap:
        """Return a map with the rules of the configuration: directories on the server by directory on the host."""
        return cls(tuple(rules.items()))

    def __call__(self, uri: str) -> MappedUri:
        """Return the URI by which the server reaches a file; the URI as given if no rule applies.

        The part after the rule's directory keeps its spelling, percent signs included, because Tiled does not decode
        paths.
        """
        place = _parse_path(uri) if self._rules else None
        for rule in self._rules:
            if place is not None and rule.place.contains(place):
                rest = [component.text for component in place.components[len(rule.place.components) :]]
                mapped = "/".join([rule.target, *rest])
                tail = "/" if uri.endswith(("/", "\\")) or mapped == _HERE else ""
                return MappedUri(mapped + tail, rule.words)
        return MappedUri(uri)


def _parse_rule(source: str, target: str) -> _Rule:
    place = _parse_path(source)
    if place is None:
        raise ValueError(f"{source!r} is neither an absolute path nor a file URI")
    return _Rule(source, place, _target_uri(target))


def _target_uri(text: str) -> str:
    """Return the URI of a directory, without a trailing slash."""
    if _SCHEME.match(text):
        uri = text
    elif text.startswith("/"):
        uri = f"{_HERE}{text}"
    elif _DRIVE.match(text):
        uri = f"{_HERE}/" + text.replace("\\", "/")
    else:
        raise ValueError(f"{text!r} is neither an absolute path nor a URI")
    if ".." in uri.split("/"):
        raise ValueError(f"{text!r} has '..' in it")
    return uri.rstrip("/")


def _parse_path(text: str) -> _Place | None:
    """Parse a path or file URI; return None if it is neither, or if it is ambiguous."""
    uri = _FILE_URI.fullmatch(text)
    if uri is not None:
        host, path = uri["host"] or "", uri["path"] or "/"
        # In a URI with a slash too few, such as `file://C:/data`, the drive is in the place of the host.
        if _DRIVE.fullmatch(host):
            host, path = "", f"/{host}{path}"
    elif text.startswith(_UNC):
        host, _, path = text[2:].replace("\\", "/").partition("/")
    elif text.startswith("/") or _DRIVE.match(text):
        host, path = "", text
    else:
        return None
    windows = _DRIVE.match(path.removeprefix("/")) is not None
    components = list(_split_path(path.replace("\\", "/") if windows else path, encoded=uri is not None, fold=windows))
    # An encoded slash makes the path ambiguous: it means one path to software that decodes it, another to the rest.
    if any("/" in spelling for component in components for spelling in component.spellings):
        return None
    host = "" if host.lower() in _LOCAL else host.lower()
    return _Place(host, _resolve_dots(components, keep=int(windows)))


def _split_path(path: str, *, encoded: bool, fold: bool) -> Iterator[_Component]:
    for text in filter(None, path.split("/")):
        spellings = {text, unquote(text)} if encoded else {text}
        yield _Component(text, frozenset(spelling.casefold() if fold else spelling for spelling in spellings))


def _resolve_dots(components: list[_Component], keep: int) -> tuple[_Component, ...]:
    """Resolve `.` and `..`, encoded ones included; `..` never removes the first `keep` components (a drive)."""
    resolved: list[_Component] = []
    for component in components:
        if ".." in component.spellings:
            del resolved[max(len(resolved) - 1, keep) :]
        elif "." not in component.spellings:
            resolved.append(component)
    return tuple(resolved)
