"""The proxy in front of Tiled, as a beamline has one: most of the time it only passes on what comes."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from faulty_proxy import PASS, Fault, Request
from tiled_group import SpreadingProxy

LOGIN: Final = "/login"

_WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def html(status: int, text: str, location: str | None = None) -> Fault:
    """What a gateway answers by itself: a page for people, or a redirect to one."""
    headers = {"Content-Type": "text/html", **({} if location is None else {"Location": location})}
    return Fault(f"{status} with HTML", status=status, headers=headers, body=f"<html>{text}</html>".encode())


_LOGIN_PAGE: Final = html(200, "Please log in.")


class Gateway(SpreadingProxy):
    """Does to the next writing requests what it is told; keeps no record of what passes.

    It is in front of one server or of several.
    """

    def __init__(self, *uris: str) -> None:
        super().__init__(uris)
        self._due: list[Fault] = []
        self._changed = threading.Condition()
        self._by_itself: Fault | None = None
        self._reads_too = False
        self._answered = 0
        self.passed = 0
        self.writes = 0

    def answer_all(self, fault: Fault, seconds: float, pause: Callable[[float], None], *, reads: bool) -> int:
        """Have all writing requests, or all there are, meet this fault for some seconds; returns how many came."""
        with self._changed:
            self._by_itself, self._reads_too, self._answered = fault, reads, 0
        try:
            pause(seconds)
        finally:
            with self._changed:
                self._by_itself = None
        return self._answered

    def meet(self, faults: list[Fault], timeout: float) -> int:
        """Let the next writing requests meet these faults, one each; returns how many came within `timeout` seconds."""
        with self._changed:
            self._due = faults.copy()
            self._changed.wait_for(lambda: not self._due, timeout)
            left, self._due = len(self._due), []
        return len(faults) - left

    def fault_for(self, method: str, path: str) -> Fault:
        if path == LOGIN:
            return _LOGIN_PAGE
        with self._changed:
            if self._by_itself is not None and (self._reads_too or method in _WRITES):
                self._answered += 1
                return self._by_itself
            if method not in _WRITES or not self._due:
                return PASS
            fault = self._due.pop(0)
            self._changed.notify_all()
            return fault

    def record(self, request: Request) -> None:
        self.passed += request.fate == PASS.name
        self.writes += request.fate == PASS.name and request.method in _WRITES

    def carry_out(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any, bytes]:
        try:
            return super().carry_out(method, target, headers, body)
        except (OSError, http.client.HTTPException) as error:
            return 502, [("Content-Type", "application/json")], b'{"detail": "%s"}' % type(error).__name__.encode()
