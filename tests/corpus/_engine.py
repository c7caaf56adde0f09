"""A RunEngine that gives back the documents of a plan, however the plan ends."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy
from bluesky import RunEngine
from bluesky.run_engine import set_bluesky_event_loop
from bluesky.utils import RunEngineInterrupted

from ._entry import Documents


class PlanFailed(Exception):
    """Raised by plans that are meant to fail."""


def engine() -> RunEngine:
    """Return the one for all: devices of ophyd-async live in its event loop."""
    made = _make_engine()
    # A test may have made another RunEngine since, whose loop has ended with it.
    set_bluesky_event_loop(made.loop)
    return made


@functools.cache
def _make_engine() -> RunEngine:
    logging.getLogger("bluesky").addHandler(logging.NullHandler())  # plans fail here as they are meant to
    return RunEngine({}, context_managers=[])


def acquire(
    plan: Callable[..., Any] | Iterable[Any],
    *,
    then: str = "",
    preprocessors: Iterable[Callable[..., Any]] = (),
    **metadata: Any,
) -> Documents:
    """The documents that a plan emits; `then` is the RunEngine's method to call when the plan pauses."""
    run_engine, documents = engine(), Documents()
    run_engine.md.clear()
    run_engine.preprocessors = list(preprocessors)
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002 - what the simulated devices draw from
    token = run_engine.subscribe(lambda name, document: documents.append((name, copy.deepcopy(document))))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _run(run_engine, plan, then, metadata)
    finally:
        run_engine.unsubscribe(token)
        run_engine.preprocessors = []
    return documents


def _run(run_engine: RunEngine, plan: Any, then: str, metadata: dict[str, Any]) -> None:
    try:
        run_engine(plan, **metadata)
    except RunEngineInterrupted:
        getattr(run_engine, then)()
    except PlanFailed:
        pass
