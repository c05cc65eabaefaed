"""Whole nodes on virtual time and a hostile network: every promise holds, whatever the seed. See `scenario.run`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.campaign import campaign, seeds_from_environment
from tests.sim.scenario import run

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_no_seed_breaks_a_promise(capsys: pytest.CaptureFixture[str]) -> None:
    """A fresh base every time; SIM_BASE=... SEEDS=... repeats it. Everything there is has to have happened."""
    seeds = seeds_from_environment()
    total = campaign(seeds)
    with capsys.disabled():
        print(f"\n{total.report()}")
    assert not total.broken, "\n".join(total.broken[:3])
    assert len(seeds) < 500 or not total.missing()


def test_a_seed_replays_bit_for_bit() -> None:
    """In the same process, after other seeds, and in another process with other hashes of strings."""
    seeds = range(20)
    first = [run(seed).digest for seed in seeds]
    assert [run(seed).digest for seed in reversed(seeds)] == first[::-1]
    assert len(set(first)) == len(first)
    program = "from tests.sim.scenario import run; print(*(run(seed).digest for seed in range(20)))"
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout.split() == first
