"""A TCP proxy that stands between two nodes and does on command what networks do by themselves.

It runs in a thread of its own with its own loop, so that a test's loop, and a node's, may stand still.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from kvwire import sockets

T = TypeVar("T")
Kind = Literal["control", "lane", "other"]
Way = Literal["up", "down"]
"""To the target, or from it."""
Fault = Literal["stall", "swallow", "throttle", "slice", "flip"]
"""What happens to bytes on their way, until `heal`."""
CHUNK_BYTES = 64 * 1024
MAGICS: dict[bytes, Kind] = {b"KVWC": "control", b"KVWL": "lane"}


@dataclass(eq=False)
class Connection:
    """One connection through the proxy. `kind` is told by its first bytes."""

    here: socket.socket
    there: socket.socket
    kind: Kind = "other"
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    latest: "dict[Way, asyncio.Task[None]]" = field(default_factory=dict)
    forwarded: dict[Way, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    swallowed: bool = False


@dataclass(eq=False)
class Rule:
    """A fault, of one connection, of a kind, of a way; None: of any. `amount`: bytes a second, bytes, or how often."""

    fault: Fault
    kind: Kind | None
    way: Way | None
    connection: Connection | None
    amount: float

    def holds(self, fault: Fault, connection: Connection, way: Way) -> bool:
        wanted = (self.fault, self.connection, self.kind, self.way)
        found = (fault, connection, connection.kind, way)
        return all(want in (None, it) for want, it in zip(wanted, found, strict=True))


class Proxy:
    """Forwards from `port` to a target port on 127.0.0.1. Every method may be called from the test's thread."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.connections: list[Connection] = []
        self.accepted = 0
        self.rate_Bps: float | None = None
        """What passes in all, over all connections and both ways."""
        self.delay_s = 0.0
        """How long everything takes, each way, but TCP's own hand-shake."""
        self._due = 0.0  # when what was let through so far has passed at that rate
        self._open = True
        self._rules: list[Rule] = []
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._healed = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # --- what a test says -----------------------------------------------------------------------------------------

    def reset(self, kind: Kind | None = None, count: int | None = None, way: Way | None = None) -> int:
        """Resets connections of a kind (None: all), the first `count` of them; says how many there were.

        `way`: only the end that this leads to hears of it; the other one when it next says something. None: both.
        """

        async def work() -> int:
            chosen = self._chosen(kind, count)
            for connection in chosen:
                if way is None:
                    self._end(connection, abrupt=True)
                else:
                    self._reset_half(connection, way)
            return len(chosen)

        return self._call(work())

    def half_close(self, way: Way, kind: Kind | None = None, count: int | None = None) -> int:
        """Nothing more comes this way, and that is said (FIN); what is sent nevertheless gets lost."""

        async def work() -> int:
            chosen = self._chosen(kind, count)
            for connection in chosen:
                self._rules.append(Rule("swallow", None, way, connection, 0))
                connection.swallowed = True
                with contextlib.suppress(OSError):
                    (connection.there if way == "up" else connection.here).shutdown(socket.SHUT_WR)
            return len(chosen)

        return self._call(work())

    def reset_one(self, kind: Kind, rng: np.random.Generator) -> int:
        """Resets one connection of a kind, any; says how many there were to choose from, at most 1."""

        async def work() -> int:
            there = self._chosen(kind, None)
            if there:
                self._end(there[int(rng.integers(len(there)))], abrupt=True)
            return min(1, len(there))

        return self._call(work())

    def cut(self) -> None:
        """The network is gone: connections are reset, and new ones refused."""
        self.refuse()
        self.reset()

    def refuse(self) -> None:
        """New connections are hung up on."""
        self._open = False

    def heal(self) -> None:
        """Connections are taken, and bytes forwarded, again; one of which something was swallowed is reset."""

        async def work() -> None:
            self._open = True
            self._rules.clear()
            self.rate_Bps = None
            for connection in [each for each in self.connections if each.swallowed]:
                self._end(connection, abrupt=True)
            self._healed.set()

        self._call(work())

    def stall(self, kind: Kind | None = None, way: Way | None = None) -> None:
        """Nothing is forwarded any more, and nothing says so: of a kind, of one way, and also by new connections."""
        self.fault("stall", kind, way)

    def stall_one(self, kind: Kind, way: Way) -> None:
        """As `stall`, of one connection."""
        self.fault("stall", kind, way, one=True)

    def flip(self, kind: Kind, way: Way) -> None:
        """Of what passes next on a connection of this kind, after its first bytes, the last bit is turned over."""
        self.fault("flip", kind, way, amount=1)

    def fault(
        self, fault: Fault, kind: Kind | None = None, way: Way | None = None, *, amount: float = 0, one: bool = False
    ) -> None:
        """From here on, of a kind and a way (None: of all), new connections too, or of `one` that there is:

        stall: nothing is forwarded. swallow: what comes is taken, and lost. throttle: each connection passes `amount`
        bytes a second. slice: writes of `amount` bytes. flip: the last bit of what passes is turned over, `amount`
        times, but for a connection's first bytes.
        """

        async def work() -> None:
            connection = self._chosen(kind, 1)[0] if one else None
            self._rules.append(Rule(fault, kind, way, connection, amount))
            self._healed.clear()

        self._call(work())

    # --- how it does it -------------------------------------------------------------------------------------------

    def _chosen(self, kind: Kind | None, count: int | None) -> list[Connection]:
        return [each for each in self.connections if kind in (None, each.kind)][:count]

    def _rule(self, fault: Fault, connection: Connection, way: Way) -> Rule | None:
        return next((rule for rule in self._rules if rule.holds(fault, connection, way)), None)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()
        self._loop.close()

    async def _accept(self) -> None:
        tasks = set()
        while True:
            try:
                here, _ = await sockets.accept(self._listener)  # the loop's own loses one when it is cancelled
            except OSError:  # a test has taken all descriptors of this process
                await asyncio.sleep(0.05)
                continue
            if not self._open:
                here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                here.close()
                continue
            self.accepted += 1
            task = self._loop.create_task(self._connect(here))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _connect(self, here: socket.socket) -> None:
        try:
            there = socket.socket()
        except OSError:
            here.close()
            return
        there.setblocking(False)
        here.setblocking(False)
        for sock in (here, there):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.sock_connect(there, ("127.0.0.1", self.target))
        except BaseException as error:
            here.close()
            there.close()
            if isinstance(error, OSError):
                return
            raise
        connection = Connection(here, there)
        self.connections.append(connection)
        connection.tasks = [
            self._loop.create_task(self._forward(connection, here, there, "up")),
            self._loop.create_task(self._forward(connection, there, here, "down")),
        ]

    async def _forward(self, connection: Connection, source: socket.socket, target: socket.socket, way: Way) -> None:
        try:
            while data := await self._loop.sock_recv(source, CHUNK_BYTES):
                if way == "up" and not connection.forwarded["up"]:
                    connection.kind = MAGICS.get(data[:4], "other")
                while self._rule("stall", connection, way):
                    await self._healed.wait()
                if self._rule("swallow", connection, way):
                    connection.swallowed = True
                    continue
                data = self._flipped(connection, way, data)
                await self._paced(connection, way, len(data))
                if self.delay_s:
                    before = connection.latest.get(way)
                    connection.latest[way] = self._loop.create_task(self._send_later(target, data, before))
                    connection.tasks.append(connection.latest[way])
                else:
                    await self._send(connection, way, target, data)
                connection.forwarded[way] += len(data)
            if way in connection.latest:
                await connection.latest[way]
            target.shutdown(socket.SHUT_WR)
        except OSError:
            self._end(connection, abrupt=True)

    def _flipped(self, connection: Connection, way: Way, data: bytes) -> bytes:
        rule = self._rule("flip", connection, way)
        if rule is None or not connection.forwarded["up"]:
            return data
        rule.amount -= 1
        if rule.amount <= 0:
            self._rules.remove(rule)
        return data[:-1] + bytes([data[-1] ^ 1])

    async def _paced(self, connection: Connection, way: Way, count: int) -> None:
        if self.rate_Bps:
            self._due = max(self._due, self._loop.time()) + count / self.rate_Bps
            await asyncio.sleep(self._due - self._loop.time())
        if rule := self._rule("throttle", connection, way):
            await asyncio.sleep(count / rule.amount)

    async def _send(self, connection: Connection, way: Way, target: socket.socket, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rule = self._rule("slice", connection, way)
            size = int(rule.amount) if rule else len(rest)
            await self._loop.sock_sendall(target, rest[:size])
            rest = rest[size:]
            if rest:
                await asyncio.sleep(0)  # so that the peer reads it in as many pieces

    async def _send_later(self, target: socket.socket, data: bytes, before: "asyncio.Task[None] | None") -> None:
        await asyncio.sleep(self.delay_s)
        if before is not None:
            await before
        with contextlib.suppress(OSError):  # whoever reads from there meets it too
            await self._loop.sock_sendall(target, data)

    def _reset_half(self, connection: Connection, way: Way) -> None:
        """The end that this way leads to is gone; whoever still sends there is told then, as a kernel would."""
        index, sock = (0, connection.there) if way == "up" else (1, connection.here)
        if sock.fileno() < 0:
            self._end(connection, abrupt=True)
            return
        other = connection.tasks[1 - index]  # reads from the socket that goes
        other.cancel()
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def _end(self, connection: Connection, *, abrupt: bool) -> None:
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        for task in connection.tasks:
            if task is not asyncio.current_task():
                task.cancel()
        for sock in (connection.here, connection.there):
            if sock.fileno() < 0:
                continue
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            if abrupt:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    def close(self) -> None:
        """End all of it."""

        async def work() -> None:
            self._accepting.cancel()
            for connection in list(self.connections):
                self._end(connection, abrupt=True)
            self._listener.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._call(work())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@contextmanager
def proxied(target: int) -> Iterator[Proxy]:
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
