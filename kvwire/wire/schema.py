"""Control messages: a declared schema, msgpack maps, length-prefixed and bounded.

On the wire a message is a little-endian u32 length and that many bytes of msgpack: a map from field name to value,
with "t" for its type. Fields that are not declared are ignored, so that a later version may add some.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import msgpack

from kvwire.errors import ProtocolError, SpecError
from kvwire.wire.codecs import are_ids, are_tags
from kvwire.wire.content import fields_of

LENGTH_BYTES = 4
MAX_RESUMED = 1 << 17
"""Transfers in a RESUME: twice the largest Config.max_transfers."""
REASON_CHARS = 2048
U64 = (1 << 64) - 1
U32 = (1 << 32) - 1

Check = Callable[[object], bool]


def integer(low: int, high: int) -> Check:
    """An int (no bool) in `low` to `high`."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def text(most: int) -> Check:
    """A str of at most `most` printable characters: it may end up in a log, or on a terminal."""
    return lambda value: isinstance(value, str) and len(value) <= most and value.isprintable()


def blob(*sizes: int) -> Check:
    """Bytes of one of the sizes."""
    return lambda value: isinstance(value, bytes) and len(value) in sizes


def duration(value: object) -> bool:
    """Seconds, above 0 and at most a week."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 7 * 86400


def blob_up_to(most: int, unit: int = 1) -> Check:
    """Bytes, at most `most`, in whole units."""
    return lambda value: isinstance(value, bytes) and len(value) <= most and len(value) % unit == 0


def names(value: object) -> bool:
    """A list of 1 to 8 short names."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= 8
        and all(isinstance(name, str) and len(name) <= 32 for name in value)
    )


def one_of(*texts: str) -> Check:
    """One of these."""
    return lambda value: isinstance(value, str) and value in texts


def array(value: object) -> bool:
    """A list; its content is checked by whoever decodes it."""
    return isinstance(value, list)


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages. `CHECKS` says what each field must be; `TYPE` is the "t" on the wire."""

    TYPE: ClassVar[str]
    CHECKS: ClassVar[dict[str, Check]]


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """Who each side is and what it takes. First on a control connection, from both sides."""

    TYPE: ClassVar[str] = "hello"
    CHECKS: ClassVar[dict[str, Check]] = {
        "version": integer(1, 65535),
        "suites": names,
        "share": blob(0, 32),
        "boot_id": blob(16),
        "random": blob(32),
        "link_id": blob(0, 16),
        "software": text(64),
        "lanes": integer(0, 64),
        "max_transfers": integer(1, 65536),
        "max_message_bytes": integer(65536, 1 << 26),
        "codecs": are_tags,
    }
    version: int
    """Wire version: that of the preamble, which nothing protects."""
    suites: list[str]
    """What may protect the frames, the best first."""
    share: bytes
    """The public half of an ephemeral X25519 key (RFC 7748); empty on a plain link."""
    boot_id: bytes
    random: bytes
    link_id: bytes
    """The acceptor's choice. From the dialler: empty, or the link that it resumes."""
    software: str
    lanes: int
    """Lanes the dialler wants."""
    max_transfers: int
    max_message_bytes: int
    codecs: list[list[Any]] = field(default_factory=list)
    """What this side decodes, and takes: name, id, and whether every bit comes back."""


@dataclass(frozen=True, slots=True)
class Finished(Message):
    """After HELLO on a sealed link, from both sides: this side has agreed on the same keys."""

    TYPE: ClassVar[str] = "finished"
    CHECKS: ClassVar[dict[str, Check]] = {"mac": blob(32)}
    mac: bytes


@dataclass(frozen=True, slots=True)
class Offer(Message):
    """A transfer is on offer."""

    TYPE: ClassVar[str] = "offer"
    CHECKS: ClassVar[dict[str, Check]] = {
        "transfer": integer(1, U64),
        "manifest": array,
        "deadline_s": duration,
        "klass": integer(0, 2),
        "codecs": are_ids,
    }
    transfer: int
    manifest: list[Any]
    deadline_s: float
    klass: int
    codecs: list[int] = field(default_factory=list)
    """By group, what its cells may have been through, 0: nothing. Empty: no cell of any group."""


@dataclass(frozen=True, slots=True)
class GrantMessage(Message):
    """The receiver wants these blocks."""

    TYPE: ClassVar[str] = "grant"
    CHECKS: ClassVar[dict[str, Check]] = {
        "transfer": integer(1, U64),
        "runs": array,
        "cell_bytes": integer(4096, 256 * 1024),
        "decode_Bps": integer(0, U64),
    }
    transfer: int
    runs: list[Any]
    cell_bytes: int
    decode_Bps: int = 0
    """Plain bytes per second that this side can decode; 0: it has not decoded anything yet."""


@dataclass(frozen=True, slots=True)
class Refuse(Message):
    """The receiver does not want the transfer. `code`: "refused", "model", "busy"."""

    TYPE: ClassVar[str] = "refuse"
    CHECKS: ClassVar[dict[str, Check]] = {"transfer": integer(1, U64), "code": text(32), "reason": text(REASON_CHARS)}
    transfer: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Abort(Message):
    """A side gives the transfer up."""

    TYPE: ClassVar[str] = "abort"
    CHECKS: ClassVar[dict[str, Check]] = {"transfer": integer(1, U64), "code": text(32), "reason": text(REASON_CHARS)}
    transfer: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drained(Message):
    """Answer to ABORT: this side's memory is no longer read or written for the transfer."""

    TYPE: ClassVar[str] = "drained"
    CHECKS: ClassVar[dict[str, Check]] = {"transfer": integer(1, U64)}
    transfer: int


@dataclass(frozen=True, slots=True)
class Resume(Message):
    """First after HELLO on a link that is resumed, from both sides: transfers of its own that a side has under way."""

    TYPE: ClassVar[str] = "resume"
    CHECKS: ClassVar[dict[str, Check]] = {"transfers": blob_up_to(MAX_RESUMED * 8, 8)}
    transfers: bytes
    """Ids, u64 little-endian, rising."""


@dataclass(frozen=True, slots=True)
class Ledger(Message):
    """The receiver's answer to RESUME, for each transfer: what has become of it here.

    `state`: "offered" (not granted yet), "active", "committed", "refused", "aborted", "unknown" (the offer never
    came) or "forgotten". An active one repeats its grant, with a bit for each cell that has landed: in segment
    order, attachment last, lowest bit first.
    """

    TYPE: ClassVar[str] = "ledger"
    CHECKS: ClassVar[dict[str, Check]] = {
        "transfer": integer(1, U64),
        "state": one_of("offered", "active", "committed", "refused", "aborted", "unknown", "forgotten"),
        "runs": array,
        "cell_bytes": integer(0, 256 * 1024),
        "landed": blob_up_to(1 << 26),
    }
    transfer: int
    state: str
    runs: list[Any]
    cell_bytes: int
    landed: bytes


@dataclass(frozen=True, slots=True)
class Ask(Message):
    """What has become of a transfer that was offered over a link, perhaps another one, that is lost for good?"""

    TYPE: ClassVar[str] = "ask"
    CHECKS: ClassVar[dict[str, Check]] = {"link_id": blob(16), "transfer": integer(1, U64)}
    link_id: bytes
    transfer: int


@dataclass(frozen=True, slots=True)
class Answer(Message):
    """Answer to ASK. `outcome`: "committed", "refused", "aborted", or "unknown": never seen, or forgotten."""

    TYPE: ClassVar[str] = "answer"
    CHECKS: ClassVar[dict[str, Check]] = {
        "link_id": blob(16),
        "transfer": integer(1, U64),
        "outcome": one_of("committed", "refused", "aborted", "unknown"),
    }
    link_id: bytes
    transfer: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Lanes(Message):
    """The dialler asks for tickets for further lanes; the acceptor says how many what it sends is worth in all."""

    TYPE: ClassVar[str] = "lanes"
    CHECKS: ClassVar[dict[str, Check]] = {"count": integer(1, 64)}
    count: int


@dataclass(frozen=True, slots=True)
class LaneTicket(Message):
    """The right to open one lane, once, within `valid_s`."""

    TYPE: ClassVar[str] = "ticket"
    CHECKS: ClassVar[dict[str, Check]] = {
        "lane": integer(0, U32),
        "incarnation": integer(1, U32),
        "random": blob(32),
        "valid_s": duration,
    }
    lane: int
    incarnation: int
    random: bytes
    """On a plain link the whole of the right; on a sealed one JOIN takes the link's join secret, too."""
    valid_s: float


@dataclass(frozen=True, slots=True)
class LaneClosed(Message):
    """A lane has ended on this side; `acked` repeats its last cumulative acknowledgement."""

    TYPE: ClassVar[str] = "lane_closed"
    CHECKS: ClassVar[dict[str, Check]] = {
        "lane": integer(0, U32),
        "incarnation": integer(1, U32),
        "reason": text(REASON_CHARS),
        "acked": integer(0, U64),
    }
    lane: int
    incarnation: int
    reason: str
    acked: int


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Are you there?"""

    TYPE: ClassVar[str] = "ping"
    CHECKS: ClassVar[dict[str, Check]] = {"token": integer(0, U64)}
    token: int


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """Yes."""

    TYPE: ClassVar[str] = "pong"
    CHECKS: ClassVar[dict[str, Check]] = {"token": integer(0, U64)}
    token: int


@dataclass(frozen=True, slots=True)
class Goodbye(Message):
    """This side closes the link and says why."""

    TYPE: ClassVar[str] = "goodbye"
    CHECKS: ClassVar[dict[str, Check]] = {"code": text(32), "reason": text(REASON_CHARS)}
    code: str
    reason: str


MESSAGES: dict[str, type[Message]] = {
    message.TYPE: message
    for message in (
        Hello, Finished, Offer, GrantMessage, Refuse, Abort, Drained, Resume, Ledger, Ask, Answer, Lanes, LaneTicket,
        LaneClosed, Ping, Pong, Goodbye,
    )
}  # fmt: skip

DECLARED = {"t"}.union(*(message.CHECKS for message in MESSAGES.values()))
"""Names of fields; what a message has besides is not looked at."""

M = TypeVar("M", bound=Message)


def clip(reason: str) -> str:
    """A reason as it may travel: short, a single line, and nothing that UTF-8 cannot carry."""
    return "".join(c if c.isprintable() else "?" for c in reason[:REASON_CHARS])


def encode(message: Message) -> bytes:
    """A message as it goes over the wire, length prefix included. SpecError for what no peer would accept."""
    content: dict[str, Any] = {"t": message.TYPE}
    for name, check in message.CHECKS.items():
        value = content[name] = getattr(message, name)
        if not check(value):
            raise SpecError(_says(message, name, value))
    body: bytes = msgpack.packb(content)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def _says(shape: Message | type[Message], name: str, value: object) -> str:
    return f"{shape.TYPE}: {name} is {reprlib.repr(value):.80}, which the protocol does not allow"


def decode(body: bytes) -> Message:
    """A message from its msgpack map. ProtocolError names the field and what it should have been."""
    try:
        content = fields_of(body, DECLARED)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"a control message is no msgpack value: {type(error).__name__}: {error!s:.200}") from None
    kind = content.get("t")
    shape = MESSAGES.get(kind) if isinstance(kind, str) else None
    if shape is None:
        raise ProtocolError(f"a control message of unknown type {reprlib.repr(kind):.40}")
    values = {}
    for name, check in shape.CHECKS.items():
        if name not in content:
            raise ProtocolError(f"{shape.TYPE} without {name}")
        if not check(content[name]):
            raise ProtocolError(_says(shape, name, content[name]))
        values[name] = content[name]
    return shape(**values)


class MessageReader:
    """Cuts a byte stream into messages. `limit`: largest body; it may grow once the peer is known. `body`: that of the
    message that `next` gave last, as it came."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.body = b""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Bytes as they came. They are held until `next` has taken them: feed, then drain."""
        self._buffer += data

    def next(self) -> Message | None:
        """The next whole message, or None. ProtocolError before anything over the limit is waited for."""
        if len(self._buffer) < LENGTH_BYTES:
            return None
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "little")
        if length > self.limit:
            raise ProtocolError(f"a control message of {length} bytes; at most {self.limit} are allowed here")
        if len(self._buffer) < LENGTH_BYTES + length:
            return None
        self.body = bytes(self._buffer[LENGTH_BYTES : LENGTH_BYTES + length])
        del self._buffer[: LENGTH_BYTES + length]
        return decode(self.body)
