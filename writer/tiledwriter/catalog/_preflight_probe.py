"""The probe of the pre-flight checks: a container with a table, an array and files, deleted again whatever happens.

The table's only column has a name that no other table has, so Tiled stores it in an SQL table of its own, which goes
with the node: no other table is touched, and no row is left.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy
import psutil
import pyarrow

from .._errors import Refused, ServerError, ServerFailed
from ..mapping import AppendRows, Column, CreateArray, CreateContainer, CreateTable, Creation, RegisterExternal
from ._nodes import arrow_file, node_body
from ._preflight_requests import PreflightRequests
from ._probe import ARROW_FILE

CONTAINER_KEY: Final = "tiledwriter_check"
"""Key of the container that the probe is in."""

_MARK: Final = "tiledwriter_check"
# A probe of this age was left by a check that was killed: none takes so long.
_ABANDONED_SECONDS: Final = 600.0
_VALUE: Final = 5579
_OCTETS: Final = "application/octet-stream"
_CSV: Final = "text/csv"
_CHILDREN_LIMIT: Final = 100
# Several servers may answer at one address in turn. As many readings in a row have to find what was written.
_READINGS_IN_A_ROW: Final = 4
_READ_BACK_SECONDS: Final = 10.0
_READ_BACK_PAUSE_SECONDS: Final = 0.1

_Reading = TypeVar("_Reading")


@dataclass(frozen=True)
class Leftover:
    """A node that could not be deleted: its path below the container of the runs, and the reason."""

    path: str
    problem: str


class _WrongValues(ServerError):
    """Raised when what is read back is not what was sent."""


class ProbeContainer:
    """A probe. `remove` has to be called whatever happened before.

    Parameters
    ----------
    requests
        Requests to the server.

    Attributes
    ----------
    path
        Path of the probe's container.
    step
        What is being done, for the message if it fails.
    storage
        URI of the database that holds the table; "" until it is known. It may hold a password.
    removed_leftovers
        Number of nodes of killed checks that were deleted.
    lag
        Longest time, in seconds, after which something that was written was not to be read yet.
    is_shared
        False if some readings found what was written, but never several in a row.
    """

    def __init__(self, requests: PreflightRequests) -> None:
        self._requests = requests
        self._token = secrets.token_hex(8)
        # Nodes that may exist, in the order of their creation: also those whose creation was not answered.
        self._made: list[str] = []
        self.path = CONTAINER_KEY
        # Tiled keeps the directory that an array's directory is in, so the array is beside the container, not in it.
        self._array = f"{CONTAINER_KEY}-{self._token}"
        self.step = ""
        self.storage = ""
        self.removed_leftovers = 0
        self.lag = 0.0
        self.is_shared = True

    def create(self) -> None:
        """Create, append to and read back a table and an array, and delete what killed checks left.

        Raises
        ------
        ServerError
            Tiled did not do the current step.
        """
        self._create_container()
        self._remove_abandoned()
        self._try_table()
        self._try_array()

    def may_read_below(self, uri: str) -> bool:
        """Return whether Tiled serves files in a directory; whether they exist makes no difference.

        Tiled checks that a file is in its readable storage when it looks for a column of a table, and opens the file
        only later: asked for a column that the table does not have it answers 404, or 500 for a file elsewhere.
        """
        self.step = f"register a file in {uri}"
        path = self._register_file(f"{uri.rstrip('/')}/tiledwriter_check_{self._token}")
        self._read_back(lambda: self._read(path))
        try:
            self._requests.ask("GET", "metadata", f"{path}/no_such_column")
        except Refused as error:
            if error.status != 404:
                raise
        except ServerFailed:
            return False
        return True

    def can_open(self, uri: str) -> bool | None:
        """Return whether Tiled can open a file; None if the server does not let files be downloaded."""
        self.step = f"open {uri}"
        path = self._register_file(uri)
        number = self._read_back(lambda: self._read(path))["data_sources"][0]["assets"][0]["id"]
        status = self._requests.ask_status(
            "GET", "asset/bytes", path, params={"id": number}, headers={"Range": "bytes=0-0"}
        )
        if status == 500:
            return False
        return True if status in {200, 206} else None

    def remove(self) -> list[Leftover]:
        """Delete everything, and return what could not be deleted."""
        left = [Leftover(path, problem) for path in reversed(self._made[1:]) if (problem := self._delete(path))]
        if self._made and not left:
            problem = self._delete(self.path)
            # 409: another check, which runs at the same time, has its probe in there, and deletes the container.
            if problem and not problem.startswith("409"):
                left.append(Leftover(self.path, problem))
        return left

    # Steps.

    def _create_container(self) -> None:
        self.step = f"create the container {self.path}"
        operation = CreateContainer(self.path, {_MARK: self._describe_maker()})
        self._made.append(self.path)
        try:
            self._post("metadata", operation)
        except Refused as error:
            if error.status != 409 or _MARK not in (self._read(self.path)["metadata"] or {}):
                # It is not ours to delete.
                self._made.remove(self.path)
                raise
        self.step = f"read back the container {self.path}"
        self._read_back(lambda: self._read(self.path))

    def _try_table(self) -> None:
        path = self._add("table")
        column = f"tiledwriter_check_{self._token}"
        columns = (Column(column, "int64"),)
        self.step = f"create the table {path}"
        self._create(CreateTable(path, columns, (column,), self._metadata()))
        self.step = f"read back the table {path}"
        source = self._read_back(lambda: self._read(path))["data_sources"][0]
        self.storage = str(source["assets"][0]["data_uri"])
        self.step = f"append to the table {path}"
        rows = AppendRows(path, 0, columns, (pyarrow.array([_VALUE], pyarrow.int64()),))
        self._requests.ask(
            *("PATCH", "table/partition", path),
            params={"partition": 0},
            content=arrow_file(rows),
            content_type=ARROW_FILE,
        )
        self.step = f"read back the table {path}"
        self._read_back(lambda: self._require_values(f"{path}/{column}"))
        self.step = f"change the data source of the table {path}"
        self._requests.ask("PUT", "data_source", path, json={"data_source": source})

    def _try_array(self) -> None:
        path = self._array
        self._made.append(path)
        self.step = f"create the array {path}"
        self._create(CreateArray(path, "<i8", (), 1, ("time",), self._metadata()))
        self.step = f"write to the array {path}"
        values = numpy.array([_VALUE], "<i8")
        self._requests.ask(
            *("PATCH", "array/full", path),
            params={"offset": "0", "shape": "1", "extend": True},
            content=values.tobytes(),
            content_type=_OCTETS,
        )
        self.step = f"read back the array {path}"
        self._read_back(lambda: self._require_values(path))

    def _register_file(self, uri: str) -> str:
        path = self._add("file")
        body = node_body(CreateTable(path, (Column("column", "int64"),), ()), "")
        asset = {"data_uri": uri, "is_directory": False, "parameter": "data_uris", "num": 0}
        source = {
            **body["data_sources"][0],
            "mimetype": _CSV,
            "management": "external",
            "parameters": {},
            "assets": [asset],
        }
        self._create(RegisterExternal(path, source, self._metadata()), "register")
        return path

    def _remove_abandoned(self) -> None:
        """Delete the nodes of checks that were killed."""
        self.step = f"look into {self.path}"
        params = {"page[limit]": _CHILDREN_LIMIT, "fields": "metadata"}
        for node in self._requests.ask("GET", "search", self.path, params=params).json()["data"]:
            mark = (node["attributes"].get("metadata") or {}).get(_MARK) or {}
            if not _is_abandoned(mark):
                continue
            array = str(mark.get("array", ""))
            # The array first: the other node leads to it.
            problem = self._delete(array) if array.startswith(f"{CONTAINER_KEY}-") else ""
            if not problem and not self._delete(f"{self.path}/{node['id']}"):
                self.removed_leftovers += 1

    # Requests.

    def _add(self, kind: str) -> str:
        path = f"{self.path}/{kind}-{self._token}-{len(self._made)}"
        self._made.append(path)
        return path

    def _create(self, operation: Creation, endpoint: str = "metadata") -> None:
        try:
            self._post(endpoint, operation)
        except Refused as error:
            # The path is ours alone, so an earlier attempt, whose answer was lost, has made it.
            if error.status != 409:
                raise

    def _post(self, endpoint: str, operation: Creation) -> None:
        parent, _, key = operation.path.rpartition("/")
        self._requests.ask("POST", endpoint, parent, json=node_body(operation, key))

    def _read(self, path: str) -> dict[str, Any]:
        response = self._requests.ask("GET", "metadata", path, params={"include_data_sources": True})
        attributes: dict[str, Any] = response.json()["data"]["attributes"]
        return attributes

    def _read_back(self, read: Callable[[], _Reading]) -> _Reading:
        """Read what was written, again and again until several readings in a row have found it.

        Raises
        ------
        ServerError
            They have not within `_READ_BACK_SECONDS`.
        """
        began = time.monotonic()
        found = in_a_row = 0
        while True:
            asked = time.monotonic()
            try:
                reading = read()
            except (Refused, _WrongValues) as error:
                if isinstance(error, Refused) and error.status != 404:
                    raise
                if asked - began > _READ_BACK_SECONDS:
                    self.is_shared = not found
                    raise
                self.lag = max(self.lag, time.monotonic() - began)
                in_a_row = 0
                time.sleep(_READ_BACK_PAUSE_SECONDS)
                continue
            found, in_a_row = found + 1, in_a_row + 1
            if in_a_row == _READINGS_IN_A_ROW:
                return reading

    def _require_values(self, path: str) -> None:
        """Raise `_WrongValues` if what is read back is not what was sent; an append may have been done twice."""
        content = self._requests.ask("GET", "array/full", path, params={"format": _OCTETS}, media_type=_OCTETS).content
        found = numpy.frombuffer(content, "<i8") if len(content) % 8 == 0 else numpy.array([])
        if not len(found) or set(found.tolist()) != {_VALUE}:
            raise _WrongValues(f"{len(found)} values came back, not the one that was sent")

    def _delete(self, path: str) -> str:
        """Delete a node that may not exist, and see that it is gone; return the problem, or ""."""
        try:
            self._requests.ask("DELETE", "metadata", path, params={"external_only": False})
        except Refused as error:
            return "" if error.status == 404 else str(error)
        except ServerError as error:
            return self._find_problem(path, error)
        return ""

    def _find_problem(self, path: str, error: ServerError) -> str:
        """Return the reason why a node is still there; "" if it is gone although the answer was another."""
        try:
            self._requests.ask("GET", "metadata", path)
        except Refused as answer:
            return "" if answer.status == 404 else str(error)
        except ServerError:
            return str(error)
        return str(error)

    def _metadata(self) -> dict[str, Any]:
        return {_MARK: self._describe_maker()}

    def _describe_maker(self) -> dict[str, Any]:
        return {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid(), "array": self._array}


def _is_abandoned(mark: dict[str, Any]) -> bool:
    """Return whether the check that made a node has ended without deleting it, by what the node says of it."""
    if mark.get("host") == socket.gethostname() and not psutil.pid_exists(int(mark.get("pid", 0))):
        return True
    return time.time() - float(mark.get("time", time.time())) > _ABANDONED_SECONDS
