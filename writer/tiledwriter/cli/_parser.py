"""Argument parser of all commands: options anywhere, hints for mistyped words, runnable examples, and `--version`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

from ._completion import completion_is_requested

Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_INNERMOST: Final = "_innermost_parser"
_END_OF_OPTIONS: Final = "--"
# Share of common characters from which a word counts as a mistyped other one, as for `difflib.get_close_matches`.
_MIN_LIKENESS: Final = 0.6


class CommandParser(argparse.ArgumentParser):
    """Parser that takes options between positional arguments, and suggests the word that a mistyped one may mean.

    A subcommand's errors show its own usage. The subparsers of such a parser are of the same class.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self._parsing = False
        self._words: Sequence[str] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but report an unknown option by the subcommand that it was given to."""
        self._words = sys.argv[1:] if args is None else [*args]
        arguments, unknown = self.parse_known_args(self._words, namespace)
        innermost: CommandParser = vars(arguments).pop(_INNERMOST, self)
        if unknown:
            innermost.error(innermost._describe_unknown(unknown))
        return arguments

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; optional positional arguments are also found behind options."""
        # Python's versions differ in whether the intermixed parser calls this method, and older ones lose "--" in it,
        # behind which a uid may begin with "-". And argcomplete replaces methods that only the usual parser calls.
        is_plain = self._parsing or self._subparsers is not None or completion_is_requested()
        if is_plain or _END_OF_OPTIONS in (sys.argv[1:] if args is None else args):
            arguments, unknown = super().parse_known_args(args, namespace)
        else:
            self._parsing = True
            try:
                arguments, unknown = self.parse_known_intermixed_args(args, namespace)
            finally:
                self._parsing = False
        if not hasattr(arguments, _INNERMOST):
            setattr(arguments, _INNERMOST, self)
        return arguments, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if unknown := self._unknown_options_before(value):
                # Its value has been taken for a subcommand.
                self.error(self._describe_unknown(unknown))
            error.message += suggestion_for(str(value), map(str, action.choices or ()))
            raise

    def _get_values(self, action: argparse.Action, arg_strings: Any) -> Any:
        # Most often it is a shell variable that is not set. As a path it would name the current directory.
        if action.nargs != argparse.PARSER and "" in arg_strings:
            raise argparse.ArgumentError(action, "an empty text is no value")
        return super()._get_values(action, arg_strings)

    def _unknown_options_before(self, value: Any) -> list[str]:
        words = self._words[: self._words.index(value)] if value in self._words else []
        return [
            word
            for word in words
            if word.startswith("--") and not any(known.startswith(word.partition("=")[0]) for known in self._options())
        ]

    def _options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def _describe_unknown(self, words: Sequence[str]) -> str:
        return f"unrecognized arguments: {' '.join(words)}{''.join(map(self._hint_for_option, words))}"

    def _hint_for_option(self, word: str) -> str:
        name = word.partition("=")[0]
        if not name.startswith("-"):
            return ""
        known = self._options()
        if name in known:
            return f"; {name} belongs behind {self.prog.rpartition(' ')[2]}"
        return suggestion_for(name, (option for option in known if option.startswith("--")))


def suggestion_for(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known word that is most like `word`; "" if none is like it."""
    # Imported here because only mistakes need it.
    import difflib

    alike = difflib.get_close_matches(word, list(known), 1, _MIN_LIKENESS)
    return f"; did you mean {alike[0]}?" if alike else ""


def add_command(
    commands: Subcommands, name: str, summary: str, *, examples: Sequence[str] = (), notes: str = ""
) -> argparse.ArgumentParser:
    """Add a subcommand, and return its parser.

    Parameters
    ----------
    commands
        The subcommands of the command.
    name
        Name of the subcommand.
    summary
        What it does, for the list of subcommands.
    examples
        Command lines for its help text; tests run them.
    notes
        More for the end of its help text.
    """
    lines = ["examples:", *(f"  {example}" for example in examples)] if examples else []
    epilog = "\n".join([*lines, *([notes] if notes else [])])
    description = f"{summary[0].upper()}{summary[1:]}."
    return commands.add_parser(name, help=summary, description=description, epilog=epilog or None)


def make_parser(command: str, *, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return the parser of a command, with `--version`."""
    parser = CommandParser(command, description=description, epilog=epilog)
    parser.add_argument("--version", action=_ShowVersion, help="show the version of tiledwriter and exit")
    return parser


class _ShowVersion(argparse.Action):
    """Action that looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], **keywords: Any) -> None:
        super().__init__(option_strings, **{**keywords, "nargs": 0, "default": argparse.SUPPRESS})

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from tiledbroker import __version__

        print(f"{parser.prog} {__version__}")
        parser.exit()
