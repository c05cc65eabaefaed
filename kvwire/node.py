"""A node: one kvwire endpoint in a process. It listens, dials, and owns the engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from copy import copy
from typing import Any, TypeVar

from kvwire import sockets, wire
from kvwire._ext import cipher
from kvwire._ext.engine import Engine
from kvwire.acceptor import Acceptor
from kvwire.codecs.choice import check_names, tag
from kvwire.config import Config
from kvwire.congestion import LanePlanner, make_controller
from kvwire.control import Stream, open_control
from kvwire.cores import Cores
from kvwire.dialler import Dialler
from kvwire.errors import (
    AuthenticationFailed,
    Closed,
    ConfigError,
    ConnectTimeout,
    LinkLost,
    LocalError,
    RemoteError,
    WrongThread,
)
from kvwire.guard import Guard
from kvwire.incoming import Incoming
from kvwire.link import Link
from kvwire.outcomes import Outcomes
from kvwire.security import AuditLog, Identity, Peer, Policy
from kvwire.telemetry import Callback, Listeners, Remove

T = TypeVar("T")

log = logging.getLogger("kvwire")

FILES_HINT = "raise the limit on open files (ulimit -n)"
REFRESH_S = 1.0
"""How often an identity is looked at on disk: how long a certificate that is revoked keeps its links."""


class Node:
    """One endpoint. Make it with `Node.serve` (listens and dials) or `Node.start` (dials only); close it."""

    def __init__(self, config: Config, guard: Guard, listener: socket.socket | None) -> None:
        self.config = config
        self._guard = guard
        self._loop = asyncio.get_running_loop()
        self._acceptor = None if listener is None else Acceptor(self, listener)
        try:
            limits = config.rekey_bytes, config.rekey_frames, config.rekey_s
            self.engine = Engine(
                config.workers, config.stream_bytes, rekey=limits, cipher=None if config.plain else cipher.find()
            )
        except BaseException:
            if self._acceptor is not None:
                self._acceptor.close()
            raise
        self.cores = Cores(time.monotonic())
        self._boot_id = secrets.token_bytes(16)
        self._links: dict[Link, None] = {}  # in the order in which they were made
        self._by_id: dict[bytes, Link] = {}
        self._watched: dict[Any, Callable[[], None]] = {}
        self._offers: dict[Incoming, None] = {}  # in the order in which they came
        self._offer_came = asyncio.Event()
        self._outcomes = Outcomes()
        self.listeners = Listeners()
        """Who hears the reports of every link."""
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop.add_reader(self.engine.fileno(), self._on_engine)
        if self._acceptor is not None:
            self._spawn(self._acceptor.accept_connections())
        if guard.ages:
            self._spawn(self._refresh())

    @classmethod
    async def serve(
        cls,
        host: str = "",
        port: int = 0,
        config: Config | None = None,
        *,
        identity: Identity | None = None,
        policy: Policy | None = None,
        audit: AuditLog | None = None,
    ) -> Node:
        """A node that listens at `host` (empty: every address, IPv6 and IPv4) and `port` (0: any free one, see `port`).

        `identity`: who it is and whom it trusts; needed unless `Config.plain`. `policy`: whom it deals with (its own
        tenant, where none is given), and `audit`: where that is written down; the node closes neither.
        AddressNotFound or LocalError where it cannot listen there; ConfigError.
        """
        config = config or Config()
        guard = _guard(config, identity, policy, audit)
        listener = await sockets.listen(host, port, config)
        try:
            return cls(config, guard, listener)
        except OSError as error:
            listener.close()
            raise LocalError(f"no node: {error.strerror or error}", hint=FILES_HINT) from None
        except BaseException:
            listener.close()
            raise

    @classmethod
    async def start(
        cls,
        config: Config | None = None,
        *,
        identity: Identity | None = None,
        policy: Policy | None = None,
        audit: AuditLog | None = None,
    ) -> Node:
        """A node that only dials. The rest as for `serve`."""
        config = config or Config()
        try:
            return cls(config, _guard(config, identity, policy, audit), None)
        except OSError as error:
            raise LocalError(f"no node: {error.strerror or error}", hint=FILES_HINT) from None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens. Closed where it does not, or is closed."""
        self._check_open()
        if self._acceptor is None:
            raise Closed("this node does not listen")
        name = self._acceptor.listener.getsockname()
        return str(name[0]), int(name[1])

    @property
    def port(self) -> int:
        """The port it listens on. Closed as for `address`."""
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

        AddressNotFound, ConnectRefused, ConnectTimeout or another NetworkError; NotKvwire, VersionMismatch,
        ModeMismatch, AuthenticationFailed, NotAllowed, ProtocolError, PeerBusy or LinkLost; ConfigError for a port or a
        local address that is none, LocalError where there is no descriptor left, Closed once the node is.
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
                    stream, who = await self._open(sock)
                except (RemoteError, LinkLost) as error:
                    self._guard.refused(where, error)
                    raise type(error)(f"{where}: {error}") from None
                self._check_open()
                agreement = self._guard.agreement("dialler", stream, who)
                link = self._make_link("dialler", where, who, agreement, sockets.rtt_s(sock))
                link._start(stream, Dialler(link, host, port, sockets.numeric_peer(sock)))
                try:
                    await asyncio.shield(link._greeted)
                except AuthenticationFailed as error:
                    raise AuthenticationFailed(f"{where}: {error}") from None
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

    def on_report(self, callback: Callback) -> Remove:
        """Have the reports of every link given to `callback`, one a second each; the rest as for `Link.on_report`."""
        remove = self.listeners.add(callback)
        for link in self._links:
            link._egress.wake()
        return remove

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
        """Close every link and stop the engine. Transfers under way end with an error; idempotent.

        Also once its event loop is closed, from any other. WrongThread from another one before that.
        """
        if self._loop.is_closed():
            self._close_late()
            return
        if asyncio.get_running_loop() is not self._loop:
            raise WrongThread("the node belongs to another event loop", hint="close it there, or close that loop first")
        if self._closing is None or self._closing.cancelled():  # as whoever cancels all tasks does
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
        self._loop.remove_reader(self.engine.fileno())
        self._let_go()

    def _close_late(self) -> None:
        """Nothing of it runs any more: the loop's tasks have ended with it, unless somebody closed it under them."""
        self._closed = True
        for link in list(self._links):
            link.engine_link.close()
            with contextlib.suppress(RuntimeError):  # of a task that still waits, and that no loop will ever run again
                link._lose(Closed("the link was closed"))
        self._links.clear()
        self._let_go()

    def _let_go(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
        self._guard.settle()
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
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException:  # a bug, and one transfer's: the others' news must not be lost with it
                    log.exception("while looking at %r", handle)

    # --- links ----------------------------------------------------------------------------------------------------

    async def _open(self, sock: socket.socket) -> tuple[Stream, Peer | None]:
        """A control connection to whatever listens there, and who it is."""
        stream = await open_control(sock, self._guard.tls(server=False))
        return stream, self._guard.admit(stream)

    def _make_link(
        self, role: wire.Role, where: str, who: Peer | None, agreement: wire.KeyAgreement | None, rtt_s: float = 0.0
    ) -> Link:
        link_id = secrets.token_bytes(16) if role == "acceptor" else b""
        random, now, frank = secrets.token_bytes(32), time.monotonic(), self._guard.frank(who)
        planner = LanePlanner(self.config.lanes)
        lanes = planner.start(rtt_s)
        codecs = self._guard.codecs()
        tags = [wire.CodecTag(*tag(codec)) for codec in codecs]
        session = wire.Session(
            role, self.config, self._boot_id, random, link_id, now, agreement, frank=frank, lanes=lanes, codecs=tags
        )
        link = Link(self, session, where, who, planner)
        self._links[link] = None
        if link_id:
            self._by_id[link_id] = link
        return link

    def _has_room(self, who: Peer | None) -> bool:
        """Whether this peer may have one more link. For that one of its tenant's may end whose dialler may never come
        back, if it carries nothing: a stranger must not fill the table with hand-shakes."""
        tenant = "" if who is None else who.subject.tenant
        same = [link for link in self._links if link.tenant == tenant]
        if len(self._links) < self.config.max_links and len(same) < self._guard.most_links(who):
            return True
        for link in same:
            if link.suspended and link._dialler is None and not link.busy:
                link._lose(LinkLost("there is no room for another link, and this one is suspended and idle"))
                return True
        return False

    def _link_gone(self, link: Link) -> None:
        self._links.pop(link, None)
        self._by_id = {link_id: other for link_id, other in self._by_id.items() if other is not link}

    def _outcome(self, tenant: str, link_id: bytes, transfer: int) -> str:
        """What became of a transfer that this tenant offered to this node."""
        # Both ends, where the node has dialled itself, of which only one was offered it; and those that are gone.
        ends = [*(link for link in self._links if link._session.link_id == link_id), None]
        found = {self._outcomes.of(tenant, link, link_id, transfer) for link in ends} - {"unknown"}
        return found.pop() if found else "unknown"

    def _diallers_to(self, dialler: Dialler) -> list[Dialler]:
        """Those of other links to the same host, with which a link shares its lanes."""
        others = [link._dialler for link in self._links if link._dialler is not None]
        return [it for it in others if it is not dialler and it.address[0] == dialler.address[0]]

    def _lanes_left(self, link: Link) -> int:
        """How many lanes the policy still allows the link's tenant."""
        now = time.monotonic()
        same = [other for other in self._links if other.tenant == link.tenant]
        return self._guard.lanes_left(link.identity, sum(it.lanes + it._session.tickets_out(now) for it in same))

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

    # --- who is who -----------------------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        """Every second; ends the links of those whose certificates have been revoked."""
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                self._guard.refresh()
                for link in list(self._links):
                    if self._guard.revoked(link.identity):
                        link._lose(AuthenticationFailed(f"the certificate of {link.identity} is revoked"))
            except Exception:  # a bug; revocation must outlive it
                log.exception("while looking at the identity")


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def _guard(config: Config, identity: Identity | None, policy: Policy | None, audit: AuditLog | None) -> Guard:
    if not isinstance(config, Config):
        raise ConfigError(f"config is {type(config).__name__}; expected kvwire.Config")
    if config.plain and identity is not None:
        raise ConfigError("a plain node has no identity", hint="leave identity out, or Config.plain")
    if config.plain and policy is not None:
        raise ConfigError("a plain node knows nobody, so it can hold nobody against a policy", hint="leave policy out")
    if not config.plain and identity is None:
        raise ConfigError(
            "a node needs an identity",
            hint="identity=Identity.load(directory), of what kvwire-keys made; or Config(plain=True) on both ends",
        )
    sockets.check_congestion(config)
    guard = Guard(identity, Policy() if policy is None else policy, audit)
    # ConfigError now, and not when somebody dials or offers.
    make_controller(config.controller)
    check_names(config.compression)
    guard.codecs()
    return guard
