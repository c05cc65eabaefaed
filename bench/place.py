"""What placing a cell costs: `Segment.write` (streaming stores) against numpy's copy into the same pages.

    .venv/bin/python bench/place.py

Copies cells of 64 KiB from a buffer that stays in cache to pages in random order of 512 MiB, both ways in turn, and
prints GB/s (medians of 7) and their ratio for each page size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from kvwire._ext.layout import Segment

POOL_BYTES = 512 << 20
CELL_BYTES = 64 << 10
ROUNDS = 7


def timed(copy: Callable[[], None]) -> float:
    """GB/s of one pass over the pool."""
    start = time.perf_counter()
    copy()
    return POOL_BYTES / (time.perf_counter() - start) / 1e9


def main() -> None:
    pool = np.zeros(POOL_BYTES, np.uint8)
    pool[:] = 1
    cell = np.full(CELL_BYTES, 2, np.uint8)
    for page_bytes in (4 << 10, 16 << 10, 64 << 10, 1 << 20):
        count = POOL_BYTES // page_bytes
        order = np.random.default_rng(1).permutation(count)
        pattern = np.array([[0, page_bytes, 0, 0, 1, page_bytes, page_bytes]], np.int64)
        segment = Segment(pool.ctypes.data, order * page_bytes, 1, pattern, page_bytes)
        pages = pool.reshape(count, page_bytes)
        piece = min(page_bytes, CELL_BYTES)
        targets = [pages[slot, at : at + piece] for slot in order for at in range(0, page_bytes, piece)]
        source = cell[:piece]

        def streamed(segment: Segment = segment) -> None:
            for at in range(0, POOL_BYTES, CELL_BYTES):
                segment.write(at, cell.data)

        def plain(targets: list[np.ndarray[tuple[int], np.dtype[np.uint8]]] = targets) -> None:
            for target in targets:
                target[:] = source  # noqa: B023 (called before the loop goes on)

        rates = [(timed(streamed), timed(plain)) for _ in range(ROUNDS)]
        ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
        print(f"pages of {page_bytes >> 10:5} KiB: {ours:6.2f} GB/s, numpy {theirs:6.2f}, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
