"""A TCP connection in the hands of a test: it can be cut, go dead, and lead to another host."""

from __future__ import annotations

import contextlib
import socket
import threading


class Cable(threading.Thread):
    """Between a publisher and a supervisor: it can be cut, and it can carry nothing while both ends think it does."""

    def __init__(self, port: int) -> None:
        super().__init__(name="tiledwriter-test-cable", daemon=True)
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._carries = threading.Event()
        self._carries.set()
        self._closed = False
        self.connections = 0
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Cable:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._carries.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join()
        self.cut()
        for thread in self._threads:
            thread.join()

    def run(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            self.connections += 1
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._carry, args=(source, sink), daemon=True)
                self._threads.append(thread)
                thread.start()

    def lead_to(self, port: int) -> None:
        """Connect to another host from now on, as a service address does that was moved."""
        self._target = ("127.0.0.1", port)
        self.cut()

    def cut(self) -> None:
        """Close every connection; new ones are made at once."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def go_dead(self) -> None:
        """Carry nothing, and tell nobody; what is sent meanwhile is lost with its connection."""
        self._carries.clear()

    def come_back(self) -> None:
        """Carry again, over new connections."""
        self.cut()
        self._carries.set()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._carries.wait()
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
