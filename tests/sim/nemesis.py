"""Who does the damage: a few faults of a few kinds at random times, and in the end peace."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from kvwire import KvwireError, sockets, wire
from kvwire.wire import schema
from kvwire.wire.transfers import DRAIN_S
from tests.sim.network import Connection, Host, Kind
from tests.sim.path import Flow
from tests.sim.receiving import receive_all
from tests.sim.sending import send_some
from tests.sim.world import PORT, STORM_S, Process, World

HANDSHAKE_S = 0.5
"""A connection is through its hand-shake by then, if nothing is wrong with it."""


BUSY_LOOK_S = 0.01
"""Lanes are best struck while something is on its way; so a fault of theirs waits for that, for a while."""


class Nemesis:
    """Its faults are counted by the names in FAULTS; each is noted in the connections that it is done to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.net = world.network
        self.rng = world.rng("nemesis")

    def plan(self) -> None:
        """A calm seed, or some faults of few kinds, so that each kind is also seen alone."""
        kinds = self.rng.sample(list(FAULTS), self.rng.choice((0, 1, 1, 2, 3)))
        # What only these can bring about is rare even so.
        kinds += [kind for kind in ("long freeze", "lane corrupted") if self.rng.random() < 0.18]
        if self.rng.random() < 0.15:
            self.world.history.on_commit = self._at_a_commit
        for kind in kinds:
            for _ in range(self.rng.choice((1, 1, 2, 5))):
                self.world.clock.at(self.rng.random() * STORM_S, self._strike, kind)

    def _at_a_commit(self) -> None:
        """Take the control connection away between the last cell and the receipt, once or twice."""
        kind = self.rng.choice(("control reset", "control finished", "kill"))
        if self.rng.random() < 0.5:
            self.world.history.on_commit = None
        self.later(0.01 * self.rng.random(), lambda: self._strike(kind))

    def _strike(self, kind: str) -> None:
        if not self.world.storm:
            return
        if kind.startswith("lane") and not self._lanes_are_busy() and self.rng.random() < 0.95:
            self.world.clock.at(self.world.clock.now + BUSY_LOOK_S, self._strike, kind)
        elif FAULTS[kind](self):
            self.world.counts[kind] += 1
            self.world.history.note("fault", kind)

    def _lanes_are_busy(self) -> bool:
        return any(end.flow.used_bytes for lane in self.net.alive("lane") for end in lane.ends)

    def later(self, seconds: float, run: Callable[[], object]) -> None:
        self.world.clock.at(self.world.clock.now + seconds, lambda _: run())

    def peace(self) -> None:
        """Everything works again, as far as it is still there."""
        for path in self.net.paths():
            path.parted = False
        for host in self.net.hosts:
            host.refuses_until = 0.0
            if host.loop is None or host.loop.dead:
                self._restart(host)
        for connection in self.net.connections:
            for end in connection.ends:
                end.flow.hole = end.flow.corrupt = False
        self.net.release()

    # --- connections --------------------------------------------------------------------------------------------

    def _victim(self, kind: Kind, what: str) -> Connection | None:
        alive = self.net.alive(kind)
        if kind == "lane":
            alive = [lane for lane in alive if any(end.flow.used_bytes for end in lane.ends)] or alive
        if not alive:
            return None
        victim = self.rng.choice(alive)
        victim.fault(self.world.clock.now, what)
        return victim

    def _flow(self, victim: Connection) -> Flow:
        flows = [end.flow for end in victim.ends]
        return self.rng.choice([flow for flow in flows if flow.used_bytes] or flows)

    def reset(self, kind: Kind) -> bool:
        victim = self._victim(kind, "reset")
        for end in victim.ends if victim else ():
            end.fail(errno.ECONNRESET)
        return victim is not None

    def finish(self, kind: Kind) -> bool:
        """An end of the stream that nobody sent: behind what is on its way, in one direction or both."""
        victim = self._victim(kind, "finished")
        for end in self.rng.sample(victim.ends, self.rng.randint(1, 2)) if victim else ():
            end.flow.finish()
        return victim is not None

    def hole(self, kind: Kind) -> bool:
        """Nothing comes through any more, in one direction or both, for a while or until peace."""
        victim = self._victim(kind, "hole")
        for end in self.rng.sample(victim.ends, self.rng.randint(1, 2)) if victim else ():
            end.flow.hole = True
            if self.rng.random() < 0.5:
                self.later(self.rng.choice((0.1, 1.0)), partial(self._close_hole, end.flow))
        return victim is not None

    def _close_hole(self, flow: Flow) -> None:
        flow.hole = False
        flow.release()

    def stall(self, kind: Kind) -> bool:
        victim = self._victim(kind, "stall")
        if victim is not None:
            self._flow(victim).stall(self.rng.choice((0.05, 0.5, 2.0)))
        return victim is not None

    def corrupt(self, kind: Kind) -> bool:
        victim = self._victim(kind, "corrupt")
        for end in victim.ends if victim else ():
            end.flow.corrupt = True
        if victim is not None:
            victim.tainted = kind == "control"
        return victim is not None

    # --- paths --------------------------------------------------------------------------------------------------

    def partition(self) -> bool:
        one, other = self.rng.sample(self.net.hosts, 2)
        path = self.net.path(one, other)
        path.parted = True
        for connection in self.net.between(one, other):
            connection.fault(self.world.clock.now, "partition")
        self.later(self.rng.choice((0.1, 1.0, 2.5)), lambda: self._heal(one, other))
        return True

    def _heal(self, one: Host, other: Host) -> None:
        self.net.path(one, other).parted = False
        self.net.release()

    def refuse(self) -> bool:
        host = self.rng.choice(self.net.hosts)
        host.refuses_until = self.world.clock.now + self.rng.choice((0.2, 1.0))
        return True

    def slow(self) -> bool:
        path = self.rng.choice(list(self.net.paths()))
        path.rate_bps, path.latency_s = 3e5, max(path.latency_s, 0.04)
        return True

    # --- processes ----------------------------------------------------------------------------------------------

    def freeze(self, *durations_s: float) -> bool:
        """Python stands still in one process; its kernel and its engine do not."""
        awake = [process for process in self.world.living() if not process.loop.frozen]
        if not awake:
            return False
        process = self.rng.choice(awake)
        process.loop.freeze()
        self.later(self.rng.choice(durations_s), partial(self._thaw, process, self.world.clock.now))
        return True

    def slow_python(self) -> bool:
        """Each callback takes long, so that what comes from the engine and from timers piles up in any order."""
        process = self.rng.choice(self.world.living())
        process.slow_down(self.rng.choice((0.005, 0.05)))
        self.later(self.rng.choice((0.5, 2.0)), process.speed_up)
        return True

    def _thaw(self, process: Process, frozen_at: float) -> None:
        """Only a connection in the middle of its hand-shake may be lost by this."""
        now = self.world.clock.now
        for connection in self.net.connections:
            if process.host in connection.hosts and connection.born_at > frozen_at - HANDSHAKE_S:
                connection.fault(now, "freeze")
        process.thawed_at.append(now)
        process.loop.thaw()

    def _end_process(self, silently: bool) -> bool:
        living = self.world.living()
        if len(living) < len(self.net.hosts):
            return False
        process = self.rng.choice(living)
        process.die()
        host = process.host
        host.down = silently
        for connection in self.net.connections:
            if host in connection.hosts:
                connection.fault(self.world.clock.now, "death")
        for listener in list(host.listeners.values()):
            listener.close()
        for end in list(host.ends.values()):
            if silently:
                end.vanish()
            else:
                end.close()
        self.later(self.rng.choice((0.05, 0.5, 1.5)), lambda: self._restart(host))
        return True

    def kill(self) -> bool:
        return self._end_process(silently=False)

    def crash(self) -> bool:
        return self._end_process(silently=True)

    def _restart(self, host: Host) -> None:
        if host.loop is not None and host.loop.dead:
            host.down = False
            begin(self.world.start(host))
            self.world.counts["restarted"] += 1
            self.net.release()

    def close_node(self) -> bool:
        """A user closes the node, whatever is under way, and begins anew."""
        nodes = [process for process in self.world.living() if process.node is not None and not process.closing]
        if not nodes:
            return False
        process = self.rng.choice(nodes)
        process.closing = True
        crowded = not process.loop.frozen and self.rng.random() < 0.5  # while somebody is just being let in
        if crowded:
            self._crowd(process)
        self.later(0.1 if crowded else 0.0, lambda: process.loop.dead or process.spawn(self._close, process))
        return True

    def _crowd(self, process: Process) -> None:
        others = [other for other in self.world.living() if other is not process]
        for _ in range(3 if others else 0):
            other = self.rng.choice(others)
            other.spawn(self._bother, other, process.host, random.Random(self.rng.random()))
        process.loop.freeze()
        self.later(0.2, partial(self._thaw, process, self.world.clock.now))

    async def _close(self, process: Process) -> None:
        assert process.node is not None
        await process.within("closing the node", 1.0, process.node.close(), None)
        for connection in self.net.connections:
            if process.host in connection.hosts:
                connection.fault(self.world.clock.now, "closed")
        process.closing = False
        begin(process)

    # --- strangers ----------------------------------------------------------------------------------------------

    def strangers(self) -> bool:
        """Some connections of somebody who is no node, or behaves like none."""
        process = self.rng.choice(self.world.living())
        target = self.rng.choice([host for host in self.net.hosts if host is not process.host])
        for _ in range(self.rng.choice((1, 12))):
            process.spawn(self._bother, process, target, random.Random(self.rng.random()))
        return True

    async def _bother(self, process: Process, target: Host, rng: random.Random) -> None:
        goodbye = schema.encode(schema.Goodbye("closed", "never mind"))
        first = rng.choice(
            (
                b"",
                b"GET / HTTP/1.1\r\n\r\n",
                wire.control_preamble()[:5],
                wire.control_preamble(),
                wire.control_preamble() + goodbye,
                wire.control_preamble() + b"\xff" * 60,
                wire.preamble.preamble(wire.ConnectionKind.CONTROL, 99),
                wire.preamble.preamble(wire.ConnectionKind.LANE) + rng.randbytes(wire.JOIN_BYTES),
            )
        )
        with contextlib.suppress(OSError, KvwireError):
            sock: Any = await sockets.dial(target.address, PORT, 20.0)
            with sock:
                sock.end.connection.uninvited = True
                await process.loop.sock_sendall(sock, first)
                async with asyncio.timeout(20.0):
                    while await process.loop.sock_recv(sock, 4096):
                        pass


FAULTS: dict[str, Callable[[Nemesis], bool]] = {
    "lane reset": lambda n: n.reset("lane"),
    "lane finished": lambda n: n.finish("lane"),
    "lane in a hole": lambda n: n.hole("lane"),
    "lane stalled": lambda n: n.stall("lane"),
    "lane corrupted": lambda n: n.corrupt("lane"),
    "control reset": lambda n: n.reset("control"),
    "control finished": lambda n: n.finish("control"),
    "control in a hole": lambda n: n.hole("control"),
    "control stalled": lambda n: n.stall("control"),
    "control corrupted": lambda n: n.corrupt("control"),
    "partition": Nemesis.partition,
    "refusal": Nemesis.refuse,
    "slow path": Nemesis.slow,
    "freeze": lambda n: n.freeze(0.01, 0.5, 4.0),
    "long freeze": lambda n: n.freeze(DRAIN_S + 15.0),
    "slow Python": Nemesis.slow_python,
    "kill": Nemesis.kill,
    "crash": Nemesis.crash,
    "node closed": Nemesis.close_node,
    "strangers": Nemesis.strangers,
}


def begin(process: Process) -> None:
    """What the users of a process do: take whatever comes, and send to the others."""
    process.spawn(receive_all, process, service=True)
    if not process.world.storm:
        return
    rng = process.rng("plan")
    for host in process.world.network.hosts:
        if host.number < process.host.number or (host is not process.host and rng.random() < 0.4):
            process.spawn(send_some, process, host, rng.randint(6, 10) if process.tight else rng.randint(2, 4))
