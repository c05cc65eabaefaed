"""Cores to spare: what the kernel's files say, of either kind of cgroup, and what it means where they are missing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvwire import cores
from kvwire.cores import TICKS_PER_S, Cores, Files, allowed_cores, idle_s, quotas

STAT = """cpu  1000 5 300 9000 40 0 7 0 0 0
cpu0 400 0 100 {idle0} {wait0} 0 3 0 0 0
cpu1 300 5 100 {idle1} 10 0 2 0 0 0
cpu12 300 0 100 {idle12} 10 0 2 0 0 0
intr 123456 0 0
ctxt 99
"""


@dataclass
class Host:
    """Files as the kernel has them, under a directory of the test's."""

    root: Path

    @property
    def files(self) -> Files:
        return Files(self.root / "stat", self.root / "cgroup", self.root / "fs")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def idle(self, seconds: float, wait: int = 0) -> None:
        """For so long each of three cores has been idle."""
        ticks = int(seconds * TICKS_PER_S)
        self.write("stat", STAT.format(idle0=ticks, idle1=ticks, idle12=ticks, wait0=wait))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 12})
    return Host(tmp_path)


def test_idle_is_idle_and_waiting_for_disks() -> None:
    text = STAT.format(idle0=100 * TICKS_PER_S, wait0=TICKS_PER_S, idle1=0, idle12=10 * TICKS_PER_S)
    assert idle_s(text, frozenset({0})) == 101.0
    assert idle_s(text, frozenset({0, 12})) == pytest.approx(111.0 + 10 / TICKS_PER_S)


@pytest.mark.parametrize("text", ["", "cpu 1 2 3", "cpu0 1 2", "cpu0 a b c d e f", "nothing of the kind\n" * 3])
def test_what_does_not_say_it_is_not_known(text: str) -> None:
    assert idle_s(text, frozenset({0})) is None


def test_cores_of_others_are_left_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1})
    host.idle(0)
    found = Cores(0.0, host.files)
    host.idle(0.5)
    assert found.idle(1.0) == pytest.approx(0.5)


def test_it_looks_once_a_second(host: Host) -> None:
    host.idle(0)
    found = Cores(0.0, host.files)
    assert found.idle(0.05) == found.most == 3.0, "nothing to compare with yet"
    host.idle(0.1)
    assert found.idle(0.2) == pytest.approx(1.5)
    host.idle(1.1)
    assert found.idle(1.1) == pytest.approx(1.5), "of before"
    assert found.idle(1.2) == pytest.approx(3.0)
    assert found.idle(60.0) == 0.0


def test_without_files_all_cores_are_spare(host: Host) -> None:
    found = Cores(0.0, host.files)
    assert found.idle(5.0) == found.most == 3.0


def test_without_affinity_all_cores_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> set[int]:
        raise OSError

    monkeypatch.setattr(os, "sched_getaffinity", refused)
    assert len(allowed_cores()) == (os.cpu_count() or 1)


def test_a_quota_of_version_2(host: Host) -> None:
    """Also one of a cgroup above; what the group uses is not spare."""
    host.write("cgroup", "0::/pods/one\n")
    host.write("fs/pods/one/cpu.max", "max 100000\n")
    host.write("fs/pods/cpu.max", "150000 100000\n")
    host.write("fs/pods/cpu.stat", "usage_usec 5000000\nuser_usec 1\n")
    host.idle(0)
    found = Cores(0.0, host.files)
    assert found.most == 1.5
    host.idle(1.0)
    host.write("fs/pods/cpu.stat", "usage_usec 6200000\nuser_usec 1\n")
    assert found.idle(1.0) == pytest.approx(0.3)
    host.write("fs/pods/cpu.stat", "usage_usec 8000000\nuser_usec 1\n")
    assert found.idle(2.0) == 0.0


@pytest.mark.parametrize("at", ["fs/cpu/docker/x", "fs/cpu"])
def test_a_quota_of_version_1(host: Host, at: str) -> None:
    """A container may see its own cgroup as the root, and read of the host's name for it."""
    host.write("cgroup", "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:cpuset:/\n")
    host.write(f"{at}/cpu.cfs_quota_us", "200000\n")
    host.write(f"{at}/cpu.cfs_period_us", "100000\n")
    usage = f"{at.replace('fs/cpu', 'fs/cpuacct')}/cpuacct.usage"
    host.write(usage, "1000000000\n")
    host.idle(0)
    found = Cores(0.0, host.files)
    assert found.most == 2.0
    host.idle(1.0)
    host.write(usage, "1500000000\n")
    assert found.idle(1.0) == pytest.approx(1.5)


@pytest.mark.parametrize("limit", ["max 100000", "-1 100000", "", "0 100000", "100000 0", "x y", "100000"])
def test_no_quota(host: Host, limit: str) -> None:
    host.write("cgroup", "0::/a\n2:cpu:/a\nrubbish\n")
    host.write("fs/a/cpu.max", limit)
    host.write("fs/cpu/a/cpu.cfs_quota_us", limit.split()[0] if limit.startswith("-1") else "")
    host.write("fs/cpu/a/cpu.cfs_period_us", "100000")
    assert quotas(host.files) == []


def test_a_quota_whose_use_is_not_told(host: Host) -> None:
    host.write("cgroup", "0::/\n")
    host.write("fs/cpu.max", "50000 100000\n")
    host.idle(0)
    found = Cores(0.0, host.files)
    host.idle(1.0)
    assert found.idle(1.0) == 0.5


def test_a_cgroup_stays_below_where_it_is_mounted(host: Host) -> None:
    host.write("cgroup", "0::/../../etc\n")
    host.write("fs/etc/cpu.max", "100000 100000\n")
    assert [quota.used for quota in quotas(host.files)] == [host.root / "fs/etc/cpu.stat"]


def test_this_host_tells_something_sensible() -> None:
    found = Cores(0.0)
    assert 0 < found.most <= (os.cpu_count() or 1)
    assert 0.0 <= found.idle(1.0) <= found.most
    assert cores.LOOK_S >= 1.0
