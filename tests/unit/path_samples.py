"""Samples as tests write them: what a test does not name is 0."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kvwire.congestion import LaneSample, PathSample

LANE_FIELDS, PATH_FIELDS = LaneSample._fields, [f.name for f in fields(PathSample)]
SUMS = sorted(set(LANE_FIELDS) & set(PATH_FIELDS))


def lane_sample(lane: int, **known: Any) -> LaneSample:
    values: dict[str, Any] = dict.fromkeys(LANE_FIELDS, 0)
    return LaneSample(**(values | {"lane": lane, "incarnation": 1, "congestion": "cubic"} | known))


def path_sample(interval_s: float, lanes: tuple[LaneSample, ...] = (), **known: Any) -> PathSample:
    """Sums are those of the lanes."""
    sums: dict[str, Any] = {name: sum(getattr(lane, name) for lane in lanes) for name in SUMS}
    if lanes:
        sums["rtt_s"] = sums["rtt_s"] / len(lanes)
        sums["min_rtt_s"] = min(lane.min_rtt_s for lane in lanes)
    values: dict[str, Any] = dict.fromkeys(PATH_FIELDS, 0)
    values |= {"interval_s": interval_s, "lanes": lanes, "queued_bytes": (0, 0, 0), "oldest_s": (0.0, 0.0, 0.0)}
    return PathSample(**(values | sums | known))
