"""What a user holds while KV moves: `Outgoing` on the side that prefilled, `Incoming` on the side that decodes.

Their asyncio forms belong to the loop of their link. What an engine's own threads call (`ready`, `attach`,
`abort_nowait`, and the blocking `wait_...` forms) goes straight to the native engine and never through the loop,
so a loop that is busy delays none of it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from kvwire._ext.layout import Segment
from kvwire._ext.transfers import InTransfer, OutTransfer
from kvwire.errors import (
    AttachmentError,
    Closed,
    CommitUnknown,
    DeadlineExceeded,
    KvwireError,
    LinkLost,
    PlacementError,
    ReadyError,
    WrongThread,
)
from kvwire.pool import Lease, Slots, check_disjoint
from kvwire.types import MAX_ATTACHMENT_BYTES, BlockRange, Grant, GroupOffer, Manifest

if TYPE_CHECKING:
    from kvwire._ext.transfers import State
    from kvwire.link import Link


@dataclass(frozen=True, slots=True)
class Receipt:
    """The transfer is committed: every byte that was granted is in its slot at the receiver.

    Times are taken by the engine's threads. At the sender `elapsed_s` runs from the first `ready` to the receipt
    and `tail_s` from the last `ready`; at the receiver from the first cell to the commit, and `tail_s` is None.
    """

    transfer_id: int
    request_id: str
    bytes: int
    elapsed_s: float
    tail_s: float | None


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of one group, complete and verified."""

    group: str
    layer: int


def granted_blocks(offer: GroupOffer, runs: tuple[BlockRange, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Block numbers of a grant's runs, ascending, int64."""
    parts = [np.arange(run.start, run.stop, dtype=np.int64) for run in runs]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _runs(blocks: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[BlockRange, ...]:
    """Ascending block numbers as runs."""
    if not len(blocks):
        return ()
    cuts = np.flatnonzero(np.diff(blocks) != 1) + 1
    edges = [0, *cuts.tolist(), len(blocks)]
    return tuple(BlockRange(int(blocks[a]), int(blocks[b - 1]) + 1) for a, b in pairwise(edges))


def _empty_segment(block_bytes: int) -> Segment:
    """The segment of a layer of which nothing is wanted."""
    whole = np.array([[0, block_bytes, 0, 0, 1, block_bytes, block_bytes]], dtype=np.int64)
    return Segment(0, np.empty(0, dtype=np.int64), 1, whole, block_bytes)


def _say(blocks: tuple[int, ...]) -> str:
    """Block numbers for a message, short."""
    if not blocks:
        return "none"
    return ", ".join(f"{run.start}..{run.stop - 1}" for run in _runs(np.array(blocks))[:8])


class Transfer:
    """What both halves share: identity, deadline, how an end becomes a result or an error."""

    def __init__(self, link: Link, transfer_id: int, manifest: Manifest) -> None:
        self._link = link
        self._loop = link.loop
        self._loop_thread = threading.get_ident()
        self.transfer_id = transfer_id
        self.manifest = manifest
        self._handle: InTransfer | OutTransfer | None = None
        self._leases: list[Lease] = []
        self._error: KvwireError | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.transfer_id} of {self.manifest.request_id!r} {self.state}>"

    @property
    def state(self) -> str:
        """ "offered" until a grant, then "active", and in the end "committed", "aborted" or "lost"."""
        if self._handle is not None:
            return self._handle.state
        return "aborted" if self._error else "offered"

    def _release(self) -> None:
        for lease in self._leases:
            lease.release()

    def _engine_changed(self) -> None:
        """The engine says that something about this transfer is different. Runs on the loop."""
        if self._handle is not None and self._handle.state != "active":
            self._finish()

    def _finish(self) -> None:
        self._release()
        if not self._ended.done():
            self._ended.set_result(None)
            self._link._transfer_over(self)

    def _fail(self, error: KvwireError) -> None:
        """End the transfer for a reason that came from elsewhere (peer, timer, link). Runs on the loop."""
        if self._ended.done():
            return
        if self._error is None:
            self._error = error
        if self._handle is not None:
            self._handle.abort()
        self._finish()

    def _outcome(self, state: State | str) -> Receipt:
        if state == "committed":
            return self._receipt()
        if self._error is not None:
            raise self._error
        if state == "lost":
            raise self._lost()
        raise Closed(f"{self!r} was aborted")

    def _lost(self) -> KvwireError:
        return LinkLost(f"the link was lost during {self!r}")

    def _receipt(self) -> Receipt:
        raise NotImplementedError

    def _off_loop(self) -> None:
        if threading.get_ident() == self._loop_thread and self._loop.is_running():
            raise WrongThread(
                "a blocking wait on the event loop's own thread would stop the loop",
                hint="await the asyncio form, or call this from another thread",
            )

    def _wait_end(self, timeout_s: float) -> Receipt:
        self._off_loop()
        if self._handle is None:
            raise Closed(f"{self!r} has not been granted")
        state = self._handle.wait(timeout_s)
        if state == "active":
            raise DeadlineExceeded(f"{self!r} is not committed after {timeout_s:g} s", hint="it goes on")
        self._release()
        return self._outcome(state)

    async def _committed(self) -> Receipt:
        await asyncio.shield(self._ended)
        return self._outcome(self.state)

    async def abort(self, reason: str = "") -> None:
        """Give the transfer up. On return the memory behind it is free; the peer is told. No error if it is over."""
        self.abort_nowait(reason)

    def abort_nowait(self, reason: str = "") -> None:
        """As `abort`, from any thread. Waits for local copies under way (microseconds), never for the peer."""
        if self._error is None and self.state in ("active", "offered"):
            self._error = Closed(f"transfer {self.transfer_id} was aborted here" + (f": {reason}" if reason else ""))
        if self._handle is not None:
            self._handle.abort()
        self._release()
        if threading.get_ident() == self._loop_thread:
            self._abort_on_loop(reason)
        else:
            self._loop.call_soon_threadsafe(self._abort_on_loop, reason)

    def _abort_on_loop(self, reason: str) -> None:
        if not self._ended.done() and self.state != "committed":
            self._link._send_abort(self, reason)
            self._finish()


class Outgoing(Transfer):
    """The sending half of a transfer, after the receiver has granted it. Made by `Link.offer`."""

    _handle: OutTransfer

    def __init__(
        self, link: Link, transfer_id: int, manifest: Manifest, source: Mapping[str, Slots], grant: Grant, klass: int
    ) -> None:
        super().__init__(link, transfer_id, manifest)
        segments: list[Segment] = []
        self.granted: dict[str, tuple[int, ...]] = {}
        """Block numbers that the receiver wants, per group, ascending."""
        self._positions: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}
        self._ready_lock = threading.Lock()
        who = f"transfer {transfer_id}"
        try:
            for offer, runs in zip(manifest.groups, grant.runs, strict=True):
                blocks = granted_blocks(offer, runs)
                positions = np.full(len(offer.blocks), -1, dtype=np.int64)
                positions[blocks - offer.blocks.start] = np.arange(len(blocks))
                self._positions[offer.spec.name] = positions
                self.granted[offer.spec.name] = tuple(blocks.tolist())
                self._bytes += len(blocks) * offer.spec.block_bytes * len(offer.spec.layers)
                slots = source[offer.spec.name]
                segments += slots.segments(offer, blocks)
                self._leases.append(slots.lease_read(who))
            self._handle = OutTransfer(
                link.engine_link, transfer_id, segments, grant.cell_bytes, manifest.attachment, klass
            )
        except BaseException:
            self._release()
            raise

    def ready(self, group: str, layer: int, blocks: Iterable[int] | BlockRange | None = None) -> None:
        """These blocks of a layer are computed and may leave; None: all that were granted. From any thread.

        Until the receipt or an abort they must not be written (`Pages.check_free` says so). ReadyError for blocks
        that were not granted or were ready before, and then none of the call's blocks is ready.
        """
        segment = self.manifest.segment(group, layer)
        if blocks is None:
            self._handle.ready(segment, 0, len(self.granted[group]))
            return
        runs = self._position_runs(group, blocks)
        if len(runs) == 1:
            self._handle.ready(segment, *runs[0])
            return
        with self._ready_lock:
            for first, count in runs:
                self._handle.check_ready(segment, first, count)
            for first, count in runs:
                self._handle.ready(segment, first, count)

    def _position_runs(self, group: str, blocks: Iterable[int] | BlockRange) -> list[tuple[int, int]]:
        """Block numbers as runs of (first position in grant order, count)."""
        positions = self._positions[group]
        start = self.manifest.groups[self.manifest.group_index(group)].blocks.start
        if isinstance(blocks, BlockRange):
            wanted = np.arange(blocks.start, blocks.stop, dtype=np.int64)
        elif isinstance(blocks, range):
            wanted = np.arange(blocks.start, blocks.stop, blocks.step, dtype=np.int64)
        else:
            wanted = np.fromiter(blocks, dtype=np.int64)
        inside = (wanted >= start) & (wanted < start + len(positions))
        found = np.where(inside, positions[np.where(inside, wanted - start, 0)], -1) if len(positions) else inside - 1
        if (found < 0).any():
            block = int(wanted[found < 0][0])
            raise ReadyError(
                f"block {block} of group {group} was not granted",
                hint=f"{_say(self.granted[group])} were; see `granted`",
            )
        found = np.sort(found)
        if (np.diff(found) == 0).any():
            raise ReadyError(f"a block of group {group} is named twice in one call")
        return [(run.start, len(run)) for run in _runs(found)]

    def attach(self, value: Any) -> None:
        """Send the transfer's attachment: anything msgpack can carry, at most 64 KiB packed. Once, from any thread."""
        if not self.manifest.attachment:
            raise AttachmentError("the manifest announced no attachment", hint="Manifest(..., attachment=True)")
        try:
            data = msgpack.packb(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise AttachmentError(f"msgpack cannot carry this value: {error}") from None
        if len(data) > MAX_ATTACHMENT_BYTES:
            raise AttachmentError(
                f"the attachment packs to {len(data)} bytes; at most {MAX_ATTACHMENT_BYTES} may travel"
            )
        self._handle.attach(data)

    async def committed(self) -> Receipt:
        """Wait for the receipt, or raise what ended the transfer; `CommitUnknown` if only the receipt is missing."""
        return await self._committed()

    def wait_committed(self, timeout_s: float) -> Receipt:
        """Blocking form of `committed` for engine threads; waits natively. After DeadlineExceeded it goes on."""
        return self._wait_end(timeout_s)

    def _lost(self) -> KvwireError:
        if self._handle.all_ready:
            return CommitUnknown(
                f"the link was lost before the receipt of {self!r}", hint="the receiver may have all of it"
            )
        return super()._lost()

    def _fail(self, error: KvwireError) -> None:
        if isinstance(error, LinkLost) and self._handle.all_ready and not self._ended.done():
            error = CommitUnknown(f"{error}; only the receipt was missing", hint="the receiver may have all of it")
        super()._fail(error)

    def _receipt(self) -> Receipt:
        first, last, receipt = self._handle.times_ns
        return Receipt(
            self.transfer_id, self.manifest.request_id, self._bytes, (receipt - first) / 1e9, (receipt - last) / 1e9
        )


class Incoming(Transfer):
    """The receiving half of a transfer: first an offer to be granted or refused, then layers, then the commit."""

    _handle: InTransfer | None

    def __init__(self, link: Link, transfer_id: int, manifest: Manifest) -> None:
        super().__init__(link, transfer_id, manifest)
        self._changed = asyncio.Event()
        self._segments = manifest.segments()
        self._granted_segments = 0
        self._attachment: Any = None

    @property
    def peer(self) -> str:
        """Address of the link's peer."""
        return self._link.peer

    async def grant(self, placement: Mapping[str, Slots], *, cell_bytes: int | None = None) -> None:
        """Accept the offer: which blocks are wanted, and into which slots. Groups left out are not wanted.

        PlacementError, before anything is sent, for blocks that are not on offer, kinds that go all or nothing,
        slots that overlap, are in use, read-only or outside their pool.
        """
        self.grant_nowait(placement, cell_bytes=cell_bytes)

    def grant_nowait(self, placement: Mapping[str, Slots], *, cell_bytes: int | None = None) -> None:
        """As `grant`, which never waits; on the loop's thread only."""
        if self._handle is not None or self._ended.done():
            raise Closed(f"{self!r} cannot be granted now")
        unknown = set(placement) - {group.spec.name for group in self.manifest.groups}
        if unknown:
            raise PlacementError(f"no group is called {sorted(unknown)[0]!r} in this offer")
        runs: list[tuple[BlockRange, ...]] = []
        segments: list[Segment] = []
        total = 0
        wanted = [slots for slots in placement.values()]
        check_disjoint(wanted)
        for offer in self.manifest.groups:
            slots = placement.get(offer.spec.name)
            blocks = slots.block_numbers(offer) if slots is not None else np.empty(0, dtype=np.int64)
            runs.append(_runs(blocks))
            if slots is not None and len(blocks):
                segments += slots.segments(offer, blocks, writable=True)
            else:
                segments += [_empty_segment(offer.spec.block_bytes)] * len(offer.spec.layers)
            total += len(blocks) * offer.spec.block_bytes * len(offer.spec.layers)
            self._granted_segments += len(offer.spec.layers) if len(blocks) else 0
        grant = Grant(tuple(runs), self._link.cell_bytes(cell_bytes))
        self._link.check_grant(self.manifest, grant)
        if not total and not self.manifest.attachment:
            raise PlacementError("a grant of nothing", hint="refuse the offer, or take at least one block")
        try:
            for slots in wanted:
                self._leases.append(slots.lease_write(f"transfer {self.transfer_id}"))
            handle = InTransfer(
                self._link.engine_link, self.transfer_id, segments, grant.cell_bytes, self.manifest.attachment
            )
        except BaseException:
            self._release()
            self._leases.clear()
            raise
        self._handle = handle
        self._bytes = total
        self._link._send_grant(self, grant)

    async def refuse(self, reason: str = "") -> None:
        """Decline the offer; the sender gets `OfferRefused` with this reason."""
        if self._handle is not None or self._ended.done():
            raise Closed(f"{self!r} cannot be refused now")
        self._error = Closed(f"transfer {self.transfer_id} was refused here")
        self._link._send_refuse(self, reason)
        self._finish()

    def _engine_changed(self) -> None:
        self._changed.set()
        super()._engine_changed()

    def _finish(self) -> None:
        self._changed.set()
        super()._finish()

    async def layers(self) -> AsyncIterator[Layer]:
        """Every granted layer of every group, in the order in which they become complete.

        Raises what ended the transfer, if that was not the commit.
        """
        seen = given = 0
        while True:
            self._changed.clear()
            done = self._handle.completed(seen) if self._handle is not None else []
            seen += len(done)
            for segment in done:
                if segment < len(self._segments):
                    given += 1
                    yield Layer(*self._segments[segment])
            if self._handle is not None and given == self._granted_segments:
                return
            if done:
                continue
            if self._ended.done():
                self._outcome(self.state)
                return
            await self._changed.wait()

    async def wait_layer(self, group: str, layer: int) -> None:
        """Wait until one layer of a group is complete. Raises what ended the transfer before that."""
        segment = self.manifest.segment(group, layer)
        while self._handle is None or not self._handle.wait_segment(segment, 0.0):
            if self._ended.done():
                self._outcome(self.state)
                return
            self._changed.clear()
            if self._handle is None or not self._handle.wait_segment(segment, 0.0):
                await self._changed.wait()

    def wait_for_layer(self, group: str, layer: int, timeout_s: float) -> None:
        """Blocking form of `wait_layer` for engine threads; waits natively."""
        self._off_loop()
        if self._handle is None:
            raise Closed(f"{self!r} has not been granted")
        if not self._handle.wait_segment(self.manifest.segment(group, layer), timeout_s):
            if self._handle.state == "active":
                raise DeadlineExceeded(f"layer {layer} of {group} is not complete after {timeout_s:g} s")
            self._outcome(self._handle.state)

    async def committed(self) -> Receipt:
        """Wait for the commit of all groups and layers, or raise what ended the transfer."""
        return await self._committed()

    def wait_committed(self, timeout_s: float) -> Receipt:
        """Blocking form of `committed` for engine threads; waits natively."""
        return self._wait_end(timeout_s)

    @property
    def progress(self) -> tuple[int, int]:
        """Cells that have landed, cells in all."""
        return self._handle.cells if self._handle is not None else (0, 0)

    @property
    def attachment(self) -> Any:
        """The sender's attachment, after the commit; None where none was announced or before that."""
        raw = self._handle.attachment if self._handle is not None else None
        if raw is None:
            return None
        try:
            return msgpack.unpackb(raw, strict_map_key=False)
        except (ValueError, msgpack.exceptions.UnpackException) as error:
            raise AttachmentError(f"the attachment is no msgpack value: {error}") from None

    def _receipt(self) -> Receipt:
        assert self._handle is not None
        first, commit = self._handle.times_ns
        return Receipt(self.transfer_id, self.manifest.request_id, self._bytes, (commit - first) / 1e9, None)
