"""The bottleneck's rate falls and rises again, each for a third of the run, while transfers keep the link full."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from kvwire.cli.wan.emulated import queue
from kvwire.cli.wan.series import back_after_s, over_time, rate_bps
from kvwire.cli.wan.setting import Result, Setting

BACK_SHARE = 0.85
"""Of what the link can carry: then goodput is back."""
STEP_S = 0.25


@dataclass(frozen=True, slots=True)
class Run:
    goodput_bps: float
    back_after_s: float | None
    intervals: list[dict[str, float]]
    suspensions: int


def measure(setting: Setting) -> Result:
    """Share of what the link offered, and how long after the step up goodput was back."""
    setting.hold_flow()
    runs: list[Run] = []
    for number in range(1, setting.options.runs + 1):
        setting.say(f"run {number} of {setting.options.runs}")
        runs.append(setting.timely(lambda: _run(setting), setting.spans))
    low_bps = setting.link.payload_of(setting.options.step)
    offered_bps = (2 * setting.link.payload_bps + low_bps) / 3
    goodput_bps = statistics.median(run.goodput_bps for run in runs)
    return {
        "goodput_bps": goodput_bps,
        "goodput_bps_runs": [run.goodput_bps for run in runs],
        "step_bps": setting.options.step,
        "offered_bps": offered_bps,
        "share_of_offered": goodput_bps / offered_bps,
        **back([run.back_after_s for run in runs]),
        "suspensions": sum(run.suspensions for run in runs),
        "intervals": runs[-1].intervals,
        "offered": [
            {"start_s": start_s, "bps": bps}
            for start_s, bps in zip(
                (0.0, setting.options.seconds / 3, setting.options.seconds * 2 / 3),
                (setting.link.payload_bps, low_bps, setting.link.payload_bps),
                strict=True,
            )
        ],
        **queue("", setting.spans),
    }


def _run(setting: Setting) -> Run:
    link, third_s = setting.link, setting.options.seconds / 3
    with setting.full() as flow, setting.measured():
        start_s = time.monotonic()
        time.sleep(third_s)
        setting.wan.change(link.path(setting.options.step))
        time.sleep(third_s)
        setting.wan.change(link.path())
        up_s = time.monotonic()
        time.sleep(third_s)
        end_s = time.monotonic()
    return Run(
        rate_bps(flow.landed, start_s, end_s),
        back_after_s(flow.landed, up_s, BACK_SHARE * link.payload_bps),
        over_time(flow.landed, start_s, end_s, STEP_S),
        flow.saturated.suspensions,
    )


def back(after_s: list[float | None]) -> Result:
    """The times after which goodput was back in each run; None, for the run or for all, where it never was."""
    known = [seconds for seconds in after_s if seconds is not None]
    return {
        "back_share": BACK_SHARE,
        "back_after_s": statistics.median(known) if len(known) == len(after_s) else None,
        "back_after_s_runs": after_s,
    }
