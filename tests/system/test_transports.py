"""Documents go from the callback to Tiled over each transport, whatever becomes of the other end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
from runs import documents, publish, seq_nums
from transports import Transport

from tiledbroker.supervisor import ClientLimits, Supervisor, WorkerCommand
from tiledwriter.testing import TiledServer, journal_of, wait_until

pytestmark = [pytest.mark.filterwarnings("default:::tiled")]


@contextmanager
def supervising(
    journals: Path, worker_command: WorkerCommand, transport: Transport, address: str, limits: ClientLimits
) -> Iterator[Supervisor]:
    """A supervisor in a thread of this process."""
    supervisor = Supervisor(journals, worker_command, partial(transport.source, address, limits), clients=limits)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_runs_are_written_whole_though_the_supervisor_ends_in_the_middle(
    transport: Transport, worker_command: WorkerCommand, tiled_server: TiledServer, tmp_path: Path
) -> None:
    # A few documents fill the window.
    address, limits = transport.new_site(), ClientLimits(window=20_000)
    runs = [documents(300) for _ in range(3)]
    uids = [str(emitted[0][1]["uid"]) for emitted in runs]
    journals = tmp_path / "journals"
    with closing(transport.publisher(address, spool_dir=tmp_path / "spool")) as publisher:
        for emitted in runs:
            publish(publisher, emitted[:100])
        assert publisher.status().problem or not transport.is_wire
        with supervising(journals, worker_command, transport, address, limits):
            assert publisher.flush(60)
            assert publisher.status().connected
            for emitted in runs:
                publish(publisher, emitted[100:200])
        if transport.is_wire:
            wait_until(lambda: not publisher.status().connected, 60, "the end is noticed")
        for emitted in runs:
            publish(publisher, emitted[200:])
        with supervising(journals, worker_command, transport, address, limits):
            assert all(publisher.wait_written(uid, 60) for uid in uids)
            wait_until(lambda: not publisher.status().kept, 60, "the spool is empty")
    for uid in uids:
        assert seq_nums(tiled_server, uid) == list(range(1, 301))
        with journal_of(journals, uid) as journal:
            assert journal.length == 303


def test_several_publishers_are_told_apart(
    wire: Transport, worker_command: WorkerCommand, tiled_server: TiledServer, tmp_path: Path
) -> None:
    address = wire.new_site()
    with (
        supervising(tmp_path / "journals", worker_command, wire, address, ClientLimits()) as supervisor,
        ExitStack() as publishers,
    ):
        made = [
            publishers.enter_context(closing(wire.publisher(address, spool_dir=tmp_path / name, name=name)))
            for name in ("first", "second")
        ]
        uids = [publish(publisher, documents()) for publisher in made]
        assert all(publisher.wait_written(uid, 60) for publisher, uid in zip(made, uids, strict=True))
        assert not any(publisher.status().problem for publisher in made)
        known = [publisher.name.partition("/")[0] for publisher in supervisor._source.publishers.values()]
        assert sorted(known) == ["first", "second"]
