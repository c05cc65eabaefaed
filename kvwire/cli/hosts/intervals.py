"""What landed in each interval of a measurement, shown while it runs."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from kvwire.cli.hosts.flow import Flow
from kvwire.cli.progress import Progress
from kvwire.cli.units import show_bytes, show_rate

DEFAULT_S = 1.0
LEAST_SHARE = 0.1
"""A rest at the end that is shorter than this share of an interval counts to the last one."""


def line(direction: str, start_s: float, end_s: float, nbytes: int) -> str:
    """One line of a report, intervals and sums alike."""
    rate = show_rate(8 * nbytes / (end_s - start_s) if end_s > start_s else 0.0)
    return f"[{direction:>4}] {start_s:6.1f}-{end_s:<6.1f}s  {show_bytes(nbytes):>9}  {rate:>12}"


class Intervals:
    """Looks at the flows, by direction, every `every_s` seconds; None: every second, printed on a terminal only.

    `until_s`: when the measurement ends, if that is known. `share`: how much of it is done, 0 to 1, after so many
    seconds. `quiet`: nothing is printed at all.
    """

    def __init__(
        self,
        flows: Mapping[str, Flow],
        every_s: float | None,
        until_s: float | None,
        share: Callable[[float], float],
        *,
        quiet: bool,
    ) -> None:
        self.found: dict[str, list[dict[str, Any]]] = {direction: [] for direction in flows}
        self._flows = dict(flows)
        self._every_s = every_s or DEFAULT_S
        self._until_s = math.inf if until_s is None else until_s
        self._share = share
        self._prints = not quiet and (every_s is not None or sys.stdout.isatty())
        self._progress = Progress(sys.stderr if not quiet else None)
        self._begun = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Since the measurement began."""
        return time.monotonic() - self._begun

    @property
    def landed_bytes(self) -> int:
        """So far, of all directions."""
        over = [found for direction, found in self.found.items() if direction not in self._flows]
        landed = sum(int(interval["bytes"]) for found in over for interval in found)
        return landed + sum(flow.landed_bytes for flow in self._flows.values())

    async def watch(self) -> None:
        """Until it is cancelled."""
        due_s = self._every_s
        with self._progress:
            while due_s <= self._until_s:
                await asyncio.sleep(due_s - self.elapsed_s)
                due_s += self._every_s
                for direction, flow in self._flows.items():
                    self._add(direction, self.elapsed_s, flow.landed_bytes)
                self._progress.say(f"{self.elapsed_s:.0f} s", min(1.0, self._share(self.elapsed_s)))

    def end(self, direction: str, seconds: float, nbytes: int) -> list[dict[str, Any]]:
        """The direction is over, after so many seconds and bytes; returns its intervals, the rest of them included."""
        del self._flows[direction]
        found = self.found[direction]
        if found and seconds - found[-1]["end_s"] < LEAST_SHARE * self._every_s:
            rest, last = nbytes - sum(interval["bytes"] for interval in found), found[-1]
            span_s = max(seconds, last["end_s"]) - last["start_s"]
            last["bytes"] = max(0, last["bytes"] + rest)
            last |= {"end_s": last["start_s"] + span_s, "goodput_bps": 8 * last["bytes"] / span_s if span_s else 0.0}
        else:
            self._add(direction, seconds, nbytes)
        return found

    def _add(self, direction: str, end_s: float, landed_bytes: int) -> None:
        found = self.found[direction]
        start_s = found[-1]["end_s"] if found else 0.0
        nbytes = max(0, landed_bytes - sum(interval["bytes"] for interval in found))
        rate = 8 * nbytes / (end_s - start_s) if end_s > start_s else 0.0
        found.append({"start_s": start_s, "end_s": end_s, "bytes": nbytes, "goodput_bps": rate})
        if self._prints:
            self._progress.say("")
            print(line(direction, start_s, end_s, nbytes), flush=True)
