"""One lane of the stand-in engine: the steps of `kvwire/_ext/receive.pyx` and `send.pyx`, by the pure classes.

A cell is placed in two steps and read in one that comes after its claim, so that an abort or a lost lane falls
between them. Who must wait for local workers does their pending step at once (`finish_step`): virtual time stands
still for a wait that is as short as a copy.
"""

from __future__ import annotations

import enum
import os
import struct
from typing import TYPE_CHECKING, Any

from kvwire._ext.lanelog import LaneLog
from tests.sim.frames import Batch, Frame, PlainFrames, SealedFrames, starts
from tests.sim.network import End
from tests.sim.transfers import Placement

if TYPE_CHECKING:
    from tests.sim.engine import SimEngineLink

ACK_ENTRY = struct.Struct("<IIQ")
ACK_DELAY_S = 0.002
BATCH_FRAMES = 16
DRAIN_QUIET_S = 0.1

NO_OWNER = 0
"""Owner of a log entry of a receipt, with the id in two halves. Ids of transfers, which own the others, begin at 1."""


class Reason(enum.IntEnum):
    """As `lane_close_t` of kvwire/_ext/core.pxd."""

    OPEN = 0
    EOF = 1
    ERRNO = 2
    BAD_FRAME = 3
    UNKNOWN_TRANSFER = 4
    OUTSIDE_GRANT = 5
    BAD_ACK = 6
    BAD_RECEIPT = 7
    REQUESTED = 8
    BAD_TAG = 10
    DRAINED = 12


class Lane:
    """Made with a connected socket; it runs by itself until it fails, and is retired then."""

    def __init__(
        self, link: SimEngineLink, end: End, number: int, incarnation: int, frames: PlainFrames | SealedFrames
    ) -> None:
        self.link = link
        self.engine = link.engine
        self.end = end
        self.number = number
        self.incarnation = incarnation
        self.epochs = frames.epochs
        """Of the keys that it sends and receives under, as Python is told."""
        self._frames = frames
        self.reason = Reason.OPEN
        self.detail = ""
        self.retired = False
        self.close_request = False
        self.unacked_bytes = self.sent_bytes = self.received_bytes = 0
        self._acked_bytes = self._acked_ns = 0
        self._added_ns = self.engine.now_ns
        self._shunned = self._draining = False
        self._drain_at = 0.0
        self.log = LaneLog()
        self.rx_seq = 0
        self._sent_seq = 0
        self._ack_due: float | None = None
        self._stream = bytearray()
        self._rest = b""
        self._batch: Batch | None = None
        self._placing: Placement | None = None
        self._readable = self._writable = True
        self._turn_due = False
        self._claim_bytes = self.engine.rng.choice((1, 8 << 10, 64 << 10))
        end.watch(self._on_readable, self._on_writable)
        self.poke()

    # --- turns --------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        self._readable = True
        self.poke()

    def _on_writable(self) -> None:
        self._writable = True
        self.poke()

    def poke(self) -> None:
        """Have a worker look at this lane, soon."""
        if not self._turn_due and not self.retired:
            self._turn_due = True
            self.engine.later(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if self.retired or self._placing is not None or self._batch is not None:
            return  # its worker is in the middle of a step, and looks again after that
        if self.close_request:
            self.fail(Reason.REQUESTED, "closed by this side")
        if self.reason is Reason.OPEN:
            self._receive()
        if self.reason is Reason.OPEN and self._placing is None:
            self._send()
        if self._draining and self.reason is Reason.OPEN:
            self._drain()
        if self.reason is not Reason.OPEN:
            self.retire()

    def finish_step(self) -> None:
        """Do at once what the worker is in the middle of."""
        if self._placing is not None:
            self._place()
        if self._batch is not None:
            self._emit()

    # --- the way in ---------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        while self._readable and len(self._stream) < 1 << 16:
            try:
                data = self.end.recv(self.engine.rng.choice((64, 5000, 1 << 16)))
            except BlockingIOError:
                self._readable = False
                break
            except OSError as error:
                self.fail(Reason.ERRNO, os.strerror(error.errno or 0))
                return
            if not data:
                self.fail(Reason.EOF, "the peer closed the connection")
                return
            self._stream += data
            self.received_bytes += len(data)
            self._drain_at = self.engine.loop.clock.now + DRAIN_QUIET_S
        self._consume()

    def _consume(self) -> None:
        """Deal with whole frames until one has a cell to place, which takes a step."""
        while self._placing is None:
            came = self._frames.take(self._stream, self.engine.max_cell_bytes)
            if came is None:
                return
            if not isinstance(came, Frame):
                self.engine.host.net.count("damaged frame found")
                self.fail(Reason.BAD_TAG if came == "tag" else Reason.BAD_FRAME, f"a frame with a wrong {came}")
                return
            self._look_at_keys()
            self.rx_seq += 1
            if came.kind == "ack":
                self._on_ack(came.payload)
            else:
                if came.kind == "data":
                    self._on_data(came)
                else:
                    self._on_receipt(came.transfer)
                if self._ack_due is None:
                    self._ack_due = self.engine.loop.clock.now + ACK_DELAY_S
                    self.engine.loop.native(ACK_DELAY_S, self.poke)
            if self.reason is not Reason.OPEN:
                return

    def _look_at_keys(self) -> None:
        """Python is told where a lane goes on with another key."""
        if self._frames.epochs != self.epochs:
            self.epochs = self._frames.epochs
            self.engine.host.net.count("key changed")
            self.engine.mark(self.link)

    def _on_data(self, came: Frame) -> None:
        segment, cell = came.segment, came.cell
        incoming = self.link.inc.get(came.transfer)
        if incoming is None:  # aborted or committed: rightly dropped
            if came.transfer > self.link.newest_in:
                self.fail(Reason.UNKNOWN_TRANSFER, "a cell of a transfer that was never granted")
            return
        claim = incoming.claim(segment, cell, len(came.payload))
        if claim == "own":
            self._placing = Placement(incoming, segment, cell, came.payload, self)
            self.engine.later(self._place)
        elif claim == "duplicate":
            incoming.duplicates += 1
            self.engine.probe.duplicate(incoming, segment, cell)
            self.engine.host.net.count("duplicate cell")
        else:
            self.fail(Reason.OUTSIDE_GRANT, "a cell outside the grant")

    def _place(self) -> None:
        """The copy is done: land it, and go on."""
        placing, self._placing = self._placing, None
        if placing is not None:
            placing.finish()
        self.poke()

    def _on_ack(self, payload: bytes) -> None:
        for number, incarnation, next_seq in ACK_ENTRY.iter_unpack(payload):
            for lane in self.link.lanes:
                if (lane.number, lane.incarnation, lane.retired) != (number, incarnation, False):
                    continue
                if next_seq > lane.log.next_seq:
                    self.fail(Reason.BAD_ACK, "an acknowledgement of frames that were never sent")
                    return
                lane._acked(min(next_seq, lane._sent_seq))

    def _acked(self, next_seq: int) -> None:
        """The peer's engine has dealt with the frames before this one."""
        for owner, segment, first, count, hedged in self.log.ack(next_seq):
            self._acked_ns = self.engine.now_ns
            self._shunned = False
            if owner == NO_OWNER:
                continue
            out = self.link.queued[owner]
            nbytes = out.nbytes(segment, first, count)
            self.unacked_bytes -= nbytes
            self._acked_bytes += nbytes
            if not hedged:  # else its copy counts
                out.on_acked(segment, first, count)
        self.link.wake()  # for the cap on what is in flight, and what this lane may take again

    def _on_receipt(self, transfer: int) -> None:
        out = self.link.out.get(transfer)
        if out is not None and not out.all_sent:
            self.fail(Reason.BAD_RECEIPT, "a receipt for what was never sent")
        elif out is not None:
            out.commit()

    # --- the way out --------------------------------------------------------------------------------------------

    def _put(self, data: bytes) -> int:
        """How much the kernel takes; a lane that it refuses waits for the next edge."""
        try:
            taken = self.end.send(data) if data else 0
            self.sent_bytes += taken
            return taken
        except BlockingIOError:
            self._writable = False
            return 0
        except OSError as error:
            self.fail(Reason.ERRNO, os.strerror(error.errno or 0))
            return 0

    def _send(self) -> None:
        """Finish the frame that was begun, then claim a batch. Its pages are read a step later."""
        while self._rest and self._writable and self.reason is Reason.OPEN:
            self._rest = self._rest[self._put(self._rest) :]
        if self._rest or not self._writable or self.reason is not Reason.OPEN:
            return
        batch = Batch(self._claim_control(), self.log.next_seq)
        self._claim_data(batch)
        if batch.control or batch.runs:
            self._batch = batch
            self.engine.later(self._emit)

    def _claim_control(self) -> bytes:
        now, frames = self.engine.loop.clock.now, b""
        takes = not self._shunned and not self._draining
        receipts = self.link.receipts if takes else []
        others = bool(receipts) or (takes and bool(self.link.queue))
        due = self._ack_due is not None and (self._ack_due <= now or others)
        if due:
            entry = ACK_ENTRY.pack(self.number, self.incarnation, self.rx_seq)
            frames += self._frames.encode("ack", self.log.next_seq, payload=entry)
            self.log.skip()
            self._ack_due = None
        for transfer in receipts:
            frames += self._frames.encode("receipt", self.log.next_seq, transfer)
            self.log.append(NO_OWNER, transfer >> 32, transfer & 0xFFFFFFFF, 1, cell_bytes=0, now_ns=self.engine.now_ns)
        receipts.clear()
        return frames

    def _claim_data(self, batch: Batch) -> None:
        claimed, link, now_ns = 0, self.link, self.engine.now_ns
        worth = min(self._claim_bytes, link.pacer.claim_bytes)
        while claimed < worth and batch.cells < BATCH_FRAMES:
            if self._shunned or self._draining or not link.may_claim():
                return
            run = link.queue.claim(BATCH_FRAMES - batch.cells, max_bytes=worth - claimed, now_ns=now_ns)
            assert run is not None
            owner, segment, first, count, _ = run
            out = link.queued[owner]
            nbytes = out.nbytes(segment, first, count)
            cell_bytes = out.cell_len(segment, first)
            short_by = count * cell_bytes - nbytes
            self.log.append(owner, segment, first, count, cell_bytes=cell_bytes, short_by=short_by, now_ns=now_ns)
            self.unacked_bytes += nbytes
            link.pacer.take(nbytes, now_ns)
            out.readers.append(self)
            batch.runs.append((owner, segment, first, count))
            batch.cells += count
            claimed += nbytes

    def _emit(self) -> None:
        """Read the pages, give all to the kernel, and settle: rest of a frame, frames that go back. Sealed ones never
        do."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        frames = [batch.control]
        sequence = batch.sequence
        for owner, segment, first, count in batch.runs:
            out = self.link.queued[owner]
            for cell in range(first, first + count):
                payload = out.read(segment, cell)
                frames.append(self._frames.encode("data", sequence, out.id, segment, cell, payload))
                sequence += 1
        self._look_at_keys()
        taken = self._put(b"".join(frames))
        failed = self.reason is not Reason.OPEN
        begun = [data for at, data in zip(starts(frames), frames, strict=True) if at < taken] or frames[:1]
        begun = frames if self._frames.whole_batches else begun
        self._rest = b"" if failed else b"".join(begun)[taken:]
        # A lane that failed gives everything back when it retires.
        self._settle(batch, 0 if failed else len(frames) - len(begun))
        self.poke()

    def _settle(self, batch: Batch, unsent: int) -> None:
        probe, given_back = self.engine.probe, unsent > 0
        for owner, segment, first, count in reversed(batch.runs):
            out = self.link.queued[owner]
            out.readers.remove(self)
            back = min(unsent, count)
            unsent -= back
            for cell in range(first, first + count - back):
                probe.sent(out, segment, cell)
            self.link.hedge_budget.earn(out.nbytes(segment, first, count - back))
            if back:
                nbytes = out.nbytes(segment, first + count - back, back)
                self.log.trim_last(back)
                self.unacked_bytes -= nbytes
                self.link.pacer.give_back(nbytes)
                self.link.requeue(owner, segment, first + count - back, back)
        self._sent_seq = self.log.next_seq
        if given_back:
            self.link.wake()

    # --- for whoever looks after the lanes ----------------------------------------------------------------------

    def hedge(self, most_bytes: int) -> int:
        """Have other lanes send, too, what this one has sent, and take no more until some of it is acknowledged."""
        copied = 0
        for owner, segment, first, count in self.log.hedge(most_bytes, sent_seq=self._sent_seq):
            if owner == NO_OWNER:
                self.link.receipts.append(segment << 32 | first)
            else:
                copied += self.link.requeue(owner, segment, first, count)
        self.link.hedge_budget.spend(copied)
        self.link.hedged_bytes += copied
        self._shunned = len(self.log) > 0
        self.engine.host.net.count("lane hedged")
        return copied

    def drain(self) -> None:
        """Take no more, and close once all is acknowledged and nothing has come for a while."""
        if not self._draining:
            self._draining = True
            self._drain_at = self.engine.loop.clock.now + DRAIN_QUIET_S
            self.poke()

    def _drain(self) -> None:
        now = self.engine.loop.clock.now
        if self.log or self._rest or self._batch is not None or self._ack_due is not None:
            return  # whatever ends one of these pokes the lane
        if now >= self._drain_at:
            self.fail(Reason.DRAINED, "no longer needed")
        else:
            self.engine.loop.native(self._drain_at - now, self.poke)

    def stats(self) -> dict[str, Any]:
        now_ns = self.engine.now_ns
        return {
            "lane": self.number,
            "incarnation": self.incarnation,
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
            "sent_frames": self.log.next_seq,
            "received_frames": self.rx_seq,
            "acked_bytes": self._acked_bytes,
            "rate_Bps": 0,
            "sent_epoch": self.epochs[0],
            "received_epoch": self.epochs[1],
            "unacked_bytes": self.unacked_bytes,
            "stalled_ns": now_ns - max(self._acked_ns, self.log.oldest_ns) if self.log else 0,
            "added_ns": self._added_ns,
            "tcp_info": b"",
        }

    # --- the end ------------------------------------------------------------------------------------------------

    def fail(self, reason: Reason, detail: str) -> None:
        """Stop it; its worker retires it once its turn is over."""
        if self.reason is Reason.OPEN:
            self.reason, self.detail = reason, detail
            self.end.close()

    def retire(self) -> None:
        """What nobody acknowledged goes back to the queue."""
        self.retired = True
        self.engine.probe.note("lane ended", self.number, self.incarnation, self.detail)
        self.unacked_bytes = 0
        for owner, segment, first, count, hedged in self.log.drain():
            if hedged:
                continue  # its copy stands for it
            if owner == NO_OWNER:
                self.link.receipts.append(segment << 32 | first)
            else:
                self.link.queued[owner].resent_cells += count
                self.link.resent_bytes += self.link.requeue(owner, segment, first, count)
        self.engine.mark(self.link)
        self.link.wake()
