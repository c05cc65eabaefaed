"""The key schedule of a link: from two HELLOs and an ephemeral agreement to the secrets of its lanes.

    th          = SHA-256(L("kvwire transcript 1"), L(dialler's HELLO), L(acceptor's HELLO),
                          L(dialler's certificate key), L(acceptor's certificate key))
    master      = HKDF-Extract(salt = th, X25519(...) || dialler's random || acceptor's random)
    finished    = HMAC(Expand(master, L("kvwire finished"), L(role)), th)
    join secret = Expand(master, L("kvwire join"))
    lane secret = Expand(Expand(master, L("kvwire lanes")), L("kvwire lane"), L(role that sends), L(dialler's tenant),
                         L(acceptor's tenant), L(lane), L(incarnation), L(acceptor's random), L(dialler's random))

HKDF and HMAC with SHA-256 (RFC 5869, RFC 2104), X25519 (RFC 7748); every output has 32 bytes. A HELLO counts as it went
over the wire; a certificate key is its SubjectPublicKeyInfo in DER; L(x) is the length of x as u16, then x; numbers are
u32; all little-endian. How a lane goes on from its secret is written in `kvwire/_ext/cipher.pyx`.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kvwire.errors import ProtocolError
from kvwire.wire.keys import LaneSecrets, Role, framed

SECRET_BYTES = 32


def certificate_key(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a certificate, both in DER."""
    key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _expand(secret: bytes, *fields: bytes) -> bytes:
    return HKDFExpand(SHA256(), SECRET_BYTES, framed(*fields)).derive(secret)


class Keys:
    """What both sides of a link have after the agreement (`kvwire.wire.keys.LinkKeys`)."""

    def __init__(self, role: Role, tenants: tuple[str, str], th: bytes, master: bytes) -> None:
        self._role = role
        self._tenants = tenants
        self._th = th
        self._finished = {side: _expand(master, b"kvwire finished", side.encode()) for side in ("dialler", "acceptor")}
        self._lanes = _expand(master, b"kvwire lanes")
        self.join_secret = _expand(master, b"kvwire join")

    def finished(self, role: Role) -> bytes:
        """The MAC by which that side shows that it has the same keys and has heard the same HELLOs."""
        return hmac.digest(self._finished[role], self._th, "sha256")

    def lane(self, lane: int, incarnation: int, acceptor_random: bytes, dialler_random: bytes) -> LaneSecrets:
        """The secrets of a lane: what this side sends under, what it receives under."""
        numbers = lane.to_bytes(4, "little"), incarnation.to_bytes(4, "little")
        tenants = (tenant.encode() for tenant in self._tenants)
        common = (*tenants, *numbers, acceptor_random, dialler_random)
        dialler, acceptor = (_expand(self._lanes, b"kvwire lane", side, *common) for side in (b"dialler", b"acceptor"))
        return (dialler, acceptor) if self._role == "dialler" else (acceptor, dialler)


class Agreement:
    """One side's half of an agreement, good for one connection (`kvwire.wire.keys.KeyAgreement`).

    `certificates`, `tenants`: the dialler's, then the acceptor's; certificates in DER. `private`: 32 random bytes.
    """

    def __init__(self, role: Role, certificates: tuple[bytes, bytes], tenants: tuple[str, str], private: bytes) -> None:
        self._role: Role = role
        self._certificates = certificates
        self._tenants = tenants
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.share = self._private.public_key().public_bytes_raw()

    def agree(self, ours: bytes, theirs: bytes, our_random: bytes, their_random: bytes, share: bytes) -> Keys:
        """The keys. ProtocolError for a share that is no key, or one that gives the same secret to everybody."""
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(share))
        except ValueError:  # of another length; or the secret would be all zero (RFC 7748, section 6.1)
            raise ProtocolError("the peer's share gives no secret") from None
        hellos, randoms = (ours, theirs), (our_random, their_random)
        if self._role == "acceptor":
            hellos, randoms = hellos[::-1], randoms[::-1]
        keys = map(certificate_key, self._certificates)
        th = hashlib.sha256(framed(b"kvwire transcript 1", *hellos, *keys)).digest()
        master = hmac.digest(th, shared + b"".join(randoms), "sha256")
        return Keys(self._role, self._tenants, th, master)
