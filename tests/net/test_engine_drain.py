"""A lane that is no longer needed goes without a trace: nothing is lost with it, and nobody is at fault."""

import time

import pytest

from kvwire._ext.frame import encode
from kvwire._ext.lanes import DRAINED, FAULTS
from kvwire._ext.outgoing import OutTransfer
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
    until,
)

QUIET_S = 0.1
SHAPES = [(16, 1 << 18)] * 2  # 8 MiB


@pytest.mark.usefixtures("nothing_left", "sealing")
class TestDrain:
    def test_in_mid_transfer(self) -> None:
        source, target = Memory(SHAPES, filled=True), Memory(SHAPES, seed=2)
        with Pair(3) as pair:
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            until(lambda: inc.cells[0], "the first cell")
            pair.sender.drain_lane(1)
            commit(out, inc)
            (ended,) = closures(pair.sender)
            assert (ended[0], ended[2], ended[3]) == (1, DRAINED, "no longer needed")
            (seen,) = closures(pair.receiver)
            assert (seen[0], seen[3]) == (1, "the peer closed the connection")
            assert not {ended[2], seen[2]} & FAULTS
            assert pair.sender.lanes_open == pair.receiver.lanes_open == 2
            assert (out.resent_cells, inc.duplicates) == (0, 0)
            assert pair.sender.link_stats()["resent_bytes"] == 0
        assert target.content() == source.content()

    def test_it_takes_no_more(self) -> None:
        source, target = Memory(SHAPES, filled=True), Memory(SHAPES, seed=2)
        with Pair(1) as pair:
            pair.sender.drain_lane(0)
            pair.sender.drain_lane(0)
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            started = time.monotonic()
            closures(pair.sender)
            assert time.monotonic() - started > 0.5 * QUIET_S
            assert inc.cells[0] == 0
            pair.add_lane(0, 1)
            commit(out, inc)
        assert target.content() == source.content()

    def test_what_comes_the_other_way_still_lands(self) -> None:
        """And is acknowledged: the lane stays for as long as the peer has something to say."""
        source, target = Memory(SHAPES, filled=True), Memory(SHAPES, seed=2)
        with Pair(1) as pair:
            out, inc = pair.transfer(source, target)
            pair.receiver.drain_lane(0)
            all_ready(out, source)
            until(lambda: inc.state == "committed", "all to land")
            assert pair.receiver.take_closed() == []
            pair.add_lane(1)  # for the receipt
            commit(out, inc)
            assert closures(pair.receiver)[0][2] == DRAINED
            assert (out.resent_cells, inc.duplicates) == (0, 0)
        assert target.content() == source.content()


@pytest.mark.usefixtures("nothing_left")
def test_not_before_all_is_acknowledged() -> None:
    source = Memory([(4, CELL)], filled=True)
    with raw_peer() as (link, peer):
        out = OutTransfer(link, 2, source.segments, CELL, False)
        out.ready(0, 0, 4)
        came = frames(peer, 5)
        assert [frame_type(next(came)) for _ in range(4)] == [1] * 4
        link.drain_lane(0)
        time.sleep(2 * QUIET_S)
        assert link.take_closed() == []
        peer.sendall(encode("receipt", 0, transfer=1))
        assert frame_type(next(came)) == 2, "acknowledgements still flow"
        peer.sendall(encode("ack", 1, payload=bytes(8) + (4).to_bytes(8, "little")))
        acked_at = time.monotonic()
        (ended,) = closures(link)
        assert ended[2] == DRAINED
        assert time.monotonic() - acked_at > 0.5 * QUIET_S
        assert peer.recv(1) == b"", "an end, at a frame's boundary, and no reset"


@pytest.mark.usefixtures("nothing_left")
def test_a_lane_that_drains_can_still_be_closed() -> None:
    source = Memory([(4, CELL)], filled=True)
    with raw_peer() as (link, peer):
        peer.settimeout(PATIENCE_S)
        out = OutTransfer(link, 2, source.segments, CELL, False)
        out.ready(0, 0, 4)
        until(lambda: link.lane_stats()[0]["unacked_bytes"], "the lane to claim")
        link.drain_lane(0)
        link.close_lane(0)
        assert closures(link)[0][3] == "closed by this side"
        assert link.link_stats()["queued_bytes"] == (0, 4 * CELL, 0)
