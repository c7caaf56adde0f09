"""`check` looks at everything, says what it did not look at, and leaves nothing in Tiled."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from faulty_proxy import CUT_AFTER, FaultyProxy, answer
from paths import ROOT
from tiled_group import SpreadingProxy
from tiled_users import KEY_SCOPES, WRITING_SCOPES, TiledWithUsers

from tiledbroker.ownership import DirectoryStore, Lease
from tiledwriter._check_results import CheckState
from tiledwriter.catalog import SERVER_CHECKS, PreflightOptions, ServerChecks, _preflight, _preflight_probe
from tiledwriter.cli import _host_checks, supervisor
from tiledwriter.cli._check import CheckCode
from tiledwriter.cli._exit import ExitCode, Terminated
from tiledwriter.cli._host_checks import HOST_CHECKS
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port

NEEDED = ["read:metadata", "read:data", "write:metadata", "write:data", "create:node", "register"]
DELETING = ["delete:node", "delete:revision"]

Check = Callable[..., Any]


class Outcome:
    """What `check` has said."""

    def __init__(self, code: int, printed: dict[str, Any]) -> None:
        self.code = code
        self.printed = printed
        self.results = {result["name"]: result for result in printed["checks"]}

    def state(self, name: str) -> str:
        return str(self.results[name]["state"])

    def found(self, name: str) -> str:
        return str(self.results[name]["found"])


@pytest.fixture
def check(
    tiled_server: TiledServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Check:
    """Run `check --json` in this process, with the key of the server for all tests."""
    for name in [name for name in os.environ if name.startswith("TILEDWRITER_") and "TEST" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TILED_API_KEY", tiled_server.api_key)

    def run(*arguments: object, uri: str = tiled_server.uri) -> Outcome:
        listen = ["--listen", f"tcp://127.0.0.1:{free_port()}"]
        journals = ["--journal-dir", str(tmp_path / "journals")]
        code = supervisor.main(["check", "--json", "--tiled", uri, *journals, *listen, *map(str, arguments)])
        return Outcome(code, json.loads(capsys.readouterr().out))

    return run


@pytest.fixture
def proxy(tiled_server: TiledServer) -> Iterator[FaultyProxy]:
    """A proxy in front of the server for all tests."""
    with FaultyProxy(tiled_server.uri) as proxy:
        yield proxy


@pytest.fixture
def contents(tiled_server: TiledServer) -> Callable[[], object]:
    """Returns what the server holds: nodes, SQL tables and files."""

    def look() -> object:
        directory = tiled_server._directory
        with sqlite3.connect(directory / "catalog.db") as catalog:
            nodes = catalog.execute("SELECT key FROM nodes").fetchall()
            assets = catalog.execute("SELECT data_uri FROM assets").fetchall()
        tables: list[Any] = []
        if (directory / "tables.db").exists():
            with sqlite3.connect(directory / "tables.db") as storage:
                tables = storage.execute("SELECT name FROM sqlite_master WHERE name LIKE 'table%'").fetchall()
        # The asset of the database itself comes with the first table, and stays.
        files = [item for item in assets if not item[0].startswith("sqlite")]
        return sorted(nodes), sorted(files), sorted(tables), sorted((directory / "data").rglob("*"))

    return look


# What is looked at


def test_a_good_host_passes_and_nothing_is_left(check: Check, contents: Callable[[], object]) -> None:
    before = contents()
    outcome = check("--skip", "files")
    assert outcome.code == CheckCode.OK, outcome.printed
    assert {state for name in outcome.results if name != "files" and (state := outcome.state(name))} == {"ok"}
    assert contents() == before


def test_what_could_not_be_looked_at_is_no_success(check: Check) -> None:
    outcome = check()
    assert outcome.code == CheckCode.INCOMPLETE
    assert outcome.state("files") == "skipped"
    assert "--file" in outcome.results["files"]["advice"]


def test_a_probe_that_is_not_wanted_creates_nothing(check: Check, proxy: FaultyProxy) -> None:
    outcome = check("--skip", "probe", uri=proxy.uri)
    assert outcome.code == CheckCode.OK
    assert outcome.state("storage") == "skipped"
    assert proxy.count("POST") == 0


def test_each_check_has_a_result_and_an_exit_code(check: Check) -> None:
    names = ["configuration", *HOST_CHECKS, *SERVER_CHECKS]
    for outcome in (check(), check("--tiled", "nowhere"), check(uri=f"http://127.0.0.1:{free_port()}")):
        assert list(outcome.results) == names
    # The service works without a fence.
    assert {name.upper() for name in names} - CheckCode.__members__.keys() == {"FENCE"}


def test_a_file_that_tiled_can_open_passes(check: Check, readable: Path, contents: Callable[[], object]) -> None:
    (readable / "scan.h5").write_bytes(b"data")
    before = contents()
    outcome = check("--file", readable / "scan.h5")
    assert (outcome.code, outcome.state("files")) == (CheckCode.OK, "ok")
    assert contents() == before


def test_files_are_looked_for_through_the_path_map(check: Check, readable: Path, tmp_path: Path) -> None:
    (readable / "mapped.h5").write_bytes(b"data")
    config = tmp_path / "config.yaml"
    config.write_text(f"path_map: {{/ioc: {readable}}}\n")
    assert check("--config", config, "--file", "/ioc/mapped.h5").state("files") == "ok"
    assert check("--config", config).state("files") == "warn"
    config.write_text("path_map: {/ioc: /nowhere}\n")
    refused = check("--config", config)
    assert (refused.code, refused.state("files")) == (CheckCode.FILES, "fail")


def test_options_before_the_command_count(
    tiled_server: TiledServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    supervisor.main(["--tiled", "nowhere", "check", "--journal-dir", str(tmp_path)])
    assert "http://nowhere?" in capsys.readouterr().out


@pytest.mark.usefixtures("real_processes")
def test_a_running_supervisor_is_no_failure(supervisor: SupervisorProcess, check: Check) -> None:
    outcome = check("--skip", "files", "--journal-dir", supervisor.journal_dir, "--listen", supervisor.address)
    assert outcome.code == CheckCode.OK, outcome.printed
    assert "a supervisor is running" in outcome.found("journals")
    assert f"(pid {supervisor.pid})" in outcome.found("port")


def test_runs_on_a_disk_that_is_not_mounted_are_a_failure(check: Check, tmp_path: Path) -> None:
    (tmp_path / "journals").mkdir(0o700)
    (tmp_path / "journals" / "finished").symlink_to(tmp_path / "not mounted")
    outcome = check("--skip", "files")
    assert (outcome.code, outcome.state("journals")) == (11, "fail")
    assert str(tmp_path / "journals" / "finished") in outcome.found("journals")


def test_a_supervisor_that_cannot_be_seen_is_not_taken_for_none(check: Check, tmp_path: Path) -> None:
    (tmp_path / "journals").mkdir(0o700)
    os.mkfifo(tmp_path / "journals" / ".supervisor.lock")
    outcome = check("--skip", "files")
    assert (outcome.code, outcome.state("journals")) == (11, "fail")
    assert "cannot be seen whether a supervisor is running" in outcome.found("journals")


def test_an_unknown_variable_is_warned_of(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEDWRITER_MAX_WROKERS", "3")
    outcome = check("--skip", "files")
    assert (outcome.code, outcome.state("configuration")) == (CheckCode.OK, "warn")


# Probes that fail half way


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", "metadata"), ("PATCH", "table/partition"), ("PUT", "data_source"), ("PATCH", "array/full")),
        *(("GET", "array/full"),),
    ],
)
def test_a_probe_that_fails_half_way_is_deleted(
    check: Check, proxy: FaultyProxy, contents: Callable[[], object], method: str, path: str
) -> None:
    before = contents()
    proxy.script(method, path, *[answer(500)] * 3)
    outcome = check("--skip", "files", uri=proxy.uri)
    assert (outcome.code, outcome.state("probe")) == (CheckCode.PROBE, "fail"), outcome.printed
    assert proxy.all_played
    assert contents() == before


def test_lost_answers_neither_fail_nor_leave_a_probe(
    check: Check, proxy: FaultyProxy, contents: Callable[[], object]
) -> None:
    before = contents()
    proxy.script("POST", "metadata", CUT_AFTER, CUT_AFTER)
    proxy.script("PATCH", "table", CUT_AFTER)
    proxy.script("DELETE", "metadata/tiledwriter_check/", CUT_AFTER)
    outcome = check("--skip", "files", uri=proxy.uri)
    assert outcome.code == CheckCode.OK, outcome.printed
    assert proxy.all_played
    assert contents() == before


def test_a_probe_that_stays_is_named_and_deleted_later(
    check: Check, proxy: FaultyProxy, contents: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents()
    proxy.script("DELETE", "metadata/tiledwriter_check/table", *[answer(500)] * 3)
    outcome = check("--skip", "files", uri=proxy.uri)
    assert outcome.code == CheckCode.PROBE
    assert "tiledwriter_check/table" in outcome.found("probe")
    monkeypatch.setattr(_preflight_probe, "_ABANDONED_SECONDS", -1.0)
    later = check("--skip", "files")
    assert later.code == CheckCode.OK, later.printed
    assert "1 left by an earlier check deleted" in later.found("probe")
    assert contents() == before


def test_an_interrupted_probe_is_deleted(
    tiled_server: TiledServer, check: Check, contents: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise Terminated

    before = contents()
    monkeypatch.setattr(_preflight_probe.ProbeContainer, "_try_array", interrupt)
    assert supervisor.main(["check", "--tiled", tiled_server.uri]) == ExitCode.TERMINATED
    assert contents() == before


def test_servers_that_do_not_share_their_databases_are_found_out(
    check: Check, tiled_server: TiledServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_preflight_probe, "_READ_BACK_SECONDS", 0.5)
    second = TiledServer(tmp_path / "tiled")
    second._environment["TILED_SINGLE_USER_API_KEY"] = tiled_server.api_key
    with second, SpreadingProxy([tiled_server.uri, second.uri]) as proxy:
        outcome = check("--skip", "files", uri=proxy.uri)
    assert (outcome.code, outcome.state("probe")) == (CheckCode.PROBE, "fail"), outcome.printed
    assert "Several servers answer at this address" in outcome.results["probe"]["advice"]
    # It deletes what the other one could not.
    assert check("--skip", "files").code == CheckCode.OK


def test_a_key_that_may_not_delete_makes_no_probe(check: Check, proxy: FaultyProxy) -> None:
    proxy.script("DELETE", "metadata", answer(401, "Not enough permissions. Requires scopes ['delete:node']."))
    outcome = check("--skip", "files", uri=proxy.uri)
    assert (outcome.code, outcome.state("probe")) == (CheckCode.INCOMPLETE, "skipped")
    assert proxy.count("POST") == 0


def test_a_node_of_somebody_else_is_left_alone(check: Check, tiled_server: TiledServer) -> None:
    client = tiled_server.client().new_variation()
    theirs = client.create_container("tiledwriter_check", metadata={"ours": False})
    try:
        outcome = check("--skip", "files")
        assert outcome.code == CheckCode.PROBE
        assert "did not make it" in outcome.results["probe"]["advice"]
        assert client["tiledwriter_check"].metadata["ours"] is False
    finally:
        theirs.delete(recursive=True, external_only=False)


# Keys and scopes of a server with several users


def checks_of(key: dict[str, Any] | None, owner: dict[str, Any] | None, version: str = "0.2.20") -> dict[str, Any]:
    """Run the checks of a server that says this of the key and of its owner, and refuses to delete."""

    def respond(request: httpx.Request) -> httpx.Response:
        answers = {"/api/v1/auth/apikey": key, "/api/v1/auth/whoami": owner}
        if request.url.path in answers:
            content = answers[request.url.path]
            return (
                httpx.Response(404, json={"detail": "Not Found"})
                if content is None
                else httpx.Response(200, json=content)
            )
        if request.method == "GET":
            return httpx.Response(200, json={"data": {"attributes": {"structure_family": "container", "specs": []}}})
        return httpx.Response(401, json={"detail": "Not enough permissions."})

    about = SimpleNamespace(
        library_version=version, authentication=SimpleNamespace(links={"whoami": "x"}, providers=["p"])
    )
    http_client = httpx.Client(transport=httpx.MockTransport(respond))
    context = SimpleNamespace(http_client=http_client, api_uri="http://x/api/v1/", server_info=about, api_key="abc")
    client = SimpleNamespace(context=context, path_parts=())
    return {result.name: result for result in ServerChecks(lambda: client, PreflightOptions("x", "a file")).run()}


def test_missing_scopes_are_named() -> None:
    result = checks_of({"scopes": NEEDED[:-1]}, {"roles": [{"scopes": NEEDED + DELETING}]})["scopes"]
    assert (result.state, result.found) == (CheckState.FAIL, "the key lacks register")


def test_a_key_has_no_scope_that_its_owner_lacks() -> None:
    result = checks_of({"scopes": NEEDED + DELETING}, {"roles": [{"scopes": NEEDED[1:]}]})["scopes"]
    assert (result.state, result.found) == (CheckState.FAIL, "the key lacks read:metadata")


def test_an_inheriting_key_has_the_scopes_of_all_roles() -> None:
    roles = [{"scopes": NEEDED}, {"scopes": DELETING}]
    assert checks_of({"scopes": ["inherit"]}, {"roles": roles})["scopes"].state is CheckState.OK


def test_a_key_without_deletion_is_warned_of() -> None:
    results = checks_of({"scopes": NEEDED}, {"roles": [{"scopes": NEEDED}]})
    assert results["scopes"].state is CheckState.WARN
    assert results["probe"].state is CheckState.SKIPPED


def test_scopes_that_nobody_tells_are_skipped() -> None:
    assert checks_of(None, None)["scopes"].state is CheckState.SKIPPED


@pytest.fixture(scope="module")
def server_with_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TiledWithUsers]:
    with TiledWithUsers(tmp_path_factory.mktemp("tiled-with-users")) as server:
        yield server


@pytest.mark.parametrize("skip", ["files", "probe"])
def test_a_key_that_may_make_and_revoke_keys_makes_a_fence(
    server_with_users: TiledWithUsers, check: Check, monkeypatch: pytest.MonkeyPatch, skip: str
) -> None:
    monkeypatch.setenv("TILED_API_KEY", server_with_users.api_key)
    before = server_with_users.list_keys()
    outcome = check("--skip", skip, uri=server_with_users.uri)
    assert (outcome.code, outcome.state("fence")) == (CheckCode.OK, "ok")
    assert server_with_users.list_keys() == before


@pytest.mark.parametrize("missing", KEY_SCOPES)
def test_a_key_that_makes_no_fence_is_no_failure(
    server_with_users: TiledWithUsers, check: Check, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    scopes = [scope for scope in (*WRITING_SCOPES, *KEY_SCOPES) if scope != missing]
    monkeypatch.setenv("TILED_API_KEY", server_with_users.make_key(scopes))
    outcome = check("--skip", "files", uri=server_with_users.uri)
    assert (outcome.code, outcome.state("fence")) == (CheckCode.OK, "warn")
    assert outcome.found("fence") == f"none: the key lacks {missing}"


def test_a_key_that_expires_soon_is_warned_of() -> None:
    key = {"scopes": ["inherit"], "expiration_time": "2020-01-01T00:00:00"}
    assert checks_of(key, {"roles": []})["key"].state is CheckState.WARN


def test_an_old_tiled_fails_and_the_rest_is_skipped() -> None:
    results = checks_of(None, None, version="0.2.11")
    assert results["version"].state is CheckState.FAIL
    assert {results[name].state for name in ("key", "scopes", "probe", "files")} == {CheckState.SKIPPED}


@pytest.mark.parametrize(
    ("uri", "write_slots", "state"),
    [
        ("duckdb:///x.db", 1, CheckState.WARN),
        ("sqlite:///x.db", 1, CheckState.OK),
        ("sqlite:///x.db", 2, CheckState.WARN),
        ("postgresql://user:secret@host/x", 4, CheckState.OK),
        ("mysql://user:secret@host/x", 1, CheckState.WARN),
    ],
)
def test_the_storage_is_judged_without_its_password(uri: str, write_slots: int, state: CheckState) -> None:
    result = _preflight._describe_storage(uri, write_slots)
    assert result.state is state
    assert "secret" not in result.found


# Documentation


def documented_rows(heading: str) -> list[list[str]]:
    """The cells of the rows of the table that follows a line in the reference of `check`."""
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    section = page.partition("\n## tiledwriter-supervisor check\n")[2].partition("\n## ")[0]
    table = section.partition(heading)[2].strip().partition("\n\n")[0]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_all_exit_codes_of_check_are_documented() -> None:
    codes = [[str(code.value), code.name, code.meaning] for code in CheckCode]
    assert documented_rows("gives the code:") == codes


def test_all_checks_are_documented_in_their_order() -> None:
    documented = [name for name, _ in documented_rows("The lines, in their order:")]
    assert documented == ["configuration", *HOST_CHECKS, *SERVER_CHECKS]


def test_the_json_is_what_is_documented(check: Check) -> None:
    printed = check("--tiled", "nowhere").printed
    assert list(printed) == [name for name, *_ in documented_rows("prints one object:")]
    assert all(list(result) == ["name", "state", "found", "advice"] for result in printed["checks"])


# The lease


def test_the_directory_of_the_lease_has_to_be_prepared(check: Check, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    outcome = check("--lease-dir", tmp_path / "shared")
    assert (outcome.code, outcome.state("lease")) == (CheckCode.LEASE, "fail")
    assert f"tiledwriter-supervisor lease-dir {tmp_path / 'shared'}" in outcome.found("lease")


def test_the_check_of_the_lease_names_who_held_it_last(check: Check, tmp_path: Path) -> None:
    store = DirectoryStore.create(tmp_path / "shared")
    assert "no host has served yet" in check("--lease-dir", tmp_path / "shared").found("lease")
    store.compare_and_set(0, Lease("a start", "ingest1", 1, 1))
    outcome = check("--lease-dir", tmp_path / "shared")
    assert outcome.state("lease") == "ok"
    assert "ingest1 was the last to hold the lease" in outcome.found("lease")


def test_the_check_of_the_lease_does_not_wait_for_a_directory_that_hangs(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DirectoryStore.create(tmp_path / "shared")
    # Opening a pipe hangs until somebody writes to it, as reading from a network file system does whose server is away.
    pipe = tmp_path / "shared" / f"lease-{1:020d}"
    os.mkfifo(pipe)
    monkeypatch.setattr(_host_checks, "_LEASE_SECONDS", 0.3)
    try:
        outcome = check("--lease-dir", tmp_path / "shared", "--skip", "probe")
    finally:
        # Let the thread end.
        os.close(os.open(pipe, os.O_WRONLY))
    assert (outcome.code, outcome.state("lease")) == (CheckCode.LEASE, "fail")
    assert "has not answered for 0.3 s" in outcome.found("lease")
    assert outcome.state("tiled") == "ok"
