"""The worker pool: the processes that the scheduler has asked for, and the socket to talk to them."""

from __future__ import annotations

import logging
import secrets
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import zmq

from .._errors import ProtocolError
from .._rate_limited_log import RateLimitedLog
from ..protocol import messages
from ._fork_server import ForkServer, WorkerProcess
from ._socket_path import SocketPath
from ._tasks import ProcessIdentity, WorkerCommand, WorkerTask

log = logging.getLogger(__name__)

# Time to wait for the end of killed workers.
_KILL_TIMEOUT_SECONDS: Final = 2.0
_KILL_POLL_SECONDS: Final = 0.1
_MESSAGES_PER_TURN: Final = 200

_Socket: TypeAlias = "zmq.Socket[bytes]"


class ProcessTable(Protocol):
    """Access to processes. `tiledwriter` implements it with psutil, which acquisition hosts do not install."""

    def identity(self, pid: int) -> ProcessIdentity | None:
        """Return the pid and creation time of a living process, since pids are reused; None if it is gone."""

    def memory(self, pid: int) -> int | None:
        """Return the resident memory in bytes; None if the process is gone."""

    def is_alive(self, process: ProcessIdentity) -> bool:
        """Return whether this process is alive, not another one with the same pid."""

    def kill(self, process: ProcessIdentity) -> bool:
        """Kill this process with SIGKILL; return False if it is gone."""


class WorkerPool:
    """Worker processes by the numbers that the scheduler gave them.

    Parameters
    ----------
    journal_dir
        Directory of the journals; the workers' socket is in it.
    command
        What a worker runs.
    processes
        Access to processes. None: memory is not known, and orphans count as gone.
    drain
        Workers end once everything in their journals is written.
    lease_page
        See `WorkerTask`.
    """

    def __init__(
        self,
        journal_dir: Path,
        command: WorkerCommand,
        processes: ProcessTable | None,
        *,
        drain: bool,
        lease_page: Path | None = None,
    ) -> None:
        self.fork_server = ForkServer(command)
        self._journal_dir = journal_dir
        self._processes = processes
        self._drain = drain
        self._lease_page = lease_page
        # Tokens are unique to this pool: a worker of a killed supervisor may live on for a moment and find our socket.
        self._session = secrets.token_hex(8)
        self._workers: dict[int, WorkerProcess] = {}
        self._numbers: dict[WorkerProcess, int] = {}
        self._tokens: dict[bytes, int] = {}
        self._identities: dict[int, ProcessIdentity] = {}
        self._limited_log = RateLimitedLog(log)
        self._mailbox_path: SocketPath | None = None

    def open(self, context: zmq.Context[_Socket]) -> None:
        """Bind the workers' socket.

        Raises
        ------
        DirectoryUnusable
            The path of the journal directory is too long for a socket, and the system has no `/proc`.
        """
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # Messages to workers are bounded by the publishers' windows.
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self._mailbox_path = SocketPath(self._journal_dir, ".workers.ipc")
        self._mailbox = f"ipc://{self._mailbox_path.path}"
        self.socket.bind(self._mailbox)

    def close(self) -> None:
        """End the fork server, and close all lifelines, upon which workers end."""
        self.fork_server.close()
        if self._mailbox_path is not None:
            self._mailbox_path.close()

    def token(self, number: int) -> bytes:
        """Return the identity of a worker on the workers' socket."""
        return f"{self._session}-{number}".encode()

    def start(self, number: int, uid: str, journal: Path, order: float, client: str) -> None:
        """Request a worker process; `receive_changes` reports whether it was forked.

        Raises
        ------
        OSError
            No worker can be requested now.
        """
        token = self.token(number)
        task = WorkerTask(self._mailbox, token, uid, journal, self._drain, order, client, self._lease_page)
        process = self._workers[number] = self.fork_server.start_worker(task)
        self._numbers[process] = self._tokens[token] = number

    def remove(self, number: int) -> None:
        """Forget a worker that has ended, or was never forked."""
        process = self._workers.pop(number)
        del self._numbers[process], self._tokens[self.token(number)]
        self._identities.pop(number, None)

    def send(self, number: int, message: messages.Message) -> bool:
        """Send a message to a worker; return False if it is gone, or does not listen yet."""
        try:
            self.socket.send_multipart([self.token(number), *messages.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            log.debug("Worker %d does not listen, or is gone before its process is seen to end.", number)
            return False
        return True

    def receive_messages(self) -> Iterator[tuple[int, messages.Message]]:
        """Yield the messages of workers that can be read without waiting, a limited number of them."""
        for _ in range(_MESSAGES_PER_TURN):
            try:
                token, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            number = self._tokens.get(token)
            if number is None:
                # A worker of an earlier supervisor sent it, or one of ours that has ended.
                continue
            try:
                yield number, messages.decode(frames)
            except ProtocolError as error:
                self._limited_log.log(logging.ERROR, "workers", "A worker sent no valid message: %s", error)

    def receive_changes(self) -> list[tuple[int, WorkerProcess]]:
        """Return the workers that were forked, could not be forked, or have ended, without waiting."""
        changed = [(self._numbers[process], process) for process in self.fork_server.receive()]
        for number, process in changed:
            if self._processes is not None and process.pid is not None and not process.ended:
                identity = self._processes.identity(process.pid)
                if identity is not None:
                    self._identities[number] = identity
        return changed

    def kill(self, number: int) -> None:
        """Kill a worker process with SIGKILL."""
        if self._processes is not None and number in self._identities:
            self._processes.kill(self._identities[number])
        elif number in self._workers:
            self._workers[number].kill()

    def list_pids(self) -> dict[int, int | None]:
        """Return the pids of the workers by number; None for one that is not forked yet."""
        return {number: process.pid for number, process in self._workers.items()}

    def measure_memory(self) -> dict[int, int]:
        """Return the resident bytes of the workers by number, as far as they can be read."""
        if self._processes is None:
            return {}
        sizes = {number: self._processes.memory(pid) for number, (pid, _) in self._identities.items()}
        return {number: size for number, size in sizes.items() if size is not None}

    def is_alive(self, process: ProcessIdentity) -> bool:
        """Return whether a worker of an earlier supervisor is known to be alive."""
        return self._processes is not None and self._processes.is_alive(process)

    def kill_process(self, process: ProcessIdentity) -> None:
        """Kill a worker of an earlier supervisor with SIGKILL."""
        if self._processes is not None:
            self._processes.kill(process)

    def kill_all(self) -> list[int]:
        """Kill the workers that still run, wait for their ends, and return their numbers."""
        running = {
            number: process
            for number, process in self._workers.items()
            if process.pid is not None and not process.ended
        }
        for process in running.values():
            process.kill()
        deadline = time.monotonic() + _KILL_TIMEOUT_SECONDS
        while time.monotonic() < deadline and not all(process.ended for process in running.values()):
            select.select([self.fork_server], [], [], _KILL_POLL_SECONDS)
            self.fork_server.receive()
        return list(running)
