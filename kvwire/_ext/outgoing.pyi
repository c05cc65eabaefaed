from collections.abc import Sequence

from typing_extensions import Buffer

from kvwire._ext.coding import Coding
from kvwire._ext.handles import State
from kvwire._ext.lanes import EngineLink
from kvwire._ext.layout import Segment

class OutTransfer:
    """The sending half of a transfer. Every method may be called from any thread.

    `segments`: pages to read, one per (group, layer) in manifest order. `attachment`: whether one will follow.
    `klass`: 0 urgent, 1 demand, 2 background. `deadline_ns`: what is due first leaves first; 0: none. `ranks`: of each
    segment, 0: it leaves before the others (recurrent and convolution state, which a decoder needs whole); 1: as it
    became ready, as all do where none are given. `codings`: of each segment, the codec that its cells go through.
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
        ranks: Sequence[int] | None = None,
        codings: list[Coding | None] | None = None,
    ) -> None: ...
    @property
    def link(self) -> EngineLink: ...
    def ready(self, segment: int, first: int, count: int) -> None:
        """Blocks `first`..`first + count` of a segment, counted in grant order, may leave. ReadyError otherwise."""

    def check_ready(self, segment: int, first: int, count: int) -> None:
        """ReadyError if `ready` with the same arguments would raise it."""

    def attach(self, data: Buffer) -> None: ...
    def ready_blocks(self, segment: int) -> bytes:
        """A byte for each block of a segment, in grant order: 1 where it is ready."""

    @property
    def attachment(self) -> bytes | None:
        """What `attach` was given, packed."""

    def resume(self, landed: Buffer) -> None:
        """The link is back, and these cells (a bit each, in segment order, attachment last, lowest bit first) have
        landed: whatever else is ready is queued again. ProtocolError for a ledger that does not fit.
        """

    def commit(self) -> None:
        """The receiver has committed, as the control plane has learnt. ProtocolError if it cannot have."""

    def coded(self) -> list[tuple[int, int]]:
        """By segment, bytes of the cells that left coded, and of their payloads; twice where one was sent twice."""

    @property
    def state(self) -> State: ...
    @property
    def all_ready(self) -> bool: ...
    @property
    def last_claim_ns(self) -> int:
        """CLOCK_MONOTONIC of the last time a lane took a cell of it; 0: none has."""

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
