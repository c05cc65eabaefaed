"""Registered memory of a simulated node, and what moves. Whatever is not in use holds a pattern that is watched."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvwire import DType, GroupKind, GroupSpec, Manifest, ModelTag, Pages, Slots

POISON = 0xA5
SLOTS = 40
TOKENS = 16

FULL = GroupSpec.attention("full", range(2), DType.BF16, block_tokens=TOKENS, heads=1, head_dim=32)
WINDOW = GroupSpec.attention("window", (2,), DType.FP16, block_tokens=TOKENS, heads=1, head_dim=32, window=40)
MLA = GroupSpec.mla("mla", (4, 5), DType.BF16, block_tokens=TOKENS, latent=72)
RECURRENT = GroupSpec.state("recurrent", GroupKind.RECURRENT, (6,), DType.FP32, (2, 33, 32))
CONV = GroupSpec.state("conv", GroupKind.CONV, (6, 7), DType.BF16, (96, 3))
SPECS = (FULL, WINDOW, MLA, RECURRENT, CONV)
MODEL = ModelTag("simulated", "r1")

Rows = NDArray[np.uint8]
Content = dict[tuple[str, int], Rows]


@dataclass
class Held:
    """Slots that somebody took, by group: one for each of these blocks."""

    slots: dict[str, list[int]] = field(default_factory=dict)
    blocks: dict[str, list[int]] = field(default_factory=dict)


class Memory:
    """The pages of one process. Free slots hold POISON: not a byte may come into them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.pages = {spec.name: Pages.empty(spec, SLOTS) for spec in SPECS}
        self._arrays = {(s.name, layer): self.pages[s.name].array(layer) for s in SPECS for layer in s.layers}
        self._free = {spec.name: list(range(SLOTS)) for spec in SPECS}
        for rows in self._arrays.values():
            rows[:] = POISON

    def take(self, wanted: Mapping[str, list[int]]) -> Held | None:
        """Slots for these blocks of these groups, any that are free; None where there are too few."""
        if any(len(blocks) > len(self._free[name]) for name, blocks in wanted.items()):
            return None
        held = Held(blocks=dict(wanted))
        for name, blocks in wanted.items():
            held.slots[name] = self._rng.sample(self._free[name], len(blocks))
            self._free[name] = [slot for slot in self._free[name] if slot not in held.slots[name]]
        return held

    def at(self, held: Held) -> dict[str, Slots]:
        """As kvwire wants to be told."""
        return {name: self.pages[name].at(slots, held.blocks[name]) for name, slots in held.slots.items()}

    def rows(self, held: Held, group: str, layer: int) -> Rows:
        return self._arrays[group, layer][held.slots[group]]

    def fill(self, held: Held, manifest: Manifest) -> Content:
        """Random bytes into all of it; returns them."""
        content: Content = {}
        for offer in manifest.groups:
            for layer in offer.spec.layers:
                shape = (len(offer.blocks), offer.spec.block_bytes)
                rows = np.frombuffer(self._rng.randbytes(shape[0] * shape[1]), np.uint8).reshape(shape)
                content[offer.spec.name, layer] = rows
                self._arrays[offer.spec.name, layer][held.slots[offer.spec.name]] = rows
        return content

    def check_free(self, held: Held) -> None:
        """LeaseHeld where a transfer still uses any of it."""
        for name, slots in held.slots.items():
            self.pages[name].check_free(slots)

    def give_back(self, held: Held) -> None:
        """Nobody uses them any more: from here on they are watched."""
        for name, slots in held.slots.items():
            for layer in self.pages[name].spec.layers:
                self._arrays[name, layer][slots] = POISON
            self._free[name] += slots
        held.slots.clear()

    def written(self) -> str | None:
        """A free slot that somebody has written into, in words."""
        for (name, layer), rows in self._arrays.items():
            free = sorted(self._free[name])
            bad = [slot for slot, row in zip(free, rows[free], strict=True) if not (row == POISON).all()]
            if bad:
                return f"slot {bad[0]} of group {name}, layer {layer}"
        return None


def some_manifest(rng: random.Random, request_id: str) -> Manifest:
    """A few groups of any kinds over a few tokens, with or without an attachment."""
    specs = rng.sample(SPECS, rng.randint(1, 3))
    return Manifest.of(request_id, MODEL, rng.randint(1, 8 * TOKENS), specs, attachment=rng.random() < 0.4)


def all_blocks(manifest: Manifest) -> dict[str, list[int]]:
    """Every block on offer, by group."""
    return {group.spec.name: list(range(group.blocks.start, group.blocks.stop)) for group in manifest.groups}


def some_blocks(rng: random.Random, manifest: Manifest) -> dict[str, list[int]]:
    """What a receiver with a prefix in its cache asks for: any subset where the kind allows it, else all or nothing."""
    wanted = {}
    for group in manifest.groups:
        blocks = list(range(group.blocks.start, group.blocks.stop))
        if group.spec.kind.takes_any_subset:
            blocks = sorted(rng.sample(blocks, rng.randint(0, len(blocks))))
        elif rng.random() < 0.3:
            blocks = []
        if blocks:
            wanted[group.spec.name] = blocks
    return wanted
