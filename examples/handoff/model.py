"""A causal language model made from a transformers configuration: weights from a seed, nothing downloaded."""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from jobs import BadConfig, Decoded, HandoffError, UnsupportedState
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
SEED = 20260

CACHE_ARGUMENTS = ("past_key_values", "cache", "cache_params", "state")
"""What a model's forward calls its cache: attention and hybrids (until transformers 5.23, and since), state-space
models, RWKV."""

PROBE_TOKENS = 8
"""Tokens of the forward that shows which cache classes a model makes: enough for any convolution window."""


def settle() -> None:
    """One thread and deterministic kernels, so that two processes compute the same bits."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    transformers.logging.set_verbosity_error()


def build(config: dict[str, Any], dtype: str) -> Any:
    """The model of a `config.json`, weights the same in every process. Raises `BadConfig`."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise BadConfig(f"model_type is {model_type!r}, which transformers {transformers.__version__} does not know")
    torch.manual_seed(SEED)
    try:
        parsed = CONFIG_MAPPING[model_type].from_dict(config)
        parsed.use_cache = True
        model = transformers.AutoModelForCausalLM.from_config(parsed, dtype=DTYPES[dtype])
    except Exception as error:  # a configuration can be wrong in as many ways as there are model classes
        raise BadConfig(f"transformers makes no causal language model of it: {one_line(error)}") from error
    randomise(model)
    return model.eval()


def one_line(error: BaseException) -> str:
    """An exception's message as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def randomise(model: Any) -> None:
    """Weights that let every part of the cache show in the logits; transformers' own initialisation is so small
    that a lost cache may go unnoticed. Matrices keep the variance of what passes through, and embeddings start
    small, so that the layers outweigh them. Vectors (norms, biases) and decay rates stay as the model class sets
    them, because a state that dies at once would show nothing either."""
    draw = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2 or not weight.is_floating_point() or "A_log" in name or "dt_" in name:
                continue
            inputs = math.prod(weight.shape[1:]) if "conv" in name else weight.shape[-1]
            weight.normal_(0.0, inputs**-0.5, generator=draw)


def digest(model: Any) -> str:
    """SHA-256 over all weights: two processes may share a cache only if their models agree in every bit."""
    total = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(weight.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def prompt(model: Any, tokens: int) -> Any:
    """`[1, tokens]` random token ids, the same in every run."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    draw = torch.Generator().manual_seed(SEED + 1)
    return torch.randint(0, vocabulary, (1, tokens), generator=draw)


def cache_argument(model: Any) -> str:
    """What this model's forward calls its cache. Raises `UnsupportedState`."""
    parameters = inspect.signature(model.forward).parameters
    for name in CACHE_ARGUMENTS:
        if name in parameters:
            return name
    raise UnsupportedState(f"{type(model).__name__}.forward takes none of {', '.join(CACHE_ARGUMENTS)}")


def decoder_layers(model: Any) -> list[Any]:
    """The stack of decoder layers: a module list with one entry per hidden layer, else the outermost and longest.

    Where there is none, no layer can be followed and the whole cache leaves after the forward.
    """
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    ranked = sorted(lists, key=lambda found: (len(found[1]) != count, found[0].count("."), -len(found[1])))
    return list(ranked[0][1]) if ranked else []


def is_cache(value: Any) -> bool:
    """Whether a value handed from layer to layer is the cache: transformers' own, or a model's."""
    kind = type(value)
    return isinstance(value, transformers.Cache) or (
        kind.__module__.startswith("transformers.") and kind.__name__.endswith("Cache")
    )


@contextmanager
def followed(model: Any, after_layer: Callable[[int, Any], None]) -> Iterator[list[Any]]:
    """Calls `after_layer(number, cache)` in the model's thread as soon as a decoder layer's forward is done.

    Gives a list that holds the cache once a layer has shown it: some models make it themselves and return none.
    """
    seen: list[Any] = []

    def hook(number: int) -> Callable[..., None]:
        def after(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any], _output: Any) -> None:
            seen[:] = [value for value in (*arguments, *named.values()) if is_cache(value)][:1] or seen
            if seen:
                after_layer(number, seen[0])

        return after

    handles = [
        layer.register_forward_hook(hook(number), with_kwargs=True)
        for number, layer in enumerate(decoder_layers(model))
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def forward(model: Any, tokens: Any, cache: Any = None) -> tuple[Any, Any]:
    """Logits `[vocabulary]` after the last of `tokens` `[1, n]`, and the cache, made by the model if none is given."""
    name = cache_argument(model)
    with torch.no_grad():  # not inference mode: the walk needs the version counters of tensors
        output = model(input_ids=tokens, use_cache=True, **({} if cache is None else {name: cache}))
    returned = getattr(output, name, None)
    return output.logits[0, -1], cache if returned is None else returned


def prefill(model: Any, tokens: Any, after_layer: Callable[[int, Any], None]) -> tuple[Any, Any]:
    """`forward` of a whole prompt that reports every layer. Logits and cache."""
    with followed(model, after_layer) as seen:
        logits, cache = forward(model, tokens)
    return logits, cache if cache is not None else next(iter(seen), None)


def decode(model: Any, cache: Any, token: int, count: int) -> Decoded:
    """`count` greedy steps from `token`. Raises `HandoffError` where logits are not numbers: such equality is void."""
    tokens, logits = [token], []
    for _ in range(count):
        row, cache = forward(model, torch.tensor([[tokens[-1]]]), cache)
        if not torch.isfinite(row).all():
            raise HandoffError("the model's logits are not finite, so equal ones would say nothing")
        logits.append(row.contiguous().view(torch.uint8).numpy().tobytes())
        tokens.append(int(row.argmax()))
    return Decoded(tokens, b"".join(logits))


class ModuleState:
    """State that a model keeps on its modules, outside any cache: what a forward changes there.

    Buffers and plain attributes (tensors, scalars and containers of them) are compared with what they were when
    this was made. Sizes are small (RoPE tables, counters, RecurrentGemma's states), so values are copied.
    """

    def __init__(self, model: Any) -> None:
        self.modules = dict(model.named_modules())
        self.fresh = {key: copy.deepcopy(value) for key, value in self._values()}

    def _values(self) -> Iterator[tuple[tuple[str, str], Any]]:
        for name, module in self.modules.items():
            own = {k: v for k, v in vars(module).items() if k not in vars(_PLAIN) and is_plain(v)}
            for attribute, value in (own | module._buffers).items():
                yield (name, attribute), value

    def changed(self) -> dict[str, dict[str, Any]]:
        """Attributes that differ from the fresh model's, by module name."""
        out: dict[str, dict[str, Any]] = {}
        for (name, attribute), value in self._values():
            if not same(value, self.fresh.get((name, attribute), self)):
                out.setdefault(name, {})[attribute] = value
        return out

    def put(self, values: dict[str, dict[str, Any]]) -> None:
        """Makes the modules what a fresh model's are, apart from `values`."""
        for name, attributes in self.changed().items():
            for attribute in attributes:
                setattr(self.modules[name], attribute, copy.deepcopy(self.fresh.get((name, attribute))))
        for name, attributes in values.items():
            for attribute, value in attributes.items():
                setattr(self.modules[name], attribute, value)


_PLAIN = torch.nn.Module()


def is_plain(value: Any) -> bool:
    """A tensor that is no parameter, a scalar, or a container of such."""
    if isinstance(value, dict):
        return all(is_plain(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    if isinstance(value, torch.Tensor):
        return not isinstance(value, torch.nn.Parameter)
    return value is None or isinstance(value, bool | int | float | str)


def same(one: Any, other: Any) -> bool:
    """Equal in type and value, tensors bit for bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
    return bool(one == other or one != one)
