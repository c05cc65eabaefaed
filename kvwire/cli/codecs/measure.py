"""How much shorter codecs make cells, how fast on one core, and what of the numbers they lose."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from kvwire._ext.codec import Scratch
from kvwire.cli.codecs.samples import Sample
from kvwire.codecs import Codec, cell

Bytes = NDArray[np.uint8]
Coded = Bytes | bytes
Encode = Callable[[], Coded | None]
"""One cell; None where it goes as it is."""
Decode = Callable[[Coded], Coded]

GAIN = 1.1
"""A codec is worth its work where the slowest of encoding, decoding and the link carries so many times what the link
alone does."""


@dataclass
class Row:
    """What was measured of one codec, or of something beside it."""

    name: str
    lossless: bool
    ours: bool
    plain_bytes: int = 0
    sent_bytes: int = 0
    encode_s: float = float("inf")
    decode_s: float = float("inf")
    coded_cells: int = 0
    cells: int = 0
    wrong_cells: int = 0
    """Of a lossless codec: cells that came back as others."""
    lost: float = 0.0
    """Sum of squares of what numbers differ by."""
    kept: float = field(default=0.0)
    """Sum of squares of the numbers."""

    @property
    def ratio(self) -> float:
        return self.plain_bytes / self.sent_bytes

    @property
    def encode_bps(self) -> float:
        return 8 * self.plain_bytes / self.encode_s

    @property
    def decode_bps(self) -> float:
        return 8 * self.plain_bytes / self.decode_s

    @property
    def relative_error(self) -> float | None:
        """None where there were no numbers to compare, or none but zeros."""
        return float(np.sqrt(self.lost / self.kept)) if self.kept else None

    def speed_up(self, link_bps: float) -> float:
        """How many times faster a link of this rate carries cells, with one core at either end."""
        return min(self.encode_bps, self.decode_bps, self.ratio * link_bps) / link_bps

    @property
    def wins_below_bps(self) -> float:
        """The rate of the link up to which it is worth it; 0 where it never is."""
        return min(self.encode_bps, self.decode_bps) / GAIN if self.ratio > GAIN else 0.0


@dataclass
class Trial:
    """Something to measure: what encodes and decodes each cell of the samples that it is for."""

    row: Row
    cells: list[tuple[Sample, Bytes, Encode, Decode]]


def of_codec(codec: Codec, samples: Sequence[Sample], cell_bytes: int, scratch: Scratch) -> Trial | None:
    """None where no sample is one that it takes."""
    dst, back = np.empty(cell_bytes, np.uint8), np.empty(cell_bytes, np.uint8)
    native = codec.native

    def made(sample: Sample, at: int, data: Bytes) -> tuple[Sample, Bytes, Encode, Decode]:
        shape, out = cell(sample.spec, sample.layer, at), back[: len(data)]

        def encode() -> Coded | None:
            length = native.encode_into(shape, data, dst[: len(data)], scratch)
            return None if length < 0 else dst[:length]

        def decode(payload: Coded) -> Coded:
            if not native.decode_into(shape, payload, out, scratch):
                raise AssertionError(f"codec {codec.name} made a payload that it does not decode")
            return out

        return sample, data, encode, decode

    cells = [made(*each) for each in _cells([s for s in samples if codec.takes(s.spec)], cell_bytes)]
    return Trial(Row(codec.name, codec.lossless, True), cells) if cells else None


def of_others(samples: Sequence[Sample], cell_bytes: int) -> list[Trial]:
    """zstd alone, and blosc2 where it is installed: bytes shuffled, zstd, one thread."""
    compressor, decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    found = [
        _of_functions(
            "zstd alone", samples, cell_bytes, lambda data, _: compressor.compress(data.data), decompressor.decompress
        )
    ]
    try:
        blosc2: Any = importlib.import_module("blosc2")
    except ImportError:
        return found

    def shuffled(data: Bytes, itemsize: int) -> bytes:
        made: bytes = blosc2.compress2(
            data, typesize=itemsize, clevel=1, codec=blosc2.Codec.ZSTD, filters=[blosc2.Filter.SHUFFLE], nthreads=1
        )
        return made

    return [
        *found,
        _of_functions("blosc2", samples, cell_bytes, shuffled, lambda data: blosc2.decompress2(data, nthreads=1)),
    ]


def _of_functions(
    name: str,
    samples: Sequence[Sample],
    cell_bytes: int,
    encode: Callable[[Bytes, int], bytes],
    decode: Callable[[Any], bytes],
) -> Trial:
    def made(sample: Sample, at: int, data: Bytes) -> tuple[Sample, Bytes, Encode, Decode]:
        def shorter() -> Coded | None:
            payload = encode(data, sample.spec.dtype.itemsize)
            return payload if len(payload) < len(data) else None

        return sample, data, shorter, decode

    return Trial(Row(name, True, False), [made(*each) for each in _cells(samples, cell_bytes)])


def _cells(samples: Sequence[Sample], cell_bytes: int) -> list[tuple[Sample, int, Bytes]]:
    return [
        (sample, at, sample.data[at : at + cell_bytes])
        for sample in samples
        for at in range(0, len(sample.data), cell_bytes)
    ]


def run(trials: Sequence[Trial], rounds: int, say: Callable[[str, float], None]) -> None:
    """Fills the rows. They take turns, so that what else the machine does meets all alike; of each the best round is
    taken, in the CPU time of this thread."""
    for number in range(rounds):
        for place, trial in enumerate(trials):
            say(trial.row.name, (number + place / len(trials)) / rounds)
            _round(trial, first=number == 0)


def _round(trial: Trial, first: bool) -> None:
    row, encode_s, decode_s = trial.row, 0.0, 0.0
    for sample, data, encode, decode in trial.cells:
        begin = time.thread_time()
        payload = encode()
        encode_s += time.thread_time() - begin
        if payload is not None:
            begin = time.thread_time()
            back = decode(payload)
            decode_s += time.thread_time() - begin
        if first:
            row.cells += 1
            row.coded_cells += payload is not None
            row.plain_bytes += len(data)
            row.sent_bytes += len(data) if payload is None else len(payload)
            if payload is not None:
                _compare(row, sample, data, np.frombuffer(back, np.uint8))
    row.encode_s, row.decode_s = min(row.encode_s, encode_s), min(row.decode_s, max(decode_s, 1e-9))


def _compare(row: Row, sample: Sample, data: Bytes, back: Bytes) -> None:
    if row.lossless:
        row.wrong_cells += data.tobytes() != back.tobytes()
        return
    x, y = sample.numbers(data), sample.numbers(back)
    if x is not None and y is not None:
        row.lost += float(np.sum((x.astype(np.float64) - y) ** 2))
        row.kept += float(np.sum(x.astype(np.float64) ** 2))
