"""A suspended session: what may be called, how long it waits, and what is bounded."""

from __future__ import annotations

import pytest

from kvwire import Closed, Config, DType, GroupSpec, LimitExceeded, LinkLost, LocalError, Manifest, ProtocolError
from kvwire.types import BlockRange, Grant
from kvwire.wire import JOIN_BYTES, Session, events, parse_join, schema, states
from kvwire.wire.preamble import join_bytes
from kvwire.wire.session import MAX_QUEUED_FACTOR
from kvwire.wire.states import Transfer
from kvwire.wire.transfers import Entry
from tests.unit.wire_pair import CONFIG, MODEL, Pair, Way, drain, make_manifest, messages, only, whole

MANIFEST = make_manifest()
HALF = b"\x55\x05\x00"


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


# --- bounds -------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "more",
    [schema.Goodbye("busy", ""), schema.Goodbye("closed", ""), schema.Ping(1), schema.Finished(bytes(32))],
    ids=lambda message: type(message).__name__,
)
def test_what_comes_along_with_a_good_bye_that_suspends(more: schema.Message) -> None:
    """A busy peer ends the attempt and not the link: what it says behind that, in the same bytes, is too late."""
    pair = Pair()
    pair.lose()
    pair.dialler.resume(pair.now, b"R" * 32)
    drain(pair.dialler)
    pair.tell(pair.dialler, schema.Goodbye("busy", "no room"), more)
    assert isinstance(only(pair.dialler, events.Suspended).error, LinkLost)
    pair.resume()
    assert pair.dialler.state is pair.acceptor.state is states.Session.OPEN


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


def test_a_grant_whose_ledger_would_be_more_than_the_peer_reads() -> None:
    """Is refused at once, and not when the link is resumed; what is not refused can be told then."""
    cells = 64  # of 4096 bytes, in a block
    spec = GroupSpec.attention("full", range(2), DType.BF16, block_tokens=16, heads=64, head_dim=64)
    blocks = 8 * CONFIG.max_message_bytes // (cells * len(spec.layers))
    way = Way("dialler")
    grants = [(blocks, 4096, False), (blocks, 8192, True), (blocks - 16, 4096, True)]
    for number, (asked, cell_bytes, fits) in enumerate(grants):
        transfer = way.pair.offer(Manifest.of(f"r{number}", MODEL, blocks * 16, [spec], attachment=True))
        way.deliver(way.sender)
        drain(way.receiver)
        grant = Grant(((BlockRange(0, asked),),), cell_bytes)
        if not fits:
            with pytest.raises(LimitExceeded, match=r"ledger of what is granted may take 65\d+ bytes; .* is 65536"):
                way.receiver.grant(way.pair.now, transfer, grant)
            way.receiver.refuse(way.pair.now, transfer, "refused", "")  # it is on offer as before
        else:
            way.receiver.grant(way.pair.now, transfer, grant)
            way.pair.exchange()
            drain(way.sender)
            way.resume()
            bits = asked * cells * len(spec.layers) * 4096 // cell_bytes + 1
            landed = bytes((bits + 7) // 8)
            way.receiver.ledger(way.pair.now, transfer, landed)
            way.deliver(way.receiver)
            assert only(way.sender, events.LedgerCame).landed == landed


def test_a_resume_names_all_transfers_in_one_message() -> None:
    """Small messages allow for fewer transfers at once, so that it does."""
    many = Config(max_message_bytes=65536, max_transfers=65536)
    pair = Pair(many, many)
    pair.lose()
    table = pair.dialler._outgoing
    for transfer in range(1, 2 * 4095 + 1, 2):
        table.add(transfer, Entry(make_manifest(f"r{transfer}"), 1e9, 60.0, 1))
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
    """At least as many as the peer may ask for at once."""
    monkeypatch.setattr("kvwire.wire.transfers.REMEMBERED", 3)
    way = Way("dialler")
    most = 2 * CONFIG.max_transfers
    for number in range(most + 2):
        way.offer(request_id=f"r{number}")
        way.receiver.refuse(way.pair.now, way.transfer, "refused", "")
        way.deliver(way.receiver)
    assert len(way.receiver.outcomes()) == most
    assert way.receiver._incoming.outcome(way.transfer) == "refused"
    assert way.receiver._incoming.outcome(1) == "forgotten"
