"""Drops the answers of appends after Tiled has carried them out, and counts the rows: ours, and bluesky-tiled-plugins'.

Run it with the environment of `./scripts/compare`. Prints a table, for docs/explanations/exactly-once.md.
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
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
warnings.filterwarnings("ignore")  # of the packages around us, meant for their developers

from faulty_proxy import CUT_AFTER, PASS, FaultyProxy, zombie  # noqa: E402
from lost_answers import judge, run_of, seq_nums, uid_of, write_ours, write_theirs  # noqa: E402

from tiledwriter.testing import TiledServer, wait_until  # noqa: E402


@contextmanager
def reader(server: TiledServer, path: str, *, busy: bool) -> Iterator[None]:
    """Reads a table over and over, as a plot does."""
    stopping = threading.Event()

    def read() -> None:
        from tiled.client import from_uri

        client = from_uri(server.uri, api_key=server.api_key)
        while not stopping.is_set():
            with suppress(Exception):
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


def keep_running(server: TiledServer, stopping: threading.Event) -> None:
    """As a service manager does: DuckDB's server crashes now and then."""
    while not stopping.wait(0.2):
        if not server.running:
            server.kill()
            server.start()


def measure(storage: str, fault: str, events: int, directory: Path, *, busy: bool) -> None:
    with TiledServer(directory, storage=storage) as server:
        stopping = threading.Event()
        keeper = threading.Thread(target=keep_running, args=(server, stopping))
        keeper.start()
        try:
            for writer in ("ours", "bluesky-tiled-plugins"):
                documents = run_of(events)
                with FaultyProxy(server.uri) as proxy, proxy.client(server.api_key) as client:
                    faults = [CUT_AFTER] * events if fault == "answer lost" else [PASS, zombie(3.0)] * (events // 10)
                    proxy.script("PATCH", "table/partition", *faults)
                    with reader(server, f"{uid_of(documents)}/primary/internal", busy=busy):
                        if writer == "ours":
                            write_ours(client, documents, directory)
                        else:
                            write_theirs(client, documents)
                    proxy.wait_for_late_requests()
                wait_until(lambda: server.running and server.ready(), 60, "the server is well")
                lost, doubled, ordered = judge(seq_nums(server.client(), documents), events)
                row = f"{storage + (' + reader' if busy else ''):<18} {fault:<14} {writer:<22} {events:>7} {lost:>6}"
                print(f"{row} {doubled:>8} {'yes' if ordered else 'no':>9}", flush=True)
        finally:
            stopping.set()
            keeper.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(f"{'storage':<18} {'fault':<14} {'writer':<22} {'events':>7} {'lost':>6} {'doubled':>8} {'in order':>9}")
    with tempfile.TemporaryDirectory(prefix="tiledwriter-lost-") as directory:
        os.environ["TILED_CACHE_DIR"] = f"{directory}/cache"
        for number, (storage, busy) in enumerate(
            [("sqlite", False), ("postgresql", False), ("duckdb", False), ("duckdb", True)]
        ):
            for fault in ("answer lost", "zombie"):
                place = Path(directory) / f"{number}-{fault.replace(' ', '-')}"
                measure(storage, fault, arguments.events, place, busy=busy)


if __name__ == "__main__":
    main()
