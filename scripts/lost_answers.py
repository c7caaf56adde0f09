"""Drops the answers of appends after Tiled has carried them out, and counts the rows: ours, and bluesky-tiled-plugins'.

Run it with the environment of `./scripts/compare`. Prints a table, for docs/explanations/exactly-once.md. In "answer
lost", every append loses its first answer. In "zombie", every tenth one is answered with 504 and carried out three
seconds later, which is longer than our quiet period here. With "+ reader", somebody reads the table all the time.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/support")]
warnings.filterwarnings("ignore")  # of the packages around us, meant for their developers

from faulty_proxy import CUT_AFTER, PASS, Fault, FaultyProxy, zombie  # noqa: E402
from lost_answers import (  # noqa: E402
    Documents,
    judge,
    run_of,
    seq_nums,
    uid_of,
    write_journal,
    write_ours,
    write_theirs,
)

from tiledbroker import Journal  # noqa: E402
from tiledwriter.testing import Storage, TiledServer, wait_until  # noqa: E402

OURS = "ours"
THEIRS = "bluesky-tiled-plugins"
PLACES: dict[str, tuple[Storage, bool]] = {
    "sqlite": ("sqlite", False),
    "postgresql": ("postgresql", False),
    "duckdb": ("duckdb", False),
    "duckdb+reader": ("duckdb", True),
}


@dataclass(frozen=True)
class Case:
    """Faults of one kind, which requests to one kind of storage meet."""

    place: str
    fault: str
    events: int

    def faults(self, writer: str) -> list[Fault]:
        """What becomes of each append, and of each that is sent again: ours sends no append again that was done."""
        if self.fault == "zombie":
            return [*[PASS] * 8, zombie(3.0), PASS] * (self.events // 10)
        return ([CUT_AFTER] if writer == OURS else [CUT_AFTER, PASS]) * self.events

    def tell(self, writer: str, found: list[int], outcome: str = "", repairs: str = "") -> None:
        """Print a line of the table."""
        lost, doubled, ordered = judge(found, self.events)
        row = f"{self.place:<14} {self.fault:<12} {writer:<22} {self.events:>7} {lost:>6} {doubled:>8}"
        print(f"{row} {'yes' if ordered else 'no':>9} {repairs:>8}  {outcome}", flush=True)


@contextmanager
def reader(server: TiledServer, path: str, *, busy: bool) -> Iterator[None]:
    """Reads a table over and over, as a plot does."""
    stopping = threading.Event()

    def read() -> None:
        while not stopping.is_set():
            with suppress(Exception), client_of(server.uri, server) as client:
                while not stopping.is_set():
                    client[path].read()

    thread = threading.Thread(target=read)
    if busy:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        if busy:
            thread.join()


@contextmanager
def client_of(uri: str, server: TiledServer) -> Iterator[Any]:
    from tiled.client import from_uri

    client = from_uri(uri, api_key=server.api_key)
    with closing(client.context.http_client):
        yield client


@contextmanager
def kept_running(server: TiledServer) -> Iterator[None]:
    """The server, and a service manager's part in it: DuckDB's server crashes now and then."""
    stopping = threading.Event()

    def keep() -> None:
        while not stopping.wait(0.2):
            if not server.running:
                server.kill()
                server.start()

    keeper = threading.Thread(target=keep)
    with server:
        keeper.start()
        try:
            yield
        finally:
            stopping.set()
            keeper.join()


def measure(case: Case, directory: Path) -> None:
    storage, busy = PLACES[case.place]
    server = TiledServer(directory, storage=storage)
    with kept_running(server):
        for writer, write in ((OURS, measure_ours), (THEIRS, measure_theirs)):
            documents = run_of(case.events)
            with FaultyProxy(server.uri) as proxy:
                proxy.script("PATCH", "table/partition", *case.faults(writer))
                with reader(server, f"{uid_of(documents)}/primary/internal", busy=busy):
                    write(case, documents, server, proxy)


def measure_ours(case: Case, documents: Documents, server: TiledServer, proxy: FaultyProxy) -> None:
    """A run, and its late audit once nothing is under way any more."""
    place = server.log.parent
    with proxy.client(server.api_key) as client:
        outcome = write_ours(client, documents, place)
        proxy.wait_for_late_requests()
        with Journal(place / f"{uid_of(documents)}.sqlite", "write") as journal:
            repairs = repairs_of(journal)
            case.tell(OURS, stored(server, documents), outcome, f"{repairs}")
            if journal.get("audit_at") is not None:
                outcome = write_journal(client, journal)
                case.tell(f"{OURS}, late audit", stored(server, documents), outcome, f"{repairs_of(journal) - repairs}")


def measure_theirs(case: Case, documents: Documents, server: TiledServer, proxy: FaultyProxy) -> None:
    with client_of(proxy.uri, server) as client:
        write_theirs(client, documents)
    proxy.wait_for_late_requests()
    case.tell(THEIRS, stored(server, documents))


def repairs_of(journal: Journal) -> int:
    """How often a node did not hold what was sent, and was written anew."""
    return sum(entry.event == "repairing" for entry in journal.history())


def stored(server: TiledServer, documents: Documents) -> list[int]:
    wait_until(lambda: server.running and server.ready(), 60, "the server is well")
    return seq_nums(server.client(), documents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200, help="of each run (default 200)")
    parser.add_argument(
        "--only", action="append", choices=list(PLACES), help="this storage; may be given several times"
    )
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(
        f"{'storage':<14} {'fault':<12} {'writer':<22} {'events':>7} {'lost':>6} {'doubled':>8} {'in order':>9} "
        f"{'repairs':>8}  outcome",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="tiledwriter-lost-") as directory:
        os.environ["TILED_CACHE_DIR"] = f"{directory}/cache"
        for place in arguments.only or PLACES:
            for fault in ("answer lost", "zombie"):
                case = Case(place, fault, arguments.events)
                measure(case, Path(directory) / f"{place}-{fault.replace(' ', '-')}")


if __name__ == "__main__":
    main()
