"""The control protocol: pure. Schema, framing, state tables, session, and the first bytes of a connection."""

from kvwire.wire.events import (
    Aborted,
    Closed,
    Drained,
    Event,
    Granted,
    HelloDone,
    LaneClosed,
    LanesWanted,
    Offered,
    OfferTimedOut,
    Refused,
    Ticket,
    TransferTimedOut,
)
from kvwire.wire.manifest import check_grant
from kvwire.wire.preamble import (
    JOIN_BYTES,
    PREAMBLE_BYTES,
    WIRE_VERSION,
    ConnectionKind,
    classify,
    control_preamble,
    join_bytes,
    parse_join,
)
from kvwire.wire.session import Role, Session

__all__ = [
    "JOIN_BYTES",
    "PREAMBLE_BYTES",
    "WIRE_VERSION",
    "Aborted",
    "Closed",
    "ConnectionKind",
    "Drained",
    "Event",
    "Granted",
    "HelloDone",
    "LaneClosed",
    "LanesWanted",
    "OfferTimedOut",
    "Offered",
    "Refused",
    "Role",
    "Session",
    "Ticket",
    "TransferTimedOut",
    "check_grant",
    "classify",
    "control_preamble",
    "join_bytes",
    "parse_join",
]
