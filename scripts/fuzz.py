"""Feeds damaged and hostile bytes to one kind of input for some minutes, and says what came of it.

Coverage decides which bytes are tried next (atheris, libFuzzer). An input that ends otherwise than documented, that
takes processor time or memory out of proportion, or that ends the process is kept in `found`; the campaign goes on
with the next. Exits with 1 if there is any. What was found belongs in tests/fuzz/crashers.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import atheris
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(ROOT / "tests"),
    str(ROOT / "tests/support"),
]  # before this file's own directory: it has the name of the package

MAX_BYTES: Final = {"frames": 4096, "codec": 4096, "fold": 16384, "journal": 24576}
HANG: Final = 30  # seconds
ADDRESS_SPACE: Final = 2**30  # beyond what the process has when it begins
FLOOR: Final = 10.0  # seconds after which memory is measured for the first time: all is imported, the corpus is read


@dataclass
class Figures:
    """What one process has done; see docs/contributing/run-a-fuzz-campaign.md."""

    executions: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    memory_at_begin: int = 0
    memory_at_end: int = 0
    memory_at_most: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)


class Fuzzing:
    """The inside of a campaign: gives inputs to the target until it is time."""

    def __init__(self, target: str, directory: Path, seconds: float) -> None:
        with atheris.instrument_imports(include=["tiledbroker", "tiledwriter"]):
            from fuzz import mutations, targets
        logging.disable()  # what is told of each input would be all there is to read
        self._targets = targets
        self._mutated = mutations.mutated
        self._target = target
        self._directory = directory
        self._seconds = seconds
        self._process = psutil.Process()
        self._figures = Figures()
        self._began = time.monotonic()
        self._tell_at = 1.0

    def run(self) -> None:
        self._limit_memory(self._process.memory_info().vms + ADDRESS_SPACE)
        size = MAX_BYTES[self._target]
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_len={size}",
                f"-timeout={HANG}",
                "-rss_limit_mb=0",
                "-len_control=0",
                "-keep_seed=1",
                f"-artifact_prefix={self._directory / 'found'}/",
                str(self._directory / "corpus"),
            ],
            self._one,
            custom_mutator=self._mutate,
        )
        atheris.Fuzz()

    def _limit_memory(self, size: int) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size, most))

    def _mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        return self._mutated(self._target, bytes(data), seed, atheris.Mutate, max_size)

    def _one(self, data: bytes) -> None:
        figures = self._figures
        began = time.process_time()
        try:
            self._targets.check(self._targets.TARGETS[self._target], data)
        except BaseException:
            self._limit_memory(resource.RLIM_INFINITY)  # for the report
            self._tell()
            raise
        spent = time.process_time() - began
        figures.executions += 1
        if spent > figures.slowest:
            figures.slowest = spent
            (self._directory / "slowest").write_bytes(data)
        figures.seconds = time.monotonic() - self._began
        if figures.seconds >= self._tell_at:
            self._tell_at = figures.seconds + 1.0
            self._tell()
        if figures.seconds >= self._seconds:
            self._tell()
            os._exit(0)

    def _tell(self) -> None:
        figures = self._figures
        figures.memory_at_end = self._process.memory_info().rss
        if not figures.memory_at_begin or figures.seconds < FLOOR:
            figures.memory_at_begin = figures.memory_at_end
        figures.memory_at_most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        figures.outcomes = dict(self._targets.outcomes)
        draft = self._directory / "figures.draft"
        draft.write_text(json.dumps(asdict(figures)))
        draft.rename(self._directory / "figures.json")


class Campaign:
    """Runs processes that fuzz, one after the other should they end before their time."""

    def __init__(self, target: str, seconds: float, directory: Path) -> None:
        self._target = target
        self._seconds = seconds
        self._directory = directory
        self._all: list[Figures] = []

    def run(self) -> dict[str, Any]:
        from fuzz.seeds import inputs

        for name in ("corpus", "found"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        for name, data in inputs(self._target).items():
            (self._directory / "corpus" / name.replace(" ", "-")).write_bytes(data)
        while (left := self._seconds - self._spent()) > 0.5:
            self._fuzz(left)
        return self._report()

    def _spent(self) -> float:
        return sum(figures.seconds for figures in self._all)

    def _fuzz(self, seconds: float) -> None:
        told = self._directory / "figures.json"
        told.unlink(missing_ok=True)
        command = [sys.executable, __file__, self._target, "--inside", str(self._directory), "--seconds", str(seconds)]
        with (self._directory / "log").open("ab") as log:
            subprocess.run(command, stdout=log, stderr=log, check=False)
        figures = Figures(**json.loads(told.read_text())) if told.exists() else Figures()
        figures.seconds = max(figures.seconds, 1.0)
        self._all.append(figures)

    def _report(self) -> dict[str, Any]:
        executions = sum(figures.executions for figures in self._all)
        outcomes: Counter[str] = Counter()
        for figures in self._all:
            outcomes.update(figures.outcomes)
        last = self._all[-1]
        corpus = list((self._directory / "corpus").iterdir())
        return {
            "target": self._target,
            "executions": executions,
            "seconds": round(self._spent(), 1),
            "executions_per_second": round(executions / self._spent(), 1),
            "slowest_input_ms": round(1000 * max(figures.slowest for figures in self._all), 1),
            "memory_at_begin_MiB": round(last.memory_at_begin / 2**20, 1),
            "memory_at_end_MiB": round(last.memory_at_end / 2**20, 1),
            "memory_at_most_MiB": round(max(figures.memory_at_most for figures in self._all) / 2**20, 1),
            "corpus_inputs": len(corpus),
            "corpus_bytes": sum(path.stat().st_size for path in corpus),
            "outcomes": dict(outcomes.most_common()),
            "found": sorted(str(path) for path in (self._directory / "found").iterdir()),
        }


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser("fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("target", choices=sorted(MAX_BYTES), help="what takes the input")
    result.add_argument("--minutes", type=float, default=10.0, help="how long (default 10)")
    result.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    result.add_argument("--directory", type=Path, help="where everything is kept (default: a temporary one)")
    result.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    result.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return result


def main() -> int:
    given = parser().parse_args()
    if given.inside is not None:
        Fuzzing(given.target, given.inside, given.seconds).run()
    directory = given.directory or Path(tempfile.mkdtemp(prefix=f"fuzz-{given.target}-"))
    print(f"Everything is in {directory}.", flush=True)
    report = Campaign(given.target, 60 * given.minutes, directory.absolute()).run()
    for name, value in report.items():
        print(f"{name}: {value}")
    if given.json:
        given.json.write_text(json.dumps(report, indent=1))
    return 1 if report["found"] else 0


if __name__ == "__main__":
    sys.exit(main())
