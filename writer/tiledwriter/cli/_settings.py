"""Settings of the commands, with configuration errors reported in one line."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tiledbroker import AddressError

from .._config import Settings, load_settings
from ..journals import status_of


class WrongConfiguration(Exception):
    """Raised when settings cannot be used; the message names the settings and the reason."""


def settings_of(config: Path | None, flags: dict[str, Any], *, server: bool = True, plugins: bool = True) -> Settings:
    """Return the settings from a YAML file, the environment and flags; see `load_settings` for the parameters.

    Raises
    ------
    WrongConfiguration
        The file does not exist, or the settings cannot be used.
    """
    if config is not None:
        _require_file(config)
    try:
        return load_settings(config, flags, server=server, plugins=plugins)
    except ValidationError as error:
        raise WrongConfiguration("; ".join(_format_problem(dict(item)) for item in error.errors())) from error
    except AddressError as error:
        raise WrongConfiguration(str(error)) from error
    except (yaml.YAMLError, TypeError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise WrongConfiguration(f"{config} is not a YAML mapping of settings: {problem}") from error


def _require_file(config: Path) -> None:
    """Raise `WrongConfiguration` if the file does not exist, because `load_settings` would silently ignore it."""
    status = status_of(config)
    if status is None or not stat.S_ISREG(status.st_mode):
        raise WrongConfiguration(f"there is no configuration file {config}")


def _format_problem(item: dict[str, object]) -> str:
    location = item.get("loc") or ()
    where = ".".join(map(str, location)) if isinstance(location, tuple) else ""
    message = str(item.get("msg", "")).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
