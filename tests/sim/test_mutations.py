"""A simulation that finds nothing proves nothing: each broken build has to be caught, by the promise that it breaks."""

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.pool import AsyncResult

import pytest

from tests.sim.mutations import MUTATIONS
from tests.sim.scenario import run

SEEDS = 500
LIMIT_S = 300.0


def seed_that_notices(number: int) -> int:
    """The first seed that breaks the promise of this mutation; -1 for none."""
    mutation = MUTATIONS[number]
    with mutation.applied():
        for seed in range(SEEDS):
            if any(violation.invariant == mutation.invariant for violation in run(seed).violations):
                return seed
    return -1


@pytest.fixture(scope="module")
def seeds() -> Iterator[list[AsyncResult[int]]]:
    """Of each mutation, looked for on all cores."""
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        yield [pool.apply_async(seed_that_notices, (number,)) for number in range(len(MUTATIONS))]
        pool.close()  # and join: a worker that is ended from outside leaves its identities' files
        pool.join()


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("number", range(len(MUTATIONS)), ids=[mutation.name for mutation in MUTATIONS])
def test_a_broken_build_is_caught(seeds: list[AsyncResult[int]], number: int) -> None:
    assert seeds[number].get(LIMIT_S) >= 0, f"{SEEDS} seeds, and nobody noticed that {MUTATIONS[number].name}"
