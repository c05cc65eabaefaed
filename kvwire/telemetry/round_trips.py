"""Round trips of an interval, in bounded memory."""

from __future__ import annotations

MOST_SAMPLES = 512
"""At 64 lanes these are a megabyte; a second at the shortest tick has 200."""


class RoundTrips:
    """Those of every sample of an interval; of a long one every second sample, then every fourth, and so on, so that at
    least 256 of them stand for it, evenly."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, ...]] = []
        self._every = 1
        self._skipped = 0

    def add(self, rtts_s: tuple[float, ...]) -> None:
        """Of the lanes that were sending, of one sample."""
        if not rtts_s:
            return
        self._skipped += 1
        if self._skipped < self._every:
            return
        self._skipped = 0
        self._kept.append(rtts_s)
        if len(self._kept) == MOST_SAMPLES:
            self._kept = self._kept[1::2]
            self._every *= 2

    def ordered(self) -> list[float]:
        """The smallest first."""
        return sorted(rtt_s for rtts_s in self._kept for rtt_s in rtts_s)
