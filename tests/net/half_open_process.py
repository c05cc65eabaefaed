"""Strangers without end, in a process of their own.

`python -m tests.net.half_open_process PORT COUNT RATE` keeps COUNT connections to that port half open, of every kind in
`SAYINGS`; where one is hung up on, another one takes its place, at most RATE a second. It says "full" once all of them
have been opened, and to every line that comes in how many that were by then.
"""

import contextlib
import errno
import random
import select
import socket
import sys
import time
from collections import deque

from kvwire import wire
from kvwire.wire.preamble import preamble
from tests.net.sealed import SEALED
from tests.net.test_sealed_strangers import client_hello

LONGEST = b"\x16\x03\x01\x40\x00"
DRIP_S = 1.0


def sayings() -> list[tuple[bytes, bytes]]:
    """What each kind says at once, and then a byte a second."""
    hello = client_hello()
    noise = random.Random(5).randbytes(4096)
    return [
        (b"", b""),
        (b"", SEALED + hello),
        (SEALED, b""),
        (SEALED, hello),
        (SEALED + hello[:99], b""),
        (SEALED + hello, b""),  # answered; then silence
        (SEALED + hello, noise),
        (SEALED + LONGEST + b"\x01\x01\xff\xff" + bytes(0x3FFC) + (LONGEST + bytes(0x4000)) * 2, b""),  # 48 of 128 KiB
        (hello, b""),  # TLS without a preamble
        (noise, b""),
        (SEALED + noise, b""),
        (b"KVWC\xff\xff\x02\x00", b""),  # another version
        (wire.control_preamble(plain=True), b""),
        (preamble(wire.ConnectionKind.LANE, plain=False) + bytes(20), bytes(200)),
    ]


class Strangers:
    def __init__(self, port: int, count: int, rate: int) -> None:
        self._address = "127.0.0.1", port
        self._count, self._rate = count, rate
        self._kinds = sayings()
        self._epoll = select.epoll()
        self._open: dict[int, tuple[socket.socket, int]] = {}
        self._drips: deque[tuple[float, int, socket.socket, int, int]] = deque()
        self.made = 0

    def dial(self) -> None:
        """One more."""
        sock = socket.socket()
        sock.setblocking(False)
        if sock.connect_ex(self._address) not in (0, errno.EINPROGRESS):
            sock.close()
            return
        self._open[sock.fileno()] = sock, self.made % len(self._kinds)
        self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        self.made += 1

    def _hang_up(self, fd: int) -> None:
        sock, _ = self._open.pop(fd)
        self._epoll.unregister(fd)
        sock.close()

    def _event(self, fd: int, event: int) -> None:
        sock, kind = self._open[fd]
        try:
            if event & select.EPOLLOUT:  # it is up
                self._epoll.modify(fd, select.EPOLLIN)
                first, drip = self._kinds[kind]
                sock.send(first)
                if drip:
                    self._drips.append((time.monotonic() + DRIP_S, fd, sock, kind, 0))
            elif not sock.recv(1 << 16):
                self._hang_up(fd)
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up(fd)

    def _drip(self, now: float) -> None:
        while self._drips and self._drips[0][0] <= now:
            _, fd, sock, kind, at = self._drips.popleft()
            drip = self._kinds[kind][1]
            if self._open.get(fd, (None, 0))[0] is sock and at < len(drip):
                with contextlib.suppress(OSError):  # its end is seen elsewhere
                    sock.send(drip[at : at + 1])
                self._drips.append((now + DRIP_S, fd, sock, kind, at + 1))

    def run(self) -> None:
        full, last, allowed = False, time.monotonic(), 0.0
        self._epoll.register(0, select.EPOLLIN)
        while True:
            now = time.monotonic()
            allowed, last = min(self._rate / 10, allowed + (now - last) * self._rate), now
            while allowed >= 1 and len(self._open) < self._count:
                allowed -= 1
                self.dial()
            for fd, event in self._epoll.poll(0.01):
                if fd == 0:
                    if not sys.stdin.readline():
                        return
                    print(self.made, flush=True)
                elif fd in self._open:
                    self._event(fd, event)
            self._drip(now)
            if not full and self.made >= self._count:
                full = True
                print("full", flush=True)


if __name__ == "__main__":
    Strangers(*map(int, sys.argv[1:4])).run()
