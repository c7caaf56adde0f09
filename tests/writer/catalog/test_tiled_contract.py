"""What we rely on in Tiled without its documentation: one test for each fact, so that a new release is judged at once.

Where one fails, `docs/explanations/what-tiled-does.md` and what is built on the fact have to change.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy
import numpy.typing
import pyarrow
import pytest
import tiled.client.utils

from tiledwriter.catalog._connection import Connection
from tiledwriter.catalog._nodes import Nodes, node_body, with_rows
from tiledwriter.catalog._probe import ARROW_FILE
from tiledwriter.mapping._operations import Column, CreateArray, CreateContainer, CreateTable, RegisterExternal
from tiledwriter.testing import TiledServer

OCTETS = {"format": "application/octet-stream"}


class Api:
    """Requests to a server, below a container that is made for each test."""

    def __init__(self, server: TiledServer) -> None:
        self.client: Any = server.client()
        self._context = self.client.context
        self.root = f"contract-{uuid.uuid4()}"
        self.create(CreateContainer(self.root, {}))

    def __call__(self, method: str, endpoint: str, path: str, **options: Any) -> httpx.Response:
        url = f"{self._context.api_uri}{endpoint}/{path}"
        # After an answer of 500 the server closes the connection, which the next request would still be sent by.
        headers = {**options.pop("headers", {}), "Connection": "close"}
        response: httpx.Response = self._context.http_client.request(method, url, headers=headers, **options)
        return response

    def done(self, method: str, endpoint: str, path: str, **options: Any) -> Any:
        """What is answered to a request that has to be carried out."""
        response = self(method, endpoint, path, **options)
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"].startswith("application/json")
        return response.json()

    def create(self, operation: Any) -> Any:
        parent, _, key = operation.path.rpartition("/")
        return self.done("POST", "metadata", parent, json=node_body(operation, key))

    def table(self, name: str, columns: tuple[Column, ...], order: tuple[str, ...] = ()) -> str:
        path = f"{self.root}/{name}"
        self.create(CreateTable(path, columns, order))
        return path

    def append(self, path: str, values: Mapping[str, list[int]]) -> Any:
        table = pyarrow.table({name: pyarrow.array(column, pyarrow.int64()) for name, column in values.items()})
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        headers = {"Content-Type": ARROW_FILE}
        content = bytes(sink.getvalue())
        return self.done("PATCH", "table/partition", path, params={"partition": 0}, content=content, headers=headers)

    def patch(self, path: str, first: int, rows: numpy.typing.NDArray[Any]) -> Any:
        """Write rows of an array."""
        params = {"offset": str(first), "shape": ",".join(map(str, rows.shape)), "extend": True}
        headers = {"Content-Type": "application/octet-stream"}
        return self.done("PATCH", "array/full", path, params=params, content=rows.tobytes(), headers=headers)

    def register(self, key: str, source: Mapping[str, Any]) -> Any:
        """The client's node for files."""
        self.done("POST", "register", self.root, json=node_body(RegisterExternal(f"{self.root}/{key}", source), key))
        return self.client.new_variation()[f"{self.root}/{key}"]

    def column(self, path: str, **params: Any) -> list[int]:
        response = self("GET", "array/full", path, params={**OCTETS, **params})
        assert response.status_code == 200, response.text
        return [int(number) for number in numpy.frombuffer(response.content, "<i8")]

    def attributes(self, path: str) -> Any:
        answer = self.done("GET", "metadata", path, params={"include_data_sources": True})
        return answer["data"]["attributes"]

    def source(self, path: str) -> Any:
        return self.attributes(path)["data_sources"][0]

    def put_source(self, path: str, source: Any) -> Any:
        return self.done("PUT", "data_source", path, json={"data_source": source})


@pytest.fixture
def api(storage_server: TiledServer) -> Api:
    if storage_server.storage == "duckdb":
        pytest.skip("DuckDB is not supported behind Tiled")
    return Api(storage_server)


@pytest.fixture
def own_column() -> tuple[Column, ...]:
    """Of a schema that no other test has, so that its SQL table is not shared with any."""
    return (Column("x", "int64"), Column(f"y{uuid.uuid4().hex[:12]}", "int64"))


def row_of(columns: tuple[Column, ...], number: int) -> dict[str, list[int]]:
    return {column.name: [number] for column in columns}


def test_rows_come_back_in_the_order_of_order_by_args(api: Api) -> None:
    path = api.table("ordered", (Column("x", "int64"), Column("y", "int64")), ("x",))
    api.append(path, {"x": [3, 1], "y": [0, 1]})
    api.append(path, {"x": [2], "y": [2]})
    assert api.column(f"{path}/x") == [1, 2, 3]
    source = api.source(path)
    assert source["parameters"]["order_by_args"] == [{"column": "x", "direction": "asc"}]
    source["parameters"]["order_by_args"] = [{"column": "y", "direction": "asc"}]
    api.put_source(path, source)
    assert api.column(f"{path}/x") == [3, 1, 2]


def test_a_table_shows_another_one_s_rows_once_it_has_its_parameters(api: Api, own_column: tuple[Column, ...]) -> None:
    one, two = api.table("one", own_column), api.table("two", own_column)
    api.append(one, row_of(own_column, 1))
    api.append(two, row_of(own_column, 2))
    api.put_source(one, {**api.source(one), "parameters": api.source(two)["parameters"]})
    assert api.column(f"{one}/x") == [2]


def test_a_node_deleted_without_a_data_set_leaves_the_shared_table_alone(
    api: Api, own_column: tuple[Column, ...]
) -> None:
    kept, deleted = api.table("kept", own_column), api.table("deleted", own_column)
    source = api.source(deleted)
    assert source["parameters"]["table_name"] == api.source(kept)["parameters"]["table_name"]
    api.put_source(deleted, {**source, "parameters": {**source["parameters"], "dataset_id": None}})
    assert api.done("DELETE", "metadata", deleted, params={"external_only": False}) is None
    assert api("GET", "metadata", deleted).status_code == 404
    api.append(kept, row_of(own_column, 7))  # which fails if its SQL table was dropped for being empty
    assert api.column(f"{kept}/x") == [7]


def test_the_number_of_rows_is_the_shape_of_a_column(api: Api, own_column: tuple[Column, ...]) -> None:
    path = api.table("counted", own_column)
    for count in range(3):
        answer = api.done("GET", "metadata", f"{path}/x", params={"fields": "structure"})
        assert (answer["data"]["attributes"]["structure"] or {}).get("shape", [0]) == [count]
        api.append(path, row_of(own_column, count))


def test_a_column_is_read_in_slices_that_may_end_beyond_it(api: Api, own_column: tuple[Column, ...]) -> None:
    path = api.table("sliced", own_column, ("x",))
    for number in range(3):
        api.append(path, row_of(own_column, number))
    found = [api.column(f"{path}/x", slice=part) for part in ("0:2", "2:4", "3:5", "0:9")]
    assert found == [[0, 1], [2], [], [0, 1, 2]]


def test_what_each_write_is_answered_with(api: Api, own_column: tuple[Column, ...]) -> None:
    path = api.table("answers", own_column)
    assert api.append(path, row_of(own_column, 1)) is None
    assert api.put_source(path, api.source(path)) is None
    array = CreateArray(f"{api.root}/array", "<f8", (2,), 1, ("time", "x"))
    assert api.create(array)["id"] == "array"
    assert api.patch(array.path, 0, numpy.ones((1, 2)))["shape"] == [1, 2]
    patch = {"content-type": "application/json-patch+json", "metadata": [], "specs": None}
    assert "id" in api.done("PATCH", "metadata", api.root, json=patch, params={"drop_revision": True})
    assert api.done("DELETE", "stream/close", path) is None


def test_an_array_begins_without_rows_and_shows_a_whole_chunk_until_it_is_told_how_many_there_are(api: Api) -> None:
    path = f"{api.root}/array"
    api.create(CreateArray(path, "<f8", (2,), 10, ("time", "x")))
    assert api.source(path)["structure"]["shape"] == [0, 2]
    assert api.client[path][:].shape == (0, 2)
    answer = api.patch(path, 0, numpy.ones((3, 2)))
    assert (answer["shape"], answer["chunks"]) == ([10, 2], [[10], [2]])
    source = with_rows({**api.source(path), "structure": answer}, 3)
    api.put_source(path, {**source, "assets": []})
    assert api.source(path)["structure"]["shape"] == [3, 2]
    assert api.source(path)["properties"] == {"rows": 3}
    assert api.client.new_variation()[path].read().tolist() == [[1.0, 1.0]] * 3
    answer = api.patch(path, 3, numpy.full((8, 2), 2.0))  # behind the first chunk it is extended row by row
    assert (answer["shape"], answer["chunks"]) == ([11, 2], [[10, 1], [2]])
    assert api.source(path)["properties"] == {"rows": 3}
    assert api.client.new_variation()[path].read().tolist() == [[1.0, 1.0]] * 3 + [[2.0, 2.0]] * 8


@pytest.mark.parametrize("rows", [[2, 0, 1], [0, 0, 5], [5]])
def test_rows_of_an_hdf5_file_are_selected_by_a_list_in_its_order(api: Api, readable: Path, rows: list[int]) -> None:
    file = readable / f"{api.root}.h5"
    values = numpy.arange(24.0).reshape(6, 4)
    with h5py.File(file, "w") as open_run_file:
        open_run_file["x"] = values
    source = files_of([file], "application/x-hdf5", values[rows].shape, {"dataset": "x", "slice": rows, "swmr": False})
    found = api.register("rows", source)
    assert found.read().tolist() == values[rows].tolist()
    assert found[1:].tolist() == values[rows][1:].tolist()


def test_each_csv_file_has_to_be_one_chunk_of_all_its_rows(api: Api, readable: Path) -> None:
    values = numpy.arange(30.0).reshape(10, 3)
    files = [readable / f"{api.root}-{name}.csv" for name in ("a", "b")]
    for file in files:
        numpy.savetxt(file, values, delimiter=",")
    for name, count, chunks, is_read in (
        ("whole", 1, [10], True),
        ("several", 2, [10, 10], True),
        ("divided", 1, [5, 5], False),
        ("part", 1, [5], False),
    ):
        source = files_of(files[:count], "text/csv;header=absent", (sum(chunks), 3), {"header": None})
        source["structure"]["chunks"][0] = chunks
        found = api.register(name, source)
        if is_read:
            assert found.read().tolist() == (values.tolist() * 2)[: sum(chunks)]
        else:
            close = {"Connection": "close"}  # as the server does after an answer of 500
            params = {**OCTETS, "expected_shape": f"{sum(chunks)},3"}  # as the client asks
            answer = api("GET", "array/full", f"{api.root}/{name}", params=params, headers=close)
            assert answer.status_code == 500


def files_of(files: list[Path], mimetype: str, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The data source of files with an array of doubles."""
    data_type = {"endianness": "little", "kind": "f", "itemsize": 8, "dt_units": None}
    layout = {"shape": list(shape), "chunks": [[size] for size in shape], "dims": None, "resizable": False}
    asset = {"is_directory": False, "parameter": "data_uris"}
    return {
        "structure_family": "array",
        "mimetype": mimetype,
        "parameters": parameters,
        "properties": {},
        "management": "external",
        "structure": {"data_type": data_type, **layout},
        "assets": [{**asset, "data_uri": f"file://localhost{file}", "num": n} for n, file in enumerate(files)],
    }


def test_errors_have_a_detail_in_json(api: Api) -> None:
    for method, endpoint, path, status in (
        ("GET", "metadata", f"{api.root}/nothing", 404),
        ("POST", "metadata", api.root, 422),
    ):
        response = api(method, endpoint, path)
        assert response.status_code == status
        assert response.headers["Content-Type"] == "application/json"
        assert "detail" in response.json()
    taken = node_body(CreateContainer(api.root, {}), api.root)
    response = api("POST", "metadata", "", json=taken)
    assert (response.status_code, "detail" in response.json()) == (409, True)


def test_a_500_has_a_detail_in_json(api: Api, own_column: tuple[Column, ...]) -> None:
    path = api.table("broken", own_column)
    headers = {"Content-Type": ARROW_FILE}
    response = api("PATCH", "table/partition", path, params={"partition": 0}, content=b"rubbish", headers=headers)
    assert response.status_code == 500
    assert "detail" in response.json()


def test_an_array_s_directory_is_its_sibling_s_with_the_quoted_key(api: Api) -> None:
    places = {}
    for key in ("plain", "a b"):
        path = f"{api.root}/{key}"
        api.create(CreateArray(path, "<f8", (1,), 1, ("time", "x")))
        places[key] = api.source(path.replace(" ", "%20"))["assets"][0]["data_uri"]
    assert places["plain"].rpartition("/")[2] == "plain"
    assert places["a b"] == places["plain"].rpartition("/")[0] + "/a+b"


def test_children_are_listed_by_pages(api: Api) -> None:
    for number in range(3):
        api.create(CreateContainer(f"{api.root}/child-{number}", {}))
    found = []
    for offset in (0, 2):
        params = {"fields": "structure_family", "page[offset]": offset, "page[limit]": 2}
        found += api.done("GET", "search", api.root, params=params)["data"]
    assert [(node["id"], node["attributes"]["structure_family"]) for node in found] == [
        (f"child-{number}", "container") for number in range(3)
    ]


def test_an_array_without_rows_cannot_be_read(api: Api) -> None:
    path = f"{api.root}/array"
    api.create(CreateArray(path, "<f8", (2,), 1, ("time", "x")))
    assert api("GET", "array/full", path, params=OCTETS).status_code == 500


def test_the_client_gives_its_connection_and_where_it_is(api: Api) -> None:
    context = api.client.context
    assert isinstance(context.http_client, httpx.Client)
    assert str(context.api_uri).endswith("/api/v1/")
    assert tuple(api.client[api.root].path_parts) == (api.root,)
    assert context.http_client.get(context.api_uri).json()["library_version"] == context.server_info.library_version


def test_the_client_s_retries_are_read_at_each_call() -> None:
    assert isinstance(tiled.client.utils.TILED_RETRY_ATTEMPTS, int)
    assert "TILED_RETRY_ATTEMPTS" in Path(tiled.client.utils.__file__).read_text()


def test_a_client_has_the_classes_of_its_structures(api: Api) -> None:
    assert {"array", "table", "container"} <= set(api.client.structure_clients)


def test_the_client_s_decoders_are_a_module_of_their_own() -> None:
    """Which the supervisor imports beforehand, as it takes long."""
    assert importlib.import_module("tiled.client.decoders").__name__ in sys.modules


class NarrowServer(TiledServer):
    """A server whose answers have at most 1,000 bytes of data."""

    def _configure(self) -> None:
        super()._configure()
        configuration = json.loads(self._configuration.read_text())
        self._configuration.write_text(json.dumps({**configuration, "response_bytesize_limit": 1000}))


@pytest.fixture
def narrow_server(tmp_path: Path) -> Iterator[NarrowServer]:
    with NarrowServer(tmp_path / "narrow") as server:
        yield server


def test_a_column_above_the_limit_of_an_answer_is_refused_and_read_in_slices(narrow_server: NarrowServer) -> None:
    api = Api(narrow_server)
    path = api.table("long", (Column("x", "int64"),), ("x",))
    api.append(path, {"x": list(range(400))})
    response = api("GET", "array/full", f"{path}/x", params=OCTETS)
    assert (response.status_code, "Response would exceed 1000" in response.json()["detail"]) == (400, True)
    connection = Connection(lambda: api.client, threading.Event(), lambda _event, **_detail: None)
    slices = list(Nodes(connection).column(path, "x"))
    assert max(map(len, slices)) <= 1000
    assert numpy.frombuffer(b"".join(slices), "<i8").tolist() == list(range(400))
