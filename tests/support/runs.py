"""What tests of the whole path share: publishing processes, and reading runs back."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from event_model import compose_run
from warm import start_process

from tiledbroker import ZMQPublisher
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port, journal_of, wait_until


class Acquisition:
    """`acquisition.py` as a process."""

    def __init__(
        self, address: str, directory: Path, *, events: int, delay: float = 0.0, close_timeout: float = 60.0
    ) -> None:
        self.spool = directory / "spool"
        self._witness = directory / "witness"
        script = Path(__file__).with_name("acquisition.py")
        command = [sys.executable, str(script), address, str(self.spool), str(self._witness)]
        self.process = start_process([*command, str(events), str(delay), str(close_timeout)])

    def __enter__(self) -> Acquisition:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def documents(self) -> list[str]:
        """Names of the documents for which the publisher's callback has returned."""
        return [line.split()[0] for line in self._lines()]

    @property
    def run_uid(self) -> str:
        wait_until(self._lines, 60, "the run has started")
        return self._lines()[0].split()[1]

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def _lines(self) -> list[str]:
        if not self._witness.exists():
            return []
        return self._witness.read_text().splitlines()


@dataclass
class NoTiled:
    """Where no Tiled server is: what is delivered stays in the journals."""

    uri: str
    api_key: str = "secret"
    storage: str = "sqlite"


def supervisor_without_tiled(
    journal_dir: Path, *options: str, port: int | None = None, environment: Mapping[str, str] | None = None
) -> SupervisorProcess:
    """A supervisor that takes documents into journals, and waits for Tiled for ever; not started."""
    nowhere = NoTiled(f"http://127.0.0.1:{free_port()}")
    return SupervisorProcess(journal_dir, nowhere, port=port, options=options, environment=environment)  # type: ignore[arg-type]


def documents(events: int = 3, **metadata: Any) -> list[tuple[str, Any]]:
    """A run with a stream of so many events of one number."""
    run = compose_run(metadata=metadata)
    stream = run.compose_descriptor(name="primary", data_keys={"x": {"source": "s", "dtype": "number", "shape": []}})
    rows = [stream.compose_event(data={"x": float(i)}, timestamps={"x": float(i)}) for i in range(events)]
    return [
        ("start", run.start_doc),
        ("descriptor", stream.descriptor_doc),
        *(("event", row) for row in rows),
        ("stop", run.compose_stop()),
    ]


def publish(publisher: ZMQPublisher, emitted: list[tuple[str, Any]]) -> str:
    """Hand a run's documents to a publisher; returns its uid."""
    for name, doc in emitted:
        publisher(name, doc)
    return str(emitted[0][1]["uid"])


def length_of(supervisor: SupervisorProcess, run_uid: str) -> int:
    """How many documents of a run are in its journal."""
    try:
        with journal_of(supervisor.journal_dir, run_uid) as journal:
            return journal.length
    except LookupError:
        return 0


def happenings(journal_dir: Path, run_uid: str) -> list[str]:
    """What has happened to a run, by its journal."""
    try:
        with journal_of(journal_dir, run_uid) as journal:
            return [entry.event for entry in journal.history()]
    except LookupError:
        return []


def wait_for_outcome(journal_dir: Path, run_uid: str, timeout: float = 120.0) -> str:
    """Wait until a run is written, interrupted or failed; returns which."""

    def outcome() -> str:
        try:
            with journal_of(journal_dir, run_uid) as journal:
                return str(journal.get("outcome", ""))
        except LookupError:
            return ""

    wait_until(outcome, timeout, f"run {run_uid} has an outcome")
    return outcome()


def seq_nums(server: TiledServer, run_uid: str, stream: str = "primary") -> list[int]:
    """The sequence numbers of a stream's rows, as Tiled gives them."""
    return [int(n) for n in server.client()[run_uid][stream]["seq_num"].read()]


def metadata(server: TiledServer, run_uid: str) -> dict[str, Any]:
    return dict(server.client()[run_uid].metadata)
