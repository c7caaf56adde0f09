"""Why some runs look different in Tiled, written by bluesky-tiled-plugins' writer and by ours: the list, as data.

`docs/reference/differences.md` shows it to users; a test keeps both the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy

ABSENT: Final = "(none)"
MISSING: Final = "missing"


@dataclass(frozen=True)
class Difference:
    """Something of a run that is not the same: `path` in the run, with `:key` for a data key of a stream."""

    run: str
    path: str
    aspect: str
    bluesky: Any
    ours: Any
    storage: str = "duckdb"


@dataclass(frozen=True)
class Rule:
    """A kind of difference that is meant to be; with `storage` only where the server keeps tables there."""

    id: str
    reason: str
    applies: Callable[[Difference], bool]
    storage: str | None = None

    def explains(self, difference: Difference) -> bool:
        """Whether this is why."""
        return self.storage in {None, difference.storage} and self.applies(difference)


@dataclass(frozen=True)
class Limit:
    """A way of reading that does not give back what was emitted, for some runs.

    With `shared` it has to fail for what bluesky-tiled-plugins wrote, too, if that wrote the run at all.
    """

    id: str
    reading: str
    reason: str
    runs: frozenset[str]
    problem: str = ""
    shared: bool = True
    storage: str | None = None

    def explains(self, run: str, storage: str, reading: str, problem: str, bluesky: str | None) -> bool:
        """Whether this is why; `bluesky` is the problem with the other writer's run, None if there is no such run."""
        if self.storage not in {None, storage}:
            return False
        known = reading in self.reading.split() and run in self.runs and re.search(self.problem, problem) is not None
        return known and (not self.shared or bluesky is None or bool(bluesky))


# Predicates


def fails(run: str, message: str) -> Callable[[Difference], bool]:
    """bluesky-tiled-plugins' writer fails on one of these runs (separated by spaces) with such a message."""
    runs = run.split()

    def applies(it: Difference) -> bool:
        failed = it.aspect == "outcome" and it.ours == "written"
        return failed and it.run in runs and re.search(f"^fails: {message}", it.bluesky) is not None

    return applies


_WIDEST: Final = {
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16", "uint32"), "int64"),
    **dict.fromkeys(("float", "halffloat"), "double"),
}


def _widest_type(it: Difference) -> bool:
    if it.aspect != "column type":
        return False
    types = [re.fullmatch(r"(?:list<item: (\w+)>)|(\w+)", text) for text in (it.bluesky, it.ours)]
    if None in types or it.bluesky.startswith("list") != it.ours.startswith("list"):
        return False
    narrow, wide = (match.group(1) or match.group(2) for match in types if match)
    return _WIDEST.get(narrow) == wide


_NOTES: Final = re.compile(
    r"Internal array data for '.*' in stream '.*' written as zarr\.|Renamed data_key '.*' to '.*' in stream .*"
    r"|Internal data for '.*' in stream '.*' written as ragged array\."
    r"|Array lengths for key '.*' in stream '.*' are not consistent: .*|Internal array data for '.*' has? a zero.*"
    r"|Internal array data for key '.*' in stream '.*' has a zero-length dimension .*"
)


def _notes(it: Difference) -> bool:
    if it.path or it.aspect != "metadata.notes":
        return False
    return it.bluesky == ABSENT or all(_NOTES.fullmatch(note) for note in it.bluesky)


def _row_order(it: Difference) -> bool:
    ordered = it.aspect == "source.parameters.order_by_args" and it.bluesky == ABSENT and isinstance(it.ours, list)
    return ordered and all(re.fullmatch(r"seq_num|time|internal_\d+_row", item["column"]) for item in it.ours)


def _same_dtype(it: Difference) -> bool:
    if it.aspect != "metadata.dtype_numpy" or not isinstance(it.bluesky, str):
        return False
    return it.ours == numpy.dtype(it.bluesky).str != it.bluesky


def _column_order(it: Difference) -> bool:
    """The columns that both have come in another order."""
    return it.aspect == "column order" and sorted(it.bluesky) == sorted(it.ours)


def _infinity(it: Difference) -> bool:
    if not it.aspect.startswith("metadata."):
        return False
    clipped = {1.7976e308: 2.0**53 - 1, -1.7976e308: 1 - 2.0**53}
    return [clipped.get(value, value) for value in _flat(it.bluesky)] == _flat(it.ours) != _flat(it.bluesky)


def _whole_floats(it: Difference) -> bool:
    """Within what a catalog in PostgreSQL gives back."""
    if not (it.aspect.startswith("metadata.") and isinstance(it.ours, int | float)):
        return False
    return abs(it.bluesky) == 2**53 - 1 < abs(it.ours) < 2.0**63


def _flat(value: Any) -> list[Any]:
    return list(chain.from_iterable(map(_flat, value))) if isinstance(value, list) else [value]


def _tables_of_wide_streams(it: Difference) -> bool:
    if it.aspect == "tables":
        numbers = range(len(it.bluesky))
        return it.bluesky == [f"internal_{n}" for n in numbers] and it.ours[0] == "internal" and len(it.ours) > 1
    if it.aspect == "table of column":
        return bool(re.fullmatch(r"internal_\d", it.bluesky) and re.fullmatch(r"internal(_\d)?", it.ours))
    row = re.fullmatch(r".*:internal_\d+_row", it.path)
    return it.aspect == "column" and row is not None and it.bluesky == MISSING and it.ours == "int64"


def _width_of_strings(it: Difference) -> bool:
    wider = isinstance(it.bluesky, int) and isinstance(it.ours, int) and it.bluesky < it.ours and it.ours % 4 == 0
    if it.aspect == "structure.data_type.itemsize":
        return wider
    if it.run == "strings-longer-than-declared" and it.aspect == "values":
        return "['m', '']" in it.bluesky and "['much longer', '']" in it.ours
    texts = [re.fullmatch(r"<U(\d+)", str(value)) for value in (it.bluesky, it.ours)]
    return it.aspect == "metadata.dtype_numpy" and all(texts) and it.bluesky != it.ours


def _bytes_to_text(it: Difference) -> bool:
    """Text that was declared as bytes."""
    if it.aspect == "metadata.dtype_numpy":
        return bool(re.fullmatch(r"\|S\d+", str(it.bluesky)) and re.fullmatch(r"<U\d+", str(it.ours)))
    if it.aspect in {"structure.data_type.kind", "structure.data_type.endianness"}:
        return (it.bluesky, it.ours) in {("S", "U"), ("not_applicable", "little")}
    return it.aspect == "values" and "dtype='|S" in it.bluesky and "dtype='<U" in it.ours


_LOCATED: Final = frozenset(
    {
        "one-file-for-two-streams",
        "one-file-for-two-runs",
        "hdf5-detector-with-dark-image",
        "dropped-and-repeated-frames",
        "points-out-of-order",
        "npy-seq-for-two-streams",
    }
)

_WITH_LISTS: Final = (
    "images-as-lists short-lists short-arrays soft-short-arrays none-shapes aps-spectra-in-events unequal-short-lists "
    "ragged-arrays empty-array empty-long-array unsigned-lists small-matrix"
)

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "row-order",
        "Tables have an explicit row order, that of the events; without it, PostgreSQL returns rows in any order "
        "when several runs are written at once.",
        _row_order,
    ),
    Rule(
        "order-of-dimensions",
        "Dimensions of internal arrays are numbered in the order of the data keys; bluesky-tiled-plugins' writer takes "
        "its keys from a set, in an order that changes from process to process.",
        lambda it: (
            it.aspect == "structure.dims"
            and all(re.fullmatch(r"time|dim_int_\d+", name) for name in _flat(it.bluesky) + _flat(it.ours))
        ),
    ),
    Rule(
        "frames-by-slice",
        "Frames of HDF5 files are registered by their rows if these are not the first ones, or if Tiled reshapes "
        "rows, which fails while the file has more rows than were announced.",
        lambda it: it.aspect == "source.parameters.slice" and it.bluesky == ABSENT,
    ),
    Rule(
        "located-frames",
        "A stream has the frames of a file that its documents name; bluesky-tiled-plugins' writer gives the first "
        "stream all frames of a file that several streams share, and otherwise the same number of frames from the "
        "file's beginning.",
        lambda it: (
            it.run in _LOCATED
            and it.path.endswith(("/cam", "/image", "/blob", "/blob-sum"))
            and it.aspect in {"node", "values", "structure.shape", "structure.chunks", "source.assets"}
        ),
    ),
    Rule(
        "root-in-resource-path",
        "An absolute `resource_path` that begins with its `root` is used unchanged; bluesky-tiled-plugins' writer "
        "prepends the root again, which gives a path without a file.",
        lambda it: it.run == "root-in-resource-path" and it.aspect in {"source.assets", "values"},
    ),
    Rule(
        "directory-without-slash",
        "The directory and the name that a template begins with (`%s%s`) are two, though the directory has no slash at "
        "its end, as ophyd gives it; bluesky-tiled-plugins' writer joins them to a name without a file.",
        lambda it: it.run == "directory-without-slash" and it.aspect in {"source.assets", "values"},
    ),
    Rule(
        "csv-files-in-one-chunk",
        "A CSV file is one chunk, however many datums announce it, because Tiled reads it as a whole and fails if "
        "chunks are smaller, as with bluesky-tiled-plugins' writer.",
        lambda it: it.run == "csv-file-of-several-datums" and it.aspect in {"structure.chunks", "values"},
    ),
    Rule(
        "dimensions-once",
        "A dimension that has the name of another one of its node, or another size elsewhere in the stream, gets "
        "another name, with a note; with bluesky-tiled-plugins' writer such a stream cannot be read.",
        lambda it: it.run == "dimensions-called-time" and it.aspect == "structure.dims",
    ),
    Rule(
        "chunks-by-bytes",
        "Chunks of internal arrays have about 1 MiB; with bluesky-tiled-plugins' writer they are as long as the first "
        "batch of events.",
        lambda it: (
            it.aspect == "structure.chunks"
            and it.run == "waveforms-in-batches"
            and [sum(sizes) for sizes in it.bluesky] == [sum(sizes) for sizes in it.ours]
        ),
    ),
    Rule(
        "rows-of-the-first-chunk",
        "While all rows of an internal array are in its first chunk, their number is also a property of its data "
        "source, because Tiled shows the whole chunk until the number is set.",
        lambda it: it.aspect == "source.properties.rows" and it.bluesky == ABSENT,
    ),
    Rule(
        "notes",
        "Notes are worded differently, and there are more of them: each value that could not be stored unchanged is "
        "noted.",
        _notes,
    ),
    Rule(
        "dtype-spelling",
        "`dtype_numpy` in the metadata of an internal array is spelled as in event-model (`<f8`), with its byte "
        "order; bluesky-tiled-plugins' writer spells it as NumPy prints it (`float64`).",
        _same_dtype,
    ),
    Rule(
        "widest-column-type",
        "Columns of numbers have the widest type of their kind (int64, double), because the type that a device "
        "declares or sends first may be narrower than that of later values.",
        _widest_type,
    ),
    Rule(
        "column-order",
        "Columns are in the order of the data keys in the descriptor, which is known before the first event; "
        "bluesky-tiled-plugins' writer orders them as in the first event.",
        _column_order,
    ),
    Rule(
        "infinity",
        "Infinity in metadata becomes 2**53 - 1, like every number that metadata cannot hold; bluesky-tiled-plugins' "
        "writer stores 1.7976e308, which a catalog in PostgreSQL cannot return.",
        _infinity,
    ),
    Rule(
        "whole-floats",
        "Floats without a fraction are kept in metadata up to 2**63; bluesky-tiled-plugins' writer clips "
        "them at 2**53 - 1.",
        _whole_floats,
    ),
    Rule(
        "tables-of-wide-streams",
        "Streams of more than 1,024 columns are split in the order of their data keys, the first table is still called "
        "`internal`, and each further one has a column with row numbers, by which it is ordered; "
        "bluesky-tiled-plugins' writer sorts the columns by name and calls the tables `internal_0`, `internal_1`, ..., "
        "without an order.",
        _tables_of_wide_streams,
    ),
    Rule(
        "room-for-longer-strings",
        "Arrays of strings have room for strings longer than those of the first events, or than declared; "
        "bluesky-tiled-plugins' writer cuts them.",
        _width_of_strings,
    ),
    Rule(
        "text-is-text",
        "Strings in events are stored as text, also where the device declared bytes.",
        _bytes_to_text,
    ),
    Rule(
        "array-in-place-of-nested-lists",
        "Arrays of two and more dimensions are array nodes however small they are, with their shape; in a table they "
        "would be lists of lists.",
        lambda it: (
            it.aspect == "place" and it.bluesky.startswith("column list<item: list<") and it.ours == "array node"
        ),
    ),
    Rule(
        "array-in-place-of-unsigned-lists",
        "Arrays of unsigned 64-bit integers are array nodes however short they are, because not every storage has "
        "such list columns.",
        lambda it: (it.aspect, it.bluesky, it.ours) == ("place", "column list<item: uint64>", "array node"),
    ),
    Rule(
        "list-in-place-of-ragged",
        "Arrays declared to vary in length are list columns of the table; Tiled's ragged arrays cannot be extended so "
        "that a repeated request does no harm.",
        lambda it: it.aspect == "place" and it.bluesky == "ragged node" and it.ours.startswith("column list<"),
    ),
    Rule(
        "lists-of-their-own-length",
        "Lists that turn out to be of unequal length are list columns, each with its own length; "
        "bluesky-tiled-plugins' writer fills those of a batch with NaN to the longest.",
        lambda it: (
            it.run == "unequal-lists"
            and (it.aspect, it.bluesky, it.ours) == ("place", "array node", "column list<item: double>")
        ),
    ),
    Rule(
        "lists-without-numpy-type",
        "Lists of numbers without a declared NumPy type are lists of double, even for integers, because the first "
        "numbers may be integers and later ones not.",
        lambda it: (
            it.run == "short-arrays"
            and (it.aspect, it.bluesky, it.ours) == ("column type", "list<item: int64>", "list<item: double>")
        ),
    ),
    Rule(
        "type-of-empty-lists",
        "A list column that begins with empty lists has the declared type instead of text.",
        lambda it: it.aspect == "column type" and (it.bluesky, it.ours) == ("list<item: string>", "list<item: double>"),
    ),
    Rule(
        "type-of-none",
        "A column that begins with None has the declared type, so that later numbers are numbers; "
        "bluesky-tiled-plugins' writer creates a column of text.",
        lambda it: (
            it.run in {"none-then-number", "only-none"}
            and ((it.aspect, it.bluesky, it.ours) == ("column type", "string", "double") or it.aspect == "values")
        ),
    ),
    Rule(
        "late-data-keys",
        "A declared data key has a column even if the first events lack it; bluesky-tiled-plugins' writer leaves out "
        "keys that the first batch lacks.",
        lambda it: it.run == "late-data-key" and it.aspect == "column" and (it.bluesky, it.ours) == (MISSING, "double"),
    ),
    Rule(
        "hints-follow-names",
        "If a data key called `time` or `seq_num` is renamed, hints that name it are renamed as well.",
        lambda it: (
            it.aspect.startswith("metadata.hints.")
            and it.ours == [{"time": "time_", "seq_num": "seq_num_"}.get(name, name) for name in it.bluesky]
        ),
    ),
    Rule(
        "names-in-use",
        "Data keys whose columns or nodes would have the names of others (`internal`, `ts_x` beside `x`), or that "
        "clients leave out (all others that begin with `ts_`), are stored under another name, with a note; "
        "bluesky-tiled-plugins' writer stores one value in place of the other.",
        lambda it: (
            it.run == "names-in-use"
            and (it.aspect == "column order" or (it.aspect == "column" and MISSING in {it.bluesky, it.ours}))
        ),
    ),
    # Runs that only ours writes
    Rule(
        "names-that-differ-in-case",
        "For the server, column names that differ only in case are one name: a further table holds the second column.",
        fails("names-that-differ-in-case", r"HTTPStatusError: Server error '500"),
    ),
    Rule(
        "column-types-from-first-batch",
        "bluesky-tiled-plugins' writer takes column types from the first batch of events; a later one that does not "
        "fit is refused.",
        fails("integer-then-float declared-integer-is-float", r"HTTPStatusError: Server error '500.*/table/partition/"),
    ),
    Rule(
        "types-that-change",
        "Values of different types for one data key in one batch have no Arrow type; ours are converted, or noted.",
        fails("declared-type-is-wrong mixed-arrays", r"ArrowInvalid: Could not convert '\w+' with type str"),
    ),
    Rule(
        "values-without-arrow-type",
        "Values without an Arrow type, such as a table of ophyd-async, are stored as JSON text.",
        fails("soft-table", r"ArrowInvalid: Could not convert Energies"),
    ),
    Rule(
        "filled-images",
        "Images that were filled into events are stored as arrays; bluesky-tiled-plugins' writer puts them in the "
        "table, because the descriptor says that they are external.",
        fails("filled-events", r"ArrowInvalid: Can only convert 1-dimensional array values"),
    ),
    Rule(
        "arrays-of-unequal-length",
        "NumPy arrays of unequal length cannot be added to lists.",
        fails("unequal-arrays", r"ValueError: operands could not be broadcast together"),
    ),
    Rule(
        "large-integers",
        "Integers beyond 63 bits do not fit Arrow's integers.",
        fails("large-unsigned-integers huge-integers", r"OverflowError: Python int too large"),
    ),
    Rule(
        "missing-datums",
        "If a datum never arrives, only the data of its key is lost, with a note, not the run.",
        fails(
            "missing-datum", r"RuntimeError: Cannot emit StreamDatum for lost|UnresolvableForeignKeyError: .*never/0"
        ),
    ),
    Rule(
        "stream-resources-late-or-missing",
        "A stream datum waits for its stream resource; if that never arrives, only the data of its key is lost, with "
        "a note, not the run.",
        fails("stream-datums-before-their-resource missing-stream-resource", r"KeyError: '[0-9a-f-]{36}'"),
    ),
    Rule(
        "chunk-shapes-that-do-not-fit",
        "A chunk shape that is none, or has more dimensions than the data, is noted and not followed.",
        fails("chunk-shapes-that-do-not-fit", r"TypeError: 'int' object is not iterable"),
    ),
    Rule(
        "further-data-keys",
        "Data keys that only a further descriptor of a stream declares are stored as others are.",
        fails("further-data-keys", r"KeyError: 'cam'"),
    ),
    Rule(
        "substitutes-in-use",
        "A data key called `time` is renamed even if there is a data key `time_`.",
        fails("reserved-name-and-its-substitute", r"ValueError: Cannot rename time to time_"),
    ),
    Rule(
        "column-names-refused",
        "Tiled refuses some column names; ours are changed to accepted ones, with a note.",
        fails("refused-column-names", r"ValueError: Tiled reserved column names"),
    ),
    Rule(
        "column-names-too-long",
        "Tiled refuses column names of more than 63 bytes; ours are shortened, with a note.",
        fails("long-column-name", r"ClientError: 422: Invalid SQL identifier .* max bytes is 63"),
    ),
    Rule(
        "column-names-not-ascii",
        "Tiled refuses column names that begin with a non-ASCII letter; ours get an ASCII letter in front, with a "
        "note.",
        fails("unusual-names", r"ClientError: 422: Malformed SQL identifier"),
    ),
    Rule(
        "names-against-schema",
        "Names of data keys with dots or slashes contradict event-model's schema; they are stored nevertheless.",
        fails(
            "dots-in-names slashes-in-names external-names-in-use",
            r"ValidationError: 'a[./]b'(, 'wave[./]1' do| does) not match",
        ),
    ),
    Rule(
        "stream-names-for-urls",
        "Stream names become part of URLs unchanged; ours are changed where a URL would end or branch, with a note.",
        fails("stream-names-for-urls slash-in-stream-name", r"ClientError: 404: No such entry"),
    ),
    Rule(
        "one-file-for-several-datums",
        "A file of unknown kind is registered once, even if several datums refer to it, because Tiled refuses the "
        "second registration.",
        fails("unknown-spec", r"HTTPStatusError: Server error '500.*/data_source/"),
    ),
    Rule(
        "lists-on-sqlite",
        "Storage in SQLite has no list columns: short arrays are array nodes there, or JSON text if they vary in "
        "length.",
        lambda it: (
            (it.run, it.aspect, it.ours) == ("unequal-lists", "place", "column string")
            or fails(_WITH_LISTS, r"HTTPStatusError: Server error '500.*/metadata/")(it)
        ),
        storage="sqlite",
    ),
    Rule(
        "lists-on-postgresql",
        "Storage in PostgreSQL has no columns of lists of lists or of unsigned 64-bit integers.",
        fails("images-as-lists small-matrix unsigned-lists", r"HTTPStatusError: Server error '500.*/metadata/"),
        storage="postgresql",
    ),
    Rule(
        "infinity-on-postgresql",
        "A catalog in PostgreSQL cannot return the number that bluesky-tiled-plugins' writer stores for infinity: "
        "every request for the node fails.",
        lambda it: (
            it.run in {"nan-in-metadata", "nan-in-configuration"}
            and (it.aspect, it.ours) == ("outcome", "written")
            and "Server error '500" in it.bluesky
        ),
        storage="postgresql",
    ),
)


def runs(names: str) -> frozenset[str]:
    """Names separated by spaces."""
    return frozenset(names.split())


LIMITS: Final[tuple[Limit, ...]] = (
    Limit(
        "documents-of-rewound-runs",
        "documents",
        "bluesky-tiled-plugins' exporter (`exporters.json_seq_exporter`) gives one event per sequence number.",
        runs("rewound-run"),
        r"3 events instead of 5",
    ),
    Limit(
        "documents-of-further-tables",
        "documents",
        "The exporter treats every node but the table `internal` as an array, and fails on a further table; so it does "
        "on those of bluesky-tiled-plugins' writer. As arrays, each further column would be a node with requests of "
        "its own.",
        runs("nsls2-wide-baseline names-that-differ-in-case"),
        r"500 Internal Server Error",
    ),
    Limit(
        "documents-with-files-of-any-kind",
        "documents",
        "The exporter treats every external node as an array, and fails on one of family `bytes`, which is the one "
        "that bluesky-tiled-plugins' writer registers, too. Files of unknown kind have no shape to show as an array.",
        runs("octet-stream unknown-spec"),
        r"500 Internal Server Error",
    ),
    Limit(
        "data-sets-with-files-of-any-kind",
        "read v2",
        "Tiled's client cannot read a stream as a data set if it has a node of family `bytes`, and reports this.",
        runs("octet-stream unknown-spec"),
        r"Cannot read bytes-family child",
    ),
    Limit(
        "documents-with-values-that-json-lacks",
        "documents",
        "The exporter cannot convert complex numbers and dates to JSON; the documents end at the first such value.",
        runs("complex-arrays date-arrays"),
        r"documents are \['start', 'descriptor'\]",
    ),
    Limit(
        "documents-with-filled-data",
        "documents",
        "The exporter treats a data key as external if the descriptor says so, even if its data is in the events.",
        runs("filled-events"),
        r"event 1 has 'image' None",
    ),
    Limit(
        "documents-with-changed-names",
        "documents",
        "The exporter uses the names of columns and nodes for data keys, not those of the descriptor. No name that the "
        "server refuses can be read back by it.",
        runs(
            "refused-column-names long-column-name unusual-names names-in-use slash-in-stream-name "
            "stream-names-for-urls"
        ),
        r"has '.*' None, not|has \".*\" None, not|streams are \['(a_b|50_)'",
    ),
    Limit(
        "documents-with-names-against-schema",
        "documents",
        "The exporter validates descriptors (`exporters.build_descriptor_docs`), and event-model's schema rejects "
        "these names.",
        runs("dots-in-names slashes-in-names external-names-in-use"),
        r"500 Internal Server Error",
    ),
    Limit(
        "values-as-text",
        "values documents",
        "If text was declared, a value of another type is stored as text; bluesky-tiled-plugins' writer fails on it.",
        runs("declared-type-is-wrong"),
        r"'label' (is \['1.5', 'b'\]|'1.5')",
    ),
    Limit(
        "documents-with-text",
        "documents",
        "The exporter returns values that no column type holds, and that are stored as (JSON) text, as that text.",
        runs("soft-table mixed-arrays large-unsigned-integers"),
        r"event 1 has '.*' '([\[{]|\d+')",
    ),
    Limit(
        "documents-with-lists-on-sqlite",
        "documents",
        "Lists that vary in length are JSON text if the storage is SQLite, and the exporter returns them as text.",
        runs("none-shapes unequal-arrays unequal-lists unequal-short-lists ragged-arrays empty-array empty-long-array"),
        r"event 1 has '.*' '\[",
        shared=False,
        storage="sqlite",
    ),
    Limit(
        "undeclared-data",
        "values documents",
        "Both writers leave out data of a key that the descriptor does not declare; ours adds a note.",
        runs("undeclared-data-key"),
        r"'y' (is not there|None)|has 'y' None",
    ),
)
