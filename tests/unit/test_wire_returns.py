"""What a peer that is back may not say: typed errors, and nothing raised by it."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from kvwire import LinkLost
from kvwire.types import BlockRange, Grant
from kvwire.wire import Session, events, schema, states
from kvwire.wire.manifest import pack_manifest, pack_runs
from tests.unit.wire_pair import Pair, Way, broken, drain, frame, make_manifest, only, whole

MANIFEST = make_manifest()
RUNS = pack_runs(whole(MANIFEST))
HELLO = schema.Hello(
    1, ["crc32c"], b"", b"d" * 16, b"D" * 32, b"L" * 16, "peer", 4, 4, 65536
)  # of a dialler that resumes


def ids(*transfers: int) -> schema.Resume:
    return schema.Resume(struct.pack(f"<{len(transfers)}Q", *transfers))


def ledger(transfer: int, state: str, *, runs: list[Any] | None = None, cell_bytes: int = 65536) -> schema.Ledger:
    return schema.Ledger(transfer, state, RUNS if runs is None else runs, cell_bytes, b"\x01")


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
    pair.tell(session, schema.Hello(1, ["crc32c"], b"", boot_id, b"D" * 32, b"L" * 16, "peer", 4, 4, 65536))
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
        ("acceptor", b"d" * 16, b"", "another link"),
        ("dialler", b"a" * 16, b"", "the acceptor names the link"),
    ],
)
def test_somebody_else_resumes(role: str, boot_id: bytes, link_id: bytes, words: str) -> None:
    pair = Pair()
    pair.lose()
    session: Session = getattr(pair, role)
    session.resume(pair.now, b"R" * 32)
    session.data_to_send()
    pair.tell(session, schema.Hello(1, ["crc32c"], b"", boot_id, b"D" * 32, link_id, "peer", 4, 4, 65536), ids())
    broken(session, words)


@pytest.mark.parametrize("greeted", [False, True])
def test_a_peer_that_is_back_to_say_goodbye(greeted: bool) -> None:
    way = Way("dialler")
    way.granted()
    way.pair.lose()
    way.receiver.resume(way.pair.now, b"R" * 32)
    way.pair.tell(way.receiver, *[HELLO] * greeted, schema.Goodbye("closed", "who are you?"))
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
