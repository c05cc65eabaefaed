"""The transfers that one side of a session has under way in one direction: entries that move along a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kvwire.errors import Closed, ProtocolError
from kvwire.types import Grant, Manifest
from kvwire.wire.codecs import Codecs
from kvwire.wire.states import Transfer

DRAIN_S = 30.0
"""Longest wait for DRAINED. A peer that owes it still is forgotten: nothing on this side depends on the answer."""

REMEMBERED = 4096
"""Outcomes of the latest transfers that are kept at least, per direction, for a peer that comes back and asks."""

Outcome = Literal["committed", "refused", "aborted"]
_OUTCOMES: dict[str, Outcome] = {"done": "committed", "refuse": "refused", "recv refuse": "refused"}

Rows = Mapping[tuple[Transfer, str], Transfer]


@dataclass(slots=True)
class Entry:
    """One transfer. `due`: when its present state has taken too long."""

    manifest: Manifest
    due: float
    deadline_s: float
    klass: int
    state: Transfer = Transfer.OFFERED
    codecs: Codecs = ()
    """Of our own offers: what the groups are to go through."""
    named: tuple[int, ...] = ()
    """Ids of those that the peer takes, as the latest offer has them."""
    ends: float = math.inf
    """When it has taken too long, however often it is offered; infinity before the first grant."""
    grant: Grant | None = None
    outcome: Outcome = "aborted"
    """What is remembered of it once it is over."""


def ledger_bytes(manifest: Manifest, grant: Grant) -> int:
    """Of a grant's ledger: a bit for each cell of each segment."""
    cells = int(manifest.attachment)
    for index, offer in enumerate(manifest.groups):
        segment_bytes = grant.blocks(index) * offer.spec.block_bytes
        cells += len(offer.spec.layers) * -(-segment_bytes // grant.cell_bytes)
    return -(-cells // 8)


class Transfers:
    """A table of transfers by id, `most` at once. Ids of one direction rise strictly; `newest` is the last one used."""

    def __init__(self, rows: Rows, most: int) -> None:
        self.newest = 0
        self._rows = rows
        self._remembered = max(REMEMBERED, 2 * most)
        self._entries: dict[int, Entry] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._to_come: set[int] = set()  # the peer has them under way, and their offers were lost

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, transfer: int) -> Entry | None:
        """The entry, unless the transfer is over or never was."""
        return self._entries.get(transfer)

    def ids(self) -> list[int]:
        """All ids, rising."""
        return sorted(self._entries)

    def outcome(self, transfer: int) -> Outcome | Literal["unknown", "forgotten"]:
        """What became of a transfer that is over; "unknown": it never came."""
        lost = transfer > self.newest or transfer in self._to_come
        return self._outcomes.get(transfer, "unknown" if lost else "forgotten")

    def outcomes(self) -> dict[int, str]:
        """What became of the latest transfers that are over."""
        return dict(self._outcomes)

    def alive(self) -> list[Entry]:
        """Those that nobody has given up."""
        return [entry for entry in self._entries.values() if entry.state in (Transfer.OFFERED, Transfer.ACTIVE)]

    def add(self, transfer: int, entry: Entry) -> None:
        """A new offer."""
        self.come(transfer)
        self._entries[transfer] = entry

    def come(self, transfer: int) -> None:
        """An offer has come, whatever is made of it."""
        self.newest = max(self.newest, transfer)
        self._to_come.discard(transfer)

    def is_new(self, transfer: int) -> bool:
        """Whether an offer with this id may come: its id is beyond all others, or it is due once more."""
        return transfer > self.newest or transfer in self._to_come

    def under_way_there(self, ids: list[int]) -> None:
        """All that the peer has under way, rising. What never came is offered again, also after newer offers."""
        self._to_come = {
            transfer for transfer in ids if self.get(transfer) is None and self.outcome(transfer) == "unknown"
        }
        self.newest = max([self.newest, *ids[-1:]])

    def refuse(self, transfer: int) -> None:
        """An offer was refused as it came."""
        self.come(transfer)
        self._remember(transfer, "refused")

    def clear(self) -> None:
        """The session is over, and every transfer with it."""
        self._entries.clear()

    def may(self, transfer: int, what: str) -> bool:
        """Whether this can happen to the transfer now."""
        entry = self._entries.get(transfer)
        return entry is not None and (entry.state, what) in self._rows

    def step(self, now: float, transfer: int, what: str) -> Entry:
        """Move a transfer along its row. Closed where this side may not."""
        entry = self._entries.get(transfer)
        if entry is None or (entry.state, what) not in self._rows:
            raise Closed(f"transfer {transfer} is {entry.state.value if entry else 'over'}: no {what} now")
        state = self._rows[entry.state, what]
        entry.outcome = _OUTCOMES.get(what, entry.outcome)
        if state is Transfer.OVER:
            del self._entries[transfer]
            self._remember(transfer, entry.outcome)
        elif state is not entry.state:
            if state is Transfer.ACTIVE:
                entry.ends = min(entry.ends, now + entry.deadline_s)
            # QUIETING ends when this side says so.
            entry.due = {Transfer.DRAINING: now + DRAIN_S, Transfer.QUIETING: math.inf}.get(state, entry.ends)
        entry.state = state
        return entry

    def start_over(self, now: float, transfer: int, again: int) -> Entry:
        """The peer knows nothing of a transfer, which is offered once more with the id `again`."""
        entry = self.step(now, transfer, "start over")
        entry.grant = None
        del self._entries[transfer]
        self._entries[again] = entry
        self.come(again)
        return entry

    def _remember(self, transfer: int, outcome: Outcome) -> None:
        self._outcomes[transfer] = outcome
        if len(self._outcomes) > self._remembered:
            del self._outcomes[next(iter(self._outcomes))]

    def lose(self, now: float) -> None:
        """The connection is lost: what only waited for the peer's last word is over."""
        for transfer in self.ids():
            self.step(now, transfer, "lose")

    def peer_step(self, now: float, transfer: int, what: str) -> Entry | None:
        """As `step` for a message; None where the transfer is over, ProtocolError where it never was."""
        entry = self._entries.get(transfer)
        if entry is None:
            if transfer > self.newest:
                raise ProtocolError(f"{what}: transfer {transfer} was never offered")
            return None
        if (entry.state, what) not in self._rows:
            raise ProtocolError(f"transfer {transfer} is {entry.state.value}: {what} is not allowed then")
        return self.step(now, transfer, what)

    def next_due(self) -> float:
        """When `expire` has something to do; infinity for never."""
        return min((entry.due for entry in self._entries.values()), default=math.inf)

    def expire(self, now: float) -> list[tuple[int, Transfer, Entry]]:
        """Time out what is due: (id, state it was in, entry). Whoever was still alive must now be drained."""
        late = [(transfer, entry.state) for transfer, entry in self._entries.items() if now >= entry.due]
        return [(transfer, state, self.step(now, transfer, "time out")) for transfer, state in late]
