"""The send queue against a sorted list."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvwire._ext.sendqueue import SendQueue


@dataclass
class Run:
    owner: int
    segment: int
    first: int
    count: int
    klass: int
    deadline_ns: int
    order: int

    @property
    def key(self) -> tuple[int, float, int]:
        return self.klass, self.deadline_ns or math.inf, self.order


class SendQueueMachine(RuleBasedStateMachine):
    """Pushes, claims of any size and runs that come back with their old order."""

    @initialize()
    def start(self) -> None:
        self.queue = SendQueue()
        self.runs: list[Run] = []
        self.taken: list[Run] = []
        self.orders = 0

    @rule(
        owner=st.one_of(st.integers(0, 3), st.integers(0, 2**63)),
        segment=st.integers(0, 2**32 - 1),
        first=st.integers(0, 1000),
        count=st.integers(1, 1000),
        klass=st.integers(0, 2),
        deadline_ns=st.one_of(st.just(0), st.integers(1, 4), st.just(2**64 - 1)),
    )
    def push(self, owner: int, segment: int, first: int, count: int, klass: int, deadline_ns: int) -> None:
        order = self.queue.push(owner, segment, first, count, klass=klass, deadline_ns=deadline_ns)
        assert order == self.orders
        self.orders += 1
        self.runs.append(Run(owner, segment, first, count, klass, deadline_ns, order))

    @rule(max_cells=st.one_of(st.integers(1, 40), st.integers(1, 2**32 - 1)))
    def claim(self, max_cells: int) -> None:
        got = self.queue.claim(max_cells)
        if not self.runs:
            assert got is None
            return
        run = min(self.runs, key=lambda r: r.key)
        take = min(run.count, max_cells)
        assert got == (run.owner, run.segment, run.first, take, run.order)
        self.taken.append(Run(run.owner, run.segment, run.first, take, run.klass, run.deadline_ns, run.order))
        run.first += take
        run.count -= take
        if run.count == 0:
            self.runs.remove(run)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """What a lost lane had sent goes in front of what became ready later."""
        run = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        if any(other.order == run.order for other in self.runs):
            return  # two runs of one order leave in either order
        again = self.queue.push(
            run.owner,
            run.segment,
            run.first,
            run.count,
            klass=run.klass,
            deadline_ns=run.deadline_ns,
            order=run.order,
        )
        assert again == run.order
        self.runs.append(run)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(self.runs)).owner
        left = [run for run in self.runs if run.owner != owner]
        assert self.queue.remove(owner) == len(self.runs) - len(left)
        self.runs = left

    @invariant()
    def same_length(self) -> None:
        assert len(self.queue) == len(self.runs)


TestSendQueue = SendQueueMachine.TestCase


def claim_all(queue: SendQueue) -> list[int]:
    owners = []
    while (got := queue.claim(1 << 20)) is not None:
        owners.append(got[0])
    return owners


def test_class_then_deadline_then_order() -> None:
    queue = SendQueue()
    queue.push(1, 0, 0, 1, klass=2, deadline_ns=1)
    queue.push(2, 0, 0, 1, klass=1)
    queue.push(3, 0, 0, 1, klass=1, deadline_ns=50)
    queue.push(4, 0, 0, 1, klass=1, deadline_ns=20)
    queue.push(5, 0, 0, 1, klass=1)
    queue.push(6, 0, 0, 1, klass=0)
    assert claim_all(queue) == [6, 4, 3, 2, 5, 1]


def test_a_partial_claim_keeps_its_place() -> None:
    queue = SendQueue()
    first = queue.push(1, 7, 100, 10)
    queue.push(2, 8, 0, 1)
    assert queue.claim(4) == (1, 7, 100, 4, first)
    assert queue.claim(4) == (1, 7, 104, 4, first)
    queue.push(3, 9, 0, 1, klass=0)
    assert queue.claim(4) == (3, 9, 0, 1, 2)
    assert queue.claim(4) == (1, 7, 108, 2, first)
    assert claim_all(queue) == [2]


def test_what_is_removed_leaves_the_rest_in_order() -> None:
    queue = SendQueue()
    for i in range(1000):
        queue.push(i % 7, 0, i, 1, deadline_ns=1 + (i * 617) % 1000)
    assert queue.remove(3) == 143
    assert queue.remove(3) == queue.remove(8) == 0
    assert claim_all(queue) == [i % 7 for i in sorted(range(1000), key=lambda i: (i * 617) % 1000) if i % 7 != 3]


def test_grows_past_its_first_capacity() -> None:
    queue = SendQueue()
    for i in range(1000):
        queue.push(i, 0, 0, 1, deadline_ns=1 + (i * 617) % 1000)
    assert claim_all(queue) == sorted(range(1000), key=lambda i: (i * 617) % 1000)
    assert queue.claim(1) is None


def test_nothing_is_no_run() -> None:
    queue = SendQueue()
    with pytest.raises(ValueError, match="at least one cell"):
        queue.push(1, 0, 0, 0)
    with pytest.raises(ValueError, match="at least one cell"):
        queue.claim(0)
