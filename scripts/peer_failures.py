"""The tests of bluesky-tiled-plugins that this package fails on purpose; see `scripts/peer_tests.py`.

Each pattern (`fnmatch`, of the test's id below `tests/`) stands for tests that all fail for the reason beside it.
"""

from __future__ import annotations

from typing import Final

EXPECTED: Final = {
    "test_tiled_writer.py::test_internal_arrays_written_as_zarr[[]app?-*]": (
        "Arrays of strings have room for longer ones than the first batch has (<U32 in place of <U6): later strings "
        "are not cut."
    ),
    "test_tiled_writer.py::test_event_append_retried_with_possible_duplication[[]app?-*]": (
        "Rows are not doubled when the answer to an append is lost; the test expects each of them twice."
    ),
    "test_tiled_writer.py::test_validate_external_data[[]app?-False-dims]": (
        "A key with more names of dimensions than dimensions is written with the first ones, and can be read; the test "
        "expects that reading it fails."
    ),
    "test_tiled_writer.py::test_validate_external_data[[]app1-True-dims]": (
        "For the same reason there is nothing to correct; the test expects the server's validation to warn that it was."
    ),
    "test_tiled_writer.py::test_json_backup[[]app?]": (
        "The test makes a private class, _RunWriter, fail. Backups are tested in tests/writer/callback."
    ),
    "test_tiled_writer.py::test_large_internal_table_split_into_multiple_nodes[[]app?]": (
        "The test changes a private constant, MAX_TABLE_COLUMNS, and expects the tables to be called internal_0, "
        "internal_1 and so on. The first one is always called internal here, so that clients find it."
    ),
    "test_consolidators.py::test_csv_shape_and_chunks[[]*-chunk_shape[01456]-*]": (
        "A CSV file is one chunk, because Tiled reads it as a whole and fails if chunks are smaller."
    ),
}
