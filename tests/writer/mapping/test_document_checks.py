"""What is no document of a run is refused before anything is made of it; what is merely unusual is written."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy
import pytest
from corpus import CORPUS
from corpus._documents import RunDocuments, external, key
from event_model import compose_run
from paths import ROOT
from runs import metadata, seq_nums, wait_for_outcome
from stored_runs import NUMBER, Documents, records_of, uid_of

from tiledbroker import Encoder, ZMQPublisher, decode
from tiledbroker.log._routing import RunRouting
from tiledwriter import RunNormalizer
from tiledwriter._errors import DocumentInvalid
from tiledwriter.callback._callback_run import CallbackRun, RunOptions
from tiledwriter.cli.journal import main
from tiledwriter.mapping._document_checks import RELIED_ON, DocumentChecks
from tiledwriter.mapping._fold import Fold
from tiledwriter.mapping._normalizer import _REQUIRED
from tiledwriter.mapping._operations import UpdateMetadata
from tiledwriter.mapping._plugins import Plugins
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port, journal_of, wait_until

pytestmark = [pytest.mark.filterwarnings("default:::tiled"), pytest.mark.timeout(300)]

ABSENT = object()
"""Stands for a field that is taken away."""

# What devices and programs that are in use emit although event-model's schemas do not have it.
PRACTICE = {
    "old-stream-resource": [
        f"stream_resource documents: at $, there is no '{field}'" for field in ("mimetype", "parameters", "uri")
    ],
    "none-shapes": ['descriptor documents: at $.data_keys.x.shape, None is not of type "array"'],
    "dots-in-names": ["descriptor documents: at $.data_keys, nothing is known of 'a.b'"],
    "slashes-in-names": ["descriptor documents: at $.data_keys, nothing is known of 'a/b'"],
    "external-names-in-use": ["descriptor documents: at $.data_keys, nothing is known of 'a/b'"],
}


def folded(documents: Documents, *, run_uid: str | None = None, options: WritingOptions | None = None) -> Fold:
    fold = Fold(uid_of(documents) if run_uid is None else run_uid, options or WritingOptions(), 16)
    fold.notes = []
    for operation in fold.feed(records_of(documents)):
        if isinstance(operation, UpdateMetadata):
            fold.notes += operation.metadata.get("notes", [])
    return fold


def a_run() -> Documents:
    run = RunDocuments(plan_name="count")
    descriptor = run.descriptor({"x": key(), "frames": external([1, 2, 3]), "images": external([2, 3])})
    resource = run.resource("AD_TIFF", "/", "images", template="%s_%d.tif", filename="image", frame_per_point=1)
    datum = run.datum(resource, 0, point_number=0)
    stream_resource = run.stream_resource(
        "frames", "application/x-hdf5", "file://localhost/frames.h5", dataset="/d", chunk_shape=[1]
    )
    run.event(descriptor, 1, {"x": 1.0, "images": datum}, filled={"images": False})
    run.stream_datum(stream_resource, descriptor, 0, 1)
    return run.stop()


def with_change(name: str, place: str, value: Any) -> Documents:
    """A run whose first document of a name has another value at a place."""
    documents = a_run()
    part: Any = next(document for kind, document in documents if kind == name)
    *parents, last = place.split(".")
    for parent in parents:
        part = part[parent]
    if value is ABSENT:
        del part[last]
    else:
        part[last] = value
    return documents


@pytest.mark.filterwarnings("default")  # other packages warn
@pytest.mark.parametrize("name", CORPUS)
def test_what_users_devices_produce_is_written_and_deviations_are_noted(name: str, tmp_path: Path) -> None:
    routing = RunRouting()
    runs: dict[str, Documents] = {}
    for kind, document in CORPUS[name].make(tmp_path):
        for uid in routing.route(kind, document):
            runs.setdefault(uid, []).append((kind, document))
    found = []
    for documents in runs.values():
        fold = folded(documents)
        assert fold.error is None
        found += [note for note in fold.notes if "event-model" in note]
    expected = PRACTICE.get(name, [])
    assert len(found) == len(expected)
    assert all(f"Against event-model's schema of {part}" in note for note, part in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "place", "value", "problem"),
    [
        ("start", "uid", None, 'at $.uid, None is not of type "string"'),
        ("start", "time", "yesterday", "at $.time, 'yesterday' is not of type \"number\""),
        ("start", "time", ABSENT, "has no 'time'"),
        ("descriptor", "name", 7, 'at $.name, 7 is not of type "string"'),
        ("descriptor", "time", None, "at $.time, None is not of type"),
        ("descriptor", "data_keys", ["x"], "at $.data_keys, ['x'] is not of type \"object\""),
        ("descriptor", "data_keys.x", None, "at $.data_keys.x, None is not"),
        ("descriptor", "data_keys.x.dtype", ["number"], "at $.data_keys.x.dtype, ['number'] is not of type"),
        ("descriptor", "data_keys.x.shape", "3", "at $.data_keys.x.shape, '3' is not of type \"array\""),
        ("descriptor", "data_keys.frames.shape", [1, "2"], "at $.data_keys.frames.shape[1], '2' is not valid"),
        ("descriptor", "data_keys", {"a b": 1}, "at $.data_keys['a b'], 1 is not"),
        ("descriptor", "configuration", "none", "at $.configuration, 'none' is not of type"),
        ("event", "seq_num", "1", "at $.seq_num, '1' is not of type \"integer\""),
        ("event", "seq_num", 1.5, "at $.seq_num, 1.5 is not of type"),
        ("event", "seq_num", ABSENT, "has no 'seq_num'"),
        ("event", "time", None, 'at $.time, None is not of type "number"'),
        ("event", "data", [1.0], 'at $.data, [1.0] is not of type "object"'),
        ("event", "timestamps", 0.0, "at $.timestamps, 0.0 is not of type"),
        ("event", "filled", True, "at $.filled, True is not of type"),
        ("resource", "resource_path", None, "at $.resource_path, None is not of type"),
        ("resource", "resource_kwargs", [], "at $.resource_kwargs, [] is not of type"),
        ("datum", "resource", 7, "at $.resource, 7 is not of type"),
        ("stream_resource", "uri", ["a", "b"], "at $.uri, ['a', 'b'] is not of type"),
        ("stream_datum", "indices.start", "0", "at $.indices.start, '0' is not of type"),
        ("stream_datum", "indices.stop", ABSENT, "at $.indices, there is no 'stop'"),
        ("stop", "exit_status", 0, "at $.exit_status, 0 is not of type"),
        ("stop", "run_start", "another", "at $.run_start, 'another' is not"),
        ("descriptor", "run_start", "another", "at $.run_start, 'another' is not"),
    ],
)
def test_what_would_make_nonsense_is_refused(name: str, place: str, value: Any, problem: str) -> None:
    documents = with_change(name, place, value)
    index = [kind for kind, _ in documents].index(name)
    error = folded(documents, run_uid=uid_of(a_run()) if place == "uid" else None).error
    assert error is not None
    assert (error.index, error.name) == (index, name)
    assert problem in str(error)
    assert f"Correct it with a patch for '{name}'" in str(error)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("start", "scan_id", "12a"),
        ("start", "hints", None),
        ("start", "a/b", {"d.e": 1}),
        ("descriptor", "hints", None),
        ("descriptor", "object_keys", None),
        ("descriptor", "facility/beamline", "NSLS-II/8-ID"),
        ("descriptor", "data_keys.x.source", ABSENT),
        ("descriptor", "data_keys.x.shape", None),
        ("descriptor", "data_keys.x.limits", {"control": {"low": 0, "high": 1, "unit": "mm"}}),
        ("descriptor", "data_keys.x.dtype", "float"),
        ("descriptor", "data_keys.images.external", "filestore"),
        ("event", "uid", 7),
        ("event", "filled", None),
        ("event", "filled.images", 0),
        ("event", "exposure", 0.5),
        ("stream_datum", "seq_nums", None),
        ("stop", "exit_status", "paused"),
        ("stop", "num_events", {"primary": "1"}),
    ],
)
def test_what_is_merely_unusual_is_written_and_noted(name: str, place: str, value: Any) -> None:
    fold = folded(with_change(name, place, value))
    assert fold.error is None
    assert fold.finished
    notes = [note for note in fold.notes if note.startswith(f"Against event-model's schema of {name} documents: at $")]
    assert notes


def test_a_run_as_event_model_has_it_gets_no_note() -> None:
    assert folded(a_run()).notes == []


def test_a_deviation_of_all_events_is_one_note() -> None:
    run = RunDocuments()
    descriptor = run.descriptor({"x": key()})
    for seq_num in range(1, 6):
        run.event(descriptor, seq_num, {"x": 1.0}, filled=None, exposure=seq_num)
    fold = folded(run.stop())
    assert fold.error is None
    assert [note.rpartition(", ")[2] for note in fold.notes] == ["in 5 of them."] * 2
    assert "nothing is known of 'exposure', which is not in Tiled, in 5" in "".join(fold.notes)
    assert "'data'" not in "".join(fold.notes)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("start", "time", numpy.float64(5)),
        ("start", "sample", {"at": datetime(2026, 1, 1, tzinfo=timezone.utc), "grid": numpy.zeros((2, 2))}),
        ("descriptor", "data_keys.x.shape", numpy.array([2, 3])),
        ("descriptor", "configuration", {"device": {"data": {"gain": numpy.zeros(3), "raw": b"\xff"}}}),
        ("event", "seq_num", numpy.int64(1)),
        ("event", "time", numpy.float32(5)),
        ("event", "time", math.nan),
        ("event", "data", {"x": numpy.zeros((1000, 1000))}),
        ("event", "filled", {"x": numpy.bool_(True)}),
        ("stream_datum", "indices", {"start": numpy.int32(0), "stop": numpy.uint64(1)}),
        ("stop", "num_events", {"primary": numpy.int64(1)}),
    ],
)
def test_numbers_of_numpy_and_of_no_json_are_what_they_are(name: str, place: str, value: Any) -> None:
    document = next(document for kind, document in with_change(name, place, value) if kind == name)
    checks = DocumentChecks()
    checks(name, decode(Encoder().encode(document)))
    assert checks.notes == []


@pytest.mark.parametrize("surrogate", ["\ud800", "a\ud800b"])
def test_text_that_is_no_unicode_does_not_stop_the_check(surrogate: str) -> None:
    DocumentChecks()("start", {"uid": surrogate, "time": 0.0, surrogate: surrogate})
    with pytest.raises(DocumentInvalid, match=r"\$\.time"):
        DocumentChecks()("start", {"uid": surrogate, "time": surrogate, surrogate: 1})


@pytest.mark.parametrize("value", [{"x": 0.0}, {"x": [0.0]}])
def test_events_in_pages_and_bulk_documents_are_checked(value: dict[str, Any]) -> None:
    run = RunDocuments()
    descriptor = run.descriptor({"x": key()})
    event = run.make_event(descriptor, 1, {"x": 1.0})
    run.add("bulk_events", {descriptor: [event, {**event, "seq_num": "2"}]})
    assert "at $.seq_num, '2'" in str(folded(run.documents).error)
    page = {**{name: [event[name]] for name in ("uid", "time", "seq_num")}, "descriptor": descriptor, "filled": {}}
    run.documents[-1] = ("event_page", {**page, "data": value, "timestamps": {"x": [0.0]}})
    expected = None if value == {"x": [0.0]} else "at $.data.x, 0.0"
    error = folded(run.documents).error
    assert (error is None) if expected is None else (expected in str(error))


def test_long_values_are_not_repeated_in_full() -> None:
    error = folded(with_change("event", "data", "x" * 100_000)).error
    assert error is not None
    assert len(str(error)) < 1000


# The place of a document


def test_a_run_begins_with_its_start() -> None:
    documents = a_run()
    error = folded(documents[1:], run_uid=uid_of(documents)).error
    assert error is not None
    assert error.index == 0
    assert "begins with a start" in str(error)


def test_a_run_has_one_start() -> None:
    documents = a_run()
    error = folded([*documents[:2], documents[0], *documents[2:]]).error
    assert error is not None
    assert error.index == 2
    assert "has a start before it" in str(error)


def test_a_start_of_another_run_is_refused() -> None:
    error = folded(a_run(), run_uid="the-run").error
    assert error is not None
    assert (error.index, error.name) == (0, "start")
    assert "is not 'the-run', the run that it came for" in str(error)


def test_a_name_that_event_model_does_not_have_is_refused() -> None:
    documents = a_run()
    error = folded([*documents[:2], ("evnt", {"uid": "e"})]).error
    assert error is not None
    assert (error.index, error.name) == (2, "evnt")
    assert "There is no kind of document called 'evnt'" in str(error)


# Patches


def shape_of_one(descriptor: dict[str, Any]) -> dict[str, Any]:
    descriptor["data_keys"]["x"]["shape"] = []
    return descriptor


def shape_of_text(descriptor: dict[str, Any]) -> dict[str, Any]:
    descriptor["data_keys"]["x"]["shape"] = "none"
    return descriptor


class Shaping(RunNormalizer):
    """Corrects by overriding."""

    def descriptor(self, doc: Mapping[str, Any]) -> None:
        super().descriptor(shape_of_one(copy.deepcopy(dict(doc))))


def test_a_patched_document_is_what_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    documents = with_change("descriptor", "data_keys.x.shape", "3")
    assert folded(documents).error is not None
    for plugins in (
        Plugins(patches={"descriptor": "test_document_checks:shape_of_one"}),
        Plugins(normalizer="test_document_checks:Shaping"),
    ):
        assert folded(documents, options=WritingOptions(plugins=plugins)).error is None
    spoiling = WritingOptions(plugins=Plugins(patches={"descriptor": "test_document_checks:shape_of_text"}))
    assert "'none' is not of type" in str(folded(a_run(), options=spoiling).error)


def test_the_callback_in_the_acquisition_process_refuses_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CallbackRun, "_apply_operations", lambda *_: None)
    options = RunOptions(
        None, RunNormalizer, {}, {}, {}, 1, 16, validate=False, ignore_errors=[], patience=1.0, audit=False
    )
    for name, place, value in [
        ("start", "time", "yesterday"),
        ("event", "uid", None),
        ("stop", "exit_status", 0),
        ("stop", "run_start", "another"),
    ]:
        run = CallbackRun("run", options, [])
        for kind, document in with_change(name, place, value):
            run(kind, Encoder().encode(document))
        assert run._writer is not None
        assert [note for note in run._writer.notes if "event-model" in note] == []


def test_there_is_a_rule_for_every_kind_of_document_and_the_page_has_it() -> None:
    assert RELIED_ON.keys() == _REQUIRED.keys()
    page = (ROOT / "docs" / "reference" / "document-checks.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, flags=re.MULTILINE)
    assert {name: re.findall(r"`(.*?)`", places) for name, places in rows} == {
        name: list(places) for name, places in RELIED_ON.items()
    }


# The whole path

PATCH = """
def mend(event):
    event["seq_num"] = int(event["seq_num"])
    return event
"""


def measured(*, wrong: bool) -> Documents:
    run = compose_run()
    stream = run.compose_descriptor(name="primary", data_keys={"x": NUMBER})
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for i in range(6):
        event = dict(stream.compose_event(data={"x": float(i)}, timestamps={"x": 0.0}))
        documents.append(("event", {**event, "seq_num": f"{i + 1}"} if wrong and i == 3 else event))
    return [*documents, ("stop", run.compose_stop())]


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, int]:
    """A journal directory, and a port that supervisors listen at one after the other."""
    (tmp_path / "patch_of_document_checks.py").write_text(PATCH)
    return tmp_path / "journals", free_port()


@pytest.fixture
def publisher(place: tuple[Path, int], tmp_path: Path) -> Iterator[ZMQPublisher]:
    publisher = ZMQPublisher(f"tcp://127.0.0.1:{place[1]}", spool_dir=tmp_path / "spool", on_error="raise")
    yield publisher
    publisher.close(timeout=0)


def test_an_invalid_document_is_journaled_and_its_run_alone_is_in_quarantine_until_there_is_a_patch(
    place: tuple[Path, int],
    publisher: ZMQPublisher,
    tiled_server: TiledServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    journals, port = place
    invalid, fine = measured(wrong=True), measured(wrong=False)
    uid = uid_of(invalid)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = {"TILEDWRITER_QUIET_PERIOD": "1", "PYTHONPATH": path}
    with SupervisorProcess(journals, tiled_server, port=port, environment=environment):
        for name, document in invalid[:6]:
            publisher(name, document)
        assert wait_for_outcome(journals, uid) == "failed"
        for name, document in [*invalid[6:], *fine]:
            publisher(name, document)
        assert publisher.flush(60)
        assert publisher.wait_written(uid_of(fine), 60)
        with journal_of(journals, uid) as journal:
            assert [record.name for record in journal.records()] == [name for name, _ in invalid]
            assert decode(journal.read(5, 1)[0].body) == invalid[5][1]
            (entry,) = [entry for entry in journal.history() if entry.event == "failed"]
        for part in ("Document 5 (event)", "at $.seq_num, '4' is not of type", "patch for 'event'", "retry the run"):
            assert part in entry.detail["message"]
    assert "stop" not in metadata(tiled_server, uid)
    patched = {**environment, "TILEDWRITER_PATCHES": json.dumps({"event": "patch_of_document_checks:mend"})}
    with SupervisorProcess(journals, tiled_server, port=port, environment=patched):
        assert main(["retry", uid, str(journals)]) == 0
        assert "asked to retry it" in capsys.readouterr().out
        with journal_of(journals, uid) as journal:
            wait_until(lambda: journal.get("outcome") == "written", 60, "the run is written")
    assert seq_nums(tiled_server, uid) == seq_nums(tiled_server, uid_of(fine)) == [1, 2, 3, 4, 5, 6]
    assert metadata(tiled_server, uid)["stop"]["exit_status"] == "success"
