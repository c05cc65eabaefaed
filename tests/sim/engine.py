"""A stand-in for the engine: what its threads do, as steps on the virtual clock, by the real pure classes.

`Engine` and `EngineLink` have the interface of `kvwire._ext.engine` and `kvwire._ext.lanes`; lanes and transfers are
in files of their own. A step is a stretch of a worker's work that holds a lock or none: whatever may come between two
of them in the real engine (an abort, the end of a lane, the other side's news) may come between two of them here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvwire._ext.cipher import Cipher
from kvwire._ext.pacer import HedgeBudget, Pacer
from kvwire._ext.seal import MOST
from kvwire._ext.sendqueue import SendQueue
from kvwire.errors import Closed
from tests.sim.frames import PlainFrames, SealedFrames
from tests.sim.lane import Lane, Reason
from tests.sim.sockets import here
from tests.sim.transfers import SimInTransfer, SimOutTransfer

LONG_STEP_S = 0.05
AUTO = ("auto_encoded_bytes", "auto_encode_ns", "auto_decoded_bytes", "auto_decode_ns")
CODED = ("encoded_bytes", "encode_ns", "coded_plain_bytes", "coded_wire_bytes", "decoded_bytes", "decode_ns", *AUTO)


class SimEngine:
    """Workers are steps on the clock; `fileno` is an eventfd that only the process's own loop knows."""

    def __init__(
        self,
        workers: int = 2,
        stream_bytes: int = 512 * 1024,
        max_cell_bytes: int = 256 * 1024,
        rekey: tuple[int, int, float] = MOST,
        cipher: Cipher | None = None,
    ) -> None:
        del workers, stream_bytes
        self.cipher = cipher
        self.rekey = rekey
        self.loop = here()
        self.host = self.loop.host
        process = self.loop.process
        self.probe = process.probe
        self.rng = process.rng("engine")
        self.max_cell_bytes = max_cell_bytes
        self.step_s = self.rng.choice((1e-6, 20e-6, 500e-6))
        self._signal_s = 0.2 if process.tight else self.rng.choice((0.0, 1e-4, 0.1))
        """How long a worker may be kept from telling Python what it has done: others want the core, too."""
        self.open = True
        self.links: list[SimEngineLink] = []
        self._fd = self.host.net.new_fd()
        self._dirty: dict[Any, None] = {}

    def later(self, run: Callable[[], None]) -> None:
        """The next step of a worker, after a while that nobody can know."""
        long = self.rng.random() < 0.01
        self.loop.native((LONG_STEP_S if long else self.step_s) * self.rng.random(), run)

    def frames(self, secrets: tuple[bytes, bytes] | None) -> PlainFrames | SealedFrames:
        """How a lane with these secrets, or without any, sends and receives."""
        if secrets is None:
            return PlainFrames()
        assert self.cipher is not None
        return SealedFrames(self.cipher, secrets, self.rekey)

    def mark(self, handle: Any) -> None:
        """Python has to look at this handle."""
        self._dirty[handle] = None
        if len(self._dirty) == 1:
            self.loop.native(self._signal_s * self.rng.random(), lambda: self.loop.signal(self._fd))

    def check(self) -> None:
        if not self.open:
            raise Closed("the engine is closed")

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> list[Any]:
        handles = list(self._dirty)
        self._dirty.clear()
        return handles

    @property
    def now_ns(self) -> int:
        return int(self.loop.time() * 1e9)

    def gil_entries(self) -> int:
        return 0

    def close(self) -> None:
        if self.open:
            self.open = False
            for link in self.links:
                link.stop_lanes()


class SimEngineLink:
    """Lanes, send queue and transfers of one link."""

    def __init__(self, engine: SimEngine) -> None:
        engine.check()
        self.engine = engine
        self.queue = SendQueue(engine.now_ns)
        self.pacer = Pacer(engine.now_ns)
        self.hedge_budget = HedgeBudget()
        self.inflight_cap = 0
        self.pacing_refused = False
        self.sampled = 0
        self._sampling = False
        self._wake_due = False
        self._held_ns = 0
        """Since when the pacer or the cap keeps lanes from claiming; 0: neither does."""
        self._paced_ns = 0
        self._ended_sent_bytes = 0
        self.acked_bytes = self.hedged_bytes = self.resent_bytes = 0
        self.lanes: list[Lane] = []
        self.out: dict[int, SimOutTransfer] = {}
        self.inc: dict[int, SimInTransfer] = {}
        self.queued: dict[int, SimOutTransfer] = {}
        """Whose runs may be in the queue or in a log, by the number that stands for it there: its id."""
        self.receipts: list[int] = []
        self.newest_in = 0
        self.closed = False
        engine.links.append(self)

    def check(self) -> None:
        self.engine.check()
        if self.closed:
            raise Closed("the link is closed")

    def add_lane(self, fd: int, lane: int, incarnation: int, secrets: tuple[bytes, bytes] | None = None) -> None:
        end = self.engine.host.ends.get(fd)
        try:
            self.check()
        except BaseException:
            if end is not None:
                end.close()
            raise
        if end is not None:
            self.engine.probe.lane_made(end, secrets, sealed=self.engine.cipher is not None)
            self.lanes.append(Lane(self, end, lane, incarnation, self.engine.frames(secrets)))

    @property
    def lanes_open(self) -> int:
        return sum(not lane.retired for lane in self.lanes)

    @property
    def queued_runs(self) -> int:
        return len(self.queue)

    def close_lane(self, lane: int) -> None:
        self.check()
        for open_lane in self.lanes:
            if open_lane.number == lane and not open_lane.retired:
                open_lane.close_request = True
                open_lane.poke()

    def drain_lane(self, lane: int) -> None:
        self.check()
        for open_lane in self.lanes:
            if open_lane.number == lane and not open_lane.retired:
                open_lane.drain()

    def hedge(self, lane: int, most_bytes: int) -> int:
        self.check()
        copied = 0
        for stalled in self.lanes:
            if stalled.number == lane and not stalled.retired:
                copied += stalled.hedge(min(most_bytes - copied, self.hedge_budget.left_bytes))
        self.wake()
        return copied

    def set_pace(self, average_Bps: int, peak_Bps: int, lane_Bps: int, inflight_cap: int) -> None:
        self.check()
        del lane_Bps  # the kernel's, which paces nothing here
        self.pacer.set(average_Bps, peak_Bps, self.engine.now_ns)
        self.inflight_cap = inflight_cap
        self.wake()

    def set_affordable(self, on: bool) -> None:
        """Cells are never coded here."""
        self.check()
        del on

    def may_claim(self) -> bool:
        """Whether something is ready, and neither the pacer nor the cap on what is in flight is in the way."""
        now_ns = self.engine.now_ns
        wait_ns = self.pacer.wait_ns(now_ns) if self.queue else 0
        held = bool(self.queue) and (wait_ns > 0 or 0 < self.inflight_cap <= self.inflight_bytes)
        if self._held_ns and not held:
            self._paced_ns += now_ns - self._held_ns
        self._held_ns = (self._held_ns or now_ns) if held else 0
        if wait_ns and not self._wake_due:
            self._wake_due = True
            self.engine.loop.native(wait_ns / 1e9, self._tokens)
        return bool(self.queue) and not held

    def _tokens(self) -> None:
        self._wake_due = False
        self.wake()

    def request_sample(self) -> None:
        self.check()
        if not self._sampling:
            self._sampling = True
            self.engine.later(self._sample)

    def _sample(self) -> None:
        self._sampling = False
        self.sampled += 1
        self.engine.mark(self)

    @property
    def memory_bytes(self) -> int:
        """Of lanes that are Python objects: nobody asks for a true figure."""
        return len(self.lanes)

    @property
    def inflight_bytes(self) -> int:
        return sum(lane.unacked_bytes for lane in self.lanes)

    def take_closed(self) -> list[tuple[int, int, int, str, int]]:
        gone = [lane for lane in self.lanes if lane.retired]
        self._ended_sent_bytes += sum(lane.sent_bytes for lane in gone)
        self.lanes = [lane for lane in self.lanes if not lane.retired]
        return [(lane.number, lane.incarnation, lane.reason, lane.detail, lane.rx_seq) for lane in gone]

    def lane_stats(self) -> list[dict[str, Any]]:
        return [lane.stats() for lane in self.lanes if not lane.retired]

    def link_stats(self) -> dict[str, Any]:
        now_ns = self.engine.now_ns
        return {
            "now_ns": now_ns,
            "queued_bytes": self.queue.queued_bytes,
            "oldest_ns": tuple(now_ns - ready_ns if ready_ns else 0 for ready_ns in self.queue.oldest_ns),
            "idle_ns": self.queue.idle_ns(now_ns),
            "paced_ns": self._paced_ns + (now_ns - self._held_ns if self._held_ns else 0),
            "sent_bytes": self._ended_sent_bytes + sum(lane.sent_bytes for lane in self.lanes),
            "acked_bytes": self.acked_bytes,
            "hedged_bytes": self.hedged_bytes,
            "resent_bytes": self.resent_bytes,
            "inflight_bytes": self.inflight_bytes,
            **dict.fromkeys(CODED, 0),
        }

    def wake(self) -> None:
        """There is something to send: every lane looks."""
        for lane in self.lanes:
            lane.poke()

    def requeue(self, owner: int, segment: int, first: int, count: int) -> int:
        """A run goes back to the queue in its old place, or is dropped if its transfer is over; returns its bytes."""
        out = self.queued[owner]
        if out.state != "active" or out.suspended:
            return 0
        out.queue(segment, first, count)
        return out.nbytes(segment, first, count)

    def stop_lanes(self) -> None:
        """Close all lanes, waiting for local workers: what they are in the middle of is done now."""
        for lane in self.lanes:
            if not lane.retired:
                lane.finish_step()
                lane.fail(Reason.REQUESTED, "closed by this side")
                lane.retire()

    def suspend(self) -> None:
        """Close all lanes and empty the queue; transfers stay, and `ready` only marks until they are resumed."""
        self.check()
        for out in self.out.values():  # first: what one lane gives back must not leave on the next
            out.suspended = True
        while self.queue.claim(1 << 20, now_ns=self.engine.now_ns) is not None:
            pass
        self.stop_lanes()
        self.receipts.clear()  # a ledger says the same, and to another life of the peer they mean other transfers
        for incoming in self.inc.values():
            self.engine.probe.suspended(incoming, incoming.landed_cells())

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.stop_lanes()
        for out in list(self.out.values()):
            out.end("lost")
        for incoming in list(self.inc.values()):
            incoming.end("lost")
