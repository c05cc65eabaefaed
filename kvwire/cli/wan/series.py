"""What was counted over time, and what it says. Pure.

A series is (CLOCK_MONOTONIC seconds, value) in the order of time; here the values are totals of bytes that have landed.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

Series = list[tuple[float, float]]

WINDOWS_S = (0.5, 2.0)
"""Goodput is back where it has been for both: after a hole in the stream much lands in one moment that arrived over
many, and then it may be quiet again until a timer ends."""


def at(series: Sequence[tuple[float, float]], when_s: float) -> float:
    """The value at this time, between two that were taken by a straight line; outside, the first or the last."""
    after = bisect.bisect_right(series, when_s, key=lambda one: one[0])
    if after == 0:
        return series[0][1] if series else 0.0
    if after == len(series):
        return series[-1][1]
    (t0, v0), (t1, v1) = series[after - 1], series[after]
    return v0 + (v1 - v0) * (when_s - t0) / (t1 - t0)


def rate_bps(series: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float:
    """Bits a second of a total of bytes."""
    return 8 * (at(series, end_s) - at(series, start_s)) / (end_s - start_s)


def over_time(
    series: Sequence[tuple[float, float]], start_s: float, end_s: float, step_s: float
) -> list[dict[str, float]]:
    """Goodput of each interval, times from `start_s` on, as `intervals` of a record have it."""
    count = max(1, round((end_s - start_s) / step_s))
    return [
        {
            "start_s": round(number * step_s, 3),
            "end_s": round((number + 1) * step_s, 3),
            "goodput_bps": rate_bps(series, start_s + number * step_s, start_s + (number + 1) * step_s),
        }
        for number in range(count)
    ]


def back_after_s(series: Sequence[tuple[float, float]], since_s: float, wanted_bps: float) -> float | None:
    """Seconds from `since_s` until each of WINDOWS_S begins with at least this rate in it; None: they never do."""
    last_s = series[-1][0] - max(WINDOWS_S) if series else -math.inf
    for start_s in (since_s, *(when_s for when_s, _ in series if when_s > since_s)):
        if start_s > last_s:
            break
        if all(rate_bps(series, start_s, start_s + window_s) >= wanted_bps for window_s in WINDOWS_S):
            return start_s - since_s
    return None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(share * len(ordered) - 1e-9)) - 1]
