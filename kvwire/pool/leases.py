"""Who still reads or writes which slot. Any number of readers, or one writer."""

from __future__ import annotations

import threading
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvwire.errors import Closed, LeaseHeld, PlacementError
from kvwire.forks import add_lock


class Lease:
    """A transfer's hold on slots of `pages`, which it keeps alive, until `release`."""

    def __init__(self, table: LeaseTable, pages: object, slots: NDArray[np.int64], who: str, writes: bool) -> None:
        self._table = table
        self.pages: Final = pages
        self.slots: Final = slots
        self.who: Final = who
        self.writes: Final = writes

    def release(self) -> None:
        """Gives the slots back. May be called again, and from any thread."""
        self._table.release(self)

    def __repr__(self) -> str:
        return f"<Lease of {len(self.slots)} slots, {'written' if self.writes else 'read'} by {self.who}>"


class LeaseTable:
    """The leases on the slots of one group's memory. Thread-safe."""

    _lock: threading.Lock

    def __init__(self, slots: int) -> None:
        add_lock(self)
        self._readers = np.zeros(slots, np.int32)
        self._writing = np.zeros(slots, np.bool_)
        self._held: set[Lease] = set()
        self.closed = False

    def take(self, pages: object, slots: NDArray[np.int64], who: str, *, writes: bool) -> Lease:
        """A lease on `slots` of `pages`. `PlacementError` where one is being written or, to write, being read."""
        lease = Lease(self, pages, slots, who, writes)
        with self._lock:
            if self.closed:  # asked under the lock, so that no lease slips past `close`
                raise Closed("these pages are closed")
            busy = self._writing[slots]
            if writes:
                busy = busy | (self._readers[slots] > 0)
            if busy.any():
                raise PlacementError(self._describe(int(slots[int(busy.argmax())])))
            if writes:
                self._writing[slots] = True
            else:
                self._readers[slots] += 1
            self._held.add(lease)
        return lease

    def release(self, lease: Lease) -> None:
        with self._lock:
            if lease not in self._held:
                return
            if lease.writes:
                self._writing[lease.slots] = False
            else:
                self._readers[lease.slots] -= 1
            self._held.remove(lease)  # last: a fork that another thread makes finds it whole, or not begun

    def check_free(self, slots: NDArray[np.int64]) -> None:
        """`LeaseHeld` if any of `slots` is leased; the message says which and by whom."""
        with self._lock:
            busy = self._writing[slots] | (self._readers[slots] > 0)
            if busy.any():
                raise LeaseHeld(self._describe(int(slots[int(busy.argmax())])))

    def close(self) -> None:
        """No more leases. `LeaseHeld` if any slot is leased."""
        with self._lock:
            for lease in self._held:
                if lease.slots.size:
                    raise LeaseHeld(self._describe(int(lease.slots[0])))
            self.closed = True

    def _describe(self, slot: int) -> str:
        lease = next(lease for lease in self._held if slot in lease.slots)
        return f"slot {slot} is still being {'written' if lease.writes else 'read'} by {lease.who}"
