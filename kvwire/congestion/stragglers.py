"""Which lanes hold a link up: those that do not move at all, and those that move far slower than they could."""

from __future__ import annotations

from statistics import median

from kvwire.congestion.lanes import bottleneck_full
from kvwire.congestion.samples import LaneSample, PathSample

STALL_RTTS, STALL_S = 3.0, 0.5
"""A lane without progress for both. The kernel's first RTO takes RTT + 200 ms at least, and may help."""
WATCH_S = 2.0
"""How long lanes are compared. A loss slows a lane for some RTTs; what slows it for 2 s does not pass by itself."""
SHARE = 0.1
"""Of the median of its siblings."""
LEAST_MEDIAN_BYTES = 1024 * 1024
"""Landed by the median lane: of less, a few cells more or less are chance."""

MISLED, MISLED_S = 0.25, 0.005
"""Of the smallest smoothed RTT, and that much below it: jitter and a hand-shake that was quick are less."""


def _limit_s(lane: LaneSample) -> float:
    return max(STALL_RTTS * lane.rtt_s, STALL_S)


def _swallowed(lane: LaneSample) -> bool:
    """Whether the peer's kernel has taken all, as TCP_INFO has it, and the peer none of it."""
    return lane.rtt_s > 0 and not lane.inflight_bytes


def _waiting(sample: PathSample) -> list[LaneSample]:
    """Lanes whose frames wait for an acknowledgement longer than max(3 RTT, 0.5 s), the worst first."""
    found = [lane for lane in sample.lanes if lane.stalled_s > _limit_s(lane)]
    return sorted(found, key=lambda lane: -lane.stalled_s)


def stalled(sample: PathSample) -> tuple[int, ...]:
    """Lanes to be hedged, the worst first: frames wait for an acknowledgement longer than max(3 RTT, 0.5 s), and either
    the path is gone (the peer's kernel is silent too), or the peer's kernel has taken all and nothing comes of it while
    other lanes are well, or idle.

    A lane whose kernel repairs losses is alive, and another one would fare no better.
    """
    # Half of it: when all begin to wait, one of them is the first to have waited for long.
    others_well = any(lane.stalled_s < _limit_s(lane) / 2 for lane in sample.lanes)
    found = [it for it in _waiting(sample) if it.silent_s > _limit_s(it) or (others_well and _swallowed(it))]
    return tuple(lane.lane for lane in found)


def lost(sample: PathSample) -> tuple[int, ...]:
    """Those of the stalled lanes that are to be replaced. Where every kernel is heard and nothing lands on any lane it
    is the peer that stands still, and another connection would change nothing.
    """
    waiting = _waiting(sample)
    others_land = any(lane.landed_bytes for lane in sample.lanes if lane not in waiting)
    found = [it for it in waiting if it.silent_s > _limit_s(it) or (others_land and _swallowed(it))]
    return tuple(lane.lane for lane in found)


def misled(sample: PathSample) -> tuple[int, ...]:
    """Lanes that are slow because their kernel takes the path for far shorter than it is, at most a quarter of all.

    BBR keeps in flight what its rate is worth in the smallest RTT that it has seen (Cardwell et al., 2016). On a path
    that reorders that is the RTT of a segment which overtook all others, and it holds a lane to a few segments; a fresh
    lane has seen none. Whether one is needed shows where the link is not full.
    """
    if sample.application_limited or sample.pacing_limited or bottleneck_full(sample):
        return ()
    found = [
        lane
        for lane in sample.lanes
        if lane.congestion == "bbr"
        and 0 < lane.min_rtt_s < MISLED * sample.min_rtt_s
        and sample.min_rtt_s - lane.min_rtt_s > MISLED_S
    ]
    found.sort(key=lambda lane: lane.delivered_bytes)
    return tuple(lane.lane for lane in found[: max(1, len(sample.lanes) // 4)])


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
