"""An offer as it leaves: made for the peer that hears it, which may be another one after a restart."""

from __future__ import annotations

from kvwire.errors import LimitExceeded
from kvwire.wire import schema
from kvwire.wire.codecs import ids_for
from kvwire.wire.manifest import pack_manifest
from kvwire.wire.transfers import Entry

RESUMED_BYTES = 16
"""What a transfer may take in a RESUME, at least: a u64, and its part of what is around it."""


def encode_offer(peer: schema.Hello, transfer: int, entry: Entry, deadline_s: float) -> bytes:
    """An encoded OFFER, with the codecs that the peer takes. LimitExceeded where it is more than the peer reads at
    once."""
    ids = ids_for(peer, entry.codecs)
    entry.named = tuple(ids)
    data = schema.encode(schema.Offer(transfer, pack_manifest(entry.manifest), float(deadline_s), entry.klass, ids))
    if len(data) - schema.LENGTH_BYTES > peer.max_message_bytes:
        raise LimitExceeded(
            f"the manifest takes {len(data)} bytes; the peer's limit is {peer.max_message_bytes}",
            hint="larger blocks have fewer hashes; or raise Config.max_message_bytes at the receiver",
        )
    return data


def most_alive(peer: schema.Hello) -> int:
    """How many transfers to a peer may be under way."""
    return min(peer.max_transfers, peer.max_message_bytes // RESUMED_BYTES)
