"""Making keys: authorities, self-signed certificates, pins and the revocation list, and what is not overwritten."""

from __future__ import annotations

import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from kvwire import (
    AuditError,
    AuditLog,
    Authority,
    Identity,
    IdentityError,
    KeyFiles,
    pin,
    revoke,
    self_signed,
    verify_audit,
)
from tests.unit.security_kit import DECODE, OTHER, PREFILL, forge, key_pem, put, under_one_ca

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- certificates -----------------------------------------------------------------------------------------------------


def test_what_a_certificate_says(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", now=NOW)
    made = authority.issue(tmp_path / "p", PREFILL, days=30, now=NOW)
    assert made.subject == PREFILL
    assert (made.begins, made.expires) == (NOW - timedelta(minutes=5), NOW + timedelta(days=30))
    assert not made.is_authority
    assert made.is_issued_by(authority.certificate)
    leaf = x509.load_der_x509_certificate(made.der)
    extensions = leaf.extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).critical
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    }  # fmt: skip
    own_id = x509.load_der_x509_certificate(authority.certificate.der).extensions.get_extension_for_class(
        x509.SubjectKeyIdentifier
    )
    issuer_id = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert issuer_id.key_identifier == own_id.value.digest


def test_what_a_ca_says(tmp_path: Path) -> None:
    certificate = Authority.create(tmp_path / "ca", now=NOW).certificate
    assert certificate.is_authority
    assert certificate.subject is None
    assert certificate.expires == NOW + timedelta(days=3650)
    extensions = x509.load_der_x509_certificate(certificate.der).extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_every_certificate_has_a_key_and_a_serial_number_of_its_own(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca")
    made = [x509.load_der_x509_certificate(authority.issue(tmp_path / name, PREFILL).der) for name in "ab"]
    assert made[0].serial_number != made[1].serial_number
    assert made[0].public_key() != made[1].public_key()


def test_none_outlives_its_ca(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", days=10, now=NOW)
    assert authority.issue(tmp_path / "p", PREFILL, now=NOW).expires == authority.certificate.expires
    for moment, sentence in (
        (NOW + timedelta(days=11), "has expired"),
        (NOW - timedelta(days=1), "is not valid before"),
    ):
        with pytest.raises(IdentityError, match=sentence):
            authority.issue(tmp_path / "late", PREFILL, now=moment)
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize("name", [3, None, b"keys"])
def test_directories_and_files_have_names(name: Any) -> None:
    for use in (
        Identity.load,
        Authority.load,
        Authority.create,
        KeyFiles.read,
        lambda it: self_signed(it, PREFILL),
        lambda it: pin("keys", it),
        lambda it: revoke(it, "ab" * 32),
    ):
        with pytest.raises(IdentityError, match="is no path; expected a string or a Path"):
            use(name)
    key: Any = 3
    with pytest.raises(IdentityError, match="3 is no path"):
        Identity.load("keys", key=key)
    for log in (AuditLog, verify_audit):
        with pytest.raises(AuditError, match="is no path; expected a string or a Path"):
            log(name)


def test_a_subject_is_one(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca")
    for make in (self_signed, authority.issue):
        with pytest.raises(IdentityError, match="subject is 3; expected a Subject"):
            make(tmp_path / "p", 3)  # type: ignore[arg-type]
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("days", [0, -1, 36501])
def test_days_have_bounds(tmp_path: Path, days: int) -> None:
    with pytest.raises(IdentityError, match="expected 1 to 36500"):
        self_signed(tmp_path / "p", PREFILL, days=days)
    with pytest.raises(IdentityError, match="expected 1 to 36500"):
        Authority.create(tmp_path / "ca", days=days)
    assert list(tmp_path.iterdir()) == []


def test_tenants_of_a_ca_are_labels(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"tenant is '\.acme'"):
        Authority.create(tmp_path / "ca", tenants=[".acme"])  # RFC 5280: a dot would mean every host below it


# --- directories ------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    (directory,) = under_one_ca(tmp_path, PREFILL)
    before = contents(directory), contents(tmp_path / "ca")
    with pytest.raises(IdentityError, match=r"identity\.pem is there already"):
        Authority.load(tmp_path / "ca").issue(directory, PREFILL)
    with pytest.raises(IdentityError, match=r"identity\.pem is there already"):
        self_signed(directory, PREFILL)
    with pytest.raises(IdentityError, match=r"ca-key\.pem is there already"):
        Authority.create(tmp_path / "ca")
    assert (contents(directory), contents(tmp_path / "ca")) == before


@pytest.mark.parametrize("name", ["ca.pem", "ca-key.pem"])
def test_half_a_ca_is_not_made_whole_with_another(tmp_path: Path, name: str) -> None:
    Authority.create(tmp_path / "ca")
    (tmp_path / "ca" / name).unlink()
    before = contents(tmp_path / "ca")
    with pytest.raises(IdentityError, match="is there already"):
        Authority.create(tmp_path / "ca")
    assert contents(tmp_path / "ca") == before


def test_issuing_does_not_change_whom_a_directory_trusts(tmp_path: Path) -> None:
    (directory,) = under_one_ca(tmp_path, PREFILL)
    (directory / "identity.pem").unlink()
    before = contents(directory)
    with pytest.raises(IdentityError, match=r"ca\.pem is another CA's"):
        Authority.create(tmp_path / "other").issue(directory, PREFILL)
    assert contents(directory) == before
    Authority.load(tmp_path / "ca").issue(directory, PREFILL)
    assert Identity.load(directory).subject == PREFILL


def test_a_replacement_changes_key_and_certificate_only(tmp_path: Path) -> None:
    (directory,) = under_one_ca(tmp_path, PREFILL)
    revoke(directory, "ab" * 32)
    before = contents(directory)
    Authority.load(tmp_path / "ca").issue(directory, PREFILL, replace=True)
    after = contents(directory)
    assert before.keys() == after.keys()
    assert {name for name in after if after[name] != before[name]} == {"identity.pem", "certificate.pem"}


@pytest.mark.parametrize("mode", [0o1777, 0o775, 0o702])
def test_a_directory_that_others_may_write_is_no_place_for_keys(tmp_path: Path, mode: int) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(IdentityError, match="writable by others"):
        self_signed(tmp_path / "open", PREFILL)
    assert list((tmp_path / "open").iterdir()) == []


@pytest.mark.parametrize("name", ["missing/\0", "file/below"])
def test_a_directory_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IdentityError):
        self_signed(tmp_path / name, PREFILL)


def test_modes_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys").chmod(0o700)
        self_signed(tmp_path / "keys", PREFILL)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").iterdir()}
    assert modes == {"identity.pem": 0o600, "certificate.pem": 0o644, "revoked.txt": 0o644}


def test_who_looks_at_any_time_sees_a_whole_identity(tmp_path: Path) -> None:
    (directory,) = under_one_ca(tmp_path, PREFILL)
    authority, done = Authority.load(tmp_path / "ca"), threading.Event()

    def rotate() -> None:
        for _ in range(50):
            authority.issue(directory, PREFILL, replace=True)
        done.set()

    rotating = threading.Thread(target=rotate)
    rotating.start()
    seen = set()
    while not done.is_set():
        seen.add(Identity.load(directory).fingerprint)
    rotating.join()
    assert len(seen) > 1
    assert [path.name for path in directory.iterdir() if path.name.startswith(".")] == []


# --- loading a CA -----------------------------------------------------------------------------------------------------


def test_a_ca_is_loaded_as_it_was_made(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "ca")
    assert Authority.load(tmp_path / "ca").certificate == made.certificate


@pytest.mark.parametrize(
    ("name", "content", "mode", "sentence"),
    [
        ("ca-key.pem", None, 0, r"ca-key\.pem: No such file"),
        ("ca.pem", None, 0, r"ca\.pem: No such file"),
        ("ca-key.pem", key_pem(forge()[1][1]), 0o600, "is not that of the certificate"),
        ("ca-key.pem", key_pem(forge()[1][1]), 0o644, "readable or writable by others"),
        ("ca-key.pem", b"", 0o600, "has no private key in PEM"),
        ("ca.pem", forge()[0], 0o644, "holds a certificate that is no CA's"),
    ],
)
def test_a_ca_that_cannot_be_loaded(tmp_path: Path, name: str, content: bytes | None, mode: int, sentence: str) -> None:
    Authority.create(tmp_path / "ca")
    if content is None:
        (tmp_path / "ca" / name).unlink()
    else:
        put(tmp_path / "ca" / name, content, mode)
    with pytest.raises(IdentityError, match=sentence):
        Authority.load(tmp_path / "ca")


def test_a_ca_of_another_kind(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = forge((), key=key, ca=True)[0]
    put(tmp_path / "ca.pem", pem)
    put(tmp_path / "ca-key.pem", pem)
    with pytest.raises(IdentityError, match="is no Ed25519 key"):
        Authority.load(tmp_path)


# --- pins -------------------------------------------------------------------------------------------------------------


def test_pinning_again_replaces_the_names(tmp_path: Path) -> None:
    self_signed(tmp_path / "p", PREFILL)
    first, second = (self_signed(tmp_path / name, DECODE) for name in "ab")
    for name in "ab":
        pin(tmp_path / "p", tmp_path / name / "certificate.pem")
    pin(tmp_path / "p", tmp_path / "a" / "certificate.pem", OTHER)
    found = {each.certificate: each.subject for each in KeyFiles.read(tmp_path / "p").pins}
    assert found == {first: OTHER, second: DECODE}


def test_what_is_pinned_has_to_have_names(tmp_path: Path) -> None:
    self_signed(tmp_path / "p", PREFILL)
    put(tmp_path / "nameless.pem", forge(())[0])
    with pytest.raises(IdentityError, match="without kvwire's names"):
        pin(tmp_path / "p", tmp_path / "nameless.pem")
    assert not (tmp_path / "p" / "pins.json").exists()
    with pytest.raises(IdentityError, match="No such file"):
        pin(tmp_path / "typo", tmp_path / "p" / "certificate.pem")
    assert not (tmp_path / "typo").exists()


@pytest.fixture
def pins(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A pin file and what is in it."""
    self_signed(tmp_path / "p", PREFILL)
    pin(tmp_path / "p", tmp_path / "p" / "certificate.pem")
    path = tmp_path / "p" / "pins.json"
    found: dict[str, Any] = json.loads(path.read_bytes())
    return path, found


def test_a_pin_says_who_it_is(pins: tuple[Path, dict[str, Any]]) -> None:
    (entry,) = pins[1]["pins"]
    certificate = entry.pop("certificate")
    assert certificate == (pins[0].parent / "certificate.pem").read_text()
    assert entry == {
        "sha256": Identity.load(pins[0].parent).fingerprint,
        "tenant": "acme",
        "role": "prefill",
        "region": "eu-west",
        "name": "p1",
    }


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("sha256", "00" * 32, "pin 1: sha256 is not that of the certificate, which is"),
        ("sha256", 5, "pin 1: expected strings called"),
        ("tenant", "ACME", "pin 1: tenant is 'ACME'"),
        ("role", "", "pin 1: role is ''"),
        ("certificate", "", "pin 1 has no certificate in PEM"),
        ("certificate", "\ud800", "pin 1 has no certificate in PEM"),
        ("comment", "hello", "pin 1: expected strings called"),
    ],
)
def test_a_pin_file_is_checked(pins: tuple[Path, dict[str, Any]], field: str, value: object, sentence: str) -> None:
    path, content = pins
    content["pins"][0][field] = value
    put(path, json.dumps(content).encode())
    with pytest.raises(IdentityError, match=sentence):
        Identity.load(path.parent)


@pytest.mark.parametrize("field", ["sha256", "tenant", "role", "region", "name", "certificate"])
def test_no_field_of_a_pin_may_be_missing(pins: tuple[Path, dict[str, Any]], field: str) -> None:
    del pins[1]["pins"][0][field]
    put(pins[0], json.dumps(pins[1]).encode())
    with pytest.raises(IdentityError, match="pin 1: expected strings called"):
        Identity.load(pins[0].parent)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is no pin file"),
        (b'{"kvwire_pins": 2, "pins": []}', "is no pin file"),
        (b'{"kvwire_pins": 1}', "is no pin file"),
        (b'{"kvwire_pins": 1, "pins": [1]}', "pin 1: expected strings called"),
    ],
)
def test_what_is_no_pin_file(pins: tuple[Path, dict[str, Any]], content: bytes, sentence: str) -> None:
    put(pins[0], content)
    with pytest.raises(IdentityError, match=sentence):
        Identity.load(pins[0].parent)


def test_a_certificate_that_is_pinned_twice(pins: tuple[Path, dict[str, Any]]) -> None:
    pins[1]["pins"] *= 2
    put(pins[0], json.dumps(pins[1]).encode())
    with pytest.raises(IdentityError, match="pins a certificate twice"):
        Identity.load(pins[0].parent)


# --- revocation -------------------------------------------------------------------------------------------------------


def test_a_line_for_each_revoked_certificate(tmp_path: Path) -> None:
    self_signed(tmp_path / "p", PREFILL)
    assert revoke(tmp_path / "p", "ab" * 32, "kvwire://acme/both/eu/a\nb", now=NOW)
    assert revoke(tmp_path / "p", ":".join(["CD"] * 32), now=NOW)
    assert not revoke(tmp_path / "p", "AB" * 32)
    assert (tmp_path / "p" / "revoked.txt").read_text().splitlines()[1:] == [
        f"{'ab' * 32}  # kvwire://acme/both/eu/a b, 2030-01-01",
        f"{'cd' * 32}  # 2030-01-01",
    ]
    assert KeyFiles.read(tmp_path / "p").revoked == ("ab" * 32, "cd" * 32)


def test_a_list_that_people_have_written(tmp_path: Path) -> None:
    self_signed(tmp_path / "p", PREFILL)
    put(tmp_path / "p" / "revoked.txt", b"\n  # lost in March\r\n" + b"AB:" * 31 + b"AB # laptop")
    assert revoke(tmp_path / "p", "cd" * 32)
    assert KeyFiles.read(tmp_path / "p").revoked == ("ab" * 32, "cd" * 32)


@pytest.mark.parametrize(
    "text", ["", None, "ab", "zz" * 32, "ab" * 33, "-" + "ab" * 32, "ab" * 31 + "a\N{FULLWIDTH DIGIT ONE}"]
)
def test_what_is_no_fingerprint(tmp_path: Path, text: Any) -> None:
    self_signed(tmp_path / "p", PREFILL)
    before = contents(tmp_path / "p")
    with pytest.raises(IdentityError, match="expected SHA-256 as 64 hex digits"):
        revoke(tmp_path / "p", text)
    assert contents(tmp_path / "p") == before


def test_revoking_in_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="No such file"):
        revoke(tmp_path / "typo", "ab" * 32)
    assert not (tmp_path / "typo").exists()


def test_commands_at_once_lose_nothing(tmp_path: Path) -> None:
    self_signed(tmp_path / "p", PREFILL)
    fingerprints = [f"{number:064x}" for number in range(24)]

    def half(which: int) -> None:
        for fingerprint in fingerprints[which::2]:
            revoke(tmp_path / "p", fingerprint)

    both = [threading.Thread(target=half, args=(which,)) for which in (0, 1)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert KeyFiles.read(tmp_path / "p").revoked == tuple(fingerprints)


# --- what is in a directory -------------------------------------------------------------------------------------------


def test_what_is_shown_of_a_directory(tmp_path: Path) -> None:
    (directory,) = under_one_ca(tmp_path, PREFILL)
    found = KeyFiles.read(directory)
    (own,), (authority,) = found.own, found.authorities
    assert (own.subject, authority.is_authority) == (PREFILL, True)
    assert (found.pins, found.revoked) == ((), ())
    assert KeyFiles.read(tmp_path / "ca").authorities == found.authorities
    assert KeyFiles.read(directory / "certificate.pem") == KeyFiles(own=(own,))
    (directory / "identity.pem").chmod(0)  # as for whoever may not read the key
    assert KeyFiles.read(directory) == found


def test_what_holds_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="holds no certificate, CA or pin"):
        KeyFiles.read(tmp_path)
    with pytest.raises(IdentityError, match="No such file"):
        KeyFiles.read(tmp_path / "missing")
