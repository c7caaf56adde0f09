"""The status page in a real browser, if there is one: plots are drawn, it fits a phone, and it says when it is old."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import snapshots
from fake_supervisor import FakeSupervisor

from tiledbroker import Encoder
from tiledbroker.log import Journal, find_run_file
from tiledwriter.status import HttpOptions, HttpProcess, parse_http_address
from tiledwriter.testing import free_port, wait_until

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

MILLISECONDS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpProcess]:
    """The HTTP process on a supervisor with a run that has scalars."""
    snapshot = snapshots.quarantine()
    snapshot["host"] = "<b>ingest7</b>"
    uid = snapshot["runs"]["open"][0]["uid"]
    encoder = Encoder()
    with Journal(find_run_file(tmp_path, uid), "create", run_uid=uid) as journal:
        journal.append_one("start", encoder.encode({"uid": uid}))
        keys = {"det": {"dtype": "number", "shape": [], "source": "x"}}
        journal.append_one("descriptor", encoder.encode({"uid": "d", "name": "primary", "data_keys": keys}))
        for i in range(50):
            event = {"descriptor": "d", "seq_num": i + 1, "time": 1e9 + i, "data": {"det": i * i}}
            journal.append_one("event", encoder.encode(event))
    options = HttpOptions(parse_http_address(str(free_port())), tmp_path)
    with FakeSupervisor(tmp_path, snapshot) as supervisor, HttpProcess(options) as process:
        wait_until(lambda: answers(options), 60, "the page is there")
        process.url = f"http://{options.address}/"
        process.supervisor = supervisor
        yield process


def answers(options: HttpOptions) -> bool:
    try:
        return httpx.get(f"http://{options.address}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def open_page(browser):
    """Opens pages, which must not complain and not ask anybody else."""
    contexts = []
    complaints: list[str] = []

    def open_it(url: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(MILLISECONDS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith((url, "data:")) or complaints.append(request.url))
        # What the content security policy forbids is an error in the console.
        page.on("console", lambda message: "Content Security" in message.text and complaints.append(message.text))
        page.goto(url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not complaints


def test_plots_are_drawn_on_a_phone_without_scrolling_sideways(server, open_page):
    page = open_page(server.url, viewport={"width": 390, "height": 844}, is_mobile=True)
    page.wait_for_selector("#run-plots .plot")
    page.wait_for_selector("#history-plots .plot")
    assert "primary" in page.inner_text("#run-plots .plot h3")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.inner_text("header b") == "<b>ingest7</b>"


def test_a_plot_is_named_after_its_run_as_soon_as_the_plan_is_known(server, open_page):
    run = server.supervisor.snapshot["runs"]["open"][0]
    plan, run["plan"] = run["plan"], None
    # The page's process asks the supervisor once a second at most, and may have asked already.
    wait_until(lambda: httpx.get(f"{server.url}api/status").json()["runs"]["open"][0]["plan"] is None, 30, "it asks")
    page = open_page(server.url)
    title = page.locator("#run-plots .plot h3 span").first
    title.wait_for()
    assert title.inner_text().startswith("run")
    run["plan"] = plan
    page.wait_for_function(
        "plan => document.querySelector('#run-plots .plot h3 span')?.textContent.startsWith(plan)", arg=plan
    )


def test_the_page_is_whole_without_javascript(server, open_page):
    page = open_page(server.url, java_script_enabled=False)
    text = page.inner_text("body")
    for shown in ("Is data safe?", "NOT ALL", "Unknown mimetype", "tiledwriter-journal retry", "grid_scan", "bl7-acq"):
        assert shown in text
    assert "Plots need JavaScript" in page.content()


def test_a_page_that_loses_its_server_says_so(server, open_page):
    page = open_page(server.url)
    assert page.is_hidden("#unreachable")
    shown = page.inner_text("#as-of time")
    page.wait_for_function("before => document.querySelector('#as-of time').textContent !== before", arg=shown)
    server.close()
    page.wait_for_selector("#unreachable:not([hidden])")
    assert "has not been updated for" in page.inner_text("#unreachable")
    assert page.title().startswith("OLD")


def test_a_command_that_is_being_copied_stays(server, open_page):
    page = open_page(server.url)
    shown = page.inner_text("#as-of time")
    page.evaluate(
        "const code = document.querySelector('.commands code'); code.dataset.mine = 'x';"
        "getSelection().selectAllChildren(code)"
    )
    page.wait_for_function("before => document.querySelector('#as-of time').textContent !== before", arg=shown)
    assert page.evaluate("document.querySelector('.commands code').dataset.mine") == "x"
