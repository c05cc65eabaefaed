"""Many seeds: how often everything happened, and which seeds broke a promise."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from kvwire.wire.states import Transfer
from tests.sim.nemesis import FAULTS
from tests.sim.patches import TABLES, row_name
from tests.sim.scenario import Result, run

SEEDS = 500

EVENTS = (
    "abort while suspended",
    "commit learnt from a ledger",
    "cut segment",
    "damaged frame found",
    "duplicate cell",
    "grant while suspended",
    "impostor",
    "key changed",
    "layer seen early",
    "ledger with landed cells",
    "link closed by its user",
    "link expired",
    "link resumed",
    "link suspended",
    "never all ready",
    "offer against the dial",
    "offer cancelled",
    "offer given up by the receiver",
    "offer ignored",
    "offer made again",
    "offer refused",
    "offer to another life",
    "offer while suspended",
    "peer restarted",
    "receiver aborted",
    "refused connection",
    "restarted",
    "sender aborted",
    "user timeout",
    "wait cancelled",
)
"""What a run has to show besides faults and rows of the state tables."""

NOT_OF_A_NODE = (Transfer.QUIETING, "lose")
"""A node drains in the callback in which an abort comes, so no connection is lost between the two."""


@dataclass
class Campaign:
    """What came of a run of seeds."""

    base: int
    seeds: int = 0
    steps: int = 0
    took_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.steps += result.steps
        self.counts += result.counts
        if result.violations:
            self.broken.append(result.report())

    def missing(self) -> list[str]:
        """What never happened."""
        return [what for what in wanted() if not self.counts[what]]

    def report(self) -> str:
        """Counts in columns, and how to run it again."""
        names = sorted(set(wanted()) | set(self.counts))
        width = max(map(len, names))
        lines = [f"{name:{width}} {self.counts[name]:9}" for name in names]
        lines.append(
            f"{self.seeds} seeds from {self.base} in {self.took_s:.1f} s, {self.steps / max(1, self.seeds):.0f} steps "
            f"each, {len(self.broken)} broken; again: make sim SIM_BASE={self.base} SEEDS={self.seeds}"
        )
        return "\n".join(lines)


def wanted() -> list[str]:
    """Everything that has to happen: every fault, every row of every table of states, every kind of event."""
    rows = [row_name(name, key) for name, table in TABLES.items() for key in table if key != NOT_OF_A_NODE]
    return [*rows, *FAULTS, *EVENTS]


def seeds_from_environment() -> range:
    """SIM_BASE and SEEDS, or a fresh base and as many as the suite runs."""
    base = int(os.environ.get("SIM_BASE") or time.time_ns() // 1000 % 10**9)
    return range(base, base + int(os.environ.get("SEEDS") or SEEDS))


def campaign(seeds: range, processes: int = 1) -> Campaign:
    """Run them all, on so many processes."""
    total, began = Campaign(seeds.start), time.monotonic()
    if processes == 1:
        _collect(total, map(run, seeds))
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            _collect(total, pool.imap_unordered(run, seeds, chunksize=20))
            pool.close()  # and join: a worker that is ended from outside leaves its identities' files
            pool.join()
    total.took_s = time.monotonic() - began
    return total


def _collect(total: Campaign, results: Iterable[Result]) -> None:
    for result in results:
        total.add(result)
