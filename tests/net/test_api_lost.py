"""Lost lanes are replaced and lose nothing; a link that is not resumed ends its transfers, soon and by name."""

import asyncio
import signal
import socket
import time

import numpy as np
import pytest

from kvwire import CommitUnknown, Config, DType, GroupKind, GroupSpec, IntegrityError, Link, LinkLost
from tests.net import kit
from tests.net.kit import Caches, granted, joined, manifest, same
from tests.net.peers import another_process, line, stopped

pytestmark = pytest.mark.usefixtures("nothing_left")

NOT_RESUMED = Config(lanes=2, resume_timeout_s=0)
BIG = GroupSpec.state("big", GroupKind.RECURRENT, range(4), DType.UINT8, (4 << 20,))


# --- lanes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["dialler", "acceptor"])
async def test_a_lane_lost_in_the_middle(side: str) -> None:
    offer = manifest("lanes", (BIG,))
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    async with joined(client=Config(lanes=3)) as pair:
        link = pair.link if side == "dialler" else pair.back
        await kit.eventually(lambda: link.lanes == 3, "three lanes")
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        for layer in range(4):
            out.ready("big", layer)
            link.engine_link.close_lane(link.lane_stats()[0]["lane"])
            await incoming.wait_layer("big", layer)
            await kit.eventually(lambda: link.lanes == 3, "the lane to come back")
        await out.committed()
        await incoming.committed()
        same(source, target)
        await kit.still_works(pair)
        assert all(stats["incarnation"] >= 1 for stats in link.lane_stats())


async def test_all_lanes_lost_at_once() -> None:
    offer = manifest("lanes", (BIG,))
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    async with joined(client=Config(lanes=2)) as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        kit.ready_all(out)
        for stats in pair.link.lane_stats():
            pair.link.engine_link.close_lane(stats["lane"])
        await out.committed()
        await incoming.committed()
        same(source, target)
        await kit.eventually(lambda: pair.link.lanes == 2, "both lanes to come back")
        await kit.still_works(pair)


async def test_while_no_lane_is_up_a_transfer_waits() -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined(client=Config(lanes=1)) as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        (lane,) = (stats["lane"] for stats in pair.link.lane_stats())
        pair.link.engine_link.close_lane(lane)
        kit.ready_all(out)
        await out.committed()
        await incoming.committed()
        same(source, target)


# --- links ----------------------------------------------------------------------------------------------------


def bad_lane(link: Link, number: int) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        link.engine_link.add_lane(ours.detach(), number, 1)
        theirs.sendall(b"no frame at all " * 8)


async def test_lanes_that_go_wrong_now_and_then_end_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvwire.lanes.FAULTS_S", 0.0)
    async with joined() as pair:
        for lane in range(4):
            bad_lane(pair.link, 60 + lane)
        await kit.eventually(lambda: len(pair.link._lanes.faults) == 3 and pair.link.lanes == 2, lambda: pair.link)
        await kit.still_works(pair)


@pytest.mark.parametrize("side", ["dialler", "acceptor"])
async def test_a_link_whose_lanes_go_wrong_is_given_up_on_both_sides(side: str) -> None:
    """At once: who is not told would wait for the other side to come back."""
    async with joined() as pair:
        link, other = (pair.link, pair.back) if side == "dialler" else (pair.back, pair.link)
        for lane in range(3):
            bad_lane(link, 60 + lane)
        async with asyncio.timeout(kit.PATIENCE_S):
            assert isinstance(await link.wait_closed(), IntegrityError)
            error = await other.wait_closed()
        assert isinstance(error, LinkLost)
        assert "went wrong" in str(error)


@pytest.mark.parametrize("done", ["nothing", "half", "all"])
async def test_the_receiver_s_process_is_killed(done: str) -> None:
    offer = manifest("killed")
    source = Caches(offer, filled=True)
    async with another_process("peer_process", "receive") as process, await kit.start(NOT_RESUMED) as node:
        link = await node.connect("127.0.0.1", int(await line(process)))
        out = await link.offer(offer, source.at())
        assert await line(process) == "granted"
        await stopped(process)  # so that no receipt comes before it dies
        if done != "nothing":
            out.ready("full", 0)
        if done == "all":
            out.ready("full", 1)
        waiting = asyncio.create_task(asyncio.to_thread(out.wait_committed, kit.PATIENCE_S))
        pending = asyncio.create_task(link.offer(manifest("pending"), source.at()))
        await asyncio.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(kit.PATIENCE_S):
            with pytest.raises(LinkLost) as caught:
                await out.committed()
            with pytest.raises(LinkLost) as blocked:
                await waiting
            with pytest.raises(LinkLost):
                await pending
        assert (type(caught.value) is CommitUnknown) is (done == "all")
        assert (type(blocked.value) is CommitUnknown) is (done == "all")
        assert ("the receiver may have all of it" in str(caught.value)) is (done == "all")
        assert caught.value.retriable
        source.check_free()
        assert not node.links


async def test_the_sender_s_process_is_killed() -> None:
    async with await kit.serve("127.0.0.1", 0, NOT_RESUMED) as node:
        async with another_process("peer_process", "send", str(node.port), "half") as process:
            incoming = await node.accept()
            target = Caches(incoming.manifest)
            await incoming.grant(target.at())
            assert await line(process) == "half is ready"
            await incoming.wait_layer("full", 0)
            process.send_signal(signal.SIGKILL)
            async with asyncio.timeout(kit.PATIENCE_S):
                with pytest.raises(LinkLost, match=r"closed the connection|control connection"):
                    await incoming.committed()
                with pytest.raises(LinkLost):
                    await incoming.wait_layer("full", 1)
        target.check_free()
        assert not node.links
        async with await kit.start(Config(lanes=1)) as other, await other.connect("127.0.0.1", node.port) as link:
            await kit.move(link, node, "from another peer")


async def test_the_sender_s_process_is_killed_and_another_one_comes() -> None:
    """Its link waits for it in vain. What had landed is known, and nobody else waits."""
    resume_s = 2.0
    async with await kit.serve("127.0.0.1", 0, Config(lanes=2, resume_timeout_s=resume_s)) as node:
        async with another_process("peer_process", "send", str(node.port), "half") as process:
            incoming = await node.accept()
            target = Caches(incoming.manifest)
            await incoming.grant(target.at(), cell_bytes=4096)  # a block each
            await kit.eventually(lambda: incoming.progress == (13 + 6, 26), lambda: incoming.progress)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        begun = time.monotonic()
        ended = asyncio.create_task(incoming.committed())
        async with another_process("peer_process", "send", str(node.port), "all") as process:
            further = await node.accept()
            await further.grant(Caches(further.manifest).at())
            await further.committed()
            assert [await line(process), await line(process)] == ["all is ready", "committed"]
        with pytest.raises(LinkLost, match=r"no connection within 2 s"):
            await ended
        assert time.monotonic() - begun < resume_s + 10  # shared machines stall
        assert incoming.failed_blocks() == {"full": tuple(range(6, 13))}
        source = Caches(incoming.manifest, filled=True)
        for layer, blocks in ((0, range(13)), (1, range(6))):
            assert np.array_equal(source.rows("full", layer, blocks), target.rows("full", layer, blocks))
        assert further.failed_blocks() == {"full": ()}
        target.check_free()
        async with await kit.start(Config(lanes=1)) as other, await other.connect("127.0.0.1", node.port) as link:
            out, incoming = await granted(link, node, manifest("into the same slots"), source, target)
            kit.ready_all(out)
            await incoming.committed()
            same(source, target)


async def test_a_peer_that_stands_still_is_not_given_up() -> None:
    """Its kernel answers, so it is alive: when it goes on, so does the transfer."""
    async with another_process("peer_process", "receive") as process:
        port = int(await line(process))
        async with await kit.start(Config(lanes=1, ping_interval_s=0.05)) as node:
            link = await node.connect("127.0.0.1", port)
            offer = manifest("silent")
            out = await link.offer(offer, Caches(offer, filled=True).at())
            await stopped(process)
            out.ready("full", 0)
            await asyncio.sleep(0.5)  # ten pings without an answer
            assert not link.closed
            process.send_signal(signal.SIGCONT)
            out.ready("full", 1)
            async with asyncio.timeout(kit.PATIENCE_S):
                await out.committed()


async def test_the_control_connection_is_cut() -> None:
    """Its lanes may be well: without the session there is no link."""
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined(NOT_RESUMED, NOT_RESUMED) as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        out.ready("full", 0)
        assert pair.link._control is not None
        pair.link._control._sock.shutdown(socket.SHUT_RDWR)
        for half in (out, incoming):
            with pytest.raises(LinkLost, match=r"closed the connection|control connection"):
                await half.committed()
        source.check_free()
        target.check_free()
        await kit.eventually(lambda: not pair.server.links and not pair.client.links, "the link to go")
