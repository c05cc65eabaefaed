"""Slots, blocks and leases."""

import mmap
import threading
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvwire.errors import Closed, LeaseHeld, PlacementError, SpecError
from kvwire.pool import Pages
from kvwire.types import BlockRange, DType, GroupOffer, GroupSpec

Array = NDArray[Any]


def spec_of(layers: int = 2) -> GroupSpec:
    return GroupSpec.attention("kv", range(layers), DType.BF16, block_tokens=4, heads=2, head_dim=3)


@pytest.mark.parametrize(
    ("slots", "blocks", "message"),
    [
        ([0, 5], None, "slot 5 does not exist; there are 5"),
        ([-1], None, "slot -1 does not exist"),
        ([1, 3, 1], None, "slot 1 is named twice"),
        ([0, 1], [0], "2 slots for 1 blocks; expected 1"),
        ([0], range(2), "1 slots for 2 blocks; expected 2"),
        ([0, 1], BlockRange(3, 4), "2 slots for 1 blocks"),
        ([0, 1], [3, 2], "not ascending: 2 follows 3"),
        ([0, 1], [2, 2], "not ascending: 2 follows 2"),
        ([0.0], None, "expected a sequence of integers"),
        ([True], None, "expected a sequence of integers"),
        ([2**70], None, "expected a sequence of integers"),
        ([2**64 - 1], None, "does not exist"),
        ([[0]], None, "expected a sequence of integers"),
        ([[0], [1, 2]], None, "expected a sequence of integers"),
        ("01", None, "expected a sequence of integers"),
        (3, None, "expected a sequence of integers"),
        ([0], ["a"], "blocks are"),
    ],
)
def test_slots_that_cannot_be(slots: Any, blocks: Any, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        Pages.empty(spec_of(), 5).at(slots, blocks)


@pytest.mark.parametrize(
    ("own", "blocks", "expected"),
    [(8, [0, 1, 2], 2), (8, [1, 2], 2), (8, [2, 3], 1), (16, [0, 7, 8], 3), (2, [0, 5], 4), (1, [3], 4), (4, [], 0)],
)
def test_how_many_slots_cover_the_blocks(own: int, blocks: list[int], expected: int) -> None:
    pages = Pages.empty(spec_of(), 9, block_tokens=own)
    assert pages.at(range(expected), blocks).slots.tolist() == list(range(expected))
    with pytest.raises(PlacementError, match=f"expected {expected}"):
        pages.at(range(expected + 1), blocks)


def test_slots_are_copied_and_frozen() -> None:
    chosen = np.array([1, 2])
    slots = Pages.empty(spec_of(), 5).at(iter(chosen.tolist()), chosen)
    chosen[0] = 9
    assert slots.blocks is not None
    assert (slots.slots.tolist(), slots.blocks.tolist()) == ([1, 2], [1, 2])
    with pytest.raises(ValueError, match="read-only"):
        slots.slots[0] = 3


def test_blocks_against_the_offer() -> None:
    spec = spec_of()
    pages = Pages.empty(spec, 5)
    offer = GroupOffer(spec, BlockRange(2, 6))
    assert pages.at([0, 1, 2, 3]).block_numbers(offer).tolist() == [2, 3, 4, 5]
    assert pages.at([0, 1], [3, 5]).block_numbers(offer).tolist() == [3, 5]
    with pytest.raises(PlacementError, match="3 slots for 4 blocks"):
        pages.at([0, 1, 2]).block_numbers(offer)
    for block in (1, 6):
        with pytest.raises(PlacementError, match=f"block {block} is not on offer; blocks 2 to 6"):
            pages.at([0], [block]).block_numbers(offer)
    some = pages.at([0, 1], [3, 5])
    for block, message in ((1, "not on offer"), (6, "not on offer"), (4, "block 4 has no slot")):
        with pytest.raises(PlacementError, match=message):
            some.segments(offer, np.array([block]))
    with pytest.raises(PlacementError, match="not ascending"):
        some.segments(offer, np.array([5, 3]))
    with pytest.raises(PlacementError, match="block 3 has no slot"):
        pages.at([], []).segments(offer, np.array([3]))
    assert [s.nbytes for s in some.segments(offer, np.array([], np.int64))] == [0, 0]
    with pytest.raises(SpecError, match=r"layers is \(0, 1, 2\) on offer and \(0, 1\) in the pages"):
        some.block_numbers(GroupOffer(spec_of(layers=3), BlockRange(2, 6)))


# --- leases -----------------------------------------------------------------------------------------------------


def test_many_readers_or_one_writer() -> None:
    pages = Pages.empty(spec_of(), 8)
    first = pages.at([1, 2]).lease_read("transfer 4")
    second = pages.lease_read([2, 3], "transfer 5")
    with pytest.raises(PlacementError, match="slot 2 is still being read by transfer"):
        pages.at([2]).lease_write("transfer 6")
    writer = pages.at([7]).lease_write("transfer 12")
    for lease in (pages.lease_read, pages.lease_write):
        with pytest.raises(PlacementError, match="slot 7 is still being written by transfer 12"):
            lease([6, 7], "transfer 13")
    pages.check_free([0, 4, 6])  # what was refused left nothing behind
    with pytest.raises(LeaseHeld, match="slot 3 is still being read by transfer 5"):
        pages.check_free([0, 3])
    with pytest.raises(LeaseHeld, match="slot 7 is still being written by transfer 12"):
        pages.check_free(range(7, 8))
    first.release()
    first.release()
    with pytest.raises(LeaseHeld, match="slot 2"):
        pages.check_free([1, 2])
    second.release()
    writer.release()
    pages.check_free(range(8))
    pages.at([2]).lease_write("transfer 6").release()


def test_a_lease_keeps_the_pages() -> None:
    pages = Pages.empty(spec_of(), 2)
    lease = pages.at([0]).lease_read("transfer 1")
    assert lease.pages is pages


def test_leases_from_many_threads() -> None:
    pages = Pages.empty(spec_of(), 4)
    wins: list[str] = []

    def work(name: str) -> None:
        for _ in range(300):
            try:
                lease = pages.lease_write([0, 1, 2, 3], name)
            except PlacementError:
                continue
            wins.append(name)
            pages.lease_read([], name).release()
            lease.release()

    threads = [threading.Thread(target=work, args=(f"transfer {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins
    pages.check_free(range(4))


def test_close_waits_for_leases_and_ends_everything() -> None:
    spec = spec_of()
    pages = Pages.empty(spec, 4)
    slots = pages.at([1])
    lease = slots.lease_read("transfer 3")
    with pytest.raises(LeaseHeld, match="slot 1 is still being read by transfer 3"):
        pages.close()
    lease.release()
    pages.close()
    pages.close()
    offer = GroupOffer(spec, BlockRange(0, 1))
    uses: list[Callable[[], object]] = [
        lambda: pages.at([0]),
        lambda: pages.check_free([0]),
        lambda: pages.planes,
        lambda: slots.block_numbers(offer),
        lambda: slots.segments(offer, np.array([0])),
        lambda: slots.lease_read("transfer 4"),
        lambda: slots.lease_write("transfer 4"),
    ]
    for use in uses:
        with pytest.raises(Closed, match="closed"):
            use()


def test_memory_freed_too_early_says_so() -> None:
    spec = spec_of(layers=1)
    mapped, array = mmap.mmap(-1, 4 * spec.block_bytes), bytearray(4 * spec.block_bytes)
    pages = [Pages(spec, [mapped]), Pages(spec, [array])]
    with pytest.raises(BufferError):
        mapped.close()
    with pytest.raises(BufferError):
        array.append(1)
    for one in pages:
        one.close()
    mapped.close()
    array.append(1)


def test_shared_memory_closed_too_early_says_so() -> None:
    spec = spec_of(layers=1)
    shared = SharedMemory(create=True, size=4 * spec.block_bytes)
    try:
        assert shared.buf is not None
        pages = Pages(spec, [shared.buf[: 4 * spec.block_bytes]])
        with pytest.raises(BufferError):
            shared.close()
        pages.close()
        shared.close()
    finally:
        shared.unlink()


def test_repr_tells_what_it_is() -> None:
    pages = Pages.empty(spec_of(), 2)
    assert repr(pages) == "<Pages of group kv: 2 slots of 96 bytes>"
    assert repr(pages.lease_write([1], "transfer 1")) == "<Lease of 1 slots, written by transfer 1>"
