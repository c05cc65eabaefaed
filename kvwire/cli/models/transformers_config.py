"""From a transformers `config.json` to the groups of its model's KV cache.

Engines' conventions, not transformers', where the two differ: a convolution of kernel k keeps the k - 1 inputs that
the next token needs (vLLM; transformers' cache keeps k), and a window of w tokens is w tokens (transformers' keeps
the w - 1 that the next token looks back on). MLA keeps the latent and the rotary key, not the heads' K and V. Layers
that only draft tokens (multi-token prediction) are not counted.

A wrong size is worse than none: what is missing, unknown or contradictory is a ValueError that names the field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvwire import DType, GroupKind, GroupSpec, Part
from kvwire.cli.models.families import FAMILIES, FULL, LAYERS, LETTERS, STATE, WINDOW, Family, Layer

Specs = tuple[GroupSpec, ...]

MAX_LAYERS = 1024
MAX_EXTENT = 1 << 20
MAX_WINDOW = 1 << 32
NESTED = ("text_config", "language_config", "llm_config", "thinker_config")
"""Where models that also see or hear have the configuration of what writes."""

ALIASES = {
    "num_hidden_layers": ("n_layer", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "hidden_size": ("n_embd", "d_model"),
}
DECODERS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")

# Of a family without an entry, a field with such a name may well shape the cache.
SUSPECT = re.compile(
    r"kv_|_kv|mamba|ssm|conv|linear_|index_|indexer|compress|recurrent|rnn|lru|rwkv|state_|memory|cross_|multi_query|"
    r"pattern|block_type|attn_type|attention_types|chunk|local_|global_|swa_|shared_layers|window_|_window_|per_layer"
)
HARMLESS = re.compile(
    r"kv_lora_rank|num_key_value_heads|max_window_layers|num_kv_shared_layers|attention_chunk_size|"
    r".*(bias|act|moe|mtp|expert|pretrain|quant|norm|rope|drop|mlp|use_|vision|audio|chunk_size_feed).*"
)

STATE_DTYPES = {"float32": DType.FP32, "bfloat16": DType.BF16, "float16": DType.FP16}


def specs_of(config: Mapping[str, Any], block_tokens: int = 16, dtype: DType = DType.BF16) -> Specs:
    """The groups of the KV cache, with blocks of `block_tokens` tokens.

    `dtype` is what K and V are kept in, and convolution states too unless it is one byte wide: fp8 caches leave
    states in bf16. Recurrent states are fp32 where engines keep them so. ValueError: the sentence names the field.
    """
    fields = _Fields(config)
    layers = _layers(fields)
    kept = {what: tuple(n for n, layer in enumerate(layers) if what in layer) for what in (FULL, WINDOW, STATE)}
    specs: list[GroupSpec] = []
    if kept[FULL]:
        latent = "kv_lora_rank" in fields
        specs.append((_latent if latent else _attention)(fields, kept[FULL], block_tokens, dtype))
    if kept[WINDOW]:
        if "kv_lora_rank" in fields:
            raise ValueError("sliding layers with a kv_lora_rank are not known to us")
        specs.append(_attention(fields, kept[WINDOW], block_tokens, dtype, window=_window(fields)))
    if kept[STATE]:
        specs += _states(fields, kept[STATE], dtype)
    if not specs:
        raise ValueError("no layer of this configuration keeps anything between tokens")
    return tuple(specs)


class _Fields:
    """A configuration's fields, checked as they are read. null is as good as absent; defaults are the family's."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        model_type = config.get("model_type")
        named = config.get("architectures")
        architectures = named if isinstance(named, list) else []
        for name in NESTED * 2:  # one may lie in another
            if isinstance(config.get(name), Mapping):
                config = config[name]
                model_type = config.get("model_type") or model_type
        if not isinstance(model_type, str):
            raise ValueError("it has no model_type, so it is no transformers configuration")
        if config.get("is_encoder_decoder") or config.get("add_cross_attention"):
            raise ValueError(f"{model_type} has an encoder; only decoders are known, whose KV cache is all there is")
        known = FAMILIES.get(model_type)
        if known is None and not any(str(name).endswith(DECODERS) for name in architectures):
            raise ValueError(
                f"model_type {model_type!r} is not known, and architectures name no {' or '.join(DECODERS)}"
            )
        self.model_type, self.known = model_type, known is not None
        self.family = known or Family()
        given = {name: value for name, value in config.items() if value is not None}
        for name, others in ALIASES.items():
            found = next((given[other] for other in others if other in given), None)
            if found is not None:
                given.setdefault(name, found)
        self.given: dict[str, Any] = {**self.family.defaults, **given}
        if known is None:
            self._check_nothing_else_matters()
        self._derive()

    def _derive(self) -> None:
        """What a configuration may leave to be computed from other fields."""
        if "num_attention_heads" not in self:
            return
        heads = self.integer("num_attention_heads")
        if self.family.all_heads:
            self.given.setdefault("num_key_value_heads", heads)
        derived = self.known and "head_dim" not in self and "hidden_size" in self
        if derived and self.integer("hidden_size") % heads == 0:
            self.given["head_dim"] = self.integer("hidden_size") // heads

    def _find(self, name: str) -> Any:
        value: Any = self.given
        for step in name.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        return value

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def integer(self, names: str, low: int = 1, high: int = MAX_EXTENT) -> int:
        """The first of "a|b" that is there."""
        name = next((name for name in names.split("|") if name in self), None)
        if name is None:
            raise ValueError(f"it has no {names.replace('|', ' or ')}, which {self.model_type} needs; add it")
        value = self._find(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{name} is {value!r:.60}; expected an integer in {low} to {high}")
        return value

    def each(self, name: str, kind: type[int] | type[str]) -> list[Any]:
        """A list of integers or of strings."""
        value = self._find(name)
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            what = "integers" if kind is int else "strings"
            raise ValueError(f"{name} is {value!r:.60}; expected a list of {what}")
        return value

    def _check_nothing_else_matters(self) -> None:
        """A family without an entry may say which layers slide, and must have no other field that may matter."""
        superseded = {name for name, _ in RULES} if "layer_types" in self else set()
        for name, value in self.given.items():
            if value and name not in superseded and SUSPECT.search(name) and not HARMLESS.fullmatch(name):
                raise ValueError(f"model_type {self.model_type!r} is not known, and its {name} may shape the KV cache")


def _named(fields: _Fields, name: str) -> list[Layer]:
    kinds = fields.each(name, str)
    if {"sliding_attention", "chunked_attention"} <= set(kinds):
        raise ValueError(f"{name} has windows and chunks; one of the two is known to us, not both")
    for number, kind in enumerate(kinds):
        if kind not in LAYERS and kind != "chunked_attention":
            raise ValueError(f"layer {number} of {name} is {kind!r}; known are chunked_attention, {', '.join(LAYERS)}")
    return [LAYERS.get(kind, (WINDOW,)) for kind in kinds]


def _lettered(fields: _Fields, name: str) -> list[Layer]:
    pattern = fields.given[name]
    if not isinstance(pattern, str) or set(pattern) - set(LETTERS):
        raise ValueError(f"{name} is {pattern!r:.60}; expected a string of {' '.join(LETTERS)}")
    return [LETTERS[letter] for letter in pattern]


def _numbered(zero: Layer, one: Layer) -> Callable[[_Fields, str], list[Layer]]:
    """A list of 0 and 1."""

    def layers(fields: _Fields, name: str) -> list[Layer]:
        numbers = fields.each(name, int)
        if set(numbers) - {0, 1}:
            raise ValueError(f"{name} is {numbers!r:.60}; expected a list of 0 and 1")
        return [(zero, one)[number] for number in numbers]

    return layers


def _kimi(fields: _Fields, name: str) -> list[Layer]:
    """Kimi Linear numbers its layers from 1."""
    full, linear = (fields.each(f"{name}.{part}", int) for part in ("full_attn_layers", "kda_layers"))
    if sorted(full + linear) != list(range(1, len(full) + len(linear) + 1)):
        raise ValueError(f"{name}: full_attn_layers and kda_layers do not name every layer once")
    return [(FULL,) if number in full else (STATE,) for number in range(1, len(full) + len(linear) + 1)]


def _listed(fields: _Fields, name: str) -> list[Layer]:
    """The numbers of the attention layers, from 0; the others are linear."""
    full = fields.each(name, int)
    count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    if not set(full) <= set(range(count)):
        raise ValueError(f"{name} is {full!r:.60}; expected numbers of the {count} layers")
    return [(FULL,) if number in full else (STATE,) for number in range(count)]


def _last_of(others: Layer) -> Callable[[_Fields, str], list[Layer]]:
    """The last layer of every `name` layers attends to all; the rest are `others`."""

    def layers(fields: _Fields, name: str) -> list[Layer]:
        every, count = fields.integer(name), fields.integer("num_hidden_layers", high=MAX_LAYERS)
        return [others if (number + 1) % every else (FULL,) for number in range(count)]

    return layers


def _grouped(fields: _Fields, name: str) -> list[Layer]:
    """As `_last_of`, in whole groups only: engines do not agree on what layers left over are."""
    every, count = fields.integer(name), fields.integer("num_hidden_layers", high=MAX_LAYERS)
    if count % every:
        raise ValueError(f"{name} is {every} and num_hidden_layers {count}, no multiple of it; add layer_types")
    return _last_of((STATE,))(fields, name)


def _periodic(fields: _Fields, name: str) -> list[Layer]:
    """Jamba: one attention layer in every period, at an offset."""
    period, offset = fields.integer(name), fields.integer("attn_layer_offset", low=0)
    count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    return [(FULL,) if number % period == offset else (STATE,) for number in range(count)]


RULES: tuple[tuple[str, Callable[[_Fields, str], list[Layer]]], ...] = (
    ("layer_types", _named),
    ("layers_block_type", _named),
    ("hybrid_override_pattern", _lettered),
    ("hybrid_layer_pattern", _numbered((FULL,), (WINDOW,))),  # MiMo-V2
    ("attn_type_list", _numbered((STATE,), (FULL,))),  # MiniMax-01
    ("linear_attn_config.full_attn_layers", lambda fields, _: _kimi(fields, "linear_attn_config")),
    ("attn_layer_indices", _listed),  # Bamba
    ("full_attn_idxs", _listed),  # LFM2
    ("full_attention_interval", _last_of((STATE,))),  # Qwen3-Next, Qwen3.5
    ("layer_group_size", _grouped),  # Ling, Ring
    ("attn_layer_period", _periodic),
    ("sliding_window_pattern", _last_of((WINDOW,))),  # Gemma 2 and 3, Cohere 2
)
"""How a configuration says what its layers are: the first field that is there decides."""


def _layers(fields: _Fields) -> list[Layer]:
    """What each layer keeps."""
    name, rule = next(((name, rule) for name, rule in RULES if name in fields), ("", None))
    if rule is not None:
        layers = rule(fields, name)
        if "num_hidden_layers" in fields and len(layers) != fields.integer("num_hidden_layers", high=MAX_LAYERS):
            raise ValueError(f"num_hidden_layers is {fields.given['num_hidden_layers']}, {name} has {len(layers)}")
        if not 1 <= len(layers) <= MAX_LAYERS:
            raise ValueError(f"{name} has {len(layers)} layers; expected 1 to {MAX_LAYERS}")
    else:
        layers = [_every_layer(fields)] * fields.integer("num_hidden_layers", high=MAX_LAYERS)
    if "num_kv_shared_layers" in fields:  # Gemma 3n, Gemma 4: the last layers read what earlier ones keep
        shared = fields.integer("num_kv_shared_layers", low=0, high=len(layers) - 1)
        layers = [*layers[: len(layers) - shared], *[()] * shared]
    return layers


def _every_layer(fields: _Fields) -> Layer:
    """What all layers are, where no field tells them apart."""
    if fields.family.every_layer is None:
        raise ValueError("it does not say which layers are linear; add layer_types")
    slides = fields.given.get("sliding_window") and fields.given.get("use_sliding_window", True)
    if (slides and not fields.family.slides) or "attention_chunk_size" in fields:
        raise ValueError("it does not say which layers have the window or chunks; add layer_types")
    return (WINDOW,) if slides else fields.family.every_layer


def _window(fields: _Fields) -> int:
    chunked = "chunked_attention" in fields.given.get("layer_types", ())
    return fields.integer("attention_chunk_size" if chunked else "sliding_window|sliding_window_size", high=MAX_WINDOW)


def _attention(fields: _Fields, layers: Sequence[int], block_tokens: int, dtype: DType, window: int = 0) -> GroupSpec:
    """K and V. Sliding layers may have heads of their own (MiMo-V2)."""
    own = "swa_" if window else ""
    if f"{own}num_key_value_heads" in fields:
        heads = fields.integer(f"{own}num_key_value_heads")
    else:
        heads = fields.integer("num_key_value_heads") * (fields.family.window_heads if window else 1)
    key_dim = fields.integer(f"{own}head_dim" if f"{own}head_dim" in fields else "head_dim")
    value = next((name for name in (f"{own}v_head_dim", "v_head_dim") if name in fields), None)
    dims = (("k", key_dim), ("v", fields.integer(value) if value else key_dim))
    parts = tuple(Part(name, (block_tokens, heads, dim), 0) for name, dim in dims)
    kind = GroupKind.WINDOW if window else GroupKind.FULL
    return GroupSpec(kind.value, kind, tuple(layers), dtype, parts, block_tokens, window)


def _latent(fields: _Fields, layers: Sequence[int], block_tokens: int, dtype: DType) -> GroupSpec:
    latent = fields.integer("kv_lora_rank") + fields.integer("qk_rope_head_dim", low=0)
    return GroupSpec.mla("mla", layers, dtype, block_tokens=block_tokens, latent=latent)


def _states(fields: _Fields, layers: Sequence[int], dtype: DType) -> list[GroupSpec]:
    """Convolution and recurrent state of the linear layers."""
    mixer = next((m for m in fields.family.mixers if not m.marker or m.marker in fields), None)
    if mixer is None:
        raise ValueError(f"layer {layers[0]} is linear, and what {fields.model_type} keeps of one is not known")
    state = mixer.shape(**{argument: fields.integer(name) for argument, name in mixer.names.items()})
    model = dtype if dtype.itemsize > 1 else DType.BF16
    specs = []
    if state.conv is not None and state.conv[1] > 1:
        channels, kernel = state.conv
        specs.append(GroupSpec.state("conv", GroupKind.CONV, layers, model, (channels, kernel - 1)))
    if state.recurrent is not None:
        kept = _state_dtype(fields) or (DType.FP32 if mixer.float32 else model)
        specs.append(GroupSpec.state("recurrent", GroupKind.RECURRENT, layers, kept, state.recurrent))
    return specs


def _state_dtype(fields: _Fields) -> DType | None:
    """The dtype of recurrent states, where the configuration has one."""
    for name in ("mamba_ssm_cache_dtype", "mamba_ssm_dtype"):
        if name in fields:
            kept = STATE_DTYPES.get(str(fields.given[name]))
            if kept is None:
                raise ValueError(f"{name} is {fields.given[name]!r:.60}; expected {' or '.join(STATE_DTYPES)}")
            return kept
    return None
