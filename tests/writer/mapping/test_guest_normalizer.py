"""Normalizers written for bluesky-tiled-plugins: pure tests of how they are driven and of the record of their work."""

from __future__ import annotations

import functools
import time
import uuid
import warnings
import zlib
from typing import Any

import pytest
from bluesky.callbacks import tiled_writer as older
from bluesky_tiled_plugins.writing import tiled_writer as peer
from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer as PeerNormalizer
from event_model import DocumentRouter, compose_run

from tiledbroker import Encoder, Journal, Record
from tiledwriter import RunNormalizer
from tiledwriter._errors import PluginError
from tiledwriter.mapping import GuestNormalizer, make_normalizer
from tiledwriter.mapping._guest_normalizer import registered_mimetypes
from tiledwriter.mapping._recorded_normalizer import RecordedNormalizer


class AddingNormalizer(PeerNormalizer):
    """Adds a stream with a uid drawn by lot, and events with the time of day."""

    @staticmethod
    def draw() -> str:
        return str(uuid.uuid4())

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = ""
        self.total = 0

    def descriptor(self, doc: dict[str, Any]) -> Any:
        super().descriptor(doc)
        if not self.extra:
            self.extra = self.draw()
            keys = {"total": {"source": "sum", "dtype": "number", "shape": []}}
            super().descriptor({**doc, "uid": self.extra, "name": "extra", "data_keys": keys, "object_keys": {}})

    def event(self, doc: dict[str, Any]) -> Any:
        super().event(doc)
        self.total += doc["data"]["x"]
        super().event(
            {
                **doc,
                "uid": f"{self.draw()}-added",
                "descriptor": self.extra,
                "time": time.time(),
                "data": {"total": self.total},
                "timestamps": {"total": time.time()},
            }
        )

    def stop(self, doc: dict[str, Any]) -> Any:
        self.notes.append(f"the sum is {self.total}")
        super().stop(doc)


class ShortNormalizer(AddingNormalizer):
    """Draws ids that are no uids."""

    @staticmethod
    def draw() -> str:
        return f"extra-{uuid.uuid4().hex[:6]}"


class DrawingNormalizer(RunNormalizer):
    """A subclass of our own class, which gives each event a uid drawn by lot."""

    def event(self, doc: Any) -> None:
        super().event({**doc, "uid": str(uuid.uuid4())})


class OldRouter(DocumentRouter):
    """A router that changes pages, and emits what it changes afterwards."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.emit: Any = None

    def subscribe(self, function: Any) -> None:
        self.emit = function

    def __call__(self, name: str, doc: Any, validate: bool = False) -> Any:
        self.emit(name, doc)
        doc.clear()


def documents_of_a_run(events: int = 4) -> list[tuple[str, dict[str, Any]]]:
    run = compose_run(uid=str(uuid.uuid4()))
    key = {"x": {"source": "sim", "dtype": "number", "shape": []}}
    descriptor = run.compose_descriptor(name="primary", data_keys=key)
    made = [("start", run.start_doc), ("descriptor", descriptor.descriptor_doc)]
    made += [
        ("event", descriptor.compose_event(data={"x": float(i)}, timestamps={"x": float(i)})) for i in range(events)
    ]
    return [(name, dict(doc)) for name, doc in [*made, ("stop", run.compose_stop())]]


class FakeJournal:
    """A journal in memory."""

    encode_result = staticmethod(Journal.encode_result)
    decode_result = staticmethod(Journal.decode_result)

    def __init__(self, documents: list[tuple[str, dict[str, Any]]]) -> None:
        bodies = [Encoder().encode(doc) for _, doc in documents]
        self.records = [
            Record(idx, name, 0.0, zlib.crc32(body), body)
            for idx, ((name, _), body) in enumerate(zip(documents, bodies, strict=True))
        ]
        self.normalized: dict[int, bytes] = {}
        self.revise_below = 0

    def read(self, start: int, limit: int = 2, max_bytes: int = 0) -> list[Record]:
        del max_bytes
        return self.records[start : start + limit]

    def read_normalized(self, start: int, limit: int) -> dict[int, bytes]:
        return {idx: self.normalized[idx] for idx in sorted(self.normalized) if idx >= start and limit}


def normalize_records(normalizer: RecordedNormalizer, journal: FakeJournal, until: int) -> list[Any]:
    records = journal.records[:until]
    return [normalizer.normalize(record.idx, record.name, record.document()) for record in records]


def make(cls: type) -> Any:
    return lambda: make_normalizer(cls, {}, {})


@pytest.mark.parametrize("cls", [AddingNormalizer, ShortNormalizer, DrawingNormalizer])
def test_a_resumed_run_goes_on_with_its_own_uids(cls: type) -> None:
    documents = documents_of_a_run()
    for kill_at in range(len(documents)):
        journal = FakeJournal(documents)
        first = RecordedNormalizer(make(cls), journal)
        before = normalize_records(first, journal, kill_at)
        journal.normalized |= dict(first.take_fresh())
        second = RecordedNormalizer(make(cls), journal)
        made = normalize_records(second, journal, len(documents))
        assert made[:kill_at] == before
        descriptors = {doc["uid"] for result in made for name, doc in result if name == "descriptor"}
        assert len(descriptors) == (1 if cls is DrawingNormalizer else 2)
        assert {doc["descriptor"] for result in made for name, doc in result if name == "event"} == descriptors
        assert second.notes == ([] if cls is DrawingNormalizer else ["the sum is 6.0"])
        # A fold of what is recorded makes the same again, without the normalizer.
        journal.normalized |= dict(second.take_fresh())
        third = RecordedNormalizer(lambda: pytest.fail("the normalizer was made"), journal)
        assert normalize_records(third, journal, len(documents)) == made
        assert (third.notes, third.guessed_types) == (second.notes, second.guessed_types)
        assert not third.take_fresh()


def test_a_mended_normalizer_keeps_the_uids_that_it_has_drawn() -> None:
    class Mended(AddingNormalizer):
        def start(self, doc: Any) -> Any:
            return super().start({**doc, "mended": True})

    journal = FakeJournal(documents_of_a_run())
    first = RecordedNormalizer(make(AddingNormalizer), journal)
    before = normalize_records(first, journal, 4)
    journal.normalized |= dict(first.take_fresh())
    journal.revise_below = 4
    second = RecordedNormalizer(make(Mended), journal)
    after = normalize_records(second, journal, len(journal.records))
    assert after[0][0][1]["mended"]
    assert [doc["uid"] for result in after[:4] for _, doc in result] == [
        doc["uid"] for result in before for _, doc in result
    ]
    assert len(second.take_fresh()) == len(journal.records)


def test_a_mended_normalizer_that_makes_a_further_document_mixes_no_ids_up() -> None:
    class Mended(ShortNormalizer):
        def event(self, doc: Any) -> Any:
            super().event({**doc, "uid": "further"})
            return PeerNormalizer.event(self, doc)

    journal = FakeJournal(documents_of_a_run())
    first = RecordedNormalizer(make(ShortNormalizer), journal)
    before = normalize_records(first, journal, 4)
    journal.normalized |= dict(first.take_fresh())
    journal.revise_below = 4
    after = normalize_records(RecordedNormalizer(make(Mended), journal), journal, len(journal.records))
    assert [doc["uid"] for _, doc in after[1]] == [doc["uid"] for _, doc in before[1]]
    events = [doc["uid"] for result in after[2:-1] for _, doc in result]
    assert events[::3] == ["further"] * 4
    assert events[2::3] == [record.document()["uid"] for record in journal.records[2:-1]]


def test_events_and_datums_come_in_pages_and_leave_as_events() -> None:
    class Pages(PeerNormalizer):
        def event_page(self, doc: Any) -> Any:
            seen.append(("event_page", len(doc["seq_num"])))
            return super().event_page({**doc, "data": {"x": [-value for value in doc["data"]["x"]]}})

        def datum_page(self, doc: Any) -> Any:
            seen.append(("datum_page", len(doc["datum_id"])))
            return super().datum_page(doc)

    seen: list[tuple[str, int]] = []
    normalizer = make(Pages)()
    made = [normalizer(name, doc) for name, doc in documents_of_a_run(1)]
    normalizer("datum", {"datum_id": "r/0", "resource": "r", "datum_kwargs": {}})
    assert seen == [("event_page", 1), ("datum_page", 1)]
    assert [(name, doc.get("data")) for result in made for name, doc in result][2] == ("event", {"x": -0.0})


def test_documents_of_old_kinds_come_in_pages_too() -> None:
    normalizer = make(PeerNormalizer)()
    for name, doc in documents_of_a_run(0)[:2]:
        normalizer(name, doc)
        uid = doc["uid"]
    event = {"uid": "e", "descriptor": uid, "seq_num": 1, "time": 1.0, "data": {"x": 3}, "timestamps": {"x": 1.0}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ((name, doc),) = normalizer("bulk_events", {uid: [event]})
    assert (name, doc["data"]) == ("event", {"x": 3})


def test_what_is_emitted_is_taken_as_it_is_at_that_moment() -> None:
    normalizer = make(OldRouter)()
    assert normalizer("start", {"uid": "run", "time": 1.0}) == [("start", {"uid": "run", "time": 1.0})]


def test_what_is_emitted_between_two_documents_comes_with_the_next() -> None:
    guest = OldRouter()
    normalizer = GuestNormalizer(guest)
    guest.emit("start", {"uid": "run", "time": 1.0}, validate=True)
    assert [name for name, _ in normalizer("stop", {"uid": "end", "run_start": "run"})] == ["start", "stop"]


def test_resources_and_datums_that_are_passed_on_are_passed_over() -> None:
    normalizer = make(OldRouter)()
    datum = {"datum_id": "r/0", "resource": "r", "datum_kwargs": {}}
    assert normalizer("datum", datum) == normalizer("resource", {"uid": "r"}) == []


@pytest.mark.parametrize("module", [peer, older])
def test_mimetypes_that_a_module_has_added_to_the_table_are_found(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registered_mimetypes() == {}
    monkeypatch.setitem(module.MIMETYPE_LOOKUP, "LAB", "application/x-hdf5")
    assert make(RunNormalizer)().spec_to_mimetype["LAB"] == "application/x-hdf5"
    given = make_normalizer(RunNormalizer, {}, {"LAB": "text/csv"})
    assert isinstance(given, RunNormalizer)
    assert given.spec_to_mimetype["LAB"] == "text/csv"


def test_partials_and_other_routers_are_taken() -> None:
    assert isinstance(make(functools.partial(OldRouter, port=7))(), GuestNormalizer)
    assert type(make(DrawingNormalizer)()) is DrawingNormalizer


def test_what_has_no_subscribe_is_refused() -> None:
    with pytest.raises(PluginError, match="a dict is no normalizer"):
        make_normalizer(dict, {}, {})


def test_documents_that_come_out_are_checked() -> None:
    checked: list[str] = []
    journal = FakeJournal(documents_of_a_run(1))
    normalizer = RecordedNormalizer(make(AddingNormalizer), journal)
    normalizer.check = lambda name, _: checked.append(name)
    normalize_records(normalizer, journal, 4)
    assert checked == ["start", "descriptor", "descriptor", "event", "event", "stop"]


def test_notes_of_an_interrupted_run_are_kept() -> None:
    class Noting(PeerNormalizer):
        def start(self, doc: Any) -> Any:
            self.notes.append("the start was mended")
            return super().start(doc)

    journal = FakeJournal(documents_of_a_run()[:3])
    first = RecordedNormalizer(make(Noting), journal)
    normalize_records(first, journal, 3)
    journal.normalized |= dict(first.take_fresh())
    second = RecordedNormalizer(make(Noting), journal)
    normalize_records(second, journal, 3)
    assert (second.abandon(3), second.notes) == ([], ["the start was mended"])
