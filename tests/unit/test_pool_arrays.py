"""What can be registered and what cannot."""

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvwire.errors import Closed, SpecError
from kvwire.pool import Pages
from kvwire.types import BlockRange, DType, GroupKind, GroupOffer, GroupSpec, Part

Array = NDArray[Any]


def spec_of(
    *, layers: int = 2, dtype: DType = DType.BF16, block_tokens: int = 4, heads: int = 2, dim: int = 3
) -> GroupSpec:
    return GroupSpec.attention("kv", range(layers), dtype, block_tokens=block_tokens, heads=heads, head_dim=dim)


def fill(array: Array, seed: int) -> None:
    raw = np.random.default_rng(seed).integers(0, 256, array.size * array.itemsize, np.uint8)
    array[...] = raw.view(array.dtype).reshape(array.shape)


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
    assert bytes(raw)[2 * spec.block_bytes :] == bytes(range(spec.block_bytes))
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
    with pytest.raises(SpecError, match="spec is 3; expected a GroupSpec"):
        Pages(3, states)  # type: ignore[arg-type]


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
    spec = spec_of(layers=1, block_tokens=512, heads=65, dim=4)
    with pytest.raises(SpecError, match="strided runs; expected at most 65536"):
        Pages(spec, [np.zeros((1, 2, 512, 66, 9), np.uint16)[:, :, :, :65, ::2][..., :4]])
