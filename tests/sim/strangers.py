"""Those who are no node, or behave like none: noise, greetings that stop half-way, what was seen on the wire before,
and somebody with a certificate who does not have the keys that its HELLO promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

from kvwire import KvwireError, sockets, wire
from kvwire.control import Stream, open_control
from kvwire.wire import schema
from kvwire.wire.keys import SEALED_SUITE
from tests.sim.network import Connection, Host
from tests.sim.world import PORT, Process

PATIENCE_S = 20.0
WHOLE_JOIN_BYTES = wire.PREAMBLE_BYTES + wire.JOIN_BYTES
LANE_AT, INCARNATION_AT, RANDOM_AT, MAC_AT = 24, 28, 32, 64
"""Where they stand in preamble and JOIN."""

GOODBYE = schema.encode(schema.Goodbye("closed", "never mind"))


async def bother(process: Process, target: Host, rng: random.Random) -> None:
    """One connection from this process's host: some first bytes, and then nothing."""
    if not process.world.config.plain and process.node is not None and rng.random() < 0.5:
        await _pretend(process, target, rng)
    else:
        await _say(process, target, rng.choice(_first_bytes(process, target, rng)))


def _first_bytes(process: Process, target: Host, rng: random.Random) -> list[bytes]:
    plain = process.world.config.plain
    greeting = wire.control_preamble(plain=plain)
    join = wire.preamble.preamble(wire.ConnectionKind.LANE, plain=plain)
    lanes = [lane for lane in process.world.network.connections if lane.hosts[1] is target and _was_joined(lane)]
    first = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        greeting[:5],
        greeting,
        greeting + GOODBYE,
        greeting + b"\xff" * 60,
        wire.control_preamble(plain=not plain),
        wire.preamble.preamble(wire.ConnectionKind.CONTROL, plain=plain, version=99),
        join + rng.randbytes(wire.JOIN_BYTES),
        rng.choice(lanes).first[:WHOLE_JOIN_BYTES] if lanes else join,
    ]
    if not plain and process.node is not None:
        tls = process.node._guard.tls(server=False)
        assert tls is not None
        tls.handshake(b"")
        first.append(greeting + tls.pending())
    return first


def _was_joined(lane: Connection) -> bool:
    """Whether that is a lane whose ticket has been used."""
    joined = lane.kind == "lane" and lane.ends[1].read_bytes >= WHOLE_JOIN_BYTES
    return joined and not lane.uninvited and not lane.faults


async def _say(process: Process, target: Host, first: bytes) -> None:
    with contextlib.suppress(OSError, KvwireError):
        sock = await _dial(target)
        with sock:
            await process.loop.sock_sendall(sock, first)
            async with _patience():
                while await process.loop.sock_recv(sock, 4096):
                    pass


async def _dial(target: Host) -> Any:
    sock: Any = await sockets.dial(target.address, PORT, PATIENCE_S)
    sock.end.connection.uninvited = True
    return sock


async def _pretend(process: Process, target: Host, rng: random.Random) -> None:
    """Greet with somebody's share, and then: nothing, a FINISHED made up, the peer's own, or a good-bye."""
    assert process.node is not None
    hello = schema.Hello(
        wire.WIRE_VERSION,
        [SEALED_SUITE],
        rng.randbytes(32),
        *(rng.randbytes(16), rng.randbytes(32), b""),
        "nobody",
        *(1, 4, 1 << 16),
    )
    how = rng.choice(("nothing", "nothing", "made up", "reflected", "good-bye"))
    with contextlib.suppress(OSError, KvwireError):
        sock = await _dial(target)
        with sock:
            async with _patience():
                stream = await open_control(sock, process.node._guard.tls(server=False))
                await stream.write(schema.encode(hello))
                theirs = await _finished(stream)
                process.world.counts["impostor"] += 1
                if how == "good-bye":
                    await stream.write(GOODBYE)
                elif how != "nothing":
                    mac = theirs.mac if how == "reflected" else rng.randbytes(32)
                    await stream.write(schema.encode(schema.Finished(mac)))
                while await stream.read():
                    pass


async def _finished(stream: Stream) -> schema.Finished:
    """What the other side says after its HELLO."""
    while True:
        length = int.from_bytes(await stream.read_exactly(wire.LENGTH_BYTES), "little")
        message = schema.decode(await stream.read_exactly(length))
        if isinstance(message, schema.Finished):
            return message


def _patience() -> asyncio.Timeout:
    return asyncio.timeout(PATIENCE_S)


async def forge(process: Process, lane: Connection, rng: random.Random) -> None:
    """A JOIN that is on its way, not as it was made: with another bit, another random, or for another lane."""
    join = bytearray(lane.first[:WHOLE_JOIN_BYTES])
    at = rng.choice((LANE_AT, INCARNATION_AT, RANDOM_AT, MAC_AT))
    join[at] ^= 1
    await _say(process, lane.hosts[1], bytes(join))
