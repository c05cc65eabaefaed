"""Lossy codecs: what they write is the reference's to the byte; numbers that are none; payloads that are none."""

import random
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvwire._ext.codec import Cell, Native, Scratch
from kvwire.codecs import cell, codecs, find_codec
from kvwire.errors import ProtocolError
from kvwire.types import DType, GroupKind, GroupSpec
from tests.unit import codec_reference as reference

SCRATCH = Scratch()
LOSSY = ("fp8", "int8", "int4", "int2", "delta")
EVERY = pytest.mark.parametrize("name", LOSSY)
FLOATS = (DType.BF16, DType.FP16, DType.FP32)
EVERY_FLOAT = pytest.mark.parametrize("dtype", FLOATS)
ELEMENT = {DType.BF16: reference.BF16, DType.FP16: reference.FP16, DType.FP32: reference.FP32}
ERROR = {"fp8": 0.03, "int8": 0.006, "int4": 0.08, "int2": 0.4, "delta": 0.3}
"""Most that the error may be, beside gaussian numbers with a scale of their own in each channel (norms)."""


def native(name: str) -> Native:
    return find_codec(name).native


def spec(
    dtype: DType, tokens: int = 16, heads: int = 2, dim: int = 16, order: str = "NHD", layers: int = 3
) -> GroupSpec:
    return GroupSpec.attention("g", range(layers), dtype, block_tokens=tokens, heads=heads, head_dim=dim, order=order)


def bytes_of(dtype: DType, values: Any) -> bytes:
    return reference.store(ELEMENT[dtype], np.asarray(values, np.float32))


def keys_and_values(group: GroupSpec, blocks: int, seed: int = 1) -> bytes:
    """Blocks of numbers as models have them: gaussian, some channels of keys much larger than others."""
    draw = np.random.default_rng(seed)
    rows = []
    for part in group.parts:
        scale = np.exp(draw.normal(0, 1, part.shape[-1])) if part.name == "k" else 1
        rows.append(draw.normal(0, 1, (blocks, *part.shape)) * scale)
    return bytes_of(group.dtype, np.concatenate([row.reshape(blocks, -1) for row in rows], axis=1).ravel())


def check(name: str, shape: Cell, data: bytes) -> bytes | None:
    """The payload, once it and what comes out of it have been compared with the reference's."""
    payload = native(name).encode(shape, data, SCRATCH)
    try:
        expected, back = reference.quantise(name, shape, data)
    except reference.NotEncodable:
        assert payload is None
        return None
    if payload is None:
        assert len(expected) >= len(data) or name == "delta"
        return None
    assert len(payload) < len(data)
    if name == "delta":
        scales = len(expected) - len(data) // shape.itemsize
        codes = zstandard.ZstdDecompressor().decompress(payload[scales:])
        assert payload[:scales] + codes == expected
    else:
        assert payload == expected
    assert native(name).decode(shape, payload, len(data), SCRATCH) == back
    assert native(name).encode(shape, data, Scratch()) == payload, "a worker's past shows in the payload"
    return payload


@EVERY
@EVERY_FLOAT
@pytest.mark.parametrize("order", ["NHD", "HND"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_blocks_of_keys_and_values(name: str, dtype: DType, order: str, layer: int) -> None:
    group = spec(dtype, order=order)
    data = keys_and_values(group, 3)
    payload = check(name, cell(group, layer), data)
    assert payload is not None
    back = native(name).decode(cell(group, layer), payload, len(data), SCRATCH)
    x, y = reference.load(ELEMENT[dtype], data), reference.load(ELEMENT[dtype], back)
    assert np.linalg.norm(x - y) / np.linalg.norm(x) < ERROR[name]


@EVERY
@EVERY_FLOAT
@settings(max_examples=40)
@given(
    tokens=st.sampled_from((1, 2, 7, 8, 16, 33, 75)),
    heads=st.integers(1, 3),
    dim=st.sampled_from((1, 3, 8, 32, 37)),
    order=st.sampled_from(("NHD", "HND")),
    offset=st.integers(0, 5000),
    numbers=st.integers(1, 900),
    layer=st.integers(0, 2),
    seed=st.integers(0, 2**32),
)
def test_cells_of_any_place_and_length(
    name: str,
    dtype: DType,
    tokens: int,
    heads: int,
    dim: int,
    order: str,
    offset: int,
    numbers: int,
    layer: int,
    seed: int,
) -> None:
    """That begin and end in the middle of a row, of one token, of blocks with odd sizes."""
    group = spec(dtype, tokens, heads, dim, order)
    draw = np.random.default_rng(seed)
    values = draw.normal(0, 1, numbers) * np.exp(draw.normal(0, 3, numbers))
    values[draw.random(numbers) < 0.1] = 0
    check(name, cell(group, layer, offset * dtype.itemsize), bytes_of(dtype, values))


@EVERY
@EVERY_FLOAT
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), numbers=st.integers(1, 600), finite=st.booleans())
def test_any_bits(name: str, dtype: DType, seed: int, numbers: int, finite: bool) -> None:
    """The largest and the least numbers, denormals and zeros of both signs, and what is no number."""
    data = np.frombuffer(random.Random(seed).randbytes(numbers * dtype.itemsize), f"<u{dtype.itemsize}").copy()
    if finite:
        data[~np.isfinite(reference.load(ELEMENT[dtype], data.tobytes()))] = 0
    check(name, cell(spec(dtype)), data.tobytes())


@EVERY
@EVERY_FLOAT
@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 517, 1023])
def test_what_is_no_number_goes_as_it_is(name: str, dtype: DType, strange: float, where: int) -> None:
    values = reference.load(ELEMENT[dtype], keys_and_values(spec(dtype), 1)).copy()
    values[where] = 1
    assert check(name, cell(spec(dtype)), bytes_of(dtype, values)) is not None
    values[where] = strange
    data = reference.to_bf16(values) if dtype is DType.BF16 else values.astype(f"<f{dtype.itemsize}")
    assert native(name).encode(cell(spec(dtype)), data, SCRATCH) is None


def round_trip(name: str, dtype: DType, values: Any) -> NDArray[np.float32]:
    data = bytes_of(dtype, values)
    payload = check(name, cell(spec(dtype)), data)
    assert payload is not None
    return reference.load(ELEMENT[dtype], native(name).decode(cell(spec(dtype)), payload, len(data), SCRATCH))


@EVERY
@EVERY_FLOAT
def test_zeros(name: str, dtype: DType) -> None:
    """Zero stays zero; its sign is kept by fp8 only."""
    back = round_trip(name, dtype, [0.0, -0.0] * 512)
    assert (back == 0).all()
    assert np.signbit(back).tolist() == ([False, True] * 512 if name == "fp8" else [False] * 1024)


@EVERY
@EVERY_FLOAT
def test_the_largest_numbers_stay_finite(name: str, dtype: DType) -> None:
    most = {DType.BF16: reference.from_bf16([0x7F7F])[0], DType.FP16: 65504.0, DType.FP32: np.finfo(np.float32).max}[
        dtype
    ]
    data = bytes_of(dtype, np.full(1024, most))
    payload = check(name, cell(spec(dtype)), data)
    if payload is None:  # no scale in bf16 is so large
        assert dtype is not DType.FP16
        return
    values = reference.load(ELEMENT[dtype], native(name).decode(cell(spec(dtype)), payload, len(data), SCRATCH))
    assert np.isfinite(values).all()
    assert (values > 0.95 * most).all()


@pytest.mark.parametrize("name", ["int8", "int4", "int2", "fp8"])
def test_denormals_become_zero_or_stay_near(name: str) -> None:
    """Zero where a scale for them would be none itself; beside other numbers they are like zeros."""
    back = round_trip(name, DType.BF16, [2.0**-130, -(2.0**-130)] * 512)
    assert np.abs(back).max() <= 2.0**-130
    assert np.abs(round_trip(name, DType.FP16, [2.0**-24, 3 * 2.0**-24] * 512)).max() <= 4 * 2.0**-24


@EVERY
def test_what_it_is_not_for(name: str) -> None:
    """Integers, other floats, cells that begin or end inside of a number, longer ones than the scratch."""
    data = keys_and_values(spec(DType.BF16), 1)
    good = cell(spec(DType.BF16))
    assert native(name).encode(good, data, SCRATCH) is not None
    for dtype in set(DType) - set(FLOATS):
        assert native(name).encode(cell(spec(dtype)), data, SCRATCH) is None
    assert native(name).encode(good, data[:-1], SCRATCH) is None
    assert native(name).encode(good, b"", SCRATCH) is None
    assert native(name).encode(cell(spec(DType.BF16), 0, 1), data, SCRATCH) is None
    assert native(name).encode(good, data, Scratch(len(data) - 1)) is None


@EVERY
@pytest.mark.parametrize("room", [0, 1, 2])
def test_no_more_is_written_than_there_is_room(name: str, room: int) -> None:
    data = keys_and_values(spec(DType.BF16), 1)
    payload = native(name).encode(cell(spec(DType.BF16)), data, SCRATCH)
    assert payload is not None
    for space in (0, 1, 100, len(payload) - 1, len(payload)):
        out = np.full(space + 64, 0xAA, np.uint8)
        length = native(name).encode_into(cell(spec(DType.BF16)), data, out[:space], SCRATCH)
        assert length in (-1, len(payload))
        assert length <= space
        assert (out[space:] == 0xAA).all()


@EVERY
@EVERY_FLOAT
@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), payload=st.binary(max_size=300), n=st.integers(0, 900), offset=st.integers(0, 3000))
def test_garbage_and_damage(name: str, dtype: DType, seed: int, payload: bytes, n: int, offset: int) -> None:
    """Another cell, perhaps, and no harm: nothing is written behind it."""
    draw = random.Random(seed)
    group = spec(dtype)
    data = keys_and_values(group, 1, 7)
    damaged = bytearray(native(name).encode(cell(group), data, SCRATCH) or b"")
    for _ in range(draw.randrange(1, 8)):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    for shape, bad, length in ((cell(group, 0, offset), payload, n), (cell(group), bytes(damaged), len(data))):
        out = np.full(length + 64, 0xAA, np.uint8)
        native(name).decode_into(shape, bad, out[:length], SCRATCH)
        assert (out[length:] == 0xAA).all()


@EVERY
def test_a_payload_of_another_length_is_none(name: str) -> None:
    group = spec(DType.BF16)
    data = keys_and_values(group, 1)
    payload = native(name).encode(cell(group), data, SCRATCH)
    assert payload is not None
    for length in range(len(payload)):
        with pytest.raises(ProtocolError, match=name):
            native(name).decode(cell(group), payload[:length], len(data), SCRATCH)
    for bad, n in ((payload + b"\0", len(data)), (payload, len(data) - 64), (payload, len(data) - 1), (payload, 0)):
        with pytest.raises(ProtocolError):
            native(name).decode(cell(group), bad, n, SCRATCH)


def test_a_bomb_is_none() -> None:
    group = spec(DType.BF16)
    data = keys_and_values(group, 1)
    payload = native("delta").encode(cell(group), data, SCRATCH)
    assert payload is not None
    scales = len(reference.quantise("delta", cell(group), data)[0]) - len(data) // 2
    bomb = zstandard.ZstdCompressor().compress(bytes(100_000_000))
    assert not native("delta").decode_into(cell(group), payload[:scales] + bomb, bytearray(len(data)), SCRATCH)


# --- bf16 -------------------------------------------------------------------------------------------------------------


def state(numbers: int) -> Cell:
    return cell(GroupSpec.state("s", GroupKind.RECURRENT, (0,), DType.FP32, (numbers,)))


@given(st.integers(0, 2**32), st.integers(1, 700))
def test_bf16_rounds_to_nearest(seed: int, numbers: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**32, numbers, np.uint32)
    bits[bits & 0x7FFFFFFF >= 0x7F7F8000] &= 0x3FFFFFFF  # NaN, infinite, or so after rounding
    payload = native("bf16").encode(state(numbers), bits, SCRATCH)
    assert payload == reference.to_bf16(bits.view(np.float32)).tobytes()
    back = np.frombuffer(native("bf16").decode(state(numbers), payload, 4 * numbers, SCRATCH), np.float32)
    assert back.tobytes() == reference.from_bf16(np.frombuffer(payload, np.uint16)).tobytes()


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 0x7F7F8000])
def test_bf16_leaves_alone_what_would_not_be_finite(bits: int) -> None:
    data = np.full(100, 0x3F800000, np.uint32)
    data[50] = bits
    assert native("bf16").encode(state(100), data, SCRATCH) is None


def test_bf16_keeps_denormals_and_signs_of_zero() -> None:
    values = np.array([0.0, -0.0, 2.0**-133, -(2.0**-133), 2.0**-140], np.float32)
    payload = native("bf16").encode(state(5), values, SCRATCH)
    assert payload is not None
    back = np.frombuffer(native("bf16").decode(state(5), payload, 20, SCRATCH), np.float32)
    assert back.tobytes() == np.array([0.0, -0.0, 2.0**-133, -(2.0**-133), 0], np.float32).tobytes()


def test_bf16_bounds() -> None:
    values = np.ones(100, np.float32)
    bf16 = native("bf16")
    assert bf16.encode_into(state(100), values, bytearray(199), SCRATCH) == -1
    assert bf16.encode(state(100), values.tobytes()[:-1], SCRATCH) is None
    assert bf16.encode(cell(spec(DType.BF16)), values, SCRATCH) is None
    for length, n in ((199, 400), (201, 400), (200, 402), (0, 0)):
        assert not bf16.decode_into(state(100), bytes(length), bytearray(n), SCRATCH)


# --- all --------------------------------------------------------------------------------------------------------------


def test_names_and_numbers_are_for_good() -> None:
    """Both ends go by them: one that changes is another codec."""
    assert {codec.name: codec.wire_id for codec in codecs() if codec.wire_id < 128} == {
        "zstd": 1, "bf16": 2, "fp8": 3, "int8": 4, "int4": 5, "int2": 6, "delta": 7
    }  # fmt: skip
    assert [codec.name for codec in codecs() if codec.lossless and codec.wire_id < 128] == ["zstd"]
    assert all(codec.native.id == codec.wire_id and codec.native.nogil for codec in codecs() if codec.wire_id < 128)
