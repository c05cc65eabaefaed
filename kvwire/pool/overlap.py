"""Whether registered memory overlaps, to the byte: K and V rows that interleave do not, and are legitimate.

Page by page and row by row this would be too much work for a large pool, so each check first asks a coarser
question that settles the usual cases, and counts rows only where that leaves doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kvwire.errors import PlacementError, SpecError
from kvwire.pool.layout import Plane

if TYPE_CHECKING:
    from kvwire.pool.pages import Slots

Ints = NDArray[np.int64]

MAX_ROWS = 1 << 24
"""Most rows compared one by one: 256 MiB of intervals."""


def aliased(planes: Sequence[Plane], slots: int) -> tuple[Plane, Plane] | None:
    """Two of `planes` (perhaps the same twice) that share a byte over all `slots`; None where none do.

    `SpecError` where they interleave too finely to find out.
    """
    for cluster in _clusters(planes, slots):
        stride = cluster[0].block_stride
        if (slots == 1 or stride > 0) and all(plane.block_stride == stride for plane in cluster):
            starts, ends, _ = _rows(cluster, np.zeros(1, np.int64))
            if slots > 1:
                # With one stride for all, two pages overlap only if their rows do modulo that stride.
                starts, ends = starts % stride, starts % stride + (ends - starts)
                starts, ends = np.concatenate((starts, starts - stride)), np.concatenate((ends, ends - stride))
            if _touching(starts, ends) is None:
                continue
        starts, ends, owners = _rows(cluster, np.arange(slots, dtype=np.int64))
        pair = _touching(starts, ends)
        if pair is not None:
            return cluster[owners[pair[0]]], cluster[owners[pair[1]]]
    return None


def check_disjoint(placement: Iterable[Slots]) -> None:
    """`PlacementError` if two of a placement's groups would use the same byte."""
    for one, other in combinations(placement, 2):
        if one.pages is other.pages:
            shared = np.intersect1d(one.slots, other.slots)
            if shared.size:
                raise PlacementError(f"slot {shared[0]} of group {one.pages.spec.name} is named twice")
        elif _share_bytes(one, other):
            raise PlacementError(f"slots of groups {one.pages.spec.name} and {other.pages.spec.name} overlap in memory")


def _share_bytes(one: Slots, other: Slots) -> bool:
    mine, theirs = _near(one, other), _near(other, one)
    if not mine or not theirs:
        return False
    slots_a, slots_b = np.sort(one.slots), np.sort(other.slots)  # several times faster to search than as they came
    a, b = _spans(mine, slots_a), _spans(theirs, slots_b)
    pages_a = _hits(a, b)
    if not pages_a.any():
        return False
    rows_a = _selected_rows(mine, slots_a, pages_a)
    rows_b = _selected_rows(theirs, slots_b, _hits(b, a))
    return bool(_hits(rows_a, rows_b).any())


def _clusters(planes: Sequence[Plane], slots: int) -> list[list[Plane]]:
    """`planes` in runs whose address ranges intersect."""
    out: list[list[Plane]] = []
    end = 0
    for plane in sorted(planes, key=lambda plane: plane.address):
        if not out or plane.address >= end:
            out.append([])
        out[-1].append(plane)
        end = max(end, plane.address + (slots - 1) * plane.block_stride + plane.span)
    return out


def _near(one: Slots, other: Slots) -> list[Plane]:
    """The planes of `one` whose chosen pages may lie among those of `other`."""
    if not one.slots.size or not other.slots.size:
        return []
    low, high = int(other.slots.min()), int(other.slots.max())
    planes = other.pages.planes
    first = min(plane.address + low * plane.block_stride for plane in planes)
    last = max(plane.address + high * plane.block_stride + plane.span for plane in planes)
    low, high = int(one.slots.min()), int(one.slots.max())
    return [
        plane
        for plane in one.pages.planes
        if plane.address + low * plane.block_stride < last
        and plane.address + high * plane.block_stride + plane.span > first
    ]


def _spans(planes: Sequence[Plane], slots: Ints) -> tuple[Ints, Ints]:
    """Address ranges of whole pages, planes outermost."""
    starts = np.concatenate([plane.address + slots * plane.block_stride for plane in planes])
    return starts, starts + np.repeat([plane.span for plane in planes], slots.size)


def _selected_rows(planes: Sequence[Plane], slots: Ints, pages: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    chosen = pages.reshape(len(planes), slots.size)
    found = [_rows([plane], slots[mask]) for plane, mask in zip(planes, chosen, strict=True) if mask.any()]
    return np.concatenate([starts for starts, _, _ in found]), np.concatenate([ends for _, ends, _ in found])


def _rows(planes: Sequence[Plane], slots: Ints) -> tuple[Ints, Ints, Ints]:
    """Address ranges of every contiguous run of the pages `slots`, and the position of its plane in `planes`."""
    count = sum(plane.count_rows() for plane in planes) * slots.size
    if count > MAX_ROWS:
        raise SpecError(
            f"{planes[0].what}: {count} strided runs interleave with each other or other memory; expected at most "
            f"{MAX_ROWS} to check for overlap",
            hint="register memory that is only read with writable=False",
        )
    starts: list[Ints] = []
    sizes: list[Ints] = []
    owners: list[Ints] = []
    for index, plane in enumerate(planes):
        offsets, row_bytes = plane.rows()
        begin = np.add.outer(plane.address + slots * plane.block_stride, offsets).ravel()
        starts.append(begin)
        sizes.append(np.full(begin.size, row_bytes, np.int64))
        owners.append(np.full(begin.size, index, np.int64))
    first = np.concatenate(starts)
    return first, first + np.concatenate(sizes), np.concatenate(owners)


def _touching(starts: Ints, ends: Ints) -> tuple[int, int] | None:
    """Positions of two ranges that overlap."""
    order = np.argsort(starts, kind="stable")
    overlap = ends[order][:-1] > starts[order][1:]
    if not overlap.any():
        return None
    at = int(overlap.argmax())
    return int(order[at]), int(order[at + 1])


def _hits(these: tuple[Ints, Ints], those: tuple[Ints, Ints]) -> NDArray[np.bool_]:
    """Which of `these` ranges overlap any of `those`."""
    order = np.argsort(those[0], kind="stable")
    starts, ends = those[0][order], np.maximum.accumulate(those[1][order])
    before = np.searchsorted(starts, these[1], side="left")  # how many begin before this one ends
    return (before > 0) & (ends[np.maximum(before - 1, 0)] > these[0])
