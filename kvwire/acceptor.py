"""The side of a node that is dialled: who connects, and whether it is a control connection, a lane, or a stranger.

Nobody is authenticated here yet. A stranger gets a place among `Config.max_handshakes`, `Config.handshake_timeout_s`, a
buffer of a few KiB and OpenSSL's own memory; what it is refused for stands in the audit log, and it is not told.

Where all places are taken, whoever comes gets that of one that has not got far. To let it wait instead would let
strangers that say nothing, a few hundred of them at a time, keep everybody else out. Who has just come is given the
benefit of the doubt. Among those that have got as far it is left to chance, and to age: if it were the oldest, honest
diallers in their thousands would all be turned out before their answer is back; if any, those that have just come.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING

from kvwire import sockets, wire
from kvwire.control import Stream
from kvwire.errors import (
    ConnectTimeout,
    KvwireError,
    LimitExceeded,
    LinkLost,
    ModeMismatch,
    NotKvwire,
    ProtocolError,
    RemoteError,
    VersionMismatch,
)

if TYPE_CHECKING:
    from kvwire.link import Link
    from kvwire.node import Node
    from kvwire.security import Peer

log = logging.getLogger("kvwire")

NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
ACCEPT_PAUSE_S = 0.1
"""Pause after `accept` failed for want of descriptors: trying at once would only spin."""
YOUNG_S = 0.25
"""For so long a stranger counts as one that has been heard: what it says may be on its way."""
DRAWN = 16
"""To look at all strangers each time that one comes would cost more than a TLS handshake."""


class Got(IntEnum):
    """How far a stranger has got."""

    NOWHERE = 0
    CLASSIFIED = 1
    """It has said what it is here for."""
    ANSWERED = 2
    """It has said enough of TLS for an answer."""
    AUTHENTICATED = 3


@dataclass(eq=False, slots=True)
class Stranger:
    """A connection of which nobody knows yet whose it is."""

    sock: socket.socket
    address: str
    came_at: float
    classified: bool = False
    stream: Stream | None = None
    task: asyncio.Task[None] | None = None

    @property
    def got(self) -> Got:
        if self.stream is None or not self.stream.answered:
            return Got.CLASSIFIED if self.classified else Got.NOWHERE
        return Got.AUTHENTICATED if self.stream.ready else Got.ANSWERED

    def worth(self, now: float) -> Got:
        """How far it has got, or may have before it is heard here."""
        return max(self.got, Got.ANSWERED) if now < self.came_at + YOUNG_S else self.got


class Acceptor:
    """Of a node that listens."""

    def __init__(self, node: Node, listener: socket.socket) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self.listener = listener
        self.spare = open_spare()  # to accept with when there is no other descriptor, to hang up
        self.strangers: list[Stranger] = []

    async def accept_connections(self) -> None:
        """Until it is cancelled."""
        short = False
        while True:
            if self._full:
                await sockets.somebody(self.listener)
            if self._full:  # still
                await self._turn_out()
            try:
                sock, address = await sockets.accept(self.listener)
            except OSError as error:
                if self._node._closed:
                    return
                if not short:
                    log.warning("cannot accept connections: %s", error.strerror or error)
                short = True
                if error.errno in NO_DESCRIPTOR:  # else it is about that one connection (accept(2))
                    self.turn_away()
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            short = False
            stranger = Stranger(sock, sockets.show_address(address), self._loop.time())
            self.strangers.append(stranger)
            stranger.task = self._node._spawn(self._greet(stranger))
            stranger.task.add_done_callback(partial(self._over, stranger))
            await asyncio.sleep(0)  # `accept` does not wait while there is somebody: who has come has its turn first

    @property
    def _full(self) -> bool:
        return len(self.strangers) >= self._node.config.max_handshakes

    async def _turn_out(self) -> None:
        """Of some strangers that are drawn by chance one that has got least far loses its place: of two, the older."""
        numbers, now = struct.unpack(f"<{DRAWN}H", secrets.token_bytes(2 * DRAWN)), self._loop.time()
        drawn = [(it.worth(now), it) for it in (self.strangers[number % len(self.strangers)] for number in numbers)]
        least = min(worth for worth, _ in drawn)
        stranger = min([it for worth, it in drawn if worth == least][:2], key=lambda it: it.came_at)
        task = stranger.task
        assert task is not None
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            error = LimitExceeded("all places for strangers were taken, and others had got further")
            log.info("%s turned away: %s", stranger.address, error)
            self._node._guard.refused(stranger.address, error)

    def _over(self, stranger: Stranger, task: asyncio.Task[None]) -> None:
        self.strangers.remove(stranger)
        stranger.task = None  # or each would be a cycle around its TLS, and thousands wait for the collector
        if task.cancelled():  # perhaps before its first line
            stranger.sock.close()

    def turn_away(self) -> None:
        """There is no descriptor for whoever waits in the backlog: say so by hanging up, with the spare one. A lane
        that stayed there would swallow what is sent over it, and never be missed."""
        self._close_spare()
        with contextlib.suppress(OSError):
            while True:
                self.listener.accept()[0].close()
        with contextlib.suppress(OSError):  # another thread was faster; the next round tries again
            self.spare = open_spare()

    def close(self) -> None:
        """Nobody connects any more."""
        self.listener.close()
        self._close_spare()

    def _close_spare(self) -> None:
        if self.spare >= 0:
            os.close(self.spare)
            self.spare = -1

    async def _greet(self, stranger: Stranger) -> None:
        """Find out what a new connection is."""
        sock, peer = stranger.sock, stranger.address
        try:
            async with asyncio.timeout(self._node.config.handshake_timeout_s):
                await self._identify(stranger)
        except TimeoutError:
            late = ConnectTimeout(f"it did not say who it is within {self._node.config.handshake_timeout_s:g} s")
            log.info("%s turned away: %s", peer, late)
            self._node._guard.refused(peer, late)
            sock.close()
        except (KvwireError, OSError) as error:
            log.info("%s turned away: %s", peer, error)
            if isinstance(error, RemoteError | LimitExceeded) and not isinstance(error, NotKvwire):
                self._node._guard.refused(peer, error)
            sock.close()
        except BaseException:
            sock.close()
            raise

    async def _identify(self, stranger: Stranger) -> None:
        sock = stranger.sock
        sock.setblocking(False)
        plain = self._node.config.plain
        try:
            kind = wire.classify(await sockets.read_exactly(sock, wire.PREAMBLE_BYTES), plain=plain)
        except (VersionMismatch, ModeMismatch):
            await self._loop.sock_sendall(
                sock, wire.control_preamble(plain=plain)
            )  # so that the dialler can say so too
            raise
        stranger.classified = True
        if kind is wire.ConnectionKind.LANE:
            await self._join(sock)
        else:
            await self._meet(stranger)

    async def _join(self, sock: socket.socket) -> None:
        join = wire.parse_join(await sockets.read_exactly(sock, wire.JOIN_BYTES))
        link = self._node._by_id.get(join.link_id)
        if link is None:
            raise ProtocolError("a lane for a link that is not here")
        keys = link._session.redeem_ticket(time.monotonic(), join)
        link._lanes.add(sock, join.lane, join.incarnation, keys)

    async def _meet(self, stranger: Stranger) -> None:
        node, sock, peer = self._node, stranger.sock, stranger.address
        sockets.tune(sock, node.config)
        await self._loop.sock_sendall(sock, wire.control_preamble(plain=node.config.plain))
        stream = stranger.stream = Stream(sock, node._guard.tls(server=True))
        await stream.handshake()
        who = node._guard.admit(stream)
        raw = await stream.read_exactly(wire.LENGTH_BYTES)
        try:
            raw += await stream.read_exactly(wire.greeting_bytes(raw))
            hello = wire.parse_hello(raw)
            link = self._returning(hello, who)
        except ProtocolError as error:
            await stream.write(wire.goodbye("protocol", str(error)))
            raise
        agreement = node._guard.agreement("acceptor", stream, who)
        if link is not None:
            link.peer, link.identity = peer, who
            link._resume(stream, agreement, raw)
            return
        if not node._has_room(who):
            await stream.write(wire.goodbye("busy", "it takes no more links"))
            raise LimitExceeded(f"all links that {who.subject.tenant if who else 'anybody'} may have are up")
        node._make_link("acceptor", peer, who, agreement)._start(stream, None, raw)

    def _returning(self, hello: wire.Hello, who: Peer | None) -> Link | None:
        """The link of a peer that is back, suspended. None for one who greets for the first time, and where the link is
        not known here or is another peer's: who asks for it gets a new one, sees that, and knows.
        """
        link = self._node._by_id.get(hello.link_id)
        if link is None or link._session.peer is None or link._session.peer.boot_id != hello.boot_id:
            return None
        if not link._is_of(who):
            return None
        link._connection_lost(link._control, LinkLost("the peer connected anew"))
        return link if link.suspended else None


def open_spare() -> int:
    """A descriptor, of which nothing is wanted but that it can be closed."""
    return os.open(os.devnull, os.O_RDONLY)
