"""What a link does to packets, and what it has counted."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One direction of a link. A packet meets, in this order: loss, the queue, the rate, the delay.

    Packets are those of IP on the wire, none larger than the MTU, and their bytes are what rates and queues count.
    ValueError for what no link does.
    """

    delay_s: float = 0.0
    """Of propagation. Under a millisecond it is not to be trusted."""
    jitter_s: float = 0.0
    """What is added to the delay wanders between plus and minus this, at most `delay_s`; packets keep their order."""
    rate_bps: float | None = None
    """Bits per second; None: as fast as the machine is."""
    queue_bytes: int | None = None
    """Drop-tail queue before the rate; None: no bound."""
    loss: float = 0.0
    """Share of packets, each by its own lot."""
    burst: tuple[float, float] | None = None
    """Gilbert and Elliott's bursts: the odds, packet by packet, of going into the bad state, where all is lost, and
    out of it."""
    reorder: float = 0.0
    """Share of packets that do not wait out the delay and so overtake those that do."""
    mark_bytes: int | None = None
    """Above so many bytes in the queue packets of ECN are marked Congestion Experienced; None: never."""

    def __post_init__(self) -> None:
        shares = {"loss": self.loss, "reorder": self.reorder}
        shares |= {f"burst[{i}]": share for i, share in enumerate(self.burst or ())}
        for name, share in shares.items():
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} is {share}; it is a share, 0.0 to 1.0")
        if not 0.0 <= self.jitter_s <= self.delay_s <= 60.0:
            raise ValueError(f"0 <= jitter_s <= delay_s <= 60; they are {self.jitter_s} and {self.delay_s}")
        if self.rate_bps is not None and not 1e3 <= self.rate_bps <= 1e12:
            raise ValueError(f"rate_bps is {self.rate_bps}; 1e3 to 1e12")
        for name, size in (("queue_bytes", self.queue_bytes), ("mark_bytes", self.mark_bytes)):
            if size is not None and (size <= 0 or self.rate_bps is None):
                raise ValueError(f"{name} is {size}; it is above 0 and needs a rate: without one nothing queues")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """All that a link is told: what it does each way, and the black hole."""

    there: Path
    back: Path
    black_hole: bool = False
    """Nothing passes, either way."""
    ports: frozenset[int] = frozenset()
    """Nothing passes of TCP connections that have one of these ports on a."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many packets took how long: 16 buckets to the octave, in microseconds, one each up to 16."""

    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.counts)

    def quantile_s(self, share: float) -> float:
        """Upper edge of the bucket below which that share lies; 0.0 without packets."""
        total, seen = self.total, 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if count and seen >= share * total:
                return self.edge_s(bucket + 1)
        return 0.0

    @staticmethod
    def edge_s(bucket: int) -> float:
        """Lower edge of a bucket."""
        return 1e-6 * (bucket if bucket < 16 else (16 + bucket % 16) << (bucket // 16 - 1))

    def __sub__(self, before: Histogram) -> Histogram:
        return Histogram(tuple(now - then for now, then in zip(self.counts, before.counts, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """One direction since the link was made, in packets on the wire. None: this kind of link does not tell.

    segments_in = segments_out + lost + overflowed + black_holed + failed + held, always.
    """

    segments_in: int
    bytes_in: int
    segments_out: int
    bytes_out: int
    lost: int
    """By `Path.loss` and `Path.burst`."""
    overflowed: int
    """Dropped because the queue was full."""
    black_holed: int
    failed: int
    """The receiving host's kernel would not have them."""
    held: int
    """In the queue and on the way, now."""
    marked: int
    reordered: int | None
    queue_bytes: int
    """Now."""
    queue_max_bytes: int | None
    """The most since the counters were last read."""
    queueing: Histogram | None
    """Wait in the queue."""
    lateness: Histogram | None
    """How long after its time the link delivered a packet: the emulator's own fault."""
    late_s: float | None
    """The sum of that over packets."""
    late_max_s: float | None
    """The most since the link was made."""

    @property
    def late_mean_s(self) -> float | None:
        if self.late_s is None or self.lateness is None:
            return None
        return self.late_s / max(1, self.lateness.total)

    def since(self, before: Counters) -> Counters:
        """What was counted after `before`, which was read from the same link; what is "now" or a maximum stays."""
        pairs = {name: (getattr(self, name), getattr(before, name)) for name in SUMS}
        return replace(self, **{name: now - then for name, (now, then) in pairs.items() if now is not None})


SUMS = (
    *("segments_in", "bytes_in", "segments_out", "bytes_out", "lost", "overflowed", "black_holed", "failed"),
    *("marked", "reordered", "queueing", "lateness", "late_s"),
)
"""Those of Counters that only grow."""
