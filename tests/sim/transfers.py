"""Stand-ins for `kvwire._ext.outgoing` and `incoming`: both halves of a transfer as the engine knows them.

Without the blocking waits: there is no second thread that could end them. `abort` waits for local workers by doing
at once what they are in the middle of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from kvwire._ext.layout import Segment
from kvwire._ext.ledger import Ledger
from kvwire.errors import AttachmentError, Closed, ProtocolError, ReadyError, SpecError

if TYPE_CHECKING:
    from kvwire._ext.coding import Coding
    from kvwire._ext.handles import State
    from tests.sim.engine import SimEngineLink
    from tests.sim.lane import Lane

MAX_ATTACHMENT = 64 * 1024


def _cells(nbytes: int, cell_bytes: int) -> int:
    return -(-nbytes // cell_bytes)


class SimOutTransfer:
    """The sending half: which bytes are ready, and whether the receiver has them."""

    def __init__(
        self,
        link: SimEngineLink,
        transfer: int,
        segments: list[Segment],
        cell_bytes: int,
        attachment: bool,
        klass: int = 1,
        deadline_ns: int = 0,
        ranks: Sequence[int] | None = None,
        codings: list[Coding | None] | None = None,
    ) -> None:
        link.check()
        del codings  # cells are never coded here
        self.link = link
        self.id = transfer
        self.klass = klass
        self.deadline_ns = deadline_ns
        self.cell_bytes = cell_bytes
        self.segments = segments
        self.state: State = "active"
        self.suspended = False
        """The link is without lanes and may come back: what becomes ready is only marked."""
        self.readers: list[Lane] = []
        """Lanes whose worker is between claiming cells of it and having given them to the kernel."""
        self.resent_cells = 0
        self._ranks = [*([1] * len(segments) if ranks is None else ranks), 1]
        self._orders: dict[tuple[int, int], tuple[int, int]] = {}
        """When each cell became ready, in the order of the queue and in ns: where it belongs when it goes back."""
        self._counts = [_cells(segment.nbytes, cell_bytes) for segment in segments] + [1] * attachment
        self._has_attachment = attachment
        self._attachment: bytes | None = None
        self._block_ready = [bytearray(s.nbytes // s.block_bytes) for s in segments]
        self._unready_cells = sum(self._counts)
        self._acked: set[tuple[int, int]] = set()
        self._sent: set[tuple[int, int]] = set()  # since the link was resumed, or landed before
        self._unacked_bytes = 0
        """Payload that became ready and that the link's `acked_bytes` is yet to count."""
        self._times_ns = [0, 0, 0]
        if not self._unready_cells:
            raise SpecError("a transfer of nothing")
        link.out[transfer] = link.queued[transfer] = self

    def check_ready(self, segment: int, first: int, count: int) -> None:
        if segment >= len(self.segments) or first + count > len(self._block_ready[segment]):
            raise ReadyError(f"blocks {first}..{first + count} of segment {segment} were not granted")
        if any(self._block_ready[segment][first : first + count]):
            raise ReadyError(f"a block of {first}..{first + count} of segment {segment} was ready before")

    def ready(self, segment: int, first: int, count: int) -> None:
        self.link.check()
        self.check_ready(segment, first, count)
        if not count:
            return
        self._block_ready[segment][first : first + count] = b"\1" * count
        block_bytes, size = self.segments[segment].block_bytes, self.cell_bytes
        begin, end = first * block_bytes, (first + count) * block_bytes
        touched = range(begin // size, _cells(end, size))
        self._push(segment, [cell for cell in touched if self._complete(segment, cell)])

    def attach(self, data: bytes) -> None:
        self.link.check()
        if not self._has_attachment or self._attachment is not None or len(data) > MAX_ATTACHMENT:
            raise AttachmentError("not announced, given before, or too large")
        self._attachment = bytes(data)
        self._push(len(self.segments), [0])

    def _complete(self, segment: int, cell: int) -> bool:
        block_bytes = self.segments[segment].block_bytes
        begin = cell * self.cell_bytes
        end = min(begin + self.cell_bytes, self.segments[segment].nbytes)
        return all(self._block_ready[segment][begin // block_bytes : _cells(end, block_bytes)])

    def _push(self, segment: int, cells: list[int]) -> None:
        """Queue cells that have become complete; they are neighbours."""
        if self.state != "active":
            raise Closed(f"the transfer is {self.state}")
        now_ns = self.link.engine.now_ns
        self._times_ns[:2] = [self._times_ns[0] or now_ns, now_ns]
        self._unready_cells -= len(cells)
        self._unacked_bytes += sum(self.cell_len(segment, cell) for cell in cells)
        if cells and not self.suspended:
            self.queue(segment, cells[0], len(cells), new=True)
            self.link.wake()

    def queue(self, segment: int, first: int, count: int, *, new: bool = False) -> None:
        """Have cells sent: `new` ones, or such as go back to where they were."""
        now_ns = self.link.engine.now_ns
        order, ready_ns = (None, now_ns) if new else self._orders[segment, first]
        cell_bytes = self.cell_len(segment, first) if segment == len(self.segments) else self.cell_bytes
        order = self.link.queue.push(
            self.id,
            segment,
            first,
            count,
            klass=self.klass,
            deadline_ns=self.deadline_ns,
            rank=self._ranks[segment],
            order=order,
            ready_ns=ready_ns,
            cell_bytes=cell_bytes,
            short_by=cell_bytes - self.cell_len(segment, first + count - 1),
            now_ns=now_ns,
        )
        for cell in range(first, first + count):
            self._orders[segment, cell] = order, ready_ns

    def cell_len(self, segment: int, cell: int) -> int:
        if segment == len(self.segments):
            return len(self._attachment or b"")
        return min(self.cell_bytes, self.segments[segment].nbytes - cell * self.cell_bytes)

    def nbytes(self, segment: int, first: int, count: int) -> int:
        """Payload of a run of cells."""
        return sum(self.cell_len(segment, cell) for cell in range(first, first + count))

    def resume(self, landed: bytes) -> None:
        """The link is back, and the receiver says what it has: queue anew what is ready and not there.

        `landed`: a bit for each cell, in the order of segments, least significant first.
        """
        self.link.check()
        cells = [(segment, cell) for segment, count in enumerate(self._counts) for cell in range(count)]
        if len(landed) != _cells(len(cells), 8):
            raise ProtocolError(f"a ledger of {len(landed)} bytes; {len(cells)} cells take {_cells(len(cells), 8)}")
        there = {at for at in range(8 * len(landed)) if landed[at >> 3] >> (at & 7) & 1}
        for at in there:
            if at >= len(cells) or cells[at] not in self._sent:
                raise ProtocolError(f"a ledger with cell {at}, which was never sent")
        if not self.suspended:  # granted after the link came back: nothing of it was lost
            return
        self.suspended = False
        self._acked, self._sent = {cells[at] for at in there}, {cells[at] for at in there}
        for at, (segment, cell) in enumerate(cells):
            if self.state == "active" and at not in there and self._is_ready(segment, cell):
                self.queue(segment, cell, 1, new=True)
        self.link.wake()

    def _is_ready(self, segment: int, cell: int) -> bool:
        return self._attachment is not None if segment == len(self.segments) else self._complete(segment, cell)

    def read(self, segment: int, cell: int) -> bytes:
        """The bytes of a cell, from its pages: it is sent."""
        self._sent.add((segment, cell))
        if segment == len(self.segments):
            assert self._attachment is not None
            return self._attachment
        payload = self.segments[segment].read(cell * self.cell_bytes, self.cell_len(segment, cell))
        self.link.engine.probe.read(self, segment, cell, payload)
        return payload

    def on_acked(self, segment: int, first: int, count: int) -> None:
        """The receiver has dealt with these cells."""
        if self.state != "committed":  # which counted them all
            nbytes = self.nbytes(segment, first, count)
            self.link.acked_bytes += nbytes
            self._unacked_bytes -= nbytes
        self._acked.update((segment, cell) for cell in range(first, first + count))
        self.link.engine.probe.acked(self, segment, first, count)

    def ready_blocks(self, segment: int) -> bytes:
        """A byte for each block of a segment, in grant order: 1 where it is ready."""
        return bytes(self._block_ready[segment])

    @property
    def attachment(self) -> bytes | None:
        """What `attach` was given, packed."""
        return self._attachment

    @property
    def all_ready(self) -> bool:
        return not self._unready_cells

    @property
    def all_sent(self) -> bool:
        """Whether a receipt may come."""
        return len(self._sent) == sum(self._counts)

    @property
    def last_claim_ns(self) -> int:
        return self._times_ns[1]  # a lane takes what is ready at once, as far as a controller knows

    @property
    def times_ns(self) -> tuple[int, int, int]:
        first, last, receipt = self._times_ns
        return first, last, receipt

    @property
    def cells(self) -> tuple[int, int]:
        total = sum(self._counts)
        return (total if self.state == "committed" else len(self._acked)), total

    def commit(self) -> None:
        """The receipt has come, or a ledger that says the same."""
        if not self.all_sent:
            raise ProtocolError("a ledger that says committed, and not every cell was ever sent")
        self._times_ns[2] = self.link.engine.now_ns
        if self.state == "active":  # all has landed, whether or not that is acknowledged yet
            self.link.acked_bytes += self._unacked_bytes
        self.end("committed")

    def end(self, state: State) -> None:
        """The transfer is over, and what it has in the queue is dropped."""
        if self.state == "active":
            self.state = state
            self.link.out.pop(self.id)
            self.link.queue.remove(self.id, now_ns=self.link.engine.now_ns)
            self.link.engine.mark(self)

    def coded(self) -> list[tuple[int, int]]:
        return [(0, 0)] * len(self.segments)

    def abort(self) -> State:
        self.end("aborted")
        while self.readers:
            self.readers[0].finish_step()
        return self.state


class Placement:
    """A cell on its way into its slots: half of it is there, and nothing has landed."""

    def __init__(self, incoming: SimInTransfer, segment: int, cell: int, payload: bytes, lane: Lane) -> None:
        self.incoming = incoming
        self.lane = lane
        self._segment = segment
        self._cell = cell
        self._payload = payload
        incoming.writers.append(self)
        incoming.write(segment, cell, 0, payload[: len(payload) // 2])

    def finish(self) -> None:
        """The other half; then it lands, unless the transfer has ended meanwhile."""
        half = len(self._payload) // 2
        self.incoming.write(self._segment, self._cell, half, self._payload[half:])
        self.incoming.writers.remove(self)
        if self.incoming.state == "active":
            self.incoming.land(self._segment, self._cell)


class SimInTransfer:
    """The receiving half: which segments are complete, and whether all is committed."""

    def __init__(
        self,
        link: SimEngineLink,
        transfer: int,
        segments: list[Segment],
        cell_bytes: int,
        attachment: bool,
        codings: list[Coding | None] | None = None,
    ) -> None:
        link.check()
        del codings
        self.link = link
        self.id = transfer
        self.segments = segments
        self.cell_bytes = cell_bytes
        self.state: State = "active"
        self.duplicates = 0
        self.writers: list[Placement] = []
        """Cells that are being copied just now."""
        self._counts = [_cells(segment.nbytes, cell_bytes) for segment in segments] + [1] * attachment
        self._ledger = Ledger(self._counts)
        self._has_attachment = attachment
        self._attachment = bytearray()
        self._done: list[int] = []
        self._times_ns = [0, 0]
        if not self._ledger.missing_total:
            raise SpecError("a transfer of nothing")
        link.inc[transfer] = self
        link.newest_in = max(link.newest_in, transfer)

    def claim(self, segment: int, cell: int, length: int) -> Literal["own", "duplicate", "outside"]:
        """Whose the cell is, if it was granted and is as long as the grant makes it."""
        if segment >= len(self.segments):
            fits = self._has_attachment and segment == len(self.segments) and length <= MAX_ATTACHMENT
        else:
            left = self.segments[segment].nbytes - cell * self.cell_bytes
            fits = 0 < length == min(left, self.cell_bytes)
        return self._ledger.claim(segment, cell) if fits else "outside"

    def write(self, segment: int, cell: int, offset: int, data: bytes) -> None:
        """Part of a cell into its slots."""
        self._times_ns[0] = self._times_ns[0] or self.link.engine.now_ns
        if segment == len(self.segments):
            self._attachment[offset : offset + len(data)] = data
        else:
            self.segments[segment].write(cell * self.cell_bytes + offset, data)

    def land(self, segment: int, cell: int) -> None:
        """A cell is in place; the last one commits."""
        whole = self._ledger.land(segment, cell)
        self.link.engine.probe.landed(self)
        if not whole:
            return
        self._done.append(segment)
        if self._ledger.missing_total:
            self.link.engine.mark(self)
        else:
            self._commit()

    def _commit(self) -> None:
        self._times_ns[1] = self.link.engine.now_ns
        self.link.receipts.append(self.id)
        self.end("committed")
        self.link.engine.probe.committed(self)
        self.link.wake()

    def completed(self, start: int = 0) -> list[int]:
        return self._done[start:]

    def missing(self, segment: int) -> int:
        return self._ledger.missing(segment)

    def landed(self) -> bytes:
        """A bit for each cell, in the order of segments, least significant first."""
        bits, at = bytearray(_cells(sum(self._counts), 8)), 0
        for segment, count in enumerate(self._counts):
            for cell in range(count):
                bits[at >> 3] |= self._ledger.landed(segment, cell) << (at & 7)
                at += 1
        return bytes(bits)

    def landed_cells(self) -> set[tuple[int, int]]:
        """The same as (segment, cell), for whoever checks."""
        everything = [(segment, cell) for segment, count in enumerate(self._counts) for cell in range(count)]
        return {(segment, cell) for segment, cell in everything if self._ledger.landed(segment, cell)}

    @property
    def cells(self) -> tuple[int, int]:
        total = sum(self._counts)
        return total - self._ledger.missing_total, total

    @property
    def times_ns(self) -> tuple[int, int]:
        first, commit = self._times_ns
        return first, commit

    @property
    def attachment(self) -> bytes | None:
        return bytes(self._attachment) if self._has_attachment and self.state == "committed" else None

    def end(self, state: State) -> None:
        """The transfer is over: no cell is claimed any more. Its slots are quiet once nothing is being copied."""
        if self.state == "active":
            self.state = state
            self.link.inc.pop(self.id)
            self.link.engine.mark(self)

    def coded(self) -> list[tuple[int, int]]:
        return [(0, 0)] * len(self.segments)

    def abort(self) -> State:
        self.end("aborted")
        while self.writers:
            self.writers[0].lane.finish_step()
        return self.state
