"""Remembers what Tiled had of every run that was said to be at its end, and looks whether it is still there."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final

import httpx

from .pace import Pace
from .referee import SETTLED, Holdings, Referee, removed
from .site import Site

_PAUSE_SECONDS: Final = 2.0
_AT_ONCE: Final = 3  # runs between two pauses: Tiled has other things to do


class Keeper:
    """Looks on in a thread of its own between `start` and `stop`; `note` is told when something is gone."""

    def __init__(self, site: Site, referee: Referee, note: Callable[[str], None]) -> None:
        self._site = site
        self.referee = referee
        self._note = note
        self._chance = random.Random(site.setting.seed)
        self._before: dict[str, Holdings] = {}
        self._removed: dict[str, int] = {}
        self._pace = Pace(_PAUSE_SECONDS)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return when no look is under way any more."""
        self._ends.set()
        self._thread.join()

    def removed(self, run_uid: str) -> int:
        """The most rows of a run that were not there any more, at any time until now."""
        self._look(run_uid)
        return self._removed.get(run_uid, 0)

    @property
    def known(self) -> int:
        """Of how many runs it knows what Tiled had."""
        return len(self._before)

    def _go_on(self) -> None:
        while not self._ends.wait(self._pace.pause_seconds):
            with self._pace.look():
                ended = [uid for uid in self._site.emitted() if uid not in self._before]
                due = [uid for uid in ended if self._site.outcome(uid) in SETTLED][:_AT_ONCE]
            if self._before:
                due.append(self._chance.choice(list(self._before)))
            for run_uid in due:
                if self._ends.is_set():
                    return
                try:
                    self._look(run_uid)
                except (RuntimeError, ValueError, KeyError, OSError, httpx.HTTPError):
                    continue  # Tiled is away, or the run is being changed

    def _look(self, run_uid: str) -> None:
        now = self.referee.holdings(run_uid, self._site.published(run_uid))
        if run_uid not in self._before:
            if self._site.outcome(run_uid) in SETTLED:
                self._before[run_uid] = now
            return
        gone = removed(self._before[run_uid], now)
        if gone > self._removed.get(run_uid, 0):
            self._removed[run_uid] = gone
            self._note(f"Of run {run_uid}, {gone} rows are gone that Tiled had.")
