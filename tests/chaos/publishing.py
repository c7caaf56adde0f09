"""An acquisition process: a few runs at a time, and a witness file of all that its publisher has taken.

A line is written to the witness file when the callback has returned: the run, the document's index in it and name, the
checksum of what is to be stored of it, and the time. The document itself is put into a file of its run, in the
directory "published", before the callback is called. Files in the control directory tell the process what to do and
what it does: "hold": begin no further runs; "finish": end those that are open, and then itself; "idle": it has no run
any more, and waits until it is told to "leave"; "degraded": its spool fails; "refused": runs that its publisher says
are refused, and why; "raised": what it raised when asked for its status.
"""

from __future__ import annotations

import json
import logging
import os
import random
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import sleep, time
from typing import Final

from tiledbroker import Encoder, JetStreamPublisher, ZMQPublisher, _crash_points
from tiledbroker.publisher._publisher import SpoolPublisher

from .composing import Document, RunPlan

PUBLISHED: Final = "published"
_FRAME: Final = struct.Struct(">HI")


@dataclass(frozen=True)
class Acquisition:
    """What the process is told.

    Attributes
    ----------
    name
        Of the publisher; None for the name of the host.
    beamline
        For a site's log at this address; "" if an ingest host is there.
    lingers
        Whether it stays when its runs have ended, until it is told to leave: its spool is kept until they are written.
    at_once
        Runs that are open at a time.
    events
        Fewest and most events of a run.
    pace, burst
        Each run has up to `burst` documents in a row, then a pause of `pace` seconds.
    limit
        Runs, each with data of every kind, after which it ends; 0 for no end and runs of any kind.
    crash_at, crash_after
        A crash point that is armed when so many documents have been emitted; "" for none.
    """

    address: str
    spool: str
    witness: str
    files: str
    control: str
    number: int
    seed: str
    at_once: int
    events: tuple[int, int]
    pace: float
    name: str | None = None
    beamline: str = ""
    lingers: bool = False
    burst: int = 1
    limit: int = 0
    crash_at: str = ""
    crash_after: int = 0

    def command(self) -> list[str]:
        return [sys.executable, "-m", __name__, json.dumps(asdict(self))]


class Witness:
    """Writes down what the callback is given, and what it has returned from."""

    def __init__(self, path: Path, published: Path) -> None:
        published.mkdir(exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._published = published
        self._lengths: dict[str, int] = {}
        self.total = 0

    def keep(self, run_uid: str, name: str, body: bytes) -> None:
        """Keep a document that is about to be published, in one write: a process that is killed writes all or none."""
        with (self._published / run_uid).open("ab", buffering=0) as file:
            file.write(_FRAME.pack(len(name), len(body)) + name.encode() + body)

    def add(self, run_uid: str, name: str, checksum: int) -> None:
        index = self._lengths.get(run_uid, 0)
        self._lengths[run_uid] = index + 1
        os.write(self._descriptor, f"{run_uid} {index} {name} {checksum} {time():.3f}\n".encode())
        self.total += 1


def read_published(path: Path) -> list[tuple[str, bytes]]:
    """Names and bodies of a run's documents; the last one may not have got to the callback."""
    content, documents, place = path.read_bytes(), [], 0
    while place < len(content):
        name_length, length = _FRAME.unpack_from(content, place)
        body = place + _FRAME.size + name_length
        documents.append((content[body - name_length : body].decode(), content[body : body + length]))
        place = body + length
    return documents


class OpenRun:
    """A run whose documents are being emitted."""

    def __init__(self, plan: RunPlan, directory: Path) -> None:
        self.plan = plan
        self.uid = ""
        self._documents: Iterator[Document] = plan.documents(directory)

    def next(self) -> Document | None:
        document = next(self._documents, None)
        if document is not None and document[0] == "start":
            self.uid = document[1]["uid"]
        return document


class Session:
    """Emits documents of several runs in turn, until it has emitted all or is told to finish."""

    def __init__(self, given: Acquisition) -> None:
        self._given = given
        self._control = Path(given.control)
        self._chance = random.Random(given.seed)
        self._encoder = Encoder()
        self._witness = Witness(Path(given.witness), self._control / PUBLISHED)
        self._refused: set[tuple[str, str]] = set()
        self._publisher = _make_publisher(given)
        self._runs: list[OpenRun] = []
        self._begun = 0

    def run(self) -> None:
        while True:
            finishing = self._is_told("finish")
            if not (finishing or self._is_told("hold")):
                self._begin_runs()
            for run in list(self._runs):
                run.plan.hurry = finishing
                for _ in range(self._chance.randint(1, self._given.burst)):
                    self._emit(run)
            degraded = self._look()
            self._tell("degraded", on=degraded)
            if not (self._runs or degraded) and (finishing or self._has_begun_all()):
                break
            sleep(self._given.pace)
        if self._given.lingers:
            self._linger()
        self._publisher.close(timeout=60)

    def _linger(self) -> None:
        self._tell("idle", on=True)
        while not self._is_told("leave"):
            self._look()
            sleep(self._given.pace)

    def close(self) -> None:
        """End it as it is."""
        self._publisher.close(timeout=0)

    def _look(self) -> bool:
        """Note what the publisher says of itself; whether documents are in its memory alone."""
        try:
            status = self._publisher.status()
        except Exception as error:
            self._note("raised", f"status() raised {error!r}")
            return True
        for refusal in status.refused.items() - self._refused:
            self._refused.add(refusal)
            self._note("refused", json.dumps(refusal))
        return status.degraded

    def _has_begun_all(self) -> bool:
        """Whether there is a limit, and it is reached: one that is held back has begun no run, and goes on."""
        return 0 < self._given.limit == self._begun

    def _begin_runs(self) -> None:
        given = self._given
        while len(self._runs) < given.at_once and (not given.limit or self._begun < given.limit):
            number = given.number + self._begun
            self._begun += 1
            if given.limit:
                plan = RunPlan.with_everything(number, given.events[1])
            else:
                plan = RunPlan.at_random(number, self._chance, events=given.events)
            self._runs.append(OpenRun(plan, Path(given.files)))

    def _emit(self, run: OpenRun) -> None:
        document = run.next()
        if document is None:
            if run in self._runs:
                self._runs.remove(run)
            return
        body = self._encoder.encode(document[1])
        self._witness.keep(run.uid, document[0], body)
        if self._given.crash_at and self._witness.total >= self._given.crash_after:
            vars(_crash_points)["_AT"] = self._given.crash_at
        self._publisher(*document)
        self._witness.add(run.uid, document[0], zlib.crc32(body))

    def _is_told(self, word: str) -> bool:
        return (self._control / word).exists()

    def _note(self, word: str, line: str) -> None:
        with (self._control / word).open("a") as file:
            file.write(line + "\n")

    def _tell(self, word: str, *, on: bool) -> None:
        if on:
            (self._control / word).touch()
        else:
            (self._control / word).unlink(missing_ok=True)


def _make_publisher(given: Acquisition) -> SpoolPublisher:
    if given.beamline:
        return JetStreamPublisher(
            given.address, beamline=given.beamline, spool_dir=given.spool, name=given.name, on_error="raise"
        )
    return ZMQPublisher(given.address, spool_dir=given.spool, name=given.name, on_error="raise")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s %(message)s")
    options = json.loads(sys.argv[1])
    Session(Acquisition(**{**options, "events": tuple(options["events"])})).run()
