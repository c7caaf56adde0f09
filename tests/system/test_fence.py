"""A supervisor revokes the API key of the one before it, so that nothing of that one is carried out any more."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from faulty_proxy import CUT_AFTER, PASS, FaultyProxy
from runs import documents, seq_nums
from tiled_users import KEY_SCOPES, WRITING_SCOPES, TiledWithUsers
from warm import run_process

from tiledbroker import ZMQPublisher
from tiledwriter.cli._key_ledger import KEY_LEDGER
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until

pytestmark = [pytest.mark.filterwarnings("default")]  # the reading client warns about itself

EVENTS = 20
PublisherTo = Callable[[SupervisorProcess], ZMQPublisher]


class HoldingProxy(FaultyProxy):
    """Holds one append to a table before Tiled, and says later what became of it."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._armed = threading.Event()
        self._released = threading.Event()
        self.held = threading.Event()
        self.done = threading.Event()
        self.status = 0

    def hold_next_append(self) -> None:
        self._armed.set()

    def release(self) -> int:
        """Let the append go on to Tiled, and return the status of Tiled's answer."""
        self._released.set()
        assert self.done.wait(30)
        return self.status

    def carry_out(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any, bytes]:
        if not (method == "PATCH" and "/table/partition/" in target and self._armed.is_set()):
            return super().carry_out(method, target, headers, body)
        self._armed.clear()
        self.held.set()
        self._released.wait(120)
        answer = super().carry_out(method, target, headers, body)
        self.status = answer[0]
        self.done.set()
        return answer

    def list_keys(self) -> set[str]:
        """Return the API keys that requests came with."""
        sent = {request.headers.get("Authorization", "") for request in list(self.requests)}
        return {header.removeprefix("Apikey ") for header in sent if header}


class QuickSupervisor(SupervisorProcess):
    """A supervisor whose keys live a few seconds, or that looks at them more often."""

    def __init__(self, *arguments: Any, lifetime: float = 3600.0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        program = self.journal_dir.with_name("quick_supervisor.py")
        program.write_text(
            "import sys; from tiledwriter.cli import _writing_key as keys, supervisor\n"
            f"keys.LIFETIME_SECONDS = {lifetime}; keys.CHECK_SECONDS = 0.3; sys.exit(supervisor.main())\n"
        )
        self._command = [sys.executable, str(program), *self._command[3:]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TiledWithUsers]:
    """A Tiled server with users for all tests that do not harm it."""
    with TiledWithUsers(tmp_path_factory.mktemp("tiled-with-users")) as server:
        yield server


@pytest.fixture
def proxy(server: TiledWithUsers) -> Iterator[HoldingProxy]:
    with HoldingProxy(server.uri) as proxy:
        yield proxy


def supervisor_on(
    directory: Path, server: TiledServer, *options: str, kind: type[SupervisorProcess] = SupervisorProcess, **more: Any
) -> SupervisorProcess:
    environment = {"TILEDWRITER_QUIET_PERIOD": "1", **more.pop("environment", {})}
    return kind(directory / "journals", server, options=options, environment=environment, **more)


def through(proxy: FaultyProxy) -> list[str]:
    return ["--tiled", proxy.uri]


def wait_for_log(supervisor: SupervisorProcess, text: str, times: int = 1) -> None:
    wait_until(lambda: supervisor.log.read_text().count(text) >= times, 60, f"the log says {text!r}")


def publish_part(publisher: ZMQPublisher, emitted: Sequence[tuple[str, Any]]) -> str:
    for name, document in emitted:
        publisher(name, document)
    assert publisher.flush(60)
    return str(emitted[0][1].get("uid", ""))


def rest_is_written_once(
    server: TiledServer, publisher: ZMQPublisher, uid: str, emitted: Sequence[tuple[str, Any]]
) -> None:
    publish_part(publisher, emitted)
    assert publisher.wait_written(uid, timeout=120)
    assert seq_nums(server, uid) == list(range(1, EVENTS + 1))


MADE = "that this supervisor has made"
KILLS = 6


# The fence


@pytest.mark.parametrize("scopes", [(*WRITING_SCOPES, *KEY_SCOPES), WRITING_SCOPES], ids=["fenced", "not fenced"])
def test_a_request_that_a_killed_supervisor_left_is_refused(
    tmp_path: Path, server: TiledWithUsers, proxy: HoldingProxy, publisher_to: PublisherTo, scopes: Sequence[str]
) -> None:
    environment = {"TILED_API_KEY": server.make_key(scopes)}
    first = supervisor_on(tmp_path, server, *through(proxy), environment=environment)
    emitted = documents(EVENTS)
    with first:
        publisher = publisher_to(first)
        proxy.hold_next_append()
        uid = publish_part(publisher, emitted[:12])
        assert proxy.held.wait(60)
        first.kill()
    port = int(first.address.rpartition(":")[2])
    with supervisor_on(tmp_path, server, port=port, environment=environment) as second:
        wait_for_log(second, "Workers write with", times=2)
        if scopes is WRITING_SCOPES:
            assert proxy.release() == 200
            return
        rest_is_written_once(server, publisher, uid, emitted[12:])
        assert proxy.release() == 401
        assert seq_nums(server, uid) == list(range(1, EVENTS + 1))
        assert second.log.read_text().count("of an earlier supervisor is revoked") == 1


def test_journals_are_drained_behind_the_fence(
    tmp_path: Path, server: TiledWithUsers, proxy: HoldingProxy, publisher_to: PublisherTo
) -> None:
    before = set(server.list_service_keys())
    first = supervisor_on(tmp_path, server, *through(proxy))
    with first:
        publisher = publisher_to(first)
        proxy.hold_next_append()
        uid = publish_part(publisher, documents(EVENTS))
        assert proxy.held.wait(60)
        first.kill()
    command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "--drain", "--tiled", server.uri]
    environment = {**os.environ, "TILED_API_KEY": server.api_key, "TILEDWRITER_QUIET_PERIOD": "1"}
    drained = run_process([*command, "--journal-dir", first.journal_dir], env=environment)
    assert drained.returncode == 0, drained.stderr
    assert proxy.release() == 401
    assert seq_nums(server, uid) == list(range(1, EVENTS + 1))
    assert set(server.list_service_keys()) == before


def test_keys_of_killed_supervisors_do_not_pile_up(tmp_path: Path, server: TiledWithUsers) -> None:
    before = set(server.list_service_keys())
    process = supervisor_on(tmp_path, server)
    for kill in range(KILLS):
        with process:
            wait_for_log(process, MADE, times=kill + 1)
            assert len(set(server.list_service_keys()) - before) == 1
            process.kill()
    with process:
        wait_for_log(process, MADE, times=KILLS + 1)
    assert set(server.list_service_keys()) == before
    assert not (process.journal_dir / KEY_LEDGER).exists()


def test_a_key_that_was_not_recorded_is_revoked_by_its_note(tmp_path: Path, server: TiledWithUsers) -> None:
    before = set(server.list_service_keys())
    with supervisor_on(tmp_path, server) as process:
        wait_for_log(process, MADE)
        process.kill()
    (process.journal_dir / KEY_LEDGER).unlink()
    with process:
        wait_for_log(process, MADE, times=2)
        assert len(set(server.list_service_keys()) - before) == 1


def test_keys_whose_answers_were_lost_are_revoked(tmp_path: Path, server: TiledWithUsers, proxy: HoldingProxy) -> None:
    before = set(server.list_service_keys())
    proxy.script("POST", "auth/apikey", CUT_AFTER, CUT_AFTER, PASS, CUT_AFTER, CUT_AFTER)
    with supervisor_on(tmp_path, server, *through(proxy), kind=QuickSupervisor, lifetime=8) as process:
        wait_for_log(process, MADE)
        assert len(set(server.list_service_keys()) - before) == 1
        wait_for_log(process, MADE, times=2)
        assert proxy.all_played
        assert len(set(server.list_service_keys()) - before) <= 2


def test_a_key_that_this_account_cannot_revoke_is_waited_for(
    tmp_path: Path, server: TiledWithUsers, publisher_to: PublisherTo
) -> None:
    with supervisor_on(tmp_path, server) as process:
        wait_for_log(process, MADE)
        process.kill()
    other = {"TILED_API_KEY": server.make_key((*WRITING_SCOPES, *KEY_SCOPES), user="other")}
    with supervisor_on(tmp_path, server, environment=other) as process:
        wait_for_log(process, "that the configured one cannot revoke")
        publisher = publisher_to(process)
        emitted = documents(EVENTS)
        uid = publish_part(publisher, emitted)
        assert uid not in server.client()
        server.revoke(set(server.list_service_keys()).intersection(names_in_ledger(process)).pop())
        process.kill()
    (process.journal_dir / KEY_LEDGER).unlink()
    with supervisor_on(tmp_path, server, environment=other) as process:
        assert publisher_to(process).status() is not None
        wait_until(lambda: uid in server.client(), 60, "the run is in Tiled")


# Renewal, and keys that end


def test_keys_are_renewed_before_they_end(
    tmp_path: Path, server: TiledWithUsers, proxy: HoldingProxy, publisher_to: PublisherTo
) -> None:
    options = through(proxy)
    with supervisor_on(tmp_path, server, *options, kind=QuickSupervisor, lifetime=4) as process:
        publisher = publisher_to(process)
        emitted = documents(EVENTS)
        uid = publish_part(publisher, emitted[:12])
        wait_for_log(process, MADE, times=3)
        rest_is_written_once(server, publisher, uid, emitted[12:])
        assert "refuses requests" not in process.log.read_text()
        assert len(proxy.list_keys() - {server.api_key}) >= 2
    assert not (process.journal_dir / KEY_LEDGER).exists()


def test_a_key_that_somebody_revokes_is_replaced(
    tmp_path: Path, server: TiledWithUsers, publisher_to: PublisherTo
) -> None:
    before = set(server.list_service_keys())
    with supervisor_on(tmp_path, server, kind=QuickSupervisor) as process:
        wait_for_log(process, MADE)
        publisher = publisher_to(process)
        emitted = documents(EVENTS)
        uid = publish_part(publisher, emitted[:12])
        (first_eight,) = set(server.list_service_keys()) - before
        server.revoke(first_eight)
        rest_is_written_once(server, publisher, uid, emitted[12:])
        wait_for_log(process, f"no longer accepts the API key {first_eight}...")
        wait_for_log(process, MADE, times=2)


def test_a_key_that_ends_with_the_account_s_is_followed_by_one_of_the_next(
    tmp_path: Path, server: TiledWithUsers, publisher_to: PublisherTo
) -> None:
    file = tmp_path / "key"
    file.touch(0o600)
    scopes = (*WRITING_SCOPES, *KEY_SCOPES)
    file.write_text(server.make_key(scopes, lifetime=4))
    environment = {"TILEDWRITER_API_KEY_FILE": str(file)}
    with supervisor_on(tmp_path, server, kind=QuickSupervisor, environment=environment) as process:
        publisher = publisher_to(process)
        emitted = documents(EVENTS)
        uid = publish_part(publisher, emitted[:12])
        wait_for_log(process, "Nothing is written to Tiled until the supervisor has made an API key")
        publish_part(publisher, emitted[12:15])
        file.write_text(server.make_key(scopes))
        rest_is_written_once(server, publisher, uid, emitted[15:])


# Where there is no fence, or not yet


def test_nothing_is_written_before_tiled_has_revoked_the_predecessor_s_key(
    tmp_path: Path, publisher_to: PublisherTo
) -> None:
    with TiledWithUsers(tmp_path / "tiled") as server:
        process = supervisor_on(tmp_path, server)
        with process:
            wait_for_log(process, MADE)
            left = server.list_service_keys()
            process.kill()
        server.stop()
        with process:
            publisher = publisher_to(process)
            emitted = documents(EVENTS)
            uid = publish_part(publisher, emitted[:-1])
            server.start()
            rest_is_written_once(server, publisher, uid, emitted[-1:])
            assert not set(left) & set(server.list_service_keys())


def test_without_the_scopes_all_is_as_before_and_the_log_says_so_once(
    tmp_path: Path, server: TiledWithUsers, proxy: HoldingProxy, publisher_to: PublisherTo
) -> None:
    key = server.make_key(WRITING_SCOPES)
    before = server.list_service_keys()
    with supervisor_on(tmp_path, server, *through(proxy), environment={"TILED_API_KEY": key}) as process:
        publisher = publisher_to(process)
        emitted = documents(EVENTS)
        rest_is_written_once(server, publisher, emitted[0][1]["uid"], emitted)
        log = process.log.read_text()
        assert log.count("the configured key may not make and revoke keys") == 1
        assert "create:apikeys and revoke:apikeys" in log
    assert proxy.list_keys() == {key}
    assert server.list_service_keys() == before


def test_with_a_single_user_all_is_as_before_and_the_log_says_so_once(
    tmp_path: Path, tiled_server: TiledServer, publisher_to: PublisherTo
) -> None:
    with supervisor_on(tmp_path, tiled_server) as process:
        publisher = publisher_to(process)
        emitted = documents(EVENTS)
        rest_is_written_once(tiled_server, publisher, emitted[0][1]["uid"], emitted)
        assert process.log.read_text().count("Tiled has a single user") == 1
    assert not (process.journal_dir / KEY_LEDGER).exists()


def test_a_full_list_of_keys_is_no_reason_to_stop(tmp_path: Path, publisher_to: PublisherTo) -> None:
    with TiledWithUsers(tmp_path / "tiled") as server:
        for _ in range(99):
            server.make_key(["read:data"])
        with supervisor_on(tmp_path, server) as process:
            publisher = publisher_to(process)
            emitted = documents(EVENTS)
            rest_is_written_once(server, publisher, emitted[0][1]["uid"], emitted)
            assert process.log.read_text().count("Tiled makes no key for it") == 1


# Secrets


def test_the_key_is_in_no_file_log_status_or_command_line(
    tmp_path: Path, server: TiledWithUsers, proxy: HoldingProxy, publisher_to: PublisherTo
) -> None:
    options = [*through(proxy), "--log-level", "DEBUG"]
    with supervisor_on(tmp_path, server, *options, kind=QuickSupervisor) as process:
        publisher = publisher_to(process)
        emitted = documents(EVENTS)
        uid = publish_part(publisher, emitted[:12])
        wait_for_log(process, MADE)
        server.revoke(set(server.list_service_keys()).intersection(names_in_ledger(process)).pop())
        wait_for_log(process, MADE, times=2)
        publish_part(publisher, emitted[12:-1])
        command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "status", "--journal-dir", process.journal_dir]
        told = run_process([*command, "--json"]).stdout
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        told += "".join(str(each.cmdline()) + str(each.environ()) for each in family)
        rest_is_written_once(server, publisher, uid, emitted[-1:])
        assert stat.S_IMODE((process.journal_dir / KEY_LEDGER).stat().st_mode) == 0o600
        kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with journal_of(process.journal_dir, uid) as journal:
        told += str(journal.history())
    made = proxy.list_keys() - {server.api_key}
    assert len(made) >= 2
    assert uid.encode() in b"".join(kept.values())
    for key in made:
        assert key not in told
        assert not [path for path, content in kept.items() if key.encode() in content]


def names_in_ledger(process: SupervisorProcess) -> list[str]:
    """Return the words of the file, among them the first eight characters of each key that may be alive."""
    return (process.journal_dir / KEY_LEDGER).read_text().split('"')
