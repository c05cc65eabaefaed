"""Processes that are killed at every point of a transfer's way: whoever is left ends by name and in time, or goes on
with the next life; its memory is free, and the next life is sent what is missing and no more.

All points with `KVWIRE_STORM_S`, as in `make faults`; the suite has every third.
"""

import asyncio
import os
import signal
import time
from asyncio.subprocess import Process

import pytest

from kvwire import Config, Incoming, Link, LinkLost, Manifest, NetworkError, Node, Outgoing, PeerAborted
from tests.net import kit
from tests.net.killed_process import CONFIG, EVENTS, POINTS, RESUME_S, offer
from tests.net.kit import Caches, same
from tests.net.peers import another_process, line, say
from tests.net.proxy import Proxy, proxied

pytestmark = pytest.mark.usefixtures("nothing_left")

RECEIVER = [
    "hello",
    "an offer came",
    "granted",
    "a cell has landed",
    "half has landed",
    "committed",
    "the connection is lost",
    "resumed",
    "asked for a ledger",
    "said what has landed",
]
SENDER = [
    "hello",
    "offered",
    "a grant came",
    "a cell has landed",
    "half has landed",
    "all is sent",
    "the connection is lost",
    "resumed",
    "a ledger came",
]
WHILE_RESUMING = ("the connection is lost", "resumed", "asked for a ledger", "said what has landed", "a ledger came")
LONG = "KVWIRE_STORM_S" in os.environ


async def dead(process: Process) -> None:
    """It has killed itself."""
    assert await asyncio.wait_for(process.wait(), kit.PATIENCE_S) == -signal.SIGKILL


async def hit(point: str, proxy: Proxy, process: Process) -> None:
    """Whatever has to be done for the process to get to that point; its death."""
    if point in WHILE_RESUMING:
        await asyncio.to_thread(proxy.reset)
    await dead(process)


# --- the receiver dies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", RECEIVER if LONG else RECEIVER[1::3])
async def test_a_receiver_dies(point: str) -> None:
    """Its next life, elsewhere on the same host, is offered everything once more, and gets it."""
    manifest, source = offer()
    async with another_process("killed_process", "receive", point) as first:
        with proxied(int(await line(first))) as proxy:
            async with await kit.start(Config(lanes=2)) as node:
                connecting = asyncio.create_task(node.connect("127.0.0.1", proxy.port))
                if point == "hello":
                    await dead(first)
                    proxy.refuse()
                    await next_life(connecting, manifest, source, proxy, node)
                    return
                link = await connecting
                offering = asyncio.create_task(link.offer(manifest, source.at()))
                if point in ("an offer came", "granted"):
                    await dead(first)
                    await next_life(link, manifest, source, proxy, node, offering)
                    return
                out = await offering
                if point == "committed":
                    proxy.stall("lane", "down")  # so that no receipt comes before it dies
                segments = manifest.segments()
                late = [] if point == "committed" else segments[-1:]
                for name, layer in segments[: len(segments) - len(late)]:
                    out.ready(name, layer)
                if point in WHILE_RESUMING:
                    await kit.eventually(lambda: out.progress[0] > 0, lambda: out)
                await hit(point, proxy, first)
                proxy.heal()
                assert out.state == "active"
                await next_life(link, manifest, source, proxy, node, offering, late)


async def next_life(
    link: "Link | asyncio.Task[Link]",
    manifest: Manifest,
    source: Caches,
    proxy: Proxy,
    node: Node,
    offering: "asyncio.Task[Outgoing] | None" = None,
    late: list[tuple[str, int]] | None = None,
) -> None:
    """Another receiver, and a commit there. `late`: the layers that are not ready yet; None: none is."""
    async with another_process("killed_process", "receive", "never") as second:
        proxy.target = int(await line(second))
        proxy.heal()
        if isinstance(link, asyncio.Task):
            try:
                link = await link
            except NetworkError:  # for which the connection came too early
                link = await node.connect("127.0.0.1", proxy.port)
        out = await (offering or link.offer(manifest, source.at()))
        assert await line(second) == "granted"
        for name, layer in manifest.segments() if late is None else late:
            out.ready(name, layer)
        assert await line(second) == f"committed {kit.digest(source)}"
        await asyncio.wait_for(out.committed(), kit.PATIENCE_S)
        source.check_free()
        assert not link._exchange.busy
        assert link.engine_link.queued_runs == 0


async def test_a_receiver_that_has_kept_its_prefix() -> None:
    """It dies with half of it landed, and asks for what it has not kept: that is sent, and nothing else."""
    manifest, source = offer()
    async with another_process("killed_process", "receive", "half has landed") as first:
        with proxied(int(await line(first))) as proxy:
            async with await kit.start(Config(lanes=2)) as node:
                link = await node.connect("127.0.0.1", proxy.port)
                out = await link.offer(manifest, source.at())
                *most, last = manifest.segments()
                for name, layer in most:
                    out.ready(name, layer)
                await dead(first)
                async with another_process("killed_process", "receive", "never", "rest") as second:
                    proxy.target = int(await line(second))
                    assert await line(second) == "granted"
                    out.ready(*last)
                    receipt = await asyncio.wait_for(out.committed(), kit.PATIENCE_S)
                    assert await line(second) == f"committed {receipt.bytes}"
                    assert out.granted["full"] == tuple(range(6, 13))
                    assert receipt.bytes < manifest.nbytes
                source.check_free()


# --- the sender dies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", SENDER if LONG else SENDER[1::3])
async def test_a_sender_dies(point: str) -> None:
    """What it was sending ends when its link is given up, the slots are free, and the next life sends the rest."""
    manifest, source = offer()
    target = Caches(manifest)
    async with await kit.serve("127.0.0.1", 0, CONFIG) as node:
        with proxied(node.port) as proxy:
            async with another_process("killed_process", "send", point, str(proxy.port)) as first:
                begun = time.monotonic()
                missing = await until_it_dies(point, first, proxy, node, target)
                await kit.eventually(lambda: not node.links, lambda: node.links)
                print(f"{point}: the link was given up {time.monotonic() - begun:.1f} s after its start")
                assert not node._watched
                target.check_free()
            if not any(missing.values()):
                same(source, target)
                return
            async with another_process("killed_process", "send", "never", str(proxy.port)) as second:
                incoming = await asyncio.wait_for(node.accept(), kit.PATIENCE_S)
                wanted = {name: blocks for name, blocks in missing.items() if blocks}
                await incoming.grant(target.at(wanted))
                assert await line(second) == "granted"
                say(second)
                receipt = await asyncio.wait_for(incoming.committed(), kit.PATIENCE_S)
                assert await line(second) == f"committed {receipt.bytes}"
                same(source, target)
                target.check_free()
                if point in ("half has landed", *WHILE_RESUMING):
                    assert receipt.bytes < manifest.nbytes


async def until_it_dies(
    point: str, process: Process, proxy: Proxy, node: Node, target: Caches
) -> dict[str, tuple[int, ...]]:
    """Blocks that are still missing after that, by group."""
    everything = {name: tuple(slots) for name, slots in target.slot_of.items()}
    if point == "hello":
        await dead(process)
        return everything
    if point == "offered":
        await dead(process)
        incoming = await asyncio.wait_for(node.accept(), kit.PATIENCE_S)
        await lost(incoming)
        return everything
    incoming = await asyncio.wait_for(node.accept(), kit.PATIENCE_S)
    if point == "all is sent":
        proxy.stall("lane", "down")  # so that no receipt comes before it dies
    await incoming.grant(target.at())
    if point in WHILE_RESUMING:
        segments = incoming.manifest.segments()
        await incoming.wait_layer(*segments[len(segments) // 2 - 1])
    await hit(point, proxy, process)
    if point == "all is sent":
        await kit.eventually(lambda: incoming.state != "active", lambda: incoming)
        if incoming.state == "committed":
            return {}
    await lost(incoming)
    return incoming.failed_blocks()


async def lost(incoming: Incoming) -> None:
    """It ends with the link, as that is given up."""
    begun = time.monotonic()
    with pytest.raises((LinkLost, PeerAborted)):
        await asyncio.wait_for(incoming.committed(), RESUME_S + kit.PATIENCE_S)
    assert time.monotonic() - begun < RESUME_S + 10  # shared machines stall


def test_every_point_is_tried() -> None:
    assert {*RECEIVER, *SENDER} == set(POINTS)
    assert set(WHILE_RESUMING) <= {*EVENTS, "said what has landed"}
