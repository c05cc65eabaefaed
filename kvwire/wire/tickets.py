"""Lane tickets: the acceptor's promise that one lane may be opened, once, within a time."""

from __future__ import annotations

import math

from kvwire.errors import LimitExceeded, ProtocolError
from kvwire.wire.preamble import Join, verify_join

TICKET_VALID_S = 30.0
MAX_TICKETS = 64
"""Tickets out at once."""
RANDOM_BYTES = 32


class Tickets:
    """Which tickets are out, and which lane numbers are free. Incarnations of a lane rise strictly."""

    def __init__(self) -> None:
        self._out: dict[tuple[int, int], tuple[bytes, float]] = {}
        self._incarnation: list[int] = []  # the newest, by lane
        self._taken: set[tuple[int, int]] = set()  # redeemed, and the lane not ended
        self._free: list[int] = []
        self._unused: dict[tuple[int, int], float] = {}  # whose time is over, since when

    def out(self, now: float) -> int:
        """How many are out; the others are void from here on."""
        for key, due in [(key, due) for key, (_, due) in self._out.items() if due <= now]:
            del self._out[key]
            self._free.append(key[0])
            self._unused[key] = due
        return len(self._out)

    def next_due(self) -> float:
        """When `take_unused` has something to give; infinity for never."""
        return min([math.inf, *self._unused.values(), *(due for _, due in self._out.values())])

    def take_unused(self, now: float) -> list[tuple[int, int]]:
        """Those whose time is over, each once. Who believes that its lane is up has a connection that nobody holds."""
        self.out(now)
        unused = list(self._unused)
        self._unused.clear()
        return unused

    def issue(self, now: float, random: bytes) -> tuple[int, int]:
        """A ticket for a free lane: (lane, incarnation). LimitExceeded with too many out."""
        if self.out(now) >= MAX_TICKETS:
            raise LimitExceeded(f"{MAX_TICKETS} lane tickets are out already")
        if self._free:
            lane = self._free.pop()
        else:
            lane = len(self._incarnation)
            self._incarnation.append(0)
        self._incarnation[lane] += 1
        self._out[lane, self._incarnation[lane]] = (random, now + TICKET_VALID_S)
        return lane, self._incarnation[lane]

    def redeem(self, now: float, join: Join, join_secret: bytes) -> bytes:
        """Use up the ticket of a lane that joins; returns its random.

        ProtocolError if it was never issued, was used, is too old, or the MAC is wrong; with a wrong MAC it stays
        valid, so that a stranger who guesses numbers uses none up.
        """
        key = join.lane, join.incarnation
        random, due = self._out.get(key, (b"", 0.0))
        if not random:
            raise ProtocolError(f"no ticket is out for lane {join.lane}, incarnation {join.incarnation}")
        verify_join(join, random, join_secret)
        if now >= due:
            raise ProtocolError(f"the ticket for lane {join.lane} has expired")
        del self._out[key]
        self._taken.add(key)
        return random

    def reset(self) -> None:
        """The link's connections are gone: no ticket is out, no lane is up. Incarnations go on rising."""
        self._out.clear()
        self._unused.clear()
        self._taken.clear()
        self._free = list(range(len(self._incarnation)))

    def free(self, lane: int, incarnation: int) -> None:
        """A lane that was opened with a ticket has ended; its number may be given out again."""
        if (lane, incarnation) in self._taken:
            self._taken.remove((lane, incarnation))
            self._free.append(lane)

    def void(self, lane: int, incarnation: int) -> None:
        """The dialler says that its lane has ended: where its JOIN was never heard, the ticket is no longer out. Else
        those of lanes that were hung up on would count until their time is over, and there be none for a new one."""
        if self._out.pop((lane, incarnation), None) is not None:
            self._free.append(lane)
