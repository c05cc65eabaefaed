class LaneLog:
    """What one lane has sent and nobody has acknowledged: a ring of `capacity` runs (a power of two)."""

    def __init__(self, capacity: int = 4096) -> None: ...
    def __len__(self) -> int: ...
    @property
    def next_seq(self) -> int:
        """Sequence number of the next frame."""

    def append(self, owner: int, segment: int, first: int, count: int) -> bool:
        """The next `count` frames carry this run; False when the log is full."""

    def trim_last(self, cells: int) -> None:
        """The last `cells` frames of the newest run were not sent after all."""

    def ack(self, next_seq: int) -> list[tuple[int, int, int, int]]:
        """All frames before `next_seq` are acknowledged: (owner, segment, first, count) of what that covers.

        ValueError for a frame that was never sent.
        """

    def drain(self) -> list[tuple[int, int, int, int]]:
        """Everything not acknowledged, oldest first; the log is empty afterwards."""
