"""Whom a certificate names: any DER, any SAN, any URI in it, and the extensions that say what it may be used for.

The template is a self-signed certificate; its extensions are replaced and the lengths around them mended. Where
somebody looks at the signature it is made anew.
"""

from __future__ import annotations

import re
import warnings
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from kvwire.errors import IdentityError
from kvwire.security import certificates, subject
from kvwire.security.certificates import Certificate
from kvwire.security.subject import Subject
from kvwire.security.vouching import vouches
from kvwire.types import LABEL
from tests.fuzz.pure.reading import Cursor

UNDER_TEST = ("kvwire.security.subject", "kvwire.security.certificates", "kvwire.security.vouching")
"""Of the second, what reads; the rest makes certificates."""

NOW = datetime(2026, 6, 1, tzinfo=UTC)
URI = re.compile(rb"kvwire://([a-z0-9.-]{1,63})/(prefill|decode|both)/([a-z0-9.-]{1,63})/([a-z0-9.-]{1,63})")
"""What may be believed, said once more."""

SAN, BASIC_CONSTRAINTS, KEY_USAGE = (
    bytes.fromhex("0603551d11"),
    bytes.fromhex("0603551d13"),
    bytes.fromhex("0603551d0f"),
)
EXTENDED_USAGE, NAME_CONSTRAINTS = bytes.fromhex("0603551d25"), bytes.fromhex("0603551d1e")
NETSCAPE_TYPE = bytes.fromhex("060960864801 86f8420101".replace(" ", ""))
OTHERS = (BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_USAGE, NAME_CONSTRAINTS, NETSCAPE_TYPE, SAN)
SEQUENCE, OCTETS, URI_NAME, EXTENSIONS = 0x30, 0x04, 0x86, 0xA3


def der(tag: int, content: bytes) -> bytes:
    """A value with its tag and length (X.690, 8.1)."""
    size = len(content)
    if size < 128:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


NAMES = der(SEQUENCE, der(URI_NAME, b"kvwire://acme/both/eu/a"))
URI_TYPE = x509.UniformResourceIdentifier
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
SIGNATURE_BYTES = 64


@cache
def template() -> tuple[bytes, bytes]:
    """A certificate without extensions: of what is signed all that is before them, and what comes after it."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fuzz")])
    times = datetime(2026, 1, 1), datetime(2027, 1, 1)
    made = x509.CertificateBuilder(name, name, KEY.public_key(), 1, *times).sign(KEY, None)
    whole = made.public_bytes(Encoding.DER)
    signed = made.tbs_certificate_bytes
    after = whole[whole.index(signed) + len(signed) :]
    return signed[2 if signed[1] < 128 else 2 + (signed[1] & 0x7F) :], after


def certificate(extensions: list[tuple[bytes, bytes]], *, signs: bool = False) -> bytes:
    """The template with these: OID and value. `signs`: so that the signature is right."""
    before, after = template()
    listed = b"".join(der(SEQUENCE, oid + der(OCTETS, value)) for oid, value in extensions)
    signed = der(SEQUENCE, before + (der(EXTENSIONS, der(SEQUENCE, listed)) if extensions else b""))
    if signs:
        after = after[:-SIGNATURE_BYTES] + KEY.sign(signed)
    return der(SEQUENCE, signed + after)


def fuzz(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cryptography's, of what will be an error one day
        _read(Cursor(data))


def _read(cursor: Cursor) -> None:
    match cursor.byte() % 6:
        case 0:
            _uri(cursor.rest())
        case 1:  # several names in one SAN
            kinds = (URI_NAME, URI_NAME, 0x82, 0x81, 0x87)
            names = [der(cursor.choose(kinds), cursor.piece()) for _ in range(cursor.byte() % 4)]
            _certificate([(SAN, der(SEQUENCE, b"".join(names)))])
        case 2:
            _certificate([(SAN, cursor.rest())])
        case 3:
            several = [(cursor.choose(OTHERS), cursor.piece()) for _ in range(1 + cursor.byte() % 3)]
            _certificate([(SAN, NAMES), *several])
            _authority(several)
        case 4:  # the whole, changed
            whole = bytearray(_leaf().der)
            for _ in range(cursor.byte() % 4):
                at = cursor.word() % len(whole)
                whole[at : at + cursor.byte() % 4] = cursor.take(cursor.byte() % 4)
            _any(bytes(whole))
        case _:
            _files(cursor.rest())


def _uri(data: bytes) -> None:
    """Only one text is a name of kvwire's: the one that its subject makes."""
    text = data.decode("utf-8", "surrogateescape")
    expected = URI.fullmatch(data)
    try:
        found = Subject.from_uri(text)
    except IdentityError:
        assert expected is None or not all(LABEL.fullmatch(label.decode()) for label in expected.groups())
        return
    _check(found, data)


def _check(found: Subject, uri: bytes) -> None:
    assert found.uri.encode() == uri, f"{found.uri!r} of {uri!r}"
    match = URI.fullmatch(uri)
    assert match, f"{uri!r} is believed"
    assert tuple(label.decode() for label in match.groups()) == (found.tenant, found.role, found.region, found.name)
    labels = (found.tenant, found.region, found.name)
    assert all(label[0] not in ".-" and label[-1] not in ".-" for label in labels), found
    assert Subject.from_uri(found.uri) == found


def _any(whole: bytes) -> Certificate | None:
    try:
        found = Certificate.from_der(whole)
    except IdentityError:
        return None
    if found.subject is not None:
        uri = found.subject.uri.encode()
        assert der(URI_NAME, uri) in whole, f"{uri!r} is in no name"
        _check(found.subject, uri)
    assert found.is_authority <= found.may_sign
    assert found.pem.startswith("-----BEGIN CERTIFICATE-----")
    assert not vouches(found, found, NOW), "a CA is no node"
    return found


@cache
def _leaf() -> Certificate:
    return Certificate.from_der(certificate([(SAN, NAMES)], signs=True))


def _authority(extensions: list[tuple[bytes, bytes]]) -> None:
    """A CA with these vouches for a node of acme, where its name constraints let it."""
    found = _any(certificate(extensions, signs=True))
    if found is None or not vouches(found, _leaf(), NOW):
        return
    assert found.is_authority
    limits = certificates.extension(x509.load_der_x509_certificate(found.der), x509.NameConstraints)
    uris = [tree.value for tree in (limits and limits.permitted_subtrees) or () if type(tree) is URI_TYPE]
    assert not uris or "acme" in map(str.lower, uris) or any("acme".endswith(uri.lower()) for uri in uris), uris


def _certificate(extensions: list[tuple[bytes, bytes]]) -> None:
    """Who is named is named once: of two URIs of kvwire's none counts."""
    found = _any(certificate(extensions))
    if found is None or found.subject is None:
        return
    names = [value for oid, value in extensions if oid == SAN]
    assert len(names) == 1, "two SANs"
    ours = [at.start() for at in re.finditer(rb"\x86(?=.kvwire:)", names[0], re.DOTALL | re.IGNORECASE)]
    inside = names[0].count(der(URI_NAME, found.subject.uri.encode()))
    assert inside == 1, "named twice"
    assert len(ours) == 1 or b"\x82" in names[0] or b"\x81" in names[0] or b"\xa0" in names[0], names[0]


def _files(data: bytes) -> None:
    """PEM, as it may stand in a file: certificates, or a key."""
    try:
        for each in certificates.parse_certificates(data, Path("fuzz.pem")):
            _any(each.der)
    except IdentityError:
        pass
    try:
        key = certificates.parse_key(data, Path("fuzz.pem"))
        certificates.check_key_fits(key, _leaf(), Path("fuzz.pem"))
    except IdentityError:
        pass


def plant() -> None:
    """Labels that begin as they should, and go on as they like."""

    def is_label(text: object) -> bool:
        return isinstance(text, str) and LABEL.match(text) is not None

    subject.is_label = is_label  # type: ignore[attr-defined]
