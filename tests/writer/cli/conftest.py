"""A host with everything that the examples of the commands name."""

from __future__ import annotations

import gc
import shlex
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from log_site import LogSite
from logged_runs import log_run, tell
from runs import supervisor_without_tiled
from stored_runs import a_run, journaled, write

from tiledbroker import Journal, ZMQPublisher
from tiledwriter.cli import journal as command
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port


def named_run(uid: str) -> list[tuple[str, dict[str, Any]]]:
    """A run that has this uid."""
    documents = a_run()
    return [(name, {key: uid if value == documents[0][1]["uid"] else value for key, value in document.items()})
            for name, document in documents]  # fmt: skip


class Host:
    """A host of which a command line is written for the names in the documentation.

    Parameters
    ----------
    home
        Directory for everything; also the working directory.
    tiled
        The Tiled server.
    """

    def __init__(self, home: Path, tiled: TiledServer) -> None:
        self.home = home
        self.journals = home / "journals"
        self.keys = home / "keys"
        self.tiled = tiled
        self.address = "tcp://127.0.0.1:1"
        self.log = "nats://127.0.0.1:1"
        self.config = home / "config.yaml"
        self.config.write_text(f"tiled: {tiled.uri}\njournal_dir: {self.journals}\n")

    def add_run(self, outcome: str | None) -> Path:
        """Make the journal of the run that examples name; without an outcome, write it to Tiled."""
        path = journaled(named_run(f"3f2b{str(uuid.uuid4())[4:]}"), self.journals)
        if outcome is None:
            assert write(path, self.tiled) == "written"
        else:
            with Journal(path, "write") as journal:
                journal.set("outcome", outcome)
                journal.note(outcome)
        return path

    def add_spools(self) -> None:
        """Leave runs for an address, at which nobody listens yet, in its default spool and in ~/spool."""
        self.address = f"tcp://127.0.0.1:{free_port()}"
        for directory in (None, self.home / "spool"):
            publisher = ZMQPublisher(self.address, spool_dir=directory)
            for name, document in a_run():
                publisher(name, document)
            publisher.close(timeout=0)

    def words_of(self, line: str) -> list[str]:
        """Return the arguments of a documented command line, as a shell on this host would give them."""
        names = {
            "http://tiled.example:8000": self.tiled.uri,
            "tcp://ingest.example:5579": self.address,
            "/etc/tiledwriter/config.yaml": str(self.config),
            "/etc/tiledwriter/keys": str(self.keys),
            "/var/lib/tiledwriter": str(self.journals),
            "nats://log1": self.log,
            "~/spool": str(self.home / "spool"),
        }
        words = shlex.split(line.partition(" | ")[0])[1:]
        return [found for word in words for found in (self._files_of(word) or [names.get(word, word)])]

    def _files_of(self, pattern: str) -> list[str]:
        return sorted(map(str, self.home.glob(pattern))) if "*" in pattern else []


@pytest.fixture
def host(tmp_path: Path, tiled_server: TiledServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host with journals of no run."""
    home = tmp_path / "home"
    home.mkdir()
    host = Host(home, tiled_server)
    monkeypatch.setenv("TILED_API_KEY", tiled_server.api_key)
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("TILEDWRITER_JOURNAL_DIR", str(host.journals))
    monkeypatch.setenv("TILEDWRITER_QUIET_PERIOD", "0.3")
    monkeypatch.chdir(home)
    yield host
    # Clients of Tiled leave their connections to the garbage collector, which warns of them in whatever test runs then.
    gc.collect()


@pytest.fixture
def prepared(host: Host, tmp_path: Path) -> Iterator[Callable[[str, str], Host]]:
    """Makes what an example of a subcommand names."""
    with ExitStack() as running:

        def prepare(name: str, line: str = "") -> Host:
            host.add_run({"retry": "failed", "verify": None}.get(name, "written"))
            if name in ("ship", "ls"):
                host.add_spools()
            if name == "ship":
                port = int(host.address.rpartition(":")[2])
                running.enter_context(supervisor_without_tiled(tmp_path / "received", port=port))
            if "--wait" in line:
                running.enter_context(SupervisorProcess(host.journals, host.tiled))
            if "--source" in line:
                site = running.enter_context(LogSite(tmp_path / "log"))
                host.log = str(site.address)
                documents = named_run(f"3f2b{str(uuid.uuid4())[4:]}")
                tell(site, str(documents[0][1]["uid"]), log_run(site, documents), outcome="written")
            elif name == "replay":
                (host.home / "backups").mkdir()
                for file in (host.home / "run.jsonl", host.home / "backups" / "a.jsonl"):
                    assert command.main(["export", "3f2b", "-o", str(file)]) == 0
            return host

        yield prepare
