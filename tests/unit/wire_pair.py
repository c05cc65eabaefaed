"""Two control sessions that pass bytes to each other: no socket, and time is a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache, partial
from typing import Any, TypeVar

import msgpack
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from kvwire import Config, DType, GroupKind, GroupSpec, LinkLost, Manifest, ModelTag, ProtocolError
from kvwire.security.schedule import Agreement
from kvwire.types import Grant
from kvwire.wire import Role, Session, events, schema, states
from kvwire.wire.keys import SEALED_SUITE
from kvwire.wire.states import Transfer

CONFIG = Config(max_message_bytes=65536, max_transfers=4, ping_interval_s=10.0, handshake_timeout_s=5.0)
MODEL = ModelTag("a-model", "r1")
SPECS = (
    GroupSpec.attention("full", range(2), DType.BF16, block_tokens=16, heads=2, head_dim=8),
    GroupSpec.attention("window", range(2, 4), DType.BF16, block_tokens=16, heads=2, head_dim=8, window=32),
    GroupSpec.state("ssm", GroupKind.RECURRENT, (4,), DType.FP32, (4, 4)),
)
HELLO = schema.Hello(1, ["crc32c"], b"", b"a" * 16, b"A" * 32, b"L" * 16, "peer", 0, 4, 65536)
TOKENS = 100  # blocks 0..7 of "full", 4..7 of "window"

E = TypeVar("E", bound=events.Event)
Scenario = Callable[[], None]


def make_manifest(
    request_id: str = "r1", *, model: ModelTag = MODEL, tokens: int = TOKENS, specs: Sequence[GroupSpec] = SPECS
) -> Manifest:
    """One full-attention group, one sliding-window group and a state, with a hash for each block."""
    hashes = {s.name: tuple(i.to_bytes(16, "little") for i in range(len(s.blocks_for(tokens)))) for s in specs}
    return Manifest.of(request_id, model, tokens, specs, hashes=hashes)


def whole(manifest: Manifest) -> Grant:
    """A grant of everything that is on offer."""
    return Grant(tuple((offer.blocks,) for offer in manifest.groups), 65536)


def frame(value: object) -> bytes:
    """Any value as it would go over the wire, unchecked."""
    body: bytes = msgpack.packb(value)
    return len(body).to_bytes(4, "little") + body


def messages(data: bytes) -> list[schema.Message]:
    """All messages in these bytes; nothing may be left over."""
    reader = schema.MessageReader(1 << 26)
    reader.feed(data)
    found = []
    while (message := reader.next()) is not None:
        found.append(message)
    assert b"".join(map(schema.encode, found)) == data
    return found


def drain_all(session: Session) -> list[events.Event]:
    """All events that wait to be taken."""
    found = []
    while (event := session.next_event()) is not None:
        found.append(event)
    return found


def drain(session: Session) -> list[events.Event]:
    """All events that wait to be taken, but for the wish for lanes, which comes with every dialler's hello."""
    return [event for event in drain_all(session) if not isinstance(event, events.LanesWanted)]


def only(session: Session, kind: type[E]) -> E:
    """The one event that waits to be taken."""
    (event,) = drain_all(session) if kind is events.LanesWanted else drain(session)
    assert isinstance(event, kind), event
    return event


def broken(session: Session, *words: str) -> None:
    """The session ended by a ProtocolError that says these words, and told the peer."""
    closed = drain(session)[-1]
    assert isinstance(closed, events.Closed)
    assert type(closed.error) is ProtocolError
    assert all(word in str(closed.error) for word in words), closed.error
    goodbye = messages(session.data_to_send())[-1]
    assert isinstance(goodbye, schema.Goodbye)
    assert goodbye.code == "protocol"
    assert session.next_timer() is None


def named(scenario: Callable[..., None], sender: str, **how: object) -> tuple[str, Scenario]:
    """A scenario with its arguments, and what to call it."""
    words = [scenario.__name__, sender, *(f"{name}={value}" for name, value in how.items())]
    return "-".join(words), partial(scenario, sender, **how)


@cache
def certificate(name: str) -> bytes:
    """A certificate in DER; whose does not matter here."""
    key = Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    times = datetime(2026, 1, 1), datetime(2027, 1, 1)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, times[0], times[1])
    return builder.sign(key, None).public_bytes(Encoding.DER)


def agreement(role: Role, private: bytes = b"", **other: Any) -> Agreement:
    """One side's half of the keys."""
    how: dict[str, Any] = {
        "certificates": (certificate("dialler"), certificate("acceptor")),
        "tenants": ("acme", "acme"),
        "private": private or role.encode().ljust(32, b"."),
    }
    return Agreement(role, **how | other)


SEALED_HELLO = replace(HELLO, suites=["aes-256-gcm"], share=agreement("acceptor").share)


class Pair:
    """A dialler and an acceptor that have greeted, unless told not to. `sealed`: with keys."""

    def __init__(
        self, dialler: Config = CONFIG, acceptor: Config = CONFIG, *, greet: bool = True, sealed: bool = False
    ) -> None:
        self.now = 1000.0
        self.sealed = sealed
        ours, theirs = self.agreements()
        self.dialler = Session("dialler", dialler, b"d" * 16, b"D" * 32, b"", self.now, ours, lanes=dialler.lanes or 4)
        self.acceptor = Session("acceptor", acceptor, b"a" * 16, b"A" * 32, b"L" * 16, self.now, theirs)
        if greet:
            self.exchange()
            only(self.dialler, events.HelloDone)
            only(self.acceptor, events.HelloDone)

    def agreements(self) -> tuple[Agreement | None, Agreement | None]:
        """Both halves of the keys of the next connection."""
        return (agreement("dialler"), agreement("acceptor")) if self.sealed else (None, None)

    def exchange(self) -> None:
        """Deliver until both have nothing left to say."""
        while True:
            there, back = self.dialler.data_to_send(), self.acceptor.data_to_send()
            if not there and not back:
                return
            self.acceptor.receive_data(self.now, there)
            self.dialler.receive_data(self.now, back)

    def lose(self, *sessions: Session) -> None:
        """The connection is gone, and all that was under way; these sessions (both where none is named) notice."""
        for session in (self.dialler, self.acceptor):
            session.data_to_send()
        for session in sessions or (self.dialler, self.acceptor):
            session.lost(self.now, LinkLost("the cable is cut"))

    def connect(self) -> None:
        """Another connection; nothing is delivered yet."""
        for session, keys in zip((self.dialler, self.acceptor), self.agreements(), strict=True):
            if session.state is not states.Session.SUSPENDED:
                session.lost(self.now, LinkLost("the cable was cut"))
            session.resume(self.now, b"R" * 32, keys)

    def resume(self) -> None:
        """Another connection, and both have told what they had to tell; no events of it are left."""
        self.connect()
        self.exchange()
        for session in (self.dialler, self.acceptor):
            drain(session)

    def tell(self, session: Session, *said: schema.Message) -> None:
        """Messages that this session hears, whoever might have said them."""
        session.receive_data(self.now, b"".join(map(schema.encode, said)))

    def offer(
        self,
        manifest: Manifest | None = None,
        *,
        by: Session | None = None,
        timeout_s: float = 20.0,
        deadline_s: float = 60.0,
        klass: int = 1,
    ) -> int:
        """Offer a transfer, by the dialler unless told otherwise; it is not delivered yet."""
        who = by or self.dialler
        given = manifest or make_manifest()
        return who.offer(self.now, given, timeout_s=timeout_s, deadline_s=deadline_s, klass=klass)

    def tick(self, seconds: float, sessions: Iterable[Session] = ()) -> None:
        """Time passes at once; the timers of these sessions (of both where none is named) go off."""
        self.now += seconds
        for session in sessions or (self.dialler, self.acceptor):
            session.handle_timer(self.now)


class Way:
    """A pair of sessions, one of which sends a transfer to the other."""

    def __init__(self, sender: str, receiver: Config = CONFIG) -> None:
        self.pair = Pair(acceptor=receiver) if sender == "dialler" else Pair(dialler=receiver)
        self.sender: Session = getattr(self.pair, sender)
        self.receiver = self.pair.acceptor if sender == "dialler" else self.pair.dialler
        self.transfer = 0

    def offer(self, *, deliver: bool = True, request_id: str = "r1") -> int:
        self.transfer = self.pair.offer(make_manifest(request_id), by=self.sender)
        if deliver:
            self.deliver(self.sender)
            assert only(self.receiver, events.Offered).transfer == self.transfer
        return self.transfer

    def grant(self, *, deliver: bool = True) -> None:
        self.receiver.grant(self.pair.now, self.transfer, whole(make_manifest()))
        if deliver:
            self.deliver(self.receiver)
            assert only(self.sender, events.Granted).grant == whole(make_manifest())

    def granted(self) -> None:
        self.offer()
        self.grant()

    def abort(self, session: Session) -> None:
        session.abort(self.pair.now, self.transfer, "aborted", "")

    def deliver(self, said_by: Session) -> None:
        """What one side has said arrives."""
        other = self.receiver if said_by is self.sender else self.sender
        other.receive_data(self.pair.now, said_by.data_to_send())

    def resume(self) -> tuple[list[events.Event], list[events.Event]]:
        """Another connection: what sender and receiver hear on it, once everything is said."""
        self.pair.connect()
        for session in (self.sender, self.receiver):
            drain(session)
        self.pair.exchange()
        told = drain(self.sender), drain(self.receiver)
        for each in told:
            assert isinstance(each.pop(0), events.Resumed)
        return told

    def table(self, session: Session) -> dict[int, Transfer]:
        table = session._outgoing if session is self.sender else session._incoming
        return {transfer: entry.state for transfer, entry in table._entries.items()}

    def both(self, state: Transfer | None) -> None:
        """Both sides agree; None: it is over."""
        expected = {} if state is None else {self.transfer: state}
        assert self.table(self.sender) == self.table(self.receiver) == expected
        assert self.sender.state is self.receiver.state is states.Session.OPEN
        self.pair.exchange()
        assert not drain(self.sender)
        assert not drain(self.receiver)

    def finish(self) -> None:
        """From granted to the end."""
        self.both(Transfer.ACTIVE)
        self.receiver.transfer_done(self.transfer)
        self.sender.transfer_done(self.transfer)
        self.both(None)


def act(session: Session, now: float, what: str) -> None:
    """What the SESSION table names, done to a dialler; sealed or not, it hears what the name says."""
    if what == "recv hello":
        session.receive_data(now, schema.encode(HELLO))
    elif what == "recv sealed hello":
        session.receive_data(now, schema.encode(SEALED_HELLO))
    elif what == "recv finished":
        mac = bytes(32) if session._keys is None else session._keys.finished("acceptor")
        session.receive_data(now, schema.encode(schema.Finished(mac)))
    elif what == "recv goodbye":
        session.receive_data(now, schema.encode(schema.Goodbye("closed", "done")))
    elif what == "time out":
        for _ in range(4):
            session.handle_timer(session.next_timer() or now)
    elif what == "fail":
        session.receive_data(now, frame("what?"))
    elif what == "lose":
        session.lost(now, LinkLost("the cable is cut"))
    elif what == "resume":
        session.resume(now, b"R" * 32, agreement("dialler") if session._suite == SEALED_SUITE else None)
    else:
        session.close(now, "done")
