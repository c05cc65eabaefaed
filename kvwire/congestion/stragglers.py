"""Which lanes hold a link up: those that do not move at all, and those that move far slower than the others."""

from __future__ import annotations

from statistics import median

from kvwire.congestion.samples import LaneSample, PathSample

STALL_RTTS, STALL_S = 3.0, 0.5
"""A lane without progress for both. The kernel's first RTO takes RTT + 200 ms at least, and may help."""
WATCH_S = 2.0
"""How long lanes are compared. A loss slows a lane for some RTTs; what slows it for 2 s does not pass by itself."""
SHARE = 0.1
"""Of the median of its siblings."""
LEAST_MEDIAN_BYTES = 1024 * 1024
"""Landed by the median lane: of less, a few cells more or less are chance."""


def stalled(sample: PathSample) -> tuple[int, ...]:
    """Lanes to be hedged and replaced, the worst first: their frames wait for an acknowledgement longer than max(3
    RTT, 0.5 s), and either their path is gone (the peer's kernel is silent too), or the peer's kernel has taken all and
    nothing comes of it while other lanes are well: somebody on the way keeps it.

    A lane whose kernel repairs losses is alive, and a new one would fare no better. Where all wait and every kernel is
    heard, it is the peer that is slow.
    """

    def limit_s(lane: LaneSample) -> float:
        return max(STALL_RTTS * lane.rtt_s, STALL_S)

    waiting = [lane for lane in sample.lanes if lane.stalled_s > limit_s(lane)]
    # Half of it: when all begin to wait, one of them is the first to have waited for long.
    others_well = any(lane.stalled_s < limit_s(lane) / 2 for lane in sample.lanes)
    found = [lane for lane in waiting if lane.silent_s > limit_s(lane) or (others_well and not lane.inflight_bytes)]
    return tuple(lane.lane for lane in sorted(found, key=lambda lane: -lane.stalled_s))


class Stragglers:
    """Finds lanes that landed less than a tenth of the median of their siblings, over 2 s in which all had work."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._landed: dict[tuple[int, int], int] = {}

    def straggling(self, now: float, sample: PathSample) -> tuple[int, ...]:
        """Lanes to be replaced. Called with every sample; an answer is given at the end of each 2 s."""
        busy = {_key(lane): lane for lane in sample.lanes if lane.unacked_bytes}
        if sample.application_limited or sample.pacing_limited:
            self._began = None  # who sends little then has perhaps been given little
        elif self._began is None:
            self._began, self._landed = now, dict.fromkeys(busy, 0)
        else:  # of those that were busy throughout
            self._landed = {key: self._landed[key] + busy[key].landed_bytes for key in busy if key in self._landed}
            if now - self._began >= WATCH_S:
                self._began = None
                return tuple(lane for lane, incarnation in self._landed if self._slow((lane, incarnation)))
        return ()

    def _slow(self, key: tuple[int, int]) -> bool:
        siblings = [landed for other, landed in self._landed.items() if other != key]
        typical = median(siblings) if siblings else 0
        return typical >= LEAST_MEDIAN_BYTES and self._landed[key] < SHARE * typical


def _key(lane: LaneSample) -> tuple[int, int]:
    return lane.lane, lane.incarnation
