"""What codecs are tried on: keys and values that are made, or those of a user's dump."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvwire
from kvwire import DType, GroupKind, GroupSpec, Part
from kvwire.cli.failure import Failure

SEED = 5
LAYERS, TOKENS, HEADS, HEAD_DIM = 3, 256, 8, 128
BLOCK_TOKENS = 16
MAX_BYTES = 4 << 30
"""Of a dump: all of it is held in memory, and what comes of it."""

_DTYPES = {
    "float16": DType.FP16, "float32": DType.FP32, "float64": DType.FP64, "uint16": DType.BF16, "void16": DType.BF16,
    "void8": DType.FP8_E4M3, "uint8": DType.UINT8, "int8": DType.INT8, "int16": DType.INT16, "int32": DType.INT32,
    "int64": DType.INT64, "bool": DType.BOOL,
}  # fmt: skip
"""By numpy's name. It has no bf16: that comes as bits, or from ml_dtypes, whose arrays are saved as plain bytes."""


@dataclass(frozen=True)
class Sample:
    """The segment of one layer of a group: whole blocks."""

    spec: GroupSpec
    layer: int
    data: NDArray[np.uint8]

    def numbers(self, data: NDArray[np.uint8]) -> NDArray[np.floating[Any]] | None:
        """The numbers in `data`; None where they are no floats that numpy can have."""
        if self.spec.dtype is DType.BF16:
            return (data.view("<u2").astype("<u4") << 16).view("<f4")
        name = {DType.FP16: "<f2", DType.FP32: "<f4", DType.FP64: "<f8"}.get(self.spec.dtype)
        return None if name is None else data.view(name)


def synthetic() -> list[Sample]:
    """bf16 of normal deviates. Each channel of the keys has a scale and a mean of its own, as trained models' have."""
    draw = np.random.default_rng(SEED)
    shape = (TOKENS // BLOCK_TOKENS, BLOCK_TOKENS, HEADS, HEAD_DIM)
    spec = GroupSpec.attention(
        "full", range(LAYERS), DType.BF16, block_tokens=BLOCK_TOKENS, heads=HEADS, head_dim=HEAD_DIM
    )
    samples = []
    for layer in range(LAYERS):
        scale, mean = np.exp(draw.normal(0, 0.7, (2, HEADS, HEAD_DIM)))
        keys = (draw.standard_normal(shape) + mean * draw.choice((-1, 1), mean.shape)) * scale
        parts = np.stack((keys, draw.standard_normal(shape)), axis=1)
        samples.append(Sample(spec, layer, as_bf16(parts).reshape(-1).view(np.uint8)))
    return samples


def as_bf16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """To nearest, ties to even."""
    bits = values.astype("<f4").view("<u4")
    return np.asarray((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, "<u2")


def load(path: Path, order: str) -> list[Sample]:
    """The arrays of an .npz, each as a layer of its own. `Failure` where it has none that can be used."""
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            return [_sample(name, archive[name], order, place, len(names)) for place, name in enumerate(names)]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise Failure(f"{path} is no .npz of numbers: {getattr(error, 'strerror', None) or error}") from None


def _check_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        nbytes = sum(entry.file_size for entry in archive.infolist())
    if nbytes > MAX_BYTES:
        raise Failure(f"{path} holds {nbytes} bytes; expected {MAX_BYTES} at most: a few layers are enough")
    if nbytes == 0:
        raise Failure(f"{path} holds no array")


def _sample(name: str, array: NDArray[Any], order: str, layer: int, layers: int) -> Sample:
    kind = "void" + str(8 * array.dtype.itemsize) if array.dtype.kind == "V" else array.dtype.newbyteorder("<").name
    dtype = _DTYPES.get(kind)
    if dtype is None or array.size == 0:
        known = ", ".join(_DTYPES)
        raise Failure(f"array {name!r:.80} has {array.size} elements of {array.dtype}; expected one or more of {known}")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    try:
        spec, array = _blocks(name, array, dtype, order, layers)
    except kvwire.SpecError as error:
        raise Failure(f"array {name!r:.80} of shape {array.shape}: {error}") from None
    return Sample(spec, layer, np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _blocks(name: str, array: NDArray[Any], dtype: DType, order: str, layers: int) -> tuple[GroupSpec, NDArray[Any]]:
    """Tokens are the first axis ("NHD") or the last but one ("HND"); an array of one axis is a state."""
    if array.ndim < 2:
        return GroupSpec.state(name, GroupKind.RECURRENT, range(layers), dtype, (array.size,)), array
    axis = 0 if order == "NHD" else array.ndim - 2
    tokens = array.shape[axis]
    block = min(BLOCK_TOKENS, tokens)
    rows = np.moveaxis(array, axis, 0)[: tokens // block * block]
    blocks = np.moveaxis(rows.reshape(-1, block, *rows.shape[1:]), 1, axis + 1)
    part = Part("k" if is_keys(name) else "v", tuple(blocks.shape[1:]), axis)
    return GroupSpec(name, GroupKind.FULL, tuple(range(layers)), dtype, (part,), block), blocks


def is_keys(name: str) -> bool:
    """Whether an array of this name holds keys: "k", "key_cache", "layers.3.keys", "k_12"."""
    words = name.lower().replace(".", "_").replace("/", "_").split("_")
    return any(word.rstrip("0123456789") in ("k", "key", "keys") for word in words)


def dtypes(samples: Iterable[Sample]) -> str:
    return ", ".join(sorted({sample.spec.dtype.value for sample in samples}))
