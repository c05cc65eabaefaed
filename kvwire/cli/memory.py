"""The KV cache that a bench moves: pages, the bytes that belong in them, and whether they are there.

Both sides make the expected bytes themselves, so a check needs nothing from the sender. A page is a row of 64-bit
words, `noise[i] + key`, where the key belongs to one block of one layer of one group in one transfer: a page that
lands in another's place, a cell at a wrong offset and bytes left from the transfer before are all seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

import kvwire

Words = NDArray[np.uint64]

POISON = 0xA5
CHUNK_BYTES = 256 * 1024
"""Bytes checked at a time: they stay in the L2 cache between the passes."""


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


def keys(transfer: int, group: int, layer: int, blocks: kvwire.BlockRange) -> Words:
    """One word per block: no two of one run are alike."""
    place = (transfer << 44) | (group << 38) | (layer << 21)
    numbers = np.arange(blocks.start, blocks.stop, dtype=np.uint64) + np.uint64(place)
    return splitmix64(numbers ^ np.uint64(0x5DEECE66D5DEECE6))


def kv_bytes(specs: Sequence[kvwire.GroupSpec], tokens: int) -> int:
    """Bytes of the KV cache of one request."""
    return sum(len(s.layers) * len(s.blocks_for(tokens)) * s.block_bytes for s in specs)


def steps(specs: Sequence[kvwire.GroupSpec]) -> list[tuple[tuple[str, int], ...]]:
    """The (group, layer) pairs that become ready together, in the order in which prefill computes layers."""
    layers = sorted({layer for spec in specs for layer in spec.layers})
    return [tuple((spec.name, layer) for spec in specs if layer in spec.layers) for layer in layers]


def last_layer_bytes(specs: Sequence[kvwire.GroupSpec], tokens: int) -> int:
    """Bytes that become ready in the last of `steps`."""
    names = {name for name, _ in steps(specs)[-1]}
    return sum(len(s.blocks_for(tokens)) * s.block_bytes for s in specs if s.name in names)


class KvMemory:
    """Pages for the KV cache of one request of `tokens` tokens on one side.

    `scatter_seed`: blocks lie in pages in random order; None: in order. ValueError where a block is not whole
    64-bit words.
    """

    def __init__(self, specs: Sequence[kvwire.GroupSpec], tokens: int, scatter_seed: int | None = None) -> None:
        self.tokens = tokens
        self.specs = tuple(specs)
        self.blocks = [spec.blocks_for(tokens) for spec in specs]
        for spec in specs:
            if spec.block_bytes % 8:
                raise ValueError(f"group {spec.name}: a page of {spec.block_bytes} bytes; expected a multiple of 8")
        self.pages = [kvwire.Pages.empty(s, len(b)) for s, b in zip(specs, self.blocks, strict=True)]
        rng = None if scatter_seed is None else np.random.default_rng(scatter_seed)
        self.slots = [rng.permutation(len(b)) if rng else np.arange(len(b)) for b in self.blocks]

    def placement(self) -> dict[str, kvwire.Slots]:
        """Source of an offer and placement of a grant."""
        return {
            spec.name: pages.at(slots) for spec, pages, slots in zip(self.specs, self.pages, self.slots, strict=True)
        }

    def _layers(self, transfer: int) -> Iterator[tuple[int, int, Words, Words, Words]]:
        """Group number, layer, its pages as words [slots, words], and what they hold: `row + key[block]`."""
        for group, spec in enumerate(self.specs):
            row = noise(spec.block_bytes // 8)
            for layer in spec.layers:
                pages = self.pages[group].array(layer).view(np.uint64)
                yield group, layer, pages, row, keys(transfer, group, layer, self.blocks[group])

    def fill(self, transfer: int) -> None:
        """Writes the bytes of transfer number `transfer`."""
        for group, _, pages, row, key in self._layers(transfer):
            for chunk in _chunks(len(key), row.nbytes):
                pages[self.slots[group][chunk]] = row + key[chunk, None]

    def poison(self) -> None:
        """Overwrites all pages, so that nothing right is left to be found."""
        for spec, pages in zip(self.specs, self.pages, strict=True):
            for layer in spec.layers:
                pages.array(layer).fill(POISON)

    def damage(self, transfer: int) -> list[str]:
        """What is wrong in these pages after transfer number `transfer`: one sentence per layer; empty: nothing."""
        wrong = []
        for group, layer, pages, row, key in self._layers(transfer):
            bad: list[int] = []
            for chunk in _chunks(len(key), row.nbytes):
                found = pages[self.slots[group][chunk]]
                found -= row
                differs = (found != key[chunk, None]).any(axis=1)
                bad += (np.flatnonzero(differs) + chunk.start + self.blocks[group].start).tolist()
            if bad:
                name = self.specs[group].name
                wrong.append(f"group {name}, layer {layer}: {len(bad)} of {len(key)} blocks are wrong, first {bad[0]}")
        return wrong


def _chunks(blocks: int, block_bytes: int) -> Iterator[slice]:
    step = max(1, CHUNK_BYTES // block_bytes)
    for start in range(0, blocks, step):
        yield slice(start, min(start + step, blocks))
