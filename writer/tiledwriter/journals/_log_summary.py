"""Summary of a run in a site's log: how much of it is there, what the ingest hosts have of it, and why it waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

import msgspec

from tiledbroker import CodecError
from tiledbroker._outcomes import COMPLETE, FAILED
from tiledbroker.jetstream import LoggedRun, Receipt
from tiledbroker.log import Record

from .._plain_text import text_of
from ._summary import DAMAGED, REFUSED, UNREADABLE

CLOSING: Final = "closing"
OPEN: Final = "open"
_MAX_NUMBER: Final = 2**63


@dataclass(frozen=True)
class LoggedSummary:
    """Summary of one run in a site's log.

    Attributes
    ----------
    uid, beamline
        The run.
    plan, scan_id, started
        As in `RunSummary`, from the start document.
    first, next
        Index of the first document that is in the log, and the index after the last one; None if unknown.
    ended
        Whether the log has the end of the run; None if unknown.
    messages
        Number of its messages in the log; 0 if only a receipt is left.
    state
        "written", "interrupted" or "failed" as the receipt says; "refused" by an ingest host; "closing" if the log has
        its end, else "open"; "damaged" if documents are missing in the log that no ingest host is known to have.
    why
        Reason why it waits, or what is wrong with it; "" if there is nothing to say.
    receipt
        What an ingest host has told of it, by the names of `tiledbroker.jetstream.Receipt`; None if none has.
    """

    uid: str
    beamline: str
    plan: str = ""
    scan_id: int | None = None
    started: float | None = None
    first: int | None = None
    next: int | None = None
    ended: bool | None = None
    messages: int | None = None
    state: str = UNREADABLE
    why: str = ""
    receipt: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as a dictionary of JSON types."""
        return asdict(self)

    @property
    def length(self) -> int | None:
        """Number of documents that are in the log; None if unknown."""
        return None if self.next is None or self.first is None else self.next - self.first

    @property
    def host(self) -> str:
        """The ingest host that has told of the run; "" if none has."""
        return "" if self.receipt is None else str(self.receipt["host"])

    @property
    def journaled(self) -> int | None:
        """Number of documents that this host's journal has; None if none has told."""
        return None if self.receipt is None else int(self.receipt["next"])


def summarize_logged(run: LoggedRun) -> LoggedSummary:
    """Return the summary of a run in a site's log."""
    start = _decode_start(run)
    scan_id, started = start.get("scan_id"), start.get("time")
    state, why = judge_logged(run)
    is_known = run.tail.next > 0
    return LoggedSummary(
        uid=run.uid,
        beamline=run.beamline,
        plan=text_of(start.get("plan_name", "")),
        scan_id=scan_id if isinstance(scan_id, int) and abs(scan_id) < _MAX_NUMBER else None,
        started=float(started) if isinstance(started, int | float) and abs(started) < _MAX_NUMBER else None,
        first=run.first,
        next=run.tail.next if is_known else None,
        ended=run.tail.ended if is_known else None,
        messages=run.messages,
        state=state,
        why=why,
        receipt=None if run.receipt is None else msgspec.structs.asdict(run.receipt),
    )


def _decode_start(run: LoggedRun) -> dict[str, Any]:
    if run.start is None:
        return {}
    crc, body = run.start
    try:
        return Record(0, "start", 0.0, crc, body).document()
    except CodecError:
        return {}


# What a run's state is, by the first rule that says something.

_Judgement: TypeAlias = "tuple[str, str] | None"


def judge_logged(run: LoggedRun) -> tuple[str, str]:
    """Return the state of a run in a log, and the reason why it waits or what is wrong."""
    receipt = run.own_receipt
    for rule in _RULES:
        if (found := rule(run, receipt or Receipt())) is not None:
            state, why = found
            break
    else:
        raise AssertionError("the last rule is for all runs")
    notes = [why, run.problem]
    if run.receipt is not None and receipt is None:
        notes.append("the receipt is that of another run with this uid")
    return state, "; ".join(filter(None, notes))


def _judge_removed(run: LoggedRun, receipt: Receipt) -> _Judgement:
    if run.messages and run.tail.seq:
        return None
    if receipt.is_complete:
        return receipt.outcome, "its documents were removed from the log after that"
    return DAMAGED, f"its documents are not in the log; {_describe_holder(receipt)}"


def _judge_unknown(run: LoggedRun, _: Receipt) -> _Judgement:
    if run.tail.next and run.first is not None:
        return None
    return DAMAGED, "its messages in the log are not those of a publisher, so that it is not known how far it is"


def _judge_outcome(run: LoggedRun, receipt: Receipt) -> _Judgement:
    """Judge a run by its outcome, which is that of all documents if these are those in the log."""
    tail = run.tail
    is_same = tail.next == receipt.next and (None in (tail.end_crc, receipt.end_crc) or tail.end_crc == receipt.end_crc)
    if receipt.is_complete and is_same and tail.ended:
        return receipt.outcome, ""
    if receipt.outcome == FAILED:
        return FAILED, f"in quarantine on {receipt.host}: {receipt.reason or 'no reason was told'}"
    return None


def _judge_refused(_: LoggedRun, receipt: Receipt) -> _Judgement:
    return (REFUSED, f"{receipt.host}: {receipt.refused}") if receipt.refused else None


def _judge_gaps(run: LoggedRun, receipt: Receipt) -> _Judgement:
    if not run.first:
        return None
    missing = f"the log lacks its documents before {run.first}"
    if receipt.next < run.first:
        return DAMAGED, f"{missing}; {_describe_holder(receipt)}"
    return _name_state(run), f"{missing}, which {receipt.host} has"


def _judge_waiting(run: LoggedRun, receipt: Receipt) -> _Judgement:
    state = _name_state(run)
    if receipt.next > run.tail.next:
        return DAMAGED, f"the log lacks its documents from {run.tail.next} on; {_describe_holder(receipt)}"
    if receipt.outcome in COMPLETE:
        return DAMAGED, f"{receipt.host} has concluded it as {receipt.outcome} with other documents than the log has"
    if receipt.delayed:
        return state, f"{receipt.host} takes no documents at the moment: {receipt.delayed}"
    if not receipt.host:
        return state, "no ingest host has told of it yet"
    if receipt.next < run.tail.next:
        return state, f"{receipt.host} does not have its documents from {receipt.next} on yet"
    if run.tail.ended:
        return state, f"{receipt.host} has all of it, and has not told yet that it is in Tiled"
    return state, "waiting for documents"


_RULES: Final[tuple[Callable[[LoggedRun, Receipt], _Judgement], ...]] = (
    _judge_removed,
    _judge_unknown,
    _judge_refused,
    _judge_outcome,
    _judge_gaps,
    _judge_waiting,
)


def _name_state(run: LoggedRun) -> str:
    return CLOSING if run.tail.ended else OPEN


def _describe_holder(receipt: Receipt) -> str:
    if not receipt.host:
        return "no ingest host has told of it"
    if receipt.next == 0:
        return f"{receipt.host} has none of it"
    return f"the journal of {receipt.host} has those before {receipt.next}"
