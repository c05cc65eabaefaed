"""Two nodes of one process with an emulated link between them: the server's listener is on b, all else is on a."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path as File

from kvwire import Config, DType, GroupSpec, Incoming, Outgoing
from kvwire.emulate import Path, Wan, available
from tests.net import kit
from tests.net.kit import Caches, Pair, granted, manifest, ready_all, same

RATE_BPS = 100e6 if available() == "tun" else 20e6
"""What a user-mode Linux carries, whose system calls take 60 us, where the link is netem's."""

LAYERS = 8
SPEC = GroupSpec.attention("full", range(LAYERS), DType.BF16, block_tokens=16, heads=4, head_dim=128)
TOKEN_BYTES = 2 * 4 * 128 * 2 * LAYERS

PATIENCE_S = 45.0


def way(rtt_s: float = 0.04, **more: float | tuple[float, float]) -> Path:
    """One direction of a link of that round-trip time, its queue one bandwidth-delay product."""
    return Path(delay_s=rtt_s / 2, rate_bps=RATE_BPS, queue_bytes=int(RATE_BPS * rtt_s / 8), **more)  # type: ignore[arg-type]


@asynccontextmanager
async def across(wan: Wan, config: Config | None = None) -> AsyncIterator[Pair]:
    """A pair, sealed unless the configuration says otherwise."""
    with wan.entered("b"):
        server = await kit.serve(wan.addresses[1], 0, config)
    with wan.entered("a"):
        async with server, await kit.start(config) as client:
            yield Pair(server, client, await client.connect(wan.addresses[1], server.port))


class Transfer:
    """One of so many seconds of the link's whole rate, from a to b."""

    def __init__(self, seconds: float, name: str = "r1") -> None:
        tokens = max(16, int(seconds * RATE_BPS / 8 / TOKEN_BYTES))
        self.nbytes = tokens * TOKEN_BYTES
        offer = manifest(name, (SPEC,), tokens)
        self.source, self.target = Caches(offer, filled=True), Caches(offer, seed=2)

    async def start(self, pair: Pair, klass: int = 1) -> None:
        """All of it is ready."""
        self.out: Outgoing
        self.incoming: Incoming
        offer = self.source.manifest
        self.out, self.incoming = await granted(
            pair.link, pair.server, offer, self.source, self.target, klass=klass, timeout_s=PATIENCE_S
        )
        self.started = time.monotonic()
        ready_all(self.out)

    async def finish(self) -> float:
        """It has arrived as it was; seconds since it was ready."""
        async with asyncio.timeout(PATIENCE_S):
            await self.out.committed()
            took = time.monotonic() - self.started
            await self.incoming.committed()
        same(self.source, self.target)
        return took

    async def move(self, pair: Pair, klass: int = 1) -> float:
        await self.start(pair, klass)
        return await self.finish()


def busiest_port(wan: Wan, port: int) -> int:
    """Port on a of that connection to `port` of b which has most to send: a lane, while a transfer is under way."""
    queued = {}
    with wan.entered("a"):
        rows = File("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    for row in rows:
        _, local, remote, state, queues, *_ = row.split()
        if state == "01" and int(remote.split(":")[1], 16) == port:  # established
            queued[int(local.split(":")[1], 16)] = int(queues.split(":")[0], 16)
    return max(queued, key=queued.__getitem__)
