"""A sealed lane whose peer, or somebody on the path, changes what goes over it: the lane ends, nothing else changes."""

import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from kvwire._ext import cipher
from kvwire._ext.frame import encode
from kvwire._ext.incoming import InTransfer
from kvwire._ext.lanes import FAULTS, TAG_FAILURE, EngineLink
from kvwire._ext.outgoing import OutTransfer
from kvwire._ext.seal import MOST, Opener, Sealer
from tests.net.engines import CELL, PATIENCE_S, Memory, Pair, all_ready, closures, commit, raw_peer, tcp_pair, until
from tests.unit.sealing import HEADER, TAG_BYTES, sealed

pytestmark = pytest.mark.usefixtures("nothing_left")

SHAPES = [(2, CELL), (1, CELL + 100)]
FULL = bytes(CELL)
OURS, THEIRS = bytes(range(32)), bytes(range(32, 64))  # the engine's secret of sending, and of receiving
STRANGERS = bytes(range(64, 96))
LIMIT = 1 << 18


def cell(
    secret: bytes = THEIRS,
    epoch: int = 1,
    sequence: int = 0,
    payload: bytes = FULL,
    *,
    transfer: int = 2,
    segment: int = 0,
    cell: int = 0,
) -> bytes:
    """The first one of the transfer that the tests grant, as the peer seals it, unless said otherwise."""
    return sealed(secret, epoch, sequence, payload, transfer=transfer, segment=segment, cell=cell)


def ack(next_seq: int, sequence: int = 0) -> bytes:
    return sealed(THEIRS, 1, sequence, struct.pack("<IIQ", 0, 0, next_seq), type="ack")


def flipped(frame: bytes, bit: int) -> bytes:
    at = bit >> 3
    return frame[:at] + bytes([frame[at] ^ 1 << (bit & 7)]) + frame[at + 1 :]


def opened(peer: socket.socket, count: int) -> Iterator[tuple[str, int, int, int, bytes]]:
    """The next frames that the engine sends: type, transfer, segment, cell, payload."""
    opener, data = Opener(cipher.of_package(), OURS), b""
    while opener.sequence < count:
        found = opener.open(data, LIMIT)
        if len(found) == 2:
            assert found[0] == "incomplete"
            more = peer.recv(1 << 16)
            assert more, "the engine closed the lane"
            data += more
        else:
            yield found[2:]
            data = data[found[1] :]


def test_an_honest_peer_by_hand() -> None:
    """In the peer's own keys, a byte at a time, over a re-key."""
    target = Memory([(1, 200), (1, 100)])
    with raw_peer((OURS, THEIRS)) as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, True)
        sent = [
            cell(payload=b"a" * 200),
            cell(epoch=2, sequence=1, payload=b"b" * 100, segment=1),
            cell(epoch=2, sequence=2, payload=b"value", segment=2),
        ]
        for byte in b"".join(sent):
            peer.sendall(bytes([byte]))
        assert inc.wait(PATIENCE_S) == "committed"
        assert inc.attachment == b"value"
        assert link.lane_stats()[0]["received_epoch"] == 2
        assert "receipt" in (kind for kind, *_ in opened(peer, 400))  # behind as many acknowledgements as bytes at most
        assert link.take_closed() == []
    assert target.content() == [b"a" * 200, b"b" * 100]


def test_frames_go_out_as_written_down() -> None:
    source = Memory([(3, 3000)], filled=True)
    content = source.content()[0]
    with raw_peer((OURS, THEIRS), rekey=(MOST[0], 3, MOST[2])) as (link, peer):
        out = OutTransfer(link, 6, source.segments, CELL, True)
        out.ready(0, 0, 3)
        out.attach(b"tail")
        assert list(opened(peer, 4)) == [
            ("data", 6, 0, 0, content[:CELL]),
            ("data", 6, 0, 1, content[CELL : 2 * CELL]),
            ("data", 6, 0, 2, content[2 * CELL :]),
            ("data", 6, 1, 0, b"tail"),
        ]
        assert link.lane_stats()[0]["sent_epoch"] == 2
        peer.sendall(ack(3) + sealed(THEIRS, 1, 1, type="receipt", transfer=6))
        assert out.wait(PATIENCE_S) == "committed"
        assert link.lane_stats()[0]["acked_bytes"] == len(content)


TAG = "a frame with a wrong tag"


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (encode("data", 0, 2, 0, 0, FULL), "a frame with a wrong epoch"),
        (encode("data", 0, 2, 0, 0, FULL)[: HEADER.size], "a frame with a wrong epoch"),
        (encode("receipt", 0, 2), "a frame with a wrong epoch"),
        (cell(OURS), TAG),
        (cell(STRANGERS), TAG),
        (cell(STRANGERS, 2), TAG),
        (cell(epoch=3), "a frame with a wrong epoch"),
        (cell(sequence=1), "a frame with a wrong sequence"),
        (cell()[:-TAG_BYTES] + bytes(TAG_BYTES), TAG),
        (cell()[:-1] + cell(sequence=1), TAG),
        (cell(payload=bytes(LIMIT + 1))[: HEADER.size], "a frame with a wrong length"),
        (cell(transfer=4), "a cell of a transfer that was never granted"),
        (cell(cell=2), "a cell outside the grant"),
        (cell(segment=2), "a cell outside the grant"),
        (cell(payload=FULL[1:]), "a cell outside the grant"),
        (cell(payload=FULL + b"x"), "a cell outside the grant"),
        (cell(payload=b""), "a cell outside the grant"),
        (ack(1), "an acknowledgement of frames that were never sent"),
        (cell()[:-1], "the peer closed the connection"),
    ],
)
def test_a_lie_ends_the_lane_and_writes_nothing(sent: bytes, reason: str) -> None:
    target = Memory(SHAPES)
    with raw_peer((OURS, THEIRS)) as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, False)
        peer.sendall(sent)
        if reason == "the peer closed the connection":
            peer.shutdown(socket.SHUT_WR)
        [(lane, incarnation, code, text, in_order)] = closures(link)
        assert (lane, incarnation, text) == (0, 0, reason)
        assert (code in FAULTS) is (reason != "the peer closed the connection")
        assert (code == TAG_FAILURE) is (reason == TAG)
        assert in_order <= 1
        assert inc.cells == (0, 4)
    assert target.untouched()


def test_a_sealed_frame_on_a_plain_lane() -> None:
    target = Memory(SHAPES)
    with raw_peer() as (link, peer):
        InTransfer(link, 2, target.segments, CELL, False)
        peer.sendall(cell())
        assert closures(link)[0][3] == "a frame with a wrong epoch"
    assert target.untouched()


@pytest.mark.parametrize("first", [1, 2])
def test_a_frame_that_comes_again(first: int) -> None:
    """And one of an epoch that is over."""
    target = Memory(SHAPES)
    with raw_peer((OURS, THEIRS)) as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, False)
        frame = cell(epoch=first)
        peer.sendall(frame + (frame if first == 1 else cell(epoch=1, sequence=1, cell=1)))
        assert closures(link)[0][3] == f"a frame with a wrong {'sequence' if first == 1 else 'epoch'}"
        assert inc.cells == (1, 4)
        assert inc.duplicates == 0


def test_what_the_engine_sent_comes_back() -> None:
    """Both sides use the same transfer number here, so that nothing but the key tells the directions apart."""
    source, target = Memory([(1, CELL)], filled=True), Memory([(1, CELL)], seed=2)
    with raw_peer((OURS, THEIRS)) as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, False)
        out = OutTransfer(link, 2, source.segments, CELL, False)
        out.ready(0, 0, 1)
        peer.sendall(peer.recv(HEADER.size + CELL + TAG_BYTES, socket.MSG_WAITALL))
        closed = closures(link)[0]
        assert (closed[2], closed[3]) == (TAG_FAILURE, TAG)
        assert inc.cells == (0, 1)
    assert target.untouched()


def test_bits_flipped_on_the_wire() -> None:
    """A sample over sockets; tests/unit/test_seal.py flips every one."""
    target = Memory(SHAPES)
    frame = cell()
    everywhere = random.Random(3).sample(range(8 * HEADER.size, 8 * len(frame)), 40)
    for bit in [*range(3, 8 * HEADER.size, 8), *everywhere, 8 * len(frame) - 1]:
        with raw_peer((OURS, THEIRS)) as (link, peer):
            inc = InTransfer(link, 2, target.segments, CELL, False)
            peer.sendall(flipped(frame, bit))
            [(_, _, code, reason, _)] = closures(link)
            assert code in FAULTS
            if bit >= 8 * HEADER.size:
                assert (code, reason) == (TAG_FAILURE, TAG)
            assert inc.cells == (0, 4)
    assert target.untouched()


def relay(source: socket.socket, sink: socket.socket, flip_at: int) -> None:
    """Pass on what comes; one bit of byte `flip_at` changes its mind. Ends with either side."""
    passed = 0
    try:
        while data := source.recv(1 << 16):
            if passed <= flip_at < passed + len(data):
                data = flipped(data, 8 * (flip_at - passed))
            passed += len(data)
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        end.close()


@pytest.mark.parametrize("flip_at", [30, 50, 300_000, 1_000_001])
def test_somebody_on_the_path(flip_at: int) -> None:
    """One lane's bytes are changed on their way: it ends, its cells go over the other one, and every byte is right."""
    source, target = Memory([(16, 1 << 18)], filled=True), Memory([(16, 1 << 18)], seed=2)
    with Pair(0, cipher=cipher.find()) as pair:
        ours, entry = tcp_pair()
        exit_, theirs = tcp_pair()
        thread = threading.Thread(target=relay, args=(entry, exit_, flip_at))
        thread.start()
        pair.join(ours, theirs, 0, 0)
        out, inc = pair.transfer(source, target)
        all_ready(out, source)
        [(lane, _, code, _, _)] = closures(pair.receiver)
        assert lane == 0
        assert code in FAULTS
        assert inc.state == "active"
        pair.sender.close_lane(0)  # the relay may be waiting for more: the control connection would tell the sender
        pair.add_lane(1)
        commit(out, inc)
        assert closures(pair.sender)[0][0] == 0
        thread.join(PATIENCE_S)
    assert target.content() == source.content()
    assert target.poisoned_outside()


def stalled(link: EngineLink) -> bool:
    """Whether the kernel has taken nothing for a while."""
    sent = link.lane_stats()[0]["sent_bytes"]
    time.sleep(0.1)
    return sent > 0 and link.lane_stats()[0]["sent_bytes"] == sent


def test_pages_are_read_while_they_are_sealed_and_no_longer() -> None:
    """A peer that does not read keeps no page: an abort returns, the pages change, and what comes is what was there."""
    source = Memory([(64, 1 << 16)], filled=True)
    content = source.content()[0]
    with raw_peer((OURS, THEIRS), narrow=True) as (link, peer):
        out = OutTransfer(link, 2, source.segments, CELL, False)
        out.ready(0, 0, 64)
        until(lambda: stalled(link), "the kernel to refuse more")
        started = time.monotonic()
        assert out.abort() == "aborted"
        assert time.monotonic() - started < 5
        for array in source.arrays:
            array[:] = 0
        left = link.lane_stats()[0]["sent_frames"]
        assert 0 < left < 1024
        for number, frame in enumerate(opened(peer, left)):
            assert frame == ("data", 2, 0, number, content[CELL * number : CELL * (number + 1)])
        assert select.select([peer], [], [], 0.05)[0] == []


def test_noise_of_any_kind() -> None:
    rng = np.random.default_rng(9)
    target = Memory(SHAPES)
    for _ in range(30):
        with raw_peer((OURS, THEIRS)) as (link, peer):
            inc = InTransfer(link, 2, target.segments, CELL, True)
            frame = bytearray(cell())
            for at in rng.integers(0, len(frame), 3):
                frame[at] = (frame[at] + 1 + rng.integers(0, 255)) % 256
            peer.sendall(bytes(frame))
            peer.shutdown(socket.SHUT_WR)
            closures(link)
            assert inc.cells[0] == 0
    assert target.untouched()


def test_a_peer_with_the_other_provider() -> None:
    """The wire does not tell which one sealed a frame."""
    source = Memory([(4, 1 << 16)], filled=True)
    target = Memory([(4, 1 << 16)], seed=2)
    sealer = Sealer(cipher.of_package(), THEIRS, (MOST[0], 7, MOST[2]))
    content = source.content()[0]
    with raw_peer((OURS, THEIRS)) as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, False)
        for number in range(64):
            peer.sendall(sealer.seal("data", 2, 0, number, content[CELL * number : CELL * (number + 1)]))
        assert inc.wait(PATIENCE_S) == "committed"
        assert link.lane_stats()[0]["received_epoch"] == 1 + 63 // 7
    assert target.content()[0] == content
