"""Which cells are worth encoding, in virtual time: `kvwire/_ext/coding.pyx`."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwire._ext.coding import Gauge

S = 1_000_000_000
CELL = 65536


def shares(gauge: Gauge, ratio: float, cells: int, now: int) -> None:
    for _ in range(cells):
        gauge.measured(CELL, round(CELL / ratio), now)


def test_the_first_cell_is_measured_and_decides_for_those_behind_it() -> None:
    gauge = Gauge()
    assert (gauge.samples, gauge.ratio, gauge.on) == (0, 0.0, False)
    assert gauge.wants(True, 0, S)[0]
    gauge.measured(CELL, CELL // 2, S)
    assert (gauge.samples, gauge.ratio, gauge.on) == (1, 2.0, True)
    assert all(gauge.wants(True, 0, S)[0] for _ in range(200))


def test_what_does_not_shrink_is_looked_at_once_in_64_cells() -> None:
    gauge = Gauge()
    chosen = 0
    for _ in range(64 * 50):
        if gauge.wants(True, 0, S)[0]:
            gauge.measured(CELL, CELL, S)
            chosen += 1
    assert chosen == 50
    assert not gauge.on


def test_where_a_link_is_too_fast_a_worker_samples_every_50_ms_at_most() -> None:
    gauges = [Gauge() for _ in range(400)]  # layers that nobody has seen yet
    due = 0
    sampled: list[int] = []
    for now in range(0, S, S // 20_000):
        wants, due = gauges[len(sampled)].wants(False, due, now)
        if wants:
            sampled.append(now)
    assert len(sampled) == 20
    assert all(b - a >= S // 20 for a, b in pairwise(sampled))


@pytest.mark.parametrize(("ratio", "worth"), [(1.0, False), (1.09, False), (1.11, True), (3.0, True)])
def test_worth_is_a_tenth(ratio: float, worth: bool) -> None:
    gauge = Gauge()
    shares(gauge, ratio, 1, S)
    assert gauge.on is worth


def test_nothing_changes_within_five_seconds() -> None:
    gauge = Gauge()
    shares(gauge, 2.0, 1, S)
    shares(gauge, 1.0, 100, 6 * S - 1)
    assert gauge.on
    shares(gauge, 1.0, 1, 6 * S)
    assert not gauge.on
    shares(gauge, 2.0, 100, 11 * S - 1)
    assert not gauge.on
    shares(gauge, 2.0, 1, 11 * S)
    assert gauge.on


def test_one_odd_cell_changes_nothing() -> None:
    gauge = Gauge()
    shares(gauge, 1.5, 100, S)
    shares(gauge, 1.0, 1, 100 * S)
    assert gauge.on


@given(st.integers(0, 2**32))
def test_any_sequence(seed: int) -> None:
    """The ratio stays between those measured, and the switch follows it with five seconds at least between turns."""
    draw = random.Random(seed)
    gauge = Gauge()
    now, turned, seen = 0, -10 * S, []
    for _ in range(200):
        now += draw.randrange(S)
        plain = draw.randint(1, 1 << 18)
        wire = draw.randint(1, plain)
        was = gauge.on
        gauge.measured(plain, wire, now)
        seen.append(plain / wire)
        assert min(seen) * 0.99 <= gauge.ratio <= max(seen) * 65536 / 65000 + 70000
        if gauge.on is not was:
            assert now - turned >= 5 * S
            turned = now
            assert gauge.on is (gauge.ratio > 1.1)


def test_what_cannot_be_measured() -> None:
    gauge = Gauge()
    for plain, wire in ((0, 0), (10, 0), (10, 11)):
        with pytest.raises(ValueError, match="a payload of"):
            gauge.measured(plain, wire, S)
