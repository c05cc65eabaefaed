"""From what the engine and the kernel count to what a controller is told: differences since the look before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvwire.congestion import LaneSample, PathSample, TcpInfo, parse

if TYPE_CHECKING:
    from kvwire._ext.lanes import LaneStats, LinkStats


class Sampler:
    """Of one link."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[int, int], tuple[LaneStats, TcpInfo]] = {}
        self._link: LinkStats | None = None

    def take(
        self, lanes: Sequence[LaneStats], link: LinkStats, congestion: Mapping[int, str], resumed: bool = False
    ) -> PathSample | None:
        """What happened since the last look; None of the first one. `resumed`: so is this, after a pause.

        `congestion`: the kernel's congestion control, by lane.
        """
        before, self._link = self._link, link
        known, self._lanes = self._lanes, {}
        samples = []
        for stats in lanes:
            key = stats["lane"], stats["incarnation"]
            info = parse(stats["tcp_info"])
            self._lanes[key] = stats, info
            was = known.get(key)
            samples.append(_lane(stats, info, was, link["now_ns"], congestion.get(stats["lane"], "")))
        if before is None or resumed or link["now_ns"] <= before["now_ns"]:
            return None

        def total(name: str) -> int:
            return sum(getattr(sample, name) for sample in samples)

        weights = [1 + sample.inflight_bytes for sample in samples]
        measured = [sample.min_rtt_s for sample in samples if sample.min_rtt_s]
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
            min_rtt_s=min(measured, default=0.0),
            queued_bytes=link["queued_bytes"],
            oldest_s=(link["oldest_ns"][0] / 1e9, link["oldest_ns"][1] / 1e9, link["oldest_ns"][2] / 1e9),
            idle_s=(link["idle_ns"] - before["idle_ns"]) / 1e9,
            paced_s=(link["paced_ns"] - before["paced_ns"]) / 1e9,
            hedged_bytes=link["hedged_bytes"] - before["hedged_bytes"],
            resent_bytes=link["resent_bytes"] - before["resent_bytes"],
        )


def _lane(
    stats: LaneStats, info: TcpInfo, was: tuple[LaneStats, TcpInfo] | None, now_ns: int, congestion: str
) -> LaneSample:
    before, info_before = was or (None, TcpInfo())
    stalled_s = stats["stalled_ns"] / 1e9
    return LaneSample(
        lane=stats["lane"],
        incarnation=stats["incarnation"],
        congestion=congestion,
        age_s=(now_ns - stats["added_ns"]) / 1e9,
        sent_bytes=stats["sent_bytes"] - (before["sent_bytes"] if before else 0),
        landed_bytes=stats["acked_bytes"] - (before["acked_bytes"] if before else 0),
        delivered_bytes=info.bytes_acked - info_before.bytes_acked,
        retransmitted_bytes=info.bytes_retrans - info_before.bytes_retrans,
        wire_bytes=info.bytes_sent - info_before.bytes_sent,
        segments=_u32(info.data_segs_out - info_before.data_segs_out),
        retransmitted_segments=_u32(info.total_retrans - info_before.total_retrans),
        spurious_segments=_u32(info.dsack_dups - info_before.dsack_dups),
        delivered_segments=_u32(info.delivered - info_before.delivered),
        marked_segments=_u32(info.delivered_ce - info_before.delivered_ce),
        timeouts=info.total_rto - info_before.total_rto,
        rtt_s=info.rtt_us / 1e6,
        # The kernel says ~0 of a connection that has measured none.
        min_rtt_s=info.min_rtt_us / 1e6 if info.min_rtt_us < 1 << 31 else 0.0,
        inflight_bytes=info.unacked * info.snd_mss,
        unsent_bytes=info.notsent_bytes,
        unacked_bytes=stats["unacked_bytes"],
        stalled_s=stalled_s,
        # An idle connection has not heard anything either: what counts is since it waits for something.
        silent_s=min(stalled_s, info.last_ack_recv_ms / 1e3) if info.unacked else 0.0,
        busy_s=(info.busy_us - info_before.busy_us) / 1e6,
        receiver_limited_s=(info.rwnd_limited_us - info_before.rwnd_limited_us) / 1e6,
        buffer_limited_s=(info.sndbuf_limited_us - info_before.sndbuf_limited_us) / 1e6,
    )


def _u32(difference: int) -> int:
    """The kernel counts segments in 32 bits: at 10 Gbit/s on one lane they begin anew after 1.4 hours."""
    return difference & 0xFFFFFFFF
