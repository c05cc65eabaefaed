"""Links that keep a diary. They do what any link does; what became of them is written down, for the verdict to read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvwire import wire
from kvwire.congestion import LanePlanner
from kvwire.control import Stream
from kvwire.errors import KvwireError
from kvwire.link import Link
from tests.sim.history import BOUNDED, STRANGERS
from tests.sim.network import Connection, Host

if TYPE_CHECKING:
    from kvwire.node import Node
    from kvwire.security import Peer
    from tests.sim.world import Process


@dataclass
class Spell:
    """A time without a control connection, from the loss of one to the greeting over the next or the end."""

    began_at: float
    frozen_s: float
    """How long Python had stood still by then."""
    ended_at: float | None = None
    resumed: bool = False


class SimLink(Link):
    """One end of a link."""

    def __init__(
        self, node: Node, session: wire.Session, peer: str, identity: Peer | None, planner: LanePlanner
    ) -> None:
        super().__init__(node, session, peer, identity, planner)
        self.process: Process = self.loop.process  # type: ignore[attr-defined]
        self.world = self.process.world
        self.frozen_before_s = self.process.loop.frozen_s()
        """How long its process's Python had stood still when it was made."""
        self.controls: list[Connection] = []
        """Its control connections, one after the other."""
        self.greeted: list[Connection] = []
        """Those of them over which the peer has said hello."""
        self.spells: list[Spell] = []
        self.closed_here = False
        """Its user closed it, or a `connect` that came to nothing."""
        self.ended_at: float | None = None
        self.on_loss: list[Callable[[], None]] = []
        """What users do as soon as its connection is lost: people who wait for nothing have whims."""
        self.on_return: list[Callable[[], None]] = []
        self.world.history.links.append(self)

    @property
    def error(self) -> KvwireError | None:
        """What ended it."""
        return self._error

    @property
    def dialled(self) -> bool:
        """Whether this is the end that dials."""
        return self._dialler is not None

    @property
    def others(self) -> list[SimLink]:
        """The other end. Of a dialler whose peer restarts there are several, in the order in which they were last met:
        one may have been made meanwhile for a HELLO that came too late, and then the peer's own link was met again."""
        latest_first = [link for connection in self.controls[::-1] for link in connection.links if link is not self]
        return list(dict.fromkeys(latest_first))[::-1]

    @property
    def other(self) -> SimLink | None:
        """The present other end; None where nobody was there yet."""
        return self.others[-1] if self.others else None

    @property
    def hosts(self) -> frozenset[Host]:
        return frozenset(self.controls[0].hosts)

    @property
    def tainted(self) -> bool:
        """Bytes of its control connections were changed, and nobody can know."""
        return any(c.tainted for link in (self, *self.others) for c in link.controls)

    @property
    def over_at(self) -> float | None:
        """When it ended, be it with its process."""
        return self.ended_at if self.ended_at is not None else self.process.died_at

    # --- what is written down -------------------------------------------------------------------------------------

    def _connect(self, stream: Stream, heard: bytes) -> None:
        connection: Connection = stream.sock.end.connection  # type: ignore[attr-defined]
        self.controls.append(connection)
        connection.links.append(self)
        super()._connect(stream, heard)

    def _on_event(self, event: wire.Event) -> None:
        counts, now = self.world.counts, self.world.clock.now
        if isinstance(event, wire.HelloDone | wire.Resumed | wire.Restarted):
            self._greeted_over(self.controls[-1])
        match event:
            case wire.Suspended() if not self.spells or self.spells[-1].ended_at is not None:
                self.spells.append(Spell(now, self.process.loop.frozen_s()))
                self._note("link suspended")
            case wire.Resumed():
                self.spells[-1].ended_at, self.spells[-1].resumed = now, True
                self._note("link resumed")
            case wire.Restarted():
                self.spells[-1].ended_at, self.spells[-1].resumed = now, True
                self._note("peer restarted")
            case wire.Offered():
                self._offer_came(event)
            case wire.LedgerCame():
                counts["ledger with landed cells"] += any(event.landed)
            case wire.CommitLearnt():
                counts["commit learnt from a ledger"] += 1
            case _:
                pass
        super()._on_event(event)
        match event:
            case wire.Suspended():
                if self.lanes:
                    self.world.history.violate(BOUNDED, f"a link is suspended and keeps {self.lanes} lanes")
                self._act(self.on_loss)
            case wire.Resumed():
                self._act(self.on_return)
            case _:
                pass

    def _greeted_over(self, connection: Connection) -> None:
        self.greeted.append(connection)
        if not self.config.plain:
            self.world.history.agreed(connection, self._session._join_secret)
        if connection.uninvited:
            self.world.history.violate(STRANGERS, "somebody has a link who has not shown that it has the keys")

    def _offer_came(self, event: wire.Offered) -> None:
        record = self.world.history.records.get(event.manifest.request_id)
        spells = record.link.spells if record is not None else []
        if record is not None and any(record.sender.began_at < spell.began_at for spell in spells):
            self.world.counts["offer made again"] += 1

    def _act(self, whims: list[Callable[[], None]]) -> None:
        todo = whims[:]
        whims.clear()
        for whim in todo:
            self.loop.call_soon(whim)

    def _note(self, what: str) -> None:
        self.world.counts[what] += 1
        self.world.history.note(what, self.process.name, self.controls[-1].ends[0].fd)

    async def close(self) -> None:
        self.closed_here |= not self.closed
        await super().close()

    def _shut(self, error: KvwireError) -> None:
        self.ended_at = self.world.clock.now
        if self.spells and self.spells[-1].ended_at is None:
            self.spells[-1].ended_at = self.ended_at
            if self.ended_at - self.spells[-1].began_at >= self.config.resume_timeout_s:
                self.world.counts["link expired"] += 1
        self.world.history.note("link ended", self.process.name, type(error).__name__)
        super()._shut(error)


def sim_link(link: Any) -> SimLink:
    """A link of these worlds."""
    assert isinstance(link, SimLink)
    return link
