"""The KV cache that a bench moves: pages, and whether the bytes that belong in them (`content.py`) are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

import kvwire
from kvwire.cli.compression import recoded, recoders
from kvwire.cli.content import NOISE, Noise, Numbers, Words, content_of, keys

POISON = 0xA5
CHUNK_BYTES = 256 * 1024
"""Bytes checked at a time: they stay in the L2 cache between the passes."""


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

    `scatter_seed`: blocks lie in pages in random order; None: in order. `content`: what they hold, of
    `content.CONTENTS`. ValueError where a block is not whole 64-bit words.
    """

    def __init__(
        self, specs: Sequence[kvwire.GroupSpec], tokens: int, scatter_seed: int | None = None, content: str = NOISE
    ) -> None:
        self.tokens = tokens
        self.specs = tuple(specs)
        self.blocks = [spec.blocks_for(tokens) for spec in specs]
        for spec in specs:
            if spec.block_bytes % 8:
                raise ValueError(f"group {spec.name}: a page of {spec.block_bytes} bytes; expected a multiple of 8")
        self.pages = [kvwire.Pages.empty(s, len(b)) for s, b in zip(specs, self.blocks, strict=True)]
        rng = None if scatter_seed is None else np.random.default_rng(scatter_seed)
        self.slots = [rng.permutation(len(b)) if rng else np.arange(len(b)) for b in self.blocks]
        self._contents = [content_of(spec, content) for spec in specs]

    def placement(self) -> dict[str, kvwire.Slots]:
        """Source of an offer and placement of a grant."""
        return {
            spec.name: pages.at(slots) for spec, pages, slots in zip(self.specs, self.pages, self.slots, strict=True)
        }

    def _layers(self, transfer: int) -> Iterator[tuple[int, int, Words, Noise | Numbers, Words]]:
        """Group number, layer, its pages as words [slots, words], and what makes what they hold, of the keys."""
        for group, spec in enumerate(self.specs):
            for layer in spec.layers:
                pages = self.pages[group].array(layer).view(np.uint64)
                yield group, layer, pages, self._contents[group], keys(transfer, group, layer, self.blocks[group])

    def fill(self, transfer: int) -> None:
        """Writes the bytes of transfer number `transfer`."""
        for group, _, pages, content, key in self._layers(transfer):
            for chunk in _chunks(len(key), self.specs[group].block_bytes):
                pages[self.slots[group][chunk]] = content.of(key[chunk])

    def poison(self) -> None:
        """Overwrites all pages, so that nothing right is left to be found."""
        for spec, pages in zip(self.specs, self.pages, strict=True):
            for layer in spec.layers:
                pages.array(layer).fill(POISON)

    def damage(self, transfer: int, compression: str = "off") -> list[str]:
        """What is wrong in these pages after transfer number `transfer`: one sentence per layer; empty: nothing.

        `compression`: what it went through. Where that is lossy, what a codec makes of the right bytes is right.
        """
        wrong = []
        lossy = recoders(compression, self.specs)
        for group, layer, pages, content, key in self._layers(transfer):
            spec, codec, bad = self.specs[group], lossy[group], list[int]()
            whole = None if codec is None else recoded(codec, spec, layer, content.of(key))
            for chunk in _chunks(len(key), spec.block_bytes):
                right = content.of(key[chunk]) if whole is None else whole[chunk]
                differs = (pages[self.slots[group][chunk]] != right).any(axis=1)
                bad += (np.flatnonzero(differs) + chunk.start + self.blocks[group].start).tolist()
            if bad:
                wrong.append(
                    f"group {spec.name}, layer {layer}: {len(bad)} of {len(key)} blocks are wrong, first {bad[0]}"
                )
        return wrong


def _chunks(blocks: int, block_bytes: int) -> Iterator[slice]:
    step = max(1, CHUNK_BYTES // block_bytes)
    for start in range(0, blocks, step):
        yield slice(start, min(start + step, blocks))
