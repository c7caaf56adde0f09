"""Text from documents, made so that it can do nothing to a terminal or a log, nor fill it."""

from __future__ import annotations

import re
from typing import Final

LONGEST_WORD: Final = 300
LONGEST: Final = 8000

_LONG_WORD: Final = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


def plain(text: str) -> str:
    """One line of printable characters: others are escaped, among them those that change the direction of writing.

    What is too long to be read is cut; the journal has all of it.
    """
    # First cut, then escape: the characters that are counted are those of the text.
    text = _cut(_LONG_WORD.sub(lambda word: _cut(word[0], LONGEST_WORD), text), LONGEST)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def text_of(value: object) -> str:
    """Any value of a document as text; there are some that Python or NumPy have no text for."""
    try:
        return str(value)
    except Exception as error:  # huge integers, dates without a unit, text beyond Unicode, deep nesting
        return f"<{type(value).__name__}: {type(error).__name__}>"


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]}...({len(text)} characters)...{text[-longest // 4 :]}"
