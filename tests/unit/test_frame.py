"""Frames: what comes out is what went in, and any damage is seen before a byte is believed."""

import struct
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwire._ext.crc32c import crc32c
from kvwire._ext.frame import ERRORS, check, encode

HEADER = struct.Struct("<IBBBBIIQQIIII")
FIELDS = (
    *("magic", "version", "type", "flags", "codec", "epoch", "segment", "sequence", "transfer", "cell"),
    *("plain_len", "wire_len", "crc"),
)
LIMIT = 4096
TYPES: dict[str, int] = {"data": 1, "ack": 2, "receipt": 3}
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


def reference(type: str, sequence: int, transfer: int, segment: int, cell: int, payload: bytes) -> bytes:
    """The layout of the header, written down a second time."""

    def header(crc: int) -> bytes:
        n = len(payload)
        return HEADER.pack(0x4657564B, 1, TYPES[type], 0, 0, 0, segment, sequence, transfer, cell, n, n, crc)

    return header(crc32c(header(0) + payload)) + payload


def remade(frame: bytes, **changes: int) -> bytes:
    """A frame with other header fields and a checksum that fits them: a lie, not damage."""
    fields = dict(zip(FIELDS, HEADER.unpack_from(frame), strict=True)) | changes | {"crc": 0}
    payload = frame[HEADER.size :]
    fields["crc"] = crc32c(HEADER.pack(*fields.values()) + payload)
    return HEADER.pack(*fields.values()) + payload


@given(sequence=U64, transfer=U64, segment=U32, cell=U32, payload=st.binary(max_size=300))
def test_data_as_written_down(sequence: int, transfer: int, segment: int, cell: int, payload: bytes) -> None:
    frame = encode("data", sequence, transfer, segment, cell, payload)
    assert frame == reference("data", sequence, transfer, segment, cell, payload)
    assert frame.startswith(b"KVWF")
    assert check(frame, sequence, LIMIT) == ("ok", len(frame))
    assert check(frame + b"next", sequence, LIMIT) == ("ok", len(frame))


@pytest.mark.parametrize(
    ("type", "payload"),
    [("data", b""), ("data", bytes(range(256)) * 3), ("ack", bytes(16)), ("ack", bytes(16 * 64)), ("receipt", b"")],
)
def test_cut_at_every_length(type: Literal["data", "ack", "receipt"], payload: bytes) -> None:
    frame = encode(type, 5, 77, payload=payload)
    for length in range(len(frame)):
        assert check(frame[:length], 5, LIMIT) == ("incomplete", 0)
    assert check(frame, 5, LIMIT) == ("ok", len(frame))


@pytest.mark.parametrize("type", ["data", "ack"])
def test_every_bit_flip_is_seen(type: Literal["data", "ack"]) -> None:
    frame = encode(type, 3, 1 << 40, 2, 9, bytes(range(48)))
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        verdict, consumed = check(bytes(damaged), 3, LIMIT)
        assert verdict != "ok"
        assert consumed == 0 or verdict == "checksum"


def test_every_damaged_byte_is_seen() -> None:
    frame = encode("data", 3, 1 << 40, 2, 9, bytes(range(40)))
    for at in range(len(frame)):
        for value in range(256):
            if value != frame[at]:
                damaged = frame[:at] + bytes([value]) + frame[at + 1 :]
                assert check(damaged, 3, LIMIT)[0] != "ok"


@given(noise=st.binary(max_size=200))
def test_noise_is_no_frame(noise: bytes) -> None:
    verdict, consumed = check(noise, 0, LIMIT)
    assert (verdict, consumed) == ("incomplete", 0) if len(noise) < HEADER.size else verdict in ERRORS[1:]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"magic": 0x4657564C}, "magic"),
        ({"version": 0}, "version"),
        ({"version": 2}, "version"),
        ({"flags": 1}, "version"),
        ({"codec": 1}, "length"),
        ({"codec": 1, "wire_len": 0}, "length"),
        ({"codec": 1, "wire_len": 17}, "length"),
        ({"codec": 1, "plain_len": LIMIT + 1}, "length"),
        ({"codec": 1, "type": 2}, "codec"),
        ({"codec": 255, "type": 3}, "codec"),
        ({"epoch": 1}, "epoch"),
        ({"type": 0}, "type"),
        ({"type": 4}, "type"),
        ({"type": 255}, "type"),
        ({"sequence": 2}, "sequence"),
        ({"sequence": 4}, "sequence"),
        ({"sequence": 2**64 - 1}, "sequence"),
        ({"wire_len": 15}, "length"),
        ({"plain_len": 17}, "length"),
        ({"plain_len": 2**32 - 1, "wire_len": 2**32 - 1}, "length"),
        ({"plain_len": LIMIT + 1, "wire_len": LIMIT + 1}, "length"),
        ({"type": 3}, "length"),
    ],
)
def test_lies_with_a_fitting_checksum(changes: dict[str, int], verdict: str) -> None:
    frame = encode("data", 3, 8, 1, 1, bytes(16))
    assert check(remade(frame), 3, LIMIT)[0] == "ok"
    assert check(remade(frame, **changes), 3, LIMIT) == (verdict, 0)
    header_only = remade(frame, **changes)[: HEADER.size]
    assert check(header_only, 3, LIMIT) == (verdict, 0), "a wrong length must not be waited for"


@given(codec=st.integers(1, 255), plain_len=st.integers(1, LIMIT), payload=st.binary(min_size=1, max_size=300))
def test_a_cell_that_a_codec_made_shorter(codec: int, plain_len: int, payload: bytes) -> None:
    frame = encode("data", 3, 8, 1, 1, payload, codec, plain_len)
    fields = dict(zip(FIELDS, HEADER.unpack_from(frame), strict=True))
    assert (fields["codec"], fields["plain_len"], fields["wire_len"]) == (codec, plain_len, len(payload))
    shorter = len(payload) < plain_len
    assert check(frame, 3, LIMIT) == (("ok", len(frame)) if shorter else ("length", 0))
    if shorter:
        assert check(frame, 3, plain_len - 1) == ("length", 0)
        other = remade(frame, codec=codec % 255 + 1)
        assert check(frame[:7] + other[7:8] + frame[8:], 3, LIMIT)[0] == "checksum", "the codec is under the checksum"


def test_length_at_the_limit() -> None:
    frame = encode("data", 0, payload=bytes(LIMIT))
    assert check(frame, 0, LIMIT) == ("ok", len(frame))
    assert check(frame, 0, LIMIT - 1) == ("length", 0)


@pytest.mark.parametrize("n", [0, 1, 15, 17, 16 * 64 + 16])
def test_acknowledgements_have_whole_entries(n: int) -> None:
    assert check(encode("ack", 0, payload=bytes(n)), 0, LIMIT) == ("length", 0)
