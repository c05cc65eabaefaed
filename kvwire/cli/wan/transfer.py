"""Single transfers over a link that is idle but for them, from the offer to the receipt, in rounds with iperf3, and
with the same transfers under other settings of compression."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kvwire.cli import compression
from kvwire.cli.compression import Coding
from kvwire.cli.wan import iperf3
from kvwire.cli.wan.emulated import Span, queue
from kvwire.cli.wan.ends import Timed
from kvwire.cli.wan.setting import Result, Setting

ONE = "transfer"


def measure(setting: Setting) -> Result:
    """Goodput of each round, and of iperf3 in the same rounds, with several numbers of flows by turns."""
    return Rounds(setting).measure()


class Rounds:
    """All that are compared, one after the other, so that a slow minute of the machine meets them alike."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.timed: list[Timed] = []
        streams = iperf3.STREAMS if setting.options.vs == "iperf3" else ()
        self.received: dict[int, list[float]] = {count: [] for count in streams}
        self.retransmits: dict[int, list[int]] = {count: [] for count in streams}
        self.others: list[Span] = []
        self.compressed: dict[str, list[Timed]] = {name: [] for name in setting.options.vs_compression}
        self.beside: list[Span] = []

    def measure(self) -> Result:
        setting, options, job = self.setting, self.setting.options, self.setting.job
        count = 1 if options.cold else 2
        setting.hold(ONE, job, (count, count))
        self._settle()
        for number in range(1, options.runs + 1):
            said = f"round {number} of {options.runs}"
            setting.say(f"{said}: kvwire")
            self.timed.append(setting.timely(self._cold if options.cold else self._warm, setting.spans))
            for name, timed in self.compressed.items():
                setting.say(f"{said}: compression {name}")
                timed.append(setting.timely(partial(self._warm, name), self.beside))
            for streams in self._turn(number):
                setting.say(f"{said}: iperf3 -P {streams}")
                self._yardstick(number, streams)
        return self._result()

    def _settle(self) -> None:
        """What is compared goes over one link and the same lanes. Its automatic codecs have decided by then: on the
        ground of transfers that leave it to them."""
        setting, names = self.setting, [self.setting.options.compression, *self.compressed]
        automatic = next((name for name in names if compression.is_automatic(name)), None)
        if not self.compressed or automatic is None:
            return
        setting.say("warming up")
        until = time.monotonic() + compression.SETTLED_S
        while time.monotonic() < until:
            setting.ends.filled(ONE, 2)
            setting.ends.send(ONE, 0, within_s=setting.patience_s, through=automatic)

    def _turn(self, number: int) -> Sequence[int]:
        """Numbers of flows that iperf3 has in this round: by turns, as all of them take a minute, and each at least
        once."""
        counts = list(self.received)
        turns = min(len(counts), self.setting.options.runs) or 1
        return counts[(number - 1) % turns :: turns]

    def _warm(self, through: str | None = None) -> Timed:
        """A transfer right after one that is not measured: what stood between the rounds has let the lanes go cold."""
        setting = self.setting
        numbers = setting.ends.filled(ONE, 2)
        setting.ends.send(ONE, 0, within_s=setting.patience_s, through=through)
        with setting.measured():
            timed = setting.ends.send(ONE, 1, within_s=setting.patience_s, through=through)
        setting.check(ONE, numbers, through)
        return timed

    def _cold(self) -> Timed:
        setting = self.setting
        numbers = setting.ends.filled(ONE, 1)
        setting.ends.sender.call("dial_again")
        with setting.measured():
            timed = setting.ends.send(ONE, 0, within_s=setting.patience_s)
        setting.check(ONE, numbers)
        return timed

    def _yardstick(self, number: int, streams: int) -> None:
        setting, options = self.setting, self.setting.options

        def run() -> tuple[Result, str]:
            with (
                setting.measured(reports=False),
                iperf3.Iperf3(setting.hosts, streams, options.cc, options.iperf3_seconds) as client,
            ):
                return client.result(), client.raw

        found, raw = setting.timely(run, self.others)
        self.received[streams].append(found["bps"])
        self.retransmits[streams].append(found["retransmits"])
        kept: Path | None = options.keep
        if kept is not None:
            (kept / f"{setting.link.name}-{options.cc}-round{number}-P{streams}.json").write_text(raw)

    def _result(self) -> Result:
        setting, link = self.setting, self.setting.link
        goodput_bps = statistics.median(timed.goodput_bps for timed in self.timed)
        elapsed_s = statistics.median(timed.elapsed_s for timed in self.timed)
        result: Result = {
            "goodput_bps": goodput_bps,
            "goodput_bps_runs": [timed.goodput_bps for timed in self.timed],
            "elapsed_s": elapsed_s,
            "cold": setting.options.cold,
            **sum((timed.coding for timed in self.timed), Coding()).facts(),
            **queue("", setting.spans),
        }
        if setting.options.cold:
            ideal_s = link.rtt_s + 8 * setting.job.transfer_bytes / link.rate_bps
            result |= {"ideal_s": ideal_s, "ratio_vs_ideal": elapsed_s / ideal_s}
        for name, found in self.compressed.items():
            other_bps = statistics.median(timed.goodput_bps for timed in found)
            result |= {
                f"ratio_vs_{name}": goodput_bps / other_bps,
                f"ratio_vs_{name}_runs": [
                    mine.goodput_bps / timed.goodput_bps for mine, timed in zip(self.timed, found, strict=True)
                ],
                f"{name}_bps": other_bps,
                f"{name}_bps_runs": [timed.goodput_bps for timed in found],
            }
        if self.received:
            medians = {streams: statistics.median(found) for streams, found in self.received.items()}
            result |= {
                "iperf3_bps": max(medians.values()),
                "ratio_vs_iperf3": goodput_bps / max(medians.values()),
                "iperf3_seconds": setting.options.iperf3_seconds,
                "iperf3_flows": [
                    {
                        "flows": streams,
                        "bps": medians[streams],
                        "bps_runs": self.received[streams],
                        "retransmits": statistics.median(self.retransmits[streams]),
                    }
                    for streams in medians
                ],
                **queue("iperf3_", self.others),
            }
        return result
