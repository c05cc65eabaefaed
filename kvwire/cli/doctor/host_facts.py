"""What of this host has a say in how fast kvwire moves bytes: read from /proc and /sys, or tried on a socket.

Containers hide files, and ARM has other ones: what cannot be read is None, "" or left out, never an error.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvwire import ConfigError
from kvwire._ext import crc32c, libcrypto
from kvwire.cli.machine import total_bytes
from kvwire.cli.sealing import cipher_name

X86_FEATURES = ("sse4_2", "aes", "pclmulqdq", "avx2", "avx512f", "vaes", "vpclmulqdq")
ARM_FEATURES = ("aes", "pmull", "crc32")
"""What AES-GCM and CRC32C are made of, as /proc/cpuinfo calls it."""

SYSCTLS = (
    *("net/ipv4/tcp_" + name for name in ("wmem", "rmem", "moderate_rcvbuf", "adv_win_scale", "notsent_lowat")),
    *("net/ipv4/tcp_" + name for name in ("window_scaling", "timestamps", "sack", "mtu_probing")),
    *("net/ipv4/tcp_" + name for name in ("slow_start_after_idle", "no_metrics_save", "congestion_control")),
    *("net/ipv4/tcp_" + name for name in ("available_congestion_control", "allowed_congestion_control")),
    *("net/core/" + name for name in ("rmem_max", "wmem_max", "default_qdisc", "netdev_max_backlog", "somaxconn")),
)
CONTROLS = ("bbr", "cubic", "reno")
"""Congestion controls that kvwire makes use of."""
SO_MAX_PACING_RATE, TCP_NOTSENT_LOWAT, TCP_RTO_MAX_MS = 47, 25, 44
"""asm-generic/socket.h; linux/tcp.h"""
SOCKET_OPTIONS = {
    "pacing": (socket.SOL_SOCKET, SO_MAX_PACING_RATE, 1 << 30),
    "notsent_lowat": (socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, 1 << 16),
    "rto_max": (socket.IPPROTO_TCP, TCP_RTO_MAX_MS, 1000),
}
"""What a lane asks of the kernel, with a value to try."""
CRC_BYTES, CRC_ROUNDS = 1 << 18, 8
CLOCK_READS = 2000


@dataclass(frozen=True, slots=True)
class Cpu:
    """`quota_cores`: how many cores' worth of time the control group may spend, None for no limit."""

    model: str = ""
    machine: str = "x86_64"
    features: tuple[str, ...] = ()
    cores: int = 1
    quota_cores: float | None = None
    governor: str = ""


@dataclass(frozen=True, slots=True)
class Crypto:
    """`libcrypto` is a version, "" for none; `libcrypto_problem` is what is wrong with the one that was named.
    `cipher`: who seals, "" for nobody."""

    crc32c: str = ""
    crc32c_GBps: float = 0.0
    libcrypto: str = ""
    libcrypto_path: str = ""
    libcrypto_found_as: str = ""
    libcrypto_problem: str = ""
    cipher: str = ""


@dataclass(frozen=True, slots=True)
class Clock:
    """`read_ns`: what one reading of CLOCK_MONOTONIC costs here, Python's share included."""

    source: str = ""
    available: tuple[str, ...] = ()
    read_ns: float = 0.0


@dataclass(frozen=True, slots=True)
class Host:
    """Everything, as it was found. `usable_controls`: what a socket of this process can really have."""

    cpu: Cpu = Cpu()
    crypto: Crypto = Crypto()
    clock: Clock = Clock()
    memory_bytes: int = 0
    files_soft: int = 1 << 20
    files_hard: int = 1 << 20
    default_control: str = ""
    usable_controls: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    socket_options: tuple[str, ...] = tuple(SOCKET_OPTIONS)
    """Those of SOCKET_OPTIONS that a socket of this process can really have."""
    tcp_info_bytes: int = 280
    """How much the kernel says of a connection (TCP_INFO), 0 for nothing."""

    def sysctl(self, name: str) -> str:
        """The value of "net.ipv4.tcp_sack"; "" where it could not be read."""
        return self.sysctls.get(name, "")

    def sizes(self, name: str) -> tuple[int, int, int] | None:
        """Least, initial and largest bytes of "net.ipv4.tcp_wmem" or tcp_rmem."""
        words = self.sysctl(name).split()
        return (int(words[0]), int(words[1]), int(words[2])) if len(words) == 3 else None


# --- what files say -----------------------------------------------------------------------------------------------


def cpu_model(cpuinfo: str) -> str:
    """The first CPU's name; ARM kernels give none."""
    match = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else ""


def cpu_features(cpuinfo: str, wanted: Iterable[str]) -> tuple[str, ...]:
    """Those of `wanted` that the first CPU has: "flags" on x86, "Features" on ARM."""
    match = re.search(r"^(?:flags|Features)\s*: (.+)$", cpuinfo, re.MULTILINE)
    has = set(match[1].split()) if match else set()
    return tuple(name for name in wanted if name in has)


def quota_of_v2(cpu_max: str) -> float | None:
    """Cores' worth in a control group's cpu.max: "150000 100000", or "max 100000" for no limit."""
    quota, _, period = cpu_max.strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def quota_of_v1(quota_us: str, period_us: str) -> float | None:
    """Cores' worth in cpu.cfs_quota_us and cpu.cfs_period_us; a quota of -1 is no limit."""
    return quota_of_v2(f"{quota_us.strip()} {period_us.strip()}")


def cgroup_paths(membership: str) -> tuple[str | None, str | None]:
    """This process's group in the unified hierarchy and in version 1's "cpu", from /proc/self/cgroup."""
    unified = cpu = None
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            unified = path
        elif "cpu" in controllers.split(","):
            cpu = path
    return unified, cpu


# --- reading ------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A file's text without the blanks around it; "" where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _upwards(base: Path, group: str | None) -> Iterable[Path]:
    """A control group's folder and those above it, as a limit anywhere up there holds too."""
    if group is None:
        return
    here = base / group.strip("/")
    while here != base:
        yield here
        here = here.parent
    yield base


def read_quota_cores(root: Path) -> float | None:
    """The tightest CPU quota on the way up from this process's control group."""
    unified, cpu = cgroup_paths(read_text(root / "proc/self/cgroup"))
    groups = root / "sys/fs/cgroup"
    quotas = [quota_of_v2(read_text(folder / "cpu.max")) for folder in _upwards(groups, unified)]
    quotas += [
        quota_of_v1(read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us"))
        for base in (groups / "cpu", groups / "cpu,cpuacct")
        for folder in _upwards(base, cpu)
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def read_cpu(root: Path) -> Cpu:
    cpuinfo = read_text(root / "proc/cpuinfo")
    machine = platform.machine()
    features = X86_FEATURES if machine == "x86_64" else ARM_FEATURES
    return Cpu(
        model=cpu_model(cpuinfo) or machine,
        machine=machine,
        features=cpu_features(cpuinfo, features),
        cores=len(os.sched_getaffinity(0)),
        quota_cores=read_quota_cores(root),
        governor=read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    )


def crc32c_speed_GBps() -> float:
    """What one core checks in a second; the best of a few short rounds, as others may want the core too."""
    data = bytes(CRC_BYTES)
    best_s = 1.0
    for _ in range(CRC_ROUNDS):
        begun = time.perf_counter()
        crc32c.crc32c(data)
        best_s = min(best_s, time.perf_counter() - begun)
    return CRC_BYTES / best_s / 1e9


def read_crypto() -> Crypto:
    crc, speed = crc32c.selected(), crc32c_speed_GBps()
    try:
        found, cipher = libcrypto.find(), cipher_name()
    except ConfigError as error:
        return Crypto(crc, speed, libcrypto_problem=str(error))
    if found is None:
        return Crypto(crc, speed, cipher=cipher)
    return Crypto(crc, speed, found.version, found.path, found.found_as, cipher=cipher)


def read_clock(root: Path) -> Clock:
    folder = root / "sys/devices/system/clocksource/clocksource0"
    begun = time.perf_counter_ns()
    for _ in range(CLOCK_READS):
        time.monotonic()
    read_ns = (time.perf_counter_ns() - begun) / CLOCK_READS
    available = tuple(read_text(folder / "available_clocksource").split())
    return Clock(read_text(folder / "current_clocksource"), available, read_ns)


def usable_controls(default: str) -> tuple[str, ...]:
    """Those of CONTROLS that this process can have on a socket: what files list may not be allowed to it."""
    usable = []
    with socket.socket() as sock:
        for name in CONTROLS:
            try:
                if name != default:  # which a socket has, even where a sandbox lets nobody choose
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
                usable.append(name)
            except OSError:
                continue
    return tuple(usable)


def usable_options() -> tuple[str, ...]:
    """Those of SOCKET_OPTIONS that this kernel, or this sandbox, lets a socket have."""
    usable = []
    with socket.socket() as sock:
        for name, option in SOCKET_OPTIONS.items():
            with contextlib.suppress(OSError):
                sock.setsockopt(*option)
                usable.append(name)
    return tuple(usable)


def tcp_info_bytes() -> int:
    """How much TCP_INFO there is."""
    with socket.socket() as sock, contextlib.suppress(OSError):
        return len(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 512))
    return 0


def default_control() -> str:
    """What a new socket has."""
    with socket.socket() as sock:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def read(root: Path = Path("/")) -> Host:
    """This host. `root`: where proc and sys are."""
    unlimited = Host().files_hard
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (unlimited if limit == resource.RLIM_INFINITY else limit for limit in limits)
    default = default_control()
    values = {name.replace("/", "."): read_text(root / "proc/sys" / name) for name in SYSCTLS}
    return Host(
        cpu=read_cpu(root),
        crypto=read_crypto(),
        clock=read_clock(root),
        memory_bytes=total_bytes(root / "proc/meminfo"),
        files_soft=soft,
        files_hard=hard,
        default_control=default,
        usable_controls=usable_controls(default),
        sysctls={name: " ".join(text.split()) for name, text in values.items() if text},
        socket_options=usable_options(),
        tcp_info_bytes=tcp_info_bytes(),
    )
