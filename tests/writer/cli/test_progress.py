"""Progress is shown on a terminal only, and never gets into the output."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stored_runs import a_run, journaled

from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli._progress import shown_progress
from tiledwriter.cli.journal import main


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=["rich", "no rich"])
def on_terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Makes standard error a terminal, once the test has begun and pytest has set it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    if request.param == "no rich":
        monkeypatch.setitem(sys.modules, "rich", None)

    def begin() -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        return terminal

    return begin


def text_of(terminal: Terminal) -> str:
    return re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())


def test_progress_is_shown_on_a_terminal(
    on_terminal: Callable[[], Terminal], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = on_terminal()
    with shown_progress("counting", "sheep", total=3) as progress:
        progress.show(2, 3, "[b]over the fence[/b]")
        progress.print_line("one more")
        progress.show(3, 3)
    shown = text_of(terminal)
    assert "counting" in shown
    assert re.search(r"2( of |/)3 sheeps", shown)
    assert "[b]over the fence[/b]" in shown
    assert capsys.readouterr().out == "one more\n"


def test_the_line_is_cleared_at_the_end(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    with pytest.raises(ValueError, match="over"), shown_progress("counting", "sheep"):
        raise ValueError("over")
    assert re.search("\x1b\\[2?K[^a-z]*$", terminal.getvalue())


def test_no_terminal_gets_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress("counting", "sheep") as progress:
        progress.show(1, 3)
        progress.print_line("one more")
    assert capsys.readouterr() == ("one more\n", "")


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        (["verify", "DIR"], "verifying"),
        (["export", "FILE", "-o", "-"], "exporting"),
        (["ship", "DIR", "tcp://127.0.0.1:1", "--timeout", "0.1"], "shipping"),
        (["replay", "FILE", "--tiled", "http://127.0.0.1:1"], "replaying"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_long_commands_show_progress(arguments, title, tmp_path, monkeypatch, capsys) -> None:
    path = journaled(a_run(), tmp_path)
    words = [{"DIR": str(tmp_path), "FILE": str(path)}.get(word, word) for word in arguments]
    if title == "replaying":
        # Tiled is not needed to see that a run is about to be written.
        monkeypatch.setattr("tiledwriter.journals._replay._write_run", lambda *_: ("written", ""))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    main(words)
    assert title in text_of(terminal)
    assert title not in capsys.readouterr().out


def test_output_is_the_same_beside_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    journaled(a_run(), tmp_path)
    assert main(["verify", str(tmp_path)]) == ExitCode.INCOMPLETE
    without = capsys.readouterr().out
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(["verify", str(tmp_path)]) == ExitCode.INCOMPLETE
    assert capsys.readouterr().out == without
