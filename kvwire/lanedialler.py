"""The lanes of a link, on the side that dials them: a ticket each, a connection, another one when it is lost."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING

from kvwire import sockets, wire
from kvwire.errors import KvwireError

if TYPE_CHECKING:
    from kvwire.link import Link

REDIAL_FIRST_S = 0.05
REDIAL_LONGEST_S = 2.0
"""A lane that was lost is dialled again at once, then at growing intervals."""


class LaneDialler:
    """Keeps a link at `Config.lanes` lanes. `address`: where the control connection went, which is one host."""

    def __init__(self, link: Link, address: tuple[str, int]) -> None:
        self._link = link
        self._address = address
        self._redials = 0
        self._dialling = 0
        self._timer: asyncio.TimerHandle | None = None
        self.all_up = asyncio.Event()
        """Set when every lane has been up for the first time, and when the link has ended."""

    def take(self, ticket: wire.Ticket) -> None:
        """Dial a lane with this ticket. One too many is left to expire."""
        if self._link.lanes + self._dialling < self._link.config.lanes:
            self._dialling += 1
            self._link._spawn(self._dial(ticket))

    async def _dial(self, ticket: wire.Ticket) -> None:
        link, config = self._link, self._link.config
        try:
            sock = await sockets.dial(*self._address, config.connect_timeout_s, config.local_addresses, ticket.lane)
            with sock:  # closed again unless the engine has taken it over
                random = secrets.token_bytes(32)
                join = wire.join_bytes(link._session.link_id, ticket.lane, ticket.incarnation, random, ticket.secret)
                async with asyncio.timeout(config.handshake_timeout_s):
                    await link.loop.sock_sendall(sock, join)
                link._add_lane(sock, ticket.lane, ticket.incarnation)
            self._redials = 0
            if link.lanes >= config.lanes:
                self.all_up.set()
        except (KvwireError, OSError):
            self.want()
        finally:
            self._dialling -= 1

    def want(self) -> None:
        """Ask for tickets for the lanes that are missing, after a pause that grows until one is up."""
        if not self._link.closed and self._timer is None:
            pause = min(REDIAL_FIRST_S * 2 ** min(self._redials, 10), REDIAL_LONGEST_S)
            self._redials += 1
            self._timer = self._link.loop.call_later(pause, self._request)

    def _request(self) -> None:
        self._timer = None
        link = self._link
        if link.closed or link.lanes >= link.config.lanes:
            return
        missing = link.config.lanes - link.lanes - self._dialling
        if missing > 0:
            link._session.request_lanes(time.monotonic(), missing)
            link._pump()
        self.want()  # and look again, whatever becomes of the tickets

    def stop(self) -> None:
        """The link has ended."""
        if self._timer is not None:
            self._timer.cancel()
        self.all_up.set()
