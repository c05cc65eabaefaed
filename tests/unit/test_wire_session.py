"""What a session does about bad peers, bad calls, silence and limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from kvwire import (
    Closed,
    Config,
    DuplicateTransfer,
    LimitExceeded,
    LinkLost,
    ModelMismatch,
    OfferRefused,
    PeerBusy,
    PlacementError,
    ProtocolError,
    SpecError,
)
from kvwire.digests import layout_digest
from kvwire.types import BlockRange, Grant, ModelTag
from kvwire.wire import Session, control_preamble, events, schema, states
from kvwire.wire.greeting import GREETING_BYTES
from kvwire.wire.manifest import pack_manifest, pack_runs
from tests.unit.wire_pair import CONFIG, SPECS, Pair, broken, drain, frame, make_manifest, messages, only, whole

MANIFEST = make_manifest()
HELLO = schema.Hello(1, ["crc32c"], b"", b"d" * 16, b"D" * 32, b"", "peer", 4, 4, 65536)
OFFER = schema.Offer(1, pack_manifest(MANIFEST), 60.0, 1)


STRANGERS = {
    "http": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "noise": bytes(range(255, 155, -1)),
    "preamble again": control_preamble(plain=True),
    "too long": (GREETING_BYTES + 1).to_bytes(4, "little"),
    "empty": bytes(4),
    "no map": frame([1, 2, 3]),
    "no type": frame({"a": 1}),
    "type that is a list": frame({"t": [1]}),
    "unknown type": frame({"t": "bonjour"}),
    "message before hello": schema.encode(schema.Ping(1)),
    "offer before hello": schema.encode(OFFER),
    "hello without a field": frame({"t": "hello", "boot_id": bytes(16)}),
}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_stranger(name: str, step: int) -> None:
    session = Pair(greet=False).acceptor
    data = STRANGERS[name]
    for at in range(0, len(data), step):
        session.receive_data(1000.0, data[at : at + step])
    broken(session)


SAID: dict[str, tuple[list[schema.Message], list[str]]] = {
    "second hello": ([HELLO], ["second hello"]),
    "two offers with one id": ([OFFER, OFFER], ["used before"]),
    "an older id": ([schema.Offer(3, OFFER.manifest, 60.0, 1), OFFER], ["used before"]),
    "wrong parity": ([schema.Offer(2, OFFER.manifest, 60.0, 1)], ["other side"]),
    "no manifest": ([schema.Offer(1, [1, 2, 3], 60.0, 1)], ["manifest"]),
    "grant of the peer's own offer": ([OFFER, schema.GrantMessage(1, [], 65536)], ["own offer"]),
    "refusal of the peer's own offer": ([OFFER, schema.Refuse(1, "refused", "")], ["own offer"]),
    "grant of nothing": ([schema.GrantMessage(2, [], 65536)], ["never offered"]),
    "refusal of nothing": ([schema.Refuse(4, "refused", "")], ["never offered"]),
    "abort of nothing": ([schema.Abort(1, "aborted", "")], ["never offered"]),
    "drained of nothing": ([schema.Drained(1)], ["never offered"]),
    "abort twice": ([OFFER, schema.Abort(1, "a", ""), schema.Abort(1, "a", "")], ["quieting"]),
    "drained of what nobody gave up": ([OFFER, schema.Drained(1)], ["offered"]),
    "a ticket from the dialler": ([schema.LaneTicket(0, 1, b"s" * 32, 30.0)], ["dialler"]),
}


@pytest.mark.parametrize("name", SAID)
def test_peer_says(name: str) -> None:
    pair = Pair()
    said, words = SAID[name]
    pair.tell(pair.acceptor, *said)
    broken(pair.acceptor, *words)


def test_the_acceptor_names_the_link() -> None:
    session = Pair(greet=False).dialler
    session.receive_data(1000.0, schema.encode(HELLO))
    broken(session, "the acceptor names the link")


def test_the_acceptor_answers() -> None:
    """It has to know which link this is before it can say which."""
    pair = Pair(greet=False)
    assert not pair.acceptor.data_to_send()
    pair.tell(pair.acceptor, HELLO)
    (hello,) = messages(pair.acceptor.data_to_send())
    assert isinstance(hello, schema.Hello)
    assert hello.link_id == pair.acceptor.link_id == b"L" * 16


BAD_FIELDS: dict[str, list[Any]] = {
    "transfer": [0, -1, True, None, 1.0, "1", [1]],
    "deadline_s": [0, -1.0, math.nan, math.inf, -math.inf, 8 * 86400, 1e300, True, "1", None],
    "klass": [-1, 3, None, 1.0, True, "1"],
    "manifest": [None, {}, "m", b"m", 1, [], [[[]]], [None] * 6, [1] * 6],
    "codecs": [None, {}, "zstd", b"\1\0\0", 1, [1, 0, 0], [256] * 3, [-1] * 3, [None] * 3, [0] * 2, [0] * 65],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD_FIELDS.items() for v in values])
def test_bad_field_of_an_offer(field: str, value: object) -> None:
    pair = Pair()
    content = {"t": "offer", "transfer": 1, "manifest": OFFER.manifest, "deadline_s": 60.0, "klass": 1}
    content["codecs"] = []
    pair.acceptor.receive_data(pair.now, frame(content | {field: value}))
    broken(pair.acceptor)


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf, -math.inf, 7 * 86400 + 1, True, None, "1"])
@pytest.mark.parametrize("name", ["timeout_s", "deadline_s"])
def test_offer_with_a_bad_time(name: str, seconds: Any) -> None:
    pair = Pair()
    with pytest.raises(SpecError, match=name):
        pair.offer(**{name: seconds})
    assert not pair.dialler.data_to_send()


@pytest.mark.parametrize("klass", [-1, 3, 1.0, True, None, "1"])
def test_offer_with_a_bad_class(klass: Any) -> None:
    pair = Pair()
    with pytest.raises(SpecError, match="klass"):
        pair.offer(klass=klass)
    assert not pair.dialler.data_to_send()


def test_same_request_id_twice() -> None:
    pair = Pair()
    first = pair.offer()
    with pytest.raises(DuplicateTransfer, match="r1"):
        pair.offer()
    pair.dialler.abort(pair.now, first, "aborted", "")
    assert pair.offer() == first + 2  # what was given up may be tried again
    pair.exchange()
    assert pair.acceptor.state is states.Session.OPEN


def test_manifest_over_the_peers_limit() -> None:
    pair = Pair(dialler=Config(), acceptor=CONFIG)
    with pytest.raises(LimitExceeded, match="65536"):
        pair.offer(make_manifest(tokens=16 * 8000))
    assert not pair.dialler.data_to_send()
    assert pair.offer() == 1


def test_message_over_the_own_limit() -> None:
    pair = Pair()
    pair.acceptor.receive_data(pair.now, (CONFIG.max_message_bytes + 1).to_bytes(4, "little"))
    broken(pair.acceptor, "65536", "65537")


@pytest.mark.parametrize("acceptor_models", [(ModelTag("other", "r9"),), (ModelTag("a-model", "r2"),)])
def test_other_model_names_both(acceptor_models: tuple[ModelTag, ...]) -> None:
    pair = Pair(acceptor=Config(max_message_bytes=65536, models=acceptor_models))
    transfer = pair.offer()
    pair.exchange()
    refused = only(pair.dialler, events.Refused)
    assert refused.transfer == transfer
    assert type(refused.error) is ModelMismatch
    for tag in (MANIFEST.model, *acceptor_models):
        assert f"{tag.name} revision {tag.revision}" in str(refused.error)
    assert only(pair.acceptor, events.Declined).transfer == transfer


def test_another_tenant_is_not_told_why() -> None:
    """Not by a refusal, an abort, nor a good-bye; this side knows."""
    pair = Pair(acceptor=Config(max_message_bytes=65536, models=(ModelTag("secret"),)))
    pair.acceptor._frank = False
    pair.offer()
    pair.exchange()
    refused = only(pair.dialler, events.Refused)
    assert type(refused.error) is OfferRefused
    assert str(refused.error) == "offer refused: the receiver does not want it"
    assert "secret" in only(pair.acceptor, events.Declined).reason
    for give_up in ("refuse", "abort"):
        model = ModelTag("secret")
        transfer = pair.offer(make_manifest(give_up, model=model))
        pair.exchange()
        only(pair.acceptor, events.Offered)
        getattr(pair.acceptor, give_up)(pair.now, transfer, "refused", "block 6 is another")
        pair.exchange()
        assert "block 6" not in repr(drain(pair.dialler))
    pair.acceptor.close(pair.now, "your certificate is revoked")
    pair.exchange()
    assert "revoked" not in repr(drain(pair.dialler))


@pytest.mark.parametrize("reason", ["two\nlines", "\x1b[31mred", "nul\0", "\ud800"])
def test_reasons_are_single_lines(reason: str) -> None:
    """What a peer says may end up in a log, or on a terminal."""
    pair = Pair()
    transfer = pair.offer()
    pair.exchange()
    drain(pair.acceptor)
    pair.acceptor.refuse(pair.now, transfer, "refused", reason)
    pair.exchange()
    assert str(only(pair.dialler, events.Refused).error).isprintable()
    if reason != "\ud800":
        said = frame({"t": "abort", "transfer": transfer, "code": "x", "reason": reason})
        pair.dialler.receive_data(pair.now, said)
        broken(pair.dialler, "abort: reason")


def test_layout_digest_that_does_not_fit() -> None:
    pair = Pair()
    pair.offer(make_manifest(model=ModelTag("m", layout="0" * 64)))
    pair.exchange()
    assert type(only(pair.dialler, events.Refused).error) is ModelMismatch
    drain(pair.acceptor)
    pair.offer(make_manifest(model=ModelTag("m", layout=layout_digest(SPECS))))
    pair.exchange()
    only(pair.acceptor, events.Offered)


def test_too_many_transfers() -> None:
    pair = Pair()
    for number in range(CONFIG.max_transfers):
        pair.offer(make_manifest(f"r{number}"))
    with pytest.raises(LimitExceeded):
        pair.offer(make_manifest("more"))
    greedy = [schema.Offer(99 + 2 * i, OFFER.manifest, 60.0, 1) for i in range(CONFIG.max_transfers + 1)]
    pair.exchange()
    pair.tell(pair.acceptor, *greedy)
    *offered, declined = drain(pair.acceptor)
    assert len(offered) == 2 * CONFIG.max_transfers
    assert isinstance(declined, events.Declined)
    (refusal,) = messages(pair.acceptor.data_to_send())
    assert isinstance(refusal, schema.Refuse)
    assert refusal.code == "busy"


FULL, WINDOW, STATE = (BlockRange(0, 7),), (BlockRange(4, 7),), (BlockRange(0, 1),)
BAD_GRANTS: dict[str, tuple[tuple[tuple[BlockRange, ...], ...], int]] = {
    "blocks past the end": (((BlockRange(0, 8),), WINDOW, STATE), 65536),
    "blocks before the window": ((FULL, (BlockRange(3, 7),), STATE), 65536),
    "window partially": ((FULL, (BlockRange(5, 7),), STATE), 65536),
    "window with a gap": ((FULL, (BlockRange(4, 5), BlockRange(6, 7)), STATE), 65536),
    "two states": ((FULL, WINDOW, (BlockRange(0, 2),)), 65536),
    "a later state": ((FULL, WINDOW, (BlockRange(1, 2),)), 65536),
    "empty run": (((BlockRange(2, 2),), WINDOW, STATE), 65536),
    "runs that overlap": (((BlockRange(0, 3), BlockRange(2, 4)), WINDOW, STATE), 65536),
    "runs that descend": (((BlockRange(3, 4), BlockRange(0, 2)), WINDOW, STATE), 65536),
    "a group too few": ((FULL, WINDOW), 65536),
    "a group too many": ((FULL, WINDOW, STATE, ()), 65536),
    "odd cells": ((FULL, WINDOW, STATE), 5000),
    "nothing": (((), (), ()), 65536),
}


@pytest.mark.parametrize("name", BAD_GRANTS)
def test_bad_grant(name: str) -> None:
    runs, cell_bytes = BAD_GRANTS[name]
    grant = Grant(runs, cell_bytes)
    pair = Pair()
    transfer = pair.offer()
    pair.exchange()
    with pytest.raises(PlacementError):
        pair.acceptor.grant(pair.now, transfer, grant)
    assert not pair.acceptor.data_to_send()
    pair.tell(pair.dialler, schema.GrantMessage(transfer, pack_runs(grant), cell_bytes))
    broken(pair.dialler, "does not fit the offer")


@pytest.mark.parametrize("runs", [((BlockRange(0, 2), BlockRange(5, 7)), (), ()), ((), WINDOW, ()), ((), (), STATE)])
def test_partial_grant(runs: tuple[tuple[BlockRange, ...], ...]) -> None:
    pair = Pair()
    transfer = pair.offer()
    pair.exchange()
    pair.acceptor.grant(pair.now, transfer, Grant(runs, 4096))
    pair.exchange()
    assert only(pair.dialler, events.Granted).grant == Grant(runs, 4096)


def test_refusal_says_why() -> None:
    pair = Pair()
    transfer = pair.offer()
    pair.exchange()
    pair.acceptor.refuse(pair.now, transfer, "refused", "no \ud800 room" + "x" * 9000)
    pair.exchange()
    error = only(pair.dialler, events.Refused).error
    assert type(error) is OfferRefused
    assert "no ? room" in str(error)


# --- time ---------------------------------------------------------------------------------------------------------


def test_no_hello() -> None:
    pair = Pair(greet=False)
    assert pair.dialler.next_timer() == pair.now + CONFIG.handshake_timeout_s
    pair.dialler.receive_data(pair.now + 4.0, b"\x10\x00")  # a dribble does not buy time
    pair.tick(4.9, [pair.dialler])
    assert pair.dialler.state is states.Session.GREETING
    pair.tick(0.1, [pair.dialler])
    assert type(only(pair.dialler, events.Closed).error) is LinkLost


def test_silence_is_pinged_and_not_taken_for_death() -> None:
    pair = Pair()
    for _ in range(20):
        pair.now = pair.dialler.next_timer() or 0.0
        pair.tick(0.0, [pair.dialler])
        assert messages(pair.dialler.data_to_send()) == [schema.Ping(0)]
    assert not drain(pair.dialler)
    assert pair.dialler.state is states.Session.OPEN


def test_pongs_keep_a_quiet_link() -> None:
    pair = Pair()
    for _ in range(10):
        pair.tick(10.0)
        pair.exchange()
    assert not drain(pair.dialler)
    assert not drain(pair.acceptor)


def test_peer_that_does_not_read() -> None:
    pair = Pair()
    ping = schema.encode(schema.Ping(1)) * 1000
    for _ in range(100):
        pair.acceptor.receive_data(pair.now, ping)
    closed = only(pair.acceptor, events.Closed)
    assert type(closed.error) is LinkLost
    assert len(pair.acceptor.data_to_send()) <= 5 * CONFIG.max_message_bytes


def test_offers_to_a_peer_that_does_not_read() -> None:
    pair = Pair(acceptor=Config(max_message_bytes=65536, max_transfers=1000))
    big = make_manifest("big", tokens=16 * 3000)

    def fill() -> None:
        for number in range(100):
            pair.offer(make_manifest(f"big{number}", tokens=big.tokens))

    with pytest.raises(LimitExceeded, match="wait to be sent"):
        fill()
    assert pair.dialler.state is states.Session.OPEN
    pair.exchange()
    pair.offer(big)


# --- the end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greet", [False, True])
def test_lost(greet: bool) -> None:
    """Only a session that was open is worth another connection."""
    pair = Pair(greet=greet)
    pair.dialler.lost(pair.now, LinkLost("the peer closed the connection"))
    (event,) = drain(pair.dialler)
    assert isinstance(event, events.Suspended if greet else events.Closed)
    assert type(event.error) is LinkLost
    pair.dialler.lost(pair.now, LinkLost("the peer closed the connection"))
    assert not drain(pair.dialler)


@pytest.mark.parametrize(
    ("code", "kind"), [("closed", LinkLost), ("busy", PeerBusy), ("?", LinkLost), ("protocol", ProtocolError)]
)
def test_goodbye(code: str, kind: type[Exception]) -> None:
    pair = Pair()
    pair.tell(pair.dialler, schema.Goodbye(code, "enough"), schema.Ping(1))
    closed = only(pair.dialler, events.Closed)
    assert type(closed.error) is kind
    assert "enough" in str(closed.error)
    assert not pair.dialler.data_to_send()


CALLS: dict[str, Callable[[Session], object]] = {
    "offer": lambda s: s.offer(0.0, MANIFEST, timeout_s=1.0, deadline_s=1.0, klass=1),
    "grant": lambda s: s.grant(0.0, 2, whole(MANIFEST)),
    "refuse": lambda s: s.refuse(0.0, 2, "refused", ""),
    "request_lanes": lambda s: s.request_lanes(0.0, 1),
    "issue_ticket": lambda s: s.issue_ticket(0.0, b"s" * 32),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("end", [False, True])
def test_calls_outside_open(name: str, end: bool) -> None:
    session = Pair(greet=False).dialler
    if end:
        session.close(0.0, "done")
    with pytest.raises(Closed, match="closed" if end else "greeting"):
        CALLS[name](session)
