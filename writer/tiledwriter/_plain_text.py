"""Text from documents, made harmless for terminals and logs and limited in length."""

from __future__ import annotations

import re
from typing import Final

MAX_WORD_CHARACTERS: Final = 300
MAX_TEXT_CHARACTERS: Final = 8000

_LONG_WORD: Final = re.compile(rf"\S{{{MAX_WORD_CHARACTERS + 1},}}")


def plain(text: str) -> str:
    """Return one line of printable characters. Others are escaped, including those that change the text direction.

    Long words and long texts are cut; the journal has all of it.
    """
    # Cut before escaping, so that lengths are counted in characters of the original text.
    text = _shorten_text(
        _LONG_WORD.sub(lambda word: _shorten_text(word[0], MAX_WORD_CHARACTERS), text), MAX_TEXT_CHARACTERS
    )
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def text_of(value: object) -> str:
    """Return any value of a document as text. Python or NumPy fail to convert some values."""
    try:
        return str(value)
    except Exception as error:
        # Huge integers, dates without a unit, text that is not Unicode, deep nesting.
        return f"<{type(value).__name__}: {type(error).__name__}>"


def _shorten_text(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]}...({len(text)} characters)...{text[-longest // 4 :]}"
