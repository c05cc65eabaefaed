"""What an engine tells of its lanes and links, and that every request for it is answered."""

import ctypes
import select
import socket
import threading
import time
from functools import partial

import pytest

from kvwire._ext.frame import encode
from kvwire._ext.lanes import EngineLink
from kvwire._ext.outgoing import OutTransfer
from kvwire.congestion.tcp_info import parse
from tests.net.engines import CELL, Memory, Pair, all_ready, closures, commit, raw_peer, until

SHAPES = [(16, 1 << 16)] * 4


@pytest.mark.usefixtures("nothing_left", "sealing")
class TestSamples:
    def test_every_lane_tells_what_the_kernel_knows(self) -> None:
        source, target = Memory(SHAPES, filled=True), Memory(SHAPES, seed=2)
        with Pair(3) as pair:
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            commit(out, inc)
            engine = pair.engines[0]
            engine.drain()
            assert [stats["tcp_info"] for stats in pair.sender.lane_stats()] == [b""] * 3
            before = pair.sender.link_stats()["sent_bytes"]
            pair.sender.request_sample()
            until(lambda: pair.sender in engine.drain(), "the link to be marked as changed")
            assert pair.sender.sampled == 1
            infos = [parse(stats["tcp_info"]) for stats in pair.sender.lane_stats()]
            after = pair.sender.link_stats()["sent_bytes"]
            # What the kernel sends again, as a probe for a late acknowledgement, it counts twice.
            assert before <= sum(info.bytes_sent - info.bytes_retrans for info in infos) <= after
            assert all(info.rtt_us > 0 for info in infos)

    def test_requests_from_threads_while_lanes_come_and_go(self) -> None:
        with Pair(2) as pair:
            asking = [threading.Thread(target=ask, args=(pair.sender, 200)) for _ in range(2)]
            for thread in asking:
                thread.start()
            for lane in range(2, 12):
                pair.add_lane(lane)
                pair.sender.close_lane(lane - 2)
            for thread in asking:
                thread.join()
            until(lambda: pair.sender.sampled == 400, "every request to be answered")
            assert len(closures(pair.sender, 10)) == 10

    def test_a_link_without_lanes_answers_at_once(self) -> None:
        with Pair(0) as pair:
            pair.sender.request_sample()
            assert pair.sender.sampled == 1
            assert select.select([pair.engines[0].fileno()], [], [], 0)[0]
            assert pair.engines[0].drain() == [pair.sender]

    def test_what_lanes_take_of_memory(self) -> None:
        with Pair(1, stream_bytes=1 << 20) as pair:
            links = pair.sender, pair.receiver
            known, before = sum(link.memory_bytes for link in links), allocated_bytes()
            for lane in range(1, 9):
                pair.add_lane(lane)
            taken = allocated_bytes() - before
            said = sum(link.memory_bytes for link in links) - known
            assert said == 8 * known > 16 << 20
            assert taken == pytest.approx(said, rel=0.05)
            for lane in range(9):
                pair.sender.close_lane(lane)
            for link in links:
                closures(link, 9)
                assert link.memory_bytes == 0

    def test_totals_outlive_their_lanes(self) -> None:
        source, target = Memory(SHAPES, filled=True), Memory(SHAPES, seed=2)
        with Pair(2) as pair:
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            commit(out, inc)
            until(lambda: pair.sender.link_stats()["inflight_bytes"] == 0, "the last acknowledgements")
            for _ in range(2):
                stats = pair.sender.link_stats()
                assert stats["acked_bytes"] == 64 << 16
                assert stats["sent_bytes"] > 64 << 16
                assert stats["resent_bytes"] == stats["hedged_bytes"] == stats["paced_ns"] == 0
                pair.sender.close_lane(0)
                closures(pair.sender)
                pair.add_lane(0, 1)


def allocated_bytes() -> int:
    """By malloc, on the main thread's arena and by mmap, as glibc counts it."""
    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")

    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in names]

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("a libc that does not say what it has given out")
    libc.mallinfo2.restype = Info
    found = libc.mallinfo2()
    return int(found.hblkhd + found.uordblks)


def ask(link: EngineLink, times: int) -> None:
    for _ in range(times):
        link.request_sample()


@pytest.mark.usefixtures("nothing_left")
class TestTimes:
    def test_idle_is_when_nothing_is_ready(self) -> None:
        source = Memory([(2, 5000)], filled=True)
        with Pair(0) as pair:
            begun = pair.sender.link_stats()
            out = OutTransfer(pair.sender, 2, source.segments, CELL, False)
            out.ready(0, 0, 1)
            waiting = pair.sender.link_stats()
            assert waiting["queued_bytes"] == (0, CELL, 0), "the second cell waits for the other block"
            assert waiting["idle_ns"] <= waiting["now_ns"] - begun["now_ns"] + begun["idle_ns"]
            time.sleep(0.02)
            later = pair.sender.link_stats()
            assert later["idle_ns"] == waiting["idle_ns"]
            assert later["oldest_ns"][1] >= waiting["oldest_ns"][1] + 20_000_000
            out.ready(0, 1, 1)
            assert pair.sender.link_stats()["queued_bytes"] == (0, 10_000, 0), "the last cell is shorter"
            out.abort()
            ended = pair.sender.link_stats()
            assert (ended["queued_bytes"], ended["oldest_ns"]) == ((0, 0, 0), (0, 0, 0))
            time.sleep(0.01)
            assert pair.sender.link_stats()["idle_ns"] >= ended["idle_ns"] + 10_000_000

    def test_a_lane_without_progress_says_for_how_long(self) -> None:
        source = Memory([(4, CELL)], filled=True)
        with raw_peer() as (link, peer):
            assert link.lane_stats()[0]["stalled_ns"] == 0
            out = OutTransfer(link, 2, source.segments, CELL, False)
            out.ready(0, 0, 4)
            until(lambda: link.lane_stats()[0]["unacked_bytes"] == 4 * CELL, "the lane to claim all")
            time.sleep(0.05)
            (lane,) = link.lane_stats()
            assert lane["stalled_ns"] >= 50_000_000
            assert lane["stalled_ns"] <= link.link_stats()["now_ns"] - lane["added_ns"]
            acknowledge(peer, 0, 2)
            until(lambda: link.lane_stats()[0]["unacked_bytes"] == 2 * CELL, "half to be acknowledged")
            assert link.lane_stats()[0]["stalled_ns"] < link.link_stats()["now_ns"] - lane["added_ns"] - 50_000_000
            acknowledge(peer, 1, 4)
            until(lambda: link.lane_stats()[0]["unacked_bytes"] == 0, "the rest to be acknowledged")
            assert link.lane_stats()[0]["stalled_ns"] == 0
            assert link.lane_stats()[0]["acked_bytes"] == 4 * CELL

    def test_a_request_does_not_wait_for_a_lane_that_ends(self) -> None:
        """Nor for one that is added meanwhile: whatever comes first."""
        with Pair(1) as pair:
            for lane in range(1, 50):
                pair.add_lane(lane)
                pair.sender.close_lane(lane - 1)
                pair.sender.request_sample()
                pair.add_lane(lane, 1)
                pair.sender.close_lane(lane - 1)
                until(partial(answered, pair.sender, lane), "the answer")


def answered(link: EngineLink, count: int) -> bool:
    return link.sampled == count


def acknowledge(peer: socket.socket, sequence: int, upto: int) -> None:
    entry = bytes(8) + upto.to_bytes(8, "little")  # lane 0, incarnation 0
    peer.sendall(encode("ack", sequence, payload=entry))
