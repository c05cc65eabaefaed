"""The lane log against a list of frames."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvwire._ext.lanelog import LaneLog

Run = tuple[int, int, int, int]


class LaneLogMachine(RuleBasedStateMachine):
    """`frames` are the cells that are not acknowledged, one by one; runs of the log are checked against them."""

    @initialize(log2=st.integers(0, 4))
    def start(self, log2: int) -> None:
        self.capacity = 1 << log2
        self.log = LaneLog(self.capacity)
        self.runs: list[Run] = []
        self.next_seq = 0
        self.acked = 0

    @rule(
        owner=st.integers(0, 2**63),
        segment=st.integers(0, 2**32 - 1),
        first=st.integers(0, 1 << 20),
        count=st.integers(1, 20),
    )
    def append(self, owner: int, segment: int, first: int, count: int) -> None:
        fits = len(self.runs) < self.capacity
        assert self.log.append(owner, segment, first, count) is fits
        if fits:
            self.runs.append((owner, segment, first, count))
            self.next_seq += count

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def trim_last(self, data: st.DataObject) -> None:
        owner, segment, first, count = self.runs[-1]
        cells = data.draw(st.integers(0, count))
        self.log.trim_last(cells)
        self.next_seq -= cells
        self.runs[-1] = (owner, segment, first, count - cells)
        if cells == count:
            del self.runs[-1]

    @rule(excess=st.integers(1, 5))
    def trim_too_much(self, excess: int) -> None:
        newest = self.runs[-1][3] if self.runs else 0
        with pytest.raises(ValueError, match="fewer frames"):
            self.log.trim_last(newest + excess)

    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        """Any number up to the next one, those of the past included."""
        upto = data.draw(st.integers(0, self.next_seq))
        covered = max(0, upto - self.acked)
        self.acked = max(self.acked, upto)
        expected: list[Run] = []
        while covered:
            owner, segment, first, count = self.runs[0]
            part = min(count, covered)
            covered -= part
            expected.append((owner, segment, first, part))
            self.runs[0] = (owner, segment, first + part, count - part)
            if part == count:
                del self.runs[0]
        assert self.log.ack(upto) == expected

    @rule(beyond=st.integers(1, 2**40))
    def ack_of_the_future(self, beyond: int) -> None:
        with pytest.raises(ValueError, match="never sent"):
            self.log.ack(self.next_seq + beyond)

    @rule()
    def drain(self) -> None:
        assert self.log.drain() == self.runs
        self.runs = []
        self.acked = self.next_seq

    @invariant()
    def agree(self) -> None:
        assert len(self.log) == len(self.runs)
        assert self.log.next_seq == self.next_seq


TestLaneLog = LaneLogMachine.TestCase


def test_full_ring_takes_more_after_an_acknowledgement() -> None:
    log = LaneLog(4)
    for lap in range(50):  # the ring wraps
        for i in range(4):
            assert log.append(1 + i, lap, i, 3)
        assert not log.append(9, 0, 0, 1)
        assert log.ack(12 * lap + 2) == [(1, lap, 0, 2)]
        assert not log.append(9, 0, 0, 1), "half of a run still takes a place"
        assert log.ack(12 * lap + 4) == [(1, lap, 2, 1), (2, lap, 1, 1)]
        assert log.ack(12 * lap + 12) == [(2, lap, 2, 2), (3, lap, 2, 3), (4, lap, 3, 3)]
        assert len(log) == 0


@pytest.mark.parametrize("capacity", [0, 3, 4095])
def test_capacity_is_a_power_of_two(capacity: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        LaneLog(capacity)
