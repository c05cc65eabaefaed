"""Identities in a test's own directory, certificates that kvwire-keys would not make, and TLS handshakes in memory."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from kvwire import Authority, Identity, Peer, Subject
from kvwire.security.identity import GROUP

PREFILL = Subject("acme", "prefill", "eu-west", "p1")
DECODE = Subject("acme", "decode", "eu-north", "d1")
OTHER = Subject("globex", "both", "us", "x1")

Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Signer = tuple[x509.Certificate, Key]


def under_one_ca(where: Path, *subjects: Subject) -> list[Path]:
    """A directory of keys for each subject, all from one CA, which is in `where`/ca."""
    authority = Authority.create(where / "ca")
    made = [where / subject.name for subject in subjects]
    for directory, subject in zip(made, subjects, strict=True):
        authority.issue(directory, subject)
    return made


def bare_context(*, trusts: Path | None = None, shows: Path | None = None, server: bool = False) -> ssl.SSLContext:
    """One end, the dialler unless `server`, that is not kvwire's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_ecdh_curve(GROUP)
    if trusts:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(trusts)
    else:
        context.verify_mode = ssl.CERT_NONE
    if shows:
        context.load_cert_chain(shows)
    return context


def handshake(dialler: ssl.SSLContext, acceptor: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a TLS connection that is up. SSLError from whichever end refuses."""
    to_dialler, to_acceptor = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        dialler.wrap_bio(to_dialler, to_acceptor),
        acceptor.wrap_bio(to_acceptor, to_dialler, server_side=True),
    )
    for _ in range(3):  # one round trip and a half
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends


def meet(dialler: Identity, acceptor: Identity) -> tuple[Peer, Peer]:
    """Whom the dialler and the acceptor take each other for."""
    ends = handshake(dialler.context(False), acceptor.context(True))
    seen = [end.getpeercert(True) for end in ends]
    assert seen == [acceptor.certificate, dialler.certificate]
    return dialler.identify(seen[0] or b""), acceptor.identify(seen[1] or b"")


def forge(
    uris: tuple[str, ...] = (PREFILL.uri,),
    *,
    key: Key | None = None,
    issuer: Signer | None = None,
    begins_days: float = -1,
    ends_days: float = 1,
    ca: bool | None = False,
    name: str = "forged",
    extensions: Iterable[x509.ExtensionType] = (),
) -> tuple[bytes, Signer]:
    """A PEM of key and certificate, and both as objects. `ca` None: without basic constraints."""
    own = key or ed25519.Ed25519PrivateKey.generate()
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins_days))
        .not_valid_after(now + timedelta(days=ends_days))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for each in extensions:
        builder = builder.add_extension(each, critical=False)
    signer = issuer[1] if issuer else own
    digest = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    certificate = builder.sign(signer, digest)
    return key_pem(own) + certificate.public_bytes(serialization.Encoding.PEM), (certificate, own)


def certificates_in(pem: bytes) -> bytes:
    """Without the key before them."""
    return pem[pem.index(b"-----BEGIN CERT") :]


def key_pem(key: Key, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def ca_of(directory: Path) -> Signer:
    """Certificate and key of a CA, to forge with."""
    key = serialization.load_pem_private_key((directory / "ca-key.pem").read_bytes(), None)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    return x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes()), key


def put(path: Path, content: bytes, mode: int = 0o600) -> Path:
    """A file that is there at once and as a whole, as whoever replaces a key would do it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.chmod(mode)
    new.replace(path)
    return path
