"""What the KV cache of known models consists of.

A preset is a name, where its shape was read, and a few lines that build its groups. Layers are numbered from 0. A
convolution of kernel `k` keeps the `k - 1` inputs that the next token needs; recurrent states are fp32, as engines
keep them for bf16 models.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kvwire import DType, GroupKind, GroupSpec
from kvwire.cli.memory import kv_bytes

Specs = tuple[GroupSpec, ...]

FIT = "fit"
"""Source of a preset whose shape is not public: made to fit published sizes."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A model's KV cache. `source`: the public configuration its shape is from, or `FIT`."""

    name: str
    kind: str
    source: str
    build: Callable[[int], Specs]

    def specs(self, block_tokens: int = 16) -> Specs:
        """The groups, with blocks of `block_tokens` tokens."""
        return self.build(block_tokens)

    def kv_bytes(self, tokens: int, block_tokens: int = 16) -> int:
        """Bytes of the KV cache after `tokens` tokens, in whole blocks."""
        return kv_bytes(self.specs(block_tokens), tokens)


def preset(name: str) -> Preset:
    """The preset called `name`. ValueError with the closest names, or all of them."""
    if name in PRESETS:
        return PRESETS[name]
    close = difflib.get_close_matches(name.lower(), PRESETS, n=2, cutoff=0.5)
    advice = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(PRESETS)}"
    raise ValueError(f"no model is called {name!r}; {advice}")


def _mixers(layers: Iterable[int], conv: tuple[int, int], state: tuple[int, ...]) -> Specs:
    """A mixer's two states: `conv` is [channels, inputs kept] in bf16, `state` the recurrent state in fp32."""
    mixers = tuple(layers)
    return (
        GroupSpec.state("conv", GroupKind.CONV, mixers, DType.BF16, conv),
        GroupSpec.state("recurrent", GroupKind.RECURRENT, mixers, DType.FP32, state),
    )


def _llama_3_70b(block_tokens: int) -> Specs:
    return (GroupSpec.attention("full", range(80), DType.BF16, block_tokens=block_tokens, heads=8, head_dim=128),)


def _kimi_linear(block_tokens: int) -> Specs:
    mla = (3, 7, 11, 15, 19, 23, 26)
    kda = (layer for layer in range(27) if layer not in mla)
    latent = GroupSpec.mla("mla", mla, DType.BF16, block_tokens=block_tokens, latent=512 + 64)
    return (latent, *_mixers(kda, (3 * 32 * 128, 3), (32, 128, 128)))


def _gemma_3_27b(block_tokens: int) -> Specs:
    full = range(5, 62, 6)
    sliding = (layer for layer in range(62) if layer not in full)
    return (
        GroupSpec.attention("full", full, DType.BF16, block_tokens=block_tokens, heads=16, head_dim=128),
        GroupSpec.attention(
            "window", sliding, DType.BF16, block_tokens=block_tokens, heads=16, head_dim=128, window=1024
        ),
    )


def _nemotron_h_8b(block_tokens: int) -> Specs:
    pattern = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
    full = (layer for layer, mixer in enumerate(pattern) if mixer == "*")
    mamba = (layer for layer, mixer in enumerate(pattern) if mixer == "M")
    attention = GroupSpec.attention("full", full, DType.BF16, block_tokens=block_tokens, heads=8, head_dim=128)
    return (attention, *_mixers(mamba, (128 * 64 + 2 * 8 * 128, 3), (128, 64, 128)))


def _case_study_1t(block_tokens: int) -> Specs:
    mla = range(3, 56, 4)
    kda = (layer for layer in range(56) if layer not in mla)
    latent = GroupSpec.mla("mla", mla, DType.BF16, block_tokens=block_tokens, latent=544 + 64)
    return (latent, *_mixers(kda, (3 * 64 * 128, 3), (64, 128, 128)))


PRESETS = {
    entry.name: entry
    for entry in (
        Preset("llama-3-70b", "dense GQA", "meta-llama/Meta-Llama-3-70B", _llama_3_70b),
        Preset("kimi-linear-48b", "MLA + KDA", "moonshotai/Kimi-Linear-48B-A3B-Instruct", _kimi_linear),
        Preset("gemma-3-27b", "sliding window", "google/gemma-3-27b-it", _gemma_3_27b),
        Preset("nemotron-h-8b", "attention + Mamba2", "nvidia/Nemotron-H-8B-Base-8K", _nemotron_h_8b),
        # Fits the sizes that arXiv 2604.15039 gives at 1 K, 32 K and 128 K tokens: 190.8, 701.3, 2316.3 MiB.
        Preset("case-study-1t", "MLA + KDA", FIT, _case_study_1t),
    )
}
