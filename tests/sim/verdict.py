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
    Link,
    LinkLost,
    OfferRefused,
    PeerAborted,
    ProtocolError,
)
from tests.sim.history import BOUNDED, EXACT, FENCED, LASTING, STRANGERS, TIMED, Half, Record
from tests.sim.network import Connection
from tests.sim.world import SLACK_S, Process, World, control_of

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

    def _together(self, record: Record) -> None:
        """What the two sides say has to fit: a receipt means a commit, and a loss that is known means none."""
        committed = record.incoming is not None and record.incoming.state == "committed"
        outcome, name = record.sender.outcome, record.request_id
        if outcome == "committed" and not committed:
            self.history.violate(EXACT, f"{name} has a receipt, and its receiver has not committed")
        if committed and isinstance(outcome, LinkLost) and not isinstance(outcome, CommitUnknown):
            self.history.violate(EXACT, f"{name} is committed, and its sender was told that it is lost: {outcome}")
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
            if not self._link_may_be_lost(record) and not self._gave_up(record):
                self.history.violate(LASTING, f"{name}, and nothing was wrong with its link")
        elif isinstance(error, PeerAborted):
            if not self._gave_up(record):
                self.history.violate(LASTING, f"{name}, and nobody gave it up")
        elif isinstance(error, OfferRefused):
            if record.receiver.outcome != "refused":
                self.history.violate(EXACT, f"{name}, and nobody refused it")
        else:
            self.history.violate(EXACT, name)

    def _link_may_be_lost(self, record: Record) -> bool:
        """Until links resume, a control connection that is lost takes its transfers along."""
        corrupted = [
            connection
            for connection in self.world.network.connections
            if connection.kind == "lane" and set(connection.hosts) == set(record.control.hosts)
            for _, what in connection.faults
            if what == "corrupt"
        ]
        return bool(record.control.faults) or len(corrupted) >= LANE_FAULTS or self._greeted_too_late(record.control)

    def _greeted_too_late(self, control: Connection) -> bool:
        """The acceptor's Python was so slow that it gave the hand-shake up when the dialler was through with it."""
        end = control.ends[1]
        if end.accepted_at is None or end.closed_at is None:
            return False
        slow = any(process.slack_s > SLACK_S for process in self.world.processes if process.host is end.host)
        return slow and end.closed_at - end.accepted_at < self.world.config.handshake_timeout_s + 1.0

    def _gave_up(self, record: Record) -> bool:
        halves = (record.sender, record.receiver)
        return any(half.outcome in ("aborted", "cancelled") or half.aborted for half in halves)

    def _deadline(self, record: Record, half: Half, name: str) -> None:
        """Not early; and not at all where all was ready in time and only lanes were lost."""
        assert half.ended_at is not None
        least_s = record.deadline_s
        if record.sender.granted_at is None:
            least_s = min(least_s, record.timeout_s)
        if half.ended_at - record.sender.began_at < least_s - EARLY_S:
            self.history.violate(TIMED, f"{name} after {half.ended_at - record.sender.began_at:.3f} s")
        if record.all_ready_at is None or record.receiver.granted_at is None or self._link_may_be_lost(record):
            return
        quiet_at = max([record.all_ready_at, *self._disturbed_at(record)])
        due = record.sender.began_at + record.deadline_s
        if quiet_at + self.world.config.tcp_user_timeout_s + 10.0 < due:
            self.history.violate(LASTING, f"{name}, though all was ready and quiet {due - quiet_at:.1f} s before")

    def _disturbed_at(self, record: Record) -> list[float]:
        times = [at for c in self.world.network.connections for at, _ in c.faults]
        return times + [at for process in self.world.processes for at in process.thawed_at]

    # --- what is left -------------------------------------------------------------------------------------------

    def on_strangers(self) -> None:
        """Who never says who they are: for a bounded time, with bounded bytes, and only so many at once."""
        spans: dict[str, list[tuple[float, int]]] = {}
        for connection in self.world.network.connections:
            end = connection.ends[1]
            if not connection.uninvited or end.accepted_at is None:
                continue
            closed_at = self.world.clock.now if end.closed_at is None else end.closed_at
            spans.setdefault(end.host.address, []).extend(((end.accepted_at, 1), (closed_at, -1)))
            lives = [process for process in self.world.processes if process.host is end.host]
            limit_s = self.world.config.handshake_timeout_s + max(process.slack_s for process in lives)
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
        left["tasks"] = len(node._tasks) - 1 + sum(len(link._tasks) for link in node.links)
        left["handshakes"] = self.world.config.max_handshakes - 1 - node._handshakes._value
        for link in node.links:
            session = link._session
            if control_of(link).tainted:
                continue
            self._lanes(process, link)
            engine_link: Any = link.engine_link
            tables: tuple[Sized, ...] = (
                link._outgoing,
                link._incoming,
                link._offers,
                session._outgoing,
                session._incoming,
            )
            left["in tables"] = left.get("in tables", 0) + sum(map(len, tables))
            left["queued"] = left.get("queued", 0) + (engine_link.queued_runs if link.lanes else 0)
            left["in the engine"] = left.get("in the engine", 0) + len(engine_link.out) + len(engine_link.inc)
        if any(left.values()):
            self.history.violate(BOUNDED, f"process {process.name} keeps {left}")
        self.on_memory(process)

    def _lanes(self, process: Process, link: Link) -> None:
        """In peace every lane comes back; and one that has ended at one side ends at the other."""
        wanted = self.world.config.lanes
        if link.lanes != wanted:
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
            "links": list(node._links),
            "watched": list(node._watched),
        }
        if any(left.values()):
            kept = {name: value for name, value in left.items() if value}
            self.history.violate(BOUNDED, f"process {process.name} is closed and keeps {kept}")
        self.on_memory(process)
