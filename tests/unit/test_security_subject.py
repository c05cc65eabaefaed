"""Who a node is: the URI in a certificate, letter for letter, and residency."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwire import IdentityError, Subject
from kvwire.security.subject import ROLES, resides_in
from kvwire.types import LABEL

labels = st.from_regex(LABEL, fullmatch=True)


@given(labels, st.sampled_from(ROLES), labels, labels)
def test_a_uri_says_who_it_is(tenant: str, role: str, region: str, name: str) -> None:
    subject = Subject(tenant, role, region, name)
    assert subject.uri == str(subject) == f"kvwire://{tenant}/{role}/{region}/{name}"
    assert Subject.from_uri(subject.uri) == subject


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "kvwire:",
        "kvwire://",
        "kvwire://acme/prefill/eu",
        "kvwire://acme/prefill/eu/a/b",
        "kvwire://acme/prefill/eu/a/",
        "kvwire:///prefill/eu/a",
        "kvwire://acme//eu/a",
        "KVWIRE://acme/prefill/eu/a",
        "kvwire://ACME/prefill/eu/a",
        "kvwire://acme/Prefill/eu/a",
        "kvwire://acme/reader/eu/a",
        "kvwire://acme:80/prefill/eu/a",
        "kvwire://root@acme/prefill/eu/a",
        "kvwire://acme/prefill/eu/a?b",
        "kvwire://acme/prefill/eu/a#b",
        "kvwire://acme/prefill/eu/%61",
        "kvwire://acme/prefill/eu/a\n",
        "kvwire://acme/prefill/eu/a\0",
        "kvwire://acme/prefill/../a",
        "kvwire://äcme/prefill/eu/a",
        "https://acme/prefill/eu/a",
        " kvwire://acme/prefill/eu/a",
    ],
)
def test_no_other_uri_does(uri: str) -> None:
    with pytest.raises(IdentityError):
        Subject.from_uri(uri)


@given(st.text())
def test_whatever_is_read_is_written_alike(text: str) -> None:
    try:
        subject = Subject.from_uri(f"kvwire://{text}")
    except IdentityError:
        return
    assert subject.uri == f"kvwire://{text}"


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(IdentityError, match="region is 'EU'; expected 1 to 63 of a-z"):
        Subject("acme", "both", "EU", "a")
    with pytest.raises(IdentityError, match="role is 'all'; expected one of prefill, decode, both"):
        Subject("acme", "all", "eu", "a")


def test_roles() -> None:
    subjects = {role: Subject("acme", role, "eu", "a") for role in ROLES}
    assert {role for role in ROLES if subjects[role].may_offer} == {"prefill", "both"}
    assert {role for role in ROLES if subjects[role].may_receive} == {"decode", "both"}


@pytest.mark.parametrize(
    ("region", "label", "met"),
    [
        ("eu", "eu", True),
        ("eu-west", "eu", True),
        ("eu-west-2", "eu-west", True),
        ("europe", "eu", False),
        ("eu.west", "eu", False),
        ("eu", "eu-west", False),
        ("eu-westphalia", "eu-west", False),
        ("us", "eu", False),
    ],
)
def test_residency(region: str, label: str, met: bool) -> None:
    assert resides_in(region, label) is met
