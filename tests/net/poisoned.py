"""A node's memory for two tenants, and what each byte of it has to be.

It is one array: guards, the pages that the liar may use, those of another tenant, guards again. All of it is
poison, but for what honest transfers have brought.
"""

import numpy as np

from kvwire import Manifest, Pages, Slots
from tests.net import kit
from tests.net.kit import POISON, Caches

CELL = 16384
BLOCKS = range(3, 9)
"""Of 13: those that the node grants the liar. A segment is two cells, the second one half as long."""
GUARD, MINE, THEIRS = 4, 20, 26
"""Slots: guards at both ends, the liar's tenant's pages, and another tenant's."""


class Memory:
    """What the node has registered, and what each byte of it has to be."""

    def __init__(self) -> None:
        spec, layers = kit.FULL, len(kit.FULL.layers)
        self.bytes = np.full((layers, GUARD + MINE + THEIRS + GUARD, spec.block_bytes), POISON, np.uint8)
        self.expected = self.bytes.copy()
        cuts = GUARD, GUARD + MINE, GUARD + MINE + THEIRS
        self.pages, self.others = (
            Pages(spec, [layer[begin:end] for layer in self.bytes])
            for begin, end in ((cuts[0], cuts[1]), (cuts[1], cuts[2]))
        )
        rng = np.random.default_rng(11)
        self.slots = sorted(rng.permutation(MINE)[: len(BLOCKS)].tolist())  # between those of others
        left = [slot for slot in range(MINE) if slot not in self.slots]
        self.bystander = self.pages.at(left[:5], range(5)).lease_write("a bystander")
        self._next = 0

    def placement(self) -> dict[str, Slots]:
        """For the liar's transfer."""
        return {"full": self.pages.at(self.slots, BLOCKS)}

    def allow(self, segment: int, cell: int, data: bytes) -> None:
        """This cell of the liar's has been placed, rightly."""
        first = cell * CELL // kit.FULL.block_bytes
        rows = np.frombuffer(data, np.uint8).reshape(-1, kit.FULL.block_bytes)
        self.expected[segment, [GUARD + slot for slot in self.slots[first : first + len(rows)]]] = rows

    def for_others(self, manifest: Manifest) -> range:
        """Slots of the other tenant."""
        self._next += len(manifest.groups[0].blocks)
        return range(self._next - len(manifest.groups[0].blocks), self._next)

    def allow_others(self, slots: range, source: Caches, layer: int) -> None:
        """This layer of the other tenant's is on its way, or there."""
        self.expected[layer, GUARD + MINE + slots.start : GUARD + MINE + slots.stop] = source.rows("full", layer)

    def check(self) -> None:
        wrong = np.argwhere(self.bytes != self.expected)
        assert not len(wrong), f"{len(wrong)} bytes, the first one at (layer, slot, byte) {tuple(wrong[0])}"

    def close(self) -> None:
        self.bystander.release()
        for pages in (self.pages, self.others):
            pages.check_free(range(pages.slots))
