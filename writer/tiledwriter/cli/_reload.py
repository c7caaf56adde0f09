"""Reads the supervisor's configuration again on SIGHUP: says what changes, and what needs a restart.

The file is tried in a process of its own first, which imports the plugins that it names. This process may have imported
older versions of them, and must not wait for imports.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tiledbroker.supervisor import ServiceChanges, WorkerCommand

from .._config import PluginCheck, Settings
from ._settings import WrongConfiguration, settings_of

log = logging.getLogger("tiledwriter.supervisor")

CHANGEABLE: Final = frozenset(
    {
        *("min_free", "keep_written", "write_slots", "log_level", "log_format"),
        # Options of workers that are started from now on. Not the Tiled server, which would split runs under way.
        *("api_key_file", "headers", "park_after"),
        *("max_array_size", "quiet_period", "poison_after", "late_audit"),
        *(
            "path_map",
            "streams",
            "access_tags",
            "spec_to_mimetype",
            "normalizer",
            "patches",
            "plugins",
            "consolidators",
        ),
    }
)
"""Names of the settings that a running supervisor takes."""

# Seconds after which the trial of a configuration is given up.
_TRIAL_TIMEOUT_SECONDS: Final = 60.0
# Prints why the settings cannot be used. The parent's `sys.path` finds the same modules. What `ps` shows is no secret.
_TRIAL: Final = "import sys; sys.path[:] = {path}; from tiledwriter.cli._reload import try_settings; try_settings()"


class ConfigurationReload:
    """Reads the configuration again. Implements the protocol `ReloadSource` of the supervisor.

    Parameters
    ----------
    config
        The configuration file; None if there is none.
    flags
        Settings from the command line, which win over the file.
    settings
        The settings at the start.
    make_command
        Returns what workers run under some settings.
    """

    def __init__(
        self,
        config: Path | None,
        flags: dict[str, Any],
        settings: Settings,
        make_command: Callable[[Settings], WorkerCommand],
    ) -> None:
        self._config = config
        self._flags = flags
        self._settings = settings
        self._make_command = make_command
        self._trial: subprocess.Popen[str] | None = None
        self._deadline = 0.0

    def begin(self) -> None:
        """Begin to try the configuration; anew if that is under way."""
        self._end_trial()
        program = _TRIAL.format(path=list(sys.path))
        try:
            self._trial = subprocess.Popen(  # noqa: S603  it is this program
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError as error:
            log.error("The configuration is not read again: %s. Nothing is changed.", error)
            return
        self._deadline = time.monotonic() + _TRIAL_TIMEOUT_SECONDS
        assert self._trial.stdin is not None
        given = {name: str(value) if isinstance(value, Path) else value for name, value in self._flags.items()}
        # Far smaller than a pipe's buffer.
        with self._trial.stdin as stdin:
            json.dump({"config": None if self._config is None else str(self._config), "flags": given}, stdin)

    def is_running(self) -> bool:
        """Return whether the configuration is still being tried."""
        if self._trial is None or self._trial.poll() is not None:
            return False
        if time.monotonic() < self._deadline:
            return True
        self._trial.kill()
        self._trial.wait()
        return False

    def take_changes(self) -> ServiceChanges | None:
        """Return what was read, once; None if it cannot be used or the trial did not end, which is logged."""
        trial, self._trial = self._trial, None
        if trial is None:
            return None
        assert trial.stdout is not None
        with trial.stdout as stdout:
            problem = stdout.read().strip()
        if trial.returncode:
            problem = f"trying it ended with exit code {trial.returncode}"
        try:
            if problem:
                raise WrongConfiguration(problem)
            fresh = settings_of(self._config, self._flags, plugins=PluginCheck.NONE)
        except WrongConfiguration as error:
            log.error("The configuration cannot be used, and nothing is changed: %s.", error)
            return None
        return self._apply_settings(fresh)

    def _apply_settings(self, fresh: Settings) -> ServiceChanges:
        names = sorted(
            name for name in type(fresh).model_fields if getattr(fresh, name) != getattr(self._settings, name)
        )
        fixed = [name for name in names if name not in CHANGEABLE]
        changed = [name for name in names if name in CHANGEABLE]
        self._settings = self._settings.model_copy(update={name: getattr(fresh, name) for name in changed})
        self._settings.worker_options().logging.configure()
        log.info("The configuration was read again; changed: %s.", ", ".join(changed) or "nothing")
        if fixed:
            log.warning("Until a restart, these settings stay as they were at the start: %s.", ", ".join(fixed))
        settings = self._settings
        return ServiceChanges(
            self._make_command(settings),
            settings.min_free,
            settings.keep_written,
            settings.write_slots,
            settings.shown(),
        )

    def _end_trial(self) -> None:
        if self._trial is not None:
            self._trial.kill()
            self._trial.wait()
            assert self._trial.stdout is not None
            self._trial.stdout.close()
            self._trial = None


def try_settings() -> None:
    """Print why the settings that standard input describes cannot be used; print nothing if they can."""
    given = json.load(sys.stdin)
    try:
        settings_of(None if given["config"] is None else Path(given["config"]), given["flags"])
    except WrongConfiguration as error:
        print(error)
