"""Sockets for asyncio: dialling with typed errors, listening, and what is set on every connection.

Plain sockets and `loop.sock_*` on purpose: any event loop has them, nothing is read beyond what was asked for
(a lane's socket is handed to the engine after its first bytes), and no transport buffers on the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from kvwire.config import Config
from kvwire.congestion import parse
from kvwire.errors import (
    AddressNotFound,
    ConfigError,
    ConnectRefused,
    ConnectTimeout,
    LinkLost,
    LocalError,
    NetworkError,
)

TCP_USER_TIMEOUT = 18
"""linux/tcp.h"""
TCP_RTO_MAX_MS = 44
"""linux/tcp.h, Linux 6.15"""
RTO_MAX_MS = 1000
"""Longest pause between two tries of the kernel to get something through, where it lets one choose (else two minutes):
its lowest. After a black hole of 2 s a lane stood still for 2.9 s, and for 3.9 s without (docs/design.md)."""
IP_BIND_ADDRESS_NO_PORT = 24
"""linux/in.h"""
HEAD_START_S = 0.25
"""What an address has before the next one is tried too: the Connection Attempt Delay of RFC 8305, section 5."""
LONG_RTT_S = 0.002
"""Above this RTT a path leaves the site, and BBR's indifference to stray loss is worth its CPU (docs/design.md)."""


def _available_congestion_controls() -> tuple[str, ...]:
    try:
        with open("/proc/sys/net/ipv4/tcp_available_congestion_control") as file:
            return tuple(file.read().split())
    except OSError:
        return ()


def _congestion(sock: socket.socket) -> str:
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return raw.split(b"\0", 1)[0].decode()


def rtt_s(sock: socket.socket) -> float:
    """Smoothed RTT of a connected socket (TCP_INFO); 0.0 on a host that does not say."""
    try:
        return parse(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)).rtt_us / 1e6
    except OSError:
        return 0.0


def set_congestion(sock: socket.socket, name: str) -> None:
    """Choose the kernel's congestion control; ConfigError names those the host has."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except (OSError, UnicodeEncodeError) as error:
        have = ", ".join(_available_congestion_controls())
        raise ConfigError(f"congestion control {name!r} cannot be had ({error}); this host has {have}") from None


def check_congestion(config: Config) -> None:
    """ConfigError where the host does not have, or not allow, the configured congestion control."""
    if config.congestion is not None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            set_congestion(probe, config.congestion)


def tune_lane(sock: socket.socket, config: Config) -> str:
    """Prepare a connected lane; returns the congestion control it ended up with.

    BBR where the path is long and the host has it; on a short path the host's choice unless that is BBR, which
    costs a third of the goodput there. Buffers are left alone: SO_SNDBUF would switch the kernel's tuning off.
    """
    tune(sock, config)
    if config.congestion is not None:
        set_congestion(sock, config.congestion)
        return config.congestion
    available = _available_congestion_controls()
    current = _congestion(sock)
    wanted: tuple[str, ...] = ()
    if rtt_s(sock) > LONG_RTT_S:
        wanted = ("bbr",)
    elif current == "bbr":
        wanted = ("cubic", "reno")
    for name in wanted:
        if name in available and name != current:
            with contextlib.suppress(ConfigError):  # listed, but not allowed to this user
                set_congestion(sock, name)
                return name
    return current


def tune(sock: socket.socket, config: Config) -> None:
    """What every connection gets: no Nagle, and death when the peer's kernel is silent for too long."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, int(config.tcp_user_timeout_s * 1000))
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, RTO_MAX_MS)


async def _resolve(host: str, port: int, *, passive: bool = False) -> list[tuple[int, tuple[object, ...]]]:
    if not isinstance(host, str):
        raise ConfigError(f"host is {host!r:.80}; expected a name or an address")
    loop = asyncio.get_running_loop()
    flags = socket.AI_PASSIVE if passive else 0
    try:
        try:
            # At once, and with the scope of a link-local address, which uvloop's own does not keep.
            found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags | socket.AI_NUMERICHOST)
        except socket.gaierror:  # a name
            found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except (socket.gaierror, ValueError) as error:  # ValueError: a name that cannot be one
        raise AddressNotFound(f"{host!r} does not resolve: {error}") from None
    return [(family, address) for family, _, _, _, address in found]


def _check_port(port: object, lowest: int) -> None:
    if isinstance(port, bool) or not isinstance(port, int) or not lowest <= port < 65536:
        raise ConfigError(f"port is {port!r}; expected {lowest} to 65535")


async def dial(host: str, port: int, timeout_s: float, sources: Sequence[str] = (), turn: int = 0) -> socket.socket:
    """A connected, non-blocking TCP socket, within `timeout_s`.

    Every address of `host` is tried, families by turns, each with a head start before the next one, so that one that
    swallows everything delays and does not prevent (RFC 8305). `sources`: local addresses to dial from, of which those
    of the right family are taken by `turn`.
    AddressNotFound, ConnectRefused, ConnectTimeout or NetworkError, about the last address that failed; ConfigError
    where a source is not an address of this host.
    """
    _check_port(port, 1)
    problem: Exception = NetworkError(f"{host} has no address")
    attempts: set[asyncio.Task[socket.socket]] = set()
    try:
        async with asyncio.timeout(timeout_s):
            addresses = _by_turns(await _resolve(host, port))
            while addresses or attempts:
                if addresses:
                    attempts.add(asyncio.ensure_future(_attempt(*addresses.pop(0), sources, turn, host)))
                wait_s = HEAD_START_S if addresses else None
                done, attempts = await asyncio.wait(attempts, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for attempt in done:
                    try:
                        sock = attempt.result()
                    except NetworkError as error:
                        problem = error
                    except OSError as error:
                        problem = _connect_error(host, port, error)
                    else:
                        attempts |= done - {attempt}
                        return sock
    except TimeoutError:
        raise ConnectTimeout(f"{host} port {port} did not answer within {timeout_s:g} s") from None
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_hang_up)  # also where this task is cancelled once more, in the next line
        if attempts:
            await asyncio.wait(attempts)
    raise problem


def _hang_up(attempt: asyncio.Task[socket.socket]) -> None:
    """An attempt that nobody waits for any more is over."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def names(host: str, port: int, address: tuple[str, int]) -> bool:
    """Whether this is, now, an address of `host`."""
    try:
        return any(found[:2] == address for _, found in await _resolve(host, port))
    except AddressNotFound:
        return False


def _by_turns(addresses: list[tuple[int, tuple[object, ...]]]) -> list[tuple[int, tuple[object, ...]]]:
    """The first family first, then one of each by turns, as far as they go."""
    families = list(dict.fromkeys(family for family, _ in addresses))
    columns = [[address for address in addresses if address[0] == family] for family in families]
    return [address for row in zip_longest(*columns) for address in row if address is not None]


async def _attempt(
    family: int, address: tuple[object, ...], sources: Sequence[str], turn: int, host: str
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if sources:
            _bind_source(sock, sources, turn, host)
        await _connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(sock: socket.socket, address: tuple[object, ...]) -> None:
    """`loop.sock_connect`, which on uvloop loses the scope of a link-local address."""
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        loop = asyncio.get_running_loop()
        writable: asyncio.Future[None] = loop.create_future()
        loop.add_writer(sock.fileno(), _set, writable)
        try:
            await writable
        finally:
            loop.remove_writer(sock.fileno())
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _bind_source(sock: socket.socket, sources: Sequence[str], turn: int, host: str) -> None:
    """Bind to one of the sources that have the socket's family; NetworkError where none has."""
    fitting = [source for source in sources if (":" in source) == (sock.family == socket.AF_INET6)]
    if not fitting:
        raise NetworkError(f"{host} has an address of one family and the local addresses are of the other")
    source = fitting[turn % len(fitting)]
    try:
        # Lets many connections share a source: the port is chosen when the destination is known (ip(7)).
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind(socket.getaddrinfo(source, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][4])
    except OSError as error:
        raise ConfigError(f"cannot dial from {source}: {error.strerror or error}") from None


def show_address(address: tuple[Any, ...]) -> str:
    """A socket address in words; IPv4 in its own form, also where it came in over an IPv6 socket."""
    return f"{address[0].removeprefix('::ffff:')} port {address[1]}"


def numeric_peer(sock: socket.socket) -> tuple[str, int]:
    """Address and port that a socket is connected to. A name may mean several hosts; this is the one that answered."""
    host, port = socket.getnameinfo(sock.getpeername(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return host, int(port)


def _connect_error(host: str, port: int, error: OSError) -> Exception:
    if error.errno == errno.ECONNREFUSED:
        return ConnectRefused(f"nothing listens at {host} port {port}")
    if error.errno == errno.ETIMEDOUT:
        return ConnectTimeout(f"{host} port {port} did not answer")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return LocalError(f"no descriptor for a connection to {host}", hint="raise the limit on open files (ulimit -n)")
    return NetworkError(f"cannot connect to {host} port {port}: {os.strerror(error.errno or 0)}")


async def listen(host: str, port: int, config: Config) -> socket.socket:
    """A listening, non-blocking socket on the first address of `host`; port 0 lets the kernel choose.

    An empty host means every address, IPv6 and IPv4; "::" and "0.0.0.0" one family each.
    """
    _check_port(port, 0)
    if not host and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"
    family, address = (await _resolve("::" if host == "" else host, port, passive=True))[0]
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise LocalError(f"cannot listen at {host} port {port}: {error.strerror}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bool(host))
        sock.bind(address)
        sock.listen(max(128, config.max_handshakes))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise LocalError(f"cannot listen at {host} port {port}: {os.strerror(error.errno or 0)}") from None
    except BaseException:
        sock.close()
        raise
    return sock


async def somebody(listener: socket.socket) -> None:
    """Wait until there is a connection to accept."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(listener.fileno(), _set, readable)
    try:
        await readable
    finally:
        loop.remove_reader(listener.fileno())


async def accept(listener: socket.socket) -> tuple[socket.socket, tuple[Any, ...]]:
    """The next connection and its address. `loop.sock_accept`, which loses one when it is cancelled as that comes."""
    while True:
        try:
            return listener.accept()
        except BlockingIOError:
            await somebody(listener)


async def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes and not one more. LinkLost says how many came before the end."""
    data = await read_at_most(sock, count)
    if len(data) < count:
        raise LinkLost(f"the peer closed the connection after {len(data)} of {count} bytes")
    return data


async def read_at_most(sock: socket.socket, count: int) -> bytes:
    """`count` bytes, or fewer where the peer closed the connection before. LinkLost where it broke."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        try:
            chunk = await loop.sock_recv(sock, count - len(data))
        except OSError as error:
            raise LinkLost(f"connection lost: {error.strerror}") from None
        if not chunk:
            break
        data += chunk
    return data
