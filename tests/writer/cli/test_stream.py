"""`tiledwriter-supervisor stream`: a site's log is made, checked, and its permissions printed."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from log_site import LogSite

from tiledbroker.jetstream import RUNS_BUCKET, Connection, bucket_stream, lease_subject, supervisor_permissions
from tiledbroker.jetstream._host_records import encode_host_lease
from tiledbroker.ownership import SERVICE, HostLease, Lease
from tiledwriter._check_results import CheckResult
from tiledwriter._config import Settings
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli._host_checks import LEASE, check_host
from tiledwriter.cli.journal import main as journal_main
from tiledwriter.cli.supervisor import main
from tiledwriter.testing import free_port


def test_what_is_missing_is_found_and_made(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--source", str(log_site.address), "--replicas", "1", "--max-gib", "1"]
    assert main(["stream", "check", *options]) == ExitCode.OK
    assert "as it must be" in capsys.readouterr().out

    async def delete(connection: Connection) -> None:
        await connection.call(f"STREAM.DELETE.{bucket_stream(RUNS_BUCKET)}")

    log_site.ask(delete)
    assert main(["stream", "check", *options, "--json"]) == ExitCode.DIFFERS
    assert json.loads(capsys.readouterr().out) == {"problems": ["There is no stream KV_TW_RUNS."]}
    assert main(["stream", "create", *options]) == ExitCode.OK
    assert capsys.readouterr().out == "Made: KV_TW_RUNS.\n"
    assert main(["stream", "create", *options, "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == {"made": [], "problems": []}


def test_a_stream_of_another_kind_is_found(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    async def change(connection: Connection) -> None:
        found = await connection.call("STREAM.INFO.TW")
        await connection.call("STREAM.UPDATE.TW", {**found["config"], "discard": "old", "max_age": 10**9 * 3600})

    log_site.ask(change)
    assert main(["stream", "check", "--source", str(log_site.address), "--replicas", "1"]) == ExitCode.DIFFERS
    out = capsys.readouterr().out
    assert "TW: discard is 'old', and must be 'new'." in out
    assert "TW: max_age is" in out


@pytest.mark.parametrize(
    ("stream", "setting", "value"),
    [
        ("TW", "max_msg_size", 1000),
        ("TW", "no_ack", True),
        ("KV_TW_RUNS", "max_msg_size", 300),
        ("KV_TW_RUNS", "max_bytes", 20_000),
        ("KV_TW_HOSTS", "max_bytes", 3_000),
    ],
)
def test_settings_with_which_the_log_takes_no_messages_or_drops_some_are_found(
    stream: str, setting: str, value: object, log_site: LogSite, capsys: pytest.CaptureFixture[str]
) -> None:
    async def change(connection: Connection) -> None:
        found = await connection.call(f"STREAM.INFO.{stream}")
        await connection.call(f"STREAM.UPDATE.{stream}", {**found["config"], setting: value})

    log_site.ask(change)
    for action in ("check", "create"):
        options = ["--source", str(log_site.address), "--replicas", "1", "--max-gib", "1"]
        assert main(["stream", action, *options]) == ExitCode.DIFFERS
        assert f"{stream}: {setting} is {value!r}, and must be" in capsys.readouterr().out


def test_a_stream_of_another_product_is_not_an_empty_log(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    async def replace(connection: Connection) -> None:
        await connection.call("STREAM.DELETE.TW")
        await connection.call("STREAM.CREATE.TW", {"name": "TW", "subjects": ["foo.>"], "storage": "memory"})

    log_site.ask(replace)
    assert journal_main(["ls", "--source", str(log_site.address)]) == ExitCode.FAILED
    assert "the stream TW is not that of a log: its subjects are ['foo.>']" in capsys.readouterr().err
    assert main(["stream", "create", "--source", str(log_site.address), "--replicas", "1"]) == ExitCode.DIFFERS
    assert "TW: subjects is ['foo.>']" in capsys.readouterr().out


def test_a_log_without_streams_is_not_an_empty_log(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    log_site.ask(lambda connection: connection.call("STREAM.DELETE.TW"))
    assert journal_main(["ls", "--source", str(log_site.address)]) == ExitCode.FAILED
    assert "the log has no stream TW" in capsys.readouterr().err


def test_too_few_replicas_are_found(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "check", "--source", str(log_site.address)]) == ExitCode.DIFFERS
    assert "TW has 1 replicas, and should have 3." in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", [("--replicas", "0"), ("--replicas", "6"), ("--max-gib", "0"), ("--max-gib", "1e-12")]
)
def test_a_log_on_no_node_or_of_no_size_is_wrong_usage(option, log_site: LogSite, capsys) -> None:
    assert main(["stream", "create", "--source", str(log_site.address), *option]) == ExitCode.USAGE
    assert re.search("each message is on 1 to 5 nodes|without a limit", capsys.readouterr().err)


def check_log(source: str, journal_dir: Path, credentials: Path | None = None) -> CheckResult:
    """What `check` of an ingest host says of the log."""
    settings = Settings(
        tiled="http://localhost:8000", source=source, source_credentials=credentials, journal_dir=journal_dir
    )
    return next(result for result in check_host(settings) if result.name == LEASE)


def test_check_says_whether_the_log_is_there_and_whether_one_node_alone_has_it(
    log_site: LogSite, tmp_path: Path
) -> None:
    away = check_log(f"nats://127.0.0.1:{free_port()}", tmp_path)
    assert (away.state.value, "gives no answer" in away.found) == ("fail", True)
    alone = check_log(str(log_site.address), tmp_path)
    assert (alone.state.value, "TW has 1 replicas, and should have 3." in alone.found) == ("warn", True)

    async def delete(connection: Connection) -> None:
        await connection.call(f"STREAM.DELETE.{bucket_stream(RUNS_BUCKET)}")

    log_site.ask(delete)
    missing = check_log(str(log_site.address), tmp_path)
    assert (missing.state.value, missing.found) == ("fail", "There is no stream KV_TW_RUNS.")


def supervisors_user(directory: Path, password: str = "secret") -> Path:
    path = directory / f"supervisor-{password}.credentials"
    path.touch(mode=0o600)
    path.write_text(f"supervisor:{password}")
    return path


def site_with(directory: Path, permissions: dict[str, Any]) -> LogSite:
    """A log whose user for supervisors has these permissions, and an administrator."""
    users = [
        {"user": "supervisor", "password": "secret", "permissions": permissions},
        {"user": "admin", "password": "secret-of-admin"},
    ]
    admin = directory / "admin.credentials"
    admin.touch(mode=0o600)
    admin.write_text("admin:secret-of-admin")
    return LogSite(directory / "log", configuration={"authorization": {"users": users}}, credentials=admin)


def test_check_tries_what_the_service_does_and_leaves_nothing(tmp_path: Path) -> None:
    with site_with(tmp_path, supervisor_permissions()) as site:
        found = check_log(str(site.address), tmp_path, supervisors_user(tmp_path))
        assert found.state.value == "warn"
        assert "version 2." in found.found
        assert "messages of up to 1.0 MiB; 0 bytes of 1.0 GiB): no host serves" in found.found
        left = {
            name: (info["state"]["messages"], info["state"]["consumer_count"])
            for name in site.layout.streams()
            for info in [site.ask(lambda connection, name=name: connection.call(f"STREAM.INFO.{name}"))]
        }
        assert set(left.values()) == {(0, 0)}
        wrong = check_log(str(site.address), tmp_path, supervisors_user(tmp_path, "other-secret"))
        assert wrong.state.value == "fail"
        assert "does not accept these credentials" in wrong.found
        assert "other-secret" not in wrong.found.replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        (
            "$KV.TW_RUNS.>",
            "Receipts cannot be written: {} publish to $KV.TW_RUNS.check.",
        ),
        ("$KV.TW_HOSTS.>", "Leases and claims cannot be written: {} publish to $KV.TW_HOSTS.check."),
        (
            "$JS.API.>",
            "Streams cannot be looked at: {} publish to $JS.API.STREAM.INFO.TW.",
        ),
        (
            "_INBOX.supervisor.>",
            "Streams cannot be looked at: {} subscribe to _INBOX.supervisor",
        ),
    ],
)
def test_check_says_which_permission_is_missing(removed: str, said: str, tmp_path: Path) -> None:
    permissions = {
        verb: {"allow": [subject for subject in rules["allow"] if subject != removed] or ["none"]}
        for verb, rules in supervisor_permissions().items()
    }
    with site_with(tmp_path, permissions) as site:
        found = check_log(str(site.address), tmp_path, supervisors_user(tmp_path))
    assert found.state.value == "fail"
    assert said.format("this user lacks the permission to") in found.found
    assert "stream permissions" in found.advice


def test_check_says_that_written_runs_cannot_be_removed(tmp_path: Path) -> None:
    permissions = supervisor_permissions()
    permissions["publish"]["deny"] = ["$JS.API.STREAM.PURGE.TW"]
    with site_with(tmp_path, permissions) as site:
        found = check_log(str(site.address), tmp_path, supervisors_user(tmp_path))
    assert found.found == (
        "Written runs cannot be removed: this user lacks the permission to publish to $JS.API.STREAM.PURGE.TW."
    )


def test_check_says_that_claims_cannot_be_removed(tmp_path: Path) -> None:
    permissions = supervisor_permissions()
    permissions["publish"]["deny"] = ["$JS.API.STREAM.PURGE.KV_TW_HOSTS"]
    with site_with(tmp_path, permissions) as site:
        found = check_log(str(site.address), tmp_path, supervisors_user(tmp_path))
    assert found.found == (
        "Claims cannot be removed: this user lacks the permission to publish to $JS.API.STREAM.PURGE.KV_TW_HOSTS."
    )


def test_check_names_all_hosts_whose_leases_have_not_ended(log_site: LogSite, tmp_path: Path) -> None:
    async def store(connection: Connection) -> None:
        ended = HostLease(Lease("ended", "host-3", 1, 1, released=True))
        for record in (HostLease(Lease("b", "host-2", 1, 1)), HostLease(Lease("a", "host-1", 1, 1)), ended):
            await connection.append(lease_subject(record.lease.holder), encode_host_lease(record), {}, 0)
        await connection.append(lease_subject("c"), b"{", {}, 0)
        # As an earlier version has stored it, in which one host serves all runs.
        lease = Lease("d", "host-4", 1, 1)
        value = {"version": 1, "lease": lease, "crc32": zlib.crc32(msgspec.json.encode((1, lease)))}
        await connection.append(lease_subject(SERVICE), msgspec.json.encode(value), {}, 0)

    log_site.ask(store)
    said = check_log(str(log_site.address), tmp_path).found
    assert "leases that have not ended: host-1, host-2, host-4, of c, which cannot be read" in said


def test_check_says_that_the_log_is_almost_full(log_site: LogSite, tmp_path: Path) -> None:
    async def fill(connection: Connection) -> None:
        found = await connection.call("STREAM.INFO.TW")
        await connection.call("STREAM.UPDATE.TW", {**found["config"], "max_bytes": 10_000})
        await connection.append("tw.docs.csx.run", bytes(9_200), {}, 0)

    log_site.ask(fill)
    found = check_log(str(log_site.address), tmp_path)
    assert found.state.value == "warn"
    assert re.search(r"The log is almost full: 9\.\d KiB of 9\.8 KiB\. Beyond that, documents stay", found.found)


def test_servers_that_are_away_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "check", "--source", f"nats://127.0.0.1:{free_port()}"]) == ExitCode.FAILED
    assert "can be used" in capsys.readouterr().err


def test_permissions_are_a_part_of_a_server_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "permissions", "csx"]) == ExitCode.OK
    users = json.loads(capsys.readouterr().out)["authorization"]["users"]
    assert [user["user"] for user in users] == ["supervisor", "csx"]
    assert main(["stream", "permissions", "a.b"]) == ExitCode.USAGE
    assert main(["stream", "permissions", "csx", "supervisor"]) == ExitCode.USAGE
