"""The service with its status page, as it is started from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from bluesky import RunEngine
from bluesky import plans as bp
from ophyd.sim import det, motor
from warm import run_process

from tiledbroker import ZMQPublisher
from tiledbroker.supervisor import read_snapshot
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port, wait_until

SECONDS = 60.0


def supervise(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TILEDWRITER_")}
    command = [
        sys.executable,
        "-m",
        "tiledwriter.cli.supervisor",
        "--tiled",
        "http://127.0.0.1:9",
        *map(str, arguments),
    ]
    return run_process(command, env={**clean, **environment}, timeout=SECONDS)


@pytest.mark.parametrize("address", ["host", "127.0.0.1:99999", "http://localhost:8080", ":8080", "::1:8080"])
def test_a_wrong_address_is_wrong_usage(tmp_path, address):
    ended = supervise("--journal-dir", tmp_path, "--http", address)
    assert ended.returncode == 2
    assert ended.stderr.startswith("tiledwriter-supervisor: --http: ")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.usefixtures("real_processes")  # a fork would have the modules already
def test_without_the_extra_it_is_named(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name in {'bokeh', 'uvicorn'} else find(name, *rest)\n"
    )
    path = os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])
    ended = supervise("--journal-dir", tmp_path / "journals", "--http", "8080", PYTHONPATH=path)
    assert ended.returncode == 2
    assert '--http needs uvicorn, bokeh: pip install ".[ingest,web]" in a checkout' in ended.stderr
    assert not (tmp_path / "journals").exists()


def test_a_token_that_others_can_read_is_wrong_usage(tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o644)
    ended = supervise("--journal-dir", tmp_path, "--http", "8080", TILEDWRITER_HTTP_TOKEN_FILE=str(token))
    assert ended.returncode == 2
    assert f"chmod 600 {token}" in ended.stderr


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def service(tmp_path: Path, tiled_server: TiledServer, port: int):
    """A supervisor with a status page."""
    process = SupervisorProcess(tmp_path / "journals", tiled_server, options=("--http", str(port)))
    with process:
        wait_until(lambda: answers(port), SECONDS, "the page is there")
        yield process


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10.0).status_code == 200
    except httpx.HTTPError:
        return False


def http_process(service: SupervisorProcess) -> psutil.Process:
    (found,) = (child for child in psutil.Process(service.pid).children() if "tiledwriter.status" in child.cmdline())
    return found


def test_a_scan_is_seen_on_the_page(service, port, publisher_to, engine: RunEngine):
    publisher: ZMQPublisher = publisher_to(service)
    engine.subscribe(publisher)
    (uid,) = engine(bp.scan([det], motor, -1, 1, 11))
    assert publisher.wait_written(uid, timeout=SECONDS)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as browser:
        wait_until(
            lambda: browser.get("/api/status").json()["runs"]["counts"]["written"] == 1, SECONDS, "the run is counted"
        )
        assert browser.get("/").text.count('class="word">YES') == 2
        assert "tiledwriter_tiled_up 1.0" in browser.get("/metrics").text
        (stream,) = browser.get(f"/api/runs/{uid}/scalars").json()["streams"]
    assert stream["x"]["name"] == "motor"
    assert stream["x"]["values"] == pytest.approx([-1 + i / 5 for i in range(11)])
    assert "det" in {series["name"] for series in stream["series"]}


def test_settings_on_the_page_have_no_secrets(tmp_path, tiled_server, port):
    environment = {"TILEDWRITER_HEADERS": '{"X-Key": "very secret words"}'}
    process = SupervisorProcess(
        tmp_path / "journals", tiled_server, options=("--http", str(port)), environment=environment
    )
    with process:
        wait_until(lambda: answers(port), SECONDS, "the page is there")
        for path in ("/", "/api/status", "/metrics"):
            text = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=30.0).text
            assert "very secret words" not in text
            assert tiled_server.api_key not in text
        assert "very secret words" not in " ".join(http_process(process).cmdline())


def test_the_service_goes_on_when_the_page_is_killed(service, port):
    first = http_process(service)
    first.kill()
    wait_until(lambda: not first.is_running() and answers(port), SECONDS, "the page is back")
    assert service.running


def test_a_halted_page_halts_nothing_else(service, publisher_to, engine: RunEngine):
    page = http_process(service)
    page.suspend()
    try:
        publisher: ZMQPublisher = publisher_to(service)
        engine.subscribe(publisher)
        (uid,) = engine(bp.count([det], 3))
        assert publisher.wait_written(uid, timeout=SECONDS)
    finally:
        page.resume()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_page_ends_with_the_supervisor(service, number):
    page = http_process(service)
    service.send(number)
    wait_until(lambda: not page.is_running(), SECONDS, "the page has ended")
    service.wait(SECONDS)
    if number is not signal.SIGKILL:
        assert service.returncode == 0


def test_a_supervisor_that_is_halted_is_not_called_well(service, port):
    service.send(signal.SIGSTOP)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as browser:
            wait_until(lambda: browser.get("/readyz").status_code == 503, SECONDS, "it is not ready")
            assert "The supervisor does not answer" in browser.get("/").text
            assert "tiledwriter_supervisor_up 0.0" in browser.get("/metrics").text
            assert browser.get("/healthz").status_code == 200
    finally:
        service.send(signal.SIGCONT)


def test_a_port_in_use_does_not_hold_up_the_service(tmp_path, tiled_server, service, port):
    with SupervisorProcess(tmp_path / "other", tiled_server, options=("--http", str(port))) as other:
        wait_until(lambda: b"Cannot serve HTTP" in other.log.read_bytes(), SECONDS, "the port is complained about")
        assert other.running
        status = read_snapshot(other.journal_dir, timeout=SECONDS)
        assert status.state == "degraded"
        assert f"127.0.0.1:{port} cannot be listened at (Address already in use)" in status.reasons[0]
        service.stop()
        wait_until(lambda: answers(port), SECONDS, "the other page is there")
        assert read_snapshot(other.journal_dir, timeout=SECONDS).state == "well"
