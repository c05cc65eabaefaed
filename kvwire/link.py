"""A link: one authenticated session between two nodes, its control connection and its lanes.

Drives the pure session (`kvwire.wire`): feed bytes, act on events, send what it has to say, mind its timer. Cells
never pass through here; they go from the engine's lanes straight into registered memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from kvwire import wire
from kvwire._ext.lanes import EngineLink
from kvwire.control import Stream
from kvwire.dialler import Dialler
from kvwire.driver import Driver
from kvwire.errors import Closed, KvwireError, LimitExceeded, NotAllowed, PolicyError, ProtocolError, SpecError
from kvwire.incoming import Incoming
from kvwire.journal import Journal
from kvwire.lanes import Lanes
from kvwire.outcomes import Questions
from kvwire.outgoing import Offer, Outgoing, check_source
from kvwire.pool import Slots
from kvwire.transfer import Transfer, check_timeout
from kvwire.types import Grant, Manifest

if TYPE_CHECKING:
    from kvwire._ext.lanes import LaneStats
    from kvwire.node import Node
    from kvwire.security import Peer


class Link(Driver):
    """Made by `Node.connect`, or by a node that is dialled; either side may offer transfers."""

    def __init__(self, node: Node, session: wire.Session, peer: str, identity: Peer | None) -> None:
        super().__init__(session, peer)
        self.identity = identity
        """Who the peer is, by its certificate; None on a plain link."""
        self.engine_link = EngineLink(node.engine)
        self.journal = Journal(self)
        self._lanes = Lanes(self, self.engine_link)
        self._node = node
        self.config = node.config
        self._dialler: Dialler | None = None
        self._outgoing: dict[int, Outgoing] = {}
        self._incoming: dict[int, Incoming] = {}
        self._questions = Questions(self)
        self._offers: dict[int, Offer] = {}
        self._error: KvwireError | None = None
        self._greeted: asyncio.Future[None] = self.loop.create_future()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "suspended" if self.suspended else f"{self.lanes} lanes"
        return f"<Link {self.peer} {state}>"

    # --- what users see -------------------------------------------------------------------------------------------

    @property
    def lanes(self) -> int:
        """Lanes that are up."""
        return self.engine_link.lanes_open

    @property
    def lane_congestion(self) -> dict[int, str]:
        """Kernel congestion control of each lane, by lane number."""
        return dict(self._lanes.congestion)

    @property
    def tenant(self) -> str:
        """The peer's, by its certificate; empty on a plain link."""
        return "" if self.identity is None else self.identity.subject.tenant

    @property
    def busy(self) -> bool:
        """True while a transfer is on offer or under way."""
        return bool(self._offers or self._outgoing or self._incoming)

    async def wait_closed(self) -> KvwireError:
        """Wait until the link is closed or lost; says why."""
        await asyncio.shield(self._closed)
        assert self._error is not None
        return self._error

    def lane_stats(self) -> list[LaneStats]:
        """Totals of each lane that is up."""
        return self.engine_link.lane_stats()

    async def offer(
        self,
        manifest: Manifest,
        source: Mapping[str, Slots],
        *,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        klass: int = 1,
    ) -> Outgoing:
        """Offer a transfer, best before prefill starts; returns when the receiver has granted it.

        `source`: where each group's blocks lie, `{"group": pages.at(slots)}`. `timeout_s`: longest wait for the
        grant. `deadline_s`: longest life of the transfer. `klass`: 0 urgent, 1 demand, 2 background.
        Raises SpecError, PlacementError, PolicyError, DuplicateTransfer, LimitExceeded before anything is sent;
        OfferRefused, ModelMismatch, DeadlineExceeded or LinkLost afterwards.
        """
        await self._greeting()
        check_source(manifest, source)
        try:
            self._node._guard.check_sending(self.identity, manifest)
        except PolicyError as error:
            self.journal.refused(0, "out", str(error))
            raise
        config = self.config
        transfer = self._session.offer(
            time.monotonic(),
            manifest,
            timeout_s=config.offer_timeout_s if timeout_s is None else timeout_s,
            deadline_s=config.transfer_timeout_s if deadline_s is None else deadline_s,
            klass=klass,
        )
        future: asyncio.Future[Outgoing] = self.loop.create_future()
        # Only a deadline that somebody named orders what leaves first.
        deadline_ns = 0 if deadline_s is None else time.monotonic_ns() + int(deadline_s * 1e9)
        offer = self._offers[transfer] = Offer(transfer, manifest, source, klass, deadline_ns, future)
        self.journal.offered(transfer, manifest, "out")
        self._pump()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().abort_nowait("the offering task was cancelled")
            elif self._offers.pop(offer.transfer, None) is not None and not self.closed:
                self.journal.given_up(offer.transfer, "out", Closed("the offering task was cancelled"))
                self._session.abort(time.monotonic(), offer.transfer, "cancelled", "the offering task was cancelled")
                self._pump()
            raise

    async def outcome_of(self, outgoing: Outgoing, *, timeout_s: float | None = None) -> str:
        """What became of a transfer whose link was lost for good, perhaps at the very end (`CommitUnknown`).

        To be asked over another link to the same receiver: "committed", "refused", "aborted", or "unknown" where the
        receiver has restarted or forgotten it; it remembers the latest 4096 transfers. DeadlineExceeded where no
        answer comes within `timeout_s` (`Config.offer_timeout_s`).
        """
        await self._greeting()
        seconds = self.config.offer_timeout_s if timeout_s is None else timeout_s
        check_timeout(seconds)
        if not isinstance(outgoing, Outgoing):
            raise SpecError(f"outgoing is {outgoing!r:.80}; expected what an offer of this node returned")
        return await self._questions.ask(outgoing, seconds)

    async def close(self) -> None:
        """Close the link. Transfers under way end with an error; waits for local workers only."""
        if not self._closed.done():
            self._session.close(time.monotonic(), "closed")
            self._shut(Closed("the link was closed"))
        await self._finish_tasks()

    async def __aenter__(self) -> Link:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- transfers ------------------------------------------------------------------------------------------------

    def _granted(self, transfer: int, grant: Grant) -> None:
        offer, again = self._offers.get(transfer), self._outgoing.get(transfer)
        try:
            if again is not None:
                self._node._unwatch(again._handle)
                again._grant_again(grant)
                self._node._watch(again._handle, again._engine_changed)
                return
            if offer is None:  # the offering task was cancelled meanwhile
                return
            outgoing = Outgoing(self, offer, grant)
        except KvwireError as error:
            with contextlib.suppress(Closed):  # the peer may have said good-bye in the same breath
                self._session.abort(time.monotonic(), transfer, "failed", str(error))
            self._fail_transfer(transfer, error)
            return
        del self._offers[transfer]
        self._outgoing[transfer] = outgoing
        self.journal.note("grant", transfer=transfer, direction="out", bytes=outgoing._bytes)
        self._node._watch(outgoing._handle, outgoing._engine_changed)
        if offer.granted.cancelled():
            outgoing.abort_nowait("the offering task was cancelled")
        else:
            offer.granted.set_result(outgoing)

    def _start_over(self, again: Mapping[int, int]) -> None:
        """The peer has restarted: transfers to it have new ids, and wait to be granted once more."""
        offers, self._offers = self._offers, {}
        outgoing, self._outgoing = self._outgoing, {}
        for before, transfer in again.items():
            if before in offers:
                self._offers[transfer] = offers[before]
                offers[before].transfer = transfer
            elif before in outgoing:
                self._outgoing[transfer] = outgoing[before]
                outgoing[before].transfer_id = transfer

    def _fail_transfer(self, transfer: int, error: KvwireError) -> None:
        """It has ended for a reason that came from elsewhere, granted or not."""
        offer = self._offers.pop(transfer, None)
        if offer is not None:
            self.journal.given_up(transfer, "out", error)
            if not offer.granted.done():
                offer.granted.set_exception(error)
        under_way = self._outgoing.get(transfer) or self._incoming.get(transfer)
        if under_way is not None:
            under_way._fail(error)

    def _send_grant(self, incoming: Incoming, grant: Grant) -> None:
        self._session.grant(time.monotonic(), incoming.transfer_id, grant)
        self._node._guard.granted(self.identity, incoming)
        self.journal.note("grant", transfer=incoming.transfer_id, direction="in", bytes=incoming._bytes)
        self._node._watch(incoming._handle, incoming._engine_changed)
        self._pump()

    def _send_refuse(self, incoming: Incoming, reason: str) -> None:
        if not self.closed:
            self._session.refuse(time.monotonic(), incoming.transfer_id, "refused", reason)
            self._pump()

    def _send_abort(self, transfer: Transfer, reason: str) -> None:
        if not self.closed and self._forget(transfer):
            with contextlib.suppress(Closed):
                self._session.abort(time.monotonic(), transfer.transfer_id, "aborted", str(reason))
                self._pump()

    def _forget(self, transfer: Transfer) -> bool:
        number = transfer.transfer_id
        return (self._outgoing.pop(number, None) or self._incoming.pop(number, None)) is not None

    def _transfer_over(self, transfer: Transfer) -> None:
        """The transfer has ended on this side, however; a commit needs no word from the control plane."""
        if transfer._handle is not None:
            self._node._unwatch(transfer._handle)
        if isinstance(transfer, Incoming):
            self._node._guard.over(self.identity, transfer)
        self.journal.ended(transfer, "in" if isinstance(transfer, Incoming) else "out")
        if self._forget(transfer) and not self.closed and transfer.state == "committed":
            self._session.transfer_done(transfer.transfer_id)

    # --- lanes ----------------------------------------------------------------------------------------------------

    def _engine_changed(self) -> None:
        """A lane has ended, or has gone on to its next key."""
        self._lanes.take_ended()
        self._lanes.note_keys()
        self._pump()

    # --- the control connection -----------------------------------------------------------------------------------

    def _start(self, stream: Stream, dialler: Dialler | None, heard: bytes = b"") -> None:
        """The first connection; `heard`: what the peer has said on it already."""
        self._dialler = dialler
        self._node._watch(self.engine_link, self._engine_changed)
        self._connect(stream, heard)

    def _suspend(self) -> None:
        """The connection is lost: end what depends on it, keep the transfers."""
        self._hang_up()
        self.engine_link.suspend()
        self._lanes.take_ended()
        for transfer in [*self._outgoing.values(), *self._incoming.values()]:
            transfer._engine_changed()  # from here on the engine ends none by itself
        self._lanes.congestion.clear()
        if self._dialler is not None and not self.closed:
            self._dialler.suspended()

    def _on_event(self, event: wire.Event) -> None:
        match event:
            case wire.HelloDone():
                if not self._greeted.done():
                    self._greeted.set_result(None)
                self.journal.note("link_up", mode="plain" if self.identity is None else "sealed")
                if self._dialler is not None:
                    self._dialler.want()
            case wire.Ticket():
                if self._dialler is not None:
                    self._dialler.take(event)
            case wire.LanesWanted():
                self._lanes.issue_tickets(event.count)
            case wire.Offered():
                self._offered(event)
            case wire.Declined():
                self.journal.refused(event.transfer, "in", event.reason)
            case wire.Granted():
                self._granted(event.transfer, event.grant)
            case wire.Refused() | wire.OfferTimedOut() | wire.TransferTimedOut() | wire.Dropped():
                self._fail_transfer(event.transfer, event.error)
            case wire.Aborted():
                self._fail_transfer(event.transfer, event.error)
                self._session.drained(time.monotonic(), event.transfer)
            case wire.Suspended():
                self._suspend()
            case wire.Resumed():
                self.journal.note("link_resumed")
                if self._dialler is not None:
                    self._dialler.resumed()
            case wire.Restarted():
                self._lanes.faults.clear()
                self._start_over(event.again)
                if self._dialler is not None:
                    self._dialler.resumed()
            case wire.LedgerWanted():
                self._send_ledger(event.transfer)
            case wire.LedgerCame():
                self._resume_transfer(event.transfer, event.landed)
            case wire.CommitLearnt():
                self._resume_transfer(event.transfer, None)
            case wire.Asked():
                outcome = self._node._outcome(self.tenant, event.link_id, event.transfer)
                self._session.answer(event.link_id, event.transfer, outcome)
            case wire.Answered():
                self._questions.answered(event.link_id, event.transfer, event.outcome)
            case wire.Closed():
                self._lose(event.error)
            case wire.LaneClosed():
                self._lanes.close(event.lane, event.incarnation)
            case _:
                pass  # DRAINED tells nothing that the engine does not know by itself

    def _send_ledger(self, transfer: int) -> None:
        incoming = self._incoming.get(transfer)
        handle = None if incoming is None else incoming._handle
        now = time.monotonic()
        if incoming is None or handle is None or handle.state == "committed":
            self._session.ledger(now, transfer, None)
            return
        try:
            self._session.ledger(now, transfer, handle.landed())
        except LimitExceeded as error:
            self._session.abort(now, transfer, "failed", str(error))
            incoming._fail(error)

    def _resume_transfer(self, transfer: int, landed: bytes | None) -> None:
        """The peer has said what landed of a transfer of ours; None: it is committed there."""
        outgoing = self._outgoing.get(transfer)
        if outgoing is not None:
            try:
                outgoing._handle.commit() if landed is None else outgoing._handle.resume(landed)
            except ProtocolError as error:
                self._lose(error)

    def _offered(self, event: wire.Offered) -> None:
        """An offer of the peer's, if it may make it. Who may not is not told why."""
        try:
            self._node._guard.admit_offer(self.identity, event.manifest)
        except NotAllowed as error:
            self.journal.refused(event.transfer, "in", str(error))
            with contextlib.suppress(Closed):  # it may have been given up in the same breath
                self._session.refuse(time.monotonic(), event.transfer, "refused", "")
            return
        self._incoming[event.transfer] = incoming = Incoming(self, event.transfer, event.manifest)
        self.journal.offered(event.transfer, event.manifest, "in")
        self._node._offered(incoming)

    # --- who the peer is ------------------------------------------------------------------------------------------

    def _is_of(self, who: Peer | None) -> bool:
        """Whether that is the peer of this link. Its certificate may be another one by now."""
        return (who and who.subject) == (self.identity and self.identity.subject)

    async def _greeting(self) -> None:
        """Wait until the peer has greeted: whoever dials may call a sealed link its own before it is heard here."""
        self._check_open()
        await asyncio.shield(self._greeted)

    # --- the end --------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed:
            raise Closed(f"the link to {self.peer} is closed" + (f": {self._error}" if self._error else ""))

    def _lose(self, error: KvwireError) -> None:
        """The link has failed: every transfer on it ends with this error, on both sides."""
        if not self.closed:
            self._session.close(time.monotonic(), str(error))  # nothing where it was the session that ended
            self._shut(error)

    def _shut(self, error: KvwireError) -> None:
        self._error = error
        self._closed.set_result(None)
        event = "link_down" if self._greeted.done() else "link_refused"
        self.journal.note(event, error=type(error).__name__, reason=str(error))
        self._stop()
        if self._dialler is not None:
            self._dialler.stop()
        futures: list[asyncio.Future[Any]] = [self._greeted, *(offer.granted for offer in self._offers.values())]
        for future in futures:
            if not future.done():
                future.set_exception(copy(error))
                future.exception()  # nobody may be waiting
        self._questions.fail(error)
        for transfer in self._offers:
            self.journal.given_up(transfer, "out", error)
        self._offers.clear()
        self._node._outcomes.keep(self)
        for under_way in [*self._outgoing.values(), *self._incoming.values()]:
            under_way._fail(error)
        self._outgoing.clear()
        self._incoming.clear()
        self.engine_link.close()
        self._node._unwatch(self.engine_link)
        self._node._link_gone(self)

    def outcomes(self) -> dict[int, str]:
        """What became of the peer's transfers that are over."""
        found = self._session.outcomes()
        for transfer, incoming in self._incoming.items():
            if incoming.state == "committed" or self.closed:
                found[transfer] = "committed" if incoming.state == "committed" else "aborted"
        return found
