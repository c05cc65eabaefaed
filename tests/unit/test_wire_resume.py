"""A suspended session: what may be called, what peers may not say when they are back, and what is bounded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from kvwire import Closed, Config, LimitExceeded, LinkLost, LocalError, ProtocolError
from kvwire.types import BlockRange, Grant
from kvwire.wire import JOIN_BYTES, Session, events, join_bytes, parse_join, schema, states
from kvwire.wire.manifest import pack_manifest, pack_runs
from kvwire.wire.session import MAX_QUEUED_FACTOR
from kvwire.wire.states import Transfer
from tests.unit.wire_pair import CONFIG, Pair, Way, broken, drain, frame, make_manifest, messages, only, whole

MANIFEST = make_manifest()
HALF = b"\x55\x05\x00"
RUNS = pack_runs(whole(MANIFEST))
HELLO = schema.Hello(b"d" * 16, b"D" * 32, b"L" * 16, "peer", 4, 4, 65536)  # of a dialler that resumes


def ids(*transfers: int) -> schema.Resume:
    return schema.Resume(struct.pack(f"<{len(transfers)}Q", *transfers))


def ledger(transfer: int, state: str, *, runs: list[Any] | None = None, cell_bytes: int = 65536) -> schema.Ledger:
    return schema.Ledger(transfer, state, RUNS if runs is None else runs, cell_bytes, b"\x01")


# --- calls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greeting", [False, True])
def test_what_may_be_called_while_the_link_is_down(greeting: bool) -> None:
    """Whatever is about transfers; nothing of it is said now."""
    way = Way("dialler")
    way.granted()
    active = way.transfer
    offered = way.offer(request_id="r2")
    to_refuse = way.offer(request_id="r3")
    way.pair.lose()
    if greeting:
        way.pair.connect()
        way.pair.dialler.data_to_send()
    now = way.pair.now
    way.receiver.grant(now, offered, whole(MANIFEST))
    way.receiver.refuse(now, to_refuse, "refused", "")
    way.receiver.ledger(now, active, b"")
    way.receiver.drained(now, to_refuse)
    way.receiver.abort(now, active, "aborted", "")
    way.receiver.abort(now, to_refuse, "aborted", "")
    way.receiver.lane_closed(now, 0, 1, "gone", 0)
    way.sender.request_lanes(now, 2)
    way.sender.transfer_done(active)
    way.offer(deliver=False, request_id="r4")
    assert not way.sender.data_to_send()
    assert not way.receiver.data_to_send()
    assert way.table(way.receiver) == {offered: Transfer.ACTIVE}
    with pytest.raises(Closed, match="over"):
        way.receiver.grant(now, active, whole(MANIFEST))


@pytest.mark.parametrize("role", ["dialler", "acceptor"])
def test_only_a_suspended_session_is_resumed(role: str) -> None:
    for greet in (False, True):
        session: Session = getattr(Pair(greet=greet), role)
        said = session.data_to_send()
        with pytest.raises(LocalError, match="only a suspended one"):
            session.resume(1000.0, b"R" * 32)
        session.close(1000.0, "done")
        session.data_to_send()
        with pytest.raises(LocalError, match="closed"):
            session.resume(1000.0, b"R" * 32)
        assert not session.data_to_send()
        assert bool(said) is (role == "dialler" and not greet)


def test_tickets_end_with_the_connection() -> None:
    pair = Pair()
    tickets = [pair.acceptor.issue_ticket(pair.now, b"s" * 32) for _ in range(2)]
    used = parse_join(join_bytes(b"L" * 16, *tickets[0], b"r" * 32, b"s" * 32)[-JOIN_BYTES:])
    unused = parse_join(join_bytes(b"L" * 16, *tickets[1], b"r" * 32, b"s" * 32)[-JOIN_BYTES:])
    pair.acceptor.redeem_ticket(pair.now, used)
    pair.lose()
    pair.resume()
    for join in (used, unused):
        with pytest.raises(ProtocolError, match="no ticket"):
            pair.acceptor.redeem_ticket(pair.now, join)
    pair.acceptor.lane_closed(pair.now, *tickets[0], "lost", 0)  # late: its number was free already
    again = [pair.acceptor.issue_ticket(pair.now, b"s" * 32) for _ in range(3)]
    assert sorted(again) == [(0, 2), (1, 2), (2, 1)]


def test_a_session_that_is_not_to_be_resumed() -> None:
    pair = Pair(dialler=Config(max_message_bytes=65536, resume_timeout_s=0))
    pair.lose(pair.dialler)
    assert str(only(pair.dialler, events.Closed).error) == "the cable is cut"


def test_answers_to_a_peer_that_has_gone_meanwhile() -> None:
    """It asks and says good-bye in one breath: the questions were queued before the end."""
    way = Way("dialler")
    way.granted()
    way.pair.lose()
    way.pair.connect()
    way.pair.exchange()
    drain(way.sender)
    way.sender.ask(b"L" * 16, way.transfer)
    way.sender.close(way.pair.now, "enough")
    way.deliver(way.sender)
    assert [type(event) for event in drain(way.receiver)][-3:] == [events.LedgerWanted, events.Asked, events.Closed]
    way.receiver.ledger(way.pair.now, way.transfer, HALF)
    way.receiver.answer(b"L" * 16, way.transfer, "unknown")
    assert not way.receiver.data_to_send()


def test_what_became_of_a_transfer() -> None:
    """Asked over another link: whoever drives the session has to know."""
    pair = Pair()
    for asker, asked in ((pair.dialler, pair.acceptor), (pair.acceptor, pair.dialler)):
        asker.ask(b"M" * 16, 7)
        pair.exchange()
        assert only(asked, events.Asked) == events.Asked(b"M" * 16, 7)
        asked.answer(b"M" * 16, 7, "committed")
        pair.exchange()
        assert only(asker, events.Answered) == events.Answered(b"M" * 16, 7, "committed")
    pair.acceptor.close(pair.now, "enough")
    with pytest.raises(Closed):
        pair.acceptor.ask(b"M" * 16, 7)


# --- time ---------------------------------------------------------------------------------------------------------


def test_the_time_to_come_back_is_counted_from_the_first_loss() -> None:
    """A peer that is reached and never greets buys none."""
    pair = Pair()
    pair.lose(pair.dialler)
    end = pair.now + CONFIG.resume_timeout_s
    attempts = 0
    while pair.dialler.state is not states.Session.CLOSED:
        if pair.dialler.state is states.Session.SUSPENDED:
            pair.dialler.resume(pair.now, b"R" * 32)
            attempts += 1
        pair.now = pair.dialler.next_timer() or 0.0
        pair.dialler.handle_timer(pair.now)
    assert pair.now == end
    assert attempts == CONFIG.resume_timeout_s / CONFIG.handshake_timeout_s
    closed = drain(pair.dialler)[-1]
    assert isinstance(closed, events.Closed)
    assert type(closed.error) is LinkLost


def test_once_open_again_a_session_has_all_the_time_again() -> None:
    pair = Pair()
    for _ in range(5):
        pair.lose()
        pair.tick(CONFIG.resume_timeout_s - 1.0)
        pair.resume()
    assert pair.dialler.state is pair.acceptor.state is states.Session.OPEN
    assert pair.dialler.next_timer() == pair.now + CONFIG.ping_interval_s


@pytest.mark.parametrize("sender", ["dialler", "acceptor"])
@pytest.mark.parametrize("granted", [False, True])
def test_deadlines_run_on_while_the_link_is_down(sender: str, granted: bool) -> None:
    way = Way(sender, receiver=CONFIG)
    way.granted() if granted else way.offer()
    way.pair.lose()
    drain(way.sender), drain(way.receiver)
    due = way.pair.now + (60.0 if granted else 20.0)
    way.pair.dialler._resume_due = way.pair.acceptor._resume_due = due + 60.0  # else it would be over by then
    assert way.sender.next_timer() == due
    way.pair.tick(due - way.pair.now)
    only(way.sender, events.TransferTimedOut if granted else events.OfferTimedOut)
    assert way.table(way.sender) == {}
    told = way.resume()[1] if not granted else drain(way.receiver)
    assert [type(event) for event in told] == [events.TransferTimedOut if granted else events.Dropped]
    if not granted:
        way.both(None)


# --- what a peer may not say --------------------------------------------------------------------------------------


SAID: dict[str, tuple[list[schema.Message], list[str]]] = {
    "offer before resume": ([schema.Offer(3, pack_manifest(MANIFEST), 60.0, 1)], ["offer before resume"]),
    "ping before resume": ([schema.Ping(1)], ["ping before resume"]),
    "abort before resume": ([schema.Abort(1, "aborted", "")], ["abort before resume"]),
    "ledger before resume": ([ledger(2, "active")], ["ledger before resume"]),
    "hello before resume": ([HELLO], ["hello before resume"]),
    "resume twice": ([ids(1), ids(1)], ["no link was lost"]),
    "second hello": ([ids(1), HELLO], ["second hello"]),
    "ids that descend": ([ids(3, 1)], ["not in order"]),
    "an id twice": ([ids(1, 1)], ["not in order"]),
    "my own id": ([ids(2)], ["not the peer's"]),
    "no id": ([ids(0)], ["not the peer's"]),
    "too many": ([ids(1, 3, 5, 7, 9)], ["5 transfers; at most 4"]),
    "a ledger that nobody asked for": ([ids(), ledger(4, "active")], ["nobody asked for"]),
    "a ledger of its own transfer": ([ids(), ledger(1, "active")], ["nobody asked for"]),
    "a ledger twice": ([ids(), ledger(2, "active"), ledger(2, "active")], ["nobody asked for"]),
    "another grant": ([ids(), ledger(2, "active", runs=[b"", b"", RUNS[2]])], ["another grant"]),
    "another cell size": ([ids(), ledger(2, "active", cell_bytes=4096)], ["another grant"]),
    "runs that are none": ([ids(), ledger(2, "active", runs=[1])], ["runs"]),
    "active, and never granted": ([ids(), ledger(2, "offered")], ["offered, and it is active"]),
    "granted, and refused": ([ids(), ledger(2, "refused")], ["refused, and it is active"]),
    "granted, and never came": ([ids(), ledger(2, "unknown")], ["unknown, and it is active"]),
}


@pytest.mark.parametrize("name", SAID)
def test_a_peer_that_is_back_says(name: str) -> None:
    """To an acceptor that receives transfer 1 and sends transfer 2, both granted."""
    back, there = Way("acceptor"), Way("dialler")
    there.granted()
    back.pair, back.sender, back.receiver = there.pair, there.pair.acceptor, there.pair.dialler
    back.granted()
    session = there.pair.acceptor
    there.pair.lose()
    session.resume(there.pair.now, b"R" * 32)
    there.pair.tell(session, HELLO)
    assert session.state is states.Session.OPEN
    said, words = SAID[name]
    there.pair.tell(session, *said)
    broken(session, *words)


OFFERED: dict[str, tuple[schema.Ledger, str]] = {
    "committed": (ledger(2, "committed"), "committed, and it is offered"),
    "a grant that does not fit": (
        ledger(2, "active", runs=pack_runs(Grant(((BlockRange(0, 8),), (), ()), 65536))),
        "does not fit the offer",
    ),
    "cells of no size": (ledger(2, "active", cell_bytes=0), "does not fit the offer"),
    "runs that are none": (ledger(2, "active", runs=[None]), "runs"),
}


@pytest.mark.parametrize("name", OFFERED)
def test_what_cannot_become_of_an_offer(name: str) -> None:
    way = Way("acceptor")
    way.offer()
    way.pair.lose()
    way.sender.resume(way.pair.now, b"R" * 32)
    said, words = OFFERED[name]
    way.pair.tell(way.sender, HELLO, ids(), said)
    broken(way.sender, words)


def test_a_receiver_that_has_forgotten() -> None:
    way = Way("acceptor")
    way.granted()
    way.pair.lose()
    way.sender.resume(way.pair.now, b"R" * 32)
    way.pair.tell(way.sender, HELLO, ids(), ledger(2, "forgotten"))
    dropped = drain(way.sender)[-1]
    assert isinstance(dropped, events.Dropped)
    assert type(dropped.error) is LinkLost
    assert way.sender.state is states.Session.OPEN


@pytest.mark.parametrize("state", ["committed and more", "", None, 1, b"active"])
def test_a_state_that_is_none(state: object) -> None:
    way = Way("acceptor")
    way.granted()
    way.pair.lose()
    way.sender.resume(way.pair.now, b"R" * 32)
    way.pair.tell(way.sender, HELLO, ids())
    content = {"t": "ledger", "transfer": 2, "state": state, "runs": [], "cell_bytes": 0, "landed": b""}
    way.sender.receive_data(way.pair.now, frame(content))
    broken(way.sender, "state")


@pytest.mark.parametrize("role", ["dialler", "acceptor"])
@pytest.mark.parametrize("transfers", [bytes(8), bytes(7), bytes(9), None, [1]], ids=repr)
def test_ids_that_are_none(role: str, transfers: object) -> None:
    pair = Pair()
    pair.lose()
    session: Session = getattr(pair, role)
    session.resume(pair.now, b"R" * 32)
    boot_id = b"d" * 16 if role == "acceptor" else b"a" * 16
    pair.tell(session, schema.Hello(boot_id, b"D" * 32, b"L" * 16, "peer", 4, 4, 65536))
    session.receive_data(pair.now, frame({"t": "resume", "transfers": transfers}))
    broken(session, "transfers")


@pytest.mark.parametrize("role", ["dialler", "acceptor"])
def test_resume_where_no_link_was_lost(role: str) -> None:
    pair = Pair()
    session: Session = getattr(pair, role)
    pair.tell(session, ids())
    broken(session, "no link was lost")


@pytest.mark.parametrize(
    ("role", "boot_id", "link_id", "words"),
    [
        ("acceptor", b"x" * 16, b"L" * 16, "not the one that this link was made with"),
        ("dialler", b"x" * 16, b"L" * 16, "not the one that this link was made with"),
        ("acceptor", b"d" * 16, b"x" * 16, "another link"),
        ("dialler", b"a" * 16, b"x" * 16, "another link"),
        ("acceptor", b"d" * 16, b"", "a link that is not this one"),
        ("dialler", b"a" * 16, b"", "the acceptor names the link"),
    ],
)
def test_somebody_else_resumes(role: str, boot_id: bytes, link_id: bytes, words: str) -> None:
    pair = Pair()
    pair.lose()
    session: Session = getattr(pair, role)
    session.resume(pair.now, b"R" * 32)
    session.data_to_send()
    pair.tell(session, schema.Hello(boot_id, b"D" * 32, link_id, "peer", 4, 4, 65536), ids())
    broken(session, words)


@pytest.mark.parametrize("greeted", [False, True])
def test_a_peer_that_is_back_to_say_goodbye(greeted: bool) -> None:
    way = Way("dialler")
    way.granted()
    way.pair.lose()
    way.receiver.resume(way.pair.now, b"R" * 32)
    way.pair.tell(way.receiver, *[HELLO] * greeted, schema.Goodbye("forgotten", "who are you?"))
    closed = drain(way.receiver)[-1]
    assert isinstance(closed, events.Closed)
    assert type(closed.error) is LinkLost
    assert way.table(way.receiver) == {}


def test_bytes_of_an_old_connection() -> None:
    """Half a message before the loss, the rest and more after it: none of it counts on either connection."""
    pair = Pair()
    offer = schema.encode(schema.Offer(1, pack_manifest(MANIFEST), 60.0, 1))
    pair.acceptor.receive_data(pair.now, offer[:50])
    pair.lose()
    drain(pair.acceptor)
    late: list[bytes] = [offer[50:], offer, schema.encode(HELLO), frame("what?"), b"\xff" * 4]
    for data in late:
        pair.acceptor.receive_data(pair.now, data)
    assert pair.acceptor.state is states.Session.SUSPENDED
    assert not drain(pair.acceptor)
    pair.resume()
    assert pair.offer() == 1
    pair.exchange()
    assert only(pair.acceptor, events.Offered).transfer == 1


# --- bounds -------------------------------------------------------------------------------------------------------


LARGE = make_manifest(tokens=16 * 3000)
BIG = Config(max_message_bytes=65536, max_transfers=64)


def test_all_that_has_to_be_told_again_may_be_more_than_a_peer_may_leave_unread() -> None:
    """Offers that are made again and ledgers are as many as the transfers that are under way, and said once."""
    way = Way("dialler", receiver=BIG)
    active = [way.pair.offer(make_manifest(f"a{n}")) for n in range(20)]
    way.pair.exchange()
    drain(way.receiver)
    for transfer in active:
        way.receiver.grant(way.pair.now, transfer, whole(MANIFEST))
        way.pair.exchange()
    drain(way.sender)
    way.pair.lose()
    lost = [way.pair.offer(make_manifest(f"b{n}", tokens=16 * 3000)) for n in range(20)]
    assert way.resume()[1][: len(active)] == [events.LedgerWanted(transfer) for transfer in active]
    for transfer in active:
        way.receiver.ledger(way.pair.now, transfer, bytes(30_000))
    said = way.receiver.data_to_send()
    assert len(said) > MAX_QUEUED_FACTOR * BIG.max_message_bytes
    way.sender.receive_data(way.pair.now, said)
    assert [type(event) for event in drain(way.sender)] == [events.LedgerCame] * len(active)
    assert set(way.table(way.receiver)) == {*active, *lost}


def test_a_ledger_that_is_more_than_the_peer_reads() -> None:
    way = Way("dialler")
    way.granted()
    way.pair.lose()
    way.resume()
    with pytest.raises(LimitExceeded, match="ledger"):
        way.receiver.ledger(way.pair.now, way.transfer, bytes(65536))
    way.abort(way.receiver)  # what is left to do
    way.pair.exchange()
    only(way.sender, events.Aborted)
    assert way.sender.state is way.receiver.state is states.Session.OPEN


def test_a_resume_names_all_transfers_in_one_message() -> None:
    """Small messages allow for fewer transfers at once, so that it does."""
    many = Config(max_message_bytes=65536, max_transfers=65536)
    pair = Pair(many, many)
    pair.lose()
    table = pair.dialler._outgoing
    for transfer in range(1, 2 * 4095 + 1, 2):
        table.add(transfer, make_manifest(f"r{transfer}"), 1e9, 60.0, 1)
    pair.dialler._next_id = 2 * 4095 + 1
    pair.offer(make_manifest("the last"))
    with pytest.raises(LimitExceeded, match="no more at once"):
        pair.offer(make_manifest("one too many"))
    pair.connect()
    pair.acceptor.receive_data(pair.now, pair.dialler.data_to_send())
    pair.dialler.receive_data(pair.now, pair.acceptor.data_to_send())
    (resume,) = messages(pair.dialler.data_to_send())
    assert len(schema.encode(resume)) < many.max_message_bytes
    pair.tell(pair.acceptor, resume)
    assert len(messages(pair.acceptor.data_to_send())) == 4096
    assert pair.acceptor.state is states.Session.OPEN


def test_outcomes_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvwire.wire.transfers.REMEMBERED", 3)
    way = Way("dialler", receiver=BIG)
    for number in range(5):
        way.offer(request_id=f"r{number}")
        way.receiver.refuse(way.pair.now, way.transfer, "refused", "")
    way.pair.lose()
    told: Callable[[type], int] = [type(e.error) for e in way.resume()[0] if isinstance(e, events.Dropped)].count
    assert (told(LinkLost), len(way.receiver.outcomes())) == (2, 3)
    way.both(None)
