"""What leaves over a link: looks at it, asks the controller, tells the engine, and reports.

One tick: the workers sample their lanes (`EngineLink.request_sample`), Python reads what they counted, the controller
decides, and the next tick is set. Nobody ticks on a link that carries nothing of this side's and has no listener.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvwire._ext.lanes import EngineLink
from kvwire.congestion import (
    Budget,
    Budgeted,
    Decision,
    Guarded,
    LanePlanner,
    PathSample,
    Stragglers,
    lost,
    make_controller,
    misled,
    stalled,
)
from kvwire.errors import ControllerFault
from kvwire.sampling import Sampler
from kvwire.sockets import LONG_RTT_S
from kvwire.telemetry import HEADER_BYTES, HEADER_BYTES_IPV6, LinkState, Telemetry

if TYPE_CHECKING:
    from kvwire._ext.lanes import LaneStats, LinkStats
    from kvwire.link import Link

log = logging.getLogger("kvwire")

FIRST_TICK_S = 0.02
"""From the first look of a burst, which has nothing to compare with, to the next."""
REST_S = 5.0
"""How often a link that carries nothing is looked after: its stock of tickets, and lanes that are no longer needed."""
ATTEMPT_S, ATTEMPT_RTTS = 1.0, 3.0
"""What a fresh connection has to be made in, the longer of the two."""
LANE_SHARES = 2.0
"""A lane may send at so many times its share of the peak: the link's bucket is to bind, and not the kernel's pacing."""
HEDGE_BYTES = 4 * 1024 * 1024
"""Of a lane at once; the engine keeps to the budget of the link (docs/design.md)."""


class Egress:
    """Of one link."""

    def __init__(self, link: Link, engine_link: EngineLink, planner: LanePlanner) -> None:
        self._link = link
        self._engine = engine_link
        self._planner = planner
        self._sampler = Sampler()
        self._stragglers = Stragglers()
        self._timer: asyncio.TimerHandle | None = None
        self._sampled = 0
        self._pausing = self._fresh = True
        self._sending = False
        self._told: tuple[int, int, int, int] = 0, 0, 0, 0
        self._decision = Decision()
        self._budget: Budget | None = None
        self._worst: list[int] = []  # lanes to be replaced, the worst first
        self._slow: set[int] = set()  # those of them that do move, and far too slowly
        self.attempt_s = ATTEMPT_S
        """What a fresh connection has to be made in."""
        self._lost = self._resumes = 0
        self._guarded = Guarded(make_controller(link.config.controller))
        self._controller = Budgeted(self._guarded)  # a budget outlives a controller that fails
        self._fault: ControllerFault | None = None
        header = HEADER_BYTES_IPV6 if ":" in link.peer else HEADER_BYTES
        self.telemetry = Telemetry(header_bytes=header, upwards=link._node.listeners)
        self.lanes_wanted = link._session.lanes or planner.start(0.0)
        self._found = self._invited = 0  # lanes that an acceptor has met, and that it has said it wants
        self.stalled = 0
        """Lanes that make no progress."""
        self.long_path = False
        """Whether the path leaves the site."""

    # --- the tick -------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something is to be sent, or somebody listens: look at once, and again from there on."""
        if self._link.suspended or self._sending or not self._link._greeted.done():
            return
        if self._pausing:
            self._pausing, self._fresh = False, True
            self._sampled = self._engine.sampled
            self._sampler.begin(self._engine.link_stats())
            self._obey(self._controller.decide(time.monotonic()))  # the first byte is to keep to it
        self._sending = True
        self._schedule(0.0)

    def greeted(self) -> None:
        """The link is up: somebody may wait to hear of it."""
        if self._interval_s is not None:
            self.wake()

    def _schedule(self, seconds: float) -> None:
        self._cancel()
        if not self._link.closed:
            self._timer = self._link.loop.call_later(seconds, self._tick)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        link = self._link
        if link.suspended:
            self._pausing, self._sending = True, False
        elif self._sending or self._interval_s is not None:
            self._sending = bool(link._exchange.outgoing)  # once more after the last one: totals are to be complete
            self._engine.request_sample()  # what comes of it: `engine_changed`
        else:
            self._pausing = True
            self.stalled, self._worst = 0, []
            self._rest()

    @property
    def _interval_s(self) -> float | None:
        """How often somebody wants a report; None: nobody does."""
        node_s = 1.0 if self._link._node.listeners else None
        return min((wanted for wanted in (node_s, self.telemetry.interval_s) if wanted), default=None)

    def engine_changed(self, lanes: Sequence[LaneStats]) -> None:
        """The engine has news of the link; that the workers have looked at all lanes may be among them."""
        if self._engine.sampled == self._sampled or self._link.closed or self._link.suspended:
            return
        self._sampled = self._engine.sampled
        first, self._fresh = self._fresh, False
        next_tick_s = self._decision.next_tick_s
        try:
            stats = self._engine.link_stats()
            sample = self._sampler.take(lanes, stats, self._link._lanes.congestion, resumed=first)
            next_tick_s = FIRST_TICK_S if sample is None else self._look(time.monotonic(), sample, stats)
        finally:  # a bug must not make this the last tick
            self._schedule(next_tick_s)

    def _look(self, now: float, sample: PathSample, stats: LinkStats) -> float:
        """Everything that follows from a sample; when the next one is due."""
        self.long_path = sample.min_rtt_s > LONG_RTT_S
        self._controller.on_sample(now, sample)
        self._obey(self._controller.decide(now))
        self._mind_stalls(now, sample)
        if self._link._dialler is None and not self._invited and self._found != len(sample.lanes):
            self._found = len(sample.lanes)  # those that the dialler thinks right, so far
            self._planner.begin(self._found)
        if sample.lanes:
            self._set_lanes(self._decision.lanes or self._planner.wanted(now, sample))
        self._link._compression.look(now, sample, stats)
        self.telemetry.tick(now, sample, self._state)
        if self._guarded.fault is not self._fault:
            self._fault = self._guarded.fault
            log.warning("link to %s: %s", self._link.peer, self._fault)
        # Nobody is in a hurry on a link that only listens.
        return self._decision.next_tick_s if self._sending else max(self._decision.next_tick_s, self._interval_s or 0.0)

    def _state(self) -> LinkState:
        link, exchange = self._link, self._link._exchange
        outgoing, incoming = [0, 0, 0], [0, 0, 0]
        for transfer in exchange.outgoing.values():
            outgoing[transfer.klass] += 1
        for arriving in exchange.incoming.values():
            incoming[arriving.klass] += 1
        controller = link.config.controller
        lease_s = self._controller.lease_s(time.monotonic())
        return LinkState(
            time_s=time.time(),
            link=link._session.link_id.hex(),
            peer=link.peer,
            tenant=link.tenant,
            lanes_wanted=self.lanes_wanted,
            lanes_lost=self._lost,
            resumes=self._resumes,
            controller="none" if self._guarded.replaced else str(getattr(controller, "__name__", controller)),
            controller_faults=self._guarded.faults,
            decision=self._decision,
            budget=self._budget,
            lease_left_s=lease_s or 0.0,
            outgoing=(outgoing[0], outgoing[1], outgoing[2]),
            incoming=(incoming[0], incoming[1], incoming[2]),
            memory_bytes=self._engine.memory_bytes,
            pacing_refused=self._engine.pacing_refused,
            compression=link._compression.state,
        )

    def _obey(self, decision: Decision) -> None:
        """Have the engine keep to a decision."""
        self._decision = decision
        pace_bps = decision.pace_bps or 0.0
        peak_bps = (decision.peak_bps or 2 * pace_bps) if pace_bps else 0.0
        lane_bps = LANE_SHARES * peak_bps / max(1, self._link.lanes)
        told = int(pace_bps / 8), int(peak_bps / 8), int(lane_bps / 8), decision.inflight_cap or 0
        if told != self._told:
            self._told = told
            self._engine.set_pace(*told)

    # --- lanes ----------------------------------------------------------------------------------------------------

    def _set_lanes(self, wanted: int) -> None:
        link = self._link
        wanted = link.config.lanes or wanted  # what the application has fixed, no controller changes
        self.lanes_wanted = wanted
        if link._dialler is not None:
            link._dialler.adjust()
        elif wanted != (self._invited or self._found) and link.config.lanes is None:
            self._invited = wanted
            link._session.request_lanes(time.monotonic(), wanted)
            link._pump()

    def _mind_stalls(self, now: float, sample: PathSample) -> None:
        """Hedge what waits on lanes that make no progress, and have them replaced, and those that are far too slow."""
        for lane in stalled(sample):
            self._engine.hedge(lane, HEDGE_BYTES)
        gone = lost(sample)
        self._slow |= set(self._stragglers.straggling(now, sample))
        self._slow &= {lane.lane for lane in sample.lanes}
        self._slow = self._slow or set(misled(sample))  # a part of them at a time
        self._worst = [*gone, *(lane for lane in sorted(self._slow) if lane not in gone)]
        self.stalled = len(self._worst)
        self.attempt_s = max(ATTEMPT_S, ATTEMPT_RTTS * sample.min_rtt_s)
        dialler = self._link._dialler
        if self._worst and dialler is not None:
            dialler.replace(self._worst)
        elif self._worst and sample.landed_bytes:
            self._engine.close_lane(self._worst[0])  # the dialler will make another

    def lane_up(self, lane: int) -> None:
        """A fresh lane: the one that has stood still for longest goes, and what it carried leaves on the others."""
        self._controller.on_lane(time.monotonic(), lane, True, "")
        if self._worst:
            self.stalled -= 1
            self._engine.close_lane(self._worst.pop(0))

    def lane_down(self, lane: int, reason: str, *, lost: bool) -> None:
        """A lane has ended; `lost`: not because it was no longer needed."""
        self._lost += lost
        self._slow.discard(lane)
        if lane in self._worst:
            self._worst.remove(lane)
            self.stalled -= 1
        self._controller.on_lane(time.monotonic(), lane, False, reason)

    def _rest(self) -> None:
        """The link carries nothing: look after it now and then."""
        if self._link._dialler is not None:
            self.lanes_wanted = self._planner.rest(time.monotonic())
            self._link._dialler.adjust()
            self._schedule(REST_S)

    # --- what others want -----------------------------------------------------------------------------------------

    def set_budget(self, budget: Budget) -> None:
        """A scheduler's word; it counts from now on."""
        now = time.monotonic()
        self._budget = budget
        self._controller.on_budget(now, budget)
        self._obey(self._controller.decide(now))

    def landed(self, nbytes: int, queue_s: float, net_s: float) -> None:
        """A transfer of this side's has committed."""
        self._controller.on_landed(time.monotonic(), nbytes, queue_s, net_s)

    def suspended(self) -> None:
        """The connection is lost, and the lanes with it."""
        self._cancel()
        self._pausing, self._sending = True, False
        self.stalled, self._worst, self._found, self._invited = 0, [], 0, 0

    def resumed(self) -> None:
        """It is back."""
        self._resumes += 1
        self.wake()

    def stop(self) -> None:
        """The link has ended."""
        self._cancel()
        self.telemetry.close()
