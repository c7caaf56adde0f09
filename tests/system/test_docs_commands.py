"""Every command in the documentation is one that the real parsers take, and those that can be run are run."""

from __future__ import annotations

import argparse
import gc
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
import yaml
from bluesky import RunEngine
from bluesky.plans import scan
from ophyd.sim import det, motor
from pages import commands_in
from paths import ROOT
from warm import run_process

from tiledbroker import ZMQPublisher
from tiledbroker.log import find_run_file
from tiledwriter.cli import journal, supervisor
from tiledwriter.cli._exit import ExitCode
from tiledwriter.testing import SupervisorProcess, TiledServer, wait_until

PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PARSERS: Final = {"tiledwriter-supervisor": supervisor.parser, "tiledwriter-journal": journal.parser}
# Where a shell begins another command.
OPERATORS: Final = frozenset({"|", "||", "&", "&&", ";", ">", ">>", "<", "2>", "(", ")"})

pytestmark = [pytest.mark.filterwarnings("default")]


class Refused(Exception):
    """Raised when a parser does not take a command line."""


def subcommands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the subcommands by name."""
    choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: one for group in choices for name, one in group.items()}


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of its subcommands."""
    yield parser
    for one in subcommands_of(parser).values():
        yield from parsers_of(one)


def parse(words: list[str]) -> argparse.Namespace:
    """Parse a command line with the program's own parser."""
    parser = PARSERS[words[0]]()

    def refuse(message: str) -> NoReturn:
        raise Refused(message)

    for one in parsers_of(parser):
        one.error = refuse  # type: ignore[method-assign]
    # Three dots stand for arguments that do not matter.
    return parser.parse_args([word for word in words[1:] if word != "..."])


def split_shell(line: str) -> Iterator[list[str]]:
    """Yield the words of each of our commands in a line of shell, from the program's name to the next operator."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in OPERATORS:
            if words:
                yield words
            words = []
        elif words:
            words.append(word)
        elif (name := Path(word).name) in PARSERS:
            words = [name]


def commands_on(page: Path) -> Iterator[list[str]]:
    for block in re.findall(r"^```(?:bash|console)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
        for line in commands_in(block):
            yield from split_shell(line)


def commands_in_help() -> Iterator[list[str]]:
    """Yield the examples of the help texts."""
    for make in PARSERS.values():
        for parser in parsers_of(make()):
            for line in (parser.epilog or "").splitlines():
                if line.strip().startswith("tiledwriter-"):
                    yield from split_shell(line.strip())


def named_in_text(page: Path) -> Iterator[str]:
    """Yield what the text between the blocks gives as a command of ours."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    # Without the targets of links, and without headings, which may be anything.
    for code in re.findall(r"`((?:tiledwriter-journal|tiledwriter-supervisor)[^`]*)`", text):
        yield " ".join(code.replace("\\|", "|").split())


ON_PAGES: Final = {shlex.join(words): words for page in PAGES for words in commands_on(page)}
ALL_COMMANDS: Final = {**ON_PAGES, **{shlex.join(words): words for words in commands_in_help()}}


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_a_command_in_the_docs_is_taken_by_its_parser(command: str) -> None:
    parse(ALL_COMMANDS[command])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_named_in_the_text_exist(page: Path) -> None:
    for code in named_in_text(page):
        program, *words = next(split_shell(code))
        parser = PARSERS[program]()
        subcommands = subcommands_of(parser)
        if words and words[0] in subcommands:
            parser = subcommands[words[0]]
        elif words and not words[0].startswith("-"):
            pytest.fail(f"{code}: no such command")
        options = {option for action in parser._actions for option in action.option_strings}
        assert {word for word in words if word.startswith("-") and word != "-"} <= options, code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_in_the_text_says_where_the_run_is(page: Path) -> None:
    for code in named_in_text(page):
        words = code.split()
        if "UID" in words and "--config" not in words:
            following = words[words.index("UID") + 1 :]
            assert following, code
            assert not following[0].startswith("-"), code


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_what_writes_or_compares_has_the_configuration(command: str) -> None:
    words = ALL_COMMANDS[command]
    compares = words[1:2] == ["verify"] and {"--tiled", "--profile"} & set(words)
    if words[1:2] == ["replay"] or "--drain" in words or compares:
        assert "--config" in words, "without the service's configuration it writes, or expects, uncorrected data"


TARGETS: Final = ("old", "new")
TARGET_JOURNALS: Final = tuple(f"var/lib/targets/{target}" for target in TARGETS)


class PreparedHost:
    """An ingest host whose files lie where the documentation has them, but in a temporary directory."""

    def __init__(self, directory: Path, server: TiledServer) -> None:
        self.directory = directory
        self.server = server
        self.journals = directory / "var/lib/tiledwriter"
        self.journals.parent.mkdir(parents=True)
        self.supervisor = SupervisorProcess(self.journals, server)
        self.uid = ""

    def prepare(self) -> None:
        """Write a run, and make the files that the commands name."""
        engine = RunEngine({})
        publisher = ZMQPublisher(self.supervisor.address, spool_dir=self.directory / "measured")
        # A document that belongs to no run is kept in a file of its own.
        publisher("event", {"uid": "e", "descriptor": "unknown", "seq_num": 1, "time": 1.0})
        engine.subscribe(publisher)
        (self.uid,) = engine(scan([det], motor, -1, 1, 3))
        assert publisher.wait_written(self.uid, 60)
        publisher.close()
        engine.loop.call_soon_threadsafe(engine.loop.stop)
        engine._th.join()
        engine.loop.close()
        wait_until(lambda: find_run_file(self.journals, self.uid).parent.name == "finished", 60, "the run is filed")
        config = self.directory / "etc/tiledwriter"
        config.mkdir(parents=True)
        for name in ("config", "old", "new"):
            (config / f"{name}.yaml").write_text(f"tiled: {self.server.uri}\njournal_dir: {self.journals}\n")
        self._prepare_targets(config / "targets.yaml")
        for name in ("var/lib/tiledwriter-old", "var/lib/tiledwriter-new", "backup/tiledwriter", *TARGET_JOURNALS):
            shutil.copytree(self.journals, self.directory / name, ignore=shutil.ignore_patterns(".*"))
        # As after another host's turn.
        shutil.copytree(self.journals / "finished", self.journals / "superseded/ingest1")
        for place in ("var/spool/tiled-backups", "backups"):
            (self.directory / place).mkdir(parents=True)
            backup = self.directory / place / "run.jsonl"
            assert self.run(["tiledwriter-journal", "export", self.uid, str(backup), str(self.journals)]) == 0

    def _prepare_targets(self, config: Path) -> None:
        """Write the configuration for commands that name a target; elsewhere the same file has none."""
        targets = {
            name: {"tiled": self.server.uri, "journal_dir": str(self.directory / journals)}
            for name, journals in zip(TARGETS, TARGET_JOURNALS, strict=True)
        }
        config.write_text(yaml.safe_dump({"targets": targets}))

    def translate(self, words: list[str]) -> list[str]:
        """Return a command of the documentation for this host."""
        result: list[str] = []
        for word in words:
            if word == "--profile":
                result.append("--tiled")
            elif result[-1:] == ["--tiled"]:
                result.append(self.server.uri)
            elif re.match(r"tcp://(ingest|ingest\.example):", word):
                result.append(self.supervisor.address)
            elif re.fullmatch(r"UID|d2f1|3f2b|5a41\w*", word):
                result.append(self.uid)
            elif word.endswith(tuple(f"/config.yaml:{target}" for target in TARGETS)):
                result.append(f"{self.directory}/etc/tiledwriter/targets.yaml:{word.rpartition(':')[2]}")
            elif word.startswith("./_unrouted"):
                result += self._expand("measured/_unrouted*.segment")
            elif word.startswith("/var/lib/tiledwriter/old/"):
                result += self._expand(word.replace("/var/lib/tiledwriter/old/", f"{TARGET_JOURNALS[0]}/"))
            elif re.match(r"/(backup|etc|var)/|~/|.*\*", word):
                result += self._expand(re.sub("^(~/|/)", "", word))
            else:
                result.append(word)
        return result

    def _expand(self, pattern: str) -> list[str]:
        return sorted(map(str, self.directory.glob(pattern))) or [str(self.directory / pattern)]

    def run(self, words: list[str]) -> int:
        """Run a command in this process, and return its exit code."""
        main = journal.main if words[0] == "tiledwriter-journal" else supervisor.main
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return main(words[1:])
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            # A command's connection to Tiled ends with its process; here it must not be left to another module's test.
            gc.collect()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, tiled_server: TiledServer) -> Iterator[PreparedHost]:
    host = PreparedHost(tmp_path_factory.mktemp("host"), tiled_server)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(host.directory)
        patch.setenv("TILED_API_KEY", tiled_server.api_key)
        patch.setenv("XDG_STATE_HOME", str(host.directory / "state"))
        patch.setenv("TILEDWRITER_JOURNAL_DIR", str(host.journals))
        (host.directory / "state/tiledwriter/spool").mkdir(parents=True)
        with host.supervisor:
            host.prepare()
            yield host


# Examples of help texts are run by the tests of the commands.
RUNNABLE: Final = [
    command for command, words in ON_PAGES.items() if words[0] == "tiledwriter-journal" and words[1:2] != ["--help"]
]
# What is right on a host where the one run is written, and no session has died.
OTHER_CODES: Final = {"retry": {ExitCode.FAILED, ExitCode.OK}, "ship": {ExitCode.OK, ExitCode.NOT_FOUND}}


@pytest.mark.parametrize("command", RUNNABLE)
def test_a_journal_command_in_the_docs_does_its_work(
    command: str, host: PreparedHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ALL_COMMANDS[command]
    if "..." in words:
        pytest.skip("three dots stand for arguments that the reader knows")
    monkeypatch.chdir(host.directory)
    for relative in ("try", "run.jsonl"):
        _remove(host.directory / relative)
    if "try/journals" in words:
        # The tutorial is in the directory where it has started the supervisor.
        shutil.copytree(host.journals, host.directory / "try/journals", ignore=shutil.ignore_patterns(".*"))
    code = host.run(host.translate(words))
    output: Any = capsys.readouterr()
    assert code in OTHER_CODES.get(words[1], {ExitCode.OK}), output.out + output.err


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def test_keys_are_made_as_the_docs_say(host: PreparedHost, capsys: pytest.CaptureFixture[str]) -> None:
    keygen = [words for words in ALL_COMMANDS.values() if words[1:2] == ["keygen"] and words[2].startswith("/etc")]
    assert len(keygen) >= 2
    for words in sorted(keygen, key=len):
        assert host.run(host.translate(words)) == ExitCode.OK
    assert (host.directory / "etc/tiledwriter/keys/clients/beamline.key").exists()


def test_a_drain_as_the_docs_say_finds_nothing_left(host: PreparedHost) -> None:
    drains = [words for words in ALL_COMMANDS.values() if "--drain" in words]
    assert drains
    host.supervisor.stop()
    for words in drains:
        command = [sys.executable, "-m", "tiledwriter.cli.supervisor", *host.translate(words)[1:]]
        done = run_process(command)
        assert done.returncode == ExitCode.OK, done.stderr
