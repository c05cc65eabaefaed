"""Virtual time: a heap of what will happen. It never sleeps; when nothing is left to do now, it is later."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

TICKS_PER_S = 1 << 20
"""Time is a whole number of ticks, so that adding a host's epoch is exact, and no timer fires early by rounding."""
MOST_STEPS = 400_000
"""A scenario takes some thousands; beyond this it runs in circles."""


class Livelock(Exception):
    """Steps are taken, and nothing comes of it."""


class Clock:
    """Runs callbacks in the order of their time; those of one time in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._asked = 0
        self._events: list[tuple[float, int, Callable[[Any], object], Any]] = []

    def at(self, when: float, run: Callable[[Any], object], argument: Any = None) -> None:
        """Call `run(argument)` at `when`, rounded up to a tick, or now if that is past."""
        self._asked += 1
        when = math.ceil(when * TICKS_PER_S) / TICKS_PER_S
        heapq.heappush(self._events, (max(when, self.now), self._asked, run, argument))

    def serial(self) -> int:
        """A number that nothing else in this run has."""
        self._asked += 1
        return self._asked

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Take steps until the condition holds; False if it does not within `limit_s`, or nothing is left to do."""
        end = self.now + limit_s
        while not until():
            if not self._events or self._events[0][0] > end:
                self.now = end
                return False
            self.now, _, run, argument = heapq.heappop(self._events)
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise Livelock(f"{self.steps} steps in {self.now:.3f} s")
            run(argument)
        return True
