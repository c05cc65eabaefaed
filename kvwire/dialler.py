"""The side of a link that dials: a connection for each lane, and all of it anew after a loss."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from kvwire import sockets, wire
from kvwire.errors import AuthenticationFailed, KvwireError
from kvwire.lanes import MOST_LANES

if TYPE_CHECKING:
    from kvwire.link import Link

log = logging.getLogger("kvwire")

REDIAL_FIRST_S = 0.05
REDIAL_LONGEST_S = 2.0
"""A lane that was lost is dialled again at once, then at growing intervals."""
PROVED_S = 1.0
"""A lane that ends before, and over which nothing has come, was none: the next one waits as if it had never been up. A
peer that hangs up on whoever has joined is not to be stormed."""
REDIAL_CONTROL_S = 0.5
"""Longest interval for the control connection, as nothing moves without it; and how long it has to be up before the
next loss is followed by a redial at once: a peer that hangs up as soon as it has greeted is not to be stormed."""
REDIAL_ATTEMPT_S = 1.0
"""Longest wait for one attempt. A fresh one is at the peer before TCP tries a lost SYN for the second time."""
REPLACE_S = 0.5
"""A lane that makes no progress gets a fresh one beside it so often: when a path is back, a new connection knows at
once, while the kernel's timers of an old one have backed off (docs/design.md)."""
SPARES, SPARES_AT_ONCE = 4, 2
"""Tickets in stock on a long path, and how many of them are tried at once: a control connection that stalls together
with the lanes could bring none."""
YOUNG_NS = 2_000_000_000
"""Until then a lane may be in its slow start."""
SPARE_S = 20.0
"""How long a ticket is kept: it is good for 30 s (docs/security.md), and has a way to go."""


class Dialler:
    """Keeps a link connected, and at as many lanes as it is to have.

    `host`, `port`: what the user named. `address`: what the control connection reached, which is one host.
    """

    def __init__(self, link: Link, host: str, port: int, address: tuple[str, int]) -> None:
        self._link = link
        self._name = host, port
        self._address = address
        self._redials = self._failed = 0
        self._dialling: set[asyncio.Task[None]] = set()
        self._unproved: dict[int, tuple[float, int]] = {}  # by lane: since when it is up, and `_redials` until then
        self._redialling: asyncio.Task[None] | None = None
        self._up = True
        self._redialled_at = self._up_at = -math.inf
        self._pause_s = 0.0
        self._reached = address  # by the connection that is being made
        self._settled = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._invited = 0
        self._draining: set[int] = set()
        self._stocked_at = -math.inf
        self._stock: deque[tuple[float, wire.Ticket]] = deque()  # and when each came, the oldest first
        self._replaced_at = -math.inf
        self.all_up = asyncio.Event()
        """Set when every lane has been up for the first time, and when the link has ended."""

    # --- lanes ----------------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """The host at the other end, and its port."""
        return self._address

    @property
    def held(self) -> int:
        """Connections for lanes that it has, or is making: those that are ending among them."""
        return self._link.lanes + len(self._dialling)

    @property
    def wants(self) -> int:
        """Lanes that the link is worth; the acceptor may know of more, where it is the one that sends."""
        found = self._link._egress.lanes_wanted
        return found if self._link.config.lanes else max(found, self._invited)

    @property
    def wanted(self) -> int:
        """Lanes that the link is to have: of those no more than its share of what all links to that host may have,
        unless the others leave some."""
        others = self._link._node._diallers_to(self)
        share = MOST_LANES // (1 + len(others))
        left = MOST_LANES - sum(max(it.held, min(it.wants, share)) for it in others)
        return max(1, min(self.wants, max(share, left)))

    @property
    def _room(self) -> int:
        """Lanes that may be added before all links to that host have as many as they may."""
        used = self.held + sum(it.held for it in self._link._node._diallers_to(self))
        return MOST_LANES - used if self.held else max(1, MOST_LANES - used)

    @property
    def _missing(self) -> int:
        """Lanes to be dialled; one that makes no progress counts for none."""
        missing = self.wanted + self._link._egress.stalled - (self.held - len(self._draining))
        return min(missing, self._room)

    def take(self, ticket: wire.Ticket) -> None:
        """Dial a lane with this ticket, or keep it for the moment in which one is missed. One too many expires."""
        now = time.monotonic()
        if self._missing > 0:
            self._dial(now, ticket)
        elif len(self._stock) < SPARES and self._link._egress.long_path:
            self._stock.append((now, ticket))

    def invite(self, count: int) -> None:
        """The acceptor sends, and wants so many lanes."""
        self._invited = min(count, MOST_LANES)
        self.adjust()

    def _dial(self, came: float, ticket: wire.Ticket) -> None:
        egress = self._link._egress
        timeout_s = egress.attempt_s if egress.stalled else self._link.config.connect_timeout_s
        task = self._link._spawn(self._dial_lane(came, ticket, timeout_s))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _dial_lane(self, came: float, ticket: wire.Ticket, timeout_s: float) -> None:
        link, config = self._link, self._link.config
        joined = False
        try:
            turn = ticket.lane + self._failed
            sock = await sockets.dial(*self._address, timeout_s, config.local_addresses, turn)
            with sock:  # closed again unless the engine has taken it over
                joined = True
                join, keys = link._session.use_ticket(ticket, secrets.token_bytes(32))
                async with asyncio.timeout(config.handshake_timeout_s):
                    await link.loop.sock_sendall(sock, join)
                link._lanes.add(sock, ticket.lane, ticket.incarnation, keys)
            self._unproved[ticket.lane] = link.loop.time(), self._redials
            self._redials = 0
            # Or as many as the acceptor had tickets for: a quota may leave a tenant no more.
            if link.lanes >= self.wanted or (len(self._dialling) == 1 and not self._failed):
                self.all_up.set()
        except (KvwireError, OSError) as error:
            why = str(error) or f"the JOIN was not taken within {config.handshake_timeout_s:g} s"
            log.info("no lane %d to %s: %s", ticket.lane, link.peer, why)
            self._failed += 1  # from another local address next time
            if not joined and link._egress.stalled:
                self._stock.appendleft((came, ticket))  # nobody has seen it: good for another try
            self.want()
        finally:  # at once: a lane that is up must not count as one that is dialled, too (`take`: one never begun)
            self._dialling.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def want(self) -> None:
        """Ask for tickets for the lanes that are missing, after a pause that grows until one is up. What a HELLO asked
        for may have been more than the acceptor had to give at that time."""
        if not self._link.closed and not self._link.suspended and self._timer is None:
            pause = min(REDIAL_FIRST_S * 2 ** min(self._redials, 10), REDIAL_LONGEST_S)
            self._redials += 1
            self._timer = self._link.loop.call_later(pause, self._request)

    def _request(self) -> None:
        self._timer = None
        link = self._link
        if link.closed or link.suspended or self.held - len(self._draining) >= self.wanted + link._egress.stalled:
            return
        while self._missing > 0 and self._stock:
            self._dial(*self._stock.popleft())
        if self._missing > 0:
            self._ask(self._missing)
        self.want()  # and look again, whatever becomes of the tickets

    def _ask(self, count: int) -> None:
        self._link._session.request_lanes(time.monotonic(), count)
        self._link._pump()

    def stock_up(self) -> None:
        """Have fresh tickets at hand, on a long path; called every now and then."""
        now = time.monotonic()
        while self._stock and self._stock[0][0] < now - SPARE_S:
            self._stock.popleft()
        full = self.held - len(self._draining) >= self.wanted  # spares count against a tenant's quota, as lanes do
        if full and not self._stock and now >= self._stocked_at + SPARE_S and self._link._egress.long_path:
            self._stocked_at = now
            self._ask(SPARES)

    def replace(self, worst: Sequence[int]) -> None:
        """These lanes, the worst first, make no progress: dial fresh ones beside them. Where there is no room for that,
        the worst has to go first."""
        now = time.monotonic()
        if now < self._replaced_at + REPLACE_S or self._link.suspended:
            return
        self._replaced_at = now
        if self._room <= 0 and not self._dialling:
            self._link.engine_link.close_lane(worst[0])
        for _ in range(min(len(worst), SPARES_AT_ONCE, self._room)):
            if self._stock:
                self._dial(*self._stock.popleft())
        if not self._stock:
            self._stocked_at = -math.inf
            self.want()

    def adjust(self) -> None:
        """Have as many lanes as are wanted. One too many ends once all that it carries has landed."""
        link = self._link
        self.stock_up()
        if self._missing > 0:
            self.want()
        excess = link.lanes - len(self._draining) - self.wanted
        if excess > 0 and not link._egress.stalled:
            young_ns = link.engine_link.link_stats()["now_ns"] - YOUNG_NS  # whose rates say nothing yet
            open_lanes = [stats for stats in link.lane_stats() if stats["lane"] not in self._draining]
            for stats in sorted(open_lanes, key=lambda it: (it["added_ns"] > young_ns, it["rate_Bps"]))[:excess]:
                self._draining.add(stats["lane"])
                link.engine_link.drain_lane(stats["lane"])

    def ended(self, lane: int, *, heard: bool) -> None:
        """A lane is gone; `heard`: something had come over it."""
        self._draining.discard(lane)
        up_at, redials = self._unproved.pop(lane, (-math.inf, 0))
        if not heard and self._link.loop.time() < up_at + PROVED_S:
            self._redials = max(self._redials, redials)
        if self._missing > 0:
            self.want()

    # --- the link -------------------------------------------------------------------------------------------------

    def suspended(self) -> None:
        """The connection is lost: dial it again until the link is resumed or given up."""
        self._drop()
        self._stock.clear()
        self._stocked_at = -math.inf
        self._invited = 0
        self._draining.clear()
        self._unproved.clear()
        self._settled.set()
        if self._up and self._link.loop.time() > self._up_at + REDIAL_CONTROL_S:
            self._pause_s = 0.0
        self._up = False
        if self._redialling is None:
            self._redialling = self._link._spawn(self._redial())

    def resumed(self) -> None:
        """The link is up again."""
        self._redials = 0
        self._up, self._up_at = True, self._link.loop.time()
        self._address = self._reached
        self._settled.set()

    async def _redial(self) -> None:
        link, attempts = self._link, 0
        while link.suspended:
            await asyncio.sleep(max(0.0, self._redialled_at + self._pause_s - link.loop.time()))
            self._redialled_at = link.loop.time()
            self._pause_s = min(max(2 * self._pause_s, REDIAL_FIRST_S), REDIAL_CONTROL_S)
            # The host that answered before, and, should it have another address now, what its name says.
            where = self._name if attempts % 4 == 3 else self._address
            attempts += 1
            try:
                sock = await sockets.dial(*where, REDIAL_ATTEMPT_S, link.config.local_addresses, attempts)
                try:
                    async with asyncio.timeout(link.config.handshake_timeout_s):
                        stream, who = await link._node._open(sock)
                        if not link._is_of(who):
                            raise AuthenticationFailed(f"{who} answered in the place of {link.identity}")
                        self._reached = sockets.numeric_peer(sock)
                        # A name may mean several hosts, and another one is no other life of this one.
                        same = self._reached == self._address or not await sockets.names(*self._name, self._address)
                except BaseException:
                    sock.close()
                    raise
            except (KvwireError, OSError) as error:  # TimeoutError is one too
                why = str(error) or f"it did not say who it is within {link.config.handshake_timeout_s:g} s"
                log.info("no control connection to %s: %s", link.peer, why)
                continue
            self._settled.clear()
            link.identity = who
            link._resume(stream, link._node._guard.agreement("dialler", stream, who), may_restart=same)
            await self._settled.wait()
        self._redialling = None

    def _drop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._dialling:
            task.cancel()

    def stop(self) -> None:
        """The link has ended."""
        self._drop()
        self._settled.set()
        self.all_up.set()
