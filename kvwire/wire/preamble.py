"""The first bytes of a connection: what it is for, and, for a lane, the right to join.

Control connections and lanes share one listener. Both begin with 8 bytes, so that a stranger (HTTP, TLS, noise)
is told apart at once, and a node of another version can say which it speaks.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from dataclasses import dataclass

from kvwire.errors import ModeMismatch, NotKvwire, ProtocolError, VersionMismatch
from kvwire.wire.keys import framed

WIRE_VERSION = 1
PREAMBLE_BYTES = 8
PLAIN = 1
"""Flag: frames on this link carry CRC32C and are not encrypted."""
SEALED = 2
"""Flag: TLS follows, and frames are sealed."""

_PREAMBLE = struct.Struct("<4sHH")
_JOIN = struct.Struct("<16sII32s32s")
JOIN_BYTES = _JOIN.size
"""What follows a lane's preamble: link id, lane, incarnation, the dialler's random, MAC."""
NO_JOIN_SECRET = b""
"""Of a plain link, on which the ticket's random is all that a stranger lacks."""


class ConnectionKind(enum.Enum):
    """What a connection is for; the value is its magic."""

    CONTROL = b"KVWC"
    LANE = b"KVWL"


def preamble(kind: ConnectionKind, *, plain: bool, version: int = WIRE_VERSION) -> bytes:
    """First 8 bytes of a connection: magic, version u16, flags u16, little-endian."""
    return _PREAMBLE.pack(kind.value, version, PLAIN if plain else SEALED)


def control_preamble(*, plain: bool) -> bytes:
    """What both sides send first on a control connection."""
    return preamble(ConnectionKind.CONTROL, plain=plain)


def _looks_like(first: bytes) -> str:
    if first.startswith((b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"HTTP", b"PRI ")):
        return "HTTP"
    if first[:1] == b"\x16" and first[1:2] == b"\x03":
        return "TLS"
    if first.startswith(b"SSH-"):
        return "SSH"
    return "something else"


def classify(first: bytes, *, plain: bool) -> ConnectionKind:
    """What a connection that begins with these 8 bytes is for.

    NotKvwire says what it looks like; VersionMismatch names both versions; ModeMismatch where one side is plain and
    the other one is not; ProtocolError for flags that nobody knows.
    """
    if len(first) != PREAMBLE_BYTES:
        raise NotKvwire(f"this is {_looks_like(first)}, not kvwire; {len(first)} bytes came, {first!r:.80}")
    magic, version, flags = _PREAMBLE.unpack(first)
    try:
        kind = ConnectionKind(magic)
    except ValueError:
        raise NotKvwire(f"this is {_looks_like(first)}, not kvwire; it begins with {first!r}") from None
    if version != WIRE_VERSION:
        raise VersionMismatch(
            f"the peer speaks wire version {version}, this side {WIRE_VERSION}", hint="install one kvwire on both"
        )
    if flags not in (PLAIN, SEALED):
        raise ProtocolError(f"the peer asks for a link with flags {flags:#x}; known are {PLAIN:#x} and {SEALED:#x}")
    if flags != (PLAIN if plain else SEALED):
        here, there = ("plain", "sealed") if plain else ("sealed", "plain")
        raise ModeMismatch(
            f"this side is {here} and the peer is {there}; nothing was sent",
            hint="Config.plain has to be the same on both",
        )
    return kind


@dataclass(frozen=True, slots=True)
class Join:
    """A lane's request to join a link."""

    link_id: bytes
    lane: int
    incarnation: int
    random: bytes
    mac: bytes


def _join_mac(join_secret: bytes, ticket: bytes, join: Join) -> bytes:
    """HMAC-SHA256 under the link's join secret over a label, the ticket's random, and all that a JOIN says."""
    lane, incarnation = join.lane.to_bytes(4, "little"), join.incarnation.to_bytes(4, "little")
    text = framed(b"kvwire join 1", ticket, join.link_id, lane, incarnation, join.random)
    return hmac.new(join_secret, text, hashlib.sha256).digest()


def join_bytes(
    link_id: bytes, lane: int, incarnation: int, random: bytes, ticket: bytes, join_secret: bytes = NO_JOIN_SECRET
) -> bytes:
    """Preamble and JOIN of a lane: everything it sends before its first frame. `ticket`: the random of its ticket."""
    mac = _join_mac(join_secret, ticket, Join(link_id, lane, incarnation, random, b""))
    first = preamble(ConnectionKind.LANE, plain=join_secret == NO_JOIN_SECRET)
    return first + _JOIN.pack(link_id, lane, incarnation, random, mac)


def parse_join(body: bytes) -> Join:
    """The JOIN_BYTES after a lane's preamble. ProtocolError for another number of bytes."""
    if len(body) != JOIN_BYTES:
        raise ProtocolError(f"a lane's JOIN has {len(body)} bytes; expected {JOIN_BYTES}")
    return Join(*_JOIN.unpack(body))


def verify_join(join: Join, ticket: bytes, join_secret: bytes = NO_JOIN_SECRET) -> None:
    """ProtocolError unless the MAC was made with the ticket's random and the link's join secret."""
    if not hmac.compare_digest(_join_mac(join_secret, ticket, join), join.mac):
        raise ProtocolError("a lane's MAC does not fit its ticket")
