"""Results of pre-flight checks: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class CheckState(str, Enum):
    """State of one prerequisite. `OK` and `WARN` are given only to what has been looked at."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class CheckResult:
    """Result of checking one prerequisite.

    Attributes
    ----------
    name
        The prerequisite.
    state
        Whether it is met.
    found
        What was found; for a skipped check, why nothing was looked at.
    advice
        What to do; "" if nothing needs to be done.
    """

    name: str
    state: CheckState
    found: str
    advice: str = ""

    @classmethod
    def ok(cls, name: str, found: str) -> CheckResult:
        """Return the result of a prerequisite that is met."""
        return cls(name, CheckState.OK, found)

    @classmethod
    def warn(cls, name: str, found: str, advice: str) -> CheckResult:
        """Return the result of a prerequisite with which the service works, but not well."""
        return cls(name, CheckState.WARN, found, advice)

    @classmethod
    def fail(cls, name: str, found: str, advice: str) -> CheckResult:
        """Return the result of a prerequisite that is not met."""
        return cls(name, CheckState.FAIL, found, advice)

    @classmethod
    def skip(cls, name: str, reason: str, advice: str = "") -> CheckResult:
        """Return the result of a prerequisite that could not be looked at, for this reason."""
        return cls(name, CheckState.SKIPPED, f"because {reason}", advice)

    def as_dict(self) -> dict[str, Any]:
        """Return the result in JSON types."""
        return {**asdict(self), "state": self.state.value}
