"""Whoever else may connect, or be connected to: each is told apart at once, and costs an honest peer nothing.

Nodes are plain where a test speaks with them in bytes of its own; `test_sealed_strangers.py` has the sealed ones.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest

from kvwire import (
    AddressNotFound,
    Closed,
    Config,
    ConfigError,
    ConnectRefused,
    ConnectTimeout,
    KvwireError,
    LinkLost,
    LocalError,
    ModeMismatch,
    Node,
    NotKvwire,
    ProtocolError,
    VersionMismatch,
    wire,
)
from tests.net import kit
from tests.net.kit import Caches, joined, manifest
from tests.net.peers import Handler, serving

pytestmark = pytest.mark.usefixtures("nothing_left")

PREAMBLE = wire.control_preamble(plain=True)
OTHER_VERSION = struct.pack("<4sHH", b"KVWC", 7, 1)
SEALED = wire.control_preamble(plain=False)
OTHER_FLAGS = struct.pack("<4sHH", b"KVWC", wire.WIRE_VERSION, 4)
LANE = struct.pack("<4sHH", b"KVWL", wire.WIRE_VERSION, 1)
NOISE = np.random.default_rng(4).bytes(100_000)
TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"  # what a TLS server says to what is no ClientHello

PLAIN = Config(lanes=2, plain=True)
NOT_RESUMED = Config(lanes=2, resume_timeout_s=0, plain=True)

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def session(role: wire.Role) -> wire.Session:
    link_id = b"" if role == "dialler" else bytes(range(16))
    return wire.Session(role, PLAIN, bytes(16), bytes(32), link_id, time.monotonic())


@contextlib.asynccontextmanager
async def stranger(node: Node) -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def hung_up(reader: asyncio.StreamReader) -> bytes:
    """What the node still said before it closed the connection."""
    try:
        return await reader.read()
    except ConnectionResetError:  # it closed with bytes of ours unread
        return b""


# --- strangers that dial --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: kv\r\n\r\n", b""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b""),
        (b"SSH-2.0-OpenSSH_9.6\r\n", b""),
        (NOISE, b""),
        (bytes(8), b""),
        (OTHER_VERSION, PREAMBLE),  # so that it can say which versions there are
        (SEALED, PREAMBLE),  # and which mode
        (OTHER_FLAGS, b""),
        (LANE + bytes(wire.JOIN_BYTES), b""),
        (PREAMBLE + b"\xff\xff\xff\x7f", None),
        (PREAMBLE + struct.pack("<I", 5) + b"hello", None),
    ],
    ids=["http", "http2", "ssh", "noise", "zeros", "version", "mode", "flags", "lane", "huge", "no-msgpack"],
)
async def test_strangers_are_hung_up_on(says: bytes, answer: bytes | None) -> None:
    async with joined(PLAIN, PLAIN) as pair:
        async with stranger(pair.server) as (reader, writer):
            writer.write(says)
            said = await hung_up(reader)
        if answer is None:  # it did begin as kvwire: it is told what is wrong
            assert b"goodbye" in said
        elif len(says) <= wire.PREAMBLE_BYTES + wire.JOIN_BYTES:
            assert said == answer
        await kit.eventually(lambda: len(pair.server.links) == 1, "no link of the stranger's")
        await kit.still_works(pair)


async def test_tls_is_hung_up_on() -> None:
    context = ssl.create_default_context()
    async with joined() as pair:
        with pytest.raises((ssl.SSLError, OSError)):
            await asyncio.open_connection("127.0.0.1", pair.server.port, ssl=context, server_hostname="kv.example")
        await kit.still_works(pair)


async def test_strangers_that_say_nothing_or_too_little() -> None:
    async with joined(replace(PLAIN, handshake_timeout_s=0.1), PLAIN) as pair:
        for says in (
            b"",
            PREAMBLE[:5],
            LANE,
            LANE + bytes(20),
            PREAMBLE,
            PREAMBLE + session("dialler").data_to_send()[:9],
        ):
            async with stranger(pair.server) as (reader, writer):
                writer.write(says)
                said = await hung_up(reader)
                assert said.startswith(PREAMBLE) or not says.startswith(PREAMBLE)
        await kit.eventually(lambda: len(pair.server.links) == 1, "no link of the stranger's")
        await kit.still_works(pair)


async def test_strangers_that_close_half_way() -> None:
    async with joined(PLAIN, PLAIN) as pair:
        for says in (
            b"",
            b"KVW",
            LANE[:8],
            LANE + bytes(30),
            PREAMBLE,
            PREAMBLE + session("dialler").data_to_send()[:30],
        ):
            async with stranger(pair.server) as (reader, writer):
                writer.write(says)
                writer.write_eof()
                await hung_up(reader)
        await kit.eventually(lambda: len(pair.server.links) == 1, "no link of the stranger's")
        await kit.still_works(pair)


@contextlib.asynccontextmanager
async def raw_dialler(node: Node) -> AsyncIterator[tuple[wire.Session, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A control connection that has greeted, in the test's hands."""
    async with stranger(node) as (reader, writer):
        peer = session("dialler")
        writer.write(PREAMBLE + peer.data_to_send())
        assert await reader.readexactly(wire.PREAMBLE_BYTES) == PREAMBLE
        while peer.peer is None:
            peer.receive_data(time.monotonic(), await reader.read(4096))
        yield peer, reader, writer


async def test_a_peer_that_closes_half_way_through_an_offer() -> None:
    offer = manifest("half", kit.FIVE)
    async with joined(NOT_RESUMED, PLAIN) as pair:
        async with raw_dialler(pair.server) as (peer, _, writer):
            peer.offer(time.monotonic(), offer, timeout_s=1, deadline_s=1, klass=1)
            data = peer.data_to_send()
            writer.write(data[: len(data) // 2])
            await kit.eventually(lambda: len(pair.server.links) == 2, "its link")
        await kit.eventually(lambda: len(pair.server.links) == 1, "its link to go")
        assert not pair.server._offers
        await kit.still_works(pair)


async def test_a_peer_that_offers_and_goes() -> None:
    offer = manifest("gone")
    target = Caches(offer)
    async with joined(NOT_RESUMED, PLAIN) as pair:
        async with raw_dialler(pair.server) as (peer, _, writer):
            for request_id in ("gone", "unseen"):
                peer.offer(time.monotonic(), manifest(request_id), timeout_s=1, deadline_s=1, klass=1)
            writer.write(peer.data_to_send())
            incoming = await pair.server.accept()
            await incoming.grant(target.at())
        with pytest.raises(LinkLost, match="control connection"):
            await incoming.committed()
        with pytest.raises(LinkLost):
            _ = [layer async for layer in incoming.layers()]
        assert (incoming.state, target.untouched()) == ("aborted", True)
        target.check_free()
        await kit.still_works(pair)  # accept skips the offer that nobody waits for any more


async def test_a_peer_that_says_hello_and_good_bye_in_one_breath() -> None:
    async with joined(PLAIN, PLAIN) as pair:
        peer = session("dialler")
        hello = peer.data_to_send()
        peer.close(time.monotonic(), "changed my mind")
        async with stranger(pair.server) as (reader, writer):
            writer.write(PREAMBLE + hello + peer.data_to_send())
            assert (await hung_up(reader)).startswith(PREAMBLE)
        await kit.eventually(lambda: len(pair.server.links) == 1, "its link to go")
        await kit.still_works(pair)


async def test_a_peer_that_asks_for_lanes_and_opens_none() -> None:
    async with joined(PLAIN, PLAIN) as pair, raw_dialler(pair.server) as (peer, _, writer):
        for _ in range(4):
            peer.request_lanes(time.monotonic(), 64)
        peer.offer(time.monotonic(), manifest("after"), timeout_s=1, deadline_s=1, klass=1)
        writer.write(peer.data_to_send())
        incoming = await pair.server.accept()  # so the link still reads
        assert incoming.manifest.request_id == "after"
        await incoming.refuse()


async def test_more_half_open_connections_than_places() -> None:
    """Whoever comes gets the place of one that has got least far, and need not wait until its time is over."""
    config = Config(max_handshakes=4, handshake_timeout_s=60)
    server, client = await kit.serve("127.0.0.1", 0, config), await kit.start(Config(lanes=1))
    async with server, client, contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(stranger(server)) for _ in range(10)]
        assert server._acceptor is not None
        strangers = server._acceptor.strangers
        await kit.eventually(lambda: len(strangers) == 4, "all places to be taken")
        assert len(server._tasks) <= 6  # four strangers, the one that accepts, the one that watches over identities
        assert not server.links
        ends = [asyncio.create_task(hung_up(reader)) for reader, _ in streams]
        link = await client.connect("127.0.0.1", server.port)  # in the place of one that says nothing
        await kit.move(link, server, "honest")
        await kit.eventually(lambda: sum(end.done() for end in ends) >= 6, "the others to be hung up on")
        assert len(strangers) <= 4
    assert [await end for end in ends] == [b""] * 10


# --- strangers that are dialled -------------------------------------------------------------------------------


def saying(data: bytes, *, then_wait: bool = False) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(wire.PREAMBLE_BYTES)
        writer.write(data)
        if then_wait:
            await reader.read()
            await asyncio.sleep(60)
        elif data.startswith(PREAMBLE):
            await reader.read(4096)  # what is unread would turn the end into a reset

    return handle


def answer() -> bytes:
    """What an acceptor says to a hello."""
    peer = session("acceptor")
    peer.receive_data(time.monotonic(), session("dialler").data_to_send())
    return peer.data_to_send()


HELLO = answer()


@pytest.mark.parametrize(
    ("says", "error", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", NotKvwire, "this is HTTP, not kvwire; it begins with b'HTTP/1.1'"),
        (TLS_ALERT, NotKvwire, r"not kvwire; it begins with b'\\x15\\x03\\x01"),
        (NOISE[:50], NotKvwire, "this is something else, not kvwire"),
        (b"no", NotKvwire, "not kvwire; it begins with b'no"),
        (OTHER_VERSION, VersionMismatch, "the peer speaks wire version 7, this side 1"),
        (SEALED, ModeMismatch, "this side is plain and the peer is sealed; nothing was sent"),
        (OTHER_FLAGS, ProtocolError, "a link with flags 0x4; known are 0x1 and 0x2"),
        (LANE, NotKvwire, "answered as a lane"),
        (b"", LinkLost, "127.0.0.1 port .* closed the connection after 0 bytes"),
        (PREAMBLE[:5], LinkLost, "closed the connection after 5 bytes"),
        (PREAMBLE, LinkLost, "closed the c"),
        (PREAMBLE + HELLO[:20], LinkLost, "closed the c"),
        (PREAMBLE + HELLO, LinkLost, "closed the c"),  # a session, and then no lanes
        (PREAMBLE + struct.pack("<I", 1 << 30), ProtocolError, "1073741824 bytes; at most 4096"),
        (PREAMBLE + struct.pack("<I", 1) + b"\x05", ProtocolError, "a control message is a int; expected a map"),
        (PREAMBLE + session("dialler").data_to_send(), ProtocolError, "the acceptor names the link"),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) else None,
)
async def test_dialling_strangers(says: bytes, error: type[KvwireError], message: str) -> None:
    node = await kit.start(NOT_RESUMED)
    async with node, serving(saying(says)) as port:
        with pytest.raises(error, match=message):
            await node.connect("127.0.0.1", port)
        assert not node.links
        assert not node._watched


async def test_dialling_what_never_answers() -> None:
    node = await kit.start(replace(PLAIN, connect_timeout_s=0.1))
    for says in (b"", PREAMBLE[:3], PREAMBLE, PREAMBLE + HELLO[:20], PREAMBLE + HELLO):
        async with serving(saying(says, then_wait=True)) as port:
            with pytest.raises(ConnectTimeout, match=rf"127.0.0.1 port {port} (took|greeted).* within 0.1 s"):
                await node.connect("127.0.0.1", port)
            assert not node.links
    async with serving(saying(PREAMBLE + HELLO)) as port:  # and hangs up, each time that the link is dialled anew
        with pytest.raises(ConnectTimeout, match=r"within 0\.1 s"):
            await node.connect("127.0.0.1", port)
        assert not node.links
    await node.close()


async def test_lanes_that_cannot_be_opened() -> None:
    """The session is there, but its tickets lead nowhere: no lanes, and that is said."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(wire.PREAMBLE_BYTES)
        if first == PREAMBLE:
            peer = session("acceptor")
            writer.write(PREAMBLE + peer.data_to_send())
            while True:
                data = await reader.read(4096)
                if not data:
                    return
                peer.receive_data(time.monotonic(), data)
                while (event := peer.next_event()) is not None:
                    if isinstance(event, wire.HelloDone | wire.LanesWanted):
                        peer.issue_ticket(time.monotonic(), bytes(range(32)))
                writer.write(peer.data_to_send())

    node = await kit.start(replace(PLAIN, connect_timeout_s=0.3))
    async with node, serving(handle) as port:
        with contextlib.suppress(ConnectTimeout):  # unless a lane was up for a moment when the time was over
            await node.connect("127.0.0.1", port)


async def test_addresses_that_do_not_resolve() -> None:
    async with await kit.start() as node:
        for host in ("no-such-host.invalid", "a..b", "x" * 80, "nul\0nul", "300.1.1.1.1"):
            with pytest.raises(AddressNotFound, match="does not resolve"):
                await node.connect(host, 7878)
            with pytest.raises(AddressNotFound, match="does not resolve"):
                await kit.serve(host, 0)


async def test_ports_that_cannot_be() -> None:
    async with await kit.start() as node:
        for port in (0, -1, 65536, "7878", None):
            with pytest.raises(ConfigError, match=r"port is .*; expected 1 to 65535"):
                await node.connect("127.0.0.1", port)  # type: ignore[arg-type]
        for port in (-1, 65536, "7878"):
            with pytest.raises(ConfigError, match=r"port is .*; expected 0 to 65535"):
                await kit.serve("127.0.0.1", port)  # type: ignore[arg-type]
        with pytest.raises(Closed, match="this node does not listen"):
            _ = node.port


async def test_a_port_that_is_taken() -> None:
    async with await kit.serve("127.0.0.1", 0) as node:
        with pytest.raises(LocalError, match=f"cannot listen at 127.0.0.1 port {node.port}: Address already in use"):
            await kit.serve("127.0.0.1", node.port)


async def test_an_address_that_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with await kit.start() as node:
        with pytest.raises(ConnectRefused, match=f"nothing listens at 127.0.0.1 port {port}") as caught:
            await node.connect("127.0.0.1", port)
        assert caught.value.retriable


async def test_an_address_that_swallows() -> None:
    """A listener whose backlog is full: the kernel drops what comes, as a firewall would."""
    async with await kit.start(Config(connect_timeout_s=0.2)) as node:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, contextlib.ExitStack() as stack:
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(deaf.getsockname())
            port = deaf.getsockname()[1]
            with pytest.raises(ConnectTimeout, match=f"127.0.0.1 port {port} did not answer within 0.2 s") as caught:
                await node.connect("127.0.0.1", port)
            assert isinstance(caught.value, TimeoutError)
