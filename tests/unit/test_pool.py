"""Registered memory against plain numpy slicing, and everything that registration, slots and leases refuse."""

import ctypes
import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvwire.errors import Closed, LeaseHeld, PlacementError, SpecError
from kvwire.pool import Pages, Slots, check_disjoint
from kvwire.types import BlockRange, DType, GroupKind, GroupOffer, GroupSpec, Part

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
    stored = np.zeros([m[0] + shape[a] * steps[a] + m[1] for a, m in ((a, margins[a]) for a in order)], dtype)
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
            entries.append(memoryview(whole.view(np.uint8).reshape(-1)))
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
    for array in (array for layer in case.parts for array in layer):
        keep = array.copy()
        fill(array, 99)
        assert not granted or array.size < 4 or keep.tobytes() != array.tobytes()
        array[...] = keep
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


# --- what can be registered -----------------------------------------------------------------------------------


def buffers() -> dict[str, Callable[[int], Any]]:
    return {
        "bytearray": bytearray,
        "memoryview": lambda n: memoryview(bytearray(n)),
        "mmap": lambda n: mmap.mmap(-1, n),
        "ctypes": lambda n: (ctypes.c_uint8 * n)(),
        "numpy": lambda n: np.zeros(n, np.uint8),
        "interface": lambda n: Interface(np.zeros(n, np.uint8)),
        "dlpack": lambda n: Exporter(np.zeros(n, np.uint8)),
    }


class Interface:
    """Only `__array_interface__`."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.__array_interface__ = array.__array_interface__


class Exporter:
    """Only DLPack; `old`: as before DLPack 1.0, unversioned and without arguments."""

    def __init__(self, array: Array, *, old: bool = False, device: int = 1) -> None:
        self.array, self.old, self.device = array, old, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)

    def __dlpack__(self, **arguments: Any) -> Any:
        if self.old and arguments:
            raise TypeError("__dlpack__() takes no arguments")
        return self.array.__dlpack__(**arguments)


@pytest.mark.parametrize("kind", list(buffers()))
def test_a_flat_buffer_holds_whole_pages(kind: str) -> None:
    spec = spec_of(layers=1)
    buffer = buffers()[kind](3 * spec.block_bytes)
    pages = Pages(spec, [buffer])
    assert pages.slots == 3
    segment = pages.at([2]).segments(GroupOffer(spec, BlockRange(0, 1)), np.array([0]))[0]
    segment.write(0, bytes(range(spec.block_bytes)))
    raw = buffer.array if isinstance(buffer, Interface | Exporter) else buffer
    assert bytes(memoryview(raw).cast("B"))[2 * spec.block_bytes :] == bytes(range(spec.block_bytes))
    pages.close()


@pytest.mark.parametrize("old", [True, False])
def test_dlpack_of_both_versions(old: bool) -> None:
    spec = spec_of(layers=1, dtype=DType.FP32)
    array = np.arange(2 * 2 * 4 * 3 * 3, dtype=np.float32).reshape(2, 2, 4, 3, 3)[:, :, :, :2]
    pages = Pages(spec, [Exporter(array, old=old)])
    segment = pages.at([1]).segments(GroupOffer(spec, BlockRange(0, 1)), np.array([0]))[0]
    assert segment.read(0, segment.nbytes) == array[1].tobytes()


def test_dlpack_says_read_only() -> None:
    spec = spec_of(layers=1, dtype=DType.FP32)
    array = np.zeros((2, 2, 4, 2, 3), np.float32)
    array.flags.writeable = False
    with pytest.raises(SpecError, match="read-only"):
        Pages(spec, [Exporter(array)], writable=True)


def test_parts_of_unlike_shape() -> None:
    parts = (Part("latent", (4, 6), 0), Part("rope", (4, 2), 0))
    spec = GroupSpec("mla", GroupKind.MLA, (7,), DType.FP16, parts, 4)
    latent, rope = np.zeros((3, 4, 6), np.float16), np.zeros((5, 4, 2), np.float16)[1:4]
    fill(latent, 1)
    fill(rope, 2)
    offer = GroupOffer(spec, BlockRange(0, 2))
    segment = Pages(spec, [(latent, rope)]).at([2, 0]).segments(offer, np.array([0, 1]))[0]
    expected = b"".join(latent[s].tobytes() + rope[s].tobytes() for s in (2, 0))
    assert segment.read(0, segment.nbytes) == expected
    flat = np.frombuffer(expected, np.float16).reshape(2, -1)
    segment = Pages(spec, [flat]).at([0, 1]).segments(offer, np.array([0, 1]))[0]
    assert segment.read(0, segment.nbytes) == expected


def test_a_state_is_one_block() -> None:
    spec = GroupSpec.state("ssm", GroupKind.RECURRENT, [1, 3], DType.FP32, (2, 5))
    states = [np.random.default_rng(n).random((4, 2, 5), np.float32) for n in range(2)]
    segments = Pages(spec, states).at([3]).segments(GroupOffer(spec, BlockRange(0, 1)), np.array([0]))
    assert [s.read(0, s.nbytes) for s in segments] == [state[3].tobytes() for state in states]
    with pytest.raises(SpecError, match="a state has no tokens"):
        Pages(spec, states, block_tokens=2)


def test_empty_is_zeroed_aligned_and_shown() -> None:
    spec = spec_of(layers=2)
    pages = Pages.empty(spec, 3, block_tokens=8)
    assert (pages.slots, pages.array(1).shape) == (3, (3, 2 * spec.block_bytes))
    assert not pages.array(0).any()
    assert {pages.array(layer).ctypes.data % 4096 for layer in (0, 1)} == {0}
    pages.check_writable()
    kept = pages.array(1)
    pages.close()
    kept[:] = 7  # the view keeps the memory
    with pytest.raises(Closed):
        pages.array(1)


@pytest.mark.parametrize("slots", [0, -1, 1.5])
def test_empty_needs_slots(slots: Any) -> None:
    with pytest.raises(SpecError, match="slots"):
        Pages.empty(spec_of(), slots)


def test_array_shows_contiguous_pages_only() -> None:
    spec = spec_of(layers=1)
    whole = np.zeros((3, 2, 4, 2, 3), np.uint16)
    whole.flags.writeable = False
    array = Pages(spec, [whole]).array(0)
    assert array.ctypes.data == whole.ctypes.data
    assert not array.flags.writeable
    with pytest.raises(SpecError, match="not contiguous"):
        Pages(spec, [np.zeros((3, 2, 4, 4, 3), np.uint16)[:, :, :, :2]]).array(0)
    with pytest.raises(SpecError, match="has no layer 5"):
        Pages(spec, [whole]).array(5)


GOOD = (3, 2, 4, 2, 3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (np.zeros(GOOD, np.float16), "elements are float16; expected bfloat16"),
        (np.zeros(GOOD, np.float32), "elements are float32; expected bfloat16"),
        (np.zeros(GOOD, np.uint32), "elements are uint32"),
        (np.zeros(GOOD, ">u2"), "native byte order"),
        (np.zeros(GOOD, object), "plain elements"),
        (np.zeros((3, 2, 4, 3, 2), np.uint16), r"shape is \[3, 2, 4, 3, 2\].*expected \[blocks, 2, 4, 2, 3\]"),
        (np.zeros((3, 2, 2, 4, 3), np.uint16), "shape is"),
        (np.zeros((3, 2, 3, 2, 3), np.uint16), "shape is"),
        (np.zeros((3, 47), np.uint16), "shape is"),
        (np.zeros((3, 96), np.uint16)[:, ::2], "expected 2, contiguous"),
        (np.zeros(GOOD, np.uint16)[::-1], "run backwards"),
        (np.zeros(GOOD, np.uint16)[..., ::-1], "run backwards"),
        (np.zeros((0, *GOOD[1:]), np.uint16), "none of them empty"),
        (np.zeros((), np.uint16), "expected blocks along axis 0"),
        (bytearray(95), "in pages of 96"),
        ((np.zeros((3, 4, 2, 3), np.uint16),), "1 arrays; expected one for each of 2 parts"),
        ((np.zeros((3, 4, 2, 3), np.uint16), np.zeros((2, 4, 2, 3), np.uint16)), "the same number"),
        ((np.zeros((3, 4, 2, 3), np.uint16), np.zeros((3, 4, 2, 4), np.uint16)), "part v: shape is"),
        ("text", "is a str"),
        (None, "is a NoneType"),
        (Exporter(np.zeros(GOOD, np.uint16), device=2), "device type 2.*copy it to the CPU"),
    ],
)
def test_what_does_not_fit_the_spec(entry: Any, message: str) -> None:
    with pytest.raises(SpecError, match=f"layer 1.*{message}"):
        Pages(spec_of(), [np.zeros(GOOD, np.uint16), entry])


def test_layers_must_agree() -> None:
    good = np.zeros(GOOD, np.uint16)
    with pytest.raises(SpecError, match="memory of 1 layers; expected 2"):
        Pages(spec_of(), [good])
    with pytest.raises(SpecError, match=r"its layers have \[2, 3\] slots"):
        Pages(spec_of(), [good, good[:2]])


@pytest.mark.parametrize(("tokens", "message"), [(3, "multiple"), (6, "multiple"), (0, "above 0"), (2.0, "above 0")])
def test_own_pages_divide(tokens: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Pages.empty(spec_of(), 3, block_tokens=tokens)


def test_own_pages_need_a_token_axis() -> None:
    spec = GroupSpec("kv", GroupKind.FULL, (0,), DType.FP16, (Part("k", (4, 2)),), 4)
    with pytest.raises(SpecError, match="no token_axis"):
        Pages.empty(spec, 3, block_tokens=8)


def test_too_scattered_for_a_pattern() -> None:
    spec = spec_of(layers=1, block_tokens=128, heads=64, dim=16)
    scattered = np.zeros((1, 2, 128, 65, 33), np.uint16)[:, :, :, :64, ::2][..., :16]
    assert len(Pages(spec, [scattered]).layouts[0].pattern) == 2 * 128 * 64
    spec = spec_of(layers=1, block_tokens=512, heads=128, dim=4)
    with pytest.raises(SpecError, match="strided runs; expected at most 65536"):
        Pages(spec, [np.zeros((1, 2, 512, 129, 9), np.uint16)[:, :, :, :128, ::2][..., :4]])


# --- writable memory: no byte twice -----------------------------------------------------------------------------


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


# --- slots and blocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "blocks", "message"),
    [
        ([0, 5], None, "slot 5 does not exist; there are 5"),
        ([-1], None, "slot -1 does not exist"),
        ([1, 3, 1], None, "slot 1 is named twice"),
        ([0, 1], [0], "2 slots for 1 blocks; expected 1"),
        ([0], range(2), "1 slots for 2 blocks; expected 2"),
        ([0, 1], BlockRange(3, 4), "2 slots for 1 blocks"),
        ([0, 1], [3, 2], "not ascending: 2 follows 3"),
        ([0, 1], [2, 2], "not ascending: 2 follows 2"),
        ([0.0], None, "expected a sequence of integers"),
        ([True], None, "expected a sequence of integers"),
        ([2**70], None, "expected a sequence of integers"),
        ([2**64 - 1], None, "does not exist"),
        ([[0]], None, "expected a sequence of integers"),
        ([[0], [1, 2]], None, "expected a sequence of integers"),
        ("01", None, "expected a sequence of integers"),
        (3, None, "expected a sequence of integers"),
        ([0], ["a"], "blocks are"),
    ],
)
def test_slots_that_cannot_be(slots: Any, blocks: Any, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        Pages.empty(spec_of(), 5).at(slots, blocks)


@pytest.mark.parametrize(
    ("own", "blocks", "expected"),
    [(8, [0, 1, 2], 2), (8, [1, 2], 2), (8, [2, 3], 1), (16, [0, 7, 8], 3), (2, [0, 5], 4), (1, [3], 4), (4, [], 0)],
)
def test_how_many_slots_cover_the_blocks(own: int, blocks: list[int], expected: int) -> None:
    pages = Pages.empty(spec_of(), 9, block_tokens=own)
    assert pages.at(range(expected), blocks).slots.tolist() == list(range(expected))
    with pytest.raises(PlacementError, match=f"expected {expected}"):
        pages.at(range(expected + 1), blocks)


def test_slots_are_copied_and_frozen() -> None:
    chosen = np.array([1, 2])
    slots = Pages.empty(spec_of(), 5).at(iter(chosen.tolist()), chosen)
    chosen[0] = 9
    assert slots.blocks is not None
    assert (slots.slots.tolist(), slots.blocks.tolist()) == ([1, 2], [1, 2])
    with pytest.raises(ValueError, match="read-only"):
        slots.slots[0] = 3


def test_blocks_against_the_offer() -> None:
    spec = spec_of()
    pages = Pages.empty(spec, 5)
    offer = GroupOffer(spec, BlockRange(2, 6))
    assert pages.at([0, 1, 2, 3]).block_numbers(offer).tolist() == [2, 3, 4, 5]
    assert pages.at([0, 1], [3, 5]).block_numbers(offer).tolist() == [3, 5]
    with pytest.raises(PlacementError, match="3 slots for 4 blocks"):
        pages.at([0, 1, 2]).block_numbers(offer)
    for block in (1, 6):
        with pytest.raises(PlacementError, match=f"block {block} is not on offer; blocks 2 to 6"):
            pages.at([0], [block]).block_numbers(offer)
    some = pages.at([0, 1], [3, 5])
    for block, message in ((1, "not on offer"), (6, "not on offer"), (4, "block 4 has no slot")):
        with pytest.raises(PlacementError, match=message):
            some.segments(offer, np.array([block]))
    with pytest.raises(PlacementError, match="not ascending"):
        some.segments(offer, np.array([5, 3]))
    with pytest.raises(PlacementError, match="block 3 has no slot"):
        pages.at([], []).segments(offer, np.array([3]))
    assert [s.nbytes for s in some.segments(offer, np.array([], np.int64))] == [0, 0]
    with pytest.raises(SpecError, match=r"layers is \(0, 1, 2\) on offer and \(0, 1\) in the pages"):
        some.block_numbers(GroupOffer(spec_of(layers=3), BlockRange(2, 6)))


# --- leases -----------------------------------------------------------------------------------------------------


def test_many_readers_or_one_writer() -> None:
    pages = Pages.empty(spec_of(), 8)
    first = pages.at([1, 2]).lease_read("transfer 4")
    second = pages.lease_read([2, 3], "transfer 5")
    with pytest.raises(PlacementError, match="slot 2 is still being read by transfer [45]"):
        pages.at([2]).lease_write("transfer 6")
    writer = pages.at([7]).lease_write("transfer 12")
    for lease in (pages.lease_read, pages.lease_write):
        with pytest.raises(PlacementError, match="slot 7 is still being written by transfer 12"):
            lease([6, 7], "transfer 13")
    pages.check_free([0, 4, 6])  # what was refused left nothing behind
    with pytest.raises(LeaseHeld, match="slot 3 is still being read by transfer 5"):
        pages.check_free([0, 3])
    with pytest.raises(LeaseHeld, match="slot 7 is still being written by transfer 12"):
        pages.check_free(range(7, 8))
    first.release()
    first.release()
    with pytest.raises(LeaseHeld, match="slot 2"):
        pages.check_free([1, 2])
    second.release()
    writer.release()
    pages.check_free(range(8))
    pages.at([2]).lease_write("transfer 6").release()


def test_a_lease_keeps_the_pages() -> None:
    pages = Pages.empty(spec_of(), 2)
    lease = pages.at([0]).lease_read("transfer 1")
    assert lease.pages is pages


def test_leases_from_many_threads() -> None:
    pages = Pages.empty(spec_of(), 4)
    wins: list[str] = []

    def work(name: str) -> None:
        for _ in range(300):
            try:
                lease = pages.lease_write([0, 1, 2, 3], name)
            except PlacementError:
                continue
            wins.append(name)
            pages.lease_read([], name).release()
            lease.release()

    threads = [threading.Thread(target=work, args=(f"transfer {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins
    pages.check_free(range(4))


def test_close_waits_for_leases_and_ends_everything() -> None:
    spec = spec_of()
    pages = Pages.empty(spec, 4)
    slots = pages.at([1])
    lease = slots.lease_read("transfer 3")
    with pytest.raises(LeaseHeld, match="slot 1 is still being read by transfer 3"):
        pages.close()
    lease.release()
    pages.close()
    pages.close()
    offer = GroupOffer(spec, BlockRange(0, 1))
    uses: list[Callable[[], object]] = [
        lambda: pages.at([0]),
        lambda: pages.check_free([0]),
        lambda: pages.planes,
        lambda: slots.block_numbers(offer),
        lambda: slots.segments(offer, np.array([0])),
        lambda: slots.lease_read("transfer 4"),
        lambda: slots.lease_write("transfer 4"),
    ]
    for use in uses:
        with pytest.raises(Closed, match="closed"):
            use()


def test_memory_freed_too_early_says_so() -> None:
    spec = spec_of(layers=1)
    mapped, array = mmap.mmap(-1, 4 * spec.block_bytes), bytearray(4 * spec.block_bytes)
    pages = [Pages(spec, [mapped]), Pages(spec, [array])]
    with pytest.raises(BufferError):
        mapped.close()
    with pytest.raises(BufferError):
        array.append(1)
    for one in pages:
        one.close()
    mapped.close()
    array.append(1)


def test_shared_memory_closed_too_early_says_so() -> None:
    spec = spec_of(layers=1)
    shared = SharedMemory(create=True, size=4 * spec.block_bytes)
    try:
        pages = Pages(spec, [shared.buf[: 4 * spec.block_bytes]])
        with pytest.raises(BufferError):
            shared.close()
        pages.close()
        shared.close()
    finally:
        shared.unlink()


def test_repr_tells_what_it_is() -> None:
    pages = Pages.empty(spec_of(), 2)
    assert repr(pages) == "<Pages of group kv: 2 slots of 96 bytes>"
    assert repr(pages.lease_write([1], "transfer 1")) == "<Lease of 1 slots, written by transfer 1>"
