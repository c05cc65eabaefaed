"""What fuzzing has found worth keeping, once more, without a fuzzer: every input of every corpus."""

import pytest

from tests.fuzz.pure.harnesses import HARNESSES, corpus, harness

MOST_BYTES = 512 * 1024
"""Of all of them: they are part of the source."""


@pytest.mark.parametrize("name", HARNESSES)
def test_a_corpus(name: str) -> None:
    fuzz = harness(name).fuzz
    for path in corpus(name):
        try:
            fuzz(path.read_bytes())
        except BaseException as error:
            error.add_note(f"input: {path}")
            raise


@pytest.mark.parametrize("name", HARNESSES)
def test_no_input_at_all(name: str) -> None:
    harness(name).fuzz(b"")


def test_corpora_are_small() -> None:
    assert sum(path.stat().st_size for name in HARNESSES for path in corpus(name)) <= MOST_BYTES
