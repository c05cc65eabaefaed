"""The metrics, as one table that every exporter reads (docs/telemetry.md shows it).

Exporters pull: whoever collects gets the latest report of each link that is up, so a link that has ended is gone from
what they say, and nothing has to be kept. They listen, too, since nobody looks at a link that carries nothing while
nobody listens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from kvwire.congestion import CLASSES
from kvwire.errors import ConfigError
from kvwire.telemetry.reports import EgressReport, LaneReport

MOST_LINKS = 256
MOST_LANES = 1024
"""Of all links together."""
SILENT_S = 5.0
"""Older than that, what a report says of now is not so: its link is suspended, or its node's Python stands still."""
MOST_SERIES = 40_000
"""What that comes to at most, whoever dials the node: about 95 for a link and 13 for a lane."""


class Reporting(Protocol):
    """A link, as far as exporters are concerned."""

    @property
    def report(self) -> EgressReport | None:
        """The latest; None before the first."""


@runtime_checkable
class Source(Protocol):
    """A node, as far as exporters are concerned. Read from any thread."""

    @property
    def links(self) -> Sequence[Reporting]:
        """Those that are up."""

    def on_report(self, callback: Callable[[EgressReport], object]) -> Callable[[], None]:
        """Have it called with every report; returns what ends that."""


class Snapshot(NamedTuple):
    """What there is to export, now."""

    reports: list[EgressReport]
    links: int
    links_silent: int
    links_left_out: int
    lanes_left_out: int


Values = Iterable[tuple[tuple[str, ...], float | None]]
"""By the values of a metric's own labels; None: nothing to say."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    name: str
    """With dots, as OpenTelemetry has names, without "kvwire."."""
    kind: Literal["counter", "gauge"]
    unit: str
    """As UCUM has it: By, s, bit/s, 1 (a share or ratio), {lane}; empty for what is 0 or 1."""
    help: str
    labels: tuple[str, ...] = ()
    """Besides `link` and `peer`."""
    of: Callable[[EgressReport], Values] | None = None
    node: Callable[[Snapshot], float] | None = None
    """Instead of `of`, where it is told once and has no labels."""

    @property
    def all_labels(self) -> tuple[str, ...]:
        return ("link", "peer", *self.labels) if self.of else ()

    @property
    def prometheus(self) -> str:
        """Its name there, as a query has it."""
        suffix = PROMETHEUS_UNITS.get(self.unit, "")
        total = "_total" if self.kind == "counter" else ""
        return f"kvwire_{self.name.replace('.', '_')}{suffix and '_' + suffix}{total}"

    def values(self, snapshot: Snapshot) -> Iterable[tuple[tuple[str, ...], float]]:
        """Each value, by the values of `all_labels`."""
        if self.node is not None:
            yield (), self.node(snapshot)
        for report in snapshot.reports:
            for own, value in self.of(report) if self.of else ():
                if value is not None:
                    yield (report.link, report.peer, *own), value


PROMETHEUS_UNITS = {"By": "bytes", "s": "seconds", "bit/s": "bits_per_second", "1": "ratio"}
"""Endings that Prometheus's conventions want; numbers of things have none."""


def snapshot(source: Source) -> Snapshot:
    """The latest reports of the links that are up, within bounds: the first MOST_LINKS, lanes while they last."""
    links, now = source.links, time.time()
    latest = [report for link in links if (report := link.report) is not None and now - report.time_s < SILENT_S]
    reports, lanes_left, lanes_left_out = [], MOST_LANES, 0
    for report in latest[:MOST_LINKS]:
        told = report.lanes[:lanes_left]
        lanes_left -= len(told)
        lanes_left_out += len(report.lanes) - len(told)
        reports.append(report if len(told) == len(report.lanes) else replace(report, lanes=told))
    return Snapshot(reports, len(links), len(links) - len(latest), len(latest) - len(reports), lanes_left_out)


def keep_looking(source: Source) -> Callable[[], None]:
    """Listen, so that links are looked at; returns what ends that. ConfigError for what is no node."""
    if not isinstance(source, Source):
        raise ConfigError(f"there is nothing to export of {source!r:.80}; expected a kvwire.Node")
    return source.on_report(lambda report: None)


def missing(package: str) -> ConfigError:
    """What to raise where a package of an extra is not installed."""
    return ConfigError(f"{package} is not installed", hint="pip install 'kvwire[metrics]'")


def _per_class(of: Callable[[EgressReport], Sequence[float]]) -> Callable[[EgressReport], Values]:
    return lambda report: (((name,), value) for name, value in zip(CLASSES, of(report), strict=True))


def _transfers(report: EgressReport) -> Values:
    for direction, numbers in (("out", report.outgoing), ("in", report.incoming)):
        yield from (((direction, name), number) for name, number in zip(CLASSES, numbers, strict=True))


def _rtts(report: EgressReport) -> Values:
    """Absent where none is known."""
    stats = {"p50": report.rtt_p50_s, "p99": report.rtt_p99_s, "min": report.rtt_min_s}
    return (((name,), value or None) for name, value in stats.items())


def _limits(report: EgressReport) -> Values:
    yield ("application",), report.application_limited_share
    yield ("pacing",), report.pacing_limited_share
    yield ("receiver",), report.receiver_limited_share
    yield ("buffer",), report.buffer_limited_share


def _counter(name: str, unit: str, text: str, of: Callable[[EgressReport], float]) -> Metric:
    return Metric(name, "counter", unit, text, of=lambda report: [((), of(report))])


def _gauge(name: str, unit: str, text: str, of: Callable[[EgressReport], float | None]) -> Metric:
    return Metric(name, "gauge", unit, text, of=lambda report: [((), of(report))])


def _of_lane(
    kind: Literal["counter", "gauge"], name: str, unit: str, text: str, of: Callable[[LaneReport], float]
) -> Metric:
    return Metric(
        name, kind, unit, text, ("lane",), lambda report: (((str(lane.lane),), of(lane)) for lane in report.lanes)
    )


def _lane_congestion(report: EgressReport) -> Values:
    return (((str(lane.lane), lane.congestion), 1) for lane in report.lanes)


def _lane_limits(report: EgressReport) -> Values:
    for lane in report.lanes:
        yield (str(lane.lane), "receiver"), lane.receiver_limited_share
        yield (str(lane.lane), "buffer"), lane.buffer_limited_share


TABLE: tuple[Metric, ...] = (
    Metric("links", "gauge", "{link}", "Links that are up", node=lambda found: found.links),
    Metric(
        "links_silent", "gauge", "{link}", "Links that have not reported for 5 s, of which nothing else is told",
        node=lambda found: found.links_silent,
    ),
    Metric(
        "links_left_out", "gauge", "{link}", f"Links beyond the first {MOST_LINKS}, which are told of nowhere else",
        node=lambda found: found.links_left_out,
    ),
    Metric(
        "lanes_left_out", "gauge", "{lane}", f"Lanes beyond the first {MOST_LANES}, which have no series of their own",
        node=lambda found: found.lanes_left_out,
    ),
    Metric("link.info", "gauge", "", "1; who the peer is", ("tenant",), lambda it: [((it.tenant,), 1)]),
    _gauge("report.timestamp", "s", "When the latest report was made, since 1970", lambda it: it.time_s),
    _gauge("report.interval", "s", "What the latest report covers", lambda it: it.interval_s),

    _gauge("goodput", "bit/s", "Payload that landed at the peer", lambda it: it.goodput_bps),
    _counter("landed", "By", "Payload that landed at the peer", lambda it: it.totals.landed_bytes),
    _counter("sent", "By", "Frames given to the kernel", lambda it: it.totals.sent_bytes),
    _counter("delivered", "By", "Acknowledged by the peer's kernel", lambda it: it.totals.delivered_bytes),
    _counter("wire", "By", "Sent by TCP, retransmissions included, headers not", lambda it: it.totals.wire_bytes),
    _counter("retransmitted", "By", "Sent again by TCP", lambda it: it.totals.retransmitted_bytes),
    _counter("segments", "{segment}", "Segments with data, retransmissions included", lambda it: it.totals.segments),
    _counter(
        "retransmitted_segments", "{segment}", "Segments sent again by TCP",
        lambda it: it.totals.retransmitted_segments,
    ),
    _counter(
        "spurious_segments", "{segment}", "Segments sent again that the peer had already",
        lambda it: it.totals.spurious_segments,
    ),
    _counter("delivered_segments", "{segment}", "Segments that arrived", lambda it: it.totals.delivered_segments),
    _counter(
        "marked_segments", "{segment}", "Segments that arrived with Congestion Experienced",
        lambda it: it.totals.marked_segments,
    ),
    _counter("timeouts", "{timeout}", "Retransmission timeouts of TCP", lambda it: it.totals.timeouts),
    _gauge("retransmission", "1", "Share of bytes sent that were sent again", lambda it: it.retransmitted_share),
    _gauge("loss", "1", "Share of segments sent again that the peer did not have", lambda it: it.lost_share),
    _gauge("mark", "1", "Share of segments that arrived with Congestion Experienced", lambda it: it.marked_share),

    Metric("rtt", "gauge", "s", "Round trip of TCP: p50 and p99 of the interval, min of minutes", ("stat",), _rtts),
    _gauge("queue_delay", "s", "Median round trip less the smallest", lambda it: it.queue_delay_s),

    _gauge("capacity", "bit/s", "What the path carries, headers included", lambda it: it.capacity_bps or None),
    _gauge(
        "capacity_is_lower_bound", "", "1: the path may carry more than kvwire_capacity_bits_per_second",
        lambda it: int(it.capacity_is_lower_bound),
    ),
    _gauge("path", "bit/s", "The latest capacity that was no lower bound", lambda it: it.path_bps or None),
    _gauge("path_age", "s", "Since the path was last seen to set the limit", lambda it: it.path_age_s),
    _gauge("utilisation", "1", "Share of the capacity that is used", lambda it: it.utilisation),
    _gauge("headroom", "bit/s", "Capacity that is not used", lambda it: it.headroom_bps),
    Metric("limited", "gauge", "1", "Share of time held back, by what", ("by",), _limits),
    _counter("idle", "s", "Time with nothing to send", lambda it: it.totals.idle_s),
    _counter("paced", "s", "Time in which the pacer held back", lambda it: it.totals.paced_s),
    _gauge(
        "pacing_refused", "", "1: the kernel would not pace a lane; the link's own pacer holds",
        lambda it: int(it.pacing_refused),
    ),

    Metric(
        "queued", "gauge", "By", "Ready and claimed by no lane", ("class",), _per_class(lambda it: it.queued_bytes)
    ),
    Metric(
        "oldest", "gauge", "s", "How long the oldest of these has been ready", ("class",),
        _per_class(lambda it: it.oldest_s),
    ),
    _gauge("unacked", "By", "Claimed and not acknowledged by the peer's engine", lambda it: it.unacked_bytes),
    _gauge("inflight", "By", "Sent and not acknowledged by the peer's kernel", lambda it: it.inflight_bytes),
    _gauge("unsent", "By", "In buffers of sockets and not yet sent", lambda it: it.unsent_bytes),
    _gauge("memory", "By", "Buffers and logs that the lanes hold", lambda it: it.memory_bytes),
    _gauge("eta_gib", "s", "Until a further GiB of class demand would have landed", lambda it: it.eta_gib_s),
    Metric("transfers", "gauge", "{transfer}", "Under way", ("direction", "class"), _transfers),

    _gauge("lanes.up", "{lane}", "Lanes that are up", lambda it: it.lanes_up),
    _gauge("lanes.wanted", "{lane}", "Lanes that the link wants", lambda it: it.lanes_wanted),
    _counter("lanes.lost", "{lane}", "Lanes that ended and were not asked to", lambda it: it.totals.lanes_lost),
    _gauge("lanes.skew", "1", "What the busiest lane carried over the mean of lanes, less 1", lambda it: it.lane_skew),
    Metric(
        "lanes.by_congestion", "gauge", "{lane}", "Lanes by the kernel's congestion control", ("congestion",),
        lambda it: (((name,), number) for name, number in it.congestion.items()),
    ),
    _counter("hedged", "By", "Cells sent once more, their lane made no progress", lambda it: it.totals.hedged_bytes),
    _counter("resent", "By", "Cells sent once more, their lane was lost", lambda it: it.totals.resent_bytes),
    _counter("resumes", "{resume}", "Times the link was resumed", lambda it: it.totals.resumes),

    _gauge("compressing", "", "1: automatic codecs encode", lambda it: int(it.compression == "on")),
    Metric(
        "compression_info", "gauge", "", "1; why automatic codecs encode or do not", ("reason",),
        lambda it: [((it.compression_reason,), 1)],
    ),
    _gauge(
        "compression", "1", "Payload over what automatic codecs leave of it", lambda it: it.compression_ratio or None
    ),
    _counter("encoded", "By", "Payload that went into codecs", lambda it: it.totals.encoded_bytes),
    _counter("encode", "s", "Time of workers that it took", lambda it: it.totals.encode_s),
    _counter("coded_plain", "By", "Payload that left coded, as it was", lambda it: it.totals.coded_plain_bytes),
    _counter("coded_wire", "By", "The same payload, as it left", lambda it: it.totals.coded_wire_bytes),
    _counter("decoded", "By", "Payload that came coded, as it was", lambda it: it.totals.decoded_bytes),
    _counter("decode", "s", "Time of workers that it took to decode", lambda it: it.totals.decode_s),
    _gauge("encode_rate", "bit/s", "Payload that a core here encodes by 'auto'", lambda it: it.encode_bps or None),
    _gauge("decode_rate", "bit/s", "Payload that a core here decodes of it", lambda it: it.decode_bps or None),
    _gauge("peer_decode_rate", "bit/s", "Payload that the peer can decode", lambda it: it.peer_decode_bps or None),
    _gauge("link_rate", "bit/s", "What the link is taken to carry beside that", lambda it: it.link_bps or None),

    Metric(
        "controller.info", "gauge", "", "1; which congestion controller", ("controller",),
        lambda it: [((it.controller,), 1)],
    ),
    _gauge("controller.pace", "bit/s", "Average rate it allows; absent: no cap", lambda it: it.pace_bps),
    _gauge("controller.peak", "bit/s", "Rate of bursts it allows; absent: no cap", lambda it: it.peak_bps),
    _gauge("controller.inflight_cap", "By", "Unacknowledged bytes it allows", lambda it: it.inflight_cap),
    _counter(
        "controller.faults", "{fault}", "Times it raised or decided nonsense", lambda it: it.totals.controller_faults
    ),
    _gauge("budget.max", "bit/s", "What a scheduler allows; absent: no budget", lambda it: it.budget_max_bps),
    _gauge("budget.min", "bit/s", "What it allows when the lease is over", lambda it: it.budget_min_bps),
    _gauge("budget.lease_left", "s", "Left of the lease", lambda it: it.lease_left_s),

    _gauge("listeners", "{listener}", "Callbacks and iterators that hear reports", lambda it: it.listeners.listening),
    _counter("listener.reports", "{report}", "Reports given to listeners", lambda it: it.listeners.delivered),
    _counter("listener.faults", "{fault}", "Calls of a listener that raised", lambda it: it.listeners.faults),
    _counter("listener.slow", "{call}", "Calls of a listener that took over 50 ms", lambda it: it.listeners.slow),
    _counter("listener.dropped", "{report}", "Reports lost to a slow iterator", lambda it: it.listeners.dropped),
    _counter("listener.removed", "{listener}", "Listeners that raised too often", lambda it: it.listeners.removed),

    Metric("lane.info", "gauge", "", "1; its kernel's congestion control", ("lane", "congestion"), _lane_congestion),
    _of_lane("gauge", "lane.age", "s", "Since it was added", lambda it: it.age_s),
    _of_lane("gauge", "lane.goodput", "bit/s", "Payload that landed", lambda it: it.goodput_bps),
    _of_lane("counter", "lane.wire", "By", "Sent by TCP, retransmissions included", lambda it: it.wire_bytes),
    _of_lane("counter", "lane.retransmitted", "By", "Sent again by TCP", lambda it: it.retransmitted_bytes),
    _of_lane("gauge", "lane.retransmission", "1", "Share of bytes sent again", lambda it: it.retransmitted_share),
    _of_lane("counter", "lane.timeouts", "{timeout}", "Retransmission timeouts of TCP", lambda it: it.timeouts),
    _of_lane("gauge", "lane.rtt", "s", "Round trip of TCP, smoothed", lambda it: it.rtt_s),
    _of_lane("gauge", "lane.inflight", "By", "Not acknowledged by the peer's kernel", lambda it: it.inflight_bytes),
    _of_lane("gauge", "lane.unacked", "By", "Not acknowledged by the peer's engine", lambda it: it.unacked_bytes),
    _of_lane("gauge", "lane.stalled", "s", "Without an acknowledgement that is due", lambda it: it.stalled_s),
    Metric("lane.limited", "gauge", "1", "Share of time held back, by what", ("lane", "by"), _lane_limits),
)  # fmt: skip
