"""Lane tickets: each good once and for a while, and the messages that carry them."""

from __future__ import annotations

import pytest

from kvwire import LimitExceeded, LocalError, ProtocolError
from kvwire.wire import JOIN_BYTES, events, parse_join
from kvwire.wire.preamble import Join, join_bytes
from kvwire.wire.tickets import MAX_TICKETS, TICKET_VALID_S, Tickets
from tests.unit.wire_pair import Pair, drain, only


def join(lane: int, incarnation: int, secret: bytes = b"s" * 32) -> Join:
    return parse_join(join_bytes(b"l" * 16, lane, incarnation, b"r" * 32, secret)[-JOIN_BYTES:])


def test_ticket_is_good_once() -> None:
    tickets = Tickets()
    ticket = tickets.issue(0.0, b"s" * 32)
    for lane, incarnation in ((ticket[0] + 1, ticket[1]), (ticket[0], ticket[1] + 1), (ticket[0], 0)):
        with pytest.raises(ProtocolError):
            tickets.redeem(0.0, join(lane, incarnation), b"")
    with pytest.raises(ProtocolError, match="MAC"):
        tickets.redeem(0.0, join(*ticket, b"x" * 32), b"")  # and the ticket is still good
    tickets.redeem(TICKET_VALID_S - 1, join(*ticket), b"")
    with pytest.raises(ProtocolError):
        tickets.redeem(TICKET_VALID_S - 1, join(*ticket), b"")


def test_ticket_expires_and_its_lane_is_used_again() -> None:
    tickets = Tickets()
    lane, incarnation = tickets.issue(0.0, b"s" * 32)
    with pytest.raises(ProtocolError, match="expired"):
        tickets.redeem(TICKET_VALID_S, join(lane, incarnation), b"")
    assert tickets.issue(TICKET_VALID_S + 1, b"s" * 32) == (lane, incarnation + 1)
    assert tickets.issue(TICKET_VALID_S + 1, b"s" * 32) == (lane + 1, 1)
    with pytest.raises(ProtocolError):
        tickets.redeem(TICKET_VALID_S + 1, join(lane, incarnation), b"")


def test_late_free_of_an_older_incarnation() -> None:
    tickets = Tickets()
    old = tickets.issue(0.0, b"s" * 32)
    tickets.free(*old)  # never opened: nothing to free
    tickets.redeem(0.0, join(*old), b"")
    tickets.free(*old)
    new = tickets.issue(0.0, b"t" * 32)
    assert new == (old[0], old[1] + 1)
    tickets.redeem(0.0, join(*new, b"t" * 32), b"")
    tickets.free(*old)
    tickets.free(*old)
    assert tickets.issue(0.0, b"u" * 32) == (new[0] + 1, 1)


def test_a_ticket_whose_lane_has_ended_before_it_was_heard_of_is_no_longer_out() -> None:
    tickets = Tickets()
    for count in range(3 * MAX_TICKETS):
        lane, incarnation = tickets.issue(0.0, b"s" * 32)
        assert (lane, incarnation) == (0, count + 1)
        tickets.void(lane, incarnation)
        tickets.void(lane, incarnation)
        with pytest.raises(ProtocolError, match="no ticket is out"):
            tickets.redeem(0.0, join(lane, incarnation), b"")
    lane, incarnation = tickets.issue(0.0, b"s" * 32)
    tickets.redeem(0.0, join(lane, incarnation), b"")
    tickets.void(lane, incarnation)  # of a lane that is up here, this side says when it has ended
    assert tickets.issue(0.0, b"s" * 32) == (lane + 1, 1)


def test_tickets_out_at_once() -> None:
    tickets = Tickets()
    given = [tickets.issue(0.0, b"s" * 32) for _ in range(MAX_TICKETS)]
    assert len({lane for lane, _ in given}) == MAX_TICKETS
    with pytest.raises(LimitExceeded):
        tickets.issue(TICKET_VALID_S - 1, b"s" * 32)
    tickets.redeem(0.0, join(*given[5]), b"")
    tickets.issue(0.0, b"s" * 32)


def test_lanes() -> None:
    pair = Pair()
    pair.dialler.request_lanes(pair.now, 2)
    pair.exchange()
    assert only(pair.acceptor, events.LanesWanted).count == 2
    lane, incarnation = pair.acceptor.issue_ticket(pair.now, b"s" * 32)
    pair.exchange()
    assert only(pair.dialler, events.Ticket) == events.Ticket(lane, incarnation, b"s" * 32)
    pair.acceptor.redeem_ticket(pair.now, join(lane, incarnation))
    pair.dialler.lane_closed(pair.now, lane, incarnation, "lost", 7)
    pair.exchange()
    assert only(pair.acceptor, events.LaneClosed) == events.LaneClosed(lane, incarnation, "lost", 7)
    pair.acceptor.lane_closed(pair.now, lane, incarnation, "lost", 7)
    assert pair.acceptor.issue_ticket(pair.now, b"s" * 32) == (lane, incarnation + 1)


def test_the_dialler_hears_of_a_ticket_that_nobody_used() -> None:
    """It may believe that the lane is up: that the acceptor has given the hand-shake up may be lost on its way."""
    pair = Pair()
    used, unused = (pair.acceptor.issue_ticket(pair.now, b"s" * 32) for _ in range(2))
    pair.exchange()
    drain(pair.dialler)
    pair.acceptor.redeem_ticket(pair.now, join(*used))
    due = pair.now + TICKET_VALID_S
    while pair.now < due:
        pair.now = pair.acceptor.next_timer() or due
        pair.acceptor.handle_timer(pair.now)
    assert pair.now == due
    pair.exchange()
    assert only(pair.dialler, events.LaneClosed).lane == unused[0]
    pair.tick(TICKET_VALID_S)
    pair.exchange()
    assert not drain(pair.dialler)
    assert pair.acceptor.issue_ticket(pair.now, b"s" * 32) == (unused[0], unused[1] + 1)


def test_an_unused_ticket_is_told_of_whoever_found_it() -> None:
    """Another one was wanted just then, or its lane came too late."""
    pair = Pair()
    lane, incarnation = pair.acceptor.issue_ticket(pair.now, b"s" * 32)
    pair.now += TICKET_VALID_S
    with pytest.raises(ProtocolError, match="expired"):
        pair.acceptor.redeem_ticket(pair.now, join(lane, incarnation))
    assert pair.acceptor.issue_ticket(pair.now, b"s" * 32) == (lane, incarnation + 1)
    assert (pair.acceptor.next_timer() or 0.0) <= pair.now
    pair.acceptor.handle_timer(pair.now)
    pair.exchange()
    closed = [event for event in drain(pair.dialler) if isinstance(event, events.LaneClosed)]
    assert [(event.lane, event.incarnation) for event in closed] == [(lane, incarnation)]


def test_lane_calls_of_the_wrong_side() -> None:
    pair = Pair()
    with pytest.raises(LocalError, match="acceptor"):
        pair.dialler.issue_ticket(pair.now, b"s" * 32)
    with pytest.raises(LocalError, match="31"):
        pair.acceptor.issue_ticket(pair.now, b"s" * 31)
    for count in (0, MAX_TICKETS + 1):
        with pytest.raises(LocalError, match=str(count)):
            pair.dialler.request_lanes(pair.now, count)


def test_an_acceptor_says_how_many_lanes_it_wants() -> None:
    """It sends, and knows what they are worth; it hands out no tickets by that."""
    pair = Pair()
    pair.acceptor.request_lanes(pair.now, 24)
    pair.exchange()
    assert only(pair.dialler, events.LanesWanted).count == 24
    assert pair.acceptor.tickets_out(pair.now) == 0


def test_too_many_tickets() -> None:
    pair = Pair()
    for _ in range(MAX_TICKETS):
        pair.acceptor.issue_ticket(pair.now, b"s" * 32)
    with pytest.raises(LimitExceeded):
        pair.acceptor.issue_ticket(pair.now, b"s" * 32)
    pair.now += TICKET_VALID_S + 1
    assert pair.acceptor.issue_ticket(pair.now, b"s" * 32)[1] == 2  # of a lane whose ticket has expired
