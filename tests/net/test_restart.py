"""A receiver that dies and comes back: what was on its way to it is offered once more, and no sender has to care."""

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from kvwire import (
    Closed,
    Config,
    DeadlineExceeded,
    Incoming,
    LinkLost,
    OfferRefused,
    Outgoing,
    PeerAborted,
    PeerBusy,
    ReadyError,
    wire,
)
from kvwire.wire import schema
from tests.net import kit
from tests.net.kit import Caches, half_sent, manifest, ready_all, same
from tests.net.peers import another_process, line, stopped
from tests.net.proxy import Proxy, proxied

pytestmark = pytest.mark.usefixtures("nothing_left")

CONFIG = Config(lanes=2)
ODD, EVEN = range(1, 13, 2), range(0, 13, 2)


@dataclass
class Scene(kit.Pair):
    """A receiver that can be replaced by another one at the same address."""

    proxy: Proxy

    async def die(self) -> None:
        """The receiver is gone without a good-bye, and the sender knows."""
        self.proxy.cut()
        await self.server.close()
        await kit.eventually(lambda: self.link.suspended, "the sender to notice")

    async def live(self) -> None:
        """Another one is there."""
        self.server = await kit.serve("127.0.0.1", 0, self.link.config)
        self.proxy.target = self.server.port
        self.proxy.heal()

    async def restart(self) -> None:
        await self.die()
        await self.live()

    async def whole(self, out: Outgoing, incoming: Incoming, source: Caches, target: Caches) -> None:
        """The transfer to the new receiver is committed, and nothing of it or of the one before it is left."""
        await out.committed()
        await incoming.committed()
        same(source, target, {name: blocks for name, blocks in out.granted.items() if blocks})
        source.check_free()
        target.check_free()
        await kit.still_works(self)


@asynccontextmanager
async def scene(config: Config = CONFIG) -> AsyncIterator[Scene]:
    server = await kit.serve("127.0.0.1", 0, config)
    with proxied(server.port) as proxy:
        async with await kit.start(config) as client:
            found = Scene(server, client, await client.connect("127.0.0.1", proxy.port), proxy)
            try:
                yield found
            finally:
                await found.server.close()


async def test_what_was_ready_is_sent_again_and_the_rest_follows() -> None:
    async with scene() as there:
        out, before, source, _ = await half_sent(there, manifest("r", kit.FIVE, attachment=True))
        was = out.transfer_id
        out.attach({"token": 7})
        waiting = asyncio.create_task(asyncio.to_thread(out.wait_committed, kit.PATIENCE_S))
        await there.die()
        with pytest.raises(Closed):
            await before.committed()
        segments = out.manifest.segments()
        out.ready(*segments[1])  # while nobody is there
        await there.live()
        incoming = await there.server.accept()
        assert incoming.manifest == out.manifest
        out.ready(*segments[3])  # while it is on offer
        target = Caches(out.manifest, seed=2)
        await incoming.grant(target.at())
        for name, layer in segments[5::2]:
            out.ready(name, layer)
        await there.whole(out, incoming, source, target)
        assert incoming.attachment == {"token": 7}
        assert out.transfer_id > was
        receipt, blocked = await out.committed(), await waiting
        assert receipt == blocked
        assert receipt.tail_s is not None
        assert receipt.elapsed_s > receipt.tail_s


async def test_an_offer_that_was_not_granted() -> None:
    async with scene() as there:
        offer = manifest("r")
        source, target = Caches(offer, filled=True), Caches(offer)
        task, _ = await kit.offered(there.link, there.server, offer, source)
        await there.restart()
        incoming = await there.server.accept()
        await incoming.grant(target.at())
        out = await task
        ready_all(out)
        await there.whole(out, incoming, source, target)


async def test_it_restarts_again_and_again() -> None:
    async with scene() as there:
        out, _, source, _ = await half_sent(there, manifest("r", kit.FIVE))
        for _ in range(3):
            await there.restart()
            incoming = await there.server.accept()
            target = Caches(out.manifest, seed=3)
            await incoming.grant(target.at())
            await incoming.wait_layer(*out.manifest.segments()[0])
        await there.restart()  # and once before it grants
        await there.server.accept()
        await there.restart()
        incoming = await there.server.accept()
        target = Caches(out.manifest, seed=4)
        await incoming.grant(target.at())
        for name, layer in out.manifest.segments()[1::2]:
            out.ready(name, layer)
        await there.whole(out, incoming, source, target)


async def test_a_receiver_that_wants_less_now() -> None:
    """What its prefix index still holds it does not ask for; a sender need not know."""
    async with scene() as there:
        offer = manifest("r")
        source, target = Caches(offer, filled=True), Caches(offer)
        out, _ = await kit.granted(there.link, there.server, offer, source, target)
        out.ready("full", 0, [0, 1, 2, 11, 12])
        await there.restart()
        incoming = await there.server.accept()
        target = Caches(offer)
        await incoming.grant(target.at({"full": ODD}))
        await kit.eventually(lambda: out.granted["full"] == tuple(ODD), lambda: out.granted)
        with pytest.raises(ReadyError, match="ready before"):
            out.ready("full", 0, [11])
        with pytest.raises(ReadyError, match="block 13 of group full was not granted"):
            out.ready("full", 0, [13])
        out.ready("full", 0, range(3, 11))
        out.ready("full", 1)
        await there.whole(out, incoming, source, target)


async def test_a_receiver_that_wants_more_now() -> None:
    """Whether blocks that nobody wanted before are computed, nobody knows: better no transfer than a wrong one."""
    async with scene() as there:
        offer = manifest("r")
        source, target = Caches(offer, filled=True), Caches(offer)
        task, incoming = await kit.offered(there.link, there.server, offer, source)
        await incoming.grant(target.at({"full": ODD}))
        out = await task
        ready_all(out)
        await there.restart()
        incoming = await there.server.accept()
        await incoming.grant(target.at())
        with pytest.raises(OfferRefused, match="wants block 0 of group full") as refused:
            await out.committed()
        assert refused.value.retriable
        with pytest.raises(PeerAborted, match="wants block 0"):
            await incoming.committed()
        source.check_free()
        await kit.still_works(there)


async def test_a_receiver_that_wants_what_its_life_before_left_out() -> None:
    """Nor is anything known of a block that the first life wanted, and the second one did not."""
    async with scene() as there:
        offer = manifest("r")
        source = Caches(offer, filled=True)
        out, _ = await kit.granted(there.link, there.server, offer, source, Caches(offer))
        out.ready("full", 0)
        for wanted in ({"full": ODD}, None):
            await there.restart()
            incoming = await there.server.accept()
            await incoming.grant(Caches(offer).at(wanted))
            await kit.eventually(lambda: out.granted["full"] == tuple(ODD), "the second grant")
        out.ready("full", 1)
        with pytest.raises(OfferRefused, match="wants block 0 of group full"):
            async with asyncio.timeout(kit.PATIENCE_S):
                await out.committed()
        source.check_free()
        await kit.still_works(there)


async def test_a_receiver_that_does_not_want_it_any_more() -> None:
    async with scene() as there:
        out, _, source, _ = await half_sent(there, manifest("r", kit.FIVE))
        await there.restart()
        await (await there.server.accept()).refuse("no idea what that is")
        with pytest.raises(OfferRefused, match="no idea what that is"):
            await out.committed()
        source.check_free()
        await kit.still_works(there)


async def test_the_deadline_runs_on() -> None:
    async with scene() as there:
        offer = manifest("r")
        source, target = Caches(offer, filled=True), Caches(offer)
        out, _ = await kit.granted(there.link, there.server, offer, source, target, deadline_s=0.5)
        await there.restart()
        incoming = await there.server.accept()
        with pytest.raises(DeadlineExceeded):
            await out.committed()
        with pytest.raises(DeadlineExceeded):
            await incoming.committed()
        source.check_free()
        await kit.still_works(there)


@pytest.mark.parametrize("when", ["dead", "offered", "granted"])
@pytest.mark.parametrize("in_a_thread", [False, True])
async def test_given_up_by_the_sender(when: str, in_a_thread: bool) -> None:
    async with scene() as there:
        out, _, source, _ = await half_sent(there, manifest("r", kit.FIVE))

        async def give_up() -> None:
            await asyncio.to_thread(out.abort_nowait, "enough") if in_a_thread else out.abort_nowait("enough")
            source.check_free()

        await there.die()
        if when == "dead":
            await give_up()
        await there.live()
        if when != "dead":
            incoming = await there.server.accept()
            if when == "granted":
                target = Caches(out.manifest)
                await incoming.grant(target.at())
                await incoming.wait_layer(*out.manifest.segments()[0])
            await give_up()
            with pytest.raises(PeerAborted, match="enough"):
                await incoming.committed()
        with pytest.raises(Closed, match="enough"):
            await out.committed()
        await kit.eventually(lambda: not there.link.suspended and there.link.lanes == 2, "the link to be back")
        await kit.still_works(there)


async def test_an_offering_task_that_is_cancelled() -> None:
    async with scene() as there:
        offer = manifest("r")
        source = Caches(offer, filled=True)
        task, _ = await kit.offered(there.link, there.server, offer, source)
        await there.restart()
        incoming = await there.server.accept()
        task.cancel()
        with pytest.raises(PeerAborted, match="cancelled"):
            await incoming.committed()
        assert task.cancelled()
        source.check_free()
        await kit.still_works(there)


async def test_what_the_receiver_sent_is_lost() -> None:
    async with scene() as there:
        offer = manifest("back")
        source, target = Caches(offer, filled=True), Caches(offer)
        _, incoming = await kit.granted(there.back, there.client, offer, source, target)
        await there.restart()
        with pytest.raises(LinkLost, match="has restarted"):
            await incoming.committed()
        assert incoming.failed_blocks() == {"full": tuple(range(13))}
        target.check_free()
        await kit.eventually(lambda: there.link.lanes == 2, "the link to be back")
        await kit.still_works(there)


@pytest.mark.parametrize("done", ["nothing", "half", "all"])
async def test_a_process_that_is_killed_and_started_again(done: str) -> None:
    """With SIGKILL, at any point; the next one, at the same port, gets every byte."""
    offer = manifest("killed", kit.FIVE)
    source = Caches(offer, filled=True)
    async with await kit.start(CONFIG) as node:
        async with another_process("peer_process", "receive") as process:
            port = await line(process)
            link = await node.connect("127.0.0.1", int(port))
            out = await link.offer(offer, source.at())
            assert await line(process) == "granted"
            await stopped(process)  # so that no receipt comes before it dies
            segments = offer.segments()
            late = {"nothing": segments, "half": segments[1::2], "all": []}[done]
            for name, layer in segments:
                if (name, layer) not in late:
                    out.ready(name, layer)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        async with another_process("peer_process", "receive", port) as process:
            assert await line(process) == port
            assert await line(process) == "granted"
            for name, layer in late:
                out.ready(name, layer)
            assert await line(process) == f"committed {kit.digest(source)}"
            await out.committed()
        source.check_free()


async def test_threads_that_make_blocks_ready_meanwhile() -> None:
    """An engine's threads know nothing of a restart: each block is named once, and each arrives."""
    async with scene() as there:
        offer = manifest("r", kit.FIVE)
        source, target = Caches(offer, filled=True), Caches(offer)
        out, _ = await kit.granted(there.link, there.server, offer, source, target)
        named = [(name, layer, block) for name, layer in offer.segments() for block in out.granted[name]]

        enough = threading.Event()

        def engine(share: list[tuple[str, int, int]]) -> None:
            *most, last = share
            for name, layer, block in most:
                out.ready(name, layer, [block])
                time.sleep(0.005)
            enough.wait(kit.PATIENCE_S)  # so that it is not committed before the last restart
            out.ready(last[0], last[1], [last[2]])

        threads = [asyncio.create_task(asyncio.to_thread(engine, named[start::4])) for start in range(4)]
        for _ in range(5):
            await there.restart()
            incoming = await there.server.accept()
            target = Caches(offer, seed=2)
            await incoming.grant(target.at())
            await asyncio.sleep(0.01)
        enough.set()
        await asyncio.gather(*threads)
        await there.whole(out, incoming, source, target)


@pytest.mark.parametrize("greets", [False, True])
async def test_a_peer_that_hangs_up_at_once(greets: bool) -> None:
    """Before its hello or after it: it is dialled again ever more slowly, as one that does not answer is."""
    lives = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal lives
        lives += 1
        life = lives.to_bytes(16, "little")
        writer.write(wire.control_preamble(plain=True))
        if greets:
            writer.write(schema.encode(schema.Hello(1, ["crc32c"], b"", life, bytes(32), life, "weary", 0, 4, 65536)))
        await reader.readexactly(wire.PREAMBLE_BYTES + 100)
        writer.close()

    async with scene(Config(lanes=2, plain=True)) as there:
        offer = manifest("r")
        source, target = Caches(offer, filled=True), Caches(offer)
        out, _ = await kit.granted(there.link, there.server, offer, source, target)
        await there.die()
        weary = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        there.proxy.target = weary.sockets[0].getsockname()[1]
        there.proxy.heal()
        begun = time.monotonic()
        await kit.eventually(lambda: lives > 4, lambda: lives)
        assert time.monotonic() - begun > 0.3
        weary.close()
        await weary.wait_closed()
        await there.live()
        incoming = await there.server.accept()
        await incoming.grant(target.at())
        ready_all(out)
        await there.whole(out, incoming, source, target)


async def test_a_receiver_that_is_full_when_it_is_back() -> None:
    """It says so, and is asked again until it has room."""
    async with scene() as there:
        out, _, source, _ = await kit.half_sent(there, kit.manifest("r", kit.FIVE))
        await there.die()
        there.server = await kit.serve("127.0.0.1", 0, Config(lanes=2, max_links=1))
        async with await kit.start(CONFIG) as other:
            link = await other.connect("127.0.0.1", there.server.port)
            with pytest.raises(PeerBusy, match="it takes no more links") as busy:
                await other.connect("127.0.0.1", there.server.port)
            assert busy.value.retriable
            there.proxy.target = there.server.port
            there.proxy.heal()
            await asyncio.sleep(0.2)
            assert there.link.suspended
            await link.close()
        incoming = await there.server.accept()
        target = Caches(out.manifest, seed=2)
        await incoming.grant(target.at())
        kit.ready_rest(out)
        await there.whole(out, incoming, source, target)
