"""What sessions say of codecs: which a side takes, which an offer names, how fast a receiver decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from kvwire import LinkLost, ProtocolError, SpecError
from kvwire.codecs.registry import MOST
from kvwire.wire import CodecTag, Session, events, schema
from kvwire.wire.codecs import MAX_CODECS, MAX_NAME, taken_by
from kvwire.wire.greeting import GREETING_BYTES
from kvwire.wire.manifest import pack_manifest, pack_runs
from tests.unit.wire_pair import CONFIG, HELLO, Pair, broken, drain, frame, make_manifest, messages, only, whole

ZSTD, INT8, MINE = CodecTag("zstd", 1, True), CodecTag("int8", 4, False), CodecTag("mine", 200, False)
MANIFEST = make_manifest()
WANTED = [ZSTD, INT8, None]


def pair_of(dialler: Sequence[CodecTag] = (), acceptor: Sequence[CodecTag] = ()) -> Pair:
    """A pair of which each side takes these."""
    pair = Pair(greet=False)
    pair.dialler = Session("dialler", CONFIG, b"d" * 16, b"D" * 32, b"", pair.now, lanes=4, codecs=dialler)
    pair.acceptor = Session("acceptor", CONFIG, b"a" * 16, b"A" * 32, b"L" * 16, pair.now, codecs=acceptor)
    pair.exchange()
    for session in (pair.dialler, pair.acceptor):
        assert isinstance(drain(session)[0], events.HelloDone)
    return pair


def offer(pair: Pair, codecs: Sequence[CodecTag | None] = WANTED, request_id: str = "r1") -> int:
    return pair.dialler.offer(
        pair.now, make_manifest(request_id), timeout_s=20.0, deadline_s=60.0, klass=1, codecs=codecs
    )


def restart(pair: Pair, codecs: Sequence[CodecTag], life: bytes) -> None:
    """Another life of the acceptor, which takes these."""
    pair.dialler.lost(pair.now, LinkLost("the peer has died"))
    pair.acceptor = Session("acceptor", CONFIG, life * 16, b"A" * 32, life * 16, pair.now, codecs=codecs)
    pair.dialler.resume(pair.now, b"R" * 32)
    pair.exchange()


def test_there_are_as_many_at_a_process_as_in_a_hello() -> None:
    assert MOST == MAX_CODECS


@pytest.mark.parametrize("codecs", [(), (ZSTD,), (ZSTD, INT8, MINE)])
def test_each_side_hears_what_the_other_takes(codecs: tuple[CodecTag, ...]) -> None:
    pair = pair_of(codecs, (INT8,))
    assert pair.acceptor.peer is not None
    assert pair.dialler.peer is not None
    assert taken_by(pair.acceptor.peer) == set(codecs)
    assert taken_by(pair.dialler.peer) == {INT8}


def test_a_hello_has_room_for_all() -> None:
    codecs = [CodecTag(f"{number:x<{MAX_NAME}}", 255 - number, False) for number in range(MAX_CODECS)]
    pair = pair_of(codecs, codecs)
    assert pair.dialler.peer is not None
    largest = replace(pair.dialler.peer, link_id=b"l" * 16, share=b"s" * 32, software="x" * 64)
    assert len(schema.encode(largest)) < GREETING_BYTES - 1024


@pytest.mark.parametrize(
    ("taken", "named"),
    [
        ((), ()),
        ((MINE,), ()),
        ((ZSTD,), (1, 0, 0)),
        ((INT8,), (0, 4, 0)),
        ((INT8, ZSTD, MINE), (1, 4, 0)),
        ((CodecTag("zstd", 2, True), INT8), (0, 4, 0)),
        ((CodecTag("zstd", 1, False), INT8), (0, 4, 0)),
        ((CodecTag("zlib", 1, True), INT8), (0, 4, 0)),
    ],
)
def test_an_offer_names_what_the_peer_takes(taken: tuple[CodecTag, ...], named: tuple[int, ...]) -> None:
    pair = pair_of((), taken)
    transfer = offer(pair)
    pair.exchange()
    assert only(pair.acceptor, events.Offered) == events.Offered(transfer, MANIFEST, 1, named)
    pair.acceptor.grant(pair.now, transfer, whole(MANIFEST), decode_Bps=7 << 30)
    pair.exchange()
    assert only(pair.dialler, events.Granted) == events.Granted(transfer, whole(MANIFEST), named, 7 << 30)


def test_the_acceptor_names_some_too() -> None:
    pair = pair_of((INT8,), ())
    how: dict[str, Any] = {"timeout_s": 20.0, "deadline_s": 60.0, "klass": 1}
    pair.acceptor.offer(pair.now, MANIFEST, codecs=WANTED, **how)
    pair.exchange()
    assert only(pair.dialler, events.Offered).codecs == (0, 4, 0)


@pytest.mark.parametrize(("ids", "words"), [([1], "names codecs for 1"), ([1] * 4, "names codecs for 4")])
def test_codecs_for_other_groups(ids: list[int], words: str) -> None:
    pair = pair_of((), (ZSTD,))
    pair.tell(pair.acceptor, schema.Offer(1, pack_manifest(MANIFEST), 60.0, 1, ids))
    broken(pair.acceptor, "an offer of 3 groups", words)


@pytest.mark.parametrize("odd", [4, 200, 255])
@pytest.mark.parametrize("taken", [(), (ZSTD,)], ids=["none", "zstd"])
def test_a_codec_that_this_side_does_not_take(odd: int, taken: tuple[CodecTag, ...]) -> None:
    """It had said so: whoever offers it anyway breaks the protocol."""
    pair = pair_of((), taken)
    pair.tell(pair.acceptor, schema.Offer(1, pack_manifest(MANIFEST), 60.0, 1, [0, 0, odd]))
    broken(pair.acceptor, f"an offer names codec {odd}, which this side's hello does not")


@pytest.mark.parametrize("named", [[], [0, 0, 0]])
def test_an_offer_that_names_none(named: list[int]) -> None:
    pair = pair_of()
    pair.tell(pair.acceptor, schema.Offer(1, pack_manifest(MANIFEST), 60.0, 1, named))
    assert only(pair.acceptor, events.Offered).codecs == tuple(named)


# --- fields that cannot be --------------------------------------------------------------------------------------------

TAG = ["zstd", 1, True]
BAD_TAGS: dict[str, list[Any]] = {
    "a name twice": [TAG, ["zstd", 2, True]],
    "an id twice": [TAG, ["int8", 1, False]],
    "the same twice": [TAG, TAG],
    "id 0": [["none", 0, True]],
    "id 256": [["far", 256, True]],
    "id -1": [["odd", -1, True]],
    "an id that is True": [["odd", True, True]],
    "an id that is a text": [["odd", "1", True]],
    "no name": [["", 1, True]],
    "a name that is none": [[None, 1, True]],
    "a name of bytes": [[b"zstd", 1, True]],
    "a name of 65": [["x" * 65, 1, True]],
    "a name that steers a terminal": [["\x1b[2J", 1, True]],
    "a name of two lines": [["a\nb", 1, True]],
    "a name of other letters": [["zstď", 1, True]],
    "lossless 1": [["zstd", 1, 1]],
    "lossless None": [["zstd", 1, None]],
    "two fields": [["zstd", 1]],
    "four fields": [["zstd", 1, True, 0]],
    "no list": ["zstd"],
    "a list of a list": [[TAG]],
    "33": [[f"c{number}", number, True] for number in range(1, 34)],
}


@pytest.mark.parametrize("what", BAD_TAGS)
def test_a_hello_that_cannot_be(what: str) -> None:
    bad = replace(HELLO, codecs=BAD_TAGS[what])
    with pytest.raises(SpecError, match="hello: codecs is"):
        schema.encode(bad)
    content = {name: getattr(bad, name) for name in schema.Hello.CHECKS} | {"t": "hello"}
    pair = Pair(greet=False)
    pair.dialler.receive_data(pair.now, frame(content))
    broken(pair.dialler, "hello: codecs is", "which the protocol does not allow")


BAD_IDS: list[object] = [
    [256, 0, 0], [-1, 0, 0], [True, 0, 0], [None] * 3, ["zstd"] * 3, [1.0] * 3, [[]], [0] * 65, None, 1,
]  # fmt: skip
BAD_FIELDS = [
    *(("codecs", bad) for bad in BAD_IDS),
    *(("decode_Bps", bad) for bad in (-1, 1 << 64, 1.0, True, None, "fast", [1])),
]


@pytest.mark.parametrize(("field", "bad"), BAD_FIELDS)
def test_fields_that_cannot_be(field: str, bad: object) -> None:
    content: dict[str, Any] = {"t": "offer", "transfer": 1, "manifest": pack_manifest(MANIFEST)}
    content |= {"deadline_s": 60.0, "klass": 1, "codecs": []}
    if field == "decode_Bps":
        content = {"t": "grant", "transfer": 1, "runs": pack_runs(whole(MANIFEST)), "cell_bytes": 65536}
    if bad == 1 << 64:  # more than msgpack has
        with pytest.raises(SpecError, match="grant: decode_Bps"):
            schema.encode(schema.GrantMessage(1, [], 65536, 1 << 64))
        return
    with pytest.raises(ProtocolError, match=f"{field} is"):
        schema.decode(frame(content | {field: bad})[schema.LENGTH_BYTES :])


@pytest.mark.parametrize("decode_Bps", [1, (1 << 64) - 1])
def test_a_grant_may_say_any_number(decode_Bps: int) -> None:
    pair = pair_of()
    transfer = offer(pair)
    pair.exchange()
    drain(pair.acceptor)
    pair.acceptor.grant(pair.now, transfer, whole(MANIFEST), decode_Bps=decode_Bps)
    pair.exchange()
    assert only(pair.dialler, events.Granted).decode_Bps == decode_Bps


# --- losses and restarts ----------------------------------------------------------------------------------------------


def test_an_offer_that_was_lost_is_made_again_as_it_was() -> None:
    pair = pair_of((), (ZSTD, INT8))
    transfer = offer(pair)
    pair.lose()
    pair.connect()
    pair.exchange()
    offered = [event for event in drain(pair.acceptor) if isinstance(event, events.Offered)]
    assert offered == [events.Offered(transfer, MANIFEST, 1, (1, 4, 0))]


def test_a_grant_that_a_ledger_tells() -> None:
    """It says nothing of decoding: that was in the GRANT that is lost."""
    pair = pair_of((), (ZSTD, INT8))
    transfer = offer(pair)
    pair.exchange()
    drain(pair.acceptor)
    pair.acceptor.grant(pair.now, transfer, whole(MANIFEST), decode_Bps=1 << 30)
    pair.lose()
    pair.connect()
    pair.exchange()
    drain(pair.acceptor)
    pair.acceptor.ledger(pair.now, transfer, bytes(2))
    pair.exchange()
    granted = [event for event in drain(pair.dialler) if isinstance(event, events.Granted)]
    assert granted == [events.Granted(transfer, whole(MANIFEST), (1, 4, 0), 0)]


def test_another_life_of_the_peer_may_take_less_or_more() -> None:
    pair = pair_of((), (ZSTD, INT8))
    offer(pair)
    pair.exchange()
    lives = (b"2", (ZSTD,), (1, 0, 0)), (b"3", (), ()), (b"4", (INT8, ZSTD), (1, 4, 0))
    for life, codecs, named in lives:
        restart(pair, codecs, life)
        offered = [event for event in drain(pair.acceptor) if isinstance(event, events.Offered)]
        assert [event.codecs for event in offered] == [named]
        pair.acceptor.grant(pair.now, offered[0].transfer, whole(MANIFEST))
        pair.exchange()
        granted = [event for event in drain(pair.dialler) if isinstance(event, events.Granted)]
        assert [event.codecs for event in granted] == [named]


def test_what_is_said_stays_as_it_was_when_a_link_is_resumed() -> None:
    pair = pair_of((ZSTD,), (ZSTD, INT8))
    pair.lose()
    pair.connect()
    (hello,) = messages(pair.dialler.data_to_send())
    assert isinstance(hello, schema.Hello)
    assert hello.codecs == [["zstd", 1, True]]
