"""A control connection under asyncio: what comes goes into the session, what the session has to say goes out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from typing import TYPE_CHECKING

from kvwire import sockets, wire
from kvwire.errors import LinkLost, NotKvwire

if TYPE_CHECKING:
    from kvwire.driver import Driver

log = logging.getLogger("kvwire")

RECEIVE_BYTES = 64 * 1024


async def open_control(sock: socket.socket) -> None:
    """Greet what listens there. NotKvwire, VersionMismatch, ProtocolError or LinkLost where it is no node of ours."""
    await asyncio.get_running_loop().sock_sendall(sock, wire.control_preamble())
    answer = await sockets.read_at_most(sock, wire.PREAMBLE_BYTES)
    if len(answer) < wire.PREAMBLE_BYTES and wire.control_preamble().startswith(answer):
        raise LinkLost(f"it closed the connection after {len(answer)} bytes")
    if wire.classify(answer.ljust(wire.PREAMBLE_BYTES, b"\0")) is not wire.ConnectionKind.CONTROL:
        raise NotKvwire("it answered as a lane, not as a node")


class Control:
    """One connection of a link. A link that was lost and resumed has another one."""

    def __init__(self, link: Driver, sock: socket.socket) -> None:
        self._link = link
        self._sock = sock
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
        with contextlib.suppress(OSError):  # a good-bye, if the socket takes it at once
            self._sock.send(self._link._session.data_to_send())
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
                data = await link.loop.sock_recv(self._sock, RECEIVE_BYTES)
                if not data:
                    link._connection_lost(self, LinkLost("the peer closed the connection without a good-bye"))
                    return
                link._session.receive_data(time.monotonic(), data)
                link._pump()
        except OSError as error:
            self._lost(error)
        except Exception as error:  # a bug; better no link than one that nobody reads
            log.exception("while reading from %s", link.peer)
            link._lose(LinkLost(f"internal error on the link to {link.peer}: {error!r}"))

    async def _write(self) -> None:
        try:
            while not self._closed:
                await self._outbox.wait()
                self._outbox.clear()
                data = self._link._session.data_to_send()
                if data:
                    await self._link.loop.sock_sendall(self._sock, data)
                    self._outbox.set()
        except OSError:  # the reader meets it, too, behind what the peer has said before: perhaps a good-bye
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _lost(self, error: OSError) -> None:
        text = error.strerror or str(error)
        self._link._connection_lost(self, LinkLost(f"control connection to {self._link.peer}: {text}"))
