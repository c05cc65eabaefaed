"""Users who send: they offer, make layers ready in some order and pace, and lose patience in every way there is."""

from __future__ import annotations

import asyncio
from functools import partial

from kvwire import Closed, KvwireError, LeaseHeld, Outgoing
from tests.sim.history import BOUNDED, EXACT, Half, Record
from tests.sim.links import SimLink
from tests.sim.memory import Held, all_blocks, some_manifest
from tests.sim.network import Host
from tests.sim.world import STORM_S, Process

SHORT_S, LONG_S = 2.0, 75.0
RETURN_LOOKS, RETURN_LOOK_S, RETURN_SENDS = 500, 0.002, 4


async def send_some(process: Process, peer: Host, count: int) -> None:
    """Some transfers to one peer, some of them at once, over whatever link there is by then."""
    world, rng = process.world, process.rng(f"to {peer.number}")
    for _ in range(count):
        await asyncio.sleep(rng.random() * STORM_S / count)
        link = process.link_from(peer) if rng.random() < 0.3 else None
        if link is None:
            link = await process.link_to(peer)
        else:
            world.counts["offer against the dial"] += 1
        if link is not None and (world.storm or world.honest):
            process.spawn(Send(process, link, process.new_request()).run)


async def send_back(process: Process, peer: Host) -> None:
    """As soon as a peer is back that had dialled a former life of this process: best before its lanes are."""
    for _ in range(RETURN_LOOKS):
        link = process.link_from(peer)
        if link is not None:
            for _ in range(RETURN_SENDS):
                process.spawn(Send(process, link, process.new_request(), honest=True).run)
            return
        await asyncio.sleep(RETURN_LOOK_S)


class Send:
    """One transfer, from its offer to its end. `honest`: without any whim, and it has to succeed."""

    def __init__(self, process: Process, link: SimLink, request_id: str, *, honest: bool = False) -> None:
        self.process = process
        self.world = process.world
        self.link = link
        self.honest = honest
        self.rng = process.rng(request_id)
        self.request_id = request_id

    def _chance(self, share: float) -> bool:
        return not self.honest and self.rng.random() < share

    async def run(self) -> None:
        memory, manifest = self.process.memory, some_manifest(self.rng, self.request_id)
        held = memory.take(all_blocks(manifest))
        if held is None or self.link.closed:
            return
        deadline_s = LONG_S if self.honest else self.rng.choice((0.2, SHORT_S, LONG_S, LONG_S))
        if self.world.tight and not self.honest:
            deadline_s = self.rng.choice((0.3, 0.5))
        timeout_s = 20.0 if self.honest else self.rng.choice((0.3, 5.0, 20.0, 20.0))
        record = Record(manifest, memory.fill(held, manifest), deadline_s, timeout_s, self.link)
        record.sender.began_at = self.world.clock.now
        self.world.history.records[self.request_id] = record
        self.world.history.note("offer", self.request_id, deadline_s, timeout_s)
        self.world.counts["offer while suspended"] += self.link.suspended
        outcome = await self._offer_and_send(record, held)
        self._over(record, held, outcome)

    async def _offer_and_send(self, record: Record, held: Held) -> str | BaseException:
        record_offer = self.link.offer(
            record.manifest,
            self.process.memory.at(held),
            timeout_s=record.timeout_s,
            deadline_s=record.deadline_s,
            klass=self.rng.randint(0, 2),
        )
        offering = self.process.loop.create_task(record_offer)
        if self._chance(0.15):
            self.process.loop.call_later(self._soon(), self._cancel_offer, record, offering)
        if self._chance(self.world.cancels):
            self.link.on_loss.append(lambda: self._cancel_offer(record, offering))
        try:
            out = await self.process.within("a grant", record.timeout_s, offering, record.link)
        except asyncio.CancelledError:
            self.world.counts["offer cancelled"] += 1
            return "cancelled"
        except KvwireError as error:
            return error
        record.out = out
        record.sender.granted_at = self.world.clock.now
        producing = self.process.spawn(self._produce, record, out)
        outcome = await self._wait(record, out)
        producing.cancel()
        return outcome

    def _cancel_offer(self, record: Record, offering: asyncio.Task[Outgoing]) -> None:
        record.sender.aborted |= offering.cancel()

    def _soon(self) -> float:
        """A time at which something may be in the middle of anything."""
        return self.rng.choice((0.0, 0.001, 0.02, 0.5)) * self.rng.random()

    # --- the producer -------------------------------------------------------------------------------------------

    async def _produce(self, record: Record, out: Outgoing) -> None:
        """Make everything ready, from the loop or from a thread; or all but a bit, so that it cannot end well."""
        rng = self.rng
        pieces: list[tuple[str, int, list[int] | None]] = []
        for group, layer in record.manifest.segments():
            blocks = list(out.granted[group])
            if len(blocks) > 1 and rng.random() < 0.5:
                cut = rng.randint(1, len(blocks) - 1)
                pieces += [(group, layer, blocks[:cut]), (group, layer, blocks[cut:])]
            elif blocks:
                pieces.append((group, layer, None))
        if rng.random() < 0.3:
            rng.shuffle(pieces)
        if record.manifest.attachment:
            pieces.insert(rng.randint(0, len(pieces)), ("", 0, None))
        if self._chance(0.1):
            pieces.pop()
            self.world.counts["never all ready"] += 1
        pause_s = rng.choice((0.0, 0.01, 0.5)) / max(1, len(pieces))
        threaded = rng.random() < 0.3
        brink = self._chance(0.8 if self.world.tight else 0.2) and record.deadline_s <= SHORT_S
        for at, piece in enumerate(pieces):
            if pause_s:
                await asyncio.sleep(pause_s)
            if brink and at == len(pieces) - 1:  # so late that it is a matter of luck
                left_s = record.sender.began_at + record.deadline_s - self.world.clock.now
                await asyncio.sleep(left_s - 0.12 * rng.random())
            if threaded:
                done = self.process.loop.create_future()
                self.process.loop.native(0.0, partial(self._thread, record, out, piece, done))
                await done
            else:
                self._make_ready(record, out, *piece)

    def _thread(
        self, record: Record, out: Outgoing, piece: tuple[str, int, list[int] | None], done: asyncio.Future[None]
    ) -> None:
        self._make_ready(record, out, *piece)
        if not done.done():
            done.set_result(None)

    def _make_ready(self, record: Record, out: Outgoing, group: str, layer: int, blocks: list[int] | None) -> None:
        try:
            if group:
                out.ready(group, layer, blocks)
            else:
                out.attach(record.request_id)
        except Closed:  # the transfer has ended meanwhile
            return
        if out._handle.all_ready and record.all_ready_at is None:
            record.all_ready_at = self.world.clock.now
            if self._chance(0.3 if self.world.tight else 0.05):
                self._abort_later(record, out)
            self.world.history.note("all ready", self.request_id)

    # --- the end ------------------------------------------------------------------------------------------------

    async def _wait(self, record: Record, out: Outgoing) -> str | BaseException:
        waiting = self.process.loop.create_task(out.committed())
        if self._chance(0.1):
            self.process.loop.call_later(self._soon(), waiting.cancel)
        if self._chance(0.15):
            self._abort_later(record, out)
        if self._chance(0.03):
            self.process.loop.call_later(self._soon(), lambda: self.process.spawn(self._close_link))
        if self._chance(self.world.whims):
            self.link.on_loss.append(lambda: self._abort_now(record, out))
        if self._chance(0.05):
            self.link.on_loss.append(self._close_link_soon)
        try:
            receipt = await self.process.within("a receipt", record.deadline_s, waiting, record.link)
        except asyncio.CancelledError:
            self.world.counts["wait cancelled"] += 1
            out.abort_nowait("its task was cancelled")
            return "committed" if out.state == "committed" else "cancelled"
        except KvwireError as error:
            return error
        if not record.tainted and (record.incoming is None or record.incoming.state != "committed"):
            self.world.history.violate(EXACT, f"{record.request_id} has a receipt before its receiver has committed")
        if receipt.request_id != record.request_id:
            self.world.history.violate(EXACT, f"the receipt of {record.request_id} names {receipt.request_id}")
        return "committed"

    def _abort_now(self, record: Record, out: Outgoing) -> None:
        if record.sender.ended_at is not None:
            return
        self.world.counts["sender aborted"] += out.state == "active"
        self.world.counts["abort while suspended"] += out.state == "active" and self.link.suspended
        record.sender.aborted = True
        out.abort_nowait("whim")

    def _abort_later(self, record: Record, out: Outgoing) -> None:
        abort = partial(self._abort_now, record, out)
        if self.rng.random() < 0.5:
            self.process.loop.call_later(self._soon(), abort)
        else:
            self.process.loop.native(self._soon(), abort)

    def _close_link_soon(self) -> None:
        self.process.loop.call_later(self._soon(), lambda: self.process.spawn(self._close_link))

    async def _close_link(self) -> None:
        self.world.counts["link closed by its user"] += 1
        await self.process.within("closing a link", 1.0, self.link.close(), None)

    def _over(self, record: Record, held: Held, outcome: str | BaseException) -> None:
        end(self.process, record, record.sender, outcome)
        try:
            self.process.memory.check_free(held)
        except LeaseHeld as error:
            self.world.history.violate(BOUNDED, f"{record.request_id} is over at its sender, and {error}")
        self.process.memory.give_back(held)


def end(process: Process, record: Record, half: Half, outcome: str | BaseException) -> None:
    """Write down how one half ended."""
    half.outcome = outcome
    half.ended_at = process.world.clock.now
    text = outcome if isinstance(outcome, str) else type(outcome).__name__
    side = "sender" if half is record.sender else "receiver"
    process.world.history.note("end", record.request_id, side, text)
    process.world.counts[f"{side} saw {text}"] += 1
