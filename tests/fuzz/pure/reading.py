"""What a harness makes of its bytes: numbers, pieces and values, each taken from the front. Nothing is left: zeros."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

EDGES = (
    *(0, 1, -1, 16, 63, 64, 65, 1023, 1024, 1025, 4095, 4096, 65535, 65536),
    *(1 << 20, (1 << 20) + 1, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 40) + 1, (1 << 63) - 1, (1 << 64) - 1, -(1 << 63)),
)
"""Integers around which limits lie."""
FLOATS = (0.0, -0.0, 0.5, 1.0, 1e-9, 1e9, 1e300, -1.0, float("inf"), float("-inf"), float("nan"))
DEEPEST = 6


class Cursor:
    """Bytes, and how many of them are taken."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """At most so many bytes."""
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at) if self else b""

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def word(self) -> int:
        """A u16."""
        return int.from_bytes(self.take(2), "little")

    def flag(self) -> bool:
        return bool(self.byte() & 1)

    def choose(self, choices: Sequence[T]) -> T:
        return choices[self.byte() % len(choices)]

    def piece(self) -> bytes:
        """As many bytes as its first one says."""
        return self.take(self.byte())

    def integer(self) -> int:
        """Small, of any size, or at an edge."""
        kind = self.byte()
        if kind < 128:
            return kind
        return self.choose(EDGES) if kind < 192 else int.from_bytes(self.take(8), "little", signed=bool(kind & 1))

    def number(self) -> float:
        """A float of any kind, or an integer as a float."""
        return self.choose(FLOATS) if self.flag() else float(self.integer())

    def value(self, depth: int = 0) -> Any:
        """Whatever msgpack can say."""
        kind = self.byte() % (10 if depth < DEEPEST else 8)
        if kind == 0:
            return self.choose((None, True, False))
        if kind < 4:
            return self.integer()
        if kind == 4:
            return self.number()
        if kind < 7:
            return self.piece().decode("utf-8", "replace")
        if kind == 7:
            return self.piece()
        count = self.byte() % 8
        if kind == 8:
            return [self.value(depth + 1) for _ in range(count)]
        return {self.piece().decode("utf-8", "replace"): self.value(depth + 1) for _ in range(count)}


MEASURED = 0xF0
"""First bytes from here on have the memory measured. Not all: that takes time, and tracemalloc itself keeps some."""


def measured(read: Callable[[int, Cursor], None], data: bytes, most_bytes: int) -> None:
    """`read` of the first byte and the rest; now and then it may take no more memory than that."""
    cursor = Cursor(data)
    what = cursor.byte()
    if what < MEASURED:
        read(what, cursor)
        return
    tracemalloc.start()
    try:
        read(what, cursor)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most <= most_bytes, f"{most} bytes of memory for {len(data)} bytes of input"
