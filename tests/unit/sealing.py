"""Sealed frames once more, by the `cryptography` package alone: what `kvwire._ext.seal` is compared with."""

import struct
from collections.abc import Mapping

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

HEADER = struct.Struct("<4sBBBBIIQQIIII")
TAG_BYTES = 16
NO_LIES: Mapping[str, int] = {}
TYPES = {"data": 1, "ack": 2, "receipt": 3}


def expand(chain: bytes, label: bytes, length: int) -> bytes:
    info = struct.pack("<H", len(label)) + label
    return HKDFExpand(SHA256(), length, info).derive(chain)


def chains(secret: bytes, epoch: int) -> bytes:
    """The chain that an epoch starts from."""
    for _ in range(epoch - 1):
        secret = expand(secret, b"kvwire next", 32)
    return secret


def key(secret: bytes, epoch: int) -> bytes:
    return expand(chains(secret, epoch), b"kvwire key", 32)


def nonce(secret: bytes, epoch: int, sequence: int) -> bytes:
    iv = expand(chains(secret, epoch), b"kvwire iv", 12)
    return bytes(a ^ b for a, b in zip(iv, bytes(4) + sequence.to_bytes(8, "big"), strict=True))


def sealed(
    secret: bytes,
    epoch: int,
    sequence: int,
    payload: bytes = b"",
    *,
    type: str = "data",
    transfer: int = 0,
    segment: int = 0,
    cell: int = 0,
    lies: Mapping[str, int] = NO_LIES,
) -> bytes:
    """A frame whose tag fits, whatever its header says: `lies` are header fields that an honest one has otherwise."""
    fields = {
        "version": 1,
        "type": TYPES[type],
        "flags": 0,
        "codec": 0,
        "epoch": epoch,
        "segment": segment,
        "sequence": sequence,
        "transfer": transfer,
        "cell": cell,
        "plain_len": len(payload),
        "wire_len": len(payload),
        "crc": 0,
    } | dict(lies)
    header = HEADER.pack(b"KVWF", *fields.values())
    return header + AESGCM(key(secret, epoch)).encrypt(nonce(secret, epoch, sequence), payload, header)


def opened(secret: bytes, frame: bytes) -> tuple[str, int, int, int, int, int, bytes]:
    """Type, epoch, sequence, transfer, segment, cell, payload; InvalidTag where it is none."""
    _, _, type, _, _, epoch, segment, sequence, transfer, cell, _, length, _ = HEADER.unpack(frame[: HEADER.size])
    assert len(frame) == HEADER.size + length + TAG_BYTES
    header, body = frame[: HEADER.size], frame[HEADER.size :]
    payload = AESGCM(key(secret, epoch)).decrypt(nonce(secret, epoch, sequence), body, header)
    return next(name for name in TYPES if TYPES[name] == type), epoch, sequence, transfer, segment, cell, payload
