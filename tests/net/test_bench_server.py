"""What a client that does not play by the rules can do to kvwire-bench serve: nothing."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

import kvwire
from kvwire.cli.failure import Failure
from kvwire.cli.hosts import order as orders
from kvwire.cli.hosts import serve
from kvwire.cli.hosts.channel import DATA, MODEL, Channel
from kvwire.cli.hosts.order import Order
from kvwire.cli.hosts.tasks import finish, together
from kvwire.cli.memory import KvMemory
from tests.net import kit

pytestmark = pytest.mark.usefixtures("nothing_left")

MIB = 1 << 20
SPEC = kvwire.GroupSpec("pages", kvwire.GroupKind.FULL, (0, 1), kvwire.DType.UINT8, (kvwire.Part("page", (4096,)),), 1)
GOOD = Order(up=True, down=True, seconds=None, transfers=4, at_once=2, prefill_s=0.0, scatter=True)

UP = replace(GOOD, down=False)


class Client:
    """A client that says what a test wants said."""

    def __init__(self, node: kvwire.Node, link: kvwire.Link) -> None:
        self.link = link
        self.channel = Channel(link)
        self.memory = KvMemory([SPEC], 64)
        self.offers = asyncio.ensure_future(self._take(node))

    async def _take(self, node: kvwire.Node) -> None:
        while True:
            self.channel.take(await node.accept())

    async def order(self, value: Any, memory: KvMemory | None = None) -> tuple[str, Any]:
        """The word of the answer, and the answer."""
        await self.channel.say("order", value, memory or self.memory)
        word, (_, answer) = await self.channel.hear("ready", "refused")
        return word, answer

    async def carry_out(self, order: Order) -> None:
        """What an honest client does, checked."""
        source, sink = order.flows(self.link, [SPEC], 64, sends=order.up, receives=order.down)
        assert source is not None
        assert sink is not None
        self.channel.on_data = sink.take
        assert (await self.order(order.to_wire()))[0] == "ready"
        await source.run(order.seconds, order.transfers)
        await self.channel.say("sent", source.result())
        _, (_, received) = await self.channel.hear("received")
        assert (received["transfers"], received["damage"]) == (4, [])
        _, (_, sent) = await self.channel.hear("sent")
        await sink.end()
        found = sink.check()
        assert (sent["transfers"], found["transfers"], found["damage"]) == (4, 4, [])


@asynccontextmanager
async def served(memory_bytes: int = 64 * MIB) -> AsyncIterator[serve.Server]:
    """A server. In the end it has all its memory back, and still serves."""
    async with await kit.serve("127.0.0.1") as node:
        server = serve.Server(node, memory_bytes)
        running = asyncio.ensure_future(server.run(once=False))
        try:
            yield server
            await kit.eventually(lambda: server.memory_bytes == memory_bytes, "the memory to be given back")
            async with connected(server) as client:
                await client.carry_out(GOOD)
            await kit.eventually(lambda: server.memory_bytes == memory_bytes and not node.links, "nothing to be left")
            assert not running.done()
        finally:
            await finish(running)


@asynccontextmanager
async def connected(server: serve.Server) -> AsyncIterator[Client]:
    async with await kit.start() as node:
        client = Client(node, await node.connect("127.0.0.1", server.node.port))
        try:
            yield client
        finally:
            await finish(client.offers)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {**GOOD.to_wire(), "more": 1},
        {**GOOD.to_wire(), "up": 1},
        {**GOOD.to_wire(), "up": False, "down": False},
        {**GOOD.to_wire(), "seconds": 1.0},
        {**GOOD.to_wire(), "transfers": None},
        {**GOOD.to_wire(), "transfers": None, "seconds": float("nan")},
        {**GOOD.to_wire(), "transfers": None, "seconds": -1},
        {**GOOD.to_wire(), "transfers": None, "seconds": 1e9},
        {**GOOD.to_wire(), "transfers": 0},
        {**GOOD.to_wire(), "transfers": True},
        {**GOOD.to_wire(), "at_once": 0},
        {**GOOD.to_wire(), "at_once": 17},
        {**GOOD.to_wire(), "at_once": 2.0},
        {**GOOD.to_wire(), "prefill_s": "1"},
        {**GOOD.to_wire(), "scatter": None},
        {**GOOD.to_wire(), "compression": None},
        {**GOOD.to_wire(), "compression": {"full": "zstd"}},
        {**GOOD.to_wire(), "content": "text"},
        {**GOOD.to_wire(), "content": []},
    ],
)
async def test_orders_that_no_client_gives(value: Any) -> None:
    with pytest.raises(Failure, match="an order"):
        Order.from_wire(value)
    async with served() as server, connected(server) as client:
        word, answer = await client.order(value)
        assert word == "refused"
        assert answer.startswith("an order")


def test_an_order_survives_the_wire() -> None:
    assert Order.from_wire(GOOD.to_wire()) == GOOD
    other = replace(GOOD, compression="full=int8,mla=off", content="kv")
    assert Order.from_wire(other.to_wire()) == other


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("zip", "there is no codec 'zip'"),
        ("half=zstd", "'half' is no kind of group"),
        ("int8", "codec 'int8' does not take group 'pages'"),
        ("=" * 60_000, "'' is no kind of group"),
    ],
)
async def test_codecs_that_the_server_cannot_use(text: str, sentence: str) -> None:
    """It says so, also where the client would have sent itself."""
    async with served() as server, connected(server) as client:
        word, answer = await client.order(replace(GOOD, compression=text).to_wire())
        assert word == "refused"
        assert sentence in answer
        assert len(answer) < 400


async def test_memory_is_bounded_over_all_clients() -> None:
    one = 64 * 2 * 4096
    both = GOOD.memory_bytes([SPEC], 64, sends=True, receives=True)
    assert 5 * one < both < 5.1 * one
    async with served(both) as server, connected(server) as first, connected(server) as second:
        assert (await first.order(UP.to_wire()))[0] == "ready"
        word, answer = await second.order(UP.to_wire())
        assert (word, answer) == ("refused", "this needs 1.513 MiB of memory at the server, which has 1.013 MiB for it")


async def test_memory_is_reserved_until_nobody_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that goes while its memory is being filled does not make room for the next one before that is over."""
    begun, go_on = threading.Event(), threading.Event()
    flows = Order.flows

    def slow(order: Order, *arguments: Any, **more: Any) -> Any:
        begun.set()
        assert go_on.wait(20)
        return flows(order, *arguments, **more)

    async with served() as server:
        whole = server.memory_bytes
        with monkeypatch.context() as patched:
            patched.setattr(Order, "flows", slow)
            async with connected(server) as client:
                await client.channel.say("order", UP.to_wire(), client.memory)
                await asyncio.to_thread(begun.wait, 20)
            await asyncio.sleep(0.3)
            assert server.memory_bytes < whole
            go_on.set()
            await kit.eventually(lambda: server.memory_bytes == whole, "the memory to be given back")


async def test_blocks_that_cannot_be_checked() -> None:
    odd = kvwire.GroupSpec("odd", kvwire.GroupKind.FULL, (0,), kvwire.DType.UINT8, (kvwire.Part("page", (4,)),), 1)
    async with served() as server, connected(server) as client:
        memory = KvMemory([SPEC], 1)
        memory.specs, memory.pages = (odd,), [kvwire.Pages.empty(odd, 1)]
        assert await client.order(GOOD.to_wire(), memory) == (
            "refused",
            "group odd has blocks of 4 bytes; expected a multiple of 8",
        )


async def test_offers_that_nobody_ordered() -> None:
    async with served() as server, connected(server) as client:
        for name, model, reason in (
            (f"{DATA}-1-0", MODEL, "nothing of this kind was ordered"),
            ("song-1", MODEL, "nothing of this kind was ordered"),
            ("hello-1", kvwire.ModelTag("kvwire-bench", "99"), "the offer is for kvwire-bench 99"),
        ):
            offer = kvwire.Manifest.of(name, model, client.memory.tokens, client.memory.specs)
            with pytest.raises(kvwire.OfferRefused, match=reason):
                await client.link.offer(offer, client.memory.placement())


async def test_words_that_are_wrong_or_too_many() -> None:
    async with served() as server, connected(server) as client:
        for _ in range(100):
            await client.channel.say("hello", "x" * 1000)
        assert (await client.order(GOOD.to_wire()))[0] == "ready"
        with contextlib.suppress(kvwire.CommitUnknown):  # the server hangs up at once
            await client.channel.say("sent", {"bytes": "many"})
        await asyncio.wait_for(client.link.wait_closed(), 10)


async def test_silence_and_standstill_are_bounded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "FIRST_WORD_S", 0.2)
    monkeypatch.setattr(serve, "LOOK_S", 0.05)
    monkeypatch.setattr(orders, "STALL_S", 0.3)
    monkeypatch.setattr(orders, "LOOK_S", 0.05)
    async with (
        served() as server,
        connected(server) as silent,
        connected(server) as chatty,
        connected(server) as still,
    ):
        await chatty.channel.say("hello")
        assert (await still.order(UP.to_wire()))[0] == "ready"
        for client in (silent, chatty, still):
            await asyncio.wait_for(client.link.wait_closed(), 10)
    said = capsys.readouterr().out
    assert "said nothing for 0 s" in said
    assert "no word (order) within 0 s" in said
    assert "nothing has moved" in said


async def test_a_client_waits_for_no_one_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a kvwire node that takes offers but never answers them."""
    monkeypatch.setattr("kvwire.cli.hosts.channel.ANSWER_S", 0.2)
    async with await kit.serve("127.0.0.1") as deaf, await kit.start() as node:
        link = await node.connect("127.0.0.1", deaf.port)
        with pytest.raises(Failure, match="did not answer as kvwire-bench does"):
            await Channel(link).say("hello")
        with pytest.raises(Failure, match=r"no word \(ready\) within 0 s"):
            await Channel(link).hear("ready", within_s=0.1)


async def test_what_the_other_end_says_does_not_steer_the_terminal() -> None:
    """Whoever answers a plain client may say anything, and all of it is printed."""
    async with await kit.serve("127.0.0.1") as evil, await kit.start() as node:
        client = Client(node, await node.connect("127.0.0.1", evil.port))
        said = Channel(evil.links[0])
        try:
            await said.say("refused", "\x1b[2J\rgone")
            assert (await client.channel.hear("refused"))[1][1] == "?[2J?gone"
            counts = {"transfers": 1, "checked": 1, "cpu_s": 0.0}
            await said.say("received", counts | {"damage": ["\x1b]0;title\a", 7, ["deep"]]})
            assert (await client.channel.hear("received"))[1][1] == counts | {"damage": ["?]0;title?", "?", "?"]}
        finally:
            await finish(client.offers)


async def test_together_cancels_the_others() -> None:
    cancelled = asyncio.Event()

    async def fails() -> None:
        await asyncio.sleep(0)
        raise Failure("this one")

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(Failure, match="this one"):
        await together(fails(), waits())
    assert cancelled.is_set()
