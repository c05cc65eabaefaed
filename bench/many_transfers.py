"""1,000 transfers of 1 MiB over one link, 64 at a time: what memory and descriptors do meanwhile.

python bench/many_transfers.py [--transfers N]. Growth is counted from the end of the first hundred to the end of the
last. Every byte is checked. The last line is JSON; exit status 1 where a byte was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import kvwire
from kvwire.cli import machine
from kvwire.cli.content import Words, keys, noise
from kvwire.cli.loopback.pair import Pair
from kvwire.cli.loopback.peer import Receiver, Sender
from kvwire.cli.units import MIB, show_size

AT_ONCE = 64
LAYERS = 4
HUNDRED = 100
SPEC = kvwire.GroupSpec(
    "pages",
    kvwire.GroupKind.FULL,
    tuple(range(LAYERS)),
    kvwire.DType.UINT8,
    (kvwire.Part("page", (MIB // LAYERS,)),),
    block_tokens=1,
)
ONE = kvwire.BlockRange(0, 1)


@dataclass(frozen=True, slots=True)
class Use:
    """What a process holds."""

    rss_bytes: int
    descriptors: int

    @classmethod
    def now(cls) -> Use:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(pages * resource.getpagesize(), len(os.listdir("/proc/self/fd")))


class Memory:
    """A slot for each transfer under way."""

    def __init__(self) -> None:
        self.pages = kvwire.Pages.empty(SPEC, AT_ONCE)
        self.words = [self.pages.array(layer).view(np.uint64) for layer in range(LAYERS)]
        self.expected: Words = np.empty(SPEC.block_bytes // 8, np.uint64)
        self.free = list(range(AT_ONCE))

    def expect(self, transfer: int, layer: int) -> Words:
        np.add(noise(self.expected.size), keys(transfer, 0, layer, ONE), out=self.expected)
        return self.expected


class ManySender(Sender):
    """Keeps AT_ONCE transfers under way."""

    def send_many(self, transfers: int) -> list[Use]:
        return self.call(self._send_many(transfers))

    async def _send_many(self, transfers: int) -> list[Use]:
        memory, uses = Memory(), []
        room = asyncio.Semaphore(AT_ONCE)

        async def send(number: int) -> None:
            async with room:
                slot = memory.free.pop()
                for layer, words in enumerate(memory.words):
                    words[slot] = memory.expect(number, layer)
                manifest = kvwire.Manifest.of(str(number), kvwire.ModelTag("many"), 1, (SPEC,))
                outgoing = await self.link.offer(manifest, {"pages": memory.pages.at([slot])})
                for layer in range(LAYERS):
                    outgoing.ready("pages", layer)
                await outgoing.committed()
                memory.free.append(slot)

        for first in range(0, transfers, HUNDRED):
            await asyncio.gather(*(send(number) for number in range(first, min(first + HUNDRED, transfers))))
            uses.append(Use.now())
        return uses


class ManyReceiver(Receiver):
    """Grants every offer a free slot, checks it, and frees the slot."""

    def receive_many(self, transfers: int) -> tuple[list[Use], int]:
        return self.call(self._receive_many(transfers))

    async def _receive_many(self, transfers: int) -> tuple[list[Use], int]:
        assert self.node is not None
        memory, uses, wrong, done = Memory(), [], 0, 0
        room = asyncio.Semaphore(AT_ONCE)

        async def receive(incoming: kvwire.Incoming, slot: int) -> None:
            nonlocal wrong, done
            await incoming.committed()
            for layer, words in enumerate(memory.words):
                wrong += not np.array_equal(words[slot], memory.expect(int(incoming.manifest.request_id), layer))
                words[slot] = 0
            memory.free.append(slot)
            room.release()
            done += 1
            if done % HUNDRED == 0 or done == transfers:
                uses.append(Use.now())

        async with asyncio.TaskGroup() as tasks:
            for _ in range(transfers):
                await room.acquire()
                incoming = await self.node.accept()
                slot = memory.free.pop()
                await incoming.grant({"pages": memory.pages.at([slot])})
                tasks.create_task(receive(incoming, slot))
        return uses, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transfers", type=int, default=1000)
    transfers = parser.parse_args().transfers
    config = kvwire.Config(congestion=machine.congestion(None))
    with Pair(config, receiver=ManyReceiver, sender=ManySender) as pair:
        began = time.monotonic()
        pair.receiver.start("receive_many", transfers)
        sender_uses = pair.sender.call("send_many", transfers)
        receiver_uses, wrong = pair.receiver.result()
        elapsed_s = time.monotonic() - began
    result: dict[str, object] = {"transfers": transfers, "at_once": AT_ONCE, "verified": not wrong}
    result["transfers_per_s"] = transfers / elapsed_s
    for side, uses in (("sender", sender_uses), ("receiver", receiver_uses)):
        grown = uses[-1].rss_bytes - uses[0].rss_bytes
        more = uses[-1].descriptors - uses[0].descriptors
        print(f"{side}: {show_size(abs(grown))} {'more' if grown >= 0 else 'less'} memory, {more} more descriptors")
        result |= {f"{side}_rss_growth_bytes": grown, f"{side}_descriptor_growth": more}
        result[f"{side}_rss_bytes"] = [use.rss_bytes for use in uses]
    print(json.dumps(result))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
