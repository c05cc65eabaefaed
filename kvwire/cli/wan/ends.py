"""The processes at the two ends of an emulated link: a sender in namespace a, a receiver in b.

Each answers calls that come over a pipe, one at a time, as the processes of `kvwire-bench loopback` do; KV goes over
the link only. Every transfer has a number of its own, and the bytes that belong to it: what is left in a memory from
another one is seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import kvwire
from kvwire.cli import compression
from kvwire.cli.compression import Coding
from kvwire.cli.content import NOISE
from kvwire.cli.hosts.flow import Sink, Source
from kvwire.cli.hosts.tasks import finish
from kvwire.cli.loopback.peer import CALL_TIMEOUT_S, Peer, identity_in
from kvwire.cli.loopback.peer import Side as Process
from kvwire.cli.memory import KvMemory, steps
from kvwire.cli.wan.reported import REPORT_S, Reported
from kvwire.cli.wan.series import Series
from kvwire.emulate import Side
from kvwire.emulate.hosts import Hosts

ONE = "one"
"""What the request id of a single transfer begins with; those of a flow are `Source`'s."""
SAMPLE_S = 0.02
"""How often it is noted what has landed, and how many lanes are up."""
SETTLED_S = 0.3
"""A fresh link has its lanes when their number has not changed for so long, and for five round trips."""
LONGEST_SETTLING_S = 10.0
REPORT_WITHIN_S = 30.0
"""A link that is lost has none until it is resumed."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One transfer as its sender saw it, by CLOCK_MONOTONIC, Python's work included."""

    nbytes: int
    begun_s: float
    """Before the offer."""
    granted_s: float
    ended_s: float
    """With the receipt."""
    tail_s: float
    """From the last layer ready to the receipt."""
    coding: Coding

    @property
    def elapsed_s(self) -> float:
        return self.ended_s - self.begun_s

    @property
    def goodput_bps(self) -> float:
        return 8 * self.nbytes / self.elapsed_s


@dataclass(frozen=True, slots=True)
class Saturated:
    """What a sender saw while it kept a link full."""

    lanes: Series
    """How many were up."""
    suspensions: int
    """How often the link was lost, its control connection that is, and resumed."""


class End(Process):
    """What both have: memories by name."""

    def __init__(self) -> None:
        super().__init__()
        self.memories: dict[str, list[KvMemory]] = {}

    def hold(
        self,
        name: str,
        specs: Sequence[kvwire.GroupSpec],
        tokens: int,
        count: int,
        scatter_seed: int | None,
        content: str,
    ) -> None:
        """Allocates `count` memories for KV caches of one shape."""
        seeds = [None if scatter_seed is None else scatter_seed + index for index in range(count)]
        self.memories[name] = [KvMemory(specs, tokens, seed, content) for seed in seeds]
        for memory in self.memories[name]:
            memory.poison()  # and all of its pages are there


class Sender(End):
    """The prefill side."""

    def connect(self, host: str, port: int, config: kvwire.Config, keys: Path | None) -> None:
        """Makes the node, and dials."""
        self.node = self.call(kvwire.Node.start(config, identity=identity_in(keys)))
        self.address = host, port
        self._dial(self.node)

    def _dial(self, node: kvwire.Node) -> None:
        self.link = self.call(node.connect(*self.address))
        self.reported: list[Reported] = []
        self.call(self._listen())

    async def _listen(self) -> None:
        self.came = asyncio.Event()

        def take(report: kvwire.EgressReport) -> None:
            self.reported.append(Reported.of(report))
            self.came.set()

        self.link.on_report(take, REPORT_S)

    def reports(self) -> list[Reported]:
        """Waits for the next report; all since the last call, and before them the last one of then."""
        return self.call(self._reports())

    async def _reports(self) -> list[Reported]:
        self.came.clear()
        async with asyncio.timeout(REPORT_WITHIN_S):
            await self.came.wait()
        found, self.reported = self.reported, self.reported[-1:]
        return found

    def dial_again(self) -> None:
        """Closes the link and makes another one; returns when it has its lanes."""
        assert self.node is not None
        self.call(self.link.close())
        begun = time.monotonic()
        self._dial(self.node)
        settled_s = SETTLED_S + 5 * (time.monotonic() - begun)
        since, seen = time.monotonic(), self.link.lanes
        give_up = since + LONGEST_SETTLING_S
        while (now := time.monotonic()) < min(since + settled_s, give_up):
            if self.link.lanes != seen:
                since, seen = now, self.link.lanes
            time.sleep(SAMPLE_S)

    def lanes(self) -> tuple[int, list[str]]:
        """How many are up, and the congestion controls that they have."""
        return self.link.lanes, sorted(set(self.link.lane_congestion.values()))

    def busiest_port(self) -> int:
        """The port, on this side, of the connection with most bytes in its socket: a lane of a link that is full."""
        rows = [row.split() for row in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
        queued = [(int(row[4].partition(":")[0], 16), int(row[1].partition(":")[2], 16)) for row in rows]
        return max(queued)[1]

    def fill(self, name: str, numbers: Sequence[int]) -> None:
        """Writes what belongs to these transfers into the memories of this name, in turn."""
        for memory, number in zip(self.memories[name], numbers, strict=True):
            memory.fill(number)

    def automatic(self) -> dict[str, Any]:
        """What the link's automatic codecs have decided by now."""
        return compression.automatic(self.link)

    def send(
        self,
        name: str,
        index: int,
        klass: int = 1,
        prefill_s: float = 0.0,
        within_s: float = CALL_TIMEOUT_S,
        through: str | None = None,
    ) -> Timed:
        """Moves one memory; its layers become ready evenly over `prefill_s`. Returns with the receipt. `through`: what
        it goes through, where that is not what the configuration says."""
        memory = self.memories[name][index]
        layers = steps(memory.specs)
        tag = kvwire.ModelTag(name, layout=kvwire.layout_digest(memory.specs))
        manifest = kvwire.Manifest.of(f"{ONE}-{name}-{index}", tag, memory.tokens, memory.specs)
        begun_s = time.monotonic()
        codecs = None if through is None else compression.choice(through)
        outgoing = self.call(self.link.offer(manifest, memory.placement(), klass=klass, compression=codecs))
        granted_s = time.monotonic()
        for number, step in enumerate(layers, 1):
            if prefill_s:
                time.sleep(max(0.0, granted_s + prefill_s * number / len(layers) - time.monotonic()))
            for group, layer in step:
                outgoing.ready(group, layer)
        receipt = outgoing.wait_committed(within_s)
        ended_s = time.monotonic()
        assert receipt.tail_s is not None
        return Timed(receipt.bytes, begun_s, granted_s, ended_s, receipt.tail_s, Coding.of(receipt))

    def saturate(self, name: str, klass: int) -> None:
        """Begins to keep the link full with the memories of this name."""
        self.call(self._saturate(name, klass))

    async def _saturate(self, name: str, klass: int) -> None:
        self.source = Source(self.link, self.memories[name], 0.0, klass)
        self._flowing = asyncio.ensure_future(self.source.run(None, None))
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> Saturated:
        lanes: Series = []
        suspensions, suspended = 0, False
        while not self._flowing.done():
            lanes.append((time.monotonic(), self.link.lanes))
            suspensions += self.link.suspended and not suspended
            suspended = self.link.suspended
            await asyncio.sleep(SAMPLE_S)
        return Saturated(lanes, suspensions)

    def ease(self) -> Saturated:
        """Ends it. Raises what ended a transfer meanwhile."""
        return self.call(self._ease())

    async def _ease(self) -> Saturated:
        self.source.stop()
        await self._flowing
        return await self._watching


class Receiver(End):
    """The decode side."""

    def __init__(self) -> None:
        super().__init__()
        self.sink: Sink | None = None
        self.landed: Series = []
        self._tasks: set[asyncio.Future[None]] = set()

    def listen(self, host: str, config: kvwire.Config, keys: Path | None) -> int:
        """Serves, and takes whatever is offered; says at which port."""
        self.node = self.call(kvwire.Node.serve(host, 0, config, identity=identity_in(keys)))
        self._spawn(self._take_all(self.node))
        return self.node.port

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Has it done on the loop."""

        async def begin() -> None:
            task = asyncio.ensure_future(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self.call(begin())

    async def _take_all(self, node: kvwire.Node) -> None:
        while True:
            incoming = await node.accept()
            word, _, place = incoming.manifest.request_id.partition("-")
            if word == ONE:
                name, _, index = place.rpartition("-")
                await incoming.grant(self.memories[name][int(index)].placement())
            elif self.sink is not None:
                self.sink.take(incoming)
            else:
                await incoming.refuse("no flow was begun")

    def damage(self, name: str, index: int, number: int, through: str) -> list[str]:
        """What is wrong in a memory after transfer `number`, whose receipt the sender has. `through`: what that went
        through."""
        return self.memories[name][index].damage(number, through)

    def begin(self, name: str, through: str) -> None:
        """Whatever a `Source` offers goes into the memories of this name; what lands is noted from now on."""
        self.sink = Sink(self.memories[name], through)
        self.landed = []
        self._spawn(self._note_landed(self.sink))

    async def _note_landed(self, sink: Sink) -> None:
        while self.sink is sink:
            self.landed.append((time.monotonic(), sink.landed_bytes))
            await asyncio.sleep(SAMPLE_S)

    def end_flow(self) -> tuple[Series, dict[str, Any]]:
        """What had landed when, and what `Sink.check` found. The source has ended."""
        assert self.sink is not None
        sink, self.sink = self.sink, None
        self.call(sink.end())
        return self.landed, sink.check()

    def end(self) -> None:
        async def stop() -> None:
            await finish(*self._tasks)

        self.call(stop())
        super().end()


class Ends:
    """Both processes and the link between them. A context manager: on exit both have ended.

    `keys`: a directory that `sealing.fresh_keys` made; None: the link is plain.
    """

    def __init__(self, hosts: Hosts, config: kvwire.Config, keys: Path | None) -> None:
        self._peers: list[Peer] = []
        self._numbers = 0
        try:
            self.receiver = self._start(hosts, "b", Receiver)
            self.sender = self._start(hosts, "a", Sender)
            host = hosts.addresses[1]
            port = self.receiver.call("listen", host, config, keys and keys / "decode")
            self.sender.call("connect", host, port, config, keys and keys / "prefill")
        except BaseException:
            self.close()
            raise

    def _start(self, hosts: Hosts, side: Side, role: type[End]) -> Peer:
        with hosts.entered(side):  # a process is on the host of the thread that starts it
            self._peers.append(Peer(role))
        return self._peers[-1]

    def hold(
        self,
        name: str,
        specs: Sequence[kvwire.GroupSpec],
        tokens: int,
        counts: tuple[int, int],
        *,
        scatter: bool,
        content: str = NOISE,
    ) -> None:
        """Memories at the sender and at the receiver; `scatter`: blocks lie in random order, another one on each."""
        for peer, count, seed in ((self.sender, counts[0], 1), (self.receiver, counts[1], 1001)):
            peer.start("hold", name, tuple(specs), tokens, count, seed if scatter else None, content)
        for peer in (self.sender, self.receiver):
            peer.result()

    def filled(self, name: str, count: int) -> list[int]:
        """Fills `count` memories at the sender; the numbers of the transfers that they are for."""
        numbers = list(range(self._numbers + 1, self._numbers + count + 1))
        self._numbers += count
        self.sender.call("fill", name, numbers)
        return numbers

    def send(
        self,
        name: str,
        index: int,
        klass: int = 1,
        prefill_s: float = 0.0,
        within_s: float = 120.0,
        through: str | None = None,
    ) -> Timed:
        """One transfer of what was filled."""
        self.sender.start("send", name, index, klass, prefill_s, within_s, through)
        timed: Timed = self.sender.result(within_s + prefill_s + CALL_TIMEOUT_S)
        return timed

    def damage(self, name: str, numbers: Sequence[int], through: str) -> list[str]:
        """What is wrong at the receiver after these transfers, of the memories of this name in turn."""
        wrong = [self.receiver.call("damage", name, index, number, through) for index, number in enumerate(numbers)]
        return [sentence for sentences in wrong for sentence in sentences]

    def close(self) -> None:
        for peer in self._peers:
            peer.hang_up()
        for peer in self._peers:
            peer.close()

    def __enter__(self) -> Ends:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
