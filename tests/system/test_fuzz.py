"""Every input that a fuzzing campaign begins with, and every one that has ever shown a bug, is taken without harm."""

from __future__ import annotations

import pytest
from fuzz.seeds import CRASHERS, inputs
from fuzz.targets import TARGETS, check

CASES = [(target, name, data) for target in TARGETS for name, data in inputs(target).items()]


@pytest.mark.parametrize(("target", "data"), [(t, d) for t, _, d in CASES], ids=[f"{t}: {n}" for t, n, _ in CASES])
def test_an_input_ends_as_documented(target: str, data: bytes) -> None:
    check(TARGETS[target], data)


def test_what_is_kept_is_small() -> None:
    assert sum(path.stat().st_size for path in CRASHERS.glob("*/*")) < 300_000
