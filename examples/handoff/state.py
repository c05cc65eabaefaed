"""Walks whatever a cache holds, and builds it again in another process.

There is no list of attribute names here. A walk yields every tensor under its path ("cache.layers.3.keys",
"cache.layers.0.conv_states.0"), and a tree of everything else: scalars, flags, dtypes, the shape of dicts and
lists. Tensors travel as segments of groups, the tree in the attachment.

Objects are not made from names that came over the network: the decoder's own model makes a cache of the same
classes (its skeleton), and `rebuild` replaces all that is inside.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from typing import Any

import torch
from jobs import UnsupportedState

MAX_DEPTH = 16

Node = Any
"""A scalar as it is, or a list that starts with one of the tags below; all of it msgpack."""


@dataclass
class Walk:
    """What a walk found: the tree, the tensors by path, and the object that holds each."""

    tree: Node = None
    tensors: dict[str, Any] = field(default_factory=dict)
    holders: dict[str, Any] = field(default_factory=dict)
    _paths: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Walk:
        """Walks `state`. Raises `UnsupportedState` for a value that cannot travel."""
        walk = cls()
        walk.tree = walk._node(state, "", None, 0)
        return walk

    def _node(self, value: Any, path: str, holder: Any, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise UnsupportedState(f"{path} is nested more than {MAX_DEPTH} deep")
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path, holder)
        if isinstance(value, torch.dtype):
            return ["dtype", str(value).removeprefix("torch.")]
        if type(value) is dict:
            for key in value:
                if not isinstance(key, bool | int | str):
                    raise UnsupportedState(f"{path} has a key of type {type(key).__name__}")
            return ["dict", [[k, self._node(v, _join(path, k), holder, depth + 1)] for k, v in value.items()]]
        if isinstance(value, list | tuple):
            tag = "list" if isinstance(value, list) else "tuple"
            return [tag, [self._node(v, _join(path, i), holder, depth + 1) for i, v in enumerate(value)]]
        if isinstance(value, torch.device | type | types.FunctionType | torch.nn.Module) or _is_config(value):
            return ["own"]
        if type(value).__module__.startswith("transformers."):
            inside = [[k, self._node(v, _join(path, k), value, depth + 1)] for k, v in vars(value).items()]
            return ["object", type(value).__qualname__, inside]
        raise UnsupportedState(f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which cannot travel")

    def _tensor(self, value: Any, path: str, holder: Any) -> Node:
        if value.layout is not torch.strided or value.device.type != "cpu" or type(value) is not torch.Tensor:
            raise UnsupportedState(f"{path} is a {value.layout} {type(value).__name__} on {value.device}")
        if id(value) in self._paths:
            return ["same", self._paths[id(value)]]
        self._paths[id(value)] = path
        if value.ndim == 0 or value.numel() == 0:
            raw = value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
            return ["small", str(value.dtype).removeprefix("torch."), list(value.shape), raw]
        self.tensors[path] = value
        self.holders[path] = holder
        return ["tensor"]


def rebuild(tree: Node, tensors: dict[str, Any], skeleton: Any) -> Any:
    """The state of a walk, made of `tensors` and the objects of `skeleton`. Raises `UnsupportedState`."""
    return _rebuild(tree, dict(tensors), skeleton, "")


def _rebuild(node: Node, tensors: dict[str, Any], skeleton: Any, path: str) -> Any:
    if not isinstance(node, list | tuple):
        return node
    match node[0]:
        case "tensor":
            return tensors[path]
        case "same":
            return tensors[node[1]]
        case "small":
            _, dtype, shape, raw = node
            tensors[path] = torch.tensor(list(raw), dtype=torch.uint8).view(getattr(torch, dtype)).reshape(shape)
            return tensors[path]
        case "dtype":
            return getattr(torch, node[1])
        case "own":
            return skeleton
        case "dict":
            known = skeleton if isinstance(skeleton, dict) else {}
            return {k: _rebuild(inner, tensors, known.get(k), _join(path, k)) for k, inner in node[1]}
        case "list" | "tuple":
            known_items = list(skeleton) if isinstance(skeleton, list | tuple) else []
            known_items += [None] * (len(node[1]) - len(known_items))
            items = [_rebuild(inner, tensors, known_items[i], _join(path, i)) for i, inner in enumerate(node[1])]
            return items if node[0] == "list" else tuple(items)
        case "object":
            if type(skeleton).__qualname__ != node[1]:
                raise UnsupportedState(f"{path} is a {node[1]} at the sender, {type(skeleton).__qualname__} here")
            before = dict(vars(skeleton))
            vars(skeleton).clear()
            for k, inner in node[2]:
                vars(skeleton)[k] = _rebuild(inner, tensors, before.get(k), _join(path, k))
            return skeleton
    raise UnsupportedState(f"{path} came with the unknown tag {node[0]!r}")


def _join(path: str, step: object) -> str:
    return f"{path}.{step}" if path else str(step)


def _is_config(value: Any) -> bool:
    return any(base.__name__ in ("PreTrainedConfig", "PretrainedConfig") for base in type(value).__mro__)
