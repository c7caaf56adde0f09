"""Wait until nodes are quiet: the server may still carry out a request whose client is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .._errors import NodeNotQuiet
from ._decisions import Decisions
from ._known_nodes import KnownNode, QuietWatch

_DECAY_PER_GROWTH: Final = 0.9


class QuietPeriods:
    """Time for which the size of nodes has not changed, and the time for which it must not have changed.

    Parameters
    ----------
    decisions
        Decisions about the run.
    quiet_period
        Minimum time, in seconds, for which a node's size must not have changed.
    clock
        Returns monotonic time in seconds.

    Attributes
    ----------
    slowest_append
        Decaying maximum of the durations of growths, in seconds.
    """

    def __init__(self, decisions: Decisions, quiet_period: float, clock: Callable[[], float]) -> None:
        self.slowest_append = self._recorded = decisions.made.slowest_append
        self._decisions = decisions
        self._quiet_period = quiet_period
        self._clock = clock

    @property
    def needed_seconds(self) -> float:
        """Seconds for which a node's size must not have changed."""
        return max(self._quiet_period, 3 * self.slowest_append)

    def wait_until_quiet(
        self, node: KnownNode, read_size: Callable[[], int], *, expected: int | None = None
    ) -> tuple[int, float]:
        """Return a node's size and the seconds for which it has not changed, if the node is quiet.

        Parameters
        ----------
        node
            The node.
        read_size
            Reads its size.
        expected
            Size that ends the wait at once; None if no size does.

        Raises
        ------
        NodeNotQuiet
            The size has not been the same for long enough.
        """
        asked = self._clock()
        size = read_size()
        if node.quiet_watch is None:
            node.quiet_watch = QuietWatch()
        quiet = node.quiet_watch.observe(size, asked, self._clock())
        if size != expected and quiet < self.needed_seconds:
            raise NodeNotQuiet
        node.quiet_watch = None
        return size, quiet

    def read_clock(self) -> float:
        """Return monotonic time in seconds."""
        return self._clock()

    def record_growth_since(self, started: float) -> None:
        """Update the decaying maximum of growths' durations; record it if it determines the quiet period.

        What is recorded may be up to twice as long, so that few of many slow growths cost a record.
        """
        self.slowest_append = max(self._clock() - started, _DECAY_PER_GROWTH * self.slowest_append)
        matters = 3 * max(self._recorded, self.slowest_append) > self._quiet_period
        if matters and not self._recorded / 2 <= self.slowest_append <= self._recorded:
            self._decisions.record(slowest_append=self.slowest_append)
            self._recorded = self.slowest_append
