"""From what the engine and the kernel count to what a controller is told: differences since the look before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter, sub
from statistics import median
from typing import TYPE_CHECKING

from kvwire.congestion import LaneSample, PathSample, TcpInfo, parse

if TYPE_CHECKING:
    from kvwire._ext.lanes import LaneStats, LinkStats

U32 = 0xFFFFFFFF
NO_INFO = TcpInfo()
MEMORY_NS = 150 * 10**9
"""How long an RTT is remembered as the smallest, at least; twice that at most."""


class Sampler:
    """Of one link."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[int, int], tuple[LaneStats | None, TcpInfo]] = {}
        self._link: LinkStats | None = None
        self._decoded = 0, 0  # bytes and nanoseconds, in all: what comes while nothing is sent is not lost
        self._smallest = math.inf, math.inf  # RTTs, seconds: since then, and in the MEMORY_NS before
        self._since_ns = 0

    def begin(self, link: LinkStats) -> None:
        """Something is to be sent after a pause, in which nothing was: count from here."""
        self._link = link

    def take(
        self, lanes: Sequence[LaneStats], link: LinkStats, congestion: Mapping[int, str], resumed: bool = False
    ) -> PathSample | None:
        """What happened since the last look, or since `begin`; None of the first one. `resumed`: so is this, after a
        pause, in which the kernel went on counting. What the engine has counted since `begin` belongs to the next one.

        `congestion`: the kernel's congestion control, by lane.
        """
        before = self._link
        if before is None or not resumed:
            self._link = link
        known, self._lanes = self._lanes, {}
        samples = []
        for stats in lanes:
            key = stats["lane"], stats["incarnation"]
            info = parse(stats["tcp_info"])
            was = known.get(key)
            self._lanes[key] = (was[0] if was else None) if resumed else stats, info
            samples.append(_lane(stats, info, was, link["now_ns"], congestion.get(stats["lane"], "")))
        min_rtt_s = self._min_rtt_s(link["now_ns"], samples)
        if before is None or resumed or link["now_ns"] <= before["now_ns"]:
            return None

        def total(name: str) -> int:
            return sum(map(attrgetter(name), samples))

        decoded, self._decoded = self._decoded, (link["decoded_bytes"], link["decode_ns"])
        weights = [1 + sample.inflight_bytes for sample in samples]
        return PathSample(
            interval_s=(link["now_ns"] - before["now_ns"]) / 1e9,
            lanes=tuple(samples),
            sent_bytes=link["sent_bytes"] - before["sent_bytes"],
            landed_bytes=link["acked_bytes"] - before["acked_bytes"],
            delivered_bytes=total("delivered_bytes"),
            retransmitted_bytes=total("retransmitted_bytes"),
            wire_bytes=total("wire_bytes"),
            segments=total("segments"),
            retransmitted_segments=total("retransmitted_segments"),
            spurious_segments=total("spurious_segments"),
            delivered_segments=total("delivered_segments"),
            marked_segments=total("marked_segments"),
            timeouts=total("timeouts"),
            rtt_s=sum(w * sample.rtt_s for w, sample in zip(weights, samples, strict=True)) / max(1, sum(weights)),
            min_rtt_s=min_rtt_s,
            queued_bytes=link["queued_bytes"],
            oldest_s=(link["oldest_ns"][0] / 1e9, link["oldest_ns"][1] / 1e9, link["oldest_ns"][2] / 1e9),
            idle_s=(link["idle_ns"] - before["idle_ns"]) / 1e9,
            paced_s=(link["paced_ns"] - before["paced_ns"]) / 1e9,
            hedged_bytes=link["hedged_bytes"] - before["hedged_bytes"],
            resent_bytes=link["resent_bytes"] - before["resent_bytes"],
            encoded_bytes=link["encoded_bytes"] - before["encoded_bytes"],
            encode_s=(link["encode_ns"] - before["encode_ns"]) / 1e9,
            coded_plain_bytes=link["coded_plain_bytes"] - before["coded_plain_bytes"],
            coded_wire_bytes=link["coded_wire_bytes"] - before["coded_wire_bytes"],
            decoded_bytes=link["decoded_bytes"] - decoded[0],
            decode_s=(link["decode_ns"] - decoded[1]) / 1e9,
        )

    def _min_rtt_s(self, now_ns: int, samples: Sequence[LaneSample]) -> float:
        """The smallest smoothed RTT, of the middle one of the lanes, hand-shakes included.

        The kernel's own is the smallest of single segments: where a path reorders, of one that overtook all others. It
        moves the smoothed RTT of a lane that sends little, too, but not of half of the lanes at once.
        """
        latest, earlier = self._smallest
        if now_ns - self._since_ns > MEMORY_NS:
            latest, earlier, self._since_ns = math.inf, latest, now_ns
        measured = [sample.rtt_s for sample in samples if sample.rtt_s]
        latest = min(latest, median(measured) if measured else math.inf)
        self._smallest = latest, earlier
        found = min(self._smallest)
        return found if samples and found < math.inf else 0.0


def _lane(
    stats: LaneStats, info: TcpInfo, was: tuple[LaneStats | None, TcpInfo] | None, now_ns: int, congestion: str
) -> LaneSample:
    before, info_before = was or (None, NO_INFO)
    did = TcpInfo._make(map(sub, info, info_before))
    stalled_s = stats["stalled_ns"] / 1e9
    # By position, in the order of LaneSample: names would take as long as all the rest.
    return LaneSample(
        stats["lane"],
        stats["incarnation"],
        congestion,
        (now_ns - stats["added_ns"]) / 1e9,  # age_s
        stats["sent_bytes"] - (before["sent_bytes"] if before else 0),
        stats["acked_bytes"] - (before["acked_bytes"] if before else 0),  # landed_bytes
        did.bytes_acked,
        did.bytes_retrans,
        did.bytes_sent,
        # The kernel counts segments in 32 bits: at 10 Gbit/s on one lane they begin anew after 1.4 hours.
        did.data_segs_out & U32,
        did.total_retrans & U32,
        did.dsack_dups & U32,
        did.delivered & U32,
        did.delivered_ce & U32,
        did.total_rto,
        info.rtt_us / 1e6,
        # The kernel says ~0 of a connection that has measured none.
        info.min_rtt_us / 1e6 if info.min_rtt_us < 1 << 31 else 0.0,
        info.unacked * info.snd_mss,  # inflight_bytes
        info.notsent_bytes,
        stats["unacked_bytes"],
        stalled_s,
        # An idle connection has not heard anything either: what counts is since it waits for something.
        min(stalled_s, info.last_ack_recv_ms / 1e3) if info.unacked else 0.0,  # silent_s
        did.busy_us / 1e6,
        did.rwnd_limited_us / 1e6,
        did.sndbuf_limited_us / 1e6,
    )
