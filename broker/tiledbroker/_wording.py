"""Wording of messages for people: whole sentences, and commands that work as they are given.

A command that a message names is copied into a shell, in another directory and by somebody who does not know the
options of the service. So it is always made here, with all that it needs.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Final

_PLAIN_UID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")


def as_sentence(text: str) -> str:
    """Return a text with a full stop at its end, unless it has one."""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def format_command(*words: object) -> str:
    """Return a command line for a shell."""
    return shlex.join(map(str, words))


def format_install(*extras: str) -> str:
    """Return how to install extras of this distribution. The package of this name on PyPI is another one."""
    return f'pip install ".[{",".join(extras)}]" in a checkout of tiledwriter'


def format_run_command(name: str, uid: str, journal: Path | str, journal_dir: Path | str) -> str:
    """Return a command of `tiledwriter-journal` for one run.

    Parameters
    ----------
    name
        The subcommand.
    uid
        Uid of the run.
    journal, journal_dir
        Its journal, and the directory of all journals.
    """
    if _PLAIN_UID.fullmatch(uid):
        return format_command("tiledwriter-journal", name, uid, Path(journal_dir).absolute())
    # Another uid could be an option, or have characters that no terminal shows; the file has a plain name.
    return format_command("tiledwriter-journal", name, Path(journal).absolute())
