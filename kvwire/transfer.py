"""What both halves of a transfer share. `Outgoing` and `Incoming` are what a user holds while KV moves.

Their asyncio forms belong to the loop of their link. What an engine's own threads call (`ready`, `attach`,
`abort_nowait`, and the blocking `wait_...` forms) goes straight to the native engine and never through the loop,
so a loop that is busy delays none of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kvwire._ext.incoming import InTransfer
from kvwire._ext.outgoing import OutTransfer
from kvwire.codecs.choice import Choice
from kvwire.codecs.registry import check_outside_codecs
from kvwire.codings import Coded, coded
from kvwire.errors import Closed, DeadlineExceeded, KvwireError, LinkLost, SpecError, WrongThread
from kvwire.pool import Lease, Slots
from kvwire.types import BlockRange, Manifest

if TYPE_CHECKING:
    from kvwire._ext.handles import State
    from kvwire.link import Link


@dataclass(frozen=True, slots=True)
class Receipt:
    """The transfer is committed: every byte that was granted is in its slot at the receiver.

    `bytes`: of the granted blocks, as they lie in memory. Times are taken by the engine's threads. At the sender
    `elapsed_s` runs from the first `ready` to the receipt and `tail_s` from the last `ready`; at the receiver from the
    first cell to the commit, and `tail_s` is None.
    """

    transfer_id: int
    request_id: str
    bytes: int
    elapsed_s: float
    tail_s: float | None
    coded: Mapping[str, Coded] = field(default_factory=dict, hash=False)
    """By group, what a codec made of its cells; groups of which none went coded are not in it."""


def runs_of(blocks: NDArray[np.int64]) -> tuple[BlockRange, ...]:
    """Ascending block numbers as runs."""
    if not len(blocks):
        return ()
    cuts = np.flatnonzero(np.diff(blocks) != 1) + 1
    edges = [0, *cuts.tolist(), len(blocks)]
    return tuple(BlockRange(int(blocks[a]), int(blocks[b - 1]) + 1) for a, b in pairwise(edges))


def check_slots(what: str, value: object) -> None:
    """SpecError unless a source or placement is a mapping from group name to Slots."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise SpecError(f"{what} is {value!r:.80}; expected a dict from group name to slots")
    for name, slots in value.items():
        if not isinstance(slots, Slots):
            raise SpecError(f"{what} of group {name} is {slots!r:.80}; expected slots", hint="pages.at([...])")


LONGEST_WAIT_S = 1e9
"""Longer is for ever."""


SIGNALS_EVERY_S = 0.05
"""How often a wait on the main thread comes back for signals: a native one does not notice them."""


def at_once_s(until: float) -> float:
    """How long a wait that ends at `until` may stay outside of Python: no signal handler runs meanwhile."""
    left = max(0.0, until - time.monotonic())
    return min(left, SIGNALS_EVERY_S) if threading.current_thread() is threading.main_thread() else left


def check_timeout(timeout_s: float) -> None:
    """SpecError for a time that is none."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s >= 0:
        raise SpecError(f"timeout_s is {timeout_s!r}; expected seconds, 0 or more")


class Transfer:
    """What both halves share: identity, deadline, how an end becomes a result or an error."""

    def __init__(self, link: Link, transfer_id: int, manifest: Manifest, klass: int) -> None:
        self._link = link
        self._loop = link.loop
        self._loop_thread = threading.get_ident()
        self.transfer_id = transfer_id
        self.manifest = manifest
        self.klass = klass
        """0 urgent, 1 demand, 2 background, as the sender has it."""
        self._handle: InTransfer | OutTransfer | None = None
        self._leases: list[Lease] = []
        self._error: KvwireError | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._bytes = 0
        self._choices: Sequence[Choice | None] = (None,) * len(manifest.groups)
        """By group, what its cells may go through."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.transfer_id} of {self.manifest.request_id!r} {self.state}>"

    @property
    def link(self) -> Link:
        """The link it goes over."""
        return self._link

    @property
    def progress(self) -> tuple[int, int]:
        """Cells that are in the receiver's slots, as far as this side knows, and cells in all; 0, 0 before a grant."""
        return self._handle.cells if self._handle is not None else (0, 0)

    @property
    def state(self) -> str:
        """ "offered" until a grant, then "active", and in the end "committed", "aborted" or "lost"."""
        if self._handle is not None:
            return self._handle.state
        return "aborted" if self._error else "offered"

    def _release(self) -> None:
        """Give the memory back. The transfer is over, but a worker may still be copying a cell that was sent twice."""
        if self._handle is not None:
            self._handle.abort()
        for lease in self._leases:
            lease.release()

    def _engine_changed(self) -> None:
        """The engine says that something about this transfer is different. Runs on the loop."""
        # "aborted" comes from `_fail` or `abort_nowait`, which see to the rest (the peer has to be told) themselves.
        if self._handle is not None and self._handle.state in ("committed", "lost"):
            self._finish()

    def _finish(self) -> None:
        self._release()
        if not self._ended.done():
            self._ended.set_result(None)
            self._link._exchange.over(self)

    def _fail(self, error: KvwireError) -> None:
        """End the transfer for a reason that came from elsewhere (peer, timer, link). Runs on the loop."""
        if self._ended.done():
            return
        if self._error is None:
            self._error = error
        self._finish()

    def _outcome(self, state: State | str) -> Receipt:
        if state == "committed":
            return self._receipt()
        if self._error is not None:
            raise copy(self._error)  # one for each who waits: the traceback holds what they hold
        if state == "lost":
            raise self._lost()
        raise Closed(f"{self!r} was aborted")

    def _lost(self) -> KvwireError:
        return LinkLost(f"the link was lost during {self!r}")

    def _receipt(self) -> Receipt:
        raise NotImplementedError

    @property
    def _coded(self) -> dict[str, Coded]:
        return {} if self._handle is None else coded(self.manifest, self._choices, self._handle.coded())

    def _check_wait(self, timeout_s: float) -> None:
        """SpecError for a time that is none; WrongThread on the loop's own thread, and in a codec's function."""
        check_timeout(timeout_s)
        check_outside_codecs()
        if threading.get_ident() == self._loop_thread and self._loop.is_running():
            raise WrongThread(
                "a blocking wait on the event loop's own thread would stop the loop",
                hint="await the asyncio form, or call this from another thread",
            )

    def _wait_end(self, timeout_s: float) -> Receipt:
        self._check_wait(timeout_s)
        if self._handle is None:
            raise Closed(f"{self!r} has not been granted")
        until = time.monotonic() + min(timeout_s, LONGEST_WAIT_S)
        while True:
            handle = self._handle
            state = handle.wait(at_once_s(until))
            if handle is not self._handle:  # granted once more meanwhile, by a receiver that has restarted
                continue
            if state != "active" or time.monotonic() >= until:
                break
        if state == "active":
            raise DeadlineExceeded(f"{self!r} is not committed after {timeout_s:g} s", hint="it goes on")
        self._release()
        return self._outcome(state)

    async def _committed(self) -> Receipt:
        await asyncio.shield(self._ended)
        return self._outcome(self.state)

    async def abort(self, reason: str = "") -> None:
        """Give the transfer up. On return the memory behind it is free; the peer is told. No error if it is over."""
        self.abort_nowait(reason)

    def abort_nowait(self, reason: str = "") -> None:
        """As `abort`, from any thread. Waits for local copies under way (microseconds; and for a
        batch of cells in a codec, if it is in one), never for the peer. WrongThread in a codec's function."""
        check_outside_codecs()
        reason = str(reason)
        if self._error is None and self.state in ("active", "offered"):
            self._error = Closed(f"transfer {self.transfer_id} was aborted here" + (f": {reason}" if reason else ""))
        self._release()
        if threading.get_ident() == self._loop_thread:
            self._abort_on_loop(reason)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for it, or could tell the peer
                self._loop.call_soon_threadsafe(self._abort_on_loop, reason)

    def _abort_on_loop(self, reason: str) -> None:
        if not self._ended.done() and self.state != "committed":
            self._link._exchange.send_abort(self, reason)
            self._finish()
