"""A lane that makes no progress: others send, too, what it has; it may recover, or die, and nothing counts twice."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from kvwire._ext.frame import encode
from kvwire._ext.incoming import InTransfer
from kvwire._ext.lanes import EngineLink
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
    lane_secrets,
    raw_peer,
    tcp_pair,
    until,
)

if TYPE_CHECKING:
    from kvwire._ext.lanes import LaneStats

SHAPES = [(16, 1 << 16)] * 2
UNDER_WAY = 32 * CELL
"""So much the socket of a lane takes whose other end does not read."""
STALLED = 7
ALL = 1 << 30


def lane_of(link: EngineLink, number: int) -> "LaneStats":
    return next(stats for stats in link.lane_stats() if stats["lane"] == number)


class Stalled:
    """A lane of the sender's, STALLED, at whose other end the receiver is not yet."""

    def __init__(self, pair: Pair) -> None:
        ours, self.theirs = tcp_pair()
        self.pair = pair
        self.secrets = lane_secrets() if pair.cipher else None
        pair.sender.add_lane(ours.detach(), STALLED, 0, self.secrets)

    def recover(self) -> None:
        secrets = self.secrets and self.secrets[::-1]
        self.pair.receiver.add_lane(self.theirs.detach(), STALLED, 0, secrets)

    def die(self) -> None:
        self.theirs.shutdown(socket.SHUT_RDWR)


@contextmanager
def moving(lanes: int = 1) -> Iterator[tuple[Pair, Stalled, OutTransfer, InTransfer]]:
    """A transfer whose first cells are under way on the lane that stands still; `lanes` others take the rest."""
    source, target = Memory(SHAPES, filled=True), Memory(SHAPES, seed=2)
    with Pair(0) as pair:
        stalled = Stalled(pair)
        with stalled.theirs:
            out, inc = pair.transfer(source, target)
            out.ready(0, 0, 2)
            until(lambda: lane_of(pair.sender, STALLED)["sent_bytes"] > UNDER_WAY, "the lane to take some")
            for lane in range(lanes):
                pair.add_lane(lane)
            yield pair, stalled, out, inc
        assert target.content() == source.content()
        assert target.poisoned_outside()


def finish(out: OutTransfer, inc: InTransfer) -> None:
    out.ready(0, 2, 14)
    out.ready(1, 0, 16)
    commit(out, inc)
    assert out.cells == (512, 512)


@pytest.mark.usefixtures("nothing_left", "sealing")
class TestHedge:
    def test_its_cells_land_over_another_lane(self) -> None:
        with moving() as (pair, stalled, out, inc):
            waiting = lane_of(pair.sender, STALLED)["unacked_bytes"]
            assert waiting == UNDER_WAY
            assert pair.sender.hedge(STALLED, ALL) == waiting
            assert pair.sender.hedge(STALLED, ALL) == 0, "each only once"
            until(lambda: inc.cells[0] == 32, "the copies to land")
            until(lambda: out.cells[0] == 32, "the copies to be acknowledged")
            finish(out, inc)
            stats = pair.sender.link_stats()
            assert (stats["hedged_bytes"], stats["resent_bytes"]) == (waiting, 0)
            assert lane_of(pair.sender, STALLED)["unacked_bytes"] == waiting
            stalled.die()
            assert [lane for lane, *_ in closures(pair.sender)] == [STALLED]
            until(lambda: pair.sender.link_stats()["inflight_bytes"] == 0, "the last acknowledgements")
            assert pair.sender.link_stats()["resent_bytes"] == out.resent_cells == inc.duplicates == 0
            assert pair.sender.link_stats()["acked_bytes"] == 2 << 20

    def test_it_takes_no_more_until_it_moves(self) -> None:
        with moving() as (pair, stalled, out, inc):
            pair.sender.hedge(STALLED, 0)
            before = lane_of(pair.sender, STALLED)
            out.ready(1, 0, 16)
            until(lambda: inc.cells[0] == 256, "the others to land")
            after = lane_of(pair.sender, STALLED)
            assert (before["sent_bytes"], before["unacked_bytes"]) == (after["sent_bytes"], after["unacked_bytes"])
            stalled.recover()
            out.ready(0, 2, 14)
            commit(out, inc)

    def test_a_lane_that_recovers_is_not_harmed(self) -> None:
        with moving() as (pair, stalled, out, inc):
            pair.sender.hedge(STALLED, ALL)
            until(lambda: inc.cells[0] == 32, "the copies to land")
            stalled.recover()
            until(lambda: lane_of(pair.sender, STALLED)["unacked_bytes"] == 0, "its own to be acknowledged")
            assert inc.duplicates == 32
            # The copies' own acknowledgement may come after that of what they are copies of.
            until(lambda: pair.sender.link_stats()["acked_bytes"] == UNDER_WAY, "the copies to be acknowledged")
            pair.sender.close_lane(0)
            closures(pair.sender)
            finish(out, inc)
            assert pair.sender.take_closed() == pair.receiver.take_closed()[1:] == []

    def test_it_recovers_before_the_copies_have_left(self) -> None:
        """The copies stand for the cells nevertheless: they leave and count, once."""
        with moving(lanes=0) as (pair, stalled, out, inc):
            assert pair.sender.hedge(STALLED, ALL) == UNDER_WAY
            stalled.recover()
            until(lambda: inc.cells[0] == 32, "its own to land")
            until(lambda: inc.duplicates == 32, "the copies to come on the lane that moves again")
            finish(out, inc)

    @pytest.mark.parametrize("order", [(0, STALLED), (STALLED, 0)])
    def test_both_lanes_die(self, order: tuple[int, int]) -> None:
        """The copy's first or the other one: what has not landed is sent again by a third."""
        with moving(lanes=0) as (pair, _, out, inc):
            hole, end = tcp_pair()
            with end:
                assert pair.sender.hedge(STALLED, ALL) == UNDER_WAY
                pair.sender.add_lane(hole.detach(), 0, 0, lane_secrets() if pair.cipher else None)
                until(lambda: lane_of(pair.sender, 0)["unacked_bytes"] == UNDER_WAY, "the copies to be under way")
                for lane in order:
                    pair.sender.close_lane(lane)
                    closures(pair.sender)
                assert out.resent_cells == 32
                assert pair.sender.link_stats()["resent_bytes"] == UNDER_WAY
                assert pair.sender.link_stats()["inflight_bytes"] == 0
                assert out.cells[0] == 0
                pair.add_lane(1)
                finish(out, inc)
                assert inc.duplicates == 0

    def test_no_more_than_was_asked_for(self) -> None:
        with moving(lanes=0) as (pair, _, out, inc):
            assert pair.sender.hedge(STALLED, 5 * CELL) <= 5 * CELL
            first = pair.sender.link_stats()["queued_bytes"][1]
            assert 0 <= first <= 5 * CELL
            assert pair.sender.hedge(STALLED, ALL) == UNDER_WAY - first
            pair.add_lane(0)
            finish(out, inc)

    def test_a_receipt_that_hangs_is_sent_on_another_lane(self) -> None:
        source, target = Memory([(3, 5000)], filled=True), Memory([(3, 5000)], seed=2)
        with Pair(0) as pair:
            ours, theirs = tcp_pair()
            with ours:
                pair.receiver.add_lane(theirs.detach(), STALLED, 0, lane_secrets() if pair.cipher else None)
                out, inc = pair.transfer(source, target)
                pair.add_lane(1)
                pair.receiver.drain_lane(1)  # it takes no receipts
                all_ready(out, source)
                until(lambda: lane_of(pair.receiver, STALLED)["stalled_ns"], "the receipt to hang")
                assert out.wait(0.02) == "active"
                pair.add_lane(2)
                assert pair.receiver.hedge(STALLED, 0) == 0
                commit(out, inc)
                ours.shutdown(socket.SHUT_RDWR)
                assert closures(pair.receiver)[0][0] == STALLED
        assert target.content() == source.content()

    def test_a_lane_that_nothing_waits_on_is_left_alone(self) -> None:
        source, target = Memory(SHAPES, filled=True), Memory(SHAPES, seed=2)
        with Pair(1) as pair:
            assert pair.sender.hedge(0, ALL) == pair.sender.hedge(1, ALL) == 0
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            commit(out, inc)

    def test_copies_of_what_has_been_aborted_are_not_made(self) -> None:
        with moving() as (pair, _, out, inc):
            out.abort()
            assert pair.sender.hedge(STALLED, ALL) == 0
            assert pair.sender.queued_runs == 0
            inc.abort()
            again = pair.transfer(*pair.memory[:2], id=4)
            all_ready(again[0], pair.memory[0])
            commit(*again)


@pytest.mark.usefixtures("nothing_left")
def test_the_budget_is_kept() -> None:
    """4 MiB, and a hundredth of what was sent: here that is nothing much."""
    source = Memory([(48, 1 << 17)], filled=True)
    with raw_peer() as (link, peer):
        out = OutTransfer(link, 2, source.segments, 1 << 16, False)
        out.ready(0, 0, 48)
        for _ in frames(peer, 96):  # it reads all and acknowledges nothing
            pass
        until(lambda: link.lane_stats()[0]["sent_frames"] == 96, "the lane to know that")
        assert 4 << 20 >= link.hedge(0, ALL) > (4 << 20) - (1 << 18)
        assert link.hedge(0, ALL) == 0


@pytest.mark.usefixtures("nothing_left")
def test_what_a_peer_sees_of_it() -> None:
    """Its own lane stays silent, but for acknowledgements; the other one carries the copies, oldest first."""
    source = Memory([(4, CELL)], filled=True)
    ours, theirs = tcp_pair()
    other, end = tcp_pair()
    with Pair(0) as pair, theirs, end:
        pair.sender.add_lane(ours.detach(), 0, 0)
        out = OutTransfer(pair.sender, 2, source.segments, CELL, False)
        out.ready(0, 0, 4)
        came = frames(theirs, 5)
        assert [frame_type(next(came)) for _ in range(4)] == [1] * 4
        theirs.sendall(encode("ack", 0, payload=bytes(8) + (1).to_bytes(8, "little")))
        until(lambda: lane_of(pair.sender, 0)["unacked_bytes"] == 3 * CELL, "the first cell to be acknowledged")
        assert pair.sender.hedge(0, ALL) == 3 * CELL
        pair.sender.add_lane(other.detach(), 1, 0)
        assert [frame[32] for frame in frames(end, 3)] == [1, 2, 3]
        theirs.sendall(encode("receipt", 1, transfer=1))
        assert frame_type(next(came)) == 2


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("ending", ["acknowledged", "lane lost"])
@pytest.mark.parametrize("hedged", [True, False])
def test_what_commits_counts_once_and_whole(hedged: bool, ending: str) -> None:
    """The receipt overtakes the acknowledgements, and what was queued again never leaves."""
    source = Memory([(4, CELL)], filled=True)
    with raw_peer() as (link, peer):
        out = OutTransfer(link, 2, source.segments, CELL, False)
        out.ready(0, 0, 4)
        for _ in frames(peer, 4):
            pass
        until(lambda: lane_of(link, 0)["sent_frames"] == 4, "the lane to know that")
        peer.sendall(encode("ack", 0, payload=bytes(8) + (1).to_bytes(8, "little")))
        until(lambda: link.link_stats()["acked_bytes"] == CELL, "the first cell to be acknowledged")
        if hedged:
            assert link.hedge(0, ALL) == 3 * CELL
        peer.sendall(encode("receipt", 1, transfer=2))
        assert out.wait(PATIENCE_S) == "committed"
        assert link.link_stats()["acked_bytes"] == 4 * CELL
        if ending == "acknowledged":
            peer.sendall(encode("ack", 2, payload=bytes(8) + (4).to_bytes(8, "little")))
        else:
            peer.shutdown(socket.SHUT_RDWR)
        until(lambda: link.link_stats()["inflight_bytes"] == 0, "the log to be empty")
        stats = link.link_stats()
        assert (stats["acked_bytes"], stats["queued_bytes"]) == (4 * CELL, (0, 0, 0))
