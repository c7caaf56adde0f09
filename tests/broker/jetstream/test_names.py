"""Subjects and keys of runs, whatever their uids are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiledbroker._errors import AddressError, KeyFileError
from tiledbroker.jetstream import LogAddress, check_beamline, documents_subject, parse_documents_subject


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(min_size=1, max_size=50))
def test_each_uid_has_a_subject_of_its_own(uid: str) -> None:
    subject = documents_subject("csx", uid)
    assert parse_documents_subject(subject) == ("csx", uid)
    assert subject.count(".") == 3
    assert subject.isascii()
    assert not set(subject) & set(" *>\r\n")


def test_a_uuid_is_readable_in_its_subject() -> None:
    uid = "66a24cbb-b257-444d-b7da-91e30cd66819"
    assert documents_subject("csx", uid) == f"tw.docs.csx.{uid}"


@pytest.mark.parametrize("subject", ["tw.docs.csx", "tw.docs.csx.a=2f", "tw.docs.csx.=61", "other.docs.csx.a", "a.b"])
def test_a_subject_of_another_form_is_no_run(subject: str) -> None:
    with pytest.raises(ValueError, match="is the"):
        parse_documents_subject(subject)


@pytest.mark.parametrize("name", ["", "a.b", "*", ">", "a b", "x" * 65, "é"])
def test_a_beamline_is_one_plain_word(name: str) -> None:
    with pytest.raises(ValueError, match="beamline"):
        check_beamline(name)


def test_no_beamline_has_the_name_of_the_supervisors_user() -> None:
    with pytest.raises(ValueError, match="user of the ingest hosts"):
        check_beamline("supervisor")
    assert parse_documents_subject(documents_subject("supervisor", "a")) == ("supervisor", "a")


def test_servers_are_one_address_in_whatever_order_they_are_given() -> None:
    address = LogAddress.parse("nats://b,a:4333, c")
    assert address.servers == ("nats://a:4333", "nats://b:4222", "nats://c:4222")
    assert LogAddress.parse(["c", "nats://b:4222", "a:4333"]) == address
    assert str(address) == "nats://a:4333,b:4222,c:4222"
    assert str(LogAddress.parse("nats://[::1]:7")) == "nats://[::1]:7"


def test_an_address_that_asks_for_encryption_keeps_that() -> None:
    address = LogAddress.parse("nats://b,tls://a:4333")
    assert address.must_be_encrypted
    assert str(address) == "tls://a:4333,b:4222"
    assert LogAddress.parse(str(address)) == address
    # What was published for these servers goes there however they are connected to.
    assert address.destination == LogAddress.parse("a:4333,b").destination
    assert not LogAddress.parse("a:4333,b").must_be_encrypted


@pytest.mark.parametrize(
    "servers",
    [
        *("", "http://a", "nats://me:secret@a", "nats://a:x", "nats://a/b", "nats://a:0", "nats://a b", "nats://a;b"),
        *("nats://a#b", [], [""], None, 5, b"nats://a", ["nats://a", None]),
    ],
)
def test_what_is_no_address_is_refused(servers: Any) -> None:
    with pytest.raises(AddressError) as error:
        LogAddress.parse(servers)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("option", ["credentials", "tls_ca", "tls_client"])
def test_a_file_without_a_name_is_refused(option: str) -> None:
    """Such as the value of a variable that is not set."""
    with pytest.raises(AddressError, match="is an empty text"):
        LogAddress.parse("nats://a", **{option: ""})


def test_a_directory_is_no_file_of_credentials(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="it is a directory"):
        LogAddress.parse("nats://a", credentials=tmp_path).connect_options()
