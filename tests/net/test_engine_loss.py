"""Lanes that end, transfers that are given up, links and engines that go away."""

import gc
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from kvwire._ext.incoming import InTransfer
from kvwire._ext.outgoing import OutTransfer
from kvwire.errors import Closed, ProtocolError
from tests.net.engines import CELL, PATIENCE_S, Memory, Pair, all_ready, closures, commit, in_child, tcp_pair, until

pytestmark = pytest.mark.usefixtures("nothing_left", "sealing")

SHAPES = [(16, 1 << 18)] * 2  # 8 MiB


def memories(shapes: list[tuple[int, int]] = SHAPES) -> tuple[Memory, Memory]:
    return Memory(shapes, filled=True), Memory(shapes, seed=2)


def landed(inc: InTransfer, more_than: int) -> bool:
    return inc.cells[0] > more_than


def check(source: Memory, target: Memory) -> None:
    assert target.content() == source.content()
    assert target.poisoned_outside()


@pytest.mark.parametrize("receiving_side", [False, True])
def test_a_lane_is_closed_in_mid_transfer(receiving_side: bool) -> None:
    source, target = memories()
    with Pair(4) as pair:
        out, inc = pair.transfer(source, target)
        all_ready(out, source)
        until(partial(landed, inc, 0), "the first cell")
        (pair.receiver if receiving_side else pair.sender).close_lane(2)
        commit(out, inc)
        assert [lane for lane, *_ in closures(pair.sender)] == [2]
        assert [lane for lane, *_ in closures(pair.receiver)] == [2]
        assert pair.sender.lanes_open == 3
    check(source, target)


def test_what_a_black_hole_swallowed_is_sent_again() -> None:
    source, target = memories()
    with Pair(0) as pair:
        ours, hole = tcp_pair()
        with hole:
            pair.sender.add_lane(ours.detach(), 1, 0)
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            until(lambda: pair.sender.lane_stats()[0]["sent_bytes"], "the hole to take the first cells")
            pair.add_lane(0)
            until(lambda: inc.cells[0] and pair.sender.queued_runs == 0, "all cells to be claimed")
            assert inc.state == "active"
            hole.shutdown(socket.SHUT_RDWR)
        commit(out, inc)
        assert 0 < out.resent_cells < inc.cells[1]
        assert inc.duplicates == 0
    check(source, target)


def test_a_connection_is_shut_by_somebody_else() -> None:
    """The descriptor lives on elsewhere, as after a fork: the engine lets it go all the same."""
    source, target = memories()
    with Pair(2) as pair:
        ours, theirs = tcp_pair()
        with ours.dup() as ours_too, theirs.dup() as theirs_too:
            pair.sender.add_lane(ours.detach(), 2, 0)
            pair.receiver.add_lane(theirs.detach(), 2, 0)
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            until(partial(landed, inc, 0), "the first cell")
            ours_too.shutdown(socket.SHUT_RDWR)
            commit(out, inc)
            assert [closure[0] for closure in closures(pair.sender) + closures(pair.receiver)] == [2, 2]
            with suppress(OSError):  # it may have been reset
                theirs_too.shutdown(socket.SHUT_RDWR)
            again = Memory([(4, 5000)], filled=True), Memory([(4, 5000)], seed=2)
            out, inc = pair.transfer(*again, id=4)
            all_ready(out, again[0])
            commit(out, inc)
    check(source, target)


@pytest.mark.parametrize("lanes", [1, 3])
def test_all_lanes_are_lost_and_a_new_one_comes(lanes: int) -> None:
    source, target = memories()
    with Pair(lanes) as pair:
        out, inc = pair.transfer(source, target, attachment=True)
        out.ready(0, 0, 16)
        until(partial(landed, inc, 0), "the first cell")
        for lane in range(lanes):
            pair.sender.close_lane(lane)
        assert len(closures(pair.sender, lanes)) == len(closures(pair.receiver, lanes)) == lanes
        assert pair.sender.lanes_open == pair.receiver.lanes_open == 0
        out.ready(1, 0, 16)
        out.attach(b"after the storm")
        assert out.wait(0.01) == inc.wait(0.01) == "active"
        pair.add_lane(0, 1)
        commit(out, inc)
        assert inc.attachment == b"after the storm"
    check(source, target)


def test_a_receipt_survives_the_loss_of_its_lane() -> None:
    source, target = memories([(3, 5000)])
    with Pair(0) as pair:
        ours, theirs = tcp_pair()
        with ours:
            pair.receiver.add_lane(theirs.detach(), 0, 0)
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            pair.add_lane(1)  # cells go here; the receipt may leave on the lane that nobody reads
            assert inc.wait(PATIENCE_S) == "committed"
            ours.shutdown(socket.SHUT_RDWR)
            commit(out, inc)
    check(source, target)


def test_lanes_come_and_go() -> None:
    """Random closes on both sides while transfers are under way: every one arrives."""
    rng = random.Random(11)
    sources = [Memory([(8, 50_000), (3, 1 << 17)], filled=True, seed=i) for i in range(12)]
    targets = [Memory([(8, 50_000), (3, 1 << 17)], seed=50 + i) for i in range(12)]
    with Pair(4) as pair:
        incarnation = [0] * 4
        moving = []
        for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
            moving.append(pair.transfer(source, target, id=2 * i))
            all_ready(moving[-1][0], source)
            lane = rng.randrange(4)
            rng.choice([pair.sender, pair.receiver]).close_lane(lane)
            closures(pair.sender), closures(pair.receiver)
            incarnation[lane] += 1
            pair.add_lane(lane, incarnation[lane])
        for out, inc in moving:
            commit(out, inc)
    for source, target in zip(sources, targets, strict=True):
        check(source, target)


def test_abort_on_the_sender_frees_its_pages() -> None:
    source, target = memories()
    original = source.content()
    with Pair(3) as pair:
        for id in range(0, 20, 2):
            out, inc = pair.transfer(source, target, id=id)
            out.ready(0, 0, 16)
            out.ready(1, 0, 15)
            if id % 4:
                until(partial(landed, inc, id * 20), "some cells")
            assert out.abort() == "aborted"
            for array, index in zip(source.arrays, source.indexes, strict=True):
                array[index] = ~array[index]
            with pytest.raises(Closed, match="aborted"):
                out.ready(1, 15, 1)
            assert inc.wait(0.01) == "active"
            assert inc.abort() == "aborted"
            assert pair.sender.take_closed() == pair.receiver.take_closed() == [], "a page changed under a checksum"
            for segment in inc.completed():
                assert target.content()[segment] == original[segment]
            original = source.content()
        out, inc = pair.transfer(source, target, id=20)
        all_ready(out, source)
        commit(out, inc)
    check(source, target)


def test_abort_on_the_receiver_ends_all_writing() -> None:
    source, target = memories()
    with Pair(3) as pair:
        for id in range(0, 20, 2):
            out, inc = pair.transfer(source, target, id=id)
            all_ready(out, source)
            until(partial(landed, inc, id * 20), "some cells")
            state = inc.abort()
            for array in target.arrays:
                array[:] = 0xA5
            until(lambda: pair.sender.queued_runs == 0, "the sender to go on")
            assert inc.state == state
            if state == "aborted":
                assert out.state == "active"
            out.abort()
            time.sleep(0.005)
            assert target.untouched()
        assert pair.sender.take_closed() == pair.receiver.take_closed() == []
        assert pair.sender.lanes_open == 3


@pytest.mark.parametrize("close", ["sender", "receiver", "engine"])
def test_close_with_everything_in_flight(close: str) -> None:
    pair = Pair(3)
    moving = []
    for id in range(0, 16, 2):
        source, target = memories([(4, 1 << 18)])
        out, inc = pair.transfer(source, target, id=id)
        out.ready(0, 0, 3)
        moving.append((out, inc))
    until(partial(landed, moving[0][1], 0), "the first cell")
    ends: list[str] = []
    waiter = threading.Thread(target=lambda: ends.append(moving[0][0].wait(PATIENCE_S)))
    waiter.start()
    started = time.monotonic()
    {"sender": pair.sender.close, "receiver": pair.receiver.close, "engine": pair.engines[0].close}[close]()
    assert time.monotonic() - started < 1
    if close == "sender":
        assert {out.state for out, _ in moving} == {"lost"}
        assert {inc.state for _, inc in moving} == {"active"}
    if close == "receiver":
        assert {inc.state for _, inc in moving} == {"lost"}
        assert {out.state for out, _ in moving} == {"active"}
    started = time.monotonic()
    pair.close()
    assert time.monotonic() - started < 1
    assert {handle.state for both in moving for handle in both} == {"lost"}
    waiter.join(1.0)
    assert ends == ["lost"]


def test_close_tells_the_event_loop() -> None:
    with Pair() as pair:
        source, target = memories()
        out, inc = pair.transfer(source, target)
        pair.sender.close()
        assert select.select([pair.engines[0].fileno()], [], [], PATIENCE_S)[0]
        assert set(pair.engines[0].drain()) == {out, pair.sender}
        assert inc.abort() == "aborted"


def test_handles_that_are_dropped_without_close() -> None:
    for i in range(10):
        source, target = memories()
        pair = Pair(2)
        out, inc = pair.transfer(source, target)
        all_ready(out, source)
        if i % 2:
            until(partial(landed, inc, 0), "the first cell")
        del out, inc, pair, source, target


class Holder:
    me: object
    held: object


def test_handles_that_end_in_a_cycle() -> None:
    for i in range(10):
        holder = Holder()
        source, target = memories()
        pair = Pair(2)
        out, inc = pair.transfer(source, target)
        if i % 2:
            holder = Holder()
        holder.me, holder.held = holder, (pair, out, inc)
        all_ready(out, source)
        del holder, pair, out, inc, source, target
        gc.collect()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork() -> None:
    """The child's handles raise and can be dropped; the parent's transfer goes on."""
    source, target = memories()
    with Pair(2) as pair:
        out, inc = pair.transfer(source, target)

        def use() -> None:
            for call in (
                lambda: out.ready(1, 15, 1),
                lambda: out.attach(b""),
                lambda: pair.add_lane(9),
                lambda: pair.sender.close_lane(0),
                pair.sender.suspend,
                lambda: out.resume(b""),
                lambda: pair.transfer(source, target, id=4),
                out.commit,
                lambda: out.wait(1e9),
                lambda: inc.wait(1e9),
                lambda: inc.wait_segment(0, 1e9),
            ):
                with pytest.raises(Closed, match="parent"):
                    call()
            assert out.abort() == inc.abort() == "active"  # as the parent has it

        def drop() -> None:
            nonlocal out, inc, pair
            del out, inc, pair
            gc.collect()

        def close() -> None:
            pair.close()

        for block in range(16):
            out.ready(0, block, 1)
            assert in_child((use, drop, close)[block % 3]) == 0
        out.ready(1, 0, 16)
        commit(out, inc)
        assert pair.sender.take_closed() == pair.receiver.take_closed() == []
    check(source, target)


def test_small_cells_and_a_large_attachment() -> None:
    """An engine for small cells still takes whatever an attachment may be."""
    source, target = memories([(3, 5000)])
    with Pair(1, stream_bytes=8192, max_cell_bytes=CELL) as pair:
        out, inc = pair.transfer(source, target, attachment=True)
        all_ready(out, source)
        out.attach(bytes(65536))
        commit(out, inc)
        assert inc.attachment == bytes(65536)
    check(source, target)


def test_an_error_in_one_thread_does_not_stop_another() -> None:
    """Calls for a transfer that is over raise; while one thread does, another may be in the same transfer."""
    source = Memory([(64, 100)], filled=True)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Pair(0) as pair:
            for number in range(300):
                out = OutTransfer(pair.sender, 2 * number, source.segments, CELL, True)
                out.abort()
                calls = [
                    [partial(out.ready, 0, block, 1) for block in range(63)],
                    [partial(out.attach, b"x")],
                    [partial(out.resume, b"\xff")] * 63,
                ]
                threads = [threading.Thread(target=all_raise, args=(each,)) for each in calls]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
    finally:
        sys.setswitchinterval(interval)


def all_raise(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        with pytest.raises((Closed, ProtocolError)):
            call()


def test_an_abort_writes_into_nobody_else_s_file(tmp_path: Path) -> None:
    """A thread that wakes the engine must not be overtaken by its end: the descriptor may be another file's by then."""
    library = tmp_path / "late_write.so"
    here = Path(__file__).parent
    make = ("cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", here / "late_write.c", "-o", library)
    subprocess.run(make, check=True)
    variables = os.environ | {"LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()}
    command = (sys.executable, "-m", "tests.net.late_process")
    done = subprocess.run(command, env=variables, cwd=here.parents[1], capture_output=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"b''\n", b"")
