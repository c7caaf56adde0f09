"""The proxy in front of Tiled, as a beamline has one: most of the time it only passes on what comes."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Mapping
from typing import Any, Final

from faulty_proxy import PASS, Fault, FaultyProxy, Request

_WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Gateway(FaultyProxy):
    """Does to the next writing requests what it is told; keeps no record of what passes."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._due: list[Fault] = []
        self._changed = threading.Condition()
        self.passed = 0

    def meet(self, faults: list[Fault], timeout: float) -> int:
        """Let the next writing requests meet these faults, one each; returns how many came within `timeout` seconds."""
        with self._changed:
            self._due = faults.copy()
            self._changed.wait_for(lambda: not self._due, timeout)
            left, self._due = len(self._due), []
        return len(faults) - left

    def fault_for(self, method: str, path: str) -> Fault:
        with self._changed:
            if method not in _WRITES or not self._due:
                return PASS
            fault = self._due.pop(0)
            self._changed.notify_all()
            return fault

    def record(self, request: Request) -> None:
        self.passed += request.fate == PASS.name

    def carry_out(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any, bytes]:
        try:
            return super().carry_out(method, target, headers, body)
        except (OSError, http.client.HTTPException) as error:
            return 502, [("Content-Type", "application/json")], b'{"detail": "%s"}' % type(error).__name__.encode()
