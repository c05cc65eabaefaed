"""`delay`: fills a link without filling its queue.

The problem: TCP under a link fills whatever queue the bottleneck has, and everybody behind it waits. The queue shows as
RTT above the base RTT long before it overflows, so the rate is set to keep that between 5 and 25 ms.

What others do: Vegas and FAST hold a few packets of queue and starve beside flows that fill it; Copa and TIMELY aim at
a rate from the delay. All of them need a base RTT, and whoever comes late takes the others' queue for a longer path.
So this drains for a moment every ten seconds, and looks again. And it asks whose a queue is: one that stays while the
link sends half belongs to others; beside them the cap is lifted, and the kernel's congestion control takes its share.

    START    doubles until a queue shows                                          -> STEER
    STEER    by the queue, to the target   every 10 s, where it never was empty   -> DRAIN
                                           above the band, or pushed to a third   -> HALVE
    DRAIN    half the rate, two RTTs       then                                   -> STEER
    HALVE    half the rate, two RTTs and   the queue is gone: it was ours         -> STEER
             twice the queue               it stays: it is others'                -> COMPETE
    COMPETE  no cap                        after 10 s                             -> HALVE
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from statistics import median

from kvwire.congestion.bounds import FLOOR_BPS, MAX_RATE_BPS, checked, checked_rate
from kvwire.congestion.samples import Controller, Decision, PathSample

TARGET_S = 0.015
"""Middle of the band; its edges are a third and five thirds of it."""
PERIOD_S = 10.0
"""Between two looks at the base RTT, and between two questions whose a queue is."""
BASE_PERIODS = 2.5
"""How long a base RTT is remembered: two probes, one of which may fail. A longer path is believed after that."""
START_GAIN = 2.0 / 0.6931
"""2 / ln 2 doubles what is delivered every RTT (Cardwell et al., BBR, 2016)."""
RAISE = 1.25
"""Per RTT while there is no queue at all: 1 Gbit/s from 200 Mbit/s in 8 RTTs, and a fifth too much for one of them."""
EMPTY_RTTS = 4.0
"""Empty for so long before that: after a drain the rate of before fills the link, and a queue takes as long to show."""
STEER_RTTS = 4.0
"""A wrong queue is corrected over so many loop delays; below about 2 the loop rings."""
LOWEST = 0.5
"""Of what is delivered, while a queue is drained."""
PATIENCE_RTTS = 4.0
"""How long steering has to bring a queue below the band before it is asked whose it is."""
PEAK = 1.25
"""Bursts above the pace: they are queue."""
YIELDED = 1 / 3
"""Of the best rate since a queue was last asked about: below, whoever else steers by delay would have stopped pushing,
unless there are several of them."""
OURS = 0.25
"""What is left of a queue of which we are three quarters."""
SHARE, SEGMENT_BITS = 0.01, 8 * 1448
"""What is asked for beyond the target: a segment per lane and RTT, and of small rates not more than a hundredth."""
MIN_TICK_S, MAX_TICK_S = 0.02, 0.1
MAX_DRAIN_S = 3.0


class Mode(Enum):
    START = "start"
    STEER = "steer"
    DRAIN = "drain"
    HALVE = "halve"
    COMPETE = "compete"


class Delay(Controller):
    """Holds the queue that the link causes around `target_s` (seconds; the band is a third to five thirds of it).

    `target_s`: 0.015: enough that jitter of a few milliseconds does not look like an empty queue. `period_s`: seconds
    between two probes of the base RTT. `floor_bps`: bits per second below which it never goes.
    """

    def __init__(self, *, target_s: float = TARGET_S, period_s: float = PERIOD_S, floor_bps: float = FLOOR_BPS) -> None:
        self._target_s = checked("target_s", target_s, 0.001, 1.0)
        self._period_s = checked("period_s", period_s, 1.0, 3600.0)
        self._floor_bps = checked_rate("floor_bps", floor_bps)
        self._low_s, self._high_s = self._target_s / 3, self._target_s * 5 / 3
        self.mode = Mode.START
        self.queue_s = 0.0
        """Of the last sample: RTT beyond the base RTT."""
        self._pace_bps: float | None = None
        self._rtts: deque[tuple[float, float]] = deque()  # (when, RTT), RTTs rising: the first is the base
        self._recent: deque[tuple[float, float, float]] = deque()  # (when, bits delivered, of seconds), about an RTT
        self._loop_s = self._tick_s = MAX_TICK_S
        self._until = 0.0  # of DRAIN, HALVE or COMPETE
        self._resume_bps = 0.0  # after DRAIN or HALVE
        self._next_drain = 0.0
        self._empty_since: float | None = None
        self._above_since: float | None = None
        self._best_bps = 0.0  # since the last time that it was asked whose the queue is
        self._asked_s = 0.0  # the queue when DRAIN or HALVE began
        self._modes: dict[Mode, Callable[[float, PathSample], None]] = {
            Mode.START: self._start,
            Mode.STEER: self._steer,
            Mode.DRAIN: self._drain,
            Mode.HALVE: self._halve,
            Mode.COMPETE: self._compete,
        }

    def on_sample(self, now: float, sample: PathSample) -> None:
        rtt = _rtt(sample)
        # Without an acknowledgement the RTT is of before, and the rate is nobody's.
        if rtt <= 0 or sample.interval_s <= 0 or sample.delivered_bytes <= 0:
            return
        self._tick_s = min(MAX_TICK_S, max(MIN_TICK_S, rtt / 2))
        self._look(now, rtt, sample)
        self._modes[self.mode](now, sample)

    def decide(self, now: float) -> Decision:
        if self._pace_bps is None:
            return Decision(next_tick_s=self._tick_s)
        return Decision(pace_bps=self._pace_bps, peak_bps=PEAK * self._pace_bps, next_tick_s=self._tick_s)

    # --- measuring ------------------------------------------------------------------------------------------------

    def _look(self, now: float, rtt: float, sample: PathSample) -> None:
        if not self._rtts:  # the lanes' handshakes were before anybody had sent anything
            self._rtts.append((now, min(rtt, sample.min_rtt_s or rtt)))
        while len(self._rtts) > 1 and self._rtts[0][0] < now - BASE_PERIODS * self._period_s:
            self._rtts.popleft()
        while self._rtts and self._rtts[-1][1] >= rtt:
            self._rtts.pop()
        self._rtts.append((now, rtt))
        self.queue_s = rtt - self._rtts[0][1]
        self._loop_s = rtt + max(self._tick_s, sample.interval_s)  # of many lanes there are fewer samples
        self._recent.append((now, 8.0 * sample.delivered_bytes, sample.interval_s))
        while len(self._recent) > 1 and self._recent[0][0] < now - self._base_loop_s:
            self._recent.popleft()

    @property
    def _base_loop_s(self) -> float:
        return self._rtts[0][1] + self._tick_s

    @property
    def _delivered_bps(self) -> float:
        return sum(bits for _, bits, _ in self._recent) / sum(seconds for *_, seconds in self._recent)

    def _set(self, bps: float) -> None:
        self._pace_bps = min(MAX_RATE_BPS / PEAK, max(self._floor_bps, bps))

    # --- modes ----------------------------------------------------------------------------------------------------

    def _start(self, now: float, sample: PathSample) -> None:
        if self.queue_s > self._low_s:
            self._steer_again(now, self._delivered_bps)
        elif not sample.application_limited:
            self._set(max(self._pace_bps or 0.0, START_GAIN * self._delivered_bps))

    def _steer(self, now: float, sample: PathSample) -> None:
        if sample.application_limited:
            self._empty_since = self._above_since = None
            return
        if self.queue_s <= self._low_s:  # the base RTT shows by itself
            self._next_drain = now + self._period_s
        if now >= self._next_drain:
            self._slow_down(now, Mode.DRAIN, sample)
            return
        if self.queue_s <= self._high_s:
            self._above_since = None
        elif self._above_since is None:
            self._above_since = now
        self._best_bps = max(self._best_bps, self._delivered_bps)
        stays = self._above_since is not None and now - self._above_since > PATIENCE_RTTS * self._base_loop_s
        # A pipe that runs empty (BBR's ProbeRTT, a time-out) delivers little for reasons of TCP's own.
        inflight_bits = 8 * sum(lane.inflight_bytes for lane in sample.lanes)
        drying = inflight_bits < LOWEST * (self._pace_bps or 0.0) * self._rtts[0][1]
        yielded = self.queue_s > self._target_s and self._delivered_bps < YIELDED * self._best_bps
        if stays or (yielded and not drying):
            self._slow_down(now, Mode.HALVE, sample)
        elif not drying:
            self._correct(now, sample)

    def _correct(self, now: float, sample: PathSample) -> None:
        delivered = self._delivered_bps
        gain = 1 + (self._target_s - self.queue_s) / (STEER_RTTS * self._loop_s)
        if self.queue_s > self._low_s:
            self._empty_since = None
            # d queue / dt = pace / capacity - 1, and what is delivered out of a queue is the capacity. A little more is
            # asked for, the same by everyone: so two that share a queue end up with the same rate.
            more = min(SHARE * delivered, len(sample.lanes) * SEGMENT_BITS / (self._rtts[0][1] + self.queue_s))
            self._set(delivered * max(LOWEST, gain) + more)
            return
        # Without a queue what is delivered says what was sent, by the cap or by TCP, and never asks for less.
        self._empty_since = now if self._empty_since is None else self._empty_since
        if now - self._empty_since > EMPTY_RTTS * self._loop_s:
            gain = max(gain, RAISE)
        self._set(max(self._pace_bps or 0.0, gain * delivered))

    def _slow_down(self, now: float, mode: Mode, sample: PathSample) -> None:
        """Half the rate drains a queue of q seconds in 2 q, and that is seen an RTT later. Whoever asks whose the queue
        is also waits for what lanes have claimed and not sent, or have to send again: no pace holds that back."""
        behind_s = 8 * _behind_bytes(sample) / max(self._floor_bps, self._delivered_bps) if mode is Mode.HALVE else 0.0
        self.mode, self._asked_s, self._until = mode, self.queue_s, now + min(MAX_DRAIN_S, self._draining_s + behind_s)
        self._resume_bps = self._delivered_bps if mode is Mode.HALVE else self._pace_bps or 0.0
        self._set(LOWEST * self._resume_bps)

    @property
    def _draining_s(self) -> float:
        return min(MAX_DRAIN_S, 2 * self._rtts[0][1] + 4 * self.queue_s)

    def _drain(self, now: float, sample: PathSample) -> None:
        if now >= self._until:
            self._steer_again(now, self._resume_bps)

    def _halve(self, now: float, sample: PathSample) -> None:
        """Whose the queue is: of a whole link, half the rate drains it; of a share, only that much of it."""
        if self.queue_s > self._asked_s:  # what was sent before is still to be seen
            self._asked_s, self._until = self.queue_s, now + self._draining_s
        if now < self._until:
            return
        if self.queue_s <= max(self._low_s, OURS * self._asked_s):
            self._best_bps = self._resume_bps
            self._steer_again(now, self._resume_bps)
        else:
            self.mode, self._until, self._pace_bps = Mode.COMPETE, now + self._period_s, None

    def _compete(self, now: float, sample: PathSample) -> None:
        if now >= self._until:
            self._slow_down(now, Mode.HALVE, sample)

    def _steer_again(self, now: float, bps: float) -> None:
        self.mode = Mode.STEER
        self._next_drain = now + self._period_s
        self._empty_since = self._above_since = None
        self._recent.clear()  # of these the rate was another one
        self._set(bps)


def _behind_bytes(sample: PathSample) -> int:
    """Claimed by lanes and not on its way, as it will be on the wire."""
    share = sample.wire_share
    return sum(max(0, int(share * lane.unacked_bytes) - lane.inflight_bytes) for lane in sample.lanes)


def _rtt(sample: PathSample) -> float:
    """The median of the lanes that have something in flight: one lane in trouble does not move it."""
    rtts = [lane.rtt_s for lane in sample.lanes if lane.inflight_bytes and lane.rtt_s > 0]
    return median(rtts) if rtts else sample.rtt_s
