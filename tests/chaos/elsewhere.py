"""Another destination: a supervisor of its own, with a journal directory and a container in Tiled that are its own."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import httpx

from tiledwriter.testing import SupervisorProcess, TiledServer, free_port

from .referee import CONTAINER


class Elsewhere:
    """It runs between `start` and `stop`; at other times nobody listens at its address."""

    def __init__(self, directory: Path, server: TiledServer) -> None:
        directory.mkdir(parents=True)
        self.mutex = threading.Lock()
        self.journal_dir = directory / "journals"
        self._server = server
        target = SimpleNamespace(
            uri=f"{server.uri}/api/v1/metadata/{CONTAINER}", api_key=server.api_key, storage=server.storage
        )
        self._supervisor = SupervisorProcess(self.journal_dir, target, port=free_port())
        self.address = self._supervisor.address
        self._make_container()

    def start(self) -> None:
        self._supervisor.start()

    def stop(self) -> None:
        self._supervisor.stop()

    def _make_container(self) -> None:
        """Runs written here are in a container, and no others are."""
        response = httpx.post(
            f"{self._server.uri}/api/v1/metadata/",
            json={
                "id": CONTAINER,
                "structure_family": "container",
                "metadata": {},
                "data_sources": [],
                "specs": [],
            },
            headers={"Authorization": f"Apikey {self._server.api_key}"},
            timeout=60.0,
        )
        response.raise_for_status()
