"""When automatic codecs encode: the rule in virtual time, over links that a few numbers describe."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kvwire.codecs.adaptive import (
    HOLD_S,
    MARGIN,
    RETRY_S,
    Codecs,
    Did,
    LinkRate,
    Reason,
    Rule,
    WORKER_Bps,
    verdict,
)

TICK_S = 0.1
GBIT = 125e6
"""Bytes per second."""
ZSTD = Codecs(encode_Bps=1.5e9, decode_Bps=0.0, ratio=1.47, workers=2, spare_cores=2.0)


@dataclass
class Ends:
    """A link and the hosts at its ends: what they do in a tick, plain and coded."""

    link_Bps: float
    codecs: Codecs = ZSTD
    sends_Bps: float = 5e9
    """What the hosts could do without a codec, whatever the link."""
    codes_Bps: float = math.inf
    """What the two ends can do with one, plain: by their own word, unless that is wrong."""

    def rate(self, on: bool) -> tuple[float, float, float]:
        """Plain and wire bytes per second, and the share of the workers' time that encoding takes."""
        codecs = self.codecs
        if not on:
            rate = min(self.link_Bps, self.sends_Bps)
            return rate, rate, 0.0
        plain = min(codecs.ratio * self.link_Bps, codecs.workers * codecs.core_Bps, self.codes_Bps)
        return plain, plain / codecs.ratio, plain / codecs.encode_Bps / codecs.workers

    def did(self, on: bool, seconds: float = TICK_S, limited: float = 0.0, received: float = 0.0) -> Did:
        plain, wire, coding = self.rate(on)
        sending = seconds * (1 - limited)
        return Did(seconds, int(wire * sending), int(plain * sending), limited * seconds, 0.001, coding, received)


class Clock:
    """A rule, and the path that it is about."""

    def __init__(self, path: Ends) -> None:
        self.path = path
        self.rule = Rule()
        self.now = 100.0
        self.changes: list[tuple[float, bool]] = []

    def tick(self, limited: float = 0.0, received: float = 0.0) -> None:
        self.now += TICK_S
        was = self.rule.on
        self.rule.add(self.path.did(was, limited=limited, received=received))
        if self.rule.decide(self.now, self.path.codecs) != was:
            self.changes.append((self.now, self.rule.on))

    def run(self, seconds: float, **more: float) -> Clock:
        for _ in range(round(seconds / TICK_S)):
            self.tick(**more)
        return self

    def burst(self, seconds: float, pause_s: float) -> Clock:
        """A transfer: in its first and last tick there is not always something to send. Then nobody looks."""
        self.tick(limited=0.5)
        self.run(seconds - 2 * TICK_S)
        self.tick(limited=0.5)
        self.now += pause_s
        return self


# --- the inequality ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link_Bps", "codecs", "reason"),
    [
        (GBIT, ZSTD, Reason.WORTH_IT),
        (GBIT, replace(ZSTD, ratio=0.0), Reason.NOT_SAMPLED),
        (GBIT, replace(ZSTD, encode_Bps=0.0), Reason.NOT_SAMPLED),
        (GBIT, replace(ZSTD, ratio=1.1), Reason.NO_SMALLER),
        (GBIT, replace(ZSTD, ratio=1.11), Reason.WORTH_IT),
        (3e9, ZSTD, Reason.LINK_FASTER),
        (3e9, replace(ZSTD, workers=8), Reason.NO_CORES),
        (3e9, replace(ZSTD, workers=8, spare_cores=8.0), Reason.WORTH_IT),
        (GBIT, replace(ZSTD, decode_Bps=1.09 * GBIT), Reason.PEER_SLOWER),
        (GBIT, replace(ZSTD, decode_Bps=1.11 * GBIT), Reason.WORTH_IT),
        (GBIT, replace(ZSTD, spare_cores=0.0), Reason.NO_CORES),
        (GBIT, replace(ZSTD, spare_cores=0.1), Reason.NO_CORES),
        (GBIT, replace(ZSTD, spare_cores=0.2), Reason.WORTH_IT),
    ],
)
def test_what_is_in_the_way(link_Bps: float, codecs: Codecs, reason: Reason) -> None:
    assert verdict(link_Bps, codecs) is reason


def test_it_is_never_worth_it_against_the_inequality() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(2000):
        link_Bps = 10 ** rng.uniform(5, 10.5)
        codecs = Codecs(
            encode_Bps=10 ** rng.uniform(7, 10),
            decode_Bps=rng.choice((0.0, 10 ** rng.uniform(7, 11))),
            ratio=rng.uniform(1.0, 8.0),
            workers=rng.randint(1, 64),
            spare_cores=rng.uniform(0, 64),
        )
        if verdict(link_Bps, codecs) is Reason.WORTH_IT:
            encode = codecs.encode_Bps * min(codecs.workers, codecs.spare_cores)
            decode = codecs.decode_Bps or encode
            assert min(encode, decode, codecs.ratio * link_Bps) > MARGIN * link_Bps


@pytest.mark.parametrize("workers", [1, 2, 8, 64])
def test_workers_that_do_nothing_but_send_have_no_time_to_encode(workers: int) -> None:
    """As over loopback, where there are cores for everybody and the workers are what sets the limit."""
    for encode_Bps in (0.2e9, 1.5e9, 8e9):
        codecs = replace(ZSTD, workers=workers, spare_cores=100.0, encode_Bps=encode_Bps)
        link_Bps = workers * WORKER_Bps
        assert verdict(link_Bps, codecs) is Reason.LINK_FASTER


# --- what a link carries ----------------------------------------------------------------------------------------------


def test_a_link_is_known_when_its_rate_no_longer_grows() -> None:
    rate = LinkRate()
    assert (rate.Bps, rate.known) == (0.0, False)
    for share in (0.1, 0.2, 0.4, 0.8):  # slow start
        for _ in range(2):
            rate.add(Did(TICK_S, int(share * GBIT * TICK_S), 0, 0.0, 0.001, 0.0, 0.0), False)
        assert not rate.known
    for _ in range(2):
        rate.add(Did(TICK_S, int(0.9 * GBIT * TICK_S), 0, 0.0, 0.001, 0.0, 0.0), False)
    assert rate.known
    assert rate.Bps == pytest.approx(0.9 * GBIT)


def test_a_span_is_some_round_trips_long() -> None:
    """Of a window that leaves at once and waits, single ticks say anything."""
    rate = LinkRate()
    window = int(GBIT * 0.4)
    for _ in range(3):
        for tick in range(4):
            rate.add(Did(TICK_S, window if tick == 0 else 0, 0, 0.0, 0.39, 0.0, 0.0), False)
    assert rate.Bps == pytest.approx(GBIT)


def test_a_link_that_got_slower_is_believed_after_some_spans() -> None:
    rate = LinkRate()
    for Bps in [2 * GBIT] * 20 + [GBIT] * 18:
        rate.add(Did(TICK_S, int(Bps * TICK_S), 0, 0.0, 0.001, 0.0, 0.0), False)
    assert rate.known is True
    assert rate.Bps == pytest.approx(GBIT)


def test_what_a_codec_holds_up_may_raise_the_rate_and_never_lowers_it() -> None:
    rate = LinkRate()
    for Bps, held in [(GBIT, False)] * 20 + [(0.3 * GBIT, True)] * 50:
        rate.add(Did(TICK_S, int(Bps * TICK_S), 0, 0.0, 0.001, 0.0, 0.0), held)
    assert rate.known is True
    assert rate.Bps == pytest.approx(GBIT)
    for _ in range(4):
        rate.add(Did(TICK_S, int(1.5 * GBIT * TICK_S), 0, 0.0, 0.001, 0.0, 0.0), True)
    assert rate.known is False
    assert rate.Bps == pytest.approx(1.5 * GBIT)


# --- in time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link_Bps", [0.2 * GBIT, GBIT, 5 * GBIT])
def test_a_slow_link_is_coded_within_a_second_and_stays_so(link_Bps: float) -> None:
    clock = Clock(Ends(link_Bps)).run(60)
    assert [on for _, on in clock.changes] == [True]
    assert clock.changes[0][0] <= 101.0
    assert clock.rule.reason is Reason.WORTH_IT
    assert clock.rule.link.known
    assert clock.rule.link.Bps == pytest.approx(link_Bps, rel=0.01), "what is sent coded counts as it is on the wire"


def test_a_fast_link_is_never_coded() -> None:
    """Loopback: hosts and workers set the limit. Whatever cores are idle."""
    for workers in (2, 8, 16):
        codecs = replace(ZSTD, workers=workers, spare_cores=64.0)
        clock = Clock(Ends(1e12, codecs, sends_Bps=workers * WORKER_Bps)).run(300)
        assert clock.changes == []
        assert clock.rule.reason is Reason.LINK_FASTER


@pytest.mark.parametrize("seconds", [0.4, 0.7, 3.0])
@pytest.mark.parametrize("pause_s", [0.5, 20.0, 4000.0])
def test_short_transfers_with_pauses_tell_as_much_as_long_ones(seconds: float, pause_s: float) -> None:
    clock = Clock(Ends(GBIT))
    for _ in range(40):
        clock.burst(seconds, pause_s)
    assert [on for _, on in clock.changes] == [True]
    assert clock.rule.link.Bps == pytest.approx(GBIT, rel=0.01)
    fast = Clock(Ends(1e12))
    for _ in range(40):
        fast.burst(seconds, pause_s)
    assert fast.changes == []


def test_who_has_little_to_send_tells_nothing_of_the_link() -> None:
    clock = Clock(Ends(1e12)).run(60, limited=0.9)
    assert clock.changes == []
    assert clock.rule.reason is Reason.LINK_UNKNOWN


def test_a_long_slow_start_is_not_a_slow_link() -> None:
    clock = Clock(Ends(0.01 * GBIT))
    for _ in range(12):  # doubles every 0.2 s, to 5 GB/s
        clock.run(0.2)
        clock.path.link_Bps *= 2
        assert clock.rule.reason is Reason.LINK_UNKNOWN
    clock.run(5)
    assert clock.changes == []


def test_5_s_lie_between_two_changes_whatever_happens() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    clock = Clock(Ends(GBIT))
    for _ in range(3000):
        if rng.random() < 0.02:
            clock.path.link_Bps = 10 ** rng.uniform(6, 10.5)
            clock.path.codes_Bps = 10 ** rng.uniform(6, 10.5)
            clock.path.codecs = replace(ZSTD, ratio=rng.uniform(1.0, 4.0), spare_cores=rng.uniform(0, 2))
        clock.tick(limited=rng.choice((0.0, 0.0, 0.5)), received=rng.choice((0.0, 0.9)))
    assert len(clock.changes) > 2
    for (earlier, was), (later, on) in zip(clock.changes, clock.changes[1:], strict=False):
        assert later - earlier >= HOLD_S - 1e-6
        assert was is not on


def test_the_reason_says_that_it_must_not_change_yet() -> None:
    clock = Clock(Ends(GBIT)).run(2)
    clock.path.codecs = replace(ZSTD, spare_cores=0.0)
    clock.run(1)
    assert (clock.rule.on, clock.rule.reason) == (True, Reason.RECENT)
    clock.run(5)
    assert (clock.rule.on, clock.rule.reason) == (False, Reason.NO_CORES)


def test_a_link_that_became_fast_is_found_out() -> None:
    """While cells are coded it is the codec that sets the limit, and nobody knows what the link would carry."""
    clock = Clock(Ends(GBIT)).run(20)
    assert clock.rule.on
    clock.path.link_Bps = 40 * GBIT
    clock.run(RETRY_S + 2 * HOLD_S)
    assert not clock.rule.on
    clock.run(600)
    assert [on for _, on in clock.changes] == [True, False]
    assert clock.rule.reason is Reason.LINK_FASTER


def test_a_link_that_became_slow_is_coded() -> None:
    clock = Clock(Ends(40 * GBIT)).run(20)
    assert not clock.rule.on
    clock.path.link_Bps = GBIT
    clock.run(3)
    assert clock.rule.on


def test_who_waits_for_the_codec_is_measured_again_ever_more_rarely() -> None:
    """A link of which the codec uses nearly all."""
    path = Ends(1.2e9, replace(ZSTD, workers=2, spare_cores=2.0))
    clock = Clock(path).run(3600)
    off_s = sum(
        later - earlier for (earlier, on), (later, _) in zip(clock.changes, clock.changes[1:], strict=False) if not on
    )
    assert clock.changes
    assert off_s < 0.02 * 3600


def test_what_was_no_faster_in_fact_is_given_up_for_a_while() -> None:
    """All numbers say that it is worth it, and less lands: the peer's window is closed, since it cannot follow."""
    clock = Clock(Ends(GBIT, codes_Bps=0.8 * GBIT))
    clock.run(120, received=0.9)
    first, second, third, *_ = clock.changes
    assert (first[1], second[1]) == (True, False)
    assert second[0] - first[0] == pytest.approx(HOLD_S, abs=2 * TICK_S)
    assert third[0] - second[0] == pytest.approx(RETRY_S, abs=2 * TICK_S)
    clock.run(3600, received=0.9)
    on_s = sum(b - a for (a, on), (b, _) in zip(clock.changes, clock.changes[1:], strict=False) if on)
    assert on_s < 60
    assert clock.rule.reason is Reason.NO_FASTER


def test_what_encoding_itself_uses_counts_as_spare() -> None:
    """A host that is busy otherwise: whoever encodes has the cores for what it encodes, and the rule stays with it."""
    clock = Clock(Ends(GBIT)).run(10)
    uses = clock.path.rate(True)[2] * ZSTD.workers
    clock.path.codecs = replace(ZSTD, spare_cores=0.05 + uses)
    clock.run(20)
    assert clock.rule.on
    clock.path.codecs = replace(ZSTD, spare_cores=0.5 * uses)
    clock.run(20)
    assert (clock.rule.on, clock.rule.reason) == (False, Reason.NO_CORES)


def test_every_reason_is_explained() -> None:
    page = (Path(__file__).parents[2] / "docs/telemetry.md").read_text()
    section = page.partition("\n## What compression does\n")[2].partition("\n## ")[0]

    def told() -> Iterator[str]:
        for line in section.splitlines():
            if line.startswith("| `"):
                yield line.split("`")[1]

    assert list(told()) == [reason.value for reason in Reason]
