"""What is done to a site's log and to the ingest hosts that read it."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from log_site import LogNode

from tiledwriter.testing import wait_until

from .kinds import Planned, kind
from .shared_log import StoreCopy
from .shared_site import SharedSite
from .site import Site, kill_family

_SPARE_SECONDS: Final = 5.0
"""For which a host is stopped longer than its lease is valid, at least."""


def _of_log(site: Site) -> SharedSite:
    assert isinstance(site, SharedSite)
    return site


# Nodes


@kind("node killed", "jetstream")
def _(site: Site, planned: Planned) -> str:
    shared = _of_log(site)
    with shared.locks["log"]:
        return _kill_nodes(shared, planned, [_node(shared, planned)])


@kind("leader killed", "jetstream")
def _(site: Site, planned: Planned) -> str:
    shared = _of_log(site)
    with shared.locks["log"]:
        if (leader := shared.log.find_leader()) is None:
            return ""
        return _kill_nodes(shared, planned, [leader])


@kind("two nodes killed", "jetstream")
def _(site: Site, planned: Planned) -> str:
    shared = _of_log(site)
    with shared.locks["log"]:
        spared = _node(shared, planned)
        return _kill_nodes(shared, planned, [node for node in shared.log.nodes if node is not spared][:2])


@kind("all nodes killed", "jetstream")
def _(site: Site, planned: Planned) -> str:
    shared = _of_log(site)
    with shared.locks["log"]:
        return _kill_nodes(shared, planned, shared.log.nodes)


@kind("node stopped", "jetstream")
def _(site: Site, planned: Planned) -> str:
    shared = _of_log(site)
    with shared.locks["log"]:
        node = _node(shared, planned)
        node.send(signal.SIGSTOP)
        try:
            shared.pause(planned.seconds(0.5, 20))
        finally:
            node.send(signal.SIGCONT)
    return f"{node.directory.name}, {planned.seconds(0.5, 20):.1f} s"


@kind("node cut off", "jetstream")
def _(site: Site, planned: Planned) -> str:
    """The others do not hear it, nor does it hear them; clients reach all."""
    shared = _of_log(site)
    with shared.locks["log"]:
        node = _node(shared, planned)
        if planned.amount < 0.5:
            node = shared.log.find_leader() or node
        with shared.log.cut_off(node):
            shared.pause(planned.seconds(1, 25))
    return f"{node.directory.name}, {planned.seconds(1, 25):.1f} s"


def _node(site: SharedSite, planned: Planned) -> LogNode:
    return site.log.nodes[int(planned.victim * len(site.log.nodes))]


def _kill_nodes(site: SharedSite, planned: Planned, nodes: Sequence[LogNode]) -> str:
    """Kill nodes at once, and start them again; the lock is held."""
    _kill_at_once(nodes)
    site.pause(planned.seconds(0, 6))
    _bring_up(site, nodes)
    return f"{', '.join(node.directory.name for node in nodes)} for {planned.seconds(0, 6):.1f} s"


def _kill_at_once(nodes: Sequence[LogNode]) -> None:
    for node in nodes:
        node.send(signal.SIGKILL)
    for node in nodes:
        node.kill()


def _bring_up(site: SharedSite, nodes: Sequence[LogNode]) -> None:
    for node in nodes:
        site.bring_up(node)


# What nodes have stored


@kind("store of a node lost", "jetstream")
def _(site: Site, planned: Planned) -> str:
    """It comes back with an empty disk, as another one does that replaces it."""
    shared = _of_log(site)
    with shared.locks["log"]:
        node = _node(shared, planned)
        _kill_at_once([node])
        shutil.rmtree(node.directory / "storage")
        shared.pause(planned.seconds(0, 6))
        _bring_up(shared, [node])
    return node.directory.name


@kind("old store of a node put back", "jetstream")
def _(site: Site, planned: Planned) -> str:
    shared = _of_log(site)
    copy = _take_copy(shared, planned)
    with shared.locks["log"]:
        if copy is None or _is_too_early(shared):
            return ""
        node = _node(shared, planned)
        age = time.monotonic() - copy.taken
        _kill_at_once([node])
        shared.log.put_back(copy, node)
        _bring_up(shared, [node])
    return f"{node.directory.name}, as of {age:.0f} s ago"


@kind("old stores of all nodes put back", "jetstream")
def _(site: Site, planned: Planned) -> str:
    """All of them are killed at once, and have forgotten up to a minute when they are back."""
    shared = _of_log(site)
    copy = _take_copy(shared, planned)
    with shared.locks["log"]:
        if copy is None or _is_too_early(shared):
            return ""
        age = time.monotonic() - copy.taken
        _kill_at_once(shared.log.nodes)
        shared.log.put_back(copy)
        shared.pause(planned.amount * 3)
        _bring_up(shared, shared.log.nodes)
    return f"as of {age:.0f} s ago"


def _take_copy(site: SharedSite, planned: Planned) -> StoreCopy | None:
    """A copy that is up to a minute old by the time that this returns; None if it is too early for it to be used."""
    with site.locks["log"]:
        if _is_too_early(site):
            return None
        copy = site.log.take_copy()
    site.pause(planned.seconds(5, 60))
    return copy


def _is_too_early(site: SharedSite) -> bool:
    """Whether the log was set back within the time of a lease: a second time is beyond what is promised."""
    return site.log.set_back_seconds_ago < 2 * site.setting.lease_seconds


# Ingest hosts


@kind("supervisor ended in order", "jetstream")
def _(site: Site, planned: Planned) -> str:
    host = planned.host(site)
    with site.lock_of(host):
        host.stop()
        site.pause(planned.seconds(0, 6))
        site.bring_up(host)
    return f"host {site.hosts.index(host)}"


@kind("ingest host stopped beyond its lease", "jetstream")
def _(site: Site, planned: Planned) -> str:
    """All its processes stand still for so long that others go on with its runs, and then they go on, too."""
    shared = _of_log(site)
    host = planned.host(site)
    lease = site.setting.lease_seconds
    seconds = planned.seconds(lease + _SPARE_SECONDS, 2 * lease + 2 * _SPARE_SECONDS)
    with site.lock_of(host):
        shared.signal_family(host, stop=True)
        try:
            site.pause(seconds)
        finally:
            shared.signal_family(host, stop=False)
        with suppress(TimeoutError):
            wait_until(lambda: not host.running or site.ending.is_set(), lease, "the host has ended")
    return f"host {site.hosts.index(host)}, {seconds:.0f} s"


@kind("ingest host killed", "jetstream")
def _(site: Site, planned: Planned) -> str:
    """With all its processes, and for so long now and then that others go on with its runs."""
    host = planned.host(site)
    seconds = planned.seconds(0, 2.5 * site.setting.lease_seconds)
    with site.lock_of(host):
        kill_family(host)
        site.pause(seconds)
        site.bring_up(host)
    return f"host {site.hosts.index(host)} for {seconds:.0f} s"


@kind("journals of an ingest host lost", "jetstream")
def _(site: Site, planned: Planned) -> str:
    """It comes back at once, or after others have gone on with its runs."""
    shared = _of_log(site)
    host = planned.host(site)
    seconds = planned.seconds(0, 2 * site.setting.lease_seconds)
    with site.locks["journals"], site.lock_of(host):
        kill_family(host)
        shared.lose_journals(host)
        site.pause(seconds)
        site.bring_up(host)
    return f"host {site.hosts.index(host)} for {seconds:.0f} s"
