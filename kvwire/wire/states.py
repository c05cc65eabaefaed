"""The states of a session and of a transfer, as tables that documentation and tests read.

A row is (state, what happens) -> next state. What is not in a table is not allowed there.
"""

from __future__ import annotations

import enum


class Session(enum.Enum):
    """A control connection."""

    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


SESSION: dict[tuple[Session, str], Session] = {
    (Session.GREETING, "recv hello"): Session.OPEN,
    (Session.GREETING, "recv goodbye"): Session.CLOSED,
    (Session.GREETING, "time out"): Session.CLOSED,
    (Session.GREETING, "fail"): Session.CLOSED,
    (Session.GREETING, "close"): Session.CLOSED,
    (Session.OPEN, "recv goodbye"): Session.CLOSED,
    (Session.OPEN, "time out"): Session.CLOSED,
    (Session.OPEN, "fail"): Session.CLOSED,
    (Session.OPEN, "close"): Session.CLOSED,
}


class Transfer(enum.Enum):
    """A transfer as the control plane sees it; cells, commit and receipt are the data plane's."""

    OFFERED = "offered"
    ACTIVE = "active"
    DRAINING = "draining"
    OVER = "over"


OUTGOING: dict[tuple[Transfer, str], Transfer] = {
    (Transfer.OFFERED, "recv grant"): Transfer.ACTIVE,
    (Transfer.OFFERED, "recv refuse"): Transfer.OVER,
    (Transfer.OFFERED, "recv abort"): Transfer.OVER,
    (Transfer.OFFERED, "abort"): Transfer.DRAINING,
    (Transfer.OFFERED, "time out"): Transfer.DRAINING,
    (Transfer.ACTIVE, "recv abort"): Transfer.OVER,
    (Transfer.ACTIVE, "abort"): Transfer.DRAINING,
    (Transfer.ACTIVE, "time out"): Transfer.DRAINING,
    (Transfer.ACTIVE, "done"): Transfer.OVER,
    # A grant, a refusal or an abort of the peer's may have crossed ours.
    (Transfer.DRAINING, "recv grant"): Transfer.DRAINING,
    (Transfer.DRAINING, "recv refuse"): Transfer.OVER,
    (Transfer.DRAINING, "recv abort"): Transfer.OVER,
    (Transfer.DRAINING, "recv drained"): Transfer.OVER,
}
"""The side that offers."""

INCOMING: dict[tuple[Transfer, str], Transfer] = {
    (Transfer.OFFERED, "grant"): Transfer.ACTIVE,
    (Transfer.OFFERED, "refuse"): Transfer.OVER,
    (Transfer.OFFERED, "recv abort"): Transfer.OVER,
    (Transfer.OFFERED, "abort"): Transfer.DRAINING,
    (Transfer.OFFERED, "time out"): Transfer.DRAINING,
    (Transfer.ACTIVE, "recv abort"): Transfer.OVER,
    (Transfer.ACTIVE, "abort"): Transfer.DRAINING,
    (Transfer.ACTIVE, "time out"): Transfer.DRAINING,
    (Transfer.ACTIVE, "done"): Transfer.OVER,
    (Transfer.DRAINING, "recv abort"): Transfer.OVER,
    (Transfer.DRAINING, "recv drained"): Transfer.OVER,
}
"""The side that receives."""
