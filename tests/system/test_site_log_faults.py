"""Nodes of a site's log die and are set back, hosts are replaced: each run is whole, once and in order."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from log_site import LogSite
from memory_host import MemoryHost, MemoryJournal
from runs import documents, publish

from tiledbroker import JetStreamPublisher, decode
from tiledbroker.protocol import messages
from tiledbroker.supervisor import ClientLimits
from tiledbroker.supervisor.jetstream_source import JetStreamSource
from tiledwriter.testing import wait_until

ROUNDS = 10
EVENTS = 300
CHUNK = 20
BEAMLINES = ("csx", "hxn", "six")


class Faults:
    """What can happen to a site, one after the other.

    Attributes
    ----------
    host
        The host that reads the log.
    happened
        Names of what has happened.
    """

    def __init__(self, site: LogSite, directory: Path, chance: random.Random) -> None:
        self.site = site
        self.happened: list[str] = []
        self.host = MemoryHost(JetStreamSource(site.address, ClientLimits(), keep_in_log=3600.0))
        self.host.__enter__()
        self._directory = directory
        self._chance = chance
        self._saved: Path | None = None

    def strike(self) -> None:
        """Let one of the faults happen."""
        faults: list[Callable[[], None]] = [
            self.kill_a_node,
            self.kill_all_nodes,
            self.save_state,
            self.set_state_back,
            self.restart_host,
            self.replace_host,
        ]
        fault = self._chance.choice(faults)
        self.happened.append(fault.__name__)
        fault()

    def kill_a_node(self) -> None:
        self.site.start()
        self._chance.choice(self.site.nodes).kill()

    def kill_all_nodes(self) -> None:
        for node in self.site.nodes:
            node.kill()
        self.site.start()

    def save_state(self) -> None:
        for node in self.site.nodes:
            node.kill()
        self._saved = self._directory / f"saved-{len(self.happened)}"
        self.site.save(self._saved)
        self.site.start()

    def set_state_back(self) -> None:
        if self._saved is None:
            return
        for node in self.site.nodes:
            node.kill()
        self.site.set_back(self._saved)
        self.site.start()

    def restart_host(self) -> None:
        self._begin_host(self.host.journals)

    def replace_host(self) -> None:
        self._begin_host({})

    def _begin_host(self, journals: dict[str, MemoryJournal]) -> None:
        self.end()
        self.host = MemoryHost(JetStreamSource(self.site.address, ClientLimits(), keep_in_log=3600.0), journals)
        self.host.__enter__()

    def end(self) -> None:
        self.host.__exit__()


@pytest.mark.parametrize("seed", [1, 2])
def test_each_run_is_whole_whatever_happens_to_nodes_and_hosts(seed: int, tmp_path: Path) -> None:
    runs = {beamline: documents(EVENTS) for beamline in BEAMLINES}
    uids = {beamline: str(emitted[0][1]["uid"]) for beamline, emitted in runs.items()}
    with LogSite(tmp_path / "log", nodes=3) as site, ExitStack() as stack:
        publishers = {
            beamline: stack.enter_context(
                closing(
                    JetStreamPublisher(site.address.servers, beamline=beamline, spool_dir=tmp_path / f"of-{beamline}")
                )
            )
            for beamline in BEAMLINES
        }
        chance = random.Random(seed)
        faults = Faults(site, tmp_path, chance)
        stack.callback(faults.end)
        for number in range(ROUNDS):
            for beamline, publisher in publishers.items():
                publish(publisher, runs[beamline][number * CHUNK : (number + 1) * CHUNK])
            if chance.random() < 0.6:
                # Otherwise documents are on their way.
                assert all(publisher.flush(120) for publisher in publishers.values()), faults.happened
            faults.strike()
        site.start()
        for beamline, publisher in publishers.items():
            publish(publisher, runs[beamline][ROUNDS * CHUNK :])
        for beamline, publisher in publishers.items():
            assert publisher.wait_written(uids[beamline], 120), (faults.happened, publisher.status())
        for beamline, publisher in publishers.items():
            wait_until(lambda p=publisher: not p.status().kept, 60, "the spool is empty")
            assert site.indexes(beamline, uids[beamline]) == list(range(EVENTS + 3)), faults.happened
            assert logged(site, beamline, uids[beamline]) == [doc["uid"] for _, doc in runs[beamline]]
            assert len(faults.host.journals[uids[beamline]].documents) == EVENTS + 3


def logged(site: LogSite, beamline: str, uid: str) -> list[Any]:
    """The uids of a run's documents in the log, in their order."""
    bodies = [
        body
        for entry in site.entries(beamline, uid)
        if isinstance(entry, messages.Documents)
        for _, _, body in entry.unpack()
    ]
    return [decode(body)["uid"] for body in bodies]
