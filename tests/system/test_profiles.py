"""A service that is given a profile of Tiled's client writes to one server, whatever becomes of the profile."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from runs import documents, seq_nums

from tiledbroker import ZMQPublisher
from tiledwriter.testing import SupervisorProcess, TiledServer, wait_until

pytestmark = [pytest.mark.filterwarnings("default")]  # the reading client warns about itself

EVENTS = 20
PublisherTo = Callable[[SupervisorProcess], ZMQPublisher]


def write_profile(directory: Path, uri: str) -> None:
    new = directory / "lab.new"
    new.write_text(json.dumps({"lab": {"uri": uri}}))
    new.rename(directory / "lab.yml")


def supervisor_with_profile(directory: Path, server: TiledServer) -> SupervisorProcess:
    """Return a supervisor that is given the profile in a directory instead of the server's URI."""
    environment = {"TILED_PROFILES": str(directory), "TILEDWRITER_QUIET_PERIOD": "1"}
    process = SupervisorProcess(directory / "journals", server, environment=environment)
    at = process._command.index("--tiled")
    process._command[at : at + 2] = ["--profile", "lab"]
    return process


def publish_part(publisher: ZMQPublisher, emitted: Sequence[tuple[str, Any]]) -> None:
    for name, document in emitted:
        publisher(name, document)
    assert publisher.flush(60)


def end_workers(process: SupervisorProcess) -> None:
    """Kill the workers; those that come are new."""
    for worker in process.workers():
        worker.kill()
        worker.wait()


def reload(process: SupervisorProcess) -> None:
    before = process.log.read_text().count("The configuration was read again")
    os.kill(process.pid, signal.SIGHUP)
    wait_until(
        lambda: process.log.read_text().count("The configuration was read again") > before, 60, "it is read again"
    )


@pytest.mark.parametrize("reloads", [False, True])
def test_a_service_goes_on_writing_to_the_server_that_its_profile_named_at_the_start(
    tmp_path: Path, tiled_server: TiledServer, own_tiled_server: TiledServer, publisher_to: PublisherTo, reloads: bool
) -> None:
    write_profile(tmp_path, tiled_server.uri)
    with supervisor_with_profile(tmp_path, tiled_server) as process:
        publisher = publisher_to(process)
        emitted = documents(EVENTS)
        uid = emitted[0][1]["uid"]
        publish_part(publisher, emitted[:12])
        wait_until(lambda: uid in tiled_server.client(), 60, "the run is in Tiled")
        write_profile(tmp_path, own_tiled_server.uri)
        if reloads:
            reload(process)
        end_workers(process)
        publish_part(publisher, emitted[12:])
        assert publisher.wait_written(uid, timeout=120)
    assert seq_nums(tiled_server, uid) == list(range(1, EVENTS + 1))
    assert uid not in own_tiled_server.client()
