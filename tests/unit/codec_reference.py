"""What codecs write, in plain numpy (docs/compression.md): slow, and the same to the byte."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from kvwire._ext.codec import Cell

OTHER, BF16, FP16, FP32, FP64 = range(5)
F32 = np.float32
Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]


class NotEncodable(Exception):
    """The cell goes as it is."""


# --- numbers ----------------------------------------------------------------------------------------------------------


def to_bf16(values: Any) -> NDArray[np.uint16]:
    """To nearest, ties to even."""
    bits = np.asarray(values, F32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(halves: Any) -> Floats:
    return (np.asarray(halves, np.uint16).astype(np.uint32) << 16).view(F32)


def load(element: int, data: bytes) -> Floats:
    if element == BF16:
        return from_bf16(np.frombuffer(data, "<u2"))
    return np.frombuffer(data, "<f2" if element == FP16 else "<f4").astype(F32)


def store(element: int, values: Floats) -> bytes:
    most = {BF16: from_bf16([0x7F7F])[0], FP16: F32(65504), FP32: np.finfo(F32).max}[element]
    values = np.clip(values, -most, most)
    return (to_bf16(values) if element == BF16 else values.astype("<f2" if element == FP16 else "<f4")).tobytes()


E4M3 = np.array(
    [
        (-1 if code & 0x80 else 1)
        * (np.nan if code & 0x7F == 0x7F else (code & 7) * 2.0**-9 if code & 0x78 == 0 else
           (1 + (code & 7) / 8) * 2.0 ** ((code >> 3 & 15) - 7))
        for code in range(256)
    ],
    F32,
)  # fmt: skip


def to_e4m3(value: np.float32) -> int:
    """The nearest, of two the one that is even; zeros keep their sign."""
    magnitudes = E4M3[:127].astype(np.float64)
    distance = np.abs(magnitudes - abs(float(value)))
    near = np.flatnonzero(distance == distance.min())
    code = int(near[0] if len(near) == 1 or near[0] % 2 == 0 else near[1])
    return code | (0x80 if np.signbit(value) else 0)


# --- tiles ------------------------------------------------------------------------------------------------------------


def tiles(cell: Cell, count: int, delta: bool) -> Iterator[tuple[int, int, int, bool]]:
    """First number, rows, columns, and whether each column has its scale."""
    rows_of = [(inner, token, channels) for outer, tokens, inner, channels in cell.parts
               for _ in range(outer) for token in range(tokens, 0, -1)]  # fmt: skip
    starts = np.cumsum([0] + [inner for inner, _, _ in rows_of])
    place, at = cell.offset // cell.itemsize, 0
    while at < count:
        row = int(np.searchsorted(starts, place, "right")) - 1
        inner, tokens_left, channels = rows_of[row]
        rows, cols = 1, min(int(starts[row]) + inner - place, count - at)
        if place == starts[row] and count - at >= inner:
            rows, cols = min((count - at) // inner, tokens_left, 32), inner
        yield at, rows, cols, rows >= 8 and (channels or delta)
        at += rows * cols
        place = (place + rows * cols) % int(starts[-1])


# --- scales and codes -------------------------------------------------------------------------------------------------

LEVELS = {"int8": 127, "int4": 15, "int2": 3, "fp8": 448}
BITS = {"int8": 8, "int4": 4, "int2": 2, "fp8": 8}


def rounded_up(value: np.float32) -> np.float32:
    if value < F32(2.0**-126):
        return F32(0)
    return F32((value.view(np.uint32) + np.uint32(0xFFFF) & np.uint32(0xFFFF0000)).view(F32))


def rounded_down(value: np.float32) -> np.float32:
    bits = value.view(np.uint32)
    bits = bits + np.uint32(0xFFFF) if bits >> 31 else bits
    return F32((bits & np.uint32(0xFFFF0000)).view(F32))


def scale_of(name: str, x: Floats, levels: int) -> tuple[np.float32, np.float32]:
    if name in ("int4", "int2"):
        least = rounded_down(x.min()) + F32(0)  # no negative zero
        scale = rounded_up(F32(F32(x.max() - least) / F32(levels)))
    else:
        least = F32(0)
        scale = rounded_up(F32(np.abs(x).max() / F32(levels)))
    if not np.isfinite(scale) or not np.isfinite(least):
        raise NotEncodable
    return least, scale


def code(name: str, x: Floats, least: np.float32, scale: np.float32) -> Codes:
    if name == "fp8":
        return np.array([to_e4m3(v / scale if scale > 0 else v * F32(0)) for v in x], np.uint8)
    value = x - least if name in ("int4", "int2") else x
    value = value / scale if scale > 0 else value * F32(0)
    return (value + F32(0.5 if name in ("int4", "int2") else 128.5)).astype(np.uint8)


def value(name: str, codes: Codes, least: np.float32, scale: np.float32) -> Floats:
    if name in ("int4", "int2"):
        return np.asarray(least + codes.astype(F32) * scale, F32)
    return np.asarray((E4M3[codes] if name == "fp8" else codes.astype(F32) - F32(128)) * scale, F32)


def groups(name: str, x: Floats, levels: int, columns: bool) -> tuple[bytes, Codes, Floats]:
    """Scales, codes and what the receiver will have, of a tile."""
    scales, codes, back = b"", np.zeros(x.shape, np.uint8), np.zeros(x.shape, F32)
    if columns:
        parts = [(slice(None), slice(i, i + 1)) for i in range(x.shape[1])]
    else:
        parts = [(slice(r, r + 1), slice(c, c + 32)) for r in range(x.shape[0]) for c in range(0, x.shape[1], 32)]
    for part in parts:
        least, scale = scale_of(name, x[part].ravel(), levels)
        scales += to_bf16([scale]).tobytes() + (to_bf16([least]).tobytes() if name in ("int4", "int2") else b"")
        codes[part] = code(name, x[part].ravel(), least, scale).reshape(x[part].shape)
        back[part] = value(name, codes[part], least, scale)
    return scales, codes, back


def packed(codes: Codes, bits: int) -> bytes:
    each = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(each.ravel(), bitorder="little").tobytes()


@np.errstate(over="ignore")
def quantise(name: str, cell: Cell, data: bytes) -> tuple[bytes, bytes]:
    """Payload (for delta: scales, then codes that are not compressed yet) and what the receiver will have."""
    x = load(cell.element, data)
    if not np.isfinite(x).all():
        raise NotEncodable
    codes, back, scales = np.zeros(len(x), np.uint8), np.zeros(len(x), F32), b""
    for at, rows, cols, columns in tiles(cell, len(x), name == "delta"):
        tile = x[at : at + rows * cols].reshape(rows, cols)
        if name != "delta":
            s, c, b = groups(name, tile, LEVELS[name], columns)
        else:
            first = 1 if columns else rows
            s, c, b = groups("int8", tile[:first], 127, False)
            if columns:
                difference = tile[1:] - b
                levels = (15, 7, 3)[min(2, cell.layer * 3 // cell.layers)]
                s2, c2, b2 = groups("int8", difference, levels, True)
                s, c, b = s + s2, np.concatenate((c, c2)), np.concatenate((b, b2 + b))
        scales += s
        codes[at : at + rows * cols], back[at : at + rows * cols] = c.ravel(), b.ravel()
    return scales + packed(codes, BITS.get(name, 8)), store(cell.element, back)


# --- planes -----------------------------------------------------------------------------------------------------------


def rotated(cell: Cell, up: bool, words: NDArray[Any]) -> NDArray[Any]:
    """The sign to the lowest bit, or back."""
    bits = 8 * cell.itemsize
    if cell.element == OTHER or bits == 8:
        return words
    one, most = words.dtype.type(1), words.dtype.type(bits - 1)
    turned: NDArray[Any] = words << one | words >> most if up else words >> one | words << most
    return turned


def planes(cell: Cell, data: bytes) -> list[bytes]:
    """The lowest byte of every element, then the next one; what is no whole element is left out."""
    size = cell.itemsize
    words = np.frombuffer(data[: len(data) // size * size], f"<u{size}")
    return [plane.tobytes() for plane in rotated(cell, True, words).view(np.uint8).reshape(-1, size).T]


def unpacked_planes(cell: Cell, payload: bytes, n: int) -> bytes:
    """The cell that a payload of `zstd` stands for."""
    size, count = cell.itemsize, n // cell.itemsize
    lengths = struct.unpack_from(f"<{size}I", payload)
    at, found = 4 * size, []
    for length in lengths:
        plane = payload[at : at + length]
        found.append(plane if length == count else zstandard.ZstdDecompressor().decompress(plane))
        at += length
    words = np.frombuffer(np.frombuffer(b"".join(found), np.uint8).reshape(size, count).T.tobytes(), f"<u{size}")
    return rotated(cell, False, words).tobytes() + payload[at:]
