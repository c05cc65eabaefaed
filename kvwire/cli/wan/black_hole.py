"""For two seconds nothing of one lane, or nothing at all, gets through, while transfers keep the link full."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from kvwire.cli.wan.emulated import queue
from kvwire.cli.wan.series import back_after_s, over_time, rate_bps
from kvwire.cli.wan.setting import Result, Setting
from kvwire.cli.wan.step import BACK_SHARE, STEP_S, back

HOLE_S = 2.0
BEFORE = 1 / 3
"""Share of the run before the hole."""


@dataclass(frozen=True, slots=True)
class Run:
    goodput_bps: float
    during_bps: float
    back_after_s: float | None
    intervals: list[dict[str, float]]
    suspensions: int
    fewest_lanes: int


def measure(setting: Setting) -> Result:
    """How long after the path's return goodput was back, and what got through meanwhile."""
    setting.hold_flow()
    runs: list[Run] = []
    for number in range(1, setting.options.runs + 1):
        setting.say(f"run {number} of {setting.options.runs}")
        runs.append(setting.timely(lambda: _run(setting), setting.spans))
    return {
        "goodput_bps": statistics.median(run.goodput_bps for run in runs),
        "goodput_bps_runs": [run.goodput_bps for run in runs],
        "black_hole": setting.options.black_hole,
        "hole_s": HOLE_S,
        "hole_at_s": BEFORE * setting.options.seconds,
        "during_hole_bps": statistics.median(run.during_bps for run in runs),
        **back([run.back_after_s for run in runs]),
        "suspensions": sum(run.suspensions for run in runs),
        "fewest_lanes": min(run.fewest_lanes for run in runs),
        "intervals": runs[-1].intervals,
        **queue("", setting.spans),
    }


def _run(setting: Setting) -> Run:
    seconds = setting.options.seconds
    with setting.full() as flow, setting.measured():
        start_s = time.monotonic()
        time.sleep(BEFORE * seconds)
        port = setting.ends.sender.call("busiest_port") if setting.options.black_hole == "lane" else None
        setting.wan.black_hole(True, port=port)
        hole_s = time.monotonic()
        time.sleep(HOLE_S)
        setting.wan.black_hole(False, port=port)
        return_s = time.monotonic()
        time.sleep(max(0.0, start_s + seconds - return_s))
        end_s = time.monotonic()
    return Run(
        rate_bps(flow.landed, start_s, end_s),
        rate_bps(flow.landed, hole_s, return_s),
        back_after_s(flow.landed, return_s, BACK_SHARE * setting.link.payload_bps),
        over_time(flow.landed, start_s, end_s, STEP_S),
        flow.saturated.suspensions,
        int(min(lanes for _, lanes in flow.saturated.lanes)),
    )
