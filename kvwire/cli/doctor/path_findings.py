"""The doctor's rules about the path to HOST."""

from __future__ import annotations

from collections.abc import Iterator

from kvwire.cli.doctor.findings import Case, Finding
from kvwire.cli.doctor.tcp_findings import WINDOW_BYTES
from kvwire.cli.units import show_rate, show_time

ETHERNET_MTU, JUMBO_MTU = 1500, 9000
FRAME_BYTES = 38
"""Of Ethernet around a packet: preamble, header, checksum, gap."""
HEADERS_BYTES = 52
"""IPv4 and TCP with timestamps."""
SUPER_BYTES = 65536
"""What a segmentation offload hands on in one piece."""


def payload_share(mtu: int) -> float:
    """How much of the line rate is payload."""
    return (mtu - HEADERS_BYTES) / (mtu + FRAME_BYTES)


def packets_per_GB(mtu: int) -> float:
    return 1e9 / (mtu - HEADERS_BYTES)


def peer(case: Case) -> Iterator[Finding]:
    """The round trip, and who answers."""
    route = case.route
    if route is None:
        return
    where = f"{route.host} port {route.port}"
    rtt = f"RTT {show_time(route.rtt_s)} by {route.rtt_by}"
    if route.node == "kvwire":
        said = f"a kvwire node answers at {where}, its version fits, {rtt}; lanes get {route.lane_control}"
        yield Finding("path", "ok", said + (f"; it is {route.node_is}" if route.node_is else ""))
    elif route.node == "unasked":
        yield Finding(
            "path",
            "note",
            f"something listens at {where}, {rtt}; it was not asked whether it is a kvwire node",
            "give the doctor --keys DIR or --plain",
            "it then says whether version, keys and policy fit, too",
        )
    elif route.node == "none":
        yield Finding(
            "path",
            "note",
            f"nothing listens at {where}, {rtt}",
            f"start `kvwire-bench serve -p {route.port}` there",
            "the doctor then sees segment size, TCP options and kvwire's version too",
        )
    else:
        yield Finding(
            "path",
            "fault",
            f"what answers at {where} is no node that this one can talk to: {route.node_said}; {rtt}",
            "name the port of the kvwire node with -p, keys that it knows with --keys (or --plain on both ends), "
            "or install the same version on both hosts",
            "links that come up",
        )


def options(case: Case) -> Iterator[Finding]:
    """What the other end, or a box between, did not agree to though this host offers it."""
    route, value = case.route, case.host.sysctl
    if route is None:
        return
    for agreed, name, costs in (
        (
            route.window_scaling,
            "tcp_window_scaling",
            f"no window above {WINDOW_BYTES:,} bytes, {show_rate(WINDOW_BYTES * 8 / route.rtt_s)} a lane",
        ),
        (route.sack, "tcp_sack", "one loss repaired per round trip"),
        (route.timestamps, "tcp_timestamps", "old segments are not told from new ones"),
    ):
        if agreed is False and value(f"net.ipv4.{name}") != "0":
            yield Finding(
                "path",
                "fault" if name == "tcp_window_scaling" else "warning",
                f"{name} is on here and was not agreed on with {route.host}: {costs}",
                f"sysctl -w net.ipv4.{name}=1 on {route.host}, or look for a firewall that strips TCP options",
                "as on any other path",
            )


def interface(case: Case) -> Iterator[Finding]:
    """The interface's packets and the path's."""
    route = case.route
    if route is None or route.interface is None:
        return
    card, mtu = route.interface, route.interface.mtu
    speed = f", {show_rate(card.link_bps)}" if card.link_bps else ""
    yield Finding("path", "ok", f"by {card.name}{speed}, MTU {mtu}")
    if 0 < route.path_mtu < mtu:
        # Loopback's is cut to what fits an IP packet.
        if route.path_mtu < WINDOW_BYTES:
            yield Finding(
                "path",
                "note",
                f"the path takes packets of {route.path_mtu} bytes, the interface {mtu}",
                f"ip route change to {route.address} with mtu {route.path_mtu}, or raise the MTU on the way",
                "no segment is lost until the path's limit is found",
            )
    elif 0 < mtu <= ETHERNET_MTU:
        yield Finding(
            "path",
            "note",
            f"MTU {mtu}: {packets_per_GB(mtu):,.0f} packets per GB, {payload_share(mtu):.1%} of the line is payload",
            f"ip link set dev {card.name} mtu {JUMBO_MTU}  # on both hosts, where every switch between takes it",
            f"{packets_per_GB(JUMBO_MTU):,.0f} packets per GB, {payload_share(JUMBO_MTU):.1%} of the line is payload",
        )
    if mtu > ETHERNET_MTU and card.name != "lo" and case.host.sysctl("net.ipv4.tcp_mtu_probing") == "0":
        yield Finding(
            "path",
            "note",
            f"MTU {mtu} and tcp_mtu_probing is 0: a lane stands still where a box drops large packets silently",
            "sysctl -w net.ipv4.tcp_mtu_probing=1",
            "smaller segments are tried after a timeout (RFC 4821)",
        )
    if card.offloads_off:
        count = packets_per_GB(mtu or ETHERNET_MTU)
        yield Finding(
            "path",
            "warning",
            f"{card.name} has {', '.join(card.offloads_off)} off: that many packets go through the stack one by one",
            f"ethtool -K {card.name} " + " ".join(f"{name} on" for name in card.offloads_off),
            f"about {1e9 / SUPER_BYTES:,.0f} trips through the stack per GB instead of {count:,.0f}",
        )
