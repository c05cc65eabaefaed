from typing import TypedDict

from kvwire._ext.engine import Engine

FAULTS: frozenset[int]
"""Reason codes that mean damage or a dishonest peer, not a connection that ended."""

TAG_FAILURE: int
"""The reason code, one of FAULTS, of a sealed lane that ended because the tag of a frame was wrong."""

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

class EngineLink:
    """Lanes, send queue and transfers of one link."""

    def __init__(self, engine: Engine) -> None: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def lanes_open(self) -> int: ...
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
    def take_closed(self) -> list[tuple[int, int, int, str, int]]:
        """Lanes that have ended: (lane, incarnation, reason code, reason, frames received in order)."""

    def lane_stats(self) -> list[LaneStats]: ...
    def suspend(self) -> None:
        """Close all lanes and forget what was queued, receipts included; transfers stay, each until its `resume`.
        Waits for local workers only. What becomes ready meanwhile is marked and goes out then.
        """

    def close(self) -> None:
        """Close all lanes and end all transfers as lost; waits for local workers only."""
