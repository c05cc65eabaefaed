"""What happened in a run: the trace and its digest, the transfers, and every promise that was broken.

The promises are the invariants of docs/design.md, by their number there.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvwire import Incoming, Manifest, Outgoing
from tests.sim.clock import Clock
from tests.sim.memory import POISON, Content

if TYPE_CHECKING:
    from tests.sim.links import SimLink
    from tests.sim.network import Connection, End
    from tests.sim.transfers import SimInTransfer, SimOutTransfer

LAST_EVENTS = 40
_RELEASED = bytes([POISON]) * (64 << 10)

EXACT, WHOLE, FENCED, LASTING, ONCE, BOUNDED, SEALED, STRANGERS, TIMED = 1, 2, 3, 4, 5, 6, 7, 8, 10
"""The invariants of docs/design.md, under Invariants."""


@dataclass(frozen=True)
class Violation:
    """A broken promise."""

    invariant: int
    text: str
    at_s: float


@dataclass
class Half:
    """What one side of a transfer saw."""

    began_at: float = 0.0
    granted_at: float | None = None
    ended_at: float | None = None
    aborted: bool = False
    """Somebody on this side gave it up."""
    outcome: str | BaseException | None = None
    """ "committed", "refused", "aborted" or "cancelled" here, an error, or None while it runs or if it died."""


@dataclass
class Record:
    """One offered transfer, as whoever sees both sides knows it."""

    manifest: Manifest
    content: Content
    deadline_s: float
    timeout_s: float
    link: SimLink
    """The sender's end of the link that it goes over."""
    sender: Half = field(default_factory=Half)
    receiver: Half = field(default_factory=Half)
    out: Outgoing | None = None
    incoming: Incoming | None = None
    all_ready_at: float | None = None
    offered_again: bool = False
    """To another life of its receiver."""

    @property
    def request_id(self) -> str:
        return self.manifest.request_id

    @property
    def tainted(self) -> bool:
        return self.link.tainted


class History:
    """Told of everything; says what it thinks of it at once, and of the whole in the end."""

    def __init__(self, clock: Clock) -> None:
        self.violations: list[Violation] = []
        self.records: dict[str, Record] = {}
        self.links: list[SimLink] = []
        """Every end of every link, in the order in which they were made."""
        self.last: deque[str] = deque(maxlen=LAST_EVENTS)
        self.on_landing: Callable[[SimLink, bool], None] | None = None
        """Called as cells land at this end, with whether that was a commit, before anybody else knows."""
        self._clock = clock
        self._digest = hashlib.blake2b(digest_size=16)
        self._acked: dict[SimOutTransfer, set[tuple[int, int]]] = {}
        self._kept: dict[SimInTransfer, set[tuple[int, int]]] = {}
        self._agreed: dict[bytes, Connection] = {}
        self._sends_under: dict[bytes, End] = {}
        self._lane_secrets: dict[End, tuple[bytes, bytes]] = {}

    def note(self, what: str, *facts: object) -> None:
        """An event of the trace. Facts are numbers and short texts that are the same whenever the seed is replayed."""
        line = f"{self._clock.now:.6f} {what} {' '.join(map(str, facts))}"
        self.last.append(line)
        self._digest.update(line.encode())

    def violate(self, invariant: int, text: str) -> None:
        self.note("VIOLATION", invariant, text)
        self.violations.append(Violation(invariant, text, self._clock.now))

    def digest(self) -> str:
        return self._digest.hexdigest()

    # --- keys -----------------------------------------------------------------------------------------------------

    def agreed(self, connection: Connection, join_secret: bytes) -> None:
        """One side of a sealed link has greeted over this connection: its keys are of no other one."""
        if self._agreed.setdefault(join_secret, connection) is not connection:
            self.violate(SEALED, "a link has the keys of another connection")

    def lane_made(self, end: End, secrets: tuple[bytes, bytes] | None, *, sealed: bool) -> None:
        """A lane begins at this end. Its secrets are its own, one for each direction, and those of the other end."""
        if end.connection.uninvited:
            self.violate(STRANGERS, "a stranger has a lane")
        if secrets is None:
            if sealed:
                self.violate(SEALED, "a sealed link has a lane in the clear")
            return
        if self._lane_secrets.get(end.peer, secrets[::-1]) != secrets[::-1]:
            self.violate(SEALED, "the two ends of a lane have different secrets")
        self._lane_secrets[end] = secrets
        for secret, sender in zip(secrets, (end, end.peer), strict=True):
            if self._sends_under.setdefault(secret, sender) is not sender:
                self.violate(SEALED, "two lanes, or both directions of one, have the same secret")

    # --- what the engines say -----------------------------------------------------------------------------------

    def read(self, out: SimOutTransfer, segment: int, cell: int, payload: bytes) -> None:
        if len(payload) >= 64 and payload == _RELEASED[: len(payload)]:
            self.violate(TIMED, f"cell {cell} of segment {segment} of {out.id} read after the source was released")

    def sent(self, out: SimOutTransfer, segment: int, cell: int) -> None:
        self.note("sent", out.id, segment, cell)
        if (segment, cell) in self._acked.get(out, ()):
            self.violate(ONCE, f"cell {cell} of segment {segment} of {out.id} sent again after its acknowledgement")

    def acked(self, out: SimOutTransfer, segment: int, first: int, count: int) -> None:
        self.note("acked", out.id, segment, first, count)
        self._acked.setdefault(out, set()).update((segment, cell) for cell in range(first, first + count))

    def suspended(self, incoming: SimInTransfer, landed: set[tuple[int, int]]) -> None:
        """The link is without lanes: what has landed by now is what a ledger will say."""
        self._kept[incoming] = landed

    def duplicate(self, incoming: SimInTransfer, segment: int, cell: int) -> None:
        if (segment, cell) in self._kept.get(incoming, ()):
            self.violate(ONCE, f"cell {cell} of segment {segment} of {incoming.id} had landed before the link was lost")

    def landed(self, incoming: SimInTransfer, *, commit: bool = False) -> None:
        if self.on_landing is not None:
            engine_link: object = incoming.link
            link = next(link for link in self.links if link.engine_link is engine_link)
            self.on_landing(link, commit)

    def committed(self, incoming: SimInTransfer) -> None:
        landed, total = incoming.cells
        self.note("commit", incoming.id, landed, total)
        self.landed(incoming, commit=True)
        if landed != total:
            self.violate(WHOLE, f"{incoming.id} committed with {landed} of {total} cells")
