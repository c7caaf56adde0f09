from __future__ import annotations

import pytest

from tiledwriter.status import TokenFileError, parse_http_address, read_token


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("8080", "127.0.0.1:8080", True),
        ("127.0.0.1:8080", "127.0.0.1:8080", True),
        ("localhost:8080", "localhost:8080", True),
        ("[::1]:8080", "[::1]:8080", True),
        ("0.0.0.0:8080", "0.0.0.0:8080", False),
        ("[::]:8080", "[::]:8080", False),
        ("ingest7.example:80", "ingest7.example:80", False),
    ],
)
def test_addresses(text, address, loopback):
    parsed = parse_http_address(text)
    assert str(parsed) == address
    assert parsed.is_loopback is loopback
    assert parse_http_address(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":8080",
        "host:0",
        "host:65536",
        "::1:80",
        "http://h:80",
        "a b:80",
        "host:\uff18\uff10",
        "-1",
    ],
)
def test_what_is_no_address_is_said(text):
    with pytest.raises(ValueError, match=r"not HOST:PORT|without brackets|for this host only"):
        parse_http_address(text)


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.touch(0o600)
    return path


def test_a_token_is_read_without_its_newline(token_file):
    token_file.write_text("0123456789abcdef\n")
    assert read_token(token_file) == "0123456789abcdef"


@pytest.mark.parametrize("content", ["", "short", "0123456789abcdef\n0123456789abcdef", "é" * 20, "x" * 5000])
def test_a_token_that_is_none_is_refused(token_file, content):
    token_file.write_text(content)
    with pytest.raises(TokenFileError, match="must be at least 16"):
        read_token(token_file)


def test_a_token_that_others_can_read_is_refused(token_file):
    token_file.write_text("0123456789abcdef")
    token_file.chmod(0o644)
    with pytest.raises(TokenFileError, match="chmod 600"):
        read_token(token_file)


def test_a_missing_token_file_is_named(tmp_path):
    with pytest.raises(TokenFileError, match="missing cannot be read: No such file"):
        read_token(tmp_path / "missing")
