"""What this machine has: kernel, congestion controls, memory, versions."""

from __future__ import annotations

import platform
import socket
from pathlib import Path

import kvwire
from kvwire._ext import crc32c
from kvwire.cli.failure import Failure
from kvwire.cli.units import show_size

PREFERRED = "cubic"
"""On loopback CUBIC is faster than BBR, for iperf3 and for kvwire alike."""
CONTROLS = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
MEMORY = Path("/proc/meminfo")


def _allowed(name: str) -> bool:
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError:
            return False
    return True


def congestion(name: str | None) -> str:
    """The congestion control to pin: `name`, else CUBIC, else the host's. `Failure` where `name` is not to be had."""
    if name is None:
        if _allowed(PREFERRED):
            return PREFERRED
        with socket.socket() as sock:
            return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
    if not name.isascii() or not _allowed(name):
        raise Failure(f"--cc {name}: this host does not let us use it; it has {CONTROLS.read_text().strip()}")
    return name


def check_memory(nbytes: int) -> None:
    """`Failure` where the host has not `nbytes` to give."""
    for line in MEMORY.read_text().splitlines():
        if line.startswith("MemAvailable:") and int(line.split()[1]) * 1024 < nbytes:
            has = show_size(int(line.split()[1]) * 1024)
            raise Failure(f"this needs {show_size(nbytes)} of memory and the host has {has}; ask for fewer tokens")


def versions() -> dict[str, str]:
    """Of all that has a say in a figure."""
    return {
        "kvwire": kvwire.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "crc32c": crc32c.selected(),
    }
