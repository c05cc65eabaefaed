"""A controller that cannot hurt the link it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvwire.congestion.bounds import (
    LANE_TICK_S,
    MAX_RATE_BPS,
    MAX_TICK_S,
    MIN_INFLIGHT_BYTES,
    MIN_RATE_BPS,
    MIN_TICK_S,
    MOST_LANES,
    within,
)
from kvwire.congestion.samples import Budget, Controller, Decision, PathSample
from kvwire.congestion.uncapped import Uncapped
from kvwire.errors import ControllerFault

MOST_FAULTS = 3
"""Ticks in a row, each a decision after a sample. One may be a rare division by zero; three are a controller that does
not work."""


class Guarded:
    """Whatever `inner` does, this decides something sensible and never raises.

    Where `inner` raises, or decides what cannot be, its last good decision holds and the fault is counted. Three ticks
    in a row, and `none` takes its place for good, so that KV still moves. A budget must outlive that:
    `Budgeted(Guarded(controller))`. A link of many lanes is not looked at as often as `inner` may want.
    """

    def __init__(self, inner: Controller) -> None:
        self._inner = inner
        self._good = Decision()
        self._least_tick_s = 0.0
        self._in_a_row = 0
        self._faulted = self._sampled = False  # since the last tick
        self.faults = 0
        """So far."""
        self.fault: ControllerFault | None = None
        """The last of them."""
        self.replaced = False
        """Whether `none` has taken its place."""

    def on_sample(self, now: float, sample: PathSample) -> None:
        self._sampled = True
        self._least_tick_s = LANE_TICK_S * len(sample.lanes)
        self._tell(lambda: self._inner.on_sample(now, sample))

    def on_landed(self, now: float, nbytes: int, queue_s: float, net_s: float) -> None:
        self._tell(lambda: self._inner.on_landed(now, nbytes, queue_s, net_s))

    def on_lane(self, now: float, lane: int, up: bool, reason: str) -> None:
        self._tell(lambda: self._inner.on_lane(now, lane, up, reason))

    def on_budget(self, now: float, budget: Budget) -> None:
        self._tell(lambda: self._inner.on_budget(now, budget))

    def decide(self, now: float) -> Decision:
        if not self._faulted:  # what it would decide after a fault is not to be trusted
            try:
                decision = self._inner.decide(now)
                check_decision(decision)
                self._good = decision
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                self._note(error)
        if self._sampled:  # and not a budget that came between two ticks
            self._in_a_row = self._in_a_row + 1 if self._faulted else 0
            self._faulted = self._sampled = False
        if self._in_a_row == MOST_FAULTS:
            self._inner, self._good = Uncapped(), Decision()
            self.replaced = True
        if self._good.next_tick_s < self._least_tick_s:
            return replace(self._good, next_tick_s=self._least_tick_s)
        return self._good

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            call()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # CancelledError too: it is not the link's
            self._note(error)

    def _note(self, error: BaseException) -> None:
        self._faulted = True
        self.faults += 1
        who = type(self._inner).__name__
        if isinstance(error, ControllerFault):
            said = f"controller {who} decided on {error.args[0]}"
        else:
            said = f"controller {who} raised {type(error).__name__}: {error!s:.200}"
        self.fault = ControllerFault(said, hint=f"after {MOST_FAULTS} ticks in a row, `none` takes its place")
        self.fault.__cause__ = error


def check_decision(decision: Decision) -> None:
    """ControllerFault where it is none, or one that no link can follow."""
    if not isinstance(decision, Decision):
        raise ControllerFault(f"{decision!r:.80}, which is no Decision")
    if decision.pace_bps is None and decision.peak_bps is not None:
        raise ControllerFault(f"peak_bps {decision.peak_bps!r:.80} without a pace_bps")
    checks = {
        "pace_bps": (decision.pace_bps, MIN_RATE_BPS, MAX_RATE_BPS),
        "peak_bps": (decision.peak_bps, decision.pace_bps or MIN_RATE_BPS, MAX_RATE_BPS),
        "inflight_cap": (decision.inflight_cap, MIN_INFLIGHT_BYTES, 1 << 62),
        "lanes": (decision.lanes, 1, MOST_LANES),
    }
    for name, (value, low, high) in checks.items():
        if value is not None and not within(value, low, high):
            raise ControllerFault(f"{name} {value!r:.80}; {low:g} to {high:g} can be had")
    for name, count in (("inflight_cap", decision.inflight_cap), ("lanes", decision.lanes)):
        if count is not None and not isinstance(count, int):
            raise ControllerFault(f"{name} {count!r:.80}; expected an integer")
    if not within(decision.next_tick_s, MIN_TICK_S, MAX_TICK_S):
        raise ControllerFault(f"next_tick_s {decision.next_tick_s!r:.80}; {MIN_TICK_S:g} to {MAX_TICK_S:g} can be had")
