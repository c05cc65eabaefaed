"""What a sealed session asks of whoever knows keys (`kvwire.security.schedule`), and how fields are hashed."""

from __future__ import annotations

from typing import Literal, Protocol

Role = Literal["dialler", "acceptor"]

PLAIN_SUITE = "crc32c"
SEALED_SUITE = "aes-256-gcm"
"""What protects the frames of a link's lanes. HELLO lists those that a side takes; so far each takes exactly one."""

LaneSecrets = tuple[bytes, bytes]
"""Of one lane and incarnation: the secret that this side sends under and the one it receives under, 32 bytes each."""


class LinkKeys(Protocol):
    """What both sides have once they have heard each other's HELLO."""

    join_secret: bytes

    def finished(self, role: Role) -> bytes:
        """The MAC by which that side shows that it has the same keys and has heard the same HELLOs."""

    def lane(self, lane: int, incarnation: int, acceptor_random: bytes, dialler_random: bytes) -> LaneSecrets:
        """The secrets of a lane."""


class KeyAgreement(Protocol):
    """One side's half of an agreement on keys, good for one connection."""

    share: bytes
    """The public half of an ephemeral X25519 key."""

    def agree(self, ours: bytes, theirs: bytes, our_random: bytes, their_random: bytes, share: bytes) -> LinkKeys:
        """The keys, from both HELLOs as they went over the wire, what they say, and the peer's share.

        ProtocolError for a share that gives no secret.
        """


def framed(*fields: bytes) -> bytes:
    """Fields as they are hashed: each preceded by its length, u16 little-endian, so that none can run into the next."""
    return b"".join(len(field).to_bytes(2, "little") + field for field in fields)
