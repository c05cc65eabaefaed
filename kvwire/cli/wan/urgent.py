"""Small urgent transfers every so often, first over an idle link, then while background ones keep it full."""

from __future__ import annotations

import time

from kvwire.cli.jobs import synthetic
from kvwire.cli.units import KIB, MIB
from kvwire.cli.wan.emulated import queue
from kvwire.cli.wan.series import percentile, rate_bps
from kvwire.cli.wan.setting import Result, Setting

URGENT = "urgent"
URGENT_BYTES = MIB
PAGE_BYTES = 64 * KIB
MOST_IDLE = 20
"""Transfers over the idle link, whose median is the measure of the others."""


def measure(setting: Setting) -> Result:
    """Percentiles of the urgent transfers, from the offer to the receipt, beside their idle time.

    They come one after the other: one that takes longer than the period holds up the next, which does not count.
    """
    options = setting.options
    classes = (1, 1) if options.no_classes else (0, 2)
    small = synthetic(URGENT_BYTES, PAGE_BYTES, URGENT_BYTES, options.content)
    setting.hold(URGENT, small, (1, 1))
    setting.hold_flow()
    setting.say("idle link")
    _urgent(setting, 1, classes[0])  # makes the lanes warm, as far as one is enough
    idle = _urgent(setting, min(MOST_IDLE, options.count), classes[0])

    def run() -> tuple[list[float], float]:
        with setting.full(classes[1]) as flow, setting.measured():
            start_s = time.monotonic()
            busy = _urgent(setting, options.count, classes[0])
            end_s = time.monotonic()
        return busy, rate_bps(flow.landed, start_s, end_s)

    rates, busy = [], []
    for number in range(1, options.runs + 1):
        setting.say(f"run {number} of {options.runs}: full link")
        found, goodput_bps = setting.timely(run, setting.spans)
        rates.append(goodput_bps)
        busy += found
    idle_s = percentile(idle, 0.5)
    return {
        "goodput_bps": percentile(rates, 0.5),
        "goodput_bps_runs": rates,
        "classes": not options.no_classes,
        "urgent_bytes": small.transfer_bytes,
        "urgent_period_s": options.urgent,
        "urgent_count": len(busy),
        "urgent_idle_s": idle_s,
        "urgent_p50_s": percentile(busy, 0.5),
        "urgent_p99_s": percentile(busy, 0.99),
        "urgent_max_s": max(busy),
        "ratio_urgent_p99": percentile(busy, 0.99) / idle_s,
        "urgent_s_runs": [round(seconds, 6) for seconds in busy],
        **queue("", setting.spans),
    }


def _urgent(setting: Setting, count: int, klass: int) -> list[float]:
    """Seconds of each."""
    found: list[float] = []
    due_s = time.monotonic()
    for number in range(1, count + 1):
        numbers = setting.ends.filled(URGENT, 1)
        time.sleep(max(0.0, due_s - time.monotonic()))
        due_s = time.monotonic() + setting.options.urgent
        timed = setting.ends.send(URGENT, 0, klass, within_s=setting.patience_s)
        found.append(timed.elapsed_s)
        setting.check(URGENT, numbers)
        if number % 10 == 0:
            setting.say(f"urgent transfer {number} of {count}")
    return found
