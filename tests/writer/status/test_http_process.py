"""The HTTP process beside a supervisor: it ends with it, comes back when it dies, and waits for its port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
import snapshots
from fake_supervisor import FakeSupervisor

from tiledwriter.status import HttpOptions, HttpProcess, _process, parse_http_address
from tiledwriter.testing import free_port, wait_until

SECONDS = 60.0


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5.0).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def quick(monkeypatch):
    """Do not wait long before another process is started."""
    monkeypatch.setattr(_process, "FIRST_DELAY_SECONDS", 0.05)


@pytest.fixture
def options(tmp_path):
    return HttpOptions(parse_http_address(str(free_port())), tmp_path)


def test_it_serves_a_supervisor_to_five_browsers_at_once(tmp_path, options):
    port = options.address.port
    with FakeSupervisor(tmp_path, snapshots.many_runs(200)) as supervisor, HttpProcess(options):
        wait_until(lambda: answers(port), SECONDS, "the process answers")
        asked = supervisor.asked

        def browse(_):
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as browser:
                return {
                    browser.get(path).status_code
                    for _ in range(10)
                    for path in ("/", "/api/history", "/api/status", "/metrics")
                }

        with ThreadPoolExecutor(5) as pool:
            assert set.union(*pool.map(browse, range(5))) == {200}
        assert supervisor.asked - asked < 100
        supervisor.stop()
        wait_until(
            lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 503, SECONDS, "the silence is noticed"
        )
        assert "The supervisor does not answer" in httpx.get(f"http://127.0.0.1:{port}/").text
        supervisor.start()


def test_a_process_for_this_host_refuses_other_names(tmp_path):
    options = HttpOptions(parse_http_address(str(free_port())), tmp_path, names=("proxy.example",))
    url = f"http://{options.address}/healthz"
    with HttpProcess(options):
        wait_until(lambda: answers(options.address.port), SECONDS, "the process answers")
        codes = [httpx.get(url, headers={"Host": name}).status_code for name in ("proxy.example", "evil.example")]
    assert codes == [200, 421]


def test_it_ends_when_it_is_closed(options):
    with HttpProcess(options) as process:
        wait_until(lambda: answers(options.address.port), SECONDS, "the process answers")
        child = psutil.Process(process.pid)
    assert not child.is_running()


def test_it_is_started_anew_when_it_dies(options, quick, caplog):
    with HttpProcess(options) as process:
        wait_until(lambda: answers(options.address.port), SECONDS, "the process answers")
        first = process.pid
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: process.pid not in {None, first}, SECONDS, "another process is there")
        wait_until(lambda: answers(options.address.port), SECONDS, "it answers")
    assert "ended (exit code -9); starting another. Runs are not affected." in caplog.text


def test_why_the_page_is_not_served_is_told(options, quick):
    told = []
    other = socket.socket()
    other.bind(tuple(options.address))
    other.listen()
    with HttpProcess(options, told.append) as process:
        with other:
            wait_until(lambda: told, SECONDS, "the port is complained about")
        wait_until(lambda: told[-1] == "", SECONDS, "it is served")
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: len(told) == 4, SECONDS, "it is served again")
    assert told[0].startswith(f"{options.address} cannot be listened at (Address already in use); end what uses it")
    assert told[1:4] == ["", "its process ended (exit code -9)", ""]


def test_one_that_cannot_be_started_is_tried_again(options, quick, monkeypatch, caplog):
    monkeypatch.setattr(HttpOptions, "command", lambda _: ["/nonexistent/python"])
    with HttpProcess(options):
        wait_until(lambda: caplog.text.count("cannot be started") >= 2, SECONDS, "two attempts")


def test_it_ends_with_a_supervisor_that_is_killed(tmp_path, options):
    program = (
        "import sys, time; from pathlib import Path; from tiledwriter.status import *; "
        f"process = HttpProcess(HttpOptions(parse_http_address('{options.address}'), Path({str(tmp_path)!r}))); "
        "process.start(); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        wait_until(lambda: answers(options.address.port), SECONDS, "the process answers")
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    wait_until(lambda: not child.is_running(), SECONDS, "the process is gone")


def test_a_port_in_use_is_said_once_and_waited_for(tmp_path, options):
    command = [*options.command(), "--listen-again", "0.1"]
    log = tmp_path / "log"
    with socket.socket() as other, log.open("wb") as output:
        other.bind(tuple(options.address))
        other.listen()
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=output)
        wait_until(lambda: b"Cannot serve HTTP" in log.read_bytes(), SECONDS, "the port is complained about")
    wait_until(lambda: answers(options.address.port), SECONDS, "the process answers")
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    lines = log.read_text().splitlines()
    assert [("Address already in use" in line, "is at http://" in line) for line in lines] == [
        (True, False),
        (False, True),
    ]


def test_an_address_for_other_hosts_is_warned_of(tmp_path):
    options = HttpOptions(parse_http_address(f"0.0.0.0:{free_port()}"), tmp_path)
    process = subprocess.Popen(options.command(), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: answers(options.address.port), SECONDS, "the process answers")
    _, errors = process.communicate(timeout=SECONDS)
    assert "Other hosts can read the status page" in errors
