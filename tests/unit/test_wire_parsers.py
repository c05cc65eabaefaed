"""Every parser of the control protocol: whole, byte by byte, merged with what follows, and cut at every length."""

from __future__ import annotations

import math
import sys
from dataclasses import fields

import msgpack
import pytest

from kvwire import ModeMismatch, NotKvwire, ProtocolError, SpecError, VersionMismatch
from kvwire.types import BlockRange, Grant
from kvwire.wire import (
    JOIN_BYTES,
    PREAMBLE_BYTES,
    WIRE_VERSION,
    ConnectionKind,
    classify,
    control_preamble,
    parse_join,
    schema,
)
from kvwire.wire.manifest import pack_manifest, pack_runs, unpack_manifest, unpack_runs
from kvwire.wire.preamble import join_bytes, preamble, verify_join
from tests.unit.wire_pair import frame, make_manifest

MANIFEST = make_manifest()
EXAMPLES: list[schema.Message] = [
    schema.Hello(1, ["crc32c"], b"", b"b" * 16, b"r" * 32, b"l" * 16, "kvwire", 4, 256, 1 << 22, [["int8", 4, False]]),
    schema.Finished(b"m" * 32),
    schema.Offer(1, pack_manifest(MANIFEST), 60.0, 1, [1, 0, 200]),
    schema.GrantMessage(1, pack_runs(Grant(((BlockRange(0, 7),), (), (BlockRange(0, 1),)), 65536)), 65536, 1 << 30),
    schema.Refuse(1, "refused", "no room"),
    schema.Abort((1 << 64) - 1, "aborted", "ü" * 2048),
    schema.Drained(1),
    schema.Resume(bytes(8) + b"\x01" * 8),
    schema.Ledger(1, "active", pack_runs(Grant(((BlockRange(0, 7),), (), ()), 65536)), 65536, b"\x7f"),
    schema.Ask(b"l" * 16, 1),
    schema.Answer(b"l" * 16, 1, "committed"),
    schema.Lanes(64),
    schema.LaneTicket(0, 1, b"s" * 32, 30.0),
    schema.LaneClosed(3, 2, "", (1 << 64) - 1),
    schema.Ping(0),
    schema.Pong((1 << 64) - 1),
    schema.Goodbye("closed", ""),
]
WRONG: list[object] = [None, True, {}, math.nan, -1, "x" * 5000, b"x" * 17]  # a ledger may have 17 bytes
WRONG_PARTS: list[object] = [None, -1, 1.5, "", b"x", [], [[]], {}, True, 1 << 63, "\ud800"]


def test_examples_are_complete() -> None:
    assert [type(message) for message in EXAMPLES] == list(schema.MESSAGES.values())


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: m.TYPE)
def test_message(message: schema.Message) -> None:
    data = schema.encode(message)
    assert schema.decode(data[4:]) == message
    reader = schema.MessageReader(1 << 20)
    for at in range(len(data)):
        assert reader.next() is None
        reader.feed(data[at : at + 1])
    assert reader.next() == message
    assert reader.next() is None


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: m.TYPE)
def test_message_cut(message: schema.Message) -> None:
    data = schema.encode(message)
    for cut in range(len(data)):
        reader = schema.MessageReader(1 << 20)
        reader.feed(data[:cut])
        assert reader.next() is None
        if cut >= 4:
            with pytest.raises(ProtocolError):
                schema.decode(data[4:cut])
        reader.feed(data[cut:])
        assert reader.next() == message


def test_merged() -> None:
    data = b"".join(map(schema.encode, EXAMPLES))
    for step in (1, 3, 1000, len(data)):
        reader = schema.MessageReader(1 << 20)
        found = []
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
            while (message := reader.next()) is not None:
                found.append(message)
        assert found == EXAMPLES


def test_limit() -> None:
    data = schema.encode(EXAMPLES[1])
    size = len(data) - 4
    reader = schema.MessageReader(size)
    reader.feed(data)
    assert reader.next() == EXAMPLES[1]
    reader = schema.MessageReader(size - 1)
    reader.feed(data[:4])
    with pytest.raises(ProtocolError, match=str(size)):
        reader.next()


def test_field_of_a_later_version_is_ignored() -> None:
    assert schema.decode(frame({"t": "ping", "token": 7, "colour": [1, {"a": b"b"}]})[4:]) == schema.Ping(7)


@pytest.mark.parametrize("later", [{"a": 1}, [{"a": [1]}], [[]] * 5000, msgpack.ExtType(1, b"x"), 1 << 63, {}])
def test_field_of_a_later_version_is_not_looked_at(later: object) -> None:
    assert schema.decode(msgpack.packb({"t": "ping", "later": later, "token": 7})) == schema.Ping(7)


def test_names_that_a_peer_has_chosen_do_not_stay() -> None:
    """msgpack interns the keys of maps, and CPython 3.12 keeps for ever what is interned."""

    def hear(number: int) -> None:
        names = {f"{number}.{key}": key for key in range(60)}
        assert schema.decode(msgpack.packb({"t": "ping", "token": 7} | names)) == schema.Ping(7)
        for field in ({"t": "offer", "transfer": 1, "manifest": [names]}, {"t": names}, names):
            with pytest.raises(ProtocolError):
                schema.decode(msgpack.packb(field | {"deadline_s": 1.0, "klass": 1}))

    hear(0)
    before = sys.getallocatedblocks()
    for number in range(1, 100):
        hear(number)
    assert sys.getallocatedblocks() < before + 1000


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: m.TYPE)
def test_every_field_is_needed_and_checked(message: schema.Message) -> None:
    assert list(message.CHECKS) == [each.name for each in fields(message)], "what has no check is not sent"
    content = {name: getattr(message, name) for name in message.CHECKS} | {"t": message.TYPE}
    for name in message.CHECKS:
        with pytest.raises(ProtocolError, match=f"without {name}"):
            schema.decode(frame({k: v for k, v in content.items() if k != name})[4:])
        for wrong in WRONG if name != "landed" else WRONG[:-1]:
            with pytest.raises(ProtocolError, match=name):
                schema.decode(frame(content | {name: wrong})[4:])


@pytest.mark.parametrize(
    "body",
    [
        b"\x81" * 100_000,
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdc\x03\xe8" * 600,
        b"\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\x90" * 1024) * 1024,
        b"\x81\xa1t\xa3\xed\xa0\x80",  # a lone surrogate
        b"\x81\x90\x01",  # a list for a key
        b"\x81\x01\x01",
        b"\x82\xa1t\xa4ping\xa5token\xd6\xff\x00\x00\x00\x00",  # a timestamp for a number
        b"\x82\xa1t\xa4ping\xa5token\xc7\x0c\xff" + b"\xff" * 12,
        b"\x82\xa1t\xa4ping\xa5token\xd4\x05\x00",
        b"\x82\xa1t\xa4ping\xa5token\x01\x00",  # something after the end
        b"\xc1",
        b"",
    ],
    ids=lambda body: f"{len(body)}-{body[:6].hex()}",
)
def test_bomb(body: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        schema.decode(body)
    assert len(str(caught.value)) < 1000


def test_own_messages_are_checked_too() -> None:
    with pytest.raises(SpecError, match="count"):
        schema.encode(schema.Lanes(65))


# --- manifests and grants -----------------------------------------------------------------------------------------


def test_manifest_round_trip() -> None:
    assert unpack_manifest(pack_manifest(MANIFEST)) == MANIFEST


def test_manifest_cut_and_grown() -> None:
    packed = pack_manifest(MANIFEST)
    for cut in range(len(packed)):
        with pytest.raises(ProtocolError):
            unpack_manifest(packed[:cut])
    with pytest.raises(ProtocolError):
        unpack_manifest([*packed, 1])
    for index in range(len(packed[5][0])):
        for wrong in WRONG_PARTS:
            group = list(packed[5][0])
            if group[index] == wrong:
                continue
            group[index] = wrong
            with pytest.raises(ProtocolError):
                unpack_manifest([*packed[:5], [group]])


def test_runs_round_trip() -> None:
    runs = ((BlockRange(0, 3), BlockRange(5, 7)), (), (BlockRange(0, 1),))
    assert unpack_runs(list(pack_runs(Grant(runs, 65536)))) == runs


@pytest.mark.parametrize(
    "value",
    [[None], [1], ["runs"], [[]], [b"1234567"], [b"\xff" * 8], [b"\x02\0\0\0\x01\0\0\0"], [bytes(8 * (1 << 16) + 8)]],
    ids=lambda value: repr(value)[:20],
)
def test_bad_runs(value: list[object]) -> None:
    with pytest.raises(ProtocolError):
        unpack_runs(value)


# --- the first bytes ----------------------------------------------------------------------------------------------


def test_preamble() -> None:
    assert classify(control_preamble(plain=True), plain=True) is ConnectionKind.CONTROL
    assert classify(preamble(ConnectionKind.LANE, plain=True), plain=True) is ConnectionKind.LANE


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (b"GET / HTTP/1.1\r\n", "HTTP"),
        (b"POST / HTTP/1.1\r\n", "HTTP"),
        (b"PRI * HTTP/2.0\r\n", "HTTP"),
        (b"HTTP/1.1 400 Bad", "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", "TLS"),
        (b"SSH-2.0-OpenSSH", "SSH"),
        (b"\x00" * 8, "something else"),
        (b"KVWX\x01\x00\x01\x00", "something else"),
        (b"kvwc\x01\x00\x01\x00", "something else"),
    ],
)
def test_stranger_is_named(first: bytes, kind: str) -> None:
    with pytest.raises(NotKvwire, match=kind):
        classify(first[:PREAMBLE_BYTES], plain=True)


@pytest.mark.parametrize("kind", list(ConnectionKind))
def test_other_versions_and_flags(kind: ConnectionKind) -> None:
    for version in (0, WIRE_VERSION + 1, 0xFFFF):
        with pytest.raises(VersionMismatch, match=f"version {version}, this side {WIRE_VERSION}"):
            classify(preamble(kind, plain=True, version=version), plain=True)
    for plain in (True, False):
        assert classify(preamble(kind, plain=plain), plain=plain) is kind
        with pytest.raises(ModeMismatch, match="this side is plain" if plain else "this side is sealed"):
            classify(preamble(kind, plain=not plain), plain=plain)
    for flags in (0, 3, 0x8001, 0xFFFF):
        with pytest.raises(ProtocolError, match=f"{flags:#x}"):
            classify(preamble(kind, plain=True)[:6] + flags.to_bytes(2, "little"), plain=True)


def test_preamble_cut_and_merged() -> None:
    data = control_preamble(plain=True)
    for cut in range(len(data)):
        with pytest.raises(NotKvwire, match=f"{cut} bytes"):
            classify(data[:cut], plain=True)
    with pytest.raises(NotKvwire):
        classify(data + b"x", plain=True)


def test_join() -> None:
    data = join_bytes(b"L" * 16, 3, 2, b"r" * 32, b"s" * 32)
    assert classify(data[:PREAMBLE_BYTES], plain=True) is ConnectionKind.LANE
    body = data[PREAMBLE_BYTES:]
    assert len(body) == JOIN_BYTES
    join = parse_join(body)
    assert (join.link_id, join.lane, join.incarnation, join.random) == (b"L" * 16, 3, 2, b"r" * 32)
    verify_join(join, b"s" * 32)
    with pytest.raises(ProtocolError):
        verify_join(join, b"t" * 32)
    for size in (*range(JOIN_BYTES), JOIN_BYTES + 1):
        with pytest.raises(ProtocolError):
            parse_join((body + b"x")[:size])
    for bit in range(JOIN_BYTES * 8):
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError, match="MAC"):
            verify_join(parse_join(bytes(flipped)), b"s" * 32)
