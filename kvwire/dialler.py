"""The side of a link that dials: a connection for each lane, and all of it anew after a loss."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from typing import TYPE_CHECKING, cast

from kvwire import sockets, wire
from kvwire.errors import AuthenticationFailed, KvwireError

if TYPE_CHECKING:
    from kvwire.link import Link

log = logging.getLogger("kvwire")

REDIAL_FIRST_S = 0.05
REDIAL_LONGEST_S = 2.0
"""A lane that was lost is dialled again at once, then at growing intervals."""
REDIAL_CONTROL_S = 0.5
"""Longest interval for the control connection, as nothing moves without it; and how long it has to be up before the
next loss is followed by a redial at once: a peer that hangs up as soon as it has greeted is not to be stormed."""
REDIAL_ATTEMPT_S = 1.0
"""Longest wait for one attempt. A fresh one is at the peer before TCP tries a lost SYN for the second time."""


class Dialler:
    """Keeps a link connected, and at `Config.lanes` lanes.

    `host`, `port`: what the user named. `address`: what the control connection reached, which is one host.
    """

    def __init__(self, link: Link, host: str, port: int, address: tuple[str, int]) -> None:
        self._link = link
        self._name = host, port
        self._address = address
        self._redials = self._failed = 0
        self._dialling: set[asyncio.Task[None]] = set()
        self._redialling: asyncio.Task[None] | None = None
        self._up = True
        self._redialled_at = self._up_at = -math.inf
        self._pause_s = 0.0
        self._reached = address  # by the connection that is being made
        self._settled = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.all_up = asyncio.Event()
        """Set when every lane has been up for the first time, and when the link has ended."""

    # --- lanes ----------------------------------------------------------------------------------------------------

    def take(self, ticket: wire.Ticket) -> None:
        """Dial a lane with this ticket. One too many is left to expire."""
        if self._link.lanes + len(self._dialling) < self._link.config.lanes:
            task = self._link._spawn(self._dial_lane(ticket))
            self._dialling.add(task)
            task.add_done_callback(self._dialling.discard)

    async def _dial_lane(self, ticket: wire.Ticket) -> None:
        link, config = self._link, self._link.config
        try:
            turn = ticket.lane + self._failed
            sock = await sockets.dial(*self._address, config.connect_timeout_s, config.local_addresses, turn)
            with sock:  # closed again unless the engine has taken it over
                join, keys = link._session.use_ticket(ticket, secrets.token_bytes(32))
                async with asyncio.timeout(config.handshake_timeout_s):
                    await link.loop.sock_sendall(sock, join)
                link._lanes.add(sock, ticket.lane, ticket.incarnation, keys)
            self._redials = 0
            if link.lanes >= config.lanes:
                self.all_up.set()
        except (KvwireError, OSError) as error:
            log.info("no lane %d to %s: %s", ticket.lane, link.peer, error)
            self._failed += 1  # from another local address next time
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
        if link.closed or link.suspended or link.lanes >= link.config.lanes:
            return
        missing = link.config.lanes - link.lanes - len(self._dialling)
        if missing > 0:
            link._session.request_lanes(time.monotonic(), missing)
            link._pump()
        self.want()  # and look again, whatever becomes of the tickets

    # --- the link -------------------------------------------------------------------------------------------------

    def suspended(self) -> None:
        """The connection is lost: dial it again until the link is resumed or given up."""
        self._drop()
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
                log.info("no control connection to %s: %s", link.peer, error)
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
