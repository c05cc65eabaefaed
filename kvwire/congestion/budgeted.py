"""`budget`: what a scheduler allows, on top of any controller."""

from __future__ import annotations

from dataclasses import replace

from kvwire.congestion.bounds import MIN_TICK_S
from kvwire.congestion.samples import Budget, Controller, Decision, PathSample


class Budgeted:
    """The lower of `inner`'s rate and the budget while its lease lasts; when it is over, the lower of `inner`'s rate
    and the budget's floor, until a new one comes: a scheduler that is gone must not leave a link at its last rate.
    Before the first budget `inner` alone decides.
    """

    def __init__(self, inner: Controller) -> None:
        self._inner = inner
        self._budget: Budget | None = None
        self._ends = 0.0

    def lease_s(self, now: float) -> float | None:
        """What is left of the lease, 0.0 once it is over; None before the first budget."""
        return None if self._budget is None else max(0.0, self._ends - now)

    def on_sample(self, now: float, sample: PathSample) -> None:
        self._inner.on_sample(now, sample)

    def on_landed(self, now: float, nbytes: int, queue_s: float, net_s: float) -> None:
        self._inner.on_landed(now, nbytes, queue_s, net_s)

    def on_lane(self, now: float, lane: int, up: bool, reason: str) -> None:
        self._inner.on_lane(now, lane, up, reason)

    def on_budget(self, now: float, budget: Budget) -> None:
        self._budget, self._ends = budget, now + budget.lease_s
        self._inner.on_budget(now, budget)

    def decide(self, now: float) -> Decision:
        decision = self._inner.decide(now)
        if self._budget is None:
            return decision
        left = self._ends - now
        if left > 0:
            rate = self._budget.max_bps
            # The tick after its end comes when it ends.
            decision = replace(decision, next_tick_s=min(decision.next_tick_s, max(MIN_TICK_S, left)))
        else:
            rate = self._budget.min_bps
        if decision.pace_bps is not None and decision.pace_bps <= rate:
            return decision
        peak = None if decision.peak_bps is None else max(rate, min(decision.peak_bps, 2 * rate))
        return replace(decision, pace_bps=rate, peak_bps=peak)
