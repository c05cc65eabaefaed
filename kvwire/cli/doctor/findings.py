"""What the doctor says, and its rules about the host itself. Pure: from facts to sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import kvwire
from kvwire.cli.doctor.host_facts import Host
from kvwire.cli.doctor.path_probe import Route
from kvwire.cli.units import show_rate
from kvwire.congestion import LanePlanner

Level = Literal["fault", "warning", "note", "ok"]
LEVELS: tuple[Level, ...] = ("fault", "warning", "note", "ok")
"""Worst first. A fault keeps kvwire from working or takes most of its rate; a warning costs something that can be
named; a note is worth knowing."""

FILES_BASE = 32
"""Descriptors of a process with a serving node and no links (22 counted): streams, event loop, engine, listener."""
FILES_WANTED = 65536
FEWEST_LANES, MOST_LANES = LanePlanner(None).start(0.0), 64
"""Of a link (Config.lanes)."""
PER_LINK = 1 + FEWEST_LANES
"""Descriptors of a link within a site."""
LIBCRYPTO_GOOD = (3, 2)
WITH_VAES, WITHOUT_VAES = "0.6 to 0.75", "0.4 to 0.55"
"""Sealed goodput over plain goodput where cores are the limit, on a CPU that has VAES, with OpenSSL 3.5 and with 3.0,
which has no code for it (bench/README.md)."""
SEALED = f"sealed links run at {WITH_VAES} of the rate of plain ones instead of {WITHOUT_VAES}"
GOOD_CLOCKS = ("tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page")
"""Read without a system call."""
PASS_CPU_ON = "give the virtual machine the host's CPU model (QEMU: -cpu host), or take a CPU that has it"


@dataclass(frozen=True, slots=True)
class Finding:
    """`change`: a command or a sentence, `gain`: what that would give; "" where there is nothing to change."""

    area: str
    level: Level
    found: str
    change: str = ""
    gain: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """What is judged: a host, the path to another where one was named, and the rate that is wanted of it."""

    host: Host
    route: Route | None
    rate_bps: float
    lanes: int = FEWEST_LANES
    """That a link begins with on this path (docs/congestion.md)."""


def cpu(case: Case) -> Iterator[Finding]:
    """Cores, what of them the control group lets us use, and the frequency governor."""
    cpu = case.host.cpu
    if cpu.cores == 1:
        yield Finding(
            "cpu",
            "warning",
            "one core may be used: moving bytes, the network stack and Python take turns on it",
            "give the process a second core (taskset, cpuset, or the container's CPU limit)",
            "kvwire moves bytes with two threads (Config.workers), so that one receives while the other sends",
        )
    else:
        yield Finding("cpu", "ok", f"{cpu.cores} cores of {cpu.model}")
    if cpu.quota_cores is not None and cpu.quota_cores < cpu.cores:
        stop_s = (1 - cpu.quota_cores / cpu.cores) * 0.1
        yield Finding(
            "cpu",
            "warning" if cpu.quota_cores < 2 else "note",
            f"the control group may spend {cpu.quota_cores:g} of {cpu.cores} cores: when it has, all its threads stop",
            f"raise the CPU limit to {cpu.cores} cores, or pin the process to {max(1, int(cpu.quota_cores))} (taskset)",
            f"no stops of up to {stop_s * 1e3:.0f} ms, all cores busy (1 - quota / cores, of a period of 100 ms)",
        )
    if cpu.governor not in ("", "performance", "schedutil"):
        yield Finding(
            "cpu",
            "note",
            f"the frequency governor is {cpu.governor}",
            "cpupower frequency-set -g performance",
            "the first bytes after a pause do not wait for the clock to rise",
        )


def crypto(case: Case) -> Iterator[Finding]:
    """What CRC32C and AES-GCM run on."""
    cpu, crypto = case.host.cpu, case.host.crypto
    speed = f"{crypto.crc32c_GBps:.3g} GB/s a core"
    if crypto.crc32c == "portable":
        yield Finding(
            "crypto",
            "warning",
            f"CRC32C is computed by portable code, {speed}: at most {show_rate(crypto.crc32c_GBps * 8e9)} a worker",
            PASS_CPU_ON,
            "the CPU's own CRC32C and carry-less multiplication check tens of GB/s a core",
        )
    else:
        yield Finding("crypto", "ok", f"CRC32C by {crypto.crc32c}, {speed}")
    aes, multiply = ("aes", "pclmulqdq" if cpu.machine == "x86_64" else "pmull")
    if missing := [name for name in (aes, multiply) if name not in cpu.features]:
        yield Finding(
            "crypto",
            "warning",
            f"the CPU shows no {' and no '.join(missing)}: AES-GCM would be computed in software",
            PASS_CPU_ON,
            "sealed links keep up with a network",
        )
    elif cpu.machine == "x86_64" and not {"vaes", "vpclmulqdq"} <= set(cpu.features):
        yield Finding("crypto", "note", "AES and PCLMUL, but no VAES", PASS_CPU_ON, SEALED)
    else:
        yield Finding("crypto", "ok", f"the CPU has {', '.join(cpu.features)}")


def libcrypto(case: Case) -> Iterator[Finding]:
    """What seals, and at which share of the rate of plain links."""
    crypto = case.host.crypto
    get = "install OpenSSL 3.5 or newer and name its libcrypto.so.3 in KVWIRE_LIBCRYPTO"
    if crypto.libcrypto_problem:
        yield Finding("crypto", "fault", crypto.libcrypto_problem, get, "sealed links: with this one there are none")
    elif not crypto.libcrypto:
        yield Finding(
            "crypto",
            "warning",
            f"no libcrypto of OpenSSL 3 was found: what seals is {crypto.cipher}",
            get,
            "sealing without the GIL, for which 9 to 10 GB/s of AES-GCM fall to 0.8 to 2.5 in a busy process",
        )
    else:
        numbers = tuple(int(part) if part.isdigit() else 0 for part in crypto.libcrypto.split(".")[:2])
        said = f"libcrypto {crypto.libcrypto} seals, {crypto.libcrypto_path} ({crypto.libcrypto_found_as})"
        vaes = case.host.cpu.machine != "x86_64" or "vaes" in case.host.cpu.features
        share = WITH_VAES if vaes and numbers >= LIBCRYPTO_GOOD else WITHOUT_VAES
        said += f": expect {share} of the rate of plain links where cores, not the network, are the limit"
        if vaes and numbers < LIBCRYPTO_GOOD:
            yield Finding("crypto", "warning", said, get, SEALED)
        else:
            yield Finding("crypto", "ok", said)


def descriptors(case: Case) -> Iterator[Finding]:
    """Open files: a link holds one for its control connection and one for each lane."""
    soft, hard = case.host.files_soft, case.host.files_hard
    handshakes = kvwire.Config().max_handshakes
    room = max(0, soft - FILES_BASE) // PER_LINK
    found = f"{soft} descriptors: room for {room} links of {FEWEST_LANES} lanes"
    if soft >= FILES_BASE + handshakes + 1 + MOST_LANES:
        yield Finding("descriptors", "ok", found)
        return
    wanted = min(FILES_WANTED, hard)
    if soft < FILES_BASE + 1 + MOST_LANES:
        found += f", none for one of {MOST_LANES}, which takes {1 + MOST_LANES} besides about {FILES_BASE} for the node"
    else:
        found += f" and too few for {handshakes} connections that have not yet said who they are (max_handshakes)"
    if wanted <= FILES_BASE + handshakes + 1 + MOST_LANES:
        wanted = FILES_WANTED
        change = f"LimitNOFILE={wanted} in the service's unit, or as root: ulimit -Hn {wanted}; ulimit -n {wanted}"
    else:
        change = f"ulimit -n {wanted} (the hard limit is {hard}), or LimitNOFILE={wanted} in the service's unit"
    yield Finding(
        "descriptors",
        "fault" if soft < FILES_BASE + 1 + MOST_LANES else "warning",
        found,
        change,
        f"room for {(wanted - FILES_BASE) // PER_LINK} links, at {PER_LINK} descriptors each",
    )


def clock(case: Case) -> Iterator[Finding]:
    """The engine reads the clock for each run of cells."""
    clock = case.host.clock
    said = f"{clock.source or 'unknown'}, {clock.read_ns:.0f} ns a reading"
    if clock.source in GOOD_CLOCKS or not clock.source:
        yield Finding("clock", "ok", said)
        return
    better = next((name for name in GOOD_CLOCKS if name in clock.available), None)
    yield Finding(
        "clock",
        "warning",
        f"{said}, with a system call each",
        f"echo {better} > /sys/devices/system/clocksource/clocksource0/current_clocksource"
        if better
        else f"the kernel offers {', '.join(clock.available) or 'no other'}: ask dmesg why tsc was given up",
        f"tens of ns a reading instead of {clock.read_ns:.0f}",
    )
