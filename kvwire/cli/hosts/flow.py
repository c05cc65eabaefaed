"""One direction of a measurement: a source that keeps transfers in flight over a link, and the sink that takes them.

What is counted is what landed: whole transfers by their receipts, and of those under way the cells that the receiver
has placed. A source counts what it knows to have landed, so the two ends agree but for what an acknowledgement takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import kvwire
from kvwire.cli import compression
from kvwire.cli.compression import Coding
from kvwire.cli.hosts.channel import DATA, MODEL
from kvwire.cli.hosts.tasks import finish, together
from kvwire.cli.memory import KvMemory, kv_bytes, steps

MOST_DAMAGE = 20
"""Sentences about wrong bytes that are passed on; one is enough to fail."""
GRACE_S = 1.0
"""How long transfers that are under way when the time is up may take to end by themselves; then they are aborted."""


class Flow:
    """What both ends of one direction count. `memories`: alike, one for each transfer under way."""

    def __init__(self, memories: Sequence[KvMemory]) -> None:
        self.memories = memories
        self.transfer_bytes = kv_bytes(memories[0].specs, memories[0].tokens)
        self.transfers = 0
        self.aborted = 0
        self.cpu_s = 0.0
        """CPU seconds of this process while it measured, once that is over."""
        self._under_way: set[kvwire.Incoming | kvwire.Outgoing] = set()

    @property
    def landed_bytes(self) -> int:
        """Bytes that are in the receiver's slots."""
        landed = float(self.transfers * self.transfer_bytes)
        for transfer in self._under_way:
            cells, total = transfer.progress
            landed += self.transfer_bytes * cells / total if total else 0
        return round(landed)


class Source(Flow):
    """The sending end: every memory is offered again as soon as its receipt is there.

    `prefill_s`: layers become ready evenly over this time; 0: all at once. `klass`: of all transfers. `through`: what
    they go through; None: what the node's configuration says.
    """

    def __init__(
        self,
        link: kvwire.Link,
        memories: Sequence[KvMemory],
        prefill_s: float,
        klass: int = 1,
        through: str | None = None,
    ) -> None:
        super().__init__(memories)
        for number, memory in enumerate(memories):
            memory.fill(number)
        self.seconds = 0.0
        self.measured_bytes = 0
        self._measured_transfers = 0
        self._link = link
        self._prefill_s = prefill_s
        self._klass = klass
        self._through = None if through is None else compression.choice(through)
        self._coding = Coding()
        self._left: float = 0
        self._offered = 0
        self._over = asyncio.Event()
        self._tails_s: list[float] = []

    def stop(self) -> None:
        """End the measurement now."""
        self._over.set()

    async def run(self, seconds: float | None, transfers: int | None) -> None:
        """Send for so long, or so many transfers. Raises what ended a transfer, if that was not the time."""
        self._left = float("inf") if transfers is None else transfers
        begun, cpu_begun_s = time.monotonic(), time.process_time()
        cycles = asyncio.ensure_future(together(*(self._cycle(number) for number in range(len(self.memories)))))
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait((cycles, over), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            self._over.set()
            self.seconds, self.measured_bytes = time.monotonic() - begun, self.landed_bytes
            self._measured_transfers = self.transfers
            self.cpu_s = time.process_time() - cpu_begun_s
            await asyncio.wait((cycles,), timeout=GRACE_S)
            for outgoing in list(self._under_way):
                outgoing.abort_nowait("the time is up")
            await cycles
        finally:
            await finish(over, cycles)

    async def _cycle(self, number: int) -> None:
        memory = self.memories[number]
        while not self._over.is_set() and self._left > 0:
            self._left -= 1
            self._offered += 1
            offer = kvwire.Manifest.of(f"{DATA}-{self._offered}-{number}", MODEL, memory.tokens, memory.specs)
            outgoing = await self._link.offer(offer, memory.placement(), klass=self._klass, compression=self._through)
            self._under_way.add(outgoing)
            try:
                if self._over.is_set():  # nothing of it has left yet
                    outgoing.abort_nowait("the time is up")
                await self._make_ready(outgoing, memory)
                receipt = await outgoing.committed()
                self.transfers += 1
                self._coding += Coding.of(receipt)
                self._tails_s.append(receipt.tail_s or 0.0)
            except kvwire.Closed:
                if not self._over.is_set():
                    raise
                self.aborted += 1
            finally:
                self._under_way.discard(outgoing)

    async def _make_ready(self, outgoing: kvwire.Outgoing, memory: KvMemory) -> None:
        begun, layers = time.monotonic(), steps(memory.specs)
        for index, step in enumerate(layers, 1):
            pause_s = begun + self._prefill_s * index / len(layers) - time.monotonic()
            if pause_s > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), pause_s)
            for group, layer in step:
                outgoing.ready(group, layer)

    def result(self) -> dict[str, Any]:
        """For the other end: `bytes` landed in `seconds`, transfers, `cpu_s`, what of whole transfers went coded;
        `tail_s`, median, of a paced source."""
        return {
            "bytes": self.measured_bytes,
            "seconds": self.seconds,
            "transfers": self._measured_transfers,
            "aborted": self.aborted,
            "tail_s": statistics.median(self._tails_s) if self._tails_s and self._prefill_s else None,
            "cpu_s": self.cpu_s,
            **self._coding.facts(),
        }


class Sink(Flow):
    """The receiving end: whatever is offered goes into the memory that has been free for longest.

    With more memories than the source has, they take turns, so what a memory holds is overwritten by something else.
    `through`: what transfers come through, which the check has to know where that is lossy.
    """

    def __init__(self, memories: Sequence[KvMemory], through: str = "off") -> None:
        super().__init__(memories)
        self._through = through
        self._holds: dict[int, int] = {}
        self._free: asyncio.Queue[int] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cpu_begun_s: float | None = None
        for number, memory in enumerate(memories):
            memory.poison()
            self._free.put_nowait(number)

    def take(self, incoming: kvwire.Incoming) -> None:
        """Receive an offer of the source."""
        if self._cpu_begun_s is None:
            self._cpu_begun_s = time.process_time()
        task = asyncio.ensure_future(self._receive(incoming))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _receive(self, incoming: kvwire.Incoming) -> None:
        number = await self._free.get()
        try:
            source = int(incoming.manifest.request_id.rpartition("-")[2])
            if not 0 <= source < len(self.memories):
                raise ValueError(f"no source has number {source}")
            self._holds.pop(number, None)
            await incoming.grant(self.memories[number].placement())
            self._under_way.add(incoming)
            await incoming.committed()
            self.transfers += 1
            self._holds[number] = source
        except (kvwire.KvwireError, ValueError) as error:
            # Withdrawn, aborted, or not what was ordered: the memory is free again, and the counts tell.
            self.aborted += 1
            with contextlib.suppress(kvwire.Closed):
                await incoming.refuse(str(error))
        finally:
            self._under_way.discard(incoming)
            self._free.put_nowait(number)

    async def end(self) -> None:
        """Wait for what the source still had under way; it ends by itself, as the source has ended."""
        if self._cpu_begun_s is not None:
            self.cpu_s = time.process_time() - self._cpu_begun_s
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE_S)
        for task in self._tasks:
            task.cancel()

    def check(self) -> dict[str, Any]:
        """For the other end: how many memories were compared byte by byte, and what was wrong in them."""
        damage = [
            wrong
            for number, source in self._holds.items()
            for wrong in self.memories[number].damage(source, self._through)
        ]
        return {
            "transfers": self.transfers,
            "checked": len(self._holds),
            "damage": damage[:MOST_DAMAGE],
            "cpu_s": self.cpu_s,
        }
