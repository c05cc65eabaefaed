"""What a node shows of itself and whom it believes: the contexts of its TLS connections, and who a peer is."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from kvwire.errors import AuthenticationFailed, IdentityError
from kvwire.security import files
from kvwire.security.certificates import (
    CA,
    IDENTITY,
    REVOKED,
    Certificate,
    check_key_fits,
    check_leaf,
    check_time,
    parse_certificates,
    parse_key,
    read_authorities,
)
from kvwire.security.pins import PINS, read_pins
from kvwire.security.revocation import read_revoked
from kvwire.security.subject import FORM, Peer, Subject
from kvwire.security.vouching import vouches

ALPN = "kvwire/1"
GROUP = "prime256v1"
"""Of TLS's key agreement, the only one: OpenSSL takes ffdhe8192 too, which costs whoever answers 0.1 s of a core for a
ClientHello that a stranger has copied. `ssl` takes one group, and in older Pythons (3.11.2) none but NIST's curves;
another one is a change here, and of both ends."""

log = logging.getLogger("kvwire")


@dataclass(frozen=True, slots=True)
class _Paths:
    """Where everything is; `ca`, `pins` and `revoked` may be absent unless they are `expected`."""

    certificate: Path
    key: Path
    ca: Path
    pins: Path
    revoked: Path
    expected: frozenset[Path]

    def has(self, path: Path) -> bool:
        return path in self.expected or files.is_there(path)


@dataclass(frozen=True, slots=True)
class _Credentials:
    """What was read at one time, and belongs together."""

    own: Certificate
    subject: Subject
    authorities: tuple[Certificate, ...]
    pins: Mapping[str, Subject]
    server: ssl.SSLContext
    client: ssl.SSLContext


class Identity:
    """A node's certificate and key, the CA or the pinned certificates that it believes, and its revocation list.

    Made by `Identity.load`. What is replaced on disk counts after the next `refresh`.
    """

    def __init__(self, paths: _Paths) -> None:
        self._paths = paths
        # Before files are read, not after: what changes meanwhile is read again.
        self._stamps: tuple[files.Stamp, ...] | None = self._look()
        self._list_stamp: files.Stamp | None = files.stamp(paths.revoked)
        self._unusable = self._list_unusable = ""
        self._credentials = _read_credentials(paths)
        # While pins are trust anchors, that OpenSSL accepts a certificate does not mean that the CA stands behind it.
        # Once they have been, a hand-shake of that time may still be on its way.
        self._pins_were_anchors = bool(self._credentials.pins)
        self._revoked = _read_list(paths.revoked) if paths.has(paths.revoked) else frozenset()

    @classmethod
    def load(
        cls,
        directory: files.Name,
        *,
        certificate: files.Name | None = None,
        key: files.Name | None = None,
        ca: files.Name | None = None,
        pins: files.Name | None = None,
        revoked: files.Name | None = None,
    ) -> Identity:
        """An identity from a directory as kvwire-keys makes it; IdentityError says what is wrong with which file.

        Names are for files that are called otherwise, as in a Kubernetes secret (`certificate="tls.crt", key="tls.key",
        ca="ca.crt"`); absolute ones may lie elsewhere. The certificate's file may hold its chain, and its key too. At
        least one of CA and pins has to be there. A peer has to satisfy either. kvwire-keys always makes a revocation
        list, so there has to be one too, unless `certificate` is named and `revoked` is not.
        """
        where = files.path_of(directory)
        chain = where / files.path_of(certificate or IDENTITY)
        if certificate is None:
            revoked = revoked or REVOKED
        expected = (where / files.path_of(name) for name in (ca, pins, revoked) if name is not None)
        return cls(
            _Paths(
                certificate=chain,
                key=chain if key is None else where / files.path_of(key),
                ca=where / files.path_of(ca or CA),
                pins=where / files.path_of(pins or PINS),
                revoked=where / files.path_of(revoked or REVOKED),
                expected=frozenset(expected),
            )
        )

    @property
    def subject(self) -> Subject:
        """Who this node is."""
        return self._credentials.subject

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of its certificate."""
        return self._credentials.own.fingerprint

    @property
    def certificate(self) -> bytes:
        """Its certificate, DER."""
        return self._credentials.own.der

    @property
    def expires(self) -> datetime:
        """When its certificate does."""
        return self._credentials.own.expires

    def context(self, server: bool) -> ssl.SSLContext:
        """For one more TLS connection. The peer's certificate has then to pass `identify` too."""
        return self._credentials.server if server else self._credentials.client

    def identify(self, der: bytes) -> Peer:
        """Who the peer is whose leaf certificate this is, after a TLS handshake with `context`.

        AuthenticationFailed where it is revoked, is neither pinned nor under the CA, is a CA's own, or says nothing of
        kvwire's, and for everybody while there is a revocation list that cannot be used.
        """
        fingerprint = sha256(der).hexdigest()
        if self._list_unusable:
            raise AuthenticationFailed(f"nobody is believed: {self._list_unusable}")
        if fingerprint in self._revoked:
            raise AuthenticationFailed(f"certificate {fingerprint} is revoked")
        credentials = self._credentials
        if fingerprint in credentials.pins:
            return Peer(credentials.pins[fingerprint], fingerprint)
        try:
            certificate = Certificate.from_der(der)
        except IdentityError as error:
            raise AuthenticationFailed(str(error)) from None
        if certificate.may_sign:  # name constraints are for what a CA issues: they say nothing of its own certificate
            raise AuthenticationFailed(f"certificate {fingerprint} may sign others: it is a CA's and no node's")
        if certificate.subject is None:
            raise AuthenticationFailed(
                f"certificate {fingerprint} is without kvwire's names; expected one SAN URI {FORM}"
            )
        now = datetime.now(UTC)
        if self._pins_were_anchors and not any(vouches(each, certificate, now) for each in credentials.authorities):
            raise AuthenticationFailed(f"certificate {fingerprint} is not pinned, and the CA has not issued it")
        return Peer(certificate.subject, fingerprint)

    def revoked(self, fingerprint: str) -> bool:
        """Whether the revocation list, as last read, names this certificate."""
        return fingerprint in self._revoked

    def refresh(self) -> bool:
        """Read again what has changed on disk; True where something else counts now. Cheap where nothing has.

        Key, certificate, CA and pins are replaced together or, where they cannot be used, not at all. A revocation list
        that cannot be used makes `identify` refuse everybody. Both are logged, once, and tried again each time: the
        next one may find what this one lacked, such as a descriptor.
        """
        return self._refresh_list() | self._refresh_others()

    def _look(self) -> tuple[files.Stamp, ...]:
        paths = self._paths
        return tuple(map(files.stamp, (paths.certificate, paths.key, paths.ca, paths.pins)))

    def _refresh_list(self) -> bool:
        stamp = files.stamp(self._paths.revoked)
        if stamp == self._list_stamp:
            return False
        before = self._revoked, self._list_unusable
        try:  # a list that has vanished, too, cannot be read: it may have named anybody
            self._revoked, self._list_unusable, self._list_stamp = _read_list(self._paths.revoked), "", stamp
        except IdentityError as error:
            self._list_stamp, self._list_unusable = None, str(error)
            if self._list_unusable != before[1]:
                log.warning("no peer is believed until the revocation list can be read: %s", error)
        return (self._revoked, self._list_unusable) != before

    def _refresh_others(self) -> bool:
        stamps = self._look()
        if stamps == self._stamps:
            return False
        before = self._unusable
        try:
            self._credentials, self._unusable, self._stamps = _read_credentials(self._paths), "", stamps
        except IdentityError as error:
            self._stamps, self._unusable = None, str(error)
            if self._unusable != before:
                log.warning("identity, CA and pins stay as they were: %s", error)
            return False
        self._pins_were_anchors |= bool(self._credentials.pins)
        return True


def _read_list(path: Path) -> frozenset[str]:
    found = read_revoked(path)
    files.check_kept(path)
    return found


def _read_credentials(paths: _Paths) -> _Credentials:
    key_pem = files.read(paths.key, private=True)
    chain_pem = key_pem if paths.certificate == paths.key else files.read(paths.certificate)
    now = datetime.now(UTC)
    own = parse_certificates(chain_pem, paths.certificate)[0]
    check_key_fits(parse_key(key_pem, paths.key), own, paths.key)
    check_time(own, paths.certificate, now)
    check_leaf(own, paths.certificate)
    if own.subject is None:
        raise IdentityError(f"{paths.certificate} is without kvwire's names; expected one SAN URI {FORM}")
    authorities = read_authorities(paths.ca) if paths.has(paths.ca) else ()
    if authorities and all(each.expires < now for each in authorities):
        raise IdentityError(f"the CA in {paths.ca} has expired")
    pins = read_pins(paths.pins) if paths.has(paths.pins) else ()
    if not authorities and not pins:
        raise IdentityError(
            f"nobody is trusted: {paths.ca} is not there, and {paths.pins} pins nobody", hint="kvwire-keys pin"
        )
    # What was read counts only if nobody else can have put it there.
    for path in (paths.certificate, paths.key, *filter(paths.has, (paths.ca, paths.pins))):
        files.check_kept(path)
    anchors = [*authorities, *(pin.certificate for pin in pins)]
    pem = chain_pem if chain_pem is key_pem else key_pem + b"\n" + chain_pem
    try:
        server, client = (_context(server, pem, anchors, bool(pins)) for server in (True, False))
    except ssl.SSLError as error:
        raise IdentityError(f"{paths.certificate}: {error.reason or error}") from None
    except OSError as error:  # no descriptor or no memory for `_in_memory`
        raise IdentityError(f"{paths.certificate}: {error.strerror or error}") from None
    subjects = {pin.certificate.fingerprint: pin.subject for pin in pins}
    return _Credentials(own, own.subject, authorities, subjects, server, client)


def _context(server: bool, pem: bytes, anchors: list[Certificate], pinned: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # a peer is known by its names of kvwire's, not by the address that was dialled
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_TICKET
    context.set_ecdh_curve(GROUP)
    if server:
        context.num_tickets = 0
    context.set_alpn_protocols([ALPN])
    context.load_verify_locations(cadata=b"".join(certificate.der for certificate in anchors))
    if pinned:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a pinned leaf ends the chain
    with _in_memory(pem) as name:
        context.load_cert_chain(name)
    return context


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A file name for bytes that were read and checked: `ssl` takes names only, and the file may be another by now."""
    fd = os.memfd_create("kvwire-identity")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
