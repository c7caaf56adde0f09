"""Nothing that comes in is ever run, and no claim about its own size is believed."""

from __future__ import annotations

import ast
import os
import pickle
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
import zmq
from fuzz import framing
from fuzz.seeds import extension
from fuzz.targets import TARGETS, check
from paths import ROOT, SUPPORT, TESTS
from peers import ask, dial
from runs import supervisor_without_tiled

from tiledbroker import CodecError, Encoder, Journal, ProtocolError, decode
from tiledbroker.protocol import messages
from tiledbroker.publisher._zmq_link import new_identity
from tiledwriter.testing import SupervisorProcess

SOURCES: Final = sorted([*(ROOT / "broker").rglob("*.py"), *(ROOT / "writer").rglob("*.py")])

# What makes objects, or runs programs, from bytes or text.
MODULES: Final = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "jsonpickle", "joblib"),
    *("marshal", "shelve", "msgpack_numpy", "code", "codeop", "runpy"),
}
CALLS: Final = {
    *("eval", "exec", "compile", "__import__", "execfile"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
    *("os.system", "os.popen", "builtins.eval", "builtins.exec", "builtins.compile", "numpy.fromstring"),
}
# From the configuration, and for names that are in the program.
IMPORT_BY_NAME: Final = {
    *("writer/tiledwriter/mapping/_plugins.py", "writer/tiledwriter/_lazy.py"),
    "broker/tiledbroker/supervisor/_fork_server.py",  # modules that the supervisor names
}


def findings(source: str) -> Iterator[str]:
    """What of the above a module's source uses."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call):
            names = []
            yield from _dangerous_call(node)
        else:
            continue
        yield from (f"import {name}" for name in names if name.partition(".")[0] in MODULES or name in CALLS)


def _dangerous_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    if name in CALLS:
        yield name
    for keyword in call.keywords:
        given = ast.unparse(keyword.value)
        if (keyword.arg, given) in {("shell", "True"), ("allow_pickle", "True")}:
            yield f"{name}({keyword.arg}=True)"
        if name.endswith(("frombuffer", "ndarray")) and keyword.arg == "dtype" and given in {"object", "'O'"}:
            yield f"{name} of objects"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, marshal as m",
        "from pickle import loads",
        "from yaml import unsafe_load",
        "def f():\n    import shelve",
        "eval('1')",
        "exec(text, {})",
        "compile(text, 'x', 'exec')",
        "yaml.load(text, Loader=Loader)",
        "subprocess.run(command, shell=True)",
        "numpy.load(file, allow_pickle=True)",
        "numpy.frombuffer(data, dtype=object)",
    ],
)
def test_what_is_forbidden_would_be_found(source: str) -> None:
    assert list(findings(source))


@pytest.mark.parametrize("source", ["re.compile('a')", "yaml.safe_load(text)", "numpy.frombuffer(data, dtype=dtype)"])
def test_what_is_harmless_is_not(source: str) -> None:
    assert not list(findings(source))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path: Path) -> None:
    source = path.read_text()
    assert list(findings(source)) == []
    assert "import_module" not in source or str(path.relative_to(ROOT)) in IMPORT_BY_NAME


def run_python(code: str, *arguments: object) -> str:
    search = os.pathsep.join([str(TESTS), str(SUPPORT), *sys.path])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_nothing_is_run_while_inputs_are_taken_whatever_they_are() -> None:
    """Python itself tells of everything that is unpickled, compiled, run or imported; once all is imported, nothing."""
    output = run_python(
        """
import logging, sys
from fuzz.seeds import inputs
from fuzz.targets import TARGETS
logging.disable()
told, listening = [], False
WATCHED = ("pickle.find_class", "marshal.loads", "marshal.load", "compile", "exec", "import", "code.__new__",
           "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "ctypes.dlopen")
def hear(event, arguments):
    if listening and event in WATCHED:
        told.append(event)
sys.addaudithook(hear)
listening = True
exec("pass")
listening = False
assert set(told) == {"compile", "exec"}, told
told.clear()
taken = [(target, data) for target in TARGETS for data in inputs(target).values()]
for again in (False, True):
    listening = again
    for target, data in taken:
        TARGETS[target](data)
listening = False
print(len(taken), sorted(set(told)))
"""
    )
    count, told = output.split(maxsplit=1)
    assert int(count) > 80
    assert told.strip() == "[]"


# A crafted pickle


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


def test_a_crafted_pickle_is_refused_wherever_it_comes(tmp_path: Path) -> None:
    crater = tmp_path / "unpickled"
    bomb = pickle.dumps(Bomb(crater))
    pickle.loads(bomb)
    assert crater.exists()
    crater.unlink()
    with pytest.raises(CodecError):
        decode(bomb)
    for frames in ([bomb], [b"TW\x01\x01", bomb], [b"TW\x01\x03", bomb, bomb]):
        with pytest.raises(ProtocolError):
            messages.decode(frames)
    document = Encoder().encode({"uid": "run", "time": 0.0, "value": bomb})
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.append_one("start", document)
        journal.append_one("descriptor", bomb)
        journal.set("outcome", bomb.decode("latin-1"))
    for target, data in (
        ("frames", framing.join([b"TW\x01\x01", bomb])),
        ("codec", bomb),
        ("fold", framing.joined_documents([("start", document), ("descriptor", bomb)])),
        ("journal", bomb),
        ("journal", (tmp_path / "run.sqlite").read_bytes()),
    ):
        check(TARGETS[target], data)
    assert not crater.exists()


# Extensions


GARBAGE: Final = (b"", b"\x00", b"\xff", b"\xff" * 40, b"\x93\xa3|V9\xdd\xff\xff\xff\xff", b"\x03<f8", bytes(1000))


@pytest.mark.parametrize("code", range(-128, 128))
def test_a_crafted_extension_is_a_harmless_value_or_refused(code: int) -> None:
    for payload in GARBAGE:
        check(TARGETS["codec"], extension(code, payload))
        if code not in {-1, *range(1, 8)}:
            with pytest.raises(CodecError, match=f"Extension type {code}"):
                decode(extension(code, payload))


# Claims of 4 GiB


def test_a_claim_of_4_gib_takes_no_memory() -> None:
    output = run_python(
        """
import msgspec
from tiledbroker import CodecError, ProtocolError, decode
from tiledbroker.protocol import messages
import numpy

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmPeak"))

def refused(read, what, error):
    global count
    try:
        read(what)
    except error:
        count += 1
    else:
        raise AssertionError(what)

decode(msgspec.msgpack.encode({"a": [1]}))
before, count = peak(), 0
size = b"\\xff\\xff\\xff\\xff"
for claim in (b"\\xc6", b"\\xc9", b"\\xdb", b"\\xdd", b"\\xdf"):
    for body in (claim + size, b"\\x81\\xa1v" + claim + size, b"\\x81\\xa1v" + claim + size + bytes(1000)):
        refused(decode, body, CodecError)
    for code in (2, 3, 4, 77):
        refused(decode, msgspec.msgpack.encode({"v": msgspec.msgpack.Ext(code, claim + size)}), CodecError)
    for kind in (*range(1, 10), 32, 33, 34, 35):
        frames = [b"TW\\x01" + bytes([kind]), b"\\x95" + claim + size] + [b""] * (kind == 3)
        refused(messages.decode, frames, ProtocolError)
for shape in ([2**32], [2**16, 2**16], [2**32, 0], [2**63, 2]):
    for descr in ("<f8", "|S0", "|V4294967295", [["a", "<f8", [2**29]]]):
        for content in (b"", b"12345678"):
            packed = msgspec.msgpack.encode([descr, shape, content, False])
            refused(decode, msgspec.msgpack.encode({"v": msgspec.msgpack.Ext(2, packed)}), CodecError)
for sizes in ([2**32], [2**32, -(2**32)], [2**63], [2**64 - 1, 1]):
    header = msgspec.msgpack.encode(["run", 0, ["event"] * len(sizes), sizes, [0] * len(sizes)])
    refused(messages.decode, [b"TW\\x01\\x03", header, b""], ProtocolError)
print(count, peak() - before)
"""
    )
    count, grown = map(int, output.split())
    assert count >= 130
    assert grown < 16 * 1024  # KiB


GREETING: Final = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\x00" + bytes(31)


def ready_command(identity: bytes) -> bytes:
    """How a ZMTP 3.0 client without security introduces itself."""
    properties = b"".join(
        bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
        for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", identity))
    )
    body = b"\x05READY" + properties
    return b"\x04" + bytes([len(body)]) + body


def shaken_hands(address: str) -> socket.socket:
    """A plain TCP connection that ZeroMQ takes for a publisher's."""
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(GREETING)
    assert len(_received(connection, 64)) == 64
    connection.sendall(ready_command(new_identity()))
    assert _received(connection, 2)[:1] == b"\x04"
    return connection


def _received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := connection.recv(size - len(data))):
        data += part
    return data


def is_ended(connection: socket.socket) -> bool:
    """Whether the other side closes the connection, within its timeout."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[SupervisorProcess]:
    with supervisor_without_tiled(tmp_path / "journals") as process:
        yield process


@pytest.mark.parametrize("claim", [2**32, 2**31, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("more", [0, 1], ids=["the last frame", "more to come"])
def test_a_zmtp_frame_of_gigabytes_ends_the_connection_and_nothing_else(
    claim: int, more: int, supervisor: SupervisorProcess
) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with dial(context, supervisor.address) as other:
            assert isinstance(ask(other, messages.Hello("other", {}, [])), messages.Welcome)
            process = psutil.Process(supervisor.pid)
            before = process.memory_info()
            with shaken_hands(supervisor.address) as connection:
                connection.sendall(bytes([0x02 | more]) + struct.pack(">Q", claim) + b"x" * 1000)
                assert is_ended(connection)
            after = process.memory_info()
            assert after.rss - before.rss < 16 * 2**20
            assert after.vms - before.vms < 256 * 2**20
            assert ask(other, messages.Ping(7)) == messages.Pong(7)
    finally:
        context.destroy(linger=0)


def test_a_zmtp_frame_of_a_size_that_may_be_is_taken(supervisor: SupervisorProcess) -> None:
    """The same connection, so that it is the size alone that ends it above."""
    preamble, header = messages.encode(messages.Hello("raw", {}, []))
    with shaken_hands(supervisor.address) as connection:
        connection.sendall(b"\x03" + struct.pack(">Q", len(preamble)) + preamble)
        connection.sendall(b"\x02" + struct.pack(">Q", len(header)) + header)
        heard = b""
        while b"TW\x01\x02" not in heard:  # a Welcome
            part = connection.recv(4096)
            assert part
            heard += part
