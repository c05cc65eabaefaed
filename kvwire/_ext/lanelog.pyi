class LaneLog:
    """What one lane has sent and nobody has acknowledged: a ring of `capacity` runs (a power of two)."""

    def __init__(self, capacity: int = 4096) -> None: ...
    def __len__(self) -> int: ...
    @property
    def next_seq(self) -> int:
        """Sequence number of the next frame."""

    @property
    def oldest_ns(self) -> int:
        """When the oldest run was claimed; 0: there is none."""

    def append(
        self,
        owner: int,
        segment: int,
        first: int,
        count: int,
        *,
        cell_bytes: int = 1,
        short_by: int = 0,
        now_ns: int = 0,
    ) -> bool:
        """The next `count` frames carry this run; False when the log is full."""

    def skip(self) -> None:
        """The next frame carries nothing that anybody has to acknowledge."""

    def trim_last(self, cells: int) -> None:
        """The last `cells` frames of the newest run were not sent after all."""

    def hedge(self, most_bytes: int, *, sent_seq: int = ...) -> list[tuple[int, int, int, int]]:
        """Copies of the oldest runs, each only once, as (owner, segment, first, count): they stand for the cells from
        now on. Up to `most_bytes`, whole runs, frames before `sent_seq` only."""

    def ack(self, next_seq: int) -> list[tuple[int, int, int, int, bool]]:
        """All frames before `next_seq` are acknowledged: (owner, segment, first, count, hedged) of what that covers.

        ValueError for a frame that was never sent.
        """

    def drain(self) -> list[tuple[int, int, int, int, bool]]:
        """Everything not acknowledged, oldest first, as `ack` returns it; the log is empty afterwards."""
