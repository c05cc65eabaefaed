"""A link by the kernel: a router between the hosts, with netem (delay, loss) and behind it tbf (rate, queue) each way.

Its queue is tbf's, so it is counted in bytes and what waits out the delay is not in it. Between netem and what Path
says there are two differences: the delay comes before the queue, and jitter is drawn for each packet, which then waits
for those before it.
"""

import ctypes
import fcntl
import json
import socket
import struct
import threading
from typing import Any

from kvwire.emulate.namespaces import Namespace
from kvwire.emulate.path import Counters, Path, Wishes

ETHERNET_BYTES = 14
"""Of the header that qdiscs count and Path does not."""

UNBOUNDED_BYTES = 512 << 20
LINE_PACKETS = 1_000_000
"""netem's own limit, which holds what waits out the delay."""

IN_ORDER = "rate 100gbit"
"""With a rate, however high, netem keeps the order that jitter would spoil."""

SIOCETHTOOL = 0x8946  # linux/sockios.h
OFFLOADS = (0x1F, 0x24, 0x2C)
"""linux/ethtool.h: ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO. With these one loss would be of 64 KB."""

RULE = 100
"""Preference of the rules that black holes are made of: before the main table."""


def offloads_off(host: Namespace, device: str) -> None:
    with host.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in OFFLOADS:
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP16x", device.encode(), ctypes.addressof(value)))


def tbf(path: Path, mtu: int) -> str:
    """Parameters; the burst is what the rate gives in a millisecond, and two packets at least."""
    assert path.rate_bps is not None
    share = (mtu + ETHERNET_BYTES) / mtu
    burst = max(2 * (mtu + ETHERNET_BYTES), path.rate_bps / 8e3)
    limit = max((path.queue_bytes or UNBOUNDED_BYTES) * share, mtu + ETHERNET_BYTES)
    return f"tbf rate {path.rate_bps * share:.0f}bit burst {burst:.0f}b limit {limit:.0f}b"


def netem(path: Path) -> str:
    """Parameters."""
    words = [f"netem limit {LINE_PACKETS} delay {path.delay_s * 1e6:.0f}us"]
    if path.jitter_s:
        words.append(f"{path.jitter_s * 1e6:.0f}us {IN_ORDER}")
    if path.burst:
        words.append("loss gemodel {:.6f}% {:.6f}%".format(*(100 * share for share in path.burst)))
    elif path.loss:
        words.append(f"loss {100 * path.loss:.6f}%")
    if path.reorder:
        words.append(f"reorder {100 * path.reorder:.6f}%")
    return " ".join(words)


def check(path: Path) -> None:
    """ValueError for what netem and tbf cannot do."""
    if path.mark_bytes is not None:
        raise ValueError('tbf marks no packets: mark_bytes needs kind="tun"')
    if path.burst and path.loss:
        raise ValueError('netem loses packets alone or in bursts: both need kind="tun"')


def probe() -> None:
    """OSError with what is missing."""
    host = Namespace()
    try:
        host.tool(f"tc qdisc add dev lo root handle 1: {netem(Path(delay_s=0.001))}")
        host.tool(f"tc qdisc add dev lo parent 1:1 {tbf(Path(rate_bps=1e6), 1500)}")
        host.ip(f"rule add pref {RULE} iif lo ipproto tcp sport 1 blackhole")
    finally:
        host.close()


class NetemLink:
    """Joins two hosts over a router. Nothing to be ended: it goes with its namespaces."""

    def __init__(
        self,
        hosts: tuple[Namespace, Namespace],
        router: Namespace,
        addresses: tuple[str, str],
        wishes: Wishes,
        mtu: int,
    ) -> None:
        self._lock = threading.Lock()
        self._router = router
        self._mtu = mtu
        self._wishes = Wishes(there=Path(), back=Path())
        router.sysctl("ipv4/ip_forward", "1")
        for number, host in enumerate(hosts):
            self._join(host, "ab"[number], addresses[number], addresses[1 - number])
        for device in "ab":
            self._tc(f"qdisc add dev {device} root handle 1: {netem(Path())}")
        self.apply(wishes)

    def _join(self, host: Namespace, device: str, address: str, peer: str) -> None:
        """That host and the router know each other's Ethernet addresses: nobody asks, and the counters count no ARP."""
        mac, router_mac = (f"02:77:00:00:{device}{end}:01" for end in "0f")
        host.ip(
            f"link add wan address {mac} mtu {self._mtu} type veth"
            f" peer name {device} address {router_mac} mtu {self._mtu} netns {self._router.path}",
            f"address add {address}/32 dev wan",
            "link set wan up",
            f"route add {peer}/32 dev wan",
            f"neighbour add {peer} lladdr {router_mac} nud permanent dev wan",
        )
        self._router.ip(
            f"link set dev {device} up",
            f"route add {address}/32 dev {device}",
            f"neighbour add {address} lladdr {mac} nud permanent dev {device}",
        )
        offloads_off(host, "wan")
        offloads_off(self._router, device)

    def _tc(self, command: str) -> None:
        self._router.tool(f"tc {command}")

    def apply(self, wishes: Wishes) -> None:
        """These hold from now on."""
        with self._lock:
            before = self._wishes
            self._way("b", before.there, wishes.there)
            self._way("a", before.back, wishes.back)
            self._rules(wishes.black_hole - before.black_hole, "")
            for port in before.ports ^ wishes.ports:
                self._rules(1 if port in wishes.ports else -1, str(port))
            self._wishes = wishes

    def _way(self, device: str, before: Path, path: Path) -> None:
        """What leaves the router by that device."""
        check(path)
        if path == before:
            return
        self._tc(f"qdisc change dev {device} root handle 1: {netem(path)}")
        if path.rate_bps is not None:
            self._tc(f"qdisc replace dev {device} parent 1:1 handle 10: {tbf(path, self._mtu)}")
        elif before.rate_bps is not None:
            self._tc(f"qdisc delete dev {device} parent 1:1 handle 10:")

    def _rules(self, change: int, port: str) -> None:
        if change:
            verb = "add" if change > 0 else "delete"
            for device, end in (("a", "sport"), ("b", "dport")):
                which = f"ipproto tcp {end} {port}" if port else ""
                self._router.ip(f"rule {verb} pref {RULE} iif {device} {which} blackhole")

    def counters(self) -> tuple[Counters, Counters]:
        """From a to b, from b to a."""
        with self._lock:
            return self._counted("a", "b"), self._counted("b", "a")

    def _counted(self, source: str, device: str) -> Counters:
        (link,) = json.loads(self._router.tool(f"ip -s -j link show dev {source}"))
        came: dict[str, int] = link["stats64"]["rx"]
        qdiscs = json.loads(self._router.tool(f"tc -s -j qdisc show dev {device}"))
        stats: dict[str, dict[str, Any]] = {qdisc["kind"]: qdisc for qdisc in qdiscs}
        root, queue = stats["netem"], stats.get("tbf", {"drops": 0, "backlog": 0, "qlen": 0})
        overflowed, out, held = queue["drops"], root["packets"], root["qlen"]
        entered = out + root["drops"] + held
        # Read one after the other while packets move: what came between the two looks has not vanished.
        black_holed = max(0, came["packets"] - entered)
        return Counters(
            segments_in=entered + black_holed,
            bytes_in=came["bytes"] - ETHERNET_BYTES * came["packets"],
            segments_out=out,
            bytes_out=root["bytes"] - ETHERNET_BYTES * out,
            lost=root["drops"] - overflowed,
            overflowed=overflowed,
            black_holed=black_holed,
            failed=0,
            held=held,
            marked=0,
            reordered=None,
            queue_bytes=max(0, queue["backlog"] - ETHERNET_BYTES * queue["qlen"]),
            queue_max_bytes=None,
            queueing=None,
            lateness=None,
            late_s=None,
            late_max_s=None,
        )
