"""How many cores of this host nobody uses, as far as this process may use them.

What a host does not tell does not limit: without /proc/stat all cores that the process may run on count as idle.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 1.0
"""Averaged over at least that: /proc/stat counts in ticks of 10 ms, and takes a large host a millisecond to write."""
FIRST_S = 0.1
"""The same, the first time."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

_CPU = re.compile(r"^cpu(\d+) (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Files:
    """Where the kernel says it: proc(5), cgroups(7)."""

    stat: Path = Path("/proc/stat")
    cgroup: Path = Path("/proc/self/cgroup")
    mounted: Path = Path("/sys/fs/cgroup")


def _text(path: Path) -> str:
    """Empty where there is none, as in some sandboxes."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def allowed_cores() -> frozenset[int]:
    """Those that this process may run on."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except OSError:
        return frozenset(range(os.cpu_count() or 1))


def idle_s(stat: str, cores: frozenset[int]) -> float | None:
    """For how many seconds these have been idle since the host started, together; None where it does not say."""
    found = [fields.split() for core, fields in _CPU.findall(stat) if int(core) in cores]
    try:
        return sum(int(fields[3]) + int(fields[4]) for fields in found) / TICKS_PER_S if found else None
    except (IndexError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Quota:
    """What a cgroup allows."""

    cores: float
    used: Path
    """Says what it has used."""

    def used_s(self) -> float | None:
        """Seconds of CPU; None where it does not say."""
        text = _text(self.used)
        if self.used.name == "cpu.stat":
            found = re.search(r"^usage_usec (\d+)$", text, re.MULTILINE)
            return int(found[1]) / 1e6 if found else None
        return int(text) / 1e9 if text.strip().isdecimal() else None


def quotas(files: Files) -> list[Quota]:
    """Those of this process's cgroup and of the ones above it, v2 (cpu.max) or v1 (cpu.cfs_quota_us)."""
    found = []
    for line in _text(files.cgroup).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, where = rest.partition(":")
        if controllers == "":
            for directory in _upwards(files.mounted, where):
                found += _quota(_text(directory / "cpu.max").split(), directory / "cpu.stat")
        elif "cpu" in controllers.split(","):
            for directory in _upwards(files.mounted / "cpu", where):
                limit = [_text(directory / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
                account = files.mounted / "cpuacct" / directory.relative_to(files.mounted / "cpu")
                found += _quota(limit, account / "cpuacct.usage")
    return found


def _upwards(mounted: Path, where: str) -> Iterator[Path]:
    """Directories of the cgroup and of those above it. In a container its own may be the root, named as on the host."""
    parts = [part for part in where.split("/") if part not in ("", ".", "..")]
    for count in range(len(parts), -1, -1):
        yield mounted.joinpath(*parts[:count])


def _quota(limit: list[str], used: Path) -> list[Quota]:
    """Of the microseconds in a period of microseconds; none where it says "max", -1 or nothing."""
    if len(limit) != 2 or not all(value.isdecimal() and int(value) > 0 for value in limit):
        return []
    return [Quota(int(limit[0]) / int(limit[1]), used)]


class Cores:
    """Of one node. Asked as often as one likes; it looks once a second at most."""

    def __init__(self, now: float, files: Files | None = None) -> None:
        self._files = files or Files()
        self._allowed = allowed_cores()
        self._quotas = quotas(self._files)
        self.most = min([float(len(self._allowed)), *(quota.cores for quota in self._quotas)])
        """Cores that this process may use at all."""
        self._idle = self.most
        self._counted = self._count()
        self._looked_at, self._due = now, now + FIRST_S

    def idle(self, now: float) -> float:
        """Cores that nobody used, over a second or since the last time; all that there are before there was one."""
        if now >= self._due:
            before, seconds = self._counted, now - self._looked_at
            self._counted, self._looked_at, self._due = self._count(), now, now + LOOK_S
            idle, *used = (_rate(a, b, seconds) for a, b in zip(before, self._counted, strict=True))
            left = [quota.cores - (rate or 0.0) for quota, rate in zip(self._quotas, used, strict=True)]
            self._idle = max(0.0, min([self.most if idle is None else idle, *left]))
        return self._idle

    def _count(self) -> list[float | None]:
        return [idle_s(_text(self._files.stat), self._allowed), *(quota.used_s() for quota in self._quotas)]


def _rate(before: float | None, after: float | None, seconds: float) -> float | None:
    return None if before is None or after is None else (after - before) / seconds
