"""The world of one seed: hosts, the processes that live and die on them, and the time in which all of it happens."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from kvwire import Config, KvwireError, Node
from tests.sim.clock import Clock
from tests.sim.history import EXACT, History
from tests.sim.identities import identity_of
from tests.sim.links import SimLink, sim_link
from tests.sim.loop import SimLoop
from tests.sim.memory import Memory
from tests.sim.network import Host, Network
from tests.sim.troubles import Trouble

T = TypeVar("T")

PORT = 7878
SLACK_S = 1.5
"""Above a deadline, for what is done when it is over: the loops have their own pace."""
BACKLOG = 200
"""Callbacks that may be waiting when something is due."""
SEALED_SHARE = 0.25
"""Of worlds."""
STORM_S = 3.0
"""How long faults are made and transfers are begun."""
RESUME_S = (0.0, 0.5, 2.0, 30.0, 30.0, 30.0)
"""Not at all; shorter than some faults; longer than all but the longest."""


class World:
    """Everything of one seed. Chance comes in streams, so that one who draws more does not change the others."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.clock = Clock()
        self.history = History(self.clock)
        rng = self.rng("world")
        sealed = self.rng("sealed").random() < SEALED_SHARE
        self.network = Network(self.clock, self.rng("network"), rng.choice((2, 2, 2, 3)), sealed=sealed)
        self.counts: Counter[str] = self.network.counts
        self.storm = True
        self.honest = False
        """Only transfers without any whim: what still has to work when the storm is over."""
        self.processes: list[Process] = []
        self.troubles: list[Trouble] = []
        self.tight = rng.random() < 0.35
        """Deadlines are short and Python is slow: what ends a transfer and what ends it too come at one time."""
        self.config = some_config(rng, self.tight, sealed)
        self.whims = 0.02 if self.tight or not self.config.resume_timeout_s else rng.choice((0.1, 0.6, 0.6))
        """How likely users are to act just when a link has lost its connection, or has it back."""
        self.cancels = self.whims * rng.choice((0, 1))
        """The same of who waits for a grant; not always, or nobody sees what becomes of grants that come meanwhile."""
        for path in self.network.paths():
            path.hiccup_share = 0.25 if self.tight else path.hiccup_share
        for host in self.network.hosts:
            self.start(host)

    def rng(self, what: str) -> random.Random:
        return random.Random(f"{self.seed}/{what}")

    def start(self, host: Host) -> Process:
        """A new process on a host, with a new boot id and empty memory."""
        process = Process(self, host, len(self.processes))
        self.processes.append(process)
        host.loop = process.loop
        return process

    def trouble(self, until_s: float, *hosts: Host, heals: bool = False) -> None:
        """From now until then something stands between these hosts, or this host and all others."""
        self.troubles.append(Trouble(self.clock.now, until_s, frozenset(hosts), heals))

    def living(self) -> list[Process]:
        return [process for process in self.processes if not process.loop.dead]


def some_config(rng: random.Random, tight: bool, sealed: bool) -> Config:
    """The smallest cells and few lanes, so that a scenario is small; timeouts of every kind; keys for a few frames."""
    return Config(
        plain=not sealed,
        rekey_frames=16,
        lanes=rng.randint(1, 3),
        cell_bytes=4096,
        stream_bytes=64 << 10,
        max_handshakes=rng.choice((3, 8)),
        handshake_timeout_s=3.0 if tight else rng.choice((1.0, 3.0)),
        connect_timeout_s=rng.choice((2.0, 8.0)),
        offer_timeout_s=5.0,
        transfer_timeout_s=60.0,
        ping_interval_s=rng.choice((0.5, 5.0)),
        tcp_user_timeout_s=rng.choice((0.5, 5.0, 45.0)),
        resume_timeout_s=rng.choice(RESUME_S),
    )


class Process:
    """One life of a node's process: its loop, its memory, its node, and what its users are doing."""

    def __init__(self, world: World, host: Host, number: int) -> None:
        self.world = world
        self.host = host
        self.name = f"{host.number}.{number}"
        self.probe = world.history
        self.tight = world.tight
        rng = self.rng("process")
        pace_s = rng.choice((0.0005, 0.005)) if world.tight else rng.choice((0.0, 0.0, 5e-6, 50e-6))
        self._own_pace_s = pace_s
        # A loop of what kvwire uses of one, no more.
        self.loop = SimLoop(world.clock, host, self, rng.randint(0, 1 << 20), pace_s)  # type: ignore[abstract]
        self.slack_s = SLACK_S
        self.slow_down(pace_s)
        self.memory = Memory(self.rng("memory"))
        self.node: Node | None = None
        self.waiting: dict[int, str] = {}
        """What users wait for just now, each wait by a number of its own."""
        self.users = 0
        """Tasks of users that have not ended."""
        self.services = 0
        """Those of them that end with the node only."""
        self.closing = False
        self.thawed_at: list[float] = []
        self._requests = 0
        self.died_at: float | None = None
        self.links: dict[str, SimLink] = {}
        """Links that this process has dialled, by the address of the peer."""

    def rng(self, what: str) -> random.Random:
        return self.world.rng(f"{self.name}/{what}")

    def link_from(self, host: Host) -> SimLink | None:
        """A link that a host has dialled to this process, if there is one: either side may offer."""
        for link in self.node.links if self.node is not None else ():
            if link._dialler is None and link._greeted.done() and link.peer.startswith(f"{host.address} "):
                return sim_link(link)
        return None

    def slow_down(self, pace_s: float) -> None:
        """From now on a callback takes this long; what piles up meanwhile makes everything late for good."""
        self.loop.pace_s = pace_s
        self.slack_s = max(self.slack_s, SLACK_S + BACKLOG * pace_s)

    def speed_up(self) -> None:
        """Back to its own pace."""
        self.loop.pace_s = self._own_pace_s

    def new_request(self) -> str:
        """A request id that nobody else has."""
        self._requests += 1
        return f"{self.name}.{self._requests}"

    def idle(self, *, services: bool = False) -> bool:
        """Whether its users have nothing to do; with `services`, not even those that take what comes."""
        return not self.loop.frozen and self.users == (0 if services else self.services)

    def spawn(
        self, run: Callable[..., Coroutine[Any, Any, None]], *arguments: Any, service: bool = False
    ) -> asyncio.Task[None]:
        """A user's task. Whatever it raises is a bug, of the product's or of the simulation's."""
        self.users += 1
        self.services += service
        task = self.loop.create_task(self._user(run, arguments))
        task.add_done_callback(lambda _: self._user_over(service))
        return task

    def _user_over(self, service: bool) -> None:
        self.users -= 1
        self.services -= service

    async def _user(self, run: Callable[..., Coroutine[Any, Any, None]], arguments: tuple[Any, ...]) -> None:
        try:
            await run(*arguments)
        except Exception as error:
            if self.loop.dead:  # its coroutine is being closed, in the middle of something
                return
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.world.history.violate(EXACT, f"{error!r} left kvwire untyped, from {where.name}:{where.lineno}")

    async def within(self, what: str, limit_s: float, awaitable: Awaitable[T], link: SimLink | None) -> T:
        """Wait for something that has to be over by then, whatever becomes of it."""
        number = self.world.clock.serial()
        began, frozen = self.world.clock.now, self.loop.frozen_s()
        self.waiting[number] = f"process {self.name}: {what}, at most {limit_s:g} s, since {began:.3f}"
        try:
            return await awaitable
        finally:
            waited = self.waiting.pop(number)
            took = self.world.clock.now - began - (self.loop.frozen_s() - frozen)
            tainted = link is not None and link.tainted
            if took > limit_s + self.slack_s and not self.loop.dead and not tainted:
                self.world.history.violate(EXACT, f"{waited}: took {took:.3f} s")

    def die(self) -> None:
        """All at once: no Python, no engine."""
        self.died_at = self.world.clock.now
        self.loop.die()

    # --- the node -----------------------------------------------------------------------------------------------

    async def serve(self) -> Node:
        plain = self.world.config.plain
        identity = None if plain else identity_of(self.host.number)
        self.node = await Node.serve(self.host.address, PORT, self.world.config, identity=identity)
        return self.node

    async def link_to(self, host: Host) -> SimLink | None:
        """The link to a host that this process dials; None where it cannot be had now."""
        link = self.links.get(host.address)
        if link is not None and not link.closed:
            return link
        assert self.node is not None
        limit_s = self.world.config.connect_timeout_s
        try:
            made = await self.within("connect", limit_s, self.node.connect(host.address, PORT), None)
        except KvwireError as error:
            self.world.history.note("no link", self.name, type(error).__name__)
            return None
        link, old = sim_link(made), self.links.get(host.address)
        if old is not None and not old.closed:  # two tasks dialled at once
            await link.close()
            return old
        self.links[host.address] = link
        self.world.counts["link made"] += 1
        return link
