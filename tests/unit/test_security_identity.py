"""Identities: what can be loaded, who is believed after a real TLS handshake, and what is said of everything else."""

from __future__ import annotations

import ssl
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from kvwire import AuthenticationFailed, Authority, Identity, Peer, pin, revoke, self_signed
from tests.unit.security_kit import (
    DECODE,
    OTHER,
    PREFILL,
    bare_context,
    ca_of,
    forge,
    handshake,
    meet,
    put,
    under_one_ca,
)

PUBLIC = 0o644


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories of keys under one CA."""
    first, second = under_one_ca(tmp_path, PREFILL, DECODE)
    return first, second


@pytest.fixture
def pinned(tmp_path: Path) -> tuple[Path, Path]:
    """Two self-signed identities that have pinned each other."""
    first, second = tmp_path / "p", tmp_path / "d"
    self_signed(first, PREFILL)
    self_signed(second, DECODE)
    pin(first, second / "certificate.pem")
    pin(second, first / "certificate.pem")
    return first, second


# --- who is believed --------------------------------------------------------------------------------------------------


def test_two_under_one_ca(pair: tuple[Path, Path]) -> None:
    dialler, acceptor = map(Identity.load, pair)
    assert meet(dialler, acceptor) == (Peer(DECODE, acceptor.fingerprint), Peer(PREFILL, dialler.fingerprint))
    assert (dialler.subject, acceptor.subject) == (PREFILL, DECODE)


def test_two_that_have_pinned_each_other(pinned: tuple[Path, Path]) -> None:
    dialler, acceptor = map(Identity.load, pinned)
    assert meet(dialler, acceptor) == (Peer(DECODE, acceptor.fingerprint), Peer(PREFILL, dialler.fingerprint))


def test_a_pinned_certificate_of_a_ca_that_is_not_trusted(tmp_path: Path) -> None:
    """The leaf is believed, and nothing else that this CA has issued."""
    known, stranger = under_one_ca(tmp_path, PREFILL, OTHER)
    self_signed(tmp_path / "d", DECODE)
    pin(tmp_path / "d", known / "certificate.pem")
    for directory in (known, stranger):
        pin(directory, tmp_path / "d" / "certificate.pem")
    acceptor = Identity.load(tmp_path / "d")
    assert meet(Identity.load(known), acceptor)[1].subject == PREFILL
    with pytest.raises(ssl.SSLCertVerificationError):
        meet(Identity.load(stranger), acceptor)


def test_the_names_of_a_pin_count(pinned: tuple[Path, Path]) -> None:
    pin(pinned[1], pinned[0] / "certificate.pem", OTHER)
    dialler, acceptor = map(Identity.load, pinned)
    assert meet(dialler, acceptor)[1] == Peer(OTHER, dialler.fingerprint)


def test_a_pinned_certificate_needs_no_names(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    pem, (certificate, _) = forge(())
    put(tmp_path / "nameless.pem", pem)
    pin(pair[0], tmp_path / "nameless.pem", OTHER)
    context = bare_context(trusts=pair[0] / "ca.pem", shows=tmp_path / "nameless.pem")
    identity = Identity.load(pair[0])
    der = handshake(context, identity.context(True))[1].getpeercert(True)
    assert der is not None
    assert identity.identify(der).subject == OTHER
    assert identity.identify(der).fingerprint == sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def test_ca_and_pins_together(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    stranger = tmp_path / "s"
    self_signed(stranger, OTHER)
    pin(pair[0], stranger / "certificate.pem")
    pin(stranger, pair[0] / "certificate.pem")
    both, under_ca, alone = map(Identity.load, (*pair, stranger))
    assert [peer.subject for peer in meet(both, under_ca)] == [DECODE, PREFILL]
    assert [peer.subject for peer in meet(alone, both)] == [PREFILL, OTHER]
    with pytest.raises(ssl.SSLError):
        meet(alone, under_ca)


def test_two_pins_of_one_name(tmp_path: Path) -> None:
    """As when a host is given a new key: OpenSSL has to find the right one of two that are called the same."""
    old, new, peer = tmp_path / "old", tmp_path / "new", tmp_path / "peer"
    for directory in (old, new):
        self_signed(directory, PREFILL)
    self_signed(peer, DECODE)
    for directory in (old, new):
        pin(peer, directory / "certificate.pem")
        pin(directory, peer / "certificate.pem")
        assert meet(Identity.load(directory), Identity.load(peer))[1].subject == PREFILL
    assert meet(Identity.load(old), Identity.load(peer))[1].subject == PREFILL


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_other_kinds_of_keys(tmp_path: Path, pair: tuple[Path, Path], kind: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)
    put(pair[0] / "identity.pem", forge(key=key, issuer=ca_of(tmp_path / "ca"))[0])
    assert meet(*map(Identity.load, pair))[1].subject == PREFILL


def test_a_chain_with_an_intermediate_ca(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    root_pem, root = forge((), ca=True, name="root")
    middle_pem, middle = forge((), ca=True, name="middle", issuer=root)
    for directory, subject in zip(pair, (PREFILL, DECODE), strict=True):
        pem = forge((subject.uri,), issuer=middle)[0]
        put(directory / "identity.pem", pem + middle_pem[middle_pem.index(b"-----BEGIN CERT") :])
        put(directory / "ca.pem", root_pem[root_pem.index(b"-----BEGIN CERT") :], PUBLIC)
    assert [peer.subject for peer in meet(*map(Identity.load, pair))] == [DECODE, PREFILL]


# --- who is not -------------------------------------------------------------------------------------------------------


def test_another_ca(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    (stranger,) = under_one_ca(tmp_path / "elsewhere", PREFILL)
    for ends in ((stranger, pair[1]), (pair[1], stranger)):
        with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
            meet(*map(Identity.load, ends))


@pytest.mark.parametrize(
    ("days", "reason"), [((-2, -1), "certificate has expired"), ((1, 2), "certificate is not yet valid")]
)
@pytest.mark.parametrize("how", ["under the CA", "pinned"])
def test_out_of_its_time(tmp_path: Path, pair: tuple[Path, Path], days: tuple[int, int], reason: str, how: str) -> None:
    issuer = ca_of(tmp_path / "ca") if how == "under the CA" else None
    put(tmp_path / "late.pem", forge(issuer=issuer, begins_days=days[0], ends_days=days[1])[0])
    if how == "pinned":
        pin(pair[1], tmp_path / "late.pem")
    late = bare_context(trusts=tmp_path / "ca" / "ca.pem", shows=tmp_path / "late.pem")
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        handshake(late, Identity.load(pair[1]).context(True))


def test_without_a_certificate(pair: tuple[Path, Path]) -> None:
    bare = bare_context(trusts=pair[0] / "ca.pem")
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(bare, Identity.load(pair[1]).context(True))


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("https://acme/prefill/eu/a",),
        (PREFILL.uri, OTHER.uri),
        (PREFILL.uri, "KVWIRE://globex/both/us/x1"),
        (PREFILL.uri, "kvwire:acme"),
        ("kvwire://acme/prefill/eu/a/b",),
        ("kvwire://acme/admin/eu/a",),
    ],
)
def test_without_kvwires_names(tmp_path: Path, pair: tuple[Path, Path], uris: tuple[str, ...]) -> None:
    pem, _ = forge(uris, issuer=ca_of(tmp_path / "ca"))
    put(tmp_path / "odd.pem", pem)
    odd = bare_context(trusts=tmp_path / "ca" / "ca.pem", shows=tmp_path / "odd.pem")
    identity = Identity.load(pair[1])
    der = handshake(odd, identity.context(True))[1].getpeercert(True)
    with pytest.raises(AuthenticationFailed, match=r"without kvwire's names; expected one SAN URI kvwire://TENANT"):
        identity.identify(der or b"")


def test_other_names_beside_kvwires_do_not_matter(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    put(pair[0] / "identity.pem", forge(("spiffe://acme/p", PREFILL.uri), issuer=ca_of(tmp_path / "ca"))[0])
    assert meet(*map(Identity.load, pair))[1].subject == PREFILL


def test_a_node_is_no_ca(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """Whoever has a node's key cannot make others: OpenSSL looks at the basic constraints."""
    pem = (pair[0] / "identity.pem").read_bytes()
    issuer = x509.load_pem_x509_certificate(pem), load_pem_private_key(pem, None)
    assert isinstance(issuer[1], Ed25519PrivateKey)
    child = forge((OTHER.uri,), issuer=(issuer[0], issuer[1]))[0]
    put(tmp_path / "child.pem", child + pem[pem.index(b"-----BEGIN CERT") :])
    with pytest.raises(ssl.SSLCertVerificationError, match="invalid CA certificate"):
        handshake(bare_context(shows=tmp_path / "child.pem"), Identity.load(pair[1]).context(True))


def test_a_ca_for_one_tenant_only(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", tenants=("acme", "acme2"))
    for name, subject in (("a", PREFILL), ("b", DECODE), ("x", OTHER)):
        authority.issue(tmp_path / name, subject)
    a, b, x = (Identity.load(tmp_path / name) for name in "abx")
    assert meet(a, b)[1].subject == PREFILL
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        meet(x, b)


def test_revoked(pair: tuple[Path, Path]) -> None:
    dialler, acceptor = map(Identity.load, pair)
    revoke(pair[1], dialler.fingerprint)
    assert meet(dialler, acceptor)[1].subject == PREFILL  # nobody has looked yet
    assert acceptor.refresh()
    assert acceptor.revoked(dialler.fingerprint)
    with pytest.raises(AuthenticationFailed, match=f"certificate {dialler.fingerprint} is revoked"):
        meet(dialler, acceptor)
    with pytest.raises(AuthenticationFailed, match="is revoked"):
        Identity.load(pair[1]).identify(dialler.certificate)


def test_what_is_no_certificate(pair: tuple[Path, Path]) -> None:
    identity = Identity.load(pair[0])
    for der in (b"", b"\x30\x00", identity.certificate[:-1], identity.certificate + b"\0"):
        with pytest.raises(AuthenticationFailed, match="a certificate that cannot be read"):
            identity.identify(der)


@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
def test_every_bit_of_a_pinned_certificate_counts(pinned: tuple[Path, Path]) -> None:
    dialler, acceptor = map(Identity.load, pinned)
    for bit in range(8 * len(dialler.certificate)):
        flipped = bytearray(dialler.certificate)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(AuthenticationFailed):
            acceptor.identify(bytes(flipped))


# --- the TLS that is spoken -------------------------------------------------------------------------------------------


def test_tls_13_alpn_and_no_tickets(pair: tuple[Path, Path]) -> None:
    dialler, acceptor = map(Identity.load, pair)
    ends = handshake(dialler.context(False), acceptor.context(True))
    assert [end.version() for end in ends] == ["TLSv1.3", "TLSv1.3"]
    assert [end.selected_alpn_protocol() for end in ends] == ["kvwire/1", "kvwire/1"]
    assert acceptor.context(True).num_tickets == 0
    for server in (False, True):
        context = dialler.context(server)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.options & ssl.OP_NO_TICKET
    # A ticket would come behind the handshake: nothing does.
    with pytest.raises(ssl.SSLWantReadError):
        ends[0].read()
    assert ends[0].session is None or not ends[0].session.has_ticket


@pytest.mark.parametrize("server", [False, True])
def test_tls_12_is_refused(pair: tuple[Path, Path], server: bool) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(pair[0] / "identity.pem")
    old.load_verify_locations(pair[0] / "ca.pem")
    ours = Identity.load(pair[1]).context(not server)
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol|version"):
        handshake(*((ours, old) if server else (old, ours)))


@pytest.mark.parametrize("group", ["secp384r1", "ffdhe2048", "ffdhe8192", "X25519", "X448"])
@pytest.mark.parametrize("server", [False, True])
def test_another_group_is_refused(pair: tuple[Path, Path], server: bool, group: str) -> None:
    """Before anything is computed: the larger ones cost 0.1 s of a core, and who asks has not said who it is."""
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    other.check_hostname = False
    other.load_cert_chain(pair[0] / "identity.pem")
    other.load_verify_locations(pair[0] / "ca.pem")
    ours = Identity.load(pair[1]).context(not server)
    ends = (ours, other) if server else (other, ours)
    other.set_ecdh_curve("prime256v1")
    handshake(*ends)
    try:
        other.set_ecdh_curve(group)
    except ssl.SSLError:
        pytest.skip("this Python's ssl takes NIST's curves only")
    with pytest.raises(ssl.SSLError, match=r"NO_SUITABLE_KEY_SHARE|NO_SHARED_GROUP"):
        handshake(*ends)
