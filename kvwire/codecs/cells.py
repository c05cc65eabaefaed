"""What codecs are told of a cell, from its group's spec."""

from __future__ import annotations

import math

from kvwire._ext.codec import Cell
from kvwire.types import DType, GroupSpec, Part

KEYS = ("k", "key", "keys")
"""Names of parts that lossy codecs scale per channel, as keys have few channels that are large in all tokens (KIVI, Liu
and others, 2024). Every other part is scaled per token."""

_ELEMENTS = {DType.BF16: 1, DType.FP16: 2, DType.FP32: 3, DType.FP64: 4}


def cell(spec: GroupSpec, layer: int = 0, offset: int = 0) -> Cell:
    """The cell that begins `offset` bytes into the segment of the group's layer number `layer`, counted from 0."""
    return Cell(
        _ELEMENTS.get(spec.dtype, 0),
        spec.dtype.itemsize,
        [_shape(part) for part in spec.parts],
        offset,
        layer,
        len(spec.layers),
    )


def _shape(part: Part) -> tuple[int, int, int, bool]:
    """[outer, tokens, inner], and whether scales are per channel."""
    axis = part.token_axis
    if axis is None:
        return 1, 1, math.prod(part.shape), False
    return math.prod(part.shape[:axis]), part.shape[axis], math.prod(part.shape[axis + 1 :]), part.name.lower() in KEYS
