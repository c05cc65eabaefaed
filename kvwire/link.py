"""A link: one authenticated session between two nodes, its control connection and its lanes.

Drives the pure session (`kvwire.wire`): feed bytes, act on events, send what it has to say, mind its timer. Cells
never pass through here; they go from the engine's lanes straight into registered memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, Literal

from kvwire import wire
from kvwire._ext.lanes import EngineLink
from kvwire.codecs.choice import choose
from kvwire.codings import tags
from kvwire.compression import Compression
from kvwire.congestion import LanePlanner, check_budget
from kvwire.control import Stream
from kvwire.dialler import Dialler
from kvwire.driver import Driver
from kvwire.egress import Egress
from kvwire.errors import Closed, KvwireError, PolicyError, SpecError
from kvwire.exchange import Exchange
from kvwire.journal import Journal
from kvwire.lanes import Lanes
from kvwire.outcomes import Questions
from kvwire.outgoing import Offer, Outgoing, check_source, due_ns
from kvwire.pool import Slots
from kvwire.telemetry import Callback, EgressReport, Remove, Reports
from kvwire.transfer import check_timeout
from kvwire.types import Manifest

if TYPE_CHECKING:
    from kvwire._ext.lanes import LaneStats
    from kvwire.node import Node
    from kvwire.security import Peer


class Link(Driver):
    """Made by `Node.connect`, or by a node that is dialled; either side may offer transfers."""

    def __init__(
        self, node: Node, session: wire.Session, peer: str, identity: Peer | None, planner: LanePlanner
    ) -> None:
        super().__init__(session, peer)
        self.identity = identity
        """Who the peer is, by its certificate; None on a plain link."""
        self.engine_link = EngineLink(node.engine)
        self.journal = Journal(self)
        self._lanes = Lanes(self, self.engine_link)
        self._node = node
        self.config = node.config
        self._dialler: Dialler | None = None
        self._exchange = Exchange(self)
        self._compression = Compression(self.engine_link, node.config.workers, node.cores)
        self._egress = Egress(self, self.engine_link, planner)
        self._questions = Questions(self)
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
        return self._exchange.busy

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
        late: Literal["refuse", "send"] = "refuse",
        compression: str | Mapping[str, str] | None = None,
    ) -> Outgoing:
        """Offer a transfer, best before prefill starts; returns when the receiver has granted it.

        `source`: where each group's blocks lie, `{"group": pages.at(slots)}`. `timeout_s`: longest wait for the
        grant. `deadline_s`: longest time from there to the receipt; of one class, what has the earliest deadline leaves
        first. `klass`: 0 urgent, 1 demand, 2 background; a higher one leaves first, and none starves. `late`: what
        becomes of a deadline that has passed (`deadline_s` of 0 or less): DeadlineExceeded, or it is sent, before all
        others of its class. `compression`: what its blocks go through, in the place of `Config.compression`.
        Raises SpecError, PlacementError, PolicyError, ConfigError and CodecMismatch (of `compression`),
        DuplicateTransfer, LimitExceeded, DeadlineExceeded (of `late`) or Closed before anything is sent;
        OfferRefused, ModelMismatch, PeerAborted, DeadlineExceeded, LinkLost or Closed afterwards.
        """
        await self._greeting()
        check_source(manifest, source)
        source = dict(source)  # it is asked again with each grant, and is the caller's to change meanwhile
        try:
            self._node._guard.check_sending(self.identity, manifest)
        except PolicyError as error:
            self.journal.refused(0, "out", str(error))
            raise
        config, peer = self.config, self._session.peer
        assert peer is not None
        if compression is None:
            compression = config.compression
        choices = choose(compression, (group.spec for group in manifest.groups), wire.taken_by(peer))
        # Only a deadline that somebody named orders what leaves first.
        deadline_ns = due_ns(deadline_s, late)
        if deadline_s is None or deadline_s <= 0:
            deadline_s = config.transfer_timeout_s
        transfer = self._session.offer(
            time.monotonic(),
            manifest,
            timeout_s=config.offer_timeout_s if timeout_s is None else timeout_s,
            deadline_s=deadline_s,
            klass=klass,
            codecs=tags(choices),
        )
        future: asyncio.Future[Outgoing] = self.loop.create_future()
        offer = self._exchange.offers[transfer] = Offer(transfer, manifest, source, klass, deadline_ns, choices, future)
        self.journal.offered(transfer, manifest, "out", choices)
        self._pump()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().abort_nowait("the offering task was cancelled")
            elif self._exchange.offers.pop(offer.transfer, None) is not None and not self.closed:
                self.journal.given_up(offer.transfer, "out", Closed("the offering task was cancelled"))
                self._session.abort(time.monotonic(), offer.transfer, "cancelled", "the offering task was cancelled")
                self._pump()
            raise

    async def outcome_of(self, outgoing: Outgoing, *, timeout_s: float | None = None) -> str:
        """What became of a transfer whose link was lost for good, perhaps at the very end (`CommitUnknown`).

        To be asked over another link to the same receiver: "committed", "refused", "aborted", or "unknown" where the
        receiver has restarted or forgotten it; it remembers a tenant's latest 4096 transfers. DeadlineExceeded where no
        answer comes within `timeout_s` (`Config.offer_timeout_s`).
        """
        await self._greeting()
        seconds = self.config.offer_timeout_s if timeout_s is None else timeout_s
        check_timeout(seconds)
        if not isinstance(outgoing, Outgoing):
            raise SpecError(f"outgoing is {outgoing!r:.80}; expected what an offer of this node returned")
        return await self._questions.ask(outgoing, seconds)

    def set_budget(self, max_bps: float, *, expires_in_s: float, min_bps: float | None = None) -> None:
        """What a scheduler allows this link to send: `max_bps` bits per second for `expires_in_s` from now, and from
        then on `min_bps` (None: 1 Mbit/s, or `max_bps`), until a new budget comes. Counts within 100 ms. ConfigError
        for rates or times that are none.
        """
        self._check_open()
        self._egress.set_budget(check_budget(max_bps, min_bps, expires_in_s))

    def telemetry(self, interval_s: float = 1.0) -> Reports:
        """`async for report in link.telemetry()`: reports of what leaves here until the link ends. 16 wait at most: who
        is slow misses the oldest. ConfigError for an interval that is not 0.1 s to an hour.
        """
        reports = self._egress.telemetry.reports(interval_s)
        self._egress.wake()
        return reports

    @property
    def report(self) -> EgressReport | None:
        """The latest report of a second; None before the first. It grows old while the link is suspended, or while it
        sends nothing and nobody listens. From any thread.
        """
        return self._egress.telemetry.latest

    def on_report(self, callback: Callback, interval_s: float = 1.0) -> Remove:
        """Have each report given to `callback`, on the loop; returns what ends that. One that raises or is slow is
        counted, and dropped after ten failures in a row. ConfigError as for `telemetry`.
        """
        remove = self._egress.telemetry.on_report(callback, interval_s)
        self._egress.wake()
        return remove

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

    # --- lanes ----------------------------------------------------------------------------------------------------

    def _engine_changed(self) -> None:
        """A lane has ended, or has gone on to its next key; or all of them have been looked at."""
        stats = self.engine_link.lane_stats()
        self._egress.engine_changed(stats)
        self._lanes.take_ended()
        self._lanes.note_keys(stats)
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
        self._exchange.engine_changed()
        self._egress.suspended()
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
                self._egress.greeted()
            case wire.Ticket():
                if self._dialler is not None:
                    self._dialler.take(event)
            case wire.LanesWanted():
                if self._dialler is None:
                    self._lanes.issue_tickets(event.count)
                else:
                    self._dialler.invite(event.count)
            case wire.Offered():
                self._exchange.offered(event)
            case wire.Declined():
                self.journal.refused(event.transfer, "in", event.reason)
            case wire.Granted():
                self._exchange.granted(event)
            case wire.Refused() | wire.OfferTimedOut() | wire.TransferTimedOut() | wire.Dropped():
                self._exchange.fail(event.transfer, event.error)
            case wire.Aborted():
                self._exchange.fail(event.transfer, event.error)
                self._session.drained(time.monotonic(), event.transfer)
            case wire.Suspended():
                self._suspend()
            case wire.Resumed():
                self.journal.note("link_resumed")
                if self._dialler is not None:
                    self._dialler.resumed()
                self._egress.resumed()
            case wire.Restarted():
                self._lanes.faults.clear()
                self._exchange.start_over(event.again)
                if self._dialler is not None:
                    self._dialler.resumed()
                self._egress.resumed()
            case wire.LedgerWanted():
                self._exchange.send_ledger(event.transfer)
            case wire.LedgerCame():
                self._exchange.resume(event.transfer, event.landed)
            case wire.CommitLearnt():
                self._exchange.resume(event.transfer, None)
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
        futures: list[asyncio.Future[Any]] = [
            self._greeted,
            *(offer.granted for offer in self._exchange.offers.values()),
        ]
        for future in futures:
            if not future.done():
                future.set_exception(copy(error))
                future.exception()  # nobody may be waiting
        self._questions.fail(error)
        self._exchange.end(error)
        self._egress.stop()
        self.engine_link.close()
        self._lanes.take_ended()  # their buffers go now, and not with the last who still holds the link
        self._node._unwatch(self.engine_link)
        self._node._link_gone(self)
