"""--busy-host: a serving engine's process holds the GIL most of the time, so one that never lets go stands in for it.

`while True: n += 1` runs in a thread of both processes. The control is the same two loops in processes of their own:
they take the same share of the cores, and what is left of the difference is the GIL's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from kvwire.cli.loopback.pair import Pair, Run, marks
from kvwire.cli.loopback.peer import Mark, Peer, Process

FREE_S = 0.2
"""How long the loops run without a transfer, to learn their own rate."""
TAIL_PREFILL_S = 1.0
TAIL_RUNS = 3
"""Paced transfers per state and round, for the tail; about 4 Gbit/s, what a prefill instance makes."""


def loop_rate(run: Run, free: list[float]) -> float:
    """Rounds per second of all watched loops while bytes moved.

    The marks are a little wider than the transfer. What a loop did there, at its free rate, is taken out.
    """
    rates = []
    for index, rate in enumerate(free):
        rounds = moving_s = 0.0
        for moved in run.moved:
            before, after = moved.watched[index]
            beside_s = after.at_s - before.at_s - moved.sent.elapsed_s
            rounds += after.rounds - before.rounds - rate * beside_s
            moving_s += moved.sent.elapsed_s
        rates.append(rounds / moving_s)
    return sum(rates)


class Comparison:
    """Idle, loops in both processes, and loops in processes of their own, round by round."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        inside = (pair.sender, pair.receiver)
        self._states: dict[str, tuple[Peer, ...]] = {
            "idle": (),
            "busy": inside,
            "control": (pair.add(Process), pair.add(Process)),
        }
        self._bulk: dict[str, list[Run]] = {state: [] for state in self._states}
        self._paced: dict[str, list[Run]] = {state: [] for state in self._states}
        self._rates: dict[str, list[float]] = {state: [] for state in self._states}

    @property
    def runs(self) -> list[Run]:
        """All transfers, for their checks."""
        return [run for runs in (self._bulk, self._paced) for each in runs.values() for run in each]

    def measure(self, transfers: int) -> None:
        """One round."""
        for state, peers in self._states.items():
            for peer in peers:
                peer.call("spin", True)
            free = self._free_rates(peers)
            bulk = self._pair.run(transfers, watch=peers)
            self._bulk[state].append(bulk)
            self._paced[state].append(self._pair.run(TAIL_RUNS, TAIL_PREFILL_S))
            self._rates[state].append(loop_rate(bulk, free))
            for peer in peers:
                peer.call("spin", False)

    @staticmethod
    def _free_rates(peers: Sequence[Peer]) -> list[float]:
        if not peers:
            return []

        def rate(before: Mark, after: Mark) -> float:
            return (after.rounds - before.rounds) / (after.at_s - before.at_s)

        before = marks(peers)
        time.sleep(FREE_S)
        return [rate(*pair) for pair in zip(before, marks(peers), strict=True)]

    def summary(self) -> dict[str, Any]:
        """Medians and ratios for the JSON object."""
        goodput = {state: statistics.median(r.goodput_GBps for r in runs) for state, runs in self._bulk.items()}
        tail = {state: statistics.median(r.tail_s for r in runs) for state, runs in self._paced.items()}
        rate = {state: statistics.median(rates) for state, rates in self._rates.items()}
        return {
            "ratio_busy": goodput["busy"] / goodput["control"],
            "busy_loop_ratio": rate["busy"] / rate["control"],
            "goodput_busy_GBps": goodput["busy"],
            "goodput_control_GBps": goodput["control"],
            "tail_idle_s": tail["idle"],
            "tail_busy_s": tail["busy"],
            "tail_control_s": tail["control"],
            "ratio_tail_busy": tail["busy"] / tail["idle"],
            "gil_entries_busy": max(run.gil_entries for run in self._bulk["busy"]),
        }
