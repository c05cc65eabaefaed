"""How much the path carries, and whether that is known or only a lower bound.

The delivery rate as draft-cheng-iccrg-delivery-rate-estimation has it: over one span of time the smaller of what was
sent and what was delivered (selective acknowledgements count), so that neither a queue that fills nor acknowledgements
that come late and for much at once look like capacity. The largest of the last seconds counts, as in BBR.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

SPAN_S = 0.5
"""One measurement. Several RTTs between continents, and long enough that a host that stalls for 20 ms is 4 % of it."""
WINDOW_S = 10.0
LIMITED_SHARE = 0.05
"""A span with more of it idle or paced says more about this host than about the path."""
GROWTH = 1.25
"""A rate this much above any before is still starting up (BBR's test of a full pipe)."""
SAME = 0.95
"""A span that the path limited and that came this near to the largest confirms it."""


class _Span(NamedTuple):
    end: float
    rate_bps: float
    by_path: bool
    """The path set the limit, as far as this side can tell."""


class Capacity:
    """Of one path. Fed differences, asked for an estimate."""

    def __init__(self) -> None:
        self._spans: deque[_Span] = deque()
        self._seconds = self._sent = self._arrived = self._limited = 0.0
        self._growing = False
        """The latest span was limited by nothing but the kernel's slow start, or by the path: the next one tells."""
        self.path_bps = 0.0
        """The latest estimate that was no lower bound; 0.0: there was none."""
        self.path_seen_at: float | None = None
        """When the path was last seen to set the limit."""

    def add(self, now: float, seconds: float, sent_bytes: float, arrived_bytes: float, limited_s: float) -> None:
        """What left and what arrived, headers included, in the seconds until now, and how many of them were idle or
        paced."""
        self._seconds += seconds
        self._sent += sent_bytes
        self._arrived += arrived_bytes
        self._limited += limited_s
        if self._seconds < SPAN_S:
            return
        rate_bps = 8 * min(self._sent, self._arrived) / self._seconds
        self._expire(now)
        grows = rate_bps > GROWTH * max((span.rate_bps for span in self._spans), default=0.0)
        busy = self._limited <= LIMITED_SHARE * self._seconds
        by_path = busy and not grows
        if by_path and self._growing and self._spans and GROWTH * rate_bps >= self._spans[-1].rate_bps:
            # It grew until the path was full. After an outage, or a receiver that stands still, that is not known.
            self._spans[-1] = self._spans[-1]._replace(by_path=True)
        self._growing = busy and grows
        self._spans.append(_Span(now, rate_bps, by_path))
        self._seconds = self._sent = self._arrived = self._limited = 0.0
        if by_path:
            self.path_seen_at = now
            self.path_bps = max(span.rate_bps for span in self._spans if span.by_path)

    def estimate(self, now: float) -> tuple[float, bool]:
        """Bits per second, and whether it is only a lower bound. (0.0, True) where nothing is known."""
        self._expire(now)
        most = max((span.rate_bps for span in self._spans), default=0.0)
        by_path = max((span.rate_bps for span in self._spans if span.by_path), default=-1.0)
        return most, by_path < SAME * most

    def _expire(self, now: float) -> None:
        while self._spans and self._spans[0].end <= now - WINDOW_S:
            self._spans.popleft()
