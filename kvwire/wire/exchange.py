"""Transfers over a session: offers, grants, refusals, aborts, and what is told when a lost connection is back.

The half of a session that knows transfers; `session.Session` is the other one and has the connection.
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from kvwire.config import Config
from kvwire.errors import (
    Closed,
    DeadlineExceeded,
    DuplicateTransfer,
    KvwireError,
    LimitExceeded,
    LinkLost,
    ModelMismatch,
    OfferRefused,
    PeerAborted,
    PlacementError,
    ProtocolError,
    SpecError,
)
from kvwire.types import Grant, Manifest
from kvwire.wire import events, schema, states
from kvwire.wire.codecs import Codecs, CodecTag, check_ids
from kvwire.wire.manifest import check_grant, model_misfit, pack_runs, unpack_manifest, unpack_runs
from kvwire.wire.offers import encode_offer, most_alive
from kvwire.wire.schema import clip
from kvwire.wire.states import Transfer
from kvwire.wire.transfers import Entry, Transfers, ledger_bytes

LEAST_S = 0.001
"""What is left of a deadline at least, of which a timer has not heard yet."""
LEDGER_MORE_BYTES = 64
"""What a LEDGER takes more than its GRANT, beside the bits: the names and lengths of two fields, and some to spare."""


class Exchange(ABC):
    """The transfers of one side. `dialler`: its transfer ids are odd, the acceptor's even. `codecs`: what it takes."""

    def __init__(self, config: Config, *, dialler: bool, frank: bool, codecs: Sequence[CodecTag]) -> None:
        self._frank = frank
        self._codecs = codecs
        self.peer: schema.Hello | None = None
        self.state = states.Session.GREETING
        self._config = config
        self._events: deque[events.Event] = deque()
        self._outgoing = Transfers(states.OUTGOING, config.max_transfers)
        self._incoming = Transfers(states.INCOMING, config.max_transfers)
        self._dialler = dialler
        self._next_id = 1 if dialler else 2
        # On this connection:
        self._resumed: set[int] = set()  # of our own, those the peer still has to answer for
        self._asked: set[int] = set()  # of the peer's, those that wait for `ledger`

    def offer(
        self,
        now: float,
        manifest: Manifest,
        *,
        timeout_s: float,
        deadline_s: float,
        klass: int,
        codecs: Codecs = (),
    ) -> int:
        """Offer a transfer; returns its id. What the peer does not take of the `codecs` is left out, now and whenever
        it has restarted. SpecError, DuplicateTransfer or LimitExceeded before anything is sent.
        """
        peer = self._open()
        for name, seconds in (("timeout_s", timeout_s), ("deadline_s", deadline_s)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 7 * 86400:
                raise SpecError(f"{name} is {seconds!r}; expected seconds, above 0 and at most a week")
        if isinstance(klass, bool) or not isinstance(klass, int) or not 0 <= klass <= 2:
            raise SpecError(f"klass is {klass!r}; expected 0 (urgent), 1 (demand) or 2 (background)")
        alive = self._outgoing.alive()
        if any(entry.manifest.request_id == manifest.request_id for entry in alive):
            raise DuplicateTransfer(f"request {manifest.request_id!r} is under way on this link")
        # A RESUME has to name them all. Those that were given up and await the peer's DRAINED count less: both sides
        # allow for as many again.
        if len(alive) >= most_alive(peer) or len(self._outgoing) >= 2 * peer.max_transfers:
            raise LimitExceeded(f"{len(self._outgoing)} transfers are under way, and the peer takes no more at once")
        transfer = self._next_id
        entry = Entry(manifest, now + timeout_s, deadline_s, klass, codecs=codecs)
        self._queue_offer(encode_offer(peer, transfer, entry, deadline_s))
        self._next_id += 2
        self._outgoing.add(transfer, entry)
        return transfer

    def grant(self, now: float, transfer: int, grant: Grant, *, decode_Bps: int = 0) -> None:
        """Accept an offer. `decode_Bps`: plain bytes per second that this side decodes; 0: not known. PlacementError
        where the grant does not fit it; LimitExceeded where it, or its ledger should the link be resumed, is more than
        the peer reads at once; Closed where it is over."""
        peer = self._open()
        entry = self._incoming.get(transfer)
        if entry is None:
            raise Closed(f"transfer {transfer} is over")
        check_grant(entry.manifest, grant)
        data = schema.encode(schema.GrantMessage(transfer, pack_runs(grant), grant.cell_bytes, decode_Bps))
        if len(data) - schema.LENGTH_BYTES > peer.max_message_bytes:
            raise LimitExceeded(f"the grant takes {len(data)} bytes", hint="take fewer, longer runs of blocks")
        ledger = len(data) + LEDGER_MORE_BYTES + ledger_bytes(entry.manifest, grant)
        if ledger > peer.max_message_bytes:
            raise LimitExceeded(
                f"the ledger of what is granted may take {ledger} bytes; the peer's limit is {peer.max_message_bytes}",
                hint="take larger cells or fewer blocks; or raise Config.max_message_bytes at the sender",
            )
        self._incoming.step(now, transfer, "grant")
        entry.grant = grant
        self._queue(data)

    def refuse(self, now: float, transfer: int, code: str, reason: str) -> None:
        """Decline an offer. Closed where it is over, granted or given up."""
        self._open()
        self._incoming.step(now, transfer, "refuse")
        self._send(schema.Refuse(transfer, code, self._told(reason)))

    def abort(self, now: float, transfer: int, code: str, reason: str) -> None:
        """Give a transfer up, whichever side offered it. Nothing happens if it is over or given up already."""
        table = self._table(transfer)
        if table.may(transfer, "abort"):
            table.step(now, transfer, "abort")
            self._send(schema.Abort(transfer, code, self._told(reason)))
            if self.state is not states.Session.OPEN:  # nobody is there to drain; RESUME and LEDGER will tell
                table.step(now, transfer, "lose")

    def drained(self, now: float, transfer: int) -> None:
        """Local memory is quiet after an `Aborted` event; once for each. Nothing happens if it is over: the connection
        that the peer waited at is gone."""
        table = self._table(transfer)
        if table.get(transfer) is not None:
            table.step(now, transfer, "drained")
            self._send(schema.Drained(transfer))

    def transfer_done(self, transfer: int) -> None:
        """The data plane has committed a transfer. Nothing happens if it is over."""
        table = self._table(transfer)
        if table.get(transfer) is not None:
            table.step(math.inf, transfer, "done")  # leads to no state that is timed

    def ledger(self, now: float, transfer: int, landed: bytes | None) -> None:
        """Answer a `LedgerWanted`: what has landed, a bit a cell; None: the transfer is committed here.

        LimitExceeded where it is more than the peer reads at once. No word of it where the connection is gone: the
        next one asks again, if there is one.
        """
        entry = self._incoming.get(transfer)
        if landed is None:
            self.transfer_done(transfer)
        if self.state is not states.Session.OPEN or transfer not in self._asked:
            return
        peer = self._open()
        self._asked.discard(transfer)
        if entry is None or entry.grant is None or landed is None:
            self._send_outcome(transfer)
            return
        grant = entry.grant
        data = schema.encode(schema.Ledger(transfer, "active", pack_runs(grant), grant.cell_bytes, landed))
        if len(data) - schema.LENGTH_BYTES > peer.max_message_bytes:
            raise LimitExceeded(f"the ledger of transfer {transfer} takes {len(data)} bytes")
        self._queue(data, answer=False)

    def ask(self, link_id: bytes, transfer: int) -> None:
        """Ask what became of a transfer; `Answered` follows, unless the connection is lost before."""
        self._open()
        self._send(schema.Ask(link_id, transfer))

    def answer(self, link_id: bytes, transfer: int, outcome: str) -> None:
        """Answer an `Asked`. Nothing happens if the connection is gone."""
        self._send(schema.Answer(link_id, transfer, outcome))

    def outcomes(self) -> dict[int, str]:
        """What became of the peer's latest transfers that are over."""
        return self._incoming.outcomes()

    # --- messages -------------------------------------------------------------------------------------------------

    def _on_offer(self, now: float, message: schema.Offer) -> None:
        if self._mine(message.transfer):
            raise ProtocolError(f"transfer id {message.transfer} belongs to the other side")
        if not self._incoming.is_new(message.transfer):
            newest = self._incoming.newest
            raise ProtocolError(f"transfer id {message.transfer} was used before; the newest is {newest}")
        manifest = unpack_manifest(message.manifest)
        check_ids(message.codecs, len(manifest.groups), self._codecs)
        refusal = self._refusal(manifest)
        if refusal is not None:
            self._incoming.refuse(message.transfer)
            code, reason = refusal
            self._send(schema.Refuse(message.transfer, code if self._frank else "refused", self._told(reason)))
            self._events.append(events.Declined(message.transfer, manifest, reason))
            return
        entry = Entry(manifest, now + message.deadline_s, message.deadline_s, message.klass)
        self._incoming.add(message.transfer, entry)
        self._events.append(events.Offered(message.transfer, manifest, message.klass, tuple(message.codecs)))

    def _refusal(self, manifest: Manifest) -> tuple[str, str] | None:
        """Code and reason where an offer is declined without asking anybody."""
        # Twice: a transfer that has committed here counts until this side's loop has seen it, which the sender
        # need not wait for.
        if len(self._incoming) >= 2 * self._config.max_transfers:
            return "busy", f"{len(self._incoming)} transfers are under way"
        misfit = model_misfit(manifest, self._config.models)
        return None if misfit is None else ("model", misfit)

    def _on_grant(self, now: float, message: schema.GrantMessage) -> None:
        self._check_mine(message.transfer, "grant")
        entry = self._outgoing.peer_step(now, message.transfer, "recv grant")
        if entry is None:
            return
        entry.grant = Grant(unpack_runs(message.runs), message.cell_bytes)
        try:
            check_grant(entry.manifest, entry.grant)
        except PlacementError as error:
            raise ProtocolError(f"the peer's grant does not fit the offer: {error}") from None
        if entry.state is Transfer.ACTIVE:  # else our abort is on its way
            granted = events.Granted(message.transfer, entry.grant, entry.named, message.decode_Bps)
            self._events.append(granted)

    def _on_refuse(self, now: float, message: schema.Refuse) -> None:
        self._check_mine(message.transfer, "refuse")
        given_up = not self._outgoing.may(message.transfer, "abort")
        if self._outgoing.peer_step(now, message.transfer, "recv refuse") is None:
            return
        if given_up:  # the peer has nothing of it: as good as DRAINED
            self._events.append(events.Drained(message.transfer))
            return
        error = ModelMismatch if message.code == "model" else OfferRefused
        text = message.reason or "the receiver does not want it"
        self._events.append(events.Refused(message.transfer, error(f"offer refused: {text}")))

    def _on_abort(self, now: float, message: schema.Abort) -> None:
        if self._table(message.transfer).peer_step(now, message.transfer, "recv abort") is None:
            self._send(schema.Drained(message.transfer))  # over here, and quiet
            return
        error: KvwireError
        if message.code == "deadline":
            error = DeadlineExceeded(f"the peer gave up: {message.reason}")
        else:
            error = PeerAborted(f"the peer aborted: {message.reason or message.code}")
        self._events.append(events.Aborted(message.transfer, error))

    # --- after a lost connection ----------------------------------------------------------------------------------

    def _lose_transfers(self, now: float) -> None:
        for table in (self._outgoing, self._incoming):
            table.lose(now)
        self._resumed.clear()
        self._asked.clear()

    def _send_resume(self) -> None:
        ids = self._outgoing.ids()
        self._resumed = set(ids)
        self._send(schema.Resume(struct.pack(f"<{len(ids)}Q", *ids)))

    def _on_resume(self, now: float, message: schema.Resume) -> None:
        """The peer's transfers that are under way there: those that only this side knows are over."""
        ids = [transfer for (transfer,) in struct.iter_unpack("<Q", message.transfers)]
        if ids != sorted(set(ids)) or not all(ids) or any(self._mine(transfer) for transfer in ids):
            raise ProtocolError("resume names transfers that are not the peer's, or not in order")
        if len(ids) > self._config.max_transfers:
            raise ProtocolError(f"resume names {len(ids)} transfers; at most {self._config.max_transfers} are allowed")
        named = set(ids)
        for transfer in self._incoming.ids():
            if transfer in named:
                continue
            given_up = not self._incoming.may(transfer, "abort")
            self._incoming.step(now, transfer, "recv over")
            error = PeerAborted("the peer gave it up while the link was down")
            self._events.append(events.Drained(transfer) if given_up else events.Dropped(transfer, error))
        self._incoming.under_way_there(ids)
        for transfer in ids:
            entry = self._incoming.get(transfer)
            if entry is not None and entry.state is Transfer.ACTIVE:
                self._asked.add(transfer)
                self._events.append(events.LedgerWanted(transfer))
            else:
                self._send_outcome(transfer)

    def _send_outcome(self, transfer: int) -> None:
        outcome = "offered" if self._incoming.get(transfer) is not None else self._incoming.outcome(transfer)
        self._queue(schema.encode(schema.Ledger(transfer, outcome, [], 0, b"")), answer=False)

    def _on_ledger(self, now: float, message: schema.Ledger) -> None:
        transfer = message.transfer
        if transfer not in self._resumed:
            raise ProtocolError(f"a ledger of transfer {transfer}, which nobody asked for")
        self._resumed.discard(transfer)
        entry = self._outgoing.get(transfer)
        if entry is None or entry.state not in (Transfer.OFFERED, Transfer.ACTIVE):
            return  # given up meanwhile; the peer hears or has heard of it
        match message.state:
            case "offered" if entry.state is Transfer.OFFERED:
                pass
            case "active" if entry.state is Transfer.OFFERED:
                self._on_grant(now, schema.GrantMessage(transfer, message.runs, message.cell_bytes))
            case "active":
                if Grant(unpack_runs(message.runs), message.cell_bytes) != entry.grant:
                    raise ProtocolError(f"the ledger of transfer {transfer} is of another grant")
                self._events.append(events.LedgerCame(transfer, message.landed))
            case "committed" if entry.state is Transfer.ACTIVE:
                self._events.append(events.CommitLearnt(transfer))
            case "unknown" if entry.state is Transfer.OFFERED:
                self._offer_again(now, transfer, entry)
            case "refused" if entry.state is Transfer.OFFERED:
                self._drop(now, transfer, OfferRefused("offer refused while the link was down"))
            case "aborted":
                self._drop(now, transfer, PeerAborted("the peer aborted while the link was down"))
            case "forgotten":
                self._drop(now, transfer, LinkLost("the peer has forgotten the transfer"))
            case state:
                raise ProtocolError(
                    f"the ledger says that transfer {transfer} is {state}, and it is {entry.state.value}"
                )

    def _drop(self, now: float, transfer: int, error: KvwireError) -> None:
        self._outgoing.step(now, transfer, "recv over")
        self._events.append(events.Dropped(transfer, error))

    def _offer_again(self, now: float, transfer: int, entry: Entry) -> None:
        """Once more what the peer does not know."""
        left_s = entry.deadline_s if entry.ends == math.inf else max(entry.ends - now, LEAST_S)
        try:
            data = encode_offer(self._open(), transfer, entry, left_s)
        except LimitExceeded as error:  # another life of the peer takes less
            self._drop(now, transfer, error)
        else:
            self._queue(data, answer=False)

    def _start_over(self, now: float, peer: schema.Hello) -> None:
        """The peer has restarted. What it sent is lost; what is sent to it is offered once more, under new ids."""
        again: dict[int, int] = {}
        for transfer in self._outgoing.ids():
            self._outgoing.start_over(now, transfer, self._next_id)
            again[transfer] = self._next_id
            self._next_id += 2
        self._events.append(events.Restarted(peer, again))
        for count, transfer in enumerate(again.values()):
            entry = self._outgoing.get(transfer)
            assert entry is not None
            if count < most_alive(peer):
                self._offer_again(now, transfer, entry)
            else:
                self._drop(now, transfer, LimitExceeded(f"the peer has restarted, and takes only {count} transfers"))
        for transfer in self._incoming.ids():
            self._incoming.step(now, transfer, "recv over")
            self._events.append(events.Dropped(transfer, LinkLost("the peer has restarted")))
        self._incoming = Transfers(states.INCOMING, self._config.max_transfers)  # its ids begin anew

    # --- timers ---------------------------------------------------------------------------------------------------

    def _next_due(self) -> float:
        return min(self._outgoing.next_due(), self._incoming.next_due())

    def _expire(self, now: float) -> None:
        """Transfers that are past their time are over here, and the peer is told."""
        for table in (self._outgoing, self._incoming):
            for transfer, was, entry in table.expire(now):
                if was is Transfer.DRAINING:
                    continue
                request = f"request {entry.manifest.request_id!r}"
                late: events.Event
                if was is Transfer.OFFERED and table is self._outgoing:
                    what = f"{request} was not granted in time"
                    late = events.OfferTimedOut(transfer, DeadlineExceeded(what))
                else:
                    what = f"{request} was not committed within {entry.deadline_s:g} s"
                    late = events.TransferTimedOut(transfer, DeadlineExceeded(what))
                self._events.append(late)
                self._send(schema.Abort(transfer, "deadline", clip(what)))
                if self.state is not states.Session.OPEN:
                    table.step(now, transfer, "lose")

    # --- helpers --------------------------------------------------------------------------------------------------

    def _open(self) -> schema.Hello:
        """What the peer takes. Closed before it has greeted and after the end; while the connection is lost it counts
        as open."""
        if self.state is states.Session.CLOSED or self.peer is None:
            raise Closed(f"the session is {self.state.value}")
        return self.peer

    def _told(self, reason: str) -> str:
        """As much of it as is the peer's business."""
        return clip(reason) if self._frank else ""

    def _mine(self, transfer: int) -> bool:
        return bool(transfer & 1) is self._dialler

    def _table(self, transfer: int) -> Transfers:
        return self._outgoing if self._mine(transfer) else self._incoming

    def _check_mine(self, transfer: int, what: str) -> None:
        if not self._mine(transfer):
            raise ProtocolError(f"{what}: transfer {transfer} is the peer's own offer")

    @abstractmethod
    def _send(self, message: schema.Message) -> None:
        """Have it sent, unless no connection is open."""

    @abstractmethod
    def _queue(self, data: bytes, *, answer: bool = True) -> None:
        """As `_send`, of an encoded message. `answer`: the peer can have it said again and again."""

    @abstractmethod
    def _queue_offer(self, data: bytes) -> None:
        """As `_queue`; LimitExceeded where too much waits already."""
