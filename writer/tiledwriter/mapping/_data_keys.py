"""Data keys of descriptors: the names that they have in Tiled, and their modern form."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy

Document = Mapping[str, Any]

RESERVED: Final = frozenset({"time", "seq_num"})
_DTYPES: Final = {"array": "<f8", "boolean": "|b1", "integer": "<i8", "number": "<f8", "string": "<U0"}


class KeyNames:
    """The names of a stream's data keys over all its descriptors: those that a reserved name gets stay its own.

    Attributes
    ----------
    renamed
        The new names, by old name, of the data keys that are renamed.
    """

    def __init__(self) -> None:
        self.renamed: dict[str, str] = {}
        self._declared: set[str] = set()

    def declare(self, keys: Document) -> dict[str, str]:
        """Add the data keys of a descriptor; return the new names of those that are renamed."""
        self._declared |= keys.keys()
        for name in keys:
            if name not in self.renamed and (name in RESERVED or name in self.renamed.values()):
                other = f"{name}_"
                while other in self._declared or other in self.renamed.values():
                    other += "_"
                self.renamed[name] = other
        return {name: other for name, other in self.renamed.items() if name in keys}


def select_keys(keys: frozenset[str], values: Document) -> Document:
    return values if values.keys() <= keys else {key: value for key, value in values.items() if key in keys}


def without_reserved_names(values: Document, renamed: Mapping[str, str]) -> Document:
    if not renamed or renamed.keys().isdisjoint(values):
        return values
    kept = {key: value for key, value in values.items() if key not in renamed}
    return kept | {other: values[name] for name, other in renamed.items() if name in values}


def rename_data_keys(descriptor: dict[str, Any], renamed: Mapping[str, str]) -> None:
    """Rename data keys throughout a descriptor, in new dicts."""
    if not renamed:
        return
    keys = descriptor["data_keys"]
    descriptor["data_keys"] = without_reserved_names(keys, renamed)
    if descriptor.get("object_keys"):
        descriptor["object_keys"] = {
            owner: _renamed_items(names, renamed) for owner, names in descriptor["object_keys"].items()
        }
    if isinstance(hints := descriptor.get("hints"), Mapping):
        descriptor["hints"] = {
            owner: {**hint, "fields": _renamed_items(hint["fields"], renamed)}
            if isinstance(hint, Mapping) and "fields" in hint
            else hint
            for owner, hint in hints.items()
        }


def _renamed_items(names: Any, renamed: Mapping[str, str]) -> Any:
    """Return a list of data keys with the new names; return anything else unchanged."""
    if not is_list(names):
        return names
    return [renamed.get(name, name) if isinstance(name, str) else name for name in names]


def is_list(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


def modern_configuration(configuration: Document) -> dict[str, Any]:
    """Return a configuration with modern data keys; what is no data key remains unchanged, as it is only metadata."""
    modern = dict(configuration)
    for owner, part in configuration.items():
        if isinstance(part, Mapping) and isinstance(keys := part.get("data_keys"), Mapping):
            data_keys = {name: modern_data_key(key) if isinstance(key, Mapping) else key for name, key in keys.items()}
            modern[owner] = {**part, "data_keys": data_keys}
    return modern


def modern_data_key(key: Document) -> dict[str, Any]:
    """Return a copy of a data key that has its most precise declared type as `dtype_numpy`."""
    modern = {name: value for name, value in key.items() if name not in ("dtype_descr", "dtype_str")}
    dtype = _declared_dtype(key) or _DTYPES.get(str(key.get("dtype")))
    if dtype:
        modern["dtype_numpy"] = dtype
    if (shape := modern.get("shape", ())) is None or isinstance(shape, numpy.ndarray):
        modern["shape"] = () if shape is None else shape.tolist()
    if not modern.get("external"):
        modern.pop("external", None)
    return modern


def declares_dtype(key: Document) -> bool:
    """Return whether a data key, as received, declares a NumPy type."""
    return _declared_dtype(key) is not None


def _declared_dtype(key: Document) -> str | Sequence[Any] | None:
    """Return the most precise NumPy type that a data key, as received, declares; None if it declares none."""
    fields = key.get("dtype_descr")
    if isinstance(fields, list | tuple) and fields and all(isinstance(field, list | tuple) for field in fields):
        return [list(field) for field in fields]
    declared = (key.get(field) for field in ("dtype_numpy", "dtype_str"))
    return next((dtype for dtype in declared if isinstance(dtype, str | list | tuple) and dtype), None)
