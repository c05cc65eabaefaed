"""What the way between two hosts is like, and one direction of a connection over it."""

from __future__ import annotations

import errno
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvwire._ext.crc32c import crc32c

if TYPE_CHECKING:
    from tests.sim.network import End, Network

HICCUP_S = 0.1


class Path:
    """What the way between two hosts is like."""

    def __init__(self, rng: random.Random) -> None:
        self.latency_s = rng.choice((20e-6, 200e-6, 2e-3, 20e-3))
        self.jitter_s = self.latency_s * rng.random()
        self.rate_bps = rng.choice((2e6, 2e7, 1e9))
        self.window_bytes = rng.choice((6 << 10, 16 << 10, 64 << 10))
        self.cut_share = rng.choice((0.0, 0.05, 0.3))
        self.hiccup_share = rng.choice((0.0, 0.0, 0.02))
        """Of segments that come late, up to HICCUP_S, and with them all that are behind."""
        self.parted = False


class Flow:
    """One direction of a connection: bytes on their way from one end into the other's receive buffer."""

    def __init__(self, net: Network, path: Path, source: End, target: End) -> None:
        self.net = net
        self.path = path
        self.source = source
        self.target = target
        self.hole = False
        """Nothing comes through, and nobody is told."""
        self.corrupt = False
        """The next segment is damaged, once."""
        self.used_bytes = 0  # sent, and not read by the other side's application
        self._unacked = 0  # sent, and not acknowledged by the other side's kernel
        self._unheard = 0  # of those: in its receive buffer, and it cannot say so
        self._progress_at = 0.0
        self._watched = False
        self._free_at = 0.0
        self._arrives_at = 0.0
        self._held: deque[bytes | None] = deque()
        self.said = bytearray()
        """Of a sealed control connection, all that was ever sent, before any damage."""
        self._sent_bytes = 0
        self.damaged_at: int | None = None
        """Which byte of all that was sent is not the one that comes."""

    @property
    def blocked(self) -> bool:
        return self.hole or self.path.parted or self.target.host.down

    def send(self, data: bytes) -> int:
        """As the kernel takes it: as much as there is room for, in segments that begin and end anywhere."""
        rng, clock = self.net.rng, self.net.clock
        room = self.path.window_bytes - self.used_bytes
        if room <= 0:
            self.source.starved = True
            raise BlockingIOError(errno.EAGAIN, "no room")
        data = data[:room]
        self.used_bytes += len(data)
        if not self._unacked:
            self._progress_at = clock.now
        rest = data
        while rest and rng.random() < self.path.cut_share:
            cut = rng.choice((1, rng.randint(1, len(rest))))
            self.net.count("cut segment")
            self._segment(rest[:cut])
            rest = rest[cut:]
        if rest:
            self._segment(rest)
        if not self._watched:
            self._watched = True
            clock.at(clock.now + self.source.user_timeout_s, self._look)
        return len(data)

    def _segment(self, data: bytes | None) -> None:
        rng, now = self.net.rng, self.net.clock.now
        if self.source.connection.secret:  # TLS has randomness of its own: only lengths are the same every time
            self.said += data or b""
            self.net.crc = crc32c(len(data or b"").to_bytes(4, "little"), self.net.crc)
        else:
            self.net.crc = crc32c(data or b"", self.net.crc)
        if data and self.corrupt:
            data = self._damaged(data)
        self._sent_bytes += len(data or b"")
        self._unacked += len(data or b"")
        self._free_at = max(self._free_at, now) + len(data or b"") / self.path.rate_bps
        if rng.random() < self.path.hiccup_share:
            self._free_at += HICCUP_S * rng.random()
        jitter = self.path.jitter_s * rng.random()
        self._arrives_at = max(self._arrives_at, self._free_at + self.path.latency_s + jitter)
        self.net.clock.at(self._arrives_at, self._arrive, data)

    def _damaged(self, data: bytes) -> bytes:
        """One bit of it is another."""
        self.corrupt = False
        at = self.net.rng.randrange(len(data))
        self.damaged_at = self._sent_bytes + at
        self.net.on_damage(self.source.connection)
        return data[:at] + bytes([data[at] ^ (1 << self.net.rng.randrange(8))]) + data[at + 1 :]

    def finish(self) -> None:
        """The source sends no more: FIN, behind everything that is on its way."""
        self._segment(None)

    def behind(self, run: Callable[[object], None]) -> None:
        """Call this at the other side once all that is on its way has come, or would have."""
        self.net.clock.at(max(self.net.clock.now + self.path.latency_s, self._arrives_at), run)

    def stall(self, seconds: float) -> None:
        """Whatever is sent from now on arrives this much later."""
        self._free_at = max(self._free_at, self.net.clock.now) + seconds

    def release(self, _: object = None) -> None:
        """What was held back arrives, if nothing is in its way any more and its kernel still repeats it."""
        if self.source.forgotten:
            self._held.clear()
        while self._held and not self.blocked:
            self._deliver(self._held.popleft())
        if not self.blocked:
            self.target.flow._heard()

    def _heard(self) -> None:
        """The other side's kernel could not say what has arrived, and now it can."""
        if self._unheard:
            self._unacked -= self._unheard
            self._unheard = 0
            self._progress_at = self.net.clock.now

    def _arrive(self, data: bytes | None) -> None:
        if self.blocked or self._held:
            self._held.append(data)
        else:
            self._deliver(data)

    def _deliver(self, data: bytes | None) -> None:
        target = self.target
        if target.flow.blocked:
            self._unheard += len(data or b"")
        else:
            self._progress_at = self.net.clock.now
            self._unacked -= len(data or b"")
        if target.closed:
            if data:  # nobody there: RST
                target.flow.behind(lambda _: self.source.fail(errno.ECONNRESET))
            return
        if data is None:
            target.rx_eof = True
        else:
            target.rx += data
        target.wake_reader()

    def read(self, count: int) -> None:
        """The other side's application has taken bytes: there is room again, as the source learns a little later."""
        self.used_bytes -= count
        self.net.clock.at(self.net.clock.now + self.path.latency_s, self._room)

    def _room(self, _: object) -> None:
        if self.source.starved:
            self.source.starved = False
            self.source.wake_writer()

    def _look(self, _: object) -> None:
        """TCP_USER_TIMEOUT: nothing of what was sent has been acknowledged for too long."""
        clock = self.net.clock
        due = self._progress_at + self.source.user_timeout_s
        if not self._unacked or self.source.dead:
            self._watched = False
        elif clock.now < due:
            clock.at(due, self._look)
        else:
            self._watched = False
            self.net.count("user timeout")
            self.source.fail(errno.ETIMEDOUT)
