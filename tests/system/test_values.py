"""The table of values in the reference, row by row: what the journal keeps, what Tiled gives, and the note."""

from __future__ import annotations

import datetime
import enum
import json
import math
import re
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any, Final

import numpy
import pyarrow
import pydantic
import pytest
from event_model import compose_run
from paths import ROOT
from stored_runs import Documents, journaled, uid_of, write

from tiledbroker import Journal, ReplacedByRepr
from tiledwriter.testing import TiledServer

PAGE: Final = ROOT / "docs" / "reference" / "differences.md"

NUMBER: Final = {"source": "test", "dtype": "number", "shape": []}
COUNT: Final = {"source": "test", "dtype": "integer", "shape": []}
TEXT: Final = {"source": "test", "dtype": "string", "shape": []}
NAN: Final = math.nan
MOST: Final = 2**53 - 1


def array_of(size: int, dtype: str = "<f8") -> dict[str, Any]:
    return {"source": "test", "dtype": "array", "dtype_numpy": dtype, "shape": [size]}


@dataclass(frozen=True)
class Data:
    """Values of one data key in three events, and what is read back; a note has what `note` matches, "" for none."""

    declared: dict[str, Any]
    given: list[Any]
    stored: list[Any]
    note: str = ""


@dataclass(frozen=True)
class Metadata:
    """A value in the start document."""

    given: Any
    stored: Any
    note: str = ""


@dataclass(frozen=True)
class Row:
    """What shows that a row of the table is right: a value before and after the journal, and values that Tiled gets."""

    given: Any
    journaled: Any
    shown: list[Data | Metadata] = field(default_factory=list)


class Level(enum.Enum):
    LOW = 1.5


class Energies(pydantic.BaseModel):
    energy: list[float]


THIRD: Final = numpy.longdouble(1) / 3
MOMENT: Final = datetime.datetime(2025, 6, 1, 12, tzinfo=datetime.timezone.utc)
NS: Final = numpy.datetime64("2025-06-01T12:00:00.000000001")
RECORD: Final = numpy.array([("Rex", 9)], [("name", "<U10"), ("age", "<i4")])[0]
FIELDS: Final = {**array_of(1), "shape": [], "dtype_numpy": [["name", "<U10"], ["age", "<i4"]]}
WAVE: Final = numpy.arange(30.0)
GAP: Final = [None, *WAVE[1:].tolist()]
DIGITS: Final = Decimal("0.12345678901234567890")


class Odd:
    def __repr__(self) -> str:
        return "<Odd>"


ROWS: Final[dict[str, Row]] = {
    "path": Row(
        PurePosixPath("/data/a.h5"),
        "/data/a.h5",
        [
            Metadata(PurePosixPath("/data/a.h5"), "/data/a.h5"),
            Data(TEXT, [PurePosixPath(f"/{n}") for n in range(3)], ["/0", "/1", "/2"]),
        ],
    ),
    "decimal, fraction": Row(
        [Decimal("0.10"), Fraction(1, 3)],
        [Decimal("0.10"), Fraction(1, 3)],
        [
            Metadata(Decimal("0.10"), 0.1),
            Metadata(Fraction(1, 3), 1 / 3, "more digits"),
            Metadata(DIGITS, float(DIGITS), "more digits"),
            Data(NUMBER, [Decimal("0.1"), 0.5, Fraction(1, 4)], [0.1, 0.5, 0.25]),
            Data(
                NUMBER,
                [DIGITS, Fraction(1, 3), Decimal("1e400")],
                [float(DIGITS), 1 / 3, math.inf],
                "3 values .* rounded",
            ),
            Data(COUNT, [Decimal(3), Fraction(4), 5], [3, 4, 5]),
            Data(COUNT, [3, Decimal("0.5"), 5], [3, 0.5, 5]),
            Data(array_of(2), [[Decimal("0.1"), 1.0]] * 3, [[0.1, 1.0]] * 3),
            Data(
                array_of(2),
                [[Fraction(1, 3), None], [1, 2], [1, 2]],
                [[1 / 3, NAN], [1, 2], [1, 2]],
                "1 values .* rounded",
            ),
            Data(array_of(30), [[Fraction(n, 3) for n in range(30)]] * 3, [WAVE / 3] * 3, "3 values .* rounded"),
        ],
    ),
    "decimal, fraction where text is declared": Row(
        Decimal("0.10"), Decimal("0.10"), [Data(TEXT, [DIGITS, Fraction(1, 3), "x"], [str(DIGITS), "1/3", "x"], "text")]
    ),
    "number of extended precision (`<f16`)": Row(
        THIRD,
        THIRD,
        [
            Metadata(THIRD, 1 / 3, "more digits"),
            Data(NUMBER, [THIRD, numpy.longdouble(0.5), 0.25], [1 / 3, 0.5, 0.25], "1 values .* rounded"),
            Data(
                array_of(30), [WAVE.astype("longdouble") / 3, WAVE, WAVE], [WAVE / 3, WAVE, WAVE], "1 values .* rounded"
            ),
            Data(array_of(30, "<f16"), [WAVE.astype("longdouble")] * 3, [WAVE] * 3, "rounded"),
        ],
    ),
    "complex number": Row(
        1 + 2j,
        1 + 2j,
        [
            Metadata(1 + 2j, "(1+2j)", "stored as text"),
            Data(
                {**NUMBER, "dtype_numpy": "<c16"},
                [1 + 2j, 1j, 0j],
                ["(1+2j)", "1j", "0j"],
                "complex; they are stored as text",
            ),
            Data(array_of(30, "<c16"), [WAVE * 1j] * 3, [WAVE * 1j] * 3, "an array of its own"),
        ],
    ),
    "record, mapping, table": Row(
        [{"a": 1}, Energies(energy=[1.5]), RECORD],
        [{"a": 1}, {"energy": [1.5]}, RECORD],
        [
            Metadata({"a": [1]}, {"a": [1]}),
            Metadata(RECORD, ["Rex", 9], "record"),
            Data(FIELDS, [RECORD] * 3, ['["Rex", 9]'] * 3, "JSON"),
            Data(
                FIELDS,
                [{"a": NAN}, Energies(energy=[1]), None],
                ['{"a": null}', '{"energy": [1.0]}', None],
                "not always what was given: JSON has no NaN",
            ),
        ],
    ),
    "tuple, set, range": Row([(1, 2), {3}, range(2)], [[1, 2], [3], [0, 1]], [Metadata((1, {2}), [1, [2]])]),
    "bytes": Row(
        b"\xff",
        b"\xff",
        [Metadata(b"a\xff", "a\\xff", "bytes"), Data(TEXT, [b"a", b"\xff", "b"], ["a", "\\xff", "b"], "bytes")],
    ),
    "enumeration": Row(Level.LOW, 1.5, [Metadata(Level.LOW, 1.5), Data(NUMBER, [Level.LOW] * 3, [1.5] * 3)]),
    "date, time, UUID of Python": Row(
        [MOMENT, MOMENT.date(), datetime.time(1, 2), datetime.timedelta(1), uuid.UUID(int=1)],
        [MOMENT, "2025-06-01", "01:02:00", "P1D", "00000000-0000-0000-0000-000000000001"],
        [
            Metadata([MOMENT, MOMENT.date()], ["2025-06-01T12:00:00+00:00", "2025-06-01"]),
            Data(TEXT, [MOMENT.date()] * 3, ["2025-06-01"] * 3),
            Data(TEXT, [MOMENT] * 3, ["2025-06-01 12:00:00+00:00"] * 3, "datetime"),
        ],
    ),
    "date, time of NumPy": Row(
        [NS, numpy.timedelta64(3, "ns")],
        [NS, numpy.timedelta64(3, "ns")],
        [
            Metadata(NS, "2025-06-01T12:00:00.000000001"),
            Metadata(numpy.timedelta64(3, "ns"), "3 nanoseconds", "timedelta64"),
            Data(TEXT, [NS] * 3, ["2025-06-01T12:00:00.000000001"] * 3, "datetime64"),
            Data(COUNT, [1, NS, 3], [1, NAN, 3], "do not fit"),
            Data(array_of(30, "<M8[ns]"), [numpy.full(30, NS)] * 3, [numpy.full(30, NS)] * 3, "an array of its own"),
        ],
    ),
    "number, flag or text of NumPy": Row(
        [numpy.float32(0.1), numpy.int8(-1), numpy.bool_(True), numpy.str_("µ")],
        [numpy.float32(0.1), numpy.int8(-1), numpy.bool_(True), "µ"],
        [
            Metadata([numpy.float32(0.5), numpy.int8(-1), numpy.bool_(True)], [0.5, -1, True]),
            Data(NUMBER, [numpy.float32(0.1)] * 3, [float(numpy.float32(0.1))] * 3),
            Data(TEXT, [numpy.str_("µ")] * 3, ["µ"] * 3),
        ],
    ),
    "None, masked or missing among numbers": Row(
        numpy.ma.masked_array([1.5, 2.5], mask=[True, False]),
        [None, 2.5],
        [
            Data(array_of(3), [[1.0, None, 3.0]] * 3, [[1.0, NAN, 3.0]] * 3),
            Data(array_of(30), [GAP, WAVE, numpy.ma.masked_less(WAVE, 1)], [[NAN, *WAVE[1:]], WAVE, [NAN, *WAVE[1:]]]),
            Data(array_of(30, "<i8"), [WAVE.astype("<i8"), GAP, GAP], [WAVE, [NAN, *WAVE[1:]], [NAN, *WAVE[1:]]]),
        ],
    ),
    "None instead of an array": Row(
        None, None, [Data(array_of(30), [WAVE, None, WAVE], [WAVE, [NAN] * 30, WAVE], "do not fit")]
    ),
    "one number instead of an array": Row(
        5.5,
        5.5,
        [
            Data(array_of(30), [WAVE, 5.5, WAVE], [WAVE, [5.5, *[NAN] * 29], WAVE], "do not fit"),
            Data(array_of(1), [[0.5], 1.5, [2.5]], [[0.5], [1.5], [2.5]]),
        ],
    ),
    "array of one": Row(
        numpy.array([1.5]), numpy.array([1.5]), [Data(NUMBER, [numpy.array([1.5]), 2.5, [3.5]], [1.5, 2.5, 3.5])]
    ),
    "number where text is declared": Row(1.5, 1.5, [Data(TEXT, ["a", 1.5, 2], ["a", "1.5", "2"], "float")]),
    "text where a number is declared": Row(
        "broken", "broken", [Data(NUMBER, [0.5, "broken", 1.5], [0.5, NAN, 1.5], "do not fit")]
    ),
    "number or array of a wider type than declared": Row(
        0.5,
        0.5,
        [
            Data(COUNT, [1, 2.5, 3], [1, 2.5, 3]),
            Data(array_of(30, "<i4"), [WAVE, WAVE + 0.5, WAVE], [WAVE, WAVE + 0.5, WAVE]),
        ],
    ),
    "array of another length": Row(
        [1.5], [1.5], [Data(array_of(30), [WAVE, WAVE[:20].tolist(), WAVE], [WAVE, WAVE[:20], WAVE])]
    ),
    "integer beyond 64 bits": Row(
        2**70, 2**70, [Metadata(2**70, MOST, "beyond"), Data(COUNT, [1, 2**70 + 1, 3], [1, NAN, 3], "do not fit")]
    ),
    "integer beyond 2**53 in an array of floats": Row(
        [2**60 + 1],
        [2**60 + 1],
        [Data(array_of(30), [WAVE, [2**60 + 1] * 30, WAVE], [WAVE, [2.0**60] * 30, WAVE], "1 values .* rounded")],
    ),
    "float in an array after integers beyond 2**53": Row(
        [2**60 + 1, 0.5],
        [2**60 + 1, 0.5],
        [
            Data(
                array_of(30, "<i8"),
                [[2**60 + 1] * 30, WAVE / 2, [1] * 30],
                [[2**60 + 1] * 30, [0] * 30, [1] * 30],
                "1 values .* do not fit its type or are missing .seq_num 2",
            )
        ],
    ),
    "NaN, infinity, integer beyond 2**53": Row(
        [math.inf, 2**60],
        [math.inf, 2**60],
        [
            Metadata([NAN, math.inf, 2**60], [None, MOST, MOST], "beyond"),
            Data(NUMBER, [NAN, math.inf, -math.inf], [NAN, math.inf, -math.inf]),
            Data(COUNT, [2**60 + 1, -1, 0], [2**60 + 1, -1, 0]),
        ],
    ),
    'keys that are no text, as `1` beside `"1"`': Row(
        {1: "a", "1": "b"},
        {1: "a", "1": "b"},
        [Metadata({1: "a", "1": "b"}, {"1_": "a", "1": "b"}, "keys that are not text")],
    ),
    "text with a zero byte or lone surrogates": Row(
        "a\0\ud800",
        "a\0\ud800",
        [
            Metadata("a\0", "a\\x00", "zero byte"),
            Metadata("\ud800", "\\ud800", "not valid Unicode"),
            Data(TEXT, ["a\0", "\ud800", "b"], ["a\\x00", "\\ud800", "b"], "2 texts .* escaped"),
        ],
    ),
    "object that no document can carry": Row(
        Odd(),
        ReplacedByRepr("<Odd>"),
        [
            Metadata(Odd(), "<Odd>", "a document cannot hold"),
            Data(TEXT, [Odd(), "a", "b"], ["<Odd>", "a", "b"], "no document"),
        ],
    ),
}

SHOWN: Final = [(name, number) for name, row in ROWS.items() for number in range(len(row.shown))]
KEYS: Final = {place: f"k{number}" for number, place in enumerate(SHOWN)}
IDS: Final = [f"{name}-{number}" for name, number in SHOWN]


def the_run() -> Documents:
    """One run with the values of all rows."""
    shown = {KEYS[name, number]: ROWS[name].shown[number] for name, number in SHOWN}
    metadata = {key: item.given for key, item in shown.items() if isinstance(item, Metadata)}
    data = {key: item for key, item in shown.items() if isinstance(item, Data)}
    metadata |= {f"j{number}": row.given for number, row in enumerate(ROWS.values())}
    run = compose_run(metadata=metadata, validate=False)
    stream = run.compose_descriptor(name="primary", data_keys={key: item.declared for key, item in data.items()})
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for n in range(3):
        values = {key: item.given[n] for key, item in data.items()}
        times = dict.fromkeys(values, float(n))
        documents.append(("event", stream.compose_event(data=values, timestamps=times, validate=False)))
    return [*documents, ("stop", run.compose_stop())]


@dataclass
class Written:
    """The run in a journal and in Tiled."""

    start: dict[str, Any]
    metadata: dict[str, Any]
    notes: list[str]
    columns: dict[str, Any]
    nodes: Any

    def values(self, key: str) -> list[Any]:
        return list(self.columns[key] if key in self.columns else self.nodes[key].read())


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp(f"values-{request.param}")
    documents = the_run()
    path = journaled(documents, directory / "journals")
    with Journal(path) as journal:
        start = next(journal.records()).document()
    with TiledServer(directory / "tiled", storage=request.param) as server:
        assert write(path, server) == "written"
        run = server.client()[uid_of(documents)]
        nodes = run["primary"].base
        paths = [nodes[key].uri for key in nodes if nodes[key].structure_family == "table"]
        columns = {name: values for path in paths for name, values in columns_of(server.client(), path).items()}
        yield Written(start, run.metadata["start"], list(run.metadata["notes"]), columns, nodes)


def columns_of(client: Any, uri: str) -> dict[str, list[Any]]:
    """The columns of a table as Arrow has them: pandas makes text of lists."""
    uri = uri.replace("/metadata/", "/table/full/")
    answer = client.context.http_client.get(uri, params={"format": "application/vnd.apache.arrow.file"})
    columns: dict[str, list[Any]] = pyarrow.ipc.open_file(answer.raise_for_status().content).read_all().to_pydict()
    return columns


def test_the_page_has_the_rows_of_these_tests() -> None:
    table = PAGE.read_text().partition("\n## Values\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)
    assert rows[2:] == list(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_the_journal_keeps(name: str, written: Written) -> None:
    found = written.start[f"j{list(ROWS).index(name)}"]
    assert same(found, ROWS[name].journaled)


@pytest.mark.parametrize(("name", "number"), SHOWN, ids=IDS)
def test_tiled_gets(name: str, number: int, written: Written) -> None:
    key, item = KEYS[name, number], ROWS[name].shown[number]
    if isinstance(item, Metadata):
        assert plain(written.metadata[key]) == item.stored
        notes = [note for note in written.notes if re.match(rf"start\.{key}\b", note)]
    else:
        found = written.values(key)
        assert len(found) == 3
        assert all(map(same_in_tiled, found, item.stored)), (found, item.stored)
        notes = [note for note in written.notes if f"'{key}'" in note]
        # What short arrays are, depends on the storage.
        kinds = "an array of its own|no arrays of one|a column of lists"
        notes = [note for note in notes if item.note or not re.search(kinds, note)]
    assert bool(notes) == bool(item.note), notes
    assert any(re.search(item.note, note) for note in notes) or not item.note, notes


def plain(value: Any) -> Any:
    """Metadata without the types of Tiled's client."""
    return json.loads(json.dumps(value, default=lambda items: dict(items) if hasattr(items, "keys") else list(items)))


def same(found: Any, expected: Any) -> bool:
    """Equal in value and type, all the way down."""
    if isinstance(expected, list):
        return type(found) is list and len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, numpy.ndarray):
        return found.dtype == expected.dtype and numpy.array_equal(found, expected)
    return type(found) is type(expected) and str(found) == str(expected)


def same_in_tiled(found: Any, expected: Any) -> bool:
    """Equal, with NaN equal to itself and to what is missing in a column of numbers."""
    if isinstance(expected, str) or expected is None:
        return bool(found == expected)
    if isinstance(found, str):
        found = json.loads(found)  # in place of lists, where storage has none
    left, right = numpy.asarray(found), numpy.asarray(expected)
    if left.dtype.kind == "O":
        left = left.astype(float)
    inexact = left.dtype.kind in "fc" and right.dtype.kind in "fc"
    return left.shape == right.shape and numpy.array_equal(left, right, equal_nan=inexact)
