"""A bottleneck in virtual time: senders, each with TCP flows and perhaps a controller, share one drop-tail queue.

Time goes in steps of 2 ms. What a flow sends in a step is one chunk, which waits in the queue in order, leaves at the
link's rate, and is acknowledged one propagation RTT later: so delays, and the loop that a controller closes, are those
of the real thing. What is dropped is known when what was sent after it is acknowledged, and is sent again first. RTTs
are smoothed as the kernel does it and looked at by ticks. Random only by seed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvwire.congestion import Controller, Decision, LaneSample, PathSample
from tests.unit.path_samples import lane_sample, path_sample
from tests.unit.tcp_flows import SEGMENT, Constant, Flow

STEP_S = 0.002
BURST_S = 0.01
"""What the pacer lets through at once."""


@dataclass(slots=True)
class Chunk:
    flow: Flow
    nbytes: int
    lost: int
    """Further bytes, which were sent with it and dropped."""
    sent_at: float
    delivered_before: int


@dataclass(frozen=True, slots=True)
class Moment:
    """What a plot shows, every 20 ms: means since the last one, except the queue and the cap, which are of now."""

    now: float
    link_bps: float
    queue_s: float
    """How long what arrives now will wait."""
    rates_bps: tuple[float, ...]
    """Delivered, by sender."""
    paces_bps: tuple[float | None, ...]
    rtt_s: float
    """As the first sender's kernel says."""


@dataclass(slots=True)
class Sender:
    """Flows that take turns; a controller caps their sum. `starts` and `ends`: when it has something to send, in which
    time it offers `offered_bps`, or as much as is taken."""

    flows: Sequence[Flow]
    controller: Controller | None = None
    starts: float = 0.0
    ends: float = float("inf")
    offered_bps: float | None = None
    decision: Decision = field(default_factory=Decision)
    samples: list[PathSample] = field(default_factory=list)
    decided: list[tuple[float, Decision]] = field(default_factory=list)
    _tokens: float = 0.0
    _offered: float = 0.0
    _idle_s: float = 0.0
    _paced_s: float = 0.0
    _sampled_at: float = 0.0
    _next_tick: float = 0.0
    _before: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def delivered(self) -> int:
        return sum(flow.delivered for flow in self.flows)

    def send(self, now: float) -> list[Chunk]:
        """The chunks of this step."""
        pace = self.decision.pace_bps
        if pace is None:
            self._tokens = float("inf")
        else:
            self._tokens = min(self._tokens, pace * BURST_S / 8) + pace * STEP_S / 8
        if not self.starts <= now < self.ends:
            self._offered = 0.0
        elif self.offered_bps is None:
            self._offered = float("inf")
        else:
            self._offered += self.offered_bps * STEP_S / 8
        chunks = []
        share = min(self._tokens, self._offered) / len(self.flows)
        hungry = False
        for turn in (share, float("inf")):  # what one leaves, another one takes
            for flow in self.flows:
                room = flow.room(now, STEP_S)
                nbytes = int(min(room, turn, self._tokens, self._offered))
                hungry |= room >= SEGMENT and nbytes < room
                if nbytes >= SEGMENT:
                    self._tokens -= nbytes
                    self._offered -= nbytes
                    flow.sent(now, nbytes, limited=nbytes + SEGMENT < room)
                    chunks.append(Chunk(flow, nbytes, 0, now, flow.delivered))
        if self._offered < SEGMENT:
            self._idle_s += STEP_S
        elif hungry and self._tokens < SEGMENT:
            self._paced_s += STEP_S
        return chunks

    def tick(self, now: float) -> None:
        if self.controller is None or now < self._next_tick:
            return
        sample = self._sample(now)
        self.samples.append(sample)
        self.controller.on_sample(now, sample)
        self.decision = self.controller.decide(now)
        self.decided.append((now, self.decision))
        self._next_tick = now + self.decision.next_tick_s

    def _sample(self, now: float) -> PathSample:
        counters = [flow.counters() for flow in self.flows]
        before = self._before or [(0,) * len(counter) for counter in counters]
        lanes: list[LaneSample] = []
        for number, flow in enumerate(self.flows):
            delivered, wire, segments, resent = (a - b for a, b in zip(counters[number], before[number], strict=True))
            known = {"sent_bytes": wire - resent * SEGMENT, "wire_bytes": wire, "segments": segments}
            known |= {"delivered_bytes": delivered, "landed_bytes": delivered, "retransmitted_segments": resent}
            known |= {"retransmitted_bytes": resent * SEGMENT, "unacked_bytes": flow.inflight}
            rtts = {"rtt_s": flow.srtt, "min_rtt_s": flow.min_rtt}
            lanes.append(lane_sample(number, inflight_bytes=flow.inflight, age_s=now, **known, **rtts))
        sample = path_sample(now - self._sampled_at, tuple(lanes), idle_s=self._idle_s, paced_s=self._paced_s)
        self._before, self._sampled_at, self._idle_s, self._paced_s = counters, now, 0.0, 0.0
        return sample


class Bottleneck:
    """`rates`: (from when, bit/s). `queue_bytes`: what waits at most. `loss`: of segments, at random, behind the queue.
    `jitter_s`: what an RTT is longer at most."""

    def __init__(
        self,
        senders: Sequence[Sender],
        rates: Sequence[tuple[float, float]],
        *,
        rtt_s: float,
        queue_bytes: float,
        loss: float = 0.0,
        jitter_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.senders, self.rates, self.rtt_s, self.queue_bytes = senders, list(rates), rtt_s, queue_bytes
        self.jitter_s = jitter_s
        self.now = 0.0
        self.trace: list[Moment] = []
        self.dropped_at: list[float] = []
        self._random = random.Random(seed)
        self._loss = loss
        self._until_loss = self._gap()
        self._queue: deque[Chunk] = deque()
        self._queued = 0
        self._acks: deque[tuple[float, Chunk]] = deque()
        self._served = 0.0
        self._delivered = [0] * len(senders)
        self._steps = 0
        for sender in senders:
            for flow in sender.flows:
                flow.handshake(rtt_s)

    @property
    def rate_bps(self) -> float:
        return next(rate for since, rate in reversed(self.rates) if since <= self.now)

    @property
    def queue_s(self) -> float:
        return 8 * self._queued / self.rate_bps

    def run(self, seconds: float) -> Bottleneck:
        for _ in range(round(seconds / STEP_S)):
            self._steps += 1
            self.now = self._steps * STEP_S
            self._serve()
            while self._acks and self._acks[0][0] <= self.now:
                self._acknowledge(self._acks.popleft()[1])
            for turn in range(len(self.senders)):  # nobody is always the first at the queue
                for chunk in self.senders[(turn + self._steps) % len(self.senders)].send(self.now):
                    self._enqueue(chunk)
            for sender in self.senders:
                sender.tick(self.now)
            if self._steps % 10 == 0:
                self._record()
        return self

    def _enqueue(self, chunk: Chunk) -> None:
        fits = max(0, min(chunk.nbytes, int(self.queue_bytes - self._queued)))
        if fits < chunk.nbytes:
            self.dropped_at.append(self.now)
        chunk.nbytes, chunk.lost = fits, chunk.nbytes - fits
        self._queued += fits
        self._queue.append(chunk)

    def _serve(self) -> None:
        self._served += self.rate_bps * STEP_S / 8
        while self._queue:
            chunk = self._queue[0]
            piece = min(chunk.nbytes, int(self._served))  # of a burst, what comes out is spread over time
            self._served -= piece
            self._queued -= piece
            chunk.nbytes -= piece
            lost = self._random_losses(piece)
            part = Chunk(chunk.flow, piece - lost, lost, chunk.sent_at, chunk.delivered_before)
            self._acks.append((self.now + self.rtt_s, part))
            if chunk.nbytes:
                return
            part.lost += chunk.lost  # known when what was sent with it is acknowledged
            self._queue.popleft()
        self._served = 0.0

    def _random_losses(self, nbytes: int) -> int:
        lost = 0
        self._until_loss -= nbytes / SEGMENT
        while self._until_loss < 0:
            lost += SEGMENT
            self._until_loss += self._gap()
        if lost:
            self.dropped_at.append(self.now)
        return min(lost, nbytes)

    def _gap(self) -> float:
        return self._random.expovariate(self._loss) if self._loss else float("inf")

    def _acknowledge(self, chunk: Chunk) -> None:
        rtt = self.now - chunk.sent_at + self._random.uniform(0.0, self.jitter_s)
        if chunk.nbytes:
            chunk.flow.acknowledged(self.now, chunk.nbytes, rtt, chunk.sent_at, chunk.delivered_before)
        if chunk.lost:
            chunk.flow.lost(self.now, chunk.lost)

    def _record(self) -> None:
        delivered = [sender.delivered for sender in self.senders]
        rates = [8 * (a - b) / (10 * STEP_S) for a, b in zip(delivered, self._delivered, strict=True)]
        self._delivered = delivered
        paces = tuple(sender.decision.pace_bps for sender in self.senders)
        rtt = max(flow.srtt for flow in self.senders[0].flows)
        self.trace.append(Moment(self.now, self.rate_bps, self.queue_s, tuple(rates), paces, rtt))

    # --- what tests ask -----------------------------------------------------------------------------------------

    def share(self, start: float, end: float, sender: int = 0) -> float:
        """What a sender delivered from `start` to `end`, of what the link could."""
        moments = [moment for moment in self.trace if start < moment.now <= end]
        return sum(m.rates_bps[sender] for m in moments) / sum(m.link_bps for m in moments)

    def queue_p95_s(self, start: float, end: float) -> float:
        waits = sorted(moment.queue_s for moment in self.trace if start < moment.now <= end)
        return waits[int(0.95 * len(waits))]


def constant(rate_bps: float, starts: float = 0.0, ends: float = float("inf")) -> Sender:
    """Cross traffic that does not care."""
    return Sender([Constant(rate_bps)], starts=starts, ends=ends)
