"""Wait until it is certain what Tiled has of a node.

The server may still carry out a request whose client is gone. Moreover, a read may lag behind writes: there may be
several server processes behind one address, some of which read from a replica of the database, or a proxy that keeps
answers. A reading that agrees with what answered writes prove is therefore believed at once, and any other one only
after it has stayed the same for the quiet period. This includes the answer that a node is absent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from .._errors import NodeNotQuiet
from ._decisions import Decisions
from ._known_nodes import KnownNode, QuietWatch

_DECAY_PER_GROWTH: Final = 0.9

_Reading = TypeVar("_Reading")


class QuietPeriods:
    """Time for which what is read of nodes has not changed, and the time for which it must not have changed.

    Parameters
    ----------
    decisions
        Decisions about the run.
    quiet_period
        Minimum time, in seconds, for which a reading must not have changed.
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
        # By path of what Tiled said is absent: the time at which it first did.
        self._absent_since: dict[str, float] = {}

    @property
    def needed_seconds(self) -> float:
        """Seconds for which a reading must not have changed."""
        return max(self._quiet_period, 3 * self.slowest_append)

    def wait_until_quiet(
        self,
        node: KnownNode,
        read: Callable[[], _Reading],
        *,
        is_current: Callable[[_Reading], bool] | None = None,
        asked: float | None = None,
    ) -> tuple[_Reading, float]:
        """Return what is read of a node and the seconds for which it has not changed, if it can be believed.

        Two readings are enough if none can be believed at once: one at the beginning of the quiet period, one after it.

        Parameters
        ----------
        node
            The node.
        read
            Reads something of it, such as its size.
        is_current
            Returns True for a reading that is believed at once; None if there is no such reading.
        asked
            Time just before the first request of the reading, by `read_clock`; None if `read` sends all of them.

        Raises
        ------
        NodeNotQuiet
            The reading has not been the same for long enough.
        """
        asked = self._clock() if asked is None else asked
        reading = read()
        if node.quiet_watch is None:
            node.quiet_watch = QuietWatch()
        since = node.quiet_watch.observe(reading, self._clock())
        if is_current is None or not is_current(reading):
            self._check_quiet_since(since, asked, may_be_sooner=is_current is not None)
        node.quiet_watch = None
        return reading, max(0.0, asked - since)

    def _check_quiet_since(self, since: float, asked: float, *, may_be_sooner: bool) -> None:
        decided_at = since + self.needed_seconds
        if asked < decided_at:
            raise NodeNotQuiet(decided_at, may_be_sooner=may_be_sooner)

    def check_absence(self, path: str, asked: float) -> None:
        """Return if something that should be there can be believed to be absent.

        Parameters
        ----------
        path
            Path of what Tiled says is absent.
        asked
            Time just before the request, by `read_clock`.

        Raises
        ------
        NodeNotQuiet
            It has not been absent for long enough.
        """
        since = self._absent_since.setdefault(path, self._clock())
        self._check_quiet_since(since, asked, may_be_sooner=True)

    def note_presence(self, path: str) -> None:
        """Forget that Tiled said that something is absent."""
        self._absent_since.pop(path, None)

    def note_creation(self, path: str) -> None:
        """Forget that Tiled said that a node, or something in it, is absent: from now on it may be there."""
        for absent in [absent for absent in self._absent_since if absent == path or absent.startswith(f"{path}/")]:
            del self._absent_since[absent]

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
