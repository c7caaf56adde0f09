"""The plan that all folds of a run follow, and the loop that folds a run again until its plan suffices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from .._errors import ColumnsRefused, ColumnsTooNarrow, FoldAgain, MimetypeRefused

if TYPE_CHECKING:
    from tiledbroker.ownership import RunDecisions

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class FoldPlan:
    """What a fold must know in advance, from the options and from earlier folds of the run.

    All folds of a run with equal plans yield the same operations.

    Attributes
    ----------
    max_array_size
        The largest array in an event, in numbers, that becomes a list column; see `RunWriter`.
    column_types
        Column types by `(stream, data key)` that an earlier fold of the run found necessary; see `RunWriter`.
    refused_mimetypes
        Mimetypes of files that Tiled does not know how to read.
    """

    max_array_size: int
    column_types: Mapping[tuple[str, str], str] = field(default_factory=dict)
    refused_mimetypes: tuple[str, ...] = ()

    @classmethod
    def of(cls, decisions: RunDecisions, max_array_size: int) -> FoldPlan:
        """Return the plan that was decided; `max_array_size` applies if none was."""
        types = {(stream, key): kind for stream, key, kind in decisions.column_types}
        decided = decisions.max_array_size
        return cls(max_array_size if decided is None else decided, types, tuple(decisions.refused_mimetypes))

    @property
    def decided_types(self) -> list[tuple[str, str, str]]:
        """The column types in the form of `RunDecisions`."""
        return [(*where, kind) for where, kind in self.column_types.items()]

    def revised_for(self, error: FoldAgain) -> FoldPlan:
        """Return the plan for the next fold, after an error of the last one."""
        if isinstance(error, ColumnsRefused):
            return replace(self, max_array_size=0)
        if isinstance(error, ColumnsTooNarrow):
            return replace(self, column_types={**self.column_types, **error.needed})
        if isinstance(error, MimetypeRefused):
            return replace(self, refused_mimetypes=(*self.refused_mimetypes, error.mimetype))
        return self


def fold_until_planned(
    plan: FoldPlan, fold_run: Callable[[FoldPlan], _Result], begin_again: Callable[[FoldAgain, FoldPlan], None]
) -> _Result:
    """Fold a run with a plan, and with a revised one as often as it turns out that the plan does not suffice.

    Parameters
    ----------
    plan
        The first plan.
    fold_run
        Folds the run from its first document with a plan.
    begin_again
        Called before the run is folded again, with the error that demands it and with the revised plan.

    Returns
    -------
    object
        The result of `fold_run`.
    """
    while True:
        try:
            return fold_run(plan)
        except FoldAgain as error:
            plan = plan.revised_for(error)
            begin_again(error, plan)
