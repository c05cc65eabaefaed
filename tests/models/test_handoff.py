"""Real models: prefill in one process, decode in another, bit for bit equal to a decode that never left.

Every run is the example's own command, and does several families, because loading transformers takes longer than a
hand-off.
"""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import kvwire

EXAMPLE = Path(__file__).parents[2] / "examples" / "handoff"
FAMILIES = sorted(path.stem for path in (EXAMPLE / "configs").glob("*.json"))

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
        reason="torch and transformers are not installed",
    ),
]


@dataclass
class Run:
    """What one run of the example said: the verdict and the line of every model, messages, exit status."""

    status: int
    lines: dict[str, str]
    messages: str

    def verdict(self, name: str) -> str:
        found = re.search(r"\b(identical|different)\b", self.lines.get(name, ""))
        assert found, f"no verdict on {name}: {self.messages}"
        return found[0]

    def coded(self, name: str) -> float:
        """How many times shorter went what went through a codec; 1.0 where nothing did."""
        found = re.search(r" (\d+\.\d+)x | - ", self.lines[name])
        assert found, self.lines[name]
        return float(found[1] or 1.0)


@functools.cache
def handoff(*arguments: str) -> Run:
    """Runs the example; equal runs only once."""
    command = [sys.executable, str(EXAMPLE / "handoff.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(kvwire.__file__).parents[1])}  # the one under test
    done = subprocess.run(command, capture_output=True, text=True, timeout=220, check=False, env=environment)
    rows = [line for line in done.stdout.splitlines()[1:] if line.strip()]
    return Run(done.returncode, {row.split()[0]: row for row in rows}, done.stderr)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_decodes_alike(family: str, dtype: str) -> None:
    assert len(FAMILIES) == 10
    assert handoff("--dtype", dtype).verdict(family) == "identical"


def test_status_is_zero_when_all_are_identical_and_layers_leave_early() -> None:
    run = handoff("--dtype", "bf16")
    assert run.status == 0, run.messages
    shares = [int(share) for line in run.lines.values() for share in re.findall(r" (\d+)% ", line)]
    assert len(shares) == len(FAMILIES)
    assert max(shares) > 0  # of the layers, at the decoder before the last one had left


def test_plain_it_decodes_alike() -> None:
    run = handoff("--plain", "--family", "llama")
    assert (run.verdict("llama"), run.status) == ("identical", 0)


def test_a_prompt_shorter_than_a_window_over_one_lane() -> None:
    arguments = ("--prompt-tokens", "37", "--lanes", "1", "--dtype", "fp16")
    families = ("gemma3", "jamba", "qwen3_next")
    run = handoff(*arguments, *(word for family in families for word in ("--family", family)))
    assert [run.verdict(family) for family in families] == ["identical"] * 3


HYBRID = "qwen3_next"


@pytest.mark.parametrize("family", FAMILIES)
def test_through_a_lossless_codec_it_decodes_alike(family: str) -> None:
    assert handoff("--compression", "zstd").verdict(family) == "identical"


def test_a_hybrid_went_coded() -> None:
    """The column is made of the receipts: how many times shorter what went through a codec was."""
    assert handoff("--compression", "zstd").coded(HYBRID) > 1.1
    run = handoff("--compression", "full=zstd,recurrent=zstd,conv=off", "--family", HYBRID)
    assert run.verdict(HYBRID) == "identical"
    assert run.coded(HYBRID) > 1.1


def test_without_compression_nothing_goes_coded() -> None:
    run = handoff("--compression", "off", "--family", HYBRID)
    assert (run.verdict(HYBRID), run.coded(HYBRID)) == ("identical", 1.0)


@pytest.mark.parametrize(
    ("compression", "sentence"),
    [
        ("zip", "--compression: there is no codec 'zip'"),
        ("full=zip", "--compression: there is no codec 'zip'"),
        ("half=zstd", "--compression: compression: 'half' is no kind of group"),
        ("int8", "codec 'int8' does not take group"),
    ],
)
def test_a_codec_that_cannot_be_is_a_sentence(compression: str, sentence: str) -> None:
    run = handoff("--compression", compression, "--family", HYBRID)
    assert run.status == 2
    assert sentence in run.messages
    assert "Traceback" not in run.messages


@pytest.mark.parametrize(
    ("kind", "families"),
    [
        ("full", ("llama", "minimax")),
        ("window", ("gemma3",)),
        ("mla", ("deepseek_v3", "kimi_linear")),
        ("recurrent", ("mamba2", "minimax", "qwen3_next", "granitemoehybrid")),
        ("conv", ("mamba2", "jamba", "kimi_linear")),
    ],
)
def test_one_damaged_tensor_shows(kind: str, families: tuple[str, ...]) -> None:
    run = handoff("--damage", kind, *(word for family in families for word in ("--family", family)))
    assert [run.verdict(family) for family in families] == ["different"] * len(families)
    assert run.status == 1


# Families that the example does not come with, for what else they hold.
SMALL = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 8, "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1, "index_n_heads": 4, "index_head_dim": 32, "index_topk": 64,
}  # fmt: skip
LINEAR, FULL, SLIDING, CONV = "linear_attention", "full_attention", "sliding_attention", "conv"
FURTHER: dict[str, dict[str, Any]] = {
    # short convolutions and no recurrent state
    "lfm2": {"layer_types": [CONV, CONV, FULL, CONV], "block_multiple_of": 64},
    # sliding windows and attention sinks
    "gpt_oss": {
        "head_dim": 32, "sliding_window": 64, "layer_types": [SLIDING, FULL] * 2,
        "num_local_experts": 4, "num_experts_per_tok": 2,
    },
    # keys of a sparse-attention indexer beside the latent
    "deepseek_v32": LATENT,
    # compressors with buffers, overlaps and counters; keys and values are one tensor
    "deepseek_v4": {
        "head_dim": 32, "num_key_value_heads": 1, "q_lora_rank": 96, "moe_intermediate_size": 128,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "sliding_window": 64, "o_groups": 4, "o_lora_rank": 32,
        "qk_rope_head_dim": 16, "index_n_heads": 4, "index_head_dim": 32, "index_topk": 16,
        "layer_types": [
            SLIDING, "heavily_compressed_attention", "compressed_sparse_attention", "compressed_sparse_attention"
        ],
        "mlp_layer_types": ["moe"] * 4,
    },
    # later layers share the cache of earlier ones
    "gemma3n_text": {
        "head_dim": 32, "sliding_window": 64, "layer_types": [SLIDING, FULL] * 2, "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 1024, "hidden_size_per_layer_input": 32, "laurel_rank": 16,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    # attention and Mamba in one layer
    "falcon_h1": {
        "mamba_d_ssm": 512, "mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 32, "mamba_n_groups": 1,
        "mamba_chunk_size": 64,
    },
    # layers without any cache
    "nemotron_h": {
        "head_dim": 32, "layers_block_type": ["mamba", "attention", "mamba", "moe"], "mamba_num_heads": 8,
        "mamba_head_dim": 64, "ssm_state_size": 32, "n_groups": 1, "chunk_size": 64, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 128, "moe_shared_expert_intermediate_size": 128,
    },
    "falcon_mamba": {"state_size": 16},
    "qwen3_5_text": {
        "head_dim": 32, "layer_types": [LINEAR] * 3 + [FULL], "linear_key_head_dim": 32, "linear_value_head_dim": 32,
        "linear_num_key_heads": 4, "linear_num_value_heads": 8,
    },
    # state on the modules, beside a cache
    "recurrent_gemma": {
        "num_key_value_heads": 1, "lru_width": 256, "attention_window_size": 64,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    # a cache class of its own, tuples in a dict
    "xlstm": {
        "embedding_dim": 256, "num_blocks": 4, "num_heads": 4, "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native", "step_kernel": "native", "mode": "inference",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def further(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a configuration file for each of `FURTHER`."""
    directory = tmp_path_factory.mktemp("configs")
    for name, own in FURTHER.items():
        (directory / f"{name}.json").write_text(json.dumps({"model_type": name, **SMALL, **own}))
    return directory


@pytest.mark.parametrize("family", FURTHER)
def test_a_family_nobody_described(family: str, further: Path) -> None:
    run = handoff(
        "--prompt-tokens", "300", *(word for name in FURTHER for word in ("--config", f"{further / name}.json"))
    )
    assert run.verdict(family) == "identical"


@pytest.mark.parametrize("path", ["layers.2.indexer_keys", "layers.0.keys"])
def test_damage_by_path_in_a_family_nobody_described(path: str, further: Path) -> None:
    run = handoff("--damage", path, "--config", f"{further / 'deepseek_v32'}.json")
    assert run.verdict("deepseek_v32") == "different"
    assert path in run.lines["deepseek_v32"]


def test_what_cannot_be_compared_is_said_in_a_sentence_each(tmp_path: Path) -> None:
    contents = {
        "text": "model_type: llama",
        "list": "[]",
        "unknown": '{"model_type": "no-such-model"}',
        "nothing": "{}",
        "encoder": '{"model_type": "vit"}',
        "stateless": '{"model_type": "bert", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, '
        '"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 512}',
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(content)
    names = ["absent", *contents]
    words = [word for name in names for word in ("--config", f"{tmp_path / name}.json")]
    run = handoff(*words, "--family", "llama", "--prompt-tokens", "16")
    assert run.status == 2
    assert run.verdict("llama") == "identical"
    said = {
        line.split(": ")[1].rsplit("/")[-1]: line for line in run.messages.splitlines() if line.startswith("handoff: ")
    }
    assert set(said) == {f"{name}.json" for name in names}
    for name, part in {
        "absent": "No such file", "text": "not JSON", "list": "a list", "unknown": "'no-such-model'",
        "nothing": "model_type is None", "encoder": "no causal language model", "stateless": "keeps nothing",
    }.items():  # fmt: skip
        assert part in said[f"{name}.json"]
    assert "Traceback" not in run.messages
