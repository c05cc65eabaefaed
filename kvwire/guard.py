"""Who may do what at a node, and the log of it: its identity, its policy, what each tenant has under way.

A plain node knows nobody: it lets everybody do everything, and its log says what was done.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING

from kvwire.codecs import Codec
from kvwire.codecs.choice import taken
from kvwire.control import Stream
from kvwire.errors import ConfigError, KvwireError, PolicyError
from kvwire.security import AuditLog, Certificate, Identity, Peer, Policy, Usage
from kvwire.security.schedule import Agreement
from kvwire.security.tls import Tls
from kvwire.types import MAX_ATTACHMENT_BYTES, Manifest
from kvwire.wire import Role

if TYPE_CHECKING:
    from kvwire.incoming import Incoming

ANY = 1 << 20
MOST_PER_S = 20
"""Events of one kind and tenant that are written down one by one, where a peer could fill the disk with them."""


class Guard:
    """Of one node."""

    def __init__(self, identity: Identity | None, policy: Policy, audit: AuditLog | None) -> None:
        """ConfigError for anything else: a node would come up with it, and lose every peer."""
        for name, given, kind in (
            ("identity", identity, Identity),
            ("policy", policy, Policy),
            ("audit", audit, AuditLog),
        ):
            if given is not None and not isinstance(given, kind):
                raise ConfigError(f"{name} is {given!r:.80}; expected a kvwire.{kind.__name__}")
        self._identity = identity
        self._policy = policy
        self._audit = audit
        self.usage = Usage(policy)
        self._some: Counter[tuple[str, str]] = Counter()  # in this second, by event and tenant
        self._second_ends = 0.0

    @property
    def ages(self) -> bool:
        """Whether `refresh` has anything to do."""
        return self._identity is not None or self._audit is not None

    # --- connections ----------------------------------------------------------------------------------------------

    def tls(self, *, server: bool) -> Tls | None:
        """For the next connection; None on a plain node."""
        if self._identity is None:
            return None
        self._identity.refresh()
        return Tls(self._identity.context(server), self._identity.certificate, server=server)

    def admit(self, stream: Stream) -> Peer | None:
        """Who is at the other end. AuthenticationFailed or NotAllowed where this node does not deal with it."""
        if self._identity is None or stream.tls is None:
            return None
        peer = self._identity.identify(stream.tls.peer)
        self._policy.check_peer(self._identity.subject, peer.subject)
        return peer

    def agreement(self, role: Role, stream: Stream, peer: Peer | None) -> Agreement | None:
        """This side's half of the keys of a connection."""
        if self._identity is None or stream.tls is None or peer is None:
            return None
        certificates = stream.tls.own, stream.tls.peer
        if role == "acceptor":
            certificates = certificates[::-1]
        tenants = _tenant(certificates[0]), _tenant(certificates[1])
        return Agreement(role, certificates, tenants, secrets.token_bytes(32))

    def frank(self, peer: Peer | None) -> bool:
        """Whether the peer may know why this node refuses it something."""
        return self._identity is None or peer is None or peer.subject.tenant == self._identity.subject.tenant

    def codecs(self) -> list[Codec]:
        """What peers may send to this node."""
        return taken(self._policy.lossy)

    def refresh(self) -> None:
        """Look whether the files of the identity have changed, and bring the log up to date."""
        self.settle()
        if self._identity is not None:
            self._identity.refresh()

    def revoked(self, peer: Peer | None) -> bool:
        """Whether the peer's certificate has been revoked meanwhile."""
        return self._identity is not None and peer is not None and self._identity.revoked(peer.fingerprint)

    # --- transfers ------------------------------------------------------------------------------------------------

    def check_sending(self, peer: Peer | None, manifest: Manifest) -> None:
        """PolicyError where this node must not offer that to this peer."""
        if self._identity is not None and peer is not None:
            self._policy.check_sending(self._identity.subject, peer.subject, manifest)
        elif manifest.residency:
            raise PolicyError(
                f"this KV may not leave {manifest.residency}, and a plain link does not prove where the peer is",
                hint="seal the link, or leave Manifest.residency out",
            )

    def admit_offer(self, peer: Peer | None, manifest: Manifest) -> None:
        """Count what the peer offers. NotAllowed where it must not offer that, or has too much under way."""
        if self._identity is not None and peer is not None:
            self._policy.check_offer(self._identity.subject, peer.subject, manifest)
            self.usage.add_transfer(peer.subject.tenant, counted_bytes(manifest))

    def granted(self, peer: Peer | None, incoming: Incoming) -> None:
        """Of the bytes of an offer that was admitted only some are wanted."""
        before, incoming._counted_bytes = incoming._counted_bytes, incoming._bytes + _attached(incoming.manifest)
        if peer is not None:
            self.usage.shrink(peer.subject.tenant, before, incoming._counted_bytes)

    def over(self, peer: Peer | None, incoming: Incoming) -> None:
        """An offer that was admitted is over."""
        if peer is not None:
            self.usage.end_transfer(peer.subject.tenant, incoming._counted_bytes)

    def most_links(self, peer: Peer | None) -> int:
        """How many links the peer's tenant may have."""
        most = None if peer is None else self._policy.quota_of(peer.subject.tenant).links
        return ANY if most is None else most

    def lanes_left(self, peer: Peer | None, now: int) -> int:
        """How many lanes more the peer's tenant may have; it has `now`."""
        most = None if peer is None else self._policy.quota_of(peer.subject.tenant).lanes
        return ANY if most is None else max(0, most - now)

    # --- the log --------------------------------------------------------------------------------------------------

    def write(self, event: str, **fields: str | int) -> None:
        """Have something logged, where there is a log."""
        if self._audit is not None:
            self._audit.write(event, **fields)

    def write_some(self, event: str, whose: str, /, **fields: str | int) -> None:
        """As `write`, of what a peer can bring about at will: so many a second of a tenant, the others are counted."""
        now = time.monotonic()
        if now >= self._second_ends:
            self.settle()
            self._second_ends = now + 1.0
        self._some[event, whose] += 1
        if self._some[event, whose] <= MOST_PER_S:
            self.write(event, **fields)

    def settle(self) -> None:
        """Write down how many events were only counted."""
        for (event, tenant), number in self._some.items():
            if number > MOST_PER_S:
                who = {"tenant": tenant} if tenant else {}
                self.write(event, count=number - MOST_PER_S, reason="as many more in this second", **who)
        self._some.clear()

    def refused(self, address: str, error: KvwireError) -> None:
        """Somebody got no link, for that reason."""
        self.write_some("link_refused", "", address=address, error=type(error).__name__, reason=str(error))


def _attached(manifest: Manifest) -> int:
    return MAX_ATTACHMENT_BYTES if manifest.attachment else 0


def counted_bytes(manifest: Manifest) -> int:
    """What an offer counts against a quota until it is granted."""
    return manifest.nbytes + _attached(manifest)


def _tenant(certificate: bytes) -> str:
    """The tenant that a certificate names. Both sides read it alike, whereas a pin may say something else on one."""
    subject = Certificate.from_der(certificate).subject
    return subject.tenant if subject else ""
