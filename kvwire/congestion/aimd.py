"""`aimd`: additive increase, multiplicative decrease, of the rate of a whole link.

What TCP does per lane this does once for all of them: of N lanes the one that lost backs off and the others take what
it leaves, so that together they hardly do. No cap until the first loss: nothing is known before.
"""

from __future__ import annotations

from collections import deque

from kvwire.congestion.bounds import FLOOR_BPS, MAX_RATE_BPS, MIN_TICK_S, checked, checked_rate
from kvwire.congestion.samples import Controller, Decision, PathSample

SEGMENT_BITS = 8 * 1448
"""Payload of a segment over Ethernet, with timestamps."""
VERDICT_SEGMENTS = 2000
"""A share is of so many segments, or of those of one RTT where these are more: one lost of a window of ten is no 10 %.
Eleven lost condemn at once; at 0.1 % of random loss that many come in one window of 120,000."""
RECENT = 8
"""Measurements, an RTT each, of which the best counts: one RTT of lanes in recovery does not measure the path."""
SETTLE_RTTS = 2.0
"""What is sent again so long after a decrease was lost before it: it is noticed after one RTT, and sent again while the
next one's acknowledgements come in. As long, DSACKs may still say that nothing was lost."""
USED = 0.5
"""A cap grows only while at least this much of it is used (RFC 7661)."""
MAX_TICK_S = 0.1


class Aimd(Controller):
    """Rate x `decrease` where more than `loss` of the segments were lost, once in two RTTs; otherwise `segments` more
    per lane and RTT, unless the application or the kernel leaves half of the cap unused.

    `loss`: share, 0 to 1; 0.005 is well above what long paths lose at random (0.01 to 0.1 %) and well below what an
    overflowing queue costs. `decrease`: 0.7 is CUBIC's (RFC 9438). `segments`: 2 give back 30 % of 1 Gbit/s at 40 ms
    and 16 lanes in 1.3 s. `floor_bps`: bits per second below which it never goes.
    """

    def __init__(
        self, *, loss: float = 0.005, decrease: float = 0.7, segments: float = 2.0, floor_bps: float = FLOOR_BPS
    ) -> None:
        self._threshold = checked("loss", loss, 1e-6, 0.5)
        self._decrease = checked("decrease", decrease, 0.1, 0.95)
        self._increase = checked("segments", segments, 0.01, 1000.0)
        self._floor_bps = checked_rate("floor_bps", floor_bps)
        self._rate_bps: float | None = None
        self._tick_s = MAX_TICK_S
        self._goodputs_bps: deque[float] = deque(maxlen=RECENT)
        self._bits = self._bits_s = 0.0  # of the measurement under way
        self._segments = self._lost = 0  # of the window under judgement
        self._window_ends = self._settles = 0.0
        self._before_bps: float | None = None  # of the last decrease
        self._excess = 0.0  # segments lost beyond what is tolerated, of the last decrease

    def on_sample(self, now: float, sample: PathSample) -> None:
        if sample.rtt_s <= 0 or sample.interval_s <= 0:
            return
        # Half an RTT: a loss shows after one, and is to be answered within two.
        self._tick_s = min(MAX_TICK_S, max(MIN_TICK_S, sample.min_rtt_s / 2))
        self._measure(sample)
        if now < self._settles:
            self._excess -= sample.spurious_segments
            if self._excess <= 0:
                self._rate_bps, self._settles = self._before_bps, 0.0
            return
        self._segments += sample.segments
        self._lost = max(0, self._lost + sample.retransmitted_segments - sample.spurious_segments)
        excess = self._lost - self._threshold * max(self._segments, VERDICT_SEGMENTS)
        if excess > 0:
            self._back_off(now, sample.rtt_s, excess)
            return
        self._grow(sample)
        if now >= self._window_ends and self._segments >= VERDICT_SEGMENTS:
            self._segments = self._lost = 0
            self._window_ends = now + sample.rtt_s

    def decide(self, now: float) -> Decision:
        return Decision(pace_bps=self._rate_bps, next_tick_s=self._tick_s)

    def _measure(self, sample: PathSample) -> None:
        self._bits += 8 * sample.delivered_bytes
        self._bits_s += sample.interval_s
        if self._bits_s >= sample.rtt_s:
            if self._bits > 0:  # nothing at all says that the path is gone, not how much it carries
                self._goodputs_bps.append(self._bits / self._bits_s)
            self._bits = self._bits_s = 0.0

    def _back_off(self, now: float, rtt_s: float, excess: float) -> None:
        self._segments = self._lost = 0
        if not self._goodputs_bps:
            return
        best = max(self._goodputs_bps)
        self._before_bps, self._excess = self._rate_bps, excess
        rate = best if self._rate_bps is None else min(best, self._rate_bps)
        self._rate_bps = min(MAX_RATE_BPS, max(self._floor_bps, self._decrease * rate))
        self._settles = self._window_ends = now + SETTLE_RTTS * rtt_s

    def _grow(self, sample: PathSample) -> None:
        if self._rate_bps is None or sample.application_limited:
            return
        most = min(MAX_RATE_BPS, max(self._goodputs_bps, default=0.0) / USED)
        step_bps = self._increase * len(sample.lanes) * SEGMENT_BITS / sample.rtt_s
        grown = self._rate_bps + step_bps * min(sample.interval_s, MAX_TICK_S) / sample.rtt_s
        self._rate_bps = max(self._rate_bps, min(grown, most))
