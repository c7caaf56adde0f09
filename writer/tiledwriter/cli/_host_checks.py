"""Pre-flight checks of this host: credentials, journal directory, disk, lease, CURVE keys, plugins and the port."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Final

import psutil

from tiledbroker import KeyFileError
from tiledbroker._errors import StoreUnavailable
from tiledbroker._filesystem import network_filesystem
from tiledbroker._wording import format_command
from tiledbroker.log import FileLock, journal_files
from tiledbroker.ownership import DirectoryStore
from tiledbroker.protocol import ServerCurve, is_local
from tiledbroker.supervisor import LOW_FACTOR, SUPERVISOR_LOCK, find_min_free, format_bytes

from .._check_results import CheckResult
from .._config import Settings
from .._errors import PluginError
from ._checks_of_log import check_log
from ._credentials import describe_key_source, is_readable_by_others, require_credentials
from ._settings import WrongConfiguration
from ._terminal import count_of

CREDENTIALS: Final = "credentials"
JOURNALS: Final = "journals"
DISK: Final = "disk"
LEASE: Final = "lease"
CURVE: Final = "curve"
PLUGINS: Final = "plugins"
PORT: Final = "port"
HOST_CHECKS: Final = (CREDENTIALS, JOURNALS, DISK, LEASE, CURVE, PLUGINS, PORT)
"""Names of the checks, in their order."""

_FEW_BYTES: Final = 10 * 2**30
_FEW_FILES: Final = 10_000
_LEASE_SECONDS: Final = 10.0
_PROGRAMS: Final = ("tiledwriter-supervisor", "tiledwriter.cli.supervisor", "tiledwriter/cli/supervisor.py")


def check_host(settings: Settings) -> Iterator[CheckResult]:
    """Yield one result for each of `HOST_CHECKS`."""
    yield _check_credentials(settings)
    is_running: bool | None
    try:
        is_running = FileLock(settings.journal_dir / SUPERVISOR_LOCK).held
    except OSError:
        is_running = None
    yield _check_journals(settings.journal_dir, is_running=is_running)
    yield _check_disk(settings)
    address = settings.log_address()
    yield _check_lease(settings.lease_dir) if address is None else check_log(LEASE, address)
    yield _check_curve(settings)
    yield _check_plugins(settings)
    if address is not None:
        yield CheckResult.ok(PORT, "documents come from the log; this host does not listen for publishers")
    else:
        yield _check_port(settings.listen, is_running=bool(is_running), may_stand_by=settings.lease_dir is not None)


def _check_credentials(settings: Settings) -> CheckResult:
    try:
        require_credentials(settings)
    except WrongConfiguration as error:
        return CheckResult.fail(CREDENTIALS, str(error), "Correct what is named here.")
    source = describe_key_source(settings)
    file = settings.api_key_file
    if file is not None and is_readable_by_others(file):
        return CheckResult.warn(CREDENTIALS, f"users other than its owner can read {file}", f"Run `chmod 600 {file}`.")
    if source is None:
        return CheckResult.ok(CREDENTIALS, "no API key is given; whether Tiled wants one is another check")
    return CheckResult.ok(CREDENTIALS, f"the API key comes from {source}")


# Journals.


def _check_journals(directory: Path, *, is_running: bool | None) -> CheckResult:
    if (name := network_filesystem(directory)) is not None:
        return CheckResult.fail(
            JOURNALS, f"{directory} is on a network file system ({name})", "Give --journal-dir on a local disk."
        )
    try:
        status = directory.stat()
    except FileNotFoundError:
        return _check_parent(directory)
    except OSError as error:
        return CheckResult.fail(
            JOURNALS, f"{directory} cannot be used: {error.strerror}", "Give another --journal-dir."
        )
    if not stat.S_ISDIR(status.st_mode):
        return CheckResult.fail(JOURNALS, f"{directory} is not a directory", "Give another --journal-dir.")
    try:
        os.scandir(directory).close()
        # It has no name, so nothing is left and nobody can take it for a journal.
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"tiledwriter")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return CheckResult.fail(
            JOURNALS,
            f"{directory} cannot be written by {_user_name()}: {error.strerror}",
            "Make it belong to the user of the service.",
        )
    try:
        journal_files(directory)
    except OSError as error:
        return CheckResult.fail(
            JOURNALS,
            f"the runs in {directory} are not all known: {error.strerror}: {error.filename}",
            "Mount what is not mounted, or make it belong to the user of the service.",
        )
    if is_running is None:
        return CheckResult.fail(
            JOURNALS,
            f"it cannot be seen whether a supervisor is running on {directory}",
            f"Make {SUPERVISOR_LOCK} a file that the user of the service can read.",
        )
    if is_running:
        return CheckResult.ok(JOURNALS, f"{directory} can be written; a supervisor is running on it")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return CheckResult.warn(
            JOURNALS, f"users other than its owner can enter {directory}", f"Run `chmod 700 {directory}`."
        )
    return CheckResult.ok(JOURNALS, f"{directory} can be written; no supervisor is running on it")


def _check_parent(directory: Path) -> CheckResult:
    """Check a directory that does not exist yet, and that the supervisor would make."""
    parent = _nearest_existing(directory)
    if not parent.is_dir():
        return CheckResult.fail(
            JOURNALS, f"{directory} cannot be made: {parent} is not a directory", "Give another --journal-dir."
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        return CheckResult.fail(
            JOURNALS,
            f"{directory} cannot be made: {_user_name()} may not write into {parent}",
            "Make it, and give it to the user of the service.",
        )
    return CheckResult.ok(JOURNALS, f"{directory} does not exist yet, and can be made")


def _check_disk(settings: Settings) -> CheckResult:
    directory = settings.journal_dir
    place = _nearest_existing(directory)
    try:
        usage, files = shutil.disk_usage(place), os.statvfs(place)
    except OSError as error:
        return CheckResult.skip(DISK, f"the disk of {place} does not say how much is free: {error.strerror}")
    found = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB are free for {directory}"
    min_free = find_min_free(settings.min_free, usage.total)
    if usage.free < min_free:
        return CheckResult.fail(
            DISK,
            f"{found}, less than min_free, {format_bytes(min_free)}: no documents are accepted",
            "Make room, or give another --journal-dir.",
        )
    if files.f_files and files.f_favail < _FEW_FILES:
        return CheckResult.warn(DISK, f"{files.f_favail} more files can be made for {directory}", "Make room.")
    if usage.free < (_FEW_BYTES if settings.min_free is None else LOW_FACTOR * min_free):
        return CheckResult.warn(
            DISK,
            f"{found}; documents are accepted down to min_free, {format_bytes(min_free)}",
            "Make room: journals of finished runs can be pruned.",
        )
    return CheckResult.ok(DISK, found)


def _nearest_existing(path: Path) -> Path:
    absolute = path.absolute()
    return next((each for each in (absolute, *absolute.parents) if os.path.lexists(each)), absolute)


def _user_name() -> str:
    try:
        return f"user {psutil.Process().username()}"
    except (psutil.Error, KeyError):
        return f"user {os.geteuid()}"


# The lease.


def _check_lease(directory: Path | None) -> CheckResult:
    if directory is None:
        return CheckResult.ok(LEASE, "no other host serves instead of this one")
    # It is on another host, and may hang as long as that one is away. The thread is left to itself then.
    results: list[CheckResult] = []
    thread = Thread(target=lambda: results.append(_look_at_lease(directory)), name="tiledwriter-lease", daemon=True)
    thread.start()
    thread.join(_LEASE_SECONDS)
    if thread.is_alive():
        return CheckResult.fail(
            LEASE,
            f"{directory} has not answered for {_LEASE_SECONDS:g} s",
            "Look whether the server of its file system is there, and mount it anew.",
        )
    return results[0]


def _look_at_lease(directory: Path) -> CheckResult:
    try:
        lease = DirectoryStore(directory).read().lease
    except StoreUnavailable as error:
        return CheckResult.fail(LEASE, str(error), "Correct this on every ingest host of the service.")
    if not os.access(directory, os.W_OK | os.X_OK):
        return CheckResult.fail(
            LEASE, f"{_user_name()} cannot write in {directory}", "Run the service of all hosts as one user."
        )
    if lease is None:
        return CheckResult.ok(LEASE, f"{directory} is prepared; no host has served yet")
    verb = "has released" if lease.released else "was the last to hold"
    return CheckResult.ok(LEASE, f"{lease.host} {verb} the lease in {directory}, epoch {lease.epoch}")


# Keys and plugins.


def _check_curve(settings: Settings) -> CheckResult:
    directory = settings.curve
    if directory is None:
        if is_local(settings.listen):
            return CheckResult.ok(CURVE, f"no keys; only this host can reach {settings.listen}")
        return CheckResult.warn(
            CURVE, f"no keys, and any host that reaches {settings.listen} can write", "Make keys with `keygen`."
        )
    keygen = format_command("tiledwriter-supervisor", "keygen", directory)
    try:
        names = ServerCurve(directory).client_names
    except KeyFileError as error:
        return CheckResult.fail(CURVE, str(error), f"Run `{keygen}`, or correct it.")
    if not names:
        return CheckResult.warn(
            CURVE,
            f"the keys in {directory} can be used, but no client is accepted",
            f"Run `{keygen} --client NAME`.",
        )
    return CheckResult.ok(CURVE, f"keys in {directory}; {count_of(len(names), 'client')}: {', '.join(names)}")


def _check_plugins(settings: Settings) -> CheckResult:
    plugins = settings.writing_options().plugins
    try:
        plugins.check(settings.spec_to_mimetype)
    except PluginError as error:
        return CheckResult.fail(PLUGINS, str(error), "Install the package, or correct the name.")
    named = [
        *([f"normalizer {plugins.normalizer}"] if plugins.normalizer else []),
        *(f"module {name}" for name in plugins.modules),
        *(f"patch {reference}" for reference in plugins.patches.values()),
        *(f"consolidator {reference}" for reference in plugins.consolidators.values()),
    ]
    return CheckResult.ok(PLUGINS, f"imported: {', '.join(named)}" if named else "none are configured or installed")


# The port.


def _check_port(listen: str, *, is_running: bool, may_stand_by: bool) -> CheckResult:
    scheme, _, endpoint = listen.partition("://")
    if scheme == "ipc":
        return _check_ipc(endpoint, is_running=is_running)
    host, _, port = endpoint.rpartition(":")
    if port == "*":
        return CheckResult.ok(PORT, f"{listen}: any port that is free")
    try:
        _try_to_bind(host.strip("[]"), int(port))
    except OSError as error:
        return _explain_bind_error(listen, int(port), error, is_running=is_running)
    if is_running and may_stand_by:
        return CheckResult.ok(PORT, f"{listen} is free, as it is while the running supervisor stands by")
    if is_running:
        return CheckResult.warn(
            PORT, f"{listen} is free, so the running supervisor listens at another address", "See its configuration."
        )
    return CheckResult.ok(PORT, f"{listen} is free")


def _check_ipc(path: str, *, is_running: bool) -> CheckResult:
    parent = Path(path).absolute().parent
    if path.startswith("@"):
        return CheckResult.skip(PORT, f"{path} is an abstract address")
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return CheckResult.fail(
            PORT, f"no socket can be made in {parent}", "Make the directory, or give another --listen."
        )
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return CheckResult.ok(PORT, f"nobody listens at ipc://{path}")
    if is_running:
        return CheckResult.ok(PORT, f"somebody listens at ipc://{path}, and a supervisor is running")
    return CheckResult.fail(PORT, f"somebody listens at ipc://{path}", "Stop that process, or give another --listen.")


def _try_to_bind(host: str, port: int) -> None:
    """Bind a socket, which nobody can connect to because it does not listen, and close it.

    Raises
    ------
    OSError
        The address is in use, is none of this host, or is reserved.
    """
    interfaces = psutil.net_if_addrs()
    if host == "*":
        host = "0.0.0.0"
    elif host in interfaces:
        # ZeroMQ takes names of network interfaces, too.
        host = next((item.address for item in interfaces[host] if item.family == socket.AF_INET), host)
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _explain_bind_error(listen: str, port: int, error: OSError, *, is_running: bool) -> CheckResult:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return CheckResult.fail(PORT, f"{listen} is no address of this host", "Give one that it has, or tcp://*:PORT.")
    if error.errno == errno.EACCES:
        return CheckResult.fail(PORT, f"{_user_name()} may not use port {port}", "Give a port above 1023.")
    if error.errno != errno.EADDRINUSE:
        return CheckResult.fail(PORT, f"{listen} cannot be used: {error.strerror}", "Give another --listen.")
    owner = _find_listener(port)
    advice = "Stop that process, or give another --listen."
    if owner is None:
        if is_running:
            return CheckResult.warn(
                PORT,
                f"{listen} is in use; whether by the running supervisor only its user can see",
                "Run check as the user of the service.",
            )
        return CheckResult.fail(PORT, f"{listen} is in use", advice)
    if not any(program in " ".join(owner.cmdline()) for program in _PROGRAMS):
        return CheckResult.fail(PORT, f"{listen} is in use by {owner.name()} (pid {owner.pid})", advice)
    if is_running:
        return CheckResult.ok(PORT, f"{listen} is used by the running supervisor (pid {owner.pid})")
    return CheckResult.fail(
        PORT,
        f"{listen} is used by a supervisor with other journals (pid {owner.pid})",
        "Stop it, or give another --listen.",
    )


def _find_listener(port: int) -> psutil.Process | None:
    """Return the process that listens at a TCP port; None if this user may not know."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr:
                continue
            if connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                process.cmdline()
                return process
    except psutil.Error:
        return None
    return None
