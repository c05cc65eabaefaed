"""One harness under atheris, in a process of its own: python -m tests.fuzz.pure.target HARNESS [libFuzzer's flags].

KVWIRE_FUZZ_PLANT=1 puts the harness's bug in first. `distil FOLDER...` instead of flags names the inputs that matter.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris

CORPUS = Path(__file__).parents[1] / "corpus"


def load(name: str) -> Any:
    """The harness, on instrumented modules."""
    assert not any(each.split(".")[0] == "kvwire" for each in sys.modules), "kvwire was there before atheris"
    noise = contextlib.redirect_stderr(io.StringIO())  # a line for each module
    with noise, atheris.instrument_imports(include=["kvwire", *_also(name)]):
        return importlib.import_module(f"tests.fuzz.pure.{name}")


def _also(name: str) -> list[str]:
    """Other people's parsers behind ours, by harness."""
    return ["prometheus_client.parser", "prometheus_client.openmetrics"] if name == "foreign_text" else []


def check_seen(fuzz: Callable[[bytes], None], name: str) -> None:
    """AssertionError where what the corpus reaches is hidden from atheris, as code that a C compiler made would be.

    Instrumented code looks the function up that it calls, so a set can stand in its place for a while.
    """
    seen: set[int] = set()
    trace = atheris._trace_branch
    atheris._trace_branch = seen.add
    try:
        fuzz(b"")
        trivial = len(seen)
        for file in sorted((CORPUS / name).iterdir()):
            fuzz(file.read_bytes())
    finally:
        atheris._trace_branch = trace
    print(f"{name}: atheris sees {trivial} branches of an empty input, {len(seen)} of the corpus", flush=True)
    assert len(seen) >= 2 * trivial + 20, "instrumentation does not see what the harness reaches"


def distil(fuzz: Callable[[bytes], None], paths: list[Path]) -> Iterator[Path]:
    """Of these inputs, the shortest first, those that reach a branch that none before did, or more often: 1, 2, 3, 4 to
    7 times and so on, as libFuzzer counts."""
    seen: set[tuple[int, int]] = set()
    trace = atheris._trace_branch
    for path in sorted(paths, key=lambda path: (path.stat().st_size, path.name)):
        counts: Counter[int] = Counter()
        atheris._trace_branch = lambda branch, counts=counts: counts.update((branch,))
        try:
            fuzz(path.read_bytes())
        finally:
            atheris._trace_branch = trace
        reached = {(branch, count.bit_length() if count > 3 else -count) for branch, count in counts.items()}
        if not reached <= seen:
            seen |= reached
            yield path


def main(name: str, flags: list[str]) -> None:
    harness = load(name)
    if flags[0] == "distil":
        print(*distil(harness.fuzz, [path for folder in flags[1:] for path in Path(folder).iterdir()]), sep="\n")
        return
    if os.environ.get("KVWIRE_FUZZ_PLANT") == "1":
        harness.plant()  # before `fuzz` sees an input: the corpus alone may be enough
    else:
        check_seen(harness.fuzz, name)
    atheris.Setup([sys.argv[0], *flags], harness.fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
