"""At every point between two durable steps a process is killed, once; what follows makes the run complete all the same.

Whoever runs the service restarts it: the supervisor is started again, and the acquisition process has a successor on
its spool.
"""

from __future__ import annotations

import re
import signal
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from chaos.composing import RunPlan
from chaos.publishing import Acquisition
from chaos.referee import Emitted, Referee
from chaos.site import publishing_environment, read_witness

import tiledbroker
import tiledwriter
from tiledbroker import Encoder, ZMQPublisher, run_files
from tiledbroker._crash_points import POINTS
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until

EVENTS = 8
KILLED_IN_PUBLISHER = [point for point in POINTS if point.startswith(("publisher", "shipper"))]
# Runs of several segments are killed there in the tests of what sessions leave.
KILLED_IN_SPOOL = [point for point in POINTS if point.startswith("spool")]
FILING = ["supervisor: journal filed away", "supervisor: journal brought back"]  # see test_finished.py
KILLED_BEHIND = [point for point in POINTS if point not in KILLED_IN_PUBLISHER + KILLED_IN_SPOOL + FILING]


class Service:
    """A supervisor that dies at a crash point, or whose workers do, and is started again as systemd would."""

    def __init__(self, directory: Path, server: TiledServer, point: str = "") -> None:
        self.died = directory / "died"
        environment = {
            "TILEDWRITER_QUIET_PERIOD": "0.3",
            "TILEDWRITER_LATE_AUDIT": "0.1",
            "TILEDWRITER_MAX_ARRAY_SIZE": "0",  # no time for asking SQLite whether it takes lists
        }
        if point == "writing: normalized documents recorded":
            # What is named in the configuration is recorded, also if it is our own.
            environment["TILEDWRITER_NORMALIZER"] = "tiledwriter:RunNormalizer"
        if point:
            environment |= {"TILEDWRITER_CRASH_AT": point, "TILEDWRITER_CRASH_ONCE": str(self.died)}
        self.process = SupervisorProcess(directory / "journals", server, environment=environment)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        def revived() -> object:
            if not self.process.running:
                self.process.kill()  # which only closes its log
                self.process.start()
            return condition()

        try:
            wait_until(revived, 120, what)
        except TimeoutError as error:
            pytest.fail(f"{error}; the supervisor's log:\n{self.process.log.read_text()}")

    def wait_for_outcome(self, run_uid: str) -> str:
        def outcome() -> str:
            try:
                with journal_of(self.process.journal_dir, run_uid) as journal:
                    return "" if journal.get("audit_at") else journal.get("outcome", "")
            except LookupError:
                return ""

        self.wait(outcome, f"run {run_uid} has an outcome")
        return outcome()

    def has_rows(self, node: str) -> bool:
        """Whether Tiled has confirmed some."""
        try:
            with journal_of(self.process.journal_dir, node.partition("/")[0]) as journal:
                progress = journal.progress().get(node)
                return progress is not None and progress.rows > 0
        except LookupError:
            return False


@pytest.fixture
def referee(tmp_path: Path, tiled_server: TiledServer) -> Iterator[Referee]:
    with closing(Referee(tmp_path / "journals", tiled_server.uri, tiled_server.api_key)) as referee:
        yield referee


@pytest.mark.parametrize("point", KILLED_BEHIND)
def test_a_run_is_complete_though_its_supervisor_or_worker_was_killed(
    point: str, tmp_path: Path, tiled_server: TiledServer, referee: Referee
) -> None:
    service = Service(tmp_path, tiled_server, point)
    encoder = Encoder()
    emitted: list[Emitted] = []
    with service.process, closing(ZMQPublisher(service.process.address, spool_dir=tmp_path / "spool")) as publisher:
        run_uid = ""
        for name, document in RunPlan.with_everything(1, EVENTS).documents(tmp_path):
            run_uid = run_uid or document["uid"]
            if name == "event" and document["seq_num"] == EVENTS - 3 and len(emitted) > EVENTS:
                # What comes now widens a column of the table, which has to be there.
                service.wait(lambda: service.has_rows(f"{run_uid}/primary/internal"), "rows are in Tiled")  # noqa: B023
            emitted.append(Emitted(name, zlib.crc32(encoder.encode(document)), 0.0))
            publisher(name, document)
        assert service.wait_for_outcome(run_uid) == "written"
        service.wait(lambda: publisher.flush(0) and not run_files(tmp_path / "spool"), "all is shipped")
    assert service.died.exists()
    verdict = referee.judge(run_uid, emitted)
    assert verdict.clean, str(verdict)
    assert (verdict.durable, verdict.rows.found) == (len(emitted), verdict.rows.expected)


@pytest.mark.parametrize("point", KILLED_IN_PUBLISHER)
def test_what_a_killed_publisher_has_taken_is_shipped_by_its_successor(
    point: str, tmp_path: Path, tiled_server: TiledServer, referee: Referee
) -> None:
    service = Service(tmp_path, tiled_server)
    witness = tmp_path / "witness"
    with service.process:
        for crash_at in (point, ""):
            given = Acquisition(
                address=service.process.address,
                spool=str(tmp_path / "spool"),
                witness=str(witness),
                files=str(tmp_path),
                control=str(tmp_path),
                number=1,
                seed="",
                at_once=1,
                events=(EVENTS, EVENTS),
                pace=0.1,  # there is time for what is done four times a second
                limit=1,
                crash_at=crash_at,
                crash_after=EVENTS,
            )
            code = subprocess.run(given.command(), env=publishing_environment(), check=False, timeout=30).returncode
            assert code == (-signal.SIGKILL if crash_at else 0)
        runs = read_witness(witness)
        outcomes = [service.wait_for_outcome(run_uid) for run_uid in runs]
    stopped = [any(document.name == "stop" for document in emitted) for emitted in runs.values()]
    assert outcomes == ["written" if stop else "interrupted" for stop in stopped]
    for run_uid, emitted in runs.items():
        verdict = referee.judge(run_uid, emitted)
        assert verdict.clean, str(verdict)
        assert verdict.rows.found > 0


def test_every_crash_point_is_somewhere_in_the_product() -> None:
    sources = [path for package in (tiledbroker, tiledwriter) for path in Path(package.__file__).parent.rglob("*.py")]
    calls = [name for path in sources for name in re.findall(r"crash_point\(\"(.*?)\"\)", path.read_text())]
    assert sorted(calls) == sorted(set(calls))
    assert set(calls) == set(POINTS)
