"""Whether documents are what event-model's schemas say, found out before anything is made of them.

What nodes and rows are made of has to follow the schemas. Whatever else deviates from them is only kept as metadata:
it does no harm, and a note says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy

from .._errors import DocumentInvalid, DocumentMisplaced

RELIED_ON: Final[Mapping[str, tuple[str, ...]]] = {
    "start": ("uid", "time"),
    "descriptor": (
        *("uid", "run_start", "time", "name", "configuration?", "configuration.*", "object_keys?"),
        *("data_keys", "data_keys.*", "data_keys.*.dtype?", "data_keys.*.external?"),
        *("data_keys.*.shape?", "data_keys.*.shape.*"),
    ),
    "event": ("descriptor", "seq_num", "time", "data", "timestamps", "filled?"),
    "event_page": (
        *("descriptor", "seq_num", "seq_num.*", "time", "time.*", "data", "data.*", "timestamps", "timestamps.*"),
        *("filled?", "filled.*"),
    ),
    "bulk_events": ("*", "*.*"),  # the events themselves come by once more
    "resource": ("uid", "run_start?", "spec?", "root?", "resource_path", "resource_kwargs?"),
    "datum": ("datum_id", "resource", "datum_kwargs?"),
    "datum_page": ("datum_id", "datum_id.*", "resource", "datum_kwargs", "datum_kwargs.*"),
    "bulk_datum": ("datum_ids", "datum_ids.*", "resource", "datum_kwarg_list", "datum_kwarg_list.*"),
    "stream_resource": ("uid", "run_start?", "data_key", "mimetype", "uri", "parameters"),
    "stream_datum": ("stream_resource", "descriptor", "indices", "indices.*"),
    "stop": ("uid", "run_start", "time", "exit_status"),
}
"""Which places of documents have to follow the schemas. `*` is any key; at those with `?` null is as good as nothing.

Fields that have to be there are the normalizer's business, since old documents have others; but see `indices`.
"""

_HARMLESS: Final = frozenset({"additionalProperties", "unevaluatedProperties", "pattern", "enum"})
_RUN_FIELDS: Final = {"start": "uid", "descriptor": "run_start", "stop": "run_start"}
_CONTENTS: Final = dict.fromkeys(("event", "event_page"), frozenset({"data", "timestamps"}))
_ENOUGH: Final = 1000
_LONGEST_TEXT: Final = 200
_MASK: Final = "the value"


class _Schema(NamedTuple):
    validator: Any
    known: frozenset[str]  # the document's own fields


class DocumentChecks:
    """Called with each document of one run, as it is after the user's patches.

    Raises
    ------
    DocumentInvalid
        The document does not follow its schema where that matters.
    """

    def __init__(self) -> None:
        self._deviations: dict[tuple[str, ...], tuple[str, int]] = {}

    def __call__(self, name: str, document: Mapping[str, Any]) -> None:
        schema = _schemas()[name]
        try:
            valid = schema.validator.is_valid(document)
        except ValueError:  # a value that JSON does not have, such as NumPy's numbers
            valid = False
        if not valid:
            self._judge(name, document, schema)

    def tolerates(self, name: str) -> bool:
        """Whether documents of this name deviated so far."""
        return any(kind == name for kind, *_ in self._deviations)

    @property
    def notes(self) -> list[str]:
        """The deviations that were tolerated, each kind once."""
        return [
            f"Against event-model's schema of {name} documents: {text}"
            + (f", in {count} of them." if count > 1 else ".")
            for (name, *_), (text, count) in self._deviations.items()
        ]

    def _judge(self, name: str, document: Mapping[str, Any], schema: _Schema) -> None:
        kinds: dict[tuple[str, ...], Any] = {}
        for error in schema.validator.iter_errors(_as_json(name, document)):
            if error.kind.name == "unevaluatedProperties" and not _unknown(error, schema):
                continue  # it only follows from another error
            if _is_relied_on(name, error):
                raise DocumentInvalid(name, _described(error, schema))
            kinds.setdefault((name, *map(str, error.schema_path), getattr(error.kind, "property", "")), error)
        for kind, error in kinds.items():
            text, count = self._deviations.get(kind) or (_described(error, schema), 0)
            self._deviations[kind] = text, count + 1


@cache
def _schemas() -> dict[str, _Schema]:
    """Compiled once for all runs of a process, which takes some milliseconds; most is event-model's import."""
    import jsonschema_rs
    from event_model import schemas

    return {
        name.name: _Schema(jsonschema_rs.validator_for(schema, mask=_MASK), frozenset(_fields(schema)))
        for name, schema in schemas.items()
    }


def check_place(index: int, name: str) -> None:
    """Whether a document can stand where it does in a run's log.

    Raises
    ------
    DocumentMisplaced
        It cannot.
    """
    if index == 0 and name != "start":
        raise DocumentMisplaced("it is the first of its run, which begins with a start")
    if index > 0 and name == "start":
        raise DocumentMisplaced("its run has a start before it")


def check_run(run_uid: str, name: str, document: Mapping[str, Any]) -> None:
    """Whether a document, as the normalizer emits it, belongs to the run that it came for.

    Raises
    ------
    DocumentInvalid
        It names another run, whose node in Tiled it must not touch.
    """
    field = _RUN_FIELDS.get(name)
    if field is not None and document.get(field) != run_uid:
        found, expected = _short(repr(document.get(field))), _short(repr(run_uid))
        raise DocumentInvalid(name, f"at $.{field}, {found} is not {expected}, the run that it came for")


def load_schemas() -> None:
    """Do what takes time beforehand."""
    _schemas()


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from schema.get("properties", ())
    for part in schema.get("allOf", ()):
        yield from schema["$defs"][part["$ref"].rpartition("/")[2]]["properties"]


def _is_relied_on(name: str, error: Any) -> bool:
    if error.kind.name in _HARMLESS:
        return False
    path = tuple(error.instance_path)
    if error.kind.name == "required":
        path = (*path, error.kind.property)
        return len(path) > 1 and _matching(name, path) == "indices.*"
    pattern = _matching(name, path)
    return pattern is not None and not (pattern.endswith("?") and error.instance is None)


def _matching(name: str, path: Sequence[str | int]) -> str | None:
    """The entry of `RELIED_ON` that a place falls under."""
    for pattern in RELIED_ON[name]:
        parts = pattern.removesuffix("?").split(".")
        if len(parts) == len(path) and all(a in ("*", b) for a, b in zip(parts, path, strict=True)):
            return pattern
    return "" if not path else None


def _described(error: Any, schema: _Schema) -> str:
    place = f"at {_json_path(error.instance_path)}"
    if error.kind.name == "required":
        return f"{place}, there is no {_short(repr(error.kind.property))}"
    if unknown := _unknown(error, schema):
        return f"{place}, nothing is known of {_short(', '.join(map(repr, unknown)))}"
    return f"{place}, {_short(repr(error.instance))} {error.message.removeprefix(_MASK).strip()}"


def _unknown(error: Any, schema: _Schema) -> list[str]:
    """The fields that an error is about."""
    if error.kind.name == "unevaluatedProperties":  # among them are those that something else is wrong with
        return [field for field in error.kind.unexpected if field not in schema.known]
    return error.kind.unexpected if error.kind.name == "additionalProperties" else []


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def _json_path(path: Sequence[str | int]) -> str:
    return "$" + "".join(f".{part}" if str(part).isidentifier() else f"[{_short(repr(part))}]" for part in path)


def _as_json(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """A document in the types of JSON, as far as schemas look at it: not at the values of an event."""
    return {
        _plain(str(key)): _shell(name, value) if key in _CONTENTS.get(name, ()) else _plain(value)
        for key, value in document.items()
    }


def _shell(name: str, value: Any) -> Any:
    """What there is to see of an event's values, or of a page's columns."""
    if not isinstance(value, Mapping):
        return _plain(value)
    if name == "event":
        return {}
    return {
        _plain(str(key)): [] if isinstance(item, list | tuple | numpy.ndarray) else _plain(item)
        for key, item in value.items()
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numpy.ndarray):
        # Of one type all through: some of it tells all.
        return _plain([*itertools.islice(value.flat, _ENOUGH)] if value.ndim else value.item())
    if isinstance(value, numpy.generic) and not isinstance(value, str | float):
        item = value.item()
        return str(item) if isinstance(item, numpy.generic) else _plain(item)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else 0.0  # which are numbers, though JSON has none of them
    if isinstance(value, str):
        return str.__str__(value).encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"a {type(value).__name__}"
