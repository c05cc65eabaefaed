"""Simple models of TCP's congestion controls, for the bottleneck model: CUBIC (RFC 9438) and BBR (version 1)."""

from __future__ import annotations

from collections import deque

SEGMENT = 1448
INITIAL_WINDOW = 10 * SEGMENT
MOST_WINDOW = 16 * 1024 * 1024


class Flow:
    """A connection with a window. Subclasses say how it moves."""

    def __init__(self) -> None:
        self.cwnd: float = INITIAL_WINDOW
        self.inflight = 0
        self.srtt = self.min_rtt = 0.0
        self.delivered = self.wire = self.segments = self.resent = 0
        self._to_resend = 0
        self._limited = False

    def handshake(self, rtt_s: float) -> None:
        self.srtt = self.min_rtt = rtt_s

    def counters(self) -> tuple[int, ...]:
        """Delivered and sent bytes, segments sent, segments sent again."""
        return self.delivered, self.wire, self.segments, self.resent

    def room(self, now: float, step_s: float) -> float:
        """Bytes that it may send now."""
        return max(0.0, self.cwnd - self.inflight)

    def sent(self, now: float, nbytes: int, *, limited: bool) -> None:
        """`limited`: by who sends, not by the window."""
        again = min(self._to_resend, nbytes)
        self._to_resend -= again
        self.inflight += nbytes
        self.wire += nbytes
        self.segments += max(1, round(nbytes / SEGMENT))
        self.resent += round(again / SEGMENT)
        self._limited = limited

    def acknowledged(self, now: float, nbytes: int, rtt: float, sent_at: float, delivered_before: int) -> None:
        self.inflight -= nbytes
        self.delivered += nbytes
        self.min_rtt = min(self.min_rtt, rtt)
        weight = 1 - (7 / 8) ** max(1.0, nbytes / SEGMENT / 2)  # an acknowledgement for two segments, 1/8 each
        self.srtt += weight * (rtt - self.srtt)
        self.on_acknowledged(now, nbytes, 8 * (self.delivered - delivered_before) / max(1e-6, now - sent_at), rtt)

    def lost(self, now: float, nbytes: int) -> None:
        self.inflight -= nbytes
        self._to_resend += nbytes
        self.on_lost(now)

    def on_acknowledged(self, now: float, nbytes: int, delivery_bps: float, rtt: float) -> None: ...

    def on_lost(self, now: float) -> None: ...


class Cubic(Flow):
    """Slow start with HyStart's test of delay, then the cubic function or Reno's line, whichever is higher."""

    def __init__(self) -> None:
        super().__init__()
        self._slow_start = True
        self._most = self._begins_at = 0.0
        self._epoch: float | None = None
        self._lost_at = -1.0
        self._reno = 0.0

    def on_acknowledged(self, now: float, nbytes: int, delivery_bps: float, rtt: float) -> None:
        if self._limited or self.inflight + nbytes < self.cwnd / 2:
            return  # is_cwnd_limited: a window that is not used does not grow
        if self._slow_start:
            self.cwnd += nbytes
            if rtt > self.min_rtt + min(0.016, max(0.004, self.min_rtt / 8)):
                self._slow_start = False
        else:
            if self._epoch is None:
                self._epoch, self._begins_at = now, self.cwnd / SEGMENT
                self._most = max(self._most, self._begins_at)
                self._reno = self._begins_at
            k = ((self._most - self._begins_at) / 0.4) ** (1 / 3)
            target = 0.4 * (now - self._epoch + self.srtt - k) ** 3 + self._most
            self._reno += 0.53 * nbytes / self.cwnd
            window = self.cwnd / SEGMENT
            step = min(max(0.0, target - window), window / 2) * nbytes / self.cwnd
            self.cwnd = max(window + step, self._reno) * SEGMENT
        self.cwnd = min(self.cwnd, MOST_WINDOW)

    def on_lost(self, now: float) -> None:
        self._slow_start = False
        if now - self._lost_at < self.srtt:
            return
        self._lost_at = now
        window = self.cwnd / SEGMENT
        self._most = window if window >= self._most else 0.85 * window  # fast convergence
        self.cwnd = max(2 * SEGMENT, 0.7 * self.cwnd)
        self._epoch = None


class Bbr(Flow):
    """Sends at the largest delivery rate of ten round trips, probes it, and holds two bandwidth-delay products."""

    CYCLE = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)

    def __init__(self, phase: int = 0) -> None:
        super().__init__()
        self._rates: deque[tuple[float, float]] = deque()  # (when, rate), rates falling
        self._startup = True
        self._full_bps, self._rounds, self._round_ends = 0.0, 0, 0.0
        self._phase, self._phase_ends = phase, 0.0
        self._probe_rtt_at, self._probe_rtt_ends = 10.0, 0.0
        self._base: deque[tuple[float, float]] = deque()  # (when, RTT), RTTs rising
        self._credit = 0.0

    @property
    def _bps(self) -> float:
        return self._rates[0][1] if self._rates else 8 * INITIAL_WINDOW / self._path_rtt

    @property
    def _path_rtt(self) -> float:
        """The smallest RTT of the last 10 s."""
        return self._base[0][1] if self._base else self.min_rtt

    def room(self, now: float, step_s: float) -> float:
        gain = 2.89 if self._startup else self.CYCLE[self._phase % 8]
        if now >= self._phase_ends:
            self._phase, self._phase_ends = self._phase + 1, now + self._path_rtt
        if now >= self._probe_rtt_at:
            self._probe_rtt_at, self._probe_rtt_ends = now + 10.0, now + 0.2
        self.cwnd = max(4 * SEGMENT, (2.89 if self._startup else 2.0) * self._bps / 8 * self._path_rtt)
        if now < self._probe_rtt_ends:
            self.cwnd = 4 * SEGMENT
        return min(max(0.0, self.cwnd - self.inflight), max(SEGMENT, gain * self._bps / 8 * step_s))

    def on_acknowledged(self, now: float, nbytes: int, delivery_bps: float, rtt: float) -> None:
        while self._base and (self._base[-1][1] >= rtt):
            self._base.pop()
        self._base.append((now, rtt))
        while self._base[0][0] < now - 10.5:
            self._base.popleft()
        while self._rates and self._rates[0][0] < now - 10 * self.srtt and len(self._rates) > 1:
            self._rates.popleft()
        probing_rtt = now < self._probe_rtt_ends + rtt
        if delivery_bps >= self._bps or not (self._limited or probing_rtt):
            while self._rates and self._rates[-1][1] <= delivery_bps:
                self._rates.pop()
            self._rates.append((now, delivery_bps))
        if self._startup and now >= self._round_ends and not self._limited:
            self._round_ends = now + self.srtt
            self._rounds = 0 if self._bps > 1.25 * self._full_bps else self._rounds + 1
            self._full_bps = max(self._full_bps, self._bps)
            self._startup = self._rounds < 3


class Constant(Flow):
    """Sends at one rate and looks at nothing."""

    def __init__(self, rate_bps: float) -> None:
        super().__init__()
        self._rate_bps = rate_bps
        self._carry = 0.0
        self._asked_at = -1.0

    def room(self, now: float, step_s: float) -> float:
        if now > self._asked_at:
            self._asked_at, self._carry = now, self._carry + self._rate_bps / 8 * step_s
        return self._carry

    def sent(self, now: float, nbytes: int, *, limited: bool) -> None:
        super().sent(now, nbytes, limited=limited)
        self._carry -= nbytes
