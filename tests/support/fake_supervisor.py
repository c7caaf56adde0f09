"""The supervisor's end of the status socket, in the hands of a test: it answers what the test wants, or nothing."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tiledbroker.supervisor._status_socket import STATUS_SOCKET


class FakeSupervisor:
    """Serves a snapshot at the socket in a journal directory.

    Attributes
    ----------
    snapshot
        What is answered: JSON, or bytes as they are; None accepts connections and says nothing, as one that hangs.
    asked
        How often it was asked.
    """

    def __init__(self, journal_dir: Path, snapshot: dict[str, Any] | bytes | None) -> None:
        self.snapshot = snapshot
        self.asked = 0
        self.path = journal_dir / STATUS_SOCKET
        self._held: list[socket.socket] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FakeSupervisor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        # Paths in test directories may be too long for Unix sockets.
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            self._listener.bind(f"/proc/self/fd/{directory}/{self.path.name}")
        finally:
            os.close(directory)
        self.path.chmod(0o600)
        self._listener.listen(16)
        self._listener.settimeout(0.05)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._serve, name="tiledwriter-fake-supervisor")
        self._thread.start()

    def stop(self) -> None:
        """End as a supervisor does: the socket is gone."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._listener.close()
        for connection in self._held:
            connection.close()
        self._held.clear()
        self.path.unlink(missing_ok=True)

    def _present(self) -> str:
        """Return the snapshot as if it were made now; no supervisor sends an old one."""
        return json.dumps({**(self.snapshot or {}), "now": time.time()})

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.asked += 1
            if self.snapshot is None:
                self._held.append(connection)
                continue
            body = self.snapshot if isinstance(self.snapshot, bytes) else self._present().encode()
            with connection:
                connection.settimeout(5.0)
                try:
                    connection.sendall(body)
                except OSError:
                    continue
