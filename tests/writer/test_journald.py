"""Log entries for systemd's journal, read from a socket of the test's own."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tiledwriter import _logging
from tiledwriter._journald import JournaldHandler, encode_fields, find_priority, is_journal_stream
from tiledwriter._logging import LogOptions

HOSTILE = "a\nPRIORITY=0\nb\x1b[31m\udc80"


class Journal:
    """A socket in the place of journald's."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)

    def read(self) -> dict[str, str]:
        """The next entry, as journald takes it apart."""
        data, fields = self.socket.recv(2**20), {}
        while data:
            line, _, data = data.partition(b"\n")
            name, is_text, value = line.partition(b"=")
            if not is_text:
                (length,) = struct.unpack_from("<Q", data)
                value, data = data[8 : 8 + length], data[9 + length :]
            fields[name.decode()] = value.decode()
        return fields


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "socket")
    yield journal
    journal.socket.close()


@pytest.fixture
def handler(journal: Journal) -> Iterator[JournaldHandler]:
    handler = JournaldHandler("run-1", journal.path)
    yield handler
    handler.close()


def record_of(message: str, *arguments: object, level: int = logging.ERROR) -> logging.LogRecord:
    return logging.LogRecord("tiledwriter.x", level, "/x.py", 7, message, arguments, None, "write")


def failed(text: str) -> logging.LogRecord:
    try:
        raise ValueError(text)
    except ValueError as error:
        record = record_of("It failed.")
        record.exc_info = (type(error), error, error.__traceback__)
    return record


def test_entry_has_fields(handler: JournaldHandler, journal: Journal) -> None:
    handler.emit(record_of("Run %s is open.", "run-1", level=logging.WARNING))
    assert journal.read() == {
        "MESSAGE": "Run run-1 is open.",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "tiledwriter-supervisor",
        "LOGGER": "tiledwriter.x",
        "CODE_FILE": "/x.py",
        "CODE_LINE": "7",
        "CODE_FUNC": "write",
        "RUN_UID": "run-1",
    }


def test_supervisor_has_no_run(journal: Journal) -> None:
    handler = JournaldHandler(None, journal.path)
    handler.emit(record_of("It goes on."))
    handler.close()
    assert "RUN_UID" not in journal.read()


def test_documents_cannot_add_fields(journal: Journal) -> None:
    handler = JournaldHandler(HOSTILE, journal.path)
    handler.emit(record_of("Run %s failed.", HOSTILE))
    handler.close()
    fields = journal.read()
    assert fields["PRIORITY"] == "3"
    assert fields["MESSAGE"] == r"Run a\nPRIORITY=0\nb\x1b[31m\udc80 failed."
    assert "\n" not in fields["RUN_UID"]


def test_traceback_is_a_field_of_lines(handler: JournaldHandler, journal: Journal) -> None:
    handler.emit(failed("why"))
    fields = journal.read()
    assert fields["MESSAGE"] == "It failed."
    assert fields["TRACEBACK"].splitlines()[-1] == "ValueError: why"


def test_long_traceback_keeps_its_end(handler: JournaldHandler, journal: Journal) -> None:
    handler.emit(failed("\n".join(["é" * 250] * 1000) + "\nthe end"))
    assert journal.read()["TRACEBACK"].endswith("the end")


def test_entry_that_journald_does_not_take_goes_to_stderr(
    handler: JournaldHandler, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.socket.close()
    Path(journal.path).unlink()
    handler.emit(record_of("The disk is %s.", "full"))
    handler.emit(failed("why"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["<3>The disk is full.", "<3>It failed."]
    assert lines[-1] == "<3>    ValueError: why"


def test_journald_that_does_not_read_blocks_nothing(
    handler: JournaldHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5000):
        handler.emit(record_of("line %d", number))
    assert "<3>line 4999" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7), (1, 7)],
)
def test_levels_are_priorities(level: int, priority: int) -> None:
    assert find_priority(level) == priority


def test_lines_of_value_are_framed() -> None:
    assert encode_fields({"A": "b", "C": "d\ne"}) == b"A=b\nC\n\x03\0\0\0\0\0\0\0d\ne\n"


# When it is used


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[IO[str]]:
    with (tmp_path / "log").open("w") as stream:
        yield stream


def name_stream(stream: IO[str]) -> str:
    found = os.fstat(stream.fileno())
    return f"{found.st_dev}:{found.st_ino}"


def test_journal_stream_is_recognised(stream: IO[str]) -> None:
    assert is_journal_stream(stream, {"JOURNAL_STREAM": name_stream(stream)})
    assert not is_journal_stream(stream, {"JOURNAL_STREAM": "1:2"})
    assert not is_journal_stream(stream, {})


def test_closed_stream_is_no_journal(stream: IO[str]) -> None:
    name = name_stream(stream)
    stream.close()
    assert not is_journal_stream(stream, {"JOURNAL_STREAM": name})


@pytest.mark.parametrize(
    ("form", "in_journal", "used"),
    [("auto", True, True), ("auto", False, False), ("journald", False, True), ("text", True, False)],
)
def test_form_decides(
    form: _logging.LogForm, in_journal: bool, used: bool, stream: IO[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("JOURNAL_STREAM", name_stream(stream) if in_journal else "")
    handler = LogOptions("INFO", form)._make_handler(None, "supervisor")
    assert isinstance(handler, JournaldHandler) == used
    handler.close()
