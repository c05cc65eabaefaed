"""What a session tells the one who drives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvwire.errors import KvwireError
from kvwire.types import Grant, Manifest
from kvwire.wire.schema import Hello


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class HelloDone(Event):
    """Both sides have greeted."""

    peer: Hello


@dataclass(frozen=True, slots=True)
class Offered(Event):
    """The peer offers a transfer: grant or refuse it."""

    transfer: int
    manifest: Manifest
    klass: int
    codecs: tuple[int, ...] = ()
    """Ids by group, 0 for none; empty: none for any."""


@dataclass(frozen=True, slots=True)
class Declined(Event):
    """An offer of the peer's was refused without asking: it does not fit, or there are too many."""

    transfer: int
    manifest: Manifest
    reason: str


@dataclass(frozen=True, slots=True)
class Granted(Event):
    """The peer wants these blocks of an offer of ours."""

    transfer: int
    grant: Grant
    codecs: tuple[int, ...] = ()
    """Ids by group, as the offer named them to this life of the peer."""
    decode_Bps: int = 0
    """What the peer decodes, plain bytes per second; 0: it does not say."""


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """The peer declined an offer of ours."""

    transfer: int
    error: KvwireError


@dataclass(frozen=True, slots=True)
class Aborted(Event):
    """The peer gave a transfer up, perhaps while this side did: answer with `drained` once local memory is quiet."""

    transfer: int
    error: KvwireError


@dataclass(frozen=True, slots=True)
class Drained(Event):
    """The peer's memory is quiet after an abort of this side's."""

    transfer: int


@dataclass(frozen=True, slots=True)
class OfferTimedOut(Event):
    """No grant came in time; the peer has been told."""

    transfer: int
    error: KvwireError


@dataclass(frozen=True, slots=True)
class TransferTimedOut(Event):
    """A transfer is past its deadline; the peer has been told."""

    transfer: int
    error: KvwireError


@dataclass(frozen=True, slots=True)
class Ticket(Event):
    """The acceptor lets this side open a lane."""

    lane: int
    incarnation: int
    random: bytes


@dataclass(frozen=True, slots=True)
class LanesWanted(Event):
    """The dialler asks for tickets, in its HELLO or later."""

    count: int


@dataclass(frozen=True, slots=True)
class LaneClosed(Event):
    """A lane has ended at the peer."""

    lane: int
    incarnation: int
    reason: str
    acked: int


@dataclass(frozen=True, slots=True)
class Suspended(Event):
    """The connection is lost; transfers stay until another one resumes the session, or time runs out."""

    error: KvwireError


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """Another connection has greeted; `LedgerWanted`, `LedgerCame` and the like follow."""

    peer: Hello


@dataclass(frozen=True, slots=True)
class Restarted(Event):
    """Another life of the peer has greeted. It knows nothing: transfers to it are offered once more, their new ids by
    the old ones; those from it are `Dropped`.
    """

    peer: Hello
    again: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class LedgerWanted(Event):
    """The peer asks what has landed of a transfer that it sends: answer with `ledger`."""

    transfer: int


@dataclass(frozen=True, slots=True)
class LedgerCame(Event):
    """What the receiver has of a transfer of ours; the rest is to be sent."""

    transfer: int
    landed: bytes


@dataclass(frozen=True, slots=True)
class CommitLearnt(Event):
    """The receiver has committed a transfer of ours; the receipt was lost with the connection."""

    transfer: int


@dataclass(frozen=True, slots=True)
class Dropped(Event):
    """The peer came back without a transfer, or does not take it again."""

    transfer: int
    error: KvwireError


@dataclass(frozen=True, slots=True)
class Asked(Event):
    """The peer asks what became of a transfer: answer with `answer`."""

    link_id: bytes
    transfer: int


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """The peer says what became of a transfer of ours."""

    link_id: bytes
    transfer: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Closed(Event):
    """The session is over."""

    error: KvwireError
