"""What looking at a link costs: CPU time of its whole tick, over loopback, while it sends and while it is idle.

python bench/telemetry.py [--lanes N] [--runs N]. A tick is all of it: TCP_INFO in the workers, waking Python, samples,
the controller, the planner and the report of every second. While the link sends, its rate is held low, and what it
costs to look at it as often as `none` does is told from once a second. While it is idle, from not at all. Medians of
`--runs` turns. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import kvwire
from kvwire.congestion import Uncapped

TURN_S = 3.0
USUAL_TICK_S, RARE_TICK_S = kvwire.Decision().next_tick_s, 1.0
PACE_BPS = 8e6
MIB = 1 << 20
PAGES = 256  # 64 MiB: a minute and more at the pace
PART = (kvwire.Part("page", (MIB // 4,)),)
SPEC = kvwire.GroupSpec("pages", kvwire.GroupKind.FULL, (0,), kvwire.DType.UINT8, PART, block_tokens=1)


class Steady(Uncapped):
    """Holds the rate low and looks when it is told to."""

    tick_s = USUAL_TICK_S
    ticks = 0

    def decide(self, now: float) -> kvwire.Decision:
        Steady.ticks += 1
        return kvwire.Decision(pace_bps=PACE_BPS, next_tick_s=Steady.tick_s)


async def turn() -> tuple[float, float]:
    """CPU seconds per second of this process, and ticks per second."""
    began, used, ticks = time.monotonic(), time.process_time(), Steady.ticks
    await asyncio.sleep(TURN_S)
    seconds = time.monotonic() - began
    return (time.process_time() - used) / seconds, (Steady.ticks - ticks) / seconds


@asynccontextmanager
async def joined(lanes: int) -> AsyncIterator[tuple[kvwire.Node, kvwire.Link]]:
    config = kvwire.Config(lanes=lanes, plain=True, controller=Steady)
    async with await kvwire.Node.serve("127.0.0.1", 0, config) as server, await kvwire.Node.start(config) as client:
        link = await client.connect("127.0.0.1", server.port)
        while link.lanes < lanes:
            await asyncio.sleep(0.01)
        yield server, link


async def idle_core_share(lanes: int) -> float:
    async with joined(lanes) as (_, link):
        await asyncio.sleep(1.0)
        unheard, _ = await turn()
        link.on_report(lambda report: None)
        heard, _ = await turn()
        return heard - unheard


async def sending(lanes: int) -> tuple[float, float]:
    """CPU seconds a tick, and ticks per second."""
    async with joined(lanes) as (server, link):
        source, target = kvwire.Pages.empty(SPEC, PAGES), kvwire.Pages.empty(SPEC, PAGES)
        manifest = kvwire.Manifest.of("a", kvwire.ModelTag("bench"), PAGES, (SPEC,))
        offer = asyncio.create_task(link.offer(manifest, {"pages": source.at(range(PAGES))}))
        await (await server.accept()).grant({"pages": target.at(range(PAGES))})
        (await offer).ready("pages", 0)
        shares = {}
        for Steady.tick_s in (RARE_TICK_S, USUAL_TICK_S):
            await asyncio.sleep(1.0)
            shares[Steady.tick_s] = await turn()
        (rare, rare_ticks), (usual, usual_ticks) = shares[RARE_TICK_S], shares[USUAL_TICK_S]
        return (usual - rare) / (usual_ticks - rare_ticks), usual_ticks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    turns = range(options.runs)
    ticks = [asyncio.run(sending(options.lanes)) for _ in turns]
    tick_s, often = (statistics.median(figures) for figures in zip(*ticks, strict=True))
    idle = statistics.median([asyncio.run(idle_core_share(options.lanes)) for _ in turns])
    print(f"{options.lanes} lanes: {tick_s * 1e3:.2f} ms of CPU a tick")
    print(f"while sending, looked at {often:.1f} times a second: {tick_s * often:.2%} of a core")
    print(f"idle with a listener, looked at once a second: {idle:.2%} of a core")
    print(json.dumps({"lanes": options.lanes, "tick_ms": tick_s * 1e3, "sending": tick_s * often, "idle": idle}))


if __name__ == "__main__":
    main()
