"""Send queue and lane logs together, with hedges: of each cell one run counts, whatever lanes do, and in any order."""

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvwire._ext.lanelog import LaneLog
from kvwire._ext.pacer import HedgeBudget
from kvwire._ext.sendqueue import SendQueue

CELLS = 24
OWNER = 7


class HedgingMachine(RuleBasedStateMachine):
    """What the engine does with the cells of one segment, over lanes that come and go.

    `acked`: how often an acknowledgement counted for a cell; `arrived`: cells that the peer has.
    """

    @initialize(lanes=st.integers(1, 4))
    def begin(self, lanes: int) -> None:
        self.start(lanes)

    def start(self, lanes: int) -> None:
        self.queue = SendQueue()
        self.queue.push(OWNER, 0, 0, CELLS)
        self.lanes = [LaneLog() for _ in range(lanes)]
        self.acked: Counter[int] = Counter()
        self.arrived: set[int] = set()

    def lane(self, data: st.DataObject) -> LaneLog:
        return data.draw(st.sampled_from(self.lanes))

    def settle(self, run: tuple[int, int, int, int, bool]) -> None:
        _, _, first, count, hedged = run
        self.arrived.update(range(first, first + count))
        if not hedged:
            self.acked.update(range(first, first + count))

    @rule(data=st.data(), most=st.integers(1, 8))
    def send(self, data: st.DataObject, most: int) -> None:
        run = self.queue.claim(most)
        if run is not None:
            self.lane(data).append(*run[:4])

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        log = self.lane(data)
        for run in log.ack(data.draw(st.integers(0, log.next_seq))):
            self.settle(run)

    @rule(data=st.data(), most=st.integers(0, 30))
    def hedge(self, data: st.DataObject, most: int) -> None:
        for run in self.lane(data).hedge(most):
            self.queue.push(*run)

    @rule(data=st.data())
    def lane_dies(self, data: st.DataObject) -> None:
        """What nothing else stands for goes back; another one takes its place."""
        self.replace(data.draw(st.integers(0, len(self.lanes) - 1)))

    def replace(self, at: int) -> None:
        for owner, segment, first, count, hedged in self.lanes[at].drain():
            if not hedged:
                self.queue.push(owner, segment, first, count)
        self.lanes[at] = LaneLog()

    @rule(data=st.data())
    def all_die(self, data: st.DataObject) -> None:
        """In any order; then one lane that works is enough for every cell to arrive, and to be counted once."""
        for at in data.draw(st.permutations(range(len(self.lanes)))):
            self.replace(at)
        while (claimed := self.queue.claim(5)) is not None:
            self.lanes[0].append(*claimed[:4])
        for run in self.lanes[0].ack(self.lanes[0].next_seq):
            self.settle(run)
        assert self.acked == Counter(range(CELLS))
        self.start(len(self.lanes))

    @invariant()
    def none_counts_twice(self) -> None:
        assert all(count == 1 for count in self.acked.values())
        assert set(self.acked) <= self.arrived


TestHedging = HedgingMachine.TestCase


def test_the_budget_is_a_burst_and_a_hundredth_of_what_was_sent() -> None:
    budget = HedgeBudget()
    assert budget.left_bytes == 4 << 20
    budget.earn(1 << 40)
    assert budget.left_bytes == 4 << 20
    budget.spend(4 << 20)
    assert budget.left_bytes == 0
    for _ in range(1000):
        budget.earn(250)
    assert budget.left_bytes == 2500
    budget.earn(1 << 62)
    assert budget.left_bytes == 4 << 20
