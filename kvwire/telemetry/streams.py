"""What a link does with its samples: one stream of reports for each interval that somebody wants."""

from __future__ import annotations

from collections.abc import Callable

from kvwire.congestion import PathSample
from kvwire.errors import ConfigError
from kvwire.telemetry.builder import HEADER_BYTES, LinkState, ReportBuilder
from kvwire.telemetry.listeners import Callback, Listeners, Remove, Reports
from kvwire.telemetry.reports import EgressReport

INTERVAL_S = 1.0
LEAST_S, MOST_S = 0.1, 3600.0
ROUNDING_S = 1e-6


class _Stream:
    """Reports of one interval."""

    def __init__(self, interval_s: float, builder: ReportBuilder) -> None:
        self.interval_s = interval_s
        self.builder = builder
        self.listeners = Listeners()
        self.left_s = interval_s
        """Of time that samples cover, until a report is due: a link that pauses takes none."""


class Telemetry:
    """Of one link. It makes a report a second, whether somebody listens or not, so that totals are since the link was
    made; further intervals exist while somebody wants them."""

    def __init__(self, *, header_bytes: int = HEADER_BYTES, upwards: Listeners | None = None) -> None:
        """`upwards`: who hears the reports of every second besides, a node's listeners."""
        self._base = _Stream(INTERVAL_S, ReportBuilder(header_bytes))
        self._streams = {INTERVAL_S: self._base}
        self._upwards = upwards
        self._closed = False
        self.latest: EgressReport | None = None
        """The latest report of a second; None before the first."""

    @property
    def interval_s(self) -> float | None:
        """The shortest interval at which somebody hears this link's reports; None: nobody does."""
        return min((stream.interval_s for stream in self._streams.values() if stream.listeners), default=None)

    def on_report(self, callback: Callback, interval_s: float = INTERVAL_S) -> Remove:
        """As `Listeners.add`. ConfigError for an interval that is not 0.1 s to an hour."""
        return self._stream(interval_s).listeners.add(callback)

    def reports(self, interval_s: float = INTERVAL_S) -> Reports:
        """As `Listeners.reports`. ConfigError for an interval that is not 0.1 s to an hour."""
        return self._stream(interval_s).listeners.reports()

    def tick(self, now: float, sample: PathSample, state: Callable[[], LinkState]) -> None:
        """What the link did since the last tick; `state` is asked for a report that is due."""
        for stream in list(self._streams.values()):
            stream.builder.sample(now, sample)
            stream.left_s -= sample.interval_s
            if stream.left_s > ROUNDING_S:
                continue
            # In step, unless the sample covers more than an interval.
            stream.left_s = max(stream.left_s, -stream.interval_s / 2) + stream.interval_s
            self._publish(stream, stream.builder.report(now, state(), stream.listeners.counts))

    def _publish(self, stream: _Stream, report: EgressReport) -> None:
        if stream is self._base:
            self.latest = report
            if self._upwards is not None:
                self._upwards.deliver(report)
        elif not stream.listeners:
            del self._streams[stream.interval_s]
        stream.listeners.deliver(report)

    def close(self) -> None:
        """The link is over: so are the streams."""
        self._closed = True
        for stream in self._streams.values():
            stream.listeners.close()

    def _stream(self, interval_s: float) -> _Stream:
        if (
            isinstance(interval_s, bool)
            or not isinstance(interval_s, int | float)
            or not LEAST_S <= interval_s <= MOST_S
        ):
            raise ConfigError(f"interval_s is {interval_s!r:.80}; expected {LEAST_S:g} to {MOST_S:g} s")
        if interval_s not in self._streams:
            self._streams[interval_s] = _Stream(interval_s, self._base.builder.fork())
            if self._closed:
                self._streams[interval_s].listeners.close()
        return self._streams[interval_s]
