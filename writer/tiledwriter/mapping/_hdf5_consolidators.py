"""Consolidators for datasets in HDF5 files."""

from __future__ import annotations

from typing import Any

from ._array_consolidator import ArrayConsolidator, format_range
from ._consolidator import Consolidator, Document
from ._sequence_consolidators import SequenceConsolidator


class _HDF5Dataset(ArrayConsolidator):
    """Base class for datasets in HDF5 files: the parameters of the adapter and the selection of rows."""

    mimetypes = frozenset({"application/x-hdf5"})
    shared_parameters = (*ArrayConsolidator.shared_parameters, "dataset", "slice", "squeeze")

    def adapter_parameters(self) -> dict[str, Any]:
        """Return the path of the dataset in the files, the selection of rows, and the options to open the files."""
        given = self.parameters
        dataset = self._text(given, "dataset")
        if not dataset:
            raise self._registration_error("its StreamResource has no 'dataset' among its parameters")
        optional = {name: given[name] for name in ("slice", "squeeze") if given.get(name)}
        if selected := self._combined_slice(self.selected_rows()):
            optional["slice"] = selected
        swmr, locking = given.get("swmr", True), given.get("locking")
        return {"dataset": dataset, **optional, "swmr": swmr, "locking": locking}

    def _combined_slice(self, rows: str | list[int] | None) -> str | list[int] | None:
        """Return the adapter's `slice`: the selected rows combined with the `slice` that the documents request."""
        wanted = self.parameters.get("slice")
        if not wanted or rows is None:
            return rows
        _, colon, rest = str(wanted).partition(":,")
        return f"{rows},{rest}" if colon and self._slices_frames else None

    @property
    def _slices_frames(self) -> bool:
        """Whether the `slice` that the documents request, if any, can be combined with a selection of rows."""
        wanted = self.parameters.get("slice")
        return not wanted or str(wanted).strip().startswith(":,")

    def _check_place(self, stream_datum: Document, indices: range, place: int, seq_num: int | None) -> None:
        super()._check_place(stream_datum, indices, place, seq_num)
        follows = self.frames.is_next(place, seq_num)
        from_first = follows and (self.frames.first if self.frames.count else place) == 0
        wanted = self.parameters.get("slice")
        if indices and wanted and not from_first and not (follows and self._slices_frames):
            raise self._registration_error(
                f"frames {format_range(indices)} cannot be selected beside its slice {wanted!r}"
            )


class HDF5Consolidator(_HDF5Dataset):
    """Consolidator for datasets with the same path in HDF5 files, one file per resource.

    In addition to the parameters of `ArrayConsolidator`, the class uses the StreamResource parameters dataset
    (required), slice, squeeze, swmr and locking. A resource with a template gets a `HDF5SequenceConsolidator`.
    """

    selects_rows = True

    @classmethod
    def variant(cls, stream_resource: Document) -> type[Consolidator]:
        """Return the class for a resource: the sequence class if the resource has a template."""
        return HDF5SequenceConsolidator if stream_resource["parameters"].get("template") else cls


class HDF5SequenceConsolidator(_HDF5Dataset, SequenceConsolidator):
    """Consolidator for datasets with the same path in numbered HDF5 files."""
