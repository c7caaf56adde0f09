"""Documents that come while nobody asks for them are handed on together; nobody waits for those that do not come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from event_model import compose_run

from tiledbroker import Encoder, Journal, JournalInvalid, Record
from tiledwriter.mapping import _fold as fold_module
from tiledwriter.mapping._fold import Fold
from tiledwriter.mapping._operations import AppendRows, ExtendExternal, UpdateMetadata
from tiledwriter.mapping._run_writer import RunWriter
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.worker import _prefetch as prefetch_module
from tiledwriter.worker._prefetch import FoldedBatch, FoldPrefetch
from tiledwriter.worker._record_buffer import RecordBuffer

EVENTS = 100


def documents() -> list[tuple[str, Any]]:
    run = compose_run()
    stream = run.compose_descriptor(
        name="primary", data_keys={"x": {"source": "s", "dtype": "number", "shape": []}}, validate=False
    )
    events = [stream.compose_event(data={"x": i + 0.5}, timestamps={"x": 1.0}) for i in range(EVENTS)]
    return [
        ("start", run.start_doc),
        ("descriptor", stream.descriptor_doc),
        *(("event", event) for event in events),
        ("stop", run.compose_stop()),
    ]


class Run:
    """A run of which documents are put in the journal one after the other."""

    def __init__(self, path: Path) -> None:
        self.documents = documents()
        self.journal = Journal(path, "create", run_uid=self.documents[0][1]["uid"])
        self.record_buffer = RecordBuffer(2**20)
        self._encoder = Encoder()

    def add(self, count: int, *, handed_over: bool = True) -> None:
        start = self.journal.length
        for name, document in self.documents[start : start + count]:
            self.journal.append_one(name, self._encoder.encode(document))
        if handed_over:
            self.record_buffer.put_records(self.journal.read(start, count))
        else:
            self.record_buffer.wake()

    def prefetch(self) -> FoldPrefetch:
        return FoldPrefetch(Fold(self.journal.run_uid, WritingOptions(), 16), self.journal, self.record_buffer)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path / "run.sqlite")
    with run.journal:
        yield run


def rows(folded: FoldedBatch) -> list[tuple[int, int]]:
    return [(each.first, each.stop) for each in folded.operations if isinstance(each, AppendRows)]


def in_a_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    return thread, results


@pytest.mark.parametrize("handed_over", [True, False], ids=["in memory", "from the journal"])
def test_what_came_since_the_last_time_is_one_batch(run: Run, handed_over: bool) -> None:
    with run.prefetch() as prefetch:
        run.add(3, handed_over=handed_over)
        first = prefetch.take_batch(wait=True)
        for _ in range(7):
            run.add(5, handed_over=handed_over)
        second = prefetch.take_batch(wait=True)
        assert (first.documents, first.cursor, rows(first)) == (3, 3, [(0, 1)])
        assert (second.documents, second.cursor, rows(second)) == (35, 38, [(1, 36)])


def test_one_document_is_enough_when_somebody_waits(run: Run) -> None:
    with run.prefetch() as prefetch:
        run.add(2)
        prefetch.take_batch(wait=True)
        thread, results = in_a_thread(lambda: prefetch.take_batch(wait=True))
        run.add(1)
        thread.join(30)
        assert [rows(folded) for folded in results] == [[(0, 1)]]


def test_who_does_not_wait_gets_nothing_when_there_is_nothing(run: Run) -> None:
    with run.prefetch() as prefetch:
        folded = prefetch.take_batch(wait=False)
        assert (folded.documents, folded.operations, prefetch.accepts_more) == (0, [], True)


def test_a_run_ends_with_its_stop_document(run: Run) -> None:
    run.add(EVENTS + 3)
    with run.prefetch() as prefetch:
        folded = prefetch.take_batch(wait=True)
        assert folded.finished
        assert not prefetch.accepts_more
    assert rows(folded) == [(0, EVENTS)]
    assert any(isinstance(each, UpdateMetadata) for each in folded.operations)


def test_a_run_that_was_abandoned_ends_when_all_of_it_is_folded(run: Run) -> None:
    run.add(10)
    with run.prefetch() as prefetch:
        prefetch.take_batch(wait=True)
        thread, results = in_a_thread(lambda: prefetch.take_batch(wait=True))
        run.journal.set("abandoned", True)
        run.record_buffer.wake()
        thread.join(30)
        assert [(folded.documents, folded.finished) for folded in results] == [(0, True)]
        assert not prefetch.accepts_more


def test_a_document_that_cannot_be_folded_comes_with_all_before_it(run: Run) -> None:
    run.add(10)
    run.journal.append_one("event", b"\xc1")
    run.journal.append_one("event", b"\xc1")
    with run.prefetch() as prefetch:
        folded = prefetch.take_batch(wait=True)
        assert not prefetch.accepts_more
    assert folded.error is not None
    assert (folded.error.index, rows(folded)) == (10, [(0, 8)])


def test_memory_is_bounded_while_nobody_takes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "MAX_PENDING_EVENT_BYTES", 1000)
    monkeypatch.setattr(fold_module, "MAX_BATCH_BYTES", 5000)
    run.add(EVENTS + 3)
    batches = []
    with run.prefetch() as prefetch:
        while prefetch.accepts_more:
            batches += rows(prefetch.take_batch(wait=True))
    assert len(batches) > 2
    assert [first for first, _ in batches[1:]] == [stop for _, stop in batches[:-1]]
    assert (batches[0][0], batches[-1][1]) == (0, EVENTS)


def test_who_waits_is_let_go_when_it_is_closed(run: Run) -> None:
    with run.prefetch() as prefetch:
        run.add(2)
        prefetch.take_batch(wait=True)
        thread, results = in_a_thread(lambda: prefetch.take_batch(wait=True))
        prefetch.close()
        thread.join(30)
        assert [folded.documents for folded in results] == [0]


def test_a_document_that_somebody_waits_for_is_folded_by_the_one_who_waits(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folding: list[threading.Thread] = []
    collect = Fold.collect

    def collect_here(self: Fold, records: list[Record]) -> Any:
        folding.append(threading.current_thread())
        return collect(self, records)

    with run.prefetch() as prefetch:
        run.add(2)
        prefetch.take_batch(wait=True)
        monkeypatch.setattr(Fold, "collect", collect_here)
        thread, _ = in_a_thread(lambda: prefetch.take_batch(wait=True))
        time.sleep(0.2)  # until it waits
        run.add(1)
        thread.join(30)
        assert folding == [thread]


def test_an_error_in_the_last_step_is_told_as_well(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.add(5)

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    with run.prefetch() as prefetch:
        monkeypatch.setattr(RunWriter, "flush", fail)
        folded = prefetch.take_batch(wait=True)
        assert folded.error is not None
        assert not prefetch.accepts_more


def test_what_fails_in_the_thread_is_raised_where_batches_are_taken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    with run.prefetch() as prefetch:
        monkeypatch.setattr(prefetch, "_read_on", fail)
        run.add(1)
        with pytest.raises(ZeroDivisionError):
            prefetch.take_batch(wait=True)


def frames_told(folded: FoldedBatch) -> list[tuple[int, int]]:
    return [(each.first, each.stop) for each in folded.operations if isinstance(each, ExtendExternal)]


def test_a_few_frames_of_many_are_held_back_for_a_time_and_counted_as_written_then(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.documents[1:] = detector(run.documents[0][1])
    monkeypatch.setattr(prefetch_module, "HOLD_SECONDS", 600.0)
    with run.prefetch() as prefetch:
        run.add(4)
        first = prefetch.take_batch(wait=True)
        run.add(1)
        second = prefetch.take_batch(wait=True)
        assert (first.cursor, frames_told(first)) == (4, [(0, 2000)])
        assert (second.documents, second.cursor, frames_told(second)) == (1, 4, [])
        monkeypatch.setattr(prefetch_module, "HOLD_SECONDS", 0.0)
        third = prefetch.take_batch(wait=True)  # though no more documents come
        assert (third.documents, third.cursor, frames_told(third)) == (0, 5, [(2000, 2001)])


def test_who_does_not_wait_gets_all_frames(run: Run) -> None:
    run.documents[1:] = detector(run.documents[0][1])
    with run.prefetch() as prefetch:
        run.add(4)
        prefetch.take_batch(wait=True)
        thread, results = in_a_thread(lambda: prefetch.take_batch(wait=False))
        thread.join(30)
        run.add(1)
        folded = prefetch.take_batch(wait=False)
        assert [frames_told(each) for each in (*results, folded)] == [[], [(2000, 2001)]]


def detector(start: Any) -> list[tuple[str, Any]]:
    """A detector's 2,000 images and one more, in a file each."""
    key = {"source": "s", "dtype": "array", "dtype_numpy": "<u2", "shape": [2, 3], "external": "STREAM:"}
    about = {"uid": "d", "run_start": start["uid"], "name": "primary", "time": 0.0, "configuration": {}}
    resource = {
        "uid": "r",
        "run_start": start["uid"],
        "data_key": "cam",
        "mimetype": "multipart/related;type=image/tiff",
    }
    datum = {"stream_resource": "r", "descriptor": "d"}
    ranges = [(0, 2000), (2000, 2001)]
    return [
        ("descriptor", {**about, "data_keys": {"cam": key}, "object_keys": {}, "hints": {}}),
        ("stream_resource", {**resource, "uri": "file://localhost/d/", "parameters": {"template": "%d.tiff"}}),
        *(
            (
                "stream_datum",
                {
                    **datum,
                    "uid": f"r/{first}",
                    "indices": {"start": first, "stop": stop},
                    "seq_nums": {"start": first + 1, "stop": stop + 1},
                },
            )
            for first, stop in ranges
        ),
    ]


def test_leaving_it_with_an_error_ends_its_thread(run: Run) -> None:
    run.add(2)

    def fail() -> None:
        with run.prefetch() as prefetch:
            prefetch.take_batch(wait=True)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiledwriter-folding")]


def test_what_is_wrong_with_the_journal_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> list[Record]:
        raise JournalInvalid(run.journal.path, "it is damaged.")

    run.add(5, handed_over=False)
    monkeypatch.setattr(run.journal, "read", damaged)
    with run.prefetch() as prefetch:
        folded = prefetch.take_batch(wait=True)
        assert isinstance(folded.error, JournalInvalid)
        assert not prefetch.accepts_more


def test_what_comes_before_a_damage_is_folded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read = run.journal.read

    def damaged(start: int, *limits: int) -> list[Record]:
        if start >= 3:
            raise JournalInvalid(run.journal.path, "it is damaged.")
        return read(start, 3 - start)

    run.add(5, handed_over=False)
    monkeypatch.setattr(run.journal, "read", damaged)
    with run.prefetch() as prefetch:
        folded = prefetch.take_batch(wait=True)
        while folded.error is None:
            assert prefetch.accepts_more
            folded = prefetch.take_batch(wait=True)
    assert (folded.cursor, type(folded.error)) == (3, JournalInvalid)
    assert not prefetch.accepts_more
