"""A short campaign of faults against the whole product, and whether its referee sees what it has to see.

TILEDWRITER_TEST_CHAOS sets the seconds for which faults come; scripts/chaos runs campaigns of any length.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import sqlite3
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy
import pytest
from chaos import publishing
from chaos.campaign import Campaign, Options
from chaos.composing import TRACE, RunPlan
from chaos.keeper import Keeper
from chaos.kinds import KINDS, kinds_of, plan
from chaos.publishing import Acquisition, Session
from chaos.referee import Emitted, Harm, Referee, Tally, Verdict, compare
from chaos.report import Injected, Report
from chaos.site import Setting, Site, publishing_environment, read_witness
from warm import run_process

from tiledbroker import Encoder, Journal, ZMQPublisher, run_files
from tiledwriter.catalog import node_body
from tiledwriter.mapping import CreateArray
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until
from tiledwriter.worker._writing import RunWriting

SECONDS = float(os.environ.get("TILEDWRITER_TEST_CHAOS", "8"))
INTERVAL = 0.8
EVENTS = 8

# The campaign


@pytest.mark.timeout(600)
def test_nothing_is_lost_doubled_or_out_of_order_whatever_happens(tmp_path: Path) -> None:
    setting = Setting(
        tmp_path / "campaign", seed=4, runs=3, quiet_period=0.5, late_audit=3.0, events=(20, 60), pace=0.3
    )
    report = Campaign(Options(setting, SECONDS, INTERVAL, patience=120.0)).run()
    assert report.clean, "\n".join(report.lines())
    assert len(report.injected) >= 5
    assert sum(verdict.rows.found for verdict in report.verdicts) > 100
    possible = [kind for kind in kinds_of("zeromq") if kind not in report.impossible]
    planned = {(fault.number, fault.kind) for fault in plan(setting.seed, possible, SECONDS, INTERVAL)}
    assert {(fault.number, fault.kind) for fault in report.injected} <= planned


def test_a_seed_gives_the_same_faults_again_and_all_kinds_come_equally_often() -> None:
    kinds = list(KINDS)
    faults = list(plan(7, kinds, 500.0, 2.0))
    assert faults == list(plan(7, kinds, 500.0, 2.0))
    assert faults != list(plan(8, kinds, 500.0, 2.0))
    # In another process, too, and on another machine.
    assert [(fault.kind, round(fault.at, 3), round(fault.victim, 3)) for fault in plan(7, ["c", "a", "b"], 5, 1)] == [
        ("c", 0.895, 0.048),
        ("a", 1.978, 0.91),
        ("b", 2.896, 0.241),
        ("b", 4.343, 0.631),
    ]
    counts = [sum(fault.kind == kind for fault in faults) for kind in kinds]
    assert max(counts) - min(counts) <= 1
    assert min(counts) > 3


def test_a_campaign_that_is_stopped_begins_no_further_faults(tmp_path: Path) -> None:
    campaign = Campaign(Options(Setting(tmp_path), 3600.0, interval=0.0))
    site = Site(Setting(tmp_path), note=lambda _: None)
    site.seats = []
    due = campaign._due(site, ["cable cut"], [])
    assert next(due).kind == "cable cut"
    campaign.stop()
    assert list(due) == []


# Sessions


def acquisition_in(directory: Path, address: str, *, events: int, pace: float) -> Acquisition:
    return Acquisition(
        address=address,
        spool=str(directory / "spool"),
        witness=str(directory / "witness"),
        files=str(directory),
        control=str(directory),
        number=1,
        seed="",
        at_once=1,
        events=(events, events),
        pace=pace,
    )


def test_a_session_that_is_held_back_from_its_beginning_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = tmp_path / "hold"
    hold.touch()

    def let_go(_seconds: float) -> None:
        if not hold.exists():
            raise InterruptedError
        hold.unlink()

    given = acquisition_in(tmp_path, "tcp://127.0.0.1:9", events=2, pace=0.01)
    session = Session(given)
    monkeypatch.setattr(publishing, "sleep", let_go)
    with closing(session), pytest.raises(InterruptedError):
        session.run()
    assert len(read_witness(tmp_path / "witness")) == 1


# What a truncated spool leaves


def test_a_run_whose_spool_lost_its_end_is_named_and_keeps_all_that_was_acknowledged(
    tmp_path: Path, supervisor: SupervisorProcess
) -> None:
    crash = {"limit": 1, "crash_at": "publisher: document spooled", "crash_after": 40}
    given = replace(acquisition_in(tmp_path, supervisor.address, events=60, pace=0.1), **crash)
    done = run_process(given.command(), env=publishing_environment(), timeout=60)
    assert done.returncode == -signal.SIGKILL
    (run_uid,) = read_witness(tmp_path / "witness")

    def durable() -> int:
        try:
            with journal_of(supervisor.journal_dir, run_uid) as journal:
                return journal.length
        except LookupError:
            return 0

    wait_until(lambda: durable() > 30, 30, "documents are acknowledged")
    (spooled,) = run_files(tmp_path / "spool")
    os.truncate(spooled, len(spooled.read_bytes().rstrip(b"\0")) // 3)
    with closing(ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool")) as publisher:
        wait_until(lambda: run_uid in publisher.status().refused, 60, "the run is refused")
        assert spooled.name in publisher.status().refused[run_uid]
    assert spooled.exists()
    assert durable() > 30


# The referee


@pytest.mark.parametrize(
    ("found", "tally"),
    [
        ("abcd", Tally(4, 4)),
        ("abd", Tally(4, 3, lost=1)),
        ("abccd", Tally(4, 5, doubled=1)),
        ("abdc", Tally(4, 4, disordered=2)),
        ("abxd", Tally(4, 4, lost=1, doubled=1)),
        ("bcdd", Tally(4, 4, lost=1, doubled=1)),
        ("", Tally(4, 0, lost=4)),
    ],
)
def test_sequences_are_compared(found: str, tally: Tally) -> None:
    assert compare("abcd", found) == tally


class Written:
    """A run that is in a journal and in Tiled, and that can be tampered with there.

    `tampered` says that Tiled does not have it as it was written any more.
    """

    def __init__(self, server: TiledServer, directory: Path) -> None:
        self.tampered = False
        self._server = server
        self._http = httpx.Client(
            base_url=f"{server.uri}/api/v1", headers={"Authorization": f"Apikey {server.api_key}"}
        )
        encoder = Encoder()
        documents = list(RunPlan.with_everything(1, EVENTS).documents(directory))
        self.uid = documents[0][1]["uid"]
        self.published = [(name, encoder.encode(document)) for name, document in documents]
        self.emitted = []
        self.journal = directory / f"{self.uid}.sqlite"
        outcomes: list[str] = []
        with Journal(self.journal, "create", run_uid=self.uid) as journal:
            for name, body in self.published:
                journal.append_one(name, body)
                self.emitted.append(Emitted(name, zlib.crc32(body), 0.0))
            writing = RunWriting(
                journal,
                server.client,
                WritingOptions(quiet_period=0.2),
                drain=False,
                on_progress=lambda _: None,
                on_end=lambda outcome, _: outcomes.append(outcome),
            )
            writing.start()
            wait_until(lambda: outcomes, 30, "the run is written")
            writing.stop(10.0)
        assert outcomes == ["written"]

    def close(self) -> None:
        self._http.close()

    def with_journal_in(self, directory: Path) -> Written:
        """The same run with a copy of the journal, which can be changed."""
        copied = copy.copy(self)
        copied.journal = Path(shutil.copy(self.journal, directory))
        return copied

    def in_table(self, statement: str) -> None:
        """Run SQL on the rows of the primary stream."""
        self.tampered = True
        parameters = self._source("primary/internal")["parameters"]
        with closing(sqlite3.connect(self._server._directory / "tables.db")) as connection:
            table = f'"{parameters["table_name"]}"'
            mine = f"_dataset_id = {parameters['dataset_id']}"
            connection.execute(statement.format(table=table, mine=mine))
            connection.commit()

    def turn_round(self) -> None:
        """Let the rows of the primary stream come in reverse order."""
        self.tampered = True
        source = self._source("primary/internal")
        order = [{**by, "direction": "desc"} for by in source["parameters"]["order_by_args"]]
        source = {**source, "parameters": {**source["parameters"], "order_by_args": order}}
        answer = self._http.put(f"/data_source/{self.uid}/primary/internal", json={"data_source": source})
        answer.raise_for_status()

    def swap_array_rows(self) -> None:
        self.tampered = True
        path = f"{self.uid}/primary/trace"
        answer = self._http.get(f"/array/full/{path}", params={"format": "application/octet-stream"})
        rows = numpy.frombuffer(answer.content).reshape(EVENTS, TRACE)
        answer = self._http.put(
            f"/array/full/{path}",
            content=rows[::-1].tobytes(),
            headers={"Content-Type": "application/octet-stream"},
        )
        answer.raise_for_status()

    def say(self, outcome: str, reason: str = "") -> None:
        """Have the journal say what became of the run."""
        with Journal(self.journal, "write") as journal:
            journal.set("outcome", outcome)
            journal.set("reason", reason)

    def shorten_journal(self, directory: Path, documents: int, outcome: str, reason: str = "") -> None:
        """Have a journal in a directory that knows a beginning of the run only."""
        directory.mkdir()
        with Journal(directory / self.journal.name, "create", run_uid=self.uid) as journal:
            for name, body in self.published[:documents]:
                journal.append_one(name, body)
            journal.set("outcome", outcome)
            journal.set("reason", reason)

    def delete(self) -> None:
        self.tampered = True
        answer = self._http.delete(f"/metadata/{self.uid}", params={"recursive": True, "external_only": False})
        answer.raise_for_status()

    def forget_stop(self) -> None:
        self.tampered = True
        metadata = self._http.get(f"/metadata/{self.uid}").json()["data"]["attributes"]["metadata"]
        del metadata["stop"]
        self._http.put(f"/metadata/{self.uid}", json={"metadata": metadata}).raise_for_status()

    def tell_of_frames(self, frames: int) -> None:
        self.tampered = True
        source = self._source("primary/camera")
        structure = source["structure"]
        chunks = [[1] * frames, *structure["chunks"][1:]]
        source = {**source, "structure": {**structure, "shape": [frames, *structure["shape"][1:]], "chunks": chunks}}
        answer = self._http.put(f"/data_source/{self.uid}/primary/camera", json={"data_source": source})
        answer.raise_for_status()

    def _source(self, path: str) -> dict[str, Any]:
        answer = self._http.get(f"/metadata/{self.uid}/{path}", params={"include_data_sources": True})
        return dict(answer.json()["data"]["attributes"]["data_sources"][0])


@pytest.fixture(scope="module")
def unharmed() -> Iterator[list[Written]]:
    """A run that no test has tampered with in Tiled, if there is one."""
    runs: list[Written] = []
    yield runs
    for run in runs:
        run.close()


@pytest.fixture
def written(
    tiled_server: TiledServer, unharmed: list[Written], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Written]:
    if not unharmed:
        unharmed.append(Written(tiled_server, tmp_path_factory.mktemp("run")))
    written = unharmed[0].with_journal_in(tmp_path)
    yield written
    if written.tampered:
        unharmed.pop().close()


@pytest.fixture
def referee_of(tiled_server: TiledServer) -> Iterator[Callable[..., Referee]]:
    """Makes a referee that looks at a journal directory, and at what else it is told of."""
    with ExitStack() as stack:

        def make(journal_dir: Path, **options: Any) -> Referee:
            return stack.enter_context(closing(Referee(journal_dir, tiled_server.uri, tiled_server.api_key, **options)))

        yield make


@pytest.fixture
def judge(referee_of: Callable[..., Referee], tmp_path: Path) -> Callable[..., Verdict]:
    return referee_of(tmp_path).judge


def test_a_run_that_is_as_it_should_be_is_clean(written: Written, judge: Callable[..., Verdict]) -> None:
    verdict = judge(written.uid, written.emitted)
    assert verdict.clean
    assert verdict.outcome == "written"
    assert verdict.emitted == verdict.durable == len(written.emitted)
    # Rows of the table, of two arrays and of the file; the rows of the other stream; start and stop.
    assert verdict.rows == Tally(4 * EVENTS + EVENTS // 5 + 2, 4 * EVENTS + EVENTS // 5 + 2)


def test_an_array_without_rows_is_none_that_tiled_does_not_show(
    referee_of: Callable[..., Referee], tiled_server: TiledServer, tmp_path: Path
) -> None:
    context = tiled_server.client().context
    key = str(uuid.uuid4())
    body = node_body(CreateArray(key, "<f8", (TRACE,), 1, ("time", "x")), key)
    source = context.http_client.post(f"{context.api_uri}metadata/", json=body).json()["data_sources"][0]
    assert referee_of(tmp_path)._array(key, source["structure"]).shape == (0, TRACE)


@pytest.mark.parametrize(
    ("tamper", "wrong"),
    [
        (lambda run: run.in_table("DELETE FROM {table} WHERE {mine} AND label LIKE '%row 3'"), (1, 0, 0)),
        (
            lambda run: run.in_table("INSERT INTO {table} SELECT * FROM {table} WHERE {mine} AND label LIKE '%row 3'"),
            (0, 1, 0),
        ),
        (
            lambda run: run.in_table("UPDATE {table} SET position = 0 WHERE {mine} AND label LIKE '%row 3'"),
            (1, 1, 0),
        ),
        (lambda run: run.turn_round(), (0, 0, EVENTS)),
        (lambda run: run.swap_array_rows(), (0, 0, EVENTS)),
        (lambda run: run.tell_of_frames(EVENTS - 1), (1, 0, 0)),
        (lambda run: run.forget_stop(), (1, 0, 0)),
    ],
    ids=["row removed", "row doubled", "row changed", "rows reversed", "array reversed", "frame missing", "no stop"],
)
def test_what_is_wrong_in_tiled_is_seen(
    tamper: Callable[[Written], None],
    wrong: tuple[int, int, int],
    written: Written,
    judge: Callable[..., Verdict],
) -> None:
    tamper(written)
    verdict = judge(written.uid, written.emitted)
    assert not verdict.clean
    assert (verdict.rows.lost, verdict.rows.doubled, verdict.rows.disordered) == wrong
    assert verdict.documents.clean


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda emitted: [*emitted, Emitted("event", 1, 0.0)], (1, 0, 0)),
        (lambda emitted: emitted[:-2], (0, 2, 0)),
        (lambda emitted: [*emitted[:-2], emitted[-1], emitted[-2]], (0, 0, 2)),
        (lambda emitted: [*emitted[:3], replace(emitted[3], checksum=0), *emitted[4:]], (1, 1, 0)),
    ],
    ids=["one is lost", "two are too many", "two are swapped", "one is another"],
)
def test_what_is_wrong_in_the_journal_is_seen(
    change: Callable[[list[Emitted]], list[Emitted]],
    wrong: tuple[int, int, int],
    written: Written,
    judge: Callable[..., Verdict],
) -> None:
    documents = judge(written.uid, change(written.emitted)).documents
    assert (documents.lost, documents.doubled, documents.disordered) == wrong


def test_one_document_more_than_a_killed_process_could_write_down_is_no_error(
    written: Written, judge: Callable[..., Verdict]
) -> None:
    assert judge(written.uid, written.emitted[:-1]).clean


def test_of_a_truncated_spool_only_what_was_safe_must_be_there(written: Written, judge: Callable[..., Verdict]) -> None:
    there = len(written.emitted)
    emitted = written.emitted + [Emitted("event", number, 0.0) for number in range(3)]
    verdict = judge(written.uid, emitted, Harm(safe=there))
    assert verdict.clean
    assert verdict.cut == 3
    verdict = judge(written.uid, emitted, Harm(safe=there + 2))
    assert verdict.documents.lost == 2
    assert verdict.cut == 1


REMOVE = "DELETE FROM {table} WHERE {mine} AND label LIKE '%row "


class OneRun:
    """What a keeper looks at of a site with one run."""

    def __init__(self, written: Written) -> None:
        self.setting = Setting(Path())
        self._written = written

    def published(self, run_uid: str) -> list[tuple[str, bytes]]:
        return self._written.published

    def outcome(self, run_uid: str) -> str:
        return "written"


@pytest.mark.parametrize(
    ("tamper", "gone"),
    [
        (lambda run: None, 0),
        (lambda run: run.in_table(REMOVE + "3'"), 1),
        (lambda run: run.in_table("DELETE FROM {table} WHERE {mine}"), EVENTS),
        (lambda run: run.tell_of_frames(EVENTS - 2), 2),
        (lambda run: run.forget_stop(), 1),
        (lambda run: run.delete(), 4 * EVENTS + EVENTS // 5 + 2),
        (lambda run: run.in_table("INSERT INTO {table} SELECT * FROM {table} WHERE {mine} AND label LIKE '%row 3'"), 0),
    ],
    ids=["nothing", "a row", "all rows", "frames", "the stop", "the run", "nothing, one is doubled"],
)
def test_what_tiled_had_of_a_complete_run_and_has_no_longer_is_counted(
    tamper: Callable[[Written], None],
    gone: int,
    written: Written,
    referee_of: Callable[..., Referee],
    tmp_path: Path,
) -> None:
    notes: list[str] = []
    keeper = Keeper(OneRun(written), referee_of(tmp_path), notes.append)  # type: ignore[arg-type]
    assert keeper.removed(written.uid) == 0
    tamper(written)
    assert keeper.removed(written.uid) == gone
    assert len(notes) == (gone > 0)


def test_a_doubled_row_may_go(written: Written, referee_of: Callable[..., Referee], tmp_path: Path) -> None:
    written.in_table("INSERT INTO {table} SELECT * FROM {table} WHERE {mine} AND label LIKE '%row 3'")
    keeper = Keeper(OneRun(written), referee_of(tmp_path), lambda _: None)  # type: ignore[arg-type]
    assert keeper.removed(written.uid) == 0
    written.in_table("DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table} WHERE {mine})")
    assert keeper.removed(written.uid) == 0


@pytest.mark.parametrize(
    ("tamper", "said", "wrong"),
    [
        (lambda run: None, False, False),
        (lambda run: run.in_table(REMOVE + "7'"), False, True),
        (lambda run: run.in_table(REMOVE + "7'"), True, True),
        (lambda run: (run.in_table(REMOVE + "7'"), run.say("interrupted")), False, True),
        (lambda run: (run.in_table(REMOVE + "7'"), run.say("")), False, True),
        (lambda run: (run.in_table(REMOVE + "7'"), run.say("")), True, False),
        (lambda run: (run.in_table(REMOVE + "7'"), run.say("failed", "a checksum")), False, False),
        (lambda run: (run.in_table(REMOVE + "3'"), run.say("failed", "a checksum")), True, True),
        (lambda run: (run.swap_array_rows(), run.say("failed", "a checksum")), True, True),
        (lambda run: (run.in_table(REMOVE + "7'"), run.journal.write_bytes(b"x" * 5000)), False, False),
    ],
    ids=[
        *("whole", "written with less", "written with less, and refused", "all documents, interrupted"),
        *("less, no word", "less, refused", "less, failed", "a gap", "another order", "unreadable journal"),
    ],
)
def test_a_damaged_run_is_whole_or_a_beginning_of_which_somebody_says_so(
    tamper: Callable[[Written], None], said: bool, wrong: bool, written: Written, referee_of: Callable[..., Referee]
) -> None:
    tamper(written)
    refused = {written.uid: "its file is damaged"} if said else {}
    referee = referee_of(written.journal.parent, refused=refused)
    verdict = referee.judge(written.uid, written.emitted, Harm(damaged=True), written.published)
    assert verdict.damaged
    assert (verdict.silently_wrong, verdict.clean) == (wrong, not wrong)
    assert verdict.documents.clean
    assert verdict.rows.clean


@pytest.mark.parametrize(
    ("missing", "outcome", "wrong"), [(1, "interrupted", False), (2, "interrupted", True), (1, "", True)]
)
def test_a_damaged_last_document_may_be_one_that_a_dying_process_did_not_finish(
    missing: int, outcome: str, wrong: bool, written: Written, judge: Callable[..., Verdict]
) -> None:
    (name, body), *_ = [document for document in written.published if document[0] == "event"]
    published = written.published + missing * [(name, body)]
    emitted = written.emitted + missing * [Emitted(name, zlib.crc32(body), 0.0)]
    written.say(outcome)
    assert judge(written.uid, emitted, Harm(damaged=True), published).silently_wrong == wrong


@pytest.mark.parametrize(
    ("harm", "refused", "wrong"),
    [
        (Harm(), False, True),
        (Harm(safe=3), True, False),
        (Harm(stale=True), False, False),
    ],
    ids=["nobody says why", "its publisher has lost its end", "older copies of all logs were put back"],
)
def test_a_run_without_an_outcome_needs_a_reason(  # noqa: PLR0917
    harm: Harm, refused: bool, wrong: bool, written: Written, referee_of: Callable[..., Referee], tmp_path: Path
) -> None:
    written.say("")
    retired, at_work = written.journal.parent, tmp_path / "at work"
    at_work.mkdir()
    said = {written.uid: "its file is damaged"} if refused else {}
    referee = referee_of(at_work, retired=[retired], refused=said)
    assert referee.judge(written.uid, written.emitted, harm, written.published).clean is not wrong


def test_documents_in_the_journal_of_a_damaged_run_must_be_a_beginning(
    written: Written, judge: Callable[..., Verdict]
) -> None:
    published = [*written.published[:4], *written.published[5:]]
    assert judge(written.uid, written.emitted, Harm(damaged=True), published).silently_wrong


@pytest.mark.parametrize(
    ("outcome", "reason", "clean"),
    [
        ("failed", "Tiled has more of it than the journal", True),
        ("failed", "it failed", False),
        ("interrupted", "", False),
        ("", "", True),
    ],
)
def test_an_old_copy_of_a_journal_fails_because_tiled_has_more(
    outcome: str, reason: str, clean: bool, written: Written, referee_of: Callable[..., Referee]
) -> None:
    current = written.journal.parent / "current"
    written.shorten_journal(current, 6, outcome, reason)
    referee = referee_of(current, retired=[written.journal.parent])
    verdict = referee.judge(written.uid, written.emitted, Harm(stale=True), written.published)
    assert verdict.clean == clean
    assert verdict.outcome == "written"


@pytest.mark.parametrize("gap", [False, True])
def test_what_tiled_has_beyond_an_old_copy_must_be_as_published(
    gap: bool, written: Written, referee_of: Callable[..., Referee], tmp_path: Path
) -> None:
    written.shorten_journal(tmp_path / "current", 6, "failed", "Tiled has more of it than the journal")
    if gap:
        written.in_table(REMOVE + "5'")
    harm = Harm(safe=6, stale=True)
    verdict = referee_of(tmp_path / "current").judge(written.uid, written.emitted, harm, written.published)
    assert verdict.clean != gap


@pytest.mark.parametrize(
    ("knows_end", "is_retired", "clean"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_a_run_of_which_both_logs_were_taken_away_may_be_in_tiled_in_part(
    *,
    knows_end: bool,
    is_retired: bool,
    clean: bool,
    written: Written,
    referee_of: Callable[..., Referee],
    tmp_path: Path,
) -> None:
    directory = tmp_path / "taken away"
    still_open = written.emitted[:-1]
    written.shorten_journal(directory, len(still_open), "")
    written.in_table(REMOVE + f"{EVENTS - 1}'")
    (tmp_path / "empty").mkdir()
    referee = referee_of(tmp_path / "empty", retired=[directory]) if is_retired else referee_of(directory)
    harm = Harm(safe=0, readable=knows_end)
    verdict = referee.judge(written.uid, still_open, harm, written.published)
    assert verdict.clean == clean, str(verdict)


def test_a_run_that_was_published_for_another_supervisor_is_foreign_here(
    written: Written, referee_of: Callable[..., Referee], tmp_path: Path
) -> None:
    referee = referee_of(tmp_path, elsewhere=tmp_path / "nothing")
    assert referee.foreign(written.uid) == 0
    verdict = referee.judge_away(written.uid, written.emitted, None)
    assert verdict.foreign == len(written.emitted) + 1
    assert not verdict.clean
    referee = referee_of(tmp_path / "nothing", elsewhere=tmp_path)
    assert referee.foreign(written.uid) == len(written.emitted)
    assert not referee.judge_away("another", written.emitted, 3).clean
    assert referee.judge_away("another", written.emitted, len(written.emitted)).clean


def test_a_run_without_journal_is_lost(judge: Callable[..., Verdict]) -> None:
    assert judge("nowhere", [Emitted("start", 1, 0.0)] * 3).documents.lost == 3


def test_the_report_has_a_line_for_each_kind_and_names_the_faults_that_hit_a_run() -> None:
    lost = Verdict("abc", began=10.0, ended=20.0, rows=Tally(5, 4, lost=1), problems=["primary/internal"])
    unharmed = Verdict("def", began=40.0, rows=Tally(7, 7))
    faults = [Injected(0, "cable cut", 12.0, 12.5, "cut"), Injected(1, "worker killed", 30.0, 30.1, "process 1")]
    impossible = {"journal disk full": "only root can mount"}
    report = Report(1, "sqlite", 60.0, faults, [lost, unharmed], impossible=impossible)
    assert not report.clean
    text = "\n".join(report.lines())
    assert "not possible here: only root can mount" in text
    assert text.partition("hit by: ")[2] == "0 cable cut"
    table = json.loads(json.dumps(report.as_json(), allow_nan=False))["table"]
    assert [table[name]["runs"] for name in ("cable cut", "worker killed", "all runs")] == [1, 0, 2]
    assert [table[name]["lost"] for name in ("cable cut", "worker killed", "all runs")] == [1, 0, 1]
    assert Report(1, "sqlite", 60.0, faults, [unharmed]).clean
    assert not Report(1, "sqlite", 60.0, faults, [unharmed], complaints=["status() raised"]).clean


def test_the_report_counts_what_was_removed_foreign_and_damaged() -> None:
    damaged = Verdict("abc", began=10.0, ended=20.0, damaged=True)
    wrong = Verdict("def", began=10.0, ended=20.0, damaged=True, problems=["no word"])
    removed = Verdict("ghi", began=30.0, ended=40.0, removed=5)
    foreign = Verdict("jkl", began=30.0, ended=40.0, foreign=7)
    assert [verdict.clean for verdict in (damaged, wrong, removed, foreign)] == [True, False, False, False]
    report = Report(1, "sqlite", 60.0, [Injected(0, "bit", 11.0, 12.0, "")], [damaged, wrong, removed, foreign])
    names = ("removed", "foreign", "damaged", "silently wrong", "lost")
    assert [report.figures("bit")[name] for name in names] == [0, 0, 2, 1, 0]
    assert [report.figures()[name] for name in names] == [5, 7, 2, 1, 0]
