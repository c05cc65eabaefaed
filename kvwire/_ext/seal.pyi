from typing import Literal

from kvwire._ext.cipher import Cipher

MOST: tuple[int, int, float]
"""Bytes, frames and seconds that one key may seal."""

_Kind = Literal["data", "ack", "receipt"]

class Sealer:
    """Seals the frames of one lane and direction, in order from 0.

    `rekey`: bytes, frames and seconds after which the next key follows. ValueError where one is 0 or more than `MOST`,
    and for a secret that has not 32 bytes.
    """

    def __init__(self, cipher: Cipher, secret: bytes, rekey: tuple[int, int, float] = ...) -> None: ...
    @property
    def epoch(self) -> int:
        """Of the latest frame, from 1."""

    @property
    def sequence(self) -> int:
        """Of the next frame."""

    def seal(self, type: _Kind, transfer: int, segment: int, cell: int, payload: bytes, now_ns: int = 0) -> bytes:
        """The next frame: 48-byte header, sealed payload, 16-byte tag."""

class Opener:
    """Opens the frames of one lane and direction, in order from 0."""

    def __init__(self, cipher: Cipher, secret: bytes) -> None: ...
    @property
    def epoch(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    def open(
        self, data: bytes, max_len: int
    ) -> tuple[str, int] | tuple[Literal["ok"], int, _Kind, int, int, int, bytes]:
        """("ok", bytes of the frame, type, transfer, segment, cell, payload), ("incomplete", 0), or (what is wrong: one
        of `frame.ERRORS`, 0), after which a lane ends."""
