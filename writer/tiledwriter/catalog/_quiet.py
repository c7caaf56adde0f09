"""Wait until nodes are quiet: the server may still carry out a request whose client is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .._errors import NodeNotQuiet
from ._known_nodes import KnownNode, QuietWatch
from ._ledger import Ledger

_DECAY_PER_GROWTH: Final = 0.9
_SLOWEST_APPEND_KEY: Final = "slowest_append"


class QuietPeriods:
    """Time for which the size of nodes has not changed, and the time for which it must not have changed.

    Parameters
    ----------
    ledger
        Store of the run's progress.
    quiet_period
        Minimum time, in seconds, for which a node's size must not have changed.
    clock
        Returns monotonic time in seconds.

    Attributes
    ----------
    slowest_append
        Decaying maximum of the durations of growths, in seconds.
    """

    def __init__(self, ledger: Ledger, quiet_period: float, clock: Callable[[], float]) -> None:
        self.slowest_append = float(ledger.get(_SLOWEST_APPEND_KEY, 0.0))
        self._ledger = ledger
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
        """Update the decaying maximum of growths' durations; store it if it determines the quiet period."""
        seconds = self._clock() - started
        before, self.slowest_append = self.slowest_append, max(seconds, _DECAY_PER_GROWTH * self.slowest_append)
        if 3 * max(before, self.slowest_append) > self._quiet_period:
            self._ledger.set(_SLOWEST_APPEND_KEY, self.slowest_append)
