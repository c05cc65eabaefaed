"""The `socket` module as kvwire sees it in a simulation: `kvwire.sockets` itself runs unchanged on top of this."""

from __future__ import annotations

import asyncio
import errno
import os
import socket as real
import struct
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

from tests.sim.loop import SimLoop
from tests.sim.network import End, Host, Listener

TCP_USER_TIMEOUT = 18  # linux/tcp.h
TCP_INFO_RTT_AT = 68  # tcpi_rtt, linux/tcp.h


def here() -> SimLoop:
    """The process whose Python runs just now."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    return loop


class SimSocket:
    """A TCP socket of the process that makes it."""

    def __init__(self, family: int = real.AF_INET, type: int = real.SOCK_STREAM, *, end: End | None = None) -> None:
        self.family = family
        self._loop = here()
        self._host: Host = self._loop.host
        self._listener: Listener | None = None
        self._end: End | None = None
        self._waiters: list[asyncio.Future[Any]] = []
        self._write_waiters: list[asyncio.Future[Any]] = []
        self._closed = False
        self._connect_error = 0
        self._fd = self._host.net.new_fd() if end is None else end.fd
        if end is not None:
            self._adopt(end)

    @property
    def end(self) -> End:
        """The kernel's side of it. OSError where there is none, or none any more."""
        if self._end is None:
            raise OSError(errno.EBADF if self._closed else errno.ENOTCONN, "no connection")
        return self._end

    def _adopt(self, end: End) -> None:
        self._end = end
        end.watch(lambda: self._wake(self._waiters), lambda: self._wake(self._write_waiters))

    def _wake(self, waiters: list[asyncio.Future[Any]]) -> None:
        if self._loop.dead:
            return
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        waiters.clear()

    def readable(self, waiter: asyncio.Future[Any]) -> asyncio.Future[Any]:
        """Done at the next edge. Who asks has just seen that nothing is there."""
        self._waiters.append(waiter)
        return waiter

    def writable(self, waiter: asyncio.Future[Any]) -> asyncio.Future[Any]:
        self._write_waiters.append(waiter)
        return waiter

    # --- as socket.socket has it --------------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self._closed else self._fd

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def bind(self, address: tuple[str, int]) -> None:
        port = address[1] or 7878
        if port in self._host.listeners:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self._listener = Listener(self._host, port)

    def listen(self, backlog: int) -> None:
        assert self._listener is not None
        self._host.listeners[self._listener.port] = self._listener
        self._listener.on_readable = lambda: self._loop.signal(self._fd)
        self._loop.listening[self._fd] = self._listener

    def accept(self) -> tuple[SimSocket, tuple[str, int]]:
        if self._listener is None:
            raise OSError(errno.EBADF, "closed")
        if not self._listener.backlog:
            raise BlockingIOError(errno.EAGAIN, "nobody there")
        end = self._listener.backlog.popleft()
        end.accepted_at = self._loop.clock.now
        return SimSocket(end=end), (end.peer.host.address, end.peer.fd)

    def connect_ex(self, address: tuple[str, int]) -> int:
        self._host.net.connect(self._host, self._fd, address, self._connected)
        return errno.EINPROGRESS

    def _connected(self, code: int, end: End | None) -> None:
        if end is not None and (self._closed or self._loop.dead):  # nobody waits for it any more
            end.close()
        elif not self._closed and not self._loop.dead:
            self._connect_error = code
            if end is not None:
                self._adopt(end)
            self._loop.signal_writable(self._fd)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if level == real.IPPROTO_TCP and option == TCP_USER_TIMEOUT and self._end is not None:
            self._end.user_timeout_s = value / 1000

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        if level == real.SOL_SOCKET and option == real.SO_ERROR:
            return self._connect_error
        if option == real.TCP_CONGESTION:
            return b"cubic".ljust(size, b"\0")
        rtt_us = int(2e6 * self.end.flow.path.latency_s)
        return bytes(TCP_INFO_RTT_AT) + struct.pack("<I", rtt_us) + bytes(size - TCP_INFO_RTT_AT - 4)

    def getsockname(self) -> tuple[str, int]:
        port = self._listener.port if self._listener is not None else self.end.fd
        return self._host.address, port

    def getpeername(self) -> tuple[str, int]:
        return self.end.peer.host.address, 7878

    def recv(self, count: int) -> bytes:
        return self.end.recv(count)

    def send(self, data: bytes) -> int:
        return self.end.send(data)

    def shutdown(self, how: int) -> None:
        self.end.shutdown()

    def detach(self) -> int:
        fd = self.end.fd
        self.end.watch(None, None)
        self._end = None
        return fd

    def close(self) -> None:
        self._closed = True
        if self._listener is not None:
            self._loop.listening.pop(self._fd, None)
            self._listener.close()
            self._listener = None
        if self._end is not None:
            self._end.close()
            self._end = None

    def __enter__(self) -> SimSocket:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def module() -> ModuleType:
    """Constants and errors are the real ones; what would touch the host is not."""
    fake = ModuleType("socket")
    fake.__dict__.update({name: value for name, value in vars(real).items() if name.isupper()})
    names: dict[str, Callable[..., object] | type] = {
        "socket": SimSocket,
        "gaierror": real.gaierror,
        "has_dualstack_ipv6": lambda: False,
        "getnameinfo": lambda address, flags: (address[0], str(address[1])),
        "getaddrinfo": lambda host, port, **more: [(real.AF_INET, real.SOCK_STREAM, 6, "", (host or "0.0.0.0", port))],
    }
    fake.__dict__.update(names)
    return fake
