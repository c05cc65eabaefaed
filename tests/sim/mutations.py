"""Deliberately broken builds: each breaks one promise, and the simulation has to see it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

from kvwire import dialler, link, node, outgoing, transfer
from kvwire._ext import frame
from kvwire.errors import LinkLost
from kvwire.wire import schema
from kvwire.wire import session as wire_session
from kvwire.wire import transfers as wire_transfers
from tests.sim import lane
from tests.sim.engine import SimEngineLink
from tests.sim.history import BOUNDED, EXACT, FENCED, LASTING, ONCE, STRANGERS, TIMED, WHOLE
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

    return [mock.patch.object(lane, "frame", SimpleNamespace(check=check, encode=frame.encode, TYPES=frame.TYPES))]


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
    return [mock.patch.object(link.Link, "_close_lane", _nothing)]


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
    return [mock.patch.object(node, "_close_if_cancelled", _nothing)]


# --- 7: strangers ---------------------------------------------------------------------------------------------


def _patience_with_strangers() -> list[Any]:
    async def greet(self: Any, sock: Any, peer: str) -> None:
        try:
            await self._identify(sock, peer)
        except Exception:
            sock.close()
        except BaseException:
            sock.close()
            raise
        finally:
            self._handshakes.release()

    return [mock.patch.object(node.Node, "_greet", greet)]


def _any_number_of_strangers() -> list[Any]:
    real = asyncio.Semaphore
    return [mock.patch.object(asyncio, "Semaphore", lambda value: real(1000 * value))]


# --- 8: deadlines are durations, and a source is leased to the end --------------------------------------------


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
)
