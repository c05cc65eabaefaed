"""What a controller and a report are made from: what one link and its lanes did between two looks at them.

Payload is plain: `landed_bytes`, `unacked_bytes`, `queued_bytes` and what is hedged or sent again count cells as they
lie in memory. Of cells that leave coded less is on the wire (`wire_share`); `sent_bytes`, `wire_bytes`,
`delivered_bytes`, `inflight_bytes` and `unsent_bytes` count that.

Numbers come from the engine (frames, cells, the send queue) and from the kernel (TCP_INFO, linux/tcp.h). Bytes and
seconds are differences since the look before unless "now" is said; rates are bytes per second on the way to a user's
bits per second, which only `Decision` and `Budget` speak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

CLASSES = ("urgent", "demand", "background")
"""Names of the classes of transfers, by number."""


class LaneSample(NamedTuple):
    """One lane. What the kernel of this host does not tell is 0.

    A tuple, because up to 64 are made a tick, and a data class takes three times as long.
    """

    lane: int
    incarnation: int
    congestion: str
    """The kernel's congestion control under it."""
    age_s: float
    """Since it was added, now."""
    sent_bytes: int
    """Given to the kernel, headers and tags included."""
    landed_bytes: int
    """Payload that the peer's engine has acknowledged: it lies in its slots."""
    delivered_bytes: int
    """Acknowledged by the peer's kernel (tcpi_bytes_acked)."""
    retransmitted_bytes: int
    """tcpi_bytes_retrans, TCP's headers left out, as tcpi_bytes_sent has it."""
    wire_bytes: int
    """tcpi_bytes_sent: first transmissions and retransmissions."""
    segments: int
    """Data segments sent (tcpi_data_segs_out)."""
    retransmitted_segments: int
    """tcpi_total_retrans."""
    spurious_segments: int
    """tcpi_dsack_dups: retransmissions that the peer had already. They are no loss."""
    delivered_segments: int
    """tcpi_delivered: those that have arrived, out of order too, so that a hole holds nothing back. Of all data."""
    marked_segments: int
    """tcpi_delivered_ce: segments that arrived with the mark Congestion Experienced."""
    timeouts: int
    """tcpi_total_rto."""
    rtt_s: float
    """Smoothed, now (tcpi_rtt)."""
    min_rtt_s: float
    """Smallest of the last minutes, now (tcpi_min_rtt)."""
    inflight_bytes: int
    """Sent and not acknowledged by the peer's kernel, now: tcpi_unacked segments."""
    unsent_bytes: int
    """In the socket's buffer and not yet sent, now (tcpi_notsent_bytes)."""
    unacked_bytes: int
    """Claimed from the queue and not acknowledged by the peer's engine, now."""
    stalled_s: float
    """How long frames wait for an acknowledgement of the peer's engine and none comes, now; 0.0: nothing waits."""
    silent_s: float
    """Of that, with segments in flight and not one acknowledgement from the peer's kernel, now (tcpi_last_ack_recv):
    the path is gone, and not the peer slow."""
    busy_s: float
    """With data in the socket (tcpi_busy_time); of that, the next two."""
    receiver_limited_s: float
    """Held back by the receiver's window (tcpi_rwnd_limited)."""
    buffer_limited_s: float
    """Held back by the send buffer (tcpi_sndbuf_limited)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSample:
    """A link: sums over its lanes, and what its send queue did. A lane that ended meanwhile is in no sum."""

    interval_s: float
    lanes: tuple[LaneSample, ...]
    sent_bytes: int
    landed_bytes: int
    delivered_bytes: int
    retransmitted_bytes: int
    wire_bytes: int
    segments: int
    retransmitted_segments: int
    spurious_segments: int
    delivered_segments: int = 0
    marked_segments: int
    timeouts: int
    rtt_s: float
    """Mean over lanes of the smoothed RTT, weighted by what they have in flight, now; 0.0 without a lane."""
    min_rtt_s: float
    """Smallest smoothed RTT of the last minutes, of the middle one of the lanes; 0.0 without a lane. Single segments
    may be faster, where a path reorders or its delay jitters."""
    queued_bytes: tuple[int, int, int]
    """Ready and claimed by no lane, by class, now."""
    oldest_s: tuple[float, float, float]
    """How long the oldest of them has been ready, by class, now; 0.0: nothing is queued."""
    idle_s: float
    """With nothing in the send queue: the application had nothing to send."""
    paced_s: float
    """With something in the queue that the pacer held back."""
    hedged_bytes: int
    """Sent once more because their lane made no progress."""
    resent_bytes: int
    """Sent once more because their lane was lost."""
    encoded_bytes: int = 0
    """Payload that went into codecs, whether or not it shrank."""
    encode_s: float = 0.0
    """That it took, summed over workers."""
    coded_plain_bytes: int = 0
    """Payload that left coded, as it was before."""
    coded_wire_bytes: int = 0
    """The same, as it left."""
    decoded_bytes: int = 0
    """Payload that came coded, as it was before, since the last sample, pauses included."""
    decode_s: float = 0.0
    """That it took to decode it, summed over workers."""

    @property
    def wire_share(self) -> float:
        """What a byte of payload came to on the wire, of what was sent; 1.0 where nothing was coded."""
        saved = self.coded_plain_bytes - self.coded_wire_bytes
        return self.sent_bytes / (self.sent_bytes + saved) if saved > 0 and self.sent_bytes > 0 else 1.0

    @property
    def application_limited(self) -> bool:
        """Whether the rate of this interval says more about the application than about the path."""
        return self.idle_s > 0.05 * self.interval_s

    @property
    def pacing_limited(self) -> bool:
        """Whether the rate of this interval is the pacer's."""
        return self.paced_s > 0.05 * self.interval_s

    @property
    def lost_share(self) -> float:
        """Share of segments that were sent again, those left out that the peer had already; 0.0 to 1.0."""
        if not self.segments:
            return 0.0
        return min(1.0, max(0, self.retransmitted_segments - self.spurious_segments) / self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a scheduler allows a link for a while."""

    max_bps: float
    """Bits per second on average, of kvwire's frames."""
    min_bps: float
    """What the link may send when the lease is over and nobody has said anything new."""
    lease_s: float
    """How long `max_bps` holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a controller wants until its next one. Rates count kvwire's frames, in bits per second."""

    pace_bps: float | None = None
    """Average rate of the link; None: no cap."""
    peak_bps: float | None = None
    """Rate of its bursts, at least `pace_bps`; None: twice `pace_bps`."""
    inflight_cap: int | None = None
    """Bytes claimed and not acknowledged by the peer's engine, as they are on the wire, link-wide; None: no cap."""
    lanes: int | None = None
    """Lanes, 1 to 64, where `Config.lanes` fixes none; None: the link finds out what they are worth."""
    next_tick_s: float = 0.1
    """When it wants the next sample, 0.005 to 1 s. It comes no sooner than 2 ms for each lane."""


class Controller(Protocol):
    """A congestion controller: pure, told everything, asked once a tick. `now` is in seconds and never goes back.

    The kernel's congestion control stays underneath; a controller only caps. What has these methods is one; who derives
    from this class needs to write only those that it wants.
    """

    def on_sample(self, now: float, sample: PathSample) -> None:
        """What the link did since the last one."""
        return

    def on_landed(self, now: float, nbytes: int, queue_s: float, net_s: float) -> None:
        """A transfer committed: bytes, from its last `ready` until that was claimed, and from there to the receipt."""
        return

    def on_lane(self, now: float, lane: int, up: bool, reason: str) -> None:
        """A lane came up, or ended and why."""
        return

    def on_budget(self, now: float, budget: Budget) -> None:
        """A scheduler allows another rate from now on."""
        return

    def decide(self, now: float) -> Decision:
        """What holds until the next tick. Called after `on_sample`, and at once after `on_budget`."""
