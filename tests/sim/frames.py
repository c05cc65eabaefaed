"""The frames of a lane, one direction or both: with a checksum, or sealed as the engine seals them, by its own code."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from kvwire._ext import frame
from kvwire._ext.cipher import Cipher
from kvwire._ext.seal import Opener, Sealer

HEADER = struct.Struct("<IBBBBIIQQIIII")
TAG_BYTES = 16

Kind = Literal["data", "ack", "receipt"]
_KINDS: dict[int, Kind] = {1: "data", 2: "ack", 3: "receipt"}


@dataclass(frozen=True)
class Frame:
    """A whole frame that is what was sent."""

    kind: Kind
    transfer: int
    segment: int
    cell: int
    payload: bytes


Next = Frame | str | None
"""The next frame of a stream, or what is wrong with it, or None while it is not there whole."""


def _reach(stream: bytearray, limit: int) -> int:
    """Where the first frame of a stream ends, if its header is right."""
    return HEADER.size + min(HEADER.unpack_from(stream)[11], limit) if len(stream) >= HEADER.size else 0


class PlainFrames:
    """Of a lane in the clear."""

    whole_batches: Literal[False] = False
    """A frame that the kernel has not begun to take goes back to the queue."""
    epochs = (0, 0)

    def __init__(self) -> None:
        self._sequence = 0

    def encode(
        self, kind: Kind, sequence: int, transfer: int = 0, segment: int = 0, cell: int = 0, payload: bytes = b""
    ) -> bytes:
        return frame.encode(kind, sequence, transfer, segment, cell, payload)

    def take(self, stream: bytearray, limit: int) -> Next:
        """Take the first frame from what has come."""
        verdict, whole = frame.check(bytes(stream[: _reach(stream, limit)]), self._sequence, limit)
        if verdict != "ok":
            return None if verdict == "incomplete" else verdict
        _, _, kind, _, _, _, segment, _, transfer, cell, _, _, _ = HEADER.unpack_from(stream)
        payload = bytes(stream[HEADER.size : whole])
        del stream[:whole]
        self._sequence += 1
        return Frame(_KINDS[kind], transfer, segment, cell, payload)


class SealedFrames:
    """Of a lane with keys: `secrets` is what it sends under and what it receives under."""

    whole_batches: Literal[True] = True
    """What is sealed once is sent: its number, and so its nonce, is not given to another frame."""

    def __init__(self, cipher: Cipher, secrets: tuple[bytes, bytes], rekey: tuple[int, int, float]) -> None:
        self._sealer = Sealer(cipher, secrets[0], rekey)
        self._opener = Opener(cipher, secrets[1])

    @property
    def epochs(self) -> tuple[int, int]:
        """Of the keys in use, out and in."""
        return self._sealer.epoch, self._opener.epoch

    def encode(
        self, kind: Kind, sequence: int, transfer: int = 0, segment: int = 0, cell: int = 0, payload: bytes = b""
    ) -> bytes:
        assert sequence == self._sealer.sequence
        return self._sealer.seal(kind, transfer, segment, cell, payload)

    def take(self, stream: bytearray, limit: int) -> Next:
        """Take the first frame from what has come."""
        opened = self._opener.open(bytes(stream[: _reach(stream, limit) + TAG_BYTES]), limit)
        if len(opened) == 2:
            return None if opened[0] == "incomplete" else opened[0]
        _, whole, kind, transfer, segment, cell, payload = opened
        del stream[:whole]
        return Frame(kind, transfer, segment, cell, payload)


class Batch:
    """Runs of cells that a lane has claimed and not yet given to the kernel, behind its control frames."""

    def __init__(self, control: bytes, sequence: int) -> None:
        self.control = control
        self.sequence = sequence
        self.runs: list[tuple[int, int, int, int]] = []
        self.cells = 0


def starts(frames: list[bytes]) -> list[int]:
    """Where each of these begins when they lie one behind the other."""
    found, at = [], 0
    for data in frames:
        found.append(at)
        at += len(data)
    return found
