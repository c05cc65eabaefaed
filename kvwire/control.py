"""A control connection under asyncio: what comes goes into the session, what the session has to say goes out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

from kvwire import sockets, wire
from kvwire.errors import LinkLost, NotKvwire
from kvwire.security.tls import Tls

if TYPE_CHECKING:
    from kvwire.driver import Driver

log = logging.getLogger("kvwire")

RECEIVE_BYTES = 16 * 1024
"""Read, and acted on, at once: 1,500 of the smallest messages. Then whatever else the loop has to do has its turn."""
STRANGER_BYTES = 8 * 1024
"""Read at once from a peer that is not authenticated."""


class Stream:
    """The bytes of a control connection: through TLS where the link is sealed, as they are where it is plain."""

    def __init__(self, sock: socket.socket, tls: Tls | None) -> None:
        self.sock = sock
        self.tls = tls
        self._loop = asyncio.get_running_loop()
        self._heard = bytearray()  # read ahead
        self.answered = False
        """Whether the peer has begun a TLS handshake, and has heard of it."""
        self.ready = False
        """Whether it has ended it."""

    async def handshake(self) -> None:
        """Authenticate both sides. AuthenticationFailed, or LinkLost where the peer hangs up."""
        done = self.tls is None
        while self.tls is not None:
            if data := self.tls.pending():
                await self._loop.sock_sendall(self.sock, data)
                self.answered = True
            self.ready = done
            if done:
                return
            data = await self._loop.sock_recv(self.sock, STRANGER_BYTES)
            if not data:
                raise LinkLost("it hung up during the TLS handshake")
            done = self.tls.handshake(data)

    async def read(self, most: int = RECEIVE_BYTES) -> bytes:
        """What has come, at least a byte; b"" once the peer has hung up. LinkLost where it was damaged."""
        said = bytes(self._heard) or (b"" if self.tls is None else self.tls.receive(b""))
        self._heard.clear()
        while not said:
            data = await self._loop.sock_recv(self.sock, most)
            if not data:
                return b""
            said = data if self.tls is None else self.tls.receive(data)
            await asyncio.sleep(0)  # `sock_recv` does not wait while there is something, and a peer may send on and on
        return said

    async def read_exactly(self, count: int) -> bytes:
        """The next `count` bytes. LinkLost where the peer hangs up before."""
        heard = bytearray()
        while len(heard) < count:
            part = await self.read(STRANGER_BYTES)
            if not part:
                raise LinkLost(f"it closed the connection after {len(heard)} bytes of a greeting")
            heard += part
        self._heard += heard[count:]
        return bytes(heard[:count])

    async def write(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data if self.tls is None else self.tls.send(data))

    def write_now(self, data: bytes) -> None:
        """As much of it as the socket takes at once. OSError where it takes nothing."""
        self.sock.send(data if self.tls is None else self.tls.send(data))


async def open_control(sock: socket.socket, tls: Tls | None) -> Stream:
    """Greet what listens there, up to what the session has to say.

    NotKvwire, VersionMismatch, ModeMismatch, ProtocolError, AuthenticationFailed or LinkLost.
    """
    plain = tls is None
    first = wire.control_preamble(plain=plain)
    if tls is not None:  # TLS begins without waiting for the answer: a round trip saved
        tls.handshake(b"")
        first += tls.pending()
    await asyncio.get_running_loop().sock_sendall(sock, first)
    answer = await sockets.read_at_most(sock, wire.PREAMBLE_BYTES)
    if len(answer) < wire.PREAMBLE_BYTES and wire.control_preamble(plain=plain).startswith(answer):
        raise LinkLost(f"it closed the connection after {len(answer)} bytes")
    if wire.classify(answer.ljust(wire.PREAMBLE_BYTES, b"\0"), plain=plain) is not wire.ConnectionKind.CONTROL:
        raise NotKvwire("it answered as a lane, not as a node")
    stream = Stream(sock, tls)
    await stream.handshake()
    return stream


class Control:
    """One connection of a link. A link that was lost and resumed has another one."""

    def __init__(self, link: Driver, stream: Stream) -> None:
        self._link = link
        self._stream = stream
        self._sock = stream.sock
        self._pid = os.getpid()
        self._writing = False
        self._outbox = asyncio.Event()
        self._closed = False
        self.tasks = {link.loop.create_task(self._read()), link.loop.create_task(self._write())}
        for task in self.tasks:
            task.add_done_callback(self._task_over)

    def wake(self) -> None:
        """The session may have something to say."""
        self._outbox.set()

    def close(self) -> None:
        """Hang up. Nothing of it runs any more once its `tasks` are over."""
        if self._closed:
            return
        self._closed = True
        if self._pid != os.getpid():  # after a fork the connection is the parent's, and so are the keys of its TLS
            self._sock.close()
            return
        if not self._writing:  # a good-bye, if the socket takes it at once, and is not in the middle of a message
            with contextlib.suppress(OSError):
                self._stream.write_now(self._link._session.data_to_send())
        for task in self.tasks:
            if task is not asyncio.current_task(self._link.loop):
                task.cancel()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if not self.tasks:
            self._sock.close()

    def _task_over(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if self._closed and not self.tasks:
            self._sock.close()  # not before: a loop that still watches it would watch whatever takes its number

    async def _read(self) -> None:
        link = self._link
        try:
            while not self._closed:
                data = await self._stream.read()
                if not data:
                    link._connection_lost(self, LinkLost("the peer closed the connection without a good-bye"))
                    return
                link._session.receive_data(time.monotonic(), data)
                link._pump()
        except LinkLost as error:
            link._connection_lost(self, error)
        except OSError as error:
            self._lost(error)
        except Exception as error:  # a bug; better no link than one that nobody reads
            log.exception("while reading from %s", link.peer)
            link._lose(LinkLost(f"internal error on the link to {link.peer}: {type(error).__name__}"))

    async def _write(self) -> None:
        try:
            while not self._closed:
                await self._outbox.wait()
                self._outbox.clear()
                data = self._link._session.data_to_send()
                if data:
                    self._writing = True
                    await self._stream.write(data)
                    self._writing = False
                    self._outbox.set()
        except OSError:  # the reader meets it, too, behind what the peer has said before: perhaps a good-bye
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _lost(self, error: OSError) -> None:
        text = error.strerror or str(error)
        self._link._connection_lost(self, LinkLost(f"control connection to {self._link.peer}: {text}"))
