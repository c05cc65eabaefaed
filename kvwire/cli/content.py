"""The bytes that belong in the blocks of a KV cache that a bench moves. Both sides make them, so a check needs nothing
from the sender.

A block has a key, which belongs to one block of one layer of one group in one transfer. Of `noise` it is added to every
word of a row: nothing shrinks that. Of `kv` it says where in a table of numbers, distributed as keys and values of
models are, the block begins, and turns over some of their lowest bits: a codec finds what it finds in a real cache.
Either way a block that lands in another's place, a cell at a wrong offset and bytes left from before are seen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

import kvwire
from kvwire import DType
from kvwire.cli.codecs.samples import as_bf16, as_fp8, layer_numbers

Words = NDArray[np.uint64]

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

_NUMBERS: dict[DType, tuple[Callable[[NDArray[np.float64]], NDArray[np.generic]], int]] = {
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
    numbers = written(layer_numbers()[: KV_WORDS * 8 // dtype.itemsize])
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
