"""Links that are suspended and resumed: what had landed is not sent again, and everything else arrives."""

import random
import threading
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
from kvwire.errors import Closed, ProtocolError
from tests.net.engines import (
    CELL,
    PATIENCE_S,
    Memory,
    Pair,
    all_ready,
    closures,
    commit,
    frame_type,
    frames,
    raw_peer,
    tcp_pair,
    until,
)

pytestmark = pytest.mark.usefixtures("nothing_left", "sealing")

SHAPES = [(16, 1 << 18)] * 2  # 8 MiB, 2048 cells
SMALL = [(2, CELL), (1, CELL + 100)]  # four cells
ACK, RECEIPT = 2, 3  # frame.pxd


def memories(shapes: list[tuple[int, int]] = SHAPES) -> tuple[Memory, Memory]:
    return Memory(shapes, filled=True), Memory(shapes, seed=2)


def check(source: Memory, target: Memory) -> None:
    assert target.content() == source.content()
    assert target.poisoned_outside()


def bits(landed: bytes) -> int:
    return int.from_bytes(landed, "little").bit_count()


def suspend(*links: EngineLink) -> None:
    for link in links:
        link.suspend()
        link.take_closed()
        assert link.lanes_open == link.queued_runs == 0


def tell(out: OutTransfer, inc: InTransfer) -> None:
    """What a ledger says to the sender."""
    if inc.state == "committed":
        out.commit()
    else:
        out.resume(inc.landed())


def frames_sent(link: EngineLink) -> int:
    """Cells that left on the lanes that are up."""
    return sum(lane["sent_frames"] for lane in link.lane_stats())


@pytest.mark.parametrize("lanes", [1, 8])
def test_what_had_landed_is_not_sent_again(lanes: int) -> None:
    source, target = memories()
    with Pair(lanes) as pair:
        out, inc = pair.transfer(source, target, attachment=True)
        out.ready(0, 0, 16)
        until(lambda: inc.cells[0] > 100, "some cells")
        suspend(pair.sender, pair.receiver)
        landed, total = inc.cells
        assert 100 < landed < total
        assert bits(inc.landed()) == landed
        out.ready(1, 0, 16)
        out.attach(b"meanwhile")
        assert out.all_ready
        assert pair.sender.queued_runs == 0
        for lane in range(lanes):
            pair.add_lane(lane, 1)
        assert out.wait(0.05) == inc.wait(0.0) == "active"  # until the receiver has said what it has
        assert frames_sent(pair.sender) == 0
        tell(out, inc)
        assert out.cells[0] >= landed
        commit(out, inc)
        assert frames_sent(pair.sender) == total - landed
        assert inc.duplicates == 0
        assert inc.attachment == b"meanwhile"
        assert out.cells == inc.cells == (total, total)
    check(source, target)


def test_suspended_again_and_again() -> None:
    """Blocks become ready in any order from another thread, whether the link is up or not."""
    source, target = Memory([(64, 50_000)] * 3, filled=True), Memory([(64, 50_000)] * 3, seed=2)
    every = [(segment, block) for segment in range(3) for block in range(64)]
    random.Random(5).shuffle(every)
    with Pair(2) as pair:
        out, inc = pair.transfer(source, target)

        def engine_thread() -> None:
            for segment, block in every:
                out.ready(segment, block, 1)
                time.sleep(0.0005)

        thread = threading.Thread(target=engine_thread)
        thread.start()
        for incarnation in range(1, 12):
            time.sleep(0.008)
            suspend(pair.sender, pair.receiver)
            before = inc.cells[0]
            for lane in range(2):
                pair.add_lane(lane, incarnation)
            tell(out, inc)
            assert bits(inc.landed()) >= before
        thread.join()
        commit(out, inc)
        assert inc.duplicates == 0
    check(source, target)


def test_many_transfers_in_both_directions() -> None:
    with Pair(2) as pair:
        links = (pair.sender, pair.receiver)
        moving = []
        for number in range(12):
            source, target = memories([(8, 60_000)])
            ids, ends = 2 + number, links if number % 2 else links[::-1]
            inc = InTransfer(ends[1], ids, target.segments, CELL, False)
            out = OutTransfer(ends[0], ids, source.segments, CELL, False)
            moving.append((out, inc, source, target))
            out.ready(0, 0, number % 8)
        until(lambda: moving[-1][1].cells[0], "some cells")
        suspend(*links)
        for out, _, _, _ in moving[::2]:
            out.ready(0, 7, 1)
        pair.add_lane(0, 1)
        for out, inc, _, _ in moving:
            if out.state == "active" and inc.state != "aborted":
                tell(out, inc)
        for number, (out, inc, source, target) in enumerate(moving):
            missing = range(number % 8, 7 if number % 2 == 0 else 8)
            out.ready(0, missing.start, len(missing))
            commit(out, inc)
            assert inc.duplicates == 0
            check(source, target)


def test_only_one_side_has_noticed() -> None:
    """The sender's lanes are gone and dialled anew; the receiver's have ended by themselves."""
    source, target = memories()
    with Pair(2) as pair:
        out, inc = pair.transfer(source, target)
        all_ready(out, source)
        until(lambda: inc.cells[0] > 100, "some cells")
        suspend(pair.sender)
        until(lambda: pair.receiver.lanes_open == 0, "its lanes to end")
        suspend(pair.receiver)
        pair.add_lane(0, 1)
        tell(out, inc)
        commit(out, inc)
        assert inc.duplicates == 0
    check(source, target)


# --- ledgers ------------------------------------------------------------------------------------------------------


def test_landed_is_a_bit_for_each_cell() -> None:
    target = Memory(SMALL)
    with raw_peer() as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, True)
        zeros = inc.landed()
        seen = 0
        for sequence, (segment, cell, size) in enumerate([(0, 1, CELL), (2, 0, 5), (1, 1, 100)]):
            peer.sendall(encode("data", sequence, 2, segment, cell, b"x" * size))
            until(partial(lambda n: inc.cells[0] == n, sequence + 1), "the cell")
            seen |= 1 << (0, 2, 4)[segment] + cell  # where each segment's cells begin, and the attachment
            assert inc.landed() == bytes([seen])
        assert zeros == b"\0"
        assert zeros is not b"\0\0"[:1]  # for which Python has one object, and that is not to be written to


SOURCE = Memory(SMALL, filled=True)


def one_ready(link: EngineLink) -> OutTransfer:
    """Four cells and an attachment, of which the first cell was sent, on a link that was suspended."""
    out = OutTransfer(link, 2, SOURCE.segments, CELL, True)
    out.ready(0, 0, 1)
    until(lambda: frames_sent(link) == 1, "the cell to be sent")
    suspend(link)
    return out


@pytest.mark.parametrize(
    ("landed", "words"),
    [
        (b"\x02", "cell 1, which was never sent"),
        (b"\x04", "cell 2, which was never sent"),
        (b"\x10", "cell 4, which was never sent"),  # the attachment
        (b"\x20", "cell 5, which was never sent"),  # there is no such cell
        (b"\x80", "cell 7, which was never sent"),
        (b"\xff", "cell 1, which was never sent"),
        (b"", "0 bytes; 5 cells take 1"),
        (bytes(2), "2 bytes; 5 cells take 1"),
        (bytes(1 << 20), "5 cells take 1"),
    ],
)
@pytest.mark.parametrize("suspended", [False, True])
def test_a_ledger_that_lies(landed: bytes, words: str, suspended: bool) -> None:
    """It is refused, and changes nothing: an honest one is good afterwards."""
    with raw_peer() as (link, _):
        out = one_ready(link)
        if not suspended:
            out.resume(b"\x01")
        with pytest.raises(ProtocolError, match=words):
            out.resume(landed)
        assert out.state == "active"
        out.resume(b"\x01")
        assert out.cells == (1, 5)
        assert link.queued_runs == 0


def test_a_ledger_where_nothing_was_lost() -> None:
    """Granted after the link came back: what is under way is not queued again."""
    source, target = memories(SMALL)
    with Pair(1) as pair:
        out, inc = pair.transfer(source, target)
        out.ready(0, 0, 2)
        until(lambda: out.cells[0] == 2, "both cells to be acknowledged")
        out.resume(bytes(1))
        out.ready(1, 0, 1)
        commit(out, inc)
        assert inc.duplicates == 0
        assert frames_sent(pair.sender) == 4


def test_all_of_it_had_landed_and_no_receipt_came() -> None:
    with raw_peer() as (link, _):
        out = one_ready(link)
        out.ready(0, 1, 1)
        out.ready(1, 0, 1)
        out.attach(b"tail")
        with pytest.raises(ProtocolError, match="cell 1, which was never sent"):  # though it is ready
            out.resume(b"\x1f")
        with pytest.raises(ProtocolError, match="not every cell was ever sent"):
            out.commit()
        assert (out.cells, out.state) == ((0, 5), "active")
        out.resume(b"\x01")
        ours, theirs = tcp_pair()
        with theirs:
            link.add_lane(ours.detach(), 0, 1)
            until(lambda: frames_sent(link) == 4, "the rest to be sent")
            suspend(link)
        out.resume(b"\x1f")
        assert (out.cells, out.state, link.queued_runs) == ((5, 5), "active", 0)
        out.commit()
        out.commit()
        assert out.state == out.wait(0.0) == out.abort() == "committed"
        first, last, receipt = out.times_ns
        assert first <= last <= receipt


def test_a_commit_that_is_learnt_wakes_who_waits() -> None:
    source = Memory(SMALL, filled=True)
    with raw_peer() as (link, _):
        out = OutTransfer(link, 2, source.segments, CELL, False)
        all_ready(out, source)
        until(lambda: frames_sent(link) == 4, "all of it to be sent")
        suspend(link)
        ends: list[str] = []
        waiter = threading.Thread(target=lambda: ends.append(out.wait(PATIENCE_S)))
        waiter.start()
        out.commit()
        waiter.join()
        assert ends == ["committed"]
        assert set(link.engine.drain()) == {out, link}


def test_a_receipt_that_nobody_acknowledged_is_said_again() -> None:
    target = Memory([(1, CELL)])
    with raw_peer() as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, False)
        peer.sendall(encode("data", 0, 2, 0, 0, bytes(CELL)))
        assert inc.wait(PATIENCE_S) == "committed"
        assert RECEIPT in [frame_type(frame) for frame in frames(peer, 2)]
        for incarnation in range(1, 4):
            link.close_lane(0)
            closures(link)
            ours, theirs = tcp_pair()
            with theirs:
                link.add_lane(ours.detach(), 0, incarnation)
                assert next(frames(theirs, 1)) == encode("receipt", 0, 2)


def test_a_receipt_does_not_outlive_its_lanes_when_all_are_gone() -> None:
    """Who comes next may be another life of the peer, which counts its transfers from the first number on."""
    target = Memory([(1, CELL)])
    with raw_peer() as (link, peer):
        inc = InTransfer(link, 2, target.segments, CELL, False)
        peer.sendall(encode("data", 0, 2, 0, 0, bytes(CELL)))
        assert RECEIPT in [frame_type(frame) for frame in frames(peer, 2)]
        assert inc.state == "committed"
        OutTransfer(link, 8, target.segments, CELL, False).abort()
        suspend(link)
        ours, theirs = tcp_pair()
        with theirs:
            link.add_lane(ours.detach(), 0, 1)
            answers = frames(theirs, 2)
            for sequence in range(2):
                theirs.sendall(encode("receipt", sequence, 8))  # of one that is over: it is acknowledged
                assert frame_type(next(answers)) == ACK


# --- ends ---------------------------------------------------------------------------------------------------------


def test_abort_while_suspended() -> None:
    source, target = memories()
    with Pair(2) as pair:
        out, inc = pair.transfer(source, target)
        out.ready(0, 0, 16)
        out.ready(1, 0, 15)
        until(lambda: inc.cells[0] > 100, "some cells")
        suspend(pair.sender, pair.receiver)
        landed = inc.landed()
        assert out.abort() == inc.abort() == "aborted"
        for array in target.arrays:
            array[:] = 0xA5
        pair.add_lane(0, 1)
        out.resume(landed)  # the ledger was under way: no error, and nothing leaves
        assert out.state == "aborted"
        assert pair.sender.queued_runs == 0
        with pytest.raises(Closed, match="aborted"):
            out.ready(1, 15, 1)
        again = memories(SMALL)
        out, inc = pair.transfer(*again, id=4)
        all_ready(out, again[0])
        commit(out, inc)
        assert target.untouched()


@pytest.mark.parametrize("resumed", [False, True])
def test_close_while_suspended(resumed: bool) -> None:
    source, target = memories()
    with Pair(2) as pair:
        out, inc = pair.transfer(source, target)
        out.ready(0, 0, 16)
        until(lambda: inc.cells[0], "the first cell")
        suspend(pair.sender, pair.receiver)
        ends: list[str] = []
        waiters = [threading.Thread(target=lambda half=half: ends.append(half.wait(PATIENCE_S))) for half in (out, inc)]
        for waiter in waiters:
            waiter.start()
        if resumed:
            out.ready(1, 0, 16)
            tell(out, inc)  # no lane is up: it waits in the queue
            assert pair.sender.queued_runs
        pair.close()
        for waiter in waiters:
            waiter.join()
        assert ends == ["lost", "lost"]
        for call in (pair.sender.suspend, lambda: tell(out, inc)):
            with pytest.raises(Closed):
                call()


def test_suspend_where_there_is_nothing_to_suspend() -> None:
    with Pair(0) as pair:
        for _ in range(3):
            suspend(pair.sender, pair.receiver)
        pair.add_lane(0)
        source, target = memories(SMALL)
        out, inc = pair.transfer(source, target)
        all_ready(out, source)
        commit(out, inc)
        for _ in range(3):
            suspend(pair.sender, pair.receiver)
        assert (out.state, inc.state) == ("committed", "committed")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("lanes", [0, 2])
def test_what_waited_to_be_sent_is_given_back(lanes: int) -> None:
    """A run in the queue, or in the log of a lane, holds its transfer: 4 MB of tables here, 50 times."""
    page = np.zeros(1 << 20, np.uint8)
    table = np.array([[0, 1 << 20, 0, 0, 1, 1 << 20, 1 << 20]])
    segment = Segment(page.ctypes.data, np.zeros(4096, np.int64), 1, table, 1 << 20)  # 4 GiB out of one
    with Pair(0) as pair:
        before = 0
        for number in range(60):
            holes = [tcp_pair() for _ in range(lanes)]  # nobody reads there
            for lane, (ours, _) in enumerate(holes):
                pair.sender.add_lane(ours.detach(), lane, number)
            out = OutTransfer(pair.sender, 2 * number, [segment], CELL, False)
            out.ready(0, 0, 2000)
            out.ready(0, 2001, 1000)
            if lanes:
                until(lambda: frames_sent(pair.sender) > 10, "cells to leave")
            assert pair.sender.queued_runs
            suspend(pair.sender)
            if number % 2:
                out.resume(bytes(1 << 17))
                assert pair.sender.queued_runs == 2
                suspend(pair.sender)
            for _, theirs in holes:
                theirs.close()
            del out
            if number == 10:
                before = resident_bytes()
        assert resident_bytes() - before < 30 << 20
