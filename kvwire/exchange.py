"""The transfers of a link, from offer to end: what the session says of them and what the engine does with them.

Beside `Link`, which has the connection, as in `kvwire.wire` `Exchange` is beside `Session`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvwire import wire
from kvwire.errors import Closed, KvwireError, LimitExceeded, NotAllowed, ProtocolError
from kvwire.incoming import Incoming
from kvwire.outgoing import Offer, Outgoing
from kvwire.transfer import Transfer
from kvwire.types import Grant

if TYPE_CHECKING:
    from kvwire.link import Link


class Exchange:
    """Of one link, by transfer id."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.offers: dict[int, Offer] = {}
        self.outgoing: dict[int, Outgoing] = {}
        self.incoming: dict[int, Incoming] = {}

    @property
    def busy(self) -> bool:
        """True while a transfer is on offer or under way."""
        return bool(self.offers or self.outgoing or self.incoming)

    def engine_changed(self) -> None:
        """The link is suspended: from here on the engine ends no transfer by itself."""
        for transfer in [*self.outgoing.values(), *self.incoming.values()]:
            transfer._engine_changed()

    def end(self, error: KvwireError) -> None:
        """The link has ended: so have its transfers, except for what the engine committed before."""
        for transfer in self.offers:
            self._link.journal.given_up(transfer, "out", error)
        self.offers.clear()
        self._link._node._outcomes.keep(self._link)
        for under_way in [*self.outgoing.values(), *self.incoming.values()]:
            under_way._fail(error)
        self.outgoing.clear()
        self.incoming.clear()

    def granted(self, event: wire.Granted) -> None:
        transfer, grant = event.transfer, event.grant
        self._link._compression.peer_decodes(event.decode_Bps)
        offer, again = self.offers.get(transfer), self.outgoing.get(transfer)
        try:
            if again is not None:
                self._link._node._unwatch(again._handle)
                again._grant_again(grant, event.codecs)
                self._link._node._watch(again._handle, again._engine_changed)
                return
            if offer is None:  # the offering task was cancelled meanwhile
                return
            outgoing = Outgoing(self._link, offer, grant, event.codecs)
        except KvwireError as error:
            with contextlib.suppress(Closed):  # the peer may have said good-bye in the same breath
                self._link._session.abort(time.monotonic(), transfer, "failed", str(error))
            self.fail(transfer, error)
            return
        del self.offers[transfer]
        self.outgoing[transfer] = outgoing
        self._link.journal.note("grant", transfer=transfer, direction="out", bytes=outgoing._bytes)
        self._link._node._watch(outgoing._handle, outgoing._engine_changed)
        self._link._egress.wake()
        if offer.granted.cancelled():
            outgoing.abort_nowait("the offering task was cancelled")
        else:
            offer.granted.set_result(outgoing)

    def start_over(self, again: Mapping[int, int]) -> None:
        """The peer has restarted: transfers to it have new ids, and wait to be granted once more."""
        offers, self.offers = self.offers, {}
        outgoing, self.outgoing = self.outgoing, {}
        for before, transfer in again.items():
            if before in offers:
                self.offers[transfer] = offers[before]
                offers[before].transfer = transfer
            elif before in outgoing:
                self.outgoing[transfer] = outgoing[before]
                outgoing[before].transfer_id = transfer

    def fail(self, transfer: int, error: KvwireError) -> None:
        """It has ended for a reason that came from elsewhere, granted or not."""
        offer = self.offers.pop(transfer, None)
        if offer is not None:
            self._link.journal.given_up(transfer, "out", error)
            if not offer.granted.done():
                offer.granted.set_exception(error)
        under_way = self.outgoing.get(transfer) or self.incoming.get(transfer)
        if under_way is not None:
            under_way._fail(error)

    def send_grant(self, incoming: Incoming, grant: Grant) -> None:
        decode_Bps = self._link._compression.decode_Bps
        self._link._session.grant(time.monotonic(), incoming.transfer_id, grant, decode_Bps=decode_Bps)
        self._link._node._guard.granted(self._link.identity, incoming)
        self._link.journal.note("grant", transfer=incoming.transfer_id, direction="in", bytes=incoming._bytes)
        self._link._node._watch(incoming._handle, incoming._engine_changed)
        self._link._pump()

    def send_refuse(self, incoming: Incoming, reason: str) -> None:
        if not self._link.closed:
            self._link._session.refuse(time.monotonic(), incoming.transfer_id, "refused", reason)
            self._link._pump()

    def send_abort(self, transfer: Transfer, reason: str) -> None:
        if not self._link.closed and self._forget(transfer):
            with contextlib.suppress(Closed):
                self._link._session.abort(time.monotonic(), transfer.transfer_id, "aborted", str(reason))
                self._link._pump()

    def _forget(self, transfer: Transfer) -> bool:
        number = transfer.transfer_id
        return (self.outgoing.pop(number, None) or self.incoming.pop(number, None)) is not None

    def over(self, transfer: Transfer) -> None:
        """The transfer has ended on this side, however; a commit needs no word from the control plane."""
        if transfer._handle is not None:
            self._link._node._unwatch(transfer._handle)
        if isinstance(transfer, Outgoing):
            transfer._tell(self._link._egress)
        if isinstance(transfer, Incoming):
            self._link._node._guard.over(self._link.identity, transfer)
        self._link.journal.ended(transfer, "in" if isinstance(transfer, Incoming) else "out")
        if self._forget(transfer) and not self._link.closed and transfer.state == "committed":
            self._link._session.transfer_done(transfer.transfer_id)

    def send_ledger(self, transfer: int) -> None:
        incoming = self.incoming.get(transfer)
        handle = None if incoming is None else incoming._handle
        now = time.monotonic()
        if incoming is None or handle is None or handle.state == "committed":
            self._link._session.ledger(now, transfer, None)
            return
        try:
            self._link._session.ledger(now, transfer, handle.landed())
        except LimitExceeded as error:
            self._link._session.abort(now, transfer, "failed", str(error))
            incoming._fail(error)

    def resume(self, transfer: int, landed: bytes | None) -> None:
        """The peer has said what landed of a transfer of ours; None: it is committed there."""
        outgoing = self.outgoing.get(transfer)
        if outgoing is not None:
            try:
                outgoing._handle.commit() if landed is None else outgoing._handle.resume(landed)
            except ProtocolError as error:
                self._link._lose(error)

    def offered(self, event: wire.Offered) -> None:
        """An offer of the peer's, if it may make it. Who may not is not told why."""
        try:
            self._link._node._guard.admit_offer(self._link.identity, event.manifest)
        except NotAllowed as error:
            self._link.journal.refused(event.transfer, "in", str(error))
            with contextlib.suppress(Closed):  # it may have been given up in the same breath
                self._link._session.refuse(time.monotonic(), event.transfer, "refused", "")
            return
        try:
            incoming = Incoming(self._link, event)
        except ProtocolError as error:
            self._link._lose(error)
            return
        self.incoming[event.transfer] = incoming
        self._link.journal.offered(event.transfer, event.manifest, "in", incoming._choices)
        self._link._node._offered(incoming)

    def outcomes(self) -> dict[int, str]:
        """What became of the peer's transfers that are over."""
        found = self._link._session.outcomes()
        for transfer, incoming in self.incoming.items():
            if incoming.state == "committed" or self._link.closed:
                found[transfer] = "committed" if incoming.state == "committed" else "aborted"
        return found
