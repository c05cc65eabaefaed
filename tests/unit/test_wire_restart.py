"""A dialler whose peer has restarted: what it sends is offered once more, what it received is over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from kvwire import Config, DeadlineExceeded, LimitExceeded, LinkLost, OfferRefused
from kvwire.wire import Session, events, schema, states
from kvwire.wire.states import Transfer
from tests.unit.wire_pair import CONFIG, HELLO, Pair, Scenario, Way, broken, drain, make_manifest, messages, only

MANIFEST = make_manifest()
AGAIN = replace(HELLO, boot_id=b"b" * 16, link_id=b"M" * 16)  # another life of the acceptor


def restart(pair: Pair, life: bytes = b"2") -> events.Restarted:
    """The acceptor's process dies, and another one answers; what the dialler is told first."""
    pair.dialler.lost(pair.now, LinkLost("the peer has died"))
    pair.acceptor = Session("acceptor", CONFIG, life * 16, b"A" * 32, life * 16, pair.now)
    only(pair.dialler, events.Suspended)
    pair.dialler.resume(pair.now, b"R" * 32)
    pair.exchange()
    assert isinstance(pair.acceptor.next_event(), events.HelloDone)
    restarted = pair.dialler.next_event()
    assert isinstance(restarted, events.Restarted)
    assert restarted.peer.boot_id == pair.dialler.link_id == life * 16
    return restarted


@pytest.mark.parametrize("granted", [False, True])
def test_it_is_offered_once_more(granted: bool) -> None:
    way = Way("dialler")
    way.offer()
    if granted:
        way.grant()
    before, pair = way.transfer, way.pair
    assert restart(pair).again == {before: before + 2}
    way.receiver, way.transfer = pair.acceptor, before + 2
    assert only(way.receiver, events.Offered) == events.Offered(way.transfer, MANIFEST, 1)
    assert way.table(way.sender) == {way.transfer: Transfer.OFFERED}
    way.grant()
    way.finish()


def test_in_the_order_in_which_they_were_offered() -> None:
    pair = Pair()
    ids = [pair.offer(make_manifest(name)) for name in ("r1", "r2", "r3")]
    assert restart(pair).again == {1: 7, 3: 9, 5: 11}
    offered = drain(pair.acceptor)
    assert [event.manifest.request_id for event in offered if isinstance(event, events.Offered)] == ["r1", "r2", "r3"]
    assert pair.offer(make_manifest("r4")) == 13
    assert ids == [1, 3, 5]


def test_what_was_given_up_is_not() -> None:
    way = Way("dialler")
    way.granted()
    way.abort(way.sender)
    assert restart(way.pair).again == {}
    assert not drain(way.pair.acceptor)


def test_what_the_peer_sent_is_over_and_its_ids_begin_anew() -> None:
    way = Way("acceptor")
    way.granted()
    assert restart(way.pair).again == {}
    dropped = only(way.receiver, events.Dropped)
    assert (dropped.transfer, type(dropped.error)) == (way.transfer, LinkLost)
    way.sender = way.pair.acceptor
    assert way.offer() == 2
    way.grant()
    way.finish()


def test_the_deadline_goes_on() -> None:
    """From the first grant on, however often it is granted; the new peer is told what is left."""
    way = Way("dialler")
    way.granted()  # for 60 s
    way.pair.now += 25.0
    restart(way.pair)
    pair = way.pair
    way.receiver, way.transfer = pair.acceptor, way.transfer + 2
    drain(way.receiver)
    entry = way.receiver._incoming.get(way.transfer)
    assert entry is not None
    assert entry.deadline_s == pytest.approx(35.0)
    pair.now += 5.0
    way.grant()
    pair.tick(29.0, [way.sender])
    assert not drain(way.sender)
    pair.tick(1.0, [way.sender])
    assert isinstance(only(way.sender, events.TransferTimedOut).error, DeadlineExceeded)


def test_a_grant_that_does_not_come_again() -> None:
    way = Way("dialler")
    way.granted()
    restart(way.pair)
    way.pair.tick(60.0, [way.sender])
    assert only(way.sender, events.OfferTimedOut).transfer == way.transfer + 2


def test_a_peer_that_takes_smaller_messages_now() -> None:
    """An offer that it would choke on ends its transfer, and no other."""
    roomy = Config(max_message_bytes=1 << 20, max_transfers=4)
    way = Way("dialler", roomy)
    huge = way.pair.offer(make_manifest("huge", tokens=16 * 5000))
    way.offer(deliver=False)
    assert restart(way.pair).again == {huge: way.transfer + 2, way.transfer: way.transfer + 4}
    dropped = only(way.sender, events.Dropped)
    assert (dropped.transfer, type(dropped.error)) == (way.transfer + 2, LimitExceeded)
    assert only(way.pair.acceptor, events.Offered).transfer == way.transfer + 4


def test_a_peer_that_takes_fewer_transfers_now() -> None:
    """Those that it has no room for end; the others outlive one more loss."""
    roomy = replace(CONFIG, max_transfers=6)
    pair = Pair(acceptor=roomy)
    for number in range(6):
        pair.offer(make_manifest(f"r{number}"))
    assert len(restart(pair).again) == 6
    ended = drain(pair.dialler)
    assert [type(event.error) for event in ended if isinstance(event, events.Dropped)] == [LimitExceeded] * 2
    assert len(ended) == 2
    assert len(drain(pair.acceptor)) == 4
    pair.resume()
    assert pair.dialler.state is pair.acceptor.state is states.Session.OPEN


def test_another_host_is_no_other_life() -> None:
    way = Way("dialler")
    way.granted()
    way.pair.lose(way.sender)
    drain(way.sender)
    way.sender.resume(way.pair.now, b"R" * 32, may_restart=False)
    way.sender.data_to_send()
    way.pair.tell(way.sender, AGAIN)
    assert type(only(way.sender, events.Suspended).error) is LinkLost
    (goodbye,) = messages(way.sender.data_to_send())
    assert isinstance(goodbye, schema.Goodbye)
    assert way.table(way.sender) == {way.transfer: Transfer.ACTIVE}
    way.pair.resume()
    assert way.sender.state is states.Session.OPEN


def test_a_peer_that_is_busy_is_asked_again() -> None:
    way = Way("dialler")
    way.granted()
    way.pair.lose(way.sender)
    drain(way.sender)
    way.sender.resume(way.pair.now, b"R" * 32)
    way.pair.tell(way.sender, schema.Goodbye("busy", "64 links are up"))
    assert "64 links are up" in str(only(way.sender, events.Suspended).error)
    assert way.sender.state is states.Session.SUSPENDED


def test_a_refusal_by_the_new_peer() -> None:
    way = Way("dialler")
    way.granted()
    restart(way.pair)
    drain(way.pair.acceptor)
    way.pair.acceptor.refuse(way.pair.now, way.transfer + 2, "refused", "who are you?")
    way.pair.exchange()
    refused = only(way.sender, events.Refused)
    assert (refused.transfer, type(refused.error)) == (way.transfer + 2, OfferRefused)


def test_again_and_again() -> None:
    way = Way("dialler")
    way.granted()
    for life in range(2, 6):
        assert restart(way.pair, b"%d" % life).again == {2 * life - 3: 2 * life - 1}
        drain(way.pair.acceptor)


def test_a_peer_that_has_not_restarted_and_knows_no_link() -> None:
    """The same life gives another link: its half has ended, and so does this one."""
    way = Way("dialler")
    way.granted()
    way.pair.lose(way.sender)
    way.sender.resume(way.pair.now, b"R" * 32)
    way.pair.tell(way.sender, replace(AGAIN, boot_id=b"a" * 16))
    closed = drain(way.sender)[-1]
    assert isinstance(closed, events.Closed)
    assert type(closed.error) is LinkLost
    assert "not known to the peer any more" in str(closed.error)
    goodbye = messages(way.sender.data_to_send())[-1]
    assert isinstance(goodbye, schema.Goodbye)
    assert way.sender.state is states.Session.CLOSED


def test_an_acceptor_that_never_heard_finished_has_no_link_to_resume() -> None:
    """To the dialler the link was up; the first connection was lost before the acceptor had seen its keys."""
    pair = Pair(greet=False, sealed=True)
    pair.acceptor.receive_data(pair.now, pair.dialler.data_to_send())
    pair.acceptor.issue_ticket(pair.now, b"t" * 32)  # says nothing of a link
    pair.dialler.receive_data(pair.now, pair.acceptor.data_to_send())
    before = pair.offer()
    pair.lose(pair.acceptor, pair.dialler)
    assert pair.acceptor.state is states.Session.CLOSED
    drain(pair.dialler)
    ours, theirs = pair.agreements()
    pair.acceptor = Session("acceptor", CONFIG, b"a" * 16, b"A" * 32, b"M" * 16, pair.now, theirs)
    pair.dialler.resume(pair.now, b"R" * 32, ours, may_restart=False)
    pair.exchange()
    restarted = pair.dialler.next_event()
    assert isinstance(restarted, events.Restarted)
    assert restarted.again == {before: before + 2}
    assert pair.dialler.link_id == pair.acceptor.link_id == b"M" * 16
    assert [type(event) for event in drain(pair.acceptor)] == [events.HelloDone, events.Offered]


def test_an_acceptor_that_is_new_takes_whoever_asks_for_an_old_link() -> None:
    """It answers with the name of another one; whose link that was, it neither knows nor says."""
    pair = Pair(greet=False)
    pair.tell(pair.acceptor, replace(HELLO, link_id=b"?" * 16))
    only(pair.acceptor, events.HelloDone)
    (hello,) = messages(pair.acceptor.data_to_send())
    assert isinstance(hello, schema.Hello)
    assert hello.link_id == pair.acceptor.link_id == b"L" * 16


def ledgers() -> Iterator[schema.Message]:
    yield schema.Resume(b"")
    yield schema.Ledger(3, "offered", [], 0, b"")


@pytest.mark.parametrize("said", list(ledgers()), ids=lambda message: message.TYPE)
def test_a_new_peer_has_nothing_to_resume(said: schema.Message) -> None:
    way = Way("dialler")
    way.granted()
    way.pair.lose(way.sender)
    way.sender.resume(way.pair.now, b"R" * 32)
    way.pair.tell(way.sender, AGAIN, said)
    broken(way.sender, said.TYPE)


RESTARTS: dict[str, Scenario] = {
    f"granted={granted}": partial(test_it_is_offered_once_more, granted) for granted in (False, True)
}
"""For the scenarios that together take every row."""
