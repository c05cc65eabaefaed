"""A peer with right keys that lies, by hand, to a real node; and what must not change by that.

`poisoned.Memory` is the node's.
"""

import asyncio
import contextlib
import secrets
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from kvwire import Config, Incoming, KvwireError, Link, LinkLost, Manifest, Node, Outgoing, Policy, wire
from kvwire._ext import cipher, frame
from kvwire._ext.seal import Opener, Sealer
from kvwire.control import Stream, open_control
from kvwire.security.schedule import Agreement
from kvwire.security.tls import Tls
from kvwire.types import BlockRange, Grant
from kvwire.wire import schema
from tests.net import kit
from tests.net.kit import Caches
from tests.net.poisoned import BLOCKS, CELL, Memory
from tests.net.sealed import Log, Peer, join, logged, tcp

SIZES = (CELL, len(BLOCKS) * 4096 - CELL)
GRANT = Grant(((BlockRange(BLOCKS.start, BLOCKS.stop),),), CELL)
CONFIG = Config(lanes=2, max_transfers=4, max_message_bytes=65536)
BOTH = Policy(tenants={"acme", "globex"})
M = TypeVar("M", bound=schema.Message)


def offer(request_id: str = "of the liar") -> Manifest:
    return kit.manifest(request_id, attachment=True)


def content(segment: int, cell: int) -> bytes:
    """What the liar sends where it is honest."""
    return bytes((7 * segment + 3 * cell + i * i) & 0xFF for i in range(SIZES[cell]))


# --- the liar ---------------------------------------------------------------------------------------------------------


class Lane:
    """One that the liar has joined."""

    def __init__(self, sock: Any, ticket: wire.Ticket, keys: wire.LaneSecrets | None) -> None:
        self.sock, self.number, self.incarnation = sock, ticket.lane, ticket.incarnation
        self._sealer = None if keys is None else Sealer(cipher.find(), keys[0])
        self._opener = None if keys is None else Opener(cipher.find(), keys[1])
        self._heard = b""
        self.sent = self.received = 0

    def frame(self, kind: Any, transfer: int = 0, segment: int = 0, cell: int = 0, payload: bytes = b"") -> bytes:
        """The next one."""
        self.sent += 1
        if self._sealer is not None:
            return self._sealer.seal(kind, transfer, segment, cell, payload)
        return frame.encode(kind, self.sent - 1, transfer, segment, cell, payload)

    def cell(self, segment: int, cell: int, *, transfer: int = 1, data: bytes | None = None) -> bytes:
        return self.frame("data", transfer, segment, cell, content(segment, cell) if data is None else data)

    def ack(self, next_seq: int, lane: int | None = None, incarnation: int | None = None, times: int = 1) -> bytes:
        which = self.number if lane is None else lane, self.incarnation if incarnation is None else incarnation
        return self.frame("ack", payload=struct.pack("<IIQ", *which, next_seq) * times)

    async def say(self, *frames: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # it may have had enough after the first ones
            await asyncio.get_running_loop().sock_sendall(self.sock, b"".join(frames))

    async def hear(self) -> tuple[str, int, int, int, bytes]:
        """The next frame of the node's: kind, transfer, segment, cell, payload."""
        while True:
            found = self._open()
            if found is not None:
                return found
            async with asyncio.timeout(kit.PATIENCE_S):
                data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)
            assert data, "the node has closed the lane"
            self._heard += data

    def _open(self) -> tuple[str, int, int, int, bytes] | None:
        if self._opener is not None:
            opened = self._opener.open(self._heard, 1 << 18)
            assert opened[0] in ("ok", "incomplete"), opened
            if len(opened) == 2:
                return None
            self._heard, news = self._heard[opened[1] :], opened[2:]
        else:
            said, size = frame.check(self._heard, self.received, 1 << 18)
            assert said in ("ok", "incomplete"), said
            if said == "incomplete":
                return None
            kind, segment, transfer, cell = struct.unpack_from("<5xB6xI8xQI", self._heard)
            news = ("data", "ack", "receipt")[kind - 1], transfer, segment, cell, self._heard[48:size]
            self._heard = self._heard[size:]
        self.received += 1
        assert news[0] != "data" or (news[1] == 2 and news[2] < 2 and news[3] < 2), "not granted, and sent"
        return news

    async def cells(self, count: int) -> list[tuple[int, int, int]]:
        """Transfer, segment and cell of the next ones that the node sends."""
        found: list[tuple[int, int, int]] = []
        while len(found) < count:
            kind, *where, _ = await self.hear()
            if kind == "data":
                found.append((where[0], where[1], where[2]))
        return found

    async def settled(self) -> None:
        """Until the node has dealt with all that was said here. A receipt that means nothing has it acknowledged."""
        await self.say(self.frame("receipt"))
        while True:
            kind, *_, payload = await self.hear()
            if kind == "ack" and (self.number, self.incarnation, self.sent) in struct.iter_unpack("<IIQ", payload):
                return


class Ear(Peer):
    """What is said to it, whatever its session makes of that."""

    def __init__(self, stream: Stream, session: wire.Session) -> None:
        super().__init__(stream, session)
        self.listens_to(stream)

    def listens_to(self, stream: Stream) -> None:
        """From the first message on."""
        self.stream = stream
        self.heard.clear()
        self._reader = schema.MessageReader(1 << 20)
        self._said: list[schema.Message] = []
        self.all_said: list[schema.Message] = []

    def said_since(self, count: int) -> list[schema.Message]:
        """But for what comes by the clock."""
        return [each for each in self.all_said[count:] if not isinstance(each, schema.Ping)]

    async def _listen(self) -> None:
        data = await asyncio.wait_for(self.stream.read(), kit.PATIENCE_S)
        assert data, "the node hung up"
        self._reader.feed(data)
        news = list(iter(self._reader.next, None))
        self._said += news
        self.all_said += news
        self.session.receive_data(time.monotonic(), data)
        while (event := self.session.next_event()) is not None:
            self.heard.append(event)

    async def hear(self, *kinds: type[wire.Event]) -> wire.Event:
        async with asyncio.timeout(kit.PATIENCE_S):
            while not any(isinstance(event, kinds) for event in self.heard):
                await self._listen()
        found = next(event for event in self.heard if isinstance(event, kinds))
        self.heard.remove(found)
        return found

    async def message(self, kind: type[M]) -> M:
        """The next one of this kind."""
        async with asyncio.timeout(kit.PATIENCE_S):
            while not (found := [each for each in self._said if isinstance(each, kind)]):
                await self._listen()
        self._said.remove(found[0])
        return found[0]


@dataclass
class Liar:
    """An authenticated peer of a node's, which says what it is told to say."""

    node: Node
    memory: Memory
    stack: contextlib.AsyncExitStack
    peer: Ear
    link: Link
    """The node's end."""
    log: Log
    honest: Link
    """Another tenant's link to the node, at its own end."""
    lanes: list[Lane] = field(default_factory=list)
    forgiven: int = 0
    """Connections that it knows to have been refused."""

    async def say(self, *messages: schema.Message | bytes) -> None:
        data = b"".join(each if isinstance(each, bytes) else schema.encode(each) for each in messages)
        with contextlib.suppress(ConnectionError):  # it may have had enough after the first ones
            await self.peer.say(data)

    async def ticket(self) -> wire.Ticket:
        await self.say(schema.Lanes(1))
        (ticket,) = await self.peer.tickets(1)
        return ticket

    async def lane(self) -> Lane:
        """One more."""
        ticket = await self.ticket()
        first, keys = self.peer.session.use_ticket(ticket, secrets.token_bytes(32))
        sock = self.stack.enter_context(await join(self.node.port, first))
        self.lanes.append(Lane(sock, ticket, keys))
        await kit.eventually(lambda: self.has(self.lanes[-1]), "the lane")
        return self.lanes[-1]

    def has(self, lane: Lane) -> bool:
        """Whether the node has this lane."""
        return any((it["lane"], it["incarnation"]) == (lane.number, lane.incarnation) for it in self.link.lane_stats())

    async def answers(self) -> None:
        """The node has dealt with all that was said to it."""
        await self.say(schema.Ask(bytes(16), 1))
        assert (await self.peer.message(schema.Answer)).outcome == "unknown"

    # --- as a sender --------------------------------------------------------------------------------------------------

    async def offers(self, request_id: str = "of the liar") -> Incoming:
        self.peer.session.offer(time.monotonic(), offer(request_id), timeout_s=60, deadline_s=60, klass=1)
        await self.peer.say()
        return await taken(self.node, request_id)

    async def granted(self) -> tuple[Incoming, Lane]:
        """A transfer of its own, the number 1, of which the node wants `BLOCKS`."""
        incoming = await self.offers()
        await incoming.grant(self.memory.placement(), cell_bytes=CELL)
        await self.peer.hear(wire.Granted)
        return incoming, await self.lane()

    async def sends(self, lane: Lane, *cells: tuple[int, int]) -> None:
        """These of its cells, as they should be."""
        for segment, cell in cells:
            self.memory.allow(segment, cell, content(segment, cell))
        await lane.say(*(lane.cell(segment, cell) for segment, cell in cells))
        await lane.settled()

    async def commits(self, incoming: Incoming, lane: Lane, attachment: bytes = b"\xc0") -> None:
        """All of it, honestly."""
        await self.sends(lane, (0, 0), (0, 1), (1, 0), (1, 1))
        await lane.say(lane.frame("data", 1, 2, 0, attachment))
        await asyncio.wait_for(incoming.committed(), kit.PATIENCE_S)

    # --- as a receiver ------------------------------------------------------------------------------------------------

    async def offered(self) -> "asyncio.Task[Outgoing]":
        """The node has a transfer, the number 2, for the liar; it is not granted."""
        manifest = kit.manifest("for the liar")
        task = asyncio.ensure_future(self.link.offer(manifest, Caches(manifest, filled=True, seed=5).at()))
        self.stack.push_async_callback(cancelled, task)
        event = await self.peer.hear(wire.Offered)
        assert isinstance(event, wire.Offered)
        assert event.transfer == 2
        return task

    async def grants(self) -> Outgoing:
        """As much of it as is granted the other way round."""
        task = await self.offered()
        self.peer.session.grant(time.monotonic(), 2, GRANT)
        await self.peer.say()
        return await asyncio.wait_for(task, kit.PATIENCE_S)

    # --- after a loss -------------------------------------------------------------------------------------------------

    async def loses_its_connection(self) -> None:
        self.peer.stream.sock.close()
        await kit.eventually(lambda: self.link.suspended, "the loss to be noticed")
        for lane in self.lanes:
            lane.sock.close()
        self.lanes.clear()
        self.peer.session.lost(time.monotonic(), LinkLost("it hung up"))

    async def comes_back(self, *, names: bytes | None = None) -> None:
        """Greets over another connection. `names`: what it says in RESUME; None: what it has under way."""
        stream, agreement = await connection(self.node, self.stack)
        self.peer.listens_to(stream)
        self.peer.session.resume(time.monotonic(), secrets.token_bytes(32), agreement)
        await self.peer.say()
        await self.peer.hear(wire.Resumed)
        said = messages(self.peer.session.data_to_send())
        await self.say(*(each for each in said if names is None or not isinstance(each, schema.Resume)))
        if names is not None:
            await self.say(schema.Resume(names))

    # --- the others ---------------------------------------------------------------------------------------------------

    async def half(self, request_id: str) -> Callable[[], Awaitable[None]]:
        """An honest transfer of which half has landed; what brings it to its end."""
        manifest = kit.manifest(request_id)
        source = Caches(manifest, filled=True, seed=3)
        task = asyncio.create_task(self.honest.offer(manifest, source.at()))
        incoming = await taken(self.node, request_id)
        slots = self.memory.for_others(manifest)
        await incoming.grant({"full": self.memory.others.at(slots)})
        out = await task
        self.memory.allow_others(slots, source, 0)
        out.ready("full", 0)
        await incoming.wait_layer("full", 0)

        async def finish() -> None:
            self.memory.allow_others(slots, source, 1)
            out.ready("full", 1)
            async with asyncio.timeout(kit.PATIENCE_S):
                await out.committed()
                await incoming.committed()

        return finish


def messages(data: bytes) -> list[schema.Message]:
    reader = schema.MessageReader(1 << 20)
    reader.feed(data)
    return list(iter(reader.next, None))


async def taken(node: Node, request_id: str) -> Incoming:
    """This offer, whatever else is on offer."""
    async with asyncio.timeout(kit.PATIENCE_S):
        while (incoming := await node.accept()).manifest.request_id != request_id:
            pass
    return incoming


async def cancelled(task: "asyncio.Task[Outgoing]") -> None:
    task.cancel()
    with contextlib.suppress(KvwireError, asyncio.CancelledError):
        await task


async def connection(node: Node, stack: contextlib.AsyncExitStack) -> tuple[Stream, Agreement | None]:
    """A control connection up to where HELLO is to be said, and half of its keys, if it is to have some."""
    sock = stack.enter_context(await tcp(node.port))
    if node.config.plain:
        return await open_control(sock, None), None
    who = kit.keys(name="liar")
    stream = await open_control(sock, Tls(who.context(False), who.certificate, server=False))
    assert stream.tls is not None
    return stream, Agreement("dialler", (stream.tls.own, stream.tls.peer), ("acme", "acme"), secrets.token_bytes(32))


@asynccontextmanager
async def liar(tmp_path: Path, *, plain: bool) -> AsyncIterator[Liar]:
    """One whose link is up, and has no lane."""
    config = replace(CONFIG, plain=plain)
    ours: dict[str, Any] = {} if plain else {"identity": kit.keys(), "policy": BOTH}
    theirs: dict[str, Any] = {} if plain else {"identity": kit.keys("globex"), "policy": BOTH}
    memory = Memory()
    async with contextlib.AsyncExitStack() as stack:
        log = stack.enter_context(logged(tmp_path / "audit.jsonl"))
        node = await stack.enter_async_context(await kit.serve(config=config, audit=log.audit, **ours))
        client = await stack.enter_async_context(await kit.start(config, **theirs))
        honest = await client.connect("127.0.0.1", node.port)
        for number in range(2):  # so that its transfers have other numbers than the liar's
            manifest = kit.manifest(f"not wanted {number}")
            task, incoming = await kit.offered(honest, node, manifest, Caches(manifest))
            await incoming.refuse()
            await asyncio.wait([task])
            assert task.exception()
        stream, agreement = await connection(node, stack)
        now = time.monotonic()
        session = wire.Session("dialler", config, b"p" * 16, secrets.token_bytes(32), b"", now, agreement, lanes=0)
        peer = Ear(stream, session)
        await peer.say()
        await peer.hear(wire.HelloDone)
        await peer.say()
        link = node._by_id[session.link_id]
        await kit.eventually(lambda: link._greeted.done(), "the link to be up")
        yield Liar(node, memory, stack, peer, link, log, honest)
    memory.check()
    memory.close()
