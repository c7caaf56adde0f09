"""The cable between publishers and supervisor: TCP connections passed on, delayed, cut, or left without a word."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Final

_BLOCK: Final = 65_536
_RESET: Final = struct.pack("ii", 1, 0)


class _Link:
    """One connection of a client, and ours to the server on its behalf."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends = (client, server)
        self.silent = False  # whatever comes is swallowed, for ever
        self.ended = 0  # directions in which nothing will come any more

    def cut(self) -> None:
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RDWR)


class Wire:
    """Listens at a port of its own, and connects to `upstream` on the loopback interface.

    As a context manager it starts on entry, and cuts everything on exit.
    """

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._links: set[_Link] = set()
        self._mutex = threading.Lock()
        self._open = threading.Event()
        self._open.set()
        self._swallows = False
        self._threads: set[threading.Thread] = set()
        self._acceptor = threading.Thread(target=self._accept, name="wire", daemon=True)

    def __enter__(self) -> Wire:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.resume()
        self._acceptor.join()
        self.cut()
        for thread in list(self._threads):
            thread.join(5.0)

    @property
    def busy(self) -> bool:
        """Whether there are connections."""
        return bool(self._links)

    def cut(self) -> None:
        """Reset all connections."""
        for link in self._all():
            link.cut()

    def half_close(self, *, of_clients: bool) -> None:
        """Tell one side of all connections that nothing will come any more; go on passing what it says."""
        for link in self._all():
            with contextlib.suppress(OSError):
                link.ends[0 if of_clients else 1].shutdown(socket.SHUT_WR)

    def hold(self) -> None:
        """Pass nothing on until `resume`; nothing is lost."""
        self._open.clear()

    def swallow(self) -> None:
        """Lose what comes, on connections that are and on those that come until `resume`; they stay silent then."""
        self._swallows = True
        for link in self._all():
            link.silent = True

    def resume(self) -> None:
        self._swallows = False
        self._open.set()

    def _all(self) -> list[_Link]:
        with self._mutex:
            return list(self._links)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream), timeout=5.0)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            link = _Link(client, server)
            link.silent = self._swallows
            with self._mutex:
                self._links.add(link)
            for source, sink in (link.ends, link.ends[::-1]):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=self._pass_on, args=(link, source, sink), name="wire", daemon=True)
                self._threads.add(thread)
                thread.start()

    def _pass_on(self, link: _Link, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(_BLOCK):
                self._open.wait()
                if not link.silent:
                    with contextlib.suppress(BrokenPipeError):  # that side was told that nothing will come
                        sink.sendall(data)
            if not link.silent:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            link.cut()
        self._ended(link)

    def _ended(self, link: _Link) -> None:
        """Called by both threads of a link. A silent one stays open at the end that has not gone."""
        with self._mutex:
            self._threads.discard(threading.current_thread())
            link.ended += 1
            if link.ended < len(link.ends):
                return
            self._links.discard(link)
        for end in link.ends:
            end.close()


class Wires:
    """Several of them, to which the same is done."""

    def __init__(self, wires: Sequence[Wire]) -> None:
        self._wires = wires
        self.address = ",".join(wire.address for wire in wires)

    @property
    def busy(self) -> bool:
        """Whether there are connections."""
        return any(wire.busy for wire in self._wires)

    def cut(self) -> None:
        """Reset all connections."""
        for wire in self._wires:
            wire.cut()

    def half_close(self, *, of_clients: bool) -> None:
        """Tell one side of all connections that nothing will come any more; go on passing what it says."""
        for wire in self._wires:
            wire.half_close(of_clients=of_clients)

    def hold(self) -> None:
        """Pass nothing on until `resume`; nothing is lost."""
        for wire in self._wires:
            wire.hold()

    def swallow(self) -> None:
        """Lose what comes, on connections that are and on those that come until `resume`; they stay silent then."""
        for wire in self._wires:
            wire.swallow()

    def resume(self) -> None:
        for wire in self._wires:
            wire.resume()
