"""Samples and states to make reports from: a path with a rate, and what its lanes say of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from typing import Any

from kvwire.congestion import Budget, Decision, LaneSample, PathSample
from kvwire.telemetry import (
    Callback,
    CompressionState,
    EgressReport,
    LinkState,
    ListenerCounts,
    Listeners,
    Remove,
    ReportBuilder,
)

MSS = 1448
HEADERS = 52
NOT_SUMMED = {"interval_s", "lanes", "rtt_s", "min_rtt_s", "queued_bytes", "oldest_s", "idle_s", "paced_s"}
OF_QUEUE = {"hedged_bytes", "resent_bytes"}
OF_QUEUE |= {"encoded_bytes", "encode_s", "coded_plain_bytes", "coded_wire_bytes", "decoded_bytes", "decode_s"}


def lane(number: int = 0, **more: Any) -> LaneSample:
    values: dict[str, Any] = dict.fromkeys(LaneSample._fields, 0)
    return LaneSample(**values | {"lane": number, "incarnation": 1, "congestion": "cubic", "age_s": 1.0} | more)


def busy_lane(number: int, nbytes: int, **more: Any) -> LaneSample:
    """It sent so many bytes, and so many arrived and landed; their framing is neglected."""
    moved = dict.fromkeys(("sent_bytes", "landed_bytes", "delivered_bytes", "wire_bytes"), nbytes)
    moved |= dict.fromkeys(("segments", "delivered_segments"), -(-nbytes // MSS))
    return lane(number, **moved | {"rtt_s": 0.04, "min_rtt_s": 0.04} | more)


def path(*lanes: LaneSample, interval_s: float = 0.1, **more: Any) -> PathSample:
    """Their sums."""
    summed = {it.name for it in fields(PathSample)} - NOT_SUMMED - OF_QUEUE
    values: dict[str, Any] = {name: sum(getattr(it, name) for it in lanes) for name in summed}
    values |= {"rtt_s": 0.04, "min_rtt_s": min((it.min_rtt_s for it in lanes), default=0.0)}
    values |= {"queued_bytes": (0, 0, 0), "oldest_s": (0.0, 0.0, 0.0), "idle_s": 0.0, "paced_s": 0.0}
    return PathSample(interval_s=interval_s, lanes=lanes, **values | dict.fromkeys(OF_QUEUE, 0) | more)


def at_rate(wire_bps: float, interval_s: float = 0.1, lanes: int = 1, **more: Any) -> PathSample:
    """A path that carried so much, headers included."""
    nbytes = round(wire_bps * interval_s / 8 * MSS / (MSS + HEADERS) / lanes)
    return path(*(busy_lane(number, nbytes) for number in range(lanes)), interval_s=interval_s, **more)


def state(**more: Any) -> LinkState:
    values: dict[str, Any] = {"time_s": time.time(), "link": "a", "peer": "10.0.0.2 port 7878", "decision": Decision()}
    return LinkState(**values | more)


def made(builder: ReportBuilder, now: float, **more: Any) -> EgressReport:
    return builder.report(now, state(**more), ListenerCounts())


def report(**more: Any) -> EgressReport:
    """One of a link with two busy lanes, after a second at 100 Mbit/s."""
    builder = ReportBuilder()
    for tick in range(10):
        builder.sample(0.1 * (tick + 1), at_rate(1e8, lanes=2))
    return made(builder, 1.0, **more)


@dataclass
class ALink:
    report: EgressReport | None


@dataclass
class ANode:
    """Has links, as a node has."""

    links: list[ALink] = field(default_factory=list)
    listeners: Listeners = field(default_factory=Listeners)

    def on_report(self, callback: Callback) -> Remove:
        return self.listeners.add(callback)


BUDGET = Budget(max_bps=5e8, min_bps=1e7, lease_s=60.0)
CODECS = CompressionState(
    on=True, reason="worth it", ratio=1.5, encode_Bps=1.5e9, decode_Bps=3e9, peer_decode_Bps=6e9, link_Bps=1.2e8
)
DECISION = Decision(pace_bps=4e8, peak_bps=8e8, inflight_cap=1 << 20)


def full_report(link: str = "a", lanes: int = 2) -> EgressReport:
    """One that has something to say to every metric."""
    builder = ReportBuilder()
    for tick in range(20):
        builder.sample(0.1 * (tick + 1), at_rate(1e8, lanes=lanes))
    state: dict[str, Any] = {
        "budget": BUDGET,
        "lease_left_s": 12.5,
        "decision": DECISION,
        "compression": CODECS,
        "outgoing": (0, 3, 1),
    }
    return made(builder, 2.0, link=link, tenant="acme", **state)
