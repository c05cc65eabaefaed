"""What reports cost: the share of a core that samples, a report a second and exporters take, beside nothing but a sum.

python bench/telemetry.py [--lanes N] [--ticks N]. The ratio is to adding up one field of the same samples, which is the
least that anybody who looks at them pays.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from kvwire.congestion import Decision, LaneSample, PathSample
from kvwire.telemetry import LinkState, Telemetry

SECONDS = 60


def sample(lanes: int, interval_s: float) -> PathSample:
    values: dict[str, Any] = {it.name: 1000 for it in fields(LaneSample)} | {"incarnation": 1, "congestion": "bbr"}
    times = dict.fromkeys(("rtt_s", "min_rtt_s", "busy_s", "receiver_limited_s", "buffer_limited_s"), 0.01)
    each = tuple(LaneSample(**values | times | {"lane": number}) for number in range(lanes))
    summed: dict[str, Any] = {it.name: 1000 * lanes for it in fields(PathSample)}
    summed |= {"rtt_s": 0.01, "min_rtt_s": 0.01, "idle_s": 0.0, "paced_s": 0.0}
    summed |= {"queued_bytes": (0, 1, 2), "oldest_s": (0.0, 0.1, 0.2), "interval_s": interval_s, "lanes": each}
    return PathSample(**summed)


def core_share(tick: Callable[[float], object], ticks: int) -> float:
    """CPU seconds per second of samples."""
    began = time.process_time()
    for number in range(SECONDS * ticks):
        tick((number + 1) / ticks)
    return (time.process_time() - began) / SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--ticks", type=int, default=20, help="samples a second")
    options = parser.parse_args()
    looked_at = sample(options.lanes, 1 / options.ticks)
    state = LinkState(time_s=0.0, link="a", peer="b", decision=Decision())
    telemetry = Telemetry()
    telemetry.on_report(lambda report: None)
    sums = core_share(lambda _: sum(lane.landed_bytes for lane in looked_at.lanes), options.ticks)
    reports = core_share(lambda now: telemetry.tick(now, looked_at, lambda: state), options.ticks)
    print(
        f"{options.lanes} lanes, {options.ticks} samples a second: {reports:.2%} of a core, {reports / sums:.0f} sums"
    )
    facts = {"lanes": options.lanes, "ticks": options.ticks, "core_share": reports, "ratio_vs_sum": reports / sums}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
