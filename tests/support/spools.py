"""Documents for spools, and reading them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiledbroker import SpooledRun, decode
from tiledbroker.log._run_log import RunLog
from tiledbroker.log._segment import SEGMENT_SUFFIX, read_header
from tiledbroker.publisher._spool import Spool


def start(spool: Spool, run: str) -> None:
    spool.append("start", {"uid": run})
    spool.append("descriptor", {"uid": f"descriptor of {run}", "run_start": run})


def event(spool: Spool, run: str, number: int, **values: Any) -> None:
    spool.append("event", {"descriptor": f"descriptor of {run}", "seq_num": number, **values})


def stop(spool: Spool, run: str) -> None:
    spool.append("stop", {"run_start": run})


def on_disk(directory: Path, run: str) -> list[dict[str, Any]]:
    """The documents of a run that another process would find, all of them sound."""
    while True:
        try:
            for path in sorted(directory.glob(f"*{SEGMENT_SUFFIX}")):
                header, _ = read_header(path)
                if header is not None and header.run == run:
                    with SpooledRun(path) as spooled:
                        assert spooled.damage() == []
                        return [decode(record.body) for record in spooled.records()]
            return []
        except FileNotFoundError:
            continue  # it has been named after its run this instant


def seq_nums(run: RunLog, *, growing: bool = False) -> list[int]:
    """Numbers of the events of a run, as the shipper would read them."""
    numbers = []
    index = run.first
    while records := run.read(index, 1000, 2**20):
        for record in records:
            assert record.idx == index
            index += 1
            if record.name == "event":
                numbers.append(decode(record.body)["seq_num"])
    assert growing or index == run.length
    return numbers
