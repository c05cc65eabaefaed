"""What a client of kvwire-bench orders, and how both ends carry it out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import kvwire
from kvwire.cli import compression
from kvwire.cli.content import CONTENTS, NOISE, content_bytes
from kvwire.cli.failure import Failure
from kvwire.cli.hosts.flow import Flow, Sink, Source
from kvwire.cli.hosts.tasks import finish
from kvwire.cli.memory import KvMemory, kv_bytes

T = TypeVar("T")

LONGEST_S = 86400.0
MOST_AT_ONCE = 16
MOST_TRANSFERS = 1 << 40
STALL_S = 60.0
"""A measurement in which nothing lands for so long is given up."""
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """For how long (`seconds`) or how many transfers, in which directions, how many transfers at once.

    `up`: from client to server. `prefill_s`: layers become ready evenly over this time. `scatter`: pages in random
    order. `compression`: of both directions, as the flag has it; `content`: of the KV cache.
    """

    up: bool
    down: bool
    seconds: float | None
    transfers: int | None
    at_once: int
    prefill_s: float
    scatter: bool
    compression: str = "auto"
    content: str = NOISE

    def show(self) -> str:
        """In words."""
        amount = f"{self.transfers} transfers" if self.seconds is None else f"{self.seconds:g} s"
        ways = " and ".join(way for way, wanted in (("up", self.up), ("down", self.down)) if wanted)
        return f"{ways}, {amount}, {self.at_once} at once"

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, value: object) -> Order:
        """`Failure` for what no client says."""

        def number(value: object, low: float, high: float, *kinds: type) -> bool:
            return isinstance(value, int | float) and type(value) in kinds and low <= value <= high

        names = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or set(value) != names:
            raise Failure(f"an order of {value!r:.100}; expected {', '.join(sorted(names))}")
        order = cls(**value)
        if not (
            all(type(flag) is bool for flag in (order.up, order.down, order.scatter))
            and (order.up or order.down)
            and (order.seconds is None) != (order.transfers is None)
            and (order.seconds is None or number(order.seconds, 0, LONGEST_S, int, float))
            and (order.transfers is None or number(order.transfers, 1, MOST_TRANSFERS, int))
            and number(order.at_once, 1, MOST_AT_ONCE, int)
            and number(order.prefill_s, 0, LONGEST_S, int, float)
            and type(order.compression) is str
            and order.content in CONTENTS
        ):
            raise Failure(f"an order that cannot be carried out: {value!r:.200}")
        return order

    def check_compression(self, specs: Sequence[kvwire.GroupSpec]) -> None:
        """`Failure` where a codec is unknown here, or does not take a group."""
        try:
            compression.check(self.compression, specs)
        except kvwire.ConfigError as error:
            raise Failure(str(error)) from None

    def memory_bytes(self, specs: Sequence[kvwire.GroupSpec], tokens: int, *, sends: bool, receives: bool) -> int:
        """What one end needs, with one memory more where it receives, so that they take turns.

        `Failure` for blocks that cannot be checked.
        """
        for spec in specs:
            if spec.block_bytes % 8:
                raise Failure(f"group {spec.name} has blocks of {spec.block_bytes} bytes; expected a multiple of 8")
        count = self.at_once * sends + (self.at_once + 1) * receives
        # Besides the pages: what their content is made of, a slot number and a key for each block, and a few blocks
        # while they are filled or checked; of what went through a lossy codec a whole segment.
        made_of = sum(content_bytes(spec, self.content) for spec in specs)
        beside = 16 * sum(len(spec.blocks_for(tokens)) for spec in specs) + 3 * max(spec.block_bytes for spec in specs)
        if receives and any(compression.recoders(self.compression, specs)):
            beside += max(len(spec.blocks_for(tokens)) * spec.block_bytes for spec in specs)
        return count * (kv_bytes(specs, tokens) + made_of) + beside * (sends + receives)

    def flows(
        self, link: kvwire.Link, specs: Sequence[kvwire.GroupSpec], tokens: int, *, sends: bool, receives: bool
    ) -> tuple[Source | None, Sink | None]:
        """The flows of one end. Takes a while: all of the memory is written."""

        def memories(count: int, seed: int) -> list[KvMemory]:
            seeds = [seed + number if self.scatter else None for number in range(count)]
            return [KvMemory(specs, tokens, scatter_seed, self.content) for scatter_seed in seeds]

        through = self.compression
        source = Source(link, memories(self.at_once, 1), self.prefill_s, through=through) if sends else None
        return source, Sink(memories(self.at_once + 1, 1 + MOST_AT_ONCE), through) if receives else None

    async def unless_stalled(self, work: Coroutine[Any, Any, T], flows: Sequence[Flow]) -> T:
        """The result of `work`. `Failure`, and the work is cancelled, when nothing has landed for STALL_S."""
        task = asyncio.ensure_future(work)
        seen, since = -1, time.monotonic()
        try:
            while not task.done():
                landed = sum(flow.landed_bytes for flow in flows)
                if landed != seen:
                    seen, since = landed, time.monotonic()
                elif time.monotonic() - since > STALL_S + self.prefill_s:
                    raise Failure(f"nothing has moved for {STALL_S:.0f} s; given up")
                await asyncio.wait((task,), timeout=LOOK_S)
            return await task
        finally:
            await finish(task)
