"""What documents say gets into log lines, and makes no lines of its own."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys

import pytest

from tiledwriter._logging import JSONFormatter, TextFormatter
from tiledwriter._plain_text import plain

HOSTILE = "a\nb\r\x1b[31m\x9b\u202e\u2028\x85\0\ud800%s%(x)s"
ESCAPED = r"a\nb\r\x1b[31m\x9b\u202e\u2028\x85\x00\ud800%s%(x)s"


def record_of(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("tiledwriter", logging.ERROR, __file__, 1, message, arguments, info)


def raised(message: str) -> BaseException:
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


def test_a_message_is_one_line_of_text() -> None:
    line = TextFormatter("supervisor").format(record_of("Run %s is open.", HOSTILE))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ERROR   \[supervisor\] (.*)", line)
    assert line.endswith(f"Run {ESCAPED} is open.")


@pytest.mark.parametrize("who", [HOSTILE, "worker %s", "worker %2e%2e%2f", "worker %(message)s", "]\n["])
def test_whoever_logs_cannot_break_the_line(who: str) -> None:
    line = TextFormatter(who).format(record_of("It goes on."))
    assert line.endswith(f"[{plain(who)}] It goes on.")
    assert line.isprintable()


def test_lines_of_a_traceback_are_indented() -> None:
    first, *lines = TextFormatter("supervisor").format(record_of("It failed.", error=raised(HOSTILE))).split("\n")
    assert first.endswith("It failed.")
    assert all(line.startswith("    ") and line.isprintable() for line in lines)
    assert len(lines) >= 4


def test_what_is_too_long_to_be_read_is_cut_and_the_rest_of_the_message_stays() -> None:
    line = TextFormatter("supervisor").format(record_of("Run %s failed: %s.", "u" * 10_000, "no such file"))
    assert len(line) < 600
    assert "(10000 characters)" in line
    assert line.endswith("failed: no such file.")
    assert len(TextFormatter("supervisor").format(record_of("%s", "word " * 100_000))) < 10_000


def test_json_lines_are_cut_too() -> None:
    text = JSONFormatter("u" * 10_000).format(record_of("%s", HOSTILE, error=raised("x" * 10_000)))
    assert "\n" not in text
    assert text.isascii()
    assert len(text) < 3000
    entry = json.loads(text)
    assert entry["message"] == ESCAPED
    assert entry["run"].startswith("uuu")


@pytest.mark.parametrize("run", ["", "run"])
def test_a_worker_is_named_whatever_its_run_is_called(run: str) -> None:
    assert json.loads(JSONFormatter(run).format(record_of("It goes on.")))["run"] == run
    assert "run" not in json.loads(JSONFormatter(None).format(record_of("It goes on.")))


def test_ordinary_text_stays_as_it_is() -> None:
    text = "Run 3f2b6c1e-8d47: /données/中文/é.sqlite cannot be written (disk full)."
    assert plain(text) == text


def test_commands_print_what_the_terminal_cannot() -> None:
    script = "from tiledwriter.cli._terminal import *; take_any_text(); print(plain('\\u0430\\u202e'))"
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    assert result.stdout == b"\\u0430\\u202e\n"
