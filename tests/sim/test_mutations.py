"""A simulation that finds nothing proves nothing: each broken build has to be caught, by the promise that it breaks."""

import pytest

from tests.sim.mutations import MUTATIONS, Mutation
from tests.sim.scenario import run

SEEDS = 500


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_broken_build_is_caught(mutation: Mutation) -> None:
    with mutation.applied():
        for seed in range(SEEDS):
            if any(violation.invariant == mutation.invariant for violation in run(seed).violations):
                return
    pytest.fail(f"{SEEDS} seeds, and nobody noticed that {mutation.name}")
