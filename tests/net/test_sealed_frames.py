"""Frames that are not what was sealed, not where it was sealed for, or not what was granted: none reaches memory."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kvwire import Incoming, IntegrityError, Node, wire
from kvwire._ext import cipher, frame
from kvwire._ext.seal import Opener, Sealer
from kvwire.wire import schema
from tests.net import kit
from tests.net.kit import Caches, manifest, through_proxy
from tests.net.proxy import Way
from tests.net.sealed import CONFIG, LANES, Log, Peer, join, logged, peer_of, rest

pytestmark = pytest.mark.usefixtures("nothing_left")

HEADER, TAG = 48, 16
CELL = 13 * 4096
"""Bytes of a segment of `kit.manifest()`: one cell."""


@dataclass
class Lane:
    """One that a peer has joined, and what it would seal under and open with."""

    sock: socket.socket
    secrets: wire.LaneSecrets
    sealer: Sealer = field(init=False)
    opener: Opener = field(init=False)

    def __post_init__(self) -> None:
        send, receive = self.secrets
        self.sealer, self.opener = Sealer(cipher.find(), send), Opener(cipher.find(), receive)

    def cell(self, segment: int = 0, size: int = CELL, cell: int = 0, sealer: Sealer | None = None) -> bytes:
        """A frame with a cell, sealed as the next one."""
        return (sealer or self.sealer).seal("data", 1, segment, cell, content(segment)[:size].ljust(size, b"\0"))

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)


def content(segment: int) -> bytes:
    return bytes((segment + i * i) & 0xFF for i in range(CELL))


@dataclass
class Scene:
    """A peer whose transfer has been granted, nothing of which has come."""

    node: Node
    peer: Peer
    incoming: Incoming
    target: Caches
    log: Log

    async def lane(self) -> Lane:
        """One more."""
        await self.peer.say(schema.encode(schema.Lanes(1)))
        (ticket,) = await self.peer.tickets(1)
        first, secrets = self.peer.session.use_ticket(ticket, bytes(range(32)))
        assert secrets is not None
        return Lane(await join(self.node.port, first), secrets)

    async def closed(self) -> str:
        """Why the node has ended a lane."""
        event = await self.peer.hear(wire.LaneClosed)
        assert isinstance(event, wire.LaneClosed)
        return event.reason

    async def commits(self) -> None:
        """What is honest still arrives, over a lane of its own."""
        lane = await self.lane()
        with lane.sock:
            await lane.say(lane.cell(0) + lane.cell(1))
            await self.incoming.committed()
            for segment in (0, 1):
                assert self.target.rows("full", segment).tobytes() == content(segment)


@asynccontextmanager
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    offer = manifest()
    target = Caches(offer)
    with logged(tmp_path / "audit.jsonl") as log:
        async with await kit.serve(config=CONFIG, audit=log.audit) as node, peer_of(node) as peer:
            await peer.say()
            await peer.hear(wire.HelloDone)
            assert peer.session.offer(time.monotonic(), offer, timeout_s=60, deadline_s=60, klass=1) == 1
            await peer.say()
            await peer.tickets(LANES)
            incoming = await node.accept()
            await incoming.grant(target.at())
            await peer.hear(wire.Granted)
            yield Scene(node, peer, incoming, target, log)


# --- one lane ---------------------------------------------------------------------------------------------------------


def flipped(at: int) -> Callable[[Lane, Lane], bytes]:
    def made(lane: Lane, _: Lane) -> bytes:
        data = bytearray(lane.cell())
        data[at] ^= 1
        return bytes(data)

    return made


def backwards(lane: Lane, _: Lane) -> bytes:
    first, second = lane.cell(0), lane.cell(1)
    return second + first


def in_the_epoch_after_next(lane: Lane, _: Lane) -> bytes:
    sealer = Sealer(cipher.find(), lane.secrets[0], (1 << 30, 1, 3600.0))
    sealer.seal("data", 99, 0, 0, b"")
    sealer.seal("data", 99, 0, 0, b"")
    return lane.cell(sealer=sealer)


def renumbered(lane: Lane, _: Lane) -> bytes:
    lane.cell(0)
    data = bytearray(lane.cell(1))
    data[16:24] = bytes(8)
    return bytes(data)


TAGGED, OUTSIDE = "a wrong tag", "a cell outside the grant"
DATA: dict[str, tuple[Callable[[Lane, Lane], bytes], str]] = {
    "magic flipped": (flipped(0), "a wrong magic"),
    "version flipped": (flipped(4), "a wrong version"),
    "type flipped": (flipped(5), "a wrong type"),
    "flags flipped": (flipped(6), "a wrong version"),
    "codec flipped": (flipped(7), "a wrong length"),
    "epoch flipped": (flipped(8), "a wrong epoch"),
    "segment flipped": (flipped(12), TAGGED),
    "sequence flipped": (flipped(16), "a wrong sequence"),
    "transfer flipped": (flipped(24), TAGGED),
    "cell flipped": (flipped(32), TAGGED),
    "plain length flipped": (flipped(36), "a wrong length"),
    "wire length flipped": (flipped(40), "a wrong length"),
    "checksum flipped": (flipped(44), "a wrong checksum"),
    "first byte flipped": (flipped(HEADER), TAGGED),
    "last byte flipped": (flipped(HEADER + CELL - 1), TAGGED),
    "tag flipped": (flipped(HEADER + CELL), TAGGED),
    "end of the tag flipped": (flipped(-1), TAGGED),
    "backwards": (backwards, "a wrong sequence"),
    "renumbered": (renumbered, TAGGED),
    "of another lane": (lambda lane, other: other.cell(), TAGGED),
    "the other direction's": (lambda lane, _: lane.cell(sealer=Sealer(cipher.find(), lane.secrets[1])), TAGGED),
    "cut and merged": (lambda lane, _: lane.cell(0)[:-100] + lane.cell(1), TAGGED),
    "plain": (lambda lane, _: frame.encode("data", 0, 1, 0, 0, content(0)), "a wrong epoch"),
    "in the epoch after next": (in_the_epoch_after_next, "a wrong epoch"),
    "too long for its cell": (lambda lane, _: lane.cell(size=CELL + 1), OUTSIDE),
    "too short for its cell": (lambda lane, _: lane.cell(size=CELL - 1), OUTSIDE),
    "a cell that is not there": (lambda lane, _: lane.cell(cell=1), OUTSIDE),
    "a segment that is not there": (lambda lane, _: lane.cell(segment=2), OUTSIDE),
}


@pytest.mark.parametrize("data", DATA)
async def test_a_frame_that_is_not_taken(data: str, tmp_path: Path) -> None:
    make, reason = DATA[data]
    async with scene(tmp_path) as there:
        lane, other = await there.lane(), await there.lane()
        with lane.sock, other.sock:
            await lane.say(make(lane, other))
            assert reason in await there.closed()
            assert there.target.untouched()
            assert there.incoming.progress == (0, 2)
        assert len(there.log.events("tag_failure")) == (reason == TAGGED)
        await there.commits()


async def test_a_frame_that_comes_again(tmp_path: Path) -> None:
    async with scene(tmp_path) as there:
        lane = await there.lane()
        with lane.sock:
            await lane.say(lane.cell(0) * 2)
            assert "a wrong sequence" in await there.closed()
        assert there.incoming.progress == (1, 2)
        await there.commits()


async def test_what_a_node_says_is_not_taken_back(tmp_path: Path) -> None:
    """Its acknowledgements come back to it as if they were the peer's: each direction has a key of its own."""
    async with scene(tmp_path) as there:
        lane = await there.lane()
        with lane.sock:
            await lane.say(lane.cell(0))
            said = await asyncio.get_running_loop().sock_recv(lane.sock, 4096)
            found = lane.opener.open(said, CELL)
            assert (found[0], found[2:3]) == ("ok", ("ack",))
            mirrored = bytearray(said)
            mirrored[16] = 1  # the sequence that is expected
            await lane.say(bytes(mirrored))
            assert TAGGED in await there.closed()
        assert len(there.log.events("tag_failure")) == 1
        await there.commits()


@pytest.mark.parametrize("end", [1, HEADER - 1, HEADER, HEADER + CELL, HEADER + CELL + TAG - 1])
async def test_a_frame_that_is_cut(end: int, tmp_path: Path) -> None:
    """It is not taken, and the lane's end is no fault."""
    async with scene(tmp_path) as there:
        lane = await there.lane()
        with lane.sock:
            await lane.say(lane.cell(0)[:end])
            lane.sock.shutdown(socket.SHUT_WR)
            await there.closed()
        assert there.target.untouched()
        assert not there.log.events("tag_failure")
        assert not there.node.links[0]._lanes.faults
        await there.commits()


async def test_of_another_link(tmp_path: Path) -> None:
    """Two links, the same lane and incarnation, the same peer: the bytes of one, after JOIN, in the other."""
    async with scene(tmp_path) as there, peer_of(there.node) as second:
        await second.say()
        await second.hear(wire.HelloDone)
        await second.say()
        ticket, _ = await second.tickets(2)
        spliced, secrets = second.session.use_ticket(ticket, bytes(32))
        assert secrets is not None
        lane = await there.lane()
        with lane.sock, await join(there.node.port, spliced) as other:
            await lane.say(lane.cell(0, sealer=Sealer(cipher.find(), secrets[0])))
            assert TAGGED in await there.closed()
            await asyncio.get_running_loop().sock_sendall(other, lane.cell(0))
            closed = await second.hear(wire.LaneClosed)
            assert isinstance(closed, wire.LaneClosed)
            assert TAGGED in closed.reason
        assert there.target.untouched()
        assert len(there.log.events("tag_failure")) == 2
        await there.commits()


async def test_three_in_a_minute_end_the_link(tmp_path: Path) -> None:
    async with scene(tmp_path) as there:
        (link,) = there.node.links
        for _ in range(3):
            lane = await there.lane()
            with lane.sock:
                await lane.say(flipped(-1)(lane, lane))
                await rest(lane.sock)
        error = await asyncio.wait_for(link.wait_closed(), kit.PATIENCE_S)
        assert isinstance(error, IntegrityError)
        with pytest.raises(IntegrityError, match=r"3 lanes .* went wrong, the last by a frame with a wrong tag"):
            await there.incoming.committed()
        goodbye = (await there.peer.messages())[-1]
        assert isinstance(goodbye, schema.Goodbye)
        assert there.target.untouched()
        assert len(there.log.events("tag_failure")) == 3
        (down,) = there.log.events("link_down")
        assert (down["error"], "went wrong" in down["reason"]) == ("IntegrityError", True)


# --- two nodes and what is between them -------------------------------------------------------------------------------

BOTH_WAYS = pytest.mark.parametrize("way", ["up", "down"])


async def test_a_bit_on_its_way_over_a_lane(tmp_path: Path) -> None:
    """The lane is replaced, and everything arrives as it was."""
    with logged(tmp_path / "log") as log:
        async with through_proxy(audit=log.audit) as (pair, proxy):
            proxy.flip("lane", "up")
            await kit.move(pair.link, pair.server, "r")
            await kit.eventually(lambda: log.events("tag_failure"), "the node to notice")
            await kit.eventually(lambda: pair.link.lanes == 2 == pair.back.lanes, lambda: pair.link)
            await kit.still_works(pair)
            (fault,) = log.events("tag_failure")
            assert fault.keys() >= {"link", "lane", "incarnation", "tenant", "fingerprint", "address"}
            assert not log.events("link_down")


@BOTH_WAYS
async def test_a_bit_on_its_way_over_control(way: Way, tmp_path: Path) -> None:
    """Plain, nobody would notice. Here the connection is given up, and the link resumed over another one."""
    with logged(tmp_path / "log") as log:
        async with through_proxy(audit=log.audit) as (pair, proxy):
            there = await kit.half_sent(pair, manifest("r", kit.FIVE))
            before = proxy.accepted
            proxy.flip("control", way)
            await kit.eventually(lambda: proxy.accepted > before, "another connection")  # ping, or pong
            await kit.finish(*there)
            await kit.eventually(lambda: pair.link.lanes == 2 and not pair.link.suspended, lambda: pair.link)
            await kit.still_works(pair)
            assert not log.events("link_down", "link_refused")
