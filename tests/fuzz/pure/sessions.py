"""Two sessions, and any order of what may happen to them: calls, bytes in pieces, lost connections, time.

One half of the inputs is honest: both sides are kvwire's and bytes are lost with their connection only, as in
tests/unit/test_wire_stateful.py, whose rules they drive. In the other half bytes are changed, forged and said twice,
calls are mistaken, and a side may come back as another life; less is promised then, and never another error.

What all begin with was done once and is copied: an execution is to be the steps that its bytes say, thousands a second.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

from kvwire.config import Config
from kvwire.errors import KvwireError, LinkLost, LocalError, ProtocolError
from kvwire.types import BlockRange, Grant, Manifest
from kvwire.wire import CodecTag, Role, Session, events, parse_join, schema, states
from kvwire.wire.keys import LaneSecrets
from kvwire.wire.manifest import pack_manifest, pack_runs
from kvwire.wire.preamble import PREAMBLE_BYTES
from kvwire.wire.transfers import Transfers
from tests.fuzz.pure.reading import Cursor
from tests.unit.test_wire_stateful import TwoSessions
from tests.unit.wire_pair import SPECS, Pair, drain_all, make_manifest, whole

UNDER_TEST = (
    "kvwire.wire.session",
    "kvwire.wire.exchange",
    "kvwire.wire.offers",
    "kvwire.wire.codecs",
    "kvwire.wire.transfers",
    "kvwire.wire.tickets",
    "kvwire.wire.states",
)

MOST_STEPS = 16
MAX_LEN = 160
"""Bytes of an input: what so many steps read, and some to spare."""
TRANSFERS = 3
CONFIG = Config(
    max_message_bytes=65536,
    max_transfers=TRANSFERS,
    ping_interval_s=10.0,
    handshake_timeout_s=5.0,
    resume_timeout_s=60.0,
)
MANIFESTS = [make_manifest(f"r{number}", tokens=40) for number in range(5)]
SMALL = [Manifest.of(f"r{number}", MANIFESTS[0].model, 40, SPECS[:1]) for number in range(5)]
PACKED = pack_manifest(MANIFESTS[0])
WHOLE = whole(MANIFESTS[0])
RUNS = pack_runs(WHOLE)
ZSTD, INT8 = CodecTag("zstd", 1, True), CodecTag("int8", 4, False)
TAKEN = ((ZSTD, INT8), (ZSTD,), (), (INT8, CodecTag("zstd", 2, True)))
"""What a side takes: the dialler the first, the acceptor in each of its lives another one."""
WANTED = ((ZSTD, INT8, None), (INT8,) * 3, ())
IDS: tuple[list[int], ...] = ([], [1, 0, 4], [0, 0, 0], [4, 4, 4], [200, 0, 0], [1])
"""What forged offers name; not all of it can be."""
CODES = ("", "aborted", "refused", "model", "busy", "deadline", "protocol", "closed")


SHARED: list[Any] = []
"""What copies have in common: nobody changes it."""


class _Pickler(pickle.Pickler):
    def persistent_id(self, it: Any) -> int | None:
        tables = states.OUTGOING, states.INCOMING, states.SESSION
        if not isinstance(it, Manifest | Grant | Config | schema.Hello) and not any(it is table for table in tables):
            return None
        if not any(it is each for each in SHARED):
            SHARED.append(it)
        return next(number for number, each in enumerate(SHARED) if each is it)


class _Unpickler(pickle.Unpickler):
    persistent_load = SHARED.__getitem__


def _keep(it: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(it)
    return file.getvalue()


def _copy(kept: bytes) -> Any:
    return _Unpickler(io.BytesIO(kept)).load()


def fuzz(data: bytes) -> None:
    cursor = Cursor(data)
    how = cursor.byte()
    if how & 1:
        _honest(cursor, STARTS[how >> 1 & 3], to_the_end=how >> 3 & 3 == 0)
    else:
        _hostile(cursor)


# --- both are kvwire's ------------------------------------------------------------------------------------------------


class Small(TwoSessions):
    """With manifests of one group: nobody looks at them here but for what is granted."""

    manifests = SMALL


class Begun(Small):
    """As it was kept, without what hypothesis needs of it."""

    def __init__(self, kept: bytes) -> None:
        self.__dict__ = _copy(kept)


NAMES = "pair", "sessions", "up", "under_way", "asked", "aborted", "wanted", "granted", "committed"


def _begin(transfers: int) -> bytes:
    both = type("", (Small,), {"begun": transfers})()
    return _keep({name: getattr(both, name) for name in NAMES})


STARTS = [_begin(transfers) for transfers in (1, 1, 2, 3)]


def _honest(cursor: Cursor, start: bytes, *, to_the_end: bool) -> None:
    """The rules, invariants and end of `TwoSessions`, in the order that the bytes say. `to_the_end`: until no transfer
    is left, which takes as long as some steps."""
    both = Begun(start)
    flag, word = cursor.flag, cursor.word
    rules: list[Callable[[], None]] = [
        lambda: both.offer(flag(), word(), cursor.choose((90.0, 1.0)), cursor.choose((180.0, 2.0))),
        lambda: both.answer(flag(), word(), flag()),
        lambda: both.abort(flag(), flag(), word(), flag()),
        lambda: both.commit(flag(), word()),
        lambda: both.receipt(flag()),
        lambda: both.quiet(flag()),
        lambda: both.ledger(flag(), flag()),
        lambda: both.travel(flag(), cursor.choose((1 << 20, 1, 50))),
        lambda: both.travel_a_message(flag()),
        both.travel_both_ways,
        lambda: both.tick(cursor.choose((0.1, 0.5, 2.0, 31.0)), flag(), flag()),
        both.cut,
        lambda: None if both.up else both.notice(flag()),
        lambda: None if both.up or both.pair.dialler.state is not states.Session.SUSPENDED else both.connect(),
    ]
    for _ in range(MOST_STEPS):
        if not cursor or both.pair.now > 3000.0:
            break
        cursor.choose(rules)()
        both.not_over()
    both.agree()
    if to_the_end:
        both.run_out()


# --- anything may come ------------------------------------------------------------------------------------------------


class Shared:
    """Keys that cost nothing: who has heard the same HELLOs has the same. Real ones are no matter of a session's."""

    def __init__(self, role: Role, secret: bytes) -> None:
        self._role = role
        self._secret = secret
        self.join_secret = self._of(b"join")

    def _of(self, what: bytes) -> bytes:
        return sha256(self._secret + what).digest()

    def finished(self, role: Role) -> bytes:
        return self._of(role.encode())

    def lane(self, lane: int, incarnation: int, acceptor_random: bytes, dialler_random: bytes) -> LaneSecrets:
        common = b"%d %d" % (lane, incarnation) + acceptor_random + dialler_random
        dialler, acceptor = self._of(b"dialler" + common), self._of(b"acceptor" + common)
        return (dialler, acceptor) if self._role == "dialler" else (acceptor, dialler)


class Half:
    """Of an agreement on such keys."""

    def __init__(self, role: Role) -> None:
        self._role: Role = role
        self.share = sha256(role.encode()).digest()

    def agree(self, ours: bytes, theirs: bytes, our_random: bytes, their_random: bytes, share: bytes) -> Shared:
        if share == self.share or len(share) != 32:
            raise ProtocolError("the peer's share gives no secret")
        heard = (ours, our_random, theirs, their_random)
        return Shared(
            self._role, sha256(b"".join(heard if self._role == "dialler" else heard[2:] + heard[:2])).digest()
        )


class Keyed(Pair):
    """With such keys, where it is sealed."""

    def agreements(self) -> tuple[Any, Any]:
        return (Half("dialler"), Half("acceptor")) if self.sealed else (None, None)


class Side:
    """One session, and what has been told of its transfers in this life of the link."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.under_way = bytearray()
        self.offered: set[int] = set()  # ids that this side has given out
        self.heard: set[int] = set()  # ids that it was offered
        self.ended: dict[int, str] = {}  # what it was told of its own that are over
        self.outcomes: dict[int, str] = {}  # of those that it received
        self.tickets: list[events.Ticket] = []
        self.owes: set[int] = set()  # has to be drained
        self.wanted: list[int] = []
        self.closed = False

    def told(self, event: events.Event) -> None:
        assert not self.closed, f"{event} after the end"
        match event:
            case events.Offered() | events.Declined():
                ids = event.codecs if isinstance(event, events.Offered) else ()
                assert len(ids) in (0, len(event.manifest.groups)), ids
                assert {0}.issuperset(set(ids) - {tag.id for tag in self.session._codecs}), ids
                assert event.transfer not in self.heard, f"transfer {event.transfer} was on offer before"
                self.heard.add(event.transfer)
            case events.Aborted():
                assert event.transfer not in self.owes
                self.owes.add(event.transfer)
            case events.Refused() | events.Dropped() | events.Drained() | events.CommitLearnt():
                self._end(event.transfer, type(event).__name__)
            case events.LedgerWanted():
                self.wanted.append(event.transfer)
            case events.Ticket():
                self.tickets.append(event)
            case events.Restarted():
                self.heard.clear()
                self.outcomes.clear()
                new = set(event.again.values())
                assert not new & self.offered, "an id was used twice"
                self.offered |= new
            case events.Closed():
                assert isinstance(event.error, KvwireError)
                self.closed = True

    def _end(self, transfer: int, how: str) -> None:
        before = self.ended.setdefault(transfer, how)
        # A commit that was learnt is over once `transfer_done` is called, and may be learnt on each connection before.
        assert before == how, f"transfer {transfer} has ended twice: {before}, {how}"

    def check(self) -> None:
        """Tables and buffers are bounded; what has become of a transfer does not change."""
        session = self.session
        assert len(session._outgoing) <= 2 * TRANSFERS
        assert len(session._incoming) <= 2 * TRANSFERS
        most = CONFIG.max_message_bytes
        assert len(session._reader._buffer) <= most + schema.LENGTH_BYTES
        assert len(session._out) <= (5 + 2 * TRANSFERS) * most
        assert session.role == "dialler" or len(session._tickets._out) <= 64
        outcomes = session.outcomes()
        for transfer, outcome in self.outcomes.items():
            assert outcomes.get(transfer, outcome) == outcome, f"transfer {transfer}: {outcome}, {outcomes[transfer]}"
        self.outcomes = outcomes
        assert not outcomes.keys() & set(session._incoming.ids()), "over and under way"
        timer = session.next_timer()
        assert (timer is None) is (session.state is states.Session.CLOSED)


class Hostile:
    """A pair of sessions, and what a byte string does to them."""

    def __init__(self, *, sealed: bool) -> None:
        self.cursor = Cursor(b"")
        self.pair = Keyed(CONFIG, CONFIG, greet=False, sealed=sealed)
        ours, theirs = self.pair.agreements()
        names = b"d" * 16, b"D" * 32, b""
        self.pair.dialler = Session("dialler", CONFIG, *names, self.pair.now, ours, codecs=TAKEN[0])
        names = b"a" * 16, b"A" * 32, b"L" * 16
        self.pair.acceptor = Session("acceptor", CONFIG, *names, self.pair.now, theirs, codecs=TAKEN[1])
        self.sides = [Side(self.pair.dialler), Side(self.pair.acceptor)]
        self.up = True
        self.lives = 1

    def step(self) -> None:
        cursor = self.cursor
        number = cursor.byte()
        side = self.sides[number & 1]
        what = (number >> 1) % len(STEPS)
        with contextlib.suppress(LocalError):  # of a call that could not be made
            STEPS[what](self, side)
        for each in self.sides:
            self._listen(each)
        side.check()

    def _listen(self, side: Side) -> None:
        for event in drain_all(side.session):
            side.told(event)
            if isinstance(event, events.Suspended):
                side.owes.clear()
                side.wanted.clear()
                self._cut(side)

    # What may happen:

    def _offer(self, side: Side) -> None:
        cursor = self.cursor
        how = {"timeout_s": cursor.choose((20.0, 1.0, 0.0, math.nan)), "deadline_s": cursor.choose((60.0, 2.0, 1e9))}
        manifest, klass = cursor.choose(MANIFESTS), cursor.choose((1, 0, 2, 3))
        codecs = WANTED[side.session._next_id // 2 % len(WANTED)]
        transfer = side.session.offer(self.pair.now, manifest, klass=klass, codecs=codecs, **how)
        assert transfer not in side.offered, "an id was used twice"
        side.offered.add(transfer)

    def _id(self, side: Side) -> int:
        """One that is under way, or any."""
        kind = self.cursor.byte()
        known = side.session._incoming.ids() if kind & 1 else side.session._outgoing.ids()
        return known[(kind >> 2) % len(known)] if known and kind & 2 else kind >> 2

    def _grant(self, side: Side) -> None:
        choices = (WHOLE, Grant(((),) * 3, 4096), Grant(((BlockRange(0, 1),), (), ()), 4096), Grant((), 1))
        side.session.grant(self.pair.now, self._id(side), self.cursor.choose(choices))

    def _refuse(self, side: Side) -> None:
        side.session.refuse(self.pair.now, self._id(side), self.cursor.choose(CODES), "no")

    def _abort(self, side: Side) -> None:
        side.session.abort(self.pair.now, self._id(side), self.cursor.choose(CODES), "no more")

    def _done(self, side: Side) -> None:
        side.session.transfer_done(self._id(side))

    def _drained(self, side: Side) -> None:
        if side.owes:
            side.session.drained(self.pair.now, side.owes.pop())

    def _ledger(self, side: Side) -> None:
        if side.wanted:
            side.session.ledger(self.pair.now, side.wanted.pop(), self.cursor.choose((b"\x01", None, bytes(70000))))

    def arrive(self, number: int, count: int | None) -> None:
        side, other = self.sides[number], self.sides[1 - number]
        said = side.session.data_to_send()
        if self.up:
            side.under_way += said
        data = bytes(side.under_way[:count])
        del side.under_way[:count]
        other.session.receive_data(self.pair.now, data)
        self._listen(other)

    def _travel(self, side: Side) -> None:
        count = self.cursor.byte()
        self.arrive(self.sides.index(side), count if count < 200 else None)

    def _travel_all(self, side: Side) -> None:
        number = self.sides.index(side)
        for each in (number, 1 - number, number, 1 - number):
            self.arrive(each, None)

    def _tick(self, side: Side) -> None:
        self.pair.now += self.cursor.choose((0.1, 1.0, 5.0, 12.0, 31.0, 100.0))
        self._timers(side)
        if self.cursor.flag():
            self._timers(self.sides[1 - self.sides.index(side)])

    def _timers(self, side: Side) -> None:
        side.session.handle_timer(self.pair.now)
        timer = side.session.next_timer()
        assert timer is None or timer > self.pair.now, "a timer that is due again at once"

    def _cut(self, side: Side) -> None:
        del side
        self.up = False
        for each in self.sides:
            each.under_way.clear()

    def _notice(self, side: Side) -> None:
        self._cut(side)
        side.session.lost(self.pair.now, LinkLost("the cable is cut"))

    def _connect(self, side: Side) -> None:
        for each in self.sides:
            self._notice(each)
        self.up = True
        for each, keys in zip(self.sides, self.pair.agreements(), strict=True):
            if each.session.state is states.Session.SUSPENDED:
                each.session.resume(self.pair.now, b"R" * 32, keys, may_restart=side is self.sides[0])

    def _restart(self, side: Side) -> None:
        """The acceptor's process is another one; its dialler has a link that nobody knows."""
        del side
        dialler, gone = self.sides
        self._notice(dialler)
        if dialler.session.state is not states.Session.SUSPENDED:
            return
        self.lives += 1
        ours, theirs = self.pair.agreements()
        boot_id = bytes([self.lives]) * 16 if self.cursor.flag() else gone.session._boot_id
        names, codecs = (boot_id, b"A" * 32, bytes([self.lives]) * 16), TAKEN[self.lives % len(TAKEN)]
        self.pair.acceptor = Session("acceptor", CONFIG, *names, self.pair.now, theirs, codecs=codecs)
        self.sides[1] = Side(self.pair.acceptor)
        dialler.session.resume(self.pair.now, b"R" * 32, ours)
        self.up = True

    def _flip(self, side: Side) -> None:
        """Bytes are changed on their way."""
        side.under_way += side.session.data_to_send()
        if side.under_way:
            at = self.cursor.word() % len(side.under_way)
            side.under_way[at : at + self.cursor.byte() % 4] = self.cursor.take(self.cursor.byte() % 4)

    def _again(self, side: Side) -> None:
        """What is on its way is said twice."""
        side.under_way += side.session.data_to_send()
        side.under_way += side.under_way[: 1 << 12]

    def _forge(self, side: Side) -> None:
        """A message that this side did not say."""
        cursor = self.cursor
        kind, transfer = cursor.byte(), self._id(side) or 1
        reason, count = cursor.choose(CODES), 1 + cursor.byte() % 64
        hello = side.session._hello
        forged: tuple[schema.Message, ...] = (
            schema.Offer(transfer, PACKED, cursor.choose((60.0, 0.5)), cursor.byte() % 3, IDS[count % len(IDS)]),
            schema.Offer(transfer, [*PACKED[:3], cursor.value(), *PACKED[4:]], 60.0, 1),
            schema.GrantMessage(transfer, cursor.choose((RUNS, [b""] * 3, [], [1])), 65536, count),
            schema.Refuse(transfer, reason, reason),
            schema.Abort(transfer, reason, reason),
            schema.Drained(transfer),
            schema.Resume(b"".join(each.to_bytes(8, "little") for each in range(transfer, transfer + count % 8, 2))),
            schema.Ledger(transfer, cursor.choose(LEDGERS), RUNS if count & 1 else [], 65536, b"\x01"),
            schema.Ask(hello.random[:16], transfer),
            schema.Answer(hello.random[:16], transfer, cursor.choose(("committed", "refused", "aborted", "unknown"))),
            schema.Lanes(count),
            schema.LaneTicket(count, count, b"t" * 32, 30.0),
            schema.LaneClosed(count, count, reason, transfer),
            schema.Ping(transfer),
            schema.Pong(transfer),
            schema.Goodbye(reason, reason),
            schema.Finished(b"m" * 32),
            replace(hello, boot_id=bytes([count]) * 16, link_id=cursor.choose((hello.link_id, b"", b"L" * 16))),
        )
        side.under_way += schema.encode(forged[kind % len(forged)])

    def _noise(self, side: Side) -> None:
        side.under_way += self.cursor.piece()

    def _lanes(self, side: Side) -> None:
        cursor, session, now = self.cursor, side.session, self.pair.now
        match cursor.byte() % 5:
            case 0:
                session.request_lanes(now, cursor.byte())
            case 1:
                for _ in range(cursor.choose((1, 1, 1, 2, 2, 3, 4, 80))):
                    session.issue_ticket(now, b"t" * 32)
            case 2 if side.tickets and session.role == "dialler":
                said, secrets = session.use_ticket(side.tickets.pop(), b"j" * 32)
                acceptor = self.sides[1].session
                with contextlib.suppress(ProtocolError):  # of another connection, or too late
                    theirs = acceptor.redeem_ticket(now, parse_join(said[PREAMBLE_BYTES:]))
                    assert theirs == (secrets and secrets[::-1])  # what one sends under the other receives under
            case 3:
                session.lane_closed(now, cursor.byte() % 4, 1 + cursor.byte() % 4, "lost", cursor.byte())
            case _:
                assert session.tickets_out(now) <= 64

    def _talk(self, side: Side) -> None:
        match self.cursor.byte() % 8:
            case 0:
                side.session.close(self.pair.now, "enough")
            case 1 | 2 | 3:
                side.session.ask(b"L" * 16, 1 + self.cursor.byte())
            case _:
                side.session.answer(b"L" * 16, 1 + self.cursor.byte(), self.cursor.choose(("committed", "unknown")))

    def end(self) -> None:
        """Every wait has an end: nobody says anything more, and nothing is under way in the end."""
        for side in self.sides:
            for transfer in side.session._incoming.ids() + side.session._outgoing.ids():
                if side.session._table(transfer).may(transfer, "drained"):  # the one wait that this side itself ends
                    side.session.drained(self.pair.now, transfer)
            for _ in range(2):
                self.pair.now += 1e6
                self._timers(side)
            self._listen(side)
            side.check()
            assert not side.session._incoming.ids(), "a deadline did not fire"
            assert not side.session._outgoing.ids(), "a deadline did not fire"


LEDGERS = ("offered", "active", "committed", "refused", "aborted", "unknown", "forgotten")
STEPS: tuple[Callable[[Hostile, Side], None], ...] = (
    Hostile._offer,
    Hostile._grant,
    Hostile._refuse,
    Hostile._abort,
    Hostile._done,
    Hostile._drained,
    Hostile._ledger,
    Hostile._travel,
    Hostile._travel_all,
    Hostile._tick,
    Hostile._notice,
    Hostile._cut,
    Hostile._connect,
    Hostile._restart,
    Hostile._flip,
    Hostile._again,
    Hostile._forge,
    Hostile._noise,
    Hostile._lanes,
    Hostile._talk,
)


def _hostile_start(*, sealed: bool, greeted: bool) -> bytes:
    both = Hostile(sealed=sealed)
    if greeted:
        for number in (0, 1, 0):
            both.arrive(number, None)
    return _keep(both)


HOSTILE = {
    (sealed, greeted): _hostile_start(sealed=sealed, greeted=greeted)
    for sealed in (False, True)
    for greeted in (False, True)
}


def _hostile(cursor: Cursor) -> None:
    both: Hostile = _copy(HOSTILE[cursor.byte() % 8 == 7, cursor.byte() % 8 != 0])
    both.cursor = cursor
    for _ in range(MOST_STEPS):
        if not cursor:
            break
        both.step()
    both.end()


def plant() -> None:
    """A table that takes an id twice."""

    def is_new(self: Transfers, transfer: int) -> bool:
        return transfer >= self.newest or transfer in self._to_come

    Transfers.is_new = is_new  # type: ignore[method-assign]
