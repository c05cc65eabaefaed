"""Sealed sessions: keys that both agree on, FINISHED, tickets; and what a peer or somebody between them may try."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_der_x509_certificate

from kvwire import LocalError, ProtocolError
from kvwire.wire import JOIN_BYTES, Session, events, parse_join, schema, states
from tests.unit.wire_pair import Pair, agreement, broken, certificate, drain, messages, only

RANDOM = b"t" * 32


def sealed(*, greet: bool = True) -> Pair:
    return Pair(greet=greet, sealed=True)


def heard(session: Session, kind: type[schema.Message]) -> list[schema.Message]:
    return [message for message in messages(session.data_to_send()) if isinstance(message, kind)]


def ticket_of(pair: Pair) -> events.Ticket:
    pair.acceptor.issue_ticket(pair.now, RANDOM)
    pair.exchange()
    return only(pair.dialler, events.Ticket)


def test_both_have_the_same_keys() -> None:
    pair = sealed()
    assert pair.dialler.state is pair.acceptor.state is states.Session.OPEN
    ticket = ticket_of(pair)
    join, (send, receive) = pair.dialler.use_ticket(ticket, b"r" * 32)  # type: ignore[misc]
    there = pair.acceptor.redeem_ticket(pair.now, parse_join(join[-JOIN_BYTES:]))
    assert there == (receive, send)
    assert len({send, receive}) == 2
    assert {len(send), len(receive)} == {32}


def test_tickets_come_with_the_first_answer() -> None:
    """So that a lane costs no round trip more than its own; nothing else is said before the peer has shown its keys."""
    pair = sealed(greet=False)
    pair.acceptor.receive_data(pair.now, pair.dialler.data_to_send())
    assert pair.acceptor.state is states.Session.CONFIRMING
    assert only(pair.acceptor, events.LanesWanted).count == pair.dialler.lanes
    pair.acceptor.issue_ticket(pair.now, RANDOM)
    assert [message.TYPE for message in messages(pair.acceptor.data_to_send())] == ["hello", "finished", "ticket"]
    with pytest.raises(LocalError):
        pair.offer(by=pair.acceptor)


def test_a_lane_may_join_before_finished() -> None:
    """Its MAC says the same, and control may be late."""
    pair = sealed(greet=False)
    pair.acceptor.receive_data(pair.now, pair.dialler.data_to_send())
    pair.acceptor.issue_ticket(pair.now, RANDOM)
    pair.dialler.receive_data(pair.now, pair.acceptor.data_to_send())
    (ticket,) = [event for event in drain(pair.dialler) if isinstance(event, events.Ticket)]
    join, keys = pair.dialler.use_ticket(ticket, b"r" * 32)
    there = pair.acceptor.redeem_ticket(pair.now, parse_join(join[-JOIN_BYTES:]))
    assert keys == (there and there[::-1])
    assert keys is not None


DIFFERENCES: dict[str, Callable[[Pair], None]] = {
    "another private key": lambda pair: swap(pair, private=b"x" * 32),
    "another certificate of the dialler's": lambda pair: swap(
        pair, certificates=(certificate("mallory"), certificate("acceptor"))
    ),
    "another certificate of the acceptor's": lambda pair: swap(
        pair, certificates=(certificate("dialler"), certificate("mallory"))
    ),
    "certificates the other way round": lambda pair: swap(
        pair, certificates=(certificate("acceptor"), certificate("dialler"))
    ),
}


def swap(pair: Pair, **other: Any) -> None:
    """The dialler has other keys than its HELLO says, or believes in other certificates."""
    share = agreement("dialler").share
    pair.dialler._agreement = agreement("dialler", **other)
    pair.dialler._agreement.share = share


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_who_has_other_keys_is_not_let_in(difference: str) -> None:
    pair = sealed(greet=False)
    DIFFERENCES[difference](pair)
    pair.acceptor.receive_data(pair.now, pair.dialler.data_to_send())
    answer = pair.acceptor.data_to_send()
    pair.dialler.receive_data(pair.now, answer)
    said = pair.dialler.data_to_send()
    broken_quietly(pair.dialler, "other keys")
    pair.acceptor.receive_data(pair.now, said)
    assert pair.acceptor.state is states.Session.CLOSED
    assert not any(isinstance(event, events.HelloDone) for event in drain(pair.acceptor))


def broken_quietly(session: Session, words: str) -> None:
    closed = drain(session)[-1]
    assert isinstance(closed, events.Closed)
    assert isinstance(closed.error, ProtocolError)
    assert words in str(closed.error)


HELLO_CHANGES: dict[str, dict[str, Any]] = {
    "boot id": {"boot_id": b"x" * 16},
    "random": {"random": b"x" * 32},
    "software": {"software": "other"},
    "lanes": {"lanes": 3},
    "limits": {"max_transfers": 5},
    "message size": {"max_message_bytes": 70000},
    "a weaker suite listed": {"suites": ["aes-256-gcm", "crc32c"]},
    "another share": {"share": agreement("dialler", b"y" * 32).share},
}


@pytest.mark.parametrize("what", HELLO_CHANGES)
@pytest.mark.parametrize("who", ["dialler", "acceptor"])
def test_a_hello_that_was_changed_on_the_way(who: str, what: str) -> None:
    pair = sealed(greet=False)
    (hello,) = messages(pair.dialler.data_to_send())
    assert isinstance(hello, schema.Hello)
    pair.tell(pair.acceptor, replace(hello, **HELLO_CHANGES[what]) if who == "dialler" else hello)
    drain(pair.acceptor)
    answer = messages(pair.acceptor.data_to_send())
    assert isinstance(answer[0], schema.Hello)
    if who == "acceptor":
        answer[0] = replace(answer[0], **HELLO_CHANGES[what])
    pair.tell(pair.dialler, *answer)
    assert pair.dialler.state is states.Session.CLOSED
    assert not any(isinstance(event, events.HelloDone) for event in drain(pair.dialler))


def test_fields_of_another_release_count_as_they_came() -> None:
    """A field that this side does not know is ignored, and is in the transcript nevertheless."""
    pair = sealed(greet=False)
    raw = pair.dialler.data_to_send()
    content = msgpack.unpackb(raw[4:]) | {"a new field": 7}
    body = msgpack.packb(content)
    pair.acceptor.receive_data(pair.now, len(body).to_bytes(4, "little") + body)
    pair.dialler.receive_data(pair.now, pair.acceptor.data_to_send())
    assert pair.dialler.state is states.Session.CLOSED, "the dialler has not said that"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "a hello of version 2 after a preamble of version 1"),
        ({"suites": ["crc32c"]}, "this side takes aes-256-gcm"),
        ({"share": bytes(32)}, "share gives no secret"),
        ({"share": b""}, "share gives no secret"),
    ],
)
def test_hellos_that_are_refused(change: dict[str, Any], words: str) -> None:
    pair = sealed(greet=False)
    (hello,) = messages(pair.dialler.data_to_send())
    assert isinstance(hello, schema.Hello)
    pair.tell(pair.acceptor, replace(hello, **change))
    broken(pair.acceptor, words)


def test_a_plain_hello_for_a_sealed_session_and_the_other_way_round() -> None:
    plain, pair = Pair(greet=False), sealed(greet=False)
    pair.acceptor.receive_data(pair.now, plain.dialler.data_to_send())
    broken(pair.acceptor, "crc32c", "this side takes aes-256-gcm")
    pair = sealed(greet=False)
    plain.acceptor.receive_data(plain.now, pair.dialler.data_to_send())
    broken(plain.acceptor, "aes-256-gcm", "this side takes crc32c")


def test_a_finished_that_is_reflected() -> None:
    pair = sealed(greet=False)
    pair.acceptor.receive_data(pair.now, pair.dialler.data_to_send())
    drain(pair.acceptor)
    (finished,) = heard(pair.acceptor, schema.Finished)
    pair.tell(pair.acceptor, finished)
    broken(pair.acceptor, "other keys")


def test_nothing_before_finished_and_no_second_one() -> None:
    pair = sealed(greet=False)
    pair.acceptor.receive_data(pair.now, pair.dialler.data_to_send())
    pair.tell(pair.acceptor, schema.Ping(1))
    broken(pair.acceptor, "ping before finished")
    pair = sealed()
    pair.tell(pair.acceptor, schema.Finished(bytes(32)))
    broken(pair.acceptor, "nothing was to be confirmed")
    plain = Pair(greet=False)
    plain.tell(plain.acceptor, schema.Finished(bytes(32)))
    broken(plain.acceptor, "finished before hello")


def test_a_peer_that_never_finishes() -> None:
    pair = sealed(greet=False)
    pair.acceptor.receive_data(pair.now, pair.dialler.data_to_send())
    drain(pair.acceptor)
    pair.tick(5.0, [pair.acceptor])
    assert "did not say hello in time" in str(only(pair.acceptor, events.Closed).error)


def test_a_resumed_session_has_new_keys() -> None:
    pair = sealed()
    before = ticket_of(pair)
    join, keys = pair.dialler.use_ticket(before, b"r" * 32)
    pair.resume()
    assert pair.dialler.state is pair.acceptor.state is states.Session.OPEN
    with pytest.raises(ProtocolError, match="no ticket is out"):
        pair.acceptor.redeem_ticket(pair.now, parse_join(join[-JOIN_BYTES:]))
    after = ticket_of(pair)
    assert (after.lane, after.random) == (before.lane, before.random)
    assert after.incarnation > before.incarnation
    _, others = pair.dialler.use_ticket(after, b"r" * 32)
    assert keys is not None
    assert others is not None
    assert len({*keys, *others}) == 4


def test_a_lane_of_another_link() -> None:
    """Its MAC is made with the join secret of its own."""
    pair, other = sealed(), sealed()
    other.dialler._keys = agreement("dialler", b"z" * 32).agree(b"a", b"b", b"c", b"d", agreement("acceptor").share)
    ticket = ticket_of(pair)
    join, _ = other.dialler.use_ticket(ticket, b"r" * 32)
    with pytest.raises(ProtocolError, match="MAC does not fit"):
        pair.acceptor.redeem_ticket(pair.now, parse_join(join[-JOIN_BYTES:]))
    join, _ = pair.dialler.use_ticket(ticket, b"r" * 32)
    pair.acceptor.redeem_ticket(pair.now, parse_join(join[-JOIN_BYTES:]))  # the ticket was not used up


LANES = [
    (0, 1, b"A" * 32, b"D" * 32),
    (1, 1, b"A" * 32, b"D" * 32),
    (0, 2, b"A" * 32, b"D" * 32),
    (0, 1, b"B" * 32, b"D" * 32),
    (0, 1, b"A" * 32, b"E" * 32),
]


def test_no_two_lanes_have_a_secret_in_common() -> None:
    found = []
    for tenants in (("acme", "acme"), ("acme", "globex"), ("globex", "acme"), ("ac", "meacme")):
        keys = agreement("dialler", tenants=tenants).agree(b"a", b"b", b"c", b"d", agreement("acceptor").share)
        found += [secret for lane in LANES for secret in keys.lane(*lane)]
    assert len(set(found)) == len(found)


def test_the_schedule_by_hand() -> None:
    """The formulas of `kvwire.security.schedule`, written down once more."""

    def framed(*fields: bytes) -> bytes:
        return b"".join(len(field).to_bytes(2, "little") + field for field in fields)

    def expand(secret: bytes, *fields: bytes) -> bytes:
        return HKDFExpand(SHA256(), 32, framed(*fields)).derive(secret)

    mine, theirs = agreement("dialler"), agreement("acceptor")
    keys = mine.agree(b"hello d", b"hello a", b"random d", b"random a", theirs.share)
    shared = X25519PrivateKey.from_private_bytes(b"dialler".ljust(32, b".")).exchange(
        X25519PublicKey.from_public_bytes(theirs.share)
    )
    certified = [
        load_der_x509_certificate(certificate(name))
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for name in ("dialler", "acceptor")
    ]
    th = hashlib.sha256(framed(b"kvwire transcript 1", b"hello d", b"hello a", *certified)).digest()
    master = hmac.digest(th, shared + b"random d" + b"random a", "sha256")
    assert keys.join_secret == expand(master, b"kvwire join")
    assert keys.finished("dialler") == hmac.digest(expand(master, b"kvwire finished", b"dialler"), th, "sha256")
    lanes = expand(master, b"kvwire lanes")
    rest = (b"acme", b"acme", (7).to_bytes(4, "little"), (3).to_bytes(4, "little"), b"A" * 32, b"D" * 32)
    sends = [expand(lanes, b"kvwire lane", role, *rest) for role in (b"dialler", b"acceptor")]
    assert keys.lane(7, 3, b"A" * 32, b"D" * 32) == tuple(sends)
    there = theirs.agree(b"hello a", b"hello d", b"random a", b"random d", mine.share)
    assert there.lane(7, 3, b"A" * 32, b"D" * 32) == tuple(sends[::-1])
