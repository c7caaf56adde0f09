"""What the page for 3 a.m. says is seen in a log or a status is what the program says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from paths import ROOT

PAGE: Final = ROOT / "docs" / "how-to" / "at-3-am.md"
SOURCES: Final = sorted([*(ROOT / "broker").rglob("*.py"), *(ROOT / "writer").rglob("*.py")])


def texts_in(source: Path) -> Iterator[str]:
    """Yield the texts of a module, without the values in formatted ones."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[-0-9.]*[sdfgr]", "...", node.value)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """The texts of all modules."""
    return [text for source in SOURCES for text in texts_in(source)]


def sentences_on_the_page() -> Iterator[str]:
    """Yield what the tables of logs give as seen, without names of Python."""
    tables = PAGE.read_text().partition("(the-acquisition-session)=")[2]
    for row in re.findall(r"^\| (.*?) \|", tables, flags=re.MULTILINE):
        for code in re.findall(r"`([^`]+)`", row):
            if " " in code:
                yield code


@pytest.mark.parametrize("sentence", [*sentences_on_the_page()])
def test_a_message_on_the_page_is_one_of_the_program(sentence: str, texts: list[str]) -> None:
    # Its three dots stand for anything, also for the end of one text and the beginning of another.
    parts = [part.strip(" :;,.()") for part in sentence.split("...")]
    for part in parts:
        assert any(part in text for text in texts), part
