"""Which documents are let in: those of a client's own runs, in their order, and of so many open runs at a time."""

from __future__ import annotations

from collections.abc import Mapping

from ...protocol import messages
from .._publishers import Publisher
from ._effects import CompareDocuments, RefuseDocuments, TellPublisher
from ._runs import Run, RunMessage


def find_refusal(
    run: Run, publisher: Publisher, message: RunMessage, runs: Mapping[str, Run], max_open_runs: int
) -> RefuseDocuments | None:
    """Return the refusal of a message that must not go to a worker; None if it may.

    Parameters
    ----------
    run
        The run.
    publisher
        The sender.
    message
        The message.
    runs
        All runs that have or may need a worker, by uid.
    max_open_runs
        Runs of one client that may be open at a time.
    """

    def refuse(topic: str, index: int, reason: str, detail: str = "") -> RefuseDocuments:
        return RefuseDocuments(topic, publisher, messages.Refused(run.uid, index, reason, detail))

    if not run.belongs_to(publisher.client):
        return refuse("owner", 0, "a run of this uid belongs to another client")
    if run.unavailable:
        return refuse("later", message.first, messages.LATER, run.reason)
    if run.unusable:
        return refuse("journal", run.next, run.reason)
    if run.is_another_run(message):
        return refuse("uid", 0, messages.ANOTHER_RUN)
    if run.uid not in runs and not run.next:
        if message.first > 0 or isinstance(message, messages.Abandoned):
            return refuse("gap", 0, messages.GAP)
        if (count := _count_open_runs(runs, publisher.quota_key)) >= max_open_runs:
            detail = f"{count} runs of this client are open, which is the limit"
            return refuse("later", message.first, messages.LATER, detail)
    return None


def answer_known(run: Run, publisher: Publisher, message: RunMessage) -> CompareDocuments | TellPublisher:
    """Return the answer to a message whose documents an ended run should have already."""
    if isinstance(message, messages.Documents):
        return CompareDocuments(publisher, run.journal, message, run.next)
    run.publishers.add(publisher)
    return TellPublisher(publisher, messages.Durable(run.uid, run.next, run.ended))


def _count_open_runs(runs: Mapping[str, Run], quota_key: str) -> int:
    """Count the open runs of a client that has publishers connected."""
    return sum(
        not (run.ended or run.is_final) and any(each.quota_key == quota_key for each in run.publishers)
        for run in runs.values()
    )
