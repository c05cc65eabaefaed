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
        self.hedged = 0
        """So many of the oldest runs."""

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

    @rule(most=st.integers(0, 60), sent=st.integers(0, 60))
    def hedge(self, most: int, sent: int) -> None:
        """Whole runs, the oldest first, none twice, and none that has frames the kernel has not got."""
        expected, end = [], self.acked
        for at, run in enumerate(self.runs):
            end += run[3]
            if at < self.hedged:
                continue
            if run[3] > most or end > self.acked + sent:
                break
            most -= run[3]
            expected.append(run)
        assert self.log.hedge(sum(run[3] for run in expected) + most, sent_seq=self.acked + sent) == expected
        self.hedged += len(expected)

    @precondition(lambda self: len(self.runs) > self.hedged)
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
        newest = self.runs[-1][3] if len(self.runs) > self.hedged else 0
        with pytest.raises(ValueError, match=r"fewer frames|was hedged"):
            self.log.trim_last(newest + excess)

    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        """Any number up to the next one, those of the past included."""
        upto = data.draw(st.integers(0, self.next_seq))
        covered = max(0, upto - self.acked)
        self.acked = max(self.acked, upto)
        expected: list[tuple[int, int, int, int, bool]] = []
        while covered:
            owner, segment, first, count = self.runs[0]
            part = min(count, covered)
            covered -= part
            expected.append((owner, segment, first, part, self.hedged > 0))
            self.runs[0] = (owner, segment, first + part, count - part)
            if part == count:
                del self.runs[0]
                self.hedged = max(0, self.hedged - 1)
        assert self.log.ack(upto) == expected

    @rule(beyond=st.integers(1, 2**40))
    def ack_of_the_future(self, beyond: int) -> None:
        with pytest.raises(ValueError, match="never sent"):
            self.log.ack(self.next_seq + beyond)

    @rule()
    def drain(self) -> None:
        assert self.log.drain() == [(*run, at < self.hedged) for at, run in enumerate(self.runs)]
        self.runs = []
        self.acked = self.next_seq
        self.hedged = 0

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
        assert log.ack(12 * lap + 2) == [(1, lap, 0, 2, False)]
        assert not log.append(9, 0, 0, 1), "half of a run still takes a place"
        assert log.ack(12 * lap + 4) == [(1, lap, 2, 1, False), (2, lap, 1, 1, False)]
        rest = [(2, lap, 2, 2, False), (3, lap, 2, 3, False), (4, lap, 3, 3, False)]
        assert log.ack(12 * lap + 12) == rest
        assert len(log) == 0


@pytest.mark.parametrize("capacity", [0, 3, 4095])
def test_capacity_is_a_power_of_two(capacity: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        LaneLog(capacity)


def test_time_and_bytes_of_what_waits() -> None:
    log = LaneLog()
    assert log.oldest_ns == 0
    log.append(1, 0, 0, 2, cell_bytes=100, short_by=30, now_ns=5)
    log.append(1, 0, 2, 1, cell_bytes=100, now_ns=7)
    assert log.oldest_ns == 5
    assert log.hedge(169) == []
    assert log.hedge(170) == [(1, 0, 0, 2)]
    log.ack(1)
    assert log.oldest_ns == 5
    log.ack(2)
    assert log.oldest_ns == 7


def test_what_needs_no_acknowledgement_takes_a_number_and_no_place() -> None:
    log = LaneLog()
    log.skip()
    log.append(1, 0, 0, 1)
    assert log.next_seq == 2
    assert log.ack(1) == []
    assert log.ack(2) == [(1, 0, 0, 1, False)]
