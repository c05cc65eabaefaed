"""A control session: bytes in, events out, what to send, when to be called again.

Pure: no I/O, no clock, no randomness. Whoever drives it calls `receive_data` and `handle_timer`, then takes
`next_event` until there is none, `data_to_send`, and `next_timer`. What the peer does wrong never raises: it ends
the session with a `Closed` event. What the caller does wrong raises a LocalError.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

from kvwire.config import Config
from kvwire.errors import (
    Closed,
    DeadlineExceeded,
    DuplicateTransfer,
    KvwireError,
    LimitExceeded,
    LinkLost,
    LocalError,
    ModelMismatch,
    OfferRefused,
    PeerAborted,
    PlacementError,
    ProtocolError,
    SpecError,
)
from kvwire.types import Grant, Manifest
from kvwire.version import __version__
from kvwire.wire import events, schema, states
from kvwire.wire.manifest import check_grant, model_misfit, pack_manifest, pack_runs, unpack_manifest, unpack_runs
from kvwire.wire.preamble import Join
from kvwire.wire.states import Transfer
from kvwire.wire.tickets import MAX_TICKETS, SECRET_BYTES, TICKET_VALID_S, Tickets
from kvwire.wire.transfers import Transfers

Role = Literal["dialler", "acceptor"]

GREETING_BYTES = 4096
"""Largest message before the peer has said hello."""
MAX_QUEUED_FACTOR = 4
"""Bytes waiting to be sent, in own largest messages: beyond it no further offer is taken, and a peer that has
everything else answered without ever reading is given up."""
REASON_CHARS = 2048
SOFTWARE = f"kvwire/{__version__}"


def _clip(reason: str) -> str:
    """A reason as it may travel: short, and nothing that UTF-8 cannot carry."""
    return reason[:REASON_CHARS].encode(errors="replace").decode()


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
        self._most_queued = MAX_QUEUED_FACTOR * config.max_message_bytes
        self._events: deque[events.Event] = deque()
        self._outgoing = Transfers(states.OUTGOING)
        self._incoming = Transfers(states.INCOMING)
        self._next_id = 1 if role == "dialler" else 2
        self._answers_bytes = 0  # of what waits to be sent, all but offers
        self._tickets = Tickets()
        self._greeting_due = now + config.handshake_timeout_s
        self._ping_due = now + config.ping_interval_s
        lanes = config.lanes if role == "dialler" else 0
        hello = schema.Hello(boot_id, random, link_id, SOFTWARE, lanes, config.max_transfers, config.max_message_bytes)
        self._send(hello)

    # --- driving --------------------------------------------------------------------------------------------------

    def receive_data(self, now: float, data: bytes) -> None:
        """Bytes from the peer, cut anywhere."""
        if self._closed:
            return
        self._ping_due = now + self._config.ping_interval_s
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
        self._answers_bytes = 0
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
        return min(self._ping_due, self._outgoing.next_due(), self._incoming.next_due())

    def handle_timer(self, now: float) -> None:
        """Act on whatever is due at `now`."""
        if self._closed:
            return
        if self.state is states.Session.GREETING:
            if now >= self._greeting_due:
                self._close("time out", LinkLost("the peer did not say hello in time"))
            return
        if now >= self._ping_due:
            # No answer is no death: a peer whose Python stands still is alive. What a ping does is to give the kernel
            # something that it must see acknowledged (TCP_USER_TIMEOUT).
            self._ping_due = now + self._config.ping_interval_s
            self._send(schema.Ping(0))
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
                self._send(schema.Abort(transfer, "deadline", _clip(what)))

    # --- what a caller may do -------------------------------------------------------------------------------------

    def offer(self, now: float, manifest: Manifest, *, timeout_s: float, deadline_s: float, klass: int) -> int:
        """Offer a transfer; returns its id. SpecError, DuplicateTransfer or LimitExceeded before anything is sent."""
        peer = self._open()
        for name, seconds in (("timeout_s", timeout_s), ("deadline_s", deadline_s)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 7 * 86400:
                raise SpecError(f"{name} is {seconds!r}; expected seconds, above 0 and at most a week")
        if isinstance(klass, bool) or not isinstance(klass, int) or not 0 <= klass <= 2:
            raise SpecError(f"klass is {klass!r}; expected 0 (urgent), 1 (demand) or 2 (background)")
        alive = self._outgoing.alive()
        if any(entry.manifest.request_id == manifest.request_id for entry in alive):
            raise DuplicateTransfer(f"request {manifest.request_id!r} is under way on this link")
        # Those that were given up and await the peer's DRAINED count less: both sides allow for as many again.
        if len(alive) >= peer.max_transfers or len(self._outgoing) >= 2 * peer.max_transfers:
            raise LimitExceeded(f"{len(self._outgoing)} transfers are under way, and the peer takes no more at once")
        transfer = self._next_id
        data = schema.encode(schema.Offer(transfer, pack_manifest(manifest), float(deadline_s), klass))
        if len(data) - schema.LENGTH_BYTES > peer.max_message_bytes:
            raise LimitExceeded(
                f"the manifest takes {len(data)} bytes; the peer's limit is {peer.max_message_bytes}",
                hint="larger blocks have fewer hashes; or raise Config.max_message_bytes at the receiver",
            )
        if self._out and len(self._out) + len(data) > self._most_queued:
            raise LimitExceeded(
                f"{len(self._out)} bytes of control messages wait to be sent, and the offer takes {len(data)} more",
                hint="offer again once the peer has read them; or raise Config.max_message_bytes here",
            )
        self._next_id += 2
        self._outgoing.add(transfer, manifest, now + timeout_s, deadline_s)
        self._out += data
        return transfer

    def grant(self, now: float, transfer: int, grant: Grant) -> None:
        """Accept an offer. PlacementError where the grant does not fit it; Closed where it is over."""
        peer = self._open()
        entry = self._incoming.get(transfer)
        if entry is None:
            raise Closed(f"transfer {transfer} is over")
        check_grant(entry.manifest, grant)
        data = schema.encode(schema.GrantMessage(transfer, pack_runs(grant), grant.cell_bytes))
        if len(data) - schema.LENGTH_BYTES > peer.max_message_bytes:
            raise LimitExceeded(f"the grant takes {len(data)} bytes", hint="take fewer, longer runs of blocks")
        self._incoming.step(now, transfer, "grant")
        self._queue(data)

    def refuse(self, now: float, transfer: int, code: str, reason: str) -> None:
        """Decline an offer. Closed where it is over, granted or given up."""
        self._open()
        self._incoming.step(now, transfer, "refuse")
        self._send(schema.Refuse(transfer, code, _clip(reason)))

    def abort(self, now: float, transfer: int, code: str, reason: str) -> None:
        """Give a transfer up, whichever side offered it. Nothing happens if it is over or given up already."""
        table = self._table(transfer)
        if table.may(transfer, "abort"):
            table.step(now, transfer, "abort")
            self._send(schema.Abort(transfer, code, _clip(reason)))

    def drained(self, now: float, transfer: int) -> None:
        """Local memory is quiet after an `Aborted` event; once for each. Nothing happens if the session is over."""
        if self.state is states.Session.OPEN:
            self._table(transfer).step(now, transfer, "drained")
            self._send(schema.Drained(transfer))

    def transfer_done(self, transfer: int) -> None:
        """The data plane has committed a transfer. Nothing happens if it is over."""
        table = self._table(transfer)
        if table.get(transfer) is not None:
            table.step(math.inf, transfer, "done")  # leads to no state that is timed

    def request_lanes(self, now: float, count: int) -> None:
        """Ask the acceptor for 1 to 64 tickets."""
        del now
        self._open()
        if self.role == "acceptor":
            raise LocalError("only the dialler asks for lanes; the acceptor hands out tickets")
        if not 1 <= count <= MAX_TICKETS:
            raise LocalError(f"{count} lanes asked for; expected 1 to {MAX_TICKETS}")
        self._send(schema.Lanes(count))

    def issue_ticket(self, now: float, secret: bytes) -> tuple[int, int]:
        """Let the dialler open one lane; returns its number and incarnation. LimitExceeded with too many out.

        `secret`: 32 random bytes.
        """
        self._open()
        if self.role == "dialler":
            raise LocalError("only the acceptor hands out tickets; the dialler asks for lanes")
        if len(secret) != SECRET_BYTES:
            raise LocalError(f"a ticket's secret has {len(secret)} bytes; expected {SECRET_BYTES}")
        lane, incarnation = self._tickets.issue(now, secret)
        self._send(schema.LaneTicket(lane, incarnation, secret, TICKET_VALID_S))
        return lane, incarnation

    def redeem_ticket(self, now: float, join: Join) -> None:
        """Use up the ticket of a lane that joins. ProtocolError if it was never issued, was used, or does not fit."""
        self._tickets.redeem(now, join)

    def lane_closed(self, now: float, lane: int, incarnation: int, reason: str, acked: int) -> None:
        """Tell the peer that a lane has ended here; its number may be used again."""
        del now
        if self.state is states.Session.OPEN:
            if self.role == "acceptor":
                self._tickets.free(lane, incarnation)
            self._send(schema.LaneClosed(lane, incarnation, _clip(reason), acked))

    def close(self, now: float, reason: str) -> None:
        """Say good-bye and end the session."""
        del now
        if not self._closed:
            self._send(schema.Goodbye("closed", _clip(reason)))
            self._close("close", Closed(f"the session was closed: {reason}"))

    # --- messages -------------------------------------------------------------------------------------------------

    def _receive(self, now: float, message: schema.Message) -> None:
        if self.state is states.Session.GREETING and not isinstance(message, schema.Hello | schema.Goodbye):
            raise ProtocolError(f"{message.TYPE} before hello")
        match message:
            case schema.Hello():
                self._on_hello(message)
            case schema.Offer():
                self._on_offer(now, message)
            case schema.GrantMessage():
                self._on_grant(now, message)
            case schema.Refuse():
                self._on_refuse(now, message)
            case schema.Abort():
                self._on_abort(now, message)
            case schema.Drained():
                entry = self._table(message.transfer).peer_step(now, message.transfer, "recv drained")
                if entry is not None and entry.state is Transfer.OVER:
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

    def _on_hello(self, hello: schema.Hello) -> None:
        if self.state is not states.Session.GREETING:
            raise ProtocolError("a second hello")
        if bool(hello.link_id) is (self.role == "acceptor"):
            raise ProtocolError("the acceptor names the link, and only it does")
        self.peer = hello
        if hello.link_id:
            self.link_id = hello.link_id
        self.state = states.SESSION[self.state, "recv hello"]
        self._reader.limit = self._config.max_message_bytes
        self._events.append(events.HelloDone(hello))

    def _on_offer(self, now: float, message: schema.Offer) -> None:
        if message.transfer & 1 != (self.role == "acceptor"):
            raise ProtocolError(f"transfer id {message.transfer} belongs to the other side")
        newest = self._incoming.newest
        if message.transfer <= newest:
            raise ProtocolError(f"transfer id {message.transfer} was used before; the newest is {newest}")
        manifest = unpack_manifest(message.manifest)
        self._incoming.newest = message.transfer
        refusal = self._refusal(manifest)
        if refusal is not None:
            self._send(schema.Refuse(message.transfer, *refusal))
            return
        self._incoming.add(message.transfer, manifest, now + message.deadline_s, message.deadline_s)
        self._events.append(events.Offered(message.transfer, manifest, message.klass))

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
        grant = Grant(unpack_runs(message.runs), message.cell_bytes)
        try:
            check_grant(entry.manifest, grant)
        except PlacementError as error:
            raise ProtocolError(f"the peer's grant does not fit the offer: {error}") from None
        if entry.state is Transfer.ACTIVE:  # else our abort is on its way
            self._events.append(events.Granted(message.transfer, grant))

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

    # --- helpers --------------------------------------------------------------------------------------------------

    @property
    def _closed(self) -> bool:
        return self.state is states.Session.CLOSED

    def _open(self) -> schema.Hello:
        if self.state is not states.Session.OPEN or self.peer is None:
            raise Closed(f"the session is {self.state.value}")
        return self.peer

    def _mine(self, transfer: int) -> bool:
        return bool(transfer & 1) is (self.role == "dialler")

    def _table(self, transfer: int) -> Transfers:
        return self._outgoing if self._mine(transfer) else self._incoming

    def _check_mine(self, transfer: int, what: str) -> None:
        if not self._mine(transfer):
            raise ProtocolError(f"{what}: transfer {transfer} is the peer's own offer")

    def _send(self, message: schema.Message) -> None:
        self._queue(schema.encode(message))

    def _queue(self, data: bytes) -> None:
        if self._closed:
            return
        self._out += data
        self._answers_bytes += len(data)
        if self._answers_bytes > self._most_queued:
            self._close("fail", LinkLost("the peer does not read its control messages"))

    def _fail(self, error: ProtocolError) -> None:
        self._send(schema.Goodbye("protocol", _clip(str(error))))
        self._close("fail", error)

    def _close(self, what: str, error: KvwireError) -> None:
        if self._closed:
            return
        self.state = states.SESSION[self.state, what]
        self._outgoing.clear()
        self._incoming.clear()
        self._events.append(events.Closed(error))
