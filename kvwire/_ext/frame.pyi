from typing import Literal

ERRORS: tuple[str, ...]
TYPES: dict[str, int]

def encode(
    type: Literal["data", "ack", "receipt"],
    sequence: int,
    transfer: int = 0,
    segment: int = 0,
    cell: int = 0,
    payload: bytes = b"",
    codec: int = 0,
    plain_len: int | None = None,
) -> bytes:
    """One plain frame: 48-byte header, payload, CRC32C in the header. `plain_len`: of a cell that a codec made shorter;
    None: that of the payload."""

def check(data: bytes, sequence: int, max_len: int) -> tuple[str, int]:
    """What a receiver that expects `sequence` says to `data`: ("ok", bytes of the frame), ("incomplete", 0), or
    (what is wrong: one of `ERRORS`, 0)."""
