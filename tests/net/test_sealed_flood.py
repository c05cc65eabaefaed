"""Ten thousand half-open connections: places and memory are bounded, and who is honest gets in, during it and after."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvwire import Config, Link
from tests.net import kit
from tests.net.kit import Caches, manifest
from tests.net.peers import another_process, line
from tests.net.sealed import SEALED, tcp
from tests.net.test_sealed_strangers import client_hello

pytestmark = pytest.mark.usefixtures("nothing_left")

STRANGERS, WAVE = 10_000, 500
"""In all; and at once, which is as many as have a place or fit into the listener's backlog."""
HANDSHAKE_S = 0.3
PLACE_BYTES = 64 * 1024
OPENSSL_BYTES = 160 * 1024
"""What OpenSSL takes for a connection before anybody is authenticated: its state, a record, and the longest ClientHello
that it takes (131,396 bytes), for which it takes room as soon as it has its length."""
SOME_BYTES = 8 << 20
"""What an interpreter may take besides."""

LONGEST = b"\x16\x03\x01\x40\x00"
SAYINGS = (
    b"",
    SEALED,
    SEALED + client_hello(),
    SEALED + client_hello()[:-1],
    SEALED + LONGEST + b"\x01\x01\xff\xff" + bytes(0x3FFC) + (LONGEST + bytes(0x4000)) * 2,  # 48 KiB of 128 KiB
)


@dataclass
class Node:
    """A node in a process of its own."""

    port: int
    pid: int

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


async def half_open(port: int, says: bytes) -> None:
    """One that says so much and waits for its end."""
    sock = await tcp(port)
    loop = asyncio.get_running_loop()
    with sock, contextlib.suppress(ConnectionError):
        await loop.sock_sendall(sock, says)
        while await loop.sock_recv(sock, 65536):
            pass


async def honest(link: Link, number: int) -> None:
    offer = manifest(f"honest {number}")
    source = Caches(offer, filled=True)
    out = await link.offer(offer, source.at())
    kit.ready_all(out)
    await out.committed()


@asynccontextmanager
async def node_process() -> AsyncIterator[Node]:
    async with another_process("peer_process", "receive", "0", str(HANDSHAKE_S)) as process:
        yield Node(int(await line(process)), process.pid)


async def test_ten_thousand_half_open_connections() -> None:
    most = Config().max_handshakes
    async with node_process() as node, await kit.start(Config(lanes=1, connect_timeout_s=60)) as client:
        link = await client.connect("127.0.0.1", node.port)
        await honest(link, 0)
        before, descriptors = node.resident_bytes(), node.descriptors()
        seen_bytes = seen_descriptors = 0
        for wave in range(STRANGERS // WAVE):
            strangers = [
                asyncio.ensure_future(half_open(node.port, SAYINGS[number % len(SAYINGS)])) for number in range(WAVE)
            ]
            while not all(stranger.done() for stranger in strangers):
                seen_bytes = max(seen_bytes, node.resident_bytes())
                seen_descriptors = max(seen_descriptors, node.descriptors())
                await asyncio.sleep(0.02)
                if wave == 3 and not client.links[1:]:
                    await client.connect("127.0.0.1", node.port)  # which waits for its turn
            await asyncio.gather(*strangers)
        assert most // 2 < seen_descriptors - descriptors <= most + 8
        assert seen_bytes - before <= most * (PLACE_BYTES + OPENSSL_BYTES) + SOME_BYTES
        await honest(link, 1)  # who was there has noticed nothing
        await honest(await client.connect("127.0.0.1", node.port), 2)
        await kit.eventually(lambda: node.descriptors() <= descriptors + 4 * 3, node.descriptors)
