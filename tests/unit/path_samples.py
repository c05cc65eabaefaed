"""Samples as tests write them: what a test does not name is 0."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kvwire.congestion import LaneSample, PathSample

PATH_FIELDS = [f.name for f in fields(PathSample)]
SUMS = {at: name for at, name in enumerate(LaneSample._fields) if name in PATH_FIELDS}
LANE: dict[str, Any] = dict.fromkeys(LaneSample._fields, 0) | {"incarnation": 1, "congestion": "cubic"}
PATH: dict[str, Any] = dict.fromkeys(PATH_FIELDS, 0) | {"queued_bytes": (0, 0, 0), "oldest_s": (0.0, 0.0, 0.0)}


def lane_sample(lane: int, **known: Any) -> LaneSample:
    return LaneSample(**(LANE | {"lane": lane} | known))


def path_sample(interval_s: float, lanes: tuple[LaneSample, ...] = (), **known: Any) -> PathSample:
    """Sums are those of the lanes."""
    values = PATH | {"interval_s": interval_s, "lanes": lanes}
    if lanes:
        rows: tuple[tuple[Any, ...], ...] = lanes
        values |= {name: sum(row[at] for row in rows) for at, name in SUMS.items()}
        values |= {"rtt_s": values["rtt_s"] / len(lanes), "min_rtt_s": min(lane.min_rtt_s for lane in lanes)}
    return PathSample(**(values | known))
