"""The bytes that belong in the blocks of a KV cache that a bench moves. Both sides make them, so a check needs nothing
from the sender.

A block has a key, which belongs to one block of one layer of one group in one transfer. Of `noise` it is added to every
word of a row: nothing shrinks that. Of `kv` it says where in a table of numbers, distributed as keys and values of
models are, the block begins, and turns over some of their lowest bits: a codec finds what it finds in a real cache.
Either way a block that lands in another's place, a cell at a wrong offset and bytes left from before are seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

import kvwire
from kvwire import DType
from kvwire.cli.codecs.samples import as_bf16

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]

NOISE, KV = "noise", "kv"
CONTENTS = (NOISE, KV)

# --- noise ------------------------------------------------------------------------------------------------------------


def splitmix64(numbers: Words) -> Words:
    """The SplitMix64 output function (Steele, Lea, Flood 2014): distinct inputs give distinct, unrelated words."""
    words = numbers * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


NOISE_WORDS = 131_071
"""A prime: a longer row repeats itself, but never at a distance at which one cell could be taken for another."""
_NOISE = splitmix64(np.arange(1, NOISE_WORDS + 1, dtype=np.uint64))


def noise(words: int) -> Words:
    return _NOISE[:words] if words <= NOISE_WORDS else np.resize(_NOISE, words)


class Noise:
    """Of blocks of so many words."""

    def __init__(self, words: int) -> None:
        self._row = noise(words)

    def of(self, keys: Words) -> Words:
        """What belongs in the blocks that have these keys, one a row."""
        return self._row + keys[:, None]


# --- keys and values --------------------------------------------------------------------------------------------------

KV_WORDS = 65_521
"""A prime, as above; the table is half as large as an L2 cache."""

HEADS_DIM = 1024
"""Channels of the keys, and of the values: 8 heads of 128 numbers."""


def _normal(shape: tuple[int, ...], start: int) -> Floats:
    """Normal deviates, nearly: each the sum of 12 uniform ones. Integers make them, so that they are the same ones on
    every CPU and with every numpy: the two ends may be two hosts."""
    words = splitmix64(np.arange(start, start + 3 * math.prod(shape), dtype=np.uint64))
    pieces = words.astype("<u8").view("<u2").reshape(*shape, 12)
    return np.asarray(pieces.sum(axis=-1, dtype=np.int64) / 65536 - 6.0, np.float64)


def _power(exponents: Floats) -> Floats:
    """About two to these powers; by what is rounded alike everywhere."""
    whole = np.floor(exponents)
    return np.ldexp(1.0 + (exponents - whole), whole.astype(np.int32))


@lru_cache(maxsize=1)
def kv_numbers() -> Floats:
    """Keys and values, token after token: normal deviates. Each channel of the keys has a scale and a mean of its own,
    as trained models' have (as in `codecs/samples.py`)."""
    scale, mean = _power(_normal((2, HEADS_DIM), 1))
    mean[::2] *= -1
    found = _normal((KV_WORDS * 8 // (2 * HEADS_DIM) + 1, 2, HEADS_DIM), 1 << 20)
    found[:, 0] = (found[:, 0] + mean) * scale
    found[:, 1] *= _power(_normal((HEADS_DIM,), 1 << 16) / 8)
    return (
        found.reshape(-1) * 1.01
    )  # which no sum of a few powers of two is: the last bits of a mantissa look random, too


def as_fp8(values: Floats, mantissa: int) -> NDArray[np.uint8]:
    """e4m3 or e5m2, by the bits of the mantissa: to nearest; what is too large becomes the largest there is (OCP 8-bit
    Floating Point Specification, 2023)."""
    codes = np.arange(0x7F if mantissa == 3 else 0x7C)  # e4m3 has one NaN and no infinity
    exponent, fraction = codes >> mantissa, codes & ((1 << mantissa) - 1)
    least, bias = np.maximum(exponent, 1), (1 << (6 - mantissa)) - 1
    magnitudes = np.ldexp(fraction + (exponent > 0) * (1 << mantissa), least - bias - mantissa)
    nearest = np.searchsorted((magnitudes[1:] + magnitudes[:-1]) / 2, np.abs(values))
    return np.asarray(nearest | (values < 0) << 7, np.uint8)


_NUMBERS: dict[DType, tuple[Callable[[Floats], NDArray[np.generic]], int]] = {
    DType.BF16: (as_bf16, 7),
    DType.FP16: (lambda values: values.astype("<f2"), 10),
    DType.FP32: (lambda values: values.astype("<f4"), 23),
    DType.FP64: (lambda values: values, 52),
    DType.FP8_E4M3: (lambda values: as_fp8(values, 3), 3),
    DType.FP8_E5M2: (lambda values: as_fp8(values, 2), 2),
}
"""Of each dtype that has numbers: how they are written, and the bits of their mantissa, which look random anyway."""


@lru_cache
def _table(dtype: DType) -> Words:
    written, _ = _NUMBERS[dtype]
    numbers = written(kv_numbers()[: KV_WORDS * 8 // dtype.itemsize])
    return np.frombuffer(numbers.tobytes(), np.uint64)


class Numbers:
    """Keys and values in blocks of so many words."""

    def __init__(self, dtype: DType, words: int) -> None:
        table = np.resize(_table(dtype), KV_WORDS + words - 1)  # what begins near its end goes on at its begin
        self._from = np.lib.stride_tricks.sliding_window_view(table, words)
        _, mantissa = _NUMBERS[dtype]
        bits = 8 * dtype.itemsize
        self._mantissas = np.uint64(sum(((1 << mantissa) - 1) << at for at in range(0, 64, bits)))

    def of(self, keys: Words) -> Words:
        """What belongs in the blocks that have these keys, one a row."""
        found: Words = self._from[keys % np.uint64(KV_WORDS)]
        found ^= (keys & self._mantissas)[:, None]
        return found


def content_of(spec: kvwire.GroupSpec, content: str) -> Noise | Numbers:
    """What makes the blocks of a group. Where its elements are no floats nothing is like keys and values, and it is
    noise. `content`: of CONTENTS."""
    words = spec.block_bytes // 8
    return Numbers(spec.dtype, words) if content == KV and spec.dtype in _NUMBERS else Noise(words)


def content_bytes(spec: kvwire.GroupSpec, content: str) -> int:
    """Memory that `content_of` takes."""
    if content == KV and spec.dtype in _NUMBERS:
        return 8 * KV_WORDS + spec.block_bytes
    return spec.block_bytes if spec.block_bytes > 8 * NOISE_WORDS else 0


def keys(transfer: int, group: int, layer: int, blocks: kvwire.BlockRange) -> Words:
    """One word per block: no two of one run are alike."""
    place = (transfer << 44) | (group << 38) | (layer << 21)
    numbers = np.arange(blocks.start, blocks.stop, dtype=np.uint64) + np.uint64(place)
    return splitmix64(numbers ^ np.uint64(0x5DEECE66D5DEECE6))
