"""Runs the HTTP process beside the supervisor, and starts another when it dies."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Final

from ._options import HttpOptions

log = logging.getLogger(__name__)

FIRST_DELAY_SECONDS: Final = 1.0
LONGEST_DELAY_SECONDS: Final = 60.0

# A process that has lived this long is no victim of what ended those before it.
_SOUND_SECONDS: Final = 60.0
# Time to end by itself; it holds nothing, so it can be killed.
_STOP_SECONDS: Final = 3.0


class HttpProcess:
    """Keeps an HTTP process running.

    A thread starts it and waits for its end, which costs the supervisor nothing. Nothing that goes wrong here is raised
    after the constructor. The process ends with this one, however this one ends: it watches its standard input.

    Parameters
    ----------
    options
        Options of the HTTP process.
    note
        Is told why the page is not served, and "" when it is. It is called in the thread, and must not raise.
    """

    def __init__(self, options: HttpOptions, note: Callable[[str], None] = lambda _: None) -> None:
        self._options = options
        self._note = note
        self._closing = threading.Event()
        # Guards `_process` against a start while it is being closed.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_running, name="tiledwriter-http", daemon=True)

    def __enter__(self) -> HttpProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Pid of the process; None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> None:
        """Start the process and keep it running until `close`."""
        self._thread.start()

    def close(self) -> None:
        """End the process; join the thread."""
        self._closing.set()
        with self._lock:
            process = self._process
        if process is not None:
            _end_process(process)
        self._thread.join()

    def _keep_running(self) -> None:
        delay = FIRST_DELAY_SECONDS
        while not self._closing.is_set():
            began = time.monotonic()
            problem = self._run_once()
            self._note(f"its process {problem}")
            if time.monotonic() - began > _SOUND_SECONDS:
                delay = FIRST_DELAY_SECONDS
            # Report it only after the delay: if the whole service is being stopped, it is no trouble.
            if self._closing.wait(delay):
                return
            log.warning("The HTTP process %s; starting another. Runs are not affected.", problem)
            delay = min(delay * 2, LONGEST_DELAY_SECONDS)

    def _run_once(self) -> str:
        """Run one process to its end, and return how it ended."""
        try:
            with self._lock:
                if self._closing.is_set():
                    return "is closed"
                # A session of its own: Ctrl-C at a terminal ends the supervisor, which then ends this process.
                self._process = process = subprocess.Popen(  # noqa: S603  it is this program
                    self._options.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
                )
        except OSError as error:
            return f"cannot be started ({error})"
        assert process.stdout is not None
        with process.stdout as reports:
            for report in reports:
                self._note(report.decode(errors="replace").strip())
        code = process.wait()
        with self._lock:
            self._process = None
        _close_input(process)
        return f"ended (exit code {code})"


def _end_process(process: subprocess.Popen[bytes]) -> None:
    _close_input(process)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _close_input(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
