"""A peer that takes less than is made ready: `ready` says so, or `wait_ready` waits; memory stays bounded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kvwire import Closed, Config, DType, GroupSpec, Incoming, Outgoing, PeerAborted, QueueFull
from tests.net import kit
from tests.net.kit import Caches, granted, joined, manifest, same, through_proxy
from tests.net.proxy import Proxy

pytestmark = pytest.mark.usefixtures("nothing_left")

FEW = Config(lanes=2, max_queued_runs=4)
SPEC = GroupSpec.attention("full", range(64), DType.BF16, block_tokens=16, heads=8, head_dim=128)


@asynccontextmanager
async def one_transfer(
    config: Config, spec: GroupSpec
) -> AsyncIterator[tuple[kit.Pair, Proxy, Outgoing, Incoming, Caches, Caches]]:
    """A transfer through a proxy, of which nothing is ready yet."""
    offer = kit.manifest("r", (spec,))
    source, target = Caches(offer, filled=True), Caches(offer)
    async with through_proxy(config) as (pair, proxy):
        out, incoming = await kit.granted(pair.link, pair.server, offer, source, target)
        yield pair, proxy, out, incoming, source, target


async def fill(out: Outgoing) -> tuple[int, "asyncio.Task[None]"]:
    """Makes layers ready until the sockets take no more and the queue is full; the first that has to wait."""
    for layer in range(64):
        waiting = asyncio.create_task(out.wait_ready("full", layer))
        await asyncio.wait((waiting,), timeout=0.3)
        if not waiting.done():
            return layer, waiting
    raise AssertionError("everything was taken")


async def test_ready_says_that_the_queue_is_full_and_wait_ready_waits() -> None:
    async with one_transfer(FEW, SPEC) as (pair, proxy, out, incoming, source, target):
        proxy.stall()
        layer, waiting = await fill(out)
        assert pair.link.engine_link.queued_runs == 4
        with pytest.raises(QueueFull, match="4 runs of ready cells wait for the lanes") as full:
            out.ready("full", layer + 1)
        assert full.value.retriable
        proxy.heal()
        await waiting
        for later in range(layer + 1, 64):
            await out.wait_ready("full", later)
        await out.committed()
        await incoming.committed()
        same(source, target)


async def test_waiting_ends_with_the_transfer() -> None:
    async with one_transfer(FEW, SPEC) as (_, proxy, out, _, source, _):
        proxy.stall()
        _, waiting = await fill(out)
        await out.abort("enough")
        with pytest.raises(Closed):
            await waiting
        source.check_free()


async def test_a_wait_that_is_cancelled_has_made_nothing_ready() -> None:
    async with one_transfer(FEW, SPEC) as (_, proxy, out, incoming, source, target):
        proxy.stall()
        layer, waiting = await fill(out)
        for turns in range(10):
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            waiting = asyncio.create_task(out.wait_ready("full", layer))
        proxy.heal()
        await waiting
        for later in range(layer + 1, 64):
            await out.wait_ready("full", later)
        await incoming.committed()
        same(source, target)


async def test_what_is_given_up_makes_room() -> None:
    """Also where no lane takes anything: else a peer that only reads its messages would fill the queue for good."""
    async with one_transfer(FEW, SPEC) as (pair, proxy, out, _, source, _):
        proxy.stall("lane")
        _, waiting = await fill(out)
        await out.abort("enough")
        with pytest.raises(Closed):
            await waiting
        assert pair.link.engine_link.queued_runs == 0
        offer = kit.manifest("next", (SPEC,))
        target = Caches(offer)
        further, incoming = await kit.granted(pair.link, pair.server, offer, source, target)
        for layer in range(FEW.max_queued_runs):
            further.ready("full", layer)
        proxy.heal()
        for layer in range(FEW.max_queued_runs, 64):
            await further.wait_ready("full", layer)
        await incoming.committed()
        same(source, target)


async def test_waiting_for_a_transfer_that_has_ended_says_why() -> None:
    async with one_transfer(FEW, SPEC) as (_, _, out, incoming, _, _):
        await incoming.abort("no more")
        with pytest.raises(PeerAborted, match="no more"):
            await out.committed()
        with pytest.raises(PeerAborted, match="no more"):
            await out.wait_ready("full", 0)


async def test_one_call_is_never_too_much_for_an_empty_queue() -> None:
    async with one_transfer(Config(lanes=2, max_queued_runs=1), kit.FULL) as (_, _, out, _, source, target):
        await out.wait_ready("full", 0, [0, 2, 4, 6, 8, 10, 12])
        await out.wait_ready("full", 0, [1, 3, 5, 7, 9, 11])
        await out.wait_ready("full", 1)
        await out.committed()
        same(source, target)


async def test_an_iterator_waits_with_the_rest() -> None:
    """What it named is not forgotten while the queue is full."""
    async with one_transfer(FEW, SPEC) as (_, proxy, out, incoming, source, target):
        proxy.stall()
        layer, waiting = await fill(out)
        later = asyncio.create_task(out.wait_ready("full", layer + 1, iter(out.granted["full"])))
        await asyncio.sleep(0.05)
        assert not later.done()
        proxy.heal()
        await waiting
        await later
        for rest in range(layer + 2, 64):
            await out.wait_ready("full", rest)
        await out.committed()
        await incoming.committed()
        same(source, target)


async def test_a_transfer_that_is_over_while_the_queue_is_full() -> None:
    """Who tries again until there is room hears that it is over."""
    first, second = manifest("first", tokens=20000), manifest("second")
    async with joined(client=Config(lanes=1, max_queued_runs=1)) as pair:
        pair.link.set_budget(1e3, expires_in_s=100, min_bps=1e3)
        out, _ = await granted(pair.link, pair.server, first, Caches(first), Caches(first))
        other, _ = await granted(pair.link, pair.server, second, Caches(second), Caches(second))
        block = refused = 0
        while refused < 50:  # in a row: what the budget lets go at once has gone, and the rest takes hours
            try:
                out.ready("full", 0, [block])
                block, refused = block + 1, 0
            except QueueFull:
                refused += 1
                await asyncio.sleep(0.01)
        with pytest.raises(QueueFull):
            other.ready("full", 0)
        await other.abort()
        with pytest.raises(Closed):
            other.ready("full", 0)
        await out.abort()
