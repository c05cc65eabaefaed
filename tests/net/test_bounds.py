"""Peers that take less than is made ready, or nothing at all: memory, descriptors and queues stay inside their bounds.

`KVWIRE_STORM_S` is how long each test lasts: 3 s in the suite, 60 s in `make faults`.
"""

import asyncio
import json
import os
import signal
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.net import kit
from tests.net.flood_process import CONFIG, LANES
from tests.net.peers import another_process, line, say, stopped
from tests.net.proxy import Proxy, proxied

STORM_S = float(os.environ.get("KVWIRE_STORM_S", "3"))
SLOW_BPS = 1e6
LONG_S, SHORT_S, RESUME_S = 300.0, 1.0, 1.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# What a link may take beyond what it had when its lanes were up and one transfer had gone through. In bytes; the names
# are those of kvwire/_ext/core.pxd and kvwire/wire/session.py.
MAX_CELL, CLAIM_BYTES_MAX, CONTROL_BYTES = 256 * 1024, 256 * 1024, 4096
BATCH_FRAMES, HEADER_BYTES, TAG_BYTES = 16, 48, 16
LOG_RUNS, ENTRY_BYTES, RUN_BYTES, MAX_QUEUED_FACTOR = 4096, 80, 72, 4
LANE_BYTES = (
    CONFIG.stream_bytes
    + CONTROL_BYTES
    + (2 * CONTROL_BYTES + CLAIM_BYTES_MAX + MAX_CELL + BATCH_FRAMES * (HEADER_BYTES + TAG_BYTES))  # rest
    + LOG_RUNS * ENTRY_BYTES
)
RUNS = CONFIG.max_queued_runs + LANES * LOG_RUNS  # what a lane had sent comes back when it is lost
MESSAGE_BYTES = (2 * MAX_QUEUED_FACTOR + 1) * CONFIG.max_message_bytes  # waiting, on their way, and one that comes
TRANSFER_BYTES = 32 * 1024  # a small manifest, its tables and its tasks, in Python
ALLOWED_BYTES = (
    LANES * LANE_BYTES
    + 2 * RUNS * RUN_BYTES  # a heap that doubles
    + MESSAGE_BYTES
    + 2 * CONFIG.max_transfers * TRANSFER_BYTES  # under way, and given up and not yet drained
)


class Watched:
    """A process of `flood_process`, and the most memory and descriptors that it was seen with once it was warm."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.warm_bytes = self.bytes = self._resident_bytes()
        self.warm_descriptors = self.descriptors = self._descriptors()

    def _resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE_BYTES

    def _descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def look(self) -> None:
        self.bytes = max(self.bytes, self._resident_bytes())
        self.descriptors = max(self.descriptors, self._descriptors())

    async def seen(self) -> dict[str, Any]:
        """What it has seen itself."""
        say(self.process)
        found: dict[str, Any] = json.loads(await line(self.process))
        return found

    async def check(self, who: str) -> dict[str, Any]:
        """What it has seen itself; nothing of it is more than it may be."""
        seen = await self.seen()
        grown = self.bytes - self.warm_bytes
        print(f"{who}: {self.warm_bytes} bytes, grown by {grown} of {ALLOWED_BYTES} allowed; {seen}")
        assert self.bytes <= 1.1 * (self.warm_bytes + ALLOWED_BYTES)
        assert self.descriptors <= self.warm_descriptors + 2 * LANES  # old lanes beside new ones
        assert seen["queued_runs"] <= RUNS
        assert seen["message_bytes"] <= MAX_QUEUED_FACTOR * CONFIG.max_message_bytes
        assert seen["events"] == 0  # they are dealt with as they come
        return seen


def end(role: str, port: int, deadline_s: float) -> AbstractAsyncContextManager[Process]:
    return another_process("flood_process", role, str(port), str(deadline_s), str(RESUME_S))


@asynccontextmanager
async def flooding(deadline_s: float) -> AsyncIterator[tuple[Watched, Watched, Proxy]]:
    """Sender and receiver that have begun, and the proxy between them."""
    async with end("receive", 0, deadline_s) as receiving:
        with proxied(int(await line(receiving))) as proxy:
            async with end("send", proxy.port, deadline_s) as sending:
                for process in (sending, receiving):
                    assert await line(process) == "warm"
                sender, receiver = Watched(sending), Watched(receiving)
                for process in (sending, receiving):
                    say(process)
                yield sender, receiver, proxy


async def look_at(seconds: float, *watched: Watched) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.sleep(0.02)
        for each in watched:
            each.look()


@pytest.mark.timeout(STORM_S + 60)
async def test_a_slow_receiver() -> None:
    """1 MB/s pass, and far more is made ready."""
    async with flooding(LONG_S) as (sender, receiver, proxy):
        proxy.rate_Bps = SLOW_BPS
        await look_at(STORM_S, sender, receiver)
        sent, received = await sender.check("sender"), await receiver.check("receiver")
        assert sent["queued_runs"] > CONFIG.max_queued_runs / 2  # so that the bound was felt
        assert sent["refused"]
        assert received["committed"]
        assert sent["failed"] == received["failed"] == 0


@pytest.mark.timeout(STORM_S + 60)
@pytest.mark.parametrize("silent", ["sender", "receiver"])
async def test_a_silent_peer(silent: str) -> None:
    """Stopped, engine and all: every transfer ends with its deadline; when the peer goes on, so do they."""
    async with flooding(SHORT_S) as (sender, receiver, proxy):
        stands, goes = (sender, receiver) if silent == "sender" else (receiver, sender)
        await look_at(0.5, goes)
        proxy.rate_Bps = SLOW_BPS
        async with asyncio.timeout(kit.PATIENCE_S):
            while (await goes.seen())["waiting"] < CONFIG.max_transfers / 2:
                await look_at(0.01, goes)
        await stopped(stands.process)
        proxy.rate_Bps = None
        await look_at(STORM_S, goes)
        alone = await goes.check(f"the one that is not the silent {silent}")
        assert alone["failed"]
        assert alone["longest_s"] < SHORT_S + 10  # shared machines stall
        stands.process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(kit.PATIENCE_S):
            while (await goes.seen())["committed"] <= alone["committed"]:
                await look_at(0.1, goes, stands)
        await goes.check("in the end")
        await stands.check(f"the silent {silent}")


@pytest.mark.timeout(STORM_S + 90)
async def test_senders_that_are_killed() -> None:
    """One after the other, in the middle of whatever they do: nothing of them stays, and the next one is served."""
    rng, killed = np.random.default_rng(5), 0
    async with flooding(LONG_S) as (first, receiver, proxy):
        first.process.kill()
        proxy.rate_Bps = 10 * SLOW_BPS  # so that there is a middle
        until = time.monotonic() + STORM_S
        before = await receiver.seen()
        while time.monotonic() < until:
            async with end("send", proxy.port, LONG_S) as sending:
                assert await line(sending) == "warm"
                say(sending)
                await look_at(float(rng.uniform(0, 0.5)), receiver)
                sending.kill()
                killed += 1
        async with asyncio.timeout(kit.PATIENCE_S):
            while (found := await receiver.seen())["waiting"]:
                await look_at(0.1, receiver)
        await receiver.check("receiver")
        assert found["committed"] >= before["committed"] + killed
        assert found["failed"]
        print(f"{killed} senders were killed")
