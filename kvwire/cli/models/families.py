"""What transformers' model families keep between tokens: data that `transformers_config` reads.

A family needs an entry where its `config.json` does not say it all: which mixer its linear layers are, which layers
slide, what a field means where it is left out. Defaults are those of the configuration classes of transformers 5.23,
whose caches the shapes below were compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

FULL, WINDOW, STATE = "full", "window", "state"
Layer = tuple[str, ...]
"""What one layer keeps: none, one or two of FULL, WINDOW and STATE."""

LAYERS: Mapping[str, Layer] = {
    "full_attention": (FULL,),
    "attention": (FULL,),
    "sliding_attention": (WINDOW,),
    "linear_attention": (STATE,),
    "mamba": (STATE,),
    "conv": (STATE,),
    "hybrid": (FULL, STATE),
    "moe": (),
    "mlp": (),
}
"""The names of `layer_types` and `layers_block_type`."""

LETTERS: Mapping[str, Layer] = {"M": (STATE,), "*": (FULL,), "-": (), "E": ()}
"""The letters of Nemotron-H's `hybrid_override_pattern`: Mamba2, attention, MLP, experts."""


@dataclass(frozen=True, slots=True)
class State:
    """What a linear layer keeps. `conv`: channels and kernel of its convolution; `recurrent`: shape of its state."""

    conv: tuple[int, int] | None
    recurrent: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Mixer:
    """A kind of linear layer: `shape` is called with the fields that `names` gives its arguments.

    A name is a field of the configuration, "a.b" one in a nested object, "a|b" whichever is there. `marker`: a mixer
    is a family's only where this field is there. `float32`: the recurrent state is kept in fp32 whatever the model's
    dtype.
    """

    shape: Callable[..., State]
    names: Mapping[str, str]
    marker: str = ""
    float32: bool = True


@dataclass(frozen=True, slots=True)
class Family:
    """`defaults`: fields as the configuration class has them where `config.json` does not. `all_heads`: without
    `num_key_value_heads`, every head has its own K and V. `every_layer`: what all layers are where no field tells
    them apart (None: then nobody knows); `slides`: with a `sliding_window`, all of them slide. `window_heads`:
    sliding layers have so many times `num_key_value_heads`."""

    mixers: tuple[Mixer, ...] = ()
    defaults: Mapping[str, int] = field(default_factory=dict)
    all_heads: bool = False
    every_layer: Layer | None = (FULL,)
    slides: bool = False
    window_heads: int = 1


def _gated_delta(keys: int, key_dim: int, values: int, value_dim: int, kernel: int) -> State:
    return State((2 * keys * key_dim + values * value_dim, kernel), (values, key_dim, value_dim))


def _kda(heads: int, dim: int, kernel: int) -> State:
    return State((3 * heads * dim, kernel), (heads, dim, dim))


def _lightning(heads: int, dim: int) -> State:
    return State(None, (heads, dim, dim))


def _mamba(inner: int, state: int, kernel: int) -> State:
    return State((inner, kernel), (inner, state))


def _jamba(hidden: int, expand: int, state: int, kernel: int) -> State:
    return _mamba(hidden * expand, state, kernel)


def _mamba2(heads: int, dim: int, groups: int, state: int, kernel: int) -> State:
    return State((heads * dim + 2 * groups * state, kernel), (heads, dim, state))


def _short_convolution(channels: int, kernel: int) -> State:
    return State((channels, kernel), None)


GATED_DELTA = Mixer(
    _gated_delta,
    {
        "keys": "linear_num_key_heads",
        "key_dim": "linear_key_head_dim",
        "values": "linear_num_value_heads",
        "value_dim": "linear_value_head_dim",
        "kernel": "linear_conv_kernel_dim",
    },
)
KIMI_DELTA = Mixer(
    _kda,
    {
        "heads": "linear_attn_config.num_heads|linear_num_heads",
        "dim": "linear_attn_config.head_dim|linear_head_dim",
        "kernel": "linear_attn_config.short_conv_kernel_size|linear_conv_kernel_dim",
    },
)
BAILING_DELTA = Mixer(
    _kda,
    {"heads": "num_attention_heads", "dim": "linear_head_dim|head_dim", "kernel": "short_conv_kernel_size"},
    marker="short_conv_kernel_size",
)
LIGHTNING = Mixer(_lightning, {"heads": "num_attention_heads", "dim": "head_dim"})
LIGHTNING_IN_MODEL_DTYPE = Mixer(_lightning, LIGHTNING.names, float32=False)
JAMBA = Mixer(
    _jamba, {"hidden": "hidden_size", "expand": "mamba_expand", "state": "mamba_d_state", "kernel": "mamba_d_conv"}
)
MAMBA = Mixer(_mamba, {"inner": "intermediate_size", "state": "state_size", "kernel": "conv_kernel"})
MAMBA2 = Mixer(
    _mamba2,
    {"heads": "num_heads", "dim": "head_dim", "groups": "n_groups", "state": "state_size", "kernel": "conv_kernel"},
)
NEMOTRON = Mixer(
    _mamba2,
    {
        "heads": "mamba_num_heads",
        "dim": "mamba_head_dim",
        "groups": "n_groups|mamba_n_groups",
        "state": "ssm_state_size",
        "kernel": "conv_kernel|mamba_d_conv",
    },
)
GRANITE = Mixer(
    _mamba2,
    {
        "heads": "mamba_n_heads",
        "dim": "mamba_d_head",
        "groups": "mamba_n_groups",
        "state": "mamba_d_state",
        "kernel": "mamba_d_conv",
    },
)
SHORT_CONVOLUTION = Mixer(_short_convolution, {"channels": "hidden_size", "kernel": "conv_L_cache"})

_PLAIN, _ALL_HEADS, _SLIDES = Family(), Family(all_heads=True), Family(slides=True)
_QWEN = Family((GATED_DELTA,), {"linear_conv_kernel_dim": 4, "full_attention_interval": 4, "head_dim": 256})
_MIMO = Family(defaults={"head_dim": 192, "v_head_dim": 128}, window_heads=2)
_MINIMAX = Family((LIGHTNING_IN_MODEL_DTYPE,), all_heads=True, every_layer=None)
_MAMBA = Family((MAMBA,), every_layer=(STATE,))
_GEMMA_3 = {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 4096}


def _of(family: Family, *model_types: str) -> dict[str, Family]:
    return dict.fromkeys(model_types, family)


FAMILIES: Mapping[str, Family] = {
    **_of(_PLAIN, "qwen2", "qwen2_moe", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_moe", "phimoe", "phi4_multimodal"),
    **_of(_PLAIN, "exaone4", "exaone_moe", "bitnet", "ernie4_5_moe", "smollm3"),
    **_of(_ALL_HEADS, "gpt2", "gpt_neox", "gptj", "opt", "bloom", "phi", "persimmon", "stablelm", "llama"),
    **_of(
        _ALL_HEADS, "olmo", "olmo2", "olmo3", "olmoe", "granite", "granitemoe", "cohere", "deepseek_v2", "deepseek_v3"
    ),
    **_of(_SLIDES, "mistral", "mixtral", "starcoder2"),
    **_of(Family(defaults={"head_dim": 128}), "qwen3", "glm", "glm4", "ernie4_5", "seed_oss", "minimax_m2"),
    "phi3": Family(all_heads=True, slides=True),
    "gemma": Family(defaults={"head_dim": 256}),
    "gemma2": Family(defaults={"head_dim": 256, "sliding_window_pattern": 2}),
    # Published configurations leave out what the class has as defaults.
    "gemma3_text": Family(defaults={**_GEMMA_3, "head_dim": 256, "sliding_window_pattern": 6}),
    "gemma3n_text": Family(defaults={"head_dim": 256, "sliding_window_pattern": 5, "num_kv_shared_layers": 15}),
    "cohere2": Family(defaults={"sliding_window_pattern": 4, "sliding_window": 4096}, all_heads=True),
    "gpt_oss": Family(defaults={"head_dim": 64, "sliding_window_pattern": 2}),
    **_of(_MIMO, "mimo_v2_flash", "mimo_v2"),
    **_of(_QWEN, "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
    "olmo_hybrid": Family((GATED_DELTA,), all_heads=True, every_layer=None),
    "kimi_linear": Family((KIMI_DELTA,), {"linear_conv_kernel_dim": 4}, every_layer=None),
    # Ling 2.5 and Ring 2.5 have lightning attention, Ling 3 has KDA.
    "bailing_hybrid": Family((BAILING_DELTA, LIGHTNING), every_layer=None),
    **_of(_MINIMAX, "minimax", "minimax_text_01", "minimax_m1"),
    "jamba": Family((JAMBA,), {"mamba_d_conv": 4, "mamba_expand": 2, "attn_layer_period": 8, "attn_layer_offset": 4}),
    **_of(_MAMBA, "mamba", "falcon_mamba"),
    "mamba2": Family((MAMBA2,), {"conv_kernel": 4}, every_layer=(STATE,)),
    "nemotron_h": Family((NEMOTRON,), {"conv_kernel": 4, "head_dim": 128}, every_layer=None),
    **_of(Family((GRANITE,), {"mamba_d_conv": 4}, all_heads=True, every_layer=(STATE,)), "granitemoehybrid", "bamba"),
    "falcon_h1": Family((GRANITE,), {"mamba_d_conv": 4}, every_layer=(FULL, STATE)),
    **_of(Family((SHORT_CONVOLUTION,), every_layer=None), "lfm2", "lfm2_moe"),
}
"""By model_type. What is not here must say everything itself (`transformers_config` checks that it does)."""
