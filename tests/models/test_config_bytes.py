"""What a configuration says of a KV cache (`specs_of`), against the tensors that the real model keeps.

The two conventions that differ are translated exactly: transformers keeps `kernel` inputs of a convolution, kvwire
the kernel - 1 that the next token needs; of a window of w tokens transformers keeps w - 1.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import kvwire
from kvwire import GroupKind, GroupSpec
from kvwire.cli.models.transformers_config import specs_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "handoff"
FAMILIES = sorted(path.stem for path in (EXAMPLE / "configs").glob("*.json"))
TOKENS = 300
"""More than Gemma's window of 128."""

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
        reason="torch and transformers are not installed",
    ),
]

# In a process of its own, because the example's modules are named so briefly. Prints the bytes per kind, per family.
MEASURE = """
import json, sys
from collections import Counter
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from layout import kind_of
from model import build, forward, prompt, settle
from state import Walk

settle()
found = {}
for path in sorted(Path(sys.argv[1], "configs").glob("*.json")):
    model = build(json.loads(path.read_text()), "bf16")
    _, cache = forward(model, prompt(model, int(sys.argv[2])))
    walked = Walk.of({"cache": cache})
    held = Counter()
    for name, tensor in walked.tensors.items():
        held[kind_of(name, tensor, walked.holders[name], int(sys.argv[2])).value] += tensor.nbytes
    found[path.stem] = held
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, int]]:
    """Bytes that each family's cache holds after `TOKENS` tokens, by kind."""
    command = [sys.executable, "-c", MEASURE, str(EXAMPLE), str(TOKENS)]
    environment = {**os.environ, "PYTHONPATH": str(Path(kvwire.__file__).parents[1])}  # the one under test
    done = subprocess.run(command, capture_output=True, text=True, timeout=220, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


def as_transformers_keeps_it(spec: GroupSpec) -> int:
    """Bytes of a group after `TOKENS` tokens."""
    bytes_all = spec.block_bytes * len(spec.layers)
    if spec.kind is GroupKind.CONV:
        inputs = spec.parts[0].shape[-1]
        return bytes_all // inputs * (inputs + 1)
    if spec.kind.is_state:
        return bytes_all
    return bytes_all // spec.block_tokens * min(TOKENS, spec.window - 1 if spec.window else TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
def test_says_what_the_model_keeps(family: str, measured: dict[str, dict[str, int]]) -> None:
    said: Counter[str] = Counter()
    for spec in specs_of(json.loads((EXAMPLE / "configs" / f"{family}.json").read_text())):
        said[spec.kind.value] += as_transformers_keeps_it(spec)
    assert said == measured[family]
