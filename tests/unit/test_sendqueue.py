"""The send queue against a list of runs."""

import math
import random
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvwire._ext.sendqueue import SendQueue

CLASSES = range(3)
SHARE = 16
"""A class that waits gets one byte in so many."""


@dataclass
class Run:
    owner: int
    segment: int
    first: int
    count: int
    klass: int
    deadline_ns: int
    rank: int
    order: int
    ready_ns: int
    cell_bytes: int
    short_by: int

    @property
    def key(self) -> tuple[float, int, int]:
        return self.deadline_ns or math.inf, self.rank, self.order

    @property
    def nbytes(self) -> int:
        return self.count * self.cell_bytes - self.short_by


class SendQueueMachine(RuleBasedStateMachine):
    """Pushes, claims of any size and runs that come back with their old order, while time goes on."""

    @initialize(start=st.integers(0, 100))
    def start(self, start: int) -> None:
        self.queue = SendQueue(start)
        self.runs: list[Run] = []
        self.taken: list[Run] = []
        self.orders = 0
        self.passed = [0, 0, 0]
        self.now = start
        self.idle = 0

    @rule(ns=st.integers(0, 1000))
    def time_goes_on(self, ns: int) -> None:
        self.now += ns
        self.idle += 0 if self.runs else ns

    @rule(
        owner=st.one_of(st.integers(0, 3), st.integers(0, 2**63)),
        segment=st.integers(0, 2**32 - 1),
        first=st.integers(0, 1000),
        count=st.integers(1, 1000),
        klass=st.sampled_from(CLASSES),
        deadline_ns=st.one_of(st.just(0), st.integers(1, 4), st.just(2**64 - 1)),
        rank=st.integers(0, 1),
        cell_bytes=st.integers(1, 5),
        data=st.data(),
    )
    def push(
        self,
        owner: int,
        segment: int,
        first: int,
        count: int,
        klass: int,
        deadline_ns: int,
        rank: int,
        cell_bytes: int,
        data: st.DataObject,
    ) -> None:
        short_by = data.draw(st.integers(0, cell_bytes - 1))
        run = Run(owner, segment, first, count, klass, deadline_ns, rank, self.orders, self.now, cell_bytes, short_by)
        assert self.add(run, order=None, ready_ns=None) == self.orders
        self.orders += 1

    def add(self, run: Run, *, order: int | None, ready_ns: int | None) -> int:
        self.runs.append(run)
        return self.queue.push(
            run.owner,
            run.segment,
            run.first,
            run.count,
            klass=run.klass,
            deadline_ns=run.deadline_ns,
            rank=run.rank,
            order=order,
            ready_ns=ready_ns,
            cell_bytes=run.cell_bytes,
            short_by=run.short_by,
            now_ns=self.now,
        )

    def waiting(self, klass: int) -> list[Run]:
        return sorted((run for run in self.runs if run.klass == klass), key=lambda run: run.key)

    def whose_turn(self) -> tuple[Run, int]:
        """The run that leaves next, and how many bytes of it at most."""
        first = min(run.klass for run in self.runs)
        for klass in reversed(CLASSES):
            runs = self.waiting(klass)
            if klass > first and runs and self.passed[klass] >= (SHARE - 1) * runs[0].cell_bytes:
                return runs[0], self.passed[klass] // (SHARE - 1)
        return self.waiting(first)[0], 1 << 62

    @rule(
        max_cells=st.one_of(st.integers(1, 40), st.integers(1, 2**32 - 1)),
        max_bytes=st.one_of(st.integers(0, 200), st.just(1 << 60)),
    )
    def claim(self, max_cells: int, max_bytes: int) -> None:
        got = self.queue.claim(max_cells, max_bytes=max_bytes, now_ns=self.now)
        if not self.runs:
            assert got is None
            return
        run, allowed = self.whose_turn()
        take = min(run.count, max_cells, max(1, min(max_bytes, allowed) // run.cell_bytes))
        assert got == (run.owner, run.segment, run.first, take, run.order)
        whole = run.count == take
        part = Run(**{**vars(run), "count": take, "short_by": run.short_by if whole else 0})
        self.taken.append(part)
        run.first += take
        run.count -= take
        if whole:
            self.runs.remove(run)
        for klass in CLASSES:
            if klass == run.klass:
                self.passed[klass] = max(0, self.passed[klass] - (SHARE - 1) * part.nbytes)
            elif self.waiting(klass):
                self.passed[klass] += part.nbytes

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """What a lost lane had sent goes in front of what became ready later."""
        run = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        if any(other.order == run.order for other in self.runs):
            return  # two runs of one order leave in either order
        assert self.add(run, order=run.order, ready_ns=run.ready_ns) == run.order

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(self.runs)).owner
        left = [run for run in self.runs if run.owner != owner]
        assert self.queue.remove(owner, now_ns=self.now) == len(self.runs) - len(left)
        self.runs = left

    @invariant()
    def agree(self) -> None:
        self.passed = [passed if self.waiting(klass) else 0 for klass, passed in zip(CLASSES, self.passed, strict=True)]
        assert len(self.queue) == len(self.runs)
        assert self.queue.queued_bytes == tuple(sum(run.nbytes for run in self.waiting(k)) for k in CLASSES)
        oldest = tuple(min((run.ready_ns for run in self.waiting(k)), default=0) for k in CLASSES)
        assert self.queue.oldest_ns == oldest
        assert self.queue.idle_ns(self.now) == self.idle


TestSendQueue = SendQueueMachine.TestCase


def claim_all(queue: SendQueue) -> list[int]:
    owners = []
    while (got := queue.claim(1 << 20)) is not None:
        owners.append(got[0])
    return owners


def test_deadline_then_rank_then_order() -> None:
    queue = SendQueue()
    queue.push(2, 0, 0, 1)
    queue.push(3, 0, 0, 1, deadline_ns=50)
    queue.push(4, 0, 0, 1, deadline_ns=20)
    queue.push(5, 0, 0, 1)
    queue.push(6, 0, 0, 1, rank=0)
    queue.push(7, 0, 0, 1, rank=0, deadline_ns=50)
    assert claim_all(queue) == [4, 7, 3, 6, 2, 5]


def test_a_class_comes_before_any_deadline_and_rank() -> None:
    queue = SendQueue()
    queue.push(1, 0, 0, 1, klass=2, deadline_ns=1, rank=0)
    queue.push(2, 0, 0, 1, klass=1)
    queue.push(3, 0, 0, 1, klass=0)
    assert claim_all(queue) == [3, 2, 1]


@pytest.mark.parametrize("seed", range(5))
def test_a_class_that_waits_gets_its_share(seed: int) -> None:
    """Between any two moments a class that always has work gets a sixteenth, but for a cell; and no more than a cell
    beside that, if it is not the first."""
    rng = random.Random(seed)
    cells = {klass: rng.choice([1, 4096, 65536]) for klass in CLASSES}
    queue = SendQueue()
    for klass in CLASSES:
        queue.push(klass, 0, 0, 10**6, klass=klass, cell_bytes=cells[klass])
    got, short, ahead = {klass: 0 for klass in CLASSES}, 0.0, 0.0
    for _ in range(3000):
        claimed = queue.claim(rng.randint(1, 16), max_bytes=256 * 1024)
        assert claimed is not None
        got[claimed[0]] += claimed[3] * cells[claimed[0]]
        for klass in (1, 2):
            lead = got[klass] - sum(got.values()) / SHARE
            short, ahead = min(short, lead), max(ahead, lead)
    most = max(cells.values()) + 256 * 1024 / SHARE
    assert -3 * most < short
    assert ahead < most


def test_what_has_nothing_to_send_saves_nothing_up() -> None:
    queue = SendQueue()
    queue.push(0, 0, 0, 10_000, klass=0)
    for _ in range(500):
        queue.claim(10)
    queue.push(2, 0, 0, 100, klass=2)
    assert [queue.claim(1) for _ in range(15)] == [(0, 0, 5000 + i, 1, 0) for i in range(15)]
    assert queue.claim(100) == (2, 0, 0, 1, 1)
    assert queue.claim(1) == (0, 0, 5015, 1, 0)


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


def test_a_claim_is_worth_so_many_bytes_or_one_cell() -> None:
    queue = SendQueue()
    queue.push(1, 0, 0, 10, cell_bytes=1000, short_by=300)
    assert queue.queued_bytes == (0, 9700, 0)
    assert queue.claim(16, max_bytes=3999) == (1, 0, 0, 3, 0)
    assert queue.claim(16, max_bytes=0) == (1, 0, 3, 1, 0)
    assert queue.queued_bytes == (0, 5700, 0)
    assert queue.claim(16) == (1, 0, 4, 6, 0)


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


def test_nothing_is_no_run_and_there_are_three_classes() -> None:
    queue = SendQueue()
    with pytest.raises(ValueError, match="at least one cell"):
        queue.push(1, 0, 0, 0)
    with pytest.raises(ValueError, match="at least one cell"):
        queue.claim(0)
    for klass in (-1, 3):
        with pytest.raises(ValueError, match="there are 3"):
            queue.push(1, 0, 0, 1, klass=klass)
