"""The pacer in virtual time: never more than rate, burst and a claim; never less than the rate to one who asks."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwire._ext.pacer import Pacer

KIB, MIB = 1 << 10, 1 << 20
SECOND, MS = 10**9, 10**6
YEAR = 365 * 86400 * SECOND
GBIT_400 = 50 * 10**9


def most_over(sent: list[tuple[int, int]], rate_Bps: int) -> float:
    """Over any stretch of time, by how much more left than the rate allows."""
    most, low, total = 0.0, 0.0, 0
    for at, nbytes in sent:
        low = min(low, total - rate_Bps * at / SECOND)
        total += nbytes
        most = max(most, total - rate_Bps * at / SECOND - low)
    return most


RATES = st.one_of(st.integers(1, 10**6), st.integers(10**6, 10**9), st.just(GBIT_400))


@given(average=RATES, peak=RATES, claim=st.integers(1, 256 * KIB), seed=st.integers(0, 1 << 32))
def test_no_more_leaves_than_rate_and_burst(average: int, peak: int, claim: int, seed: int) -> None:
    """Over any interval, whenever one looks and pauses."""
    rng = random.Random(seed)
    pacer = Pacer(1000, average_Bps=average, peak_Bps=peak)
    bursts = pacer.burst_bytes
    now, sent = 1000, []
    for _ in range(300):
        wait = pacer.wait_ns(now)
        if wait == 0:
            pacer.take(claim, now)
            sent.append((now, claim))
            if rng.random() < 0.2:
                back = rng.randint(0, claim)
                pacer.give_back(back)
                sent[-1] = (now, claim - back)
        now += rng.choice((0, 1, wait, wait, 2 * wait, rng.randint(0, 20 * MS)))
    for rate, burst in zip((average, peak), bursts, strict=True):
        assert most_over(sent, rate) <= burst + claim + 1


@pytest.mark.parametrize("rate", [125, 12_500_000, 125_000_000, GBIT_400])
@pytest.mark.parametrize("step", [0, 7 * MS])
def test_who_asks_often_enough_gets_the_rate(rate: int, step: int) -> None:
    """A worker that sleeps for some milliseconds too long loses nothing: the burst covers that."""
    claim = max(1, rate // 1000)
    pacer = Pacer(average_Bps=rate)
    end = 10 * SECOND
    now, total = 0, 0
    while now < end:
        while pacer.wait_ns(now) == 0:
            pacer.take(claim, now)
            total += claim
        now += step or pacer.wait_ns(now)
    assert total >= rate * 10 - claim
    assert total <= rate * 10 + pacer.burst_bytes[0] + claim


def test_no_cap_never_waits() -> None:
    pacer = Pacer(5)
    for now in (0, 5, YEAR):
        pacer.take(1 << 31, now)
        assert pacer.wait_ns(now) == 0
    assert pacer.burst_bytes == (0, 0)


@pytest.mark.parametrize("rate", [1, 125_000_000, GBIT_400, 2**64 - 1])
def test_an_idle_bucket_saves_up_its_burst_and_no_more(rate: int) -> None:
    pacer = Pacer(average_Bps=rate)
    claim = 64 * KIB
    burst = pacer.burst_bytes[0]
    for now in (0, 3 * YEAR):
        total = 0
        while pacer.wait_ns(now) == 0:
            pacer.take(claim, now)
            total += claim
        assert burst <= total <= burst + claim


def test_bursts_are_ten_and_two_milliseconds_or_a_few_cells() -> None:
    assert Pacer(average_Bps=1000, peak_Bps=1000).burst_bytes == (256 * KIB, 64 * KIB)
    assert Pacer(average_Bps=10**9, peak_Bps=2 * 10**9).burst_bytes == (10**7, 4 * 10**6)


def test_a_claim_is_worth_ten_milliseconds_of_the_slower_rate() -> None:
    assert Pacer(average_Bps=10**8).claim_bytes == 10**6
    assert Pacer(average_Bps=10**8, peak_Bps=10**6).claim_bytes == 10**4
    assert Pacer(peak_Bps=10**6).claim_bytes == 10**4
    assert Pacer().claim_bytes > 1 << 29


def test_the_peak_binds_a_burst_of_the_average() -> None:
    pacer = Pacer(average_Bps=10**8, peak_Bps=2 * 10**8)
    now, total = 0, 0
    while now < 4 * MS:
        while pacer.wait_ns(now) == 0:
            pacer.take(16 * KIB, now)
            total += 16 * KIB
        now += MS // 10
    assert total <= 2 * 10**8 * 4 // 1000 + pacer.burst_bytes[1] + 16 * KIB


@given(rates=st.lists(RATES, min_size=2, max_size=8), claim=st.integers(1, 64 * KIB), seed=st.integers(0, 1 << 32))
def test_a_changed_rate_holds_at_once(rates: list[int], claim: int, seed: int) -> None:
    """After a change no more leaves than the new rate, its burst and a claim allow, whatever was saved up before; and
    what was overdrawn before is waited for no longer than it would have been."""
    rng = random.Random(seed)
    pacer = Pacer(average_Bps=rates[0])
    now = 0
    for rate in rates[1:]:
        waited = pacer.wait_ns(now)
        pacer.set(rate, 0, now)
        assert pacer.wait_ns(now) <= waited
        begin, total = now, 0
        for _ in range(50):
            wait = pacer.wait_ns(now)
            if wait == 0:
                pacer.take(claim, now)
                total += claim
            assert total <= rate * (now - begin) / SECOND + pacer.burst_bytes[0] + claim + 1
            now += rng.choice((wait, rng.randint(0, MS)))


def test_a_rate_that_is_set_again_and_again_gives_no_new_burst() -> None:
    pacer = Pacer(average_Bps=10**6)
    total = 0
    for now in range(0, SECOND, MS):
        pacer.set(10**6 + now % 2, 0, now)
        while pacer.wait_ns(now) == 0:
            pacer.take(4 * KIB, now)
            total += 4 * KIB
    assert total <= 10**6 + pacer.burst_bytes[0] + 4 * KIB + 1000


def test_a_cap_ends_at_once() -> None:
    pacer = Pacer(average_Bps=1)
    pacer.take(MIB, 0)
    assert pacer.wait_ns(0) > SECOND
    pacer.set(0, 0, 1)
    assert pacer.wait_ns(1) == 0


def test_what_may_not_be_claimed_is_refused() -> None:
    pacer = Pacer(average_Bps=1000)
    pacer.take(MIB, 0)
    with pytest.raises(ValueError, match="nothing may be claimed"):
        pacer.take(1, 0)


def test_a_clock_that_seems_to_go_back_gives_nothing() -> None:
    """Workers read it one after the other."""
    pacer = Pacer(10 * MS, average_Bps=10**9)
    while pacer.wait_ns(10 * MS) == 0:
        pacer.take(MIB, 10 * MS)
    waited = pacer.wait_ns(10 * MS)
    assert pacer.wait_ns(9 * MS) == waited
    assert pacer.wait_ns(10 * MS) == waited
