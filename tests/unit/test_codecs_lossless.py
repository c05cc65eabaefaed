"""The lossless codec: bit-exact for any bits of any dtype, its format, and payloads that are none."""

import random
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvwire._ext.codec import Cell, Scratch, merge_planes, split_planes
from kvwire.codecs import cell, find_codec
from kvwire.errors import ProtocolError
from kvwire.types import DType, GroupKind, GroupSpec
from tests.unit import codec_reference as reference

ZSTD = find_codec("zstd").native
SCRATCH = Scratch()
LONGEST = 256 << 10
EVERY_DTYPE = pytest.mark.parametrize("dtype", DType)


def of(dtype: DType, offset: int = 0) -> Cell:
    return cell(GroupSpec.attention("g", (0,), dtype, block_tokens=16, heads=2, head_dim=8), 0, offset)


def gaussian(dtype: DType, numbers: int, seed: int = 1) -> bytes:
    values = np.random.default_rng(seed).normal(0, 1, numbers)
    if dtype is DType.BF16:
        return reference.to_bf16(values).tobytes()
    return values.astype({2: "<f2", 4: "<f4", 8: "<f8"}[dtype.itemsize]).tobytes()


def there_and_back(shape: Cell, data: bytes) -> bytes | None:
    """The payload, after what comes out of it, here and by the reference, has been compared."""
    payload = ZSTD.encode(shape, data, SCRATCH)
    if payload is not None:
        assert len(payload) <= len(data) - len(data) // 32
        assert ZSTD.decode(shape, payload, len(data), SCRATCH) == data
        assert reference.unpacked_planes(shape, payload, len(data)) == data
        assert ZSTD.encode(shape, data, Scratch()) == payload, "a worker's past shows in the payload"
    return payload


@EVERY_DTYPE
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(0, 3000),
    values=st.integers(1, 256),
    offset=st.integers(0, 2000),
)
def test_any_bits_of_any_length(dtype: DType, seed: int, n: int, values: int, offset: int) -> None:
    """Bytes of few values and of many, cells that begin and end inside of an element."""
    draw = random.Random(seed)
    alphabet = bytes(draw.randrange(256) for _ in range(values))
    there_and_back(of(dtype, offset), bytes(draw.choices(alphabet, k=n)))


@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16, DType.FP32, DType.FP64])
def test_every_kind_of_float(dtype: DType) -> None:
    """NaNs with payloads, infinities, denormals and negative zeros among numbers, bit by bit."""
    data = np.frombuffer(gaussian(dtype, 8192), f"<u{dtype.itemsize}").copy()
    mantissa = {DType.BF16: 7, DType.FP16: 10, DType.FP32: 23, DType.FP64: 52}[dtype]
    bits = 8 * dtype.itemsize
    inf = (1 << bits - 1) - (1 << mantissa)
    strange = [0, 1 << bits - 1, inf, inf | 1 << bits - 1, inf | 1, inf | 1 << mantissa - 1, 1, 1 << mantissa - 1]
    data[:: len(data) // len(strange)][: len(strange)] = strange
    assert there_and_back(of(dtype), data.tobytes()) is not None


@pytest.mark.parametrize(
    ("dtype", "ratio"), [(DType.BF16, 1.4), (DType.FP16, 1.1), (DType.FP32, 1.14), (DType.FP64, 1.1)]
)
@pytest.mark.parametrize("n", [4096, 65536, LONGEST, 65536 - 1, 65536 + 3])
def test_numbers_shrink(dtype: DType, ratio: float, n: int) -> None:
    data = gaussian(dtype, n // dtype.itemsize + 1)[:n]
    payload = there_and_back(of(dtype), data)
    assert payload is not None
    assert n / len(payload) > (ratio if n > 4096 else 1)


@EVERY_DTYPE
def test_zeros_are_next_to_nothing(dtype: DType) -> None:
    payload = there_and_back(of(dtype), bytes(65536))
    assert payload is not None
    assert len(payload) < 65536 / 64


@EVERY_DTYPE
@pytest.mark.parametrize("n", [0, 1, 63, 4096, LONGEST])
def test_noise_goes_as_it_is(dtype: DType, n: int) -> None:
    assert ZSTD.encode(of(dtype), random.Random(n).randbytes(n), SCRATCH) is None


def test_a_cell_longer_than_the_scratch_goes_as_it_is() -> None:
    small = Scratch(4096)
    assert ZSTD.encode(of(DType.BF16), bytes(4096), small) is not None
    assert ZSTD.encode(of(DType.BF16), bytes(4097), small) is None
    payload = ZSTD.encode(of(DType.BF16), bytes(8192), SCRATCH)
    assert payload is not None
    with pytest.raises(ProtocolError):
        ZSTD.decode(of(DType.BF16), payload, 8192, small)


def test_no_more_is_written_than_there_is_room() -> None:
    data = gaussian(DType.BF16, 4096)
    payload = ZSTD.encode(of(DType.BF16), data, SCRATCH)
    assert payload is not None
    for room in (0, 7, 8, 9, 4096, len(payload) - 1, len(payload)):
        out = np.full(room + 64, 0xAA, np.uint8)
        length = ZSTD.encode_into(of(DType.BF16), data, out[:room], SCRATCH)
        assert length in (-1, len(payload))
        assert length <= room
        assert (out[room:] == 0xAA).all()
    assert length in (-1, len(payload)), "zstd may want more room than it fills in the end"


def test_workers_do_not_meet() -> None:
    """Each with its own scratch, all at once."""
    cells = [gaussian(DType.BF16, 32768, seed) for seed in range(24)]

    def all_of_them(_: int) -> list[bytes | None]:
        scratch = Scratch()
        payloads = [ZSTD.encode(of(DType.BF16), data, scratch) for data in cells]
        for payload, data in zip(payloads, cells, strict=True):
            assert payload is not None
            assert ZSTD.decode(of(DType.BF16), payload, len(data), scratch) == data
        return payloads

    with ThreadPoolExecutor(4) as workers:
        first, *others = workers.map(all_of_them, range(4))
    assert all(payloads == first for payloads in others)


# --- payloads that are none -------------------------------------------------------------------------------------------


def decodes(shape: Cell, payload: bytes, n: int) -> bool:
    """Whether it does; that nothing is written behind the cell either way."""
    out = np.full(n + 64, 0xAA, np.uint8)
    done = ZSTD.decode_into(shape, payload, out[:n], SCRATCH)
    assert (out[n:] == 0xAA).all()
    return done


def test_a_payload_cut_anywhere_is_none() -> None:
    data = gaussian(DType.BF16, 512)
    payload = ZSTD.encode(of(DType.BF16), data, SCRATCH)
    assert payload is not None
    for length in range(len(payload)):
        assert not decodes(of(DType.BF16), payload[:length], len(data))
    assert not decodes(of(DType.BF16), payload + b"\0", len(data))
    assert not decodes(of(DType.BF16), payload, len(data) + 1)
    assert not decodes(of(DType.BF16), payload, len(data) - 1)


def test_a_bomb_is_none() -> None:
    """A frame of zstd that is 100 MB long when decompressed, as a plane of 1000 bytes."""
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(100_000_000))
    for pair in ((bomb, b"x" * 1000), (b"x" * 1000, bomb[:999]), (bomb[:999], bomb[:999])):
        payload = struct.pack("<2I", len(pair[0]), len(pair[1])) + pair[0] + pair[1]
        assert not decodes(of(DType.BF16), payload, 2000)


@example(lengths=[0xFFFFFFFF, 9], rest=b"", n=20)
@example(lengths=[0xFFFFFFFF, 0xFFFFFFFF], rest=bytes(20), n=20)
@given(
    st.lists(st.integers(0, 0xFFFFFFFF) | st.integers(0, 40), min_size=2, max_size=2), st.binary(), st.integers(0, 90)
)
def test_lengths_that_lie(lengths: list[int], rest: bytes, n: int) -> None:
    done = decodes(of(DType.BF16), struct.pack("<2I", *lengths) + rest, n)
    if done:
        assert all(length <= n // 2 for length in lengths)
        assert sum(lengths) + n % 2 == len(rest)


@EVERY_DTYPE
@given(payload=st.binary(max_size=200), n=st.integers(0, 400))
def test_garbage(dtype: DType, payload: bytes, n: int) -> None:
    decodes(of(dtype), payload, n)


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_damage(seed: int, times: int) -> None:
    """It may give another cell, which the checksum of a frame is there to notice; it does no harm."""
    draw = random.Random(seed)
    payload = bytearray(ZSTD.encode(of(DType.BF16), gaussian(DType.BF16, 2048), SCRATCH) or b"")
    for _ in range(times):
        payload[draw.randrange(len(payload))] = draw.randrange(256)
    decodes(of(DType.BF16), bytes(payload), 4096)


# --- planes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("rotate", [False, True])
@given(count=st.integers(1, 1100), shift=st.integers(0, 7), seed=st.integers(0, 2**32))
def test_planes_are_the_references(size: int, rotate: bool, count: int, shift: int, seed: int) -> None:
    """Of memory that is not aligned, too."""
    shape = Cell(reference.FP64 if rotate else reference.OTHER, size, [])
    data = np.frombuffer(random.Random(seed).randbytes(count * size + shift), np.uint8)[shift:]
    apart, back = np.empty(count * size + shift, np.uint8)[shift:], np.empty(count * size + 1, np.uint8)[1:]
    split_planes(data, apart, size, rotate and size > 1)
    assert apart.tobytes() == b"".join(reference.planes(shape, data.tobytes()))
    merge_planes(apart, back, size, rotate and size > 1)
    assert back.tobytes() == data.tobytes()


def test_a_state_is_a_cell_like_any_other() -> None:
    spec = GroupSpec.state("s", GroupKind.RECURRENT, (0, 1), DType.FP32, (4, 1000))
    assert there_and_back(cell(spec, 1, 64), gaussian(DType.FP32, 3900)) is not None
