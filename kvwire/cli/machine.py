"""What this machine has: kernel, congestion controls, memory, versions."""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kvwire
from kvwire._ext import crc32c
from kvwire.cli import sealing
from kvwire.cli.failure import Failure
from kvwire.cli.units import show_size

PREFERRED = "cubic"
"""On loopback CUBIC is faster than BBR, for iperf3 and for kvwire alike."""
CONTROLS = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
MEMORY = Path("/proc/meminfo")


def _text(path: Path) -> str:
    """What a file of /proc says; empty where there is none, as in some sandboxes."""
    try:
        return path.read_text()
    except OSError:
        return ""


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
        raise Failure(f"--cc {name}: this host does not let us use it; it has {_text(CONTROLS).strip()}")
    return name


def available_bytes() -> int:
    """Memory that the host can give without swapping; where it does not say, as if there were no end to it."""
    found = re.findall(r"^MemAvailable:\s*(\d+) kB$", _text(MEMORY), re.MULTILINE)
    return int(found[0]) * 1024 if found else sys.maxsize


def total_bytes(meminfo: Path = MEMORY) -> int:
    """Memory of the host; 0 where it does not say."""
    found = re.findall(r"^MemTotal:\s*(\d+) kB$", _text(meminfo), re.MULTILINE)
    return int(found[0]) * 1024 if found else 0


def check_memory(nbytes: int, instead: str = "ask for fewer tokens") -> None:
    """`Failure`, with what to do `instead`, where the host has not `nbytes` to give."""
    if available_bytes() < nbytes:
        has = show_size(available_bytes())
        raise Failure(f"this needs {show_size(nbytes)} of memory and the host has {has}; {instead}")


def cipher() -> str:
    """`sealing.cipher_name`, or empty where KVWIRE_LIBCRYPTO names what is none."""
    try:
        return sealing.cipher_name()
    except kvwire.ConfigError:
        return ""


def describe() -> dict[str, Any]:
    """What of this machine has a say in a figure: `host`, `cpu`, `cores` that may be used, `memory_bytes`, `kernel`,
    `congestion` (the host's default), the versions of kvwire and Python, the CRC32C code and the `cipher` in use."""
    with socket.socket() as sock:
        default = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    names = re.findall(r"^model name\s*: (.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return {
        "host": platform.node(),
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": total_bytes(),
        "kernel": platform.release(),
        "congestion": default.rstrip(b"\0").decode(),
        "kvwire": kvwire.__version__,
        "python": platform.python_version(),
        "crc32c": crc32c.selected(),
        "cipher": cipher(),
    }


def show(facts: Mapping[str, Any]) -> str:
    """A description in one line."""
    return (
        f"{facts['cores']} cores of {facts['cpu']}, {show_size(facts['memory_bytes'])}, Linux {facts['kernel']}, "
        f"Python {facts['python']}, kvwire {facts['kvwire']}, CRC32C {facts['crc32c']}, "
        f"AES-256-GCM by {facts['cipher'] or 'nothing'}"
    )
