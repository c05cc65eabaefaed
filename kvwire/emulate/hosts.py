"""Two hosts on this machine, "a" and "b", each with a network of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal, Self

from kvwire.emulate.namespaces import Namespace

Side = Literal["a", "b"]
Buffers = Literal["default", "big"]

ADDRESSES = ("10.77.0.1", "10.77.0.2")

BIG_BUFFERS = "4096 1048576 67108864"
"""tcp_rmem and tcp_wmem of `buffers="big"`: 64 MiB, which is what one flow needs at 1 Gbit/s up to half a second."""


class Hosts:
    """What Wan and Shaped have in common. A context manager: on the way out the processes that were started on the
    hosts are killed, and nothing is left."""

    addresses = ADDRESSES
    sides: tuple[Side, Side] = ("a", "b")

    def __init__(self, buffers: Buffers) -> None:
        self._stack = ExitStack()
        self._hosts: dict[Side, Namespace] = {}
        try:
            for side in self.sides:
                self._hosts[side] = self._host()
                for name in ("tcp_rmem", "tcp_wmem") if buffers == "big" else ():
                    self._hosts[side].sysctl(f"ipv4/{name}", BIG_BUFFERS)
        except BaseException:
            self.close()
            raise

    def _host(self) -> Namespace:
        host = Namespace()
        self._stack.callback(host.close)
        host.sysctl("ipv6/conf/all/disable_ipv6", "1")
        host.ip("link set lo up")
        return host

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def close(self) -> None:
        """Once or more."""
        self._stack.close()

    def entered(self, side: Side) -> AbstractContextManager[None]:
        """Inside, this thread's new sockets and processes are on that host. What it has stays where it is."""
        return self._hosts[side].entered()

    def popen(self, side: Side, command: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """subprocess.Popen on that host."""
        with self.entered(side):
            process = subprocess.Popen(command, **kwargs)
        self._stack.callback(_end, process)
        return process

    def run(self, side: Side, command: Sequence[str], **kwargs: Any) -> subprocess.CompletedProcess[Any]:
        """subprocess.run on that host."""
        with self.entered(side):
            return subprocess.run(command, **kwargs)


def _end(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
