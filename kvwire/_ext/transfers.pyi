from typing import Literal

from typing_extensions import Buffer

from kvwire._ext.lanes import EngineLink
from kvwire._ext.layout import Segment

State = Literal["active", "committed", "aborted", "lost"]

class OutTransfer:
    """The sending half of a transfer. Every method may be called from any thread.

    `segments`: pages to read, one per (group, layer) in manifest order. `attachment`: whether one will follow.
    """

    def __init__(
        self,
        link: EngineLink,
        transfer: int,
        segments: list[Segment],
        cell_bytes: int,
        attachment: bool,
        klass: int = 1,
        deadline_ns: int = 0,
    ) -> None: ...
    @property
    def link(self) -> EngineLink: ...
    def ready(self, segment: int, first: int, count: int) -> None:
        """Blocks `first`..`first + count` of a segment, counted in grant order, may leave. ReadyError otherwise."""

    def check_ready(self, segment: int, first: int, count: int) -> None:
        """ReadyError if `ready` with the same arguments would raise it."""

    def attach(self, data: Buffer) -> None: ...
    @property
    def state(self) -> State: ...
    @property
    def all_ready(self) -> bool: ...
    @property
    def times_ns(self) -> tuple[int, int, int]:
        """CLOCK_MONOTONIC of the first and the last `ready` and of the receipt, 0 where not yet."""

    @property
    def cells(self) -> tuple[int, int]:
        """Cells that the receiver has acknowledged, cells in all."""

    @property
    def resent_cells(self) -> int:
        """Cells that were sent on a lane that ended before they were acknowledged."""

    def wait(self, timeout_s: float) -> State:
        """Wait natively for the receipt or another end; the state at the end of the wait."""

    def abort(self) -> State:
        """End it. On return no worker reads its pages any more; waits for local workers only."""

class InTransfer:
    """The receiving half of a transfer. Every method may be called from any thread.

    `segments`: pages to write, one per (group, layer) in manifest order.
    """

    def __init__(
        self, link: EngineLink, transfer: int, segments: list[Segment], cell_bytes: int, attachment: bool
    ) -> None: ...
    @property
    def link(self) -> EngineLink: ...
    def completed(self, start: int = 0) -> list[int]:
        """Segments in the order in which they became complete, from the `start`-th on; the attachment among them."""

    @property
    def state(self) -> State: ...
    @property
    def cells(self) -> tuple[int, int]:
        """Cells that have landed, cells in all."""

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
