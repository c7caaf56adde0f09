"""Starts servers in a tenth of the time: as forks of a process that has imported their modules already.

Each pytest worker has one such process. It has a single thread, is started anew and not forked from pytest, and ends
when its socket to pytest is closed. A fork is what `python -m MODULE ARGUMENT ...` would be, with the environment,
standard output and working directory that it is given; its pid is a server's own.
"""

from __future__ import annotations

import contextlib
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
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final, NoReturn

# What a Tiled server imports while it starts.
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
)

_LENGTH: Final = struct.Struct("=I")
# Pid, and the status that `os.waitpid` gives.
_END: Final = struct.Struct("=ii")


class ForkedProcess:
    """A fork, with those methods of `subprocess.Popen` that `ServerProcess` uses."""

    def __init__(self, pid: int, ended: threading.Condition, codes: dict[int, int]) -> None:
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
                raise subprocess.TimeoutExpired(["fork"], timeout or 0.0)
            return self._codes[self.pid]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class WarmProcess:
    """The process that forks servers. Call `launch` in place of `subprocess.Popen`."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            # OpenBLAS and numexpr must not start threads before the fork.
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMEXPR_MAX_THREADS": "1"}
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

    def launch(self, command: Sequence[str], output: IO[bytes], environment: Mapping[str, str]) -> ForkedProcess:
        """Start `python -m MODULE ARGUMENT ...` as a fork."""
        assert tuple(command[:2]) == (sys.executable, "-m")
        task = json.dumps([list(command[2:]), dict(environment), str(Path.cwd())]).encode()
        with self._lock:
            socket.send_fds(self._control, [_LENGTH.pack(len(task))], [output.fileno()])
            self._control.sendall(task)
            with self._ended:
                if not self._ended.wait_for(lambda: self._pids, 120):
                    raise TimeoutError("the process that forks servers does not answer")
                return ForkedProcess(self._pids.pop(), self._ended, self._codes)

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
                    self._pids.append(pid)
                else:
                    self._codes[pid] = os.waitstatus_to_exitcode(status)
                self._ended.notify_all()


# All code below runs in the process that forks.


def serve(control: socket.socket) -> None:
    """Fork servers, and report their pids and ends, until the other end of the socket is closed."""
    for module in MODULES:
        with contextlib.suppress(ImportError):
            import_module(module)
    keep_what_requests_make_anew()
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
            length, descriptors, _, _ = socket.recv_fds(control, _LENGTH.size, 1)
            if not length:
                return
            task = json.loads(control.recv(_LENGTH.unpack(length)[0], socket.MSG_WAITALL))
            pid = os.fork()
            if pid == 0:
                for private in (control, woken, waker):
                    private.close()
                become(task, descriptors[0])
            os.close(descriptors[0])
            control.sendall(_END.pack(pid, -1))


def keep_what_requests_make_anew() -> None:
    """Save nearly half of a server's processor time, which goes into making the same objects for each request.

    Answers are the same. Tiled overrides a dependency, for which FastAPI inspects the signatures of all dependencies
    in each request; and Pydantic forgets the classes of Tiled's answers with the next garbage collection.
    """
    import fastapi.dependencies.utils as dependencies
    from pydantic._internal import _generics

    inspect_dependency = dependencies.get_dependant
    inspected: dict[object, Any] = {}

    def get_dependant(**arguments: Any) -> Any:
        key = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in arguments.items())
        try:
            if key not in inspected:
                inspected[key] = inspect_dependency(**arguments)
        except TypeError:  # something in it has no hash
            return inspect_dependency(**arguments)
        return inspected[key]

    vars(dependencies)["get_dependant"] = get_dependant
    vars(_generics)["_GENERIC_TYPES_CACHE"] = {}


def report_ends(control: socket.socket) -> None:
    """Report the forks that have ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            control.sendall(_END.pack(pid, status))


def become(task: list[Any], output: int) -> NoReturn:
    """Be the process that was asked for."""
    (module, *arguments), environment, directory = task
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(directory)
        sys.path[0] = directory
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
