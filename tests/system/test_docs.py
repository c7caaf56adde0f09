"""The documentation says what the code does, and nothing else."""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT
from warm import run_process

import tiledbroker
from tiledbroker._outcomes import RECORDED
from tiledbroker.log import _codec, _journal_schema, _released_spool
from tiledbroker.ownership._run_decisions import DECISIONS
from tiledbroker.protocol import messages
from tiledbroker.supervisor._lifecycle import FINAL, TRANSITIONS, State
from tiledbroker.supervisor.status import _snapshot
from tiledwriter._config import Settings, load_settings
from tiledwriter.catalog._rewrites import TableRewrites
from tiledwriter.cli import journal, supervisor
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli._status import StatusCode

DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
MESSAGE_TYPES = {kind.__name__: kind for kind in messages._KINDS}
NAMES = {**MESSAGE_TYPES, "RunState": messages.RunState}


def subcommands(parser: argparse.ArgumentParser) -> list[str]:
    actions = parser._actions
    return [name for action in actions if isinstance(action, argparse._SubParsersAction) for name in action.choices]


COMMANDS = [
    ("tiledwriter-supervisor", "tiledwriter.cli.supervisor", ()),
    *(
        (f"tiledwriter-supervisor {name}", "tiledwriter.cli.supervisor", (name,))
        for name in subcommands(supervisor.parser())
    ),
    ("tiledwriter-journal", "tiledwriter.cli.journal", ()),
    *((f"tiledwriter-journal {name}", "tiledwriter.cli.journal", (name,)) for name in subcommands(journal.parser())),
]


def section(page: Path, heading: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    level = heading.partition(" ")[0]
    text = page.read_text()
    assert f"\n{heading}\n" in text, f"{page.name} has no section {heading!r}"
    below = text.partition(f"\n{heading}\n")[2]
    return re.split(rf"^#{{1,{len(level)}}} ", below, maxsplit=1, flags=re.MULTILINE)[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def rows(text: str) -> Iterator[list[str]]:
    """The cells of all table rows that begin with code or a number, without the backquotes."""
    for line in text.splitlines():
        if re.match(r"\| (`|\d)", line):
            yield [cell.strip().strip("`") for cell in line.strip("|").split("|")]


def without_spaces(text: str) -> str:
    """Python's versions break the lines of help texts at different places."""
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize(("heading", "module", "arguments"), COMMANDS, ids=[command[0] for command in COMMANDS])
def test_the_documented_help_text_is_what_the_command_prints(heading, module, arguments):
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    printed = run_process([sys.executable, "-m", module, *arguments, "--help"], env=environment, check=True).stdout
    documented = blocks(section(REFERENCE / "cli.md", f"## {heading}"), "text")
    assert [without_spaces(text) for text in documented] == [without_spaces(printed)]


def test_every_option_of_a_command_occurs_with_its_help():
    page = (REFERENCE / "cli.md").read_text()
    for action in supervisor.parser()._actions:
        assert all(option in page for option in action.option_strings)
        assert without_spaces(action.help or "") in without_spaces(page)


def test_no_command_is_documented_that_does_not_exist():
    headings = re.findall(r"^## (tiledwriter-.*)$", (REFERENCE / "cli.md").read_text(), flags=re.MULTILINE)
    assert headings == [heading for heading, _, _ in COMMANDS]


def test_every_exit_code_is_documented():
    documented = [tuple(row[:3]) for row in rows(section(REFERENCE / "cli.md", "## Exit codes"))]
    assert documented == [(str(code.value), code.name, code.meaning) for code in ExitCode]


def test_every_message_type_is_documented_and_no_other():
    page = section(REFERENCE / "wire-protocol.md", "## Messages")
    assert re.findall(r"^### (.*)$", page, flags=re.MULTILINE) == list(MESSAGE_TYPES)


@pytest.mark.parametrize("name", MESSAGE_TYPES)
def test_a_golden_message_decodes_to_what_is_documented_and_encodes_to_the_same_bytes(name):
    text = section(REFERENCE / "wire-protocol.md", f"### {name}")
    (shown,), (hexadecimal,) = blocks(text, "python"), blocks(text, "text")
    documented = eval(shown, {"__builtins__": {}}, NAMES)
    frames = [bytes.fromhex(line) for line in hexadecimal.splitlines()]
    assert type(documented) is MESSAGE_TYPES[name]
    assert messages.decode(frames) == documented
    assert messages.encode(documented) == frames


@pytest.mark.parametrize("name", MESSAGE_TYPES)
def test_a_message_is_documented_with_its_kind_and_its_fields_in_order(name):
    text = section(REFERENCE / "wire-protocol.md", f"### {name}")
    kind = messages._KINDS[MESSAGE_TYPES[name]]
    assert text.lstrip().startswith(f"Kind {kind} (`{kind:02x}`).")
    own_table = text.partition("A RunState is")[0]
    fields = [field for field in MESSAGE_TYPES[name].__struct_fields__ if field != "body"]
    assert [row[0] for row in rows(own_table)] == fields


SNAPSHOT_STRUCTS = {
    name: struct
    for name, struct in vars(_snapshot).items()
    if isinstance(struct, type) and struct.__module__ == _snapshot.__name__
}


@pytest.mark.parametrize("name", SNAPSHOT_STRUCTS)
def test_a_part_of_the_status_is_documented_with_its_fields_in_order(name):
    text = section(REFERENCE / "status.md", f"### {name}").partition("Outcomes of requests")[0]
    assert [row[0] for row in rows(text)] == list(SNAPSHOT_STRUCTS[name].__struct_fields__)


def test_the_schema_and_the_exit_codes_of_the_status_are_documented():
    assert f"`schema` is {_snapshot.SCHEMA}." in (REFERENCE / "status.md").read_text()
    documented = [row[:2] for row in rows(section(REFERENCE / "status.md", "## States"))]
    assert documented == [["0", "well"], ["1", "degraded"], ["2", "failed"], ["3", ""]]
    assert [code.value for code in StatusCode] == [0, 1, 2, 3]


def test_the_state_of_a_run_in_a_welcome_is_documented_with_its_fields_in_order():
    text = section(REFERENCE / "wire-protocol.md", "### Welcome").partition("A RunState is")[2]
    assert [row[0] for row in rows(text)] == list(messages.RunState.__struct_fields__)


def test_the_limits_of_the_protocol_are_documented():
    page = section(REFERENCE / "wire-protocol.md", "## Frames")
    assert f"| header | {messages.MAX_HEADER_BYTES // 2**20} MiB |" in page
    assert f"| bodies of one message | {messages.MAX_BODY_BYTES // 2**30} GiB |" in page
    assert f"| documents in one message | {messages.MAX_DOCUMENTS:,} |" in page
    assert f"| runs in one Hello | {messages.MAX_RUNS:,}, and as many that are awaited |" in page


def test_the_table_of_transitions_is_the_one_in_the_code():
    documented = [tuple(row[:3]) for row in rows(section(REFERENCE / "run-states.md", "## Transitions"))]
    assert documented == [(state.value, event.value, after.value) for (state, event), after in TRANSITIONS.items()]


def test_every_state_of_a_run_is_explained():
    page = (REFERENCE / "run-states.md").read_text().partition("## Transitions")[0]
    assert {row[0] for row in rows(page)} == {state.value for state in State}
    assert all(f"`{state.value}`" in section(REFERENCE / "journal-format.md", "### state") for state in FINAL)


def test_every_setting_is_documented_with_its_flag_and_default():
    documented = {row[0]: row for row in rows(section(REFERENCE / "configuration.md", "## Settings"))}
    flags = {action.dest: action.option_strings[0] for action in supervisor.parser()._actions if action.option_strings}
    assert set(documented) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        _, flag, default, _ = documented[name]
        assert flag == flags.get(name, "")
        if field.default_factory is None:
            assert default == ("none" if field.default is None else str(field.default))


def test_the_example_configuration_is_valid(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("TILEDWRITER_")]:
        monkeypatch.delenv(name)
    examples = [
        example
        for page in (REFERENCE / "configuration.md", DOCS / "how-to" / "run-under-systemd.md")
        for example in blocks(page.read_text(), "yaml")
    ]
    assert len(examples) >= 4
    for example in examples:
        file = tmp_path / "config.yaml"
        file.write_text(example)
        assert load_settings(file, {}).tiled == "http://tiled.example:8000"


def test_the_schema_of_a_journal_is_documented(tmp_path):
    tables, optional = blocks(section(REFERENCE / "journal-format.md", "## Tables"), "sql")
    assert tables.strip() == _journal_schema.SCHEMA.partition("PRAGMA")[0].strip()
    assert optional.strip() == _journal_schema.NORMALIZED_SCHEMA.strip()
    page = (REFERENCE / "journal-format.md").read_text()
    assert f"0x{_journal_schema.APPLICATION_ID:08X}" in page
    assert f"`PRAGMA user_version` is {_journal_schema.SCHEMA_VERSION}." in page


@functools.cache
def calls_in_the_code() -> list[tuple[str, ast.Call, dict[str, str]]]:
    """Each call in the code: what is called, and the texts of the constants of its module, or else of all modules."""
    trees = [ast.parse(file.read_text()) for root in ("broker", "writer") for file in (ROOT / root).rglob("*.py")]
    everywhere: dict[str, str] = {}
    for tree in trees:
        everywhere.update(text_constants(tree))
    return [
        (ast.unparse(node.func), node, constants)
        for tree in trees
        for constants in [{**everywhere, **text_constants(tree)}]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


def text_constants(tree: ast.Module) -> dict[str, str]:
    return {
        ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0]): node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def texts_passed(methods: str, position: int) -> set[str]:
    """The texts that are passed to methods, whose names match, as an argument: literals and constants of modules."""
    found = set()
    for name, call, constants in calls_in_the_code():
        if re.fullmatch(methods, name) and len(call.args) > position:
            argument = call.args[position]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.add(argument.value)
            elif ast.unparse(argument) in constants:
                found.add(constants[ast.unparse(argument)])
    return found


def words_of_first_cells(text: str) -> list[str]:
    return [word for line in text.splitlines() if line.startswith("| `") for word in named_in(line.split(" | ")[0])]


def named_in(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


JOURNAL = r"(.*\.)?_?(journal|journal_file|ledger)"


def test_every_key_in_the_state_of_a_journal_is_documented():
    set_by_name = texts_passed(rf"{JOURNAL}\.set", 0) | texts_passed(r"self\._record", 0)
    # The file of a released spool has a key of its own. `run_uid` and the like are set by the journal itself.
    written = {*set_by_name, *texts_passed(r"self\.set", 0), *DECISIONS} - {_released_spool._TAIL_DAMAGE}
    assert len(set_by_name) > 12
    documented = words_of_first_cells(section(REFERENCE / "journal-format.md", "### state"))
    assert sorted(documented) == sorted(written)


def test_every_word_in_the_history_of_a_journal_is_documented():
    noted = texts_passed(rf"{JOURNAL}\.note", 0) | texts_passed("RecordEvent", 1)
    counted = texts_passed(r"self\._count_repair", 2) | {
        keyword.value.value
        for name, call, _ in calls_in_the_code()
        for keyword in call.keywords
        if name.endswith(".rewind") and isinstance(keyword.value, ast.Constant)
    }
    assert len(noted) > 15
    assert len(counted) >= 3
    repairing = inspect.signature(TableRewrites._count_repair).parameters["event"].default
    page = section(DOCS / "how-to" / "read-a-journal.md", "## What happened to this run?")
    assert set(words_of_first_cells(page)) == {*noted, *counted, repairing, *RECORDED}


def test_every_extension_type_of_the_codec_is_documented():
    codes = {
        value
        for name, value in vars(_codec).items()
        if re.fullmatch("_(?!MAX)[A-Z_]+", name) and isinstance(value, int)
    }
    assert {int(code) for code, *_ in rows(section(REFERENCE / "journal-format.md", "## Bodies"))} == codes


def test_every_public_name_is_importable_and_documented():
    page = (REFERENCE / "python-api.md").read_text()
    for name in tiledbroker.__all__:
        assert hasattr(tiledbroker, name)
        assert f":: tiledbroker.{name}\n" in page


def test_the_readme_leads_to_the_commands_that_exist():
    readme = (ROOT / "README.md").read_text()
    for script in ("scripts/demo", "scripts/test"):
        assert f"./{script}" in readme
        assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_to_another_page_is_broken(page):
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text())
    for link in links:
        target, _, anchor = link.partition("#")
        file = page if not target else page.parent / target
        assert file.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_installs_the_package_of_this_name_on_pypi(page):
    """What is installed is a path, unless there is no index, or unless the page warns."""
    for line in page.read_text().splitlines():
        for arguments in re.findall(r"pip install ([^`\n]*)", line):
            words = shlex.split(arguments) if "--no-index" not in arguments else []
            if not line.startswith("There is no release on PyPI yet."):
                assert not [word for word in words if re.fullmatch(r"tiledwriter(\[.*\])?", word)], line


def defined_names(path: Path) -> set[str]:
    """The names that a module defines, with the methods of its classes as `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            members = [item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
            names |= {node.name, *(f"{node.name}.{member}" for member in members)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def places_named() -> Iterator[tuple[str, str]]:
    """Each file that the table for contributors names, with the names after its colon; "" for none."""
    for line in (DOCS / "contributing" / "where-to-find-what.md").read_text().splitlines():
        for place in line.split(";") if line.startswith("|") else ():
            if found := re.search(r"`([^`]+\.py)`(?:: (.*))?", place):
                yield found[1], " ".join(re.findall(r"`([^`]+)`", found[2] or ""))


@pytest.mark.parametrize(("file", "names"), list(places_named()))
def test_every_place_in_the_code_that_contributors_are_led_to_exists(file, names):
    assert set(names.split()) <= defined_names(ROOT / file)


class Members:
    """What the classes of this repository have, by name: methods, fields and attributes that are set."""

    def __init__(self) -> None:
        self._own: dict[str, set[str]] = {}
        self._bases: dict[str, set[str]] = {}
        for file in SOURCES:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    self._add(node)

    def _add(self, node: ast.ClassDef) -> None:
        own = self._own.setdefault(node.name, set())
        self._bases.setdefault(node.name, set()).update(ast.unparse(base) for base in node.bases)
        for item in ast.walk(node):
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                own.add(item.name)
            elif isinstance(item, ast.Attribute | ast.Name) and isinstance(item.ctx, ast.Store):
                own.add(item.attr if isinstance(item, ast.Attribute) else item.id)

    def lack(self, owner: str, member: str) -> bool:
        """Return whether a class, all of whose bases are of this repository, has no such member."""
        if owner not in self._own or member in self._own[owner]:
            return False
        return all(self.lack(base, member) for base in self._bases[owner])


SOURCES = [file for folder in ("broker", "writer", "tests", "scripts") for file in (ROOT / folder).rglob("*.py")]


def test_texts_name_no_member_of_a_class_that_it_does_not_have():
    members = Members()
    assert members.lack("Members", "none")
    wrong = [
        f"{file.relative_to(ROOT)}: {owner}.{member}"
        for file in (*SOURCES, *PAGES)
        for owner, member in re.findall(r"`([A-Z]\w+)\.(\w+)", file.read_text())
        if members.lack(owner, member)
    ]
    assert not wrong


def test_contributors_have_an_answer_before_they_open_three_files_at_most():
    page = (DOCS / "contributing" / "where-to-find-what.md").read_text()
    rows_of_page = [line.split(" | ") for line in page.splitlines() if ".py`" in line]
    assert len(rows_of_page) > 20
    for question, answer, files in rows_of_page:
        assert question.endswith("?")
        assert 4 <= len(answer.split()) <= 50, question
        assert ".py`" not in answer
        assert files.count(".py`") <= 3
