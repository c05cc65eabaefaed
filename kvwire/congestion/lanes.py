"""How many lanes a link wants. Pure.

The problem: one lane fills a long path only after many round trips, may be held down by the socket buffer (4 MiB of
tcp_wmem are 0.67 Gbit/s at 50 ms) or by single losses (CUBIC), and nobody says by which. So more lanes are tried, and
kept where they were worth it. What cannot be answered by trying is left out: while the application or the pacer limits
the rate, a comparison says nothing; where the bottleneck has a queue already, it is full, and fewer lanes may do.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvwire.congestion.bounds import MOST_LANES, checked
from kvwire.congestion.samples import PathSample

FEWEST_LANES = 4
"""Of a short path: several cores and queues of a network card, and one may be lost."""
START_LANES = 16
"""Of a long path. The first 128 MiB over 1 Gbit/s and 40 ms took 1.16 of RTT + size / rate with 16, 1.39 with 4."""
START_RTT_S = 0.04
GROWTH = 1.5
LEAST_STEP = 2
WORTH = 1.05
"""Goodput of a trial beside what was before. Less is within what a second of TCP differs from the next one."""
ENOUGH = 0.97
"""The same where fewer lanes are tried. Below 1 / WORTH the same path would be tried up and down for ever."""
WINDOW_S, WINDOW_RTTS = 1.0, 10.0
"""What is compared is at least this long: CUBIC and BBR probe within a few RTTs, and a cold lane needs about eight."""
HOLD_S, MOST_HOLD_S = 20.0, 160.0
"""After a trial that was not worth it; doubles each time."""
FALLEN = 0.7
"""Of the goodput beside which a trial was not worth it: below, the path is another one, of which it says nothing."""
IDLE_S = 30.0
"""With nothing to send for so long, what was found says little of the path any more."""
TRIAL_S = 10.0
"""A trial whose lanes do not come up, or that finds nothing to compare, ends after this."""
FULL_S = 0.005
"""Queueing delay of a full bottleneck: above this and above half the smallest RTT."""


def bottleneck_full(sample: PathSample) -> bool:
    """Whether a queue stands before the bottleneck: more lanes would only lengthen it."""
    return sample.rtt_s - sample.min_rtt_s > max(FULL_S, sample.min_rtt_s / 2)


@dataclass(frozen=True, slots=True)
class _Trial:
    lanes: int
    goodput_bps: float
    """Of the number of lanes before."""
    ends: float


class _Window:
    """Goodput over a time throughout which there was something to send."""

    def __init__(self) -> None:
        self._begins: float | None = None
        self._bytes = 0

    def add(self, now: float, sample: PathSample) -> float | None:
        """Bits per second once the window is long enough, and begins the next one; None before."""
        if self._begins is None:  # this sample began before the window did
            self._begins, self._bytes = now, 0
            return None
        self._bytes += sample.delivered_bytes
        length = now - self._begins
        if length < max(WINDOW_S, WINDOW_RTTS * sample.rtt_s):
            return None
        rate = 8 * self._bytes / length
        self._begins, self._bytes = now, 0
        return rate

    def restart(self) -> None:
        self._begins = None


class LanePlanner:
    """Of one link. `fixed`: always so many; None: found out. `most`: never more."""

    def __init__(self, fixed: int | None, most: int = MOST_LANES) -> None:
        self._fixed = None if fixed is None else int(checked("lanes", fixed, 1, MOST_LANES))
        self._most = int(checked("most", most, 1, MOST_LANES))
        self._start = self._lanes = self.start(0.0)
        self._window = _Window()
        self._trial: _Trial | None = None
        self._full_bps = 0.0  # goodput before the first of the trials with fewer lanes
        self._hold_s = HOLD_S
        self._next_trial = 0.0
        self._failed_bps = 0.0  # goodput beside which the latest trial was not worth it
        self._warm_at = 0.0  # lanes that came up before are past their slow start
        self._busy_at: float | None = None

    def start(self, rtt_s: float) -> int:
        """Lanes to begin with. What a slow start loses is a number of round trips whatever the path, so lanes grow
        with the RTT: from 4 (under 3.3 ms) to 16 (from 40 ms). Beyond that another lane gains little of the first
        transfer, and what it would gain of later ones is found out."""
        share = min(1.0, max(0.0, rtt_s) / START_RTT_S)
        lanes = FEWEST_LANES + int((START_LANES - FEWEST_LANES) * share)
        self._start = self._lanes = self._fixed or min(lanes, self._most)
        self._trial = None
        return self._lanes

    def begin(self, lanes: int) -> int:
        """As `start`, where the other side has found out how many to begin with."""
        self._start = self._lanes = self._fixed or max(1, min(lanes, self._most))
        self._trial = None
        return self._lanes

    def wanted(self, now: float, sample: PathSample) -> int:
        """Lanes that the link should have now. Called with every sample."""
        if self._fixed is not None:
            return self._fixed
        if self._idle(now, sample):
            self._settle(self._start)
        elif self._trial is not None and now > self._trial.ends:
            self._give_up(now)
        else:
            self._compare(now, sample)
        return self._trial.lanes if self._trial else self._lanes

    def rest(self, now: float) -> int:
        """As `wanted`, where nothing is sent and nobody samples."""
        if self._fixed is None and now - (self._busy_at or 0.0) >= IDLE_S:
            self._settle(self._start)
        return self._lanes

    def _compare(self, now: float, sample: PathSample) -> None:
        lanes = self._trial.lanes if self._trial else self._lanes
        if sample.application_limited or sample.pacing_limited:
            self._window.restart()
            return
        if len(sample.lanes) != lanes:
            self._window.restart()
            self._warm_at = now + WINDOW_RTTS * sample.rtt_s
            return
        if now < self._warm_at:
            return
        goodput = self._window.add(now, sample)
        if goodput is None:
            return
        if self._trial is None:
            self._try(now, goodput, sample)
            return
        worth = WORTH if self._trial.lanes > self._lanes else ENOUGH
        if goodput < worth * self._trial.goodput_bps:
            self._give_up(now)
        else:
            self._settle(self._trial.lanes)

    def _try(self, now: float, goodput: float, sample: PathSample) -> None:
        if now < self._next_trial and goodput >= FALLEN * self._failed_bps:
            return
        if bottleneck_full(sample):
            lanes = max(self._start, int(self._lanes / GROWTH))
            # All steps together may cost as much as one. What is beyond that is the path's doing: then it begins anew.
            if not ENOUGH * self._full_bps <= goodput <= self._full_bps:
                self._full_bps = goodput
            goodput = self._full_bps
        else:
            lanes = min(self._most, max(self._lanes + LEAST_STEP, int(self._lanes * GROWTH)))
        if lanes != self._lanes:
            self._trial = _Trial(lanes, goodput, now + TRIAL_S + 2 * WINDOW_RTTS * sample.rtt_s)
            self._window.restart()

    def _settle(self, lanes: int) -> None:
        self._lanes, self._trial = lanes, None
        self._hold_s = HOLD_S
        self._window.restart()

    def _give_up(self, now: float) -> None:
        assert self._trial is not None
        self._failed_bps = self._trial.goodput_bps
        self._next_trial = now + self._hold_s
        self._hold_s = min(2 * self._hold_s, MOST_HOLD_S)
        self._trial = None
        self._window.restart()

    def _idle(self, now: float, sample: PathSample) -> bool:
        if self._busy_at is None or sample.idle_s < 0.95 * sample.interval_s:
            self._busy_at = now
        return now - self._busy_at >= IDLE_S
