"""What an `EgressReport` says: one link, one direction, one interval. docs/telemetry.md has the table of all fields.

Each field's docstring has the unit first and the source last: what the engine counts, the kernel's TCP_INFO
(linux/tcp.h), or the link. What the kernel of this host does not tell is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

PerClass = tuple[int, int, int]
"""By class: urgent, demand, background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums since the link was made; of lanes that have ended, too. They never fall."""

    sampled_s: float = 0.0
    """Seconds that samples cover. Engine."""
    lane_s: float = 0.0
    """Seconds, summed over lanes: what the lanes' shares are shares of. Engine."""
    landed_bytes: int = 0
    """Bytes of payload, as it lies in memory, that the peer's engine has acknowledged. Engine."""
    sent_bytes: int = 0
    """Bytes given to the kernel: frames, with headers and tags. Engine."""
    delivered_bytes: int = 0
    """Bytes that the peer's kernel has acknowledged. tcpi_bytes_acked."""
    wire_bytes: int = 0
    """Bytes that TCP has sent, first transmissions and retransmissions, without its headers. tcpi_bytes_sent."""
    retransmitted_bytes: int = 0
    """Bytes that TCP has sent again. tcpi_bytes_retrans."""
    segments: int = 0
    """Segments with data that TCP has sent, retransmissions included. tcpi_data_segs_out."""
    retransmitted_segments: int = 0
    """Segments that TCP has sent again. tcpi_total_retrans."""
    spurious_segments: int = 0
    """Segments, of those, that the peer had already. tcpi_dsack_dups."""
    delivered_segments: int = 0
    """Segments that have arrived, out of order too. tcpi_delivered."""
    marked_segments: int = 0
    """Segments that arrived with the mark Congestion Experienced. tcpi_delivered_ce."""
    timeouts: int = 0
    """Retransmission timeouts, as a number. tcpi_total_rto."""
    hedged_bytes: int = 0
    """Bytes of cells sent once more because their lane made no progress. Engine."""
    resent_bytes: int = 0
    """Bytes of cells sent once more because their lane was lost. Engine."""
    idle_s: float = 0.0
    """Seconds with nothing in the send queue. Engine."""
    paced_s: float = 0.0
    """Seconds in which something was in the queue and the pacer held it back. Engine."""
    receiver_limited_s: float = 0.0
    """Seconds, summed over lanes, held back by the receiver's window. tcpi_rwnd_limited."""
    buffer_limited_s: float = 0.0
    """Seconds, summed over lanes, held back by the send buffer. tcpi_sndbuf_limited."""
    encoded_bytes: int = 0
    """Bytes of payload that went into codecs, whether or not it shrank. Engine."""
    encode_s: float = 0.0
    """Seconds that it took, summed over workers. Engine."""
    coded_plain_bytes: int = 0
    """Bytes of payload that left coded, as it was before. Engine."""
    coded_wire_bytes: int = 0
    """Bytes of the same payload, as it left. Engine."""
    decoded_bytes: int = 0
    """Bytes of payload that came coded, as it was before. Engine."""
    decode_s: float = 0.0
    """Seconds that it took to decode it, summed over workers. Engine."""
    lanes_lost: int = 0
    """Lanes that have ended and were not asked to, as a number. Link."""
    resumes: int = 0
    """Times that the link was resumed after its control connection was lost, as a number. Link."""
    controller_faults: int = 0
    """Times that the controller raised or decided nonsense, as a number. Link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerCounts:
    """What became of reports, over all listeners of this stream of reports since the link was made."""

    listening: int = 0
    """Callbacks and iterators, now."""
    delivered: int = 0
    """Reports given to a callback or put into an iterator's queue."""
    faults: int = 0
    """Calls of a callback that raised."""
    slow: int = 0
    """Calls of a callback that took more than 50 ms of the event loop's time."""
    dropped: int = 0
    """Reports that an iterator's full queue lost: whoever iterates is slow."""
    removed: int = 0
    """Callbacks that were dropped because they raised ten times in a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneReport:
    """One lane that is up. Rates and shares are of the interval, totals of the lane's life."""

    lane: int
    """Number of the lane in its link."""
    incarnation: int
    """How often that number has been dialled."""
    congestion: str
    """The kernel's congestion control under it. TCP_CONGESTION."""
    age_s: float
    """Seconds since it was added."""
    goodput_bps: float
    """Bits per second of payload acknowledged by the peer's engine. Engine."""
    landed_bytes: int
    """Bytes of such payload, in all. Engine."""
    wire_bytes: int
    """Bytes that TCP has sent, retransmissions included, in all. tcpi_bytes_sent."""
    retransmitted_bytes: int
    """Bytes that TCP has sent again, in all. tcpi_bytes_retrans."""
    retransmitted_share: float
    """Share, 0 to 1, of what TCP sent in the interval that it sent again."""
    timeouts: int
    """Retransmission timeouts, in all. tcpi_total_rto."""
    rtt_s: float
    """Seconds, smoothed, now. tcpi_rtt."""
    rtt_min_s: float
    """Seconds, smallest of the last minutes. tcpi_min_rtt."""
    inflight_bytes: int
    """Bytes sent and not acknowledged by the peer's kernel, now. tcpi_unacked."""
    unsent_bytes: int
    """Bytes in the socket's buffer and not yet sent, now. tcpi_notsent_bytes."""
    unacked_bytes: int
    """Bytes claimed from the queue and not acknowledged by the peer's engine, now. Engine."""
    stalled_s: float
    """Seconds that frames have waited for an acknowledgement of the peer's engine and none came, now. Engine."""
    receiver_limited_share: float
    """Share, 0 to 1, of the interval held back by the receiver's window. tcpi_rwnd_limited."""
    buffer_limited_share: float
    """Share, 0 to 1, of the interval held back by the send buffer. tcpi_sndbuf_limited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressReport:
    """What one link sent in one interval, what the path did with it, and what the link could do next."""

    time_s: float
    """Seconds since 1970 (UTC), at the end of the interval. Clock of this host."""
    interval_s: float
    """Seconds that the report covers. Engine."""
    link: str
    """Name of the link, unique in its node. Link."""
    peer: str
    """Address of the peer. Link."""
    tenant: str
    """Tenant of the peer by its certificate; empty on a plain link. Link."""

    goodput_bps: float
    """Bits per second of payload that landed, as it lies in memory: the peer's engine has acknowledged it. Engine."""
    sent_bps: float
    """Bits per second given to the kernel: frames, with headers and tags. Engine."""
    wire_bps: float
    """Bits per second that left this host, retransmissions and TCP/IP headers included, as estimated: tcpi_bytes_sent,
    and 52 bytes for each of tcpi_data_segs_out (72 over IPv6: IP, TCP, timestamps)."""
    delivered_bps: float
    """Bits per second that arrived, out of order too: tcpi_delivered segments, each as long as those that left are on
    average, with the same headers."""
    retransmitted_bytes: int
    """Bytes that TCP sent again. tcpi_bytes_retrans."""
    retransmitted_share: float
    """Share, 0 to 1, of the bytes TCP sent that it sent again. tcpi_bytes_retrans of tcpi_bytes_sent."""
    lost_segments: int
    """Segments sent again, without those that the peer had already. tcpi_total_retrans less tcpi_dsack_dups."""
    lost_share: float
    """Share, 0 to 1, of these in all segments with data. tcpi_data_segs_out."""
    marked_segments: int
    """Segments that arrived with the mark Congestion Experienced. tcpi_delivered_ce."""
    marked_share: float
    """Share, 0 to 1, of these in all segments with data. tcpi_data_segs_out."""
    timeouts: int
    """Retransmission timeouts, as a number. tcpi_total_rto."""

    rtt_p50_s: float
    """Seconds, median over the samples of lanes that were sending; where none was, the latest of all. tcpi_rtt."""
    rtt_p99_s: float
    """Seconds, 99th percentile over the same samples. tcpi_rtt."""
    rtt_min_s: float
    """Seconds, smallest smoothed one of the last minutes, of the middle lane, hand-shakes included. tcpi_rtt."""
    queue_delay_s: float
    """Seconds that packets wait in queues of the path, with somebody else's: median less smallest RTT."""

    capacity_bps: float
    """Bits per second, headers included, that the path carries: the most of any half second of the last 10 s, where a
    half second counts the smaller of what left and what arrived (`Capacity`). 0.0: nothing is known."""
    capacity_is_lower_bound: bool
    """Whether the path may carry more: in none of these half seconds was it the path that set the limit. In all of them
    the application had nothing to send, or the pacer held back, for 5 % of the time, or the rate was still growing."""
    path_bps: float
    """Bits per second of the latest capacity that was no lower bound, however old; 0.0: there was none."""
    path_age_s: float | None
    """Seconds since the path was last seen to set the limit; None: never."""
    utilisation: float
    """Share, 0 to 1, of `capacity_bps` that `delivered_bps` is; 0.0 where capacity is unknown. At most this much where
    capacity is a lower bound."""
    headroom_bps: float
    """Bits per second of `capacity_bps` that are not used. At least this much where capacity is a lower bound. It knows
    nothing of budgets."""

    application_limited_share: float
    """Share, 0 to 1, of the interval with nothing in the send queue. Engine."""
    pacing_limited_share: float
    """Share, 0 to 1, of the interval in which the pacer held back what was queued. Engine."""
    pacing_refused: bool
    """Whether this host would not have its kernel pace a lane, since the link was made: the link's own pacer holds, in
    larger bursts. SO_MAX_PACING_RATE."""
    receiver_limited_share: float
    """Share, 0 to 1, of the lanes' time held back by the receiver's window. tcpi_rwnd_limited."""
    buffer_limited_share: float
    """Share, 0 to 1, of the lanes' time held back by the send buffer. tcpi_sndbuf_limited."""

    queued_bytes: PerClass
    """Bytes ready and claimed by no lane, now, by class: urgent, demand, background. Engine."""
    oldest_s: tuple[float, float, float]
    """Seconds that the oldest of these has been ready, now, by class. Engine."""
    unacked_bytes: int
    """Bytes claimed by lanes and not acknowledged by the peer's engine, now. Engine."""
    inflight_bytes: int
    """Bytes that TCP has sent and the peer's kernel has not acknowledged, now. tcpi_unacked."""
    unsent_bytes: int
    """Bytes in the buffers of sockets, not yet sent, now. tcpi_notsent_bytes."""
    memory_bytes: int
    """Bytes of buffers and logs that the lanes hold, now. Engine."""

    lanes_up: int
    """Lanes that are up, now. Engine."""
    lanes_wanted: int
    """Lanes that the link wants, now. Link."""
    lanes_lost: int
    """Lanes that ended and were not asked to, as a number. Link."""
    lane_skew: float
    """Ratio: landed bytes of the lane that carried most, over the mean of lanes, less 1. 0.0: even, or nothing landed;
    lanes less 1: one carried all. Engine."""
    congestion: Mapping[str, int]
    """Lanes by the kernel's congestion control under them, now. TCP_CONGESTION."""
    hedged_bytes: int
    """Bytes of cells sent once more because their lane made no progress. Engine."""
    resent_bytes: int
    """Bytes of cells sent once more because their lane was lost. Engine."""
    resumes: int
    """Times that the link was resumed, as a number. Link."""

    compression: str
    """Whether automatic codecs encode, now: "on" or "off". Link."""
    compression_reason: str
    """Name of the reason for that, one of a few fixed texts, now. Link."""
    compression_ratio: float
    """Ratio: bytes of payload that automatic codecs were tried on lately, over what they left; 0.0: of none. Link."""
    coded_plain_bytes: int
    """Bytes of payload that left coded, as it was before, by whatever codec. Engine."""
    coded_wire_bytes: int
    """Bytes of the same payload, as it left. Engine."""
    encode_bps: float
    """Bits per second of payload that a core of this host encodes, now, by "auto"; 0.0: not known. Engine."""
    decode_bps: float
    """Bits per second of payload that a core of this host decodes, now, by "auto"; 0.0: not known. Engine."""
    peer_decode_bps: float
    """Bits per second of payload that the peer can decode with the cores it has to spare, as of its latest grant; 0.0:
    it does not know. Peer."""
    link_bps: float
    """Bits per second that the link is taken to carry where it is judged whether to encode, without headers of TCP/IP;
    0.0: not known. It is what this side gets of the path, and is found in short transfers, too. Link."""

    outgoing: PerClass
    """Transfers that this side sends, granted and not over, now, by class. Link."""
    incoming: PerClass
    """Transfers that this side receives, granted and not over, now, by class. Link."""
    eta_gib_s: float | None
    """Seconds until a further GiB of class demand would have landed, were it ready now: behind what is queued before it
    and claimed, at `capacity_bps` (at `path_bps`, where that is larger and capacity a lower bound) or `pace_bps`, less
    what codecs saved when something was sent last, and one RTT. None: no rate is known."""

    controller: str
    """Name of the congestion controller. Link."""
    pace_bps: float | None
    """Bits per second on average that it allows, now; None: no cap. Decision."""
    peak_bps: float | None
    """Bits per second of bursts, now; None: no cap. Decision."""
    inflight_cap: int | None
    """Bytes claimed and not acknowledged, as they are on the wire, that it allows, now; None: no cap. Decision."""
    controller_faults: int
    """Times that it raised or decided nonsense, as a number. Link."""
    budget_max_bps: float | None
    """Bits per second that a scheduler allows, while the lease lasts; None: no budget was set. Budget."""
    budget_min_bps: float | None
    """Bits per second that it allows when the lease is over. Budget."""
    lease_left_s: float | None
    """Seconds left of the lease, now; 0.0: over. Budget."""

    totals: Totals
    """Sums since the link was made."""
    listeners: ListenerCounts
    """What became of the reports before this one."""
    lanes: tuple[LaneReport, ...]
    """Each lane that is up."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return asdict(self)
