"""One end of transfers over an emulated link, as a process: `serve ADDRESS`, or `send ADDRESS BYTES COUNT PAUSE_S`.

The sender prints its link's reports, one JSON object a line, and the last of them knows of everything.
"""

import asyncio
import json
import sys

import kvwire
from tests.net import kit
from tests.net.kit import Caches

PORT = 7878
CONFIG = kvwire.Config(plain=True)
BULK = kvwire.GroupSpec.attention("full", range(8), kvwire.DType.BF16, block_tokens=16, heads=8, head_dim=128)
BLOCK_BYTES = 8 * BULK.block_bytes
"""Of all layers."""


async def serve(address: str) -> None:
    async with await kvwire.Node.serve(address, PORT, CONFIG) as node:
        print("serving", flush=True)
        under_way = set()
        while True:
            under_way.add(asyncio.ensure_future(take(await node.accept())))


async def take(incoming: kvwire.Incoming) -> None:
    await incoming.grant(Caches(incoming.manifest).at())
    await incoming.committed()


async def send(address: str, nbytes: int, count: int, pause_s: float) -> None:
    tokens = nbytes // BLOCK_BYTES * BULK.block_tokens
    source = Caches(kit.manifest("source", (BULK,), tokens), filled=True).at()
    async with await kvwire.Node.start(CONFIG) as node:
        link = await node.connect(address, PORT)
        link.on_report(lambda report: print(json.dumps(report.to_dict()), flush=True))
        for number in range(count):
            out = await link.offer(kit.manifest(f"r{number}", (BULK,), tokens), source)
            kit.ready_all(out)
            await out.committed()
            await asyncio.sleep(pause_s)
        await asyncio.sleep(2.2)  # two reports of an idle link


if __name__ == "__main__":
    role, address, *rest = sys.argv[1:]
    kvwire.run(serve(address) if role == "serve" else send(address, int(rest[0]), int(rest[1]), float(rest[2])))
