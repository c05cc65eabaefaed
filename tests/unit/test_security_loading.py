"""Identities from disk: by which names, what is wrong with which file, and what is read again while a node runs."""

from __future__ import annotations

import base64
import os
import ssl
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from kvwire import AuthenticationFailed, Authority, Identity, IdentityError, Peer, pin, revoke, self_signed
from kvwire.security.certificates import parse_key, read_certificates
from kvwire.security.files import read
from tests.unit.security_kit import DECODE, OTHER, PREFILL, ca_of, forge, key_pem, meet, put, under_one_ca

PUBLIC = 0o644


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories of keys under one CA."""
    first, second = under_one_ca(tmp_path, PREFILL, DECODE)
    return first, second


def test_what_an_identity_says_of_itself(pair: tuple[Path, Path]) -> None:
    identity = Identity.load(pair[0])
    assert identity.certificate == ssl.PEM_cert_to_DER_cert((pair[0] / "certificate.pem").read_text())
    left = identity.expires - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)


def damage(directory: Path, how: str) -> None:
    """Makes an identity unusable in one way."""
    own, ca = directory / "identity.pem", directory / "ca.pem"
    pem = own.read_bytes()
    at = pem.index(b"-----BEGIN CERT")
    match how:
        case "missing":
            own.unlink()
        case "directory":
            own.unlink()
            own.mkdir()
        case "fifo":
            own.unlink()
            os.mkfifo(own, 0o600)
        case "empty":
            put(own, b"")
        case "not PEM":
            put(own, os.urandom(200))
        case "torn":
            put(own, pem[:-20])
        case "no key":
            put(own, pem[at:])
        case "no certificate":
            put(own, pem[:at])
        case "key of an unknown kind":  # the second of three times that the certificate says Ed25519
            der = ssl.PEM_cert_to_DER_cert(pem[at:].decode()).split(b"\x06\x03\x2b\x65\x70")
            der[1:3] = [der[1] + b"\x06\x03\x2b\x65\x7f" + der[2]]
            put(own, pem[:at] + ssl.DER_cert_to_PEM_cert(b"\x06\x03\x2b\x65\x70".join(der)).encode())
        case "encrypted":
            put(own, key_pem(forge()[1][1], b"secret") + pem[at:])
        case "another's key":
            put(own, key_pem(forge()[1][1]) + pem[at:])
        case "readable by others":
            own.chmod(0o604)
        case "writable by others":
            own.chmod(0o602)
        case "without names":
            put(own, forge(())[0])
        case "expired":
            put(own, forge(begins_days=-2, ends_days=-1)[0])
        case "not yet valid":
            put(own, forge(begins_days=1, ends_days=2)[0])
        case "weak":
            put(own, forge(key=rsa.generate_private_key(65537, 1024))[0])
        case "too large":
            put(own, pem + b"\n" * (16 << 20))
        case "no CA":
            ca.unlink()
        case "empty CA":
            put(ca, b"", PUBLIC)
        case "CA that is none":
            put(ca, pem[at:], PUBLIC)
        case "expired CA":
            expired = forge((), ca=True, begins_days=-2, ends_days=-1)[0]
            put(ca, expired[expired.index(b"-----BEGIN CERT") :], PUBLIC)
        case "CA writable by others":
            ca.chmod(0o646)
        case "pins that are none":
            put(directory / "pins.json", b"{}", PUBLIC)
        case "list that is none":
            put(directory / "revoked.txt", b"all of them\n", PUBLIC)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("missing", r"identity\.pem: No such file or directory"),
        ("directory", r"identity\.pem: Is a directory"),
        ("fifo", r"identity\.pem is no regular file"),
        ("empty", r"identity\.pem has no certificate in PEM"),
        ("not PEM", r"identity\.pem has no certificate in PEM"),
        ("torn", r"identity\.pem has no certificate in PEM"),
        ("no key", r"identity\.pem has no private key in PEM"),
        ("no certificate", r"identity\.pem has no certificate in PEM"),
        ("key of an unknown kind", r"whose key cannot be read: Unknown key type"),
        ("encrypted", r"the key in .*identity\.pem is encrypted"),
        ("another's key", r"the key in .*identity\.pem is not that of the certificate"),
        ("readable by others", r"identity\.pem holds a key and is .* by others \(mode 604\) \(chmod 600"),
        ("writable by others", r"identity\.pem holds a key and is .* by others \(mode 602\) \(chmod 600"),
        ("without names", r"identity\.pem is without kvwire's names"),
        ("expired", r"the certificate in .*identity\.pem has expired"),
        ("not yet valid", r"the certificate in .*identity\.pem is not valid before"),
        ("weak", r"identity\.pem: .*KEY_TOO_SMALL"),
        ("too large", r"identity\.pem is larger than"),
        ("no CA", r"nobody is trusted: .*ca\.pem is not there.*kvwire-keys pin"),
        ("empty CA", r"ca\.pem has no certificate in PEM"),
        ("CA that is none", r"ca\.pem holds a certificate that is no CA's"),
        ("expired CA", r"the CA in .*ca\.pem has expired"),
        ("CA writable by others", r"ca\.pem is writable by others \(mode 646\)"),
        ("pins that are none", r"pins\.json is no pin file"),
        ("list that is none", r"revoked\.txt, line 1: 'all of them' is no fingerprint"),
    ],
)
def test_what_is_wrong_with_which_file(pair: tuple[Path, Path], how: str, sentence: str) -> None:
    damage(pair[0], how)
    with pytest.raises(IdentityError, match=sentence):
        Identity.load(pair[0])


def test_a_file_that_has_nothing_to_read_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some in /proc have it, which are regular files and want to be waited for. A FIFO stands for one here."""
    path = tmp_path / "identity.pem"
    os.mkfifo(path, 0o600)
    monkeypatch.setattr(stat, "S_ISREG", stat.S_ISFIFO)
    writer = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(IdentityError, match=r"identity\.pem has nothing to read yet"):
            read(path)
    finally:
        os.close(writer)


def test_pins_that_pin_nobody(tmp_path: Path) -> None:
    self_signed(tmp_path / "p", PREFILL)
    put(tmp_path / "p" / "pins.json", b'{"kvwire_pins": 1, "pins": []}')
    with pytest.raises(IdentityError, match=r"nobody is trusted: .*pins\.json pins nobody"):
        Identity.load(tmp_path / "p")


def test_loading_leaves_no_descriptor_behind(pair: tuple[Path, Path]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    Identity.load(pair[0])
    damage(pair[0], "another's key")
    with pytest.raises(IdentityError):
        Identity.load(pair[0])
    assert len(os.listdir("/proc/self/fd")) == before


def test_modes(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    def modes(directory: Path) -> dict[str, str]:
        return {path.name: f"{stat.S_IMODE(path.stat().st_mode):03o}" for path in (directory, *directory.iterdir())}

    assert modes(tmp_path / "ca") == {"ca": "700", "ca.pem": "644", "ca-key.pem": "600"}
    assert modes(pair[0]) == {
        "p1": "700", "identity.pem": "600", "certificate.pem": "644", "ca.pem": "644", "revoked.txt": "644"
    }  # fmt: skip


# --- what is read again -----------------------------------------------------------------------------------------------


def test_nothing_new(pair: tuple[Path, Path]) -> None:
    identity = Identity.load(pair[0])
    contexts = identity.context(True), identity.context(False)
    assert not identity.refresh()
    assert (identity.context(True), identity.context(False)) == contexts


def test_a_new_key_counts_for_the_next_handshake(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    dialler, acceptor = map(Identity.load, pair)
    before = dialler.fingerprint
    Authority.load(tmp_path / "ca").issue(pair[0], PREFILL, replace=True)
    assert dialler.fingerprint == before
    assert dialler.refresh()
    assert dialler.fingerprint != before
    assert meet(dialler, acceptor)[1] == Peer(PREFILL, dialler.fingerprint)
    assert not dialler.refresh()


def test_another_ca_counts_for_the_next_handshake(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    (stranger,) = under_one_ca(tmp_path / "elsewhere", OTHER)
    dialler, acceptor = Identity.load(stranger), Identity.load(pair[1])
    put(pair[1] / "ca.pem", b"".join((each / "ca.pem").read_bytes() for each in (pair[1], stranger)), PUBLIC)
    put(stranger / "ca.pem", (pair[0] / "ca.pem").read_bytes(), PUBLIC)
    assert dialler.refresh()
    assert acceptor.refresh()
    assert meet(dialler, acceptor)[1].subject == OTHER
    assert meet(Identity.load(pair[0]), acceptor)[1].subject == PREFILL


def test_a_pin_counts_for_the_next_handshake(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    made = self_signed(tmp_path / "s", OTHER)
    pin(tmp_path / "s", pair[0] / "certificate.pem")
    stranger, identity = Identity.load(tmp_path / "s"), Identity.load(pair[0])
    with pytest.raises(ssl.SSLCertVerificationError):
        meet(stranger, identity)
    pin(pair[0], tmp_path / "s" / "certificate.pem")
    assert identity.refresh()
    assert meet(stranger, identity)[1] == Peer(OTHER, made.fingerprint)
    (pair[0] / "pins.json").unlink()
    assert identity.refresh()
    with pytest.raises(ssl.SSLCertVerificationError):
        meet(stranger, identity)


@pytest.mark.parametrize(
    "how", ["missing", "torn", "another's key", "readable by others", "without names", "expired", "no CA", "empty CA"]
)
def test_what_cannot_be_used_changes_nothing(
    pair: tuple[Path, Path], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    dialler, acceptor = map(Identity.load, pair)
    good = {name: (pair[0] / name).read_bytes() for name in ("identity.pem", "ca.pem")}
    damage(pair[0], how)
    assert not dialler.refresh()
    assert not dialler.refresh()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "identity, CA and pins stay as they were"
    ]
    assert meet(dialler, acceptor)[1].subject == PREFILL
    for name, content in good.items():
        put(pair[0] / name, content)
    assert dialler.refresh()
    assert len(caplog.records) == 1
    assert meet(dialler, acceptor)[1].subject == PREFILL


def test_key_and_certificate_that_are_replaced_one_after_the_other(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    pem, (_, key) = forge(issuer=ca_of(tmp_path / "ca"))
    chain = pem[pem.index(b"-----BEGIN CERT") :]
    names = {"certificate": "certificate.pem", "key": "key.pem"}
    before = (pair[0] / "identity.pem").read_bytes()
    put(pair[0] / "key.pem", before[: before.index(b"-----BEGIN CERT")])
    identity = Identity.load(pair[0], **names)
    first = identity.fingerprint
    put(pair[0] / "key.pem", key_pem(key))
    assert not identity.refresh()
    assert meet(identity, Identity.load(pair[1]))[1] == Peer(PREFILL, first)
    put(pair[0] / "certificate.pem", chain, PUBLIC)
    assert identity.refresh()
    assert identity.fingerprint != first
    assert meet(identity, Identity.load(pair[1]))[1] == Peer(PREFILL, identity.fingerprint)


def test_a_list_that_is_written_in_place_and_dated_back(pair: tuple[Path, Path]) -> None:
    """The same length, the same inode, and a time of change that somebody has set back."""
    path = pair[0] / "revoked.txt"
    fingerprints = [Identity.load(directory).fingerprint for directory in pair]
    path.write_text(f"{fingerprints[0]}\n")
    identity = Identity.load(pair[0])
    then = path.stat()
    deadline = datetime.now(UTC) + timedelta(seconds=30)
    while path.stat().st_ctime_ns == then.st_ctime_ns:  # until the file system's clock has moved on
        path.write_text(f"{fingerprints[1]}\n")
        assert datetime.now(UTC) < deadline
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert path.stat().st_mtime_ns == then.st_mtime_ns
    assert identity.refresh()
    assert [identity.revoked(each) for each in fingerprints] == [False, True]


@pytest.mark.parametrize("how", ["garbage", "vanished", "writable by others", "cut"])
def test_while_the_list_cannot_be_read_nobody_is_believed(
    pair: tuple[Path, Path], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    dialler, acceptor = map(Identity.load, pair)
    path = pair[1] / "revoked.txt"
    revoke(pair[1], "ab" * 32)
    assert acceptor.refresh()
    good = path.read_bytes()
    match how:
        case "garbage":
            put(path, b"\xff\xfe", PUBLIC)
        case "vanished":
            path.unlink()
        case "writable by others":
            path.chmod(0o666)
        case "cut":
            put(path, good[: good.index(b"abab") + 40], PUBLIC)
    assert acceptor.refresh()
    assert not acceptor.refresh()
    with pytest.raises(AuthenticationFailed, match=r"nobody is believed: .*revoked\.txt"):
        meet(dialler, acceptor)
    assert acceptor.revoked("ab" * 32)  # as last read: links that are up stay up
    assert len(caplog.records) == 1
    assert "no peer is believed until the revocation list can be read" in caplog.text
    put(path, good, PUBLIC)
    assert acceptor.refresh()
    assert meet(dialler, acceptor)[1].subject == PREFILL


def test_a_list_counts_beside_files_that_cannot_be_used(pair: tuple[Path, Path]) -> None:
    dialler, acceptor = map(Identity.load, pair)
    damage(pair[1], "torn")
    revoke(pair[1], dialler.fingerprint)
    assert acceptor.refresh()
    with pytest.raises(AuthenticationFailed, match="is revoked"):
        meet(dialler, acceptor)


def test_looking_costs_little(pair: tuple[Path, Path]) -> None:
    identity = Identity.load(pair[0])
    begun = time.monotonic()
    assert not any(identity.refresh() for _ in range(10_000))
    assert time.monotonic() - begun < 10.0  # 0.12 s where this was written; reading the files as often takes 33 s


def test_a_key_that_openssl_refuses() -> None:
    """An X448 key with the length of an X25519 one: `cryptography` calls that an internal error."""
    der = bytes.fromhex("302e020100300506032b656f04220420") + b"k" * 32
    pem = b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(der) + b"-----END PRIVATE KEY-----\n"
    with pytest.raises(IdentityError, match=r"^identity\.pem has no private key in PEM$"):
        parse_key(pem, Path("identity.pem"))


def test_a_certificate_of_a_version_that_nobody_knows(tmp_path: Path) -> None:
    """`cryptography` has an error of its own for that, which is no ValueError."""
    der = forge()[1][0].public_bytes(Encoding.DER).replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020142"), 1)
    path = put(tmp_path / "theirs.pem", ssl.DER_cert_to_PEM_cert(der).encode(), PUBLIC)
    with pytest.raises(IdentityError, match="has no certificate in PEM"):
        read_certificates(path)


def test_a_name_constraint_that_is_none(tmp_path: Path) -> None:
    """One IP address where a network belongs: `cryptography` makes a TypeError of it."""
    content = bytes.fromhex("300aa1083006870461636d65")
    constraint = x509.UnrecognizedExtension(x509.NameConstraints.oid, content)
    first, _ = under_one_ca(tmp_path, PREFILL, DECODE)
    pem, (certificate, _) = forge(issuer=ca_of(tmp_path / "ca"), extensions=[constraint])
    with pytest.raises(IdentityError, match="a certificate that cannot be read"):
        read_certificates(put(tmp_path / "theirs.pem", pem, PUBLIC))
    with pytest.raises(AuthenticationFailed, match="a certificate that cannot be read"):
        Identity.load(first).identify(certificate.public_bytes(Encoding.DER))
