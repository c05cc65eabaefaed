class Pacer:
    """Token buckets of a link's average and peak rate, in bytes per second; 0: no cap. Their bursts are 10 ms and 2 ms
    of the rate, 256 KiB and 64 KiB at least."""

    def __init__(self, now_ns: int = 0, *, average_Bps: int = 0, peak_Bps: int = 0) -> None: ...
    def set(self, average_Bps: int, peak_Bps: int, now_ns: int) -> None:
        """Other rates from now on. Nothing of the old ones is kept beyond the new bursts."""

    def wait_ns(self, now_ns: int) -> int:
        """How long until something may be claimed; 0: now."""

    def take(self, nbytes: int, now_ns: int) -> None:
        """A claim, which may overdraw. ValueError while `wait_ns` is not 0."""

    def give_back(self, nbytes: int) -> None:
        """Some of what was taken was not sent."""

    @property
    def claim_bytes(self) -> int:
        """What a claim may be worth: 10 ms of the slower rate."""

    @property
    def burst_bytes(self) -> tuple[int, int]:
        """Of the average and of the peak rate; 0: no cap."""

class HedgeBudget:
    """How much a link may send twice: 4 MiB, and a byte more for every hundred that it has sent."""

    @property
    def left_bytes(self) -> int: ...
    def spend(self, nbytes: int) -> None:
        """ValueError for more than is left."""

    def earn(self, sent_bytes: int) -> None: ...
