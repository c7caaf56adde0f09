"""A publisher in a process of its own, whose memory is measured: opens as many runs as it reads, line by line.

Prints how many bytes the process has, before it has imported tiledbroker and after all documents of each step are
durable, and the uids of the runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.documents import run_of


def main() -> None:
    address, spool, events = sys.argv[1:]
    before = _own_memory()
    from tiledbroker import ZMQPublisher

    publisher = ZMQPublisher(address, spool_dir=spool, on_error="raise")
    uids: list[str] = []
    for line in sys.stdin:
        while len(uids) < int(line):
            *most, _stop = run_of(int(events))
            for name, doc in most:
                publisher(name, doc)
            uids.append(str(most[0][1]["uid"]))
        assert publisher.flush(300)
        print(json.dumps({"runs": uids, "own": _own_memory() - before}), flush=True)
    publisher.close(timeout=0)


def _own_memory() -> int:
    return int(psutil.Process().memory_full_info().uss)


if __name__ == "__main__":
    main()
