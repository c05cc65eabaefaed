"""The doctor's judgement: from what files say to facts, and from facts to findings. No machine's own state is in it."""

import io
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from kvwire.cli.doctor import command as doctor
from kvwire.cli.doctor import host_facts, path_probe, tcp_findings
from kvwire.cli.doctor.findings import WITH_VAES, WITHOUT_VAES, Case, Finding
from kvwire.cli.doctor.host_facts import Clock, Cpu, Crypto, Host
from kvwire.cli.doctor.path_probe import Interface, Route
from kvwire.cli.units import parse_rate, show_rate, show_time

MIB = 1 << 20

GOOD_SYSCTLS: Mapping[str, str] = {
    "net.ipv4.tcp_wmem": f"4096 16384 {64 * MIB}",
    "net.ipv4.tcp_rmem": f"4096 131072 {128 * MIB}",
    "net.ipv4.tcp_moderate_rcvbuf": "1",
    "net.ipv4.tcp_window_scaling": "1",
    "net.ipv4.tcp_sack": "1",
    "net.ipv4.tcp_timestamps": "1",
    "net.ipv4.tcp_slow_start_after_idle": "0",
    "net.ipv4.tcp_mtu_probing": "1",
    "net.ipv4.tcp_available_congestion_control": "reno cubic bbr",
    "net.ipv4.tcp_allowed_congestion_control": "reno cubic bbr",
    "net.core.somaxconn": "4096",
}
GOOD = Host(
    cpu=Cpu("A CPU", "x86_64", host_facts.X86_FEATURES, cores=8),
    crypto=Crypto("fold512", 30.0, "3.5.1", "/lib/libcrypto.so.3", "bundled", cipher="OpenSSL 3.5.1 (bundled)"),
    clock=Clock("tsc", ("tsc", "hpet"), 30.0),
    files_soft=65536,
    files_hard=65536,
    default_control="cubic",
    usable_controls=("bbr", "cubic", "reno"),
    sysctls=GOOD_SYSCTLS,
)
"""A host with nothing to find."""

ROUTE = Route(
    "decode-host",
    7878,
    "192.0.2.7",
    Interface("eth0", 9000, 10e9),
    rtt_s=0.04,
    rtt_by="handshake",
    path_mtu=9000,
    mss=8948,
    window_scaling=True,
    sack=True,
    timestamps=True,
    node="kvwire",
    lane_control="bbr",
)
"""A path with nothing to find."""


def judge(host: Host = GOOD, route: Route | None = None, rate_bps: float = 10e9) -> list[Finding]:
    return doctor.diagnose(Case(host, route, rate_bps))


def wrong(host: Host = GOOD, route: Route | None = None, rate_bps: float = 10e9) -> Finding:
    """The only finding that is not "ok"."""
    (finding,) = (finding for finding in judge(host, route, rate_bps) if finding.level != "ok")
    return finding


def with_sysctl(name: str, value: str, host: Host = GOOD) -> Host:
    return replace(host, sysctls={**host.sysctls, name: value})


@pytest.mark.parametrize("route", [None, ROUTE])
def test_nothing_is_found_where_all_is_well(route: Route | None) -> None:
    assert {finding.level for finding in judge(route=route)} == {"ok"}


class TestBuffers:
    """A lane reaches tcp_wmem / RTT when it sends and tcp_rmem / 2 / RTT when it receives."""

    def test_a_small_send_buffer_on_a_path(self) -> None:
        finding = wrong(with_sysctl("net.ipv4.tcp_wmem", "4096 16384 212992"), ROUTE)
        assert (finding.area, finding.level) == ("buffers", "fault")
        # 212,992 bytes x 8 / 40 ms = 42.6 Mbit/s; four lanes 170.
        assert "tcp_wmem ends at 212,992 bytes" in finding.found
        assert "42.6 Mbit/s at 40 ms, 4 lanes 170 Mbit/s" in finding.found
        # 10 Gbit/s x 40 ms / 4 lanes = 12.5 MB; the next power of two is 16 MiB.
        assert finding.change == f"sysctl -w net.ipv4.tcp_wmem='4096 16384 {16 * MIB}'"
        assert "4 lanes reach 10 Gbit/s at 40 ms instead of 170 Mbit/s" in finding.gain

    def test_the_figure_of_the_design(self) -> None:
        finding = wrong(with_sysctl("net.ipv4.tcp_wmem", f"4096 16384 {4 * MIB}"), replace(ROUTE, rtt_s=0.05))
        assert finding.level == "warning"
        assert "671 Mbit/s at 50 ms" in finding.found

    def test_a_small_receive_buffer_counts_half(self) -> None:
        finding = wrong(with_sysctl("net.ipv4.tcp_rmem", f"4096 131072 {8 * MIB}"), ROUTE)
        assert "receives here reaches at most 839 Mbit/s at 40 ms" in finding.found
        assert finding.change.endswith(f"{32 * MIB}'")

    @pytest.mark.parametrize(("most", "level"), [(212992, "warning"), (4 * MIB, "note")])
    def test_without_a_path_several_are_assumed(self, most: int, level: str) -> None:
        finding = wrong(with_sysctl("net.ipv4.tcp_wmem", f"4096 16384 {most}"))
        assert finding.level == level
        for rtt in ("100 us", "10 ms", "40 ms", "80 ms"):
            assert f"bit/s at {rtt}" in finding.found

    def test_a_short_path_needs_little(self) -> None:
        findings = judge(with_sysctl("net.ipv4.tcp_wmem", "4096 16384 212992"), replace(ROUTE, rtt_s=0.0001))
        assert {finding.level for finding in findings} == {"ok"}

    def test_no_sysctl_is_asked_to_hold_more_than_it_can(self) -> None:
        findings = judge(with_sysctl("net.ipv4.tcp_rmem", "4096 131072 212992"), replace(ROUTE, rtt_s=0.3), 400e9)
        finding = next(finding for finding in findings if "tcp_rmem" in finding.change)
        assert finding.change.endswith(f" {(1 << 31) - 1}'")

    def test_buffers_that_do_not_grow(self) -> None:
        finding = wrong(with_sysctl("net.ipv4.tcp_moderate_rcvbuf", "0"), ROUTE)
        assert "tcp_moderate_rcvbuf is 0" in finding.found


class TestCongestion:
    def test_reno_only(self) -> None:
        host = replace(GOOD, default_control="reno", usable_controls=("reno",))
        host = with_sysctl("net.ipv4.tcp_allowed_congestion_control", "reno", host)
        finding = wrong(with_sysctl("net.ipv4.tcp_available_congestion_control", "reno cubic", host), ROUTE)
        assert finding.level == "warning"
        assert "reno is the only congestion control" in finding.found
        assert "modprobe tcp_bbr; sysctl -w net.ipv4.tcp_allowed_congestion_control='reno bbr'" in finding.change

    def test_allowed_by_the_kernel_and_not_by_a_sandbox(self) -> None:
        assert "seccomp" in wrong(replace(GOOD, default_control="reno", usable_controls=("reno",))).change

    def test_the_time_after_a_loss(self) -> None:
        # 12.5 MB in segments of 1448 are 8633; Reno gets half of them back at one per 40 ms.
        assert tcp_findings.climb_s(12.5e6, 0.04, "reno") == pytest.approx(8633 / 2 * 0.04, rel=1e-3)
        # RFC 9438: cbrt(8633 x 0.3 / 0.4) s.
        assert tcp_findings.climb_s(12.5e6, 0.04, "cubic") == pytest.approx(18.64, rel=1e-3)

    def test_reno_by_default(self) -> None:
        finding = wrong(replace(GOOD, default_control="reno"))
        assert "the host's default is reno" in finding.found
        assert finding.change == "sysctl -w net.ipv4.tcp_congestion_control=cubic"

    @pytest.mark.parametrize(("route", "level"), [(ROUTE, "warning"), (None, "note")])
    def test_no_bbr(self, route: Route | None, level: str) -> None:
        finding = wrong(replace(GOOD, usable_controls=("cubic", "reno")), route)
        assert finding.level == level
        assert "BBR cannot be used" in finding.found

    def test_bbr_that_cannot_be_left(self) -> None:
        finding = wrong(replace(GOOD, default_control="bbr", usable_controls=("bbr", "reno")))
        assert finding.level == "warning"
        assert "CUBIC cannot be used" in finding.found
        assert wrong(replace(GOOD, default_control="bbr")).level == "note"


@pytest.mark.parametrize(
    ("host", "level", "found", "change"),
    [
        (replace(GOOD, files_soft=64, files_hard=64), "fault", "room for 6 links of 4 lanes", "LimitNOFILE=65536"),
        (replace(GOOD, files_soft=64, files_hard=4096), "fault", "none for one of 64", "ulimit -n 4096"),
        (replace(GOOD, files_soft=256), "warning", "max_handshakes", "ulimit -n 65536"),
        (replace(GOOD, cpu=replace(GOOD.cpu, cores=1)), "warning", "one core", "second core"),
        (replace(GOOD, cpu=replace(GOOD.cpu, quota_cores=1.5)), "warning", "1.5 of 8 cores", "8 cores"),
        (replace(GOOD, cpu=replace(GOOD.cpu, quota_cores=4)), "note", "4 of 8 cores", "8 cores"),
        (replace(GOOD, cpu=replace(GOOD.cpu, governor="powersave")), "note", "powersave", "cpupower"),
        (replace(GOOD, cpu=replace(GOOD.cpu, features=("aes", "pclmulqdq"))), "note", "no VAES", "-cpu host"),
        (replace(GOOD, cpu=replace(GOOD.cpu, features=("aes",))), "warning", "no pclmulqdq", "-cpu host"),
        (replace(GOOD, crypto=replace(GOOD.crypto, crc32c="portable", crc32c_GBps=2.0)), "warning", "16 Gbit/s", "CPU"),
        (replace(GOOD, crypto=replace(GOOD.crypto, libcrypto="3.0.19")), "warning", "3.0.19 seals", "3.5"),
        (replace(GOOD, crypto=Crypto("fold512", cipher="a package")), "warning", "what seals is a package", "3.5"),
        (replace(GOOD, crypto=Crypto("fold512", libcrypto_problem="it is old")), "fault", "it is old", "3.5"),
        (replace(GOOD, clock=Clock("hpet", ("tsc", "hpet"), 1200)), "warning", "hpet, 1200 ns", "echo tsc >"),
        (replace(GOOD, clock=Clock("acpi_pm", ("acpi_pm",), 900)), "warning", "acpi_pm", "dmesg"),
        (with_sysctl("net.ipv4.tcp_sack", "0"), "warning", "tcp_sack is 0", "tcp_sack=1"),
        (with_sysctl("net.ipv4.tcp_timestamps", "0"), "warning", "tcp_timestamps is 0", "tcp_timestamps=1"),
        (with_sysctl("net.ipv4.tcp_window_scaling", "0"), "fault", "65,535", "tcp_window_scaling=1"),
        (with_sysctl("net.ipv4.tcp_slow_start_after_idle", "1"), "note", "paused", "tcp_slow_start_after_idle=0"),
        (with_sysctl("net.core.somaxconn", "128"), "note", "somaxconn is 128", "somaxconn=4096"),
    ],
)
def test_what_is_spoiled_on_the_host_is_found(host: Host, level: str, found: str, change: str) -> None:
    finding = wrong(host)
    assert finding.level == level
    assert found in finding.found
    assert change in finding.change
    assert finding.gain


@pytest.mark.parametrize(
    ("route", "level", "found"),
    [
        (
            replace(ROUTE, rtt_by="refusal", node="none"),
            "note",
            "nothing listens at decode-host port 7878, RTT 40 ms",
        ),
        (replace(ROUTE, node="other", node_said="version 9"), "fault", "version 9"),
        (replace(ROUTE, node="unasked"), "note", "something listens at decode-host port 7878, RTT 40 ms"),
        (replace(ROUTE, sack=False), "warning", "tcp_sack is on here and was not agreed on with decode-host"),
        (replace(ROUTE, window_scaling=False), "fault", "13.1 Mbit/s a lane"),
        (replace(ROUTE, path_mtu=1400), "note", "the path takes packets of 1400 bytes, the interface 9000"),
        # 10^9 / (1500 - 52) packets; (1500 - 52) / (1500 + 38) of the line.
        (replace(ROUTE, path_mtu=1500, interface=Interface("eth0", 1500)), "note", "690,608 packets per GB, 94.1%"),
        (replace(ROUTE, interface=Interface("eth0", 9000, offloads_off=("tso",))), "warning", "eth0 has tso off"),
    ],
)
def test_what_is_wrong_with_the_path_is_found(route: Route, level: str, found: str) -> None:
    finding = wrong(route=route)
    assert finding.level == level
    assert found in finding.found
    assert finding.change
    assert finding.gain


def test_the_share_of_plain_is_that_of_this_cpu_and_this_libcrypto() -> None:
    def share(libcrypto: str, cpu: Cpu = GOOD.cpu) -> str:
        host = replace(GOOD, cpu=cpu, crypto=replace(GOOD.crypto, libcrypto=libcrypto))
        (found,) = (finding.found for finding in judge(host) if " seals, " in finding.found)
        return found.partition("expect ")[2].partition(" of the rate")[0]

    assert share("3.5.1") == share("3.2.0") == WITH_VAES
    assert share("3.0.19") == share("3.5.1", Cpu(features=("aes", "pclmulqdq"))) == WITHOUT_VAES
    assert share("3.5.1", Cpu(machine="aarch64", features=host_facts.ARM_FEATURES)) == WITH_VAES


def test_a_large_mtu_wants_probing() -> None:
    assert "tcp_mtu_probing is 0" in wrong(with_sysctl("net.ipv4.tcp_mtu_probing", "0"), ROUTE).found


def test_a_host_that_shows_nothing_is_judged_by_what_is_left() -> None:
    findings = judge(Host(usable_controls=("cubic", "reno"), default_control="cubic"))
    assert not [finding for finding in findings if finding.area in ("buffers", "tcp")]


class TestReading:
    def test_x86(self) -> None:
        text = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu aes vaes\n\nprocessor\t: 1\nflags\t\t: fpu\n"
        assert host_facts.cpu_model(text) == "A CPU"
        assert host_facts.cpu_features(text, host_facts.X86_FEATURES) == ("aes", "vaes")

    def test_arm(self) -> None:
        text = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd aes pmull crc32 sve\n"
        assert host_facts.cpu_model(text) == ""
        assert host_facts.cpu_features(text, host_facts.ARM_FEATURES) == ("aes", "pmull", "crc32")

    @pytest.mark.parametrize(
        ("cpu_max", "cores"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None), ("1 0", None)]
    )
    def test_quota(self, cpu_max: str, cores: float | None) -> None:
        assert host_facts.quota_of_v2(cpu_max) == cores
        assert host_facts.quota_of_v1("-1\n", "100000\n") is None

    def test_the_tightest_quota_on_the_way_up_counts(self, tmp_path: Path) -> None:
        files = {
            "proc/self/cgroup": "0::/pods/mine\n",
            "sys/fs/cgroup/pods/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/pods/mine/cpu.max": "max 100000\n",
            "sys/fs/cgroup/other/cpu.max": "10000 100000\n",
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        assert host_facts.read_quota_cores(tmp_path) == 2.0

    def test_quota_of_version_1(self, tmp_path: Path) -> None:
        group = tmp_path / "sys/fs/cgroup/cpu,cpuacct/box"
        group.mkdir(parents=True)
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text("4:memory:/m\n2:cpu,cpuacct:/box\n")
        (group / "cpu.cfs_quota_us").write_text("50000\n")
        (group / "cpu.cfs_period_us").write_text("100000\n")
        assert host_facts.read_quota_cores(tmp_path) == 0.5

    def test_a_root_without_files(self, tmp_path: Path) -> None:
        host = host_facts.read(tmp_path)
        assert (host.sysctls, host.memory_bytes, host.clock.source, host.cpu.quota_cores) == ({}, 0, "", None)
        assert host.cpu.model
        assert "reno" in host.usable_controls
        assert path_probe.read_interface("nothing0", tmp_path) == Interface("nothing0")

    def test_this_host(self) -> None:
        host = host_facts.read()
        sizes = host.sizes("net.ipv4.tcp_wmem")
        assert sizes is not None
        assert 0 < sizes[0] <= sizes[1] <= sizes[2]
        assert host.crypto.crc32c_GBps > 0
        assert host.default_control in host.sysctl("net.ipv4.tcp_available_congestion_control").split()

    def test_tcp_info(self) -> None:
        info = bytearray(232)
        info[5] = 1 | 4
        struct.pack_into("<I", info, 16, 1448)
        struct.pack_into("<I", info, 60, 1500)
        struct.pack_into("<I", info, 68, 40_500)
        struct.pack_into("<I", info, 148, 40_000)
        parsed = path_probe.parse_tcp_info(bytes(info))
        assert parsed == path_probe.TcpInfo(0.04, 1500, 1448, window_scaling=True, sack=False, timestamps=True)
        assert path_probe.parse_tcp_info(bytes(info[:104])).rtt_s == 0.0405

    def test_route_answers(self) -> None:
        head = bytes(28)
        table = struct.pack("=HHI", 8, 15, 254)
        interface = struct.pack("=HHI", 8, path_probe.RTA_OIF, 3)
        assert path_probe.interface_index(head + table + interface) == 3
        assert path_probe.interface_index(head + table) is None
        assert path_probe.interface_index(b"") is None
        assert path_probe.interface_index(head + bytes(8)) is None


class TestShowing:
    def shown(self, findings: list[Finding], terminal: bool = False) -> str:
        class Stream(io.StringIO):
            def isatty(self) -> bool:
                return terminal

        stream = Stream()
        doctor.show(Case(GOOD, None, 10e9), findings, "here", stream)
        return stream.getvalue()

    def test_worst_first(self) -> None:
        host = with_sysctl("net.core.somaxconn", "128", replace(GOOD, files_soft=64))
        levels = [finding.level for finding in judge(with_sysctl("net.ipv4.tcp_sack", "0", host))]
        assert levels[:3] == ["fault", "warning", "note"]
        assert set(levels[3:]) == {"ok"}

    def test_a_command_stays_on_one_line_and_text_is_wrapped(self) -> None:
        command = "sysctl -w " + "x" * 150 + "='1 2 3'"
        text = self.shown([Finding("tcp", "warning", "word " * 60, command, "word " * 60)])
        assert f"change  {command}\n" in text
        assert all(len(line) <= 120 for line in text.splitlines() if command not in line)
        assert "1 warning" in text.splitlines()[-1]
        assert "/etc/sysctl.d" in text

    def test_colours_are_for_terminals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NO_COLOR", raising=False)
        findings = [Finding("tcp", "fault", "it is broken")]
        assert "\x1b[" in self.shown(findings, terminal=True)
        assert "\x1b[" not in self.shown(findings)
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b[" not in self.shown(findings, terminal=True)


@pytest.mark.parametrize(
    ("text", "bps"), [("10G", 1e10), ("2.5 Gbit/s", 2.5e9), ("400Mbps", 4e8), ("1tbit/s", 1e12), ("64k", 64e3)]
)
def test_rates(text: str, bps: float) -> None:
    assert parse_rate(text) == bps


@pytest.mark.parametrize("text", ["", "10", "-1G", "0G", "fast", "10GB/s", "10GiB"])
def test_no_rates(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        parse_rate(text)


def test_rates_and_times_for_people() -> None:
    assert [show_rate(bps) for bps in (1e10, 42.6e6, 1.3e12, 5e4)] == [
        "10 Gbit/s",
        "42.6 Mbit/s",
        "1.3 Tbit/s",
        "50 kbit/s",
    ]
    assert [show_time(s) for s in (2.0, 0.04, 0.0001, 12e-6)] == ["2 s", "40 ms", "100 us", "12 us"]
