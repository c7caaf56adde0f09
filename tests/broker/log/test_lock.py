"""A lock belongs to one holder, and goes with it however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from users import without_privileges

from tiledbroker import JournalLocked
from tiledbroker.log import _lock as lock_module
from tiledbroker.log._lock import FileLock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite.lock"


@contextmanager
def acquired(path: Path) -> Iterator[FileLock]:
    lock = FileLock(path)
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


@contextmanager
def forked_child() -> Iterator[None]:
    """A forked child that is alive inside the block."""
    reader, writer = os.pipe()
    started, start = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            os.close(writer)
            os.write(start, b"x")
            os.read(reader, 1)
        finally:
            os._exit(0)
    os.close(reader)
    try:
        assert os.read(started, 1) == b"x"
        yield
    finally:
        for descriptor in (writer, started, start):
            os.close(descriptor)
        os.waitpid(child, 0)


def test_one_holder_at_a_time(path: Path) -> None:
    with acquired(path):
        with pytest.raises(JournalLocked) as refusal:
            FileLock(path).acquire()
        assert refusal.value.path == str(path.with_suffix(""))
    with acquired(path):
        pass


def test_held_tells_whether_somebody_has_it(path: Path) -> None:
    lock = FileLock(path)
    assert not lock.held
    assert not path.exists()
    with acquired(path):
        assert lock.held
    assert not lock.held


def test_asking_does_not_take_the_lock_away_from_its_holder(path: Path) -> None:
    with acquired(path) as lock:
        assert FileLock(path).held
        assert lock.held
        with pytest.raises(JournalLocked):
            FileLock(path).acquire()


def test_asking_makes_nobody_fail_to_acquire(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.touch()
    lock = FileLock(path)
    refused: list[JournalLocked] = []

    def acquire() -> None:
        try:
            lock.acquire()
        except JournalLocked as refusal:
            refused.append(refusal)

    another = threading.Thread(target=acquire)
    flock = lock_module.fcntl.flock

    def flock_while_another_acquires(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        monkeypatch.setattr(lock_module.fcntl, "flock", flock)
        another.start()
        another.join(0.2)

    monkeypatch.setattr(lock_module.fcntl, "flock", flock_while_another_acquires)
    assert not FileLock(path).held
    another.join()
    lock.release()
    assert refused == []


def test_releasing_twice_is_harmless(path: Path) -> None:
    with acquired(path) as lock:
        lock.release()


def test_only_its_owner_may_read_the_file(path: Path) -> None:
    with acquired(path):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_removed_lock_leaves_no_file_and_can_be_taken_again(path: Path) -> None:
    with acquired(path) as lock:
        lock.release(remove=True)
        assert not path.exists()
    with acquired(path):
        assert path.exists()


def test_a_lock_on_a_file_that_was_deleted_meanwhile_is_taken_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = lock_module.fcntl.flock

    def flock_after_the_last_holder_removed_the_file(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(lock_module.fcntl, "flock", flock)
        path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(lock_module.fcntl, "flock", flock_after_the_last_holder_removed_the_file)
    with acquired(path):
        assert FileLock(path).held
        with pytest.raises(JournalLocked):
            FileLock(path).acquire()


def test_a_lock_on_a_file_that_was_replaced_meanwhile_does_not_count(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = lock_module.fcntl.flock
    successor = FileLock(path)

    def flock_after_another_has_removed_and_acquired(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(lock_module.fcntl, "flock", flock)
        path.unlink()
        successor.acquire()
        flock(descriptor, operation)

    monkeypatch.setattr(lock_module.fcntl, "flock", flock_after_another_has_removed_and_acquired)
    with pytest.raises(JournalLocked):
        FileLock(path).acquire()
    assert successor.held
    successor.release()


def test_a_forked_child_does_not_keep_what_its_parent_releases(path: Path) -> None:
    with acquired(path) as lock, forked_child():
        assert FileLock(path).held
        lock.release()
        with acquired(path):
            pass


def test_a_forked_child_does_not_release_what_its_parent_has(path: Path) -> None:
    with acquired(path):
        with forked_child():
            pass
        with pytest.raises(JournalLocked):
            FileLock(path).acquire()


def test_a_forked_child_does_not_outlive_its_parent_with_the_lock(path: Path) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        from tiledbroker.log._lock import FileLock
        lock = FileLock(Path(sys.argv[1]))
        lock.acquire()
        if os.fork() == 0:
            os.write(1, b"%d\\n" % os.getpid())
            os.read(0, 1)  # until the test lets go
            os._exit(0)
        signal.pause()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert FileLock(path).held
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        os.kill(child, 0)  # it lives
        with acquired(path):
            pass


def test_a_started_program_does_not_inherit_the_lock(path: Path) -> None:
    with acquired(path) as lock, subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        lock.release()
        with acquired(path):
            pass


def test_a_directory_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "missing" / "run.lock").acquire()


def test_a_lock_has_one_identity_as_long_as_its_file_is_the_same(path: Path) -> None:
    with acquired(path) as first:
        identity = first.identity
    assert identity
    assert first.identity == ""
    with acquired(path) as second:
        assert second.identity == identity


def test_a_copy_of_a_directory_has_locks_of_other_identities(tmp_path: Path) -> None:
    (tmp_path / "original").mkdir()
    with acquired(tmp_path / "original/lock") as original:
        shutil.copytree(tmp_path / "original", tmp_path / "copy")
        with acquired(tmp_path / "copy/lock") as copy:
            assert copy.identity != original.identity


def test_a_lock_is_out_of_place_only_where_that_was_seen(tmp_path: Path) -> None:
    code = f"""
import os
from tiledbroker.log._lock import FileLock
from pathlib import Path
directory = Path({str(tmp_path)!r}) / "locked"
directory.mkdir()
lock = FileLock(directory / "lock")
assert lock.try_acquire() and lock.is_in_place
directory.chmod(0)
try:
    lock.is_in_place
except PermissionError:
    print("cannot look")
directory.chmod(0o700)
assert lock.is_in_place
directory.rename(directory.with_name("moved"))
assert not lock.is_in_place
directory.touch()
assert not lock.is_in_place
"""
    command = [*without_privileges(), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "cannot look\n", done.stderr


@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_the_file_blocks_nobody(path: Path) -> None:
    os.mkfifo(path)
    for use in (lambda lock: lock.held, FileLock.try_acquire):
        with pytest.raises(OSError, match="Not a regular file"):
            use(FileLock(path))
