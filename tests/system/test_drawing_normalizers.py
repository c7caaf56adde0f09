"""Workers are killed while a normalizer draws uids: the runs end as they would have without."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from runs import documents, happenings, publish

from tiledbroker import ZMQPublisher
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of

KILLS = 12
EVENTS = 12
DOCUMENTS = EVENTS + 3

UID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")

# As facilities write them: a stream of its own, with uids and times that it draws, and a note.
LAB = """
import os, signal, threading, time, uuid
from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer


def kill_once(place, seconds):
    try:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    if seconds:
        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
    else:
        kill()


class Drawing(RunNormalizer):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen = self.rows = 0
        self.kill = None

    def __call__(self, name, doc, *rest, **options):
        if name == "start":
            self.kill = doc.get("kill")
        if self.kill and self.seen == self.kill["at"]:
            kill_once(self.kill["place"], self.kill["seconds"])
        self.seen += 1
        return super().__call__(name, doc, *rest, **options)

    def start(self, doc):
        self.run = doc["uid"]
        super().start({**doc, "drawn": str(uuid.uuid4())})

    def descriptor(self, doc):
        super().descriptor(doc)
        key = {"source": "lab", "dtype": "number", "dtype_numpy": "<i8", "shape": []}
        self.lab = str(uuid.uuid4())
        self.emit_lab("descriptor", {
            "uid": self.lab, "run_start": self.run, "time": time.time(), "name": "lab", "data_keys": {"n": key},
            "object_keys": {}, "configuration": {}, "hints": {},
        })

    def event(self, doc):
        super().event(doc)
        self.rows += 1
        now = time.time()
        self.emit_lab("event", {
            "uid": str(uuid.uuid4()), "descriptor": self.lab, "time": now, "seq_num": self.rows,
            "data": {"n": self.rows * 10}, "timestamps": {"n": now}, "filled": {},
        })

    def emit_lab(self, name, doc):
        from event_model import DocumentNames

        self.emit(DocumentNames[name], doc)

    def stop(self, doc):
        self.notes.append(f"{self.rows} rows of the lab, drawn as {uuid.uuid4()}")
        super().stop(doc)
"""


def masked(value: Any) -> Any:
    """The same with a letter for each uid, and none of what a run is killed by."""
    if isinstance(value, Mapping):
        return {key: masked(item) for key, item in value.items() if key not in {"kill", "time"}}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return UID.sub("U", value) if isinstance(value, str) else value


def contents(tiled: Any, run_uid: str) -> dict[str, Any]:
    """Nodes, rows and metadata of a run in Tiled, uids and drawn times left out."""
    run = tiled[run_uid]
    found: dict[str, Any] = {"run": masked(run.metadata)}
    for name in run:
        stream = run[name].base
        table = stream["internal"].read()
        columns = {str(key): table[key].tolist() for key in table if key not in {"time", "ts_n", "ts_x"}}
        found[name] = (masked(stream.metadata), list(stream), columns)
    return found


def drawn_first(journal_dir: Path, run_uid: str) -> dict[str, Any]:
    """What the normalizer drew when it saw each document for the first time, by the run's journal."""
    with journal_of(journal_dir, run_uid) as journal:
        results = [journal.decode_result(body) for _, body in sorted(journal.read_normalized(0, 1_000).items())]
    emitted = [(name, document) for result in results for name, document in result["documents"]]
    labs = [document for name, document in emitted if name == "descriptor" and document["name"] == "lab"]
    return {
        "run": next(document["drawn"] for name, document in emitted if name == "start"),
        "descriptor": labs[0]["uid"],
        "times": [document["time"] for name, document in emitted if "n" in document.get("data", ())],
        "note": next(note for result in results for note in result["notes"]),
    }


def in_tiled(tiled: Any, run_uid: str) -> dict[str, Any]:
    run = tiled[run_uid]
    return {
        "run": run.metadata["start"]["drawn"],
        "descriptor": run["lab"].metadata["uid"],
        "times": run["lab"].base["internal"].read()["time"].tolist(),
        "note": run.metadata["notes"][0],
    }


@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(300)
def test_runs_are_as_without_kills_though_their_normalizer_draws_uids(
    tmp_path: Path, tiled_server: TiledServer, publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    (tmp_path / "lab_that_draws.py").write_text(LAB)
    config = tmp_path / "config.yaml"
    config.write_text("normalizer: lab_that_draws:Drawing\nquiet_period: 0.3\nlate_audit: 0.1\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    chance = random.Random("drawing")
    supervisor = SupervisorProcess(
        tmp_path / "journals", tiled_server, options=["--config", str(config)], environment=environment
    )
    with supervisor:
        publisher = publisher_to(supervisor)
        undisturbed = publish(publisher, documents(EVENTS))
        killed: list[str] = []
        at_once: list[str] = []
        for number in range(KILLS):
            # At once, before the result is recorded, or while it is recorded and written.
            seconds = chance.choice([0, chance.uniform(0, 0.2)])
            kill = {"at": chance.randrange(DOCUMENTS), "place": str(tmp_path / f"died-{number}"), "seconds": seconds}
            killed.append(publish(publisher, documents(EVENTS, kill=kill)))
            at_once += [] if seconds else killed[-1:]
        for run_uid in [undisturbed, *killed]:
            assert publisher.wait_written(run_uid, timeout=120)
    assert len(list(tmp_path.glob("died-*"))) == KILLS
    assert all(happenings(supervisor.journal_dir, run_uid).count("worker started") > 1 for run_uid in at_once)
    tiled = tiled_server.client()
    expected = contents(tiled, undisturbed)
    assert expected["lab"][2]["n"] == [10 * (number + 1) for number in range(EVENTS)]
    for run_uid in killed:
        assert contents(tiled, run_uid) == expected
        assert in_tiled(tiled, run_uid) == drawn_first(supervisor.journal_dir, run_uid)
