"""Pins beside CAs: a pinned certificate is nobody's CA, and no way around what a CA may do."""

from __future__ import annotations

import json
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose
from cryptography.x509.oid import NameOID

from kvwire import AuthenticationFailed, Authority, Certificate, Identity, IdentityError, pin, self_signed
from kvwire.security.vouching import vouches
from tests.unit.security_kit import (
    DECODE,
    OTHER,
    PREFILL,
    Signer,
    bare_context,
    ca_of,
    certificates_in,
    forge,
    handshake,
    put,
)

NOW = datetime.now(UTC)

VERSION_1 = b"""\
-----BEGIN CERTIFICATE-----
MIHWMIGJAhRxILuHuO9AjC/cSHZzBzuZD0NdYDAFBgMrZXAwDTELMAkGA1UEAwwC
djEwIBcNMjYxMTIxMTkyODE1WhgPMjEyNjEwMjgxOTI4MTVaMA0xCzAJBgNVBAMM
AnYxMCowBQYDK2VwAyEA+AjbM0kI7uzDw0AUH7jMa0TuddLCw9k9I01BWGPSKsgw
BQYDK2VwA0EAdsF2k4mIBMC0Y4HpffGkk2P26b/Brjtk27uF9zQyV8NFDQL/PT2g
+U4tA/r11pgRIQ1WeAl7r7UraRIeKAabBg==
-----END CERTIFICATE-----
"""
"""Self-signed, without extensions, as old software makes them: OpenSSL lets it issue others."""


def usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not signs, False, False, False, False, signs, False, False, False)


NETSCAPE_CA = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.16.840.1.113730.1.1"), b"\x03\x02\x00\x04")
MAY_SIGN = {
    "a CA, as openssl req -x509 makes it": forge(ca=True)[0],
    "by its usage, without constraints": forge(ca=None, extensions=[usage(signs=True)])[0],
    "by its usage, against its constraints": forge(extensions=[usage(signs=True)])[0],
    "as a CA of Netscape's": forge(ca=None, extensions=[NETSCAPE_CA])[0],
    "version 1": VERSION_1,
}
MAY_NOT = {
    "no CA": forge(),
    "without constraints": forge(ca=None),
    "by its usage": forge(ca=None, extensions=[usage(signs=False)]),
}


def found(signer: Signer) -> Certificate:
    return Certificate.from_der(signer[0].public_bytes(Encoding.DER))


# --- what may be pinned -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", MAY_SIGN)
def test_what_may_sign_is_not_pinned(tmp_path: Path, how: str) -> None:
    self_signed(tmp_path / "p", PREFILL)
    put(tmp_path / "pinned.pem", MAY_SIGN[how])
    with pytest.raises(IdentityError, match=r"may sign others.*-addext basicConstraints=critical,CA:FALSE"):
        pin(tmp_path / "p", tmp_path / "pinned.pem", OTHER)
    assert not (tmp_path / "p" / "pins.json").exists()


@pytest.mark.parametrize("how", MAY_SIGN)
def test_a_pin_file_with_what_may_sign(tmp_path: Path, how: str) -> None:
    """Written by hand."""
    self_signed(tmp_path / "p", PREFILL)
    pin(tmp_path / "p", tmp_path / "p" / "certificate.pem")
    path, pem = tmp_path / "p" / "pins.json", certificates_in(MAY_SIGN[how]).decode()
    content = json.loads(path.read_bytes())
    fingerprint = Certificate.from_der(ssl.PEM_cert_to_DER_cert(pem)).fingerprint
    content["pins"][0] |= {"certificate": pem, "sha256": fingerprint}
    put(path, json.dumps(content).encode())
    with pytest.raises(IdentityError, match=r"pins\.json, pin 1: certificate .* may sign others"):
        Identity.load(tmp_path / "p")


@pytest.mark.parametrize("how", MAY_NOT)
@pytest.mark.parametrize("beside_a_ca", [True, False])
def test_a_pinned_certificate_is_nobodys_ca(tmp_path: Path, how: str, beside_a_ca: bool) -> None:
    """What it has signed all the same is refused, by OpenSSL and by `identify`."""
    pem, pinned = MAY_NOT[how]
    node = tmp_path / "node"
    if beside_a_ca:
        Authority.create(tmp_path / "ca").issue(node, DECODE)
    else:
        self_signed(node, DECODE)
    pin(node, put(tmp_path / "pinned.pem", pem))
    identity = Identity.load(node)
    handshake(bare_context(shows=tmp_path / "pinned.pem"), identity.context(True))
    child_pem, child = forge((OTHER.uri,), issuer=pinned, name="child")
    put(tmp_path / "child.pem", child_pem + certificates_in(pem))
    with pytest.raises(ssl.SSLCertVerificationError, match="invalid CA certificate"):
        handshake(bare_context(shows=tmp_path / "child.pem"), identity.context(True))
    with pytest.raises(AuthenticationFailed, match="is not pinned, and the CA has not issued it"):
        identity.identify(found(child).der)


def test_a_pin_is_not_believed_after_it_is_gone(tmp_path: Path) -> None:
    """Its handshake may have begun before."""
    pem, pinned = forge((OTHER.uri,))
    node = tmp_path / "node"
    Authority.create(tmp_path / "ca").issue(node, DECODE)
    pin(node, put(tmp_path / "pinned.pem", pem))
    identity = Identity.load(node)
    assert identity.identify(found(pinned).der).subject == OTHER
    (node / "pins.json").unlink()
    assert identity.refresh()
    with pytest.raises(AuthenticationFailed, match="not pinned"):
        identity.identify(found(pinned).der)


def test_a_node_has_no_certificate_that_may_sign(tmp_path: Path) -> None:
    """Whether it would be pinned or has been issued: peers would refuse it."""
    Authority.create(tmp_path / "ca").issue(tmp_path / "p", PREFILL)
    put(tmp_path / "p" / "identity.pem", forge(ca=True, issuer=ca_of(tmp_path / "ca"))[0])
    with pytest.raises(IdentityError, match=r"identity\.pem: certificate .* may sign others"):
        Identity.load(tmp_path / "p")


def test_a_cas_own_certificate_is_no_nodes(tmp_path: Path) -> None:
    """A CA for acme only, that calls itself a node of globex: its constraints are for what it issues."""
    limits = x509.NameConstraints([x509.UniformResourceIdentifier("acme")], None)
    pem, ca = forge((OTHER.uri,), ca=True, extensions=[limits])
    put(tmp_path / "both.pem", pem)
    Authority.create(tmp_path / "ca").issue(tmp_path / "node", DECODE)
    put(tmp_path / "node" / "ca.pem", (tmp_path / "ca" / "ca.pem").read_bytes() + certificates_in(pem), 0o644)
    identity = Identity.load(tmp_path / "node")
    handshake(bare_context(shows=tmp_path / "both.pem"), identity.context(True))  # OpenSSL has nothing against it
    with pytest.raises(AuthenticationFailed, match="may sign others: it is a CA's and no node's"):
        identity.identify(found(ca).der)


# --- what a CA may do -------------------------------------------------------------------------------------------------


def around(limited: Signer, pinned: Signer) -> tuple[bytes, Certificate]:
    """Made by who has the key of a CA for acme only, and that of a pinned certificate: a node of globex under the CA,
    and beside it another certificate of the CA's name and key, without constraints, signed by the pinned one."""
    name = limited[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert isinstance(name, str)
    identifier = b"K" * 20  # so that OpenSSL takes the other one for the issuer
    other = forge(
        (), ca=True, name=name, key=limited[1], issuer=pinned, extensions=[x509.SubjectKeyIdentifier(identifier)]
    )[0]
    of_it = x509.AuthorityKeyIdentifier(identifier, None, None)
    pem, leaf = forge((OTHER.uri,), issuer=limited, extensions=[of_it])
    return pem + certificates_in(other), found(leaf)


@pytest.mark.parametrize("how", MAY_NOT)
@pytest.mark.parametrize("tenant", ["acme", "globex"])
def test_no_way_around_constraints_through_a_pin(tmp_path: Path, how: str, tenant: str) -> None:
    """It was one while certificates that may sign could be pinned; now neither OpenSSL nor `identify` takes it."""
    limited = Authority.create(tmp_path / "limited", tenants=[tenant])
    Authority.create(tmp_path / "ca").issue(tmp_path / "node", DECODE)
    both = [(tmp_path / name / "ca.pem").read_bytes() for name in ("limited", "ca")]
    put(tmp_path / "node" / "ca.pem", b"".join(both), 0o644)
    pem, pinned = MAY_NOT[how]
    pin(tmp_path / "node", put(tmp_path / "pinned.pem", pem))
    identity = Identity.load(tmp_path / "node")
    chain, leaf = around(ca_of(tmp_path / "limited"), pinned)
    assert leaf.is_issued_by(limited.certificate)
    with pytest.raises(ssl.SSLCertVerificationError, match="invalid CA certificate"):
        handshake(bare_context(shows=put(tmp_path / "leaf.pem", chain)), identity.context(True))
    if tenant == "globex":
        assert identity.identify(leaf.der).subject == OTHER
        return
    with pytest.raises(AuthenticationFailed, match="is not pinned, and the CA has not issued it"):
        identity.identify(leaf.der)


def uri(*values: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(value) for value in values]


BOTH_WAYS = [Purpose.CLIENT_AUTH, Purpose.SERVER_AUTH]
DNS = [x509.DNSName("example.org")]


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ([], True),
        ([usage(signs=True)], True),
        ([usage(signs=False)], False),
        ([x509.ExtendedKeyUsage(BOTH_WAYS)], True),
        ([x509.ExtendedKeyUsage(BOTH_WAYS[:1])], False),
        ([x509.ExtendedKeyUsage([Purpose.CODE_SIGNING])], False),
        ([x509.NameConstraints(uri("acme"), None)], True),
        ([x509.NameConstraints(uri("globex"), None)], False),
        ([x509.NameConstraints(uri("globex", "ACME"), None)], True),
        ([x509.NameConstraints(uri(".acme"), None)], False),
        ([x509.NameConstraints(uri("cme"), None)], False),
        ([x509.NameConstraints(None, uri("acme"))], False),
        ([x509.NameConstraints(None, uri("globex"))], True),
        ([x509.NameConstraints(uri("acme"), uri("acme"))], False),
        ([x509.NameConstraints(DNS, None)], True),
        ([x509.NameConstraints(None, DNS)], True),
        ([x509.NameConstraints([*DNS, *uri("globex")], None)], False),
    ],
)
def test_whom_a_ca_vouches_for(tmp_path: Path, extensions: list[x509.ExtensionType], expected: bool) -> None:
    """And OpenSSL, asked about the same two without any pin, agrees."""
    pem, ca = forge((), ca=True, name="ca", extensions=extensions)
    leaf_pem, leaf = forge((PREFILL.uri,), issuer=ca)
    assert vouches(found(ca), found(leaf), NOW) is expected
    acceptor = bare_context(server=True, trusts=put(tmp_path / "ca.pem", certificates_in(pem)))
    acceptor.load_cert_chain(put(tmp_path / "own.pem", forge()[0]))
    dialler = bare_context(shows=put(tmp_path / "leaf.pem", leaf_pem))
    if expected:
        handshake(dialler, acceptor)
    elif extensions != [x509.ExtendedKeyUsage(BOTH_WAYS[:1])]:  # a CA for diallers only, whom OpenSSL lets dial
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(dialler, acceptor)


def test_a_ca_of_tenants_below_a_name() -> None:
    ca = forge((), ca=True, name="ca", extensions=[x509.NameConstraints(uri(".acme"), None)])[1]
    below, beside = (forge((f"kvwire://{tenant}/both/eu/n",), issuer=ca)[1] for tenant in ("a.acme", "acme"))
    assert vouches(found(ca), found(below), NOW)
    assert not vouches(found(ca), found(beside), NOW)


def test_whom_a_ca_does_not_vouch_for() -> None:
    ca, other = (forge((), ca=True, name="ca")[1] for _ in range(2))
    leaf = found(forge(issuer=ca)[1])
    assert vouches(found(ca), leaf, NOW)
    assert not vouches(found(other), leaf, NOW)
    for days in (-2, 2):
        assert not vouches(found(ca), leaf, NOW + timedelta(days=days))
    assert not vouches(found(ca), found(forge(("https://acme/",), issuer=ca)[1]), NOW)
    assert not vouches(found(ca), found(forge(issuer=ca, ca=True)[1]), NOW)
    no_ca = forge()[1]
    assert not vouches(found(no_ca), found(forge(issuer=no_ca)[1]), NOW)


def test_a_ca_that_has_expired_beside_one_that_has_not(tmp_path: Path) -> None:
    pem, expired = forge((), ca=True, name="expired", begins_days=-9, ends_days=-1)
    Authority.create(tmp_path / "ca").issue(tmp_path / "node", DECODE)
    put(tmp_path / "node" / "ca.pem", (tmp_path / "ca" / "ca.pem").read_bytes() + certificates_in(pem), 0o644)
    pin(tmp_path / "node", put(tmp_path / "pinned.pem", MAY_NOT["no CA"][0]))
    identity = Identity.load(tmp_path / "node")
    assert identity.identify(found(forge(issuer=ca_of(tmp_path / "ca"))[1]).der).subject == PREFILL
    with pytest.raises(AuthenticationFailed, match="is not pinned, and the CA has not issued it"):
        identity.identify(found(forge(issuer=expired)[1]).der)
