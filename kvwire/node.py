"""A node: one kvwire endpoint in a process. It listens, dials, and owns the engine."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from copy import copy
from functools import partial
from typing import Any, TypeVar

from kvwire import sockets, wire
from kvwire._ext.engine import Engine
from kvwire.config import Config
from kvwire.control import open_control
from kvwire.dialler import Dialler
from kvwire.errors import (
    Closed,
    ConfigError,
    ConnectTimeout,
    KvwireError,
    LinkLost,
    LocalError,
    ProtocolError,
    RemoteError,
    VersionMismatch,
)
from kvwire.incoming import Incoming
from kvwire.link import Link

T = TypeVar("T")

log = logging.getLogger("kvwire")

REMEMBERED = 4096
"""Outcomes of transfers whose links are gone that are kept, for senders that were left with CommitUnknown."""
FILES_HINT = "raise the limit on open files (ulimit -n)"
NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
ACCEPT_PAUSE_S = 0.1
"""Pause after `accept` failed for want of descriptors: trying at once would only spin."""


class Node:
    """One endpoint. Make it with `Node.serve` (listens and dials) or `Node.start` (dials only); close it."""

    def __init__(self, config: Config, listener: socket.socket | None) -> None:
        self.config = config
        self._spare = -1 if listener is None else _open_spare()  # to accept with when there is no other, to hang up
        try:
            self.engine = Engine(config.workers, config.stream_bytes)
        except BaseException:
            self._close_spare()
            raise
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._boot_id = secrets.token_bytes(16)
        self._links: dict[Link, None] = {}  # in the order in which they were made
        self._by_id: dict[bytes, Link] = {}
        self._watched: dict[Any, Callable[[], None]] = {}
        self._offers: dict[Incoming, None] = {}  # in the order in which they came
        self._offer_came = asyncio.Event()
        self._outcomes: dict[tuple[bytes, int], str] = {}  # of transfers whose links are gone; the latest
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._handshakes = asyncio.Semaphore(config.max_handshakes)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop.add_reader(self.engine.fileno(), self._on_engine)
        if listener is not None:
            self._spawn(self._accept_connections(listener))

    @classmethod
    async def serve(cls, host: str = "", port: int = 0, config: Config | None = None) -> Node:
        """A node that listens at `host` (empty: every address, IPv6 and IPv4) and `port` (0: any free one, see `port`).

        AddressNotFound or LocalError where that cannot be.
        """
        config = _checked(config or Config())
        listener = await sockets.listen(host, port, config)
        try:
            return cls(config, listener)
        except OSError as error:
            listener.close()
            raise LocalError(f"no node: {error.strerror or error}", hint=FILES_HINT) from None
        except BaseException:
            listener.close()
            raise

    @classmethod
    async def start(cls, config: Config | None = None) -> Node:
        """A node that only dials."""
        try:
            return cls(_checked(config or Config()), None)
        except OSError as error:
            raise LocalError(f"no node: {error.strerror or error}", hint=FILES_HINT) from None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        if self._listener is None:
            raise Closed("this node does not listen")
        name = self._listener.getsockname()
        return str(name[0]), int(name[1])

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self.address[1]

    @property
    def links(self) -> tuple[Link, ...]:
        """Links that are up."""
        return tuple(self._links)

    def gil_entries(self) -> int:
        """How often Python entered the engine; its workers never enter Python."""
        return self.engine.gil_entries()

    async def connect(self, host: str, port: int) -> Link:
        """Dial another node; returns when the session and its lanes are up (at least one, if time runs out).

        AddressNotFound, ConnectRefused, ConnectTimeout, NotKvwire, VersionMismatch, ProtocolError or LinkLost.
        """
        self._check_open()
        until = self._loop.time() + self.config.connect_timeout_s
        where = f"{host} port {port}"
        sock = await sockets.dial(host, port, self.config.connect_timeout_s, self.config.local_addresses)
        link: Link | None = None
        try:
            async with asyncio.timeout_at(until):
                sockets.tune(sock, self.config)
                try:
                    await open_control(sock)
                except (RemoteError, LinkLost) as error:
                    raise type(error)(f"{where}: {error}") from None
                self._check_open()
                link = self._make_link("dialler", where)
                link._start(sock, Dialler(link, host, port, sockets.numeric_peer(sock)))
                await asyncio.shield(link._greeted)
                assert link._dialler is not None
                await link._dialler.all_up.wait()
                if link._error is not None:  # lost again meanwhile
                    raise copy(link._error)
        except TimeoutError:
            if link is not None and link.lanes:
                return link
            greeted = link is not None and link._greeted.done()
            await self._drop(sock, link)
            did = "greeted, and not one lane was up" if greeted else "took the connection and said nothing of kvwire's"
            raise ConnectTimeout(f"{where} {did} within {self.config.connect_timeout_s:g} s") from None
        except OSError as error:
            await self._drop(sock, link)
            raise LinkLost(f"{where}: {error.strerror or error}") from None
        except BaseException:
            await self._drop(sock, link)
            raise
        return link

    async def accept(self) -> Incoming:
        """The next offer from any link, in the order in which they came. Closed once the node is."""
        while True:
            self._check_open()
            if self._offers:
                incoming = next(iter(self._offers))
                del self._offers[incoming]
                return incoming
            self._offer_came.clear()
            await self._offer_came.wait()

    async def close(self) -> None:
        """Close every link and stop the engine. Transfers under way end with an error; idempotent."""
        if self._closing is None:
            self._closed = True
            self._offer_came.set()
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)  # whoever is cancelled here, the node still closes

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for link in list(self._links):
            await link.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._listener is not None:
            self._listener.close()
        self._close_spare()
        self._loop.remove_reader(self.engine.fileno())
        self.engine.close()

    async def __aenter__(self) -> Node:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the node is closed")

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- the engine's news ----------------------------------------------------------------------------------------

    def _watch(self, handle: Any, changed: Callable[[], None]) -> None:
        self._watched[handle] = changed

    def _unwatch(self, handle: Any) -> None:
        self._watched.pop(handle, None)

    def _on_engine(self) -> None:
        for handle in self.engine.drain():
            changed = self._watched.get(handle)
            if changed is not None:
                try:
                    changed()
                except Exception:  # a bug, and one transfer's: the others' news must not be lost with it
                    log.exception("while looking at %r", handle)

    # --- links ----------------------------------------------------------------------------------------------------

    def _make_link(self, role: wire.Role, peer: str) -> Link:
        link_id = secrets.token_bytes(16) if role == "acceptor" else b""
        session = wire.Session(role, self.config, self._boot_id, secrets.token_bytes(32), link_id, time.monotonic())
        link = Link(self, session, peer)
        self._links[link] = None
        if link_id:
            self._by_id[link_id] = link
        return link

    def _link_gone(self, link: Link) -> None:
        self._links.pop(link, None)
        self._by_id = {link_id: other for link_id, other in self._by_id.items() if other is not link}

    def _remember(self, link_id: bytes, outcomes: dict[int, str]) -> None:
        """What became of transfers of a link that ends."""
        self._outcomes |= {(link_id, transfer): outcome for transfer, outcome in outcomes.items()}
        for key in list(self._outcomes)[: max(0, len(self._outcomes) - REMEMBERED)]:
            del self._outcomes[key]

    def _outcome(self, link_id: bytes, transfer: int) -> str:
        """What became of a transfer that was offered to this node; "unknown" also while it is under way."""
        link = next((link for link in self._links if link._session.link_id == link_id), None)
        if link is not None:
            return link.outcomes().get(transfer, "unknown")
        return self._outcomes.get((link_id, transfer), "unknown")

    async def _drop(self, sock: socket.socket, link: Link | None) -> None:
        if link is not None:
            await link.close()
        sock.close()

    def _offered(self, incoming: Incoming) -> None:
        self._offers[incoming] = None
        self._offer_came.set()

    def _withdrawn(self, incoming: Incoming) -> None:
        """An offer that nobody took is over."""
        self._offers.pop(incoming, None)

    # --- being dialled --------------------------------------------------------------------------------------------

    async def _accept_connections(self, listener: socket.socket) -> None:
        short = False
        while True:
            await self._handshakes.acquire()  # no more strangers at once; the rest waits in the backlog
            try:
                sock, address = await sockets.accept(listener)
            except OSError as error:
                self._handshakes.release()
                if self._closed:
                    return
                if not short:
                    log.warning("cannot accept connections: %s", error.strerror or error)
                short = True
                if error.errno in NO_DESCRIPTOR:  # else it is about that one connection (accept(2))
                    self._turn_away(listener)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            short = False
            task = self._spawn(self._greet(sock, sockets.show_address(address)))
            task.add_done_callback(partial(_close_if_cancelled, sock))

    def _turn_away(self, listener: socket.socket) -> None:
        """There is no descriptor for whoever waits in the backlog: say so by hanging up, with the spare one. A lane
        that stayed there would swallow what is sent over it, and never be missed."""
        self._close_spare()
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()
        with contextlib.suppress(OSError):  # another thread was faster; the next round tries again
            self._spare = _open_spare()

    def _close_spare(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    async def _greet(self, sock: socket.socket, peer: str) -> None:
        """Find out what a new connection is: a control connection, a lane of a known link, or a stranger."""
        try:
            async with asyncio.timeout(self.config.handshake_timeout_s):
                await self._identify(sock, peer)
        except TimeoutError:
            log.info("%s said nothing of kvwire's within %g s", peer, self.config.handshake_timeout_s)
            sock.close()
        except (KvwireError, OSError) as error:
            log.info("%s turned away: %s", peer, error)
            sock.close()
        except BaseException:
            sock.close()
            raise
        finally:
            self._handshakes.release()

    async def _identify(self, sock: socket.socket, peer: str) -> None:
        sock.setblocking(False)
        try:
            kind = wire.classify(await sockets.read_exactly(sock, wire.PREAMBLE_BYTES))
        except VersionMismatch:
            await self._loop.sock_sendall(sock, wire.control_preamble())  # so that the dialler can say so too
            raise
        if kind is wire.ConnectionKind.LANE:
            join = wire.parse_join(await sockets.read_exactly(sock, wire.JOIN_BYTES))
            link = self._by_id.get(join.link_id)
            if link is None:
                raise ProtocolError("a lane for a link that is not here")
            link._session.redeem_ticket(time.monotonic(), join)
            link._add_lane(sock, join.lane, join.incarnation)
            return
        sockets.tune(sock, self.config)
        await self._loop.sock_sendall(sock, wire.control_preamble())
        raw = await sockets.read_exactly(sock, wire.LENGTH_BYTES)
        try:
            raw += await sockets.read_exactly(sock, wire.greeting_bytes(raw))
            hello = wire.parse_hello(raw)
            link = self._returning(hello)
        except ProtocolError as error:
            await self._loop.sock_sendall(sock, wire.goodbye("protocol", str(error)))
            raise
        if link is not None:
            link.peer = peer
            link._resume(sock, raw)
            return
        if len(self._links) >= self.config.max_links and not self._make_room():
            reason = f"{self.config.max_links} links are up already"
            await self._loop.sock_sendall(sock, wire.goodbye("busy", reason))
            raise LocalError(reason, hint="Config.max_links")
        self._make_link("acceptor", peer)._start(sock, None, raw)

    def _make_room(self) -> bool:
        """End a link whose dialler may never come back, if there is one that carries nothing: a stranger must not fill
        the table with hand-shakes."""
        for link in self._links:
            if link.suspended and link._dialler is None and not link.busy:
                link._lose(LinkLost(f"{self.config.max_links} links are up, and this one is suspended and idle"))
                return True
        return False

    def _returning(self, hello: wire.Hello) -> Link | None:
        """The link of a peer that is back, suspended. None for one who greets for the first time, and where the link is
        not known here or is another peer's: who asks for it gets a new one, sees that, and knows.
        """
        link = self._by_id.get(hello.link_id)
        if link is None or link._session.peer is None or link._session.peer.boot_id != hello.boot_id:
            return None
        link._connection_lost(link._control, LinkLost("the peer connected anew"))
        return link if link.suspended else None


def _open_spare() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def _close_if_cancelled(sock: socket.socket, task: asyncio.Task[None]) -> None:
    if task.cancelled():  # perhaps before its first line
        sock.close()


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def _checked(config: Config) -> Config:
    if not isinstance(config, Config):
        raise ConfigError(f"config is {type(config).__name__}; expected kvwire.Config")
    if not config.plain:
        raise ConfigError("sealed mode is not there yet", hint="Config(plain=True)")
    sockets.check_congestion(config)
    return config
