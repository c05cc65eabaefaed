"""Model presets: their sizes, and what a misspelt name says."""

import pytest

from kvwire import GroupKind
from kvwire.cli.memory import kv_bytes, last_layer_bytes, steps
from kvwire.cli.models.presets import FIT, PRESETS, preset

KI, MIB = 1024, 1 << 20


@pytest.mark.parametrize(("tokens", "mib"), [(1 * KI, 190.8), (32 * KI, 701.3), (128 * KI, 2316.3)])
def test_case_study_fits_the_published_sizes(tokens: int, mib: float) -> None:
    assert preset("case-study-1t").kv_bytes(tokens) / MIB == pytest.approx(mib, rel=0.01)
    assert preset("case-study-1t").source == FIT


@pytest.mark.parametrize(
    ("name", "layers", "per_token", "fixed"),
    [
        # Per token: layers x 2 x heads x dim x 2 bytes, or layers x latent x 2; fixed: what the states hold.
        ("llama-3-70b", 80, 80 * 2 * 8 * 128 * 2, 0),
        ("kimi-linear-48b", 27, 7 * 576 * 2, 20 * (32 * 128 * 128 * 4 + 3 * 4096 * 3 * 2)),
        ("nemotron-h-8b", 28, 4 * 2 * 8 * 128 * 2, 24 * (128 * 64 * 128 * 4 + 10240 * 3 * 2)),
        ("case-study-1t", 56, 14 * 1216, 42 * (64 * 128 * 128 * 4 + 24576 * 3 * 2)),
    ],
)
def test_bytes_of_public_shapes(name: str, layers: int, per_token: int, fixed: int) -> None:
    model = preset(name)
    assert model.kv_bytes(16 * KI) == 16 * KI * per_token + fixed
    assert len({layer for spec in model.specs() for layer in spec.layers}) == layers


@pytest.mark.parametrize(
    ("name", "per_token", "fixed"),
    [
        # KiB per token as the LLM Architecture Gallery has them: 248, 30, 11.25 (Ling 2.5), 7.875, 68.625 (Kimi K2,
        # whose MLA is that of DeepSeek-V3); fixed: layers x (state in fp32 + convolution inputs in bf16).
        ("minimax-m2.5", 248 * KI, 0),
        ("qwen3-235b", 188 * KI, 0),
        ("qwen3.5-397b", 30 * KI, 45 * (64 * 128 * 128 * 4 + (2 * 16 * 128 + 64 * 128) * 3 * 2)),
        ("ring-2.5-1t", 11520, 70 * 64 * 128 * 128 * 4),
        ("deepseek-v3", 70272, 0),
        # 9 full layers of 4 heads, 39 of 8 with a window of 128; keys of 192, values of 128.
        ("mimo-v2-flash", 9 * 4 * (192 + 128) * 2, 39 * 8 * (192 + 128) * 2 * 128),
    ],
)
def test_bytes_of_published_models(name: str, per_token: int, fixed: int) -> None:
    assert preset(name).kv_bytes(8 * KI) == 8 * KI * per_token + fixed


def test_every_source_is_named_and_only_the_case_study_is_a_fit() -> None:
    assert [model.name for model in PRESETS.values() if model.source == FIT] == ["case-study-1t"]
    assert all("/" in model.source for model in PRESETS.values() if model.source != FIT)


def test_sliding_window_stops_growing() -> None:
    model = preset("gemma-3-27b")
    full, window = model.specs()
    assert (len(full.layers), len(window.layers), window.window) == (10, 52, 1024)
    per_token = 2 * 16 * 128 * 2
    assert model.kv_bytes(8 * KI) == 10 * 8 * KI * per_token + 52 * KI * per_token


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("block_tokens", [16, 64])
def test_every_preset_is_whole(name: str, block_tokens: int) -> None:
    model = preset(name)
    specs = model.specs(block_tokens)
    assert model.source
    assert all(spec.block_tokens == (0 if spec.kind.is_state else block_tokens) for spec in specs)
    segments = [segment for step in steps(specs) for segment in step]
    assert len(segments) == len(set(segments)) == sum(len(spec.layers) for spec in specs)
    assert 0 < last_layer_bytes(specs, 4096) < kv_bytes(specs, 4096)


def test_hybrids_interleave_three_to_one() -> None:
    mla, conv, recurrent = preset("case-study-1t").specs()
    assert mla.kind is GroupKind.MLA
    assert mla.layers[:3] == (3, 7, 11)
    assert conv.layers == recurrent.layers
    assert set(mla.layers) | set(conv.layers) == set(range(56))


def test_a_misspelt_name_suggests() -> None:
    with pytest.raises(ValueError, match="did you mean kimi-linear-48b"):
        preset("kimi-liner-48b")
    with pytest.raises(ValueError, match=r"did you mean qwen3-235b"):
        preset("Qwen3-235B-A22B")
    with pytest.raises(ValueError, match=r"there are llama-3-70b, .*case-study-1t"):
        preset("xyzzy")
