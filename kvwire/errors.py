"""Every error kvwire raises: one root, and the type says who is to blame.

`LocalError`: the caller asked for something impossible; nothing was sent. `RemoteError`: the peer broke the
protocol, refused, or gave up. `NetworkError`: neither; the path between them failed. Any other exception that
leaves kvwire is a bug in kvwire.

`retriable` is a property of the class: whether the same call, unchanged, may succeed later. `hint` says what to
do about it.
"""

from __future__ import annotations

from typing import ClassVar


class KvwireError(Exception):
    """Root of every error that kvwire raises.

    `hint` is one sentence of advice, or None. `retriable` tells whether trying again, unchanged, may help.
    """

    retriable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.hint})" if self.hint else text


# --- the caller -----------------------------------------------------------------------------------------------


class LocalError(KvwireError):
    """The caller asked for something that cannot be done; nothing was sent."""


class ConfigError(LocalError, ValueError):
    """A configuration value is outside what its docstring allows."""


class SpecError(LocalError, ValueError):
    """A group spec, manifest, dtype, shape or stride does not fit what was declared."""


class PlacementError(LocalError, ValueError):
    """Slots overlap, lie outside the pool, are in use, or do not match the blocks on offer."""


class ReadyError(LocalError, ValueError):
    """`ready` named blocks that were not granted, or that were ready before."""


class AttachmentError(LocalError, ValueError):
    """An attachment is too large, was not announced, or was given twice."""


class DuplicateTransfer(LocalError, ValueError):
    """A transfer of this request id is already under way on this link."""


class LimitExceeded(LocalError, ValueError):
    """A manifest or message is larger than a limit both sides agreed on."""


class CodecMismatch(LocalError):
    """The peer does not take a codec that was asked for: it does not know it, or takes nothing lossy."""


class QueueFull(LimitExceeded):
    """More has become ready than the lanes take away: wait, or let `wait_ready` do it. Nothing was queued."""

    retriable: ClassVar[bool] = True


class IdentityError(LocalError, ValueError):
    """A certificate, key, CA, pin file or revocation list of this node cannot be used."""


class PolicyError(LocalError):
    """The policy of this node does not allow what was asked for; nothing was sent."""


class AuditError(LocalError):
    """An audit log cannot be written, or is not what was written."""


class ControllerFault(LocalError, RuntimeError):
    """A congestion controller raised, or decided on a rate that cannot be. Its last good decision holds."""


class LeaseHeld(LocalError, RuntimeError):
    """Memory that a transfer still reads or writes was about to be reused or freed."""


class Closed(LocalError, RuntimeError):
    """The node, link or transfer was used after it was closed."""


class WrongThread(LocalError, RuntimeError):
    """What waits was called on a thread that it would have stopped: the event loop's own, or a worker's, in a codec."""


class DeadlineExceeded(LocalError, TimeoutError):
    """A wait took longer than its caller allowed."""

    retriable = True


# --- the peer -------------------------------------------------------------------------------------------------


class RemoteError(KvwireError):
    """The peer broke the protocol, refused, or gave up."""


class NotKvwire(RemoteError):
    """Whatever answered does not speak kvwire."""


class VersionMismatch(RemoteError):
    """The peer speaks another version of the wire protocol."""


class ModeMismatch(RemoteError):
    """One end is plain and the other one sealed."""


class AuthenticationFailed(RemoteError):
    """The peer's certificate proves nothing here (unknown CA, expired, revoked, without kvwire's names), or the peer
    hung up on ours."""


class NotAllowed(RemoteError):
    """The policy of this node does not allow this peer, or what it asks for."""


class ProtocolError(RemoteError):
    """The peer sent something that the protocol does not allow here."""


class IntegrityError(RemoteError):
    """Bytes arrived that do not match their checksum or their tag."""

    retriable = True


class PeerBusy(RemoteError):
    """The peer takes no more links."""

    retriable = True


class OfferRefused(RemoteError):
    """The receiver does not want this transfer."""

    retriable = True


class ModelMismatch(OfferRefused):
    """The receiver runs another model, revision or KV layout."""

    retriable = False


class ContentMismatch(RemoteError):
    """The blocks on offer are not those that the receiver expects: of another prompt, revision, adapter or layout."""


class PeerAborted(RemoteError):
    """The peer gave the transfer up."""

    retriable = True


# --- the path between -----------------------------------------------------------------------------------------


class NetworkError(KvwireError):
    """The path to the peer failed."""

    retriable = True


class AddressNotFound(NetworkError):
    """The host name does not resolve."""


class ConnectRefused(NetworkError):
    """Nothing listens at the address."""


class ConnectTimeout(NetworkError, TimeoutError):
    """The address, or whoever answered there, said nothing in time."""


class LinkLost(NetworkError):
    """The link went away while it was in use."""


class CommitUnknown(LinkLost):
    """The link went away after the last cell was sent and before the receipt came: the receiver may have all."""
