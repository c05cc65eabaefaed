"""Plain TCP flows of iperf3 share the link with transfers that would fill it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from kvwire.cli.wan.emulated import queue
from kvwire.cli.wan.iperf3 import Iperf3
from kvwire.cli.wan.series import over_time, rate_bps
from kvwire.cli.wan.setting import Result, Setting
from kvwire.cli.wan.step import STEP_S


@dataclass(frozen=True, slots=True)
class Run:
    goodput_bps: float
    others_bps: list[float]
    intervals: list[dict[str, float]]


def measure(setting: Setting) -> Result:
    """What each got. A fair share is that of one flow among all: kvwire, whatever its lanes, counts as one."""
    congestion, count = setting.options.beside
    setting.hold_flow()
    runs: list[Run] = []
    for number in range(1, setting.options.runs + 1):
        setting.say(f"run {number} of {setting.options.runs}: beside {count} flows of {congestion}")
        runs.append(setting.timely(lambda: _run(setting, congestion, count), setting.spans))
    goodput_bps = statistics.median(run.goodput_bps for run in runs)
    fair_bps = setting.link.payload_bps / (count + 1)
    return {
        "goodput_bps": goodput_bps,
        "goodput_bps_runs": [run.goodput_bps for run in runs],
        "beside": f"{congestion}={count}",
        "beside_bps": statistics.median(sum(run.others_bps) for run in runs),
        "beside_bps_flows": runs[-1].others_bps,
        "fair_share_bps": fair_bps,
        "ratio_vs_fair_share": goodput_bps / fair_bps,
        "intervals": runs[-1].intervals,
        **queue("", setting.spans),
    }


def _run(setting: Setting, congestion: str, count: int) -> Run:
    others = Iperf3(setting.hosts, count, congestion, setting.options.seconds)
    with setting.full() as flow, setting.measured(), others:
        start_s = time.monotonic()
        found = others.result()
        end_s = time.monotonic()
    return Run(
        rate_bps(flow.landed, start_s, end_s),
        found["stream_bps"],
        over_time(flow.landed, start_s, end_s, STEP_S),
    )
