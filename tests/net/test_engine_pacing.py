"""Pacing over real sockets: what it holds back, what passes it, and that nobody sleeps through its end."""

import random
import socket
import threading
import time
from functools import partial

import pytest

from kvwire._ext.frame import encode
from kvwire._ext.lanes import EngineLink
from kvwire._ext.outgoing import OutTransfer
from kvwire.errors import SpecError
from tests.net.engines import CELL, Memory, Pair, all_ready, commit, frames, raw_peer, tcp_pair, until

SO_MAX_PACING_RATE = 47  # asm-generic/socket.h
TCP_NOTSENT_LOWAT = 25  # linux/tcp.h
MIB = 1 << 20
LEAST_BURST = 256 * 1024


def some(mib: int = 4) -> tuple[Memory, Memory]:
    return Memory([(16 * mib, 1 << 16)], filled=True), Memory([(16 * mib, 1 << 16)], seed=2)


@pytest.mark.usefixtures("nothing_left", "sealing")
class TestPacing:
    def test_no_more_leaves_than_the_rate_allows(self) -> None:
        source, target = some()
        rate = 10 * MIB
        with Pair(4) as pair:
            pair.sender.set_pace(rate, 0, 0, 0)
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            commit(out, inc)
            first, _, receipt = out.times_ns
            took_s = (receipt - first) / 1e9
            assert took_s >= (4 * MIB - LEAST_BURST - 2 * rate / 100) / rate
            stats = pair.sender.link_stats()
            assert stats["paced_ns"] > 0.5e9 * took_s
            assert stats["paced_ns"] <= stats["now_ns"] - first
        assert target.content() == source.content()

    def test_every_lane_gets_its_turn_at_the_tokens(self) -> None:
        """Where the pacer binds, all sockets have room all the time."""
        source, target = some()
        with Pair(4) as pair:
            pair.sender.set_pace(20 * MIB, 0, 0, 0)
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            commit(out, inc)
            assert min(stats["sent_bytes"] for stats in pair.sender.lane_stats()) > 4 * MIB / 40

    def test_a_lifted_cap_is_felt_at_once(self) -> None:
        source, target = some(1)
        with Pair(2) as pair:
            pair.sender.set_pace(1, 0, 0, 0)
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            until(lambda: pair.sender.link_stats()["paced_ns"], "the pacer to hold the rest back")
            assert out.wait(0.05) == "active"
            pair.sender.set_pace(0, 0, 0, 0)
            commit(out, inc)
            before = pair.sender.link_stats()["paced_ns"]
            time.sleep(0.01)
            assert pair.sender.link_stats()["paced_ns"] == before
        assert target.content() == source.content()

    def test_nobody_sleeps_through_a_change(self) -> None:
        """Caps come and go while cells become ready, from two threads."""
        rng = random.Random(5)
        source, target = Memory([(400, CELL)], filled=True), Memory([(400, CELL)], seed=2)
        with Pair(3) as pair:
            out, inc = pair.transfer(source, target)

            def produce() -> None:
                for block in range(400):
                    out.ready(0, block, 1)

            thread = threading.Thread(target=produce)
            thread.start()
            while thread.is_alive():
                pair.sender.set_pace(rng.choice((0, 1, 10**6)), rng.choice((0, 1, 10**7)), 0, rng.choice((0, 1, CELL)))
            thread.join()
            pair.sender.set_pace(10**8, 10**8, 0, 2 * CELL)
            commit(out, inc)
            until(lambda: pair.sender.link_stats()["inflight_bytes"] == 0, "the last acknowledgements")
            assert pair.sender.link_stats()["acked_bytes"] == 400 * CELL
        assert target.content() == source.content()

    def test_acknowledgements_and_receipts_are_not_paced(self) -> None:
        source, target = some(1)
        with Pair(2) as pair:
            pair.receiver.set_pace(1, 1, 0, 1)
            pair.add_lane(2)  # the burst of a bucket that was never used is no help
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            commit(out, inc)
            assert pair.receiver.link_stats()["paced_ns"] == 0

    def test_the_kernel_is_told_what_a_lane_may_send(self) -> None:
        ours, theirs = tcp_pair()
        later, too = tcp_pair()
        with Pair(1) as pair, ours.dup() as ours_too, later.dup() as later_too:

            def pace(sock: socket.socket) -> int:
                return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8), "little")

            pair.join(ours, theirs, 1, 0)
            pair.sender.set_pace(0, 0, 12_500_000, 0)
            until(lambda: pace(ours_too) == 12_500_000, "the rate of the lane")
            pair.join(later, too, 2, 0)
            until(lambda: pace(later_too) == 12_500_000, "the rate of a lane that came later")
            pair.sender.set_pace(0, 0, 0, 0)
            until(lambda: pace(ours_too) == pace(later_too) == 2**64 - 1, "no cap")
            assert not pair.sender.pacing_refused

    def test_a_lane_hides_little_in_its_socket_from_the_start(self) -> None:
        ours, theirs = tcp_pair()
        with Pair(0) as pair, ours.dup() as ours_too:
            pair.join(ours, theirs, 0, 0)
            until(lambda: ours_too.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT) == 64 * 1024, "the limit")


@pytest.mark.usefixtures("nothing_left")
def test_a_host_that_cannot_pace_is_remembered() -> None:
    """MPTCP's sockets cannot."""
    try:
        multipath = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)  # IPPROTO_MPTCP
    except OSError:
        pytest.skip("a kernel without MPTCP")
    with multipath, socket.create_server(("127.0.0.1", 0)) as listener, Pair(0) as pair:
        multipath.connect(listener.getsockname())
        with listener.accept()[0]:
            pair.sender.add_lane(multipath.detach(), 0, 0)
            pair.sender.set_pace(0, 0, 10**6, 0)
            until(lambda: pair.sender.pacing_refused, "the refusal")
            assert pair.sender.lanes_open == 1


def in_flight(link: EngineLink, least: int) -> bool:
    return link.link_stats()["inflight_bytes"] >= least


@pytest.mark.usefixtures("nothing_left")
def test_what_is_in_flight_stays_below_its_cap() -> None:
    """But for a claim, which a lane may take whenever nothing is."""
    source = Memory([(64, CELL)], filled=True)
    with raw_peer() as (link, peer):
        link.set_pace(0, 0, 0, 10 * CELL)
        out = OutTransfer(link, 2, source.segments, CELL, False)
        out.ready(0, 0, 64)
        came = frames(peer, 64)
        sequence, have = 0, 0
        while have < 64:
            until(partial(in_flight, link, min(10, 64 - have) * CELL), "the cap to be reached")
            inflight = link.link_stats()["inflight_bytes"]
            assert inflight < (10 + 16) * CELL
            for _ in range(inflight // CELL):
                next(came)
            have += inflight // CELL
            entry = bytes(8) + have.to_bytes(8, "little")  # lane 0, incarnation 0
            peer.sendall(encode("ack", sequence, payload=entry))
            sequence += 1
        until(lambda: link.link_stats()["acked_bytes"] == 64 * CELL, "all to be acknowledged")
        assert link.link_stats()["paced_ns"] > 0


@pytest.mark.usefixtures("nothing_left")
def test_an_engine_without_lanes_is_not_held_back() -> None:
    source = Memory([(4, CELL)], filled=True)
    with Pair(0) as pair:
        pair.sender.set_pace(1, 0, 0, 1)
        out = OutTransfer(pair.sender, 2, source.segments, CELL, False)
        out.ready(0, 0, 4)
        time.sleep(0.01)
        assert pair.sender.link_stats()["paced_ns"] == 0


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("bad", [{"klass": 3}, {"klass": -1}, {"ranks": [0, 1, 1]}])
def test_there_are_three_classes_and_a_rank_for_each_segment(bad: dict[str, object]) -> None:
    source = Memory([(1, CELL)] * 2)
    with Pair(0) as pair, pytest.raises(SpecError):
        OutTransfer(pair.sender, 2, source.segments, CELL, False, **bad)  # type: ignore[arg-type]


@pytest.mark.usefixtures("nothing_left")
def test_order_on_the_wire() -> None:
    """Classes first, then what is due, then what a decoder needs whole, then what became ready first."""
    parts = Memory([(1, CELL)] * 3, filled=True)
    ours, theirs = tcp_pair()
    with Pair(0) as pair, theirs:
        outs = []
        for id, klass, deadline_ns in ((4, 2, 1), (6, 1, 0), (8, 1, 10**18), (10, 0, 0)):
            out = OutTransfer(pair.sender, id, parts.segments, CELL, False, klass, deadline_ns, ranks=[1, 1, 0])
            all_ready(out, parts)
            outs.append(out)
        stats = pair.sender.link_stats()
        assert stats["queued_bytes"] == (3 * CELL, 6 * CELL, 3 * CELL)
        assert 0 < stats["oldest_ns"][0] < stats["oldest_ns"][1] < stats["oldest_ns"][2]
        pair.sender.add_lane(ours.detach(), 0, 0)
        came = [(int.from_bytes(frame[24:32], "little"), frame[12]) for frame in frames(theirs, 12)]
        assert came == [(id, segment) for id in (10, 8, 6, 4) for segment in (2, 0, 1)]
