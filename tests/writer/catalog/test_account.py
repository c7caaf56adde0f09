"""What Tiled says of an account, and what becomes of its keys: facts that the supervisor's own key relies on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit

import httpx
import pytest
from faulty_proxy import ScriptedServer, answer, page
from tiled_users import KEY_SCOPES, WRITING_SCOPES, TiledWithUsers

from tiledwriter._errors import NotProcessed, NotTiled, Paused, ServerError
from tiledwriter.catalog import Account, AccountRequests
from tiledwriter.catalog._account import effective_scopes, find_api_root
from tiledwriter.testing import TiledServer, free_port, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TiledWithUsers]:
    with TiledWithUsers(tmp_path_factory.mktemp("tiled-with-users")) as server:
        yield server


@pytest.fixture
def http_client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as client:
        yield client


@pytest.fixture
def requests(server: TiledWithUsers, http_client: httpx.Client) -> AccountRequests:
    return AccountRequests(http_client, server.uri)


@pytest.fixture
def account(server: TiledWithUsers, requests: AccountRequests) -> Account:
    account = requests.look_at_account(server.api_key)
    assert account is not None
    return account


def test_the_account_is_known_by_its_key(server: TiledWithUsers, requests: AccountRequests, account: Account) -> None:
    assert requests.ask_for_users()
    assert account.may_manage_keys
    assert account.expires is None
    assert account.notes[server.api_key[:8]] == "made for service"
    limited = requests.look_at_account(server.make_key(WRITING_SCOPES, lifetime=100))
    assert limited is not None
    assert limited.uuid == account.uuid
    assert not limited.may_manage_keys
    assert limited.expires is not None
    # A busy server's Date header may be a few seconds old.
    assert timedelta(0) < limited.expires - limited.asked_at <= timedelta(seconds=160)


def test_a_made_key_may_write_and_make_no_keys(
    server: TiledWithUsers, requests: AccountRequests, account: Account
) -> None:
    made = requests.make_key(account, server.api_key, note="note", lifetime=100)
    assert made.secret not in repr(made)
    its_own = requests.look_at_account(made.secret)
    assert its_own is not None
    assert its_own.scopes == set(WRITING_SCOPES)
    assert its_own.notes[made.first_eight] == "note"
    with pytest.raises(Paused, match="create:apikeys"):
        requests.make_key(its_own, made.secret, note="", lifetime=100)
    with pytest.raises(Paused, match="revoke:apikeys"):
        requests.revoke_key(server.api_key[:8], made.secret)
    requests.revoke_key(made.first_eight, server.api_key)


def test_a_revoked_key_is_refused_on_an_open_connection(
    server: TiledWithUsers, requests: AccountRequests, account: Account
) -> None:
    made = requests.make_key(account, server.api_key, note="", lifetime=100)
    with httpx.Client(headers={"Authorization": f"Apikey {made.secret}"}) as client:
        assert client.get(f"{server.uri}/api/v1/metadata/").status_code == 200
        assert requests.revoke_key(made.first_eight, server.api_key)
        assert client.get(f"{server.uri}/api/v1/metadata/").status_code == 401
    assert not requests.revoke_key(made.first_eight, server.api_key)
    with pytest.raises(Paused):
        requests.check_key(made.secret)


def test_a_request_that_is_held_within_its_headers_is_refused(
    server: TiledWithUsers, requests: AccountRequests, account: Account
) -> None:
    made = requests.make_key(account, server.api_key, note="", lifetime=100)
    parts = urlsplit(server.uri)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(f"POST /api/v1/metadata/ HTTP/1.1\r\nAuthorization: Apikey {made.secret}\r\n".encode())
        requests.revoke_key(made.first_eight, server.api_key)
        connection.sendall(b"Host: x\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")


def test_a_key_ends_by_itself(server: TiledWithUsers, requests: AccountRequests, account: Account) -> None:
    made = requests.make_key(account, server.api_key, note="", lifetime=1)

    def has_ended() -> bool:
        try:
            requests.check_key(made.secret)
        except Paused:
            return True
        return False

    wait_until(has_ended, 60, "the key has ended")


def test_a_user_cannot_revoke_the_key_of_another(server: TiledWithUsers, requests: AccountRequests) -> None:
    other = server.make_key(KEY_SCOPES, user="other")
    assert not requests.revoke_key(server.api_key[:8], other)
    requests.check_key(server.api_key)


def test_a_server_with_a_single_user_has_no_accounts(tiled_server: TiledServer, http_client: httpx.Client) -> None:
    requests = AccountRequests(http_client, tiled_server.uri)
    assert not requests.ask_for_users()
    with pytest.raises(NotTiled, match="404: Not Found"):
        requests.check_key(tiled_server.api_key)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (answer(502), ServerError),
        (answer(500), ServerError),
        (answer(429), NotProcessed),
        (page(200), NotTiled),
        (page(404), NotTiled),
        (answer(401), Paused),
        (answer(200), Paused),
    ],
)
def test_what_is_no_answer_about_users_is_an_error(
    http_client: httpx.Client, fault: object, error: type[Exception]
) -> None:
    with ScriptedServer() as scripted:
        scripted.script("GET", "", fault)
        with pytest.raises(error):
            AccountRequests(http_client, scripted.uri).ask_for_users()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/login?state=secret", "200: redirected to 127.0.0.1:{port}/login: this is not an answer of Tiled"),
        ("http://127.0.0.1:{nobody}/", "redirected to 127.0.0.1:{nobody}/: ConnectError"),
    ],
)
def test_a_redirection_to_what_is_not_tiled_is_named(http_client: httpx.Client, path: str, reason: str) -> None:
    with ScriptedServer() as scripted:
        ports = {"port": urlsplit(scripted.uri).port, "nobody": free_port()}
        scripted.script("GET", "", page(302, path.format(**ports)), page(200))
        with pytest.raises(ServerError, match=f"^{reason.format(**ports)}"):
            AccountRequests(http_client, scripted.uri).ask_for_users()


def test_a_server_that_is_away_is_an_error(http_client: httpx.Client) -> None:
    with pytest.raises(NotProcessed, match="ConnectError"):
        AccountRequests(http_client, f"http://127.0.0.1:{free_port()}").ask_for_users()


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("http://x", "http://x/api/v1/"),
        ("http://x:8000/", "http://x:8000/api/v1/"),
        ("https://x/tiled", "https://x/tiled/api/v1/"),
        ("http://x/api", "http://x/api/v1/"),
        ("http://x/api/v1", "http://x/api/v1/"),
        ("http://x/api/v1/metadata/a/b?api_key=secret", "http://x/api/v1/"),
        ("http://x/tiled/api/v1/metadata", "http://x/tiled/api/v1/"),
    ],
)
def test_requests_go_below_the_root_of_the_api(uri: str, root: str) -> None:
    assert find_api_root(uri) == root


def test_a_key_has_no_scope_that_its_owner_lacks() -> None:
    owner = {"roles": [{"scopes": ["a", "b"]}, {"scopes": ["c"]}]}
    assert effective_scopes({"scopes": ["a", "d"]}, owner) == {"a"}
    assert effective_scopes({"scopes": ["inherit"]}, owner) == {"a", "b", "c"}
    assert effective_scopes(None, owner) == {"a", "b", "c"}
    assert effective_scopes({"scopes": ["a"]}, None) is None
