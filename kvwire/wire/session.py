"""A control session: bytes in, events out, what to send, when to be called again.

Pure: no I/O, no clock, no randomness. Whoever drives it calls `receive_data` and `handle_timer`, then takes
`next_event` until there is none, `data_to_send`, and `next_timer`. What the peer does wrong never raises: it ends
the session with a `Closed` event. What the caller does wrong raises a LocalError.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
from kvwire.types import Grant, Manifest, ModelTag, layout_digest
from kvwire.wire import events, schema, states
from kvwire.wire.manifest import check_grant, pack_manifest, pack_runs, unpack_manifest, unpack_runs
from kvwire.wire.tickets import TICKET_VALID_S, Tickets

Role = Literal["dialler", "acceptor"]

GREETING_BYTES = 4096
"""Largest message before the peer has said hello."""
PINGS_UNANSWERED = 3
MAX_QUEUED_FACTOR = 4
"""Bytes waiting to be sent, in largest messages: a peer that does not read is given up beyond that."""
SOFTWARE = "kvwire/0.1"


@dataclass(slots=True)
class _Entry:
    """One transfer in the control plane. `due`: when waiting for a grant, or the whole transfer, takes too long."""

    manifest: Manifest
    state: states.Transfer
    due: float
    deadline_s: float


def _say(tag: ModelTag) -> str:
    return f"{tag.name} revision {tag.revision or '-'} layout {tag.layout or '-'}"


class Session:
    """One side of a control connection."""

    def __init__(self, role: Role, config: Config, boot_id: bytes, random: bytes, link_id: bytes, now: float) -> None:
        self.role = role
        self.state = states.Session.GREETING
        self.link_id = link_id
        """Names the link in a lane's JOIN; the acceptor's choice."""
        self.peer: schema.Hello | None = None
        self._config = config
        self._reader = schema.MessageReader(GREETING_BYTES)
        self._out = bytearray()
        self._events: deque[events.Event] = deque()
        self._outgoing: dict[int, _Entry] = {}
        self._incoming: dict[int, _Entry] = {}
        self._next_id = 1 if role == "dialler" else 2
        self._newest_in = 0
        self._tickets = Tickets()
        self._greeting_due = now + config.handshake_timeout_s
        self._heard = now
        self._pings = 0
        lanes = config.lanes if role == "dialler" else 0
        hello = schema.Hello(boot_id, random, link_id, SOFTWARE, lanes, config.max_transfers, config.max_message_bytes)
        self._send(hello)

    # --- driving --------------------------------------------------------------------------------------------------

    def receive_data(self, now: float, data: bytes) -> None:
        """Bytes from the peer, cut anywhere."""
        if self._closed:
            return
        self._heard = now
        self._pings = 0
        self._reader.feed(data)
        try:
            while (message := self._reader.next()) is not None:
                self._receive(now, message)
                if self._closed:
                    break
        except ProtocolError as error:
            self._fail(error)

    def eof(self, now: float) -> None:
        """The peer closed its side."""
        del now
        if not self._closed:
            self._close("fail", LinkLost("the peer closed the connection without a good-bye"))

    def data_to_send(self) -> bytes:
        """Everything that waits to be sent; it is forgotten here."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def next_event(self) -> events.Event | None:
        """The oldest event that was not taken yet."""
        return self._events.popleft() if self._events else None

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called at the latest; None once closed."""
        if self._closed:
            return None
        if self.state is states.Session.GREETING:
            return self._greeting_due
        due = self._heard + self._config.ping_interval_s * (self._pings + 1)
        for table in (self._outgoing, self._incoming):
            for entry in table.values():
                if entry.state is not states.Transfer.DRAINING:
                    due = min(due, entry.due)
        return due

    def handle_timer(self, now: float) -> None:
        """Act on whatever is due at `now`."""
        if self._closed:
            return
        if self.state is states.Session.GREETING:
            if now >= self._greeting_due:
                self._close("time out", LinkLost("the peer did not say hello in time"))
            return
        if now >= self._heard + self._config.ping_interval_s * (self._pings + 1):
            if self._pings == PINGS_UNANSWERED:
                silent = now - self._heard
                self._close("time out", LinkLost(f"the peer has been silent for {silent:.1f} s"))
                return
            self._pings += 1
            self._send(schema.Ping(self._pings))
        self._expire(now, self._outgoing, states.OUTGOING)
        self._expire(now, self._incoming, states.INCOMING)

    # --- what a caller may do -------------------------------------------------------------------------------------

    def offer(self, now: float, manifest: Manifest, *, timeout_s: float, deadline_s: float, klass: int) -> int:
        """Offer a transfer; returns its id. SpecError, DuplicateTransfer or LimitExceeded before anything is sent."""
        peer = self._open()
        for name, seconds in (("timeout_s", timeout_s), ("deadline_s", deadline_s)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 7 * 86400:
                raise SpecError(f"{name} is {seconds!r}; expected seconds, above 0 and at most a week")
        if klass not in (0, 1, 2):
            raise SpecError(f"klass is {klass!r}; expected 0 (urgent), 1 (demand) or 2 (background)")
        if any(entry.manifest.request_id == manifest.request_id for entry in self._outgoing.values()):
            raise DuplicateTransfer(f"request {manifest.request_id!r} is under way on this link")
        if len(self._outgoing) >= peer.max_transfers:
            raise LimitExceeded(f"{len(self._outgoing)} transfers are under way, and the peer takes no more at once")
        transfer = self._next_id
        data = schema.encode(schema.Offer(transfer, pack_manifest(manifest), float(deadline_s), klass))
        if len(data) - schema.LENGTH_BYTES > peer.max_message_bytes:
            raise LimitExceeded(
                f"the manifest takes {len(data)} bytes; the peer's limit is {peer.max_message_bytes}",
                hint="larger blocks have fewer hashes; or raise Config.max_message_bytes at the receiver",
            )
        self._next_id += 2
        self._outgoing[transfer] = _Entry(manifest, states.Transfer.OFFERED, now + timeout_s, deadline_s)
        self._queue(data)
        return transfer

    def grant(self, now: float, transfer: int, grant: Grant) -> None:
        """Accept an offer. PlacementError where the grant does not fit it; Closed where it is over."""
        self._open()
        entry = self._incoming.get(transfer)
        if entry is None:
            raise Closed(f"transfer {transfer} is over")
        check_grant(entry.manifest, grant)
        data = schema.encode(schema.GrantMessage(transfer, pack_runs(grant), grant.cell_bytes))
        if len(data) - schema.LENGTH_BYTES > self._open().max_message_bytes:
            raise LimitExceeded(f"the grant takes {len(data)} bytes", hint="take fewer, longer runs of blocks")
        self._step(self._incoming, states.INCOMING, transfer, "grant")
        entry.due = now + entry.deadline_s
        self._queue(data)

    def refuse(self, now: float, transfer: int, code: str, reason: str) -> None:
        """Decline an offer."""
        del now
        self._open()
        if self._step(self._incoming, states.INCOMING, transfer, "refuse"):
            self._send(schema.Refuse(transfer, code, reason[:2048]))

    def abort(self, now: float, transfer: int, code: str, reason: str) -> None:
        """Give a transfer up, whichever side offered it. Nothing happens if it is over."""
        del now
        self._open()
        table, rows = self._side(transfer)
        if transfer in table and self._step(table, rows, transfer, "abort"):
            self._send(schema.Abort(transfer, code, reason[:2048]))

    def drained(self, now: float, transfer: int) -> None:
        """Local memory is quiet after an ABORT of the peer's."""
        del now
        if self.state is states.Session.OPEN:
            self._send(schema.Drained(transfer))

    def transfer_done(self, transfer: int) -> None:
        """The data plane has committed a transfer."""
        table, rows = self._side(transfer)
        if transfer in table:
            self._step(table, rows, transfer, "done")

    def request_lanes(self, now: float, count: int) -> None:
        """Ask the acceptor for tickets."""
        del now
        self._open()
        self._send(schema.Lanes(count))

    def issue_ticket(self, now: float, secret: bytes) -> tuple[int, int]:
        """Let the dialler open one lane; returns its number and incarnation. LimitExceeded with too many out."""
        self._open()
        lane, incarnation = self._tickets.issue(now, secret)
        self._send(schema.LaneTicket(lane, incarnation, secret, TICKET_VALID_S))
        return lane, incarnation

    def redeem_ticket(self, now: float, lane: int, incarnation: int) -> bytes:
        """The secret of a ticket, once. ProtocolError if it was never issued, was used, or is too old."""
        return self._tickets.redeem(now, lane, incarnation)

    def lane_closed(self, now: float, lane: int, incarnation: int, reason: str, acked: int) -> None:
        """Tell the peer that a lane has ended here; its number may be used again."""
        del now
        if self.state is states.Session.OPEN:
            if self.role == "acceptor":
                self._tickets.free(lane)
            self._send(schema.LaneClosed(lane, incarnation, reason[:2048], acked))

    def close(self, now: float, reason: str) -> None:
        """Say good-bye and end the session."""
        del now
        if not self._closed:
            self._send(schema.Goodbye("closed", reason[:2048]))
            self._close("close", Closed(f"the session was closed: {reason}"))

    # --- messages -------------------------------------------------------------------------------------------------

    def _receive(self, now: float, message: schema.Message) -> None:
        if self.state is states.Session.GREETING and not isinstance(message, schema.Hello | schema.Goodbye):
            raise ProtocolError(f"{message.TYPE} before hello")
        match message:
            case schema.Hello():
                self._on_hello(now, message)
            case schema.Offer():
                self._on_offer(now, message)
            case schema.GrantMessage():
                self._on_grant(now, message)
            case schema.Refuse():
                if self._peer_step(self._outgoing, message.transfer, "recv refuse"):
                    error = ModelMismatch if message.code == "model" else OfferRefused
                    text = message.reason or "the receiver does not want it"
                    self._events.append(events.Refused(message.transfer, error(f"offer refused: {text}")))
            case schema.Abort():
                self._on_abort(message)
            case schema.Drained():
                table, _ = self._side(message.transfer)
                if self._peer_step(table, message.transfer, "recv drained"):
                    self._events.append(events.Drained(message.transfer))
            case schema.Lanes():
                if self.role == "dialler":
                    raise ProtocolError("the acceptor asks for lanes; it hands out tickets instead")
                self._events.append(events.LanesWanted(message.count))
            case schema.LaneTicket():
                if self.role == "acceptor":
                    raise ProtocolError("the dialler hands out a lane ticket; it asks for them instead")
                self._events.append(events.Ticket(message.lane, message.incarnation, message.secret))
            case schema.LaneClosed():
                self._events.append(events.LaneClosed(message.lane, message.incarnation, message.reason, message.acked))
            case schema.Ping():
                self._send(schema.Pong(message.token))
            case schema.Goodbye():
                kind = LinkLost if message.code == "closed" else ProtocolError
                self._close("recv goodbye", kind(f"the peer said good-bye: {message.reason}"))

    def _on_hello(self, now: float, hello: schema.Hello) -> None:
        if self.state is not states.Session.GREETING:
            raise ProtocolError("a second hello")
        if bool(hello.link_id) is (self.role == "acceptor"):
            raise ProtocolError("the acceptor names the link, and only it does")
        self.peer = hello
        if hello.link_id:
            self.link_id = hello.link_id
        self.state = states.SESSION[self.state, "recv hello"]
        self._reader.limit = self._config.max_message_bytes
        self._heard = now
        self._events.append(events.HelloDone(hello))

    def _on_offer(self, now: float, message: schema.Offer) -> None:
        if message.transfer & 1 != (self.role == "acceptor"):
            raise ProtocolError(f"transfer id {message.transfer} belongs to the other side")
        if message.transfer <= self._newest_in:
            raise ProtocolError(f"transfer id {message.transfer} was used before; the newest is {self._newest_in}")
        manifest = unpack_manifest(message.manifest)
        self._newest_in = message.transfer
        refusal = self._refusal(manifest)
        if refusal is not None:
            self._send(schema.Refuse(message.transfer, *refusal))
            return
        due = now + message.deadline_s
        self._incoming[message.transfer] = _Entry(manifest, states.Transfer.OFFERED, due, message.deadline_s)
        self._events.append(events.Offered(message.transfer, manifest, message.klass))

    def _refusal(self, manifest: Manifest) -> tuple[str, str] | None:
        """Code and reason where an offer is declined without asking anybody."""
        # Twice: a transfer that has committed here counts until this side's loop has seen it, which the sender
        # need not wait for.
        if len(self._incoming) >= 2 * self._config.max_transfers:
            return "busy", f"{len(self._incoming)} transfers are under way"
        model = manifest.model
        if self._config.models and model not in self._config.models:
            have = "; ".join(
                f"{m.name} revision {m.revision or '-'} layout {m.layout or '-'}" for m in self._config.models
            )
            got = f"{model.name} revision {model.revision or '-'} layout {model.layout or '-'}"
            return "model", f"this side runs {have:.900}, the offer is for {got:.900}"
        if model.layout and model.layout != layout_digest([group.spec for group in manifest.groups]):
            return "model", f"the manifest's groups do not have the layout {model.layout:.100} that its model tag names"
        return None

    def _on_grant(self, now: float, message: schema.GrantMessage) -> None:
        entry = self._outgoing.get(message.transfer)
        if not self._peer_step(self._outgoing, message.transfer, "recv grant"):
            return
        assert entry is not None
        grant = Grant(unpack_runs(message.runs), message.cell_bytes)
        try:
            check_grant(entry.manifest, grant)
        except PlacementError as error:
            raise ProtocolError(f"the peer's grant does not fit the offer: {error}") from None
        entry.due = now + entry.deadline_s
        if entry.state is states.Transfer.ACTIVE:  # else our abort is on its way
            self._events.append(events.Granted(message.transfer, grant))

    def _on_abort(self, message: schema.Abort) -> None:
        table, _ = self._side(message.transfer)
        known = message.transfer in table
        if known and self._peer_step(table, message.transfer, "recv abort"):
            error: KvwireError
            if message.code == "deadline":
                error = DeadlineExceeded(f"the peer gave up: {message.reason}")
            else:
                error = PeerAborted(f"the peer aborted: {message.reason or message.code}")
            self._events.append(events.Aborted(message.transfer, error))
        elif not known:
            self._check_known(message.transfer)
            self._send(schema.Drained(message.transfer))  # over here, and quiet

    @property
    def _closed(self) -> bool:
        return self.state is states.Session.CLOSED

    # --- helpers --------------------------------------------------------------------------------------------------

    def _open(self) -> schema.Hello:
        if self.state is not states.Session.OPEN or self.peer is None:
            raise Closed(f"the session is {self.state.value}")
        return self.peer

    def _mine(self, transfer: int) -> bool:
        return bool(transfer & 1) is (self.role == "dialler")

    def _side(self, transfer: int) -> tuple[dict[int, _Entry], Mapping[tuple[states.Transfer, str], states.Transfer]]:
        return (self._outgoing, states.OUTGOING) if self._mine(transfer) else (self._incoming, states.INCOMING)

    def _check_known(self, transfer: int) -> None:
        newest = self._next_id - 2 if self._mine(transfer) else self._newest_in
        if transfer > newest:
            raise ProtocolError(f"transfer {transfer} was never offered")

    def _step(
        self,
        table: dict[int, _Entry],
        rows: Mapping[tuple[states.Transfer, str], states.Transfer],
        transfer: int,
        what: str,
    ) -> bool:
        """Move a transfer along a row of its table; Closed where this side may not."""
        entry = table.get(transfer)
        state = rows.get((entry.state, what)) if entry is not None else None
        if entry is None or state is None:
            raise Closed(f"transfer {transfer} is {entry.state.value if entry else 'over'}: no {what} now")
        entry.state = state
        if state is states.Transfer.OVER:
            del table[transfer]
        return True

    def _peer_step(self, table: dict[int, _Entry], transfer: int, what: str) -> bool:
        """As `_step` for a message; False where the transfer is over, ProtocolError where it never was."""
        entry = table.get(transfer)
        if entry is None:
            self._check_known(transfer)
            return False
        rows = self._side(transfer)[1]
        if (entry.state, what) not in rows:
            raise ProtocolError(f"transfer {transfer} is {entry.state.value}: {what} is not allowed then")
        return self._step(table, rows, transfer, what)

    def _expire(
        self, now: float, table: dict[int, _Entry], rows: Mapping[tuple[states.Transfer, str], states.Transfer]
    ) -> None:
        for transfer, entry in list(table.items()):
            if entry.state is states.Transfer.DRAINING or now < entry.due:
                continue
            waiting = entry.state is states.Transfer.OFFERED and table is self._outgoing
            self._step(table, rows, transfer, "time out")
            if waiting:
                what = f"request {entry.manifest.request_id!r} was not granted in time"
                self._events.append(events.OfferTimedOut(transfer, DeadlineExceeded(what)))
            else:
                what = f"request {entry.manifest.request_id!r} was not committed within {entry.deadline_s:g} s"
                self._events.append(events.TransferTimedOut(transfer, DeadlineExceeded(what)))
            self._send(schema.Abort(transfer, "deadline", what[:2048]))

    def _send(self, message: schema.Message) -> None:
        self._queue(schema.encode(message))

    def _queue(self, data: bytes) -> None:
        self._out += data
        limit = self.peer.max_message_bytes if self.peer else self._config.max_message_bytes
        if len(self._out) > MAX_QUEUED_FACTOR * limit and not self._closed:
            self._close("fail", LinkLost("the peer does not read its control messages"))

    def _fail(self, error: ProtocolError) -> None:
        self._send(schema.Goodbye("protocol", str(error)[:2048]))
        if not self._closed:
            self._close("fail", error)

    def _close(self, what: str, error: KvwireError) -> None:
        self.state = states.SESSION[self.state, what]
        self._outgoing.clear()
        self._incoming.clear()
        self._events.append(events.Closed(error))
