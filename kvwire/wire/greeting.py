"""What is said before there is a session: HELLO, as whoever is dialled reads it, and a good-bye to who gets none."""

from __future__ import annotations

from kvwire.errors import AuthenticationFailed, LinkLost, ProtocolError
from kvwire.wire import schema, states

GREETING_BYTES = 4096
"""Largest message before the peer has said hello."""

SAID_BEFORE = {
    states.Session.GREETING: schema.Hello | schema.Goodbye,
    states.Session.CONFIRMING: schema.Finished | schema.LaneTicket | schema.LaneClosed | schema.Goodbye,
}
"""What may be said before a session is open."""
BEFORE_OPEN = SAID_BEFORE[states.Session.GREETING] | SAID_BEFORE[states.Session.CONFIRMING]


def greeting_bytes(length: bytes) -> int:
    """How long a HELLO is, from its first LENGTH_BYTES. ProtocolError where that is too much."""
    count = int.from_bytes(length, "little")
    if count > GREETING_BYTES:
        raise ProtocolError(f"a greeting of {count} bytes; at most {GREETING_BYTES} are allowed")
    return count


def parse_hello(data: bytes) -> schema.Hello:
    """A whole HELLO, length included. ProtocolError for anything else."""
    message = schema.decode(data[schema.LENGTH_BYTES :])
    if not isinstance(message, schema.Hello):
        raise ProtocolError(f"{message.TYPE} before hello")
    return message


def goodbye(code: str, reason: str) -> bytes:
    """What to say to a peer that gets no session."""
    return schema.encode(schema.Goodbye(code, schema.clip(reason)))


def unheard(error: LinkLost) -> AuthenticationFailed:
    """What a dialler makes of a sealed connection that is lost before the acceptor's HELLO: who is refused is told no
    more, but it had seen the acceptor's certificate, and shown its own."""
    return AuthenticationFailed(
        f"{error}; it may not believe this node's certificate, or not allow it: see its audit log"
    )
