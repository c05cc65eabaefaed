"""A link by the emulator: a TUN device on each host, and a process between them."""

import fcntl
import os
import socket
import struct
import subprocess
import sys
import threading
from typing import Any

from kvwire.emulate import emulator, process
from kvwire.emulate.namespaces import Namespace
from kvwire.emulate.path import Counters, Histogram, Wishes

DEVICE = "/dev/net/tun"

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO_ECN = 1, 2, 8

QUEUE_PACKETS = 10_000
"""Of a device: what a host sends between two looks of the emulator, and more."""

ANSWER_S = 10.0
"""The emulator answers within one round: milliseconds, on a machine that is not overloaded."""


def probe() -> None:
    """OSError with what is missing."""
    if not os.path.exists(DEVICE):
        raise OSError(f"there is no {DEVICE} (modprobe tun; in a container: --device {DEVICE})")
    os.close(os.open(DEVICE, os.O_RDWR))


def make_device(host: Namespace, name: str, address: str, mtu: int) -> int:
    """A TUN device on that host; the descriptor that it ends with."""
    with host.entered():
        fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN)
            host.ip(
                f"link set {name} mtu {mtu} txqueuelen {QUEUE_PACKETS} up",
                f"address add {address}/24 dev {name}",
            )
        except OSError:
            os.close(fd)
            raise
    return fd


class TunLink:
    """Joins two hosts, as paths say; ends with `close`, or with this process."""

    def __init__(
        self, hosts: tuple[Namespace, Namespace], addresses: tuple[str, str], wishes: Wishes, mtu: int, seed: int
    ) -> None:
        self._lock = threading.Lock()
        self._queue_max = [0, 0]
        self._wishes = wishes
        self._owed = 0
        """Replies that are yet to come."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        tuns: list[int] = []
        try:
            tuns.extend(make_device(host, "wan", address, mtu) for host, address in zip(hosts, addresses, strict=True))
            command = [sys.executable, "-IS", process.__file__, emulator.__file__]
            numbers = [*tuns, theirs.fileno()]
            self._process = subprocess.Popen(
                [*command, *map(str, numbers), str(seed)], pass_fds=numbers, start_new_session=True
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            for tun in tuns:
                os.close(tun)
        ours.settimeout(ANSWER_S)
        self._control = ours
        try:
            self.apply(wishes)
        except OSError:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the emulator's process: for who wants to know what it costs."""
        return self._process.pid

    def close(self) -> None:
        self._control.close()
        self._process.wait()

    def apply(self, wishes: Wishes) -> None:
        """These hold from now on. OSError where the emulator is gone."""
        with self._lock:
            self._ask(wishes)

    def counters(self) -> tuple[Counters, Counters]:
        """From a to b, from b to a."""
        with self._lock:
            raw = self._ask(self._wishes)
            most, self._queue_max = self._queue_max, [0, 0]
        return counters(raw[0], most[0]), counters(raw[1], most[1])

    def _ask(self, wishes: Wishes) -> tuple[dict[str, Any], dict[str, Any]]:
        self._control.send(emulator.wishes(wishes))
        self._owed += 1
        while self._owed:  # before ours there are those that came too late for whoever had asked
            reply = self._control.recv(emulator.REPLY_BYTES)
            if not reply:
                raise OSError(f"the emulator has ended, with status {self._process.wait()}")
            self._owed -= 1
            raw = emulator.counts(reply)
            self._queue_max = [
                max(pair) for pair in zip(self._queue_max, (way["queue_max_bytes"] for way in raw), strict=True)
            ]
        self._wishes = wishes
        return raw


def counters(raw: dict[str, Any], queue_max_bytes: int) -> Counters:
    histograms = {name: Histogram(raw[name]) for name in ("queueing", "lateness")}
    return Counters(**raw | histograms | {"queue_max_bytes": queue_max_bytes})
