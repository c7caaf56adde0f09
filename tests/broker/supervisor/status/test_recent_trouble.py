"""The last warnings and errors of the log are kept for the status."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tiledbroker.supervisor.status._recent_trouble import RecentTrouble
from tiledbroker.supervisor.status._snapshot import MAX_TROUBLE


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("tiledbroker.test_recent_trouble")
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.handlers.clear()


@pytest.fixture
def trouble(log: logging.Logger) -> RecentTrouble:
    handler = RecentTrouble()
    log.addHandler(handler)
    return handler


def test_warnings_and_errors_are_kept(log: logging.Logger, trouble: RecentTrouble) -> None:
    log.info("All is well.")
    log.warning("Something of %s is odd.", "mine")
    log.error("Something is wrong.")
    assert [(entry.level, entry.run, entry.text) for entry in trouble.entries] == [
        ("warning", None, "Something of mine is odd."),
        ("error", None, "Something is wrong."),
    ]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("Run %s is in quarantine: %s.", ("the uid", "why")),
        ("Process %d, a worker of run %s without a supervisor, hangs.", (7, "the uid")),
        ("In %.2f s the worker of run %s is started.", (0.5, "the uid")),
    ],
)
def test_the_run_of_a_message_is_found(
    log: logging.Logger, trouble: RecentTrouble, message: str, arguments: tuple[object, ...]
) -> None:
    log.error(message, *arguments)
    assert [entry.run for entry in trouble.entries] == ["the uid"]


def test_an_exception_is_named_without_its_traceback(log: logging.Logger, trouble: RecentTrouble) -> None:
    try:
        raise ValueError("oh")
    except ValueError:
        log.exception("It failed.")
    assert trouble.entries[0].text == "It failed. ValueError: oh"


@pytest.mark.parametrize("exc_info", [None, False, True])
def test_a_message_without_an_exception_is_kept(
    log: logging.Logger, trouble: RecentTrouble, exc_info: bool | None
) -> None:
    log.error("It failed.", exc_info=exc_info)
    assert [entry.text for entry in trouble.entries] == ["It failed."]


def test_only_the_last_entries_are_kept_and_shortened(log: logging.Logger, trouble: RecentTrouble) -> None:
    for number in range(MAX_TROUBLE + 5):
        log.warning("%d %s", number, "x" * 10_000)
    assert len(trouble.entries) == MAX_TROUBLE
    assert trouble.entries[0].text.startswith("5 xxx")
    assert all(len(entry.text) <= 1_000 for entry in trouble.entries)


def test_a_message_that_does_not_fit_its_arguments_is_kept_as_it_is(trouble: RecentTrouble) -> None:
    trouble.handle(logging.LogRecord("tiledbroker", logging.ERROR, "", 0, "%d runs", ("many",), None))
    assert trouble.entries[0].text == "%d runs"
