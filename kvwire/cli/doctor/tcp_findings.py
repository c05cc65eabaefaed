"""The doctor's rules about TCP: buffers against the bandwidth-delay product, congestion controls, switches.

A lane that sends has at most its send buffer in flight, so it reaches tcp_wmem's maximum / RTT: 4 MiB at 50 ms are
0.67 Gbit/s. A receiver advertises about half of its buffer, the other half being the kernel's overhead
(tcp_adv_win_scale = 1, ip-sysctl.rst of Linux), so a lane reaches tcp_rmem's maximum / 2 / RTT. Lanes add up.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvwire.cli.doctor.findings import Case, Finding, Level
from kvwire.cli.doctor.host_facts import CONTROLS
from kvwire.cli.units import show_rate, show_size, show_time

ASSUMED_RTTS_S = (0.0001, 0.01, 0.04, 0.08)
"""Of a rack, a region, a country, a continent: judged where no HOST was named."""
NEAR_RTT_S, FAR_RTT_S = 0.01, 0.08
LONG_RTT_S = 0.002
"""kvwire takes BBR above it (docs/design.md, Departures)."""
MSS_BYTES = 1448
LEAST_TCP_INFO = 232
"""Up to tcpi_snd_wnd, as Linux 5.4 has it (linux/tcp.h)."""
MOST_WINDOW_BYTES = 1 << 30
"""Largest that TCP can announce (RFC 7323)."""
MOST_SYSCTL = (1 << 31) - 1
WINDOW_BYTES = 65535
"""The same without window scaling (RFC 9293)."""


def needed_bytes(case: Case, rtt_s: float) -> int:
    """A lane's share of the bandwidth-delay product, rounded up to a power of two."""
    share = case.rate_bps / 8 * rtt_s / case.lanes
    return min(MOST_WINDOW_BYTES, 1 << max(16, int(share - 1).bit_length()))


def climb_s(window_bytes: float, rtt_s: float, control: str) -> float:
    """How long a lane needs to be back at its window after one loss.

    Reno halves it and adds a segment per round trip (RFC 5681); CUBIC needs cbrt(window x 0.3 / 0.4) seconds (RFC 9438,
    4.2, window in segments).
    """
    segments = window_bytes / MSS_BYTES
    return segments / 2 * rtt_s if control == "reno" else float((segments * 0.3 / 0.4) ** (1 / 3))


def windows(case: Case) -> Iterator[Finding]:
    """Send and receive buffers."""
    for name, way, factor in (("tcp_wmem", "sends", 1), ("tcp_rmem", "receives", 2)):
        sizes = case.host.sizes(f"net.ipv4.{name}")
        if sizes is not None:
            yield _window(case, name, way, factor, sizes)


def _window(case: Case, name: str, way: str, factor: int, sizes: tuple[int, int, int]) -> Finding:
    least, initial, most = sizes
    window = most // factor

    def cap_bps(rtt_s: float) -> float:
        return window * 8 / rtt_s

    formula = f"{name} / {factor} / RTT" if factor > 1 else f"{name} / RTT"
    found = f"{name} ends at {most:,} bytes ({show_size(most)}): a lane that {way} here reaches at most "
    level: Level
    if case.route is not None:
        rtt_s = case.route.rtt_s
        all_bps = case.lanes * cap_bps(rtt_s)
        found += f"{show_rate(cap_bps(rtt_s))} at {show_time(rtt_s)}, {case.lanes} lanes {show_rate(all_bps)}"
        level = "ok" if all_bps >= case.rate_bps else "warning" if all_bps >= case.rate_bps / 10 else "fault"
    else:
        rtt_s = FAR_RTT_S
        all_bps = case.lanes * cap_bps(rtt_s)
        found += ", ".join(f"{show_rate(cap_bps(rtt))} at {show_time(rtt)}" for rtt in ASSUMED_RTTS_S)
        near_bps = case.lanes * cap_bps(NEAR_RTT_S)
        level = "ok" if all_bps >= case.rate_bps else "note" if near_bps >= case.rate_bps else "warning"
    found += f" ({formula})"
    if level == "ok":
        return Finding("buffers", level, found)
    wanted = min(needed_bytes(case, rtt_s) * factor, MOST_SYSCTL)
    reached_bps = min(case.rate_bps, case.lanes * wanted / factor * 8 / rtt_s)
    return Finding(
        "buffers",
        level,
        found,
        f"sysctl -w net.ipv4.{name}='{least} {initial} {wanted}'",
        f"{case.lanes} lanes reach {show_rate(reached_bps)} at {show_time(rtt_s)} instead of {show_rate(all_bps)} "
        f"(bandwidth-delay product {show_size(case.rate_bps / 8 * rtt_s)}, over {case.lanes} lanes)",
    )


def autotuning(case: Case) -> Iterator[Finding]:
    """Without it the receive buffer stays as it began."""
    sizes = case.host.sizes("net.ipv4.tcp_rmem")
    if case.host.sysctl("net.ipv4.tcp_moderate_rcvbuf") == "0" and sizes is not None:
        rtt_s = case.route.rtt_s if case.route else FAR_RTT_S
        yield Finding(
            "buffers",
            "warning",
            f"tcp_moderate_rcvbuf is 0: receive buffers stay at {sizes[1]:,} bytes and never reach tcp_rmem's maximum",
            "sysctl -w net.ipv4.tcp_moderate_rcvbuf=1",
            f"a lane receives more than {show_rate(sizes[1] / 2 * 8 / rtt_s)} at {show_time(rtt_s)}",
        )


def how_to_allow(case: Case, name: str) -> str:
    """What lets this process use a congestion control that it could not set."""
    allowed = case.host.sysctl("net.ipv4.tcp_allowed_congestion_control").split()
    available = case.host.sysctl("net.ipv4.tcp_available_congestion_control").split()
    if name in allowed:
        return f"let the sandbox (seccomp) pass setsockopt(TCP_CONGESTION): the kernel itself allows {name}"
    load = [] if name in available else [f"modprobe tcp_{name}"]
    names = " ".join(dict.fromkeys([*allowed, "reno", name]))
    allow = f"sysctl -w net.ipv4.tcp_allowed_congestion_control='{names}'"
    return "; ".join([*load, allow]) + "  # as root, in the network namespace of the host itself"


def congestion(case: Case) -> Iterator[Finding]:
    """What a lane can be given: BBR on long paths, the host's default, unless that is BBR, on short ones."""
    usable, default = case.host.usable_controls, case.host.default_control
    rtt_s = case.route.rtt_s if case.route and case.route.rtt_s > LONG_RTT_S else 0.04
    window = case.rate_bps / 8 * rtt_s / case.lanes
    lane = f"a lane of {show_rate(case.rate_bps / case.lanes)} at {show_time(rtt_s)}"
    after = {name: f"{climb_s(window, rtt_s, name):.3g} s" for name in ("reno", "cubic")}
    set_cubic = "sysctl -w net.ipv4.tcp_congestion_control=cubic"
    if usable == ("reno",):
        yield Finding(
            "congestion",
            "warning",
            f"reno is the only congestion control that can be used: one loss, and {lane} needs {after['reno']} "
            "to be back (half its window at a segment per round trip, RFC 5681)",
            f"{set_cubic}; {how_to_allow(case, 'bbr')}",
            f"{after['cubic']} with CUBIC (RFC 9438), and BBR does not slow down for a single loss",
        )
        return
    if default == "reno":
        yield Finding(
            "congestion",
            "warning",
            f"the host's default is reno, which lanes keep on paths up to {show_time(LONG_RTT_S)}, "
            f"and everywhere without BBR: one loss, and {lane} needs {after['reno']} to be back (RFC 5681)",
            set_cubic,
            f"{after['cubic']} with CUBIC (RFC 9438)",
        )
    if "bbr" not in usable:
        long = case.route is not None and case.route.rtt_s > LONG_RTT_S
        yield Finding(
            "congestion",
            "warning" if long else "note",
            f"BBR cannot be used, and lanes over paths above {show_time(LONG_RTT_S)} stay with {default}",
            how_to_allow(case, "bbr"),
            f"one loss costs {lane} {after['cubic']} of climbing back with CUBIC (RFC 9438), nothing with BBR",
        )
    if default == "bbr" and "cubic" not in usable:
        yield Finding(
            "congestion",
            "warning",
            "the host's default is BBR and CUBIC cannot be used: lanes have BBR on short paths too",
            how_to_allow(case, "cubic"),
            "4.2 to 4.4 GB/s instead of 2.75 on loopback (measured, two cores)",
        )
    elif default == "bbr":
        yield Finding(
            "congestion", "note", "the host's default is BBR; kvwire takes CUBIC for its own lanes on short paths"
        )
    yield Finding("congestion", "ok", f"{', '.join(n for n in CONTROLS if n in usable)} can be used")


def switches(case: Case) -> Iterator[Finding]:
    """Parts of TCP that somebody has switched off."""
    rtt_s = case.route.rtt_s if case.route else 0.04
    value = case.host.sysctl
    wrap_s = (1 << 32) * 8 / (case.rate_bps / case.lanes)
    small_bps = case.lanes * WINDOW_BYTES * 8 / rtt_s
    rules: tuple[tuple[str, Level, str, str], ...] = (
        (
            "tcp_window_scaling",
            "fault" if small_bps < case.rate_bps else "warning",
            f"no window grows beyond {WINDOW_BYTES:,} bytes: {case.lanes} lanes get {show_rate(small_bps)} at "
            f"{show_time(rtt_s)}",
            f"windows as large as the buffers, up to {show_rate(case.rate_bps)}",
        ),
        (
            "tcp_sack",
            "warning",
            "after several losses in one window only one of them is repaired per round trip",
            f"all of them in one round trip, {show_time(rtt_s)} (RFC 2018)",
        ),
        (
            "tcp_timestamps",
            "warning",
            f"sequence numbers of a lane come round after {show_time(wrap_s)} at this rate and nothing tells old "
            "segments from new",
            "old segments are known by their timestamps (PAWS, RFC 7323), and every segment measures the round trip",
        ),
    )
    for name, level, found, gain in rules:
        if value(f"net.ipv4.{name}") == "0":
            yield Finding("tcp", level, f"{name} is 0: {found}", f"sysctl -w net.ipv4.{name}=1", gain)
    if value("net.ipv4.tcp_slow_start_after_idle") == "1":
        bbr = "bbr" in case.host.usable_controls
        yield Finding(
            "tcp",
            "note" if bbr else "warning",
            "tcp_slow_start_after_idle is 1: a lane that paused begins anew with a small window"
            + (" (BBR's lanes, on long paths, do not)" if bbr else ""),
            "sysctl -w net.ipv4.tcp_slow_start_after_idle=0",
            "1 MiB after a pause of 500 ms in 50 ms instead of 87 over CUBIC (measured at 40 ms RTT)",
        )


def kernel(case: Case) -> Iterator[Finding]:
    """What lanes ask of the kernel and may not get: a sandbox lacks it, or the kernel is too old."""
    elsewhere = "a kernel of Linux 5.4 or newer, and a sandbox that passes the system call on (gVisor does not)"
    rules: tuple[tuple[bool, Level, str, str, str], ...] = (
        (
            case.host.tcp_info_bytes < LEAST_TCP_INFO,
            "warning",
            f"TCP_INFO has {case.host.tcp_info_bytes} bytes, {LEAST_TCP_INFO} are wanted: retransmissions and round "
            "trips of lanes are not known",
            elsewhere,
            "controllers and telemetry see loss and queues; without them `aimd` and `delay` never cap anything",
        ),
        (
            "pacing" not in case.host.socket_options,
            "warning",
            "SO_MAX_PACING_RATE cannot be set: lanes send in bursts, and only the link as a whole is paced",
            elsewhere,
            "a paced link fills no queue on its way with bursts",
        ),
        (
            "notsent_lowat" not in case.host.socket_options,
            "warning",
            "TCP_NOTSENT_LOWAT cannot be set: what is urgent waits behind all that a socket's buffer holds",
            elsewhere,
            "an urgent transfer overtakes at the next frame",
        ),
        (
            "rto_max" not in case.host.socket_options,
            "note",
            "TCP_RTO_MAX_MS cannot be set: after a black hole lanes try again at intervals that double",
            "Linux 6.15 or newer",
            "after 2 s without a path a lane is back 1 s sooner (measured: 2.9 s instead of 3.9)",
        ),
    )
    for missing, level, found, change, gain in rules:
        if missing:
            yield Finding("kernel", level, found, change, gain)


def backlog(case: Case) -> Iterator[Finding]:
    """How many connections may wait until a serving node takes them."""
    most = case.host.sysctl("net.core.somaxconn")
    if most.isdigit() and int(most) < 256:
        yield Finding(
            "tcp",
            "note",
            f"somaxconn is {most}: that many connections wait for a serving node at most",
            "sysctl -w net.core.somaxconn=4096",
            "a burst of links that dial at once does not wait 1 s for the repeated SYN (RFC 6298)",
        )
