"""Backups hold whole runs in a form that today's readers take, and that gives back what was in the documents."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy
import pytest

from tiledbroker import Encoder, ReplacedByRepr, decode
from tiledwriter._errors import BackupUnreadable
from tiledwriter.callback._backup import DictionaryBackup, JSONLinesBackup, Recording, read_backup, to_entry

UID = "0a1b2c3d-1111-4222-8333-444455556666"
TWIN = "0a1b2c3d-9999-4222-8333-444455556666"


def encoded(*documents: tuple[str, dict[str, Any]]) -> list[tuple[str, bytes]]:
    encoder = Encoder()
    return [(name, encoder.encode(document)) for name, document in documents]


def through_a_file(document: dict[str, Any], directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What today's readers find in a backup of a document, and what ours finds."""
    JSONLinesBackup(directory, UID).save(encoded(("event", document)))
    (file,) = directory.iterdir()
    (entry,) = read_backup(file)
    return json.loads(file.read_text())["doc"], entry.document


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 2**60, 2**80, 1.5, "text", "ünïcode", "\ud800", [1, [2.5, "x"]], {"a": {"b": []}}),
        *(numpy.float64(2.5), numpy.int32(7), numpy.bool_(True), math.inf),
    ],
    ids=repr,
)
def test_plain_values_come_back_as_they_are_for_everybody(value: Any, tmp_path: Path) -> None:
    theirs, ours = through_a_file({"x": value}, tmp_path)
    assert theirs == {"x": value}
    assert ours == {"x": value}


def test_nan_is_read_as_nan(tmp_path: Path) -> None:
    theirs, ours = through_a_file({"x": math.nan, "y": numpy.float32("nan")}, tmp_path)
    assert all(math.isnan(document[key]) for document in (theirs, ours) for key in "xy")


@pytest.mark.parametrize("dtype", ["<i8", "<f8", "|b1", "<f4", ">i2", "<u2", "<U3"])
def test_arrays_are_lists_for_others_and_arrays_of_their_type_for_us(dtype: str, tmp_path: Path) -> None:
    array = numpy.array([[1, 0, 1], [0, 1, 1]]).astype(dtype)
    theirs, ours = through_a_file({"x": array}, tmp_path)
    assert theirs["x"] == array.tolist()
    assert numpy.asarray(ours["x"]).dtype == array.dtype
    numpy.testing.assert_array_equal(ours["x"], array)


@pytest.mark.parametrize(
    ("value", "theirs"),
    [
        (b"\x00\xffabc", "\x00\\xffabc"),
        (1 + 2j, "(1+2j)"),
        (numpy.zeros((0, 3)), []),
        (numpy.array([b"ab", b"c"]), ["ab", "c"]),
        (numpy.array([1 + 2j]), ["(1+2j)"]),
        (numpy.array(["2026-01-02T03:04:05"], "M8[s]"), ["2026-01-02 03:04:05"]),
        (numpy.array([(1, 2.5)], [("a", "<i4"), ("b", "<f8")]), [[1, 2.5]]),
        (numpy.datetime64("2026-01-02"), "2026-01-02"),
        (numpy.longdouble(1) / 3, str(numpy.longdouble(1) / 3)),
        (decimal.Decimal("0.250"), 0.25),
        (fractions.Fraction(1, 3), 1 / 3),
    ],
    ids=repr,
)
def test_what_json_has_not_is_near_for_others_and_exact_for_us(value: Any, theirs: Any, tmp_path: Path) -> None:
    found, ours = through_a_file({"x": value}, tmp_path)
    assert found == {"x": theirs}
    assert type(ours["x"]) is type(value)
    assert getattr(ours["x"], "dtype", None) == getattr(value, "dtype", None)
    numpy.testing.assert_array_equal(ours["x"], value)


@pytest.mark.parametrize(
    "value", [object(), (1, 2), {1: 2}, {3}, collections.OrderedDict(a=1), datetime.date(2026, 1, 2), Path("/x")]
)
def test_no_value_makes_a_backup_fail(value: Any, tmp_path: Path) -> None:
    theirs, ours = through_a_file({"x": value}, tmp_path)
    assert set(theirs) == {"x"}
    assert ours == decode(Encoder().encode({"x": value}))


def test_a_value_replaced_by_its_repr_stays_marked(tmp_path: Path) -> None:
    _, ours = through_a_file({"x": object()}, tmp_path)
    assert isinstance(ours["x"], ReplacedByRepr)


def test_only_documents_that_need_it_have_an_exact_form() -> None:
    ((_, plain), (_, special)) = encoded(("event", {"x": 1.5}), ("event", {"x": b"1"}))
    assert set(to_entry("event", plain)) == {"name", "doc"}
    assert set(to_entry("event", special)) == {"name", "doc", "exact"}


# Where backups go


def test_a_file_is_named_by_the_first_part_of_the_uid(tmp_path: Path) -> None:
    backup = JSONLinesBackup(tmp_path / "new" / "directory", UID)
    backup.save(encoded(("start", {"uid": UID}), ("descriptor", {})))
    backup.save(encoded(("stop", {})))
    (file,) = (tmp_path / "new" / "directory").iterdir()
    assert file.name == "0a1b2c3d.jsonl"
    assert [entry.name for entry in read_backup(file)] == ["start", "descriptor", "stop"]


def test_runs_are_not_mixed_in_one_file(tmp_path: Path) -> None:
    for uid in (UID, TWIN, TWIN, TWIN):
        JSONLinesBackup(tmp_path, uid).save(encoded(("start", {"uid": uid})))
    found = {file.name: [entry.document["uid"] for entry in read_backup(file)] for file in tmp_path.iterdir()}
    assert found == {
        "0a1b2c3d.jsonl": [UID],
        f"{TWIN}.jsonl": [TWIN],
        f"{TWIN}.2.jsonl": [TWIN],
        f"{TWIN}.3.jsonl": [TWIN],
    }


@pytest.mark.parametrize("uid", ["../../escaped", "/etc/passwd", "", ".hidden", "a\0b", "x" * 300])
def test_a_uid_that_is_no_file_name_names_no_other_place(uid: str, tmp_path: Path) -> None:
    JSONLinesBackup(tmp_path / "backups", uid).save(encoded(("start", {"uid": uid})))
    (file,) = (tmp_path / "backups").iterdir()
    assert file.name.startswith("sha256-")
    assert [path.name for path in tmp_path.iterdir()] == ["backups"]


def test_a_dictionary_has_the_documents_under_the_first_part_of_the_uid() -> None:
    store: dict[str, Any] = {}
    backup = DictionaryBackup(store, UID)
    backup.save(encoded(("start", {"uid": UID})))
    backup.save(encoded(("stop", {"x": numpy.arange(2)})))
    assert store == {"0a1b2c3d": [{"name": "start", "doc": {"uid": UID}}, {"name": "stop", "doc": {"x": [0, 1]}}]}


def test_runs_are_not_mixed_under_one_key() -> None:
    store: dict[str, Any] = {}
    for uid in (UID, TWIN, TWIN):
        DictionaryBackup(store, uid).save(encoded(("start", {"uid": uid})))
    assert {key: entries[0]["doc"]["uid"] for key, entries in store.items()} == {
        "0a1b2c3d": UID,
        TWIN: TWIN,
        f"{TWIN}.2": TWIN,
    }


def test_a_store_that_gives_copies_gets_all_documents() -> None:
    class OnDisk(collections.UserDict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            return json.loads(self.data[key])

        def __setitem__(self, key: str, value: Any) -> None:
            self.data[key] = json.dumps(value)

    store = OnDisk()
    backup = DictionaryBackup(store, UID)
    for i in range(3):
        backup.save(encoded(("event", {"x": numpy.float32(i)})))
    assert [entry["doc"]["x"] for entry in store["0a1b2c3d"]] == [0, 1, 2]


# The recording of a run


@pytest.mark.parametrize("in_memory", [0, 100, 10**6])
def test_a_recording_has_all_documents_in_order_wherever_they_are(in_memory: int) -> None:
    recording = Recording(in_memory)
    documents = [("event", b"%d" % i * i) for i in range(50)]
    for count, document in enumerate(documents, 1):
        recording.append(*document)
        assert list(recording) == documents[:count]
    recording.clear()
    assert list(recording) == []
    recording.append("stop", b"later")
    assert list(recording) == [("stop", b"later")]


def test_a_recording_without_space_on_the_disk_stays_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    recording = Recording(10)
    documents = [("event", b"123456")] * 20
    for document in documents:
        recording.append(*document)
    assert list(recording) == documents
    assert "stay in memory" in caplog.text


# Reading files


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "start", "doc": {"uid": "u"}}\n{"name": "stop", "doc": {"run_start": "u"}}\n',
        '["start", {"uid": "u"}]\n["stop", {"run_start": "u"}]\n',
        '[\n{"name": "start", "doc": {"uid": "u"}},\n{"name": "stop", "doc": {"run_start": "u"}}\n]',
        '[\n{"name": "start", "doc": {"uid": "u"}},\n{"name": "stop", "doc": {"run_start": "u"}},\n',
        '[{"name": "start", "doc": {"uid": "u"}}, {"name": "stop", "doc": {"run_start": "u"}}]',
        '[["start", {"uid": "u"}], ["stop", {"run_start": "u"}]]',
        '\n\n["start", {"uid": "u"}]\r\n\n["stop", {"run_start": "u"}]\r\n',
    ],
    ids=["lines", "suitcase", "array", "array without end", "array in a line", "pairs in a line", "blank lines"],
)
def test_every_form_of_a_file_is_understood(text: str, tmp_path: Path) -> None:
    file = tmp_path / "documents"
    file.write_text(text)
    found = [(entry.name, entry.document, decode(entry.body)) for entry in read_backup(file)]
    start, stop = {"uid": "u"}, {"run_start": "u"}
    assert found == [("start", start, start), ("stop", stop, stop)]


@pytest.mark.parametrize(
    "line",
    [
        *('{"name": "event"', '{"name": "event"}', '{"doc": {}}', '{"name": 1, "doc": {}}', '["event", 3]', "3", '"x"'),
        *('["event"]', '["event", {}, {}]', '{"name": "x", "doc": {}, "exact": "?"}', "\udcff", "event: {}"),
        '{"name": "x", "doc": {}, "exact": "AAAA"}',
    ],
)
def test_a_line_that_is_no_document_is_told_with_file_and_number(line: str, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_bytes(b'["start", {"uid": "u"}]\n\n' + line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(BackupUnreadable, match=r"run\.jsonl, line 3: ") as raised:
        list(read_backup(file))
    assert (raised.value.path, raised.value.line) == (file, 3)


def test_a_last_line_that_is_cut_off_is_told_to_be_so(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text('["start", {"uid": "u"}]\n["event", {"da')
    with pytest.raises(BackupUnreadable, match=r"line 2: .* It is the last line, and probably truncated"):
        list(read_backup(file))
