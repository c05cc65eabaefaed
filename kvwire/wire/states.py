"""The states of a session and of a transfer, as tables that documentation and tests read.

A row is (state, what happens) -> next state. What is not in a table is not allowed there.
"""

from __future__ import annotations

import enum


class Session(enum.Enum):
    """A control connection."""

    GREETING = "greeting"
    CONFIRMING = "confirming"
    """Sealed: keys are agreed on, and the peer has not shown yet that it has the same."""
    OPEN = "open"
    SUSPENDED = "suspended"
    """The connection was lost; transfers wait for another one."""
    CLOSED = "closed"


SESSION: dict[tuple[Session, str], Session] = {
    (Session.GREETING, "recv hello"): Session.OPEN,
    (Session.GREETING, "recv sealed hello"): Session.CONFIRMING,
    (Session.GREETING, "recv goodbye"): Session.CLOSED,
    (Session.GREETING, "time out"): Session.CLOSED,
    (Session.GREETING, "fail"): Session.CLOSED,
    (Session.GREETING, "close"): Session.CLOSED,
    (Session.CONFIRMING, "recv finished"): Session.OPEN,
    (Session.CONFIRMING, "recv goodbye"): Session.CLOSED,
    (Session.CONFIRMING, "time out"): Session.CLOSED,
    (Session.CONFIRMING, "fail"): Session.CLOSED,
    (Session.CONFIRMING, "close"): Session.CLOSED,
    # Of a session that was open before, and is resumed.
    (Session.GREETING, "lose"): Session.SUSPENDED,
    (Session.CONFIRMING, "lose"): Session.SUSPENDED,
    (Session.OPEN, "recv goodbye"): Session.CLOSED,
    (Session.OPEN, "fail"): Session.CLOSED,
    (Session.OPEN, "close"): Session.CLOSED,
    (Session.OPEN, "lose"): Session.SUSPENDED,
    (Session.SUSPENDED, "resume"): Session.GREETING,
    (Session.SUSPENDED, "time out"): Session.CLOSED,
    (Session.SUSPENDED, "close"): Session.CLOSED,
}


class Transfer(enum.Enum):
    """A transfer as the control plane sees it; cells, commit and receipt are the data plane's."""

    OFFERED = "offered"
    ACTIVE = "active"
    DRAINING = "draining"
    """This side gave it up; the peer's memory may not be quiet yet."""
    QUIETING = "quieting"
    """The peer gave it up; this side's memory may not be quiet yet."""
    OVER = "over"


_ENDING: dict[tuple[Transfer, str], Transfer] = {
    (Transfer.OFFERED, "abort"): Transfer.DRAINING,
    (Transfer.OFFERED, "time out"): Transfer.DRAINING,
    (Transfer.OFFERED, "recv abort"): Transfer.QUIETING,
    (Transfer.ACTIVE, "abort"): Transfer.DRAINING,
    (Transfer.ACTIVE, "time out"): Transfer.DRAINING,
    (Transfer.ACTIVE, "recv abort"): Transfer.QUIETING,
    (Transfer.ACTIVE, "done"): Transfer.OVER,
    # The data plane had committed when the control plane gave up.
    (Transfer.DRAINING, "done"): Transfer.DRAINING,
    (Transfer.DRAINING, "recv drained"): Transfer.OVER,
    (Transfer.DRAINING, "time out"): Transfer.OVER,
    # Both gave up at once: each still owes the other a DRAINED.
    (Transfer.DRAINING, "recv abort"): Transfer.QUIETING,
    (Transfer.QUIETING, "recv drained"): Transfer.QUIETING,
    (Transfer.QUIETING, "done"): Transfer.QUIETING,
    (Transfer.QUIETING, "drained"): Transfer.OVER,
    # The connection was lost. Nothing on this side depends on a DRAINED.
    (Transfer.OFFERED, "lose"): Transfer.OFFERED,
    (Transfer.ACTIVE, "lose"): Transfer.ACTIVE,
    (Transfer.DRAINING, "lose"): Transfer.OVER,
    (Transfer.QUIETING, "lose"): Transfer.OVER,
    # The peer is back and has no such transfer under way.
    (Transfer.OFFERED, "recv over"): Transfer.OVER,
    (Transfer.ACTIVE, "recv over"): Transfer.OVER,
}
"""How a transfer ends, on either side, or outlives its connection."""

OUTGOING: dict[tuple[Transfer, str], Transfer] = _ENDING | {
    (Transfer.OFFERED, "recv grant"): Transfer.ACTIVE,
    (Transfer.OFFERED, "recv refuse"): Transfer.OVER,
    # The peer has restarted: it is offered once more.
    (Transfer.OFFERED, "start over"): Transfer.OFFERED,
    (Transfer.ACTIVE, "start over"): Transfer.OFFERED,
    # A grant or a refusal may have crossed our abort.
    (Transfer.DRAINING, "recv grant"): Transfer.DRAINING,
    (Transfer.DRAINING, "recv refuse"): Transfer.OVER,
}
"""The side that offers."""

INCOMING: dict[tuple[Transfer, str], Transfer] = _ENDING | {
    (Transfer.OFFERED, "grant"): Transfer.ACTIVE,
    (Transfer.OFFERED, "refuse"): Transfer.OVER,
    # Our abort crossed the peer's RESUME.
    (Transfer.DRAINING, "recv over"): Transfer.OVER,
}
"""The side that receives."""
