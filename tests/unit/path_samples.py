"""Samples as tests write them: what a test does not name is 0."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kvwire.congestion import LaneSample, PathSample


def lane_sample(lane: int, **known: Any) -> LaneSample:
    values: dict[str, Any] = dict.fromkeys((f.name for f in fields(LaneSample)), 0)
    return LaneSample(**(values | {"lane": lane, "incarnation": 1, "congestion": "cubic"} | known))


def path_sample(interval_s: float, lanes: tuple[LaneSample, ...] = (), **known: Any) -> PathSample:
    """Sums are those of the lanes."""
    sums: dict[str, Any] = {}
    for name in {f.name for f in fields(PathSample)} & {f.name for f in fields(LaneSample)}:
        sums[name] = sum(getattr(lane, name) for lane in lanes)
    if lanes:
        sums["rtt_s"] = sums["rtt_s"] / len(lanes)
        sums["min_rtt_s"] = min(lane.min_rtt_s for lane in lanes)
    values: dict[str, Any] = dict.fromkeys((f.name for f in fields(PathSample)), 0)
    values |= {"interval_s": interval_s, "lanes": lanes, "queued_bytes": (0, 0, 0), "oldest_s": (0.0, 0.0, 0.0)}
    return PathSample(**(values | sums | known))
