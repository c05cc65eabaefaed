"""The path to another host, measured: its interface, round trip, segment size, and who answers at the port."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kvwire
from kvwire.cli.doctor.host_facts import read_text
from kvwire.cli.failure import Failure

DIALS = 5
"""Connections whose shortest handshake is the round trip."""
DIAL_TIMEOUT_S = 3.0
NODE_TIMEOUT_S = 5.0
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN)

# linux/rtnetlink.h
RTM_GETROUTE, NLM_F_REQUEST, RTA_DST, RTA_OIF = 26, 1, 1, 4
NETLINK_ROUTE = 0
# linux/ethtool.h, linux/sockios.h
SIOCETHTOOL = 0x8946
OFFLOADS = {"tso": 0x1E, "gso": 0x23, "gro": 0x2B}


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface; what it does not say is 0 or left out. `offloads_off`: of tso, gso and gro."""

    name: str
    mtu: int = 0
    link_bps: float = 0.0
    offloads_off: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """What was seen of the path to HOST.

    `rtt_by`: "handshake", or "refusal" where nothing listens. `node`: "kvwire", "none" where nothing listens, or
    "other", and `node_said` is what kvwire's own dialling said. `window_scaling`, `sack` and `timestamps`: what both
    ends agreed on, None where nobody did. `node` is "unasked" where somebody listens, and the user has not said
    with which keys to ask who. `node_is`: who it has proved to be, where the link was sealed.
    """

    host: str
    port: int
    address: str
    interface: Interface | None
    rtt_s: float
    rtt_by: str
    path_mtu: int = 0
    mss: int = 0
    window_scaling: bool | None = None
    sack: bool | None = None
    timestamps: bool | None = None
    node: str = "none"
    node_said: str = ""
    node_is: str = ""
    lane_control: str = ""


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """The fields of TCP_INFO (struct tcp_info, linux/tcp.h) that a path shows itself by."""

    rtt_s: float
    path_mtu: int
    mss: int
    window_scaling: bool
    sack: bool
    timestamps: bool


def parse_tcp_info(info: bytes) -> TcpInfo:
    """Options are bits of byte 5: timestamps 1, SACK 2, window scaling 4. Kernels before 4.6 have no tcpi_min_rtt."""
    mss, path_mtu, rtt_us = (struct.unpack_from("<I", info, at)[0] for at in (16, 60, 68))
    if len(info) >= 152:
        rtt_us = min(rtt_us, struct.unpack_from("<I", info, 148)[0])
    return TcpInfo(rtt_us / 1e6, path_mtu, mss, bool(info[5] & 4), bool(info[5] & 2), bool(info[5] & 1))


# --- the interface ------------------------------------------------------------------------------------------------


def route_request(address: str) -> bytes:
    """The netlink message that asks by which interface `address` is reached (rtnetlink(7))."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    attribute = struct.pack("=HH", 4 + len(packed), RTA_DST) + packed
    route = struct.pack("=BBBBBBBBI", family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    length = 16 + len(route) + len(attribute)
    return struct.pack("=IHHII", length, RTM_GETROUTE, NLM_F_REQUEST, 1, 0) + route + attribute


def interface_index(answer: bytes) -> int | None:
    """The outgoing interface in the answer to `route_request`; None for an error."""
    at = 16 + 12
    while at + 8 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind == RTA_OIF:
            return int(struct.unpack_from("=I", answer, at + 4)[0])
        at += max(4, (length + 3) & ~3)
    return None


def interface_of(address: str) -> Interface | None:
    """The interface of the route to a numeric address, as the kernel would choose it now."""
    address, _, zone = address.partition("%")
    if zone:  # a link-local address names it
        return read_interface(zone)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as netlink:
            netlink.settimeout(1.0)
            netlink.send(route_request(address))
            index = interface_index(netlink.recv(8192))
        return read_interface(socket.if_indextoname(index)) if index else None
    except OSError:  # a sandbox without netlink
        return None


def read_interface(name: str, root: Path = Path("/")) -> Interface:
    """What /sys/class/net says of it, and ethtool's ioctl."""
    folder = root / "sys/class/net" / name
    mtu, mbps = read_text(folder / "mtu"), read_text(folder / "speed")  # -1, or no such file, where it has no speed
    link_bps = int(mbps) * 1e6 if mbps.isdigit() else 0.0
    # A virtual interface hands on large packets whole; for it these switches say nothing.
    off = offloads_off(name) if (folder / "device").exists() else ()
    return Interface(name, int(mtu) if mtu.isdigit() else 0, link_bps, off)


def offloads_off(name: str) -> tuple[str, ...]:
    """Those of OFFLOADS that the interface has switched off."""
    off = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for offload, command in OFFLOADS.items():
            value = array.array("I", [command, 1])  # struct ethtool_value
            try:
                fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP16x", name.encode(), value.buffer_info()[0]))
            except OSError:
                continue
            if value[1] == 0:
                off.append(offload)
    return tuple(off)


# --- the other end ------------------------------------------------------------------------------------------------


def _dial(family: int, address: tuple[Any, ...]) -> tuple[float, TcpInfo | None]:
    """Round trip, and TCP_INFO where somebody listens. OSError where nobody answers at all."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(DIAL_TIMEOUT_S)
        begun = time.perf_counter()
        try:
            sock.connect(address)
        except ConnectionRefusedError:
            return time.perf_counter() - begun, None
        elapsed_s = time.perf_counter() - begun
        info = parse_tcp_info(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256))
        return info.rtt_s or elapsed_s, info  # 0: the SYN was sent twice, and the kernel cannot tell which was answered


def _reach(host: str, port: int) -> tuple[int, tuple[Any, ...], float, TcpInfo | None]:
    """The first address of HOST that answers, one that listens before one that refuses, and what was seen of it."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Failure(f"{host!r} does not resolve ({why}); give a host name or address that this host knows") from None
    refused: tuple[int, tuple[Any, ...], float, TcpInfo | None] | None = None
    problem: OSError | None = None
    for family, _, _, _, address in found:
        try:
            rtt_s, info = _dial(family, address)
        except OSError as error:
            problem = error
            continue
        if info is not None:
            return family, address, rtt_s, info
        refused = refused or (family, address, rtt_s, info)
    if refused is not None:
        return refused
    assert problem is not None
    if problem.errno in UNREACHABLE:
        raise Failure(f"{host} cannot be reached: {os.strerror(problem.errno)}; check the address and the routes")
    if isinstance(problem, TimeoutError):
        raise Failure(
            f"{host} port {port} did not answer within {DIAL_TIMEOUT_S:g} s; "
            "check that the host is up and that no firewall drops the port"
        )
    raise Failure(f"cannot connect to {host} port {port}: {problem.strerror or problem}")


async def _greet(host: str, port: int, identity: kvwire.Identity | None) -> tuple[str, str]:
    """Connects as an application would; which congestion control a lane got, and who answered."""
    config = kvwire.Config(plain=identity is None, lanes=1, connect_timeout_s=NODE_TIMEOUT_S)
    async with await kvwire.Node.start(config, identity=identity) as node:
        link = await node.connect(host, port)
        who = str(link.identity.subject) if link.identity else ""
        return ", ".join(sorted(set(link.lane_congestion.values()))), who


def probe(host: str, port: int, *, identity: kvwire.Identity | None, plain: bool) -> Route:
    """Dials HOST a few times, then as kvwire does, with an identity or plain, unless there is neither.

    `Failure` where nobody answers there at all.
    """
    family, address, rtt_s, info = _reach(host, port)
    for _ in range(DIALS - 1):
        try:
            again_s, again = _dial(family, address)
        except OSError:  # it answered before, and one answer is enough
            continue
        rtt_s, info = min(rtt_s, again_s), again or info
    numeric = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    interface = interface_of(numeric)
    if info is None:
        return Route(host, port, numeric, interface, rtt_s, "refusal")
    node, said, control, who = "unasked", "", "", ""
    if identity is not None or plain:
        try:
            control, who = kvwire.run(_greet(numeric, port, identity))
            node = "kvwire"
        except (kvwire.KvwireError, OSError) as error:
            node, said = "other", str(error)
    return Route(
        host,
        port,
        numeric,
        interface,
        rtt_s,
        "handshake",
        path_mtu=info.path_mtu,
        mss=info.mss,
        window_scaling=info.window_scaling,
        sack=info.sack,
        timestamps=info.timestamps,
        node=node,
        node_said=said,
        node_is=who,
        lane_control=control,
    )
