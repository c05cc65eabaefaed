"""The receiving half of a transfer: an offer to be granted or refused, then layers, then the commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from kvwire import wire
from kvwire._ext.incoming import InTransfer
from kvwire._ext.layout import Segment
from kvwire.codecs.choice import by_ids
from kvwire.codings import codings
from kvwire.errors import AttachmentError, Closed, ContentMismatch, DeadlineExceeded, PlacementError, SpecError
from kvwire.guard import counted_bytes
from kvwire.pool import Slots, check_disjoint
from kvwire.transfer import LONGEST_WAIT_S, Receipt, Transfer, at_once_s, check_slots, runs_of
from kvwire.types import BlockRange, Grant, GroupOffer

if TYPE_CHECKING:
    from kvwire.link import Link


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of one group, complete and verified."""

    group: str
    layer: int


def _empty_segment(block_bytes: int) -> Segment:
    """The segment of a layer of which nothing is wanted."""
    whole = np.array([[0, block_bytes, 0, 0, 1, block_bytes, block_bytes]], dtype=np.int64)
    return Segment(0, np.empty(0, dtype=np.int64), 1, whole, block_bytes)


class Incoming(Transfer):
    """The receiving half of a transfer: first an offer to be granted or refused, then layers, then the commit."""

    _handle: InTransfer | None

    def __init__(self, link: Link, offered: wire.Offered) -> None:
        super().__init__(link, offered.transfer, offered.manifest, offered.klass)
        manifest = self.manifest
        self._choices = by_ids(offered.codecs, (group.spec for group in manifest.groups))
        self._changed = asyncio.Event()
        self._segments = manifest.segments()
        self._granted_segments = 0
        self._granted: list[NDArray[np.int64]] = []  # block numbers, by group
        self._cell_bytes = 0
        self._counted_bytes = counted_bytes(manifest)  # against the quota of the peer's tenant

    @property
    def peer(self) -> str:
        """Address of the link's peer."""
        return self._link.peer

    async def grant(
        self,
        placement: Mapping[str, Slots],
        *,
        cell_bytes: int | None = None,
        expect: Mapping[str, Sequence[bytes]] | None = None,
    ) -> None:
        """Accept the offer: which blocks are wanted, and into which slots. Groups left out are not wanted.

        `expect`: by group, the hashes of the prompt's blocks, by block number, as this side computes them itself
        (`block_hashes`, its seed naming model revision and adapter; for a state its one key). Where the offer names
        other hashes for blocks that are wanted, or none, it is refused, and ContentMismatch is raised here: KV that was
        computed from something else is never committed.
        Before anything is sent: PlacementError for blocks that are not on offer, kinds that go all or nothing, slots
        that overlap, are in use or outside their pool, and a size of cells that cannot be (`Config.cell_bytes`);
        SpecError for memory of another layout, or that cannot be written; LimitExceeded where the ledger would be more
        than the peer reads; Closed once the offer is over.
        """
        self.grant_nowait(placement, cell_bytes=cell_bytes, expect=expect)

    def grant_nowait(
        self,
        placement: Mapping[str, Slots],
        *,
        cell_bytes: int | None = None,
        expect: Mapping[str, Sequence[bytes]] | None = None,
    ) -> None:
        """As `grant`, which never waits; on the loop's thread only."""
        if self._handle is not None or self._error is not None or self._ended.done():
            raise Closed(f"{self!r} cannot be granted now")
        check_slots("placement", placement)
        if not isinstance(expect, Mapping | None):
            raise SpecError(f"expect is {expect!r:.80}; expected a dict from group name to hashes")
        unknown = set(placement) - {group.spec.name for group in self.manifest.groups}
        if unknown:
            raise PlacementError(f"no group is called {sorted(unknown)[0]!r} in this offer")
        runs: list[tuple[BlockRange, ...]] = []
        granted: list[NDArray[np.int64]] = []
        segments: list[Segment] = []
        total = granted_segments = 0
        wanted = [slots for slots in placement.values()]
        check_disjoint(wanted)
        for offer in self.manifest.groups:
            slots = placement.get(offer.spec.name)
            blocks = slots.block_numbers(offer) if slots is not None else np.empty(0, dtype=np.int64)
            if expect is not None and len(blocks):
                self._check_content(offer, blocks, expect)
            runs.append(runs_of(blocks))
            granted.append(blocks)
            if slots is not None and len(blocks):
                segments += slots.segments(offer, blocks, writable=True)
            else:
                segments += [_empty_segment(offer.spec.block_bytes)] * len(offer.spec.layers)
            total += len(blocks) * offer.spec.block_bytes * len(offer.spec.layers)
            granted_segments += len(offer.spec.layers) if len(blocks) else 0
        grant = Grant(tuple(runs), self._link.config.cell_bytes if cell_bytes is None else cell_bytes)
        wire.check_grant(self.manifest, grant)
        try:
            for slots in wanted:
                self._leases.append(slots.lease_write(f"transfer {self.transfer_id}"))
            attachment, through = self.manifest.attachment, codings(self.manifest, self._choices)
            self._handle = InTransfer(
                self._link.engine_link, self.transfer_id, segments, grant.cell_bytes, attachment, through
            )
            self._bytes = total
            self._granted_segments = granted_segments
            self._link._exchange.send_grant(self, grant)
            self._granted, self._cell_bytes = granted, grant.cell_bytes
        except BaseException:
            self._handle = None
            self._release()
            self._leases.clear()
            raise

    def _check_content(
        self, offer: GroupOffer, blocks: NDArray[np.int64], expect: Mapping[str, Sequence[bytes]]
    ) -> None:
        """Refuse an offer that names other content than is expected for these blocks."""
        name, hashes = offer.spec.name, expect.get(offer.spec.name)
        if not isinstance(hashes, Sequence) or isinstance(hashes, bytes) or len(hashes) <= int(blocks[-1]):
            raise SpecError(
                f"expect has no hash of block {blocks[-1]} of group {name}", hint="block_hashes(tokens, ...)"
            )
        for block in blocks.tolist():
            named = offer.hashes[block - offer.blocks.start] if offer.hashes else b""
            if named != hashes[block]:
                what = "other content than expected" if named else "no content"
                reason = f"group {name}: the offer names {what} for block {block}"
                self._refuse(reason)
                raise ContentMismatch(reason)

    async def refuse(self, reason: str = "") -> None:
        """Decline the offer; the sender gets `OfferRefused` with this reason, which another tenant is not told."""
        if self._handle is not None or self._ended.done():
            raise Closed(f"{self!r} cannot be refused now")
        self._refuse(str(reason))

    def _refuse(self, reason: str) -> None:
        self._error = Closed(f"transfer {self.transfer_id} was refused here")
        self._link._exchange.send_refuse(self, reason)
        self._finish()

    def _engine_changed(self) -> None:
        self._changed.set()
        super()._engine_changed()

    def _finish(self) -> None:
        self._link._node._withdrawn(self)
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
        while True:
            self._changed.clear()
            if self._handle is not None and self._handle.missing(segment) == 0:
                return
            if self._ended.done():
                self._outcome(self.state)
                return
            await self._changed.wait()

    def wait_for_layer(self, group: str, layer: int, timeout_s: float) -> None:
        """Blocking form of `wait_layer` for engine threads; waits natively."""
        self._check_wait(timeout_s)
        if self._handle is None:
            raise Closed(f"{self!r} has not been granted")
        segment = self.manifest.segment(group, layer)
        until = time.monotonic() + min(timeout_s, LONGEST_WAIT_S)
        while not self._handle.wait_segment(segment, at_once_s(until)):
            if self._handle.state != "active":
                self._outcome(self._handle.state)
                return
            if time.monotonic() >= until:
                raise DeadlineExceeded(f"layer {layer} of {group} is not complete after {timeout_s:g} s")

    async def committed(self) -> Receipt:
        """Wait for the commit of all groups and layers, or raise what ended the transfer."""
        return await self._committed()

    def wait_committed(self, timeout_s: float) -> Receipt:
        """Blocking form of `committed` for engine threads; waits natively."""
        return self._wait_end(timeout_s)

    def failed_blocks(self) -> dict[str, tuple[int, ...]]:
        """By group, the granted blocks that are not whole in every layer: what an engine has to compute itself.

        Empty tuples after the commit; while the transfer is under way, what has not landed yet. A state that is not
        whole is block 0. What was never granted is not among them.
        """
        failed: dict[str, tuple[int, ...]] = {}
        landed = np.frombuffer(self._handle.landed() if self._handle is not None else b"", np.uint8)
        missing = 1 - np.unpackbits(landed, bitorder="little").astype(np.int64)
        first_cell = 0
        for offer, blocks in zip(self.manifest.groups, self._granted, strict=False):
            block_bytes = offer.spec.block_bytes
            edges = np.arange(len(blocks) + 1) * block_bytes
            first, end = edges[:-1] // self._cell_bytes, -(-edges[1:] // self._cell_bytes)
            cells = int(end[-1]) if len(blocks) else 0
            bad = np.zeros(len(blocks), np.bool_)
            for _ in offer.spec.layers:
                before = np.concatenate(([0], np.cumsum(missing[first_cell : first_cell + cells])))
                bad |= before[end] > before[first]
                first_cell += cells
            failed[offer.spec.name] = tuple(blocks[bad].tolist())
        return failed

    @property
    def attachment(self) -> Any:
        """The sender's attachment, after the commit; None where none was announced or before that."""
        raw = self._handle.attachment if self._handle is not None else None
        if raw is None:
            return None
        try:
            return wire.value_of(raw)
        except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
            raise AttachmentError(f"the attachment is no msgpack value: {error}") from None

    def _receipt(self) -> Receipt:
        assert self._handle is not None
        first, commit = self._handle.times_ns
        seconds = (commit - first) / 1e9, None
        return Receipt(self.transfer_id, self.manifest.request_id, self._bytes, *seconds, self._coded)
