"""The KV cache of a model leaves during prefill, layer by layer, perhaps scaled down to what a slower link carries."""

from __future__ import annotations

import statistics
from dataclasses import replace

import kvwire
from kvwire.cli.compression import Coding
from kvwire.cli.jobs import Job
from kvwire.cli.wan.emulated import queue
from kvwire.cli.wan.ends import Timed
from kvwire.cli.wan.setting import Result, Setting

ONE = "model"
WORD_BYTES = 8
"""Blocks are whole words, which is what is checked."""


def scaled(job: Job, scale: int) -> Job:
    """The same groups, layers and blocks, each block with one `scale`th of its bytes."""
    if scale == 1:
        return job
    return replace(job, specs=tuple(_scaled(spec, scale) for spec in job.specs))


def _scaled(spec: kvwire.GroupSpec, scale: int) -> kvwire.GroupSpec:
    words = max(1, round(spec.block_bytes / scale / WORD_BYTES))
    part = kvwire.Part("scaled", (words * WORD_BYTES // spec.dtype.itemsize,))
    return replace(spec, parts=(part,))


def measure(setting: Setting) -> Result:
    """From the grant, with which prefill begins, to the receipt, beside what no transport can undercut."""
    options, job = setting.options, setting.job
    setting.hold(ONE, job, (2, 2))
    timed: list[Timed] = []
    for number in range(1, options.runs + 1):
        setting.say(f"run {number} of {options.runs}")
        timed.append(setting.timely(lambda: _run(setting), setting.spans))
    ideal_s = max(options.prefill, 8 * job.transfer_bytes / setting.link.rate_bps)
    total_s = statistics.median(one.ended_s - one.granted_s for one in timed)
    return {
        "goodput_bps": statistics.median(one.goodput_bps for one in timed),
        "goodput_bps_runs": [one.goodput_bps for one in timed],
        "model": job.model,
        "tokens": job.tokens,
        "scale": options.scale,
        "prefill_s": options.prefill,
        "tail_s": statistics.median(one.tail_s for one in timed),
        **sum((one.coding for one in timed), Coding()).facts(),
        "tail_s_runs": [one.tail_s for one in timed],
        "total_s": total_s,
        "ideal_s": ideal_s,
        "ratio_vs_ideal": total_s / ideal_s,
        **queue("", setting.spans),
    }


def _run(setting: Setting) -> Timed:
    numbers = setting.ends.filled(ONE, 2)
    setting.ends.send(ONE, 0, within_s=setting.patience_s)
    with setting.measured():
        timed = setting.ends.send(ONE, 1, prefill_s=setting.options.prefill, within_s=setting.patience_s)
    setting.check(ONE, numbers)
    return timed
