"""Check documents against event-model's schemas before they are written.

Fields from which nodes and rows are built must follow the schemas. Deviations elsewhere affect only metadata, so they
are tolerated and noted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from numbers import Number
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
    # The events within are checked one by one, later.
    "bulk_events": ("*", "*.*"),
    "resource": ("uid", "run_start?", "spec?", "root?", "resource_path", "resource_kwargs?"),
    "datum": ("datum_id", "resource", "datum_kwargs?"),
    "datum_page": ("datum_id", "datum_id.*", "resource", "datum_kwargs", "datum_kwargs.*"),
    "bulk_datum": ("datum_ids", "datum_ids.*", "resource", "datum_kwarg_list", "datum_kwarg_list.*"),
    "stream_resource": ("uid", "run_start?", "data_key", "mimetype", "uri", "parameters"),
    "stream_datum": ("stream_resource", "descriptor", "indices", "indices.*"),
    "stop": ("uid", "run_start", "time", "exit_status"),
}
"""The fields that must follow the schemas, as dotted paths by document name.

`*` stands for any key. A path that ends with `?` may be null, which counts as absent. The normalizer checks that the
required fields exist, because old documents have different ones; only those of `indices` are checked here.
"""

_HARMLESS: Final = frozenset({"additionalProperties", "unevaluatedProperties", "pattern", "enum"})
_RUN_FIELDS: Final = {"start": "uid", "descriptor": "run_start", "stop": "run_start"}
_CONTENTS: Final = dict.fromkeys(("event", "event_page"), frozenset({"data", "timestamps"}))
_WITH_METADATA: Final = frozenset({"start", "descriptor", "stop"})
_MAX_DEVIATIONS: Final = 1000
_MAX_TEXT_CHARACTERS: Final = 200
_MASK: Final = "the value"
_NOT_FINITE: Final = 5.43210987654321e-301
"""Stands for NaN and the infinities, which JSON does not have: for schemas they are numbers, and no integers."""


class _Schema(NamedTuple):
    """A compiled schema, and the fields that it defines at the top level (`known`)."""

    validator: Any
    known: frozenset[str]


class DocumentChecks:
    """Check of the documents of one run, after the user's patches; called with each name and document.

    Raises
    ------
    DocumentInvalid
        A field from which nodes or rows are built does not follow the schema.
    """

    def __init__(self) -> None:
        self._deviations: dict[tuple[str, ...], tuple[str, int]] = {}

    def __call__(self, name: str, document: Mapping[str, Any]) -> None:
        schema = _compile_schemas()[name]
        try:
            valid = schema.validator.is_valid(document)
        except ValueError:
            # The document has a value that JSON cannot represent, such as a NumPy scalar.
            valid = False
        if not valid:
            self._validate_document(name, document, schema)

    def tolerates(self, name: str) -> bool:
        """Return whether any document of this name has deviated from its schema so far."""
        return any(kind == name for kind, *_ in self._deviations)

    @property
    def notes(self) -> list[str]:
        """The tolerated deviations, one note for each kind."""
        return [
            f"Against event-model's schema of {name} documents: {text}"
            + (f", in {count} of them." if count > 1 else ".")
            for (name, *_), (text, count) in self._deviations.items()
        ]

    def _validate_document(self, name: str, document: Mapping[str, Any], schema: _Schema) -> None:
        kinds: dict[tuple[str, ...], Any] = {}
        for error in schema.validator.iter_errors(_as_json(name, document)):
            # An error elsewhere in a document makes known fields unevaluated, too.
            if error.kind.name == "unevaluatedProperties" and not _unknown_fields(error, schema):
                continue
            if _is_relied_on(name, error):
                raise DocumentInvalid(name, _describe_error(error, schema))
            kinds.setdefault((name, *map(str, error.schema_path), getattr(error.kind, "property", "")), error)
        for kind, error in kinds.items():
            text, count = self._deviations.get(kind) or (_describe_deviation(name, error, schema), 0)
            self._deviations[kind] = text, count + 1


@cache
def _compile_schemas() -> dict[str, _Schema]:
    """Return the schemas by document name.

    They are compiled once per process, which takes some milliseconds, most of them for the import of event-model.
    """
    import jsonschema_rs
    from event_model import schemas

    return {
        name.name: _Schema(jsonschema_rs.validator_for(schema, mask=_MASK), frozenset(_known_fields(schema)))
        for name, schema in schemas.items()
    }


def check_place(index: int, name: str) -> None:
    """Check that a run begins with a start document and has no other.

    Parameters
    ----------
    index
        The index of the document in its run.
    name
        The name of the document.

    Raises
    ------
    DocumentMisplaced
        The first document is not a start document, or a later one is.
    """
    if index == 0 and name != "start":
        raise DocumentMisplaced("it is the first of its run, which begins with a start")
    if index > 0 and name == "start":
        raise DocumentMisplaced("its run has a start before it")


def check_run(run_uid: str, name: str, document: Mapping[str, Any]) -> None:
    """Check that a document, as the normalizer emits it, names the run in whose log it is.

    Parameters
    ----------
    run_uid
        The uid of the run.
    name, document
        The document.

    Raises
    ------
    DocumentInvalid
        The document names another run; written, it could change the node of that run.
    """
    field = _RUN_FIELDS.get(name)
    if field is not None and document.get(field) != run_uid:
        found, expected = _shorten_text(repr(document.get(field))), _shorten_text(repr(run_uid))
        raise DocumentInvalid(name, f"at $.{field}, {found} is not {expected}, the run that it came for")


def load_schemas() -> None:
    """Compile the schemas now, so that the first document need not wait for it."""
    _compile_schemas()


def _known_fields(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from schema.get("properties", ())
    for part in schema.get("allOf", ()):
        yield from schema["$defs"][part["$ref"].rpartition("/")[2]]["properties"]


def _is_relied_on(name: str, error: Any) -> bool:
    if error.kind.name in _HARMLESS:
        return False
    path = tuple(error.instance_path)
    if error.kind.name == "required":
        path = (*path, error.kind.property)
        return len(path) > 1 and _matching_pattern(name, path) == "indices.*"
    pattern = _matching_pattern(name, path)
    return pattern is not None and not (pattern.endswith("?") and error.instance is None)


def _matching_pattern(name: str, path: Sequence[str | int]) -> str | None:
    """Return the entry of `RELIED_ON` that matches a path in a document.

    "" for the document as a whole; None if no entry matches.
    """
    for pattern in RELIED_ON[name]:
        parts = pattern.removesuffix("?").split(".")
        if len(parts) == len(path) and all(a in ("*", b) for a, b in zip(parts, path, strict=True)):
            return pattern
    return "" if not path else None


def _describe_error(error: Any, schema: _Schema) -> str:
    place = f"at {_json_path(error.instance_path)}"
    if error.kind.name == "required":
        return f"{place}, there is no {_shorten_text(repr(error.kind.property))}"
    if unknown := _unknown_fields(error, schema):
        return f"{place}, nothing is known of {_shorten_text(', '.join(map(repr, unknown)))}"
    shown = "NaN or infinity" if error.instance == _NOT_FINITE else _shorten_text(repr(error.instance))
    return f"{place}, {shown} {error.message.removeprefix(_MASK).strip()}"


def _describe_deviation(name: str, error: Any, schema: _Schema) -> str:
    """Describe a tolerated error; of documents without metadata in Tiled, nothing writes unknown fields."""
    lost = name not in _WITH_METADATA and _unknown_fields(error, schema)
    return _describe_error(error, schema) + (", which is not in Tiled" if lost else "")


def _unknown_fields(error: Any, schema: _Schema) -> list[str]:
    """Return the unknown fields that an error reports."""
    # The validator also reports known fields, if they have errors of their own.
    if error.kind.name == "unevaluatedProperties":
        return [field for field in error.kind.unexpected if field not in schema.known]
    return error.kind.unexpected if error.kind.name == "additionalProperties" else []


def _shorten_text(text: str) -> str:
    return text if len(text) <= _MAX_TEXT_CHARACTERS else f"{text[:_MAX_TEXT_CHARACTERS]}..."


def _json_path(path: Sequence[str | int]) -> str:
    return "$" + "".join(f".{part}" if str(part).isidentifier() else f"[{_shorten_text(repr(part))}]" for part in path)


def _as_json(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a document that its schema checks, in JSON types; the values of events are left out."""
    return {
        _json_value(str(key)): _empty_values(name, value) if key in _CONTENTS.get(name, ()) else _json_value(value)
        for key, value in document.items()
    }


def _empty_values(name: str, value: Any) -> Any:
    """Return the values of an event as an empty mapping, or the columns of a page as empty lists.

    What is not a mapping or a list stays in the result, so that the schema can refuse it.
    """
    if not isinstance(value, Mapping):
        return _json_value(value)
    if name == "event":
        return {}
    return {
        _json_value(str(key)): [] if isinstance(item, list | tuple | numpy.ndarray) else _json_value(item)
        for key, item in value.items()
    }


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numpy.ndarray):
        if value.ndim == 0:
            return _json_value(value.item())
        # All items have the same type, so the first ones suffice.
        return [_json_value(item) for item in itertools.islice(value, _MAX_DEVIATIONS if value.ndim == 1 else 1)]
    if isinstance(value, numpy.generic) and not isinstance(value, str | float):
        item = value.item()
        return str(item) if isinstance(item, numpy.generic) else _json_value(item)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _NOT_FINITE
    if isinstance(value, str):
        return str.__str__(value).encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_json_value(str(key)): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    described = f"a {type(value).__name__}"
    # Whatever has a text, such as a path from a patch, is taken for one. Bytes and numbers unknown to JSON are not: no
    # schema takes a list of lists for a text, a number or a mapping, nor for a list of any of them.
    return [[described]] if isinstance(value, bytes | bytearray | Number) else described
