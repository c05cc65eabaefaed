"""Registered memory of a group, and which of its slots hold which blocks.

A slot is one own page: position `s` along axis 0 of the arrays that were registered. It is the same in all layers
of the group, as a block table of a serving engine has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvwire._ext.layout import Segment
from kvwire.errors import Closed, PlacementError, SpecError
from kvwire.pool.layout import LayerLayout, LayerMemory, Paging, Plane, layer_layout, layer_memory
from kvwire.pool.leases import Lease, LeaseTable
from kvwire.pool.overlap import aliased
from kvwire.types import BlockRange, GroupOffer, GroupSpec

Ints = NDArray[np.int64]

_ALIGN_BYTES: Final = 4096  # a page of memory, so that no two layers of `Pages.empty` share one


class Pages:
    """Registered memory of one group: where each block of each layer may lie. Copies nothing.

    `layers`: one entry per layer of the spec. An entry is either a sequence of one array per part, `[slots,
    *part.shape]`, or one array for all parts: `[slots, parts, *part.shape]` where the parts have one shape (without
    the axis of parts where there is one), or flat `[slots, elements]`, contiguous in a page, parts one after the
    other, or flat contiguous bytes whose length is a multiple of a page. Strides may be any that are not negative.

    An array is anything with the buffer protocol, `__array_interface__`, or DLPack on the CPU. Its dtype is that of
    the spec, or integer or void of the same size; flat pages may also be bytes.

    `block_tokens`: tokens in one own page, where that differs from the spec; one must be a multiple of the other.
    `writable`: True: `SpecError` here if it cannot be written; False: it is only read; None: found out when it is to
    be written.

    The buffers stay exported until `close`, so that freeing one early raises BufferError.

    Raises `SpecError`, naming what was wrong and what was expected.
    """

    def __init__(
        self,
        spec: GroupSpec,
        layers: Sequence[Any],
        *,
        block_tokens: int | None = None,
        writable: bool | None = None,
    ) -> None:
        if not isinstance(spec, GroupSpec):
            raise SpecError(f"spec is {spec!r:.80}; expected a GroupSpec")
        if not hasattr(layers, "__len__"):
            raise SpecError(f"group {spec.name}: layers are {layers!r:.80}; expected one entry for each layer")
        if len(layers) != len(spec.layers):
            raise SpecError(f"group {spec.name}: memory of {len(layers)} layers; expected {len(spec.layers)}")
        self.spec: Final = spec
        self.paging: Final = Paging.of(spec, block_tokens)
        self._memory = [layer_memory(self.paging, n, entry) for n, entry in zip(spec.layers, layers, strict=True)]
        counts = sorted({layer.slots for layer in self._memory})
        if len(counts) != 1:
            raise SpecError(f"group {spec.name}: its layers have {counts} slots; expected the same number in all")
        self.slots: Final = counts[0]
        """Number of slots."""
        patterns: dict[object, Ints] = {}
        self._layouts = [layer_layout(self.paging, layer.planes, patterns) for layer in self._memory]
        self._leases = LeaseTable(self.slots)
        if writable is False:
            self._unwritable: str | None = f"group {spec.name} was registered with writable=False, to be read only"
        else:
            self._unwritable = self._find_unwritable()
        if writable:
            self.check_writable()

    def _find_unwritable(self) -> str | None:
        for layer in self._memory:
            if layer.readonly:
                return f"{layer.readonly} is read-only; expected memory that can be written"
        try:
            pair = aliased(self.planes, self.slots)
        except SpecError as error:
            return str(error)
        if pair is None:
            return None
        one, other = pair[0].what, pair[1].what
        what = f"{one} overlaps itself" if one == other else f"{one} overlaps {other}"
        return f"{what}; expected memory in which every byte has one place"

    @classmethod
    def empty(cls, spec: GroupSpec, slots: int, *, block_tokens: int | None = None) -> Pages:
        """`slots` zeroed slots of memory of its own, page-aligned; `array` shows it."""
        if not isinstance(slots, int) or not 0 < slots < 1 << 31:
            raise SpecError(f"group {spec.name}: {slots!r} slots; expected an integer above 0, below 2**31")
        paging = Paging.of(spec, block_tokens)
        layer_bytes = -(-slots * paging.page_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
        memory = np.zeros(len(spec.layers) * layer_bytes + _ALIGN_BYTES, np.uint8)
        memory = memory[-memory.ctypes.data % _ALIGN_BYTES :][: len(spec.layers) * layer_bytes]
        flat = memory.reshape(len(spec.layers), layer_bytes)[:, : slots * paging.page_bytes]
        return cls(spec, list(flat.reshape(len(spec.layers), slots, paging.page_bytes)), block_tokens=block_tokens)

    @property
    def planes(self) -> list[Plane]:
        """Every part of every layer, layers outermost. `Closed` after `close`."""
        self.check_open()
        return [plane for layer in self._memory for plane in layer.planes]

    @property
    def layouts(self) -> list[LayerLayout]:
        """Per layer, how a block lies. `Closed` after `close`."""
        self.check_open()
        return self._layouts

    def array(self, layer: int) -> NDArray[np.uint8]:
        """The bytes of `layer` (its number in the spec), `[slots, page bytes]`, where a page is contiguous.

        A view: it keeps the memory alive, `close` or not. `SpecError` where a page is not contiguous.
        """
        self.check_open()
        if layer not in self.spec.layers:
            raise SpecError(f"group {self.spec.name} has no layer {layer}; it has {self.spec.layers}")
        memory = self._memory[self.spec.layers.index(layer)]
        first = memory.planes[0]
        end = first.address
        for plane in memory.planes:
            if plane.count_rows() > 1 or plane.address != end or plane.block_stride != first.block_stride:
                raise SpecError(f"{plane.what}: its pages are not contiguous bytes, parts one after the other")
            end += plane.span
        return np.asarray(_Window(memory, (self.slots, self.paging.page_bytes)))

    def at(self, slots: Iterable[int], blocks: Iterable[int] | BlockRange | None = None) -> Slots:
        """Says that `slots` hold `blocks` (numbers as in the manifest, ascending; None: all on offer).

        With own pages smaller than a block, `slots` lists those of the first block in token order, then those of the
        second, and so on. With larger ones, `slots` lists each page once that holds any of `blocks`, in token order:
        page `p` holds blocks `p * n` to `p * n + n - 1`.

        Raises `PlacementError` for a slot that does not exist or is named twice, or a number of slots that does not
        fit the blocks.
        """
        self.check_open()
        if isinstance(blocks, BlockRange):
            blocks = range(blocks.start, blocks.stop)
        name = self.spec.name
        chosen = self._slot_numbers(slots)
        twice = np.sort(chosen)
        twice = twice[:-1][twice[:-1] == twice[1:]]
        if twice.size:
            raise PlacementError(f"group {name}: slot {twice[0]} is named twice")
        numbers = None if blocks is None else _ascending(f"group {name}: blocks", blocks)
        result = Slots(self, chosen, numbers)
        if numbers is not None:
            result._check_count(numbers)
        return result

    def _slot_numbers(self, slots: Iterable[int]) -> Ints:
        chosen = _integers(f"group {self.spec.name}: slots", slots)
        outside = chosen[(chosen < 0) | (chosen >= self.slots)]
        if outside.size:
            raise PlacementError(
                f"group {self.spec.name}: slot {outside[0]} does not exist; there are {self.slots}, from 0"
            )
        return chosen

    # --- leases -----------------------------------------------------------------------------------------------

    def lease_read(self, slots: Iterable[int], who: str) -> Lease:
        """Lease for `who` (as "transfer 12") to read `slots`. `PlacementError` while one is being written."""
        self.check_open()
        return self._leases.take(self, self._slot_numbers(slots), who, writes=False)

    def lease_write(self, slots: Iterable[int], who: str) -> Lease:
        """Lease for `who` to write `slots`. `PlacementError` while one is in use, `SpecError` if read-only."""
        self.check_writable()
        return self._leases.take(self, self._slot_numbers(slots), who, writes=True)

    def check_writable(self) -> None:
        """`SpecError` where this memory cannot be written: it is read-only, or overlaps itself."""
        self.check_open()
        if self._unwritable is not None:
            raise SpecError(self._unwritable)

    def check_free(self, slots: Iterable[int]) -> None:
        """`LeaseHeld` if a transfer still uses one of `slots`: to be asked before they are used for something else."""
        self.check_open()
        self._leases.check_free(self._slot_numbers(slots))

    def close(self) -> None:
        """Lets go of the memory. `LeaseHeld` while a transfer uses any. May be called again."""
        self._leases.close()
        self._memory, self._layouts = [], []

    def check_open(self) -> None:
        """`Closed` after `close`."""
        if self._leases.closed:
            raise Closed(f"the pages of group {self.spec.name} are closed")

    def __repr__(self) -> str:
        return f"<Pages of group {self.spec.name}: {self.slots} slots of {self.paging.page_bytes} bytes>"


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """Which slots of `pages` hold which blocks. Made by `Pages.at`."""

    pages: Pages
    slots: Ints
    blocks: Ints | None
    """Ascending block numbers; None: all on offer."""

    def block_numbers(self, offer: GroupOffer) -> Ints:
        """The numbers of the blocks that have slots here, all of them on `offer`.

        `SpecError` where the offer is of another layout; `PlacementError` for a block that is not on offer, or a
        number of slots that does not fit.
        """
        self.pages.check_open()
        mine, theirs = self.pages.spec, offer.spec
        if mine != theirs:
            name = next(f.name for f in fields(mine) if getattr(mine, f.name) != getattr(theirs, f.name))
            raise SpecError(
                f"group {theirs.name}: {name} is {getattr(theirs, name)!r:.200} on offer and "
                f"{getattr(mine, name)!r:.200} in the pages"
            )
        if self.blocks is None:
            numbers = np.arange(offer.blocks.start, offer.blocks.stop, dtype=np.int64)
            self._check_count(numbers)
            return numbers
        _check_on_offer(self.blocks, offer)
        return self.blocks

    def segments(self, offer: GroupOffer, blocks: Ints, *, writable: bool = False) -> list[Segment]:
        """One segment per layer with exactly `blocks` (ascending numbers): where they lie in this memory.

        The segments do not keep the memory: a lease does. Raises as `block_numbers`, `PlacementError` for a block
        that has no slot here, and where `writable` is asked for `SpecError` if the memory is not.
        """
        if writable:
            self.pages.check_writable()
        covered = self.block_numbers(offer)
        wanted = _ascending(f"group {offer.spec.name}: blocks", blocks)
        _check_on_offer(wanted, offer)
        index = np.searchsorted(covered, wanted)
        missing = wanted[covered[np.minimum(index, covered.size - 1)] != wanted] if covered.size else wanted
        if missing.size:
            raise PlacementError(f"group {offer.spec.name}: block {missing[0]} has no slot")
        paging = self.pages.paging
        if paging.blocks_per_page > 1:
            place = wanted % paging.blocks_per_page
            table = self.slots[_page_ordinals(covered, paging.blocks_per_page)[index], None]
        else:
            place = np.zeros_like(wanted)
            table = self.slots.reshape(-1, paging.pages_per_block)[index]
        offsets: dict[object, Ints] = {}
        segments: list[Segment] = []
        for layout in self.pages.layouts:
            if layout.columns not in offsets:
                columns = [table * stride + (place * step)[:, None] for stride, step in layout.columns]
                offsets[layout.columns] = np.concatenate(columns, axis=1).ravel()
            pages_per_block = len(layout.columns) * paging.pages_per_block
            segments.append(
                Segment(
                    layout.base, offsets[layout.columns], pages_per_block, layout.pattern, self.pages.spec.block_bytes
                )
            )
        return segments

    def lease_read(self, who: str) -> Lease:
        """As `Pages.lease_read`, for these slots."""
        return self.pages.lease_read(self.slots, who)

    def lease_write(self, who: str) -> Lease:
        """As `Pages.lease_write`, for these slots."""
        return self.pages.lease_write(self.slots, who)

    def _check_count(self, blocks: Ints) -> None:
        paging = self.pages.paging
        if paging.blocks_per_page > 1:
            ordinals = _page_ordinals(blocks, paging.blocks_per_page)
            expected = int(ordinals[-1]) + 1 if ordinals.size else 0
        else:
            expected = blocks.size * paging.pages_per_block
        if self.slots.size != expected:
            raise PlacementError(
                f"group {self.pages.spec.name}: {self.slots.size} slots for {blocks.size} blocks; expected {expected}"
            )


class _Window:
    """Bytes of contiguous pages, as numpy takes them; holds what they belong to."""

    def __init__(self, memory: LayerMemory, shape: tuple[int, int]) -> None:
        self.owners = memory.owners
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "data": (memory.planes[0].address, memory.readonly is not None),
            "shape": shape,
            "strides": (memory.planes[0].block_stride, 1),
        }


def _page_ordinals(blocks: Ints, blocks_per_page: int) -> Ints:
    """For each of ascending `blocks`, which of the own pages that hold them it lies in, counted from 0."""
    ordinals = np.zeros(blocks.size, np.int64)
    np.cumsum(np.diff(blocks // blocks_per_page) != 0, out=ordinals[1:])
    return ordinals


def _integers(what: str, values: Iterable[int]) -> Ints:
    """A read-only copy of `values`."""
    try:
        array = np.array(values if isinstance(values, Sequence | np.ndarray) else list(values))
    except (TypeError, ValueError):
        raise PlacementError(f"{what} are {values!r:.80}; expected a sequence of integers") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise PlacementError(f"{what} are {values!r:.80}; expected a sequence of integers")
    array = array.astype(np.int64)
    array.flags.writeable = False
    return array


def _ascending(what: str, blocks: Iterable[int]) -> Ints:
    numbers = _integers(what, blocks)
    drops = np.flatnonzero(np.diff(numbers) <= 0)
    if drops.size:
        raise PlacementError(
            f"{what} are not ascending: {numbers[drops[0] + 1]} follows {numbers[drops[0]]}; expected each once"
        )
    return numbers


def _check_on_offer(blocks: Ints, offer: GroupOffer) -> None:
    start, stop = offer.blocks.start, offer.blocks.stop
    outside = blocks[(blocks < start) | (blocks >= stop)]
    if outside.size:
        raise PlacementError(
            f"group {offer.spec.name}: block {outside[0]} is not on offer; blocks {start} to {stop} (excluded) are"
        )
