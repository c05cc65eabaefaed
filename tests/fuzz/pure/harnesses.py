"""The harnesses there are, their corpora, and how much of what they test a corpus reaches."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, Protocol, cast

HARNESSES = ("control", "sessions", "manifests", "certificates", "trust_files", "foreign_text", "samples")
CORPORA = Path(__file__).parents[1] / "corpus"


class Harness(Protocol):
    """What each of these modules has."""

    UNDER_TEST: Sequence[str]
    """Modules whose lines are counted."""

    def fuzz(self, data: bytes) -> None:
        """Any exception that leaves it is a bug, of kvwire's or of the harness."""

    def plant(self) -> None:
        """Put in a bug, until the process ends, that `fuzz` has to find from its corpus."""


def harness(name: str) -> Harness:
    return cast(Harness, importlib.import_module(f"tests.fuzz.pure.{name}"))


def corpus(name: str) -> list[Path]:
    """Its files, in an order that is the same everywhere."""
    return sorted((CORPORA / name).iterdir())


def lines_of(module: ModuleType) -> set[tuple[str, int]]:
    """The lines of its functions. Those that run once, as it is imported, are no merit of a corpus."""
    assert module.__file__ is not None
    whole = compile(Path(module.__file__).read_bytes(), module.__file__, "exec")
    return {(module.__file__, line) for code in _functions(whole) for *_, line in code.co_lines() if line is not None}


def _functions(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & 1:  # CO_OPTIMIZED, of a function and not of a class
                yield inner
            yield from _functions(inner)


def reached(name: str) -> dict[str, tuple[int, int]]:
    """By module under test: how many lines its corpus reaches, and how many there are."""
    found = harness(name)
    wanted = {each: lines_of(importlib.import_module(each)) for each in found.UNDER_TEST}
    files = {file for lines in wanted.values() for file, _ in lines}
    seen: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        file = frame.f_code.co_filename
        if file not in files:
            return None
        seen.add((file, frame.f_lineno))
        return trace

    for path in corpus(name):
        data = path.read_bytes()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            found.fuzz(data)
        finally:
            sys.settrace(before)
    return {each: (len(lines & seen), len(lines)) for each, lines in wanted.items()}
