"""What the KV cache of known models consists of.

A preset is the part of a model's configuration that shapes its KV cache, and where that was read;
`transformers_config` makes the groups of it, and says which conventions they follow. Layers are numbered from 0.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvwire import DType, GroupSpec
from kvwire.cli.memory import kv_bytes
from kvwire.cli.models.transformers_config import specs_of

Specs = tuple[GroupSpec, ...]

FIT = "fit"
"""Source of a preset whose shape is not public: made to fit published sizes."""
BLOCK_TOKENS = 16
GALLERY = "the LLM Architecture Gallery (sebastianraschka.com), which reads config.json"


@dataclass(frozen=True, slots=True)
class Preset:
    """A model's KV cache. `source`: the public configuration its shape is from and where that was read, or `FIT`;
    `note`: what of it is not certain. `config`: the fields that matter, named as transformers names them."""

    name: str
    kind: str
    source: str
    config: Mapping[str, Any]
    note: str = ""

    def specs(self, block_tokens: int = BLOCK_TOKENS, dtype: DType = DType.BF16) -> Specs:
        """The groups, with blocks of `block_tokens` tokens."""
        return specs_of(self.config, block_tokens, dtype)

    def kv_bytes(self, tokens: int, block_tokens: int = BLOCK_TOKENS) -> int:
        """Bytes of the KV cache after `tokens` tokens, in whole blocks."""
        return kv_bytes(self.specs(block_tokens), tokens)


def preset(name: str) -> Preset:
    """The preset called `name`. ValueError with the closest names, or all of them."""
    if name in PRESETS:
        return PRESETS[name]
    close = difflib.get_close_matches(name.lower(), PRESETS, n=2, cutoff=0.5)
    advice = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(PRESETS)}"
    raise ValueError(f"no model is called {name!r}; {advice}")


def _gqa(layers: int, heads: int, head_dim: int, **more: Any) -> dict[str, Any]:
    return {"num_hidden_layers": layers, "num_key_value_heads": heads, "head_dim": head_dim, **more}


def _mla(layers: int, latent: int, **more: Any) -> dict[str, Any]:
    return {"num_hidden_layers": layers, "kv_lora_rank": latent, "qk_rope_head_dim": 64, **more}


def _kda(layers: int, mla_layers: tuple[int, ...], heads: int) -> dict[str, Any]:
    """`linear_attn_config` numbers layers from 1."""
    full = [layer + 1 for layer in mla_layers]
    others = [layer for layer in range(1, layers + 1) if layer not in full]
    sizes = {"num_heads": heads, "head_dim": 128, "short_conv_kernel_size": 4}
    mixers = {"full_attn_layers": full, "kda_layers": others, **sizes}
    return {"model_type": "kimi_linear", "linear_attn_config": mixers}


PRESETS = {
    entry.name: entry
    for entry in (
        Preset(
            "llama-3-70b", "dense GQA", "meta-llama/Meta-Llama-3-70B, config.json",
            _gqa(80, 8, 128, model_type="llama"),
        ),
        Preset(
            "deepseek-v3", "MLA", "deepseek-ai/DeepSeek-V3, defaults of DeepseekV3Config in transformers 5.23",
            _mla(61, 512, model_type="deepseek_v3"),
        ),
        Preset(
            "minimax-m2.5", "dense GQA",
            f"MiniMaxAI/MiniMax-M2.5, defaults of MiniMaxM2Config in transformers 5.23 and {GALLERY}",
            _gqa(62, 8, 128, model_type="minimax_m2"),
        ),
        Preset(
            "qwen3-235b", "dense GQA",
            "Qwen/Qwen3-235B-A22B, as in AI-Hypercomputer/maxtext configs/models/qwen3-235b-a22b.yml",
            _gqa(94, 4, 128, model_type="qwen3_moe"),
        ),
        Preset(
            "qwen3.5-397b", "attention + gated delta",
            f"Qwen/Qwen3.5-397B-A17B, text_config as quoted in public loaders; layer mix confirmed by {GALLERY}",
            _gqa(
                60, 2, 256, model_type="qwen3_5_moe_text", full_attention_interval=4, linear_num_key_heads=16,
                linear_key_head_dim=128, linear_num_value_heads=64, linear_value_head_dim=128,
                linear_conv_kernel_dim=4,
            ),
        ),
        Preset(
            "kimi-linear-48b", "MLA + KDA",
            "moonshotai/Kimi-Linear-48B-A3B-Instruct, config.json",
            _mla(27, 512, **_kda(27, (3, 7, 11, 15, 19, 23, 26), 32)),
        ),
        Preset(
            "ring-2.5-1t", "MLA + lightning",
            "inclusionAI/Ring-2.5-1T, from tiny-random/ring-2.5, which keeps its head and latent sizes, and "
            f"Ling-2.5-1T, the same architecture, in {GALLERY}",
            _mla(80, 512, model_type="bailing_hybrid", layer_group_size=8, num_attention_heads=64, head_dim=128),
            note="its own config.json was not seen; states in fp32, as SGLang keeps them",
        ),
        Preset(
            "mimo-v2-flash", "sliding window",
            "XiaomiMiMo/MiMo-V2-Flash, config.json as quoted in public loaders, and defaults of MiMoV2FlashConfig in "
            "transformers 5.23",
            _gqa(
                48, 4, 192, model_type="mimo_v2_flash", v_head_dim=128, swa_num_key_value_heads=8, swa_head_dim=192,
                swa_v_head_dim=128, sliding_window=128,
                hybrid_layer_pattern=[int(layer not in {0, *range(5, 48, 6)}) for layer in range(48)],
            ),
        ),
        Preset(
            "gemma-3-27b", "sliding window", "google/gemma-3-27b-it, config.json",
            _gqa(62, 16, 128, model_type="gemma3_text", sliding_window=1024),
        ),
        Preset(
            "nemotron-h-8b", "attention + Mamba2", "nvidia/Nemotron-H-8B-Base-8K, config.json",
            _gqa(
                52, 8, 128, model_type="nemotron_h", mamba_num_heads=128, mamba_head_dim=64, n_groups=8,
                ssm_state_size=128, conv_kernel=4,
                hybrid_override_pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
            ),
        ),
        Preset(
            "case-study-1t", "MLA + KDA", FIT,
            _mla(56, 544, **_kda(56, tuple(range(3, 56, 4)), 64)),
            note="to the sizes that arXiv 2604.15039 gives at 1 K, 32 K and 128 K tokens: 190.8, 701.3, 2316.3 MiB",
        ),
    )
}  # fmt: skip
