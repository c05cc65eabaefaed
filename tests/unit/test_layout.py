"""Segments against numpy: whatever the paging, a segment reads and writes as one range of bytes."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvwire._ext.layout import Segment
from kvwire.errors import SpecError


@dataclass
class Case:
    memory: NDArray[np.uint8]
    index: NDArray[np.int64]  # where in memory each byte of the segment lies: the reference
    segment: Segment


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Blocks of several pages, which lie in any order; patterns of several rows with gaps between them."""
    pages_per_block = draw(st.integers(1, 3))
    blocks = draw(st.integers(1, 5))
    pattern, where = [], []
    used = [0] * pages_per_block
    start = 0
    for _ in range(draw(st.integers(1, 4))):
        page = draw(st.integers(0, pages_per_block - 1))
        rows, row_bytes = draw(st.integers(1, 4)), draw(st.integers(1, 9))
        stride = row_bytes + draw(st.integers(0, 5))
        offset = used[page] + draw(st.integers(0, 3))
        used[page] = offset + rows * stride
        pattern.append((start, rows * row_bytes, page, offset, rows, row_bytes, stride))
        start += rows * row_bytes
        where += [(page, offset + row * stride + i) for row in range(rows) for i in range(row_bytes)]
    page_bytes = max(used)
    slots = draw(st.permutations(range(blocks * pages_per_block)))
    base = draw(st.integers(0, 50))
    offsets = np.array([slot * page_bytes for slot in slots], np.int64)
    memory = np.zeros(base + blocks * pages_per_block * page_bytes, np.uint8)
    index = np.array([base + offsets[b * pages_per_block + p] + at for b in range(blocks) for p, at in where], np.int64)
    table = np.array(pattern, np.int64)
    return Case(memory, index, Segment(memory.ctypes.data + base, offsets, pages_per_block, table, start))


@given(case=cases(), data=st.data())
def test_reads_and_writes_as_numpy_does(case: Case, data: st.DataObject) -> None:
    n = len(case.index)
    assert case.segment.nbytes == n
    case.memory[:] = np.random.default_rng(1).integers(0, 256, len(case.memory), np.uint8)
    off = data.draw(st.integers(0, n))
    length = data.draw(st.integers(0, n - off))
    assert case.segment.read(off, length) == case.memory[case.index[off : off + length]].tobytes()

    new = data.draw(st.binary(min_size=length, max_size=length))
    expected = case.memory.copy()
    expected[case.index[off : off + length]] = np.frombuffer(new, np.uint8)
    case.segment.write(off, new)
    assert np.array_equal(case.memory, expected)


@given(case=cases(), data=st.data())
def test_pieces_name_every_byte(case: Case, data: st.DataObject) -> None:
    n = len(case.index)
    off = data.draw(st.integers(0, n))
    length = data.draw(st.integers(0, n - off))
    start = case.memory.ctypes.data
    named = [address - start + i for address, size in case.segment.pieces(off, length) for i in range(size)]
    assert named == case.index[off : off + length].tolist()


@given(case=cases(), off=st.integers(-5, 500), length=st.integers(-5, 500))
def test_never_outside(case: Case, off: int, length: int) -> None:
    if off < 0 or length < 0 or off + length > case.segment.nbytes:
        with pytest.raises(IndexError):
            case.segment.read(off, length)
        with pytest.raises(IndexError):
            case.segment.pieces(off, length)


@pytest.mark.parametrize("off", [-1, 1, 2**62])
def test_a_write_is_never_outside(off: int) -> None:
    memory = np.zeros(8, np.uint8)
    segment = plain(memory, [(0, 8, 0, 0, 1, 8, 8)], 8)
    with pytest.raises(IndexError):
        segment.write(off, bytes(8))
    assert not memory.any()


def plain(memory: NDArray[np.uint8], pattern: list[tuple[int, ...]], block_bytes: int, pages: int = 1) -> Segment:
    return Segment(
        memory.ctypes.data, np.zeros(pages, np.int64), pages, np.array(pattern, np.int64).reshape(-1, 7), block_bytes
    )


@pytest.mark.parametrize(
    "pattern",
    [
        [],
        [(1, 8, 0, 0, 1, 8, 8)],
        [(0, 4, 0, 0, 1, 4, 4)],
        [(0, 4, 0, 0, 1, 4, 4), (5, 4, 0, 5, 1, 4, 4)],
        [(0, 8, 0, 0, 2, 3, 4)],
        [(0, 8, 1, 0, 1, 8, 8)],
        [(0, 8, -1, 0, 1, 8, 8)],
        [(0, 8, 0, 0, 0, 8, 8)],
        [(0, 8, 0, 0, -1, -8, 8)],
    ],
)
def test_patterns_that_do_not_fit(pattern: list[tuple[int, ...]]) -> None:
    with pytest.raises(SpecError):
        plain(np.zeros(16, np.uint8), pattern, 8)


@pytest.mark.parametrize(("offsets", "pages"), [(3, 2), (1, 0), (2, -1)])
def test_offsets_make_whole_blocks(offsets: int, pages: int) -> None:
    memory = np.zeros(64, np.uint8)
    with pytest.raises(SpecError):
        Segment(memory.ctypes.data, np.zeros(offsets, np.int64), pages, np.array([[0, 8, 0, 0, 1, 8, 8]]), 8)


def test_no_blocks_is_an_empty_segment() -> None:
    segment = Segment(0, np.zeros(0, np.int64), 1, np.array([[0, 8, 0, 0, 1, 8, 8]]), 8)
    assert segment.nbytes == 0
    assert segment.read(0, 0) == b""
