"""A connection that is lost at every point of a transfer, and what both sides make of it over the next one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvwire import Config, ModelTag, OfferRefused, PeerAborted
from kvwire.wire import events
from tests.unit.wire_pair import Scenario, Way, drain, make_manifest, named, only, whole

MANIFEST = make_manifest()
NOTHING, HALF = bytes(3), b"\x55\x05\x00"  # what a session takes for a ledger, it passes on: only an engine can judge


# --- what was under way is lost -----------------------------------------------------------------------------------


def offer_lost(sender: str, times: int = 1) -> None:
    way = Way(sender)
    way.offer(deliver=False)
    for _ in range(times):
        way.pair.lose()
        way.pair.connect()
    way.pair.exchange()
    assert drain(way.receiver)[-1] == events.Offered(way.transfer, MANIFEST, 1)
    drain(way.sender)
    way.grant()
    way.finish()


def offer_heard(sender: str) -> None:
    way = Way(sender)
    way.offer()
    way.pair.lose()
    assert way.resume() == ([], [])
    way.grant()
    way.finish()


def grant_lost(sender: str) -> None:
    way = Way(sender)
    way.offer()
    way.grant(deliver=False)
    way.pair.lose()
    assert way.resume() == ([], [events.LedgerWanted(way.transfer)])
    way.receiver.ledger(way.pair.now, way.transfer, NOTHING)
    way.pair.exchange()
    assert only(way.sender, events.Granted) == events.Granted(way.transfer, whole(MANIFEST))
    way.finish()


def cells_lost(sender: str, times: int = 1) -> None:
    way = Way(sender)
    way.granted()
    for _ in range(times):
        way.pair.lose()
        assert way.resume() == ([], [events.LedgerWanted(way.transfer)])
        way.receiver.ledger(way.pair.now, way.transfer, HALF)
        way.pair.exchange()
        assert only(way.sender, events.LedgerCame) == events.LedgerCame(way.transfer, HALF)
    way.finish()


def receipt_lost(sender: str, *, told: bool) -> None:
    """`told`: the receiver's session had heard of the commit, too, before the link was lost."""
    way = Way(sender)
    way.granted()
    if told:
        way.receiver.transfer_done(way.transfer)
    way.pair.lose()
    to_sender, to_receiver = way.resume()
    if not told:
        assert to_receiver == [events.LedgerWanted(way.transfer)]
        way.receiver.ledger(way.pair.now, way.transfer, None)
        way.pair.exchange()
        to_sender = drain(way.sender)
    assert to_sender == [events.CommitLearnt(way.transfer)]
    way.sender.transfer_done(way.transfer)
    way.both(None)


def receipt_came(sender: str) -> None:
    """The receiver's engine has committed; its session will hear of it only now."""
    way = Way(sender)
    way.granted()
    way.sender.transfer_done(way.transfer)
    way.pair.lose()
    to_sender, (dropped,) = way.resume()
    assert not to_sender
    assert isinstance(dropped, events.Dropped)  # whoever drives it knows better, or learns that nobody sends any more
    way.receiver.transfer_done(way.transfer)
    way.both(None)


def refusal_lost(sender: str) -> None:
    way = Way(sender)
    way.offer()
    way.receiver.refuse(way.pair.now, way.transfer, "refused", "no room")
    way.pair.lose()
    (dropped,), to_receiver = way.resume()
    assert isinstance(dropped, events.Dropped)
    assert type(dropped.error) is OfferRefused
    assert not to_receiver
    way.both(None)


def refusal_of_the_session_s_own_lost(sender: str) -> None:
    picky = Config(max_message_bytes=65536, models=(ModelTag("another"),))
    way = Way(sender, receiver=picky)
    way.offer(deliver=False)
    way.deliver(way.sender)
    way.pair.lose()
    (dropped,), to_receiver = way.resume()
    assert isinstance(dropped, events.Dropped)
    assert type(dropped.error) is OfferRefused
    assert not to_receiver
    way.both(None)


def abort_lost(sender: str, *, by_sender: bool, granted: bool, heard: bool) -> None:
    """`heard`: the other side had got it, and its DRAINED was lost."""
    way = Way(sender)
    way.granted() if granted else way.offer()
    giver, other = (way.sender, way.receiver) if by_sender else (way.receiver, way.sender)
    way.abort(giver)
    if heard:
        way.deliver(giver)
        only(other, events.Aborted)
        if granted:  # else the connection is lost before its memory is quiet
            other.drained(way.pair.now, way.transfer)
    way.pair.lose()
    told = way.resume()
    told_giver, told_other = told if by_sender else told[::-1]
    assert not told_giver
    assert [type(event) for event in told_other] == ([] if heard else [events.Dropped])
    for event in told_other:
        assert isinstance(event, events.Dropped)
        assert type(event.error) is PeerAborted
    other.drained(way.pair.now, way.transfer)  # late, and no harm
    way.both(None)


def both_aborts_lost(sender: str) -> None:
    way = Way(sender)
    way.granted()
    way.abort(way.sender)
    way.abort(way.receiver)
    way.pair.lose()
    assert way.resume() == ([], [])
    way.both(None)


def commit_met_an_abort_and_both_are_lost(sender: str) -> None:
    """What is committed stays committed, whatever the control plane thought."""
    way = Way(sender)
    way.granted()
    way.abort(way.receiver)
    way.receiver.transfer_done(way.transfer)
    way.pair.lose()
    assert way.resume() == ([events.CommitLearnt(way.transfer)], [])
    way.sender.transfer_done(way.transfer)
    way.both(None)


# --- a loss during the resumption ---------------------------------------------------------------------------------


def lost_while_greeting(sender: str, heard: str) -> None:
    """`heard`: the last that arrived at all."""
    way = Way(sender)
    way.granted()
    way.pair.lose()
    way.pair.connect()
    if heard != "nothing":
        way.pair.acceptor.receive_data(way.pair.now, way.pair.dialler.data_to_send())
    if heard == "both hellos":  # and the acceptor's RESUME
        way.pair.dialler.receive_data(way.pair.now, way.pair.acceptor.data_to_send())
    way.pair.lose()
    assert way.resume() == ([], [events.LedgerWanted(way.transfer)])
    way.receiver.ledger(way.pair.now, way.transfer, HALF)
    way.pair.exchange()
    assert only(way.sender, events.LedgerCame).landed == HALF
    way.finish()


def lost_before_the_ledger(sender: str, *, late: str) -> None:
    """`late`: when the answer to the first RESUME is given. No answer of one connection leaks into the next."""
    way = Way(sender)
    way.granted()
    way.pair.lose()
    assert way.resume() == ([], [events.LedgerWanted(way.transfer)])
    if late == "before the loss":
        way.receiver.ledger(way.pair.now, way.transfer, NOTHING)
    way.pair.lose()
    if late == "while down":
        way.receiver.ledger(way.pair.now, way.transfer, NOTHING)
    way.pair.connect()
    if late == "before the new question":
        way.deliver(way.pair.dialler)
        way.receiver.ledger(way.pair.now, way.transfer, NOTHING)
    way.pair.exchange()
    assert drain(way.receiver)[-1] == events.LedgerWanted(way.transfer)
    assert not [event for event in drain(way.sender) if isinstance(event, events.LedgerCame)]
    way.receiver.ledger(way.pair.now, way.transfer, HALF)
    way.receiver.ledger(way.pair.now, way.transfer, HALF)  # only once, however often it is said
    way.pair.exchange()
    assert only(way.sender, events.LedgerCame).landed == HALF
    way.finish()


def only_one_side_notices(sender: str, who: str) -> None:
    way = Way(sender)
    way.granted()
    way.pair.lose(getattr(way.pair, who))
    assert way.resume() == ([], [events.LedgerWanted(way.transfer)])
    way.receiver.ledger(way.pair.now, way.transfer, HALF)
    way.pair.exchange()
    only(way.sender, events.LedgerCame)
    way.finish()


def losses(sender: str) -> Iterator[tuple[str, Scenario]]:
    for plain in (
        offer_heard, grant_lost, receipt_came, refusal_lost, refusal_of_the_session_s_own_lost, both_aborts_lost,
        commit_met_an_abort_and_both_are_lost,
    ):  # fmt: skip
        yield named(plain, sender)
    for times in (1, 2, 5):
        yield named(offer_lost, sender, times=times)
        yield named(cells_lost, sender, times=times)
    for heard in ("nothing", "a hello", "both hellos"):
        yield named(lost_while_greeting, sender, heard=heard)
    for late in ("never", "before the loss", "while down", "before the new question"):
        yield named(lost_before_the_ledger, sender, late=late)
    for who in ("dialler", "acceptor"):
        yield named(only_one_side_notices, sender, who=who)
    for yes in (False, True):
        yield named(receipt_lost, sender, told=yes)
        for granted, heard_it in ((False, False), (False, True), (True, False), (True, True)):
            yield named(abort_lost, sender, by_sender=yes, granted=granted, heard=heard_it)


LOSSES = {name: scenario for sender in ("dialler", "acceptor") for name, scenario in losses(sender)}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name: str) -> None:
    LOSSES[name]()
