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

from kvwire.errors import NotKvwire, ProtocolError, VersionMismatch

WIRE_VERSION = 1
PREAMBLE_BYTES = 8
PLAIN = 1
"""Flag: frames on this link carry CRC32C and are not encrypted."""

_PREAMBLE = struct.Struct("<4sHH")
_JOIN = struct.Struct("<16sII32s32s")
JOIN_BYTES = _JOIN.size
"""What follows a lane's preamble: link id, lane, incarnation, the dialler's random, MAC."""


class ConnectionKind(enum.Enum):
    """What a connection is for; the value is its magic."""

    CONTROL = b"KVWC"
    LANE = b"KVWL"


def preamble(kind: ConnectionKind, version: int = WIRE_VERSION) -> bytes:
    """First 8 bytes of a plain connection: magic, version u16, flags u16, little-endian."""
    return _PREAMBLE.pack(kind.value, version, PLAIN)


def control_preamble() -> bytes:
    """What both sides send first on a control connection."""
    return preamble(ConnectionKind.CONTROL)


def _looks_like(first: bytes) -> str:
    if first.startswith((b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"HTTP", b"PRI ")):
        return "HTTP"
    if first[:1] == b"\x16" and first[1:2] == b"\x03":
        return "TLS"
    if first.startswith(b"SSH-"):
        return "SSH"
    return "something else"


def classify(first: bytes) -> ConnectionKind:
    """What a connection that begins with these 8 bytes is for.

    NotKvwire says what it looks like; VersionMismatch names both versions; ProtocolError where the flags ask for
    what this node does not do.
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
    if flags != PLAIN:
        raise ProtocolError(f"the peer asks for a link with flags {flags:#x}; this side is plain ({PLAIN:#x})")
    return kind


@dataclass(frozen=True, slots=True)
class Join:
    """A lane's request to join a link."""

    link_id: bytes
    lane: int
    incarnation: int
    random: bytes
    mac: bytes


def _join_mac(secret: bytes, link_id: bytes, lane: int, incarnation: int, random: bytes) -> bytes:
    """HMAC-SHA256 over label and fields, each preceded by its length so that none can run into the next."""
    fields = (b"kvwire join 1", link_id, lane.to_bytes(4, "little"), incarnation.to_bytes(4, "little"), random)
    text = b"".join(len(field).to_bytes(2, "little") + field for field in fields)
    return hmac.new(secret, text, hashlib.sha256).digest()


def join_bytes(link_id: bytes, lane: int, incarnation: int, random: bytes, secret: bytes) -> bytes:
    """Preamble and JOIN of a lane: everything it sends before its first frame."""
    mac = _join_mac(secret, link_id, lane, incarnation, random)
    return preamble(ConnectionKind.LANE) + _JOIN.pack(link_id, lane, incarnation, random, mac)


def parse_join(body: bytes) -> Join:
    """The JOIN_BYTES after a lane's preamble. ProtocolError for another number of bytes."""
    if len(body) != JOIN_BYTES:
        raise ProtocolError(f"a lane's JOIN has {len(body)} bytes; expected {JOIN_BYTES}")
    return Join(*_JOIN.unpack(body))


def verify_join(join: Join, secret: bytes) -> None:
    """ProtocolError unless the MAC was made with the ticket's secret."""
    expected = _join_mac(secret, join.link_id, join.lane, join.incarnation, join.random)
    if not hmac.compare_digest(expected, join.mac):
        raise ProtocolError("a lane's MAC does not fit its ticket")
