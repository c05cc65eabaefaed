"""The sending half of a transfer: which blocks are ready, and whether the receiver has them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from kvwire import wire
from kvwire._ext.outgoing import OutTransfer
from kvwire.codecs.choice import Choice
from kvwire.codecs.registry import check_outside_codecs
from kvwire.codings import codings, named
from kvwire.errors import (
    AttachmentError,
    Closed,
    CommitUnknown,
    DeadlineExceeded,
    KvwireError,
    LinkLost,
    OfferRefused,
    PlacementError,
    QueueFull,
    ReadyError,
    SpecError,
)
from kvwire.forks import add_lock
from kvwire.pool import Slots
from kvwire.transfer import Receipt, Transfer, check_slots, runs_of
from kvwire.types import MAX_ATTACHMENT_BYTES, MAX_BLOCKS, BlockRange, Grant, GroupOffer, Manifest

if TYPE_CHECKING:
    from kvwire._ext.layout import Segment
    from kvwire.egress import Egress
    from kvwire.link import Link


WEEK_S = 7 * 86400.0
FULL_PAUSE_S = 0.001
FULL_PAUSE_LONGEST_S = 0.05
"""How often `wait_ready` looks whether the queue has room."""


def _granted_blocks(offer: GroupOffer, runs: tuple[BlockRange, ...]) -> NDArray[np.int64]:
    """Block numbers of a grant's runs, ascending, int64."""
    parts = [np.arange(run.start, run.stop, dtype=np.int64) for run in runs]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _look_up(positions: NDArray[np.int64], start: int, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where these blocks stand; -1 for one that has no place. `positions` begins with block `start`."""
    inside = (blocks >= start) & (blocks < start + len(positions))
    found = np.full(len(blocks), -1, dtype=np.int64)
    found[inside] = positions[blocks[inside] - start]
    return found


def _block_numbers(group: str, blocks: Iterable[int] | BlockRange) -> NDArray[np.int64]:
    """The blocks that a caller names, as int64."""
    if isinstance(blocks, BlockRange):
        blocks = range(blocks.start, blocks.stop)
    if isinstance(blocks, range):
        if blocks and not (min(blocks[0], blocks[-1]) >= 0 and max(blocks[0], blocks[-1]) < MAX_BLOCKS):
            raise ReadyError(f"blocks of group {group} are {blocks!r}; expected numbers in 0 to {MAX_BLOCKS - 1}")
        return np.arange(blocks.start, blocks.stop, blocks.step, dtype=np.int64)
    try:
        numbers = np.array(blocks if isinstance(blocks, np.ndarray) else list(blocks))
    except (TypeError, ValueError):
        numbers = np.empty((0, 0))
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ReadyError(f"blocks of group {group} are {blocks!r:.80}; expected a sequence of integers")
    return numbers.astype(np.int64)


def _say(blocks: tuple[int, ...]) -> str:
    """Block numbers for a message, short."""
    if not blocks:
        return "none"
    return ", ".join(f"{run.start}..{run.stop - 1}" for run in runs_of(np.array(blocks))[:8])


def check_source(manifest: Manifest, source: Mapping[str, Slots]) -> None:
    """SpecError or PlacementError unless the source has slots for every block that the manifest offers."""
    if not isinstance(manifest, Manifest):
        raise SpecError(f"manifest is {manifest!r:.80}; expected a Manifest")
    check_slots("source", source)
    names = {group.spec.name for group in manifest.groups}
    if set(source) != names:
        odd = sorted(set(source) ^ names)[0]
        raise SpecError(f"the source and the manifest differ in group {odd!r}", hint="one entry for each group")
    for group in manifest.groups:
        slots = source[group.spec.name]
        if slots.pages.spec != group.spec:
            raise SpecError(f"the pages of group {group.spec.name} were registered for another spec")
        have = slots.block_numbers(group)
        if len(have) != len(group.blocks):
            raise PlacementError(
                f"group {group.spec.name}: {len(group.blocks)} blocks on offer, slots for {len(have)} of them"
            )


def due_ns(deadline_s: float | None, late: str) -> int:
    """When a transfer is due, CLOCK_MONOTONIC; 0: at no time. DeadlineExceeded if that has passed and may not."""
    if late not in ("refuse", "send"):
        raise SpecError(f'late is {late!r}; expected "refuse" or "send"')
    if deadline_s is None:
        return 0
    if isinstance(deadline_s, bool) or not isinstance(deadline_s, int | float) or not abs(deadline_s) <= WEEK_S:
        raise SpecError(f"deadline_s is {deadline_s!r}; expected seconds from now, at most a week")
    if deadline_s <= 0 and late == "refuse":
        raise DeadlineExceeded(
            f"the deadline passed {-deadline_s:g} s ago", hint='late="send" sends it all the same, before its class'
        )
    return max(1, time.monotonic_ns() + int(deadline_s * 1e9))


@dataclass(slots=True)
class Offer:
    """What is on offer, under its present id: another one when the receiver has restarted."""

    transfer: int
    manifest: Manifest
    source: Mapping[str, Slots]
    klass: int
    deadline_ns: int
    choices: Sequence[Choice | None]
    granted: asyncio.Future[Outgoing]


class Outgoing(Transfer):
    """The sending half of a transfer, after the receiver has granted it. Made by `Link.offer`.

    If the receiver restarts, it is offered once more, under another `transfer_id`, and what was ready is sent again.
    """

    _handle: OutTransfer
    _lock: threading.Lock
    """Of what is ready."""

    def __init__(self, link: Link, offer: Offer, grant: Grant, codecs: Sequence[int]) -> None:
        super().__init__(link, offer.transfer, offer.manifest, offer.klass)
        self._source = offer.source
        self._chosen = offer.choices
        self._deadline_ns = offer.deadline_ns
        self.granted: dict[str, tuple[int, ...]] = {}
        """Block numbers that the receiver wants, per group, ascending."""
        self._positions: dict[str, NDArray[np.int64]] = {}
        add_lock(self)
        self._ready_before = 0, 0, 0  # a handle ago: first and last `ready`, and when they were repeated
        try:
            self._leases += [slots.lease_read(f"transfer {self.transfer_id}") for slots in offer.source.values()]
            self._handle = self._take(grant, codecs)
        except BaseException:
            self._release()
            raise
        self._first_positions = self._positions

    def _take(self, grant: Grant, codecs: Sequence[int]) -> OutTransfer:
        """The engine's half of a grant, and what it means for `ready`. `codecs`: what its offer had named."""
        segments: list[Segment] = []
        positions, granted, nbytes = {}, {}, 0
        for offer, runs in zip(self.manifest.groups, grant.runs, strict=True):
            blocks = _granted_blocks(offer, runs)
            at = np.full(len(offer.blocks), -1, dtype=np.int64)
            at[blocks - offer.blocks.start] = np.arange(len(blocks))
            positions[offer.spec.name] = at
            granted[offer.spec.name] = tuple(blocks.tolist())
            nbytes += len(blocks) * offer.spec.block_bytes * len(offer.spec.layers)
            segments += self._source[offer.spec.name].segments(offer, blocks)
        attachment, link = self.manifest.attachment, self._link.engine_link
        # State stands for the whole prefix: a decoder can begin without some blocks, and not without that.
        kinds = {group.spec.name: group.spec.kind for group in self.manifest.groups}
        ranks = [0 if kinds[group].is_state else 1 for group, _ in self.manifest.segments()]
        choices = named(self._chosen, codecs)
        through = codings(self.manifest, choices, partial(self._link._compression.gauge, self.manifest.model))
        order = self.klass, self._deadline_ns, ranks
        handle = OutTransfer(link, self.transfer_id, segments, grant.cell_bytes, attachment, *order, through)
        self._positions, self.granted, self._bytes, self._choices = positions, granted, nbytes, choices
        return handle

    # --- a receiver that has restarted ----------------------------------------------------------------------------

    def _grant_again(self, grant: Grant, codecs: Sequence[int]) -> None:
        """The receiver, which has restarted, wants these blocks: whatever was ready is ready again.

        OfferRefused where it wants more than before: nobody knows whether those blocks are computed.
        """
        with self._lock:
            before, was = self._handle, self.granted
            if before.state != "active":
                return  # given up meanwhile by another thread, and the loop is about to hear of it
            for offer, runs in zip(self.manifest.groups, grant.runs, strict=True):
                blocks = _granted_blocks(offer, runs)
                # Nor is it known any more of a block that was wanted first, and not by a life in between.
                more = blocks[_look_up(self._positions[offer.spec.name], offer.blocks.start, blocks) < 0]
                if len(more):
                    raise OfferRefused(
                        f"the receiver has restarted and wants block {more[0]} of group {offer.spec.name}, which it "
                        "did not want before",
                        hint="offer the transfer again",
                    )
            handle = self._take(grant, codecs)
            for segment, (group, _) in enumerate(self.manifest.segments()):
                done = np.frombuffer(before.ready_blocks(segment), dtype=np.bool_)
                found = _look_up(self._positions[group], self._start(group), np.array(was[group], np.int64)[done])
                for run in runs_of(found[found >= 0]):
                    handle.ready(segment, run.start, len(run))
            if before.attachment is not None:
                handle.attach(before.attachment)
            self._ready_before = *self._ready_times(), handle.times_ns[1]
            self._handle = handle
        before.abort()

    def _ready_times(self) -> tuple[int, int]:
        """CLOCK_MONOTONIC of the first and the last `ready`, whichever grant they were for."""
        first, last, _ = self._handle.times_ns
        first_before, last_before, repeated = self._ready_before
        return first_before or first, last_before if last == repeated else last

    def _release(self) -> None:
        with self._lock:  # or a grant that comes once more would read what is given back
            super()._release()

    # --- what is ready --------------------------------------------------------------------------------------------

    def ready(self, group: str, layer: int, blocks: Iterable[int] | BlockRange | None = None) -> None:
        """These blocks of a layer are computed and may leave; None: all that were granted. From any thread; WrongThread
        in a codec's function.

        Until the receipt or an abort they must not be written (`Pages.check_free` says so). ReadyError for blocks
        that were not granted or were ready before, QueueFull where too much waits for the lanes; then none of the
        call's blocks is ready. SpecError for a group or layer that there is not, Closed once the transfer is over.
        """
        # Before the lock, which the loop needs to end a transfer: whatever a caller iterates over may take its time.
        self._ready(group, layer, None if blocks is None else _block_numbers(group, blocks))

    def _ready(self, group: str, layer: int, wanted: NDArray[np.int64] | None) -> None:
        check_outside_codecs()
        segment = self.manifest.segment(group, layer)
        with self._lock:  # so that nothing gets between the checks and what they are for
            runs = [(0, len(self.granted[group]))] if wanted is None else self._position_runs(group, wanted)
            queued = self._link.engine_link.queued_runs
            full = queued and queued + len(runs) > self._link.config.max_queued_runs
            if full and self._handle.state == "active":  # else it is over, which is said below
                raise QueueFull(
                    f"{queued} runs of ready cells wait for the lanes to {self._link.peer}",
                    hint="await wait_ready(...), name more blocks a call, or raise Config.max_queued_runs",
                )
            try:
                if len(runs) > 1:
                    for first, count in runs:
                        self._handle.check_ready(segment, first, count)
                for first, count in runs:
                    self._handle.ready(segment, first, count)
            except ReadyError as error:
                raise ReadyError(f"layer {layer} of group {group}: {error}") from None

    async def wait_ready(self, group: str, layer: int, blocks: Iterable[int] | BlockRange | None = None) -> None:
        """As `ready`, and waits while the queue is full. Raises what ended the transfer, if that comes first."""
        wanted = None if blocks is None else _block_numbers(group, blocks)
        pause_s = FULL_PAUSE_S
        while True:
            try:
                return self._ready(group, layer, wanted)
            except QueueFull:
                await asyncio.wait((self._ended,), timeout=pause_s)
                pause_s = min(2 * pause_s, FULL_PAUSE_LONGEST_S)
            except Closed:
                if self._ended.done():
                    self._outcome(self.state)
                raise

    def _start(self, group: str) -> int:
        """The first block on offer."""
        return self.manifest.groups[self.manifest.group_index(group)].blocks.start

    def _position_runs(self, group: str, wanted: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Block numbers as runs of (first position in grant order, count)."""
        first = found = _look_up(self._positions[group], self._start(group), wanted)
        if self._first_positions is not self._positions:
            first = _look_up(self._first_positions[group], self._start(group), wanted)
        if (first < 0).any():
            block = int(wanted[first < 0][0])
            raise ReadyError(
                f"block {block} of group {group} was not granted",
                hint=f"{_say(self.granted[group])} were; see `granted`",
            )
        found = np.sort(found[found >= 0])  # a receiver that has restarted may want less than before
        if (np.diff(found) == 0).any():
            raise ReadyError(f"a block of group {group} is named twice in one call")
        return [(run.start, len(run)) for run in runs_of(found)]

    def attach(self, value: Any) -> None:
        """Send the transfer's attachment: anything msgpack can carry, at most 64 KiB packed. Once, from any thread;
        WrongThread in a codec's function."""
        check_outside_codecs()
        if not self.manifest.attachment:
            raise AttachmentError("the manifest announced no attachment", hint="Manifest(..., attachment=True)")
        try:
            data = msgpack.packb(value)
            if len(data) <= MAX_ATTACHMENT_BYTES:
                wire.value_of(data)  # what the receiver will do: a map's key may be a list now
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise AttachmentError(f"msgpack cannot carry this value: {error}") from None
        if len(data) > MAX_ATTACHMENT_BYTES:
            raise AttachmentError(
                f"the attachment packs to {len(data)} bytes; at most {MAX_ATTACHMENT_BYTES} may travel"
            )
        with self._lock:
            self._handle.attach(data)

    async def committed(self) -> Receipt:
        """Wait for the receipt, or raise what ended the transfer; `CommitUnknown` if only the receipt is missing."""
        return await self._committed()

    def wait_committed(self, timeout_s: float) -> Receipt:
        """Blocking form of `committed` for engine threads; waits natively. After DeadlineExceeded it goes on."""
        return self._wait_end(timeout_s)

    def _tell(self, egress: Egress) -> None:
        """What the controller hears of a transfer that has ended."""
        if self._handle is not None and self.state == "committed":
            claimed, (_, last) = self._handle.last_claim_ns, self._ready_times()
            queued_s = max(0, claimed - last) / 1e9
            egress.landed(self._bytes, queued_s, max(0, self._handle.times_ns[2] - max(claimed, last)) / 1e9)

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
        (first, last), receipt = self._ready_times(), self._handle.times_ns[2]
        seconds = (receipt - first) / 1e9, (receipt - last) / 1e9
        return Receipt(self.transfer_id, self.manifest.request_id, self._bytes, *seconds, self._coded)
