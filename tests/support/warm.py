"""Starts servers and commands in a tenth of the time: as forks of a process that has imported their modules already.

Each pytest worker has one such process. It has a single thread, is started anew and not forked from pytest, and ends
when its socket to pytest is closed. A fork is what `python -m MODULE ARGUMENT ...` or `python SCRIPT ARGUMENT ...` is,
with the environment, standard streams and working directory that it is given; its pid is the command's own.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Final, NoReturn

import psutil
from quicker_tiled import make_tiled_quicker

SUPERVISOR: Final = "tiledwriter.cli.supervisor"

# What a Tiled server imports while it starts; what our commands and workers import; and what acquisitions import.
MODULES: Final = (
    "tiled.commandline.main",
    "tiled.config",
    "tiled.server.app",
    "tiled.catalog.adapter",
    "tiled.catalog.core",
    "tiled.authn_database.core",
    "tiled.storage",
    "tiled.adapters.arrow",
    "tiled.adapters.hdf5",
    "tiled.adapters.sql",
    "tiled.adapters.xarray",
    "tiled.adapters.zarr",
    "tiled.serialization.array",
    "tiled.serialization.awkward",
    "tiled.serialization.container",
    "tiled.serialization.sparse",
    "tiled.serialization.table",
    "tiled.serialization.xarray",
    "bluesky_tiled_plugins.exporters",
    "bluesky_tiled_plugins.routers.validator",
    "aiosqlite",
    "asyncpg",
    "blosc2",
    "adbc_driver_manager.dbapi",
    "adbc_driver_sqlite.dbapi",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
    SUPERVISOR,
    "tiledwriter.cli.journal",
    "tiledwriter.cli._settings",
    "tiledwriter.worker._preload",
    "tiledbroker.supervisor._fork_server",
    "bluesky.plans",
    "ophyd.sim",
)

# The first answer includes the time for all imports.
_ANSWER_TIMEOUT_SECONDS: Final = 250.0

_MOST_DESCRIPTORS: Final = 16
_LENGTH: Final = struct.Struct("=I")
# Pid, and the status that `os.waitpid` gives.
_END: Final = struct.Struct("=ii")


class ForkedProcess:
    """A fork, with those methods of `subprocess.Popen` that tests use."""

    def __init__(self, command: Sequence[str], pid: int, ended: threading.Condition, codes: dict[int, int]) -> None:
        self.args = command
        self.pid = pid
        self._ended = ended
        self._codes = codes

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        with self._ended:
            return self._codes.get(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process, and return its exit code."""
        with self._ended:
            if not self._ended.wait_for(lambda: self.pid in self._codes, timeout):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            return self._codes[self.pid]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self.send_signal(signal.SIGKILL)


class WarmProcess:
    """The process that forks."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            # OpenBLAS, numexpr and ophyd must not start threads before the fork.
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "NUMEXPR_MAX_THREADS": "1",
                "OPHYD_CONTROL_LAYER": "dummy",
            }
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        self._lock = threading.Lock()
        self._ended = threading.Condition()
        self._codes: dict[int, int] = {}
        self._pids: list[int] = []
        self._reader = threading.Thread(target=self._read_reports, name="warm-forks", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Pid of the process that forks."""
        return self._process.pid

    def fork(
        self,
        command: Sequence[str],
        streams: Sequence[int],
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> ForkedProcess:
        """Start a command of Python as a fork; `streams` are descriptors of its standard streams."""
        task = json.dumps([list(command[1:]), dict(environment), str(Path.cwd()), list(pass_fds)]).encode()
        with self._lock:
            try:
                socket.send_fds(self._control, [_LENGTH.pack(len(task))], [*streams, *pass_fds])
                self._control.sendall(task)
                return ForkedProcess(command, self._take_pid(), self._ended, self._codes)
            except BaseException:
                # An answer that comes later would be taken for that to the next task.
                self._process.kill()
                raise

    def _take_pid(self) -> int:
        with self._ended:
            if not self._ended.wait_for(lambda: self._pids, _ANSWER_TIMEOUT_SECONDS):
                raise TimeoutError("the process that forks does not answer")
            return self._pids.pop()

    def close(self) -> None:
        """End the process that forks; forks go on."""
        self._control.shutdown(socket.SHUT_RDWR)
        self._process.wait(30)
        self._reader.join(30)
        self._control.close()

    def _read_reports(self) -> None:
        while len(report := self._control.recv(_END.size, socket.MSG_WAITALL)) == _END.size:
            pid, status = _END.unpack(report)
            with self._ended:
                if status < 0:
                    self._codes.pop(pid, None)
                    self._pids.append(pid)
                else:
                    self._codes[pid] = os.waitstatus_to_exitcode(status)
                self._ended.notify_all()


# The one there is, made for the first command that is forked.
_warm: list[WarmProcess] = []
# Whether commands are forked, the newest word last.
_forking: list[bool] = [False]


@contextlib.contextmanager
def forking(*, enabled: bool = True) -> Iterator[None]:
    """Have `start_process` fork, or not."""
    _forking.append(enabled)
    try:
        yield
    finally:
        _forking.pop()


def warm_pids() -> set[int]:
    """Pids of processes that fork."""
    return {process.pid for process in _warm}


def end_warm_process() -> None:
    """End the process that forks, if there is one."""
    while _warm:
        _warm.pop().close()


def start_process(
    command: Sequence[str],
    *,
    stdout: IO[Any] | int = 1,
    stderr: IO[Any] | int = 2,
    env: Mapping[str, str] | None = None,
) -> ForkedProcess | subprocess.Popen[bytes]:
    """Start a command without input as `subprocess.Popen` does; as a fork if it is Python's and `forking` says so.

    Parameters
    ----------
    stdout, stderr
        Files or descriptors; `subprocess.STDOUT` for `stderr` is that of `stdout`.
    """
    environment = os.environ if env is None else env
    output = stdout if isinstance(stdout, int) else stdout.fileno()
    errors = stderr if isinstance(stderr, int) else stderr.fileno()
    if not _forking[-1] or command[0] != sys.executable or command[1] == "-c":
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment)
    with Path(os.devnull).open("rb") as nothing:
        streams = [nothing.fileno(), output, output if errors == subprocess.STDOUT else errors]
        return _warm_process().fork(command, streams, environment)


def start_fork_server(
    command: Sequence[str], *, stdin: int, pass_fds: Sequence[int]
) -> ForkedProcess | subprocess.Popen[bytes]:
    """Start the fork server of a supervisor in this process, as that does with `subprocess.Popen`."""
    if not _forking[-1]:
        return subprocess.Popen(command, stdin=stdin, pass_fds=pass_fds)
    with Path(os.devnull).open("rb") as nothing:
        return _warm_process().fork(command, [nothing.fileno(), 1, 2], os.environ, pass_fds)


def _warm_process() -> WarmProcess:
    if not _warm:
        _warm.append(WarmProcess())
    return _warm[0]


def run_process(
    command: Sequence[object], *, env: Mapping[str, str] | None = None, timeout: float = 120.0, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command without input as `subprocess.run` does, and return what it printed; see `start_process`."""
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = start_process(words, stdout=output, stderr=errors, env=env)
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        printed = []
        for file in (output, errors):
            file.seek(0)
            printed.append(file.read())
    done = subprocess.CompletedProcess(words, code, *printed)
    if check:
        done.check_returncode()
    return done


# All code below runs in the process that forks.


def serve(control: socket.socket) -> None:
    """Fork commands, and report their pids and ends, until the other end of the socket is closed."""
    for module in MODULES:
        with contextlib.suppress(ImportError):
            import_module(module)
    make_tiled_quicker()
    gc.collect()
    gc.freeze()
    # The allocator of Arrow takes care of its thread in a fork; any other thread would be missing there.
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert len(threads) == 1 + threads.count("jemalloc_bg_thd"), f"a library has started a thread: {threads}"
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
            report_ends(control)
        if control in ready:
            length, descriptors, _, _ = socket.recv_fds(control, _LENGTH.size, _MOST_DESCRIPTORS)
            if not length:
                return
            task = json.loads(receive_exactly(control, _LENGTH.unpack(length)[0]))
            pid = os.fork()
            if pid == 0:
                for private in (control, woken, waker):
                    private.close()
                become(task, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            control.sendall(_END.pack(pid, -1))


def receive_exactly(control: socket.socket, size: int) -> bytes:
    """Return the next `size` bytes; a signal may interrupt a call that waits for all of them."""
    received = b""
    while len(received) < size and (part := control.recv(size - len(received))):
        received += part
    return received


def report_ends(control: socket.socket) -> None:
    """Report the forks that have ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            control.sendall(_END.pack(pid, status))


def become(task: list[Any], descriptors: Sequence[int]) -> NoReturn:
    """Be the process that was asked for."""
    command, environment, directory, passed = task
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    renumber(descriptors, [0, 1, 2, *passed])
    os.chdir(directory)
    set_environment(environment)
    # Otherwise ps and top show the same name for all forks.
    name = "fork server" if command[0] == "-c" else command[command[0] == "-m"]
    Path("/proc/self/comm").write_text(name.rpartition("/")[2][-15:])
    if command[:2] == ["-m", SUPERVISOR] or Path(command[0]).stem.endswith("_supervisor"):
        fork_for_fork_server()
    end_with(lambda: run_python(command))


def renumber(descriptors: Sequence[int], numbers: Sequence[int]) -> None:
    """Give descriptors other numbers."""
    # Above all numbers that are wanted, so that none is overwritten before it is duplicated.
    above = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, max(numbers) + 1) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(above, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)


def set_environment(environment: Mapping[str, str]) -> None:
    """Set the environment, and what has been made of it while modules were imported."""
    searched = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    own = environment.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:] = [path for path in own if path] + [path for path in sys.path[1:] if path not in searched]
    from tiledbroker import _crash_points

    vars(_crash_points)["_AT"] = environment.get("TILEDWRITER_CRASH_AT")
    vars(_crash_points)["_ONCE"] = environment.get("TILEDWRITER_CRASH_ONCE")


def run_python(command: Sequence[str]) -> None:
    """Do what Python does with `-c PROGRAM`, `-m MODULE ARGUMENT ...` or `SCRIPT ARGUMENT ...`."""
    if command[0] == "-c":
        exec(command[1], {"__name__": "__main__"})
    elif command[0] == "-m":
        sys.path[0] = str(Path.cwd())
        sys.argv = list(command[1:])
        # Python has not imported it under its own name, and runpy warns of a module that has been.
        if not hasattr(sys.modules.get(command[1]), "__path__"):
            sys.modules.pop(command[1], None)
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(command[0]).absolute().parent)
        sys.argv = list(command)
        runpy.run_path(command[0], run_name="__main__")


def end_with(function: Callable[[], object]) -> NoReturn:
    """Call a function, and end the process as Python does after its last line; but do not take all objects apart."""
    code = 1
    try:
        function()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            vars(threading)["_shutdown"]()
            atexit._run_exitfuncs()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


# A supervisor's fork server imports for two seconds. In a supervisor that is a fork it is one, too: of the supervisor
# while that had done nothing yet.


class AdoptedChild(psutil.Process):
    """A child of this process, with those methods of `subprocess.Popen` that the product uses for its fork server."""

    returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int | None:
        try:
            self.returncode = super().wait(timeout)
        except psutil.TimeoutExpired as error:
            raise subprocess.TimeoutExpired("fork server", timeout or 0.0) from error
        return self.returncode


def fork_for_fork_server() -> None:
    """Fork a child of this process, which the supervisor finds when it starts its first fork server."""
    from tiledbroker.supervisor import _fork_server

    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        end_with(lambda: run_given_program(theirs))
    theirs.close()
    waiting = [AdoptedChild(pid)]

    def start(command: Sequence[str], *, pass_fds: Sequence[int], **options: Any) -> Any:
        if not waiting or waiting[0].status() == psutil.STATUS_ZOMBIE:
            return subprocess.Popen(command, pass_fds=pass_fds, **options)
        with ours:
            socket.send_fds(ours, [json.dumps([command[2], *pass_fds]).encode()], pass_fds)
        return waiting.pop()

    vars(_fork_server)["subprocess"] = SimpleNamespace(**{**vars(subprocess), "Popen": start})


def run_given_program(control: socket.socket) -> None:
    """Wait for the text of a program and the descriptors that it needs, and run it; end if the supervisor is gone."""
    message, descriptors, _, _ = socket.recv_fds(control, 65_536, 8)
    if not message:
        return
    program, *numbers = json.loads(message)
    control.close()
    renumber(descriptors, numbers)
    exec(program, {"__name__": "__main__"})


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
