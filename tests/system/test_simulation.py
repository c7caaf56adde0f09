"""Publisher, supervisor, workers and Tiled on one clock: whatever goes wrong, each document arrives once, in order."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from simulation import Simulation

SCHEDULES = int(os.environ.get("TILEDWRITER_TEST_SCHEDULES", "1000"))
"""Schedules that are simulated, in ten parts."""
PARTS = 10


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    """Say nothing of thousands of faults."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def check(simulation: Simulation) -> None:
    """Check that all that was published is in the journals and in Tiled, once and in order."""
    simulation.run()
    for uid, run in simulation.published.items():
        crcs = [record.crc for record in run.records]
        assert simulation.ingest.journals[uid].crcs == crcs
        assert simulation.tiled.rows[uid] == crcs
        assert simulation.tiled.outcomes[uid] == ("written" if run.stopped else "interrupted")
    assert set(simulation.spool.removed) == set(simulation.published)
    assert not simulation.session.refused


@pytest.mark.parametrize("part", range(PARTS))
def test_every_document_is_in_tiled_once_and_in_order_after_any_schedule_of_faults(part: int) -> None:
    for seed in range(part, SCHEDULES, PARTS):
        simulation = Simulation(seed)
        try:
            check(simulation)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {simulation.happened}") from error
