"""Take the pictures of the status page for the documentation, of a real service, with headless Chromium.

A Tiled server and a supervisor are started, and two sessions publish scans. Then Tiled is stopped, comes back, a run is
published that cannot be written, and at last the supervisor is halted. Each scene is taken as on a desktop and a phone.

    python scripts/screenshots.py [--out DIR] [--scenes well outage quarantine away]

Needs the packages of the extra "test" and Chromium (Debian's package chromium).
"""

from __future__ import annotations

import argparse
import io
import math
import random
import shutil
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
from PIL import Image
from playwright.sync_api import sync_playwright

from tiledbroker import ZMQPublisher
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port, wait_until

STATIC: Final = Path(__file__).resolve().parent.parent / "docs" / "_static"
# Width, height and scale of the window, and whether it is a phone.
DEVICES: Final[dict[str, dict[str, Any]]] = {
    "desktop": {"viewport": {"width": 1280, "height": 1060}, "device_scale_factor": 1},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 1.5, "is_mobile": True},
}
HOST: Final = "ingest7"
COLORS: Final = 96
SECONDS: Final = 90.0
SECONDS_OF_PLOTS: Final = 45.0


class Session:
    """An acquisition session that publishes one scan after the other, in a thread."""

    def __init__(self, name: str, address: str, spool: Path, *, scan_id: int, plan: str, points: int) -> None:
        self.publisher = ZMQPublisher(address, spool_dir=spool, name=name)
        self._scan_id, self._plan, self._points = scan_id, plan, points
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._publish_scans, name=name)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.publisher.close(timeout=5)

    def publish_bad_run(self, scan_id: int) -> None:
        """Publish a run whose descriptor lacks what event-model requires."""
        uid, descriptor = str(uuid.uuid4()), str(uuid.uuid4())
        start = {"uid": uid, "time": time.time(), "scan_id": scan_id, "plan_name": "fly_ptycho"}
        self.publisher("start", start)
        self.publisher("descriptor", {"uid": descriptor, "run_start": uid, "name": "primary", "time": time.time()})
        self.publisher("stop", {"uid": str(uuid.uuid4()), "run_start": uid, "time": time.time(), "exit_status": "fail"})

    def _publish_scans(self) -> None:
        while not self._stopping.is_set():
            self._publish_scan()
            self._scan_id += 1

    def _publish_scan(self) -> None:
        uid, descriptor = str(uuid.uuid4()), str(uuid.uuid4())
        now = time.time
        self.publisher("start", {
            "uid": uid, "time": now(), "scan_id": self._scan_id, "plan_name": self._plan,
            "hints": {"dimensions": [[["energy"] if "scan" in self._plan else ["time"], "primary"]]},
        })  # fmt: skip
        units = {"energy": "eV", "transmission": "counts", "i0": "counts"}
        keys = {key: {"dtype": "number", "shape": [], "source": key, "units": unit} for key, unit in units.items()}
        self.publisher("descriptor", {
            "uid": descriptor, "run_start": uid, "name": "primary", "time": now(), "data_keys": keys,
            "hints": {"detectors": {"fields": ["transmission", "i0"]}}, "object_keys": {}, "configuration": {},
        })  # fmt: skip
        count = 0
        while count < self._points and not self._stopping.wait(0.05):
            energy = 7000 + 300 * count / self._points
            edge = 1 / (1 + math.exp(-(energy - 7112) / 6)) * (1 + 0.12 * math.sin(energy / 9))
            data = {"energy": energy, "transmission": 900 * edge + random.gauss(60, 12), "i0": random.gauss(1200, 9)}
            count += 1
            self.publisher("event", {
                "uid": str(uuid.uuid4()), "descriptor": descriptor, "seq_num": count, "time": now(), "data": data,
                "timestamps": dict.fromkeys(data, now()), "filled": {},
            })  # fmt: skip
        stop = {"uid": str(uuid.uuid4()), "run_start": uid, "time": now(), "exit_status": "success"}
        self.publisher("stop", {**stop, "num_events": {"primary": count}})


class Camera:
    """Takes pictures of a page."""

    def __init__(self, url: str, out: Path) -> None:
        self._url = url
        self._out = out

    def take_pictures(self, scene: str) -> None:
        """Take a picture for each device, and print what the browser complained about."""
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for device, options in DEVICES.items():
                # The phone is in a dark room.
                context = browser.new_context(**options, color_scheme="dark" if device == "phone" else "light")
                page = context.new_page()
                page.on("console", lambda message: print(f"{scene}: {message.type}: {message.text}"))
                page.on("pageerror", lambda error: print(f"{scene}: {error}"))
                page.goto(self._url)
                page.wait_for_timeout(7000)
                if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
                    print(f"{scene}: the page is wider than the {device}")
                page.evaluate(
                    "names => document.querySelectorAll('header b').forEach("
                    "e => { e.textContent = e.textContent.replace(...names) })",
                    [socket.gethostname(), HOST],
                )
                save_picture(page.screenshot(), self._out / f"status-{scene}-{device}.png")
                context.close()
            browser.close()


def save_picture(data: bytes, path: Path) -> None:
    """Save a picture with few colours, which makes it a quarter as large."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


class Scenes:
    """The scenes, one after the other."""

    def __init__(self, directory: Path, out: Path) -> None:
        self._port = free_port()
        self._tiled = TiledServer(directory / "tiled")
        self._supervisor = SupervisorProcess(
            directory / "journals", self._tiled, options=("--http", str(self._port)),
            environment={"TILEDWRITER_PARK_AFTER": "3"},
        )  # fmt: skip
        self._directory = directory
        self._camera = Camera(f"http://127.0.0.1:{self._port}/", out)

    def play(self, scenes: list[str]) -> None:
        with self._tiled, self._supervisor:
            address = self._supervisor.address
            sessions = [
                Session("bl7-acq", address, self._directory / "spool-a", scan_id=4201, plan="energy_scan", points=1200),
                Session("bl7-monitors", address, self._directory / "spool-b", scan_id=880, plan="count", points=300),
            ]
            try:
                for scene in scenes:
                    getattr(self, f"_play_{scene}")(sessions)
                    self._camera.take_pictures(scene)
                    self._end_scene()
            finally:
                for session in sessions:
                    session.close()

    def _play_well(self, _: list[Session]) -> None:
        time.sleep(SECONDS_OF_PLOTS)
        self._wait_for(lambda status: status["state"] == "well", "all is well")

    def _play_outage(self, _: list[Session]) -> None:
        self._tiled.stop()
        self._wait_for(lambda status: status["runs"]["counts"]["parked"] > 0, "a run is parked")
        time.sleep(SECONDS_OF_PLOTS / 2)

    def _play_quarantine(self, sessions: list[Session]) -> None:
        sessions[0].publish_bad_run(4199)
        self._wait_for(lambda status: status["runs"]["counts"]["failed"] > 0, "a run is in quarantine")

    def _play_away(self, _: list[Session]) -> None:
        self._supervisor.send(signal.SIGSTOP)
        time.sleep(SECONDS_OF_PLOTS / 2)

    def _end_scene(self) -> None:
        self._supervisor.send(signal.SIGCONT)
        if not self._tiled.running:
            self._tiled.start()
            self._wait_for(lambda status: status["tiled"]["reachable"], "Tiled is back")

    def _wait_for(self, condition: Callable[[dict[str, Any]], object], what: str) -> None:
        def holds() -> object:
            response = httpx.get(f"http://127.0.0.1:{self._port}/api/status", timeout=10)
            return response.status_code == 200 and condition(response.json())

        wait_until(holds, SECONDS, what)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=STATIC)
    parser.add_argument("--scenes", nargs="+", default=["well", "outage", "quarantine", "away"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tiledwriter-") as directory:
        Scenes(Path(directory), arguments.out).play(arguments.scenes)


if __name__ == "__main__":
    main()
