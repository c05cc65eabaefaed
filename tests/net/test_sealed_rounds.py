"""How many round trips a sealed link takes before it carries anything, over a path where each takes its time."""

import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from kvwire import Config, Link, Node
from kvwire.dialler import REDIAL_FIRST_S
from tests.net import kit
from tests.net.kit import Caches, manifest
from tests.net.proxy import proxied

pytestmark = pytest.mark.usefixtures("nothing_left")

DELAY_S = 0.2
"""One way: half a round trip. As much as all computation may take in a test that counts."""


def ways(begun: float, besides_s: float = 0.0) -> int:
    """How many times bytes have crossed the path one after another since then."""
    return int((time.monotonic() - begun - besides_s) / DELAY_S)


@asynccontextmanager
async def far_apart(lanes: int) -> AsyncIterator[tuple[Node, Node, int]]:
    """Two nodes, and the port by which one reaches the other the long way round."""
    config = Config(lanes=lanes)
    async with await kit.serve(config=config) as server, await kit.start(config) as client:
        with proxied(server.port) as proxy:
            proxy.delay_s = DELAY_S
            yield server, client, proxy.port


async def counted(count: Callable[[], Awaitable[list[int]]], expected: list[int]) -> None:
    """So many, unless the machine stood still meanwhile, which it does not do every time."""
    seen = []
    for _ in range(12):
        seen.append(await count())
        if seen[-1] == expected:
            return
    pytest.fail(f"{seen}, not {expected}")


@pytest.mark.parametrize("lanes", [1, 8])
async def test_three_round_trips_to_the_first_byte(lanes: int) -> None:
    """TLS, HELLO, and the offer, after which bytes leave; lanes cost nothing besides, however many."""
    offer = manifest()

    async def count() -> list[int]:
        source, target = Caches(offer, filled=True), Caches(offer)
        async with far_apart(lanes) as (server, client, port):
            begun, seen = time.monotonic(), []
            link = await client.connect("127.0.0.1", port)
            assert link.lanes == lanes
            seen.append(ways(begun))
            out, incoming = await kit.granted(link, server, offer, source, target)
            seen.append(ways(begun))
            kit.ready_all(out)
            await kit.eventually(lambda: incoming.progress[0], incoming)
            seen.append(ways(begun))
            await out.committed()
            kit.same(source, target)
            return [*seen, ways(begun)]

    await counted(count, [4, 6, 7, 8])


async def test_a_further_lane_takes_one_round_trip() -> None:
    """For its ticket; frames follow its first bytes at once."""

    async def count() -> list[int]:
        async with far_apart(2) as (server, client, port):
            link = await up(server, client, port)
            begun = time.monotonic()
            link.engine_link.close_lane(0)
            await kit.eventually(lambda: link.lanes == 1, "its end")
            await kit.eventually(lambda: link.lanes == 2, "another one")
            return [ways(begun, REDIAL_FIRST_S)]

    await counted(count, [2])


async def test_a_link_is_resumed_in_two_and_its_lanes_with_it() -> None:
    async def count() -> list[int]:
        async with far_apart(2) as (server, client, port):
            link = await up(server, client, port)
            control = link._control
            assert control is not None
            begun = time.monotonic()
            control._sock.shutdown(socket.SHUT_RDWR)
            await kit.eventually(lambda: link._control not in (None, control) and link.lanes == 2, link)
            return [ways(begun)]

    await counted(count, [4])


async def up(server: Node, client: Node, port: int) -> Link:
    """A link, known on both sides."""
    link = await client.connect("127.0.0.1", port)
    await kit.eventually(lambda: server.links[0].lanes == 2, server.links)
    return link
