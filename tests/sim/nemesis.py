"""Who does the damage: a few faults of a few kinds at random times, and in the end peace."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from functools import partial

from kvwire.wire.transfers import DRAIN_S
from tests.sim.links import SimLink
from tests.sim.network import Connection, Host, Kind
from tests.sim.path import Flow
from tests.sim.receiving import begin
from tests.sim.strangers import bother, forge
from tests.sim.world import STORM_S, Process, World

HANDSHAKE_S = 0.5
"""A connection is through its hand-shake by then, if nothing is wrong with it."""
BUSY_LOOK_S = 0.01
"""Links are best struck while something is on its way; so a fault of theirs waits for that, for a while."""
AWAY_S = (0.05, 0.5, 1.5)
"""How long a process that has ended is gone."""


class Nemesis:
    """Its faults are counted by the names in FAULTS; each is noted in the connections that it is done to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.net = world.network
        self.rng = world.rng("nemesis")
        self._rests_until = 0.0
        self.net.on_damage = partial(self._fault, what="damaged")

    def plan(self) -> None:
        """A calm seed, or some faults of few kinds, so that each kind is also seen alone."""
        kinds = self.rng.sample(list(FAULTS), self.rng.choice((0, 1, 1, 2, 3)))
        # What only these can bring about is rare even so.
        more = ["long freeze", "lane corrupted", "lane in a hole", "hand-shake struck"]
        if self.world.config.resume_timeout_s and not self.world.tight:
            more += ["control kept away", "link cut off"]
            if self.rng.random() < 0.7:
                self.world.history.on_landing = self.rng.choice((self._in_the_middle, self._before_the_receipt))
        if self.net.sealed:
            more += ["control corrupted", "lane forged", "strangers", "node closed", *["hand-shake struck"] * 2]
        kinds += [kind for kind in more if self.rng.random() < 0.2]
        for kind in kinds:
            for _ in range(self.rng.choice((1, 1, 2, 6))):
                self.world.clock.at(self.rng.random() * STORM_S, self._strike, kind)
        if self.rng.random() < 0.1:
            self._strike("hand-shake struck")  # while nobody has a link yet

    def _in_the_middle(self, link: SimLink, commit: bool) -> None:
        """Take a link's connection, or its receiver, away: between two cells, or before the receipt; a few times."""
        now = self.world.clock.now
        if self.world.storm and now >= self._rests_until and self.rng.random() < (0.7 if commit else 0.2):
            self._rests_until = now + self.rng.choice((0.05, 0.2, 1.0))
            self.later(0.002 * self.rng.random() ** 4, lambda: self._take_away(link))

    def _take_away(self, link: SimLink) -> None:
        control = link.controls[-1]
        if self.rng.random() < 0.2:
            self._kill(link.process, self.rng.choice(AWAY_S))
        elif control.alive:
            name, blow = self.rng.choice(list(BLOWS.items()))
            self.world.counts[name] += 1
            self.world.history.note("fault", name)
            blow(self, control)

    def _before_the_receipt(self, link: SimLink, commit: bool) -> None:
        """End a sender that did not dial as it is about to hear of its commits: they are none of its next life's."""
        sender = link.other
        if self.world.storm and commit and link.dialled and sender is not None:
            self.later(0.0, partial(self._kill, sender.process, 0.02))

    def _kill(self, process: Process, away_s: float) -> None:
        living = self.world.living()
        if process in living and len(living) == len(self.net.hosts):
            self.world.counts["kill"] += 1
            self._end_process(process, away_s, silently=False)

    def _strike(self, kind: str) -> None:
        if not self.world.storm:
            return
        best_busy = kind.startswith(("lane", "control"))
        if best_busy and not self._lanes_are_busy() and self.rng.random() < 0.95:
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
        self.net.on_control = None
        self.net.on_lane = None
        for trouble in self.world.troubles:
            if trouble.heals:
                trouble.until = min(trouble.until, self.world.clock.now)
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

    def _victim(self, kind: Kind) -> Connection | None:
        alive = self.net.alive(kind)
        if kind == "lane":
            alive = [lane for lane in alive if any(end.flow.used_bytes for end in lane.ends)] or alive
        return self.rng.choice(alive) if alive else None

    def _fault(self, victim: Connection, what: str, until_s: float = 0.0, *, heals: bool = False) -> None:
        """Something is done to a connection, until then; if that is a control connection, its link suffers."""
        now = self.world.clock.now
        victim.fault(now, what)
        if victim.kind == "control":
            self.world.trouble(max(now, until_s), *victim.hosts, heals=heals)

    def _flow(self, victim: Connection) -> Flow:
        flows = [end.flow for end in victim.ends]
        return self.rng.choice([flow for flow in flows if flow.used_bytes] or flows)

    def strike(self, kind: Kind, blow: Callable[[Nemesis, Connection], None]) -> bool:
        """One connection of this kind, if there is one."""
        victim = self._victim(kind)
        if victim is not None:
            blow(self, victim)
        return victim is not None

    def reset(self, victim: Connection) -> None:
        self._fault(victim, "reset")
        for end in victim.ends:
            end.fail(errno.ECONNRESET)

    def finish(self, victim: Connection) -> None:
        """An end of the stream that nobody sent, behind what is on its way, in one direction or both."""
        self._fault(victim, "finished")
        for end in self.rng.sample(victim.ends, self.rng.randint(1, 2)):
            end.flow.finish()

    def hole(self, victim: Connection) -> None:
        """Nothing comes through any more, in one direction or both, for a while or until peace."""
        for end in self.rng.sample(victim.ends, self.rng.randint(1, 2)):
            end.flow.hole = True
            seconds = self.rng.choice((0.1, 1.0, STORM_S, STORM_S))
            self._fault(victim, "hole", self.world.clock.now + seconds, heals=True)
            self.later(seconds, partial(self._close_hole, end.flow))

    def _close_hole(self, flow: Flow) -> None:
        flow.hole = False
        flow.release()

    def stall(self, victim: Connection) -> None:
        seconds = self.rng.choice((0.05, 0.5, 2.0))
        self._fault(victim, "stall", self.world.clock.now + seconds)
        self._flow(victim).stall(seconds)

    def corrupt(self, victim: Connection) -> None:
        victims = [victim]
        if victim.kind == "lane" and self.rng.random() < 0.5:  # so that a link loses patience
            victims = [lane for lane in self.net.alive("lane") if lane.hosts == victim.hosts]
        for each in victims:
            self._fault(each, "corrupt")
            for end in each.ends:
                end.flow.corrupt = True

    def garble(self, victim: Connection) -> None:
        """What the dialler says next is damaged: best a greeting, which is noticed as often as not."""
        self._fault(victim, "corrupt")
        victim.ends[0].flow.corrupt = True

    def keep_away(self, victim: Connection) -> None:
        """A link loses its connection, and gets no other for a while."""
        self._refuse(victim.hosts[1], self.rng.choice((0.2, 1.0, 2.5)))
        self.rng.choice((Nemesis.reset, Nemesis.finish))(self, victim)

    def cut_off(self, victim: Connection) -> None:
        """A link loses its connection, and what its lanes have under way."""
        self._part(*victim.hosts)
        self.reset(victim)

    def strike_handshakes(self) -> bool:
        """The next few control connections are struck before, or just when, both sides have greeted."""
        left = self.rng.choice((2, 4, 8))

        def on_control(connection: Connection) -> None:
            nonlocal left
            blow = self.rng.choice(HANDSHAKE_BLOWS)
            round_trip_s = 2 * connection.ends[0].flow.path.latency_s
            pause_s = max(host.loop.pace_s for host in connection.hosts if host.loop is not None)
            longest_s = round_trip_s if blow is Nemesis.garble else 3 * round_trip_s + 10 * pause_s
            self.later(longest_s * self.rng.random(), lambda: blow(self, connection))
            left -= 1
            if not left:
                self.net.on_control = None

        self.net.on_control = on_control
        if self.rng.random() < 0.5:  # so that there will be one
            self.strike("control", Nemesis.reset)
        return True

    def silence(self, victim: Connection) -> None:
        """Longer than anybody waits for a greeting."""
        seconds = self.world.config.handshake_timeout_s + 2.0
        self._fault(victim, "silence", self.world.clock.now + seconds)
        for end in victim.ends:
            end.flow.stall(seconds)

    # --- paths --------------------------------------------------------------------------------------------------

    def partition(self) -> bool:
        self._part(*self.rng.sample(self.net.hosts, 2))
        return True

    def _part(self, one: Host, other: Host) -> None:
        self.net.path(one, other).parted = True
        for connection in self.net.between(one, other):
            connection.fault(self.world.clock.now, "partition")
        seconds = self.rng.choice((0.1, 1.0, 2.5))
        self.world.trouble(self.world.clock.now + seconds, one, other, heals=True)
        self.later(seconds, lambda: self._heal(one, other))

    def _heal(self, one: Host, other: Host) -> None:
        self.net.path(one, other).parted = False
        self.net.release()

    def refuse(self) -> bool:
        self._refuse(self.rng.choice(self.net.hosts), self.rng.choice((0.2, 1.0)))
        return True

    def _refuse(self, host: Host, seconds: float) -> None:
        host.refuses_until = max(host.refuses_until, self.world.clock.now + seconds)
        self.world.trouble(host.refuses_until, host, heals=True)

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
        self._freeze(process, self.rng.choice(durations_s))
        return True

    def _freeze(self, process: Process, seconds: float) -> None:
        process.loop.freeze()
        self.world.trouble(self.world.clock.now + seconds, process.host)
        self.later(seconds, partial(self._thaw, process, self.world.clock.now))

    def slow_python(self) -> bool:
        """Each callback takes long, so that what comes from the engine and from timers piles up in any order."""
        process = self.rng.choice(self.world.living())
        process.slow_down(self.rng.choice((0.005, 0.05)))
        seconds = self.rng.choice((0.5, 2.0))
        self.world.trouble(self.world.clock.now + seconds, process.host)
        self.later(seconds, process.speed_up)
        return True

    def _thaw(self, process: Process, frozen_at: float) -> None:
        """Only a connection in the middle of its hand-shake may be lost by this."""
        now = self.world.clock.now
        for connection in self.net.connections:
            if process.host in connection.hosts and connection.born_at > frozen_at - HANDSHAKE_S:
                connection.fault(now, "freeze")
        process.thawed_at.append(now)
        process.loop.thaw()

    def end_some(self, *, silently: bool) -> bool:
        """A process ends, with a word of its kernel or, with its host, without."""
        living = self.world.living()
        if len(living) < len(self.net.hosts):
            return False
        self._end_process(self.rng.choice(living), self.rng.choice(AWAY_S), silently=silently)
        return True

    def _end_process(self, process: Process, away_s: float, *, silently: bool) -> None:
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
        self.world.trouble(self.world.clock.now + away_s, host, heals=True)
        self.later(away_s, lambda: self._restart(host))

    def _restart(self, host: Host) -> None:
        if host.loop is not None and host.loop.dead:
            host.down = False
            begin(self.world.start(host), again=True)
            self.world.counts["restarted"] += 1
            self.net.release()

    def close_node(self) -> bool:
        """A user closes the node, whatever is under way, and begins anew."""
        nodes = [process for process in self.world.living() if process.node is not None and not process.closing]
        if not nodes:
            return False
        process = self.rng.choice(nodes)
        process.closing = True
        crowded = not process.loop.frozen and self.rng.random() < 0.7  # while somebody is just being let in
        if crowded:
            self._crowd(process)
        self.later(0.1 if crowded else 0.0, lambda: process.loop.dead or process.spawn(self._close, process))
        return True

    def _crowd(self, process: Process) -> None:
        others = [other for other in self.world.living() if other is not process]
        for _ in range(3 if others else 0):
            other = self.rng.choice(others)
            other.spawn(bother, other, process.host, random.Random(self.rng.random()))
        if self.rng.random() < 0.5:  # so that they are still in the backlog
            self._freeze(process, 0.2)

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
            process.spawn(bother, process, target, random.Random(self.rng.random()))
        return True

    def forge_joins(self) -> bool:
        """Of the next few lanes, somebody on the way holds the JOIN back, and comes first with one that is like it."""
        left = self.rng.choice((1, 3))

        def on_lane(lane: Connection) -> None:
            nonlocal left
            self._fault(lane, "stall")
            lane.ends[0].flow.stall(0.3)
            self.later(0.0, partial(self._forge, lane))
            left -= 1
            if not left:
                self.net.on_lane = None

        self.net.on_lane = on_lane
        if self.rng.random() < 0.8:  # so that there will be one
            self.strike("lane", Nemesis.reset)
        return True

    def _forge(self, lane: Connection) -> None:
        process = self.rng.choice(self.world.living())
        process.spawn(forge, process, lane, random.Random(self.rng.random()))


BLOWS = {
    "control reset": Nemesis.reset,
    "control finished": Nemesis.finish,
    "control kept away": Nemesis.keep_away,
    "link cut off": Nemesis.cut_off,
}
"""What takes the control connection of one link away for certain."""

HANDSHAKE_BLOWS = (Nemesis.reset, Nemesis.finish, Nemesis.silence, Nemesis.silence, Nemesis.garble)

FAULTS: dict[str, Callable[[Nemesis], bool]] = {
    "lane reset": lambda n: n.strike("lane", Nemesis.reset),
    "lane finished": lambda n: n.strike("lane", Nemesis.finish),
    "lane in a hole": lambda n: n.strike("lane", Nemesis.hole),
    "lane stalled": lambda n: n.strike("lane", Nemesis.stall),
    "lane forged": Nemesis.forge_joins,
    "lane corrupted": lambda n: n.strike("lane", Nemesis.corrupt),
    "control reset": lambda n: n.strike("control", Nemesis.reset),
    "control finished": lambda n: n.strike("control", Nemesis.finish),
    "control in a hole": lambda n: n.strike("control", Nemesis.hole),
    "control stalled": lambda n: n.strike("control", Nemesis.stall),
    "control corrupted": lambda n: n.strike("control", Nemesis.corrupt),
    "link cut off": lambda n: n.strike("control", Nemesis.cut_off),
    "control kept away": lambda n: n.strike("control", Nemesis.keep_away),
    "hand-shake struck": Nemesis.strike_handshakes,
    "partition": Nemesis.partition,
    "refusal": Nemesis.refuse,
    "slow path": Nemesis.slow,
    "freeze": lambda n: n.freeze(0.01, 0.5, 4.0),
    "long freeze": lambda n: n.freeze(DRAIN_S + 15.0),
    "slow Python": Nemesis.slow_python,
    "kill": lambda n: n.end_some(silently=False),
    "crash": lambda n: n.end_some(silently=True),
    "node closed": Nemesis.close_node,
    "strangers": Nemesis.strangers,
}
