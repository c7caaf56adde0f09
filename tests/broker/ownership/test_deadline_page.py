"""Workers see the deadline that their supervisor writes, at once, and take whatever is no page for an expired one."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from tiledbroker.ownership import DeadlinePage, LeaseTiming, boottime

NOW = 1000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deadline"


def test_a_new_page_is_expired(path: Path) -> None:
    for page in (DeadlinePage.create(path), DeadlinePage.open(path)):
        assert not page.may_send(NOW)
        assert page.seconds_left(NOW) <= 0


def test_a_request_may_begin_until_the_margin_before_the_deadline(path: Path) -> None:
    DeadlinePage.create(path).write(NOW + 30)
    page = DeadlinePage.open(path)
    assert page.may_send(NOW)
    assert page.seconds_left(NOW) == 30
    assert page.may_send(NOW + 24.9)
    assert not page.may_send(NOW + 25)
    assert page.seconds_left(NOW + 25) == 5
    assert page.seconds_left(NOW + 31) <= 0


def test_a_forked_child_sees_what_its_parent_writes_later(path: Path) -> None:
    writer = DeadlinePage.create(path)
    page = DeadlinePage.open(path)
    from_parent, to_child = os.pipe()
    from_child, to_parent = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(to_parent, b"1" if page.may_send(NOW) else b"0")
            os.read(from_parent, 1)
            os.write(to_parent, b"1" if page.may_send(NOW) else b"0")
        finally:
            os._exit(0)
    before = os.read(from_child, 1)
    writer.write(NOW + 30)
    os.write(to_child, b"x")
    after = os.read(from_child, 1)
    os.waitpid(child, 0)
    for descriptor in (from_parent, to_child, from_child, to_parent):
        os.close(descriptor)
    assert (before, after) == (b"0", b"1")


def test_a_worker_keeps_the_page_of_its_own_supervisor(path: Path) -> None:
    old = DeadlinePage.create(path)
    page = DeadlinePage.open(path)
    old.write(NOW + 30)
    DeadlinePage.create(path)
    assert page.may_send(NOW)
    assert not DeadlinePage.open(path).may_send(NOW)


def test_a_worker_cannot_write(path: Path) -> None:
    DeadlinePage.create(path)
    with pytest.raises(TypeError):
        DeadlinePage.open(path).write(NOW)


def test_only_its_owner_may_read_the_file(path: Path) -> None:
    DeadlinePage.create(path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("contents", [None, b"", b"\0" * 4096, b"TWLEASE1", b"TWLEASE1" + b"\xff" * 4088, b"x" * 5000])
def test_what_is_no_page_is_expired(path: Path, contents: bytes | None) -> None:
    if contents is not None:
        path.write_bytes(contents)
    page = DeadlinePage.open(path)
    assert not page.may_send(NOW)
    assert page.seconds_left(NOW) <= 0


@pytest.mark.parametrize("deadline", [NOW + 30.1, float("inf"), float("nan"), 1e9])
def test_a_deadline_that_no_lease_reaches_is_not_believed(path: Path, deadline: float) -> None:
    DeadlinePage.create(path)
    contents = bytearray(path.read_bytes())
    struct.pack_into("d", contents, 8, deadline)
    path.write_bytes(contents)
    assert not DeadlinePage.open(path).may_send(NOW)
    assert DeadlinePage.open(path).seconds_left(NOW) <= 0


def test_the_times_of_the_lease_can_be_others(path: Path) -> None:
    timing = LeaseTiming(lease_seconds=3, renewal_seconds=0.2, margin_seconds=1)
    DeadlinePage.create(path, timing=timing).write(NOW + 3)
    page = DeadlinePage.open(path)
    assert page.may_send(NOW + 1.9)
    assert not page.may_send(NOW + 2)


def test_a_closed_page_is_expired(path: Path) -> None:
    page = DeadlinePage.create(path)
    page.write(NOW + 30)
    page.close()
    page.close()
    assert not page.may_send(NOW)


def test_a_check_costs_little(path: Path, record_property) -> None:
    DeadlinePage.create(path).write(boottime() + 30)
    page = DeadlinePage.open(path)
    count = 2000
    fastest = float("inf")
    for _ in range(50):
        began = time.perf_counter()
        for _ in range(count):
            page.may_send(boottime())
        fastest = min(fastest, (time.perf_counter() - began) / count)
    record_property("seconds_per_check", fastest)
    # Less than one microsecond on an idle machine; a busy one must not fail.
    assert fastest < 20e-6
