"""kvwire-keys, command by command, as docs/security.md tells a newcomer to use it."""

from __future__ import annotations

import json
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvwire import AuthenticationFailed, Authority, Identity, Subject, self_signed
from kvwire.cli.keys import main
from tests.unit.security_kit import OTHER, PREFILL, forge, meet, put

ISSUE = ["issue", "--tenant", "acme", "--region", "eu-west"]
SELF = ["self", "--tenant", "acme", "--region", "eu-west"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in an empty directory, on a host called Prefill_01.example."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "gethostname", lambda: "Prefill_01.example")
    return tmp_path


def test_with_a_ca(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ca"]) == 0
    assert main([*ISSUE, "--role", "prefill"]) == 0
    assert main([*ISSUE, "--role", "decode", "--name", "d1", "-o", "d1"]) == 0
    prefill, decode = Identity.load("kvwire-keys"), Identity.load("d1")
    assert prefill.subject == Subject("acme", "prefill", "eu-west", "prefill-01.example")
    assert [peer.subject for peer in meet(prefill, decode)] == [decode.subject, prefill.subject]
    said = capsys.readouterr()
    assert "in kvwire-ca: a CA" in said.out
    assert "in d1: kvwire://acme/decode/eu-west/d1" in said.out
    assert decode.fingerprint in said.out
    assert said.err == ""


def test_without_a_ca() -> None:
    assert main([*SELF, "--role", "prefill", "-o", "p"]) == 0
    assert main([*SELF, "--role", "decode", "--name", "d1", "-o", "d"]) == 0
    assert main(["pin", "d/certificate.pem", "--keys", "p"]) == 0
    assert main(["pin", "p/certificate.pem", "--keys", "d", "--region", "us", "--name", "p1"]) == 0
    peers = meet(Identity.load("p"), Identity.load("d"))
    assert [peer.subject.uri for peer in peers] == ["kvwire://acme/decode/eu-west/d1", "kvwire://acme/prefill/us/p1"]


def test_a_certificate_without_names_is_pinned_with_all_of_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    self_signed("kvwire-keys", PREFILL)
    put(here / "nameless.pem", forge(())[0])
    assert main(["pin", "nameless.pem", "--tenant", "acme", "--role", "both"]) == 2
    assert "--region, --name must say whose it is" in capsys.readouterr().err
    assert main(["pin", "nameless.pem"]) == 2
    assert "without kvwire's names" in capsys.readouterr().err
    names = ["--tenant", "globex", "--role", "both", "--region", "us", "--name", "x1"]
    assert main(["pin", "nameless.pem", *names]) == 0
    assert f"pinned in kvwire-keys: {OTHER}" in capsys.readouterr().out


def test_days(here: Path) -> None:
    assert main(["ca", "ca", "--days", "10"]) == 0
    assert main([*ISSUE, "--role", "both", "--ca", "ca", "--days", "2"]) == 0
    assert main([*SELF, "--role", "both", "-o", "s", "--days", "3"]) == 0
    left = Authority.load("ca").certificate.expires - datetime.now(UTC)
    assert timedelta(days=9) < left <= timedelta(days=10)
    left = Identity.load("kvwire-keys").expires - datetime.now(UTC)
    assert timedelta(days=1) < left <= timedelta(days=2)
    assert main(["pin", "s/certificate.pem", "--keys", "s"]) == 0
    left = Identity.load("s").expires - datetime.now(UTC)
    assert timedelta(days=2) < left <= timedelta(days=3)


def test_a_ca_for_one_tenant() -> None:
    assert main(["ca", "--tenant", "globex"]) == 0
    assert main([*ISSUE, "--role", "both"]) == 0
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        meet(Identity.load("kvwire-keys"), Identity.load("kvwire-keys"))


def test_rotate_and_revoke(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ca"])
    main([*ISSUE, "--role", "prefill", "-o", "p"])
    main([*ISSUE, "--role", "decode", "-o", "d"])
    prefill, decode = Identity.load("p"), Identity.load("d")
    old = prefill.fingerprint
    stolen = Path("p/certificate.pem").read_bytes(), Identity.load("p")
    capsys.readouterr()
    assert main(["rotate", "p"]) == 0
    assert f"replaced: {old}, which stays valid until" in capsys.readouterr().out
    assert prefill.refresh()
    assert prefill.fingerprint != old
    assert meet(prefill, decode)[1].subject == meet(stolen[1], decode)[1].subject == prefill.subject
    put(Path("old.pem"), stolen[0])
    assert main(["revoke", "old.pem", "--keys", "d"]) == 0
    assert main(["revoke", old, "--keys", "d"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"revoked in d: {old}", f"revoked before in d: {old}"]
    assert str(prefill.subject) in Path("d/revoked.txt").read_text()
    assert decode.refresh()
    assert meet(prefill, decode)[1].subject == prefill.subject
    with pytest.raises(AuthenticationFailed, match="is revoked"):
        meet(stolen[1], decode)


def test_show(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ca"])
    main([*ISSUE, "--role", "prefill", "--name", "p1"])
    peer, gone = self_signed("peer", OTHER), self_signed("gone", OTHER)
    for name in ("peer", "gone"):
        main(["pin", f"{name}/certificate.pem"])
    main(["revoke", "gone/certificate.pem"])
    own = Identity.load("kvwire-keys")
    capsys.readouterr()
    assert main(["show"]) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if not line.startswith("  ")] == [
        str(PREFILL), "trusts a CA", f"trusts, pinned: {OTHER}", f"trusts, pinned: {OTHER}", "revoked"
    ]  # fmt: skip
    assert said.count("REVOKED") == 1
    assert "89 days left" in said
    assert said.endswith(f"revoked\n  {gone.fingerprint}\n")

    assert main(["show", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record["kvwire_keys"] == 1
    assert record["certificates"] == [
        {
            "subject": PREFILL.uri,
            "tenant": "acme",
            "role": "prefill",
            "region": "eu-west",
            "name": "p1",
            "fingerprint": own.fingerprint,
            "begins": (own.expires - timedelta(days=90, minutes=5)).isoformat(),
            "expires": own.expires.isoformat(),
            "is_authority": False,
            "revoked": False,
        }
    ]
    assert [each["is_authority"] for each in record["authorities"]] == [True]
    assert [(each["fingerprint"], each["revoked"]) for each in record["pins"]] == [
        (peer.fingerprint, False), (gone.fingerprint, True)
    ]  # fmt: skip
    assert record["revoked"] == [gone.fingerprint]


@pytest.mark.parametrize(
    ("begins", "ends", "state"), [(-2, -1, "EXPIRED"), (1, 2, "NOT YET VALID"), (-1, 1.5, "1 days left")]
)
def test_show_of_one_certificate(
    here: Path, begins: float, ends: float, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(here / "one.pem", forge((), begins_days=begins, ends_days=ends)[0])
    assert main(["show", "one.pem"]) == 0
    first, _, valid = capsys.readouterr().out.splitlines()
    assert first == "a certificate without kvwire's names"
    assert valid.endswith(state)


def test_no_key_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ca"])
    main([*ISSUE, "--role", "both"])
    for path in ("kvwire-ca", "kvwire-keys", "kvwire-keys/identity.pem"):
        assert main(["show", path]) == 0
        assert main(["show", path, "--json"]) == 0
    said = capsys.readouterr()
    for path in ("kvwire-ca/ca-key.pem", "kvwire-keys/identity.pem"):
        secret = Path(path).read_text().splitlines()[1]
        assert len(secret) == 64
        assert secret not in said.out + said.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*ISSUE, "--role", "both", "--ca", "none"], "none/ca.pem: No such file or directory"),
        ([*ISSUE, "--role", "reader", "--ca", "made"], "role is 'reader'; expected one of prefill, decode, both"),
        ([*ISSUE, "--role", "both", "--ca", "made", "--name", "A B"], "name is 'A B'; expected 1 to 63 of a-z"),
        ([*ISSUE, "--role", "both", "--ca", "made", "-o", "node"], "identity.pem is there already"),
        (["ca", "made"], "ca-key.pem is there already"),
        (["ca", "other", "--tenant", "A"], "tenant is 'A'"),
        (["rotate", "node", "--ca", "none"], "none/ca.pem: No such file"),
        (["rotate", "made", "--ca", "made"], "made holds no identity of a node's"),
        (["rotate", "missing", "--ca", "made"], "missing: No such file"),
        (["pin", "missing.pem", "--keys", "node"], "missing.pem: No such file"),
        (["pin", "node/certificate.pem", "--keys", "missing"], "missing: No such file"),
        (["pin", "node/revoked.txt", "--keys", "node"], "has no certificate in PEM"),
        (["revoke", "node/certificate.pem", "--keys", "missing"], "missing: No such file"),
        (["revoke", "missing.pem", "--keys", "node"], "'missing.pem' is no fingerprint"),
        (["revoke", "made", "--keys", "node"], "made holds no certificate of its own"),
        (["show", "missing"], "missing: No such file"),
        (["show"], "kvwire-keys: No such file"),
        (["show", "node/revoked.txt"], "has no certificate in PEM"),
        ([*ISSUE, "--role", "both", "--days", "0"], "expected an integer in 1 to 36500"),
        ([*ISSUE], "--role"),
        ([], "required"),
    ],
)
def test_what_cannot_be_done_ends_with_a_sentence(
    arguments: list[str], sentence: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Authority.create("made").issue("node", PREFILL)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    capsys.readouterr()
    try:
        status: object = main(arguments)
    except SystemExit as end:  # argparse leaves with it
        status = end.code
    assert status == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_a_host_without_a_usable_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "___")
    assert main([*SELF, "--role", "both"]) == 2
    assert "give --name" in capsys.readouterr().err
