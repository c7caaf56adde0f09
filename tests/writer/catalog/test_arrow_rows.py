"""The rows of a request, as Tiled's server takes them out of it: with pandas, and by way of it to the table's types."""

from __future__ import annotations

import pyarrow
from tiled.serialization.table import deserialize_arrow

from tiledwriter.catalog._nodes import arrow_file
from tiledwriter.mapping._columns import arrow_type
from tiledwriter.mapping._operations import AppendRows, Column


def test_integers_beside_missing_values_keep_all_digits_in_the_server() -> None:
    given = {
        "seq_num": ("int64", [1, 2, 3]),
        "large": ("int64", [2**63 - 1, None, -(2**63)]),
        "whole": ("int64", [2**53 + 1, 2, 3]),
        "x": ("float64", [0.5, None, 1.5]),
        "flag": ("bool", [True, None, False]),
        "text": ("string", ["a", None, ""]),
        "list": ("list<int64>", [[2**53 + 1], None, []]),
    }
    columns = tuple(Column(name, kind) for name, (kind, _) in given.items())
    values = tuple(pyarrow.array(items, arrow_type(kind)) for kind, items in given.values())
    received = pyarrow.Table.from_pandas(deserialize_arrow(arrow_file(AppendRows("run/table", 0, columns, values))))
    schema = pyarrow.schema([(name, arrow_type(kind)) for name, (kind, _) in given.items()])
    assert received.cast(schema).to_pydict() == {name: items for name, (_, items) in given.items()}
