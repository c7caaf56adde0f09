"""The documentation's pages as tests read them: blocks of code, and the commands in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from paths import ROOT

HOW_TO: Final = ROOT / "docs" / "how-to"


def blocks_of(page: Path, language: str) -> list[str]:
    """Return the code blocks of a language on a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def block_with(page: Path, language: str, text: str) -> str:
    """Return the one code block of a page that contains a text.

    Raises
    ------
    LookupError
        There is no such block, or more than one.
    """
    found = [block for block in blocks_of(page, language) if text in block]
    if len(found) != 1:
        raise LookupError(f"{page.name} has {len(found)} blocks of {language} with {text!r}")
    return found[0]


def commands_in(block: str) -> list[str]:
    """Return the commands of a console block (after "$ ") or of a shell script, with continued lines joined."""
    lines = block.replace("\\\n", " ").splitlines()
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    return prompted or [line for line in lines if line.strip() and not line.startswith("#")]
