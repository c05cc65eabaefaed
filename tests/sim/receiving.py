"""Users who receive: they grant all or part, refuse, look away, take layers as they come, and give up."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

import numpy as np

from kvwire import Closed, Incoming, KvwireError, LeaseHeld
from tests.sim.history import BOUNDED, EXACT, WHOLE, Half, Record
from tests.sim.links import sim_link
from tests.sim.memory import Held, all_blocks, some_blocks
from tests.sim.sending import end, send_back, send_some
from tests.sim.world import Process


def begin(process: Process, *, again: bool = False) -> None:
    """What its users do: take whatever comes, send to the others; after a restart also at once to who comes back."""
    process.spawn(receive_all, process, service=True)
    if not process.world.storm:
        return
    rng = process.rng("plan")
    for host in process.world.network.hosts:
        if again and host is not process.host:
            process.spawn(send_back, process, host)
        if host.number < process.host.number or (host is not process.host and rng.random() < 0.4):
            process.spawn(send_some, process, host, rng.randint(7, 11) if process.tight else rng.randint(4, 7))


async def receive_all(process: Process) -> None:
    """Take every offer that comes, each in a task of its own."""
    node = await process.serve()
    while True:
        try:
            incoming = await node.accept()
        except Closed:
            return
        process.spawn(Receive(process, incoming).run)


class Receive:
    """One offer, from its coming to its end."""

    def __init__(self, process: Process, incoming: Incoming) -> None:
        self.process = process
        self.world = process.world
        self.incoming = incoming
        self.link = sim_link(incoming.link)
        self.request_id = incoming.manifest.request_id
        self.rng = process.rng(f"{self.request_id} received")

    def _chance(self, share: float) -> bool:
        return not self.world.honest and self.rng.random() < share

    def _soon(self) -> float:
        return self.rng.choice((0.0, 0.001, 0.02, 0.5)) * self.rng.random()

    async def run(self) -> None:
        incoming = self.incoming
        record = self.world.history.records.get(self.request_id)
        if record is None or incoming.manifest != record.manifest:  # a damaged offer on a link without checksums
            await self._refuse()
            return
        if record.incoming is not None:  # to a former life of this process
            self.world.counts["offer to another life"] += 1
            record.receiver, record.offered_again = Half(), True
        record.incoming = incoming
        record.receiver.began_at = self.world.clock.now
        self.world.history.note("offered", self.request_id)
        if self._chance(0.15):
            await asyncio.sleep(self._soon())
        if self._chance(self.world.whims):
            await self._for_a_loss()
        if self._chance(0.12):
            self.world.counts["offer refused"] += 1
            await self._refuse_and_end(record)
            return
        if self._chance(0.05):
            self.world.counts["offer given up by the receiver"] += 1
            await incoming.abort("whim")
            end(self.process, record, record.receiver, "aborted")
            return
        if self._chance(0.08):
            self.world.counts["offer ignored"] += 1
            end(self.process, record, record.receiver, await self._committed(record))
            return
        wanted = some_blocks(self.rng, record.manifest) if self._chance(0.5) else all_blocks(record.manifest)
        held = self.process.memory.take(wanted)
        if held is None or not (wanted or record.manifest.attachment):
            await self._refuse_and_end(record)
            return
        outcome = await self._grant_and_take(record, held)
        self._over(record, held, outcome)

    async def _for_a_loss(self) -> None:
        """Dawdle, best until the link has lost its connection."""
        lost = asyncio.Event()
        self.link.on_loss.append(lost.set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await lost.wait()
                await asyncio.sleep(self.rng.choice((0.0, 0.05, 1.0)))

    async def _refuse(self) -> bool:
        """False if it is over meanwhile."""
        try:
            await self.incoming.refuse("no")
        except Closed:
            return False
        return True

    async def _refuse_and_end(self, record: Record) -> None:
        refused = await self._refuse()
        end(self.process, record, record.receiver, "refused" if refused else await self._committed(record))

    async def _grant_and_take(self, record: Record, held: Held) -> str | BaseException:
        try:
            await self.incoming.grant(self.process.memory.at(held), cell_bytes=self.rng.choice((None, 4096, 8192)))
        except Closed:  # over meanwhile; why is what the commit says
            return await self._committed(record)
        record.receiver.granted_at = self.world.clock.now
        self.world.counts["grant while suspended"] += self.link.suspended
        looking = self.process.spawn(self._look_at_layers, record, held)
        if self._chance(0.15):
            self._abort_later(record)
        if self._chance(self.world.whims):
            self.link.on_loss.append(lambda: self._abort_now(record))
        if self._chance(self.world.whims):
            self.link.on_return.append(lambda: self._abort_now(record))
        outcome = await self._committed(record)
        looking.cancel()
        return outcome

    async def _committed(self, record: Record) -> str | BaseException:
        waiting = self.process.loop.create_task(self.incoming.committed())
        if self._chance(0.1):
            self.process.loop.call_later(self._soon(), waiting.cancel)
        try:
            await self.process.within("a commit", record.deadline_s, waiting, self.link)
        except asyncio.CancelledError:
            self.incoming.abort_nowait("its task was cancelled")
            return "committed" if self.incoming.state == "committed" else "cancelled"
        except KvwireError as error:
            return error
        return "committed"

    def _abort_now(self, record: Record) -> None:
        if record.receiver.ended_at is not None:
            return
        self.world.counts["receiver aborted"] += self.incoming.state == "active"
        self.world.counts["abort while suspended"] += self.incoming.state == "active" and self.link.suspended
        record.receiver.aborted = True
        self.incoming.abort_nowait("whim")

    def _abort_later(self, record: Record) -> None:
        abort = partial(self._abort_now, record)
        if self.rng.random() < 0.5:
            self.process.loop.call_later(self._soon(), abort)
        else:
            self.process.loop.native(self._soon(), abort)

    # --- what came ----------------------------------------------------------------------------------------------

    async def _look_at_layers(self, record: Record, held: Held) -> None:
        """A decoder that starts early: each layer has to be there, whole, when it is said to be."""
        try:
            if self.rng.random() < 0.5:
                async for layer in self.incoming.layers():
                    self._check_layer(record, held, layer.group, layer.layer)
            else:
                for group in held.slots:
                    number = self.incoming.manifest.groups[self.incoming.manifest.group_index(group)].spec.layers[0]
                    await self.incoming.wait_layer(group, number)
                    self._check_layer(record, held, group, number)
        except KvwireError:
            pass  # what ended the transfer; `committed` says the same

    def _check_layer(self, record: Record, held: Held, group: str, layer: int) -> None:
        self.world.counts["layer seen early"] += self.incoming.state == "active"
        if group in held.slots and not self._same(record, held, group, layer) and not record.tainted:
            self.world.history.violate(WHOLE, f"layer {layer} of {group} of {self.request_id} is said to be complete")

    def _same(self, record: Record, held: Held, group: str, layer: int) -> bool:
        offer = record.manifest.groups[record.manifest.group_index(group)]
        index = [block - offer.blocks.start for block in held.blocks[group]]
        expected = record.content[group, layer][index]
        return bool(np.array_equal(self.process.memory.rows(held, group, layer), expected))

    def _over(self, record: Record, held: Held, outcome: str | BaseException) -> None:
        if outcome == "committed" and not record.tainted:
            for group, layer in record.manifest.segments():
                if group in held.slots and not self._same(record, held, group, layer):
                    self.world.history.violate(EXACT, f"{self.request_id} is committed, and {group} {layer} is wrong")
            if record.manifest.attachment and self.incoming.attachment != self.request_id:
                self.world.history.violate(EXACT, f"{self.request_id} is committed with another attachment")
        end(self.process, record, record.receiver, outcome)
        try:
            self.process.memory.check_free(held)
        except LeaseHeld as error:
            self.world.history.violate(BOUNDED, f"{self.request_id} is over at its receiver, and {error}")
        self.process.memory.give_back(held)
