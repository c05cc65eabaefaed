from kvwire._ext.coding import Coding
from kvwire._ext.handles import State
from kvwire._ext.lanes import EngineLink
from kvwire._ext.layout import Segment

class InTransfer:
    """The receiving half of a transfer. Every method may be called from any thread.

    `segments`: pages to write, one per (group, layer) in manifest order. `codings`: of each segment, the codec that its
    cells may have gone through.
    """

    def __init__(
        self,
        link: EngineLink,
        transfer: int,
        segments: list[Segment],
        cell_bytes: int,
        attachment: bool,
        codings: list[Coding | None] | None = None,
    ) -> None: ...
    @property
    def link(self) -> EngineLink: ...
    def completed(self, start: int = 0) -> list[int]:
        """Segments in the order in which they became complete, from the `start`-th on; the attachment among them."""

    def coded(self) -> list[tuple[int, int]]:
        """By segment, bytes of the cells that landed coded, and of their payloads."""

    @property
    def state(self) -> State: ...
    @property
    def cells(self) -> tuple[int, int]:
        """Cells that have landed, cells in all."""

    def landed(self) -> bytes:
        """A bit for each cell that has landed, in segment order, attachment last, lowest bit first."""

    @property
    def duplicates(self) -> int: ...
    @property
    def times_ns(self) -> tuple[int, int]:
        """CLOCK_MONOTONIC of the first cell and of the commit, 0 where not yet."""

    @property
    def attachment(self) -> bytes | None:
        """The attachment's bytes, after the commit."""

    def wait(self, timeout_s: float) -> State: ...
    def missing(self, segment: int) -> int:
        """Cells of a segment that have not landed."""

    def wait_segment(self, segment: int, timeout_s: float) -> bool:
        """Wait natively until a segment is complete; False if the time is over or the transfer ended before."""

    def abort(self) -> State:
        """End it. On return no worker writes its slots any more; waits for local workers only."""
