"""Runs a campaign of faults against the whole product on this machine, and says what became of every document.

Real acquisition processes publish runs through a TCP proxy to a real supervisor, whose workers write to a real Tiled
server through an HTTP proxy; processes are killed and stopped, cables cut, answers dropped, disks filled, logs damaged
and put back, ingest hosts replaced. Prints a table with a line per kind of fault. Exits with 1 if anything is lost,
doubled, out of order, removed, at a wrong destination, or wrong without a word. SIGTERM ends the faults early, and
what was done until then is judged.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(ROOT / "tests"),
    str(ROOT / "tests/support"),
]  # before this file's own directory: it has the name of the package

from chaos.campaign import Campaign, Options  # noqa: E402
from chaos.kinds import KINDS, kinds_of  # noqa: E402
from chaos.site import Setting  # noqa: E402


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser("chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--seed", type=int, default=1, help="of the faults and the runs (default 1)")
    result.add_argument("--runs", type=int, default=4, help="runs that are open at a time (default 4)")
    result.add_argument("--minutes", type=float, default=20.0, help="for which faults are injected (default 20)")
    result.add_argument("--storage", choices=("sqlite", "postgresql"), default="sqlite", help="of Tiled's tables")
    result.add_argument("--servers", type=int, default=1, help="Tiled processes, with PostgreSQL (default 1)")
    result.add_argument(
        "--source",
        choices=("zeromq", "jetstream"),
        default="zeromq",
        help="one ingest host, or a site's log in NATS JetStream that several ingest hosts read (default zeromq)",
    )
    result.add_argument("--nodes", type=int, default=3, help="of the site's log (default 3)")
    result.add_argument("--hosts", type=int, default=3, help="ingest hosts that read the site's log (default 3)")
    result.add_argument("--publishers", type=int, help="with at least a run each (default: one for two runs)")
    result.add_argument("--interval", type=float, default=2.5, help="seconds between two faults (default 2.5)")
    result.add_argument("--only", action="append", choices=sorted(KINDS), metavar="KIND", help="kinds of faults")
    result.add_argument("--http", type=int, metavar="PORT", help="where the supervisor has its status page")
    result.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    result.add_argument("--directory", type=Path, help="where everything is kept (default: a temporary one)")
    return result


def main() -> int:
    given = parser().parse_args()
    if given.servers > 1 and given.storage != "postgresql":
        parser().error("several servers need --storage postgresql")
    if other := set(given.only or ()) - set(kinds_of(given.source)):
        parser().error(f"with --source {given.source}, there are no faults of kind {', '.join(sorted(other))}")
    logging.getLogger("tiledbroker").setLevel(logging.CRITICAL)
    directory = given.directory or Path(tempfile.mkdtemp(prefix="chaos-")) / "campaign"
    setting = Setting(
        directory.absolute(),
        given.seed,
        given.runs,
        given.storage,
        given.servers,
        http=given.http,
        source=given.source,
        nodes=given.nodes,
        hosts=given.hosts,
        publishers=given.publishers,
    )
    options = Options(setting, 60 * given.minutes, given.interval, tuple(given.only or ()))
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - began:6.0f} s] {line}", flush=True)

    tell(f"Seed {given.seed}; everything is in {directory}, what happens when in {directory / 'timeline.jsonl'}.")
    campaign = Campaign(options, tell)

    def stop_early(_number: int, _frame: object) -> None:
        tell("No further faults; everything comes to rest and is judged.")
        campaign.stop()

    # Not SIGINT: with Ctrl-C, all that runs gets it.
    signal.signal(signal.SIGTERM, stop_early)
    report = campaign.run()
    print(*report.lines(), sep="\n")
    if given.json:
        given.json.write_text(json.dumps(report.as_json(), indent=1))
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
