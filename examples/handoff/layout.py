"""From the tensors of a cache to the groups of a manifest, and from a manifest to memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from state import Walk

import kvwire

DTYPES = {
    torch.bfloat16: kvwire.DType.BF16,
    torch.float16: kvwire.DType.FP16,
    torch.float32: kvwire.DType.FP32,
    torch.float64: kvwire.DType.FP64,
    torch.float8_e4m3fn: kvwire.DType.FP8_E4M3,
    torch.float8_e5m2: kvwire.DType.FP8_E5M2,
    torch.uint8: kvwire.DType.UINT8,
    torch.int8: kvwire.DType.INT8,
    torch.int16: kvwire.DType.INT16,
    torch.int32: kvwire.DType.INT32,
    torch.int64: kvwire.DType.INT64,
    torch.bool: kvwire.DType.BOOL,
}
TORCH = {label: dtype for dtype, label in DTYPES.items()}


def kind_of(path: str, tensor: Any, holder: Any, tokens: int) -> kvwire.GroupKind:
    """What a tensor is, by its name, its holder and its shape. A wrong guess costs nothing here, because a group
    has one block: it decides only what a receiver could have left out."""
    name = next((step for step in reversed(path.split(".")) if not step.isdigit()), "")
    if "conv" in name:
        return kvwire.GroupKind.CONV
    if name in ("keys", "values"):
        if getattr(holder, "is_sliding", False):
            return kvwire.GroupKind.WINDOW
        shapes: list[tuple[int, ...]] = [getattr(getattr(holder, k, None), "shape", ()) for k in ("keys", "values")]
        if all(len(shape) == 4 and shape[1] == 1 for shape in shapes) and shapes[0] != shapes[1]:
            return kvwire.GroupKind.MLA
    if any(word in name for word in ("recurrent", "linear", "ssm", "rnn")):
        return kvwire.GroupKind.RECURRENT
    return kvwire.GroupKind.FULL if tokens in tensor.shape[1:] else kvwire.GroupKind.RECURRENT


def split(path: str) -> tuple[str, int]:
    """A path as the pattern that it shares with other layers, and its layer: ("cache.layers.*.keys", 3)."""
    steps = path.split(".")
    for position, step in enumerate(steps):
        if step.isdigit():
            steps[position] = "*"
            return ".".join(steps), int(step)
    return path, 0


def paths(spec: kvwire.GroupSpec, layer: int) -> list[str]:
    """Paths of the tensors that one layer of a group holds, in part order: a part is named by its pattern."""
    return [part.name.replace("*", str(layer), 1) for part in spec.parts]


def group_specs(walk: Walk, tokens: int) -> list[kvwire.GroupSpec]:
    """Groups of the layers that hold tensors of one kind and dtype under the same names in the same shapes.

    One block per layer: transformers keeps a layer's tokens in one piece. For a window that block is what the
    window still holds.
    """
    held: dict[tuple[int, kvwire.GroupKind, kvwire.DType, int], list[kvwire.Part]] = {}
    for path, tensor in walk.tensors.items():
        pattern, layer = split(path)
        holder = walk.holders[path]
        kind = kind_of(path, tensor, holder, tokens)
        shape = tuple(tensor.shape)
        axis = None
        if kind.takes_any_subset and tokens in shape[1:]:
            axis = len(shape) - 2 if shape[-2] == tokens else shape.index(tokens, 1)
        window = 0
        if kind is kvwire.GroupKind.WINDOW:
            window = getattr(holder, "sliding_window", None) or tokens
        key = (layer, kind, DTYPES[tensor.dtype], window)
        held.setdefault(key, []).append(kvwire.Part(pattern, shape, axis))
    alike: dict[Any, list[int]] = {}
    for (layer, kind, dtype, window), parts in held.items():
        alike.setdefault((kind, dtype, window, tuple(parts)), []).append(layer)
    specs = []
    for number, ((kind, dtype, window, parts), layers) in enumerate(alike.items()):
        block_tokens = 0 if kind.is_state else tokens
        name = f"{number}.{kind.value}.{dtype.value}"
        specs.append(kvwire.GroupSpec(name, kind, tuple(sorted(layers)), dtype, parts, block_tokens, window))
    return specs


def segments(specs: Iterable[kvwire.GroupSpec]) -> Iterator[tuple[kvwire.GroupSpec, int]]:
    """Every (group, layer), in manifest order."""
    return ((spec, layer) for spec in specs for layer in spec.layers)


class Memory:
    """A tensor for every part of every layer of the groups, registered with kvwire.

    Both sides have one. The sender needs it because an offer leaves before the prefill, and transformers makes
    a new tensor with every update: a layer is copied here once it is final, and may change afterwards.
    """

    def __init__(self, specs: Iterable[kvwire.GroupSpec]) -> None:
        specs = list(specs)
        self.tensors: dict[str, Any] = {}
        for spec, layer in segments(specs):
            for path, part in zip(paths(spec, layer), spec.parts, strict=True):
                self.tensors[path] = torch.empty(part.shape, dtype=TORCH[spec.dtype])
        self.slots = {spec.name: self._register(spec).at([0]) for spec in specs}

    def _register(self, spec: kvwire.GroupSpec) -> kvwire.Pages:
        layers = [[self.tensors[path].unsqueeze(0) for path in paths(spec, layer)] for layer in spec.layers]
        return kvwire.Pages(spec, layers)
