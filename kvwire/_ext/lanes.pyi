from typing import TypedDict

from kvwire._ext.engine import Engine

FAULTS: frozenset[int]
"""Reason codes that mean damage or a dishonest peer, not a connection that ended."""

TAG_FAILURE: int
"""The reason code, one of FAULTS, of a sealed lane that ended because the tag of a frame was wrong."""

DRAINED: int
"""The reason code of a lane that `drain_lane` has closed."""

EOF: int
"""The reason code of a lane that the peer has closed."""

class LaneStats(TypedDict):
    """Totals of one lane since it was added; bytes include headers, `rate_Bps` is of acknowledged bytes."""

    lane: int
    incarnation: int
    sent_bytes: int
    received_bytes: int
    sent_frames: int
    received_frames: int
    acked_bytes: int
    rate_Bps: int
    sent_epoch: int
    """Key epoch of what is sealed and sent, from 1; 0: a plain lane."""
    received_epoch: int
    unacked_bytes: int
    """Payload that was claimed and that the peer's engine has not acknowledged."""
    stalled_ns: int
    """How long something has waited for that since the last acknowledgement that moved; 0: nothing waits."""
    added_ns: int
    """CLOCK_MONOTONIC of `add_lane`."""
    tcp_info: bytes
    """What getsockopt(TCP_INFO) returned for the latest request; empty before, and on a host without it."""

class LinkStats(TypedDict):
    """A link now, and totals since it was made, lanes that have ended included."""

    now_ns: int
    """CLOCK_MONOTONIC."""
    queued_bytes: tuple[int, int, int]
    """Payload that is ready and that no lane has claimed, by class."""
    oldest_ns: tuple[int, int, int]
    """For how long the oldest of it has been ready, by class; 0: there is none."""
    idle_ns: int
    """For how long nothing was ready."""
    paced_ns: int
    """For how long something was ready and the pacer or `inflight_cap` kept lanes from claiming it."""
    sent_bytes: int
    """Given to the kernel, headers included."""
    acked_bytes: int
    """Payload that the peer's engine has acknowledged, each cell once; all of a transfer that has committed."""
    hedged_bytes: int
    """Payload that `hedge` has queued again."""
    resent_bytes: int
    """Payload that was queued again because its lane had ended."""
    inflight_bytes: int
    """Payload that was claimed and that the peer's engine has not acknowledged."""
    encoded_bytes: int
    """Of cells that went into codecs, whether or not they shrank."""
    encode_ns: int
    """That it took, summed over workers."""
    coded_plain_bytes: int
    """Of the cells that left coded."""
    coded_wire_bytes: int
    """Of their payloads."""
    decoded_bytes: int
    """Of the cells that came coded."""
    decode_ns: int
    """That it took to decode them, summed over workers."""
    auto_encoded_bytes: int
    auto_encode_ns: int
    auto_decoded_bytes: int
    auto_decode_ns: int
    """Of these four, what the codec has that "auto" goes through, whoever has asked for it."""

class EngineLink:
    """Lanes, send queue and transfers of one link."""

    def __init__(self, engine: Engine) -> None: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def lanes_open(self) -> int: ...
    @property
    def memory_bytes(self) -> int:
        """What its lanes were allocated for buffers, scratch and logs; lanes that have ended until `take_closed`."""

    @property
    def queued_runs(self) -> int:
        """Runs of ready cells that no lane has claimed."""

    def add_lane(self, fd: int, lane: int, incarnation: int, secrets: tuple[bytes, bytes] | None = None) -> None:
        """Hand a connected TCP socket to a worker. Takes the descriptor over, also when it raises.

        `secrets`: those of sending and of receiving, 32 bytes each, used for no other lane or incarnation; the lane
        takes sealed frames and no others. None: it takes plain ones and no others. Each re-key marks the link as
        changed. Raises LocalError for secrets without a cipher, ValueError for those of another size.
        """

    def close_lane(self, lane: int) -> None: ...
    def drain_lane(self, lane: int) -> None:
        """The lane takes no more cells or receipts, and closes (DRAINED) once the peer has acknowledged all that it
        sent and nothing has come on it for 100 ms. The peer sends again what it still had under way on it."""

    def hedge(self, lane: int, most_bytes: int) -> int:
        """Queue once more what a lane that makes no progress has sent, oldest first, receipts included, each only once;
        returns bytes, at most `most_bytes` and what is left of 1 % of all that was sent and 4 MiB. The lane itself
        claims nothing until the peer acknowledges more of what it sent. A lane that nothing waits on is left alone."""

    def set_pace(self, average_Bps: int, peak_Bps: int, lane_Bps: int, inflight_cap: int) -> None:
        """Cap what lanes claim, from now on; 0: no cap. Bytes of frames per second for the link, on average and in
        bursts; SO_MAX_PACING_RATE of every lane; payload, as it is on the wire, that is claimed and not acknowledged,
        which one claim may exceed."""

    def set_affordable(self, on: bool) -> None:
        """Whether cells with a gauge may be encoded for their own sake, and not only now and then, to measure it."""

    @property
    def pacing_refused(self) -> bool:
        """Whether this host would not set SO_MAX_PACING_RATE."""

    def request_sample(self) -> None:
        """Have the workers read TCP_INFO of every lane; marks the link as changed when all have it. From any thread."""

    @property
    def sampled(self) -> int:
        """How many requests are answered; one that comes before another is answered is answered with it."""

    def take_closed(self) -> list[tuple[int, int, int, str, int]]:
        """Lanes that have ended: (lane, incarnation, reason code, reason, frames received in order)."""

    def lane_stats(self) -> list[LaneStats]: ...
    def link_stats(self) -> LinkStats: ...
    def suspend(self) -> None:
        """Close all lanes and forget what was queued, receipts included; transfers stay, each until its `resume`.
        Waits for local workers only. What becomes ready meanwhile is marked and goes out then.
        """

    def close(self) -> None:
        """Close all lanes and end all transfers as lost; waits for local workers only."""
