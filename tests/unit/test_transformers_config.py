"""What a transformers configuration says of a KV cache, and what it has to say for that.

Sizes are those of real caches: transformers 5.23 made the models and prefilled 512 tokens. The two conventions that
differ are translated: transformers keeps `kernel` inputs of a convolution and w - 1 tokens of a window of w.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwire import DType, GroupKind, GroupSpec, KvwireError
from kvwire.cli.models.transformers_config import RULES, specs_of

CONFIGS = Path(__file__).parents[2] / "examples" / "handoff" / "configs"
LLAMA: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
    "hidden_size": 256,
}  # fmt: skip
UNKNOWN = {**LLAMA, "model_type": "new", "architectures": ["NewForCausalLM"], "head_dim": 32}
MAMBA = {
    "model_type": "mamba", "num_hidden_layers": 2, "intermediate_size": 512, "state_size": 16, "conv_kernel": 4
}  # fmt: skip
LINEAR, FULL, SLIDING = "linear_attention", "full_attention", "sliding_attention"


def fixed_bytes(specs: tuple[GroupSpec, ...]) -> int:
    """What transformers keeps whatever the number of tokens, once the window is full."""
    total = 0
    for spec in specs:
        one = spec.block_bytes * len(spec.layers)
        if spec.kind is GroupKind.CONV:
            inputs = spec.parts[0].shape[-1]
            total += one // inputs * (inputs + 1)
        elif spec.kind is GroupKind.WINDOW:
            total += one // spec.block_tokens * (spec.window - 1)
        elif spec.kind.is_state:
            total += one
    return total


def bytes_per_token(specs: tuple[GroupSpec, ...]) -> int:
    growing = (spec for spec in specs if spec.kind.takes_any_subset)
    return sum(spec.block_bytes // spec.block_tokens * len(spec.layers) for spec in growing)


@pytest.mark.parametrize(
    ("family", "per_token", "fixed"),
    [
        ("llama", 1024, 0),
        ("qwen3", 1024, 0),
        ("gemma3", 256, 162560),
        ("deepseek_v3", 640, 0),
        ("qwen3_next", 256, 110592),
        ("kimi_linear", 160, 116736),
        ("minimax", 512, 32768),
        ("jamba", 256, 110592),
        ("granitemoehybrid", 256, 210432),
        ("mamba2", 0, 280576),
    ],
)
def test_sizes_of_real_caches(family: str, per_token: int, fixed: int) -> None:
    specs = specs_of(json.loads((CONFIGS / f"{family}.json").read_text()))
    assert (bytes_per_token(specs), fixed_bytes(specs)) == (per_token, fixed)


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        # Every head its own K and V where a Llama has no num_key_value_heads; head_dim from hidden_size.
        ({"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 256},
         {"full": ((0, 1), (16, 8, 32))}),
        ({"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 64}, {"full": ((0, 1), (16, 4, 16))}),
        # What models that also see write with.
        ({"model_type": "mistral3", "text_config": {**LLAMA, "model_type": "mistral"}},
         {"full": ((0, 1, 2, 3), (16, 2, 32))}),
        # Gemma 3 on the hub says neither its heads nor which layers slide.
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 7,
                                                  "hidden_size": 2560, "sliding_window": 1024}},
         {"full": ((5,), (16, 4, 256)), "window": ((0, 1, 2, 3, 4, 6), (16, 4, 256))}),
        ({**LLAMA, "model_type": "mistral", "sliding_window": 4096}, {"window": ((0, 1, 2, 3), (16, 2, 32))}),
        ({**LLAMA, "model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False},
         {"full": ((0, 1, 2, 3), (16, 2, 32))}),
        # Layers that read what earlier ones keep.
        ({**LLAMA, "num_kv_shared_layers": 3}, {"full": ((0,), (16, 2, 32))}),
        ({**LLAMA, "model_type": "minimax_text_01", "attn_type_list": [0, 0, 0, 1]},
         {"full": ((3,), (16, 2, 32)), "recurrent": ((0, 1, 2), (8, 32, 32))}),
        ({**LLAMA, "model_type": "lfm2", "full_attn_idxs": [2], "conv_L_cache": 3},
         {"full": ((2,), (16, 2, 32)), "conv": ((0, 1, 3), (256, 2))}),
        # Attention and Mamba2 in one layer.
        ({**LLAMA, "model_type": "falcon_h1", "mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 32,
          "mamba_n_groups": 1},
         {"full": ((0, 1, 2, 3), (16, 2, 32)), "conv": ((0, 1, 2, 3), (576, 3)),
          "recurrent": ((0, 1, 2, 3), (8, 64, 32))}),
        # Ling 3 has short convolutions, Ling 2.5 has none.
        ({"model_type": "bailing_hybrid", "num_hidden_layers": 4, "layer_group_size": 4, "num_attention_heads": 8,
          "head_dim": 32, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "short_conv_kernel_size": 4},
         {"mla": ((3,), (16, 80)), "conv": ((0, 1, 2), (768, 3)), "recurrent": ((0, 1, 2), (8, 32, 32))}),
        # A family without an entry that says everything itself.
        ({**UNKNOWN, "layer_types": [SLIDING, FULL] * 2, "sliding_window": 64},
         {"full": ((1, 3), (16, 2, 32)), "window": ((0, 2), (16, 2, 32))}),
        ({**UNKNOWN, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, {"mla": ((0, 1, 2, 3), (16, 576))}),
    ],
)  # fmt: skip
def test_ways_to_say_it(config: dict[str, Any], shapes: dict[str, Any]) -> None:
    assert {spec.name: (spec.layers, spec.parts[0].shape) for spec in specs_of(config)} == shapes


def test_keys_and_values_may_differ_and_sliding_layers_may_have_other_heads() -> None:
    config = {
        "model_type": "mimo_v2_flash", "num_hidden_layers": 3, "num_attention_heads": 64, "num_key_value_heads": 4,
        "head_dim": 192, "v_head_dim": 128, "swa_num_key_value_heads": 8, "sliding_window": 128,
        "hybrid_layer_pattern": [0, 1, 1],
    }  # fmt: skip
    full, window = specs_of(config)
    assert [part.shape for part in full.parts] == [(16, 4, 192), (16, 4, 128)]
    assert [part.shape for part in window.parts] == [(16, 8, 192), (16, 8, 128)]
    del config["swa_num_key_value_heads"]  # transformers' own form: twice the heads, in the model's code
    assert specs_of(config) == (full, window)


def test_dtypes() -> None:
    config = json.loads((CONFIGS / "jamba.json").read_text())
    assert [spec.dtype for spec in specs_of(config, dtype=DType.FP16)] == [DType.FP16, DType.FP16, DType.FP32]
    assert [spec.dtype for spec in specs_of(config, dtype=DType.FP8_E4M3)] == [DType.FP8_E4M3, DType.BF16, DType.FP32]
    minimax = json.loads((CONFIGS / "minimax.json").read_text())
    assert [spec.dtype for spec in specs_of(minimax)] == [DType.BF16, DType.BF16]
    assert specs_of({**config, "mamba_ssm_dtype": "bfloat16"})[-1].dtype is DType.BF16


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "no model_type"),
        ({"kvwire_bench": 1, "kind": "loopback"}, "no model_type"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "t5 has an encoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "architectures name no ForCausalLM"),
        ({"model_type": "vit", "architectures": 7}, "'vit' is not known"),
        ({**LLAMA, "num_hidden_layers": 0}, "num_hidden_layers is 0; expected an integer in 1 to 1024"),
        ({**LLAMA, "num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({**LLAMA, "num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({**LLAMA, "num_hidden_layers": "4"}, "num_hidden_layers is '4'"),
        ({**LLAMA, "num_hidden_layers": None}, "no num_hidden_layers"),
        ({**LLAMA, "num_key_value_heads": True}, "num_key_value_heads is True"),
        ({**LLAMA, "head_dim": float("nan")}, "head_dim is nan"),
        ({**LLAMA, "layer_types": [FULL]}, "num_hidden_layers is 4, layer_types has 1"),
        ({**LLAMA, "layer_types": [FULL, "indexed_attention"] * 2}, "layer 1 of layer_types is 'indexed_attention'"),
        ({**LLAMA, "layer_types": [1, 2, 3, 4]}, "expected a list of strings"),
        ({**LLAMA, "layer_types": ["mlp"] * 4}, "no layer of this configuration keeps anything"),
        ({**LLAMA, "layer_types": [LINEAR] * 4}, "what llama keeps of one is not known"),
        ({**LLAMA, "sliding_window": 64}, "does not say which layers have the window"),
        ({**LLAMA, "model_type": "minimax"}, "does not say which layers are linear"),
        ({**LLAMA, "model_type": "nemotron_h", "hybrid_override_pattern": "M*Q-"}, "hybrid_override_pattern is 'M"),
        ({**LLAMA, "model_type": "bailing_hybrid", "layer_group_size": 3}, "num_hidden_layers 4, no multiple of it"),
        ({**LLAMA, "model_type": "qwen3_next"}, "no linear_num_key_heads"),
        ({**MAMBA, "mamba_ssm_dtype": []}, "mamba_ssm_dtype is .*; expected float32"),
        ({**MAMBA, "intermediate_size": 1 << 40}, "intermediate_size is 1099511627776"),
        ({**UNKNOWN, "num_key_value_heads": None}, "no num_key_value_heads, which new needs"),
        ({**UNKNOWN, "head_dim": None}, "no head_dim, which new needs"),
        ({**UNKNOWN, "ssm_state_size": 16}, "its ssm_state_size may shape the KV cache"),
        ({**UNKNOWN, "cross_attention_layers": [3]}, "its cross_attention_layers may shape"),
        ({**UNKNOWN, "sliding_window": 64, "sliding_window_pattern": 2}, "its sliding_window_pattern may shape"),
    ],
)
def test_a_wrong_size_is_worse_than_none(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        specs_of(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([FULL, LINEAR]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("family", sorted(path.stem for path in CONFIGS.glob("*.json")))
@given(st.data())
def test_no_value_of_any_field_makes_it_fail_otherwise(family: str, data: st.DataObject) -> None:
    config = json.loads((CONFIGS / f"{family}.json").read_text())
    names = st.sampled_from([*config, "text_config", "linear_attn_config", *(name for name, _ in RULES)])
    config |= data.draw(st.dictionaries(names, JSON, min_size=1, max_size=3))
    with contextlib.suppress(ValueError, KvwireError):
        assert specs_of(config)
