"""Two hosts on one machine: network namespaces joined by a veth, with an IPv4 and an IPv6 address each.

Where the machine has no IPv6 they have none of it either; what needs it is marked `needs_ipv6`.
"""

import ctypes
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

_numbers = itertools.count()


def has_ipv6() -> bool:
    """Whether sockets can have addresses of IPv6: a kernel may be without it, and a container's mostly is."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="namespaces need root and iproute2"
)


@dataclass(frozen=True)
class Host:
    """A namespace and its addresses."""

    name: str
    ipv4: str
    ipv6: str

    def command(self, *command: str) -> list[str]:
        """The command, to be run on this host."""
        return ["ip", "netns", "exec", self.name, *command]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


def _add_ipv6(host: Host) -> None:
    if has_ipv6():
        _ip("-n", host.name, "address", "replace", f"{host.ipv6}/64", "dev", "wire", "nodad")


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace with its loopback up; on the way out it is gone, and with it what was in it."""
    unique = f"kvwire-{os.getpid()}-{next(_numbers)}-{name}"
    _ip("netns", "add", unique)
    try:
        _ip("-n", unique, "link", "set", "lo", "up")
        yield unique
    finally:
        _ip("netns", "del", unique)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Joined by a veth called "wire" on both."""
    with ExitStack() as stack:
        hosts = [
            Host(stack.enter_context(namespace(name)), f"10.78.0.{number}", f"fd78::{number}")
            for number, name in enumerate(("a", "b"), 1)
        ]
        first, second = (host.name for host in hosts)
        _ip("-n", first, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", second)
        for host in hosts:
            _ip("-n", host.name, "link", "set", "wire", "up")
            _ip("-n", host.name, "address", "add", f"{host.ipv4}/24", "dev", "wire")
            _add_ipv6(host)
        yield hosts[0], hosts[1]


@contextmanager
def entered(host: Host) -> Iterator[None]:
    """This thread's sockets are made on that host; those that exist stay where they are."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{host.name}") as there:
        assert setns(there.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert setns(here.fileno(), 0) == 0, os.strerror(ctypes.get_errno())


def black_hole(host: Host, active: bool = True) -> None:
    """What is sent to this host vanishes without a word; or no longer does."""
    _ip("-n", host.name, "link", "set", "wire", "down" if active else "up")
    if not active:  # addresses of IPv6 went with the link
        _add_ipv6(host)
