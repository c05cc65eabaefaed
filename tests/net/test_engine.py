"""The engine over real TCP: every byte arrives where it belongs."""

import random
import select
import threading
import time

import numpy as np
import pytest

from kvwire._ext.incoming import InTransfer
from kvwire._ext.layout import Segment
from kvwire._ext.outgoing import OutTransfer
from kvwire.errors import AttachmentError, Closed, LimitExceeded, ReadyError, SpecError
from tests.net.engines import CELL, PATIENCE_S, Memory, Pair, all_ready, closures, commit, tcp_pair, until

pytestmark = pytest.mark.usefixtures("nothing_left", "sealing")


def check(source: Memory, target: Memory) -> None:
    assert target.content() == source.content()
    assert target.poisoned_outside()


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
def test_many_segments(lanes: int) -> None:
    shapes = [(8, 16384), (3, 100_000), (1, 1 << 20), (64, 512)] * 5
    source, target = Memory(shapes, filled=True), Memory(shapes, seed=2)
    with Pair(lanes) as pair:
        out, inc = pair.transfer(source, target)
        all_ready(out, source)
        commit(out, inc)
        assert sorted(inc.completed()) == list(range(len(shapes)))
        assert inc.completed(18) == inc.completed()[18:]
        assert inc.cells[0] == inc.cells[1]
        assert (inc.duplicates, out.resent_cells) == (0, 0)
        assert pair.sender.lanes_open == pair.receiver.lanes_open == lanes
        assert pair.sender.queued_runs == 0
    check(source, target)


@pytest.mark.parametrize(
    ("blocks", "block_bytes", "pages", "row_bytes", "cell"),
    [
        (12, 3000, 3, 0, CELL),
        (3, 12000, 1, 1000, CELL),
        (36, 1000, 2, 20, CELL),
        (1, 36000, 7, 0, 1 << 16),
        (3, 12000, 4, 8, 256 * 1024),
        (36, 1000, 1, 2, 999),
    ],
)
def test_source_and_destination_paged_differently(
    blocks: int, block_bytes: int, pages: int, row_bytes: int, cell: int
) -> None:
    source = Memory([(9, 4000), (9, 4000)], pages=2, row_bytes=50, filled=True)
    target = Memory([(blocks, block_bytes)] * 2, pages=pages, row_bytes=row_bytes, seed=2)
    with Pair() as pair:
        out, inc = pair.transfer(source, target, cell=cell)
        all_ready(out, source)
        commit(out, inc)
    check(source, target)


@pytest.mark.parametrize(
    ("shape", "cell"),
    [
        ((1, 1), CELL),
        ((7, 1), CELL),
        ((1, CELL - 1), CELL),
        ((1, CELL), CELL),
        ((1, CELL + 1), CELL),
        ((3, 10 * CELL + 1), CELL),
        ((5, 300_000), 256 * 1024),
        ((11, 13), 5),
    ],
)
def test_odd_sizes(shape: tuple[int, int], cell: int) -> None:
    source, target = Memory([shape] * 3, filled=True), Memory([shape] * 3, seed=2)
    with Pair() as pair:
        out, inc = pair.transfer(source, target, cell=cell)
        all_ready(out, source)
        commit(out, inc)
    check(source, target)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_ready_in_random_order_from_several_threads(seed: int) -> None:
    shapes = [(40, 1500), (40, 9000), (10, 64 * 1024)]
    source, target = Memory(shapes, pages=2, filled=True), Memory(shapes, seed=2)
    every = [(segment, block) for segment, (blocks, _) in enumerate(shapes) for block in range(blocks)]
    random.Random(seed).shuffle(every)
    with Pair(3) as pair:
        out, inc = pair.transfer(source, target)

        def some(start: int) -> None:
            for segment, block in every[start::4]:
                out.ready(segment, block, 1)

        threads = [threading.Thread(target=some, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert out.all_ready
        commit(out, inc)
    check(source, target)


def test_segments_are_seen_before_the_rest_is_ready() -> None:
    shapes = [(4, 10_000)] * 3
    source, target = Memory(shapes, filled=True), Memory(shapes, seed=2)
    with Pair() as pair:
        out, inc = pair.transfer(source, target)
        out.ready(2, 0, 4)
        assert inc.wait_segment(2, PATIENCE_S)
        assert inc.completed() == [2]
        assert target.content()[2] == source.content()[2]
        out.ready(0, 0, 3)
        started = time.monotonic()
        assert not inc.wait_segment(0, 0.05)
        assert time.monotonic() - started < 5
        assert out.wait(0.0) == inc.wait(0.0) == "active"
        out.ready(0, 3, 1)
        assert inc.wait_segment(0, PATIENCE_S)
        out.ready(1, 0, 4)
        commit(out, inc)
        assert inc.completed() == [2, 0, 1]
        assert inc.wait_segment(1, 0.0)
        first, last, receipt = out.times_ns
        assert 0 < first < last < receipt
        began, committed = inc.times_ns
        assert first < began < committed < receipt


@pytest.mark.parametrize("size", [0, 1, 5000, 65536])
def test_attachment(size: int) -> None:
    source, target = Memory([(2, 5000)], filled=True), Memory([(2, 5000)], seed=2)
    value = random.Random(size).randbytes(size)
    with Pair() as pair:
        out, inc = pair.transfer(source, target, attachment=True)
        out.ready(0, 0, 2)
        assert inc.wait_segment(0, PATIENCE_S)
        assert inc.state == "active"
        assert inc.attachment is None
        out.attach(value)
        commit(out, inc)
        assert inc.attachment == value
        assert inc.completed() == [0, 1]
    check(source, target)


def test_attachment_alone() -> None:
    with Pair() as pair:
        out, inc = pair.transfer(Memory([]), Memory([]), attachment=True)
        out.attach(b"only this")
        commit(out, inc)
        assert inc.attachment == b"only this"


def test_64_transfers_at_once() -> None:
    shapes = [(16, 4000), (3, 20_000)]
    sources = [Memory(shapes, filled=True, seed=i) for i in range(64)]
    targets = [Memory(shapes, seed=100 + i) for i in range(64)]
    with Pair(4) as pair:
        moving = [pair.transfer(s, t, id=2 * i) for i, (s, t) in enumerate(zip(sources, targets, strict=True))]
        for (out, _), source in zip(moving, sources, strict=True):
            all_ready(out, source)
        for out, inc in moving:
            commit(out, inc)
    for source, target in zip(sources, targets, strict=True):
        check(source, target)


def test_drain_names_the_handles_that_changed() -> None:
    source, target = Memory([(2, 5000)] * 3, filled=True), Memory([(2, 5000)] * 3, seed=2)
    with Pair() as pair:
        out, inc = pair.transfer(source, target)
        for engine in pair.engines:
            assert select.select([engine.fileno()], [], [], 0)[0] == []
            assert engine.drain() == []
        all_ready(out, source)
        commit(out, inc)
        for engine, handle in zip(pair.engines, (out, inc), strict=True):
            assert select.select([engine.fileno()], [], [], PATIENCE_S)[0]
            assert engine.drain() == [handle]
            assert engine.drain() == []
        pair.sender.close_lane(1)
        until(lambda: pair.sender.lanes_open == 1, "the lane to end")
        assert select.select([pair.engines[0].fileno()], [], [], PATIENCE_S)[0]
        assert pair.engines[0].drain() == [pair.sender]
        [(lane, incarnation, _, reason, _)] = pair.sender.take_closed()
        assert (lane, incarnation, reason) == (1, 0, "closed by this side")


def test_a_transfer_enters_the_engine_a_few_times_whatever_its_size() -> None:
    source, target = Memory([(1, 1 << 20)] * 16, filled=True), Memory([(1, 1 << 20)] * 16, seed=2)
    with Pair() as pair:
        before = [engine.gil_entries() for engine in pair.engines]
        out, inc = pair.transfer(source, target)
        all_ready(out, source)
        commit(out, inc)
        after = [engine.gil_entries() for engine in pair.engines]
    assert all(b - a <= len(source.segments) + 4 for a, b in zip(before, after, strict=True))


def test_lane_stats_count_every_byte() -> None:
    source, target = Memory([(4, 1 << 18)], filled=True), Memory([(4, 1 << 18)], seed=2)
    with Pair(2) as pair:
        out, inc = pair.transfer(source, target)
        all_ready(out, source)
        commit(out, inc)
        until(lambda: sum(s["acked_bytes"] for s in pair.sender.lane_stats()) == 1 << 20, "the last acknowledgement")
        sent, received = pair.sender.lane_stats(), pair.receiver.lane_stats()
        assert sorted((s["lane"], s["incarnation"]) for s in sent) == [(0, 0), (1, 0)]
        tag = 16 if pair.cipher else 0
        acknowledged = sum(s["received_bytes"] for s in received) - (1 << 20) - 256 * (48 + tag)
        assert acknowledged in range(0, 64 * (64 + tag), 64 + tag), "the receipt is acknowledged, too"


def test_ready_outside_the_grant_or_twice() -> None:
    source = Memory([(4, 5000), (2, 100)], filled=True)
    with Pair() as pair:
        out, inc = pair.transfer(source, Memory([(4, 5000), (2, 100)]))
        for segment, first, count in [(2, 0, 1), (0, 4, 1), (0, 0, 5), (0, 2**64 - 1, 2), (1, 3, 1)]:
            with pytest.raises(ReadyError):
                out.ready(segment, first, count)
        out.ready(0, 1, 2)
        for first, count in [(1, 1), (0, 4), (2, 2)]:
            with pytest.raises(ReadyError, match="was ready before"):
                out.ready(0, first, count)
        out.ready(0, 0, 0)
        out.ready(0, 0, 1)
        out.ready(0, 3, 1)
        out.ready(1, 0, 2)
        commit(out, inc)
        with pytest.raises(ReadyError):
            out.ready(1, 0, 2)


def test_attachments_that_cannot_be() -> None:
    source = Memory([(1, 100)], filled=True)
    with Pair() as pair:
        out, inc = pair.transfer(source, Memory([(1, 100)]), attachment=True)
        with pytest.raises(AttachmentError, match="65537"):
            out.attach(bytes(65537))
        out.attach(b"a")
        with pytest.raises(AttachmentError, match="already"):
            out.attach(b"b")
        out.ready(0, 0, 1)
        commit(out, inc)
        out, inc = pair.transfer(source, Memory([(1, 100)]), id=4)
        with pytest.raises(AttachmentError, match="announced"):
            out.attach(b"never announced")
        out.ready(0, 0, 1)
        commit(out, inc)


def test_transfers_that_cannot_be() -> None:
    memory = Memory([(1, 100)])
    with Pair() as pair:
        with pytest.raises(SpecError):
            OutTransfer(pair.sender, 2, [], CELL, False)
        with pytest.raises(SpecError):
            InTransfer(pair.receiver, 2, [], CELL, False)
        for cell in (0, 256 * 1024 + 1):
            with pytest.raises(LimitExceeded):
                OutTransfer(pair.sender, 2, memory.segments, cell, False)
            with pytest.raises(LimitExceeded):
                InTransfer(pair.receiver, 2, memory.segments, cell, False)


def test_use_after_close() -> None:
    source = Memory([(2, 100)], filled=True)
    pair = Pair()
    out, inc = pair.transfer(source, Memory([(2, 100)]))
    pair.close()
    assert out.state == inc.state == "lost"
    assert out.wait(0.0) == inc.wait(0.0) == "lost"
    assert out.abort() == inc.abort() == "lost"
    with pytest.raises(Closed):
        out.ready(0, 0, 1)
    with pytest.raises(Closed):
        out.attach(b"")
    with pytest.raises(Closed):
        pair.add_lane(7)
    with pytest.raises(Closed):
        pair.sender.close_lane(0)
    with pytest.raises(Closed):
        OutTransfer(pair.sender, 4, source.segments, CELL, False)
    pair.close()


def test_pages_used_many_times() -> None:
    """A gigabyte of segment over a megabyte of memory: the engine keeps no copy of what it moves."""
    page = np.random.default_rng(5).integers(0, 256, 1 << 20, np.uint8)
    landed = np.zeros(1 << 20, np.uint8)
    table = np.array([[0, 1 << 20, 0, 0, 1, 1 << 20, 1 << 20]])
    send, receive = (Segment(m.ctypes.data, np.zeros(256, np.int64), 1, table, 1 << 20) for m in (page, landed))
    with Pair(2) as pair:
        inc = InTransfer(pair.receiver, 2, [receive], 64 * 1024, False)
        out = OutTransfer(pair.sender, 2, [send], 64 * 1024, False)
        out.ready(0, 0, 256)
        commit(out, inc)
    assert np.array_equal(page, landed)


def test_what_is_over_has_nothing_in_the_queue() -> None:
    """However it ends: there is no lane to come for it. What others have there stays."""
    with Pair(0) as pair:
        outs = [pair.transfer(Memory([(2, CELL)]), Memory([(2, CELL)]), id=2 * number + 2)[0] for number in range(3)]
        for block in range(2):
            for out in outs:
                out.ready(0, block, 1)
        ours, theirs = tcp_pair()
        with theirs:  # what has been sent may be in the queue once more, and a receipt come all the same
            pair.sender.add_lane(ours.detach(), 0, 0)
            until(lambda: pair.sender.lane_stats()[0]["sent_frames"] == 6, "all of it to be sent")
            pair.sender.close_lane(0)
            closures(pair.sender)
        assert pair.sender.queued_runs == 6
        outs[1].commit()
        assert pair.sender.queued_runs == 4
        outs[2].abort()
        assert pair.sender.queued_runs == 2
        pair.sender.close()
        assert [out.state for out in outs] == ["lost", "committed", "aborted"]
        assert pair.sender.queued_runs == 0
