"""One end of a link over which far more is made ready than it carries, in a process of its own.

`python -m tests.net.flood_process receive 0 DEADLINE_S RESUME_S` serves, prints its port, and takes whatever is offered
as long as it has memory; `... send PORT DEADLINE_S RESUME_S` dials, offers as many transfers at once as may be, and
makes them ready as fast as it can. Either says "warm" once one transfer has gone through, and goes on when a line comes
in. To every further line it answers with what it has seen by then, as JSON.
"""

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from kvwire import (
    Closed,
    Config,
    DeadlineExceeded,
    DType,
    GroupSpec,
    Incoming,
    LimitExceeded,
    Link,
    LinkLost,
    Manifest,
    Node,
    PeerAborted,
)
from tests.net import kit
from tests.net.kit import POISON, Caches

LANES = 2
CONFIG = Config(lanes=LANES, cell_bytes=4096, max_transfers=64, max_queued_runs=1024, max_message_bytes=64 * 1024)
BLOCKS = 16
SPEC = GroupSpec.mla("kv", range(4), DType.UINT8, block_tokens=16, latent=256)  # blocks of 4 KiB: each one cell


def manifest(request_id: str) -> Manifest:
    return kit.manifest(request_id, (SPEC,), 16 * BLOCKS)


class Seen:
    """The most that was seen of what has a bound, and how often a bound was felt."""

    def __init__(self) -> None:
        self.committed = self.failed = self.refused = 0
        self.queued_runs = self.message_bytes = self.events = 0
        self.waiting = 0
        self.longest_s = 0.0  # from an offer, or a grant, to the end

    async def look(self, link: Link) -> None:
        while True:
            self.queued_runs = max(self.queued_runs, link.engine_link.queued_runs)
            self.message_bytes = max(self.message_bytes, len(link._session._out))
            self.events = max(self.events, len(link._session._events))
            await asyncio.sleep(0.001)

    async def ended(self, transfer: Coroutine[Any, Any, object]) -> bool:
        """Wait for the end of a transfer; whether it is committed."""
        begun = time.monotonic()
        self.waiting += 1
        try:
            await transfer
        except (DeadlineExceeded, LinkLost, PeerAborted):
            self.failed += 1
            return False
        finally:
            self.waiting -= 1
            self.longest_s = max(self.longest_s, time.monotonic() - begun)
        self.committed += 1
        return True


async def take(node: Node, seen: Seen, source: Caches, targets: list[Caches]) -> None:
    """Takes what is offered; while there is no memory, offers wait."""
    free: asyncio.Queue[Caches] = asyncio.Queue()
    for target in targets:
        free.put_nowait(target)

    async def one(incoming: Incoming, target: Caches) -> None:
        with contextlib.suppress(Closed):  # while it waited for memory, it ended
            await incoming.grant(target.at())
            if await seen.ended(incoming.committed()):
                kit.same(source, target)
        target.check_free()
        for layer in SPEC.layers:
            target.pages["kv"].array(layer).fill(POISON)
        free.put_nowait(target)

    async with asyncio.TaskGroup() as group:
        while True:
            incoming = await node.accept()
            group.create_task(one(incoming, await free.get()))


async def flood(link: Link, seen: Seen, source: Caches) -> None:
    """As many transfers at once as may be, and more that are refused."""
    numbers = itertools.count()

    async def again_and_again() -> None:
        while True:
            try:
                await seen.ended(send(link, source, f"r{next(numbers)}"))
            except LimitExceeded:
                seen.refused += 1
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        for _ in range(CONFIG.max_transfers + 4):
            group.create_task(again_and_again())


async def send(link: Link, source: Caches, request_id: str) -> None:
    out = await link.offer(manifest(request_id), source.at())
    for name, layer in out.manifest.segments():
        for first in (0, 1):  # every second block: each is a run of its own
            await out.wait_ready(name, layer, range(first, BLOCKS, 2))
    await out.committed()


async def report(seen: Seen) -> None:
    """Say what was seen whenever a line comes in, until none comes any more."""
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(vars(seen)), flush=True)


async def main(role: str, port: int, deadline_s: float, resume_s: float) -> None:
    config = replace(CONFIG, offer_timeout_s=deadline_s, transfer_timeout_s=deadline_s, resume_timeout_s=resume_s)
    source, seen = Caches(manifest("source"), filled=True), Seen()
    if role == "receive":
        targets = [Caches(manifest("target"), seed=seed) for seed in range(CONFIG.max_transfers)]
        node = await kit.serve("127.0.0.1", port, config)
        print(node.port, flush=True)
        incoming = await node.accept()
        link, first = incoming.link, Caches(incoming.manifest)
        await incoming.grant(first.at())
        await incoming.committed()
        working: Coroutine[Any, Any, None] = take(node, seen, source, targets)
    else:
        node = await kit.start(config)
        link = await node.connect("127.0.0.1", port)
        await send(link, source, "first")
        working = flood(link, seen, source)
    print("warm", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    tasks = {asyncio.create_task(each) for each in (working, seen.look(link), report(seen))}
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.gather(*done)
    await node.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
