"""Memory that overlaps is not written, memory that interleaves is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvwire.errors import PlacementError, SpecError
from kvwire.pool import Pages, Slots, check_disjoint
from kvwire.types import BlockRange, DType, GroupKind, GroupOffer, GroupSpec, Part

Array = NDArray[Any]

GOOD = (3, 2, 4, 2, 3)


def spec_of(layers: int = 2) -> GroupSpec:
    return GroupSpec.attention("kv", range(layers), DType.BF16, block_tokens=4, heads=2, head_dim=3)


def kv_interleaved() -> Any:
    both = np.zeros((3, 4, 2, 6), np.uint16)
    return [(both[..., :3], both[..., 3:])]


def layers_interleaved() -> Any:
    whole = np.zeros((5, 2, 2, 4, 2, 3), np.uint16)
    return [whole[:, 0], whole[:, 1]]


def blocks_second() -> Any:
    whole = np.zeros((2, 3, 4, 2, 3), np.uint16)
    return [(whole[0], whole[1])]


def strides_that_differ() -> Any:
    memory = np.zeros(4 * 24 * 4, np.uint16)
    blocks = memory.reshape(-1, 4, 2, 3)
    return [(blocks[0:6:2], blocks[7:16:3])]


@pytest.mark.parametrize("make", [kv_interleaved, layers_interleaved, blocks_second, strides_that_differ])
def test_interleaved_is_not_overlapping(make: Callable[[], Any]) -> None:
    layers = make()
    Pages(spec_of(layers=len(layers)), layers, writable=True)


def same_layer_twice() -> Any:
    layer = np.zeros(GOOD, np.uint16)
    return [layer, layer], "layer 0 overlaps group kv, layer 1"


def k_is_v() -> Any:
    k = np.zeros((3, 4, 2, 3), np.uint16)
    return [(k, k)], "part k overlaps group kv, layer 0, part v"


def shifted_by_a_block() -> Any:
    k = np.zeros((4, 4, 2, 3), np.uint16)
    return [(k[:3], k[1:])], "part k overlaps"


def broadcast() -> Any:
    return [np.broadcast_to(np.zeros(GOOD[1:], np.uint16), GOOD)], "read-only"


def zero_stride() -> Any:
    one = np.zeros(GOOD[1:], np.uint16)
    return [np.lib.stride_tricks.as_strided(one, GOOD, (0, *one.strides))], "overlaps itself"


def sliding() -> Any:
    flat = np.zeros(200, np.uint16)
    return [np.lib.stride_tricks.as_strided(flat, GOOD, (94, 48, 12, 6, 2))], "overlaps itself"


def strides_that_meet() -> Any:
    blocks = np.zeros(4 * 24 * 4, np.uint16).reshape(-1, 4, 2, 3)
    return [(blocks[0:6:2], blocks[1:10:3])], "overlaps"


@pytest.mark.parametrize(
    "make", [same_layer_twice, k_is_v, shifted_by_a_block, broadcast, zero_stride, sliding, strides_that_meet]
)
def test_memory_that_overlaps_is_only_read(make: Callable[[], Any]) -> None:
    layers, message = make()
    spec = spec_of(layers=len(layers))
    with pytest.raises(SpecError, match=message):
        Pages(spec, layers, writable=True)
    pages = Pages(spec, layers)
    slots = pages.at([0])
    offer = GroupOffer(spec, BlockRange(0, 1))
    slots.segments(offer, np.array([0]))
    slots.lease_read("transfer 1")
    with pytest.raises(SpecError, match=message):
        slots.segments(offer, np.array([0]), writable=True)
    with pytest.raises(SpecError, match=message):
        slots.lease_write("transfer 2")


@given(data=st.data())
def test_aliasing_is_found_exactly(data: st.DataObject) -> None:
    """Against counting every element."""
    spec = GroupSpec("kv", GroupKind.FULL, (0, 1), DType.UINT8, (Part("k", (2, 3)),), 2)
    memory = np.zeros(120, np.uint8)
    slots = data.draw(st.integers(1, 3))
    used = np.zeros(120, int)
    layers = []
    for _ in spec.layers:
        strides = data.draw(st.tuples(st.integers(0, 14), st.integers(0, 8), st.integers(0, 5)))
        offset = data.draw(st.integers(0, 60))
        layers.append(np.lib.stride_tricks.as_strided(memory[offset:], (slots, 2, 3), strides))
        index = np.lib.stride_tricks.as_strided(np.arange(120)[offset:], (slots, 2, 3), [8 * s for s in strides])
        np.add.at(used, index.ravel(), 1)
    pages = Pages(spec, layers)
    if used.max() > 1:
        with pytest.raises(SpecError, match="overlaps"):
            pages.check_writable()
    else:
        pages.check_writable()


def test_read_only_memory() -> None:
    spec = spec_of(layers=1)
    data = bytes(2 * spec.block_bytes)
    with pytest.raises(SpecError, match="layer 0 is read-only"):
        Pages(spec, [data], writable=True)
    with pytest.raises(SpecError, match="read-only"):
        Pages(spec, [data]).at([0]).lease_write("transfer 1")
    with pytest.raises(SpecError, match="writable=False"):
        Pages(spec, [bytearray(data)], writable=False).check_writable()


def two_groups(one: Array, other: Array, slots: list[int], others: list[int]) -> list[Slots]:
    specs = [
        GroupSpec(name, GroupKind.FULL, (0,), DType.UINT8, (Part("k", array.shape[1:], 0),), array.shape[1])
        for name, array in (("one", one), ("other", other))
    ]
    return [
        Pages(spec, [array]).at(chosen)
        for spec, array, chosen in zip(specs, (one, other), (slots, others), strict=True)
    ]


def test_groups_of_one_placement_share_no_byte() -> None:
    memory = np.zeros((8, 4, 6), np.uint8)
    check_disjoint(two_groups(memory, memory, [0, 2], [1, 7]))
    check_disjoint(two_groups(memory[..., :3], memory[..., 3:], [0, 1, 2], [2, 1, 0]))
    check_disjoint(two_groups(memory, memory.reshape(16, 2, 6), [0, 3], [2, 3, 15]))
    check_disjoint(two_groups(memory[:4], memory[4:], [0, 1, 2, 3], [0, 1, 2, 3]))
    check_disjoint(two_groups(memory, memory, [], [0]))
    for one, other in [
        two_groups(memory, memory, [0, 2], [1, 2]),
        two_groups(memory[..., :4], memory[..., 3:], [0, 1], [5, 1]),
        two_groups(memory, memory.reshape(16, 2, 6), [0, 3], [2, 7]),
    ]:
        with pytest.raises(PlacementError, match="groups one and other overlap"):
            check_disjoint([one, other])
    pages = Pages.empty(spec_of(), 4)
    check_disjoint([pages.at([0, 1]), pages.at([2])])
    with pytest.raises(PlacementError, match="slot 1 of group kv is named twice"):
        check_disjoint([pages.at([0, 1]), pages.at([2, 1])])


@given(data=st.data())
def test_overlap_of_groups_is_found_exactly(data: st.DataObject) -> None:
    memory, numbers = np.zeros((6, 2, 5), np.uint8), np.arange(60).reshape(6, 2, 5)
    cut = [
        data.draw(st.tuples(st.integers(0, 2), st.integers(1, 3)).map(lambda c: np.s_[:, :, c[0] : c[0] + c[1]]))
        for _ in range(2)
    ]
    slots = [data.draw(st.lists(st.integers(0, 5), unique=True, max_size=3)) for _ in range(2)]
    both = [set(numbers[c][s].ravel().tolist()) if s else set() for c, s in zip(cut, slots, strict=True)]
    placement = two_groups(memory[cut[0]], memory[cut[1]], *slots)
    if both[0] & both[1]:
        with pytest.raises(PlacementError, match="overlap"):
            check_disjoint(placement)
    else:
        check_disjoint(placement)
