"""A fork server: a process that has imported the workers' modules and forks workers in milliseconds.

The supervisor and the fork server communicate over a socket pair. It has no name in the file system, so no cleaner of
temporary files can remove it. The supervisor never blocks on the fork server: it requests a worker, and a later report
says that the worker was forked. Each worker shares another socket pair with the supervisor, its lifeline. Nothing is
sent on it; when one end dies, the other end sees the closed connection, even if the fork server is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import itertools
import logging
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from .._rate_limited_log import RateLimitedLog

if TYPE_CHECKING:
    from ._tasks import WorkerCommand, WorkerTask

log = logging.getLogger(__name__)

FORK_TIMEOUT_SECONDS: Final = 120.0
"""A request that is unanswered for this long means that the fork server hangs. The time includes its imports."""

_RESTART_PAUSE_SECONDS: Final = 1.0
_START_TIMEOUT_SECONDS: Final = 5.0
_END_TIMEOUT_SECONDS: Final = 2.0
_RECEIVE_BYTES: Final = 65_536

# Length of the pickled modules to preload and worker target that follow.
_OPENING: Final = struct.Struct("=I")
# Number of the worker, length of the pickled task that follows.
_REQUEST: Final = struct.Struct("=QI")
# In the place of a worker's number: what follows is another worker target.
_CHANGE_TARGET: Final = 0
# Number of the worker; one of the kinds below; pid, exit code, errno or length of what follows, depending on the kind.
_REPORT: Final = struct.Struct("=QBi")
_FORKED: Final = 1
_ENDED: Final = 2
_NOT_FORKED: Final = 3
_NOT_PREPARED: Final = 4

# It gets this process's `sys.path`, so that it can import the same modules. `ps` shows the program text, so it must not
# contain anything that workers are told.
_PROGRAM: Final = (
    "import sys; sys.path[:] = {path}; from tiledbroker.supervisor._fork_server import serve; serve({descriptor})"
)

_Target: TypeAlias = "Callable[[WorkerTask], None]"


@dataclasses.dataclass(eq=False)
class WorkerProcess:
    """A worker process, from the moment it is requested.

    Attributes
    ----------
    lifeline
        The supervisor's end of the socket pair shared with the worker.
    asked_at
        Time of the request (`time.monotonic`).
    pid
        None until the worker is forked.
    ended
        The process is gone, or was never forked if there is no `pid`.
    exit_code
        Negative for a signal. None while it is unknown, and for good if the fork server died before the worker.
    """

    lifeline: socket.socket = dataclasses.field(repr=False)
    asked_at: float
    pid: int | None = None
    ended: bool = False
    exit_code: int | None = None

    def kill(self) -> None:
        """Kill the process with SIGKILL. A worker that is not forked yet ends by itself when its lifeline closes."""
        if self.pid is not None and not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class ForkServer:
    """The supervisor's side of the fork server. One that has died or hangs is restarted; its workers keep running.

    Parameters
    ----------
    command
        What a worker runs, and the modules to import beforehand.

    Attributes
    ----------
    unusable
        Why workers could not be prepared when the first fork server was started, in which case it has forked none; ""
        otherwise.
    """

    def __init__(self, command: WorkerCommand) -> None:
        self.unusable = ""
        self._command = command
        self._is_first_start = True
        self._numbers = itertools.count(1)
        self._workers: dict[int, WorkerProcess] = {}
        self._unreported_changes: dict[WorkerProcess, None] = {}
        self._selector = selectors.DefaultSelector()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._reports = b""
        self._start_at = 0.0
        self._limited_log = RateLimitedLog(log)

    @property
    def pid(self) -> int | None:
        """The fork server's pid; None while there is none."""
        return None if self._process is None else self._process.pid

    def fileno(self) -> int:
        """Return a descriptor that is readable when `receive` has something to return."""
        return self._selector.fileno()

    @property
    def has_changes(self) -> bool:
        """Whether `receive` has something to return although `fileno` need not be readable."""
        return bool(self._unreported_changes) or bool(self.unusable)

    def ensure_running(self) -> None:
        """Start the fork server unless it is running.

        Raises
        ------
        OSError
            It cannot be started, or the last attempt was less than `_RESTART_PAUSE_SECONDS` ago.
        """
        if self._process is not None:
            return
        now = time.monotonic()
        if now < self._start_at:
            raise OSError(errno.ECHILD, "the fork server ended a moment ago")
        self._start_at = now + _RESTART_PAUSE_SECONDS
        command = self._command
        opening = bytes(ForkingPickler.dumps((command.preload, command.prepare, command.target, self._is_first_start)))
        control, theirs = socket.socketpair()
        with theirs:
            program = _PROGRAM.format(path=list(sys.path), descriptor=theirs.fileno())
            try:
                process = subprocess.Popen(  # noqa: S603  it is this program
                    [sys.executable, "-c", program],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), *command.descriptors],
                )
            except BaseException:
                control.close()
                raise
        try:
            # The opening is far smaller than the socket's send buffer, so `sendall` returns although nobody reads yet.
            control.settimeout(_START_TIMEOUT_SECONDS)
            control.sendall(_OPENING.pack(len(opening)) + opening)
        except BaseException:
            control.close()
            process.kill()
            process.wait()
            raise
        control.setblocking(False)
        self._process, self._control, self._reports, self._is_first_start = process, control, b"", False
        self._selector.register(control, selectors.EVENT_READ)

    def start_worker(self, task: WorkerTask) -> WorkerProcess:
        """Request a worker; `receive` reports whether it was forked.

        Raises
        ------
        OSError
            No worker can be requested now.
        """
        self.ensure_running()
        assert self._control is not None
        number = next(self._numbers)
        lifeline, theirs = socket.socketpair()
        try:
            body = bytes(ForkingPickler.dumps(task))
            request = _REQUEST.pack(number, len(body)) + body
            if socket.send_fds(self._control, [request], [theirs.fileno()]) != len(request):
                self._drop_server("took a part of a request only")
                raise BrokenPipeError(errno.EPIPE, "the fork server took a part of a request only")
        except BaseException:
            lifeline.close()
            raise
        finally:
            theirs.close()
        worker = self._workers[number] = WorkerProcess(lifeline, time.monotonic())
        return worker

    def change_command(self, command: WorkerCommand) -> None:
        """Run another command in workers from now on; its modules and descriptors must be the same."""
        self._command = command
        if self._control is None:
            return
        body = bytes(ForkingPickler.dumps(command.target))
        request = _REQUEST.pack(_CHANGE_TARGET, len(body)) + body
        try:
            is_sent = self._control.send(request) == len(request)
        except OSError:
            is_sent = False
        if not is_sent:
            self._drop_server("took no new command")

    def receive(self) -> list[WorkerProcess]:
        """Read reports without waiting, and return the workers that were forked, could not be forked, or have ended."""
        for key, _ in self._selector.select(0):
            if key.fileobj is self._control:
                self._read_reports()
            elif key.data in self._workers:
                # Its fork server is gone, so nobody reports its exit code.
                self._mark_ended(key.data, None)
        changed, self._unreported_changes = list(self._unreported_changes), {}
        return changed

    def check(self, now: float) -> None:
        """Start a fork server if there is none; kill one that hangs, so that `receive` reports its loss."""
        unforked = [worker.asked_at for worker in self._workers.values() if worker.pid is None]
        if unforked and now - min(unforked) >= FORK_TIMEOUT_SECONDS and self._process is not None:
            log.error("The fork server has not answered for %.0f s; starting another.", FORK_TIMEOUT_SECONDS)
            self._process.kill()
        elif self._process is None:
            with contextlib.suppress(OSError):
                self.ensure_running()

    def close(self) -> None:
        """End the fork server and close all lifelines, upon which the workers end."""
        self._stop_process()
        for worker in self._workers.values():
            worker.lifeline.close()
        self._workers.clear()
        self._selector.close()

    def _read_reports(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop_server(str(error))
            return
        self._reports += data
        while len(self._reports) >= _REPORT.size:
            number, kind, value = _REPORT.unpack_from(self._reports)
            end = _REPORT.size + (value if kind == _NOT_PREPARED else 0)
            if len(self._reports) < end:
                break
            body, self._reports = self._reports[_REPORT.size : end], self._reports[end:]
            if kind == _NOT_PREPARED:
                self._note_unprepared(body.decode(), is_first=bool(number))
            elif number in self._workers:
                self._apply_report(number, kind, value)
        if not data and not self.unusable:
            self._drop_server("ended")

    def _note_unprepared(self, problem: str, *, is_first: bool) -> None:
        if is_first:
            self.unusable = problem
        else:
            self._limited_log.log(logging.ERROR, "prepare", "Workers are not prepared: %s.", problem)

    def _apply_report(self, number: int, kind: int, value: int) -> None:
        if kind == _FORKED:
            worker = self._workers[number]
            worker.pid = value
            self._unreported_changes[worker] = None
            return
        if kind == _NOT_FORKED:
            self._limited_log.log(logging.ERROR, "fork", "No worker can be forked: %s.", os.strerror(value))
        self._mark_ended(number, value if kind == _ENDED else None)

    def _mark_ended(self, number: int, exit_code: int | None) -> None:
        worker = self._workers.pop(number)
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.lifeline)
        worker.lifeline.close()
        worker.ended, worker.exit_code = True, exit_code
        self._unreported_changes[worker] = None

    def _drop_server(self, why: str) -> None:
        """Drop the fork server and watch its workers by their lifelines from now on."""
        exit_code = self._stop_process()
        message = "The fork server %s (exit code %s); starting another."
        self._limited_log.log(logging.ERROR, "lost", message, why, exit_code)
        for number, worker in list(self._workers.items()):
            if worker.pid is None:
                self._mark_ended(number, None)
            elif worker.lifeline not in self._selector.get_map():
                self._selector.register(worker.lifeline, selectors.EVENT_READ, number)

    def _stop_process(self) -> int | None:
        if self._process is None:
            return None
        assert self._control is not None
        self._selector.unregister(self._control)
        self._control.close()
        process, self._process, self._control = self._process, None, None
        # It has nothing to clean up and may hang, so SIGKILL.
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_TIMEOUT_SECONDS)
        return process.returncode


# All code below runs in the fork server process.


def serve(descriptor: int) -> None:
    """Fork workers until the supervisor closes its end of the socket or is gone."""
    # Ctrl-C and systemd signal every process of a group. The supervisor closes the socket when its workers are done.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=descriptor)
    (length,) = _OPENING.unpack(control.recv(_OPENING.size, socket.MSG_WAITALL))
    preload, prepare, target, is_first_start = ForkingPickler.loads(control.recv(length, socket.MSG_WAITALL))
    problem = _prepare(preload, prepare).encode()
    if problem:
        control.sendall(_REPORT.pack(is_first_start, _NOT_PREPARED, len(problem)) + problem)
        if is_first_start:
            return
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    forks = _Forks(control, target, [woken, waker])
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(woken, select.POLLIN)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while True:
            ready = {descriptor for descriptor, _ in poller.poll()}
            if woken.fileno() in ready:
                woken.recv(_RECEIVE_BYTES)
                forks.reap()
            if control.fileno() in ready and not forks.receive():
                return


def _prepare(preload: Sequence[str], prepare: Callable[[], None] | None) -> str:
    """Import modules and call `prepare`; return the error that it raises, or ""."""
    for module in preload:
        importlib.import_module(module)
    try:
        if prepare is not None:
            prepare()
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


class _Forks:
    """Forks workers and reports their ends, in the fork server process."""

    def __init__(self, control: socket.socket, target: _Target, private: Sequence[socket.socket]) -> None:
        self._control = control
        self._target = target
        # Sockets that a worker must not inherit.
        self._private = private
        self._numbers_by_pid: dict[int, int] = {}
        self._requests = b""
        self._lifelines_of_pending_requests: list[int] = []

    def receive(self) -> bool:
        """Fork the requested workers; return False when the supervisor has closed the socket."""
        data, descriptors, _, _ = socket.recv_fds(self._control, _RECEIVE_BYTES, 64)
        self._lifelines_of_pending_requests += descriptors
        self._requests += data
        while len(self._requests) >= _REQUEST.size:
            number, length = _REQUEST.unpack_from(self._requests)
            end = _REQUEST.size + length
            if len(self._requests) < end:
                break
            body, self._requests = self._requests[_REQUEST.size : end], self._requests[end:]
            if number == _CHANGE_TARGET:
                self._target = ForkingPickler.loads(body)
                continue
            self._fork_worker(number, body, self._lifelines_of_pending_requests.pop(0))
        return bool(data)

    def reap(self) -> None:
        """Report workers that have ended."""
        while self._numbers_by_pid:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if (number := self._numbers_by_pid.pop(pid, None)) is not None:
                self._send_report(number, _ENDED, os.waitstatus_to_exitcode(status))

    def _fork_worker(self, number: int, body: bytes, lifeline: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(lifeline)
            self._send_report(number, _NOT_FORKED, error.errno or 0)
            return
        if pid == 0:
            self._be_worker(body, lifeline)
        os.close(lifeline)
        self._numbers_by_pid[pid] = number
        self._send_report(number, _FORKED, pid)

    def _send_report(self, number: int, kind: int, value: int) -> None:
        self._control.sendall(_REPORT.pack(number, kind, value))

    def _be_worker(self, body: bytes, lifeline: int) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            for private in (self._control, *self._private):
                private.close()
            # A copy of another worker's lifeline in this process would keep it open, and so hide that worker's end.
            for other in self._lifelines_of_pending_requests:
                os.close(other)
            task: Any = ForkingPickler.loads(body)
            self._target(dataclasses.replace(task, lifeline=lifeline))
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
