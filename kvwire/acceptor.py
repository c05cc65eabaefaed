"""The side of a node that is dialled: who connects, and whether it is a control connection, a lane, or a stranger.

Nobody is authenticated here yet. A stranger gets a place among `Config.max_handshakes`, `Config.handshake_timeout_s`, a
buffer of a few KiB and OpenSSL's own memory; what it is refused for stands in the audit log, and it is not told.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
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


class Acceptor:
    """Of a node that listens."""

    def __init__(self, node: Node, listener: socket.socket) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self.listener = listener
        self.spare = open_spare()  # to accept with when there is no other descriptor, to hang up
        self.handshakes = asyncio.Semaphore(node.config.max_handshakes)

    async def accept_connections(self) -> None:
        """Until it is cancelled."""
        short = False
        while True:
            await self.handshakes.acquire()  # no more strangers at once; the rest waits in the backlog
            try:
                sock, address = await sockets.accept(self.listener)
            except OSError as error:
                self.handshakes.release()
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
            task = self._node._spawn(self._greet(sock, sockets.show_address(address)))
            task.add_done_callback(partial(_close_if_cancelled, sock))

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

    async def _greet(self, sock: socket.socket, peer: str) -> None:
        """Find out what a new connection is."""
        try:
            async with asyncio.timeout(self._node.config.handshake_timeout_s):
                await self._identify(sock, peer)
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
        finally:
            self.handshakes.release()

    async def _identify(self, sock: socket.socket, peer: str) -> None:
        sock.setblocking(False)
        plain = self._node.config.plain
        try:
            kind = wire.classify(await sockets.read_exactly(sock, wire.PREAMBLE_BYTES), plain=plain)
        except (VersionMismatch, ModeMismatch):
            await self._loop.sock_sendall(
                sock, wire.control_preamble(plain=plain)
            )  # so that the dialler can say so too
            raise
        if kind is wire.ConnectionKind.LANE:
            await self._join(sock)
        else:
            await self._meet(sock, peer)

    async def _join(self, sock: socket.socket) -> None:
        join = wire.parse_join(await sockets.read_exactly(sock, wire.JOIN_BYTES))
        link = self._node._by_id.get(join.link_id)
        if link is None:
            raise ProtocolError("a lane for a link that is not here")
        keys = link._session.redeem_ticket(time.monotonic(), join)
        link._lanes.add(sock, join.lane, join.incarnation, keys)

    async def _meet(self, sock: socket.socket, peer: str) -> None:
        node = self._node
        sockets.tune(sock, node.config)
        await self._loop.sock_sendall(sock, wire.control_preamble(plain=node.config.plain))
        stream = Stream(sock, node._guard.tls(server=True))
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


def _close_if_cancelled(sock: socket.socket, task: asyncio.Task[None]) -> None:
    if task.cancelled():  # perhaps before its first line
        sock.close()
