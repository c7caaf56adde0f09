"""Runs the service of a configuration with several targets: one supervisor process for each, behind one relay.

Each target's supervisor has its own journals, workers and progress, so that none waits for the Tiled of another. This
process only relays, and starts a supervisor again that has died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tiledbroker._wake_up import WakeUp
from tiledbroker.log import is_run_file
from tiledbroker.supervisor import Relay, ServiceNotifier

from .._config import Settings
from ._exit import ExitCode
from ._settings import LoadedSettings, WrongConfiguration

log = logging.getLogger("tiledwriter.supervisor")

_FIRST_DELAY_SECONDS: Final = 1.0
_LONGEST_DELAY_SECONDS: Final = 30.0
# A supervisor that has lived this long is no victim of what ended those before it.
_SOUND_SECONDS: Final = 60.0
_CHECK_SECONDS: Final = 0.5
# A supervisor that does not answer for so long hangs; the watchdog of systemd is not fed then.
_SILENCE_SECONDS: Final = 30.0
# What systemd tells the process that it has started. A supervisor that it does not know must not notify it.
_SYSTEMD_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class TargetService:
    """The supervisors of all targets, and the relay before them.

    Parameters
    ----------
    targets
        Settings of each target, by its name.
    commands
        Command line of the supervisor of each target.
    drain
        Have the supervisors write what their journals hold; there is no relay then.
    """

    def __init__(
        self, targets: Mapping[str, LoadedSettings], commands: Mapping[str, Sequence[str]], *, drain: bool
    ) -> None:
        self._settings: dict[str, Settings] = {name: loaded.values for name, loaded in targets.items()}
        self._common = next(iter(self._settings.values()))
        self._supervisors = {name: _SupervisorProcess(name, command) for name, command in commands.items()}
        self._drain = drain
        self._stopping = self._was_ready = False
        self._notifier = ServiceNotifier()
        self._wake_up = WakeUp()

    def run(self) -> ExitCode:
        """Serve until SIGTERM or SIGINT, or when draining until all supervisors have ended; return the exit code.

        Raises
        ------
        zmq.ZMQError
            The address cannot be listened at.
        KeyFileError
            A key cannot be used.
        OSError
            A journal directory cannot be made.
        """
        for settings in self._settings.values():
            settings.journal_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        curve = self._common.server_curve()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._handle_signal)
        try:
            while not self._is_over():
                self._start_supervisors()
                if self._drain:
                    self._wait_for_end()
                elif all(each.is_running for each in self._supervisors.values()):
                    with Relay(
                        self._common.listen,
                        {name: settings.journal_dir for name, settings in self._settings.items()},
                        self._common.client_limits(),
                        curve,
                    ) as relay:
                        self._serve(relay)
                else:
                    self._notifier.feed_watchdog(time.monotonic())
                    time.sleep(_CHECK_SECONDS)
        finally:
            self._notifier.announce_stopping()
            for each in self._supervisors.values():
                each.send_signal(signal.SIGTERM)
            # A supervisor that was not even started has drained nothing.
            unstarted = ExitCode.INCOMPLETE if self._drain else ExitCode.OK
            codes = [each.wait(unstarted) for each in self._supervisors.values()]
            self._notifier.close()
            self._wake_up.close()
        failures = [code for code in codes if code]
        if not failures:
            return ExitCode.OK
        return next((code for code in ExitCode if code == failures[0]), ExitCode.FAILED)

    def _is_over(self) -> bool:
        """Return whether to end: on request, or because a supervisor has ended before all were ready."""
        ended = [each for each in self._supervisors.values() if each.has_ended]
        return (
            self._stopping
            or (bool(ended) and not self._was_ready and not self._drain)
            or (self._drain and len(ended) == len(self._supervisors))
        )

    def _start_supervisors(self) -> None:
        now = time.monotonic()
        for each in self._supervisors.values():
            if not each.has_ended or not self._drain:
                each.start_if_due(now)

    def _wait_for_end(self) -> None:
        while not self._stopping and any(each.is_running for each in self._supervisors.values()):
            time.sleep(_CHECK_SECONDS)

    def _serve(self, relay: Relay) -> None:
        """Relay until the end, or until a supervisor has died: then publishers must ask again where to continue."""
        was_listening = False
        while not self._stopping and all(each.is_running for each in self._supervisors.values()):
            relay.run_once(min(_CHECK_SECONDS, self._notifier.feed_pause), self._wake_up)
            now = time.monotonic()
            if not relay.listening or relay.has_answered_since(now - _SILENCE_SECONDS):
                self._notifier.feed_watchdog(now)
            if relay.listening and not was_listening:
                was_listening = self._was_ready = True
                log.info("Listening at %s for the targets %s.", self._common.listen, ", ".join(self._supervisors))
                self._notifier.announce_ready()

    def _handle_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._notifier.announce_reloading()
            for each in self._supervisors.values():
                each.send_signal(signal.SIGHUP)
            # Each of them says in the log what it has changed.
            self._notifier.announce_ready()
            return
        if self._stopping:
            # As a second signal to a supervisor: do not wait for its requests.
            for each in self._supervisors.values():
                each.send_signal(signal.SIGTERM)
        self._stopping = True
        self._wake_up.wake()


class _SupervisorProcess:
    """The process of one target's supervisor. It ends with this process: its standard input is a pipe from here."""

    def __init__(self, target: str, command: Sequence[str]) -> None:
        self._target = target
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._delay = _FIRST_DELAY_SECONDS
        self._started_at = self._start_at = 0.0
        self._is_reported = False

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def start_if_due(self, now: float) -> None:
        """Start the process if it does not run; after it has died, only after a delay."""
        if self.is_running:
            return
        if self._process is not None and not self._is_reported:
            self._is_reported = True
            self._delay = _FIRST_DELAY_SECONDS if now - self._started_at > _SOUND_SECONDS else self._delay
            self._start_at = now + self._delay
            log.error(
                "The supervisor of target %s ended (exit code %d); nothing is accepted until it runs again, in %g s.",
                self._target,
                self._process.returncode,
                self._delay,
            )
            self._delay = min(2 * self._delay, _LONGEST_DELAY_SECONDS)
        if now < self._start_at:
            return
        self._close_input()
        environment = {name: value for name, value in os.environ.items() if name not in _SYSTEMD_VARIABLES}
        # A session of its own: Ctrl-C at a terminal ends this process, which then ends the supervisors.
        self._process = subprocess.Popen(  # noqa: S603  it is this program
            self._command, stdin=subprocess.PIPE, start_new_session=True, env=environment
        )
        self._started_at, self._is_reported = now, False

    def send_signal(self, number: int) -> None:
        if self.is_running and self._process is not None:
            self._process.send_signal(number)

    def wait(self, unstarted: int) -> int:
        """Wait for the end, and return the exit code; `unstarted` if the process was never started."""
        if self._process is None:
            return unstarted
        code = self._process.wait()
        self._close_input()
        return code

    def _close_input(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def command_of(target: str, config: Path, flags: Mapping[str, Any], *, drain: bool) -> list[str]:
    """Return the command line of the supervisor of a target, with the flags of this one."""
    command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "--relayed", "--config", f"{config}:{target}"]
    for name, value in flags.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            command += [option] if value is True else [option, str(value)]
    return [*command, "--drain"] if drain else command


def refuse_other_journals(directory: Path, targets: Mapping[str, LoadedSettings]) -> None:
    """Raise `WrongConfiguration` if the common directory has journals that belong to no target.

    They are of a service without targets, and would never be finished.
    """
    if any(loaded.values.journal_dir.absolute() == directory.absolute() for loaded in targets.values()):
        return
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if left := [path for path in directory.iterdir() if is_run_file(path.name)]:
            raise WrongConfiguration(
                f"{directory} has {len(left)} journals of a service without targets, which would not be finished. Give "
                f"`journal_dir: {directory}` to the target that they are for, and another directory to the others"
            )
