"""What is checked when a run is over: each transfer as both sides saw it, and what is left behind."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from kvwire import (
    Closed,
    CommitUnknown,
    DeadlineExceeded,
    IntegrityError,
    KvwireError,
    LinkLost,
    OfferRefused,
    PeerAborted,
    ProtocolError,
)
from tests.sim import troubles
from tests.sim.history import BOUNDED, EXACT, FENCED, LASTING, SEALED, STRANGERS, TIMED, Half, Record
from tests.sim.links import SimLink, Spell, sim_link
from tests.sim.records import APPLICATION_DATA, record_at, records
from tests.sim.world import Process, World

STRANGER_BYTES = 64 << 10
LANE_FAULTS = 3
EARLY_S = 0.001


class Verdict:
    """Every promise that can be judged only when both sides' stories are known."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.history = world.history

    def on_transfers(self) -> None:
        for record in self.history.records.values():
            if not record.tainted:
                self._together(record)
                for half in (record.sender, record.receiver):
                    if isinstance(half.outcome, BaseException):
                        self._error(record, half, half.outcome)
                self._told(record)

    def _together(self, record: Record) -> None:
        """What the two sides say has to fit: a receipt means a commit, and a loss that is known means none."""
        committed = record.incoming is not None and record.incoming.state == "committed"
        outcome, name = record.sender.outcome, record.request_id
        if outcome == "committed" and not committed:
            self.history.violate(EXACT, f"{name} has a receipt, and its receiver has not committed")
        if committed and isinstance(outcome, LinkLost) and not isinstance(outcome, CommitUnknown):
            self.history.violate(EXACT, f"{name} is committed, and its sender was told that it is lost: {outcome}")
        if committed and isinstance(outcome, PeerAborted):
            self.history.violate(EXACT, f"{name} is committed, and its sender was told that it was given up: {outcome}")
        if committed and record.receiver.outcome not in (None, "committed"):
            self.history.violate(EXACT, f"{name} is committed, and its receiver was told {record.receiver.outcome!r}")

    def _error(self, record: Record, half: Half, error: BaseException) -> None:
        """An error must be the consequence of something that happened."""
        name = f"{record.request_id} ended at its {'sender' if half is record.sender else 'receiver'} with {error!r}"
        assert half.ended_at is not None
        if not isinstance(error, KvwireError):
            self.history.violate(EXACT, f"{name}, which has no type of kvwire's")
        elif isinstance(error, DeadlineExceeded):
            self._deadline(record, half, name)
        elif isinstance(error, LinkLost | IntegrityError | ProtocolError | Closed):
            given_up = isinstance(error, Closed) and self._gave_up(record)
            over = self._is_over(self._link_of(record, half), half.ended_at)
            if not over and not given_up and not self._sender_restarted(record, half):
                self.history.violate(LASTING, f"{name}, and its link was not lost")
        elif isinstance(error, PeerAborted):
            if not self._gave_up(record) and not self._late_while_suspended(record, half):
                self.history.violate(LASTING, f"{name}, and nobody gave it up")
        elif isinstance(error, OfferRefused):
            if record.receiver.outcome != "refused" and not record.offered_again:  # which may ask for too much
                self.history.violate(EXACT, f"{name}, and nobody refused it")
        else:
            self.history.violate(EXACT, name)

    def _late_while_suspended(self, record: Record, half: Half) -> bool:
        """The other side was past its deadline; a peer that returns is told that it is over, and not why."""
        other = record.receiver if half is record.sender else record.sender
        there = record.incoming if half is record.sender else record.out
        errors = (other.outcome, there and there._error)  # its user may have died before it was told
        spells = record.link.spells + (record.link.other.spells if record.link.other is not None else [])
        return any(isinstance(error, DeadlineExceeded) for error in errors) and bool(spells)

    def _gave_up(self, record: Record) -> bool:
        halves = (record.sender, record.receiver)
        if record.offered_again and isinstance(record.sender.outcome, OfferRefused):
            return True  # another life of the receiver asks for what was not wanted before
        return any(half.outcome in ("aborted", "cancelled") or half.aborted for half in halves)

    def _deadline(self, record: Record, half: Half, name: str) -> None:
        """Not early; and not at all where all was ready in time and only lanes were lost."""
        assert half.ended_at is not None
        least_s = record.deadline_s
        if record.sender.granted_at is None:
            least_s = min(least_s, record.timeout_s)
        if half.ended_at - record.sender.began_at < least_s - EARLY_S:
            self.history.violate(TIMED, f"{name} after {half.ended_at - record.sender.began_at:.3f} s")
        if self._is_over(record.link, half.ended_at) or self._is_over(record.link.other, half.ended_at):
            return
        if self._unheard_of(record.link):
            return
        began_at, patience_s = record.sender.began_at, troubles.return_s(self.world)
        due = began_at + record.timeout_s
        if half is record.sender and half.granted_at is None and half.ended_at >= due - EARLY_S:
            if not record.receiver.began_at and self._quiet_at(record, began_at) + patience_s < due:
                self.history.violate(LASTING, f"{name}, and the offer never came")
            granted_at = record.receiver.granted_at
            if granted_at is not None and self._quiet_at(record, granted_at) + patience_s < due:
                self.history.violate(LASTING, f"{name}, and it was granted")
        granted = record.sender.granted_at is not None and record.receiver.granted_at is not None
        if granted and record.all_ready_at is not None:
            quiet_at, due = self._quiet_at(record, record.all_ready_at), began_at + record.deadline_s
            if quiet_at + self._lanes_s + patience_s < due:
                self.history.violate(LASTING, f"{name}, though all was ready and quiet {due - quiet_at:.1f} s before")

    def _told(self, record: Record) -> None:
        """What is over on one side is over on the other, too, soon after there is a connection."""
        first, last = sorted((record.sender, record.receiver), key=lambda half: half.ended_at or 0.0)
        if first.ended_at is None or last.ended_at is None or not record.receiver.began_at:
            return
        if self._is_over(record.link, last.ended_at) or self._is_over(record.link.other, last.ended_at):
            return
        quiet_at = self._quiet_at(record, first.ended_at)
        if last.ended_at > quiet_at + self._lanes_s + troubles.return_s(self.world):
            late_s = last.ended_at - first.ended_at
            text = f"{record.request_id} was over on one side ({first.outcome!r}) {late_s:.1f} s before the other"
            self.history.violate(LASTING, f"{text} ({last.outcome!r})")

    @property
    def _lanes_s(self) -> float:
        """What lanes may need, in peace, until they are noticed to be dead and dialled anew."""
        return self.world.config.tcp_user_timeout_s + 10.0

    def _quiet_at(self, record: Record, since: float) -> float:
        """When nothing was wrong any more, at the earliest then."""
        return max([since, *self._disturbed_at(record)])

    def _disturbed_at(self, record: Record) -> list[float]:
        times = [at for c in self.world.network.connections for at, _ in c.faults]
        times += [trouble.until for trouble in troubles.between(self.world, record.link.hosts)]
        return times + [at for process in self.world.processes for at in process.thawed_at]

    # --- links ----------------------------------------------------------------------------------------------------

    def on_links(self) -> None:
        """A link ends for a reason; while it is suspended, at the latest when its time is over."""
        for link in self.history.links:
            if link.controls and not link.tainted and not link.controls[0].uninvited:
                for spell in link.spells:
                    self._spell(link, spell)
                if link.ended_at is not None and self._ended_first(link):
                    self._ended(link, link.ended_at)

    def _ended(self, link: SimLink, ended_at: float) -> None:
        """For a reason; and if it still has its connection, the other end hears of it."""
        if link.dialled and not link.greeted:  # its `connect` says why, and nothing was sent over it
            return
        text = f"a link of process {link.process.name} ended at {ended_at:.6f} with {link.error!r}"
        if not self._may_be_lost(link):
            self.history.violate(LASTING, f"{text}, and nothing was wrong with it")
        if not link.greeted:  # whoever dialled hears that there is no such link when it dials again
            return
        suspended = bool(link.spells) and link.spells[-1].ended_at == ended_at
        other = link.other
        if suspended or link.controls[-1].faults or other is None or other.over_at is None:
            return
        quiet_at = max([ended_at, *(trouble.until for trouble in troubles.between(self.world, link.hosts))])
        if other.over_at > quiet_at + other.process.slack_s:
            self.history.violate(EXACT, f"{text}, and the other end went on for {other.over_at - ended_at:.1f} s")
        elif any(spell.began_at >= ended_at for spell in other.spells):
            self.history.violate(EXACT, f"{text}, and the other end was not told why its connection ended")

    def _spell(self, link: SimLink, spell: Spell) -> None:
        ended_at = spell.ended_at or link.process.died_at or self.world.clock.now
        took_s = ended_at - spell.began_at - (link.process.loop.frozen_s() - spell.frozen_s)
        if took_s > self.world.config.resume_timeout_s + link.process.slack_s:
            self.history.violate(BOUNDED, f"a link of process {link.process.name} was suspended for {took_s:.1f} s")

    def _ended_first(self, link: SimLink) -> bool:
        """Whether this end was the first of the two: the other one had to follow it."""
        other = link.other
        if self._forgotten(link):
            return False
        if other is None or other.over_at is None or link.over_at is None:
            return True
        return link.over_at < other.over_at or (link.over_at == other.over_at and link.closed_here >= other.closed_here)

    def _forgotten(self, link: SimLink) -> bool:
        """The peer lives and has given the link up: it answers with a new one, and who dialled gives it up, too."""
        return any(isinstance(link.error, LinkLost) and other.ended_at is not None for other in link.others[-2:-1])

    def _sender_restarted(self, record: Record, half: Half) -> bool:
        """What a peer was sending that has restarted is lost, and the link is not, if it is this side that dials."""
        link = self._link_of(record, half)
        return half is record.receiver and link is not None and link.dialled and record.link.over_at is not None

    def _may_be_lost(self, link: SimLink) -> bool:
        if link.closed_here:
            return True
        if self._lanes_went_wrong(link):
            return True
        if not self.world.config.resume_timeout_s or not link.greeted:  # what is lost with its control connection
            late = any(end.process.loop.frozen_s() > end.frozen_before_s for end in (link, *link.others))
            return any(connection.faults for connection in link.controls) or (late and not link.greeted)
        spell = link.spells[-1] if link.spells else None
        if spell is None or spell.resumed or link.ended_at is None:
            return False
        in_time = link.ended_at - spell.began_at >= self.world.config.resume_timeout_s - EARLY_S
        return in_time and (troubles.kept_apart(self.world, link, spell) or self._unheard_of(link))

    def _unheard_of(self, link: SimLink) -> bool:
        """Who dialled never heard that there was a link, and has another one."""
        return link.other is not None and not set(link.controls) & set(link.other.greeted)

    def _lanes_went_wrong(self, link: SimLink) -> bool:
        """So many that the path is not to be trusted."""
        corrupted = [
            connection
            for connection in self.world.network.connections
            if connection.kind == "lane" and frozenset(connection.hosts) == link.hosts
            for _, what in connection.faults
            if what == "corrupt"
        ]
        return isinstance(link.error, IntegrityError) and len(corrupted) >= LANE_FAULTS

    def _is_over(self, link: SimLink | None, at: float) -> bool:
        """Whether this end of a link had ended by then."""
        return link is None or (link.over_at is not None and link.over_at <= at)

    def _link_of(self, record: Record, half: Half) -> SimLink | None:
        """The end of the link at which this half of a transfer is."""
        if half is record.sender:
            return record.link
        return sim_link(record.incoming.link) if record.incoming is not None else None

    # --- what is sealed -------------------------------------------------------------------------------------------

    def on_secrets(self) -> None:
        """Nothing but TLS goes over the control connection of a sealed link, and what was damaged ends it."""
        for connection in self.world.network.connections:
            if not connection.secret or connection.uninvited:
                continue
            for end in connection.ends:
                try:
                    damaged = end.flow.damaged_at is not None and record_at(end.flow.said, end.flow.damaged_at)
                    list(records(end.flow.said))
                except ValueError as error:
                    self.history.violate(SEALED, f"a sealed link speaks in the clear: {error}")
                    return
                # Elsewhere a bit may mean nothing: a record's version, say, before the keys are there.
                in_use = connection.alive and bool(connection.links) and not connection.tainted
                if damaged and damaged.kind == APPLICATION_DATA and in_use:
                    self.history.violate(SEALED, "a control connection is damaged, and in use")

    # --- what is left -------------------------------------------------------------------------------------------

    def on_strangers(self) -> None:
        """Who never says who they are: for a bounded time, with bounded bytes, and only so many at once."""
        spans: dict[str, list[tuple[float, int]]] = {}
        for connection in self.world.network.connections:
            end = connection.ends[1]
            if not connection.uninvited or end.accepted_at is None:
                continue
            closed_at = self.world.clock.now if end.closed_at is None else end.closed_at
            certified = bool(connection.links)  # and has as long again to show that it has the keys
            if not certified:
                spans.setdefault(end.host.address, []).extend(((end.accepted_at, 1), (closed_at, -1)))
            lives = [process for process in self.world.processes if process.host is end.host]
            limit_s = self.world.config.handshake_timeout_s * (1 + certified) + max(it.slack_s for it in lives)
            frozen = any(process.thawed_at for process in lives)
            if closed_at - end.accepted_at > limit_s and not frozen:
                self.history.violate(STRANGERS, f"a stranger was borne for {closed_at - end.accepted_at:.1f} s")
            if end.read_bytes > STRANGER_BYTES:
                self.history.violate(STRANGERS, f"{end.read_bytes} bytes were read from a stranger")
        for changes in spans.values():
            at_once = 0
            for _, change in sorted(changes):
                at_once += change
                if at_once > self.world.config.max_handshakes:
                    self.history.violate(STRANGERS, f"{at_once} strangers at once")
                    break

    def on_tables(self, process: Process) -> None:
        """With every transfer over and the links still up, nothing may be left of any of them."""
        node = process.node
        assert node is not None
        left = {"watched": len(node._watched) - len(node._links), "offers": len(node._offers)}
        own = 1 if self.world.config.plain else 2  # which accept connections and look after the identity
        left["tasks"] = len(node._tasks) - own + sum(len(link._tasks) for link in node.links)
        assert node._acceptor is not None
        left["handshakes"] = len(node._acceptor.strangers)
        for link in map(sim_link, node.links):
            session = link._session
            if link.tainted:
                continue
            self._up(process, link)
            engine_link: Any = link.engine_link
            tables: tuple[Sized, ...] = (
                link._exchange.outgoing,
                link._exchange.incoming,
                link._exchange.offers,
                session._outgoing,
                session._incoming,
            )
            left["in tables"] = left.get("in tables", 0) + sum(map(len, tables))
            left["queued"] = left.get("queued", 0) + (engine_link.queued_runs if link.lanes else 0)
            left["in the engine"] = left.get("in the engine", 0) + len(engine_link.out) + len(engine_link.inc)
        if not any(link.tainted for link in map(sim_link, node.links)):
            known = sum(1 + link.lanes for link in node.links)
            left["sockets"] = sum(not end.connection.uninvited for end in process.host.ends.values()) - known
        if any(left.values()):
            self.history.violate(BOUNDED, f"process {process.name} keeps {left}")
        self.on_memory(process)

    def _up(self, process: Process, link: SimLink) -> None:
        """In peace every link is up at both ends, every lane comes back, and one that has ended ends at the other."""
        wanted, other = self.world.config.lanes, link.other
        assert wanted is not None
        if link.suspended or other is None or other.over_at is not None:
            state = "is suspended" if link.suspended else "has no other end"
            self.history.violate(BOUNDED, f"process {process.name}: in peace a link {state}")
        elif link.lanes != wanted:
            broken = LASTING if link.lanes < wanted else BOUNDED
            self.history.violate(broken, f"process {process.name}: {link.lanes} lanes in peace, {wanted} wanted")

    def on_memory(self, process: Process) -> None:
        written = process.memory.written()
        if written is not None:
            self.history.violate(FENCED, f"process {process.name}: {written} was written after it was given back")

    def on_closed(self, process: Process) -> None:
        """The node is closed: no task, no socket, no link, no lane."""
        node = process.node
        assert node is not None
        left = {
            "tasks": [task.get_coro().__qualname__ for task in process.loop.tasks],  # type: ignore[union-attr]
            "sockets": [end.connection.kind for end in process.host.ends.values()],
            "timers": [timer._callback.__qualname__ for timer in process.loop.timers.values()],  # type: ignore[attr-defined]
            "links": list(node._links),
            "watched": list(node._watched),
        }
        if any(left.values()):
            kept = {name: value for name, value in left.items() if value}
            self.history.violate(BOUNDED, f"process {process.name} is closed and keeps {kept}")
        self.on_memory(process)
