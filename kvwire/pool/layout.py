"""How one block lies in a caller's memory: from shapes and strides to the pattern that `_ext.layout` walks.

Three page sizes occur: the caller's pages are those of the spec, larger (several blocks in one page) or smaller
(several pages in one block). In each case a block of one layer is described by some page offsets and one pattern,
which is the same for every block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvwire.errors import SpecError
from kvwire.pool.arrays import View, view_of
from kvwire.types import GroupSpec

Dim = tuple[int, int]
"""Extent, and stride in bytes."""

MAX_PATTERN_ROWS = 1 << 16
"""Most rows in a pattern (3.5 MiB): more means that the elements of a page lie scattered one by one."""


@dataclass(frozen=True, slots=True)
class Paging:
    """How the caller's own pages relate to the blocks of `spec`."""

    spec: GroupSpec
    blocks_per_page: int
    """Above 1 where own pages are larger."""
    pages_per_block: int
    """Above 1 where own pages are smaller."""
    shapes: tuple[tuple[int, ...], ...]
    """Shape of every part in one own page."""

    @classmethod
    def of(cls, spec: GroupSpec, block_tokens: int | None) -> Paging:
        """Paging for own pages of `block_tokens` tokens; None: as the spec. `SpecError` if neither divides."""
        if not isinstance(spec, GroupSpec):
            raise SpecError(f"spec is {spec!r:.80}; expected a GroupSpec")
        shapes = tuple(part.shape for part in spec.parts)
        if block_tokens is None or block_tokens == spec.block_tokens:
            return cls(spec, 1, 1, shapes)
        if spec.kind.is_state:
            raise SpecError(f"group {spec.name}: block_tokens is {block_tokens}, but a state has no tokens")
        if not isinstance(block_tokens, int) or block_tokens < 1:
            raise SpecError(f"group {spec.name}: block_tokens is {block_tokens!r}; expected an integer above 0")
        large, small = max(block_tokens, spec.block_tokens), min(block_tokens, spec.block_tokens)
        if large % small:
            raise SpecError(
                f"group {spec.name}: own pages hold {block_tokens} tokens and blocks {spec.block_tokens}; "
                "expected one to be a multiple of the other"
            )
        own: list[tuple[int, ...]] = []
        for part in spec.parts:
            if part.token_axis is None:
                raise SpecError(
                    f"group {spec.name}: part {part.name} has no token_axis, so pages of {block_tokens} tokens cannot "
                    f"stand for blocks of {spec.block_tokens}"
                )
            axis = part.token_axis
            own.append((*part.shape[:axis], block_tokens, *part.shape[axis + 1 :]))
        ratio = large // small
        return cls(spec, ratio, 1, tuple(own)) if large == block_tokens else cls(spec, 1, ratio, tuple(own))

    @property
    def page_bytes(self) -> int:
        """Bytes of one own page of one layer, all parts."""
        return sum(math.prod(shape) for shape in self.shapes) * self.spec.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Plane:
    """One part of one layer: slot `s` of it begins at `address + s * block_stride` and has `dims`, in C order."""

    what: str
    address: int
    block_stride: int
    dims: tuple[Dim, ...]
    itemsize: int

    @property
    def span(self) -> int:
        """Bytes from the first byte of a page to behind its last."""
        return sum((extent - 1) * stride for extent, stride in self.dims) + self.itemsize

    def count_rows(self) -> int:
        """Number of contiguous runs of bytes in one page."""
        dims, _ = _split_row(coalesce(self.dims), self.itemsize)
        return math.prod(extent for extent, _ in dims)

    def rows(self) -> tuple[NDArray[np.int64], int]:
        """Offsets of the contiguous runs of one page, in C order, and the bytes of each."""
        dims, row_bytes = _split_row(coalesce(self.dims), self.itemsize)
        return _lattice(dims), row_bytes


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """One layer. Column `c` of a block's page offsets is `slot * columns[c][0] + place in page * columns[c][1]`."""

    base: int
    columns: tuple[tuple[int, int], ...]
    """Bytes from slot to slot, and (own pages larger) from block to block inside a page. The parts of a layer
    share a column where both agree."""
    pattern: NDArray[np.int64]


def coalesce(dims: Iterable[Dim]) -> list[Dim]:
    """`dims` with neighbours merged wherever together they are one run with one stride."""
    out: list[Dim] = []
    for extent, stride in dims:
        if extent == 1:
            continue
        if out and out[-1][1] == extent * stride:
            out[-1] = (out[-1][0] * extent, stride)
        else:
            out.append((extent, stride))
    return out


def _split_row(dims: list[Dim], itemsize: int) -> tuple[list[Dim], int]:
    """The dimensions outside the innermost contiguous run, and the bytes of that run."""
    if dims and dims[-1][1] == itemsize:
        return dims[:-1], dims[-1][0] * itemsize
    return dims, itemsize


def _lattice(dims: Iterable[Dim]) -> NDArray[np.int64]:
    offsets = np.zeros(1, np.int64)
    for extent, stride in dims:
        offsets = np.add.outer(offsets, np.arange(extent, dtype=np.int64) * stride).ravel()
    return offsets


# --- from arrays to planes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """What a caller registered for one layer."""

    planes: tuple[Plane, ...]
    """One per part."""
    slots: int
    readonly: str | None
    """The name of an array that must not be written; None where all may be."""
    owners: tuple[object, ...]


def layer_memory(paging: Paging, layer: int, entry: Any) -> LayerMemory:
    """Planes of `layer`, from one array for all parts or a sequence of one array per part.

    `SpecError` names the array, what it is and what was expected.
    """
    spec = paging.spec
    what = f"group {spec.name}, layer {layer}"
    if isinstance(entry, tuple | list):
        if len(entry) != len(spec.parts):
            raise SpecError(f"{what}: {len(entry)} arrays; expected one for each of {len(spec.parts)} parts")
        names = [f"{what}, part {part.name}" for part in spec.parts]
        views = [view_of(name, array) for name, array in zip(names, entry, strict=True)]
        found = [
            _planes(paging, name, view, (shape,)) for name, view, shape in zip(names, views, paging.shapes, strict=True)
        ]
    else:
        names, views = [what], [view_of(what, entry)]
        found = [_planes(paging, what, views[0], paging.shapes)]
    counts = {slots for _, slots in found}
    if len(counts) != 1:
        raise SpecError(f"{what}: its arrays hold {sorted(counts)} blocks; expected the same number")
    readonly = next((name for name, view in zip(names, views, strict=True) if view.readonly), None)
    planes = tuple(plane for part, _ in found for plane in part)
    return LayerMemory(planes, counts.pop(), readonly, tuple(view.owner for view in views))


def _planes(paging: Paging, what: str, view: View, shapes: tuple[tuple[int, ...], ...]) -> tuple[list[Plane], int]:
    """The planes of the parts of `shapes` that `view` holds, and its number of slots."""
    dtype, itemsize = paging.spec.dtype, paging.spec.dtype.itemsize
    page_bytes = sum(math.prod(shape) for shape in shapes) * itemsize
    is_bytes = view.raw and view.itemsize == 1
    inner = view.shape[1:]
    stride = view.strides[0] if view.shape[0] > 1 else 0  # a lone block's stride means nothing

    def planes(addresses: Sequence[int], strides: Sequence[Sequence[int]], block_stride: int) -> list[Plane]:
        return [
            Plane(what, address, block_stride, tuple(zip(shape, part, strict=True)), itemsize)
            for address, shape, part in zip(addresses, shapes, strides, strict=True)
        ]

    whole = [view.address + sum(math.prod(s) for s in shapes[:i]) * itemsize for i in range(len(shapes))]
    c_order = [[itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))] for shape in shapes]
    if inner == shapes[0] and len(shapes) == 1:
        view.check_dtype(what, dtype)
        return planes([view.address], [view.strides[1:]], stride), view.shape[0]
    if len(set(shapes)) == 1 and inner == (len(shapes), *shapes[0]):
        view.check_dtype(what, dtype)
        apart = view.strides[1]
        return (
            planes([view.address + i * apart for i in range(len(shapes))], [view.strides[2:]] * len(shapes), stride),
            view.shape[0],
        )
    if len(inner) == 1 and inner[0] * view.itemsize == page_bytes:
        if not is_bytes:
            view.check_dtype(what, dtype)
        if inner[0] > 1 and view.strides[1] != view.itemsize:
            raise SpecError(f"{what}: a flat page has stride {view.strides[1]}; expected {view.itemsize}, contiguous")
        return planes(whole, c_order, stride), view.shape[0]
    if not inner and is_bytes and view.shape[0] % page_bytes == 0 and view.strides[0] == 1:
        slots = view.shape[0] // page_bytes
        return planes(whole, c_order, page_bytes if slots > 1 else 0), slots
    parts = f"{len(shapes)}, " if len(shapes) > 1 else ""
    exact = f"[blocks, {parts}{', '.join(map(str, shapes[0]))}], " if len(set(shapes)) == 1 else ""
    raise SpecError(
        f"{what}: shape is {list(view.shape)} of {view.dtype}; expected {exact}[blocks, {page_bytes // itemsize}] of "
        f"{dtype.value}, or contiguous bytes in pages of {page_bytes}"
    )


# --- from planes to patterns ----------------------------------------------------------------------------------


def layer_layout(paging: Paging, planes: Sequence[Plane], patterns: dict[object, NDArray[np.int64]]) -> LayerLayout:
    """Layout of one layer; `patterns` holds those already built, since the layers of a model are mostly alike."""
    base = planes[0].address
    columns: list[tuple[int, int]] = []
    parts: list[tuple[int, int, tuple[Dim, ...]]] = []
    for part, plane in zip(paging.spec.parts, planes, strict=True):
        dims, step = plane.dims, 0
        if paging.blocks_per_page > 1:
            assert part.token_axis is not None
            axis, stride = part.token_axis, dims[part.token_axis][1]
            dims = (*dims[:axis], (paging.spec.block_tokens, stride), *dims[axis + 1 :])
            step = paging.spec.block_tokens * stride
        column = (plane.block_stride, step)
        if column not in columns:
            columns.append(column)
        parts.append((plane.address - base, columns.index(column), dims))
    pattern = patterns.get(tuple(parts))
    if pattern is None:
        pattern = _pattern(paging, planes[0].what, parts)
        patterns[tuple(parts)] = pattern
    return LayerLayout(base, tuple(columns), pattern)


def _pattern(paging: Paging, what: str, parts: Sequence[tuple[int, int, tuple[Dim, ...]]]) -> NDArray[np.int64]:
    """Rows (start, nbytes, page, offset, rows, row_bytes, row_stride) in the order of a block's bytes."""
    tables: list[NDArray[np.int64]] = []
    start = total = 0
    split = paging.pages_per_block
    for part, (delta, column, dims) in zip(paging.spec.parts, parts, strict=True):
        # Where a block spans pages, its tokens go on in the next page: the pages are a dimension of their own,
        # just outside the token axis, which nothing can be merged across.
        axis = part.token_axis if split > 1 and part.token_axis is not None else 0
        inner, row_bytes = _split_row(coalesce(dims[axis:]), paging.spec.dtype.itemsize)
        rows, row_stride = inner.pop() if inner else (1, row_bytes)
        outer = coalesce(dims[:axis])
        count = split * math.prod(extent for extent, _ in (*outer, *inner))
        total += count
        if total > MAX_PATTERN_ROWS:
            raise SpecError(
                f"{what}: a block lies in {total} or more strided runs; expected at most {MAX_PATTERN_ROWS}"
            )
        offsets = _lattice(outer)[:, None, None] + _lattice(inner)[None, None, :]
        pages = np.arange(column * split, (column + 1) * split, dtype=np.int64)[None, :, None]
        table = np.empty((count, 7), np.int64)
        table[:, 0] = start + np.arange(count) * (rows * row_bytes)
        table[:, 1] = rows * row_bytes
        table[:, 2] = np.broadcast_to(pages, (offsets.shape[0], split, offsets.shape[2])).ravel()
        table[:, 3] = delta + np.broadcast_to(offsets, (offsets.shape[0], split, offsets.shape[2])).ravel()
        table[:, 4:] = rows, row_bytes, row_stride
        tables.append(table)
        start += count * rows * row_bytes
    return _merge(np.concatenate(tables))


def _merge(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Joins pattern rows that go on where the one before ended (K and V side by side, for example)."""
    merged: list[list[int]] = []
    for row in table.tolist():
        if merged and merged[-1][2] == row[2]:
            last = merged[-1]
            if last[4] == row[4] == 1 and last[3] + last[1] == row[3]:
                last[1] += row[1]
                last[5] = last[6] = last[1]
                continue
            if last[4] > 1 and last[5:] == row[5:] and last[3] + last[4] * last[6] == row[3]:
                last[1] += row[1]
                last[4] += row[4]
                continue
        merged.append(row)
    pattern = np.array(merged, np.int64)
    pattern.flags.writeable = False
    return pattern
