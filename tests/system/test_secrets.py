"""Secrets are where they have to be, and nowhere else; and a new one is taken without a restart."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from event_model import compose_run
from faulty_proxy import CUT_AFTER, FaultyProxy, answer
from warm import run_process

from tiledbroker import ZMQPublisher
from tiledwriter._config import load_settings
from tiledwriter.cli import journal as command
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until

HEADER = "s3cr3t-in-a-header"


@pytest.fixture
def proxy(tiled_server: TiledServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(tiled_server.uri) as proxy:
        yield proxy


def publish(publisher: ZMQPublisher) -> str:
    """A run with one event."""
    run = compose_run()
    stream = run.compose_descriptor(name="primary", data_keys={"x": {"source": "s", "dtype": "number", "shape": []}})
    publisher("start", run.start_doc)
    publisher("descriptor", stream.descriptor_doc)
    publisher("event", stream.compose_event(data={"x": 1.0}, timestamps={"x": 0.0}))
    publisher("stop", run.compose_stop())
    return str(run.start_doc["uid"])


def test_a_new_key_in_the_file_is_taken_without_a_restart(tmp_path: Path, tiled_server: TiledServer) -> None:
    file = tmp_path / "key"
    file.write_text("a key that has expired\n")
    environment = {"TILEDWRITER_API_KEY_FILE": str(file), "TILED_API_KEY": ""}
    with SupervisorProcess(tmp_path / "journals", tiled_server, environment=environment) as supervisor:
        publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool", on_error="raise")
        uid = publish(publisher)
        wait_until(lambda: b"has refused requests" in supervisor.log.read_bytes(), 60, "the key is not accepted")
        file.write_text(f"{tiled_server.api_key}\n")
        assert publisher.wait_written(uid, timeout=60)
        publisher.close()
    assert list(tiled_server.client()[uid]["primary"]["x"].read()) == [1.0]


@pytest.mark.usefixtures("real_processes")
def test_secrets_are_in_no_log_journal_title_or_output(
    tmp_path: Path, tiled_server: TiledServer, proxy: FaultyProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when requests fail, credentials are refused, and a run goes to quarantine with a traceback."""
    file = tmp_path / "key"
    file.write_text(tiled_server.api_key)
    environment = {
        "TILEDWRITER_API_KEY_FILE": str(file),
        "TILED_API_KEY": "",
        "TILEDWRITER_HEADERS": json.dumps({"X-Gate": HEADER}),
        "TILEDWRITER_QUIET_PERIOD": "0.5",
    }
    options = ["--tiled", proxy.uri, "--log-level", "DEBUG"]
    proxy.script("POST", "metadata", answer(500), answer(401), CUT_AFTER)
    # A worker that took the address from another one is refused twice.
    proxy.script("PATCH", "table", answer(502), answer(422), answer(422))
    with SupervisorProcess(tmp_path / "journals", tiled_server, options=options, environment=environment) as supervisor:
        publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool", on_error="raise")
        uid = publish(publisher)
        wait_until(supervisor.workers, 60, "there is a worker")
        processes = [psutil.Process(supervisor.pid), *psutil.Process(supervisor.pid).children(recursive=True)]
        titles = [" ".join(process.cmdline()) for process in processes]
        wait_until(lambda: b"quarantine" in supervisor.log.read_bytes(), 60, "the run is in quarantine")
        publisher.flush(60)
        publisher.close()
        directory = str(supervisor.journal_dir)
        for arguments in (["show", uid, directory], ["ls", directory], ["tail", uid, directory]):
            assert command.main(arguments) == 0
        for arguments in (["show", uid, directory, "--json"], ["ls", directory, "--json"]):
            assert command.main(arguments) == 0
    with journal_of(supervisor.journal_dir, uid) as journal:
        assert "422" in journal.get("reason")
    printed = capsys.readouterr()
    everything = [*titles, printed.out, printed.err, supervisor.log.read_text()]
    everything += [path.read_bytes().decode("latin-1") for path in supervisor.journal_dir.rglob("*") if path.is_file()]
    for secret in (tiled_server.api_key, HEADER):
        assert not [text for text in everything if secret in text]


@pytest.mark.parametrize("uri", ["http://localhost:8000/api/v1?api_key=hush", "http://me:hush@localhost:8000"])
def test_a_uri_with_a_secret_is_refused_without_showing_it(tmp_path: Path, uri: str) -> None:
    command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "--tiled", uri, "--journal-dir", tmp_path]
    done = run_process(command, timeout=60)
    assert done.returncode == 2
    assert "api_key_file" in done.stderr
    assert "hush" not in done.stderr


def test_settings_do_not_show_secrets(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("hush")
    settings = load_settings(None, {"tiled": "http://localhost:8000", "api_key_file": file, "headers": {"X": HEADER}})
    for shown in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.worker_options())):
        assert "hush" not in shown
        assert HEADER not in shown
