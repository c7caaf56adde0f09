"""The relay: one address at which publishers reach the supervisors of several targets.

Each target has a supervisor process of its own, with its own journals. The relay passes each message of a publisher on
to all of them, and tells the publisher what `TargetAnswers` makes of their answers. It keeps no documents and no state
that a new relay would need: when it is gone, publishers connect again and are told where to continue.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

import zmq

from ..._errors import ProtocolError
from ..._wake_up import WakeUp
from ...protocol import ServerCurve, messages
from .._publishers import ClientLimits, Publisher
from .._socket_path import SocketPath
from ._frontend import Frontend
from ._relayed_frontend import RELAY_SOCKET
from ._target_answers import TargetAnswers

# Pause between two Pings to each supervisor: one for the relay itself, and one for each publisher, with its lag.
_PING_SECONDS: Final = 1.0
_FIRST_PING_SECONDS: Final = 0.05
_ANSWERS_PER_TURN: Final = 200
# Identity under which the relay itself asks. No publisher's begins with zero.
_OWN_IDENTITY: Final = bytes(messages.IDENTITY_BYTES)

_Socket: TypeAlias = "zmq.Socket[bytes]"


class Relay:
    """Relays messages between publishers and the supervisors of several targets.

    It listens for publishers once the supervisors of all targets have answered. `close` ends the connections. After a
    supervisor has died, close the relay and make another one, so that publishers ask again where to continue.

    Parameters
    ----------
    listen
        ZeroMQ URL to listen at for publishers.
    journal_dirs
        Journal directory of each target, by the target's name. They must exist.
    clients
        Limits for each client.
    curve
        Keys of the service and of the allowed clients; None allows any client.

    Attributes
    ----------
    listening
        True from the time at which all supervisors have answered and publishers can connect.
    """

    def __init__(
        self, listen: str, journal_dirs: Mapping[str, Path], clients: ClientLimits, curve: ServerCurve | None
    ) -> None:
        self.listening = False
        self._answers = TargetAnswers(list(journal_dirs))
        self._context: zmq.Context[_Socket] = zmq.Context()
        self._frontend = Frontend(listen, clients, curve)
        self._paths = {name: SocketPath(directory, RELAY_SOCKET) for name, directory in journal_dirs.items()}
        self._links = {name: self._connect(path) for name, path in self._paths.items()}
        self._answered_at: dict[str, float] = {}
        self._ping_at = 0.0
        self._poller = zmq.Poller()
        for link in self._links.values():
            self._poller.register(link, zmq.POLLIN)

    def _connect(self, path: SocketPath) -> _Socket:
        link = self._context.socket(zmq.DEALER)
        # Nothing may wait for a supervisor that is not there: its publishers send it again.
        link.setsockopt(zmq.IMMEDIATE, 1)
        # The windows of the publishers bound the queues.
        link.setsockopt(zmq.SNDHWM, 0)
        link.setsockopt(zmq.RCVHWM, 0)
        link.setsockopt(zmq.LINGER, 0)
        link.connect(f"ipc://{path.path}")
        return link

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections."""
        self._frontend.close()
        self._context.destroy(linger=0)
        for path in self._paths.values():
            path.close()

    def has_answered_since(self, limit: float) -> bool:
        """Return whether every supervisor has answered since a time of `time.monotonic`."""
        return all(self._answered_at.get(name, 0.0) >= limit for name in self._links)

    def run_once(self, timeout: float, wake_up: WakeUp) -> None:
        """Relay what has arrived; wait for it for at most `timeout` seconds, and until `wake_up` is woken.

        Raises
        ------
        zmq.ZMQError
            The address cannot be listened at.
        """
        self._send_pings()
        self._poller.register(wake_up.fileno(), zmq.POLLIN)
        pause = max(0.0, min(timeout, self._ping_at - time.monotonic()))
        events = dict(self._poller.poll(int(1000 * pause) + 1))
        if wake_up.fileno() in events:
            wake_up.clear()
        for name, link in self._links.items():
            if link in events:
                self._receive_answers(name, link)
        if not self.listening and len(self._answered_at) == len(self._links):
            self._start_listening()
        if self.listening:
            self._receive_from_publishers()

    def _start_listening(self) -> None:
        self._frontend.open()
        self._poller.register(self._frontend.pollable, zmq.POLLIN)
        self.listening = True

    def _receive_from_publishers(self) -> None:
        for publisher, message in self._frontend.receive():
            self._send_to_all(publisher, messages.encode(message))
        self._frontend.check_connections()
        for publisher in self._frontend.take_gone():
            self._answers.forget(publisher.identity)
            self._send_to_all(publisher, [])

    def _send_to_all(self, publisher: Publisher, frames: list[bytes]) -> None:
        for link in self._links.values():
            _send(link, [publisher.identity, publisher.client.encode(), publisher.address.encode(), *frames])

    def _send_pings(self) -> None:
        """Keep the supervisors from forgetting silent publishers, and find out whether they answer."""
        now = time.monotonic()
        if now < self._ping_at:
            return
        self._ping_at = now + (_PING_SECONDS if self.listening else _FIRST_PING_SECONDS)
        for link in self._links.values():
            _send(link, [_OWN_IDENTITY, b"", b"", *messages.encode(messages.Ping(0))])
        for publisher in self._frontend.publishers.values():
            oldest = publisher.oldest_unacknowledged
            age = None if oldest is None else max(0.0, time.time() - oldest)
            ping = messages.Ping(0, publisher.lag_documents, publisher.lag_bytes, age)
            self._send_to_all(publisher, messages.encode(ping))

    def _receive_answers(self, name: str, link: _Socket) -> None:
        for _ in range(_ANSWERS_PER_TURN):
            try:
                identity, *frames = link.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._answered_at[name] = time.monotonic()
            publisher = self._frontend.publishers.get(identity)
            if publisher is None:
                continue
            try:
                answer = messages.decode(frames)
            except ProtocolError:
                # Of a supervisor of another version, while it is being replaced.
                continue
            for message in self._answers.merge(identity, name, answer):
                self._frontend.send(publisher, message)


def _send(link: _Socket, frames: list[bytes]) -> None:
    try:
        link.send_multipart(frames, zmq.NOBLOCK)
    except zmq.Again:
        # There is no connection. The supervisor asks for what it lacks, or has died, which ends this relay.
        return
