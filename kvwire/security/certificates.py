"""Certificates: what kvwire reads in one, and how kvwire-keys makes them."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kvwire.errors import IdentityError
from kvwire.security import files
from kvwire.security.subject import SCHEME, Subject
from kvwire.types import LABEL_RULE, is_label

IDENTITY = "identity.pem"
"""Key and certificate in one file, so that one rename replaces both."""
CERTIFICATE = "certificate.pem"
CA = "ca.pem"
CA_KEY = "ca-key.pem"
REVOKED = "revoked.txt"

DAYS = 90
CA_DAYS = 3650
MOST_DAYS = 36500
BACKDATED = timedelta(minutes=5)
"""A peer's clock may be behind ours by this much."""

NETSCAPE_TYPE = x509.ObjectIdentifier("2.16.840.1.113730.1.1")
"""Older than basic constraints, and still believed by OpenSSL where there are none."""

NO_LIST = b"# SHA-256 of revoked certificates, one a line.\n"

_NOT_A_KEY = (ValueError, UnsupportedAlgorithm, InternalError)
"""What `cryptography` raises of keys that are none. The last: OpenSSL refused for a reason that it does not know."""

_NOT_A_CERTIFICATE = (
    *_NOT_A_KEY,
    TypeError,  # of an extension whose content is of another kind, such as a name constraint of one IP address
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for DER that somebody else has made."""

Extension = TypeVar("Extension", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What kvwire reads in a certificate, `der`. It is valid from `begins` to `expires`, UTC.

    `fingerprint` is SHA-256 (hex) of the whole. `subject` is None unless there is exactly one SAN URI with kvwire's
    scheme, and it is well-formed. `is_authority`: whether it says that it may issue others; `may_sign`: whether
    OpenSSL might let it.
    """

    der: bytes
    fingerprint: str
    subject: Subject | None
    begins: datetime
    expires: datetime
    is_authority: bool
    may_sign: bool

    @classmethod
    def from_der(cls, der: bytes) -> Certificate:
        """IdentityError where this is no certificate."""
        try:
            found = x509.load_der_x509_certificate(der)
            return cls(
                der=der,
                fingerprint=sha256(der).hexdigest(),
                subject=_subject(found),
                begins=found.not_valid_before_utc,
                expires=found.not_valid_after_utc,
                is_authority=_is_authority(found),
                may_sign=_may_sign(found),
            )
        except _NOT_A_CERTIFICATE as error:
            if isinstance(error, IdentityError):
                raise
            raise IdentityError(f"a certificate that cannot be read: {error}") from None

    @property
    def pem(self) -> str:
        """The same in PEM."""
        return x509.load_der_x509_certificate(self.der).public_bytes(serialization.Encoding.PEM).decode()

    def is_issued_by(self, authority: Certificate) -> bool:
        """Whether the authority's key has signed this one, directly."""
        try:
            x509.load_der_x509_certificate(self.der).verify_directly_issued_by(
                x509.load_der_x509_certificate(authority.der)
            )
        except (InvalidSignature, *_NOT_A_CERTIFICATE):
            return False
        return True


def extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    """The one of this kind, where there is one."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _subject(certificate: x509.Certificate) -> Subject | None:
    names = extension(certificate, x509.SubjectAlternativeName)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    ours = [uri for uri in uris if uri.lower().startswith(f"{SCHEME}:")]
    if len(ours) != 1:
        return None
    try:
        return Subject.from_uri(ours[0])
    except IdentityError:
        return None


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints = extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def _may_sign(certificate: x509.Certificate) -> bool:
    """As OpenSSL's `check_ca` sees it, which goes by older signs where there are no basic constraints; or more."""
    usage = extension(certificate, x509.KeyUsage)
    if _is_authority(certificate) or (usage is not None and usage.key_cert_sign):
        return True
    if extension(certificate, x509.BasicConstraints) is not None:
        return False
    return certificate.version is x509.Version.v1 or any(each.oid == NETSCAPE_TYPE for each in certificate.extensions)


# --- reading ----------------------------------------------------------------------------------------------------------


def parse_certificates(pem: bytes, path: Path) -> tuple[Certificate, ...]:
    """The certificates of a PEM file, a chain's leaf first; IdentityError where there is none."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except _NOT_A_CERTIFICATE:
        raise IdentityError(f"{path} has no certificate in PEM") from None
    return tuple(Certificate.from_der(each.public_bytes(serialization.Encoding.DER)) for each in found)


def read_certificates(path: Path) -> tuple[Certificate, ...]:
    """The same, of a file."""
    return parse_certificates(files.read(path), path)


def read_authorities(path: Path) -> tuple[Certificate, ...]:
    """The certificates of a CA file. IdentityError where one of them may issue none: it would be trusted by itself."""
    found = read_certificates(path)
    for certificate in found:
        if not certificate.is_authority:
            raise IdentityError(f"{path} holds a certificate that is no CA's: {certificate.fingerprint}")
    return found


def check_leaf(certificate: Certificate, where: files.Name) -> None:
    """IdentityError where a node's certificate could be used to issue others."""
    if certificate.may_sign:
        raise IdentityError(
            f"{os.fspath(where)}: certificate {certificate.fingerprint} may sign others, as only a CA's should",
            hint="make one that may not, as with openssl req -x509 ... -addext basicConstraints=critical,CA:FALSE",
        )


def parse_key(pem: bytes, path: Path) -> PrivateKeyTypes:
    """The private key of a PEM file."""
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise IdentityError(f"the key in {path} is encrypted; kvwire asks for no passphrase") from None
    except _NOT_A_KEY:
        raise IdentityError(f"{path} has no private key in PEM") from None


def check_key_fits(key: PrivateKeyTypes, certificate: Certificate, path: Path) -> None:
    """IdentityError where the key is not the certificate's."""
    try:
        certified = x509.load_der_x509_certificate(certificate.der).public_key()
    except _NOT_A_CERTIFICATE as error:
        raise IdentityError(f"a certificate whose key cannot be read: {error}") from None
    if key.public_key() != certified:
        raise IdentityError(f"the key in {path} is not that of the certificate")


def check_time(certificate: Certificate, path: Path, now: datetime) -> None:
    """IdentityError where the certificate does not count yet, or no longer."""
    if now < certificate.begins:
        raise IdentityError(f"the certificate in {path} is not valid before {certificate.begins:%Y-%m-%d %H:%M} UTC")
    if now > certificate.expires:
        raise IdentityError(f"the certificate in {path} has expired at {certificate.expires:%Y-%m-%d %H:%M} UTC")


# --- making -----------------------------------------------------------------------------------------------------------


class Authority:
    """A CA of one's own: `ca.pem`, and `ca-key.pem` that only its owner may read, in one directory."""

    def __init__(self, certificate: Certificate, key: Ed25519PrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(
        cls,
        directory: files.Name,
        *,
        tenants: Collection[str] = (),
        days: int = CA_DAYS,
        now: datetime | None = None,
    ) -> Authority:
        """A new CA. With `tenants`, its certificates count for those tenants only, whoever trusts it (RFC 5280 name
        constraints). IdentityError where there is one in the directory already, or it cannot be written."""
        where = files.path_of(directory)
        for tenant in tenants:
            if not is_label(tenant):
                raise IdentityError(f"tenant is {tenant!r:.80}; expected {LABEL_RULE}")
        key = Ed25519PrivateKey.generate()
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        name = _name(f"kvwire CA {identifier.digest.hex()[:16]}")
        builder = (
            _builder(name, name, key, _period(days, now))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(issues=True), critical=True)
            .add_extension(identifier, critical=False)
        )
        if tenants:
            permitted = [x509.UniformResourceIdentifier(tenant) for tenant in tenants]
            builder = builder.add_extension(x509.NameConstraints(permitted, None), critical=True)
        certificate = _signed(builder, key)
        with files.key_directory(where, make=True):
            files.check_absent(where / CA_KEY, where / CA)
            files.write(where / CA_KEY, _key_pem(key), files.PRIVATE)
            files.write(where / CA, certificate.pem.encode(), files.PUBLIC)
        return cls(certificate, key)

    @classmethod
    def load(cls, directory: files.Name) -> Authority:
        """The CA of a directory. IdentityError where there is none that can be used."""
        where = files.path_of(directory)
        certificate = read_authorities(where / CA)[0]
        key = parse_key(files.read(where / CA_KEY, private=True), where / CA_KEY)
        check_key_fits(key, certificate, where / CA_KEY)
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError(f"the key in {where / CA_KEY} is no Ed25519 key, so this CA is not one of kvwire's")
        return cls(certificate, key)

    def issue(
        self,
        directory: files.Name,
        subject: Subject,
        *,
        days: int = DAYS,
        replace: bool = False,
        now: datetime | None = None,
    ) -> Certificate:
        """A new key and a certificate for it, written as `Identity.load` reads them. It expires no later than the CA.

        `replace`: over an identity that is there, by one rename; what the directory trusts stays as it is. Without it
        IdentityError where there is one.
        """
        _check_subject(subject)
        begins, expires = _period(days, now)
        check_time(self.certificate, Path(CA), begins + BACKDATED)
        issuer = x509.load_der_x509_certificate(self.certificate.der)
        key = Ed25519PrivateKey.generate()
        period = begins, min(expires, self.certificate.expires)
        certificate = _signed(_leaf(subject, issuer.subject, key, self._key, period), self._key)
        where = files.path_of(directory)
        with files.key_directory(where, make=True):
            if not replace:
                files.check_absent(where / IDENTITY)
                _write_trust(where / CA, self.certificate.pem.encode())
            _write_identity(where, key, certificate)
        return certificate


def self_signed(
    directory: files.Name,
    subject: Subject,
    *,
    days: int = DAYS,
    replace: bool = False,
    now: datetime | None = None,
) -> Certificate:
    """A key and a certificate that no CA has signed, for peers that pin it. Written as by `Authority.issue`."""
    _check_subject(subject)
    key = Ed25519PrivateKey.generate()
    certificate = _signed(_leaf(subject, _name(subject.name), key, key, _period(days, now)), key)
    where = files.path_of(directory)
    with files.key_directory(where, make=True):
        if not replace:
            files.check_absent(where / IDENTITY)
        _write_identity(where, key, certificate)
    return certificate


def _check_subject(subject: object) -> None:
    if not isinstance(subject, Subject):
        raise IdentityError(f"subject is {subject!r:.80}; expected a Subject")


def _write_trust(path: Path, pem: bytes) -> None:
    """The CA beside an identity. One that is there already stays: who is trusted is not for `issue` to change."""
    if not files.is_there(path):
        files.write(path, pem, files.PUBLIC)
    elif files.read(path) != pem:
        raise IdentityError(f"{path} is another CA's", hint="choose another directory")


def _write_identity(where: Path, key: Ed25519PrivateKey, certificate: Certificate) -> None:
    pem = certificate.pem.encode()
    files.write(where / IDENTITY, _key_pem(key) + pem, files.PRIVATE)
    files.write(where / CERTIFICATE, pem, files.PUBLIC)
    if not files.is_there(where / REVOKED):
        files.write(where / REVOKED, NO_LIST, files.PUBLIC)


def _leaf(
    subject: Subject,
    issuer: x509.Name,
    key: Ed25519PrivateKey,
    issuer_key: Ed25519PrivateKey,
    period: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    return (
        _builder(_name(subject.name), issuer, key, period)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(issues=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(subject.uri)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PrivateKey, period: tuple[datetime, datetime]
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(period[0])
        .not_valid_after(period[1])
    )


def _period(days: int, now: datetime | None) -> tuple[datetime, datetime]:
    if not 1 <= days <= MOST_DAYS:
        raise IdentityError(f"days is {days!r}; expected 1 to {MOST_DAYS}")
    present = now or datetime.now(UTC)
    return present - BACKDATED, present + timedelta(days=days)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_usage(*, issues: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not issues,
        key_cert_sign=issues,
        crl_sign=issues,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(builder: x509.CertificateBuilder, key: Ed25519PrivateKey) -> Certificate:
    return Certificate.from_der(builder.sign(key, None).public_bytes(serialization.Encoding.DER))


def _key_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
