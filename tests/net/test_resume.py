"""A link that loses its connections gets them back, and its transfers go on where they were."""

import asyncio
import socket
import struct
import time

import pytest

from kvwire import (
    Closed,
    CommitUnknown,
    Config,
    DeadlineExceeded,
    Link,
    LinkLost,
    OfferRefused,
    PeerAborted,
    wire,
)
from kvwire.wire import schema
from tests.net import kit
from tests.net.kit import Caches, finish, half_sent, ready_all, ready_rest, same, through_proxy

pytestmark = pytest.mark.usefixtures("nothing_left")


async def up(pair: kit.Pair) -> None:
    await kit.eventually(
        lambda: not pair.link.suspended and pair.link.lanes == 2 and not pair.back.suspended, lambda: pair.link
    )


async def test_a_transfer_outlives_its_connections() -> None:
    async with through_proxy() as (pair, proxy):
        out, incoming, source, target = await half_sent(pair, kit.manifest("r", kit.FIVE))
        landed = incoming.progress[0]
        proxy.reset()
        await kit.eventually(lambda: pair.link.suspended or proxy.accepted > 3, "the loss to be noticed")
        await up(pair)
        await kit.eventually(lambda: out.progress[0] == landed, lambda: out.progress)
        await finish(out, incoming, source, target)
        assert incoming._handle is not None
        assert incoming._handle.duplicates == 0
        await kit.still_works(pair)


async def test_what_becomes_ready_while_the_link_is_down() -> None:
    async with through_proxy() as (pair, proxy):
        out, incoming, source, target = await half_sent(pair, kit.manifest("r", kit.FIVE, attachment=True))
        proxy.cut()
        await kit.eventually(lambda: pair.link.suspended and pair.back.suspended, "both to notice")
        ready_rest(out)
        out.attach({"token": 7})
        assert out.state == "active"
        proxy.heal()
        await out.committed()
        await incoming.committed()
        assert incoming.attachment == {"token": 7}
        same(source, target)
        await kit.still_works(pair)


async def test_both_directions_at_once() -> None:
    async with through_proxy() as (pair, proxy):
        there = await half_sent(pair, kit.manifest("there", kit.FIVE))
        back = await half_sent(kit.Pair(pair.client, pair.server, pair.back), kit.manifest("back", kit.FIVE))
        proxy.reset()
        await finish(*there)
        await finish(*back)
        await up(pair)
        await kit.still_works(pair)


async def test_offers_and_grants_that_meet_no_connection() -> None:
    async with through_proxy() as (pair, proxy):
        waiting = kit.manifest("offered before")
        source, target = Caches(waiting, filled=True), Caches(waiting)
        task, incoming = await kit.offered(pair.link, pair.server, waiting, source)
        proxy.cut()
        await kit.eventually(lambda: pair.link.suspended and pair.back.suspended, "both to notice")
        await incoming.grant(target.at())
        later = kit.manifest("offered meanwhile")
        source2, target2 = Caches(later, filled=True), Caches(later)
        task2 = asyncio.create_task(pair.link.offer(later, source2.at()))
        await asyncio.sleep(0.05)
        proxy.heal()
        out = await task
        incoming2 = await pair.server.accept()
        await incoming2.grant(target2.at())
        out2 = await task2
        for each in (out, out2):
            ready_all(each)
            await each.committed()
        same(source, target)
        same(source2, target2)
        await kit.still_works(pair)


async def test_a_good_bye_counts_though_nothing_can_be_written_any_more() -> None:
    """Whoever says good-bye and hangs up is gone for good, also where that is noticed by writing."""
    async with await kit.serve("127.0.0.1", 0, Config(plain=True)) as node:
        with socket.create_connection(("127.0.0.1", node.port)) as peer:
            hello = schema.Hello(1, ["crc32c"], b"", b"p" * 16, b"r" * 32, b"", "peer", 1, 4, 65536)
            peer.sendall(wire.control_preamble(plain=True) + schema.encode(hello))
            await kit.eventually(lambda: node.links, "the link")
            (link,) = node.links
            # All this while the loop stands still, which then has something to write before it looks what came.
            peer.sendall(schema.encode(schema.Goodbye("closed", "that was all")))
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with an RST
        link._session.lane_closed(time.monotonic(), 0, 1, "something to say", 0)
        link._pump()
        async with asyncio.timeout(kit.PATIENCE_S):
            assert "that was all" in str(await link.wait_closed())


@pytest.mark.parametrize("side", ["sender", "receiver"])
async def test_an_abort_while_the_link_is_down_reaches_the_peer(side: str) -> None:
    async with through_proxy() as (pair, proxy):
        out, incoming, source, target = await half_sent(pair, kit.manifest("r", kit.FIVE))
        proxy.cut()
        await kit.eventually(lambda: pair.link.suspended and pair.back.suspended, "both to notice")
        aborted, told = (out, incoming) if side == "sender" else (incoming, out)
        await aborted.abort("not needed any more")
        proxy.heal()
        with pytest.raises(PeerAborted, match="while the link was down"):
            await told.committed()
        source.check_free()
        target.check_free()
        await kit.still_works(pair)


async def test_a_refusal_and_a_withdrawn_offer_while_the_link_is_down() -> None:
    async with through_proxy() as (pair, proxy):
        first, second = kit.manifest("refused"), kit.manifest("withdrawn")
        sources = Caches(first, filled=True), Caches(second, filled=True)
        task, incoming = await kit.offered(pair.link, pair.server, first, sources[0])
        task2, incoming2 = await kit.offered(pair.link, pair.server, second, sources[1])
        proxy.cut()
        await kit.eventually(lambda: pair.link.suspended and pair.back.suspended, "both to notice")
        await incoming.refuse("no room")
        task2.cancel()
        proxy.heal()
        with pytest.raises(OfferRefused, match="refused"):
            await task
        await kit.eventually(lambda: incoming2.state == "aborted", lambda: incoming2)
        await kit.still_works(pair)


async def test_a_receipt_that_was_lost_is_learnt() -> None:
    """The last cell landed, and the connection went before the receipt could."""
    async with through_proxy() as (pair, proxy):
        out, incoming, source, target = await half_sent(pair, kit.manifest("r", kit.FIVE))
        proxy.stall()
        ready_rest(out)
        await asyncio.sleep(0.05)
        proxy.cut()
        await kit.eventually(lambda: pair.link.suspended and pair.back.suspended, "both to notice")
        proxy.heal()
        await out.committed()
        await incoming.committed()
        same(source, target)


async def test_a_peer_that_does_not_come_back() -> None:
    config = Config(lanes=2, resume_timeout_s=0.5)
    async with through_proxy(config) as (pair, proxy):
        out, incoming, *_ = await half_sent(pair, kit.manifest("r", kit.FIVE))
        begun = time.monotonic()
        proxy.cut()
        for transfer in (out, incoming):
            with pytest.raises(LinkLost, match="no connection within"):
                await transfer.committed()
        assert time.monotonic() - begun < 10
        await kit.eventually(lambda: pair.link.closed and not pair.server.links, "both to give up")


async def test_deadlines_run_on_while_the_link_is_down() -> None:
    async with through_proxy() as (pair, proxy):
        offer = kit.manifest("late")
        source, target = Caches(offer, filled=True), Caches(offer)
        out, incoming = await kit.granted(pair.link, pair.server, offer, source, target, deadline_s=0.4)
        proxy.cut()
        for transfer in (out, incoming):
            with pytest.raises(DeadlineExceeded, match="within"):
                await transfer.committed()
        assert pair.link.suspended
        proxy.heal()
        await up(pair)
        await kit.still_works(pair)


async def test_many_losses() -> None:
    async with through_proxy() as (pair, proxy):
        links: list[Link] = [pair.link, pair.back]
        for round_ in range(20):
            out, incoming, source, target = await half_sent(pair, kit.manifest(f"r{round_}", kit.FIVE))
            proxy.reset()
            await finish(out, incoming, source, target)
        await up(pair)
        assert [pair.link, pair.back] == links
        await kit.still_works(pair)


async def test_what_became_of_a_transfer_whose_link_is_gone() -> None:
    """CommitUnknown is no last word: the receiver knows, and can be asked over another link."""
    config = Config(lanes=2, resume_timeout_s=0)
    async with through_proxy(config) as (pair, proxy):
        done, given_up = kit.manifest("done"), kit.manifest("given up")
        sources, targets = (
            [Caches(done, filled=True), Caches(given_up, filled=True)],
            [Caches(done), Caches(given_up)],
        )
        out, incoming = await kit.granted(pair.link, pair.server, done, sources[0], targets[0])
        out2, _ = await kit.granted(pair.link, pair.server, given_up, sources[1], targets[1])
        proxy.stall(way="down")
        ready_all(out)
        await incoming.committed()
        out2.ready("full", 0)
        proxy.reset()
        with pytest.raises(CommitUnknown):
            await out.committed()
        with pytest.raises(LinkLost):
            await out2.committed()
        with pytest.raises(Closed):
            await pair.link.outcome_of(out)
        proxy.heal()
        link = await pair.client.connect("127.0.0.1", proxy.port)
        assert await link.outcome_of(out) == "committed"
        assert await link.outcome_of(out2) == "aborted"
        assert await link.outcome_of(out) == "committed"
    async with await kit.serve("127.0.0.1", 0) as another, await kit.start() as client:
        link = await client.connect("127.0.0.1", another.port)
        assert await link.outcome_of(out) == "unknown"


async def test_what_becomes_of_a_transfer_that_may_still_go_on_is_not_known() -> None:
    """Asked over another link while its own is suspended: no answer may turn out to be wrong."""
    async with through_proxy() as (pair, proxy):
        out, incoming, source, target = await half_sent(pair, kit.manifest("r", kit.FIVE))
        proxy.cut()
        await kit.eventually(lambda: pair.link.suspended and pair.back.suspended, "both to notice")
        async with await kit.start() as other:
            link = await other.connect("127.0.0.1", pair.server.port)
            assert await link.outcome_of(out) == "unknown"
        proxy.heal()
        await finish(out, incoming, source, target)
