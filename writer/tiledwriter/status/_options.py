"""What the HTTP process is told when it starts, and what must be there before it does."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from .._logging import LogForm
from ._address import HttpAddress

MIN_TOKEN_CHARACTERS: Final = 16

_MAX_TOKEN_BYTES: Final = 4096
# Packages of the extra "web", by the names that they are imported by.
_PACKAGES: Final = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "jinja2": "jinja2",
    "prometheus_client": "prometheus-client",
    "bokeh": "bokeh",
}


class TokenFileError(Exception):
    """Raised when the file with the token for retries cannot be used."""


@dataclass(frozen=True)
class HttpOptions:
    """Options of the HTTP process.

    Attributes
    ----------
    address
        Where it listens.
    journal_dir
        Journal directory of the supervisor that it asks.
    token_file
        File with the token that allows retries of runs in quarantine; None allows none.
    names
        Names under which requests may come, besides "localhost" and addresses, if only this host can reach it.
    log_level
        Lowest level of messages to log.
    log_format
        Format of log lines: JSON for "json", else text.
    """

    address: HttpAddress
    journal_dir: Path
    token_file: Path | None = None
    names: tuple[str, ...] = ()
    log_level: str = "INFO"
    log_format: LogForm = "auto"

    def command(self) -> list[str]:
        """Return the command of a process that ends when its standard input is closed."""
        token = [] if self.token_file is None else ["--token-file", str(self.token_file.absolute())]
        return [
            *(sys.executable, "-m", "tiledwriter.status", "--until-stdin-closes"),
            *("--http", str(self.address), "--journal-dir", str(self.journal_dir.absolute()), *token),
            *(word for name in self.names for word in ("--name", name)),
            *("--log-level", self.log_level, "--log-format", self.log_format),
        ]


def find_missing_packages() -> list[str]:
    """Return the packages of the extra "web" that are not installed."""
    return [package for module, package in _PACKAGES.items() if find_spec(module) is None]


def package_directory(module: str) -> Path:
    """Return the directory of an installed package, without importing it.

    Raises
    ------
    ModuleNotFoundError
        The package is not installed.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"The package {module} is not installed.", name=module)
    return Path(spec.origin).parent


def read_token(path: Path) -> str:
    """Return the token in a file, without the blanks around it.

    Raises
    ------
    TokenFileError
        The file cannot be read, others can read it, or its token is too short or not printable ASCII.
    """
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            content = file.read(_MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise TokenFileError(f"the token file {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise TokenFileError(f"other users have access to the token file {path}; run: chmod 600 {path}")
    try:
        token = content.decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token.isprintable() or not MIN_TOKEN_CHARACTERS <= len(token) <= _MAX_TOKEN_BYTES:
        raise TokenFileError(
            f"the token in {path} must be at least {MIN_TOKEN_CHARACTERS} characters of printable ASCII; "
            f"make one: openssl rand -hex 16 > {path}"
        )
    return token
