"""A run is folded again, with a revised plan, until its plan suffices."""

from __future__ import annotations

import pytest

from tiledbroker.ownership import RunDecisions
from tiledwriter._errors import ColumnsRefused, ColumnsTooNarrow, DocumentError, FoldAgain, MimetypeRefused, NodeRewound
from tiledwriter.mapping import FoldPlan, fold_until_planned


def test_each_error_revises_the_plan_for_the_next_fold() -> None:
    errors: list[FoldAgain] = [
        ColumnsTooNarrow({("primary", "a"): "float64"}),
        ColumnsRefused("a table", "500"),
        NodeRewound("a node", "is written again"),
        ColumnsTooNarrow({("primary", "b"): "string"}),
        MimetypeRefused("a node", "415", "image/png"),
    ]
    plans: list[FoldPlan] = []
    begun: list[tuple[FoldAgain, FoldPlan]] = []

    def fold_run(plan: FoldPlan) -> str:
        plans.append(plan)
        if len(plans) <= len(errors):
            raise errors[len(plans) - 1]
        return "written"

    assert fold_until_planned(FoldPlan(16), fold_run, lambda *what: begun.append(what)) == "written"
    wider = {("primary", "a"): "float64"}
    assert plans == [
        FoldPlan(16),
        FoldPlan(16, wider),
        FoldPlan(0, wider),
        FoldPlan(0, wider),
        FoldPlan(0, {**wider, ("primary", "b"): "string"}),
        FoldPlan(0, {**wider, ("primary", "b"): "string"}, ("image/png",)),
    ]
    assert begun == list(zip(errors, plans[1:], strict=True))


def test_other_errors_end_the_loop() -> None:
    def fold_run(_: FoldPlan) -> None:
        raise DocumentError("broken")

    with pytest.raises(DocumentError):
        fold_until_planned(FoldPlan(16), fold_run, lambda *_: None)


def test_a_plan_is_what_was_decided() -> None:
    plan = FoldPlan(5, {("primary", "a"): "float64"})
    assert FoldPlan.of(RunDecisions(), 16) == FoldPlan(16)
    assert FoldPlan.of(RunDecisions(max_array_size=5, column_types=plan.decided_types), 16) == plan
    assert FoldPlan.of(RunDecisions(refused_mimetypes=["a/b"]), 16) == FoldPlan(16, refused_mimetypes=("a/b",))
    assert FoldPlan.of(RunDecisions(max_array_size=0), 16) == FoldPlan(0)
