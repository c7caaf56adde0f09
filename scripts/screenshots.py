"""Take the pictures of the status page and of `status --watch` for the documentation, during a chaos campaign.

A campaign, as scripts/chaos runs it, injects those kinds of faults that make the scenes. Whenever the service is in a
scene that is still missing, a picture of it is taken: of the page, as on a desktop and a phone, in headless Chromium,
and of some scenes also of `tiledwriter-supervisor status --watch`, which runs in a terminal all the time. The campaign
ends when all pictures are there, and its referee judges it as always.

    python scripts/screenshots.py [--out DIR] [--seed N] [--minutes M]

Needs the packages of the extra "screenshots", and Chromium (Debian's package chromium).
"""

from __future__ import annotations

import argparse
import fcntl
import html
import io
import json
import logging
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import httpx
import pyte
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(ROOT / "tests"),
    str(ROOT / "tests/support"),
]  # before this file's own directory: it has a file with the name of the package

from chaos.campaign import Campaign, Options  # noqa: E402
from chaos.report import Report  # noqa: E402
from chaos.site import Setting  # noqa: E402

from tiledwriter.testing import free_port  # noqa: E402

STATIC: Final = ROOT / "docs" / "_static"
KINDS: Final = (
    *("cable cut", "cable slow", "request cut", "answer dropped", "answer late", "status 503", "gateway answers"),
    *("Tiled killed", "Tiled stopped", "tables locked", "worker killed", "worker stopped", "supervisor stopped"),
    "run that cannot be written",
)
# Width, height and scale of the window, and whether it is a phone, which is in a dark room.
DEVICES: Final[dict[str, dict[str, Any]]] = {
    "desktop": {"viewport": {"width": 1280, "height": 1000}, "device_scale_factor": 1},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 1.5,
        "is_mobile": True,
        "color_scheme": "dark",
    },
}
HOST: Final = "ingest7"
JOURNAL_DIR: Final = "/var/lib/tiledwriter"
STATUS_WATCH: Final = (sys.executable, "-m", "tiledwriter.cli.supervisor", "status", "--watch")
COLORS: Final = 56
KMEANS_ROUNDS: Final = 3
ROWS: Final = 30
COLUMNS: Final = 100
OUTAGE_SECONDS: Final = 5.0
MANY_POINTS: Final = 250
LONG_SILENCE_SECONDS: Final = 6.0
REFRESH_MILLISECONDS: Final = 4000

# Names of this machine are replaced whenever the page changes, before it is painted.
RENAME: Final = """document.addEventListener("DOMContentLoaded", () => {
  const rename = () => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      const data = NAMES.reduce((text, [name, shown]) => text.replaceAll(new RegExp(name, "g"), shown), node.data);
      if (data !== node.data) node.data = data;
    }
  };
  new MutationObserver(rename).observe(document.body, { subtree: true, childList: true });
  rename();
})"""
# What the page does when it is looked at again.
REFRESH: Final = "document.dispatchEvent(new Event('visibilitychange'))"
TOO_WIDE: Final = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
TERMINAL_PAGE: Final = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #16181d; color: #d8dbe2; }}
pre {{ margin: 0; padding: 14px 16px; width: max-content; font: 14px/19px "DejaVu Sans Mono", monospace; }}
</style><pre>{}</pre>"""
TERMINAL_COLORS: Final = {"red": "#ff7b72", "green": "#5fce7f", "brown": "#f2c14e", "default": "inherit"}


@dataclass(frozen=True)
class Answer:
    """What the status page says of the supervisor.

    Attributes
    ----------
    status
        The supervisor's status; None if the supervisor is silent, or the page itself.
    silence
        Seconds for which the page has said that the supervisor does not answer.
    """

    status: dict[str, Any] | None = None
    silence: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A state of the service that there is a picture of.

    Attributes
    ----------
    holds
        Whether an answer is of the scene.
    on_page
        What the page says when it shows the scene.
    in_terminal
        What `status --watch` says then; "" if there is no picture of it.
    """

    name: str
    holds: Callable[[Answer], bool]
    on_page: str
    in_terminal: str = ""


def is_well(answer: Answer) -> bool:
    """All is well, and the plots of two runs show something."""
    status = answer.status
    if status is None or status["state"] != "well":
        return False
    return sum(run["state"] == "open" and (run["written"] or 0) > MANY_POINTS for run in status["runs"]["open"]) > 1


def is_outage(answer: Answer) -> bool:
    """Tiled has been away for a while."""
    status = answer.status
    if status is None or status["tiled"]["reachable"] is not False:
        return False
    return bool(status["now"] - status["tiled"]["since"] > OUTAGE_SECONDS)


def is_quarantine(answer: Answer) -> bool:
    """A run is in quarantine while others are written."""
    status = answer.status
    return status is not None and status["tiled"]["reachable"] is True and status["runs"]["counts"]["failed"] > 0


def is_away(answer: Answer) -> bool:
    """The supervisor has not answered a second time."""
    return answer.silence > LONG_SILENCE_SECONDS


SCENES: Final = (
    Scene("well", is_well, "The supervisor finds nothing wrong", "WELL "),
    Scene("outage", is_outage, "Tiled has not taken requests since", "does NOT accept"),
    Scene("quarantine", is_quarantine, "In quarantine"),
    Scene("away", is_away, "The supervisor does not answer"),
)


class Terminal:
    """A terminal in which a command runs."""

    def __init__(self, command: list[str]) -> None:
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._mutex = threading.Lock()
        self._end, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        environment = {
            name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}
        }
        environment |= {"TERM": "xterm-256color"}
        self._process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, name="terminal")
        self._reader.start()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        os.close(self._end)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._end, 65_536)
            except OSError:  # the other end is closed
                return
            with self._mutex:
                self._stream.feed(data)

    def says(self, text: str) -> bool:
        with self._mutex:
            return any(text in line for line in self._screen.display)

    def as_html(self, names: dict[str, str]) -> str:
        """What is on the screen, as a page."""
        with self._mutex:
            lines = [[self._screen.buffer[row][column] for column in range(COLUMNS)] for row in range(ROWS)]
        while lines and not "".join(cell.data for cell in lines[-1]).strip():
            lines.pop()
        shown = "\n".join(map(_line_as_html, lines))
        for name, other in names.items():
            shown = re.sub(name, other, shown)
        return TERMINAL_PAGE.format(shown)


def _line_as_html(cells: list[Any]) -> str:
    spans = []
    for (color, bold), group in groupby(cells, key=lambda cell: (cell.fg, cell.bold)):
        text = html.escape("".join(cell.data for cell in group))
        style = f"color: {TERMINAL_COLORS.get(color, color)}; font-weight: {'bold' if bold else 'normal'}"
        spans.append(f'<span style="{style}">{text}</span>')
    return "".join(spans).rstrip()


class Camera:
    """Watches the service, and takes a picture of each scene once.

    Parameters
    ----------
    url
        Of the status page.
    out
        Directory of the pictures.
    """

    def __init__(self, browser: Browser, url: str, out: Path) -> None:
        self._browser = browser
        self._url = url
        self._out = out
        self._client = httpx.Client(base_url=url, timeout=10)
        self._answered = 0.0

    def take_pictures(self, deadline: float, check: Callable[[], object]) -> None:
        """Wait for all scenes, and take their pictures; `check` raises if waiting is in vain.

        Raises
        ------
        TimeoutError
            A scene did not come until `deadline`, a monotonic time.
        """
        first = self._first_status(deadline, check)
        # As whole words, which the name of a host may be a part of.
        names = {rf"{re.escape(first['journal_dir'])}\b": JOURNAL_DIR, rf"\b{re.escape(first['host'])}\b": HOST}
        pages = {device: self._open(device, options, names) for device, options in DEVICES.items()}
        terminal = Terminal([*STATUS_WATCH, "--journal-dir", first["journal_dir"]])
        try:
            missing = list(SCENES)
            while missing:
                check()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"No picture could be taken of: {', '.join(scene.name for scene in missing)}.")
                next(iter(pages.values())).wait_for_timeout(250)
                answer = self._ask()
                due = [scene for scene in missing if scene.holds(answer)]
                missing = [
                    scene for scene in missing if scene not in due or not self._take(scene, pages, terminal, names)
                ]
        finally:
            terminal.close()
            self._client.close()

    def _first_status(self, deadline: float, check: Callable[[], object]) -> dict[str, Any]:
        while (status := self._ask().status) is None:
            check()
            if time.monotonic() > deadline:
                raise TimeoutError("There is no status page.")
            time.sleep(0.5)
        return status

    def _ask(self) -> Answer:
        try:
            response = self._client.get("/api/status")
        except httpx.HTTPError:
            return Answer()
        if response.status_code == 200:
            self._answered = time.monotonic()
            return Answer(response.json())
        return Answer(silence=time.monotonic() - self._answered if response.status_code == 503 else 0.0)

    def _open(self, device: str, options: dict[str, Any], names: dict[str, str]) -> Page:
        page = self._browser.new_context(**options).new_page()
        page.on("pageerror", lambda error: print(f"{device}: {error}"))
        page.add_init_script(RENAME.replace("NAMES", json.dumps(list(names.items()))))
        page.goto(self._url)
        return page

    def _take(self, scene: Scene, pages: dict[str, Page], terminal: Terminal, names: dict[str, str]) -> bool:
        """Take all pictures of a scene if pages and terminal show it."""
        if not terminal.says(scene.in_terminal):
            return False
        pictures = {}
        if scene.in_terminal:
            pictures[f"status-watch-{scene.name}.png"] = self._picture_of(terminal.as_html(names))
        for page in pages.values():
            page.evaluate(REFRESH)
        for device, page in pages.items():
            try:
                page.get_by_text(scene.on_page).first.wait_for(timeout=REFRESH_MILLISECONDS)
            except PlaywrightTimeoutError:
                return False
            pictures[f"status-{scene.name}-{device}.png"] = page.screenshot()
            if page.is_visible("#unreachable"):
                return False
            if page.evaluate(TOO_WIDE):
                print(f"{scene.name}: the page is wider than the {device}")
        for name, picture in pictures.items():
            save_picture(picture, self._out / name)
        return True

    def _picture_of(self, page_of_terminal: str) -> bytes:
        page = self._browser.new_page()
        page.set_content(page_of_terminal)
        picture = page.locator("pre").screenshot()
        page.close()
        return picture


def save_picture(data: bytes, path: Path) -> None:
    """Save a picture with few colours, which makes it a quarter as large."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.quantize(COLORS, kmeans=KMEANS_ROUNDS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB", flush=True)


@contextmanager
def started_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=STATIC)
    parser.add_argument(
        "--seed", type=int, default=850, help="of the campaign (default 850, with which all is well at first)"
    )
    parser.add_argument("--minutes", type=float, default=15.0, help="for which the scenes are waited for (default 15)")
    given = parser.parse_args()
    logging.getLogger("tiledbroker").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as directory:
        setting = Setting(
            Path(directory) / "campaign", given.seed, runs=2, events=(400, 600), pace=0.3, http=free_port()
        )
        seconds = 60 * given.minutes
        campaign = Campaign(Options(setting, seconds, interval=12.0, kinds=KINDS), lambda line: print(line, flush=True))
        with ThreadPoolExecutor(1) as executor:
            running: Future[Report] = executor.submit(campaign.run)
            try:
                with started_browser() as browser:
                    camera = Camera(browser, f"http://127.0.0.1:{setting.http}/", given.out)
                    camera.take_pictures(time.monotonic() + seconds, lambda: running.done() and running.result())
            finally:
                campaign.stop()
            report = running.result()
    print(*report.lines(), sep="\n")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
