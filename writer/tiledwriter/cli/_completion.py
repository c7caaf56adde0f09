"""Shell completion of commands, options, states and run uids, with argcomplete where it is installed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

# Set by the shell function that argcomplete registers.
_REQUEST: Final = "_ARGCOMPLETE"

Completer: TypeAlias = Callable[..., Iterable[str]]


def completion_is_requested() -> bool:
    """Return True if the shell asks for completions of a command line, instead of running the command."""
    return _REQUEST in os.environ


def answer_completion(parser: argparse.ArgumentParser) -> None:
    """Print completions and exit if the shell asks for them; else, or without argcomplete, do nothing."""
    if not completion_is_requested():
        return
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(parser)


def complete_with(action: argparse.Action, completer: Completer) -> None:
    """Have an argument completed by a function that argcomplete calls with the beginning of the word."""
    action.completer = completer  # type: ignore[attr-defined]


def complete_runs(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Return the names of runs in the configured journal directory, by the names of their files; nothing if unreadable.

    No journal is opened, so that the shell has an answer at once, also where there are many.
    """
    from tiledbroker import run_files

    from ._run_lookup import label_of_file, place_of

    directory = getattr(parsed_args, "directory", None)
    if not isinstance(directory, Path):
        # Not typed yet; `export` takes a list.
        directory = None
    try:
        place = place_of(directory, getattr(parsed_args, "config", None))
        names = [label_of_file(path) for path in run_files(place.path)]
    except Exception:
        # A shell can show no message here.
        return []
    return [name for name in names if name.startswith(prefix)]


def complete_states(prefix: str, **_: Any) -> list[str]:
    """Return the states that may follow in a list with commas."""
    from ..journals import STATES

    before, comma, word = prefix.rpartition(",")
    return [f"{before}{comma}{state}" for state in STATES if state.startswith(word)]
