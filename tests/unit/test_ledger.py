"""The ledger against a set of cells."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvwire._ext.ledger import Ledger

Cell = tuple[int, int]


class LedgerMachine(RuleBasedStateMachine):
    """Any order of claims and landings, inside and outside, leaves the ledger and two sets in agreement."""

    @initialize(cells=st.lists(st.integers(0, 20), max_size=5))
    def start(self, cells: list[int]) -> None:
        self.cells = cells
        self.ledger = Ledger(cells)
        self.claimed: set[Cell] = set()
        self.landed: set[Cell] = set()

    @rule(segment=st.integers(0, 6), cell=st.integers(0, 22))
    def claim(self, segment: int, cell: int) -> None:
        inside = segment < len(self.cells) and cell < self.cells[segment]
        before = (segment, cell) in self.claimed
        expected = "outside" if not inside else "duplicate" if before else "own"
        assert self.ledger.claim(segment, cell) == expected
        if inside:
            self.claimed.add((segment, cell))

    @precondition(lambda self: self.claimed - self.landed)
    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        cell = data.draw(st.sampled_from(sorted(self.claimed - self.landed)))
        self.landed.add(cell)
        complete = all((cell[0], i) in self.landed for i in range(self.cells[cell[0]]))
        assert self.ledger.land(*cell) is complete

    @rule(segment=st.integers(0, 6), cell=st.integers(0, 22))
    def land_wrongly(self, segment: int, cell: int) -> None:
        if segment >= len(self.cells) or cell >= self.cells[segment]:
            with pytest.raises(IndexError):
                self.ledger.land(segment, cell)
        elif (segment, cell) not in self.claimed or (segment, cell) in self.landed:
            with pytest.raises(ValueError, match="not claimed, or landed before"):
                self.ledger.land(segment, cell)

    @invariant()
    def agree(self) -> None:
        for segment, cells in enumerate(self.cells):
            landed = [(segment, cell) in self.landed for cell in range(cells)]
            assert [self.ledger.landed(segment, cell) for cell in range(cells)] == landed
            assert self.ledger.missing(segment) == landed.count(False)
        assert self.ledger.missing_total == sum(self.cells) - len(self.landed)


TestLedger = LedgerMachine.TestCase


@given(cells=st.lists(st.integers(0, 40), max_size=8), order=st.randoms(use_true_random=False))
def test_every_cell_once_completes_each_segment_once(cells: list[int], order: random.Random) -> None:
    ledger = Ledger(cells)
    every = [(segment, cell) for segment, n in enumerate(cells) for cell in range(n)]
    order.shuffle(every)
    completed = []
    for segment, cell in every:
        assert ledger.claim(segment, cell) == "own"
        if ledger.land(segment, cell):
            completed.append(segment)
    assert sorted(completed) == [segment for segment, n in enumerate(cells) if n]
    assert ledger.missing_total == 0


@pytest.mark.parametrize("cells", [[-1], [1, 1 << 32]])
def test_impossible_counts(cells: list[int]) -> None:
    with pytest.raises(ValueError, match="0 to"):
        Ledger(cells)


def test_numbers_far_outside() -> None:
    ledger = Ledger([8])
    assert ledger.claim(0, 8) == "outside"
    assert ledger.claim(0, 2**32 - 1) == "outside"
    assert ledger.claim(2**32 - 1, 0) == "outside"
    with pytest.raises(IndexError):
        ledger.missing(1)
    with pytest.raises(IndexError):
        ledger.landed(1, 0)
