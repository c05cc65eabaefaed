"""From samples to reports. Pure: `now` is an argument, in seconds, and never goes back."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import add, attrgetter
from typing import Any

from kvwire.congestion import Budget, Decision, LaneSample, PathSample
from kvwire.telemetry.capacity import Capacity
from kvwire.telemetry.reports import EgressReport, LaneReport, ListenerCounts, PerClass, Totals
from kvwire.telemetry.round_trips import RoundTrips

HEADER_BYTES, HEADER_BYTES_IPV6 = 52, 72
"""Of a packet: IPv4 20 or IPv6 40, TCP 20, timestamps 12 (RFC 791, 8200, 9293, 7323)."""
PAYLOAD_SHARE = 0.96
"""Of the wire, until something has landed: 64 KiB in a frame of 64 B more, 1448 B in a packet of 1500."""
GIB = 1 << 30

_PATH = (
    "sent_bytes", "landed_bytes", "delivered_bytes", "retransmitted_bytes", "wire_bytes", "segments",
    "retransmitted_segments", "spurious_segments", "delivered_segments", "marked_segments", "timeouts", "idle_s",
    "paced_s", "hedged_bytes", "resent_bytes", "encoded_bytes", "encode_s", "coded_plain_bytes", "coded_wire_bytes",
    "decoded_bytes", "decode_s",
)  # fmt: skip
_LANE = (
    "landed_bytes", "wire_bytes", "retransmitted_bytes", "timeouts", "receiver_limited_s", "buffer_limited_s",
)  # fmt: skip
_WIRE, _SEGMENTS = _PATH.index("wire_bytes"), _PATH.index("segments")
_path_values, _lane_values = attrgetter(*_PATH), attrgetter(*_LANE)

_NO_SAMPLE = PathSample(
    interval_s=0.0, lanes=(), sent_bytes=0, landed_bytes=0, delivered_bytes=0, retransmitted_bytes=0, wire_bytes=0,
    segments=0, retransmitted_segments=0, spurious_segments=0, marked_segments=0, timeouts=0, rtt_s=0.0, min_rtt_s=0.0,
    queued_bytes=(0, 0, 0), oldest_s=(0.0, 0.0, 0.0), idle_s=0.0, paced_s=0.0, hedged_bytes=0, resent_bytes=0,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionState:
    """What a link thinks of its automatic codecs, now. Rates are bytes per second, 0.0 where they are not known."""

    on: bool = False
    reason: str = ""
    ratio: float = 0.0
    """Of plain bytes to those on the wire; 0.0: nothing was sampled."""
    encode_Bps: float = 0.0
    """Plain, of a core here."""
    decode_Bps: float = 0.0
    """Plain, of a core here."""
    peer_decode_Bps: float = 0.0
    """Plain, all of the peer's spare cores together."""
    link_Bps: float = 0.0
    """On the wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """What a link knows besides its samples, now. Numbers of events are since the link was made."""

    time_s: float
    """Seconds since 1970."""
    link: str
    """Unique in its node."""
    peer: str
    decision: Decision
    """What the controller wants; what is applied, where a budget allows less."""
    tenant: str = ""
    lanes_wanted: int = 0
    lanes_lost: int = 0
    resumes: int = 0
    controller: str = "none"
    controller_faults: int = 0
    budget: Budget | None = None
    lease_left_s: float = 0.0
    outgoing: PerClass = (0, 0, 0)
    incoming: PerClass = (0, 0, 0)
    memory_bytes: int = 0
    pacing_refused: bool = False
    compression: CompressionState = CompressionState()


class _Lane:
    """One incarnation of one lane: sums as in _LANE, and what they were when the interval began."""

    __slots__ = ("before", "sums")

    def __init__(self) -> None:
        self.sums: Sequence[float] = (0,) * len(_LANE)
        self.before: Sequence[float] = self.sums


class ReportBuilder:
    """Of one link and one interval between reports. Give it every sample, ask for a report when one is due."""

    def __init__(self, header_bytes: int = HEADER_BYTES) -> None:
        self._header_bytes = header_bytes
        self._sums: Sequence[float] = (0,) * len(_PATH)
        self._sampled_s = self._lane_s = self._receiver_limited_s = self._buffer_limited_s = 0.0
        self._lanes: dict[tuple[int, int], _Lane] = {}
        self._capacity = Capacity()
        self._latest = _NO_SAMPLE
        self._wire_share = 1.0  # of payload, in the latest sample that sent some
        # As of when the interval began, and since.
        self._before = Totals()
        self._rtts = RoundTrips()

    def fork(self) -> ReportBuilder:
        """Another one that knows what this one knows, and whose first interval begins here."""
        other = copy.copy(self)
        other._capacity = copy.deepcopy(self._capacity)
        other._lanes = {key: copy.copy(lane) for key, lane in self._lanes.items()}
        other._begin(other._totals(other._before))
        return other

    def sample(self, now: float, sample: PathSample) -> None:
        """What the link did since the sample before."""
        self._latest = sample
        if sample.landed_bytes:
            self._wire_share = sample.wire_share
        self._sums = tuple(map(add, self._sums, _path_values(sample)))
        self._sampled_s += sample.interval_s
        self._lane_s += sample.interval_s * len(sample.lanes)
        lanes: dict[tuple[int, int], _Lane] = {}
        for it in sample.lanes:
            lane = lanes[it.lane, it.incarnation] = self._lanes.get((it.lane, it.incarnation)) or _Lane()
            lane.sums = tuple(map(add, lane.sums, _lane_values(it)))
            self._receiver_limited_s += it.receiver_limited_s
            self._buffer_limited_s += it.buffer_limited_s
        self._lanes = lanes
        self._rtts.add(tuple([it.rtt_s for it in sample.lanes if it.rtt_s and (it.segments or it.inflight_bytes)]))
        sent = sample.wire_bytes + self._header_bytes * sample.segments
        arrived = sample.delivered_segments * self._packet_bytes()
        self._capacity.add(now, sample.interval_s, sent, arrived, sample.idle_s + sample.paced_s)

    def report(self, now: float, state: LinkState, listeners: ListenerCounts) -> EgressReport:
        """What happened since the report before, and how things are now. The next interval begins here."""
        totals, sample = self._totals(state), self._latest
        did = _difference(totals, self._before)
        seconds = did.sampled_s
        lanes = tuple(self._lane_report(it, seconds) for it in sample.lanes)
        rtts = self._rtts.ordered() or sorted(it.rtt_s for it in sample.lanes if it.rtt_s)
        rtt_p50_s = _rank(rtts, 0.5)
        capacity_bps, is_lower_bound = self._capacity.estimate(now)
        path_bps = max(capacity_bps, self._capacity.path_bps) if is_lower_bound else capacity_bps
        path_seen_at = self._capacity.path_seen_at
        delivered_bps = _rate(did.delivered_segments * self._packet_bytes(), seconds)
        lost_segments = max(0, did.retransmitted_segments - did.spurious_segments)
        decision, budget, codecs = state.decision, state.budget, state.compression
        self._begin(totals)
        return EgressReport(
            time_s=state.time_s,
            interval_s=seconds,
            link=state.link,
            peer=state.peer,
            tenant=state.tenant,
            goodput_bps=_rate(did.landed_bytes, seconds),
            sent_bps=_rate(did.sent_bytes, seconds),
            wire_bps=_rate(did.wire_bytes + self._header_bytes * did.segments, seconds),
            delivered_bps=delivered_bps,
            retransmitted_bytes=did.retransmitted_bytes,
            retransmitted_share=_share(did.retransmitted_bytes, did.wire_bytes),
            lost_segments=lost_segments,
            lost_share=_share(lost_segments, did.segments),
            marked_segments=did.marked_segments,
            marked_share=_share(did.marked_segments, did.segments),
            timeouts=did.timeouts,
            rtt_p50_s=rtt_p50_s,
            rtt_p99_s=_rank(rtts, 0.99),
            rtt_min_s=sample.min_rtt_s,
            queue_delay_s=max(0.0, rtt_p50_s - sample.min_rtt_s),
            capacity_bps=capacity_bps,
            capacity_is_lower_bound=is_lower_bound,
            path_bps=self._capacity.path_bps,
            path_age_s=None if path_seen_at is None else now - path_seen_at,
            utilisation=_share(delivered_bps, capacity_bps),
            headroom_bps=max(0.0, capacity_bps - delivered_bps),
            application_limited_share=_share(did.idle_s, seconds),
            pacing_limited_share=_share(did.paced_s, seconds),
            pacing_refused=state.pacing_refused,
            receiver_limited_share=_share(did.receiver_limited_s, did.lane_s),
            buffer_limited_share=_share(did.buffer_limited_s, did.lane_s),
            queued_bytes=sample.queued_bytes,
            oldest_s=sample.oldest_s,
            unacked_bytes=sum(it.unacked_bytes for it in lanes),
            inflight_bytes=sum(it.inflight_bytes for it in lanes),
            unsent_bytes=sum(it.unsent_bytes for it in lanes),
            memory_bytes=state.memory_bytes,
            lanes_up=len(lanes),
            lanes_wanted=state.lanes_wanted,
            lanes_lost=did.lanes_lost,
            lane_skew=_skew([it.goodput_bps for it in lanes]),
            congestion=dict(Counter(it.congestion for it in lanes)),
            hedged_bytes=did.hedged_bytes,
            resent_bytes=did.resent_bytes,
            resumes=did.resumes,
            compression="on" if codecs.on else "off",
            compression_reason=codecs.reason,
            compression_ratio=codecs.ratio,
            coded_plain_bytes=did.coded_plain_bytes,
            coded_wire_bytes=did.coded_wire_bytes,
            encode_bps=8 * codecs.encode_Bps,
            decode_bps=8 * codecs.decode_Bps,
            peer_decode_bps=8 * codecs.peer_decode_Bps,
            link_bps=8 * codecs.link_Bps,
            outgoing=state.outgoing,
            incoming=state.incoming,
            eta_gib_s=self._eta_gib_s(path_bps, rtt_p50_s, decision.pace_bps),
            controller=state.controller,
            pace_bps=decision.pace_bps,
            peak_bps=decision.peak_bps,
            inflight_cap=decision.inflight_cap,
            controller_faults=did.controller_faults,
            budget_max_bps=None if budget is None else budget.max_bps,
            budget_min_bps=None if budget is None else budget.min_bps,
            lease_left_s=None if budget is None else state.lease_left_s,
            totals=totals,
            listeners=listeners,
            lanes=lanes,
        )

    def _lane_report(self, it: LaneSample, seconds: float) -> LaneReport:
        lane = self._lanes[it.lane, it.incarnation]
        landed, wire, retransmitted, timeouts, _, _ = (int(value) for value in lane.sums)
        did = [now - before for now, before in zip(lane.sums, lane.before, strict=True)]
        return LaneReport(
            lane=it.lane,
            incarnation=it.incarnation,
            congestion=it.congestion,
            age_s=it.age_s,
            goodput_bps=_rate(did[0], seconds),
            landed_bytes=landed,
            wire_bytes=wire,
            retransmitted_bytes=retransmitted,
            retransmitted_share=_share(did[2], did[1]),
            timeouts=timeouts,
            rtt_s=it.rtt_s,
            rtt_min_s=it.min_rtt_s,
            inflight_bytes=it.inflight_bytes,
            unsent_bytes=it.unsent_bytes,
            unacked_bytes=it.unacked_bytes,
            stalled_s=it.stalled_s,
            receiver_limited_share=_share(did[4], seconds),
            buffer_limited_share=_share(did[5], seconds),
        )

    def _eta_gib_s(self, path_bps: float, rtt_s: float, pace_bps: float | None) -> float | None:
        payload_bps = PAYLOAD_SHARE * path_bps if pace_bps is None else min(PAYLOAD_SHARE * path_bps, pace_bps)
        if payload_bps <= 0 or not self._latest.lanes:
            return None
        urgent, demand, _ = self._latest.queued_bytes
        ahead = urgent + demand + sum(it.unacked_bytes for it in self._latest.lanes)
        return 8 * self._wire_share * (ahead + GIB) / payload_bps + rtt_s

    def _packet_bytes(self) -> float:
        """Mean length on the wire of what has been sent so far."""
        wire, segments = self._sums[_WIRE], self._sums[_SEGMENTS]
        return self._header_bytes + (wire / segments if segments else 0.0)

    def _totals(self, events: LinkState | Totals) -> Totals:
        sums: dict[str, Any] = dict(zip(_PATH, self._sums, strict=True))
        return Totals(
            sampled_s=self._sampled_s,
            lane_s=self._lane_s,
            receiver_limited_s=self._receiver_limited_s,
            buffer_limited_s=self._buffer_limited_s,
            lanes_lost=events.lanes_lost,
            resumes=events.resumes,
            controller_faults=events.controller_faults,
            **sums,
        )

    def _begin(self, totals: Totals) -> None:
        self._before, self._rtts = totals, RoundTrips()
        for lane in self._lanes.values():
            lane.before = lane.sums


def _difference(now: Totals, before: Totals) -> Totals:
    found: dict[str, Any] = {it.name: getattr(now, it.name) - getattr(before, it.name) for it in fields(Totals)}
    return Totals(**found)


def _rate(nbytes: float, seconds: float) -> float:
    """Bits per second."""
    return 8 * nbytes / seconds if seconds else 0.0


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole else 0.0


def _rank(values: Sequence[float], share: float) -> float:
    """The smallest of the sorted values that so many are not above (nearest rank); 0.0 of none."""
    return values[math.ceil(share * len(values)) - 1] if values else 0.0


def _skew(rates: Sequence[float]) -> float:
    return max(rates) * len(rates) / sum(rates) - 1 if any(rates) else 0.0
