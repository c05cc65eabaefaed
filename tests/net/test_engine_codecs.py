"""Cells that go through codecs between two engines: what lands, what is counted, and peers that lie about payloads."""

import os
import random
import struct
from collections.abc import Callable

import numpy as np
import pytest

from kvwire._ext.codec import Cell, Native, Scratch, of_python
from kvwire._ext.coding import Coding, Gauge
from kvwire._ext.frame import encode
from kvwire._ext.incoming import InTransfer
from kvwire._ext.lanes import FAULTS, EngineLink
from kvwire._ext.outgoing import OutTransfer
from kvwire.codecs import cell, find_codec
from kvwire.codecs.choice import LOSSLESS
from kvwire.errors import SpecError
from kvwire.types import DType, GroupSpec
from tests.net.engines import CELL, PATIENCE_S, Memory, Pair, all_ready, closures, commit, frames, raw_peer, until

pytestmark = pytest.mark.usefixtures("nothing_left")

ZSTD = find_codec("zstd").native
INT8 = find_codec("int8").native
SPEC = GroupSpec.attention("full", range(2), DType.BF16, block_tokens=16, heads=2, head_dim=32)
BLOCK = SPEC.block_bytes
SHAPES = [(12, BLOCK), (9, BLOCK), (3, 1000)]
KINDS = [cell(SPEC, 0), cell(SPEC, 1), Cell(0, 1, [(1, 1, 1000, False)])]


def normal(memory: Memory, seed: int = 1) -> None:
    """Fills the segments with numbers in bfloat16 that shrink as keys and values do; the last one does not shrink."""
    draw = np.random.default_rng(seed)
    for segment, index in enumerate(memory.indexes):
        numbers = draw.normal(0, 1, (len(index) + 1) // 2).astype(np.float32)
        halves = (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        noise = draw.integers(0, 256, len(index), np.uint8)
        memory.arrays[segment][index] = noise if segment == 2 else halves[: len(index)]


def codings(codec: Native, gauges: list[Gauge] | None = None) -> list[Coding | None]:
    return [Coding(codec, kind, gauges[number] if gauges else None) for number, kind in enumerate(KINDS)]


@pytest.mark.usefixtures("sealing")
@pytest.mark.parametrize("pages", [1, 3])
@pytest.mark.parametrize("lanes", [1, 3])
def test_lossless(pages: int, lanes: int) -> None:
    source, target = Memory(SHAPES, pages=pages, row_bytes=40), Memory(SHAPES, seed=2)
    normal(source)
    with Pair(lanes) as pair:
        for number in range(3):
            out, inc = pair.transfer(source, target, id=2 + 2 * number, attachment=True, codings=codings(ZSTD))
            out.attach(b"not coded")
            all_ready(out, source)
            commit(out, inc)
            assert inc.attachment == b"not coded"
            assert out.coded() == inc.coded()
            for segment, (plain, wire) in enumerate(out.coded()):
                assert (plain, wire) == (0, 0) if segment == 2 else 1.2 * wire < plain <= len(source.content()[segment])
        assert target.content() == source.content()
        assert target.poisoned_outside()
        sent, received = pair.sender.link_stats(), pair.receiver.link_stats()
        total = sum(map(len, source.content()))
        assert sent["encoded_bytes"] == 3 * total
        assert sent["encode_ns"] > 0
        assert received["decode_ns"] > 0
        assert sent["coded_plain_bytes"] == received["decoded_bytes"] == 3 * sum(plain for plain, _ in out.coded())
        assert sent["coded_wire_bytes"] == 3 * sum(wire for _, wire in out.coded())
        assert sent["sent_bytes"] < 0.85 * 3 * total
        until(lambda: pair.sender.link_stats()["inflight_bytes"] == 0, "acknowledgements")
        assert pair.sender.link_stats()["acked_bytes"] == 3 * (total + len(b"not coded"))


@pytest.mark.usefixtures("sealing")
def test_lossy_is_what_the_codec_makes_of_each_cell() -> None:
    source, target = Memory(SHAPES[:2]), Memory(SHAPES[:2], seed=2)
    normal(source)
    scratch = Scratch()
    with Pair() as pair:
        out, inc = pair.transfer(source, target, codings=codings(INT8)[:2])
        all_ready(out, source)
        commit(out, inc)
        for segment, (before, after) in enumerate(zip(source.content(), target.content(), strict=True)):
            assert before != after
            for at in range(0, len(before), CELL):
                kind = cell(SPEC, segment, at)
                piece = before[at : at + CELL]
                payload = INT8.encode(kind, piece, scratch)
                assert payload is not None
                assert after[at : at + CELL] == INT8.decode(kind, payload, len(piece), scratch)


def test_what_automatic_codecs_take_is_told_apart() -> None:
    """`auto` is judged by its own codec, whatever else is named on a link."""
    automatic = find_codec(LOSSLESS).native
    source, target = Memory(SHAPES[:2]), Memory(SHAPES[:2], seed=2)
    normal(source)
    with Pair() as pair:
        mixed: list[Coding | None] = [
            Coding(codec, kind) for codec, kind in zip((automatic, INT8), KINDS[:2], strict=True)
        ]
        out, inc = pair.transfer(source, target, codings=mixed)
        all_ready(out, source)
        commit(out, inc)
        sent, received = pair.sender.link_stats(), pair.receiver.link_stats()
        first, second = map(len, source.content())
        assert (sent["encoded_bytes"], sent["auto_encoded_bytes"]) == (first + second, first)
        assert 0 < sent["auto_encode_ns"] < sent["encode_ns"]
        assert received["auto_decoded_bytes"] == out.coded()[0][0]
        assert received["decoded_bytes"] == sum(plain for plain, _ in out.coded()) > received["auto_decoded_bytes"]
        assert 0 < received["auto_decode_ns"] < received["decode_ns"]


def test_without_a_gain_cells_go_as_they_are() -> None:
    source, target = Memory(SHAPES, filled=True), Memory(SHAPES, seed=2)
    with Pair() as pair:
        out, inc = pair.transfer(source, target, codings=codings(ZSTD))
        all_ready(out, source)
        commit(out, inc)
        assert target.content() == source.content()
        assert out.coded() == inc.coded() == [(0, 0)] * 3
        assert pair.sender.link_stats()["encoded_bytes"] == sum(map(len, source.content()))


def test_a_gauge_chooses() -> None:
    """Few samples while the link is too fast, and from the first cell on once it can be afforded."""
    source, target = Memory(SHAPES), Memory(SHAPES, seed=2)
    normal(source)
    gauges = [Gauge() for _ in SHAPES]
    with Pair() as pair:

        def one(number: int) -> OutTransfer:
            out, inc = pair.transfer(source, target, id=number, codings=codings(ZSTD, gauges))
            all_ready(out, source)
            commit(out, inc)
            assert target.content() == source.content()
            return out

        one(2)
        assert 1 <= sum(gauge.samples for gauge in gauges) <= 8
        pair.sender.set_affordable(True)
        one(4)
        full = one(6)
        assert [gauge.on for gauge in gauges] == [True, True, False]
        assert [plain for plain, _ in full.coded()] == [len(content) for content in source.content()[:2]] + [0]
        pair.sender.set_affordable(False)
        before = sum(gauge.samples for gauge in gauges)
        one(8)
        assert sum(gauge.samples for gauge in gauges) - before <= 8


def test_a_codec_in_python() -> None:
    """It takes the GIL in the worker, and no lock is held then."""
    seen: list[tuple[int, int]] = []

    def halve(kind: Cell, data: memoryview) -> bytes | None:
        seen.append((kind.layer, kind.offset))
        return bytes(data[::2]) if len(data) % 2 == 0 else None

    def double(kind: Cell, payload: memoryview, n: int) -> bytes:
        return bytes(byte for byte in payload for _ in (0, 1))

    codec = of_python("pairs", 200, halve, double)
    source, target = Memory(SHAPES[:2]), Memory(SHAPES[:2], seed=2)
    for array, index in zip(source.arrays, source.indexes, strict=True):
        array[index] = np.arange(len(index)) // 2 % 251
    with Pair() as pair:
        out, inc = pair.transfer(source, target, codings=codings(codec)[:2])
        all_ready(out, source)
        commit(out, inc)
        assert target.content() == source.content()
        assert out.coded() == [(len(content), len(content) // 2) for content in source.content()]
    assert {layer for layer, _ in seen} == {0, 1}
    assert {offset for _, offset in seen} == {at % BLOCK for at in range(0, 12 * BLOCK, CELL)}


@pytest.mark.parametrize("where", ["encode", "decode"])
def test_a_codec_that_raises(where: str) -> None:
    def encode_cell(kind: Cell, data: memoryview) -> bytes:
        if where == "encode":
            raise RuntimeError
        return b"short"

    def decode_cell(kind: Cell, payload: memoryview, n: int) -> bytes:
        raise RuntimeError

    codec = of_python("broken", 201, encode_cell, decode_cell)
    source, target = Memory(SHAPES[:2], filled=True), Memory(SHAPES[:2], seed=2)
    with Pair(1) as pair:
        out, inc = pair.transfer(source, target, codings=codings(codec)[:2])
        all_ready(out, source)
        if where == "encode":
            commit(out, inc)
            assert target.content() == source.content()
            return
        [(_, _, reason, text, _)] = closures(pair.receiver)
        assert reason in FAULTS
        assert text == "a payload that its codec cannot have made"
        assert inc.cells[0] == 0
        assert target.untouched()


def test_a_turn_ends_however_much_the_cells_shrink() -> None:
    """The worker looks at what has come before it has encoded all: here 20 turns, of which hardly a byte leaves."""
    seen: list[int] = []

    def shrink(kind: Cell, data: memoryview) -> bytes:
        seen.append(len(data))
        return b"!"

    codec = of_python("nothing", 202, shrink, lambda kind, payload, n: bytes(n))
    source, target = Memory([(10_000, BLOCK)]), Memory([(10_000, BLOCK)], seed=2)
    with Pair(1, workers=1) as pair:
        out, inc = pair.transfer(source, target, codings=[Coding(codec, KINDS[0])])
        all_ready(out, source)
        until(lambda: out.cells[0] > 0, "the first acknowledgement")
        assert len(seen) < 10_000
        commit(out, inc)


@pytest.mark.usefixtures("sealing")
def test_lanes_that_are_lost_in_the_middle() -> None:
    source, target = Memory([(200, BLOCK), (200, BLOCK)]), Memory([(200, BLOCK), (200, BLOCK)], seed=2)
    normal(source)
    with Pair(2) as pair:
        for number in range(20):
            out, inc = pair.transfer(source, target, id=2 + 2 * number, codings=codings(ZSTD)[:2])
            all_ready(out, source)
            pair.sender.close_lane(number % 2)
            closures(pair.sender)
            pair.add_lane(number % 2, number + 1)
            commit(out, inc)
            assert target.content() == source.content()
            pair.receiver.take_closed()


def test_an_abort_in_the_middle_reads_no_page_afterwards() -> None:
    with Pair(2) as pair:
        for number in range(100):
            source, target = Memory(SHAPES), Memory(SHAPES, seed=2)
            normal(source)
            out, inc = pair.transfer(source, target, id=2 + 2 * number, codings=codings(ZSTD))
            all_ready(out, source)
            if number % 2:
                out.abort()
                inc.abort()
            else:
                inc.abort()
                out.abort()
            for array in source.arrays:
                array[:] = 0
            before = target.snapshot()
            assert target.snapshot() == before


def test_the_cap_on_what_is_in_flight_is_about_the_wire() -> None:
    """Of a peer that acknowledges nothing: more bytes of cells are under way than the cap, and not more of payload than
    that and a claim."""
    source, cap, claim = Memory([(200, BLOCK)]), 300_000, 4 * 16 * 1024
    normal(source)
    with raw_peer() as (link, peer):
        out = OutTransfer(link, 2, source.segments, CELL, False, codings=codings(ZSTD)[:1])
        link.set_pace(0, 0, 0, cap)
        out.ready(0, 0, 200)
        for _ in frames(peer, cap // CELL):
            pass
        until(lambda: link.link_stats()["paced_ns"] > 0, "the cap")
        assert link.link_stats()["inflight_bytes"] > 1.1 * cap
        assert 0.85 * cap <= link.link_stats()["coded_wire_bytes"] < cap + claim


def good_payload() -> tuple[bytes, bytes]:
    source = Memory([(4, BLOCK)])
    normal(source)
    data = source.content()[0][:CELL]
    payload = ZSTD.encode(cell(SPEC), data, Scratch())
    assert payload is not None
    return data, payload


DATA, PAYLOAD = good_payload()


def sends(sequence: int = 0, *, codec: int = 1, payload: bytes = PAYLOAD, plain: int = CELL, at: int = 0) -> bytes:
    return encode("data", sequence, 2, 0, at, payload, codec, plain)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (sends(codec=2), "a cell in a codec that was not agreed on"),
        (sends(codec=255), "a cell in a codec that was not agreed on"),
        (encode("data", 0, 2, 1, 0, PAYLOAD, 1, CELL), "a cell in a codec that was not agreed on"),
        (encode("data", 0, 2, 2, 0, PAYLOAD, 1, CELL), "a cell in a codec that was not agreed on"),
        (sends(plain=CELL + 1), "a cell outside the grant"),
        (sends(plain=len(PAYLOAD) + 1), "a cell outside the grant"),
        (sends(plain=256 * 1024 + 1), "a frame with a wrong length"),
        (sends(plain=2**32 - 1), "a frame with a wrong length"),
        (sends(payload=b""), "a frame with a wrong length"),
        (sends(payload=bytes(CELL)), "a frame with a wrong length"),
        (sends(payload=bytes(CELL + 1)), "a frame with a wrong length"),
        (sends(payload=PAYLOAD[:-1]), "a payload that its codec cannot have made"),
        (sends(payload=PAYLOAD + b"\0"), "a payload that its codec cannot have made"),
        (sends(payload=b"\0"), "a payload that its codec cannot have made"),
        (sends(payload=struct.pack("<II", 2**32 - 1, 5) + PAYLOAD[8:]), "a payload that its codec cannot have made"),
        (sends(payload=PAYLOAD[:8] + os.urandom(200)), "a payload that its codec cannot have made"),
        (sends(codec=0), "a frame with a wrong length"),
        (encode("receipt", 0, 2, codec=1), "a frame with a wrong codec"),
        (encode("ack", 0, payload=bytes(16), codec=1, plain_len=32), "a frame with a wrong codec"),
    ],
)
def test_a_lie_about_a_payload_ends_the_lane_and_writes_nothing(lie: bytes, reason: str) -> None:
    target = Memory([(4, BLOCK), (4, BLOCK)])
    with raw_peer() as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, True, [Coding(ZSTD, cell(SPEC)), None])
        peer.sendall(lie)
        [(_, _, why, text, _)] = closures(link)
        assert text == reason
        assert why in FAULTS
        assert inc.cells[0] == 0
        assert inc.coded() == [(0, 0)] * 2
    assert target.untouched()


def test_a_bomb_is_as_long_as_a_cell_at_most() -> None:
    """Whatever a frame of zstd says of its content: no plane is longer than the cell has it."""
    zeros = bytes(CELL)
    flat = ZSTD.encode(cell(SPEC), zeros, Scratch())
    assert flat is not None
    assert len(flat) < 100
    target = Memory([(4, BLOCK)])
    with raw_peer() as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, False, [Coding(ZSTD, cell(SPEC))])
        for number in range(4 * BLOCK // CELL):
            peer.sendall(encode("data", number, 2, 0, number, flat, 1, CELL))
        assert inc.wait(PATIENCE_S) == "committed"
        assert inc.coded() == [(4 * BLOCK, 4 * BLOCK // CELL * len(flat))]
    assert target.content() == [bytes(4 * BLOCK)]


def test_payloads_of_any_bytes() -> None:
    """A damaged payload lands as some cell of the same length, or ends the lane; memory around the slots stays."""
    draw = random.Random(1)
    for _ in range(300):
        target = Memory([(4, BLOCK)])
        mangled = bytearray(PAYLOAD)
        for _ in range(draw.randint(1, 8)):
            mangled[draw.randrange(len(mangled))] = draw.randrange(256)
        with raw_peer() as (link, peer):
            inc = InTransfer(link, 2, target.segments, CELL, False, [Coding(ZSTD, cell(SPEC))])
            peer.sendall(sends(payload=bytes(mangled)))

            def settled(link: EngineLink = link, inc: InTransfer = inc) -> bool:
                return inc.cells[0] == 1 or link.lanes_open == 0

            until(settled, "the payload")
        assert target.poisoned_outside()


def test_a_cell_that_comes_twice_is_decoded_once() -> None:
    target = Memory([(4, BLOCK)])
    with raw_peer() as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, False, [Coding(ZSTD, cell(SPEC))])
        peer.sendall(sends() + sends(1) + encode("data", 2, 2, 0, 0, DATA))
        until(lambda: inc.duplicates == 2, "three frames")
        assert inc.coded() == [(CELL, len(PAYLOAD))]
        assert link.link_stats()["decoded_bytes"] == CELL
        assert inc.cells[0] == 1
        assert target.content()[0][:CELL] == DATA


def test_the_header_says_what_was_done() -> None:
    source = Memory([(4, BLOCK)])
    normal(source)
    with raw_peer() as (link, peer):
        out = OutTransfer(link, 2, source.segments, CELL, False, codings=[Coding(ZSTD, cell(SPEC))])
        out.ready(0, 0, 4)
        for number, frame in enumerate(frames(peer, 4 * BLOCK // CELL)):
            plain, wire = struct.unpack_from("<II", frame, 36)
            assert (frame[7], plain, wire) == (1, CELL, len(frame) - 48)
            kind = cell(SPEC, 0, number * CELL)
            piece = source.content()[0][number * CELL : number * CELL + CELL]
            assert ZSTD.decode(kind, frame[48:], CELL, Scratch()) == piece


@pytest.mark.parametrize("make", [InTransfer, OutTransfer])
def test_a_coding_for_each_segment(make: Callable[..., InTransfer | OutTransfer]) -> None:
    memory = Memory(SHAPES)
    with Pair(0) as pair, pytest.raises(SpecError, match="2 codings for 3 segments"):
        make(pair.sender, 2, memory.segments, CELL, False, codings=codings(ZSTD)[:2])
