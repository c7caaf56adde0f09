"""Runs that tests write by operations, through a proxy, with a journal that one catalog after another continues."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pyarrow

from tiledwriter._errors import NodeRewound
from tiledwriter.catalog import Decisions
from tiledwriter.catalog._catalog import TiledCatalog
from tiledwriter.catalog._connection import Connection
from tiledwriter.mapping._operations import AppendRows, Audit, Column, ColumnDigest, CreateContainer, CreateTable
from tiledwriter.testing import wait_until

QUIET_PERIOD_SECONDS = 0.3
COLUMNS = (Column("seq_num", "int64"), Column("time", "float64"), Column("x", "float64"))
BY_SEQ_NUM = ("seq_num", "time")
STOP = {"stop": {"uid": "the stop", "exit_status": "success"}}


class Run:
    """A run of its own on the server, whose catalogs share one journal as those of one worker after another do."""

    def __init__(self, proxy, api_key, journal, decision_store=None):
        self.uid = journal.run_uid
        self.journal = journal
        self.decisions = Decisions(journal, decision_store)
        self.table = f"{self.uid}/primary/internal"
        self.proxy = proxy
        self._api_key = api_key

    @contextmanager
    def catalog(self, *, poison_after=5.0, quiet_period=QUIET_PERIOD_SECONDS, stopping=None):
        with self.proxy.client(self._api_key) as client:
            stopping = stopping or threading.Event()
            connection = Connection(lambda: client, stopping, self.journal.note, poison_after=poison_after)
            self.decisions.load()
            yield TiledCatalog(connection, self.journal, self.decisions, quiet_period=quiet_period)

    def apply(self, *operations, **options):
        """By a new catalog, until nothing waits."""
        with self.catalog(**options) as catalog:
            finish(catalog, operations)

    def write(self, *operations, **options):
        """By a new catalog, from the beginning again whenever a node is rewound, as the writing thread does."""
        with self.catalog(**options) as catalog:
            write(catalog, operations)

    def audit(self, stop):
        digest = ColumnDigest()
        digest.add(pyarrow.array(range(stop), pyarrow.int64()))
        return Audit(self.table, stop, (("seq_num", digest.value), ("time", None)))

    def containers(self):
        start = {"uid": self.uid, "time": 0.0}
        return [
            CreateContainer(self.uid, {"start": start}, (("BlueskyRun", "3.0"),), None, ("start", "uid")),
            CreateContainer(f"{self.uid}/primary", {"uid": f"descriptor-{self.uid}"}, (), None, ("uid",)),
        ]

    def with_table(self):
        return [*self.containers(), CreateTable(self.table, COLUMNS, BY_SEQ_NUM)]

    def append(self, first, stop):
        return rows(self.table, first, stop)

    def events(self):
        return [entry.event for entry in self.journal.history()]

    @property
    def progress(self):
        return self.journal.progress()


def rows(path, first, stop):
    """Rows of a table, each with its number in every column."""
    numbers = list(range(first, stop))
    return AppendRows(path, first, COLUMNS, (numbers, [float(n) for n in numbers], [n / 2 for n in numbers]))


def npy_files(directory, count, *, row_length):
    """The data source of a sequence of NumPy files, 00000.npy and so on, each with one row of numbers."""
    structure = {
        "data_type": {"endianness": "little", "kind": "f", "itemsize": 8, "dt_units": None},
        "shape": [count, row_length],
        "chunks": [[1] * count, [row_length]],
        "dims": None,
        "resizable": False,
    }
    assets = [
        {
            "data_uri": f"file://localhost{directory}/{i:05}.npy",
            "is_directory": False,
            "parameter": "data_uris",
            "num": i,
        }
        for i in range(count)
    ]
    return {
        "structure_family": "array",
        "mimetype": "multipart/related;type=application/x-npy",
        "structure": structure,
        "parameters": {},
        "properties": {},
        "assets": assets,
        "management": "external",
    }


def finish(catalog, operations):
    """Apply operations until none waits, as the writing thread does."""
    waiting = catalog.apply(operations)

    def done():
        waiting[:] = catalog.apply(waiting) if waiting else []
        return not waiting

    wait_until(done, 120, "nothing waits")


def write(catalog, operations):
    """Apply operations, and all of them again whenever a node is rewound, as the writing thread does."""
    while True:
        try:
            finish(catalog, operations)
        except NodeRewound:
            continue
        return


def stopped(journal):
    """Give a journal documents that end with a stop."""
    journal.append_one("stop", b"")
