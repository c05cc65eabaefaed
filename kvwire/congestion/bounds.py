"""What a rate, a tick, a lane count and a budget may be at all."""

from __future__ import annotations

from numbers import Real
from typing import Any

from kvwire.congestion.samples import Budget
from kvwire.errors import ConfigError

MIN_RATE_BPS, MAX_RATE_BPS = 1e3, 1e13
"""Bits per second: below, one cell takes minutes; above, no Ethernet reaches."""
MIN_TICK_S, MAX_TICK_S = 0.005, 1.0
"""Between two samples: more often costs more than it tells; less often, and a lease ends unnoticed."""
LANE_TICK_S = 0.002
"""For each lane, between two samples at least: a look costs about 20 us a lane, and is to take 1 % of a core."""
MIN_INFLIGHT_BYTES = 64 * 1024
"""One cell: with less, nothing could be claimed."""
MOST_LANES = 64
MAX_LEASE_S = 7 * 86400.0
FLOOR_BPS = 1e6
"""Where the controllers stop falling: the slowest path that is worth a KV cache still shows losses and queues there."""


def within(value: object, low: float, high: float) -> bool:
    """Whether it is a number from `low` to `high`; NaN is not, nor is a bool."""
    number: Any = value  # not as a float: an integer may be larger than any of them
    return isinstance(value, Real) and not isinstance(value, bool) and bool(low <= number <= high)


def checked(name: str, value: float, low: float, high: float) -> float:
    """The parameter itself; ConfigError where it is not from `low` to `high`."""
    if not within(value, low, high):
        raise ConfigError(f"{name} is {value!r:.80}; expected {low:g} to {high:g}")
    return float(value)


def checked_rate(name: str, value: float) -> float:
    return checked(name, value, MIN_RATE_BPS, MAX_RATE_BPS)


def check_budget(max_bps: float, min_bps: float | None, expires_in_s: float) -> Budget:
    """The Budget of these; ConfigError for a rate that is none, a floor above it, or a lease that is over already.
    Without a floor it is 1 Mbit/s, or `max_bps` where that is less."""
    max_bps = checked_rate("max_bps", max_bps)
    budget = Budget(
        max_bps=max_bps,
        min_bps=min(FLOOR_BPS, max_bps) if min_bps is None else checked_rate("min_bps", min_bps),
        lease_s=checked("expires_in_s", expires_in_s, 1e-3, MAX_LEASE_S),
    )
    if budget.min_bps > max_bps:
        raise ConfigError(f"min_bps {budget.min_bps:g} is above max_bps {max_bps:g}")
    return budget
