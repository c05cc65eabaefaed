"""A peer in a process of its own, to be stopped or killed: grants every offer it gets, or makes one.

`python -m tests.net.peer_process receive [PORT [HANDSHAKE_S]]` serves and prints its port; `... send PORT half|all`
dials, offers and makes that much ready: all, or every block of the first layer and the first half of the second one's.
Either says what it has done in a line each, and then waits to be ended.
"""

import asyncio
import sys

from kvwire import Config, Incoming
from tests.net import kit


async def receive(port: str = "0", handshake_s: str = "5") -> None:
    node = await kit.serve("127.0.0.1", int(port), Config(lanes=2, handshake_timeout_s=float(handshake_s)))
    print(node.port, flush=True)
    held = []
    while True:
        incoming = await node.accept()
        target = kit.Caches(incoming.manifest)
        await incoming.grant(target.at())
        held.append((target, asyncio.create_task(say_when_whole(incoming, target))))
        print("granted", flush=True)


async def say_when_whole(incoming: Incoming, target: kit.Caches) -> None:
    await incoming.committed()
    print("committed", kit.digest(target), flush=True)


async def send(port: int, much: str) -> None:
    node = await kit.start(Config(lanes=2))
    link = await node.connect("127.0.0.1", port)
    offer = kit.manifest("from another process")
    source = kit.Caches(offer, filled=True)
    out = await link.offer(offer, source.at())
    out.ready("full", 0)
    out.ready("full", 1, None if much == "all" else range(len(out.granted["full"]) // 2))
    print(f"{much} is ready", flush=True)
    await out.committed()
    print("committed", flush=True)
    await link.wait_closed()


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        asyncio.run(receive(*sys.argv[2:]))
    else:
        asyncio.run(send(int(sys.argv[2]), sys.argv[3]))
