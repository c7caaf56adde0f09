from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from event_model import compose_run
from faulty_proxy import FaultyProxy
from warm import run_process

from tiledbroker import ZMQPublisher
from tiledwriter._config import load_settings
from tiledwriter.testing import SupervisorProcess, journal_of
from tiledwriter.worker._worker import TiledAddress

SECRET = "s3cr3t-t0ken"
HEADERS = {"X-Gate": SECRET, "X-Beamline": "lab"}


@pytest.fixture
def proxy(tiled_server):
    with FaultyProxy(tiled_server.uri) as proxy:
        yield proxy


def requests_to_tiled(proxy):
    """All but the first look, by which Tiled's client finds out if there is a redirection to https."""
    return [request for request in proxy.requests if request.path != "/"]


@pytest.mark.parametrize("by", ["file", "environment"])
def test_every_request_of_the_service_has_the_headers(tmp_path, tiled_server, proxy, by):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"headers": HEADERS} if by == "file" else {}))
    environment = {} if by == "file" else {"TILEDWRITER_HEADERS": json.dumps(HEADERS)}
    options = ["--config", str(config), "--tiled", proxy.uri, "--log-level", "DEBUG"]
    process = SupervisorProcess(tmp_path / "journals", tiled_server, options=options, environment=environment)
    run = compose_run()
    uid = run.start_doc["uid"]
    with process:
        publisher = ZMQPublisher(process.address, spool_dir=tmp_path / "spool", on_error="raise")
        publisher("start", run.start_doc)
        publisher("stop", run.compose_stop())
        assert publisher.wait_written(uid, timeout=60)
        publisher.close()

    assert proxy.count("POST") == 1
    assert proxy.count("GET") > 0
    for request in requests_to_tiled(proxy):
        assert {name: request.headers.get(name) for name in HEADERS} == HEADERS
        assert request.method == "GET" or request.headers["Authorization"] == f"Apikey {tiled_server.api_key}"
    assert SECRET not in process.log.read_text()
    with journal_of(process.journal_dir, uid) as journal:
        assert SECRET not in str(journal.history())


def test_headers_go_beside_those_of_a_profile(tmp_path, tiled_server, proxy):
    profile = {"uri": proxy.uri, "headers": {"X-Profile": "kept", "x-gate": "replaced"}}
    (tmp_path / "profiles.yml").write_text(json.dumps({"lab": profile}))
    statement = f"import tiledwriter.worker as w; w.TiledAddress(profile='lab', headers={HEADERS!r}).connect()"
    environment = {**os.environ, "TILED_PROFILES": str(tmp_path), "TILED_API_KEY": tiled_server.api_key}
    subprocess.run([sys.executable, "-c", statement], env=environment, check=True, timeout=60)
    requests = requests_to_tiled(proxy)
    assert len(requests) > 1
    for request in requests:
        assert {name: request.headers.get(name) for name in HEADERS} == HEADERS
        assert request.headers["X-Profile"] == "kept"


def test_the_values_of_headers_are_not_shown():
    settings = load_settings(None, {"tiled": "http://localhost:8000", "headers": HEADERS})
    options = settings.worker_options()
    assert options.tiled == TiledAddress("http://localhost:8000", None, HEADERS)
    assert SECRET not in repr(settings)
    assert SECRET not in repr(options)


REFUSED = {
    "a blank in a name": {"X Gate": SECRET},
    "no name": {"": SECRET},
    "a name with a colon": {"X-Gate:": SECRET},
    "a header of each request": {"Content-Type": SECRET},
    "a line end": {"X-Gate": f"{SECRET}\r\nX-Other: x"},
    "a blank at the end": {"X-Gate": f"{SECRET} "},
    "a letter that is not ASCII": {"X-Gate": f"{SECRET}é"},
    "a value that is no text": {"X-Gate": {"value": SECRET}},
    "a list": [SECRET],
    "no JSON": f"X-Gate: {SECRET}",
}


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED)
def test_headers_that_cannot_be_sent_are_refused_without_showing_them(tmp_path, headers):
    text = headers if isinstance(headers, str) else json.dumps(headers)
    result = run_process(
        [sys.executable, "-m", "tiledwriter.cli.supervisor", "--tiled", "http://localhost:8000"],
        env={**os.environ, "TILEDWRITER_HEADERS": text, "TILEDWRITER_JOURNAL_DIR": str(tmp_path)},
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("tiledwriter-supervisor: ")
    assert "headers" in line
    assert SECRET not in line
