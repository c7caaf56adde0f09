"""A directory keeps one lease: one of all hosts gets each revision, and what cannot be read is never a free lease."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tiledbroker._errors import StoreUnavailable
from tiledbroker.ownership import DirectoryStore, Lease, Stored
from tiledbroker.ownership import _directory_store as module

LEASE = Lease("start", "host", 1, 1, "12345678", unrevoked=("00000000",))
RACE = """
    import sys
    from pathlib import Path
    from tiledbroker._errors import StoreUnavailable
    from tiledbroker.ownership import DirectoryStore, Lease
    from tiledbroker.ownership import _directory_store as module
    module.os.fsync = lambda descriptor: None  # what is tested is the order, not the disk
    module.KEPT_REVISIONS = 8  # so that names become free soon

    name, last = sys.argv[1], int(sys.argv[3])
    store = DirectoryStore(Path(sys.argv[2]))
    print("ready", flush=True)
    sys.stdin.readline()
    beat = 0
    while True:
        try:
            stored = store.read()
            if stored.revision >= last:
                break
            beat += 1
            revision = store.compare_and_set(stored.revision, Lease(name, name, 1, beat))
        except StoreUnavailable:  # so many revisions have come meanwhile that a file was removed
            continue
        if revision is not None:
            print(revision, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore.create(tmp_path / "leases")


def start_racer(name: str, store: DirectoryStore, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(RACE), name, str(store.path), str(last)]
    racer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert racer.stdout is not None
    assert racer.stdout.readline() == "ready\n"
    return racer


def fill(store: DirectoryStore, last: int) -> None:
    revision = store.read().revision
    while revision < last:
        revision = store.compare_and_set(revision, LEASE) or 0
        assert revision


def names(store: DirectoryStore) -> list[str]:
    return sorted(path.name for path in store.path.iterdir())


def test_a_new_directory_has_never_held_a_lease(store: DirectoryStore) -> None:
    assert store.read() == Stored(0, None)


def test_what_is_stored_is_read(store: DirectoryStore) -> None:
    assert store.compare_and_set(0, LEASE) == 1
    assert DirectoryStore(store.path).read() == Stored(1, LEASE)


@pytest.mark.parametrize("expected", [0, 1, 3, 100])
def test_another_revision_than_the_newest_is_refused(store: DirectoryStore, expected: int) -> None:
    fill(store, 2)
    assert store.compare_and_set(expected, LEASE) is None
    assert store.read().revision == 2
    assert len(names(store)) == 3


def test_of_two_processes_at_most_one_gets_a_revision(store: DirectoryStore) -> None:
    last = 2000
    racers = [start_racer(name, store, last) for name in "ab"]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    won = [[int(line) for line in racer.communicate(timeout=250)[0].splitlines()] for racer in racers]
    revisions = [revision for each in won for revision in each]
    assert len(revisions) == len(set(revisions))
    # A lease that was replaced before its writer looked counts as refused. It is rare.
    assert last / 2 < len(revisions) <= last
    assert all(len(each) > last / 100 for each in won), "one of them had hardly a chance to compete"


def test_a_process_that_is_killed_leaves_a_store_that_works(store: DirectoryStore) -> None:
    for number in range(4):
        racer = start_racer(f"racer {number}", store, 10**6)
        assert racer.stdin is not None
        assert racer.stdout is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
        won = [int(racer.stdout.readline()) for _ in range(20)]
        racer.send_signal(signal.SIGKILL)
        with racer:
            won += [int(line) for line in racer.stdout.read().splitlines()]
        stored = store.read()
        # The last one may have been stored and not reported.
        assert stored.revision - won[-1] in {0, 1}
        assert store.compare_and_set(stored.revision, LEASE) == stored.revision + 1
    fill(store, store.read().revision + module.KEPT_REVISIONS)
    assert not [name for name in names(store) if not name.startswith("lease-")]
    assert len(names(store)) == module.KEPT_REVISIONS


def race_once(monkeypatch: pytest.MonkeyPatch, before_link: Callable[[], None]) -> None:
    """Let something happen directly before the next link."""
    link = os.link

    def link_later(source: Path, target: Path) -> None:
        monkeypatch.setattr(module.os, "link", link)
        before_link()
        link(source, target)

    monkeypatch.setattr(module.os, "link", link_later)


def test_who_comes_second_is_refused(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    race_once(monkeypatch, lambda: fill(store, 1))
    assert store.compare_and_set(0, Lease("late", "late", 1, 1)) is None
    assert store.read() == Stored(1, LEASE)


def test_who_comes_when_the_revision_was_removed_is_refused(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go_on_without_revision_1() -> None:
        fill(store, 3)
        (store.path / f"lease-{1:020d}").unlink()

    race_once(monkeypatch, go_on_without_revision_1)
    assert store.compare_and_set(0, Lease("late", "late", 1, 1)) is None
    assert store.read() == Stored(3, LEASE)


def test_what_a_process_wrote_long_ago_can_no_longer_be_linked(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = module.KEPT_REVISIONS + 5
    race_once(monkeypatch, lambda: fill(store, last))
    with pytest.raises(StoreUnavailable, match="No such file"):
        store.compare_and_set(0, Lease("late", "late", 1, 1))
    assert store.read() == Stored(last, LEASE)


def test_a_link_whose_answer_was_lost_counts_if_it_was_made(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_and_send_again(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(module.os, "link", link_and_send_again)
    assert store.compare_and_set(0, LEASE) == 1


@pytest.mark.parametrize("is_made", [True, False])
def test_a_link_without_an_answer_is_no_answer(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, is_made: bool
) -> None:
    link = os.link

    def link_without_answer(source: Path, target: Path) -> None:
        if is_made:
            link(source, target)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(module.os, "link", link_without_answer)
    with pytest.raises(StoreUnavailable, match="Input/output error"):
        store.compare_and_set(0, LEASE)
    assert store.read() == (Stored(1, LEASE) if is_made else Stored(0, None))


@pytest.mark.parametrize("damage", ["empty", "half", "one bit", "another revision", "garbage", "a directory", "newer"])
def test_what_cannot_be_read_is_no_free_lease(store: DirectoryStore, damage: str) -> None:
    fill(store, 2)
    path = store.path / f"lease-{2:020d}"
    contents = path.read_bytes()
    path.unlink()
    if damage == "a directory":
        path.mkdir()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "half": contents[: len(contents) // 2],
                "one bit": contents.replace(b'"start"', b'"stars"'),
                "another revision": (store.path / f"lease-{1:020d}").read_bytes(),
                "garbage": bytes(range(256)),
                "newer": contents.replace(b'"version":1', b'"version":2'),
            }[damage]
        )
    with pytest.raises(StoreUnavailable) as refusal:
        store.read()
    assert str(store.path) in refusal.value.place


def test_foreign_and_temporary_files_are_left_out(store: DirectoryStore) -> None:
    fill(store, 1)
    for name in ("lease-7", "lease-99999999999999999999.bak", "README", f"new-{9:020d}-{'0' * 16}", ".nfs0001"):
        (store.path / name).write_bytes(b"x")
    assert store.read() == Stored(1, LEASE)
    assert store.compare_and_set(1, LEASE) == 2


@pytest.mark.parametrize("what", ["missing", "empty", "a file"])
def test_a_directory_that_is_not_there_says_what_to_do(tmp_path: Path, what: str) -> None:
    path = tmp_path / "shared leases"
    if what == "empty":
        path.mkdir()
    elif what == "a file":
        path.touch()
    store = DirectoryStore(path)
    with pytest.raises(StoreUnavailable, match="stored" if what != "empty" else "no directory of leases"):
        store.compare_and_set(0, LEASE)
    with pytest.raises(StoreUnavailable, match=r"Mount the directory that all ingest hosts share\.") as refusal:
        store.read()
    assert not path.is_dir() or not list(path.iterdir())
    if what != "a file":
        command = str(refusal.value).split("`")[1]
        subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
        assert store.read() == Stored(0, None)


def test_a_directory_is_prepared_once(store: DirectoryStore) -> None:
    fill(store, module.KEPT_REVISIONS + 1)
    with pytest.raises(FileExistsError):
        DirectoryStore.create(store.path)


def test_only_its_owner_has_access(store: DirectoryStore) -> None:
    fill(store, 1)
    assert store.path.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in store.path.iterdir()} == {0o600}


def test_a_full_disk_is_no_answer(small_disk: Path) -> None:
    store = DirectoryStore.create(small_disk / "leases")
    with (small_disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StoreUnavailable, match="No space left"):
        store.compare_and_set(0, LEASE)
    assert store.read() == Stored(0, None)


def test_threads_of_one_process_do_not_share_a_revision(store: DirectoryStore) -> None:
    won: list[int | None] = []
    barrier = threading.Barrier(8)

    def compete(number: int) -> None:
        barrier.wait()
        won.append(store.compare_and_set(0, Lease(str(number), "a", 1, 1)))

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won, key=str) == [1, *[None] * 7]
