"""Merges the answers of several supervisors, one for each target, into those of one. Opens no sockets.

To a publisher, the targets together are one supervisor. A document is durable once it is durable for every target, and
a run is written once it is written to every target. A publisher sends from the index that the target furthest behind
expects; the others ignore the documents that they have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import msgspec

from ..._outcomes import COMPLETE, FAILED, INTERRUPTED, WRITTEN
from ...protocol import messages

_Outcome: TypeAlias = "tuple[str, str]"
_NO_OUTCOME: Final = ("", "")


@dataclass
class _Answers:
    """Answers to one connection of a publisher, by target."""

    welcomes: dict[str, messages.Welcome] = field(default_factory=dict)
    durable: dict[str, dict[str, messages.Durable]] = field(default_factory=dict)
    outcomes: dict[str, dict[str, _Outcome]] = field(default_factory=dict)


class TargetAnswers:
    """The answers of all targets to each publisher, as far as they must be remembered.

    Parameters
    ----------
    targets
        Names of the targets.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = tuple(targets)
        self._answers: dict[bytes, _Answers] = {}

    def forget(self, publisher: bytes) -> None:
        """Forget the answers to a publisher, by its routing identity, that is gone."""
        self._answers.pop(publisher, None)

    def merge(self, publisher: bytes, target: str, message: messages.Message) -> Iterator[messages.Message]:
        """Take in an answer of a target to a publisher, and yield what the publisher must be told.

        Parameters
        ----------
        publisher
            Routing identity of the publisher.
        target
            Name of the target.
        message
            The answer of the target's supervisor.
        """
        answers = self._answers.setdefault(publisher, _Answers())
        match message:
            case messages.Welcome():
                yield from self._merge_welcome(answers, target, message)
            case messages.Durable():
                yield from self._merge_durable(answers, target, message)
            case messages.Written():
                yield from self._merge_outcome(answers, target, message)
            case messages.Refused():
                yield _name_target(message, target)

    def _merge_welcome(self, answers: _Answers, target: str, welcome: messages.Welcome) -> Iterator[messages.Welcome]:
        answers.welcomes[target] = welcome
        if len(answers.welcomes) < len(self._targets):
            return
        welcomes, answers.welcomes = answers.welcomes, {}
        # A Hello may have been repeated with other runs. The publisher asks again for runs that are not in the answer.
        uids = [uid for uid in welcome.runs if all(uid in each.runs for each in welcomes.values())]
        yield messages.Welcome(
            min(each.window for each in welcomes.values()),
            min(each.max_document for each in welcomes.values()),
            {
                uid: self._merge_states(answers, uid, {name: each.runs[uid] for name, each in welcomes.items()})
                for uid in uids
            },
        )

    def _merge_states(self, answers: _Answers, uid: str, states: Mapping[str, messages.RunState]) -> messages.RunState:
        outcomes = {name: (state.outcome, state.reason) for name, state in states.items() if state.outcome}
        outcome, reason = self._merge_outcomes(outcomes)
        ended = all(state.ended for state in states.values())
        answers.outcomes.pop(uid, None)
        answers.durable.pop(uid, None)
        if outcome not in COMPLETE:
            answers.outcomes[uid] = outcomes
            answers.durable[uid] = {
                name: messages.Durable(uid, state.next, state.ended) for name, state in states.items()
            }
        return messages.RunState(
            min(state.next for state in states.values()),
            ended,
            outcome,
            reason,
            next((state.start_crc for state in states.values() if state.start_crc is not None), None),
            next((state.end_crc for state in states.values() if ended and state.end_crc is not None), None),
        )

    def _merge_durable(self, answers: _Answers, target: str, message: messages.Durable) -> Iterator[messages.Durable]:
        known = answers.durable.setdefault(message.run, {})
        before = known.get(target)
        outcomes = answers.outcomes.get(message.run, {})
        if before is not None and message.next > before.next and outcomes.get(target, _NO_OUTCOME)[0] in COMPLETE:
            # It is that of the documents before, and says nothing about further ones.
            del outcomes[target]
        known[target] = message
        if len(known) < len(self._targets):
            return
        ended = all(each.ended for each in known.values())
        if ended:
            # Of a run that is sent again, every target answers again.
            del answers.durable[message.run]
        pause = max(each.pause for each in known.values())
        yield messages.Durable(message.run, min(each.next for each in known.values()), ended, pause)

    def _merge_outcome(self, answers: _Answers, target: str, message: messages.Written) -> Iterator[messages.Written]:
        known = answers.outcomes.setdefault(message.run, {})
        known[target] = (message.outcome, message.reason)
        outcome, reason = self._merge_outcomes(known)
        if outcome in COMPLETE:
            del answers.outcomes[message.run]
        if outcome:
            yield messages.Written(message.run, outcome, reason)

    def _merge_outcomes(self, outcomes: Mapping[str, _Outcome]) -> _Outcome:
        """Return the outcome of a run for all targets: failed if it failed for one, else none until all have one."""
        failures = [f"target {name}: {reason}" for name, (outcome, reason) in outcomes.items() if outcome == FAILED]
        if failures:
            return FAILED, "; ".join(failures)
        if len(outcomes) < len(self._targets):
            return _NO_OUTCOME
        return (INTERRUPTED if any(outcome == INTERRUPTED for outcome, _ in outcomes.values()) else WRITTEN), ""


def _name_target(refusal: messages.Refused, target: str) -> messages.Refused:
    """Return a refusal that says to people which target it comes from."""
    if refusal.reason not in (messages.GAP, messages.LATER, messages.NO_HELLO):
        return msgspec.structs.replace(refusal, reason=f"target {target}: {refusal.reason}")
    return msgspec.structs.replace(refusal, detail=f"target {target}: {refusal.detail}") if refusal.detail else refusal
