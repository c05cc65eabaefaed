"""Every way in which a transfer, a wait, a link or a node ends before its time, or is used after it."""

import asyncio
import contextlib
import gc

import pytest

from kvwire import (
    Closed,
    Config,
    DeadlineExceeded,
    Incoming,
    Link,
    LinkLost,
    NetworkError,
    Node,
    OfferRefused,
    Outgoing,
    PeerAborted,
    ReadyError,
    WrongThread,
)
from tests.net import kit
from tests.net.kit import Caches, Pair, granted, joined, manifest, offered

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_an_offer_is_refused() -> None:
    offer = manifest()
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, Caches(offer))
        await incoming.refuse("no room for 13 blocks")
        with pytest.raises(OfferRefused, match="offer refused: no room for 13 blocks") as caught:
            await task
        assert caught.value.retriable
        assert incoming.state == "aborted"
        for use in (incoming.committed, incoming.refuse, lambda: incoming.wait_layer("full", 0)):
            with pytest.raises(Closed, match="refused"):
                await use()
        with pytest.raises(Closed, match="cannot be granted now"):
            await incoming.grant(Caches(offer).at())
        await kit.still_works(pair)


@pytest.mark.parametrize("how", ["offered", "active", "sending"])
async def test_the_sender_aborts(how: str) -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, source)
        if how == "offered":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await incoming.grant(target.at())
            out = await task
            if how == "sending":
                out.ready("full", 0)
                await incoming.wait_layer("full", 0)
            await out.abort("prefill ran out of memory")
            source.check_free()  # on return, whatever the peer does
            await out.abort("again")
            with pytest.raises(Closed, match="aborted here: prefill ran out of memory"):
                await out.committed()
            with pytest.raises(Closed):
                out.ready("full", 1)
        with pytest.raises(PeerAborted, match=r"the peer aborted: .*(prefill|cancelled)") as caught:
            await incoming.committed()
        assert caught.value.retriable
        target.check_free()
        with pytest.raises(PeerAborted):
            _ = [layer async for layer in incoming.layers()]
        with pytest.raises(Closed, match="cannot be granted now"):
            await incoming.grant(target.at())
        if how == "sending":
            await incoming.wait_layer("full", 0)  # what landed before has landed
            with pytest.raises(PeerAborted):
                await incoming.wait_layer("full", 1)
        await kit.still_works(pair)


@pytest.mark.parametrize("how", ["offered", "active", "thread"])
async def test_the_receiver_aborts(how: str) -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, source)
        if how == "offered":
            await incoming.abort("request was cancelled")
            with pytest.raises(PeerAborted, match="request was cancelled"):
                await task
        else:
            await incoming.grant(target.at())
            out = await task
            out.ready("full", 0)
            if how == "active":
                await incoming.abort("request was cancelled")
            else:
                await asyncio.to_thread(incoming.abort_nowait, "request was cancelled")
            target.check_free()
            with pytest.raises(PeerAborted, match="request was cancelled"):
                await out.committed()
            source.check_free()
            with pytest.raises(Closed, match="the transfer is aborted"):
                out.ready("full", 1)
        with pytest.raises(Closed, match="aborted here: request was cancelled"):
            await incoming.committed()
        await kit.still_works(pair)


async def test_both_sides_abort_at_once() -> None:
    offer = manifest()
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer))
        out.abort_nowait("a")
        incoming.abort_nowait("b")
        for half in (out, incoming):
            with pytest.raises(Closed, match="aborted here"):
                await half.committed()
        await kit.still_works(pair)


async def test_deadlines() -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target, deadline_s=0.1)
        out.ready("full", 0)
        for half in (out, incoming):
            with pytest.raises(DeadlineExceeded, match=r"request 'r1' was not committed within 0.1 s") as caught:
                await half.committed()
            assert isinstance(caught.value, TimeoutError)
        source.check_free()
        target.check_free()
        await kit.still_works(pair)


async def test_a_grant_after_the_time_out() -> None:
    offer = manifest()
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, Caches(offer), timeout_s=0.05)
        with pytest.raises(DeadlineExceeded, match="'r1' was not granted in time"):
            await task
        with contextlib.suppress(DeadlineExceeded, PeerAborted):
            await incoming.committed()
        target = Caches(offer)
        with pytest.raises(Closed, match="aborted> cannot be granted now"):
            await incoming.grant(target.at())
        target.check_free()
        await kit.still_works(pair)


# --- cancelled waits ------------------------------------------------------------------------------------------


async def cancelled(task: asyncio.Task[object]) -> None:
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_waits_that_are_cancelled_lose_nothing() -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined() as pair:
        await cancelled(asyncio.create_task(pair.server.accept()))
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        await cancelled(asyncio.create_task(out.committed()))
        await cancelled(asyncio.create_task(incoming.committed()))
        await cancelled(asyncio.create_task(incoming.wait_layer("full", 0)))
        await cancelled(asyncio.create_task(anext(incoming.layers())))  # type: ignore[arg-type]
        kit.ready_all(out)
        await out.committed()
        await incoming.committed()
        kit.same(source, target)
        await kit.still_works(pair)


async def test_an_offer_that_is_cancelled_while_its_grant_arrives() -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined() as pair:
        for pause in range(12):
            task, incoming = await offered(pair.link, pair.server, offer, source)
            await incoming.grant(target.at())
            for _ in range(pause):
                await asyncio.sleep(0)
            task.cancel()
            try:
                out = await task
            except asyncio.CancelledError:
                with pytest.raises(PeerAborted, match="cancelled"):
                    await incoming.committed()
            else:
                await out.abort()
                with pytest.raises(PeerAborted):
                    await incoming.committed()
            await pair.settled()
            source.check_free()
            target.check_free()
        await kit.still_works(pair)


async def test_dialling_that_is_cancelled() -> None:
    async with joined() as pair:
        before = len(pair.server.links)
        for pause in range(25):
            task = asyncio.create_task(pair.client.connect("127.0.0.1", pair.server.port))
            for _ in range(pause):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await task).close()
            assert pair.client.links == (pair.link,)
        await kit.eventually(lambda: len(pair.server.links) == before, "links of dialling that was given up")
        await kit.still_works(pair)


# --- links and nodes ------------------------------------------------------------------------------------------


async def in_flight(pair: Pair) -> tuple[Outgoing, Incoming, asyncio.Task[Outgoing], list[Caches]]:
    """One transfer that is active, with half of it ready, and one that is on offer."""
    offer = manifest("active")
    caches = [Caches(offer, filled=True), Caches(offer)]
    out, incoming = await granted(pair.link, pair.server, offer, *caches)
    out.ready("full", 0)
    task = asyncio.create_task(pair.link.offer(manifest("offered"), caches[0].at()))
    await kit.eventually(lambda: len(pair.back._exchange.incoming) == 2, "the second offer")
    return out, incoming, task, caches


@pytest.mark.parametrize("closing", ["link", "back", "client", "server"])
async def test_closing_with_transfers_in_flight(closing: str) -> None:
    async with joined() as pair:
        back = pair.back
        out, incoming, task, caches = await in_flight(pair)
        mine = closing in ("link", "client")
        ends: dict[str, Link | Node] = {"link": pair.link, "back": back, "client": pair.client, "server": pair.server}
        end = ends[closing]
        await end.close()
        await end.close()
        (caches[0] if mine else caches[1]).check_free()  # at once; the other side when it has heard of it
        near, far = (Closed, "the link was closed"), (LinkLost, "good-bye|control connection")
        for half, (error, says) in ((out, near if mine else far), (incoming, far if mine else near)):
            with pytest.raises(error, match=says):
                await half.committed()
        error, says = near if mine else far
        with pytest.raises(error, match=says):
            await task
        for pages in caches:
            pages.check_free()
        await kit.eventually(lambda: pair.link.closed and back.closed, "both ends to be closed")
        assert "closed" in repr(pair.link)
        assert pair.link.lanes == 0
        with pytest.raises(Closed, match=r"the link to 127.0.0.1 port \d+ is closed: the (link was closed|peer said)"):
            await pair.link.offer(manifest(), caches[0].at())
        with pytest.raises(Closed):
            out.ready("full", 1)
        await out.abort()
        await incoming.abort()
        assert not pair.server.links
        assert not pair.client.links
        if closing in ("link", "back"):
            async with await pair.client.connect("127.0.0.1", pair.server.port) as link:
                await kit.move(link, pair.server, "over another link")


async def test_a_node_that_is_closed() -> None:
    node = await kit.serve("127.0.0.1", 0, Config(lanes=1))
    waiting = [asyncio.create_task(node.accept()) for _ in range(2)]
    dialling = asyncio.create_task(node.connect("127.0.0.1", node.port))
    await asyncio.sleep(0)
    await node.close()
    for task in waiting:
        with pytest.raises(Closed, match="the node is closed"):
            await task
    with pytest.raises((Closed, NetworkError)):  # however far it had come
        await dialling
    await node.close()
    for use in (node.accept(), node.connect("127.0.0.1", 7878)):
        with pytest.raises(Closed, match="the node is closed"):
            await use
    for look in (lambda: node.address, lambda: node.port):
        with pytest.raises(Closed, match="the node is closed"):
            look()
    assert node.links == ()


async def linked() -> tuple[Node, Node, Incoming]:
    """Two nodes that nobody closes yet, and a transfer between them."""
    offer = manifest()
    server, client = await kit.serve(), await kit.start()
    link = await client.connect("127.0.0.1", server.port)
    _, incoming = await granted(link, server, offer, Caches(offer), Caches(offer))
    return server, client, incoming


def close_late(server: Node, client: Node, incoming: Incoming) -> None:
    for _ in range(2):
        asyncio.run(client.close())
        asyncio.run(server.close())
    assert not client.links
    assert not server.links
    with pytest.raises((Closed, LinkLost)):
        incoming.wait_committed(1)
    with pytest.raises(Closed, match="the node is closed"):
        asyncio.run(client.connect("127.0.0.1", 7878))


def test_nodes_that_outlive_their_loop() -> None:
    """They can be closed from any other then, and only then, and leave nothing behind."""
    with asyncio.Runner() as runner:
        server, client, incoming = runner.run(linked())
        with pytest.raises(WrongThread, match="belongs to another event loop"):
            asyncio.run(client.close())
        assert client.links
    close_late(server, client, incoming)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_nodes_whose_loop_is_closed_under_them() -> None:
    """Of its tasks asyncio says that they were destroyed while they waited, and the sockets go with them."""
    loop = asyncio.new_event_loop()
    server, client, incoming = loop.run_until_complete(linked())
    loop.close()
    close_late(server, client, incoming)
    del loop, server, client, incoming
    gc.collect()


async def test_use_after_the_commit() -> None:
    offer = manifest(attachment=True)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer))
        kit.ready_all(out)
        out.attach(1)
        first = await out.committed(), await incoming.committed()
        await out.abort("too late")
        await incoming.abort("too late")
        assert first == (await out.committed(), await incoming.committed())
        assert incoming.attachment == 1
        with pytest.raises(ReadyError, match=r"layer 0 of group full: .*ready before"):
            out.ready("full", 0)
        await pair.link.close()
        assert first[0] == await out.committed()
        assert incoming.attachment == 1


async def test_a_node_connects_to_itself() -> None:
    async with await kit.serve("127.0.0.1", 0, Config(lanes=1)) as node:
        link: Link = await node.connect("127.0.0.1", node.port)
        await kit.move(link, node, "r1")
        assert len(node.links) == 2


async def test_offers_that_are_withdrawn_are_not_kept() -> None:
    offers = [manifest(f"withdrawn {n}") for n in range(50)]
    async with joined() as pair:
        source = Caches(offers[0], filled=True)
        for offer in offers:
            task = asyncio.create_task(pair.link.offer(offer, source.at()))
            await kit.eventually(lambda: len(pair.server._offers) == 1, "the offer to come")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await kit.eventually(lambda: not pair.server._offers, "it to be forgotten")


async def test_a_cancelled_close_closes_all_the_same() -> None:
    node = await kit.serve("127.0.0.1", 0)
    closing = asyncio.create_task(node.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await node.close()
    assert node.engine.fileno() == -1


async def test_a_close_goes_on_where_all_tasks_were_cancelled() -> None:
    """As whoever is told to stop does: the node's own tasks are among them."""
    for turns in range(8):
        async with await kit.serve("127.0.0.1", 0) as server, await kit.start() as node:
            await node.connect("127.0.0.1", server.port)
            closing = asyncio.create_task(node.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.wait((closing,))
            await node.close()
            assert node.engine.fileno() == -1
            assert not node.links
