"""Who may take a link over: only the node that it was made with, and only while it is known.

Nodes are plain where a test speaks with them in bytes of its own; `test_sealed_links.py` has the sealed ones.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from kvwire import Config, LinkLost, Node, wire
from kvwire.wire import schema
from tests.net import kit
from tests.net.kit import joined

pytestmark = pytest.mark.usefixtures("nothing_left")

PLAIN = Config(lanes=2, plain=True)


def hello(link_id: bytes, boot_id: bytes = b"s" * 16) -> schema.Hello:
    return schema.Hello(1, ["crc32c"], b"", boot_id, b"r" * 32, link_id, "stranger", 2, 4, 65536)


@asynccontextmanager
async def stranger(node: Node, *said: bytes) -> AsyncIterator[list[schema.Message]]:
    """A raw connection that says this; what the node answered, up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    try:
        writer.write(wire.control_preamble(plain=True) + b"".join(said))
        answer = (await asyncio.wait_for(reader.read(), 10))[wire.PREAMBLE_BYTES :]
        messages, found = schema.MessageReader(1 << 20), []
        messages.feed(answer)
        while (message := messages.next()) is not None:
            found.append(message)
        yield found
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize("known", [False, True])
async def test_a_stranger_that_asks_for_a_link(known: bool) -> None:
    """Whether it is there or not: the answer names a new one, and the other stays whose it is."""
    async with joined(PLAIN, PLAIN) as pair:
        name = pair.link._session.link_id if known else b"?" * 16
        goodbye = schema.encode(schema.Goodbye("closed", "not that one"))
        async with stranger(pair.server, schema.encode(hello(name)), goodbye) as answer:
            greeting, *tickets = answer
            assert isinstance(greeting, schema.Hello)
            assert greeting.link_id not in (name, pair.link._session.link_id)
            assert {type(message) for message in tickets} <= {schema.LaneTicket}
        await kit.eventually(lambda: len(pair.server.links) == 1, "the stranger's link to be gone")
        assert not pair.link.suspended
        assert not pair.back.suspended
        await kit.still_works(pair)


@pytest.mark.parametrize(
    "said",
    [
        schema.encode(schema.Ping(1)),
        b"\xff\xff\xff\x7f",
        (100).to_bytes(4, "little") + b"\xc1" * 100,
    ],
)
async def test_no_hello(said: bytes) -> None:
    async with joined(PLAIN, PLAIN) as pair:
        async with stranger(pair.server, said) as answer:
            (goodbye,) = answer
            assert isinstance(goodbye, schema.Goodbye)
            assert goodbye.code == "protocol"
        assert len(pair.server.links) == 1
        await kit.still_works(pair)


async def test_a_greeting_that_never_ends() -> None:
    async with joined(replace(PLAIN, handshake_timeout_s=0.2), PLAIN) as pair:
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.server.port)
        writer.write(wire.control_preamble(plain=True) + schema.encode(hello(b""))[:-1])
        assert await asyncio.wait_for(reader.read(), 10) == wire.control_preamble(plain=True)
        assert len(pair.server.links) == 1
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_the_same_node_takes_a_link_over_that_still_seems_up() -> None:
    """The acceptor has not noticed the loss yet: the new connection counts."""
    async with joined() as pair:
        offer = kit.manifest("r")
        source, target = kit.Caches(offer, filled=True), kit.Caches(offer)
        out, incoming = await kit.granted(pair.link, pair.server, offer, source, target)
        control = pair.link._control
        pair.link._connection_lost(control, LinkLost("only this side knows"))
        await kit.eventually(lambda: not pair.link.suspended and pair.link.lanes == 2, "the link to be back")
        kit.ready_all(out)
        await out.committed()
        await incoming.committed()
        kit.same(source, target)
        await kit.still_works(pair)


async def test_strangers_that_greet_and_go_take_nobody_s_place() -> None:
    """Their links are suspended, as a dialler's is that may come back; whoever really comes goes before."""
    config = replace(PLAIN, max_links=4)
    async with joined(config, PLAIN) as pair:
        offer = kit.manifest("r")
        source, target = kit.Caches(offer, filled=True), kit.Caches(offer)
        out, incoming = await kit.granted(pair.link, pair.server, offer, source, target)
        for number in range(12):
            reader, writer = await asyncio.open_connection("127.0.0.1", pair.server.port)
            writer.write(wire.control_preamble(plain=True) + schema.encode(hello(b"", number.to_bytes(16, "big"))))
            await reader.readexactly(wire.PREAMBLE_BYTES + 50)
            writer.close()
        await kit.eventually(lambda: sum(link.suspended for link in pair.server.links) == 3, lambda: pair.server.links)
        async with await kit.start(config) as client:
            link = await client.connect("127.0.0.1", pair.server.port)
            await kit.move(link, pair.server, "honest")
        kit.ready_all(out)
        await out.committed()
        await incoming.committed()
        kit.same(source, target)


async def test_a_dialler_has_as_many_lanes_as_there_may_be() -> None:
    """Tickets that are out count: who asks again and again gets no more."""
    async with joined(PLAIN, PLAIN) as pair, contextlib.AsyncExitStack() as stack:
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.server.port)
        stack.callback(writer.close)
        writer.write(wire.control_preamble(plain=True) + schema.encode(replace(hello(b""), lanes=60)))
        await reader.readexactly(wire.PREAMBLE_BYTES)
        messages, tickets = schema.MessageReader(1 << 20), []
        for _ in range(64):
            writer.write(schema.encode(schema.Lanes(1)))
        writer.write(schema.encode(schema.Ask(bytes(16), 1)))
        while True:
            messages.feed(await asyncio.wait_for(reader.read(65536), 10))
            found = list(iter(messages.next, None))
            tickets += [message for message in found if isinstance(message, schema.LaneTicket)]
            if any(isinstance(message, schema.Answer) for message in found):
                break
        assert len(tickets) == 64
