"""Deliberately broken builds: each breaks one promise, and the simulation has to see it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

from kvwire import acceptor, control, dialler, driver, lanes, link, node, outgoing, transfer, wire
from kvwire._ext import frame
from kvwire.errors import KvwireError, LinkLost
from kvwire.wire import exchange, schema, states
from kvwire.wire import session as wire_session
from kvwire.wire import transfers as wire_transfers
from tests.sim import frames, sealing
from tests.sim.engine import SimEngineLink
from tests.sim.history import BOUNDED, EXACT, FENCED, LASTING, ONCE, SEALED, STRANGERS, TIMED, WHOLE
from tests.sim.transfers import SimInTransfer, SimOutTransfer


@dataclass(frozen=True)
class Mutation:
    """What is broken, which invariant of docs/design.md that breaks, and how it is done."""

    name: str
    invariant: int
    patches: Callable[[], list[Any]]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for patch in self.patches():
                stack.enter_context(patch)
            yield


def _nothing(*_: object, **__: object) -> None:
    """What a build does that has forgotten something."""


# --- 1: exact, or a typed error within the deadline -----------------------------------------------------------


def _no_checksum() -> list[Any]:
    def check(data: bytes, sequence: int, limit: int) -> tuple[str, int]:
        verdict, whole = frame.check(data, sequence, limit)
        return ("ok", len(data)) if verdict == "checksum" else (verdict, whole)

    return [mock.patch.object(frames, "frame", SimpleNamespace(check=check, encode=frame.encode, TYPES=frame.TYPES))]


def _no_deadlines() -> list[Any]:
    table = wire_transfers.Transfers
    return [
        mock.patch.object(table, "expire", return_value=[]),
        mock.patch.object(table, "next_due", return_value=math.inf),
    ]


def _early_receipt() -> list[Any]:
    real = SimInTransfer.land

    def land(self: SimInTransfer, segment: int, cell: int) -> None:
        if not self.cells[0]:
            self.link.receipts.append(self.id)
        real(self, segment, cell)

    return [mock.patch.object(SimInTransfer, "land", land)]


def _loss_for_certain() -> list[Any]:
    return [
        mock.patch.object(outgoing.Outgoing, "_fail", transfer.Transfer._fail),
        mock.patch.object(outgoing.Outgoing, "_lost", transfer.Transfer._lost),
    ]


# --- 2: all or nothing, and layers that are complete ----------------------------------------------------------


def _commit_without_the_last_cell() -> list[Any]:
    real = SimInTransfer.land

    def land(self: SimInTransfer, segment: int, cell: int) -> None:
        real(self, segment, cell)
        landed, total = self.cells
        if self.state == "active" and landed == total - 1:
            self._commit()

    return [mock.patch.object(SimInTransfer, "land", land)]


def _layer_before_it_landed() -> list[Any]:
    real = SimInTransfer.claim

    def claim(self: SimInTransfer, segment: int, cell: int, length: int) -> str:
        answer = real(self, segment, cell, length)
        if answer == "own" and self.missing(segment) == 1:
            self._done.append(segment)
            self.link.engine.mark(self)
        return answer

    return [mock.patch.object(SimInTransfer, "claim", claim)]


# --- 3: nothing is written after the end ----------------------------------------------------------------------


def _abort_does_not_wait() -> list[Any]:
    def abort(self: SimInTransfer) -> str:
        self.end("aborted")
        return self.state

    return [mock.patch.object(SimInTransfer, "abort", abort)]


def _late_cells_are_placed() -> list[Any]:
    def end(self: SimInTransfer, state: Any) -> None:
        if self.state == "active":
            self.state = state
            self.link.engine.mark(self)

    return [mock.patch.object(SimInTransfer, "end", end)]


# --- 4: losing lanes loses nothing ----------------------------------------------------------------------------


def _lost_cells_stay_lost() -> list[Any]:
    return [mock.patch.object(SimEngineLink, "requeue", _nothing)]


def _no_redial() -> list[Any]:
    return [mock.patch.object(dialler.Dialler, "want", _nothing)]


def _lane_closed_unheeded() -> list[Any]:
    return [mock.patch.object(lanes.Lanes, "close", _nothing)]


def _a_lane_takes_its_link_along() -> list[Any]:
    def changed(self: Any) -> None:
        if self.engine_link.take_closed():
            self._lose(LinkLost("a lane has ended"))

    return [mock.patch.object(link.Link, "_engine_changed", changed)]


# --- 5: once is enough ----------------------------------------------------------------------------------------


def _acknowledged_and_sent_again() -> list[Any]:
    real = SimOutTransfer.on_acked

    def on_acked(self: SimOutTransfer, segment: int, first: int, count: int) -> None:
        before = self.cells[0]
        real(self, segment, first, count)
        if self.cells[0] > before:  # once only, or it would never end
            self.link.requeue(self.id, segment, first, count)

    return [mock.patch.object(SimOutTransfer, "on_acked", on_acked)]


# --- 6: bounded -----------------------------------------------------------------------------------------------


def _watched_for_ever() -> list[Any]:
    return [mock.patch.object(node.Node, "_unwatch", _nothing)]


def _never_drained() -> list[Any]:
    return [mock.patch.object(wire_session.Session, "drained", _nothing)]


def _leases_kept() -> list[Any]:
    def release(self: Any) -> None:
        if self._handle is not None:
            self._handle.abort()

    return [mock.patch.object(transfer.Transfer, "_release", release)]


def _accepted_sockets_left_open() -> list[Any]:
    def over(self: acceptor.Acceptor, stranger: acceptor.Stranger, _: object) -> None:
        self.strangers.remove(stranger)

    return [mock.patch.object(acceptor.Acceptor, "_over", over)]


# --- 8: strangers ---------------------------------------------------------------------------------------------


def _patience_with_strangers() -> list[Any]:
    async def greet(self: Any, stranger: acceptor.Stranger) -> None:
        try:
            await self._identify(stranger)
        except Exception:
            stranger.sock.close()
        except BaseException:
            stranger.sock.close()
            raise

    return [mock.patch.object(acceptor.Acceptor, "_greet", greet)]


def _any_number_of_strangers() -> list[Any]:
    class Countless(list[Any]):
        def __len__(self) -> int:
            return 0

    real = acceptor.Acceptor.__init__

    def init(self: acceptor.Acceptor, *given: Any) -> None:
        real(self, *given)
        self.strangers = Countless()

    return [mock.patch.object(acceptor.Acceptor, "__init__", init)]


# --- 10: deadlines are durations, and a source is leased to the end -------------------------------------------


def _source_released_early() -> list[Any]:
    def abort(self: SimOutTransfer) -> str:
        self.end("aborted")
        return self.state

    return [mock.patch.object(SimOutTransfer, "abort", abort)]


def _deadline_cut_short() -> list[Any]:
    real = schema.encode

    def encode(message: schema.Message) -> bytes:
        if isinstance(message, schema.Offer):
            message = replace(message, deadline_s=message.deadline_s / 2)
        return real(message)

    return [mock.patch.object(schema, "encode", encode)]


# --- links that are suspended and resumed, by whatever promise each of these breaks ----------------------------


def _ledger_ignored() -> list[Any]:
    real = SimOutTransfer.resume
    return [mock.patch.object(SimOutTransfer, "resume", lambda self, landed: real(self, bytes(len(landed))))]


def _ledger_says_too_much() -> list[Any]:
    real = SimInTransfer.landed

    def landed(self: SimInTransfer) -> bytes:
        bits = bytearray(real(self))
        missing = next(at for at in range(8 * len(bits)) if not bits[at >> 3] >> (at & 7) & 1)
        bits[missing >> 3] |= 1 << (missing & 7)
        return bytes(bits)

    return [mock.patch.object(SimInTransfer, "landed", landed)]


def _ledger_unheeded(answer: str) -> list[Any]:
    """What a ledger says of an offer that waits for its grant is not looked at."""
    real = exchange.Exchange._on_ledger

    def on_ledger(self: Any, now: float, message: schema.Ledger) -> None:
        entry = self._outgoing.get(message.transfer)
        if message.state != answer or entry is None or entry.state is not states.Transfer.OFFERED:
            real(self, now, message)

    return [mock.patch.object(exchange.Exchange, "_on_ledger", on_ledger)]


def _deaf_to(kind: type[wire.Event]) -> list[Any]:
    real = link.Link._on_event

    def on_event(self: Any, event: wire.Event) -> None:
        if not isinstance(event, kind):
            real(self, event)

    return [mock.patch.object(link.Link, "_on_event", on_event)]


def _no_more_tickets() -> list[Any]:
    real = lanes.Lanes.issue_tickets

    def issue_tickets(self: Any, count: int) -> None:
        if not self._link.spells:
            real(self, count)

    return [mock.patch.object(lanes.Lanes, "issue_tickets", issue_tickets)]


def _lost_with_its_connection() -> list[Any]:
    def lost(self: Any, now: float, error: LinkLost) -> None:
        self._close("fail", error)

    return [mock.patch.object(wire_session.Session, "lost", lost)]


def _suspended_for_ever() -> list[Any]:
    real = wire_session.Session.lost

    def lost(self: Any, now: float, error: LinkLost) -> None:
        real(self, now, error)
        self._resume_due = math.inf

    return [mock.patch.object(wire_session.Session, "lost", lost)]


def _suspended_with_lanes() -> list[Any]:
    return [mock.patch.object(SimEngineLink, "suspend", _nothing)]


def _receipts_survive() -> list[Any]:
    real = SimEngineLink.suspend

    def suspend(self: SimEngineLink) -> None:
        self.stop_lanes()
        unacknowledged = self.receipts[:]
        real(self)
        self.receipts += unacknowledged

    return [mock.patch.object(SimEngineLink, "suspend", suspend)]


def _deadlines_wait_for_the_link() -> list[Any]:
    expire, next_due = exchange.Exchange._expire, exchange.Exchange._next_due

    def is_open(self: Any) -> bool:
        return self.state is states.Session.OPEN

    return [
        mock.patch.object(exchange.Exchange, "_expire", lambda self, now: is_open(self) and expire(self, now)),
        mock.patch.object(exchange.Exchange, "_next_due", lambda self: next_due(self) if is_open(self) else math.inf),
    ]


def _timer_left_behind() -> list[Any]:
    real = driver.Driver._stop

    def stop(self: Any) -> None:
        self._timer = None
        real(self)

    return [mock.patch.object(driver.Driver, "_stop", stop)]


def _given_up_in_silence() -> list[Any]:
    def lose(self: Any, error: KvwireError) -> None:
        if not self.closed:
            self._shut(error)

    return [mock.patch.object(link.Link, "_lose", lose)]


def _connections_left_open() -> list[Any]:
    return [mock.patch.object(control.Control, "_task_over", lambda self, task: self.tasks.discard(task))]


MUTATIONS = (
    Mutation("checksums are not looked at", EXACT, _no_checksum),
    Mutation("deadlines never come", EXACT, _no_deadlines),
    Mutation("the receipt leaves with the first cell", EXACT, _early_receipt),
    Mutation("a link that is lost always says that nothing arrived", EXACT, _loss_for_certain),
    Mutation("the commit does not wait for the last cell", WHOLE, _commit_without_the_last_cell),
    Mutation("a layer is complete before its last cell has landed", WHOLE, _layer_before_it_landed),
    Mutation("an abort does not wait for copies under way", FENCED, _abort_does_not_wait),
    Mutation("cells are placed after the end", FENCED, _late_cells_are_placed),
    Mutation("what a lost lane carried is not sent again", LASTING, _lost_cells_stay_lost),
    Mutation("lanes that are lost are not dialled again", LASTING, _no_redial),
    Mutation("a lane that has ended at the peer is believed to be up", LASTING, _lane_closed_unheeded),
    Mutation("a lost lane ends the link", LASTING, _a_lane_takes_its_link_along),
    Mutation("what was acknowledged is sent again", ONCE, _acknowledged_and_sent_again),
    Mutation("transfers that are over are watched for ever", BOUNDED, _watched_for_ever),
    Mutation("an abort is never answered", BOUNDED, _never_drained),
    Mutation("leases are not given back", BOUNDED, _leases_kept),
    Mutation("a connection accepted while the node closes stays open", BOUNDED, _accepted_sockets_left_open),
    Mutation("strangers may stay as long as they like", STRANGERS, _patience_with_strangers),
    Mutation("as many strangers as like to come", STRANGERS, _any_number_of_strangers),
    Mutation("a source is given back while it is read", TIMED, _source_released_early),
    Mutation("a deadline does not travel as it is", TIMED, _deadline_cut_short),
    Mutation("a ledger is not looked at, and all is sent again", ONCE, _ledger_ignored),
    Mutation("a ledger claims a cell that has not landed", LASTING, _ledger_says_too_much),
    Mutation("a grant is lost with the connection", LASTING, partial(_ledger_unheeded, "active")),
    Mutation("an offer is lost with the connection", LASTING, partial(_ledger_unheeded, "unknown")),
    Mutation("what is given up meanwhile goes on at the peer", EXACT, partial(_deaf_to, wire.Dropped)),
    Mutation("a resumed link gets no lanes", LASTING, _no_more_tickets),
    Mutation("a lost connection ends its link", LASTING, _lost_with_its_connection),
    Mutation("a suspended link never ends", BOUNDED, _suspended_for_ever),
    Mutation("a suspended link keeps its lanes", BOUNDED, _suspended_with_lanes),
    Mutation("receipts survive a suspension", EXACT, _receipts_survive),
    Mutation("deadlines stand still while a link is suspended", EXACT, _deadlines_wait_for_the_link),
    Mutation("a link is given up, and the other end is not told", EXACT, _given_up_in_silence),
    Mutation("a connection that is lost stays open", BOUNDED, _connections_left_open),
    Mutation("a link that has ended leaves its timer", BOUNDED, _timer_left_behind),
    Mutation("FINISHED is not looked at", STRANGERS, sealing.finished_unheeded),
    Mutation("a JOIN is believed whatever its MAC", STRANGERS, sealing.joins_believed),
    Mutation("a ticket lets any number of lanes in", STRANGERS, sealing.tickets_kept),
    Mutation("a resumed link keeps its first keys", SEALED, sealing.first_keys_kept),
    Mutation("a ticket is no part of a lane's secrets", SEALED, sealing.ticket_left_out),
    Mutation("all lanes of a link have the same secrets", SEALED, sealing.lane_left_out),
    Mutation("both directions of a lane have the same secret", SEALED, sealing.directions_alike),
    Mutation("the lanes of a sealed link are in the clear", SEALED, sealing.lanes_in_the_clear),
    Mutation("the control connection of a sealed link is in the clear", SEALED, sealing.control_in_the_clear),
    Mutation("damage to a control connection is not heeded", SEALED, sealing.damage_unheeded),
)
