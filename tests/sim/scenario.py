"""One seed from its first to its last step: `run(seed)`."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from dataclasses import dataclass

from kvwire.wire.tickets import TICKET_VALID_S
from kvwire.wire.transfers import DRAIN_S
from tests.sim.clock import Livelock
from tests.sim.history import EXACT, LASTING, History, Violation
from tests.sim.nemesis import Nemesis
from tests.sim.patches import simulated
from tests.sim.receiving import begin
from tests.sim.sending import Send
from tests.sim.verdict import Verdict
from tests.sim.world import STORM_S, Process, World

PATIENCE_S = 400.0
"""Above every deadline that a scenario has, one after the other."""


@dataclass(frozen=True)
class Result:
    """What came of a seed."""

    seed: int
    digest: str
    steps: int
    counts: Counter[str]
    violations: tuple[Violation, ...]
    last: tuple[str, ...]

    def report(self) -> str:
        """What was broken, when, and what had happened just before."""
        lines = [f"seed {self.seed}: {len(self.violations)} broken promises"]
        lines += [f"  invariant {v.invariant} at {v.at_s:.6f} s: {v.text}" for v in self.violations]
        return "\n".join([*lines, "  the last events:", *(f"    {line}" for line in self.last)])


class Complaints(logging.Handler):
    """kvwire logs an exception where it met a bug of its own."""

    def __init__(self, history: History) -> None:
        super().__init__(logging.ERROR)
        self._history = history

    def emit(self, record: logging.LogRecord) -> None:
        self._history.violate(EXACT, f"logged: {record.getMessage()} {record.exc_info and record.exc_info[1]!r}")


def run(seed: int) -> Result:
    """Run one seed; the same seed gives the same digest, whatever ran before."""
    world = World(seed)
    log = logging.getLogger("kvwire")
    complaints = Complaints(world.history)
    propagate, log.propagate = log.propagate, False
    log.addHandler(complaints)
    gc.disable()  # so that nothing is collected in the middle of a step
    try:
        with simulated(world.rng("secrets"), world.counts):
            try:
                _play(world)
            except Livelock as error:
                world.history.violate(EXACT, f"it runs in circles: {error}")
            finally:
                for process in world.processes:
                    for complaint in process.loop.complaints:
                        world.history.violate(EXACT, f"process {process.name}: {complaint}")
                for process in world.processes:
                    process.loop.die()
                    process.loop.bury()
    finally:
        gc.enable()
        log.removeHandler(complaints)
        log.propagate = propagate
    history = world.history
    digest = f"{history.digest()}-{world.network.crc:08x}-{world.clock.steps}"
    return Result(seed, digest, world.clock.steps, world.counts, tuple(history.violations), tuple(history.last))


def _play(world: World) -> None:
    nemesis, verdict = Nemesis(world), Verdict(world)
    for process in world.processes:
        begin(process)
    nemesis.plan()
    world.clock.run(lambda: False, STORM_S)
    world.storm = False
    nemesis.peace()
    if not _wait_for_users(world):
        return
    # What is still on its way to an end: a half-open connection, a link whose peer is gone, a DRAINED that nobody owes,
    # a lane that the other side gave up before it read the JOIN.
    config = world.config
    longest_s = max(DRAIN_S, TICKET_VALID_S, config.resume_timeout_s)
    settled_s = config.ping_interval_s + config.tcp_user_timeout_s + longest_s
    world.clock.run(lambda: False, settled_s + 2.0)
    for process in world.living():
        verdict.on_tables(process)
    world.honest = True
    for process in world.living():
        process.spawn(_send_honestly, process)
    if not _wait_for_users(world):
        return
    verdict.on_links()
    verdict.on_transfers()
    verdict.on_strangers()
    verdict.on_secrets()
    for process in world.living():
        process.spawn(_close, process)
    if _wait_for_users(world, services=True):
        world.clock.run(lambda: False, 0.5)
        for process in world.living():
            verdict.on_closed(process)


def _wait_for_users(world: World, *, services: bool = False) -> bool:
    """Until nobody does anything any more; whoever still waits then waits for ever."""

    def quiet() -> bool:
        return all(process.idle(services=services) for process in world.living())

    if world.clock.run(quiet, PATIENCE_S):
        return True
    for process in world.living():
        for what in process.waiting.values():
            world.history.violate(EXACT, f"hangs: {what}")
        if not process.idle(services=services) and not process.waiting:
            world.history.violate(EXACT, f"process {process.name}: {process.users} users hang")
    return False


async def _send_honestly(process: Process) -> None:
    """When all is well again, everything has to work."""
    for host in process.world.network.hosts:
        if host is process.host:
            continue
        link = process.link_from(host)
        if host.number > process.host.number and link is None:
            continue  # the other one dials
        if link is None or link.tainted:
            link = await process.link_to(host)
        if link is not None and link.tainted:
            await link.close()
            link = await process.link_to(host)
        if link is None:  # where all places of strangers are taken, chance decides who loses one
            link = await process.link_to(host)
        if link is None:
            process.world.history.violate(LASTING, f"process {process.name} gets no link to {host} in peace")
            continue
        request_id = process.new_request()
        await Send(process, link, request_id, honest=True).run()
        outcome = process.world.history.records[request_id].sender.outcome
        if outcome != "committed":
            process.world.history.violate(LASTING, f"an honest transfer in peace ended with {outcome!r}")


async def _close(process: Process) -> None:
    assert process.node is not None
    await process.within("closing the node", 1.0, process.node.close(), None)
