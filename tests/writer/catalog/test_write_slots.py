"""Turns: never more requests at a time than there are slots, whoever dies."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tiledbroker.log._lock import FileLock
from tiledwriter._errors import NotProcessed, Stopped
from tiledwriter.catalog._write_slots import WriteSlots


@pytest.mark.parametrize("slots", [1, 2])
def test_no_more_than_the_slots_are_held_at_a_time(tmp_path: Path, slots: int) -> None:
    mutex = threading.Lock()
    held = most = 0

    def work(_: int) -> None:
        nonlocal held, most
        with WriteSlots(tmp_path, slots).hold_slot(threading.Event()):
            with mutex:
                held += 1
                most = max(most, held)
            time.sleep(0.002)  # so that the others are there
            with mutex:
                held -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert (held, most) == (0, slots)


def test_who_waits_for_a_turn_can_be_stopped(tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    with (
        WriteSlots(tmp_path, 1).hold_slot(threading.Event()),
        pytest.raises(Stopped),
        WriteSlots(tmp_path, 1).hold_slot(stopping),
    ):
        pass


HOLD = """
import sys, threading, time
from pathlib import Path
from tiledwriter.catalog._write_slots import WriteSlots
with WriteSlots(Path(sys.argv[1]), 1).hold_slot(threading.Event()):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_slot_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
    with WriteSlots(tmp_path, 1).hold_slot(threading.Event()):
        pass


def test_a_directory_that_cannot_be_used_is_no_fault_of_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = WriteSlots(tmp_path, 2)

    def fail(_: FileLock) -> bool:
        raise PermissionError(13, "Permission denied", "slot-0.lock")

    with monkeypatch.context() as failing:
        failing.setattr(FileLock, "try_acquire", fail)
        with pytest.raises(NotProcessed, match="Permission denied"), turns.hold_slot(threading.Event()):
            pass
    with turns.hold_slot(threading.Event()):
        pass
