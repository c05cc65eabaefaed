"""Segments over registered memory against plain numpy slicing, for every dtype, layout and paging."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvwire.pool import Pages
from kvwire.types import BlockRange, DType, GroupOffer, GroupSpec, Part

Array = NDArray[Any]

# What numpy calls the elements of each dtype here; where it has none, integers of the size stand for them.
NUMPY = {DType.BF16: np.uint16, DType.FP16: np.float16, DType.FP32: np.float32, DType.FP8_E4M3: np.int8}


def spec_of(
    *,
    dtype: DType = DType.BF16,
    layers: int = 2,
    block_tokens: int = 4,
    heads: int = 2,
    dim: int = 3,
    order: str = "NHD",
) -> GroupSpec:
    return GroupSpec.attention(
        "kv", range(layers), dtype, block_tokens=block_tokens, heads=heads, head_dim=dim, order=order
    )


def own_shape(part: Part, tokens: int) -> tuple[int, ...]:
    axis = part.token_axis
    return part.shape if axis is None else (*part.shape[:axis], tokens, *part.shape[axis + 1 :])


def strided(draw: st.DrawFn, shape: tuple[int, ...], dtype: type) -> Array:
    """An array of `shape` cut out of a larger one, its axes stored in any order."""
    order = draw(st.permutations(range(len(shape))))
    margins = [draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in shape]
    steps = [draw(st.sampled_from([1, 1, 1, 2])) for _ in shape]
    stored: Array = np.zeros([m[0] + shape[a] * steps[a] + m[1] for a, m in ((a, margins[a]) for a in order)], dtype)
    array = stored.transpose(np.argsort(order))
    view = array[tuple(slice(m[0], m[0] + e * s, s) for m, e, s in zip(margins, shape, steps, strict=True))]
    assert view.shape == shape
    return view


def fill(array: Array, seed: int) -> None:
    raw = np.random.default_rng(seed).integers(0, 256, array.size * array.itemsize, np.uint8)
    array[...] = raw.view(array.dtype).reshape(array.shape)


@dataclass
class Case:
    spec: GroupSpec
    parts: list[list[Array]]
    """Per layer and part an array [slots, *own shape]: views of what was registered."""
    pages: Pages
    offer: GroupOffer
    blocks: list[int]
    slots: list[int]
    own_tokens: int

    def block(self, layer: int, number: int) -> bytes:
        """The bytes of a block, by plain numpy: its tokens, concatenated over the own pages that hold them."""
        out = b""
        for part, array in zip(self.spec.parts, self.parts[layer], strict=True):
            axis, tokens = part.token_axis, self.spec.block_tokens
            assert axis is not None
            if self.own_tokens >= tokens:
                per_page = self.own_tokens // tokens
                held = sorted({b // per_page for b in self.blocks})
                page = array[self.slots[held.index(number // per_page)]]
                first = number % per_page * tokens
                block = np.take(page, range(first, first + tokens), axis=axis)
            else:
                per_block = tokens // self.own_tokens
                first = self.blocks.index(number) * per_block
                block = np.concatenate([array[s] for s in self.slots[first : first + per_block]], axis=axis)
            out += block.tobytes()
        return out


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dtype = draw(st.sampled_from(sorted(NUMPY, key=lambda d: d.value)))
    block_tokens, own_tokens = draw(st.sampled_from([(4, 4), (4, 8), (2, 6), (4, 2), (6, 2), (4, 1)]))
    spec = spec_of(
        dtype=dtype,
        block_tokens=block_tokens,
        heads=draw(st.integers(1, 3)),
        dim=draw(st.integers(1, 4)),
        order=draw(st.sampled_from(["NHD", "HND"])),
    )
    stop = draw(st.integers(1, 9))
    offer = GroupOffer(spec, BlockRange(draw(st.integers(0, stop - 1)), stop))
    blocks = sorted(draw(st.sets(st.integers(offer.blocks.start, stop - 1), min_size=1)))
    if own_tokens >= block_tokens:
        count = len({b // (own_tokens // block_tokens) for b in blocks})
    else:
        count = len(blocks) * (block_tokens // own_tokens)
    slots = count + draw(st.integers(0, 3))
    chosen = draw(st.permutations(range(slots)))[:count]
    shape = own_shape(spec.parts[0], own_tokens)
    parts: list[list[Array]] = []
    entries: list[Any] = []
    form = draw(st.sampled_from(["apart", "one", "flat"]))
    for _ in spec.layers:
        if form == "apart":
            parts.append([strided(draw, (slots, *shape), NUMPY[dtype]) for _ in spec.parts])
            entries.append(tuple(parts[-1]))
        elif form == "one":
            entries.append(strided(draw, (slots, len(spec.parts), *shape), NUMPY[dtype]))
            parts.append([entries[-1][:, i] for i in range(len(spec.parts))])
        else:
            whole = np.zeros((slots, len(spec.parts), *shape), NUMPY[dtype])
            parts.append([whole[:, i] for i in range(len(spec.parts))])
            entries.append(whole.view(np.uint8).reshape(-1))
    pages = Pages(spec, entries, block_tokens=own_tokens)
    return Case(spec, parts, pages, offer, blocks, list(chosen), own_tokens)


@given(case=cases(), data=st.data())
def test_bytes_are_those_of_numpy_slicing(case: Case, data: st.DataObject) -> None:
    slots = case.pages.at(case.slots, case.blocks)
    granted = sorted(data.draw(st.sets(st.sampled_from(case.blocks))))
    segments = slots.segments(case.offer, np.array(granted, np.int64), writable=True)
    for seed, array in enumerate(array for layer in case.parts for array in layer):
        fill(array, seed)
    expected = [b"".join(case.block(layer, b) for b in granted) for layer in range(len(case.spec.layers))]
    for segment, block_bytes in zip(segments, expected, strict=True):
        assert segment.nbytes == len(block_bytes) == len(granted) * case.spec.block_bytes
        assert segment.read(0, segment.nbytes) == block_bytes

    ungranted = [case.block(0, b) for b in case.blocks if b not in granted]
    for segment, block_bytes in zip(segments, expected, strict=True):
        segment.write(0, bytes(b ^ 0xFF for b in block_bytes))
    for layer, block_bytes in enumerate(expected):
        written = b"".join(case.block(layer, b) for b in granted)
        assert written == bytes(b ^ 0xFF for b in block_bytes)
    assert [case.block(0, b) for b in case.blocks if b not in granted] == ungranted


@pytest.mark.parametrize("kind", ["contiguous", "strided"])
def test_a_pattern_has_no_more_rows_than_the_memory(kind: str) -> None:
    spec = spec_of(layers=1, block_tokens=16, heads=8, dim=64)
    whole = np.zeros((3, 2, 16, 8 if kind == "contiguous" else 32, 64), np.uint16)
    pages = Pages(spec, [whole[:, :, :, :8]])
    pattern = pages.layouts[0].pattern
    # One run of bytes, or one regular lattice of token rows that goes on from K to V.
    rows, row_bytes = (1, spec.block_bytes) if kind == "contiguous" else (32, 8 * 64 * 2)
    assert pattern[:, 4:6].tolist() == [[rows, row_bytes]]


def test_layers_share_offsets_and_patterns() -> None:
    spec = spec_of(layers=3)
    pages = Pages.empty(spec, 5)
    assert len({id(layout.pattern) for layout in pages.layouts}) == 1
