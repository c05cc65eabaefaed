"""A peer that lies, in a socket of the test's own: its lane ends, nothing else changes."""

import contextlib
import resource
import socket
import struct
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kvwire._ext.frame import encode
from kvwire._ext.incoming import InTransfer
from kvwire._ext.lanes import EngineLink
from kvwire._ext.layout import Segment
from kvwire._ext.outgoing import OutTransfer
from tests.net.engines import CELL, PATIENCE_S, Memory, closures, frame_type, frames, raw_peer, tcp_pair, until

pytestmark = pytest.mark.usefixtures("nothing_left")

SHAPES = [(2, CELL), (1, CELL + 100)]
FULL = bytes(CELL)


def damaged(frame: bytes, at: int) -> bytes:
    return frame[:at] + bytes([frame[at] ^ 0x10]) + frame[at + 1 :]


def ack(lane: int, incarnation: int, next_seq: int, sequence: int = 0) -> bytes:
    return encode("ack", sequence, payload=struct.pack("<IIQ", lane, incarnation, next_seq))


def transfer_of(frame: bytes) -> int:
    return int.from_bytes(frame[24:32], "little")


def cell_of(frame: bytes) -> int:
    return int.from_bytes(frame[32:36], "little")


def test_an_honest_peer_by_hand() -> None:
    target = Memory(SHAPES)
    with raw_peer() as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, True)
        cells = [(0, 0, b"a" * CELL), (0, 1, b"b" * CELL), (2, 0, b"value"), (1, 1, b"d" * 100), (1, 0, b"c" * CELL)]
        for sequence, (segment, cell, payload) in enumerate(cells):
            peer.sendall(encode("data", sequence, 2, segment, cell, payload))
        assert inc.wait(PATIENCE_S) == "committed"
        assert inc.attachment == b"value"
        assert inc.completed() == [0, 2, 1]
        assert 3 in [frame_type(frame) for frame in frames(peer, 2)]
        peer.sendall(encode("data", 5, 2, 0, 0, b"x" * CELL))  # late and of an old transfer: dropped
        peer.sendall(ack(0, 0, 2, sequence=6))
        until(lambda: link.lane_stats()[0]["received_frames"] == 7, "the late frames")
        assert link.take_closed() == []
    assert target.content() == [b"a" * CELL + b"b" * CELL, b"c" * CELL + b"d" * 100]
    assert target.poisoned_outside()


def test_a_byte_at_a_time() -> None:
    target = Memory([(1, 200)])
    with raw_peer() as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, False)
        for byte in encode("data", 0, 2, payload=bytes(range(200))):
            peer.sendall(bytes([byte]))
        assert inc.wait(PATIENCE_S) == "committed"
    assert target.content() == [bytes(range(200))]


GOOD = encode("data", 0, 2, 0, 0, FULL)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: text/plain\r\n\r\n", "a frame with a wrong magic"),
        (bytes(100), "a frame with a wrong magic"),
        (damaged(GOOD, 4), "a frame with a wrong version"),
        (damaged(GOOD, 5), "a frame with a wrong type"),
        (encode("data", 1, 2, 0, 0, FULL), "a frame with a wrong sequence"),
        (damaged(GOOD, 44), "a frame with a wrong checksum"),
        (damaged(GOOD, 24), "a frame with a wrong checksum"),
        (damaged(GOOD, 60), "a frame with a wrong checksum"),
        (damaged(GOOD, len(GOOD) - 1), "a frame with a wrong checksum"),
        (damaged(GOOD, 43), "a frame with a wrong length"),
        (encode("data", 0, 2, 0, 0, bytes(256 * 1024 + 1)), "a frame with a wrong length"),
        (encode("data", 0, 4, 0, 0, FULL), "a cell of a transfer that was never granted"),
        (encode("data", 0, 2**64 - 1, 0, 0, FULL), "a cell of a transfer that was never granted"),
        (encode("data", 0, 2, 0, 2, FULL), "a cell outside the grant"),
        (encode("data", 0, 2, 0, 2**32 - 1, FULL), "a cell outside the grant"),
        (encode("data", 0, 2, 2, 0, FULL), "a cell outside the grant"),
        (encode("data", 0, 2, 2**32 - 1, 0, FULL), "a cell outside the grant"),
        (encode("data", 0, 2, 0, 0, FULL[1:]), "a cell outside the grant"),
        (encode("data", 0, 2, 0, 0, FULL + b"x"), "a cell outside the grant"),
        (encode("data", 0, 2, 0, 0, b""), "a cell outside the grant"),
        (encode("data", 0, 2, 1, 1, FULL), "a cell outside the grant"),
        (ack(0, 0, 1), "an acknowledgement of frames that were never sent"),
        (ack(0, 0, 2**64 - 1), "an acknowledgement of frames that were never sent"),
        (GOOD[:-1], "the peer closed the connection"),
        (b"", "the peer closed the connection"),
    ],
)
def test_a_lie_ends_the_lane_and_writes_nothing(sent: bytes, reason: str) -> None:
    target = Memory(SHAPES)
    with raw_peer() as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, False)
        peer.sendall(sent)
        if reason == "the peer closed the connection":
            peer.shutdown(socket.SHUT_WR)
        [(lane, incarnation, _, text, in_order)] = closures(link)
        assert (lane, incarnation, text) == (0, 0, reason)
        assert in_order <= 1
        assert inc.state == "active"
        assert inc.cells == (0, 4)
        assert link.lanes_open == 0
    assert target.untouched()


def test_a_lie_after_the_truth() -> None:
    target = Memory(SHAPES)
    with raw_peer() as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, False)
        peer.sendall(GOOD + encode("data", 1, 2, 0, 0, FULL) + encode("data", 2, 2, 0, 9, FULL))
        assert closures(link)[0][3] == "a cell outside the grant"
        assert inc.cells == (1, 4)
        assert inc.duplicates == 1
    assert target.poisoned_outside()


@pytest.mark.parametrize("attachment", [False, True])
def test_a_receipt_before_everything_was_ready(attachment: bool) -> None:
    source = Memory([(2, CELL)], filled=True)
    with raw_peer() as (link, peer):
        out = OutTransfer(link, 2, source.segments, CELL, attachment)
        out.ready(0, 0, 2 if attachment else 1)
        peer.sendall(encode("receipt", 0, 2))
        assert closures(link)[0][3] == "a receipt for what was never sent"
        assert out.state == "active"


def test_a_receipt_before_everything_was_sent() -> None:
    """All of it was ready, and all of it claimed once; but what the kernel refused has gone back to the queue."""
    source = Memory([(16, CELL)], filled=True)
    with raw_peer(narrow=True) as (link, peer):
        out = OutTransfer(link, 2, source.segments, CELL, False)
        out.ready(0, 0, 16)
        until(lambda: link.queued_runs == 1 and link.lane_stats()[0]["sent_frames"], "the kernel to refuse more")
        assert link.lane_stats()[0]["sent_frames"] < 16
        peer.sendall(encode("receipt", 0, 2))
        assert closures(link)[0][3] == "a receipt for what was never sent"
        assert (out.state, out.cells) == ("active", (0, 16))
        ours, again = tcp_pair()
        with again:  # to an honest one it goes whole
            link.add_lane(ours.detach(), 0, 1)
            assert b"".join(frame[48:] for frame in sorted(frames(again, 16), key=cell_of)) == source.content()[0]
            again.sendall(encode("receipt", 0, 2))
            assert out.wait(PATIENCE_S) == "committed"


def test_a_receipt_for_what_a_resumed_link_is_to_send_again() -> None:
    """The peer's ledger has said that it has none of it."""
    source = Memory([(16, CELL)], filled=True)
    with raw_peer() as (link, peer):
        out = OutTransfer(link, 2, source.segments, CELL, False)
        out.ready(0, 0, 16)
        assert len(list(frames(peer, 16))) == 16
        link.suspend()
        link.take_closed()
        out.resume(bytes(2))
        ours, again = tcp_pair(narrow=True)
        with again:
            link.add_lane(ours.detach(), 0, 1)
            until(lambda: link.queued_runs == 1 and link.lane_stats()[0]["sent_frames"], "the kernel to refuse more")
            again.sendall(encode("receipt", 0, 2))
            assert closures(link)[0][3] == "a receipt for what was never sent"
        assert out.state == "active"


def test_a_receipt_for_a_transfer_that_never_was() -> None:
    source = Memory([(1, CELL)], filled=True)
    with raw_peer() as (link, peer):
        out = OutTransfer(link, 2, source.segments, CELL, False)
        peer.sendall(encode("receipt", 0, 4))
        assert closures(link)[0][3] == "a receipt for what was never sent"
        assert out.state == "active"


def test_receipts_and_acknowledgements_of_strangers_are_ignored() -> None:
    source = Memory([(1, CELL)], filled=True)
    with raw_peer() as (link, peer):
        OutTransfer(link, 4, source.segments, CELL, False).abort()
        out = OutTransfer(link, 2, source.segments, CELL, False)
        peer.sendall(encode("receipt", 0, 4) + ack(5, 0, 100, sequence=1) + ack(0, 9, 100, sequence=2))
        out.ready(0, 0, 1)
        [data] = [frame for frame in frames(peer, 2) if frame_type(frame) == 1]
        assert data[48:] == source.content()[0]
        assert out.state == "active"
        assert link.take_closed() == []


def test_frames_go_out_as_written_down() -> None:
    source = Memory([(3, 3000)], filled=True)
    with raw_peer() as (link, peer):
        out = OutTransfer(link, 6, source.segments, CELL, True)
        out.ready(0, 0, 3)
        out.attach(b"tail")
        content = source.content()[0]
        expected = [
            (0, 0, content[:CELL]),
            (0, 1, content[CELL : 2 * CELL]),
            (0, 2, content[2 * CELL :]),
            (1, 0, b"tail"),
        ]
        for sequence, (got, (segment, cell, payload)) in enumerate(zip(frames(peer, 4), expected, strict=True)):
            assert got == encode("data", sequence, 6, segment, cell, payload)
        peer.sendall(ack(0, 0, 3) + encode("receipt", 1, 6))
        assert out.wait(PATIENCE_S) == "committed"
        assert link.lane_stats()[0]["acked_bytes"] == len(content)


def test_noise_of_any_kind() -> None:
    rng = np.random.default_rng(9)
    target = Memory(SHAPES)
    for _ in range(30):
        with raw_peer() as (link, peer):
            inc = InTransfer(link, 2, target.segments, CELL, True)
            frame = bytearray(GOOD)
            for at in rng.integers(0, len(frame), 3):
                frame[at] = (frame[at] + 1 + rng.integers(0, 255)) % 256
            peer.sendall(bytes(frame))
            peer.shutdown(socket.SHUT_WR)
            closures(link)
            assert inc.cells[0] == 0
    assert target.untouched()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def sent(link: EngineLink, frames: int) -> bool:
    return link.lane_stats()[0]["sent_frames"] == frames


def landed_or_lost(link: EngineLink, handle: InTransfer) -> bool:
    return not link.lanes_open or handle.state == "committed"


def test_a_peer_that_never_acknowledges() -> None:
    """What was sent waits for it in the lane's log; the tables of transfers that are over do not."""
    page = np.zeros(CELL, np.uint8)
    segment = Segment(
        page.ctypes.data, np.zeros(1 << 18, np.int64), 1, np.array([[0, CELL, 0, 0, 1, CELL, CELL]]), CELL
    )
    with raw_peer() as (link, peer):
        before = resident_bytes()
        came = frames(peer, 200)
        for number in range(1, 201):
            out = OutTransfer(link, 2 * number, [segment], CELL, False)  # tables of a megabyte
            out.ready(0, 0, 1)
            next(came)
            until(partial(sent, link, number), "the cell to be sent")
            out.abort()
            del out
        assert resident_bytes() - before < 32 << 20


MAX_RECEIPTS = 65536  # kvwire/_ext/core.pxd


def test_a_peer_that_takes_no_receipt() -> None:
    """Its transfers commit, up to a bound; then its lane ends, until it has acknowledged some. Nothing is lost."""
    target = Memory([(1, 100)])
    batch = 1000
    committed = 0
    with raw_peer() as (link, peer):
        while link.lanes_open and committed < 2 * MAX_RECEIPTS:
            numbers = range(committed, committed + batch)
            handles = [InTransfer(link, 2 * number + 2, target.segments, CELL, False) for number in numbers]
            with contextlib.suppress(OSError):  # its lane may have ended
                peer.sendall(b"".join(encode("data", number, 2 * number + 2, payload=bytes(100)) for number in numbers))
            until(partial(landed_or_lost, link, handles[-1]), "the cells to land")
            committed += sum(handle.state == "committed" for handle in handles)
        ((_, _, _, reason, _),) = closures(link)
        assert reason == "out of memory"
        assert committed == MAX_RECEIPTS
        late = handles[committed % batch :]
        assert {(handle.state, handle.cells) for handle in late} == {("active", (0, 1))}
        ours, again = tcp_pair()
        with again:
            link.add_lane(ours.detach(), 0, 1)
            again.settimeout(PATIENCE_S)
            said = set()
            for sequence, frame in enumerate(frames(again, MAX_RECEIPTS)):
                said.add(transfer_of(frame))
                if sequence % batch == batch - 1 or sequence == MAX_RECEIPTS - 1:
                    again.sendall(ack(0, 1, sequence + 1, sequence=sequence // batch))
            assert said == {2 * number + 2 for number in range(MAX_RECEIPTS)}
            after = MAX_RECEIPTS // batch + 1
            again.sendall(encode("data", after, 2 * committed + 2, payload=bytes(100)))
            assert late[0].wait(PATIENCE_S) == "committed"


def many_cells(link: EngineLink) -> tuple[OutTransfer, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """A gigabyte to send, out of one megabyte of memory."""
    page = np.zeros(1 << 20, np.uint8)
    table = np.array([[0, 1 << 20, 0, 0, 1, 1 << 20, 1 << 20]])
    segment = Segment(page.ctypes.data, np.zeros(1024, np.int64), 1, table, 1 << 20)
    out = OutTransfer(link, 2, [segment], CELL, False)
    out.ready(0, 0, 1024)
    return out, page


def test_a_peer_that_never_reads() -> None:
    with raw_peer() as (link, _):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out, _page = many_cells(link)
        stalled = 0
        sent = -1
        while stalled < 20:
            time.sleep(0.01)
            before_it, sent = sent, link.lane_stats()[0]["sent_bytes"]
            stalled = stalled + 1 if sent == before_it else 0
        assert 0 < sent < 64 << 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10
        started = time.monotonic()
        assert out.abort() == "aborted"
        link.close()
        assert time.monotonic() - started < 1
