"""What is due when. The clock is the caller's."""

from __future__ import annotations

import heapq


class Timers:
    """One time per key. Setting, cancelling and asking are O(log n), amortised."""

    def __init__(self) -> None:
        self._when: dict[int | str, float] = {}
        self._heap: list[tuple[float, int, int | str]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._when)

    def set(self, key: int | str, when: float) -> None:
        """`key` is due at `when`, and at no time set before."""
        self._when[key] = when
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, key))
        # What was cancelled stays in the heap until its time comes; a busy link would carry minutes of it.
        if len(self._heap) > 64 + 2 * len(self._when):
            self._heap = [entry for entry in self._heap if self._when.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def cancel(self, key: int | str) -> None:
        self._when.pop(key, None)

    def clear(self) -> None:
        self._when.clear()
        self._heap.clear()

    def next(self) -> float | None:
        """When the first key is due."""
        while self._heap and self._when.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> int | str | None:
        """A key that is due, which has no time any more; None if none is."""
        when = self.next()
        if when is None or when > now:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._when[key]
        return key
