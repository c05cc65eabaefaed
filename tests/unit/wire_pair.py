"""Two control sessions that pass bytes to each other: no socket, and time is a number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgpack

from kvwire import Config, DType, GroupKind, GroupSpec, Manifest, ModelTag
from kvwire.types import Grant
from kvwire.wire import Session, events, schema

CONFIG = Config(max_message_bytes=65536, max_transfers=4, ping_interval_s=10.0, handshake_timeout_s=5.0)
MODEL = ModelTag("a-model", "r1")
SPECS = (
    GroupSpec.attention("full", range(2), DType.BF16, block_tokens=16, heads=2, head_dim=8),
    GroupSpec.attention("window", range(2, 4), DType.BF16, block_tokens=16, heads=2, head_dim=8, window=32),
    GroupSpec.state("ssm", GroupKind.RECURRENT, (4,), DType.FP32, (4, 4)),
)
HELLO = schema.Hello(b"a" * 16, b"A" * 32, b"L" * 16, "peer", 0, 4, 65536)
TOKENS = 100  # blocks 0..7 of "full", 4..7 of "window"

E = TypeVar("E", bound=events.Event)


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


def drain(session: Session) -> list[events.Event]:
    """All events that wait to be taken."""
    found = []
    while (event := session.next_event()) is not None:
        found.append(event)
    return found


def only(session: Session, kind: type[E]) -> E:
    """The one event that waits to be taken."""
    (event,) = drain(session)
    assert isinstance(event, kind), event
    return event


class Pair:
    """A dialler and an acceptor that have greeted, unless told not to."""

    def __init__(self, dialler: Config = CONFIG, acceptor: Config = CONFIG, *, greet: bool = True) -> None:
        self.now = 1000.0
        self.dialler = Session("dialler", dialler, b"d" * 16, b"D" * 32, b"", self.now)
        self.acceptor = Session("acceptor", acceptor, b"a" * 16, b"A" * 32, b"L" * 16, self.now)
        if greet:
            self.exchange()
            only(self.dialler, events.HelloDone)
            only(self.acceptor, events.HelloDone)

    def exchange(self) -> None:
        """Deliver until both have nothing left to say."""
        while True:
            there, back = self.dialler.data_to_send(), self.acceptor.data_to_send()
            if not there and not back:
                return
            self.acceptor.receive_data(self.now, there)
            self.dialler.receive_data(self.now, back)

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


def act(session: Session, now: float, what: str) -> None:
    """What the SESSION table names."""
    if what == "recv hello":
        session.receive_data(now, schema.encode(HELLO))
    elif what == "recv goodbye":
        session.receive_data(now, schema.encode(schema.Goodbye("closed", "done")))
    elif what == "time out":
        for _ in range(4):
            session.handle_timer(session.next_timer() or now)
    elif what == "fail":
        session.receive_data(now, frame("what?"))
    else:
        session.close(now, "done")
