"""Typical mistakes, and the message that each gets. The page `docs/reference/mistakes.md` is written from these cases.

A case runs in this process. To write the page anew, set TILEDWRITER_TEST_WRITE_PAGES=1 and run this file.
"""

from __future__ import annotations

import gc
import getpass
import os
import re
import shlex
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiled.profiles
from faulty_proxy import FaultyProxy, ScriptedServer, page
from paths import ROOT

from tiledbroker import ZMQPublisher
from tiledbroker.log import FileLock
from tiledbroker.protocol import make_server_keys
from tiledbroker.publisher import _publisher
from tiledbroker.supervisor import SUPERVISOR_LOCK, _journal_directory
from tiledwriter.cli import _host_checks, supervisor
from tiledwriter.testing import TiledServer, free_port

PAGE = ROOT / "docs" / "reference" / "mistakes.md"
WRITING = bool(os.environ.get("TILEDWRITER_TEST_WRITE_PAGES"))
TILED = ["--tiled", "http://localhost:8000"]
CHECK = "check"

_INTRODUCTION = """\
# Mistakes, and what they are answered with

Typical mistakes with `tiledwriter-supervisor`, the exit code, and the message. A test makes each of these mistakes, and
this page from the answers. `DIR` stands for a directory; what a file or a variable holds is given after the
command. What `check` finds is shown in its own line, with what to do.

"""
_HEADER = "| mistake | command | exit code | message |\n| --- | --- | --- | --- |\n"


class Answer(NamedTuple):
    """What a mistake got: the exit code, None if there is no command, and the message."""

    command: str
    code: int | None
    message: str


class Bench:
    """A place to make mistakes in.

    Attributes
    ----------
    directory
        An empty directory.
    """

    def __init__(
        self, server: TiledServer, request: pytest.FixtureRequest, directory: Path, patch: pytest.MonkeyPatch
    ) -> None:
        self._server = server
        self._request = request
        self._shown: list[str] = []
        self.directory = directory
        self.patch = patch
        self.stack = ExitStack()
        self.replaced = {str(directory): "DIR", getpass.getuser(): "tiledwriter"}

    def write(self, text: str, name: str = "config.yaml") -> list[str]:
        """Write the configuration file; return the option that names it."""
        (self.directory / name).write_text(text)
        self._shown.append(f"{name}: {text!r}" if text else f"{name}: empty")
        return ["--config", str(self.directory / name)]

    def set(self, variable: str, value: str) -> None:
        """Set an environment variable."""
        self.patch.setenv(variable, value)
        self._shown.append(f"{variable}={value!r}")

    def say(self, text: str) -> None:
        """Show this beside the command."""
        self._shown.append(text)

    def port(self) -> int:
        """Return a free port, which is shown as 5580."""
        port = free_port()
        self.replaced[f":{port}"] = ":5580"
        return port

    def tiled(self) -> list[str]:
        """Return the option that names a Tiled server, after setting the key."""
        self.replaced[self._server.uri] = "http://localhost:8000"
        self.patch.setenv("TILED_API_KEY", self._server.api_key)
        return ["--tiled", self._server.uri]

    def caplog(self) -> pytest.LogCaptureFixture:
        """Return what is logged."""
        captured: pytest.LogCaptureFixture = self._request.getfixturevalue("caplog")
        return captured

    def show(self, argv: Sequence[str]) -> str:
        """Return the command as it is documented."""
        command = " ".join(["tiledwriter-supervisor", *map(shlex.quote, argv)])
        return "; ".join([command, *self._shown])

    def clean(self, text: str) -> str:
        """Replace what differs from one run of the test to the next."""
        for found, shown in sorted(self.replaced.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(found, shown)
        text = text.removeprefix("tiledwriter-supervisor: ").removeprefix("error: ")
        text = re.sub(r"\(pid \d+\)", "(pid 1234)", text)
        return re.sub(r"in use by \S+ \(", "in use by another-program (", text)


class Mistake(NamedTuple):
    """A mistake.

    Attributes
    ----------
    title
        The mistake in a few words.
    make
        Prepares it, and returns the arguments of the command.
    code
        The exit code.
    said
        Part of the message.
    check
        Name of the check whose result is the message; "" for the message of the command.
    """

    title: str
    make: Callable[[Bench], list[str]]
    code: int
    said: str
    check: str = ""


def with_config(text: str) -> Callable[[Bench], list[str]]:
    """Return a function that puts a text into the configuration file."""
    return lambda bench: bench.write(text)


def with_variable(name: str, value: str, *argv: str) -> Callable[[Bench], list[str]]:
    """Return a function that sets a variable."""

    def make(bench: Bench) -> list[str]:
        bench.set(name, value)
        return list(argv)

    return make


def with_arguments(*argv: str) -> Callable[[Bench], list[str]]:
    """Return a function that gives these arguments."""
    return lambda _: list(argv)


def checking(bench: Bench, *argv: str) -> list[str]:
    """Return the arguments of `check` for journals in the bench's directory."""
    return [CHECK, "--journal-dir", str(bench.directory / "journals"), *argv]


def unknown_profile(bench: Bench) -> list[str]:
    bench.patch.setattr(tiled.profiles, "load_profiles", lambda: {"beamline": (Path("x.yml"), {"uri": "http://x"})})
    bench.patch.setattr(tiled.profiles, "paths", [Path("/etc/tiled/profiles")])
    return ["--profile", "baemline"]


def missing_config(bench: Bench) -> list[str]:
    return ["--config", str(bench.directory / "confg.yaml"), *TILED]


def directory_as_config(bench: Bench) -> list[str]:
    return ["--config", str(bench.directory), *TILED]


def key_file(content: str | None) -> Callable[[Bench], list[str]]:
    """Return a function that makes a key file; None makes a directory in its place."""

    def make(bench: Bench) -> list[str]:
        path = bench.directory / "key"
        if content is None:
            path.mkdir()
        else:
            path.write_text(content)
            bench.say(f"key: {content!r}")
        return bench.write(f"tiled: http://localhost:8000\napi_key_file: {path}\n")

    return make


def missing_key_file(bench: Bench) -> list[str]:
    return bench.write(f"tiled: http://localhost:8000\napi_key_file: {bench.directory / 'kye'}\n")


def missing_curve(bench: Bench) -> list[str]:
    return [*TILED, "--curve", str(bench.directory / "keys"), "--journal-dir", str(bench.directory)]


def open_secret_key(bench: Bench) -> list[str]:
    keys = bench.directory / "keys"
    make_server_keys(keys)
    (keys / "server.key_secret").chmod(0o644)
    return [*TILED, "--curve", str(keys), "--journal-dir", str(bench.directory)]


def no_client(bench: Bench) -> list[str]:
    make_server_keys(bench.directory / "keys")
    return checking(bench, "--tiled", f"http://localhost:{bench.port()}", "--curve", str(bench.directory / "keys"))


def locked_journals(bench: Bench) -> list[str]:
    lock = FileLock(bench.directory / SUPERVISOR_LOCK)
    lock.acquire()
    bench.stack.callback(lock.release)
    bench.say("another supervisor runs on DIR")
    return [*TILED, "--journal-dir", str(bench.directory)]


def nothing_to_drain(bench: Bench) -> list[str]:
    return [*TILED, "--journal-dir", str(bench.directory / "jurnals"), "--drain"]


def file_as_journals(bench: Bench) -> list[str]:
    (bench.directory / "journals").write_text("")
    return checking(bench, "--tiled", f"http://localhost:{bench.port()}")


def network_journals(bench: Bench) -> list[str]:
    bench.patch.setattr(_journal_directory, "network_filesystem", lambda _: "NFS")
    bench.say("DIR is on NFS")
    return [*TILED, "--journal-dir", str(bench.directory)]


def network_journals_checked(bench: Bench) -> list[str]:
    bench.patch.setattr(_host_checks, "network_filesystem", lambda _: "NFS")
    bench.say("DIR is on NFS")
    return checking(bench, "--tiled", f"http://localhost:{bench.port()}")


def read_only_journals(bench: Bench) -> list[str]:
    (bench.directory / "journals").mkdir(0o700)

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # File modes do not keep root out, who may run the tests.
    bench.patch.setattr(_host_checks.tempfile, "TemporaryFile", refuse)
    bench.say("DIR/journals belongs to another user")
    return checking(bench, "--tiled", f"http://localhost:{bench.port()}")


def port_in_use(bench: Bench) -> list[str]:
    listener = bench.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = listener.getsockname()[1]
    bench.replaced[f":{port}"] = ":5579"
    return checking(bench, "--tiled", f"http://localhost:{bench.port()}", "--listen", f"tcp://127.0.0.1:{port}")


def port_in_use_served(bench: Bench) -> list[str]:
    listener = bench.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = listener.getsockname()[1]
    bench.replaced[f":{port}"] = ":5579"
    return [*TILED, "--journal-dir", str(bench.directory), "--listen", f"tcp://127.0.0.1:{port}"]


def no_address_of_this_host(bench: Bench) -> list[str]:
    return checking(bench, "--tiled", f"http://localhost:{bench.port()}", "--listen", "192.0.2.1:5579", "--insecure")


def wrong_tiled_port(bench: Bench) -> list[str]:
    return checking(bench, "--tiled", f"http://localhost:{bench.port()}")


def not_tiled(bench: Bench) -> list[str]:
    server = bench.stack.enter_context(ScriptedServer())
    server.script("GET", "", *[page(200)] * 10)
    bench.replaced[server.uri] = "http://portal.example"
    bench.say("a login page answers")
    return checking(bench, "--tiled", server.uri)


def gateway_without_tiled(bench: Bench) -> list[str]:
    server = bench.stack.enter_context(ScriptedServer())
    server.script("GET", "", *[page(502)] * 10)
    bench.replaced[server.uri] = "http://gateway.example"
    bench.say("the gateway answers 502")
    return checking(bench, "--tiled", server.uri)


class OldTiled(FaultyProxy):
    """A Tiled server that gives itself out as an older one."""

    def carry_out(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any, bytes]:
        plain = {name: value for name, value in headers.items() if name.lower() != "accept-encoding"}
        status, answered, content = super().carry_out(method, target, plain, body)
        version = tiled.__version__.encode()
        # Of the same length, which the encoded answer has before it.
        return status, answered, content.replace(version, b"0.2.1".ljust(len(version), b"0"))


def old_tiled(bench: Bench) -> list[str]:
    _, uri = bench.tiled()
    server = bench.stack.enter_context(OldTiled(uri))
    bench.replaced[server.uri] = "http://localhost:8000"
    return checking(bench, "--tiled", server.uri)


def unknown_host(bench: Bench) -> list[str]:
    find = socket.getaddrinfo

    def refuse(host: Any, *arguments: Any, **options: Any) -> Any:
        if "tield.example" in str(host):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return find(host, *arguments, **options)

    bench.patch.setattr(socket, "getaddrinfo", refuse)
    return checking(bench, "--tiled", "http://tield.example:8000")


def dead_proxy(bench: Bench) -> list[str]:
    bench.set("http_proxy", f"http://me:secret@localhost:{bench.port()}")
    return checking(bench, "--tiled", "http://tiled.example:8000")


def wrong_key(bench: Bench) -> list[str]:
    address = bench.tiled()
    bench.set("TILED_API_KEY", "abcdef")
    return checking(bench, *address)


def no_key(bench: Bench) -> list[str]:
    address = bench.tiled()
    bench.patch.delenv("TILED_API_KEY")
    return checking(bench, *address)


def missing_container(bench: Bench) -> list[str]:
    option, uri = bench.tiled()
    return checking(bench, option, f"{uri}/api/v1/metadata/beamlin")


def unreadable_files(bench: Bench) -> list[str]:
    return checking(bench, *bench.tiled(), "--file", "/nowhere/scan.h5")


def missing_file(bench: Bench) -> list[str]:
    return checking(bench, *bench.tiled(), "--file", "/tmp/tiledwriter-no-such-file.h5")


MISTAKES = [
    Mistake("no Tiled", with_arguments(), 2, "either --tiled URI or --profile NAME"),
    Mistake(
        "Tiled and profile", with_arguments(*TILED, "--profile", "beamline"), 2, "not allowed with argument --tiled"
    ),
    Mistake(
        "Tiled in the file, profile in the environment",
        lambda bench: [
            *bench.write("tiled: http://localhost:8000\n"),
            *with_variable("TILEDWRITER_PROFILE", "x")(bench),
        ],
        2,
        "tiled comes from",
    ),
    Mistake("address without scheme", with_arguments("--tiled", "tiled.example:8000"), 2, "did you mean http://"),
    Mistake("misspelt scheme", with_arguments("--tiled", "htp://localhost:8000"), 2, "not an address of Tiled"),
    Mistake("port that is no number", with_arguments("--tiled", "http://localhost:80OO"), 2, "not an address of Tiled"),
    Mistake("key in the address", with_arguments("--tiled", "http://localhost:8000?api_key=abc"), 2, "TILED_API_KEY"),
    Mistake("empty variable", with_variable("TILEDWRITER_TILED", ""), 2, "TILEDWRITER_TILED"),
    Mistake("unknown profile", unknown_profile, 2, "did you mean beamline?"),
    Mistake("no key file", missing_key_file, 2, "kye cannot be read"),
    Mistake("directory as key file", key_file(None), 2, "is a directory"),
    Mistake("empty key file", key_file("\n"), 2, "holds no key"),
    Mistake("newline in the key file", key_file("abc\ndef\n"), 2, "holds 2 lines"),
    Mistake("newline in the key", with_variable("TILED_API_KEY", "abc\n", *TILED), 2, "a line break"),
    Mistake("no configuration file", missing_config, 2, "there is no configuration file"),
    Mistake("directory as configuration file", directory_as_config, 2, "is a directory"),
    Mistake("empty configuration file", with_config(""), 2, "holds no settings"),
    Mistake("tab in YAML", with_config("streams:\n\texclude: [a]\n"), 2, "line 2: not YAML: a tab"),
    Mistake("bracket not closed", with_config("tiled: [http://localhost\n"), 2, "not YAML"),
    Mistake("list instead of settings", with_config("- tiled\n"), 2, "not a YAML mapping"),
    Mistake(
        "misspelt key", with_config("tiled: http://localhost:8000\nmax_wrokers: 3\n"), 2, "did you mean max_workers?"
    ),
    Mistake("key with dashes", with_config("journal-dir: /var/lib/tiledwriter\n"), 2, "did you mean journal_dir?"),
    Mistake("misspelt key further in", with_config("streams:\n  exlude: [a]\n"), 2, "did you mean exclude?"),
    Mistake("key given twice", with_config("max_workers: 3\nmax_workers: 4\n"), 2, "first in line 1"),
    Mistake("text for a number", with_config("max_workers: many\n"), 2, "line 1: max_workers: must be"),
    Mistake(
        "number out of range in a variable", with_variable("TILEDWRITER_WRITE_SLOTS", "0", *TILED), 2, "WRITE_SLOTS"
    ),
    Mistake("unknown log level", with_arguments(*TILED, "--log-level", "loud"), 2, "--log-level: must be"),
    Mistake("mapping that is not JSON", with_variable("TILEDWRITER_PATH_MAP", "/a=/b", *TILED), 2, "must be JSON"),
    Mistake(
        "misspelt variable",
        with_variable("TILEDWRITER_JURNAL_DIR", "/x", *TILED, "--print-config"),
        0,
        "did you mean TILEDWRITER_JOURNAL_DIR?",
    ),
    Mistake("relative path in the path map", with_config("path_map: {data: /mnt}\n"), 2, "'data' is neither"),
    Mistake("directory twice in the path map", with_config("path_map: {/a: /1, /a/: /2}\n"), 2, "the same directory"),
    Mistake("line break in a header", with_config('headers: {X-Token: "a\\nb"}\n'), 2, "the value of X-Token"),
    Mistake("misspelt plugin", with_config("normalizer: tiledwriter:RunNormaliser\n"), 2, "cannot be imported"),
    Mistake(
        "address without port", with_arguments(*TILED, "--listen", "10.0.0.5"), 2, "--listen: '10.0.0.5' has no port"
    ),
    Mistake("scheme that ZeroMQ lacks here", with_arguments(*TILED, "--listen", "udp://x:1"), 2, "is not an address"),
    Mistake("open to other hosts", with_arguments(*TILED, "--listen", "tcp://*:5579"), 2, "--curve DIR"),
    Mistake("no keys", missing_curve, 2, "cannot be read"),
    Mistake("secret key for all to read", open_secret_key, 2, "chmod 600"),
    Mistake("no client with a key", no_client, 20, "no client is accepted", "curve"),
    Mistake("second supervisor", locked_journals, 3, "another tiledwriter-supervisor uses DIR"),
    Mistake("mistyped directory to drain", nothing_to_drain, 4, "nothing can be drained"),
    Mistake("file as journal directory", file_as_journals, 11, "is not a directory", "journals"),
    Mistake("journals on a network file system", network_journals, 1, "network file system (NFS)"),
    Mistake("the same, checked", network_journals_checked, 11, "network file system (NFS)", "journals"),
    Mistake("journals of another user", read_only_journals, 11, "cannot be written", "journals"),
    Mistake("port in use", port_in_use_served, 1, "Address already in use"),
    Mistake("the same, checked", port_in_use, 15, "is in use by", "port"),
    Mistake("address of another host", no_address_of_this_host, 15, "no address of this host", "port"),
    Mistake("wrong port of Tiled", wrong_tiled_port, 20, "cannot be reached", "tiled"),
    Mistake("misspelt host", unknown_host, 20, "Correct the host's name", "tiled"),
    Mistake("proxy for an address within the site", dead_proxy, 20, "through the proxy localhost:5580", "tiled"),
    Mistake("login page instead of Tiled", not_tiled, 20, "is not Tiled", "tiled"),
    Mistake("gateway without Tiled", gateway_without_tiled, 20, "answers 502", "tiled"),
    Mistake("old Tiled", old_tiled, 21, "or newer is needed", "version"),
    Mistake("wrong key", wrong_key, 22, "does not accept the key", "key"),
    Mistake("no key", no_key, 22, "no API key is given, and Tiled wants one", "key"),
    Mistake("missing container", missing_container, 24, "there is no beamlin", "container"),
    Mistake("files that Tiled may not read", unreadable_files, 27, "does not serve files", "files"),
    Mistake("file that is not there", missing_file, 27, "cannot open", "files"),
]
SPOOL = "spool on a network file system"
TITLES = [*(mistake.title for mistake in MISTAKES), SPOOL]

_answers: dict[int, Answer] = {}


@pytest.fixture
def bench(
    tiled_server: TiledServer, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """A place to make mistakes in, without settings in the environment."""
    for name in list(os.environ):
        if name.startswith(("TILEDWRITER_", "TILED_API_KEY")) and not name.startswith("TILEDWRITER_TEST_"):
            monkeypatch.delenv(name)
    bench = Bench(tiled_server, request, tmp_path, monkeypatch)
    with bench.stack:
        yield bench
    with warnings.catch_warnings():
        # Tiled's client leaves its connection open when the first answer is not one of Tiled.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def documented() -> list[Answer]:
    """Return the answers on the page."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return [Answer(command, int(code) if code else None, message) for _, command, code, message in cells]


def format_answer(answer: Answer) -> Answer:
    """Return the answer as the page has it."""
    return Answer(f"`` {answer.command} ``", answer.code, f"`` {answer.message} ``")


def compare_or_write(number: int, answer: Answer) -> None:
    """Compare an answer with the page, or keep it for the page."""
    _answers[number] = answer
    if not WRITING:
        assert format_answer(answer) == documented()[number], "see the first lines of this file"
    elif len(_answers) == len(TITLES):
        write_page()


def write_page() -> None:
    rows = []
    for number, title in enumerate(TITLES):
        command, code, message = format_answer(_answers[number])
        cells = [title, command, "" if code is None else str(code), message]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    PAGE.write_text(_INTRODUCTION + _HEADER + "".join(rows))


def find_result(output: str, name: str) -> str:
    """Return the result of a check from the output of `check`, with the advice that follows it."""
    lines = output.splitlines()
    (number,) = [number for number, line in enumerate(lines) if line.split()[1:2] == [name]]
    state, _, found = lines[number].split(maxsplit=2)
    advice = lines[number + 1].strip() if lines[number + 1].startswith(" ") else ""
    return f"{state}: {found}. {advice}"


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[mistake.title for mistake in MISTAKES])
def test_a_mistake_gets_its_message(number: int, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    mistake = MISTAKES[number]
    argv = mistake.make(bench)
    try:
        code = supervisor.main(argv)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    if mistake.check:
        message = find_result(captured.out, mistake.check)
    else:
        message = captured.err.strip().splitlines()[-1] if captured.err.strip() else bench.caplog().messages[-1]
    message = bench.clean(message)
    assert (int(code), mistake.said in message) == (mistake.code, True), f"{code} {captured}"
    assert "Traceback" not in captured.err
    compare_or_write(number, Answer(bench.clean(bench.show(argv)), int(code), message))


def test_a_spool_on_a_network_file_system_is_warned_of(bench: Bench) -> None:
    bench.patch.setattr(_publisher, "network_filesystem", lambda _: "NFS")
    bench.patch.setattr(_publisher, "local_spool_dir", lambda _: bench.directory / "local")
    ZMQPublisher(f"localhost:{bench.port()}", spool_dir=bench.directory / "spool").close(timeout=0)
    message = bench.clean(bench.caplog().messages[0])
    assert "is on a network file system (NFS)" in message
    command = 'ZMQPublisher("localhost:5579", spool_dir="DIR/spool"); DIR is on NFS'
    compare_or_write(len(MISTAKES), Answer(command, None, message))


def test_the_page_lists_these_mistakes_and_no_others() -> None:
    rows = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| ")][2:]
    assert rows == TITLES
    assert len(rows) >= 30
