"""What came out of a campaign: a table with a line per kind of fault, and all of it as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from .referee import Verdict

_COLUMNS: Final = (
    *("emitted", "cut off", "durable", "rows expected", "rows found", "lost", "doubled", "out of order"),
    *("removed", "foreign", "damaged", "silently wrong"),
)
_WIDTHS: Final = {name: max(8, len(name)) for name in _COLUMNS}
_ALL: Final = "all runs"


@dataclass
class Injected:
    """A fault that was injected, from when to when (Unix time), and what was done."""

    number: int
    kind: str
    began: float
    ended: float
    done: str

    def hits(self, verdict: Verdict) -> bool:
        """Whether the run was open, or not yet written, while the fault lasted."""
        return self.began <= verdict.ended and verdict.began <= self.ended


@dataclass
class Report:
    """The result of a campaign.

    Attributes
    ----------
    missed
        Faults by kind that found nothing to be done to.
    impossible
        Kinds that cannot be injected here, and why.
    notes
        What happened that no fault did.
    complaints
        What should not have been, and is in no verdict.
    """

    seed: int
    storage: str
    seconds: float
    injected: Sequence[Injected]
    verdicts: Sequence[Verdict]
    missed: Mapping[str, int] = field(default_factory=dict)
    impossible: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    complaints: Sequence[str] = ()

    @property
    def clean(self) -> bool:
        """Whether all that should be there is there, nothing else is, and every run has the outcome it should have."""
        return all(verdict.clean for verdict in self.verdicts) and not self.complaints

    def lines(self) -> Iterator[str]:
        """The table, and whatever is wrong."""
        kinds = sorted({fault.kind for fault in self.injected} | self.impossible.keys() | self.missed.keys())
        width = max(map(len, [*kinds, _ALL]), default=0)
        yield f"{'fault':<{width}} {'injected':>8} {'runs':>6} " + " ".join(
            f"{name:>{_WIDTHS[name]}}" for name in _COLUMNS
        )
        for kind in kinds:
            if any(fault.kind == kind for fault in self.injected):
                yield f"{kind:<{width}} {_line(self.figures(kind))}"
            else:
                reason = self.impossible.get(kind) or f"{self.missed.get(kind, 0)} times nothing to do it to"
                yield f"{kind:<{width}} not possible here: {reason}"
        yield f"{_ALL:<{width}} {_line(self.figures())}"
        yield ""
        yield "A run counts for each fault that came while it was open or not yet written. Rows are those of tables and"
        yield "arrays, frames of external files, and start and stop. Cut off: lost with the end of a truncated spool,"
        yield "before the ingest host had acknowledged them; nothing that it had acknowledged is counted there."
        yield "Removed: rows that Tiled had when a run was said to be at its end. Foreign: at another destination than"
        yield "was meant. Damaged: runs with a file in which a bit was flipped; they may be a beginning of themselves"
        yield "if somebody says so. Silently wrong: those of them of which that does not hold."
        outcomes = Counter(verdict.outcome or "left open" for verdict in self.verdicts)
        yield f"Runs: {len(self.verdicts)} ({_counts(outcomes)})."
        yield f"Seed {self.seed}, {self.storage}, {self.seconds:.0f} s."
        history = sum((Counter(verdict.history) for verdict in self.verdicts), Counter[str]())
        yield f"In the journals' histories: {_counts(history)}."
        for note in self.notes:
            yield f"note: {note}"
        for complaint in self.complaints:
            yield f"WRONG: {complaint}"
        for verdict in self.verdicts:
            if not verdict.clean:
                hits = [f"{fault.number} {fault.kind}" for fault in self.injected if fault.hits(verdict)]
                yield f"WRONG: {verdict}"
                yield f"  hit by: {', '.join(hits) or 'nothing'}"

    def figures(self, kind: str | None = None) -> dict[str, int]:
        """A line of the table: of the runs that were hit by faults of a kind, or of all."""
        faults = [fault for fault in self.injected if kind is None or fault.kind == kind]
        hit = [verdict for verdict in self.verdicts if kind is None or any(fault.hits(verdict) for fault in faults)]
        return {
            "injected": len(faults),
            "runs": len(hit),
            "emitted": sum(verdict.emitted for verdict in hit),
            "cut off": sum(verdict.cut for verdict in hit),
            "durable": sum(verdict.durable for verdict in hit),
            "rows expected": sum(verdict.rows.expected for verdict in hit),
            "rows found": sum(verdict.rows.found for verdict in hit),
            "lost": sum(verdict.documents.lost + verdict.rows.lost for verdict in hit),
            "doubled": sum(verdict.documents.doubled + verdict.rows.doubled for verdict in hit),
            "out of order": sum(verdict.documents.disordered + verdict.rows.disordered for verdict in hit),
            "removed": sum(verdict.removed for verdict in hit),
            "foreign": sum(verdict.foreign for verdict in hit),
            "damaged": sum(verdict.damaged for verdict in hit),
            "silently wrong": sum(verdict.silently_wrong for verdict in hit),
        }

    def as_json(self) -> dict[str, Any]:
        kinds = sorted({fault.kind for fault in self.injected})
        result = asdict(self)
        for verdict in result["verdicts"]:
            if math.isinf(verdict["ended"]):
                verdict["ended"] = None
        table = {**{kind: self.figures(kind) for kind in kinds}, _ALL: self.figures()}
        return {"clean": self.clean, "table": table, **result}


def _line(figures: Mapping[str, int]) -> str:
    columns = " ".join(f"{figures[name]:>{_WIDTHS[name]},}" for name in _COLUMNS)
    return f"{figures['injected']:>8} {figures['runs']:>6} {columns}"


def _counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items()))
