"""A control session: bytes in, events out, what to send, when to be called again.

Pure: no I/O, no clock, no randomness. Whoever drives it calls `receive_data` and `handle_timer`, then takes
`next_event` until there is none, `data_to_send`, and `next_timer`. What the peer does wrong never raises: it ends
the session with a `Closed` event. What the caller does wrong raises a LocalError.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Sequence

from kvwire.config import Config
from kvwire.errors import Closed, KvwireError, LimitExceeded, LinkLost, LocalError, PeerBusy, ProtocolError
from kvwire.version import __version__
from kvwire.wire import events, schema, states
from kvwire.wire.codecs import CodecTag
from kvwire.wire.exchange import Exchange
from kvwire.wire.greeting import BEFORE_OPEN, GREETING_BYTES, SAID_BEFORE, goodbye, unheard
from kvwire.wire.keys import PLAIN_SUITE, SEALED_SUITE, KeyAgreement, LaneSecrets, LinkKeys, Role
from kvwire.wire.preamble import NO_JOIN_SECRET, WIRE_VERSION, Join, join_bytes
from kvwire.wire.tickets import MAX_TICKETS, RANDOM_BYTES, TICKET_VALID_S, Tickets

MAX_QUEUED_FACTOR = 4
"""Bytes waiting to be sent, in own largest messages: beyond it no further offer is taken, and a peer that has
everything else answered without ever reading is given up."""
SOFTWARE = f"kvwire/{__version__}"


class Session(Exchange):
    """One side of a control session. It outlives its connection: `lost`, then `resume` over another one.

    `agreement`: of a sealed link, this side's half of the keys for the first connection. `frank`: whether the peer may
    know why it is refused something, which is another tenant's business. `lanes`: how many a dialler's HELLO asks for.
    `codecs`: what it decodes, and takes.
    """

    def __init__(
        self,
        role: Role,
        config: Config,
        boot_id: bytes,
        random: bytes,
        link_id: bytes,
        now: float,
        agreement: KeyAgreement | None = None,
        *,
        frank: bool = True,
        lanes: int = 4,
        codecs: Sequence[CodecTag] = (),
    ) -> None:
        super().__init__(config, dialler=role == "dialler", frank=frank, codecs=codecs)
        self.role: Role = role
        self.lanes = lanes if role == "dialler" else 0
        self.link_id = link_id
        """Names the link in a lane's JOIN and in a HELLO that resumes it; the acceptor's choice."""
        self._boot_id = boot_id
        self._out = bytearray()
        self._most_queued = MAX_QUEUED_FACTOR * config.max_message_bytes
        self._answers_bytes = 0  # of what waits to be sent, what a peer that never reads can make grow
        self._tickets = Tickets()
        self._resume_due = 0.0
        self._lost: KvwireError | None = None
        self._expects_resume = False
        self._may_restart = True
        self._known_there = False  # the peer has said what only a side says that has the link
        self._greet(now, random, agreement)

    def _greet(self, now: float, random: bytes, agreement: KeyAgreement | None) -> None:
        self._agreement = agreement
        self._keys: LinkKeys | None = None
        self._suite = PLAIN_SUITE if agreement is None else SEALED_SUITE
        self._heard: schema.Hello | None = None
        self._reader = schema.MessageReader(GREETING_BYTES)
        self._greeting_due = now + self._config.handshake_timeout_s
        self._ping_due = now + self._config.ping_interval_s
        limits = self._config.max_transfers, self._config.max_message_bytes
        share = b"" if agreement is None else agreement.share
        link = self._boot_id, random, self.link_id
        taken = [list(tag) for tag in self._codecs]
        self._hello = schema.Hello(WIRE_VERSION, [self._suite], share, *link, SOFTWARE, self.lanes, *limits, taken)
        if self.role == "dialler":  # the acceptor answers: it has to know which link this is
            self._send(self._hello)

    # --- driving --------------------------------------------------------------------------------------------------

    def receive_data(self, now: float, data: bytes) -> None:
        """Bytes from the peer, cut anywhere. What comes after the loss of their connection is too late."""
        if self.state in (states.Session.CLOSED, states.Session.SUSPENDED):
            return
        self._ping_due = now + self._config.ping_interval_s
        self._reader.feed(data)
        try:
            while (message := self._reader.next()) is not None:
                self._receive(now, message)
                if self.state in (states.Session.CLOSED, states.Session.SUSPENDED):  # the rest is too late, too
                    break
        except ProtocolError as error:
            self._fail(error)

    def lost(self, now: float, error: LinkLost) -> None:
        """The connection is gone. A session that was open is suspended, for `Config.resume_timeout_s` at most."""
        if self._closed or self.state is states.Session.SUSPENDED:
            return
        if self.peer is None or not self._config.resume_timeout_s:
            refused = self.role == "dialler" and self._suite == SEALED_SUITE and self._heard is None
            self._close("fail", unheard(error) if refused and self.peer is None else error)
            return
        if self.state is states.Session.OPEN:
            self._resume_due = now + self._config.resume_timeout_s
            self._lost = error
        self.state = states.SESSION[self.state, "lose"]
        self._expects_resume = False
        self._out.clear()
        self._answers_bytes = 0
        self._tickets.reset()
        self._lose_transfers(now)
        self._events.append(events.Suspended(error))

    def resume(
        self, now: float, random: bytes, agreement: KeyAgreement | None = None, *, may_restart: bool = True
    ) -> None:
        """Another connection, with keys of its own: greet again. LocalError unless the session is suspended.

        `may_restart`: a peer that does not know the link is another life of the one that did. Else it is another host,
        and the session stays suspended.
        """
        if self.state is not states.Session.SUSPENDED:
            raise LocalError(f"the session is {self.state.value}; only a suspended one can be resumed")
        self.state = states.SESSION[self.state, "resume"]
        self._may_restart = may_restart
        self._greet(now, random, agreement)

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
        if self.state is states.Session.OPEN:
            return min(self._ping_due, self._tickets.next_due(), self._next_due())
        if self.peer is None:
            return self._greeting_due
        greeting = self._greeting_due if self._greeting else math.inf
        return min(greeting, self._resume_due, self._next_due())

    def handle_timer(self, now: float) -> None:
        """Act on whatever is due at `now`."""
        if self._closed:
            return
        if self._greeting and now >= self._greeting_due:
            late = LinkLost("the peer did not say hello in time")
            self._close("time out", late) if self.peer is None else self.lost(now, late)
        if self.peer is None:
            return
        self._expire(now)
        if self.state is states.Session.OPEN:
            for lane, incarnation in self._tickets.take_unused(now):
                self._send(schema.LaneClosed(lane, incarnation, "nobody used its ticket in time", 0))
            if now >= self._ping_due:
                # No answer is no death: a peer whose Python stands still is alive. What a ping does is to give the
                # kernel something that it must see acknowledged (TCP_USER_TIMEOUT).
                self._ping_due = now + self._config.ping_interval_s
                self._send(schema.Ping(0))
        elif now >= self._resume_due:
            self._close("time out", LinkLost(f"{self._lost}; no connection within {self._config.resume_timeout_s:g} s"))

    # --- what a caller may do -------------------------------------------------------------------------------------

    def request_lanes(self, now: float, count: int) -> None:
        """The dialler: ask for 1 to 64 tickets. The acceptor: say how many lanes what it sends is worth in all."""
        del now
        self._open()
        if not 1 <= count <= MAX_TICKETS:
            raise LocalError(f"{count} lanes asked for; expected 1 to {MAX_TICKETS}")
        self._send(schema.Lanes(count))

    def issue_ticket(self, now: float, random: bytes) -> tuple[int, int]:
        """Let the dialler open one lane; returns its number and incarnation. LimitExceeded with too many out.

        `random`: 32 random bytes.
        """
        if self.state is not states.Session.CONFIRMING:  # who joins shows that it has the keys
            self._open()
        if self.role == "dialler":
            raise LocalError("only the acceptor hands out tickets; the dialler asks for lanes")
        if len(random) != RANDOM_BYTES:
            raise LocalError(f"a ticket's random has {len(random)} bytes; expected {RANDOM_BYTES}")
        lane, incarnation = self._tickets.issue(now, random)
        self._send(schema.LaneTicket(lane, incarnation, random, TICKET_VALID_S))
        return lane, incarnation

    def tickets_out(self, now: float) -> int:
        """How many may still be redeemed."""
        return self._tickets.out(now)

    def redeem_ticket(self, now: float, join: Join) -> LaneSecrets | None:
        """Use up the ticket of a lane that joins; its secrets, None on a plain link.

        ProtocolError if it was never issued, was used, or does not fit.
        """
        ticket = self._tickets.redeem(now, join, self._join_secret)
        return None if self._keys is None else self._keys.lane(join.lane, join.incarnation, ticket, join.random)

    def use_ticket(self, ticket: events.Ticket, random: bytes) -> tuple[bytes, LaneSecrets | None]:
        """What a lane says first to join with this ticket, and its secrets. `random`: 32 random bytes."""
        self._open()
        lane, incarnation = ticket.lane, ticket.incarnation
        join = join_bytes(self.link_id, lane, incarnation, random, ticket.random, self._join_secret)
        return join, None if self._keys is None else self._keys.lane(lane, incarnation, ticket.random, random)

    def lane_closed(self, now: float, lane: int, incarnation: int, reason: str, acked: int) -> None:
        """Tell the peer that a lane has ended here; its number may be used again."""
        del now
        if self.state in (states.Session.OPEN, states.Session.CONFIRMING):
            if self.role == "acceptor":
                self._tickets.free(lane, incarnation)
            self._send(schema.LaneClosed(lane, incarnation, schema.clip(reason), acked))

    def close(self, now: float, reason: str) -> None:
        """Say good-bye and end the session."""
        del now
        if not self._closed:
            self._send(schema.Goodbye("closed", self._told(reason)))
            self._close("close", Closed(f"the session was closed: {reason}"))

    # --- messages -------------------------------------------------------------------------------------------------

    def _receive(self, now: float, message: schema.Message) -> None:
        if self.state is states.Session.GREETING and not isinstance(message, schema.Hello | schema.Goodbye):
            raise ProtocolError(f"{message.TYPE} before hello")
        if self.state is states.Session.CONFIRMING and not isinstance(message, schema.Finished | schema.Goodbye):
            raise ProtocolError(f"{message.TYPE} before finished")
        if self._expects_resume and not isinstance(message, schema.Resume | SAID_BEFORE[states.Session.CONFIRMING]):
            raise ProtocolError(f"{message.TYPE} before resume")
        self._known_there |= not isinstance(message, BEFORE_OPEN)
        match message:
            case schema.Hello():
                self._on_hello(now, message)
            case schema.Finished():
                self._on_finished(now, message)
            case schema.Resume():
                if not self._expects_resume:
                    raise ProtocolError("a resume where no link was lost")
                self._expects_resume = False
                self._on_resume(now, message)
            case schema.Ledger():
                self._on_ledger(now, message)
            case schema.Ask():
                self._events.append(events.Asked(message.link_id, message.transfer))
            case schema.Answer():
                self._events.append(events.Answered(message.link_id, message.transfer, message.outcome))
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
                if entry is not None and entry.state is states.Transfer.OVER:
                    self._events.append(events.Drained(message.transfer))
            case schema.Lanes():
                self._events.append(events.LanesWanted(message.count))
            case schema.LaneTicket():
                if self.role == "acceptor":
                    raise ProtocolError("the dialler hands out a lane ticket; it asks for them instead")
                self._events.append(events.Ticket(message.lane, message.incarnation, message.random))
            case schema.LaneClosed():
                self._tickets.void(message.lane, message.incarnation)
                self._events.append(events.LaneClosed(message.lane, message.incarnation, message.reason, message.acked))
            case schema.Ping():
                self._send(schema.Pong(message.token))
            case schema.Goodbye():
                self._on_goodbye(now, message)

    def _on_goodbye(self, now: float, message: schema.Goodbye) -> None:
        text = f"the peer said good-bye: {message.reason}"
        if message.code == "busy" and self._greeting and self.peer is not None:
            self.lost(now, LinkLost(text))  # it may have room before `Config.resume_timeout_s` is over
            return
        kinds: dict[str, type[KvwireError]] = {"protocol": ProtocolError, "busy": PeerBusy}
        self._close("recv goodbye", kinds.get(message.code, LinkLost)(text))

    def _on_hello(self, now: float, hello: schema.Hello) -> None:
        if self.state is not states.Session.GREETING:
            raise ProtocolError("a second hello")
        if hello.version != WIRE_VERSION:
            raise ProtocolError(f"a hello of version {hello.version} after a preamble of version {WIRE_VERSION}")
        if self._suite not in hello.suites:
            raise ProtocolError(f"the peer takes {hello.suites}; this side takes {self._suite}")
        if self.role == "dialler" and not hello.link_id:
            raise ProtocolError("the acceptor names the link")
        known, resumed = self.peer, hello.link_id == self.link_id
        if known is not None:
            if resumed and hello.boot_id != known.boot_id:
                raise ProtocolError("the peer is not the one that this link was made with")
            if self.role == "acceptor" and not resumed:
                raise ProtocolError("the peer resumes another link")
        self._heard = hello
        if self.role == "acceptor":
            self._send(self._hello)
        if self._agreement is None:
            self._greeted(now, hello, "recv hello")
        else:
            ours = schema.encode(self._hello)[schema.LENGTH_BYTES :]
            randoms = self._hello.random, hello.random
            self._keys = self._agreement.agree(ours, self._reader.body, *randoms, hello.share)
            self._agreement = None  # its private key is of no more use, and of some to a thief
            self.state = states.SESSION[self.state, "recv sealed hello"]
            self._send(schema.Finished(self._keys.finished(self.role)))
        if self.role == "acceptor":
            self._events.append(events.LanesWanted(hello.lanes))

    def _on_finished(self, now: float, finished: schema.Finished) -> None:
        if self.state is not states.Session.CONFIRMING or self._keys is None or self._heard is None:
            raise ProtocolError("finished where nothing was to be confirmed")
        other: Role = "acceptor" if self.role == "dialler" else "dialler"
        if not hmac.compare_digest(self._keys.finished(other), finished.mac):
            raise ProtocolError("the peer has other keys, or has heard another hello")
        self._greeted(now, self._heard, "recv finished")

    def _greeted(self, now: float, hello: schema.Hello, what: str) -> None:
        """Both sides have greeted, and on a sealed link have the same keys."""
        known, resumed = self.peer, hello.link_id == self.link_id
        if known is not None and not resumed:
            ending = goodbye("closed", "this link was to be resumed, and no other one made")
            # An acceptor to whom FINISHED never came has no link to resume: the new one takes its place.
            if hello.boot_id == known.boot_id and self._known_there:
                self._put(ending)
                self._close("fail", LinkLost("the link is not known to the peer any more"))
                return
            if hello.boot_id != known.boot_id and not self._may_restart:
                self.lost(now, LinkLost("another host answered"))
                self._out += ending  # leaves as the driver hangs up
                return
        self.peer = hello
        if self.role == "dialler":
            self.link_id = hello.link_id
        self.state = states.SESSION[self.state, what]
        self._reader.limit = self._config.max_message_bytes
        if known is None:
            self._events.append(events.HelloDone(hello))
        elif resumed:
            self._expects_resume = True
            self._events.append(events.Resumed(hello))
            self._send_resume()
        else:
            self._start_over(now, hello)

    # --- helpers --------------------------------------------------------------------------------------------------

    @property
    def _closed(self) -> bool:
        return self.state is states.Session.CLOSED

    @property
    def _greeting(self) -> bool:
        return self.state in (states.Session.GREETING, states.Session.CONFIRMING)

    @property
    def _join_secret(self) -> bytes:
        if self._keys is not None:
            return self._keys.join_secret
        if self._suite != PLAIN_SUITE:
            raise Closed("the keys of this connection are not agreed on yet")
        return NO_JOIN_SECRET

    def _send(self, message: schema.Message) -> None:
        # Whatever else there is to say when no connection is open, RESUME and LEDGER will say.
        if self.state is states.Session.OPEN or isinstance(message, SAID_BEFORE.get(self.state, schema.Goodbye)):
            self._put(schema.encode(message))

    def _queue(self, data: bytes, *, answer: bool = True) -> None:
        if self.state is states.Session.OPEN:
            self._put(data, answer=answer)

    def _put(self, data: bytes, *, answer: bool = True) -> None:
        if self._closed:
            return
        self._out += data
        self._answers_bytes += len(data) if answer else 0
        if self._answers_bytes > self._most_queued:
            self._close("fail", LinkLost("the peer does not read its control messages"))

    def _queue_offer(self, data: bytes) -> None:
        if self._out and len(self._out) + len(data) > self._most_queued:
            raise LimitExceeded(
                f"{len(self._out)} bytes of control messages wait to be sent, and the offer takes {len(data)} more",
                hint="offer again once the peer has read them; or raise Config.max_message_bytes here",
            )
        if self.state is states.Session.OPEN:
            self._out += data

    def _fail(self, error: ProtocolError) -> None:
        self._send(schema.Goodbye("protocol", self._told(str(error))))
        self._close("fail", error)

    def _close(self, what: str, error: KvwireError) -> None:
        if self._closed:
            return
        self.state = states.SESSION[self.state, what]
        self._outgoing.clear()
        self._incoming.clear()
        self._events.append(events.Closed(error))
