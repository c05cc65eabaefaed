"""What a sender's own reports say of a run, in the few numbers that are compared with what the emulator counted."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import kvwire
from kvwire.emulate import Counters

REPORT_S = 0.1
"""Interval of the reports. Waiting for one must be over before a quiet lane counts as idle, which is an RTO."""


@dataclass(frozen=True, slots=True)
class Reported:
    """Of one `kvwire.EgressReport`: the interval's, and totals of the link until then."""

    interval_s: float
    delivered_bps: float
    capacity_bps: float
    lower_bound: bool
    wire_bytes: int
    retransmitted_bytes: int
    retransmitted_segments: int
    spurious_segments: int
    timeouts: int
    lanes_lost: int
    lanes_wanted: int

    @classmethod
    def of(cls, report: kvwire.EgressReport) -> Reported:
        totals = report.totals
        return cls(
            report.interval_s,
            report.delivered_bps,
            report.capacity_bps,
            report.capacity_is_lower_bound,
            totals.wire_bytes,
            totals.retransmitted_bytes,
            totals.retransmitted_segments,
            totals.spurious_segments,
            totals.timeouts,
            totals.lanes_lost,
            report.lanes_wanted,
        )


def grown(runs: Sequence[Sequence[Reported]], name: str) -> int:
    """By how much a total grew in all runs together; each begins with the report before it."""
    return sum(getattr(rows[-1], name) - getattr(rows[0], name) for rows in runs)


def summary(runs: Sequence[Sequence[Reported]]) -> dict[str, Any]:
    """For a record."""
    sent = grown(runs, "wire_bytes")
    return {
        "retransmitted_share": grown(runs, "retransmitted_bytes") / sent if sent else 0.0,
        "timeouts": grown(runs, "timeouts"),
        "lanes_lost": grown(runs, "lanes_lost"),
        "lanes_most": max(row.lanes_wanted for rows in runs for row in rows),
    }


def beside(
    runs: Sequence[Sequence[Reported]], counted: Sequence[Mapping[str, Counters]], rate_bps: float
) -> dict[str, Any]:
    """The reports' figures and the emulator's of the same runs, for a record.

    The utilisation of a whole run: what was delivered over the capacity, median of the reports.
    """
    rows = [row for run in runs for row in run[1:]]
    there = [ways["there"] for ways in counted]
    seconds = sum(row.interval_s for row in rows)
    arrived_bps = 8 * sum(way.bytes_out for way in there) / seconds
    delivered_bps = sum(row.delivered_bps * row.interval_s for row in rows) / seconds
    capacity_bps = statistics.median(row.capacity_bps for row in rows)
    used, truly_used = delivered_bps / capacity_bps if capacity_bps else 0.0, arrived_bps / rate_bps
    lost = grown(runs, "retransmitted_segments") - grown(runs, "spurious_segments")
    dropped = sum(way.lost + way.overflowed + way.black_holed for way in there)
    return {
        "delivered_bps": delivered_bps,
        "emulator_delivered_bps": arrived_bps,
        "delivered_difference": difference(delivered_bps, arrived_bps),
        "capacity_bps": capacity_bps,
        "capacity_difference": difference(capacity_bps, rate_bps),
        "lower_bound_share": sum(row.interval_s for row in rows if row.lower_bound) / seconds,
        "utilisation": used,
        "emulator_utilisation": truly_used,
        "utilisation_difference": difference(used, truly_used),
        "lost_packets": lost,
        "emulator_dropped_packets": dropped,
        "lost_difference": difference(lost, dropped),
    }


def difference(reported: float, counted: float) -> float | None:
    """Relative to what the emulator counted; None where it counted nothing."""
    return reported / counted - 1 if counted else None
