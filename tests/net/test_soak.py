"""Three sealed links under load and under fire; in the end every counter is where it was (tests/net/soak.py).

KVWIRE_SOAK_S is for how long: 10 s in the suite, `make soak MINUTES=20`. KVWIRE_SOAK_SEED repeats what is drawn.
"""

import asyncio
import gc
import os
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvwire import Incoming, Lease, Link, Node, Outgoing, Receipt
from kvwire._ext.lanes import EngineLink
from kvwire.wire import Session
from tests.net import kit
from tests.net.proxy import proxied
from tests.net.soak import CONFIG, MODELS, WORKERS, Route, Soak, Tally

SOAK_S = float(os.environ.get("KVWIRE_SOAK_S", "10"))
SEED = int(os.environ.get("KVWIRE_SOAK_SEED", "1"))


COUNTED = (Link, Outgoing, Incoming, Session, Lease, Receipt, Node)


def alive() -> Counter[str]:
    """Objects of kvwire's that something still holds."""
    gc.collect()
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, COUNTED))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def soaked(tally: Tally) -> list[EngineLink]:
    """All of it; the links that were up at its end, as the engine has them."""
    async with (
        await kit.serve("127.0.0.1", 0, CONFIG) as server,
        await kit.start(CONFIG) as one,
        await kit.start(CONFIG) as other,
    ):
        with ExitStack() as stack:
            proxies = [stack.enter_context(proxied(server.port)) for _ in range(3)]
            nodes = zip((one, other, other), proxies, strict=True)
            soak = Soak(SEED, [Route(client, server, proxy, tally) for client, proxy in nodes], tally)
            await soak.run(SOAK_S)
            print(f"{resident_bytes() >> 20} MiB resident at the end")
            links = [link for node in soak.nodes for link in node.links]
            pairs = [kit.Pair(server, client, link) for client in (one, other) for link in client.links]
            for pair in pairs:
                await pair.settled()
            held = sum(len(node._offers) for node in soak.nodes)
            assert held == 0
        for node in soak.nodes:
            await node.close()
            assert not node.links
            assert not node._watched
            assert not node._tasks
        for pool in soak.pools.values():
            pool.check_whole()
        return [link.engine_link for link in links]


@pytest.mark.timeout(SOAK_S + 120)
@pytest.mark.usefixtures("nothing_left")
async def test_a_soak() -> None:
    print(f"KVWIRE_SOAK_SEED={SEED}")
    before, tasks, tally, begun = alive(), asyncio.all_tasks(), Tally(), time.monotonic()
    engine_links = await soaked(tally)
    print(
        f"{sum(tally.committed.values())} transfers committed, {tally.bytes >> 20} MiB compared, in "
        f"{time.monotonic() - begun:.0f} s: {dict(tally.committed)}; not committed: {dict(tally.ended)}; "
        f"{tally.links} links made; troubles: {dict(tally.troubles)}; {tally.resent} cells sent again, of those "
        f"{tally.duplicates} had landed; of {tally.coded} transfers cells went coded"
    )
    for link in engine_links:
        assert (link.lanes_open, link.memory_bytes, link.queued_runs) == (0, 0, 0)
    engine_links.clear()
    await kit.eventually(lambda: asyncio.all_tasks() <= tasks, lambda: asyncio.all_tasks() - tasks)
    await kit.eventually(lambda: not alive() - before, lambda: alive() - before)
    assert set(tally.committed) == set(MODELS)
    assert tally.coded
    assert sum(tally.committed.values()) > WORKERS
