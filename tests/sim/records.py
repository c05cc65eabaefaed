"""TLS as somebody sees it who reads along: nothing but records (RFC 8446, 5.1) behind kvwire's own first bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvwire.wire import PREAMBLE_BYTES

HEADER_BYTES = 5
APPLICATION_DATA = 23
KINDS = range(20, APPLICATION_DATA + 1)
MOST_BYTES = (1 << 14) + 256


@dataclass(frozen=True)
class Record:
    """From `start` to `end` in one direction of a connection."""

    kind: int
    start: int
    end: int

    def is_length(self, at: int) -> bool:
        """Whether the byte there is of the record's length."""
        return self.start + 3 <= at < self.start + HEADER_BYTES


def records(said: bytes | bytearray) -> Iterator[Record]:
    """Of all that one side has said; of the last one perhaps only the beginning. ValueError for anything else."""
    at = PREAMBLE_BYTES
    while at + HEADER_BYTES <= len(said):
        kind, version, length = said[at], said[at + 1], int.from_bytes(said[at + 3 : at + HEADER_BYTES])
        if kind not in KINDS or version != 3 or length > MOST_BYTES:
            raise ValueError(f"{said[at : at + HEADER_BYTES].hex()} at byte {at} begins no TLS record")
        yield Record(kind, at, at + HEADER_BYTES + length)
        at += HEADER_BYTES + length


def record_at(said: bytes | bytearray, at: int) -> Record | None:
    """The record in which that byte lies; None before the first one."""
    return next((record for record in records(said) if record.start <= at < record.end), None)
