"""What happens while a link is down, or up again and its two sides have not yet told each other what they know."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvwire import LinkLost
from kvwire.wire import Session, events, schema, states
from kvwire.wire.states import Transfer
from tests.unit.wire_pair import CONFIG, Scenario, Way, drain, make_manifest, messages, named, only, whole

MANIFEST = make_manifest()
NOTHING, HALF = bytes(3), b"\x55\x05\x00"


def offered_while_down(sender: str) -> None:
    way = Way(sender)
    way.pair.lose()
    way.offer(deliver=False)
    assert not way.sender.data_to_send()
    _, told = way.resume()
    assert told == [events.Offered(way.transfer, MANIFEST, 1)]
    way.grant()
    way.finish()


def offers_overtake_one_that_is_made_again(sender: str) -> None:
    """A new offer leaves before the ledger has said that an older one never came; the connection is lost once more."""
    way = Way(sender)
    old = [way.offer(deliver=False, request_id=f"old {number}") for number in range(2)]
    way.pair.lose()
    way.pair.connect()
    way.deliver(way.pair.dialler)
    way.deliver(way.pair.acceptor)  # both are open, and the receiver has not answered the RESUME
    new = way.offer(deliver=False, request_id="new")
    way.deliver(way.sender)
    assert drain(way.receiver)[-1] == events.Offered(new, make_manifest("new"), 1)
    way.pair.lose()
    _, told = way.resume()
    assert [event.transfer for event in told if isinstance(event, events.Offered)] == old
    assert set(way.table(way.receiver)) == set(way.table(way.sender)) == {*old, new}


def withdrawn_before_the_ledger(sender: str, *, by_timer: bool) -> None:
    """An abort, for an offer that never came."""
    way = Way(sender)
    way.offer(deliver=False)
    way.pair.lose()
    way.pair.connect()
    way.deliver(way.pair.dialler)
    way.deliver(way.pair.acceptor)
    drain(way.sender)
    if by_timer:
        way.pair.tick(20.0, [way.sender])
        only(way.sender, events.OfferTimedOut)
    else:
        way.abort(way.sender)
    way.pair.exchange()
    assert only(way.sender, events.Drained).transfer == way.transfer
    drain(way.receiver)
    way.both(None)
    assert way.offer() == way.transfer  # and the link is well


def given_up_on_both_sides_before_the_resume(sender: str, *, granted: bool) -> None:
    """The receiver aborts over the new connection what the sender has dropped already."""
    way = Way(sender)
    way.granted() if granted else way.offer()
    way.pair.lose()
    way.abort(way.sender)
    way.pair.connect()
    way.deliver(way.pair.dialler)
    if way.receiver is way.pair.dialler:
        way.receiver.receive_data(way.pair.now, _hello_of(way.pair.acceptor))
    drain(way.receiver)
    assert way.receiver.state is states.Session.OPEN
    way.abort(way.receiver)
    assert way.table(way.receiver) == {way.transfer: Transfer.DRAINING}
    way.pair.exchange()
    assert drain(way.receiver) == [events.Drained(way.transfer)]
    drain(way.sender)
    way.both(None)


def _hello_of(session: Session) -> bytes:
    """What it has said, up to and with its HELLO; the rest is on its way still."""
    data = session.data_to_send()
    hello, *rest = messages(data)
    session._out += b"".join(map(schema.encode, rest))
    return schema.encode(hello)


def answered_before_the_resume(sender: str, *, grant: bool) -> None:
    """The receiver grants or refuses over the new connection, before it has heard the sender's RESUME."""
    way = Way(sender)
    way.offer()
    way.pair.lose()
    way.pair.connect()
    way.deliver(way.pair.dialler)
    if way.receiver is way.pair.dialler:
        way.receiver.receive_data(way.pair.now, _hello_of(way.pair.acceptor))
    assert way.receiver.state is states.Session.OPEN
    if grant:
        way.receiver.grant(way.pair.now, way.transfer, whole(MANIFEST))
    else:
        way.receiver.refuse(way.pair.now, way.transfer, "refused", "no room")
    way.pair.exchange()
    told = [type(event) for event in drain(way.sender)]
    if not grant:
        assert told.count(events.Refused) == 1
        drain(way.receiver)
        way.both(None)
        return
    assert told.count(events.Granted) == 1
    assert drain(way.receiver)[-1] == events.LedgerWanted(way.transfer)
    way.receiver.ledger(way.pair.now, way.transfer, NOTHING)
    way.pair.exchange()
    assert only(way.sender, events.LedgerCame).landed == NOTHING
    way.finish()


def answered_while_down(sender: str, *, grant: bool) -> None:
    way = Way(sender)
    way.offer()
    way.pair.lose()
    if grant:
        way.grant(deliver=False)
    else:
        way.receiver.refuse(way.pair.now, way.transfer, "refused", "no room")
    assert not way.receiver.data_to_send()
    to_sender, to_receiver = way.resume()
    if not grant:
        assert [type(event) for event in to_sender] == [events.Dropped]
        way.both(None)
        return
    assert to_receiver == [events.LedgerWanted(way.transfer)]
    way.receiver.ledger(way.pair.now, way.transfer, NOTHING)
    way.pair.exchange()
    only(way.sender, events.Granted)
    way.finish()


def aborted_while_down(sender: str, *, by_sender: bool) -> None:
    way = Way(sender)
    way.granted()
    way.pair.lose()
    giver, other = (way.sender, way.receiver) if by_sender else (way.receiver, way.sender)
    way.abort(giver)
    assert way.table(giver) == {}  # nobody is there to be drained
    told = way.resume()
    assert [type(event) for event in told[by_sender]] == [events.Dropped]
    way.both(None)
    way.abort(other)  # late, and no harm
    way.both(None)


def aborted_between_question_and_answer(sender: str, *, by_sender: bool) -> None:
    way = Way(sender)
    way.granted()
    way.pair.lose()
    assert way.resume() == ([], [events.LedgerWanted(way.transfer)])
    giver, other = (way.sender, way.receiver) if by_sender else (way.receiver, way.sender)
    way.abort(giver)
    way.receiver.ledger(way.pair.now, way.transfer, HALF)
    way.pair.exchange()
    only(other, events.Aborted)
    other.drained(way.pair.now, way.transfer)
    way.pair.exchange()
    only(giver, events.Drained)
    way.both(None)


def runs_out_of_time(sender: str, *, greeting: bool) -> None:
    """Both sides give up the link, and with it the transfer."""
    way = Way(sender)
    way.granted()
    way.pair.lose()
    way.pair.now += CONFIG.resume_timeout_s - 1.0
    if greeting:  # another connection comes in the last moment, and nobody speaks
        way.pair.connect()
    for session in (way.sender, way.receiver):
        drain(session)
        assert session.next_timer() == way.pair.now + 1.0
    way.pair.tick(1.0)
    for session in (way.sender, way.receiver):
        error = only(session, events.Closed).error
        assert type(error) is LinkLost
        assert str(error) == "the cable is cut; no connection within 30 s"
        assert way.table(session) == {}
        assert session.next_timer() is None


def closed_while_down(sender: str, *, greeting: bool) -> None:
    way = Way(sender)
    way.granted()
    way.pair.lose()
    if greeting:
        way.pair.connect()
    drain(way.sender)
    way.sender.close(way.pair.now, "enough")
    only(way.sender, events.Closed)
    assert way.table(way.sender) == {}
    if greeting:
        way.deliver(way.sender)
        closed = drain(way.receiver)[-1]
        assert isinstance(closed, events.Closed)
        assert "enough" in str(closed.error)
    way.sender.lost(way.pair.now, LinkLost("late"))
    assert not drain(way.sender)


def meanwhiles(sender: str) -> Iterator[tuple[str, Scenario]]:
    yield named(offered_while_down, sender)
    yield named(offers_overtake_one_that_is_made_again, sender)
    for yes in (False, True):
        yield named(withdrawn_before_the_ledger, sender, by_timer=yes)
        yield named(given_up_on_both_sides_before_the_resume, sender, granted=yes)
        yield named(answered_before_the_resume, sender, grant=yes)
        yield named(answered_while_down, sender, grant=yes)
        yield named(aborted_while_down, sender, by_sender=yes)
        yield named(aborted_between_question_and_answer, sender, by_sender=yes)
        yield named(runs_out_of_time, sender, greeting=yes)
        yield named(closed_while_down, sender, greeting=yes)


MEANWHILES = {name: scenario for sender in ("dialler", "acceptor") for name, scenario in meanwhiles(sender)}


@pytest.mark.parametrize("name", MEANWHILES)
def test_meanwhile(name: str) -> None:
    MEANWHILES[name]()
