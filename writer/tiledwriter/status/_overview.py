"""The three answers on top of the page: is data safe, is it getting into Tiled, what needs somebody.

Pure: an observation of the supervisor in, sentences out. An answer is good only if a present snapshot proves it; an
old snapshot proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from tiledbroker._wording import as_sentence, format_command
from tiledbroker.supervisor import DiskStatus, LeaseStatus, RunStatus, Snapshot

from ._format import count_of, format_bytes, format_clock, format_count, format_duration, format_since
from ._metrics import age_of_oldest, all_runs, count_unwritten
from ._source import Observation

# Documents normally wait for milliseconds.
LATE_SECONDS: Final = 60.0


class Level(str, Enum):
    """How bad it is; the names of the colours on the page."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes
    ----------
    question
        The question.
    level
        How good the answer is.
    word
        The answer in one or two words.
    text
        What it is based on.
    """

    question: str
    level: Level
    word: str
    text: str


@dataclass(frozen=True)
class Overview:
    """The answers to the three questions, and what needs somebody, most urgent first."""

    safe: Answer
    tiled: Answer
    needs: Answer
    tasks: tuple[str, ...]

    @property
    def answers(self) -> tuple[Answer, Answer, Answer]:
        """The three answers in order."""
        return self.safe, self.tiled, self.needs


def overview_of(observation: Observation, journal_dir: str) -> Overview:
    """Return the three answers.

    Parameters
    ----------
    observation
        What the supervisor says, or that it says nothing.
    journal_dir
        Journal directory, for the commands in the answers.
    """
    snapshot = observation.current
    if snapshot is None:
        return _overview_without_supervisor(observation, journal_dir)
    tasks = _tasks_of(snapshot, journal_dir)
    if snapshot.lease is not None and not snapshot.lease.held:
        return _overview_of_standby(snapshot, snapshot.lease, tasks)
    return Overview(_is_safe(snapshot), _is_written(snapshot), _needs_attention(snapshot, tasks), tasks)


def _overview_without_supervisor(observation: Observation, journal_dir: str) -> Overview:
    since = observation.now - (observation.away_since or observation.now)
    silent = f"The supervisor has not answered since {format_clock(observation.away_since)} ({format_duration(since)})"
    tasks = (
        "Look at its process and its log: `systemctl status tiledwriter`",
        f"Ask it by hand: `{_ask_supervisor(journal_dir)}`",
    )
    return Overview(
        Answer(
            "Is data safe?",
            Level.BAD,
            "NOT KNOWN",
            f"{silent}. Acquisition does not depend on it: what it has not acknowledged stays in the spools of the "
            "acquisition hosts, as long as their disks have space.",
        ),
        Answer("Is it getting into Tiled?", Level.BAD, "NOT KNOWN", f"{silent}, so probably nothing is written."),
        Answer("What needs me?", Level.BAD, "THE SUPERVISOR", as_sentence(f"{silent}: {observation.problem}")),
        tasks,
    )


def _overview_of_standby(snapshot: Snapshot, lease: LeaseStatus, tasks: tuple[str, ...]) -> Overview:
    holder = f"{lease.host} holds the lease" if lease.host else "Who holds the lease is not known"
    elsewhere = f"This host stands by. {holder}: the answer is on the status page of the host that serves."
    return Overview(
        Answer("Is data safe?", Level.UNKNOWN, "STANDBY", elsewhere),
        Answer("Is it getting into Tiled?", Level.UNKNOWN, "STANDBY", elsewhere),
        _needs_attention(snapshot, tasks),
        tasks,
    )


# Is data safe?


def _is_safe(snapshot: Snapshot) -> Answer:
    question = "Is data safe?"
    full = [disk for disk in snapshot.disks if disk.state == "full"]
    if full:
        text = "so nothing is acknowledged. Documents wait in the spools of the acquisition hosts until there is space."
        return Answer(question, Level.BAD, "NOT HERE", f"The disk has {_say_space(full)}, {text}")
    ages = {publisher: age_of_oldest(publisher, snapshot) or 0.0 for publisher in snapshot.publishers}
    late = [publisher for publisher, age in ages.items() if age > LATE_SECONDS]
    if late:
        worst = max(late, key=ages.__getitem__)
        text = (
            f"Documents of {count_of(len(late), 'publisher')} wait on the acquisition host only: those of "
            f"{worst.name or worst.address} for {format_duration(ages[worst])}."
        )
        return Answer(question, Level.BAD if snapshot.state == "failed" else Level.WARNING, "NOT ALL HERE", text)
    journals = [disk for disk in snapshot.disks if disk.free is not None and disk.state is not None]
    if not journals or len(journals) < len(snapshot.disks):
        return Answer(question, Level.UNKNOWN, "NOT KNOWN", "The supervisor does not say how much space its disk has.")
    received = (
        f"{format_count(snapshot.totals.documents)} documents received since "
        f"{format_since(snapshot.started, snapshot.now)} are on disk here ({_say_space(journals)})."
    )
    if any(disk.state != "well" for disk in journals):
        return Answer(question, Level.WARNING, "YES, FOR NOW", f"{received} Space is getting short.")
    if _may_fail_to_journal(snapshot):
        text = f"{received} But the service has failed: what comes now may stay in the spools of the acquisition hosts."
        return Answer(question, Level.WARNING, "NOT CERTAIN", text)
    return Answer(question, Level.GOOD, "YES", f"{received} {_say_lag(snapshot)}")


def _may_fail_to_journal(snapshot: Snapshot) -> bool:
    # The service has failed because of journals, workers or Tiled. Only Tiled leaves what is received safe, and only a
    # single reason is surely that one.
    only_tiled = snapshot.tiled.reachable is False and len(snapshot.reasons) == 1
    return snapshot.state == "failed" and not only_tiled


def _say_lag(snapshot: Snapshot) -> str:
    if not snapshot.publishers:
        return "No publisher is connected; what others hold in their spools is not known here."
    lags = [publisher.lag_documents for publisher in snapshot.publishers]
    known = [lag for lag in lags if lag is not None]
    if len(known) < len(lags):
        silent = len(lags) - len(known)
        return f"{count_of(silent, 'connected publisher')} did not say yet what their spools hold."
    return f"{count_of(sum(known), 'document')} on the way from {count_of(len(lags), 'connected publisher')}."


def _say_space(disks: list[DiskStatus]) -> str:
    spaces = [f"{format_bytes(disk.free)} of {format_bytes(disk.total)} free" for disk in disks]
    if len(disks) == 1:
        return spaces[0]
    return ", ".join(f"{space} at {disk.path}" for space, disk in zip(spaces, disks, strict=True))


# Is it getting into Tiled?


def _is_written(snapshot: Snapshot) -> Answer:
    question = "Is it getting into Tiled?"
    tiled, waiting = snapshot.tiled, _say_waiting(snapshot)
    if tiled.reachable is None:
        return _is_written_unasked(snapshot, question, waiting)
    if not tiled.reachable:
        since = (
            ""
            if tiled.since is None
            else f" since {format_since(tiled.since, snapshot.now)} ({_ago(snapshot, tiled.since)})"
        )
        problem = tiled.problem or "the reason is not known"
        text = f"Tiled has not taken requests{since}: {as_sentence(problem)} {waiting} Nothing is lost."
        return Answer(question, Level.BAD, "NO", text)
    if tiled.problem is not None:
        return Answer(question, Level.BAD, "NO", f"Tiled answers, but: {as_sentence(tiled.problem)} {waiting}")
    failed = snapshot.runs.counts.get("failed", 0)
    last = f"Last write: {_say_last_write(snapshot)}."
    if failed:
        text = f"{count_of(failed, 'run')} in quarantine. {last} {waiting}"
        return Answer(question, Level.WARNING, "NOT ALL", text)
    held = [run for run in all_runs(snapshot) if run.waits_for or run.state == "parked"]
    if held:
        return Answer(question, Level.WARNING, "LATE", f"{count_of(len(held), 'run')} must wait. {last} {waiting}")
    return _is_written_in_time(snapshot, question, f"{last} {waiting}")


def _is_written_unasked(snapshot: Snapshot, question: str, waiting: str) -> Answer:
    """Return the answer while no worker has had one of Tiled."""
    look = snapshot.tiled.look
    if look is None:
        return Answer(question, Level.UNKNOWN, "NOT KNOWN", f"Tiled has not been asked since the start. {waiting}")
    if look.answers:
        text = f"Tiled answered {_ago(snapshot, look.at)} ago; nothing has been written since the start. {waiting}"
        return Answer(question, Level.UNKNOWN, "NOT TRIED", text)
    text = f"Tiled has not answered yet: {as_sentence(look.problem or 'the reason is not known')} {waiting}"
    return Answer(question, Level.UNKNOWN, "NOT YET", text)


def _is_written_in_time(snapshot: Snapshot, question: str, text: str) -> Answer:
    unwritten, last = count_unwritten(snapshot), snapshot.tiled.last_write
    if unwritten is None:
        return Answer(question, Level.UNKNOWN, "NOT KNOWN", text)
    # A run of which it is not known since when it waits may have waited since the start.
    waiting_since = [snapshot.started if run.since is None else run.since for run in _waiting_runs(snapshot)]
    began = min(waiting_since, default=snapshot.now)
    if unwritten and snapshot.now - max(last or 0.0, began) > LATE_SECONDS:
        return Answer(question, Level.WARNING, "WAITING", text)
    return Answer(question, Level.GOOD, "YES", text)


def _say_waiting(snapshot: Snapshot) -> str:
    unwritten = count_unwritten(snapshot)
    if unwritten is None:
        return "How many documents wait in the journals is not known."
    if not unwritten:
        return "Nothing else waits in the journals." if snapshot.runs.counts.get("failed") else "Nothing waits."
    runs = len(_waiting_runs(snapshot))
    verb = "waits" if unwritten == 1 else "wait"
    return f"{count_of(unwritten, 'document')} of {count_of(runs, 'run')} {verb} in the journals."


def _waiting_runs(snapshot: Snapshot) -> list[RunStatus]:
    return [run for run in all_runs(snapshot) if run.state != "failed" and run.durable > (run.written or 0)]


def _say_last_write(snapshot: Snapshot) -> str:
    last = snapshot.tiled.last_write
    return "none since the start" if last is None else f"{_ago(snapshot, last)} ago"


def _ago(snapshot: Snapshot, timestamp: float) -> str:
    return format_duration(snapshot.now - timestamp)


# What needs me?


def _tasks_of(snapshot: Snapshot, journal_dir: str) -> tuple[str, ...]:
    if snapshot.reasons or snapshot.state == "well":
        return tuple(snapshot.reasons)
    return (f"The supervisor says {snapshot.state}, but not why. Look: `{_ask_supervisor(journal_dir)}`",)


def _ask_supervisor(journal_dir: str) -> str:
    return format_command("tiledwriter-supervisor", "status", "--journal-dir", journal_dir)


def _needs_attention(snapshot: Snapshot, tasks: tuple[str, ...]) -> Answer:
    question = "What needs me?"
    if snapshot.state == "well":
        text = "The supervisor finds nothing wrong." if not tasks else " ".join(tasks)
        return Answer(question, Level.GOOD, "NOTHING", text)
    level = Level.WARNING if snapshot.state == "degraded" else Level.BAD
    word = f"{len(tasks)} THING" if len(tasks) == 1 else f"{len(tasks)} THINGS"
    return Answer(question, level, word, f"The service is {snapshot.state}; what to do is listed below.")
