"""Which lanes a link has: tickets on the side that accepts them, incarnations on both."""

from __future__ import annotations

from dataclasses import dataclass

from kvwire.errors import LimitExceeded, ProtocolError
from kvwire.wire.messages import MAX_LANES, LaneTicket
from kvwire.wire.preamble import Join, verify_join
from kvwire.wire.states import LANE, LaneInput, LaneState

TICKET_VALID_S = 30.0
"""A ticket is redeemed one round trip later; longer than any dial that succeeds."""


@dataclass(slots=True)
class _Lane:
    state: LaneState = LaneState.FREE
    incarnation: int = 0
    secret: bytes = b""
    expires: float = 0.0

    def step(self, happened: LaneInput) -> None:
        self.state = LANE[self.state, happened]


class LaneTable:
    """The lanes of one link. An incarnation of a lane is never used twice; the first is 1."""

    def __init__(self) -> None:
        self._lanes = [_Lane() for _ in range(MAX_LANES)]

    def free(self, now: float) -> int:
        """Lanes that a ticket could be issued for."""
        for lane in self._lanes:
            if lane.state is LaneState.TICKET and now >= lane.expires:
                lane.step(LaneInput.EXPIRE)
        return sum(lane.state is LaneState.FREE for lane in self._lanes)

    def issue(self, now: float, secret: bytes) -> LaneTicket:
        """A ticket for the first free lane. LimitExceeded where there is none."""
        if not self.free(now):
            raise LimitExceeded(f"all {MAX_LANES} lanes of the link are in use")
        number, lane = next((n, lane) for n, lane in enumerate(self._lanes) if lane.state is LaneState.FREE)
        lane.step(LaneInput.ISSUE)
        lane.incarnation += 1
        lane.secret, lane.expires = secret, now + TICKET_VALID_S
        return LaneTicket(number, lane.incarnation, secret, TICKET_VALID_S)

    def redeem(self, now: float, join: Join) -> None:
        """Let a lane in. ProtocolError where its ticket is unknown, used, expired, or was never given to it."""
        what = f"lane {join.lane}, incarnation {join.incarnation}"
        lane = self._lanes[join.lane] if join.lane < MAX_LANES else None
        if lane is None or lane.state is not LaneState.TICKET or lane.incarnation != join.incarnation:
            raise ProtocolError(f"a JOIN for {what}, which has no open ticket")
        # Before the ticket counts as used, or anyone who can connect could use it up.
        if not verify_join(join, lane.secret):
            raise ProtocolError(f"a JOIN for {what} whose MAC does not fit its ticket")
        if now >= lane.expires:
            lane.step(LaneInput.EXPIRE)
            raise ProtocolError(f"a JOIN for {what} whose ticket expired; it was valid for {TICKET_VALID_S:g} s")
        lane.step(LaneInput.REDEEM)

    def received(self, ticket: LaneTicket) -> None:
        """The acceptor issued a ticket to this side. ProtocolError for an incarnation that was there before."""
        lane = self._lanes[ticket.lane]
        if ticket.incarnation <= lane.incarnation:
            raise ProtocolError(
                f"LANE_TICKET.incarnation is {ticket.incarnation} for lane {ticket.lane}; expected more than "
                f"{lane.incarnation}"
            )
        lane.incarnation = ticket.incarnation

    def knows(self, number: int, incarnation: int) -> bool:
        """Whether this lane ever had this incarnation."""
        return 0 <= number < MAX_LANES and 1 <= incarnation <= self._lanes[number].incarnation

    def closed(self, number: int, incarnation: int) -> None:
        """A lane ended. Both ends say so, so the second time and a late word about an old incarnation mean nothing."""
        lane = self._lanes[number]
        if lane.incarnation == incarnation and lane.state is not LaneState.FREE:
            lane.step(LaneInput.CLOSE)
